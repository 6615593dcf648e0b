"""benchmarks/peers.py: every peer is given what salf trains on, and ends where salf ends."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salf
from salf import data
from salf.simulation.simulator import Simulation

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "peers.py"
ROUNDS = 4


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "workload.npz"
    runpy.run_path(str(BENCHMARK))["_write_workload"](data.load("digits"), ROUNDS, path)
    return path


def test_the_examples_are_those_that_salf_draws(workload: Path) -> None:
    settings = {"rounds": ROUNDS, "data.partition": "iid", "client.batch_size": 16}
    simulation = Simulation(salf.Experiment.load("digits", **settings))
    state = simulation.initial_state()
    with np.load(workload) as arrays:
        assert arrays["batches"].shape == (ROUNDS, 30, 16)
        for batches in arrays["batches"]:
            assert np.array_equal(simulation.tasks(state).batches[:, 0], batches)
            state, _ = simulation.play(state)


def measured(function: str, workload: Path) -> dict[str, Any]:
    child = BENCHMARK.with_suffix("") / "child.py"
    options = ["--threads", "1", "--warm-up", "1", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, str(child), function, str(workload), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_salf_and_plain_loops_end_with_the_same_loss(workload: Path) -> None:
    mine, *others = (measured(name, workload) for name in ("salf_peer:train", "loop_peer:reused", "loop_peer:copied"))
    assert mine["detail"] == "fused engine"
    assert len(mine["seconds_per_round"]) == ROUNDS - 2  # the first and the last are not timed
    assert mine["loss"] < mine["initial_loss"]
    for other in others:
        assert other["initial_loss"] == mine["initial_loss"]
        assert other["loss"] == pytest.approx(mine["loss"], rel=1e-4)
