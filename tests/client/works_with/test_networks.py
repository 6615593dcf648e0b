"""Every kind of network works: recurrent, adversarial, with experts, with layers that skip steps or are frozen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import TASKS, Task, backward, parameters_of, same
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint
from virtual_time import Clock, on_gradient, take_time
from works_with import cut, leaves_no_trace

from salf.client import deadline
from salf.layers import find_layers
from salf.update import check_update


def sgd(model: nn.Module) -> SGD:
    return SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)


def task_of(model: nn.Module, inputs: Callable[[], Tensor], classes: int) -> Task:
    torch.manual_seed(1)
    return Task(model, tuple((inputs(), torch.randint(classes, (5,))) for _ in range(4)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cells, self.head = kind(4, 6, num_layers=2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.cells(x)[0][:, -1])
        return scores


class Experts(nn.Module):
    """Each example goes to the expert of the sign of its first feature."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.experts = nn.Linear(6, 5), nn.ModuleList(nn.Linear(5, 5) for _ in range(2))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        features, chosen = torch.relu(self.stem(x)), (x[:, :1] > 0).float()
        return self.head(torch.relu(self.experts[0](features) * chosen + self.experts[1](features) * (1 - chosen)))  # type: ignore[no-any-return]


FAMILIES: dict[str, Callable[[], Task]] = {
    **{name: TASKS[name] for name in ("cnn", "residual", "transformer", "mlp", "lora", "nested")},
    "LSTM": lambda: task_of(Recurrent(nn.LSTM), lambda: torch.randn(5, 3, 4), 3),
    "GRU": lambda: task_of(Recurrent(nn.GRU), lambda: torch.randn(5, 3, 4), 3),
    "experts": lambda: task_of(Experts(), lambda: torch.randn(5, 6), 3),
}


@pytest.mark.parametrize("returns", [False, True], ids=["left", "returns"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_networks_keeps_its_finished_layers(name: str, returns: bool) -> None:
    torch.manual_seed(0)
    cut(FAMILIES[name](), sgd, steps=2, depth=1, returns=returns)


class Skipping(nn.Module):
    """A layer of three takes part in every second call, as with LayerDrop or alternating task heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        features = torch.relu(self.stem(x))
        features = torch.relu(self.middle(features)) if self.calls % 2 else features
        return self.head(features)  # type: ignore[no-any-return]


@pytest.mark.parametrize("returns", [False, True], ids=["left", "returns"])
@pytest.mark.parametrize("seconds", [1.5, 4.0, 6.5, 12.5, 20.0])
def test_a_layer_that_skips_steps_has_its_own_count(seconds: float, returns: bool) -> None:
    task, clock = task_of(Skipping(), lambda: torch.randn(5, 6), 3), Clock()
    layers = find_layers(task.model)
    take_time(task.model, layers, clock.advance)
    twin = task.twin()
    optimizer = sgd(task.model)
    with deadline(task.model, None if returns else optimizer, seconds, layers=layers, clock=clock) as work:
        for number in work.batches(range(99)) if returns else range(99):
            optimizer.zero_grad()
            backward(task.loss(number))
            optimizer.step()
    taken = work.layer_steps
    check_update(work.update(3), layers, task.model.state_dict())
    naive = sgd(twin.model)
    for number in range(taken["head"]):
        naive.zero_grad()
        backward(twin.loss(number))
        for name, value in twin.model.named_parameters():
            reached = taken[name.partition(".")[0]]
            done = number // 2 if name.startswith("middle") else number
            value.grad = value.grad if done < reached else None
        naive.step()
    assert taken["middle"] <= (taken["head"] + 1) // 2
    assert same(parameters_of(task.model), parameters_of(twin.model))


def test_layers_frozen_and_unfrozen_within_the_block() -> None:
    task, clock = TASKS["mlp"](), Clock()
    task.model.get_parameter("fc1.weight").requires_grad = task.model.get_parameter("fc1.bias").requires_grad = False
    layers = find_layers(TASKS["mlp"]().model)  # those of the server
    on_gradient(task.model, "fc3.weight", lambda: clock.advance(3.0))
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 3 * 3 + 2, layers=layers, clock=clock) as work:
        for number in range(9):
            for name, value in task.model.named_parameters():
                value.requires_grad = number > 0 if name.startswith("fc1") else number != 1 or name.startswith("fc3")
            optimizer.zero_grad()
            backward(task.loss(number))
            optimizer.step()
    assert work.layer_steps["fc1"] <= work.layer_steps["fc3"]
    assert work.layer_steps["fc2"] < work.layer_steps["fc3"]
    assert work.layer_steps["fc1"] > 0
    check_update(work.update(3), layers, task.model.state_dict())


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
        self.discriminator = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def gan_loop(gan: Any, of_d: Any, of_g: Any, numbers: Any) -> None:
    for number in numbers:
        noise, real = torch.full((4, 2), 0.1 * (number % 7)), torch.full((4, 3), 0.2 * (number % 5))
        of_d.zero_grad()
        backward((gan.discriminator(gan.generator(noise).detach()) - gan.discriminator(real)).mean())
        of_d.step()
        of_g.zero_grad()
        backward(-gan.discriminator(gan.generator(noise)).mean())  # it fills the discriminator's gradients, too
        of_g.step()


@pytest.mark.parametrize("part", ["discriminator", "generator", "both"])
@pytest.mark.parametrize("seconds", [2.5, 5.5, 6.5, 7.5, 11.5, 13.5, 14.5, 21.0])
def test_a_generators_pass_never_moves_the_discriminator(part: str, seconds: float) -> None:
    def run(numbers: Any, of_d: list[Tensor], gan: Any, optimizers: Any) -> None:
        weight = gan.discriminator[2].weight
        optimizers[0].register_step_post_hook(lambda *_: of_d.append(weight.detach().clone()))
        gan_loop(gan, optimizers[0], optimizers[1], numbers)

    def made() -> tuple[Any, tuple[SGD, SGD]]:
        torch.manual_seed(0)
        gan = Gan()
        return gan, (SGD(gan.discriminator.parameters(), lr=0.1), SGD(gan.generator.parameters(), lr=0.1))

    (gan, optimizers), (twin, naive), clock = made(), made(), Clock()
    for name, _ in gan.named_parameters():
        if name.endswith("weight"):
            on_gradient(gan, name, lambda: clock.advance(1.0))
    model = gan if part == "both" else gan.get_submodule(part)
    optimizer = {"discriminator": optimizers[0], "generator": optimizers[1]}.get(part)
    taken: list[Tensor] = []
    with deadline(model, optimizer, seconds, clock=clock, accumulate=1) as work:
        run(work.batches(range(99)) if part == "both" else range(99), taken, gan, optimizers)
    # The discriminator stands where one of its own steps has left it, and each of them was on its own loss.
    steps = [twin.discriminator[2].weight.detach().clone()]
    run(range(len(taken) + 1), steps, twin, naive)
    assert torch.equal(gan.discriminator[2].weight, steps[len(taken)])
    check_update(work.update(3), find_layers(model), model.state_dict())
    assert leaves_no_trace(gan)


@pytest.mark.parametrize("zero", ["before the attack", "after the attack"])
@pytest.mark.parametrize("seconds", range(9, 30))
def test_the_passes_of_an_attack_are_never_stepped(zero: str, seconds: int) -> None:
    task, clock = TASKS["mlp"](), Clock()
    take_time(task.model, find_layers(task.model), clock.advance)
    optimizer = SGD(task.model.parameters(), lr=0.1)
    stepped: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: stepped.append(task.model.get_parameter("fc3.bias").grad.clone()))  # type: ignore[union-attr]
    honest: list[Tensor] = []
    with deadline(task.model, optimizer, seconds, clock=clock):
        for number in range(99):
            inputs, labels = task.batches[number % 4]
            attacked = inputs.clone().requires_grad_()
            if zero == "before the attack":
                optimizer.zero_grad()
            backward(100 * nn.functional.cross_entropy(task.model(attacked), labels))
            assert attacked.grad is not None
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(task.model((inputs + 0.1 * attacked.grad.sign()).detach()), labels)
            [gradient] = torch.autograd.grad(loss, [task.model.get_parameter("fc3.bias")], retain_graph=True)
            honest.append(gradient)
            backward(loss)
            optimizer.step()
    assert stepped
    assert all(torch.equal(one, other) for one, other in zip(stepped, honest, strict=False))


class Checkpointed(nn.Module):
    """The stem is used in a checkpointed segment and outside of it."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.head, self.reentrant = nn.Linear(6, 6), nn.Linear(6, 3), reentrant

    def forward(self, x: Tensor) -> Tensor:
        segment, x = nn.Sequential(self.stem, nn.Tanh()), x.requires_grad_()
        features = checkpoint(segment, x, use_reentrant=self.reentrant)
        return self.head(torch.relu(self.stem(features)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5, 3.5, 4.5])
def test_a_layer_shared_with_a_checkpointed_segment_is_never_stepped_by_half(reentrant: bool, seconds: float) -> None:
    torch.manual_seed(0)
    task = task_of(Checkpointed(reentrant=reentrant), lambda: torch.randn(5, 6), 3)
    twin, clock = task.twin(), Clock()
    optimizer, naive = sgd(task.model), sgd(twin.model)
    for name in ("stem.weight", "head.weight"):
        on_gradient(task.model, name, lambda: clock.advance(1.0))
    layers = find_layers(task.model)
    with deadline(task.model, optimizer, seconds, layers=layers, clock=clock) as work:
        optimizer.zero_grad()
        backward(task.loss(0))
        optimizer.step()
    backward(twin.loss(0))
    for name, value in twin.model.named_parameters():
        value.grad = value.grad if work.layer_steps[name.partition(".")[0]] else None
    naive.step()
    assert work.layer_steps["head"] == 1 or seconds < 1
    assert same(parameters_of(task.model), parameters_of(twin.model))
