"""Every draw is a function of its address: known answers, plain twins, and tests of uniformity with fixed seeds."""

import hashlib
import struct
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from salf import seeds

IDS = st.integers(0, 2**64 - 1)
SMALLEST_P = 1e-4  # seeds are fixed: nothing here fails by chance later


# The answers published with Random123 (kat_vectors): counter, key, encrypted counter; words from the lowest.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: list[int], key: list[int], answer: str) -> None:
    found = seeds._philox(np.array(counter, dtype=np.uint64)[:, None], *key)
    assert " ".join(f"{word:08x}" for word in found[:, 0].tolist()) == answer


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's integers."""
    for _ in range(10):
        left, right = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (right >> 32) ^ counter[1] ^ key[0],
            right & 0xFFFFFFFF,
            (left >> 32) ^ counter[3] ^ key[1],
            left & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def plain_uniform(seed: int, purpose: str, round: int, client: int, place: int) -> float:
    key = struct.unpack("<4I", hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest())
    words = philox([place // 2, client & 0xFFFFFFFF, client >> 32, round], [key[0], key[1]])
    high, low = words[2 * (place % 2) : 2 * (place % 2) + 2]
    return (((high << 32) | low) // 2**12 + 0.5) / 2**52


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**70),
    purpose=st.text(max_size=8),
    round=st.integers(0, 2**32 - 1),
    clients=st.lists(IDS, max_size=5),
    count=st.integers(0, 7),
)
def test_a_uniform_depends_on_its_own_address_alone(
    seed: int, purpose: str, round: int, clients: list[int], count: int
) -> None:
    drawn = seeds.uniforms(seed, purpose, round, clients, count)
    plain = [[plain_uniform(seed, purpose, round, client, place) for place in range(count)] for client in clients]
    assert drawn.shape == (len(clients), count)
    assert drawn.tolist() == plain
    assert ((drawn > 0) & (drawn < 1)).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), clients=st.lists(IDS, min_size=1, max_size=6, unique=True), count=st.integers(1, 9))
def test_cohort_and_order_do_not_matter(data: st.DataObject, clients: list[int], count: int) -> None:
    sizes = {client: data.draw(st.integers(1, 9)) for client in clients}
    some = data.draw(st.lists(st.sampled_from(clients), unique=True))
    rows = [clients.index(client) for client in some]
    everyone = seeds.uniforms(3, "depth", 5, clients, count + 3)
    assert np.array_equal(seeds.uniforms(3, "depth", 5, some, count), everyone[rows, :count])
    batches = seeds.permuted(seeds.uniforms(3, "batch", 5, clients, count + 3), list(sizes.values()))
    part = seeds.permuted(seeds.uniforms(3, "batch", 5, some, count), [sizes[client] for client in some])
    assert np.array_equal(part, batches[rows, :count])


def test_the_extreme_words_stay_inside_the_open_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, wanted in ((0, 2.0**-53), (0xFFFFFFFF, 1 - 2.0**-53)):
        monkeypatch.setattr(seeds, "_philox", lambda counter, *_, word=word: np.full_like(counter, word))
        assert seeds.uniforms(0, "x", 0, [1], 2).tolist() == [[wanted, wanted]]
        assert 0 < wanted < 1
        for size in (1, 3, 7, 1000, 2**31 + 1):
            last = seeds.permuted(seeds.uniforms(0, "x", 0, [1], 1), [size]).item()
            assert last == (0 if word == 0 else size - 1)


@pytest.mark.parametrize("seed", range(3))
def test_uniforms_are_uniform(seed: int) -> None:
    by_client = seeds.uniforms(seed, "depth", 0, np.arange(50_000), 2)
    by_round = np.concatenate([seeds.uniforms(seed, "depth", turn, [7], 2) for turn in range(2000)])
    along = seeds.uniforms(seed, "depth", 0, [7], 50_000)
    for sample in (by_client[:, 0], by_client[:, 1], by_round.ravel(), along.ravel()):
        assert stats.kstest(sample, "uniform").pvalue > SMALLEST_P
    for first, second in ((by_client[:, 0], by_client[:, 1]), (along[0, :-1], along[0, 1:]), by_round.T):
        assert stats.pearsonr(first, second).pvalue > SMALLEST_P


def plain_permuted(chosen: npt.NDArray[np.float64], size: int) -> list[int]:
    """Fisher–Yates over a whole list, started again for each pass."""
    drawn: list[int] = []
    order: list[int] = []
    for place, uniform in enumerate(chosen):
        now = place % size
        if now == 0:
            order = list(range(size))
        other = now + int(uniform * (size - now))
        order[now], order[other] = order[other], order[now]
        drawn.append(order[now])
    return drawn


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 99),
    round=st.integers(0, 99),
    sizes=st.lists(st.integers(1, 9), max_size=5),
    count=st.integers(0, 25),
)
def test_permuted_is_fisher_yates_pass_by_pass(seed: int, round: int, sizes: list[int], count: int) -> None:
    clients = np.arange(len(sizes)) * 1000
    uniforms = seeds.uniforms(seed, "batch", round, clients, count)
    drawn = seeds.permuted(uniforms, sizes)
    assert drawn.shape == (len(sizes), count)
    for row, uniform, size in zip(drawn.tolist(), uniforms, sizes, strict=True):
        assert row == plain_permuted(uniform, size)
        for start in range(0, count, size):
            one_pass = row[start : start + size]
            assert len(set(one_pass)) == len(one_pass)
            assert set(one_pass) <= set(range(size))


def test_few_of_many_examples_are_drawn_like_many_of_few() -> None:
    uniforms = seeds.uniforms(2, "batch", 1, [3, 8], 20)
    for sizes in ([10**12, 7], [7, 10**6]):
        for row, uniform, size in zip(seeds.permuted(uniforms, sizes), uniforms, sizes, strict=True):
            assert np.array_equal(row, seeds.permuted(uniform[None], [size])[0])


@pytest.mark.parametrize("seed", range(3))
def test_every_pair_of_examples_is_equally_likely(seed: int) -> None:
    drawn = seeds.permuted(seeds.uniforms(seed, "batch", 0, np.arange(6000), 10), np.full(6000, 5))
    for first, second, cells in ((0, 1, 20), (3, 4, 20), (5, 9, 20), (4, 5, 25)):  # the last across two passes
        _, counts = np.unique(5 * drawn[:, first] + drawn[:, second], return_counts=True)
        assert len(counts) == cells
        assert stats.chisquare(counts).pvalue > SMALLEST_P


def test_a_client_without_examples_draws_nothing() -> None:
    with pytest.raises(ValueError, match="a client has no examples to draw a batch from"):
        seeds.permuted(np.full((2, 1), 0.5), [3, 0])
    assert seeds.permuted(np.empty((2, 0)), [3, 0]).shape == (2, 0)


def test_different_addresses_differ() -> None:
    places = [(turn, client) for turn in (0, 1, 2**20) for client in (0, 1, 2**32, 2**40)]
    sources = [(seed, purpose) for seed in (0, 1, -1, 2**64) for purpose in ("depth", "batch", "1/depth")]
    addresses = [(*source, *place) for source in sources for place in places]
    numbers = {seeds.integer(*address) for address in addresses}
    uniforms = {seeds.uniforms(*address, 1).item() for address in addresses}
    orders = {tuple(seeds.permuted(seeds.uniforms(*address, 50), [50])[0].tolist()) for address in addresses}
    assert len(numbers) == len(uniforms) == len(orders) == len(addresses)
    assert all(0 <= number < 2**63 for number in numbers)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab"), st.integers(0, 9), IDS), max_size=6), st.randoms())
def test_streams_do_not_depend_on_what_was_drawn_before(
    addresses: list[tuple[int, str, int, int]], random: Random
) -> None:
    drawn = {address: seeds.stream(*address).normal(size=4).tolist() for address in addresses}
    order = list(addresses)
    random.shuffle(order)
    np.random.default_rng(0).normal(size=random.randrange(5))
    for address in order:
        assert seeds.stream(*address).normal(size=4).tolist() == drawn[address]
