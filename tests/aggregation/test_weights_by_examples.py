"""Clients that weigh by the examples their layers have seen: beyond what the twin of every rule shows."""

from dataclasses import replace

import pytest
import torch
from aggregation_cases import Cohort, any_rule, cohorts, same_result
from engine_cases import Round, prepared, steps_to, tasks_of
from hypothesis import given, settings, strategies as st

import salf
from salf.aggregation.aggregation import Aggregation, aggregate
from salf.aggregation.robust import ClippedLayers, Median, check_rule
from salf.aggregation.rules import Contributors, Corrected, InverseProbability, Memory, Rule
from salf.errors import InvalidSetting, InvalidUpdate
from salf.layers.find import Layer, Layers
from salf.theory import UniformDepth
from salf.update import Update

LAYERS = Layers((Layer("body", ("a",)), Layer("head", ("b",), ("mean",))))
STATE = {"a": torch.zeros(1), "b": torch.zeros(1), "mean": torch.zeros(1)}


def sent(value: float, *, body: int = 0, head: int = 1) -> Update:
    """An update of one value everywhere, and of so many examples; the body only if it has seen some."""
    deltas = {name: torch.tensor([value]) for name in ("a", "b") if name == "b" or body}
    examples = {"head": head, **({"body": body} if body else {})}
    return Update(deltas, 1, 1, {"mean": torch.tensor([value])}, {}, examples)


def test_the_mean_over_contributors_is_the_mean_over_examples() -> None:
    updates = [sent(1.0, body=1, head=4), sent(4.0, head=2)]
    state = aggregate(STATE, updates, LAYERS, Contributors(), weigh="examples").state
    assert {name: value.item() for name, value in state.items()} == {"a": 1.0, "b": 2.0, "mean": 2.0}
    corrected = aggregate(STATE, updates, LAYERS, Corrected(), reach=[0.5, 1.0], weigh="examples").state
    assert [corrected[name].item() for name in ("a", "b")] == pytest.approx([1 / (1 - 0.25), 2.0])


@settings(max_examples=100, deadline=None)
@given(rule=any_rule(), cohort=cohorts(), seen=st.integers(1, 2**53))
def test_equal_numbers_of_examples_change_no_bit(rule: Rule, cohort: Cohort, seen: int) -> None:
    alike = [replace(each, examples=dict.fromkeys(each.examples, seen)) for each in cohort.updates]
    clients = aggregate(cohort.state, cohort.updates, cohort.layers, rule, reach=UniformDepth())
    examples = aggregate(cohort.state, alike, cohort.layers, rule, reach=UniformDepth(), weigh="examples")
    assert same_result(examples, clients)


def test_an_update_that_does_not_report_its_examples_is_refused_by_name_and_leaves_no_trace() -> None:
    for rule in (Corrected(), Memory(), InverseProbability()):
        running = Aggregation(STATE, LAYERS, rule, reach=[0.5, 1.0], weigh="examples")
        running.add(sent(1.0))
        with pytest.raises(InvalidUpdate, match=r"update 2 has no weight; pass Update.*how many examples its"):
            running.add(replace(sent(3.0), examples={}))
        running.add(Update({}, {}, 1))  # a client that sends nothing has nothing to report
        result = running.finish()
        assert (result.contributors, result.state["mean"].item()) == ((0, 1), 1.0)


def test_a_memory_without_examples_cannot_be_weighed_by_them() -> None:
    memory = aggregate(STATE, [replace(sent(1.0), examples={})], LAYERS, Memory()).memory
    with pytest.raises(InvalidSetting, match="memory holds updates whose clients did not report their examples"):
        aggregate(STATE, [], LAYERS, Memory(), memory=memory, weigh="examples")
    counted = aggregate(STATE, [sent(1.0, head=3)], LAYERS, Memory(), clients=[7]).memory
    after = aggregate(STATE, [sent(5.0, head=1)], LAYERS, Memory(), clients=[8], memory=counted, weigh="examples")
    assert after.state["b"].item() == 2.0


def test_clipping_keeps_the_examples_and_a_centre_is_refused() -> None:
    assert ClippedLayers(0.1).clip(sent(1.0, head=3), LAYERS).examples == {"head": 3}
    with pytest.raises(InvalidSetting, match="Median weighs all contributors equally; leave weigh alone"):
        check_rule(Corrected(), Median(), "examples")


def test_sums_over_a_cohort_are_refused() -> None:
    sums = Aggregation(STATE, LAYERS, Corrected(), weigh="examples").sums
    with pytest.raises(InvalidSetting, match=r"weigh='examples' needs each client's own update; use Aggregation.add"):
        sums.importance_weights(torch.ones(1, 2, dtype=torch.int64).numpy())


@pytest.mark.parametrize("kind", ["plain", "stacked", "fused"])
def test_engines_report_the_examples_of_each_layer(kind: str) -> None:
    subject = prepared("mlp")
    depths, sizes = [len(subject.layers), 2, 0], [2, 4, 3]
    played = Round(tasks_of(steps_to(depths, len(subject.layers)), sizes), Contributors())
    updates: list[Update] = []

    class Noting(Aggregation):
        def add(self, update: Update, position: int | None = None, *, checked: bool = False) -> None:
            updates.append(update)
            super().add(update, position, checked=checked)

    running = Noting(subject.weights, subject.layers, played.rule, weigh="examples")
    accepted = subject.engine(kind).train_cohort(subject.weights, played.tasks, running)
    assert accepted.all()
    assert [dict(update.examples) for update in updates] == [
        dict.fromkeys(subject.layers.names[len(subject.layers) - depth :], size) if depth else {}
        for depth, size in zip(depths, sizes, strict=True)
    ]
    assert all(update.passes == update.steps for update in updates)


def mixed(value: float, dtype: torch.dtype) -> Update:
    return Update({name: torch.tensor([value], dtype=dtype) for name in ("a", "b")}, 1, 1)


@pytest.mark.parametrize("rule", [Contributors(), Memory()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_clients_of_other_precisions_are_summed_in_a_wide_type(dtype: torch.dtype, rule: Rule) -> None:
    # 1 + 2^-7 is a bfloat16, but neither half of a sum of four such values nor 256 + 1 is.
    state = {"a": torch.tensor([256.0], dtype=dtype), "b": torch.tensor([0.0], dtype=dtype)}
    pair = Layers((Layer("body", ("a",)), Layer("head", ("b",))))
    values = [(1.0, torch.bfloat16), (1 + 2**-10, torch.float16), (3.0, torch.float64), (3 - 2**-10, torch.float32)]
    for order in (values, values[::-1]):
        result = salf.aggregate(state, [mixed(*each) for each in order], pair, rule)
        for name, expected in (("a", 258.0), ("b", 2.0)):
            assert result.state[name].dtype == dtype
            assert result.state[name].item() == expected


def test_a_double_model_keeps_its_precision_with_clients_of_single() -> None:
    state = {"a": torch.tensor([1 + 2**-40], dtype=torch.float64), "b": torch.zeros(1, dtype=torch.float64)}
    pair = Layers((Layer("body", ("a",)), Layer("head", ("b",))))
    for rule in (Contributors(), Memory()):
        result = salf.aggregate(state, [mixed(0.5, torch.float32)], pair, rule)
        assert result.state["a"].item() == 1.5 + 2**-40
