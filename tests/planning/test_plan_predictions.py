"""`salf plan` against runs: depth, empty layers, work kept and round time within 3 %."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from planning_cases import forecast, task_of
from simulator_cases import small_data, small_experiment

from salf.planning import Outlook, outlook_at
from salf.simulation.simulator import Simulation

ROUNDS = 600
COMMON: dict[str, object] = {"rounds": ROUNDS, "data.clients": 12, "client.batch_size": 1, "engine": "fused"}
CASES: dict[str, dict[str, object]] = {
    "uniform": {"devices.kind": "uniform", "devices.stragglers": 0.9},
    "uniform, drawn in each round": {"devices.kind": "uniform", "devices.drawn": "round", "devices.lowest_depth": 0},
    "uniform, persistent": {"devices.kind": "uniform", "devices.drawn": "persistent", "method.deadline": 1.6},
    "graded": {"devices.kind": "graded", "method.deadline": 1.3, "rounds": 30},
    "exponential": {"devices.kind": "exponential", "method.deadline": 0.9},
    "exponential, mostly over early": {"devices.kind": "exponential", "method.deadline": 6.0},
    "exponential, some of many": {
        "devices.kind": "exponential",
        "devices.mean_layer_seconds": 0.2,
        "method.deadline": 0.3,
        "client.cohort": 3,
    },
    "physical": {"devices.kind": "physical", "method.deadline": 0.5},
    "physical, unlike links": {
        "devices.kind": "physical",
        "devices.bandwidth_bits_per_second": 4e4,
        "devices.bandwidth_ratio": 10.9,
        "devices.stragglers": 0.5,
        "devices.jitter": 0.4,
        "method.deadline": 1.2,
    },
    "physical, drawn in each round": {
        "devices.kind": "physical",
        "devices.drawn": "round",
        "devices.stragglers": 0.5,
        "devices.bandwidth_bits_per_second": 1e6,
        "method.deadline": 0.9,
    },
    "physical, some of many": {"devices.kind": "physical", "client.cohort": 4, "method.deadline": 0.35},
    "physical, on and off": {
        "devices.kind": "physical",
        "devices.availability": "on-off",
        "devices.on_seconds": 20.0,
        "devices.off_seconds": 5.0,
        "method.deadline": 3.0,
    },
    "physical, several steps": {
        "devices.kind": "physical",
        "client.local_steps": 2,
        "engine": "stacked",
        "rounds": 300,
    },
}
# Each is a variant of a case that every run of the tests checks.
SLOW = ("exponential, mostly over early", "physical, unlike links", "physical, drawn in each round")


@dataclass(frozen=True)
class Measured:
    """Means over a run."""

    depth: float
    empty: npt.NDArray[np.float64]
    kept: float
    round_seconds: float


def run(simulation: Simulation) -> Measured:
    """Play the run."""
    state = simulation.initial_state()
    records = []
    while state.round < simulation.experiment.rounds:
        state, record = simulation.play(state)
        records.append(record)
    contributors = np.array([record.contributors for record in records])
    kept = [record.work_kept for record in records if record.work_kept is not None]
    return Measured(
        depth=float((contributors.sum(axis=1) / records[0].clients).mean()),
        empty=(contributors == 0).mean(axis=0),
        kept=float(np.mean(kept)),
        round_seconds=records[-1].time_s / len(records),
    )


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_a_run_is_as_planned(case: str) -> None:
    experiment = small_experiment({**COMMON, **CASES[case]})
    simulation = Simulation(experiment, dataset=small_data(120))
    fleet = forecast(experiment, simulation.workload)
    deadline = getattr(experiment.method, "deadline", None) or experiment.devices.typical_seconds(simulation.workload)
    planned: Outlook = outlook_at(fleet, task_of(fleet), deadline)
    measured = run(simulation)
    assert planned.mean_depth == pytest.approx(measured.depth, rel=0.03)
    assert planned.round_seconds == pytest.approx(measured.round_seconds, rel=0.03)
    np.testing.assert_allclose(planned.empty, measured.empty, atol=0.03)
    assert planned.kept == pytest.approx(measured.kept, abs=0.03)
