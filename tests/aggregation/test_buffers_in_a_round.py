"""Only statistics are averaged: masks, pointers and scales come out of a round as they went in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from aggregation_cases import same
from buffer_cases import Causal, Moco, pruned, quantized, state_of, trained
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import salf
from salf.aggregation import ClientResult, Median, RobustAggregation, ServerModel, TrimmedMean
from salf.errors import InvalidUpdate
from salf.layers import BufferKind, Layer, Layers, find_layers
from salf.methods import FedAsync, FedBuff
from salf.update import Update

ONE = Layer("only", ("w",), ("buffer",))


def a_round(model: nn.Module, layers: Layers, clients: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state before and after a round of clients with different data."""
    before, inputs = state_of(model), torch.randn(clients, 8, 6)
    updates = [trained(model, layers, own, before) for own in inputs]
    return before, salf.aggregate(before, updates, layers, salf.Corrected()).state


def update_with(buffer: Tensor, weight: int = 1) -> Update:
    return Update({"w": torch.ones(1)}, 1, weight, {"buffer": buffer})


def combined(
    values: list[Tensor], old: Tensor, kind: BufferKind | None = None, weights: list[int] | None = None
) -> Tensor:
    layers = Layers((ONE,), buffer_kinds={} if kind is None else {"buffer": kind})
    sent = [update_with(value, weight) for value, weight in zip(values, weights or [1] * len(values), strict=True)]
    rule = salf.Contributors(weight_by_examples=True)
    result = salf.aggregate({"w": torch.zeros(1), "buffer": old}, sent, layers, rule)
    assert result.overflowed == ()
    return result.state["buffer"]


@pytest.mark.parametrize("kind", [None, "constant"])
def test_a_causal_mask_comes_out_of_a_round_bit_for_bit(kind: BufferKind | None) -> None:
    torch.manual_seed(1)
    model = Causal()
    stated: dict[str, BufferKind] | None = {"mask": kind, "rotary": kind} if kind else None
    before, after = a_round(model, find_layers(model, torch.zeros(1, 4, 6), buffer_kinds=stated))
    for name in ("mask", "rotary"):
        assert torch.equal(after[name], before[name])
    for name in ("project.weight", "head.bias"):
        assert after[name].isfinite().all()
        assert not torch.equal(after[name], before[name])


def test_a_pruned_model_stays_pruned() -> None:
    torch.manual_seed(2)
    model = pruned()
    before, after = a_round(model, find_layers(model), clients=7)
    mask = after["0.weight_mask"]
    assert torch.equal(mask, before["0.weight_mask"])
    assert set(mask.flatten().tolist()) == {0.0, 1.0}


def test_a_client_that_prunes_on_its_own_is_rejected_by_name() -> None:
    model = pruned()
    state, layers = state_of(model), find_layers(model)
    update = Update(
        {name: torch.zeros_like(state[name]) for name in layers[0].parameters},
        1,
        1,
        {"0.weight_mask": torch.zeros(5, 6)},
    )
    with pytest.raises(
        InvalidUpdate,
        match=r"buffer '0.weight_mask' has changed, but it is a constant; change it on the server, or state another "
        r"kind: find_layers\(model, buffer_kinds=\{'0.weight_mask': 'local'\}\)",
    ):
        salf.aggregate(state, [update], layers, salf.Corrected())


def test_scales_and_zero_points_stay_together_on_their_client() -> None:
    torch.manual_seed(3)
    model = quantized()
    before, after = a_round(model, find_layers(model))
    assert same({n: v for n, v in after.items() if n[0] == "1"}, {n: v for n, v in before.items() if n[0] == "1"})
    assert not torch.equal(after["0.weight"], before["0.weight"])


def test_a_queue_keeps_its_pointer_if_its_kind_is_stated() -> None:
    torch.manual_seed(4)
    model = Moco()
    layers = find_layers(model, buffer_kinds={"queue*": "local"})
    before, after = a_round(model, layers)
    assert all(torch.equal(after[name], before[name]) for name in ("queue", "queue_ptr"))
    assert after["encoder.1.num_batches_tracked"] == 2
    with pytest.raises(
        InvalidUpdate,
        match=r"buffer 'queue_ptr' has changed, but its kind is not known; state it: "
        r"find_layers\(model, buffer_kinds=\{'queue_ptr': 'local'\}\)",
    ):
        a_round(model, find_layers(model))


def test_what_a_client_sends_of_a_local_buffer_is_ignored() -> None:
    layers = Layers((replace(ONE, buffers=()),), buffer_kinds={"buffer": "local"})
    state = {"w": torch.zeros(1), "buffer": torch.tensor([7])}
    for value in (torch.tensor([9]), torch.full((3,), torch.nan)):
        result = salf.aggregate(state, [update_with(value)], layers, salf.Corrected())
        assert (result.state["buffer"].item(), result.state["w"].item()) == (7, 1.0)


SPECIAL = st.sampled_from([-torch.inf, torch.inf, 0.0, 0.1, 1 / 3, -2.7e20, torch.nan])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(SPECIAL, min_size=1, max_size=5),
    st.lists(st.integers(1, 99), min_size=1, max_size=7),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_what_no_client_changes_stays_bit_for_bit(values: list[float], weights: list[int], dtype: torch.dtype) -> None:
    old = torch.tensor(values, dtype=dtype)
    found = combined([old.clone()] * len(weights), old, weights=weights)
    assert torch.equal(found.view(torch.uint8), old.view(torch.uint8))
    low = combined([old.bfloat16()] * len(weights), old, weights=weights)  # clients of lower precision
    assert torch.equal(low.view(torch.uint8), old.view(torch.uint8))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.floats(-9, 9, width=32)), min_size=1, max_size=6))
def test_a_mean_counts_those_who_leave_a_buffer_as_it_is(clients: list[tuple[int, bool, float]]) -> None:
    old = torch.tensor([0.3, -torch.inf])
    sent = [torch.tensor([value, -torch.inf]) if moved else old.clone() for _, moved, value in clients]
    weights = [weight for weight, _, _ in clients]
    found = combined(sent, old, weights=weights)
    assert found[0].item() == pytest.approx(np.average([value[0].item() for value in sent], weights=weights), abs=1e-5)
    assert found[1].item() == -torch.inf


def test_a_value_may_become_finite_but_not_infinite() -> None:
    old = torch.tensor([-torch.inf, 1.0])
    assert combined([torch.tensor([3.0, 1.0]), torch.tensor([5.0, 3.0])], old).tolist() == [4.0, 2.0]
    assert combined([torch.tensor([3.0, 1.0]), old.clone()], old).tolist() == [-torch.inf, 1.0]
    for wrong in ([-torch.inf, torch.inf], [torch.inf, 1.0], [torch.nan, 1.0]):
        with pytest.raises(InvalidUpdate, match="'buffer' holds values that are not finite"):
            combined([torch.tensor(wrong)], old)


def test_too_few_contributors_with_a_mask_overflow_nothing() -> None:
    state = {"w": torch.zeros(1), "buffer": torch.tensor([-torch.inf, 1.0])}
    sent = update_with(torch.tensor([-torch.inf, 2.0]))
    result = salf.aggregate(state, [sent], Layers((ONE,)), salf.Contributors(min_contributors=2))
    assert (result.overflowed, result.state["buffer"].tolist()) == ((), [-torch.inf, 1.0])


@pytest.mark.parametrize("value", [torch.tensor([True, False]), torch.tensor([3, 4], dtype=torch.uint8)])
def test_whole_numbers_that_stay_pass_and_others_are_named(value: Tensor) -> None:
    assert torch.equal(combined([value.clone()] * 3, value), value)
    with pytest.raises(InvalidUpdate, match="buffer 'buffer' has changed, but its kind is not known"):
        combined([value.clone(), value.flip(0)], value)
    assert torch.equal(combined([value.clone(), value.flip(0)], value, "counter"), value.maximum(value.flip(0)))


@pytest.mark.parametrize("centre", [Median(), TrimmedMean(0.2)])
def test_a_robust_centre_leaves_a_mask_bit_for_bit(centre: Median | TrimmedMean) -> None:
    old = torch.tensor([-torch.inf, 0.1, 1 / 3])
    state = {"w": torch.zeros(1), "buffer": old}
    running = RobustAggregation(state, Layers((ONE,)), salf.Corrected(), centre)
    for _ in range(5):
        running.add(update_with(old.clone()))
    result = running.finish()
    assert (result.overflowed, result.state["w"].item()) == ((), 1.0)
    assert torch.equal(result.state["buffer"], old)


@pytest.mark.parametrize("method", [FedAsync(), FedBuff(buffer=2)])
@pytest.mark.parametrize("statistics", [(), ("mask",)])
def test_an_asynchronous_server_keeps_a_mask(method: FedAsync | FedBuff, statistics: tuple[str, ...]) -> None:
    mask = torch.tensor([-torch.inf, 0.0])
    server = ServerModel({"w": torch.zeros(1), "mask": mask})
    for value in (1.0, 2.0):
        arrival = ClientResult(server.weights, {"w": torch.tensor([value]), "mask": mask.clone()}, 0)
        server = method.receive(server, arrival, statistics)
    assert server.weights["w"].item() > 0
    assert torch.equal(server.weights["mask"], mask)
