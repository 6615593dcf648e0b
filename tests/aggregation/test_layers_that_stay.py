"""What does not move stays bit for bit, nothing given is touched, and buffers are never extrapolated."""

from collections.abc import Iterable

import pytest
import torch
from aggregation_cases import FLOATS, Cohort, any_rule, cohorts, models, same
from hypothesis import given, settings, strategies as st
from torch import Tensor

from salf.aggregation.aggregation import Aggregation, aggregate
from salf.aggregation.rules import Contributors, Corrected, Everyone, InverseProbability, Memory, Rule
from salf.layers.find import Layer, Layers
from salf.theory import UniformDepth
from salf.update import Update

HALVES = [torch.float16, torch.bfloat16]
ONE = Layers((Layer("only", ("weight",), ("mean", "count")),), buffer_kinds={"count": "counter"})


def copies(cohort: Cohort) -> list[dict[str, Tensor]]:
    tensors = [cohort.state, *[{**update.deltas, **update.buffers} for update in cohort.updates]]
    return [{name: tensor.clone() for name, tensor in given.items()} for given in tensors]


def memories(tensors: Iterable[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


@settings(max_examples=100, deadline=None)
@given(rule=any_rule(), cohort=cohorts(models([*FLOATS, *HALVES])))
def test_a_layer_without_enough_contributors_stays_bit_for_bit(rule: Rule, cohort: Cohort) -> None:
    result = aggregate(cohort.state, cohort.updates, cohort.layers, rule, reach=UniformDepth())
    assert {name: tensor.dtype for name, tensor in result.state.items()} == {
        name: tensor.dtype for name, tensor in cohort.state.items()
    }
    assert torch.equal(result.state["frozen"], cohort.state["frozen"])
    for index, layer in enumerate(cohort.layers):
        if len(cohort.who(index)) < rule.min_contributors:
            for name in (*layer.parameters, *layer.buffers):
                assert torch.equal(result.state[name], cohort.state[name])


@settings(max_examples=40, deadline=None)
@given(rule=any_rule(), model=models(), asked=st.integers(0, 4))
def test_nothing_changes_when_nobody_got_anywhere(
    rule: Rule, model: tuple[Layers, dict[str, Tensor]], asked: int
) -> None:
    layers, state = model
    silent = [Update({}, steps=0, num_examples=4)] * asked
    for updates, clients in ((silent, None), ([], asked)):
        result = aggregate(state, updates, layers, rule, num_clients=clients, reach=[0.5] * len(layers))
        assert same(result.state, state)
        assert result.contributors == (0,) * len(layers)
        assert result.overflowed == ()


@settings(max_examples=60, deadline=None)
@given(cohort=cohorts(complete=True))
def test_when_everyone_finishes_every_rule_is_plain_averaging(cohort: Cohort) -> None:
    count = len(cohort.updates)
    plain = {name: tensor.clone() for name, tensor in cohort.state.items()}
    for layer in cohort.layers:
        for name in layer.parameters:
            total = torch.zeros_like(plain[name])
            for update in cohort.updates:
                total += update.deltas[name]
            plain[name] = cohort.state[name] + total * (1 / count)
    one = [1.0] * len(cohort.layers)
    for rule in (Corrected(), Contributors(), Everyone(), InverseProbability(), Memory()):
        for reach in (one, [one] * count, None):
            if reach is None and isinstance(rule, InverseProbability):
                continue
            state = aggregate(cohort.state, cohort.updates, cohort.layers, rule, reach=reach).state
            for layer in cohort.layers:
                for name in layer.parameters:
                    assert torch.equal(state[name], plain[name])


@settings(max_examples=60, deadline=None)
@given(rule=any_rule(), cohort=cohorts(models([*FLOATS, *HALVES])))
def test_what_is_given_is_neither_changed_nor_shared(rule: Rule, cohort: Cohort) -> None:
    before = copies(cohort)
    result = aggregate(cohort.state, cohort.updates, cohort.layers, rule, reach=UniformDepth())
    remembered = [
        delta for layers in result.memory.values() for last in layers.values() for delta in last.deltas.values()
    ]
    made = memories([*result.state.values(), *remembered])
    for old, now in zip(before, copies(cohort), strict=True):
        assert same(old, now)
    given_tensors = [cohort.state, *[{**update.deltas, **update.buffers} for update in cohort.updates]]
    assert not made & memories(tensor for tensors in given_tensors for tensor in tensors.values())


def test_one_tensor_sent_by_everyone_is_not_changed() -> None:
    state = {"weight": torch.zeros(2), "mean": torch.zeros(()), "count": torch.zeros((), dtype=torch.int64)}
    shared = Update({"weight": torch.ones(1).expand(2)}, 1, 1, {"mean": torch.ones(()), "count": torch.tensor(3)})
    result = aggregate(state, [shared, shared], ONE, Everyone())
    assert result.state["weight"].tolist() == [1.0, 1.0]
    assert shared.deltas["weight"].tolist() == [1.0, 1.0]
    assert (shared.buffers["mean"].item(), shared.buffers["count"].item()) == (1.0, 3)


@settings(max_examples=60, deadline=None)
@given(rule=any_rule(), cohort=cohorts())
def test_buffers_lie_between_those_of_their_contributors(rule: Rule, cohort: Cohort) -> None:
    few = len(cohort.updates) + 7
    state = aggregate(
        cohort.state, cohort.updates, cohort.layers, rule, num_clients=few, reach=[0.05] * len(cohort.layers)
    ).state
    for index, layer in enumerate(cohort.layers):
        for name in layer.buffers:
            sent = [cohort.updates[client].buffers.get(name) for client in cohort.who(index)]
            values = [value for value in sent if value is not None]
            if len(cohort.who(index)) < rule.min_contributors or not values:
                assert torch.equal(state[name], cohort.state[name])
                continue
            low, high = torch.stack(values).amin(0), torch.stack(values).amax(0)
            if state[name].is_floating_point():
                slack = 1e-6 * high.abs().maximum(low.abs())
                assert ((low - slack <= state[name]) & (state[name] <= high + slack)).all()
            else:
                assert torch.equal(state[name], high)


def test_an_integer_buffer_is_the_contributors_maximum_whatever_the_server_had() -> None:
    state = {"weight": torch.zeros(2), "mean": torch.zeros(()), "count": torch.tensor(100)}
    sent = [
        Update({"weight": torch.zeros(2)}, 1, examples, {"mean": torch.tensor(mean), "count": torch.tensor(count)})
        for examples, mean, count in ((1, 2.0, -5), (3, 6.0, 7))
    ]
    result = aggregate(state, sent, ONE, Corrected(weight_by_examples=True), num_clients=9, reach=[0.1])
    assert (result.state["mean"].item(), result.state["count"].item()) == (5.0, 7)


def test_complex_and_boolean_buffers_are_taken() -> None:
    layers = Layers((Layer("only", ("weight",), ("phase", "seen")),), buffer_kinds={"seen": "counter"})
    state = {"weight": torch.zeros(1), "phase": torch.zeros(1, dtype=torch.complex64), "seen": torch.tensor(False)}
    sent = [
        Update({"weight": torch.zeros(1)}, 1, 1, {"phase": torch.tensor([phase]), "seen": torch.tensor(seen)})
        for phase, seen in ((1 + 0j, True), (3j, False))
    ]
    result = aggregate(state, sent, layers, Corrected())
    assert result.state["phase"].item() == 0.5 + 1.5j
    assert result.state["seen"].item() is True


def test_tied_names_follow_the_first() -> None:
    layers = Layers((Layer("embed", ("embed.weight",)), Layer("head", ("head.bias",))), {"head.weight": "embed.weight"})
    weight = torch.zeros(3)
    state = {"embed.weight": weight, "head.weight": weight, "head.bias": torch.zeros(1)}
    part = Update({"head.bias": torch.ones(1)}, 1, 1)
    whole = Update({"embed.weight": torch.ones(3), "head.bias": torch.ones(1)}, 1, 1)
    partial = aggregate(state, [part], layers, Corrected()).state
    assert partial["head.weight"].tolist() == partial["embed.weight"].tolist() == [0, 0, 0]
    complete = aggregate(state, [part, whole], layers, Contributors()).state
    assert complete["head.weight"].tolist() == complete["embed.weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    # A sum of so many ones stands still at 2048 (or 256) in half precision; 70 000 is beyond the range of float16.
    layers = Layers((Layer("only", ("small", "large"), ("mean",)),))
    state = {name: torch.ones((), dtype=dtype) for name in ("small", "large", "mean")}
    deltas = {"small": torch.ones((), dtype=dtype), "large": torch.tensor(24.0, dtype=dtype)}
    update = Update(deltas, 1, 1, {"mean": torch.tensor(24.0, dtype=dtype)})
    result = aggregate(state, [update] * 3000, layers, Contributors())
    assert {name: tensor.item() for name, tensor in result.state.items()} == {"small": 2, "large": 25, "mean": 24}
    assert all(tensor.dtype == dtype for tensor in result.state.values())


def test_gradients_are_not_tracked() -> None:
    layers = Layers((Layer("only", ("weight",)),))
    tracked = torch.ones(2, requires_grad=True)
    result = aggregate({"weight": tracked, "more": tracked}, [Update({"weight": 2 * tracked}, 1, 1)], layers, Memory())
    assert not any(tensor.requires_grad for tensor in result.state.values())
    assert not result.memory[0]["only"].deltas["weight"].requires_grad


def single(value: float, dtype: torch.dtype = torch.float32) -> Update:
    return Update({"a": torch.tensor([1.0], dtype=dtype), "b": torch.tensor([0.0, value], dtype=dtype)}, 1, 1)


PAIR = Layers((Layer("first", ("a",)), Layer("second", ("b",))))


@pytest.mark.parametrize(
    ("dtype", "value", "senders", "rule", "reach"),
    [
        (torch.float32, 3e38, 2, Contributors(), None),  # the sum
        (torch.float32, 3e38, 1, Corrected(), [1.0, 0.5]),  # the correction
        (torch.float16, 6e4, 1, Corrected(), [1.0, 0.5]),  # the way back to half precision
        (torch.float32, 1.0, 1, InverseProbability(least_probability=1e-45), [1.0, 1e-45]),  # the first one's weight
        (torch.float32, 1.0, 2, InverseProbability(least_probability=1e-45), [1.0, 1e-45]),  # a later one's weight
        (torch.float32, 3e38, 2, Memory(), None),
    ],
)
def test_a_layer_that_overflows_stays_and_is_named(
    dtype: torch.dtype, value: float, senders: int, rule: Rule, reach: list[float] | None
) -> None:
    state = {"a": torch.zeros(1, dtype=dtype), "b": torch.tensor([1.0, 2.0], dtype=dtype)}
    result = aggregate(state, [single(value, dtype)] * senders, PAIR, rule, reach=reach)
    assert result.overflowed == ("second",)
    assert result.state["a"].item() == 1
    assert torch.equal(result.state["b"], state["b"])


def test_a_buffer_that_overflows_keeps_its_layer_in_place() -> None:
    state = {"weight": torch.zeros(1), "mean": torch.zeros(()), "count": torch.tensor(1)}
    update = Update({"weight": torch.ones(1)}, 1, 1, {"mean": torch.tensor(3e38), "count": torch.tensor(9)})
    result = aggregate(state, [update, update], ONE, Contributors())
    assert result.overflowed == ("only",)
    assert same(result.state, state)


def test_an_aggregation_may_be_finished_without_any_update() -> None:
    state = {"a": torch.zeros(1), "b": torch.ones(2)}
    assert same(Aggregation(state, PAIR, Corrected(), reach=[[0.5, 1.0]] * 3).finish().state, state)
