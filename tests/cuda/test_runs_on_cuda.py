"""Whole runs on a CUDA device: what they have in common with those on the CPU, and how they go on after a crash."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cuda_cases import MODELS, NEEDS_CUDA, QUIET, assert_states_close, cuda, full_precision, small_data
from safetensors.torch import load_file
from torch import Tensor, nn

from salf import simulate
from salf.engines.accelerator import CPU
from salf.errors import InvalidSetting, RunFolderError
from salf.experiment.experiment import Experiment
from salf.models import build
from salf.records.rounds import RoundRecord
from salf.runs.checkpoint import load_checkpoint, save_checkpoint
from salf.runs.run import run_experiment
from salf.simulation.simulator import Simulation

pytestmark = [NEEDS_CUDA, QUIET, pytest.mark.filterwarnings("ignore::salf.participation.StarvationWarning")]
exact = pytest.fixture(autouse=True)(full_precision)
ROUNDS = 8
# Methods and settings by which every part of the state is used.
RUNS: dict[str, dict[str, object]] = {
    "salf": {},
    "plain": {"engine": "plain", "client.momentum": 0.9, "client.local_steps": 2},
    "stacked": {"engine": "stacked", "client.local_steps": 2, "client.cohort": 12},
    "cnn": {"model.name": "cnn", "model.kernel": 3, "model.padding": 1},
    "transformer": {"model.name": "transformer", "model.width": 8, "model.depth": 1, "model.heads": 2},
    "inverse-probability": {"method.rule": "inverse-probability"},
    "remembering": {"method.name": "memory"},
    "adam": {"server.optimizer": "adam", "server.lr": 0.03},
    "fedprox": {"method.name": "fedprox"},
    "fednova": {"method.name": "fednova", "client.local_steps": 2},
    "timelyfl": {"method.name": "timelyfl"},
    "salfplus": {"method.name": "salfplus"},
    "heterofl": {"method.name": "heterofl"},
    "heterofl-cnn": {"method.name": "heterofl", "model.name": "cnn", "model.kernel": 3, "model.padding": 1},
    "fedasync": {"method.name": "fedasync"},
    "fedbuff": {"method.name": "fedbuff"},
}


def experiment(name: str, device: str, **more: object) -> Experiment:
    settings = {"rounds": ROUNDS, "evaluate.every": 4, "device": device, **RUNS[name], **more}
    return Experiment.load("digits", **settings)


def facts(records: list[RoundRecord] | tuple[RoundRecord, ...]) -> list[object]:
    """What rounding must not change."""
    return [
        (one.round, one.time_s, one.deadline_s, one.clients, one.contributors, one.depths, one.bytes_up, one.engine)
        for one in records
    ]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_that_on_the_cpu_but_for_rounding(name: str) -> None:
    here, there = (run_experiment(experiment(name, device)) for device in ("cpu", "cuda"))
    assert facts(there.records) == facts(here.records)
    assert there.accuracy == pytest.approx(here.accuracy, abs=0.02)
    for one, other in zip(there.records, here.records, strict=True):
        assert (one.loss is None) == (other.loss is None)
        if one.loss is not None:
            assert one.loss == pytest.approx(other.loss, rel=1e-2)


def test_the_model_learns_on_the_device() -> None:
    assert run_experiment(experiment("salf", "cuda", rounds=100)).accuracy > 0.8


class Killed(Exception):
    """What interrupts a run."""


def interrupt(record: RoundRecord) -> None:
    if record.round == 5:
        raise Killed


@pytest.mark.parametrize("name", ["salf", "remembering", "adam", "timelyfl", "heterofl", "fedbuff"])
def test_an_interrupted_run_goes_on(name: str, tmp_path: Path) -> None:
    asked = experiment(name, "cuda")
    whole = run_experiment(asked, tmp_path / "whole")
    with pytest.raises(Killed):
        run_experiment(asked, tmp_path / "part", watch=interrupt)
    assert load_checkpoint(tmp_path / "part" / "checkpoint" / "state.safetensors")[0].round == 5
    resumed = run_experiment(asked, tmp_path / "part", resume=True)
    assert facts(resumed.records) == facts(whole.records)
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("part", "whole"))
    assert_states_close(one, other, 1e-4)


@pytest.mark.parametrize("name", ["remembering", "adam", "fedbuff"])
def test_a_checkpoint_holds_the_state_and_comes_back_to_the_device(name: str, tmp_path: Path) -> None:
    simulation = Simulation(experiment(name, "cuda"))
    state = simulation.initial_state()
    for _ in range(3):
        state, _record = simulation.play(state)
    save_checkpoint(tmp_path / "state", state)
    again = load_checkpoint(tmp_path / "state")[0].to(cuda())
    assert all(value.device == cuda() for value in tensors(again))
    assert all(torch.equal(one, other) for one, other in zip(tensors(again), tensors(state), strict=True))


def tensors(state: object) -> Iterator[Tensor]:
    """Yield all tensors in a state, by the order of their names."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (tuple, list)):
        for value in state:
            yield from tensors(value)
    elif hasattr(state, "items"):
        for _, value in sorted(state.items()):
            yield from tensors(value)
    elif hasattr(state, "__dataclass_fields__"):
        for name in sorted(state.__dataclass_fields__):
            yield from tensors(getattr(state, name))


def test_another_device_is_another_experiment(tmp_path: Path) -> None:
    run_experiment(experiment("salf", "cuda", rounds=1), tmp_path)
    with pytest.raises(RunFolderError, match="device is 'cuda', not 'cpu'"):
        run_experiment(experiment("salf", "cpu", rounds=1), tmp_path, resume=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_data_and_model_may_lie_anywhere(device: str) -> None:
    settings = {"data.name": "tensors", "data.clients": 6, "client.batch_size": 4, "rounds": 3, "device": device}
    asked = Experiment.load("digits", **settings)
    found = []
    for data_at, model_at in ((CPU, CPU), (cuda(), CPU), (CPU, cuda()), (cuda(), cuda())):
        model = build(MODELS["mlp"], (1, 8, 8), 4, seed=1).to(model_at)
        found.append(list(simulate(asked, model=model, dataset=small_data(data_at))))
        assert next(model.parameters()).device == model_at
    assert all(facts(records) == facts(found[0]) for records in found)
    assert {records[-1].accuracy for records in found} == {found[0][-1].accuracy}


class Elsewhere(nn.Module):
    """Makes a tensor on the CPU, whatever its inputs are on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(x.flatten(1) * torch.ones(64))
        return scores


def test_a_model_that_computes_elsewhere_is_refused() -> None:
    settings = {"data.name": "tensors", "data.clients": 6, "client.batch_size": 4, "device": "cuda"}
    with pytest.raises(InvalidSetting, match="on which the model cannot compute"):
        next(simulate(Experiment.load("digits", **settings), model=Elsewhere(), dataset=small_data()))


def test_a_device_beyond_the_last_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="device is 'cuda:99', but the CUDA devices here are numbered from 0 to"):
        next(simulate(experiment("salf", "cuda:99")))
