"""The setting `device`: what it may be, and that nothing begins on one that is not here."""

import pytest
import torch
from simulator_cases import built, small_data, small_experiment

from salf import simulate
from salf.engines.accelerator import CPU, draw_states, find_device, fork_rng
from salf.errors import InvalidSetting
from salf.experiment.experiment import Experiment


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_that_compute_are_settings_like_any_other(name: str) -> None:
    experiment = Experiment.load("digits", device=name)
    assert experiment.device == name
    assert Experiment.parse({"device": name}, "here").device == name
    assert f'device = "{name}"' in experiment.to_toml()


@pytest.mark.parametrize("name", ["", "meta", "gpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:01", "mps", "cuda\n"])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        Experiment.load("digits", device=name)
    assert f"device is {name!r}; choose one of cpu, cuda, cuda:N" in str(caught.value)
    with pytest.raises(InvalidSetting, match="choose one of cpu, cuda, cuda:N"):
        find_device(name)


def test_a_number_is_no_device() -> None:
    with pytest.raises(InvalidSetting, match="device is 0; choose text"):
        Experiment.load("digits", device=0)


def test_the_default_is_the_cpu() -> None:
    assert Experiment().device == "cpu"
    assert find_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_without_cuda_nothing_begins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidSetting) as caught:
        next(simulate(Experiment.load("digits", device=name)))
    assert str(caught.value) == (
        f"device is '{name}', but torch finds no CUDA device here; choose 'cpu', or install torch for CUDA"
    )


def test_a_device_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    for name in ("cuda:2", "cuda:1000000"):
        with pytest.raises(InvalidSetting) as caught:
            find_device(name)
        assert str(caught.value) == (
            f"device is '{name}', but the CUDA devices here are numbered from 0 to 1; choose one of those"
        )


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="the model has parameters without values, on the device 'meta'"):
        next(simulate(small_experiment(), model=built("mlp").to("meta"), dataset=small_data()))


def test_what_is_drawn_apart_leaves_no_trace() -> None:
    before = draw_states(CPU)
    with fork_rng(CPU, seed=3):
        first = torch.rand(4)
    assert all(map(torch.equal, before, draw_states(CPU)))
    with fork_rng(CPU):
        torch.rand(4)
        assert not all(map(torch.equal, before, draw_states(CPU)))
    assert all(map(torch.equal, before, draw_states(CPU)))
    assert torch.equal(first, torch.rand(4, generator=torch.Generator().manual_seed(3)))
