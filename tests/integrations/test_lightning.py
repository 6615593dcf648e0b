"""Lightning's trainer under a deadline, with the real library."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Task, mlp_task, parameters_of, same
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset
from virtual_time import Clock, take_time

from salf.errors import InvalidSetting, SalfError
from salf.layers import find_layers
from salf.update import check_update

pytest.importorskip("lightning", reason="Lightning is not installed: pip install 'salf[lightning]'")
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision

from salf.integrations.lightning import DeadlineCallback

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
PASS = 4  # seconds: one for the forward pass and one for each of three layers


class Module(LightningModule):
    def __init__(self, task: Task, *, automatic: bool = True, broken: bool = False) -> None:
        super().__init__()
        self.net, self.task = task.model, task
        self.automatic_optimization, self.broken = automatic, broken

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    def training_step(self, batch: Tensor, place: int) -> Tensor:
        if self.broken:
            raise ZeroDivisionError("of the loop")
        inputs, labels = self.task.batches[place % 4]
        loss = nn.functional.cross_entropy(self.net(inputs), labels)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss


def fit(module: Module, folder: Path, callback: DeadlineCallback | None, **named: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[callback] if callback else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": 1, **named},
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.zeros(20, 1))))
    return trainer


def timed(module: Module) -> Clock:
    clock = Clock()
    take_time(module, find_layers(module), clock.advance)
    return clock


@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_fit_returns_and_the_finished_layers_are_kept(automatic: bool, depth: int, tmp_path: Path) -> None:
    module = Module(mlp_task(), automatic=automatic)
    callback = DeadlineCallback(2 * PASS + 1 + depth, clock=timed(module))
    fit(module, tmp_path, callback, **({"gradient_clip_val": 100.0} if automatic else {}))
    work = callback.work
    assert list(work.layer_steps.values()) == [2] * (3 - depth) + [3] * depth
    check_update(work.update(num_examples=20), find_layers(module), module.state_dict())
    twin = mlp_task()
    naive = SGD(twin.model.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        naive.zero_grad()
        twin.loss(step).backward()  # type: ignore[no-untyped-call]
        if step == 2:
            for layer in find_layers(twin.model)[: 3 - depth]:
                for name in layer.parameters:
                    twin.model.get_parameter(name).grad = None
        naive.step()
    for name, value in parameters_of(module.net).items():
        torch.testing.assert_close(value, twin.model.get_parameter(name), rtol=1e-6, atol=1e-7)


def test_a_round_in_time_equals_one_without_deadline(tmp_path: Path) -> None:
    module, twin = Module(mlp_task()), Module(mlp_task())
    callback = DeadlineCallback(math.inf)
    fit(module, tmp_path, callback, accumulate_grad_batches=4)
    fit(twin, tmp_path, None, accumulate_grad_batches=4)
    assert (callback.work.steps, callback.work.interrupted) == (5, False)
    assert same(parameters_of(module.net), parameters_of(twin.net))


def test_the_passes_of_an_unfinished_group_are_kept(tmp_path: Path) -> None:
    module = Module(mlp_task())
    callback = DeadlineCallback(7 * PASS + 2, clock=timed(module))
    fit(module, tmp_path, callback, accumulate_grad_batches=4)
    assert callback.work.layer_passes == {"net.fc1": 7, "net.fc2": 7, "net.fc3": 8}


class OwnClipping(Module):
    def configure_optimizers(self) -> Optimizer:
        return SGD(self.net.parameters(), lr=0.1)

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: object) -> None:
        self.log("clipped", 1.0)
        self.clip_gradients(optimizer, gradient_clip_val=1e-3, gradient_clip_algorithm="norm")


@pytest.mark.parametrize("scaled", [False, True])
def test_the_step_of_an_unfinished_group_is_clipped(scaled: bool, tmp_path: Path) -> None:
    module = OwnClipping(mlp_task())
    before, callback = parameters_of(module.net), DeadlineCallback(3 * PASS, clock=timed(module))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    plugins = [MixedPrecision("16-mixed" if scaled else "bf16-mixed", "cpu", scaler)]
    fit(module, tmp_path, callback, accumulate_grad_batches=4, plugins=plugins)
    assert callback.work.layer_passes == {"net.fc1": 3, "net.fc2": 3, "net.fc3": 3}
    after = parameters_of(module.net)
    moved = sum(float((value - before[name]).square().sum()) for name, value in after.items()) ** 0.5
    assert moved == pytest.approx(0.1 * 1e-3, rel=1e-2)


def test_the_same_trainer_fits_again(tmp_path: Path) -> None:
    module = Module(mlp_task())
    callback = DeadlineCallback(2 * PASS, clock=timed(module))
    used = fit(module, tmp_path, callback, max_epochs=1000)
    for _ in range(3):
        callback.work.update(num_examples=20)
        used.fit(module, DataLoader(TensorDataset(torch.zeros(20, 1))))
        assert callback.work.steps == 2


def test_the_next_fit_goes_on_with_the_optimizers_state(tmp_path: Path) -> None:
    module, twin = Module(mlp_task()), mlp_task()
    callback = DeadlineCallback(2 * PASS, clock=timed(module))
    for _ in range(2):
        fit(module, tmp_path, callback)
        assert callback.work.steps == 2
        callback.work.update(num_examples=20)
    naive = SGD(twin.model.parameters(), lr=0.1, momentum=0.9)
    for step in (0, 1, 0, 1):
        naive.zero_grad()
        twin.loss(step).backward()  # type: ignore[no-untyped-call]
        naive.step()
    for name, value in parameters_of(module.net).items():
        torch.testing.assert_close(value, twin.model.get_parameter(name), rtol=1e-6, atol=1e-7)


def test_an_error_of_the_loop_passes_and_leaves_nothing(tmp_path: Path) -> None:
    module = Module(mlp_task(), broken=True)
    callback = DeadlineCallback(10.0)
    with pytest.raises(ZeroDivisionError, match="of the loop"):
        fit(module, tmp_path, callback)
    assert torch.autograd.backward.__module__ == "torch.autograd"
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_wrong_use_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="seconds is -1"):
        DeadlineCallback(-1)
    with pytest.raises(SalfError, match="no training has started"):
        _ = DeadlineCallback(1.0).work
