"""The client's two lines, around an ordinary loop."""

import time
from collections.abc import Mapping

import pytest
import torch
from flower_cases import Net, a_model
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import nn

import salf.flower
from salf.errors import InvalidSetting
from salf.flower.wire import TrainInstructions, read_reply


def a_message(instructions: TrainInstructions | None, model: nn.Module, created: float = 0.0) -> Message:
    config = ConfigRecord({"lr": 0.1})
    if instructions is not None:
        instructions.write(config)
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "config": config})
    message = Message(content, dst_node_id=5, message_type="train", ttl=36_000.0)
    message.metadata.created_at = time.time() - created
    return message


def train(message: Message, steps: int = 4, metrics: Mapping[str, float] | None = None) -> Message:
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(0)
    with salf.flower.deadline(message, model, optimizer) as work:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
    return salf.flower.reply(message, work, num_examples=32, metrics=metrics)


def test_a_client_with_enough_time_sends_exactly_what_training_gives() -> None:
    model, layers = a_model()
    message = a_message(TrainInstructions(2, 6000.0, layers), model)
    reply = train(message, metrics={"loss": 0.5})
    twin = Net()
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    torch.manual_seed(0)
    for _ in range(4):
        optimizer.zero_grad()
        twin(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    arrays = reply.content.array_records["arrays"].to_torch_state_dict()
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(arrays[name], value, rtol=0, atol=1e-7)
    read = read_reply(reply.content, layers, model.state_dict())
    assert dict(read.update.steps) == dict.fromkeys(layers.names, 4)  # type: ignore[arg-type]
    assert (read.report.round, read.report.interrupted, read.report.overshoot_seconds) == (2, False, 0.0)
    assert read.metrics == {"loss": 0.5}
    assert read.update.num_examples == 32


@pytest.mark.parametrize(("spent", "reached"), [(0.0, True), (3000.0, True), (6001.0, False)])
def test_time_before_the_loop_counts(spent: float, *, reached: bool) -> None:
    model, layers = a_model()
    reply = train(a_message(TrainInstructions(1, 6000.0, layers), model, created=spent))
    read = read_reply(reply.content, layers, model.state_dict())
    assert bool(read.update.deltas) is reached
    assert read.report.elapsed_seconds == pytest.approx(spent, abs=1000.0)


def test_time_before_the_loop_does_not_count_if_the_deadline_starts_with_the_loop() -> None:
    model, layers = a_model()
    reply = train(a_message(TrainInstructions(1, 6000.0, layers, counted_from="loop"), model, created=10_000.0))
    assert read_reply(reply.content, layers, model.state_dict()).update.deltas


def test_a_node_whose_clock_is_behind_loses_nothing() -> None:
    model, layers = a_model()
    reply = train(a_message(TrainInstructions(1, 6000.0, layers), model, created=-5000.0))
    assert read_reply(reply.content, layers, model.state_dict()).report.elapsed_seconds == 0.0


def test_time_for_the_upload_is_reserved() -> None:
    model, layers = a_model()
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    reply = train(a_message(TrainInstructions(1, 5000.0, layers, upload_bytes_per_second=size / 10_000), model))
    update = read_reply(reply.content, layers, model.state_dict()).update
    assert "last.weight" in update.deltas
    assert "first.weight" not in update.deltas  # sending it too would take too long


def test_what_the_loop_needs_reaches_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layers = a_model()
    given: dict[str, object] = {}
    monkeypatch.setattr(salf.client, "deadline", lambda *_, **named: given.update(named))
    needs = {"scaler": torch.amp.GradScaler("cpu"), "accumulate": 8, "before_step": model.zero_grad}
    salf.flower.deadline(a_message(TrainInstructions(1, 60.0, layers), model), model, **needs)  # type: ignore[arg-type]
    assert needs.items() <= given.items()


def test_a_whole_reply_names_every_array_in_the_order_received() -> None:
    model, layers = a_model()
    message = a_message(TrainInstructions(1, 60.0, layers, whole=True), model, created=61.0)
    reply = train(message)
    assert [*reply.content.array_records["arrays"]] == [*message.content.array_records["arrays"]]
    assert not read_reply(reply.content, layers, model.state_dict()).update.deltas


def test_wrong_messages_and_metrics_are_refused() -> None:
    model, layers = a_model()
    with pytest.raises(InvalidSetting, match="the server's strategy is not a SalfStrategy"):
        train(a_message(None, model))
    for metrics, words in (
        ({"salf-x": 1.0}, "which salf uses itself"),
        ({"num-examples": 1.0}, "which salf uses itself"),
        ({"loss": float("nan")}, "pass a finite number"),
        ({"loss": "low"}, "pass a finite number"),
    ):
        with pytest.raises(InvalidSetting, match=words):
            train(a_message(TrainInstructions(1, 60.0, layers), model), metrics=metrics)  # type: ignore[arg-type]
    damaged = a_message(TrainInstructions(1, 60.0, layers), model)
    damaged.content.config_records["config"]["salf-layers"] = "{"
    with pytest.raises(InvalidSetting, match="install the same version of salf"):
        train(damaged)
