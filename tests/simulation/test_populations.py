"""The cost of a round depends on its cohort, not on the population."""

import sys

import numpy as np
import pytest
import torch

from salf.bench import Case, memory_cases
from salf.bench.memory import largest_memory
from salf.data import Dataset
from salf.engines.accelerator import CPU
from salf.experiment.experiment import Experiment
from salf.models import Mlp
from salf.simulation.simulator import Simulation


@pytest.mark.slow
@pytest.mark.parametrize("case", memory_cases(CPU), ids=lambda case: case.name)
def test_memory_keeps_to_its_targets(case: Case) -> None:
    figure = case.measure(0.0)
    assert case.is_met(figure.value), figure


def test_only_clients_that_took_part_are_remembered() -> None:
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="this system does not tell a process's largest memory")
def test_memory_is_measured_in_a_separate_process() -> None:
    held = torch.ones(2**28)  # 1 GiB, more than a small simulation takes
    assert largest_memory(10, 10, Mlp(), 4, 100) < held.nbytes
