import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st

from salf.data import Partition, dirichlet, iid, label_order, shards
from salf.errors import InvalidSetting

Labels = npt.NDArray[np.int64]
Divide = Callable[[Labels, int, int], Partition]

EVERY: dict[str, Divide] = {
    "iid": iid,
    "iid, uneven": partial(iid, size_sigma=1.0),
    "label order": label_order,
    "label order, uneven": partial(label_order, size_sigma=1.0),
    "shards": shards,
    "dirichlet": partial(dirichlet, alpha=0.5),
}
every = pytest.mark.parametrize("divide", EVERY.values(), ids=EVERY.keys())

# How many examples each client must be able to count on, for a division to be sure to succeed.
NEEDED = {"shards": 2, "dirichlet": 8}

counts = st.integers(8, 80)
seeds = st.integers(0, 2**32)


def balanced(count: int = 1000, classes: int = 10) -> Labels:
    return np.arange(count) % classes


def drawn_labels(data: st.DataObject, count: int) -> Labels:
    classes, seed = data.draw(st.tuples(st.integers(1, 6), seeds))
    return np.random.default_rng(seed).integers(classes, size=count)


def same(one: Partition, other: Partition) -> bool:
    return np.array_equal(one.order, other.order) and np.array_equal(one.offsets, other.offsets)


@pytest.mark.parametrize("name", EVERY)
@given(data=st.data(), count=counts, seed=seeds)
def test_every_example_goes_to_exactly_one_client(name: str, data: st.DataObject, count: int, seed: int) -> None:
    labels = drawn_labels(data, count)
    clients = data.draw(st.integers(1, count // NEEDED.get(name, 1)))
    partition = EVERY[name](labels, clients, seed)
    assert len(partition) == clients
    assert sorted(np.concatenate(list(partition)).tolist()) == list(range(len(labels)))
    assert partition.sizes.tolist() == [len(held) for held in partition]
    assert partition.sizes.min() >= 1
    assert partition.order.dtype == partition.offsets.dtype == partition.sizes.dtype == np.int64


@every
def test_the_seed_alone_decides(divide: Divide) -> None:
    labels = balanced()
    assert same(divide(labels, 20, 1), divide(labels.copy(), 20, 1))
    assert not same(divide(labels, 20, 1), divide(labels, 20, 2))


@every
def test_one_client_may_hold_everything(divide: Divide) -> None:
    assert sorted(divide(balanced(), 1, 0)[0].tolist()) == list(range(1000))


def test_a_partition_is_a_sequence() -> None:
    partition = iid(balanced(10), clients=3, seed=0)
    assert np.array_equal(partition[-1], partition[2])
    assert len(list(partition)) == 3
    with pytest.raises(IndexError):
        partition[3]


@pytest.mark.parametrize("divide", [iid, label_order])
@given(clients=st.integers(1, 500), more=st.integers(0, 500))
def test_sizes_are_equal_unless_asked_for(divide: Divide, clients: int, more: int) -> None:
    sizes = divide(np.zeros(clients + more, np.int64), clients, 0).sizes
    assert sizes.max() - sizes.min() <= 1


@given(clients=st.integers(1, 200), sigma=st.floats(0, 1e300), seed=seeds)
def test_no_spread_of_sizes_leaves_a_client_without_examples(clients: int, sigma: float, seed: int) -> None:
    with np.errstate(over="ignore"):
        sizes = iid(np.zeros(200, np.int64), clients, seed, size_sigma=sigma).sizes
    assert sizes.min() >= 1
    assert sizes.sum() == 200


def test_sizes_are_log_normal() -> None:
    sizes = iid(np.zeros(2_000_000, np.int64), clients=5000, seed=0, size_sigma=0.7).sizes
    logs = np.log(sizes)
    assert logs.std() == pytest.approx(0.7, abs=0.03)
    assert np.median(logs) == pytest.approx(logs.mean(), abs=0.03)
    order = label_order(np.zeros(1000, np.int64), clients=30, seed=5, size_sigma=0.7)
    assert np.array_equal(order.sizes, iid(np.zeros(1000, np.int64), clients=30, seed=5, size_sigma=0.7).sizes)


def test_iid_clients_hold_every_class() -> None:
    labels = balanced(10_000)
    counts = np.array([np.bincount(labels[held], minlength=10) for held in iid(labels, clients=10, seed=0)])
    # 100 expected; five standard deviations of the hypergeometric distribution.
    assert abs(counts - 100).max() < 5 * math.sqrt(1000 * 0.1 * 0.9 * 0.9)


@given(data=st.data(), count=counts, seed=seeds, sigma=st.sampled_from([0.0, 1.0]))
def test_label_order_is_contiguous(data: st.DataObject, count: int, seed: int, sigma: float) -> None:
    labels = drawn_labels(data, count)
    partition = label_order(labels, data.draw(st.integers(1, count)), seed, size_sigma=sigma)
    assert np.array_equal(labels[partition.order], np.sort(labels))


def test_ties_in_label_order_are_broken_at_random() -> None:
    orders = {tuple(label_order([0, 0, 0], clients=1, seed=seed)[0].tolist()) for seed in range(60)}
    assert len(orders) == 6


@given(data=st.data(), count=counts, per_client=st.integers(1, 4), seed=seeds)
def test_a_client_holds_that_many_slices_of_the_sorted_labels(
    data: st.DataObject, count: int, per_client: int, seed: int
) -> None:
    labels = drawn_labels(data, count)
    clients = data.draw(st.integers(1, count // per_client))
    pieces = clients * per_client
    partition = shards(labels, clients, seed, shards_per_client=per_client)
    assert partition.sizes.min() >= per_client * (count // pieces)
    assert partition.sizes.max() <= per_client * -(-count // pieces)
    held = [labels[indices] for indices in partition]
    # A shard is sorted, so a client's labels fall only where one of its shards ends and the next begins.
    assert all((np.diff(each) < 0).sum() < per_client for each in held)
    # Where one class ends and the next begins lies within at most one shard, which then has a label more.
    assert sum(len(np.unique(each)) for each in held) <= pieces + len(np.unique(labels)) - 1


def test_shards_that_fit_the_classes_hold_one_label_each() -> None:
    labels = balanced(600)
    partition = shards(labels, clients=30, seed=3)
    assert set(partition.sizes.tolist()) == {20}
    for held in partition:
        assert all(len(set(labels[shard].tolist())) == 1 for shard in held.reshape(2, 10))
    assert len({tuple(sorted(set(labels[held].tolist()))) for held in partition}) > 10, "dealt at random"


def test_no_remainder_of_shards_is_dropped() -> None:
    assert shards(balanced(1500), clients=7, seed=0, shards_per_client=3).sizes.sum() == 1500


@every
@settings(max_examples=10)
@given(clients=st.integers(11, 10**9))
def test_more_clients_than_examples_are_refused(divide: Divide, clients: int) -> None:
    with pytest.raises(InvalidSetting, match=rf"data.clients is {clients}, .* only 10 .* set it to at most 10"):
        divide(balanced(10), clients, 0)


@every
@pytest.mark.parametrize("clients", [0, -3])
def test_no_clients_are_refused(divide: Divide, clients: int) -> None:
    with pytest.raises(InvalidSetting, match=rf"data.clients is {clients}; choose a whole number of at least 1"):
        divide(balanced(10), clients, 0)


def test_wrong_settings_of_a_partition_are_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"5 × 3 = 15 shards, but there are only 10 training examples; lower one"):
        shards(balanced(10), clients=5, seed=0, shards_per_client=3)
    with pytest.raises(InvalidSetting, match=r"data\.shards_per_client is 0"):
        shards(balanced(10), clients=5, seed=0, shards_per_client=0)
    for divide in (iid, label_order):
        for sigma in (-0.1, math.nan, math.inf):
            with pytest.raises(
                InvalidSetting, match=f"data.size_sigma is {sigma}; choose a finite number of at least 0"
            ):
                divide(balanced(10), clients=2, seed=0, size_sigma=sigma)
