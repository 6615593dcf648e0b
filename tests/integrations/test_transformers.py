"""Rounds of `transformers.Trainer` under a deadline, with the real library."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import parameters_of, same
from torch import Tensor, nn
from torch.optim import SGD
from virtual_time import Clock, take_time

from salf.errors import InvalidSetting
from salf.layers import find_layers
from salf.update import check_update

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'salf[transformers]'")
pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install 'salf[transformers]'")
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from salf.integrations import transformers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        row = (torch.arange(8) * (place + 1)) % 16
        return {"input_ids": row, "labels": row}


class Ordered(Trainer):
    def _get_train_sampler(self, *_: object) -> Any:
        return torch.utils.data.SequentialSampler(Rows())


def gpt2() -> Any:
    torch.manual_seed(0)
    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **sizes))


def trainer(model: nn.Module, folder: Path, passes: int = 1, optimizer: Any = None) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=passes,
        num_train_epochs=3,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    optimizer = optimizer or SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Ordered(model=model, args=arguments, train_dataset=Rows(), optimizers=(optimizer, None))


def timed(model: nn.Module) -> tuple[Any, Clock]:
    clock = Clock()
    example = {name: value[None] for name, value in Rows()[0].items()}
    layers = find_layers(model, example, group=lambda name: ".".join(name.split(".")[:3]))
    take_time(model, layers, clock.advance)
    return layers, clock


@pytest.mark.parametrize("cut", [2, 5, 8, 11])
def test_train_returns_and_the_finished_layers_are_kept(cut: int, tmp_path: Path) -> None:
    model = gpt2()
    layers, clock = timed(model)
    used, whole = trainer(model, tmp_path), 1 + len(layers)
    with transformers.deadline(used, whole + cut, layers=layers, clock=clock) as work:
        result = used.train()
    assert result.training_loss > 0
    steps, rest = divmod(whole + cut, whole)
    depth = max(0, rest - 1)
    assert list(work.layer_steps.values()) == [steps] * (len(layers) - depth) + [steps + 1] * depth
    check_update(work.update(num_examples=64), layers, model.state_dict())
    assert [type(callback).__name__ for callback in used.callback_handler.callbacks].count("_StopInTime") == 0


def test_a_round_in_time_equals_one_without_deadline(tmp_path: Path) -> None:
    model, twin = gpt2(), gpt2()
    used, plain = trainer(model, tmp_path / "a", passes=4), trainer(twin, tmp_path / "b", passes=4)
    with transformers.deadline(used, 1000.0) as work:
        used.train()
    plain.train()
    assert (work.interrupted, work.steps) == (False, 24)
    assert same(parameters_of(model), parameters_of(twin))


@pytest.mark.parametrize("passes", [4, 16])
def test_the_passes_of_an_unfinished_group_are_kept(passes: int, tmp_path: Path) -> None:
    model = gpt2()
    layers, clock = timed(model)
    before, whole = parameters_of(model), 1 + len(layers)
    used = trainer(model, tmp_path, passes)
    with transformers.deadline(used, 3 * whole, layers=layers, clock=clock) as work:
        used.train()
    assert set(work.layer_passes.values()) == {3}
    assert set(work.layer_steps.values()) == {1}
    assert not same(before, parameters_of(model))


@pytest.mark.parametrize("done", [3, 7])
def test_the_step_of_an_unfinished_group_is_clipped(done: int, tmp_path: Path) -> None:
    model = gpt2()
    layers, clock = timed(model)
    before = parameters_of(model)
    used = trainer(model, tmp_path, 4, SGD(model.parameters(), lr=0.1))
    used.args.max_grad_norm = 1e-3
    with transformers.deadline(used, done * (1 + len(layers)), layers=layers, clock=clock) as work:
        used.train()
    assert set(work.layer_steps.values()) == {-(-done // 4)}
    moved = sum(float((value - before[name]).square().sum()) for name, value in parameters_of(model).items()) ** 0.5
    assert 0 < moved <= 0.1 * 1e-3 * -(-done // 4) * 1.001


def test_the_next_round_goes_on_with_the_optimizer_of_the_trainer(tmp_path: Path) -> None:
    model = gpt2()
    layers, clock = timed(model)
    used, steps = trainer(model, tmp_path), []
    used.optimizer = None  # the trainer makes one, AdamW, which counts its steps
    for _ in range(3):
        with transformers.deadline(used, 3.0 * (1 + len(layers)), layers=layers, clock=clock) as work:
            used.train()
        assert work.steps == 3
        work.update(num_examples=64)
        steps.append(int(used.optimizer.state[model.get_parameter("transformer.ln_f.weight")]["step"]))
    assert steps == [3, 6, 9]


def test_what_is_no_trainer_is_refused() -> None:
    with (
        pytest.raises(InvalidSetting, match="trainer is of type GPT2LMHeadModel; give a"),
        transformers.deadline(gpt2(), 1.0),
    ):
        pass
