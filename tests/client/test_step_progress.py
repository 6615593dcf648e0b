"""The progress of one optimizer step, event by event, without a training loop."""

import torch
from networks import TASKS, mlp_task
from torch import nn

from salf.client.buffer_snapshot import BufferSnapshot
from salf.client.loop_pattern import LoopPattern
from salf.client.step_progress import StepProgress
from salf.layers import Layers, find_layers

PARAMETERS = ["fc3.bias", "fc3.weight", "fc2.bias", "fc2.weight", "fc1.bias", "fc1.weight"]


def progress_of(model: nn.Module, pattern: LoopPattern | None = None, accumulate: int | None = None) -> StepProgress:
    layers = find_layers(model)
    sizes = {layer.name: 10 * (place + 1) for place, layer in enumerate(layers)}
    return StepProgress(model, layers, sizes, pattern or LoopPattern(), accumulate)


def arrive(progress: StepProgress, model: nn.Module, count: int) -> list[str | None]:
    for name in PARAMETERS[:count]:
        parameter = model.get_parameter(name)
        parameter.grad = torch.ones_like(parameter) if parameter.grad is None else parameter.grad.add_(1)
    return [progress.arrive(name) for name in PARAMETERS[:count]]


def whole_pass(progress: StepProgress, model: nn.Module) -> None:
    progress.begin_pass(1.0, examples=4)
    progress.begin_backward(1.0, [sum(value.sum() for value in model.parameters())], None, exact=True)
    arrive(progress, model, 6)
    progress.end_backward()


def test_a_layer_is_reached_when_all_its_gradients_have_arrived() -> None:
    model = mlp_task().model
    progress = progress_of(model)
    progress.begin_pass(1.0)
    assert arrive(progress, model, 3) == [None, "fc3", None]
    assert (progress.complete, progress.kept_bytes(), progress.order) == ({"fc3"}, 30, ["fc3"])
    assert progress.needs_more("fc2.weight")
    assert not progress.needs_more("fc3.bias")
    progress.begin_step(["fc3"])
    assert (progress.complete, progress.kept_bytes(), progress.order, progress.since) == (set(), 0, [], None)


def test_a_layer_is_kept_with_what_has_reached_it() -> None:
    model = mlp_task().model
    progress = progress_of(model, accumulate=4)
    whole_pass(progress, model)
    whole_pass(progress, model)
    progress.begin_pass(3.0, examples=1)
    arrive(progress, model, 3)
    assert progress.cut_pass() == set(PARAMETERS[:3])
    assert progress.passes == {"fc1": 2, "fc2": 2, "fc3": 3}
    assert progress.examples == {"fc1": 8, "fc2": 8, "fc3": 9}
    assert [layer.name for layer in progress.kept()] == ["fc1", "fc2", "fc3"]
    assert [progress.factor_of(name) for name in PARAMETERS] == [4 / 3, 4 / 3, 4 / 3, 2, 2, 2]


def test_gradients_that_the_loop_cleared_are_not_kept() -> None:
    for set_to_none in (True, False):
        model = mlp_task().model
        progress = progress_of(model)
        whole_pass(progress, model)
        model.zero_grad(set_to_none)
        progress.begin_pass(2.0)
        assert progress.kept_bytes() == 0
        progress.cut_pass()
        assert progress.kept() == []


def test_gradients_that_were_stepped_and_not_cleared_are_not_kept() -> None:
    model = mlp_task().model
    progress = progress_of(model)
    whole_pass(progress, model)
    progress.end_pass()
    progress.begin_step(["fc1", "fc2", "fc3"])
    whole_pass(progress, model)
    progress.end_pass()
    assert progress.kept() == []
    model.zero_grad()
    whole_pass(progress, model)
    progress.end_pass()
    assert len(progress.kept()) == 3


def test_passes_that_are_usually_discarded_are_not_kept() -> None:
    model, pattern = mlp_task().model, LoopPattern()
    progress = progress_of(model, pattern)
    for _ in range(2):
        for _ in range(3):  # two passes of an attack, and one for the step
            model.zero_grad()
            whole_pass(progress, model)
        progress.end_pass()
        progress.learn_step(["fc1", "fc2", "fc3"])
        progress.begin_step(["fc1", "fc2", "fc3"])
    assert (pattern.passes_per_step, pattern.discarded("fc1")) == (1, 2)
    for kept in (0, 0, 3):
        model.zero_grad()
        whole_pass(progress, model)
        progress.end_pass()
        assert len(progress.kept()) == kept


def test_what_the_graph_does_not_reach_is_not_expected() -> None:
    model = mlp_task().model
    progress = progress_of(model)
    progress.begin_pass(1.0)
    progress.begin_backward(1.0, [model.get_parameter("fc3.bias").sum()], None, exact=True)
    assert arrive(progress, model, 1) == ["fc3"]
    progress.cut_pass()
    assert [layer.name for layer in progress.kept()] == ["fc3"]


def test_with_one_pass_per_step_given_all_its_passes_are_one() -> None:
    model = mlp_task().model
    progress = progress_of(model, accumulate=1)
    for _ in range(2):
        whole_pass(progress, model)
    progress.end_pass(at_step=True)
    assert progress.passes == {"fc1": 1, "fc2": 1, "fc3": 1}
    assert progress.factor_of("fc1.bias") == 1


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
