"""A real deadline around a loop on a CUDA device."""

from statistics import median

import pytest
import torch
from cuda_cases import NEEDS_CUDA, QUIET, cuda, full_precision
from torch import Tensor, nn

from salf.bench.case import timed
from salf.client.deadline_block import deadline
from salf.client.work import Work
from salf.engines.accelerator import wait_for
from salf.layers.find import find_layers

pytestmark = [NEEDS_CUDA, QUIET]
exact = pytest.fixture(autouse=True)(full_precision)
LAYERS, WIDTH, ROWS = 8, 4096, 2048


class Loop:
    """A loop that is long enough to be stopped within a step, and what the optimizer was last given."""

    def __init__(self) -> None:
        modules = [module for _ in range(LAYERS) for module in (nn.Linear(WIDTH, WIDTH, device=cuda()), nn.ReLU())]
        self.model = nn.Sequential(*modules[:-1])
        for parameter in self.model.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
        self.inputs = torch.randn(ROWS, WIDTH, device=cuda())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6)
        self.layers = find_layers(self.model, self.inputs[:2])
        self.given: dict[str, Tensor] = {}
        self.noting = False
        self.optimizer.register_step_pre_hook(lambda *_: self.note())
        self.train(3)
        self.step_seconds = median(timed(lambda: self.train(1), device=cuda()) for _ in range(10))

    def note(self) -> None:
        if self.noting:
            self.given = self.gradients()

    def gradients(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.inputs).square().mean().backward()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.backward()
            self.optimizer.step()

    def block(self, seconds: float, steps: int = 1) -> Work:
        with deadline(self.model, self.optimizer, seconds, layers=self.layers) as work:
            self.train(steps)
        return work


@pytest.fixture(scope="module")
def loop() -> Loop:
    made = Loop()
    for _ in range(3):
        assert made.block(1000.0).steps == 1
    return made


def test_what_is_conveyed_are_the_gradients_of_the_full_backward_pass(loop: Loop) -> None:
    depths = []
    for tenth in range(5, 10):
        loop.backward()
        expected, weights = loop.gradients(), {name: value.clone() for name, value in loop.model.state_dict().items()}
        loop.given, loop.noting = {}, True
        work = loop.block(loop.step_seconds * tenth / 10)
        loop.noting = False
        depths.append(work.depth)
        conveyed = work.update(1).deltas
        assert conveyed.keys() == loop.given.keys()
        assert {name for layer in loop.layers[LAYERS - work.depth :] for name in layer.parameters} == conveyed.keys()
        for name, gradient in loop.given.items():
            assert torch.equal(gradient, expected[name])
        for name, value in loop.model.state_dict().items():
            assert torch.equal(value, weights[name]) or name in conveyed
    assert any(0 < depth < LAYERS for depth in depths)


def test_blocks_end_in_time(loop: Loop) -> None:
    for tenth in (4, 6, 8):
        limit = loop.step_seconds * tenth / 10
        works = [loop.block(limit, steps=3) for _ in range(10)]
        assert all(work.interrupted for work in works)
        assert median(work.seconds for work in works) <= 1.05 * limit


def test_a_block_that_is_not_interrupted_waits_for_the_device(loop: Loop) -> None:
    wait_for(cuda())
    work = loop.block(1000.0, steps=10)
    assert (work.steps, work.interrupted) == (10, False)
    assert work.seconds >= 5 * loop.step_seconds  # the time is the device's, not that of giving it work
