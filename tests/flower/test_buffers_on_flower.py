"""Models with masks, queues and fake quantization are trained on Flower; the server holds counters alone to growth."""

import logging
from collections.abc import Callable, Iterable

import pytest
import torch
from buffer_cases import Causal, Moco, pruned, quantized
from flower_cases import MemoryGrid, Node, a_loop, inner, wrapped
from flwr.app import ArrayRecord, Message
from torch import Tensor, nn

import salf.flower
from salf.errors import InvalidUpdate
from salf.flower import to_record
from salf.flower.server.training_round import UpdateValidator
from salf.flower.wire import TrainInstructions, layers_from_json, layers_to_json
from salf.layers import BufferKind, Layer, Layers, find_layers
from salf.update import Update

Kinds = dict[str, BufferKind]


def training(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> Node:
    """Return a node that takes two steps on its own data."""

    def node(message: Message) -> Iterable[tuple[float, Message]]:
        model = build()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        model.to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with salf.flower.deadline(message, model, optimizer) as work:
            for _ in range(2):
                optimizer.zero_grad()
                model(torch.randn(4, 6, dtype=dtype)).square().mean().backward()
                optimizer.step()
        return [(1.0, salf.flower.reply(message, work, num_examples=8))]

    return node


def causal() -> nn.Module:
    """Return a model for batches of four positions."""
    return Causal()


def a_round(
    build: Callable[[], nn.Module], kinds: Kinds, dtypes: Iterable[torch.dtype] = (torch.float32,) * 3
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[int]]:
    """Return the model before and after a round, and how many nodes sent each layer."""
    torch.manual_seed(5)
    model = build()
    layers = find_layers(model, buffer_kinds=kinds)
    nodes = {index: training(build, dtype) for index, dtype in enumerate(dtypes, 1)}
    strategy = wrapped(inner(len(nodes)), layers, deadline=6000.0, counted_from="loop")
    result = a_loop(MemoryGrid(nodes), strategy).run(to_record(model.state_dict()), 1)
    contributors = result.train_metrics_clientapp[1]["salf-contributors"]
    return model.state_dict(), result.arrays.to_torch_state_dict(), contributors  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("build", "kinds", "still"),
    [
        (causal, {}, ["mask", "rotary"]),
        (causal, {"mask": "constant", "rotary": "constant"}, ["mask", "rotary"]),
        (Moco, {"queue": "local", "queue_ptr": "local"}, ["queue", "queue_ptr"]),
        (pruned, {}, ["0.weight_mask"]),
        (quantized, {}, ["1.scale", "1.zero_point", "1.activation_post_process.min_val"]),
    ],
)
@pytest.mark.parametrize("dtypes", [[torch.float32] * 3, [torch.bfloat16, torch.float32, torch.float64]])
def test_what_is_no_statistic_stays_bit_for_bit(
    build: Callable[[], nn.Module], kinds: Kinds, still: list[str], dtypes: list[torch.dtype]
) -> None:
    if build is quantized:
        dtypes = [torch.float32] * 3  # torch's fake quantization knows no other type
    before, after, contributors = a_round(build, kinds, dtypes)
    assert set(contributors) == {3}
    for name, value in before.items():
        assert torch.equal(after[name], value) is (name in still or name.startswith("1.")), name


def test_a_queue_whose_kind_is_not_stated_is_rejected_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "salf.flower"):
        before, after, contributors = a_round(Moco, {})
    assert set(contributors) == {0}
    assert torch.equal(after["encoder.0.weight"], before["encoder.0.weight"])
    assert "find_layers(model, buffer_kinds={'queue_ptr': 'local'})" in caplog.text


def test_kinds_reach_the_nodes() -> None:
    layers = find_layers(Moco(), buffer_kinds={"queue": "local", "queue_ptr": "constant"})
    assert layers_from_json(layers_to_json(layers)) == layers
    assert layers_from_json(layers_to_json(layers)).buffer_kinds == layers.buffer_kinds


def validated(old: Tensor, new: Tensor, kind: BufferKind | None) -> str:
    """Return what a validator says of a buffer's change; an empty text if it passes."""
    layers = Layers((Layer("head", ("w",), ("buffer",)),), buffer_kinds={} if kind is None else {"buffer": kind})
    validator = UpdateValidator(layers, {"w": torch.zeros(1), "buffer": old}, max_change=10.0)
    try:
        validator.validate(Update({"w": torch.ones(1)}, 1, 5, {"buffer": new}))
    except InvalidUpdate as error:
        return "; ".join(error.problems)
    return ""


@pytest.mark.parametrize(
    ("old", "new", "kind", "problem"),
    [
        (torch.tensor(5), torch.tensor(9), "counter", ""),
        (torch.tensor(5), torch.tensor(4), "counter", "counter 'buffer' goes from 5 to 4"),
        (torch.tensor(5), torch.tensor(2**50), "counter", f"counter 'buffer' goes from 5 to {2**50}"),
        (torch.tensor(5), torch.tensor(5), None, ""),
        (torch.tensor(5), torch.tensor(6), None, "buffer 'buffer' has changed, but its kind is not known; state it"),
        (torch.tensor([-torch.inf, 2.0]), torch.tensor([-torch.inf, 2.0]), "constant", ""),
        (torch.tensor([-torch.inf, 2.0]), torch.tensor([-torch.inf, 3.0]), "constant", "but it is a constant"),
        (torch.tensor([-torch.inf, 2.0]), torch.tensor([-torch.inf, 3.0]), None, ""),
        (torch.tensor([-torch.inf, 2.0]), torch.tensor([-torch.inf, 3e6]), None, "buffer 'buffer' reaches 3e+06"),
        (torch.tensor([-torch.inf, 2.0]), torch.tensor([-torch.inf, -torch.inf]), None, "values that are not finite"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.nan]), None, "'buffer' holds values that are not finite"),
        (torch.tensor([False]), torch.tensor([True]), "counter", ""),
    ],
)
def test_a_buffer_is_held_to_its_kind(old: Tensor, new: Tensor, kind: BufferKind | None, problem: str) -> None:
    found = validated(old, new, kind)
    assert problem in found
    assert bool(found) is bool(problem)


def test_a_local_buffer_that_a_node_sends_is_ignored() -> None:
    def stubborn(message: Message) -> Iterable[tuple[float, Message]]:
        [(seconds, reply)] = training(Moco)(message)
        reply.content.array_records["arrays"]["queue_ptr"] = ArrayRecord({"a": torch.full((3,), 9)})["a"]
        assert TrainInstructions.read(message).layers.buffer_kinds["queue_ptr"] == "local"
        return [(seconds, reply)]

    torch.manual_seed(5)
    model = Moco()
    layers = find_layers(model, buffer_kinds={"queue*": "local"})
    strategy = wrapped(inner(2), layers, deadline=6000.0, counted_from="loop")
    result = a_loop(MemoryGrid({1: stubborn, 2: stubborn}), strategy).run(to_record(model.state_dict()), 1)
    assert result.train_metrics_clientapp[1]["salf-contributors"] == [2, 2]
    assert result.arrays.to_torch_state_dict()["queue_ptr"].tolist() == [0]
