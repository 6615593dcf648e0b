"""For any network, speeds and deadline, a block is a prefix of the training, and reports it correctly."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings, strategies as st
from networks import TASKS, Task, backward, mlp_task, parameters_of, same, train
from torch.optim import SGD
from virtual_time import Clock, take_time

from salf.client.deadline_block import deadline
from salf.layers.find import find_layers
from salf.update import Update, check_update


@dataclass(frozen=True)
class Scene:
    sizes: list[int]
    forward: int
    backward: list[int]
    seconds: float
    steps: int
    momentum: float


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    depth = draw(st.integers(1, 6))
    costs = st.integers(1, 8)
    forward, backward = draw(costs), draw(st.lists(costs, min_size=depth, max_size=depth))
    steps = draw(st.integers(0, 6))
    return Scene(
        sizes=draw(st.lists(st.integers(2, 9), min_size=depth + 1, max_size=depth + 1)),
        forward=forward,
        backward=backward,
        seconds=draw(st.integers(1, 5 * (forward + sum(backward)))) / 2,
        steps=steps,
        momentum=draw(st.sampled_from([0.0, 0.9])),
    )


@settings(deadline=None, max_examples=80)
@given(scene=scenes(), blocks=st.integers(1, 3))
def test_invariants(scene: Scene, blocks: int) -> None:
    task, twin, clock = mlp_task(scene.sizes), mlp_task(scene.sizes), Clock()
    layers = find_layers(task.model)
    costs = dict(zip(layers.names, scene.backward, strict=True))
    take_time(task.model, layers, clock.advance, forward=scene.forward, backward=costs)
    optimizer = SGD(task.model.parameters(), lr=0.1, momentum=scene.momentum)
    naive = SGD(twin.model.parameters(), lr=0.1, momentum=scene.momentum)
    for _ in range(blocks):
        initial, began = parameters_of(task.model), clock()
        with deadline(task.model, optimizer, scene.seconds, clock=clock) as work:
            train(task, optimizer, scene.steps)

        # The block reports its time, and exceeds the deadline by at most the layer in progress.
        assert work.seconds == clock() - began
        assert work.seconds < scene.seconds + max(scene.forward + scene.backward[-1], *scene.backward)
        assert work.interrupted or work.steps == scene.steps

        # The layers near the output may have got one step more; no layer got two.
        steps = list(work.layer_steps.values())
        assert steps == sorted(steps)
        assert {work.steps, work.steps + 1} >= set(steps)
        assert steps[0] == work.steps
        assert work.depth == sum(count > 0 for count in steps)

        # What is sent is what changed, and the server accepts it.
        update, local = work.update(num_examples=5), parameters_of(task.model)
        check_update(update, layers, task.model.state_dict())
        reached = {name for layer in layers if work.layer_steps[layer.name] for name in layer.parameters}
        assert update.deltas.keys() == reached
        for name, before in initial.items():
            if name in reached:
                torch.testing.assert_close(before + update.deltas[name], local[name])
            else:
                assert torch.equal(before, local[name])
        sent = Update.from_bytes(update.to_bytes())
        assert same(dict(sent.deltas), dict(update.deltas))
        assert sent.steps == update.steps

        # The weights are those of someone who knew beforehand how far he would get.
        train(twin, naive, work.steps)
        if steps[-1] > work.steps:
            naive.zero_grad()
            backward(twin.loss(work.steps))
            for layer in layers:
                if work.layer_steps[layer.name] == work.steps:
                    for name in layer.parameters:
                        twin.model.get_parameter(name).grad = None
            naive.step()
        assert same(local, parameters_of(twin.model))

        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert not any(module._forward_pre_hooks for module in task.model.modules())


PASSES = 16
NETWORKS = ("mlp", "cnn", "residual", "transformer")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("returns", [False, True], ids=["left", "returns"])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_what_is_sent_of_an_unfinished_group_is_the_mean_over_its_finished_passes(
    data: st.DataObject, returns: bool, dtype: torch.dtype
) -> None:
    task, clock = TASKS[data.draw(st.sampled_from(NETWORKS))](), Clock()
    task = Task(task.model.to(dtype), tuple((x.to(dtype) if x.is_floating_point() else x, y) for x, y in task.batches))
    layers, twin = find_layers(task.model, task.example), task.twin()
    take_time(task.model, layers, clock.advance)
    cut = data.draw(st.integers(1, PASSES * (1 + len(layers)) - 1))
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, cut, layers=layers, clock=clock, accumulate=PASSES) as work:
        for number, batch in enumerate(work.batches(range(PASSES)) if returns else range(PASSES), 1):
            backward(task.loss(batch) / PASSES)
            if number == PASSES:
                optimizer.step()
    update = work.update(num_examples=9)

    finished, reached = divmod(cut, 1 + len(layers))
    depth = max(reached - 1, 0)
    passes = [finished + (place >= len(layers) - depth) for place in range(len(layers))]
    assert list(update.passes.values()) == [count for count in passes if count > 0]
    parameters = dict(twin.model.named_parameters())
    each = []
    for batch in range(min(finished + 1, PASSES)):
        gradients = torch.autograd.grad(twin.loss(batch), [*parameters.values()])
        each.append(dict(zip(parameters, gradients, strict=True)))
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    for layer in layers:
        count = update.passes.get(layer.name, 0)
        for name in layer.parameters:
            if count:
                mean = torch.stack([gradients[name] for gradients in each[:count]]).mean(0)
                torch.testing.assert_close(update.deltas[name], -0.1 * mean, rtol=tolerance, atol=tolerance)
            else:
                assert name not in update.deltas
