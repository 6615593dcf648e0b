"""Partitions of the training examples: one client each, and no client without any.

`labels` are the training labels, shape (examples,), and an example is its index in them. The same arguments always give
the same partition. All partitions raise `InvalidSetting` if there are more clients than examples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from salf.errors import InvalidSetting, check_count, check_non_negative, check_positive
from salf.seeds import stream
from salf.values import Ints

_ATTEMPTS = 100
# Shares drawn with such an α are equal to within a millionth; far above, the draw would overflow.
_LARGEST_ALPHA = 1e12


@dataclass(frozen=True, eq=False)
class Partition:
    """The examples of each client; a sequence of arrays of indices.

    Attributes:
        order: The indices of all examples, client by client, shape (examples,).
        offsets: Where each client's begin, shape (clients + 1,): client u has `order[offsets[u]:offsets[u + 1]]`.

    >>> partition = Partition(np.array([2, 0, 1]), np.array([0, 1, 3]))
    >>> len(partition), partition[1].tolist(), partition.sizes.tolist()
    (2, [0, 1], [1, 2])
    """

    order: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> Ints:
        client = range(len(self))[client]
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    def __iter__(self) -> Iterator[Ints]:
        return (self[client] for client in range(len(self)))

    @cached_property
    def sizes(self) -> Ints:
        """The number of examples of each client, shape (clients,)."""
        return np.diff(self.offsets)


def iid(labels: npt.ArrayLike, clients: int, seed: int, size_sigma: float = 0.0) -> Partition:
    """Distribute the examples at random.

    Args:
        labels: The training labels.
        clients: At least 1.
        seed: The experiment's seed.
        size_sigma: 0: sizes differ by at most one. Above 0: sizes are log-normal with this σ.

    >>> iid([0, 1, 1, 0, 1], clients=2, seed=0).sizes
    array([2, 3])
    """
    count = len(np.asarray(labels))
    sizes = _draw_sizes(count, clients, seed, size_sigma)
    return _cut(stream(seed, "partition").permutation(count), sizes)


def label_order(labels: npt.ArrayLike, clients: int, seed: int, size_sigma: float = 0.0) -> Partition:
    """Sort the examples by label and give client u the u-th contiguous slice.

    Neighbouring clients hold the same few labels. With speeds that grow with u, slow clients hold labels that fast ones
    lack. Examples of one label come in random order. Arguments are those of `iid`.

    >>> label_order([1, 0, 1, 0], clients=2, seed=0)[0].tolist() in ([1, 3], [3, 1])
    True
    """
    labels = np.asarray(labels)
    sizes = _draw_sizes(len(labels), clients, seed, size_sigma)
    return _cut(_sort_by_label(labels, stream(seed, "partition")), sizes)


def shards(labels: npt.ArrayLike, clients: int, seed: int, shards_per_client: int = 2) -> Partition:
    """Sort the examples by label and distribute shards of them at random.

    Each client holds few labels (McMahan et al., "Communication-efficient learning of deep networks from decentralized
    data", 2017). Sizes of shards differ by at most one.

    Args:
        labels: The training labels.
        clients: At least 1.
        seed: The experiment's seed.
        shards_per_client: At least 1; there must not be more shards than examples.

    >>> [sorted(held.tolist()) for held in shards([1, 0, 1, 0], clients=2, seed=0, shards_per_client=1)]
    [[1, 3], [0, 2]]
    """
    labels = np.asarray(labels)
    count = len(labels)
    _check_clients(count, clients)
    check_count("data.shards_per_client", shards_per_client)
    pieces = clients * shards_per_client
    if pieces > count:
        raise InvalidSetting(
            f"data.clients × data.shards_per_client is {clients} × {shards_per_client} = {pieces} shards, but there are"
            f" only {count} training examples; lower one of the two"
        )
    draw = stream(seed, "partition")
    order = _sort_by_label(labels, draw)
    edges = np.arange(pieces + 1) * count // pieces
    dealt = draw.permutation(pieces)
    sizes = np.diff(edges)[dealt].reshape(clients, shards_per_client).sum(axis=1)
    return _cut(np.concatenate([order[edges[piece] : edges[piece + 1]] for piece in dealt]), sizes)


def dirichlet(labels: npt.ArrayLike, clients: int, seed: int, alpha: float) -> Partition:
    """Divide each class in shares drawn from a symmetric Dirichlet distribution.

    The idea is that of Hsu et al., "Measuring the effects of non-identical data distribution for federated visual
    classification", 2019. A draw that leaves a client without examples is repeated, at most 100 times; after that it is
    an `InvalidSetting`.

    Args:
        labels: The training labels.
        clients: At least 1.
        seed: The experiment's seed.
        alpha: Greater than 0; smaller values give more uneven shares.

    >>> dirichlet([0, 1] * 50, clients=3, seed=0, alpha=0.5).sizes.sum()
    np.int64(100)
    """
    labels = np.asarray(labels)
    _check_clients(len(labels), clients)
    check_positive("data.alpha", alpha)
    for attempt in range(_ATTEMPTS):
        owners = _draw_owners(labels, clients, min(alpha, _LARGEST_ALPHA), stream(seed, "partition", round=attempt))
        sizes = np.bincount(owners, minlength=clients)
        if sizes.all():
            return _cut(np.argsort(owners, kind="stable"), sizes)
    raise InvalidSetting(
        f"data.alpha is {alpha}, which left some of the {clients} clients without any of the {len(labels)} training "
        f"examples in each of {_ATTEMPTS} draws; raise data.alpha or lower data.clients"
    )


def _draw_owners(labels: Ints, clients: int, alpha: float, draw: np.random.Generator) -> Ints:
    """Return the client of each example, shape (examples,)."""
    owners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        shares = draw.dirichlet(np.full(clients, alpha))
        # Shares are rounded from a random start, so that no client loses in every class.
        edges = np.floor(np.cumsum(shares) * len(members) + draw.random())
        edges[-1] = len(members)
        owners[members] = np.searchsorted(edges, np.arange(len(members)), side="right")
    return owners


def _sort_by_label(labels: Ints, draw: np.random.Generator) -> Ints:
    """Return the indices of the examples by label, those of one label in random order."""
    order: Ints = draw.permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def _draw_sizes(count: int, clients: int, seed: int, size_sigma: float) -> Ints:
    """Give each client one example, and the rest in log-normal proportions."""
    _check_clients(count, clients)
    check_non_negative("data.size_sigma", size_sigma)
    normal = stream(seed, "client sizes").standard_normal(clients)
    # Relative to the largest, so that no exponential overflows.
    running = np.cumsum(np.exp(size_sigma * (normal - normal.max())))
    rest = count - clients
    edges = np.floor(rest * running / running[-1]).astype(np.int64)
    edges[-1] = rest
    sizes: Ints = 1 + np.diff(edges, prepend=0)
    return sizes


def _check_clients(count: int, clients: int) -> None:
    """Raise `InvalidSetting` unless each client can hold an example."""
    check_count("data.clients", clients)
    if clients > count:
        raise InvalidSetting(
            f"data.clients is {clients}, but there are only {count} training examples; set it to at most {count}"
        )


def _cut(order: Ints, sizes: Ints) -> Partition:
    """Return the partition that cuts `order` into parts of these sizes."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Partition(order, offsets)
