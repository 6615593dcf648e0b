"""Randomness with an address: every draw is a function of (seed, purpose, round, client) and of nothing else.

Results therefore depend neither on the order in which clients are visited, nor on how many workers there are, nor on
whether a run was interrupted: there is no generator whose state could be lost.

Two forms of the same idea: `stream` gives one NumPy generator for one address (drawing a partition, initialising a
model), `uniforms` draws for many clients at once without a Python step per client (batches, computing times).
"""

import hashlib
import math

import numpy as np
import numpy.typing as npt

_WORD = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
# Multipliers and key increments of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
_MULTIPLY = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_INCREMENT = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)


def stream(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return the generator that belongs to one address.

    >>> stream(0, "partition").integers(1000) == stream(0, "partition").integers(1000)
    np.True_
    >>> stream(0, "partition").integers(2**40) == stream(0, "depth").integers(2**40)
    np.False_
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([*_digest(seed, purpose), round, client])))


def integer(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """Return a 63-bit seed for a library that brings its own generator, such as torch."""
    return int(stream(seed, purpose, round, client).integers(2**63))


def uniforms(
    seed: int,
    purpose: str,
    round: int,
    clients: npt.ArrayLike,
    count: int,
) -> npt.NDArray[np.float64]:
    """Draw `count` numbers uniform on the open interval (0, 1) for each client, shape (clients, count).

    A row depends on its own client alone, never on who else is in `clients`:

    >>> both = uniforms(7, "depth", round=3, clients=[4, 9], count=2)
    >>> bool((uniforms(7, "depth", round=3, clients=[9], count=2) == both[1]).all())
    True
    """
    ids = np.asarray(clients, dtype=np.uint64).reshape(-1, 1)
    blocks = np.arange(math.ceil(count / 2), dtype=np.uint64)
    counter = np.empty((4, ids.shape[0], blocks.shape[0]), dtype=np.uint64)
    counter[0] = blocks
    counter[1] = ids & _WORD
    counter[2] = ids >> _SHIFT
    counter[3] = np.uint64(round)
    first, second, third, fourth = _philox(counter, *_digest(seed, purpose)[:2])
    words = np.stack([(first << _SHIFT) | second, (third << _SHIFT) | fourth], axis=-1)
    # 52 random bits, moved to the middle of their interval so that neither 0 nor 1 occurs.
    drawn: npt.NDArray[np.float64] = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return drawn.reshape(ids.shape[0], 2 * blocks.shape[0])[:, :count]


def permuted(
    seed: int,
    purpose: str,
    round: int,
    clients: npt.ArrayLike,
    sizes: npt.ArrayLike,
    count: int,
) -> npt.NDArray[np.int64]:
    """Draw, for each client, `count` indices of its own examples: random passes through 0 … size − 1.

    A pass visits every example once before the next, in another order, begins; the result has shape (clients, count).
    This is sampling without replacement with no state to keep between rounds.

    >>> sorted(permuted(1, "batch", round=0, clients=[5], sizes=[4], count=4)[0].tolist())
    [0, 1, 2, 3]
    """
    ids = np.asarray(clients, dtype=np.uint64).reshape(-1)
    size = np.asarray(sizes, dtype=np.int64).reshape(-1, 1)
    if count and (size < 1).any():
        raise ValueError("a client without examples cannot draw a batch")
    place = np.broadcast_to(np.arange(count, dtype=np.int64), (ids.shape[0], count))
    turn, source = np.divmod(place, size) if count else (place, place)
    # Fisher–Yates, for all clients at once: the example at `source` changes places with the one at a random `target`
    # not before it.
    target = source + (uniforms(seed, purpose, round, ids, count) * (size - source)).astype(np.int64)
    return _swapped(turn, source, target)


def _swapped(
    turn: npt.NDArray[np.int64], source: npt.NDArray[np.int64], target: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return which example stands at each target when its turn comes; arrays of shape (clients, places).

    A place is written only as the target of a swap, with the example that stood at its source. What stands somewhere is
    therefore what the last swap with that target put there, which is found by following the swaps back.
    """
    clients, count = target.shape
    if not target.size:
        return target
    highest = int(target.max()) + 1
    pass_of = (np.arange(clients)[:, None] * (int(turn.max()) + 1) + turn) * highest
    number = np.arange(count)
    keys = ((pass_of + target) * count + number).ravel()
    known = np.sort(keys)
    earlier = [_last_before(known, ((pass_of + place) * count + number).ravel(), count) for place in (target, source)]
    # The swap that put something at a swap's source, and at its target; -1 if nothing was put there before.
    at_target, at_source = (found.reshape(clients, count) for found in earlier)
    origin = np.where(at_source >= 0, at_source, number)
    while True:  # follow the sources back, twice as far each time
        further = np.take_along_axis(origin, origin, axis=1)
        if (further == origin).all():
            break
        origin = further
    brought = np.take_along_axis(source, origin, axis=1)
    moved = np.take_along_axis(brought, np.maximum(at_target, 0), axis=1)
    return np.where(at_target >= 0, moved, target)


def _last_before(known: npt.NDArray[np.int64], keys: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return the number of the last swap before each key's that has the same target; -1 if there is none."""
    before = np.searchsorted(known, keys) - 1
    found = known[np.maximum(before, 0)]
    return np.where((before >= 0) & (found // count == keys // count), found % count, -1)


def _philox(counter: npt.NDArray[np.uint64], *key: int) -> npt.NDArray[np.uint64]:
    """Encrypt counters of four 32-bit words (first axis) with ten rounds of Philox under a key of two 32-bit words.

    The words multiplied in a round (the first and the third) are kept in one array, the other two in another.
    """
    shape = (2, *[1] * (counter.ndim - 1))
    multiplied, mixed = counter[0::2].copy(), counter[1::2].copy()
    keys = np.array(key, dtype=np.uint64).reshape(shape)
    factors, increments = _MULTIPLY.reshape(shape), _INCREMENT.reshape(shape)
    for _ in range(10):
        product = multiplied * factors
        mixed ^= keys
        mixed ^= product[::-1] >> _SHIFT
        product &= _WORD
        multiplied, mixed = mixed, product[::-1].copy()
        keys = (keys + increments) & _WORD
    encrypted = np.empty_like(counter)
    encrypted[0::2], encrypted[1::2] = multiplied, mixed
    return encrypted


def _digest(seed: int, purpose: str) -> tuple[int, int, int, int]:
    """Condense seed and purpose into four 32-bit words."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    words = np.frombuffer(digest, dtype="<u4")
    return int(words[0]), int(words[1]), int(words[2]), int(words[3])
