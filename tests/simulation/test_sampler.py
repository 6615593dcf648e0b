"""What chance decides about a round has an address: it depends on neither the other clients nor the other rounds."""

from typing import Any

import numpy as np
import pytest
from simulator_cases import small_data, small_experiment

from salf.devices import Cohort
from salf.simulation import Simulation

DATA = small_data(examples=150)
SETUPS: dict[str, dict[str, Any]] = {
    "uneven": {"data.size_sigma": 1.0, "client.local_steps": 3},
    "physical": {"client.local_steps": 2, "devices.kind": "physical", "devices.speed_sigma": 1.0},
    "exponential": {"devices.kind": "exponential"},
}


def test_the_draws_of_a_client_do_not_depend_on_the_rest_of_the_cohort() -> None:
    simulation = Simulation(small_experiment({**SETUPS["uneven"], "data.clients": 8}), dataset=DATA)
    experiment = simulation.experiment

    def draws(clients: list[int]) -> dict[int, tuple[Any, ...]]:
        cohort = Cohort(np.array(clients), 8, 3, experiment.seed)
        times = experiment.devices.times(simulation.workload, cohort)
        steps = times.steps_by(1.0)
        tasks = simulation.sampler.tasks(cohort, steps)
        return {
            task.client: (task.batches.tolist(), task.seed, task.num_examples, row.tolist(), late)
            for task, row, late in zip(tasks, steps, times.whole.tolist(), strict=True)
        }

    everyone = draws(list(range(8)))
    for some in ([5], [0, 7], [1, 2, 3, 6]):
        assert draws(some) == {client: everyone[client] for client in some}
    assert len({str(part[0]) for part in everyone.values()}) == 8


def test_every_local_step_draws_a_batch_of_the_clients_own_examples() -> None:
    settings = {"client.batch_size": 8, "client.local_steps": 3, "data.clients": 20, "data.size_sigma": 1.0}
    simulation = Simulation(small_experiment(settings), dataset=DATA)
    cohort = Cohort(np.arange(20), 20, 1, 5)
    sizes = simulation.federation.partition.sizes.tolist()
    assert min(sizes) < 8 < max(sizes)
    layers = len(simulation.layers)
    for task in simulation.sampler.tasks(cohort, np.ones((20, layers), dtype=np.int64)):
        own = sorted(simulation.federation.partition[task.client].tolist())
        batch = min(8, len(own))
        assert task.batches.shape == (3, batch)
        assert task.num_examples == len(own)
        assert set(task.batches.ravel().tolist()) <= set(own)
        if len(own) <= 8:  # each step sees all that the client has
            assert all(sorted(step.tolist()) == own for step in task.batches)
        elif len(own) >= 24:
            assert len(set(task.batches.ravel().tolist())) == 24


@pytest.mark.parametrize("asked", [None, 10])
@pytest.mark.parametrize("setup", SETUPS)
def test_drawing_for_several_rounds_at_once_changes_nothing(setup: str, asked: int | None) -> None:
    some = {} if asked is None else {"client.cohort": asked}
    simulation = Simulation(small_experiment({**SETUPS[setup], "data.clients": 30, **some}), dataset=DATA)
    sampler = simulation.sampler
    for turn in (40, 1, 2, sampler.rounds_ahead, sampler.rounds_ahead + 1):
        drawn, alone = sampler.draw_cohort(turn), sampler.draw_single_cohort(turn)
        assert (drawn.cohort_batch is None, alone.cohort_batch is None, drawn.round) == (False, True, turn)
        assert np.array_equal(drawn.clients, alone.clients)
        steps = np.ones((len(alone.clients), len(simulation.layers)), dtype=np.int64)
        assert np.array_equal(sampler.tasks(drawn, steps).batches, sampler.tasks(alone, steps).batches)
        expected = simulation.experiment.devices.times(simulation.workload, alone)
        for found in (
            sampler.times(simulation.workload, drawn),
            simulation.experiment.devices.times(simulation.workload, drawn),
        ):
            assert np.array_equal(found.ready, expected.ready)
            assert np.array_equal(found.whole, expected.whole)


def test_each_round_draws_a_cohort_without_replacement() -> None:
    simulation = Simulation(small_experiment({"data.clients": 30, "client.cohort": 10}), dataset=DATA)
    drawn = [simulation.sampler.draw_cohort(turn).clients.tolist() for turn in range(1, 200)]
    assert all(len(set(clients)) == 10 and clients == sorted(clients) for clients in drawn)
    frequencies = np.bincount(np.concatenate(drawn), minlength=30) / len(drawn)
    assert abs(frequencies - 1 / 3).max() < 0.12
    assert len({str(clients) for clients in drawn}) == len(drawn)
