"""What a round costs depends on who is asked, not on how many might be."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from salf.data import Dataset
from salf.experiment import Experiment
from salf.simulation import Simulation

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="this system does not tell a process's largest memory")


def largest_memory(clients: int, cohort: int, model: str, side: int, examples: int) -> int:
    program = Path(__file__).with_name("population_memory.py")
    arguments = [sys.executable, str(program), str(clients), str(cohort), model, str(side), str(examples)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_hundred_thousand_registered_clients_take_no_memory_to_speak_of() -> None:
    few, many = (largest_memory(clients, 100, "mlp", 4, 100_000) for clients in (100, 100_000))
    assert many - few < 100


def test_a_round_of_a_thousand_clients_fits_two_gibibytes() -> None:
    # 16 examples each of 28 x 28 pixels, through two convolutions: 600 MB of results, were they all kept at once.
    assert largest_memory(1000, 1000, "cnn", 28, 16_000) < 2048


def test_only_who_was_asked_is_remembered() -> None:
    count = 5000
    inputs, labels = torch.randn(count, 1, 2, 2), torch.arange(count) % 3
    dataset = Dataset.from_tensors(inputs, labels, inputs[:9], labels[:9])
    settings = {
        "data.name": "tensors",
        "data.partition": "iid",
        "data.clients": count,
        "client.cohort": 7,
        "model.name": "mlp",
        "method.rule": "memory",
    }
    simulation = Simulation(Experiment.load("digits", **settings), dataset=dataset)
    state, asked = simulation.initial_state(), set()
    for _ in range(6):
        asked |= set(simulation.tasks(state).clients.tolist())
        state, record = simulation.play(state)
        assert record.clients == 7
    assert set(state.observed.to_arrays()["clients"].tolist()) == asked
    assert set(state.memory) <= asked
    assert 7 < len(asked) <= 42
    assert int(state.observed.to_arrays()["rounds"].sum()) == 42
    assert np.all(np.diff(simulation.tasks(state).clients) > 0)
