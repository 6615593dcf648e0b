"""Dividing the training examples among clients: each example goes to exactly one client, and none goes without.

`labels` are the training labels, one per example; an example is known by its index in them. The same arguments always
give the same partition.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from salf.errors import InvalidSetting
from salf.seeds import stream

_ATTEMPTS = 100
# Shares drawn with so large an α are equal to within a millionth; far above, the draw would overflow.
_LARGEST_ALPHA = 1e12


@dataclass(frozen=True, eq=False)
class Partition:
    """Which examples each client holds: `order[offsets[u]:offsets[u + 1]]` are the indices of client u's.

    >>> partition = Partition(np.array([2, 0, 1]), np.array([0, 1, 3]))
    >>> len(partition), partition[1].tolist(), partition.sizes.tolist()
    (2, [0, 1], [1, 2])
    """

    order: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> npt.NDArray[np.int64]:
        client = range(len(self))[client]
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return (self[client] for client in range(len(self)))

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """How many examples each client holds."""
        return np.diff(self.offsets)


def iid(labels: npt.ArrayLike, clients: int, seed: int, size_sigma: float = 0.0) -> Partition:
    """Deal the examples out at random.

    Sizes differ by at most one, or with `size_sigma` > 0 are log-normal with that σ; every client holds at least one
    example. Raises `InvalidSetting` if there are more clients than examples.
    """
    count = len(np.asarray(labels))
    sizes = _draw_sizes(count, clients, seed, size_sigma)
    return _cut(stream(seed, "partition").permutation(count), sizes)


def label_order(labels: npt.ArrayLike, clients: int, seed: int, size_sigma: float = 0.0) -> Partition:
    """Sort the examples by label and give client u the u-th contiguous slice.

    Neighbouring clients hold the same few labels, so with speeds that grow with u the slow ones hold what the fast ones
    lack. Sizes are as for `iid`; examples of one label come in random order. Raises `InvalidSetting` if there are more
    clients than examples.

    >>> label_order([1, 0, 1, 0], clients=2, seed=0)[0].tolist() in ([1, 3], [3, 1])
    True
    """
    labels = np.asarray(labels)
    sizes = _draw_sizes(len(labels), clients, seed, size_sigma)
    return _cut(_sort_by_label(labels, stream(seed, "partition")), sizes)


def shards(labels: npt.ArrayLike, clients: int, seed: int, shards_per_client: int = 2) -> Partition:
    """Sort the examples by label, cut them into shards that differ by at most one in size, and deal these at random.

    Each client gets `shards_per_client` shards, so it holds few labels (McMahan et al., "Communication-efficient
    learning of deep networks from decentralized data", 2017). Raises `InvalidSetting` if there are more shards than
    examples.
    """
    labels = np.asarray(labels)
    count = len(labels)
    _check_clients(count, clients)
    if shards_per_client < 1:
        raise InvalidSetting(f"data.shards_per_client is {shards_per_client}: set it to 1 or more")
    pieces = clients * shards_per_client
    if pieces > count:
        raise InvalidSetting(
            f"data.clients × data.shards_per_client is {clients} × {shards_per_client} = {pieces} shards, but there are"
            f" only {count} training examples: lower one of the two"
        )
    draw = stream(seed, "partition")
    order = _sort_by_label(labels, draw)
    edges = np.arange(pieces + 1) * count // pieces
    dealt = draw.permutation(pieces)
    sizes = np.diff(edges)[dealt].reshape(clients, shards_per_client).sum(axis=1)
    return _cut(np.concatenate([order[edges[piece] : edges[piece + 1]] for piece in dealt]), sizes)


def dirichlet(labels: npt.ArrayLike, clients: int, seed: int, alpha: float) -> Partition:
    """Divide each class in shares drawn from a symmetric Dirichlet distribution: the smaller `alpha`, the more uneven.

    A draw that leaves a client without examples is repeated, at most 100 times (Hsu et al., "Measuring the effects of
    non-identical data distribution for federated visual classification", 2019, describe the idea). Raises
    `InvalidSetting` if `alpha` is not positive and finite, if every draw left a client without examples, or if there
    are more clients than examples.
    """
    labels = np.asarray(labels)
    _check_clients(len(labels), clients)
    if not 0 < alpha < math.inf:
        raise InvalidSetting(f"data.alpha is {alpha}: set it to a positive number")
    for attempt in range(_ATTEMPTS):
        owners = _draw_owners(labels, clients, min(alpha, _LARGEST_ALPHA), stream(seed, "partition", round=attempt))
        sizes = np.bincount(owners, minlength=clients)
        if sizes.all():
            return _cut(np.argsort(owners, kind="stable"), sizes)
    raise InvalidSetting(
        f"data.alpha {alpha} left some of the {clients} clients without any of the {len(labels)} training examples in "
        f"each of {_ATTEMPTS} draws: raise data.alpha or lower data.clients"
    )


def _draw_owners(
    labels: npt.NDArray[np.int64], clients: int, alpha: float, draw: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return for each example the client that gets it."""
    owners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        shares = draw.dirichlet(np.full(clients, alpha))
        # Shares are rounded from a random start, lest the same clients go without in every class.
        edges = np.floor(np.cumsum(shares) * len(members) + draw.random())
        edges[-1] = len(members)
        owners[members] = np.searchsorted(edges, np.arange(len(members)), side="right")
    return owners


def _sort_by_label(labels: npt.NDArray[np.int64], draw: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the indices of the examples by label, those of one label in random order."""
    order: npt.NDArray[np.int64] = draw.permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def _draw_sizes(count: int, clients: int, seed: int, size_sigma: float) -> npt.NDArray[np.int64]:
    """Divide `count` examples into one for each client and the rest in log-normal proportions."""
    _check_clients(count, clients)
    if not 0 <= size_sigma < math.inf:
        raise InvalidSetting(f"data.size_sigma is {size_sigma}: set it to 0 (equal sizes) or a positive number")
    normal = stream(seed, "client sizes").standard_normal(clients)
    # Relative to the largest, so that no exponential overflows.
    running = np.cumsum(np.exp(size_sigma * (normal - normal.max())))
    rest = count - clients
    edges = np.floor(rest * running / running[-1]).astype(np.int64)
    edges[-1] = rest
    sizes: npt.NDArray[np.int64] = 1 + np.diff(edges, prepend=0)
    return sizes


def _check_clients(count: int, clients: int) -> None:
    if clients < 1:
        raise InvalidSetting(f"data.clients is {clients}: set it to 1 or more")
    if clients > count:
        raise InvalidSetting(
            f"data.clients is {clients}, but there are only {count} training examples: set it to at most {count}"
        )


def _cut(order: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Partition:
    """Return the partition in which each client holds the next so many examples of `order`."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Partition(order, offsets)
