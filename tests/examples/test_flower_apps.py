"""The example apps for Flower: a training function that makes its own optimizer and returns its mean loss."""

import importlib
import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flower_cases import MemoryGrid, Node, a_loop, initial, wrapped
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import Tensor
from virtual_time import Clock, take_time

import salf
from salf.flower.wire import ClientReply, TrainInstructions, read_reply

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "flower" / "after"))
task: Any = importlib.import_module("digits.task")
client_app: Any = importlib.import_module("digits.client_app")

NODES = 4
PASS = 5.0  # virtual seconds of a node at speed 1: one for the forward pass, one for each of the four layers
CONFIG: dict[str, Any] = {"batch-size": 128, "local-epochs": 2, "by-digit": False}  # three batches an epoch
WHOLE = 6 * PASS


@pytest.fixture
def _virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a node's layers take the virtual seconds of its settings, on a clock of each deadline's own."""
    clock = Clock()

    def slow_down(model: torch.nn.Module, seconds: float) -> None:
        take_time(model, salf.find_layers(model), clock.advance, forward=seconds, backward=seconds)

    monkeypatch.setattr(client_app, "slow_down", slow_down)
    monkeypatch.setattr(salf.client, "deadline", partial(salf.deadline, clock=clock))


def a_context(place: int = 0, seconds_per_layer: float = 1.0) -> Context:
    node: dict[str, Any] = {"partition-id": place, "num-partitions": NODES, "seconds-per-layer": seconds_per_layer}
    return Context(run_id=1, node_id=place, node_config=node, state=RecordDict(), run_config=CONFIG)


def a_message(model: torch.nn.Module, seconds: float, spent: float = 0.0) -> Message:
    config = ConfigRecord({"lr": 0.1})
    counted_from = "message" if spent else "loop"
    TrainInstructions(1, seconds, salf.find_layers(model), counted_from=counted_from).write(config)  # type: ignore[arg-type]
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "config": config})
    message = Message(content, dst_node_id=5, message_type="train", ttl=36_000.0)
    message.metadata.created_at = time.time() - spent
    return message


def reply_within(seconds: float, spent: float = 0.0) -> ClientReply:
    """Return what the server reads from the reply of a node that has some virtual seconds."""
    torch.manual_seed(1)
    model = task.Net()
    torch.manual_seed(0)
    reply = client_app.app(a_message(model, seconds, spent), a_context())
    layers = salf.find_layers(model)
    read = read_reply(reply.content, layers, model.state_dict())
    salf.check_update(read.update, layers, model.state_dict())
    return read


def train_on(batches: int) -> tuple[float, Mapping[str, Tensor]]:
    """Return the mean loss and the changes of training on the first batches, without a deadline."""
    torch.manual_seed(1)
    state = task.Net().state_dict()
    torch.manual_seed(0)
    model = task.Net()
    model.load_state_dict(state)
    loader, _ = task.load_data(0, NODES, CONFIG["batch-size"], by_digit=False)
    order = [batch for _ in range(2) for batch in loader]
    loss = task.train(model, order[:batches], 1, 0.1, torch.device("cpu"))
    return loss, {name: value - state[name] for name, value in model.state_dict().items()}


@pytest.mark.usefixtures("_virtual_time")
@pytest.mark.parametrize(
    ("seconds", "batches", "steps"),
    [
        (0.5, 1, (0, 0, 0, 0)),  # the first forward pass passes the deadline
        (1.5, 1, (0, 0, 0, 1)),  # cut in the first backward pass
        (3.5, 1, (0, 1, 1, 1)),
        (PASS, 1, (1, 1, 1, 1)),  # between two batches
        (2 * PASS + 3.0, 3, (2, 2, 3, 3)),  # cut in the last pass of the first epoch
        (3 * PASS, 3, (3, 3, 3, 3)),  # between two epochs
        (WHOLE + 1.0, 6, (6, 6, 6, 6)),
    ],
)
def test_a_node_that_is_cut_replies_with_an_update_and_the_loss_of_its_batches(
    seconds: float, batches: int, steps: tuple[int, ...]
) -> None:
    read = reply_within(seconds)
    assert read.metrics == {"train_loss": pytest.approx(train_on(batches)[0], abs=1e-6)}
    assert read.report.interrupted is (seconds < WHOLE)
    assert read.update.num_examples == 375
    done = dict(zip(("conv1", "conv2", "fc1", "fc2"), steps, strict=True))
    assert read.update.steps == {name: count for name, count in done.items() if count}
    for name, delta in read.update.deltas.items():
        expected = train_on(done[name.partition(".")[0]])[1][name]
        torch.testing.assert_close(delta, expected, rtol=0, atol=1e-6)


def test_a_node_without_time_replies_with_an_empty_update() -> None:
    read = reply_within(60.0, spent=61.0)
    assert read.metrics == {"train_loss": 0.0}
    assert not read.update.deltas


def working(place: int, seconds_per_layer: float) -> Node:
    """Return a node that runs the app."""

    def node(message: Message) -> Iterable[tuple[float, Message]]:
        return [(1.0, client_app.app(message, a_context(place, seconds_per_layer)))]

    return node


@pytest.mark.usefixtures("_virtual_time")
def test_fast_and_slow_nodes_train_and_evaluate_in_one_round() -> None:
    torch.manual_seed(1)
    model = task.Net()
    nodes = {place + 1: working(place, speed) for place, speed in enumerate((1.0, 2.0, 20.0, 90.0))}
    grid = MemoryGrid(nodes)
    strategy = wrapped(
        FedAvg(min_train_nodes=NODES, min_available_nodes=NODES),
        salf.find_layers(model),
        deadline=WHOLE + 1.0,
        counted_from="loop",
    )
    result = a_loop(grid, strategy, config=ConfigRecord({"lr": 0.1})).run(initial(model), 1)
    trained = result.train_metrics_clientapp[1]
    assert trained["salf-contributors"] == [2, 2, 2, 3]
    assert (trained["salf-failed"], trained["salf-rejected"]) == (0, 0)
    assert trained["train_loss"] == pytest.approx(2.3, abs=0.1)
    evaluated = result.evaluate_metrics_clientapp[1]
    assert set(evaluated) == {"eval_loss", "eval_acc"}
    model.load_state_dict(result.arrays.to_torch_state_dict())
    loss, accuracy = task.test(model, task.load_test_data(), torch.device("cpu"))
    assert evaluated["eval_loss"] == pytest.approx(loss, abs=1e-5)
    assert evaluated["eval_acc"] == pytest.approx(accuracy)
