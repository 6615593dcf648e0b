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
_MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_INCREMENT = (0x9E3779B9, 0xBB67AE85)


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
    # not before it. Only the places that were written are remembered, not the whole order.
    target = source + (uniforms(seed, purpose, round, ids, count) * (size - source)).astype(np.int64)
    chosen = np.empty(place.shape, dtype=np.int64)
    moved = np.empty(place.shape, dtype=np.int64)
    for now in range(count):
        written = np.where(turn[:, :now] == turn[:, now, None], target[:, :now], -1)
        chosen[:, now] = _lookup(target[:, now], written, moved[:, :now])
        moved[:, now] = _lookup(source[:, now], written, moved[:, :now])
    return chosen


def _lookup(
    place: npt.NDArray[np.int64], written: npt.NDArray[np.int64], moved: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return what stands at each client's place after its writes: the last value written there, else itself."""
    if written.shape[1] == 0:
        return place
    match = written == place[:, None]
    last = match.shape[1] - 1 - match[:, ::-1].argmax(axis=1)
    rows = np.arange(place.shape[0])
    return np.where(match[rows, last], moved[rows, last], place)


def _philox(counter: npt.NDArray[np.uint64], *key: int) -> npt.NDArray[np.uint64]:
    """Encrypt counters of four 32-bit words (first axis) with ten rounds of Philox under a key of two 32-bit words."""
    first, second, third, fourth = counter
    low, high = key
    for _ in range(10):
        left, right = first * _MULTIPLY[0], third * _MULTIPLY[1]
        first, second, third, fourth = (
            (right >> _SHIFT) ^ second ^ np.uint64(low),
            right & _WORD,
            (left >> _SHIFT) ^ fourth ^ np.uint64(high),
            left & _WORD,
        )
        low, high = (low + _INCREMENT[0]) & 0xFFFFFFFF, (high + _INCREMENT[1]) & 0xFFFFFFFF
    return np.stack([first, second, third, fourth])


def _digest(seed: int, purpose: str) -> tuple[int, int, int, int]:
    """Condense seed and purpose into four 32-bit words."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    words = np.frombuffer(digest, dtype="<u4")
    return int(words[0]), int(words[1]), int(words[2]), int(words[3])
