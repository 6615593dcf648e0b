"""The progress of one optimizer step, event by event, without a training loop."""

import torch
from networks import TASKS, mlp_task
from torch import nn

from salf.client.step_progress import BufferSnapshot, RequiredPasses, StepProgress
from salf.layers import Layers, find_layers

PARAMETERS = ["fc3.bias", "fc3.weight", "fc2.bias", "fc2.weight", "fc1.bias", "fc1.weight"]


def progress_of(model: nn.Module, passes: dict[str, int] | None = None, accumulate: int | None = None) -> StepProgress:
    layers = find_layers(model)
    sizes = {layer.name: 10 * (place + 1) for place, layer in enumerate(layers)}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return StepProgress(model, layers, sizes, passes, accumulate)


def arrive(progress: StepProgress, count: int) -> list[str | None]:
    return [progress.arrive(name) for name in PARAMETERS[:count]]


def test_a_layer_is_complete_when_all_its_gradients_have_arrived() -> None:
    progress = progress_of(mlp_task().model)
    progress.begin_pass(1.0)
    assert arrive(progress, 3) == [None, "fc3", None]
    assert (progress.complete, progress.complete_bytes, progress.order) == ({"fc3"}, 30, ["fc3"])
    assert progress.needs_another_pass("fc2.weight")
    assert not progress.needs_another_pass("fc3.bias")
    progress.begin_step(progress.passes())
    assert (progress.complete, progress.complete_bytes, progress.order, progress.since) == (set(), 0, [], None)


def test_with_accumulation_the_last_pass_completes_a_layer() -> None:
    progress = progress_of(mlp_task().model, accumulate=2)
    progress.begin_pass(1.0)
    assert arrive(progress, 6) == [None] * 6
    progress.begin_pass(2.0)
    assert arrive(progress, 2) == [None, "fc3"]
    assert progress.passes() == dict.fromkeys(PARAMETERS, 1) | {"fc3.bias": 2, "fc3.weight": 2}


def test_a_pass_without_a_step_before_it_revokes_completion() -> None:
    progress = progress_of(mlp_task().model)
    progress.begin_pass(1.0)
    arrive(progress, 6)
    assert progress.complete == {"fc1", "fc2", "fc3"}
    progress.begin_pass(2.0)
    assert progress.complete == set()


def test_gradients_that_were_set_to_zero_begin_a_new_step() -> None:
    model = mlp_task().model
    progress = progress_of(model)
    progress.begin_pass(1.0)
    arrive(progress, 6)
    model.zero_grad()
    progress.begin_pass(2.0)
    assert arrive(progress, 2) == [None, "fc3"]


def test_the_required_passes_follow_earlier_steps_until_more_arrive() -> None:
    layers = find_layers(mlp_task((4, 3, 2)).model)
    required = RequiredPasses(layers, accumulate=None)
    required.reset({"fc2.weight": 3, "fc2.bias": 3})
    assert required.of == {"fc2.weight": 3, "fc2.bias": 3, "fc1.weight": 1, "fc1.bias": 1}
    required.extend({"fc2.weight": 1, "fc2.bias": 1})
    assert required.of == {"fc2.weight": 3, "fc2.bias": 3, "fc1.weight": 2, "fc1.bias": 2}
    required.extend({"fc2.weight": 3, "fc2.bias": 3})
    assert set(required.of.values()) == {4}


def test_a_snapshot_restores_the_buffers_of_the_named_layers() -> None:
    task = TASKS["residual"]()
    layers: Layers = find_layers(task.model)
    snapshot = BufferSnapshot(task.model, layers)
    before = {name: buffer.clone() for name, buffer in task.model.named_buffers()}
    snapshot.take()
    task.loss()
    snapshot.take()  # the first copy stays
    snapshot.restore(["norm"])
    restored = {name for name, buffer in task.model.named_buffers() if torch.equal(buffer, before[name])}
    assert restored == {name for name in before if name.startswith("norm.")}
    snapshot.discard()
    task.loss()
    snapshot.restore(["norm"])
    assert not torch.equal(task.model.get_buffer("norm.running_mean"), before["norm.running_mean"])
