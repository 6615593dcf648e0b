"""Random numbers with an address: (seed, purpose, round, client).

Each draw depends on its address only. Results therefore do not depend on the order of the clients, the number of
workers, or interruptions: no generator has a state that could be lost. `stream` gives one NumPy generator for one
address (a partition, a model). `uniforms` draws for many clients at once, without a Python step per client (batches,
computing times).
"""

import hashlib
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from salf.errors import InvalidSetting
from salf.values import Floats, Ints

# One round for all clients, or one for each.
Rounds = int | npt.ArrayLike

# With at most so many examples per swap, listing all of them is cheaper than looking up those that are swapped.
_ROOMY = 8
_WORD = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
# Multipliers and key increments of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
_MULTIPLY = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_INCREMENT = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)


def stream(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return the NumPy generator of one address.

    Args:
        seed: The experiment's seed.
        purpose: A name that no other kind of draw uses.
        round: From 1; 0 for draws outside rounds.
        client: From 0.

    >>> stream(0, "partition").integers(1000) == stream(0, "partition").integers(1000)
    np.True_
    >>> stream(0, "partition").integers(2**40) == stream(0, "depth").integers(2**40)
    np.False_
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([*_digest(seed, purpose), round, client])))


def integer(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """Return a 63-bit seed of one address, for libraries with their own generators.

    >>> integer(0, "model", round=1, client=2)
    6311039868494471729
    """
    return int(stream(seed, purpose, round, client).integers(2**63))


def uniforms(seed: int, purpose: str, round: Rounds, clients: npt.ArrayLike, count: int) -> Floats:
    """Draw numbers that are uniform on the open interval (0, 1) for each client.

    Each row depends on its own round and client only, not on what else is drawn.

    Args:
        seed: The experiment's seed.
        purpose: A name that no other kind of draw uses.
        round: One for all clients, or shape (clients,).
        clients: Their numbers, shape (clients,).
        count: Numbers per client; the result has shape (clients, count).

    >>> both = uniforms(7, "depth", round=[3, 5], clients=[4, 9], count=2)
    >>> bool((uniforms(7, "depth", round=5, clients=[9], count=2) == both[1]).all())
    True
    """
    ids = np.asarray(clients, dtype=np.uint64).reshape(-1, 1)
    blocks = math.ceil(count / 2)
    counter = np.empty((4, len(ids), blocks), dtype=np.uint64)
    counter[0] = np.arange(blocks)
    counter[1] = ids & _WORD
    counter[2] = ids >> _SHIFT
    counter[3] = np.asarray(round, dtype=np.uint64).reshape(-1, 1)
    first, second, third, fourth = _philox(counter, *_digest(seed, purpose)[:2])
    words = np.stack([(first << _SHIFT) | second, (third << _SHIFT) | fourth], axis=-1)
    # 52 random bits, moved to the middle of their interval so that neither 0 nor 1 occurs.
    drawn: Floats = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return drawn.reshape(len(ids), 2 * blocks)[:, :count]


def permuted(uniform: Floats, sizes: npt.ArrayLike) -> Ints:
    """Turn uniform numbers into indices of each client's examples, in random passes.

    A pass visits every example once, in random order, before the next begins: sampling without replacement that keeps
    no state between rounds.

    Args:
        uniform: Numbers from `uniforms`, shape (clients, count); each gives one index.
        sizes: Numbers of examples, shape (clients,). Indices go from 0 to size − 1.

    >>> sorted(permuted(uniforms(1, "batch", round=0, clients=[5], count=4), sizes=[4])[0].tolist())
    [0, 1, 2, 3]
    """
    clients, count = uniform.shape
    size = np.asarray(sizes, dtype=np.int64).reshape(-1)
    if count and (size < 1).any():
        raise InvalidSetting("a client has no examples to draw a batch from; give each client at least one example")
    # Fisher–Yates for all clients at once: the example at `source` is swapped with the one at a random `target` not
    # before it. A row holds one place of every client's result.
    source = np.arange(count)[:, None] % size if count else np.empty((0, clients), dtype=np.int64)
    target = source + (uniform.T * (size - source)).astype(np.int64)
    return _swapped(source, target, size)


def _swapped(source: Ints, target: Ints, sizes: Ints) -> Ints:
    """Return the example at each target when it is swapped, shape (clients, places)."""
    ends = sizes.cumsum()
    starts = ends - sizes
    swaps = np.stack([source + starts, target + starts], axis=1)
    # For large data sets, only examples that are swapped are listed.
    total = int(sizes.sum())
    places = np.arange(total) if total <= _ROOMY * swaps.size else np.unique(swaps)
    if len(places) < total:
        swaps = np.searchsorted(places, swaps)
    standing = places.copy()
    drawn = np.empty_like(target)
    for turn, (here, there) in enumerate(swaps):
        again = source[turn] == 0
        if turn and again.any():  # another pass begins
            standing = np.where(again[np.searchsorted(ends, places, side="right")], places, standing)
        drawn[turn] = standing[there]
        standing[there] = standing[here]
    return (drawn - starts).T


def _philox(counter: npt.NDArray[np.uint64], *key: int) -> npt.NDArray[np.uint64]:
    """Encrypt counters of four 32-bit words (first axis) with ten rounds of Philox.

    The key has two 32-bit words. In a round, the first and the third word of a counter are multiplied; they are kept in
    one array, the other two in another.
    """
    shape = (2, *[1] * (counter.ndim - 1))
    multiplied, mixed = counter[0::2], counter[1::2]
    factors = _MULTIPLY.reshape(shape)
    for keys in _key_schedule(*key):
        product = (multiplied * factors)[::-1]
        multiplied = product >> _SHIFT
        multiplied ^= mixed
        multiplied ^= keys.reshape(shape)
        mixed = product & _WORD
    encrypted = np.empty_like(counter)
    encrypted[0::2], encrypted[1::2] = multiplied, mixed
    return encrypted


@lru_cache(maxsize=64)
def _key_schedule(*key: int) -> list[npt.NDArray[np.uint64]]:
    """Return the keys of the ten rounds of Philox."""
    first = np.array(key, dtype=np.uint64)
    return [(first + np.uint64(turn) * _INCREMENT) & _WORD for turn in range(10)]


@lru_cache(maxsize=64)
def _digest(seed: int, purpose: str) -> tuple[int, int, int, int]:
    """Hash seed and purpose to four 32-bit words."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    words = np.frombuffer(digest, dtype="<u4")
    return int(words[0]), int(words[1]), int(words[2]), int(words[3])
