"""How much memory there is, in which order the clients stand and how many threads compute: nothing that matters."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_cases import (
    DECAYING,
    DOUBLE,
    HEAVY,
    SGD,
    SINGLE,
    Round,
    Subject,
    assert_close,
    engine_for,
    play,
    prepared,
    rounds,
    same,
    single_thread,
    steps_to,
    tasks_of,
)
from hypothesis import given, settings, strategies as st

from salf.aggregation.aggregation import Aggregation
from salf.aggregation.rules import Contributors, InverseProbability, Memory
from salf.engines import Engine, FusedEngine, OptimizerSettings, StackedEngine, Tasks
from salf.engines.fused.cohort import sort_cohort

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)

NAMES = ["cnn", "vgg", "residual", "tied", "sequence-first", "bare-norms"]


def rounds_for(kind: str, name: str) -> st.SearchStrategy[Round]:
    layers = len(prepared(name).layers)
    if kind == "stacked":
        return rounds(layers, local_steps=2, sums=False)
    engine = engine_for(kind, name, SGD)
    assert isinstance(engine, FusedEngine)
    return rounds(layers, apart=engine.layers_apart, sums=not engine.clients_apart)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["fused", "stacked"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_the_memory_limit_changes_nothing(kind: str, name: str, data: st.DataObject) -> None:
    subject = prepared(name)
    played = data.draw(rounds_for(kind, name))
    engine = subject.engine(kind, DECAYING, memory_bytes=data.draw(st.sampled_from([1, 30_000, 300_000])))
    assert_close(play(engine, subject, played), play(engine_for("plain", name, DECAYING), subject, played), DOUBLE)


def test_the_least_memory_means_one_client_at_a_time() -> None:
    subject = prepared("cnn")
    tasks = tasks_of(steps_to([4, 4, 2, 0, 1], 4), [3, 4, 4, 2, 3])
    for kind, most in (("fused", 1), ("stacked", 1), ("fused", 10**9), ("stacked", 10**9)):
        sizes = _chunks(subject.engine(kind, SGD, memory_bytes=most), subject, tasks)
        whole = [[3, 4, 4, 3]] if kind == "fused" else [[3, 3], [4, 4]]  # stacked clients have batches of one size
        assert sizes == ([[size] for chunk in whole for size in chunk] if most == 1 else whole)


def _chunks(engine: Engine, subject: Subject, tasks: Tasks) -> list[list[int]]:
    """How many examples the clients of each chunk have."""
    if isinstance(engine, FusedEngine):
        cohort = sort_cohort(tasks, Aggregation(subject.weights, subject.layers, Contributors()).sums)
        return [np.diff(part.bounds).tolist() for part in cohort.parts(engine._most_examples)]
    assert isinstance(engine, StackedEngine)
    busy = np.flatnonzero(tasks.steps.any(axis=1))
    sizes = (tasks.batches[:, 0] >= 0).sum(axis=1)
    return [sizes[chunk].tolist() for chunk in engine._chunks(busy, tasks)]


def test_chunks_of_the_fused_engine_fit_the_memory_that_they_are_given() -> None:
    subject = prepared("cnn")
    engine = FusedEngine(subject.training(), memory_bytes=10**9)
    engine._most_examples = 8
    tasks = tasks_of(steps_to([4] * 7, 4), [3, 4, 1, 2, 4, 4, 4])
    assert _chunks(engine, subject, tasks) == [[3, 4, 1], [2, 4], [4, 4]]


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["fused", "stacked"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_the_order_of_the_clients_changes_not_a_bit(kind: str, name: str, double: bool, data: st.DataObject) -> None:
    subject = prepared(name, double=double)
    played = data.draw(rounds_for(kind, name))
    order = data.draw(st.permutations(range(len(played.tasks.clients))))
    engine = engine_for(kind, name, HEAVY, double=double)
    one, other = play(engine, subject, played), play(engine, subject, played.permuted(order))
    assert other.accepted == [one.accepted[place] for place in order]
    assert one.aggregated.contributors == other.aggregated.contributors
    assert same(one.aggregated.state, other.aggregated.state)


def with_equal_reach(round: Round) -> Round:
    assert round.reach is not None
    return replace(round, reach=round.reach[0])


SIX = tasks_of(steps_to([4, 3, 2, 4, 1, 4], 4), [3] * 6)
REACH = np.random.default_rng(0).uniform(0.1, 1, (6, 4))


@pytest.mark.parametrize("how", [SGD, DECAYING])
def test_the_order_of_the_clients_changes_not_a_bit_of_what_inverse_probability_gives(how: OptimizerSettings) -> None:
    subject, engine = prepared("cnn"), engine_for("fused", "cnn", how)
    for seed in range(20):
        played = Round(
            replace(SIX, batches=tasks_of(SIX.steps, [3] * 6, seed=seed).batches), InverseProbability(), REACH
        )
        one, other = (play(engine, subject, each) for each in (played, played.permuted([5, 3, 4, 0, 2, 1])))
        assert same(one.aggregated.state, other.aggregated.state)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["wide-cnn", "vgg", "transformer"])
@pytest.mark.parametrize(("kind", "steps"), [("fused", 1), ("stacked", 3)])
def test_the_number_of_threads_changes_rounding_at_most(kind: str, steps: int, name: str) -> None:
    for double, tolerance in ((True, DOUBLE), (False, SINGLE)):
        subject = prepared(name, double=double)
        layers = len(subject.layers)
        tasks = tasks_of(steps_to(np.linspace(0, steps * layers, 12).round(), layers), [12, 7, 2] * 4)
        played = Round(tasks, Contributors() if kind == "fused" else Memory())
        engine = engine_for(kind, name, SGD, double=double)
        alone = play(engine, subject, played)
        with threads(3):
            together = play(engine, subject, played)
        assert_close(together, alone, tolerance)
