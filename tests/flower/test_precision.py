"""Clients and global models of other floating-point types than float32; NumPy, so Flower, has no bfloat16."""

from collections.abc import Iterable

import pytest
import torch
from flower_cases import MemoryGrid, Net, Node, a_loop, a_model, inner, wrapped
from flwr.app import ArrayRecord, Message

import salf.flower
from salf.errors import InvalidSetting
from salf.flower import to_record
from salf.flower.wire import from_record

MODEL, LAYERS = a_model()
HALVES = [torch.bfloat16, torch.float16]


def training(dtype: torch.dtype) -> Node:
    """Return a node that trains the model in a floating-point type."""

    def node(message: Message) -> Iterable[tuple[float, Message]]:
        model = Net().to(dtype)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(0)
        with salf.flower.deadline(message, model, optimizer) as work:
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(8, 4).to(dtype)).square().sum().backward()
                optimizer.step()
        return [(1.0, salf.flower.reply(message, work, num_examples=8))]

    return node


def dtypes(arrays: ArrayRecord) -> set[torch.dtype]:
    return {value.dtype for value in arrays.to_torch_state_dict().values() if value.is_floating_point()}


def run(arrays: ArrayRecord, types: list[torch.dtype]) -> ArrayRecord:
    """Run two rounds with a client of each type, and return the model."""
    grid = MemoryGrid({index: training(dtype) for index, dtype in enumerate(types, 1)})
    strategy = wrapped(inner(len(types)), LAYERS, deadline=6000.0, counted_from="loop")
    result = a_loop(grid, strategy).run(arrays, 2)
    for number in (1, 2):
        assert result.train_metrics_clientapp[number]["salf-contributors"] == [len(types)] * len(LAYERS)
    return result.arrays


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_clients_of_every_precision_train_one_model(dtype: torch.dtype) -> None:
    arrays = run(to_record(MODEL.to(dtype).state_dict()), [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    assert dtypes(arrays) == {torch.float32 if dtype is torch.bfloat16 else dtype}


@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_precision_client_learns_what_a_single_precision_one_does(dtype: torch.dtype) -> None:
    start = to_record(MODEL.float().state_dict())
    half, single = (run(start, [each]).to_torch_state_dict() for each in (dtype, torch.float32))
    for name, before in start.to_torch_state_dict().items():
        torch.testing.assert_close(half[name], single[name], rtol=0.1, atol=0.1)
        assert not half[name].equal(before)


def test_a_bfloat16_model_travels_without_loss() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    read = from_record(to_record({"weight": every}))["weight"]
    assert read.dtype == torch.float32
    torch.testing.assert_close(read.bfloat16(), every, rtol=0, atol=0, equal_nan=True)
    model = Net().bfloat16()
    model.load_state_dict(to_record(model.state_dict()).to_torch_state_dict())
    assert model.first.weight.dtype == torch.bfloat16


def test_a_type_that_cannot_be_carried_is_refused_by_name() -> None:
    with pytest.raises(InvalidSetting, match=r"'weight' is of type torch.float8_e5m2, which Flower cannot carry; keep"):
        to_record({"weight": torch.zeros(2).to(torch.float8_e5m2)})
