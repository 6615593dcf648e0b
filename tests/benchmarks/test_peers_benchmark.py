"""benchmarks/peers.py: every peer trains on the examples of salf and ends with its loss."""

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
PEERS = BENCHMARK.with_suffix("")
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
    child = PEERS / "child.py"
    options = ["--threads", "1", "--warm-up", "1", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, str(child), function, str(workload), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_salf_and_plain_loops_end_with_the_same_loss(workload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = measured("salf_peer:train", workload)
    assert mine["detail"] == "fused engine"
    assert len(mine["seconds_per_round"]) == ROUNDS - 2  # the first and the last are not timed
    assert mine["loss"] < mine["initial_loss"]
    monkeypatch.syspath_prepend(str(PEERS))
    work = runpy.run_path(str(PEERS / "workload.py"))["Workload"].read(workload)
    assert work.test(work.network()).loss == mine["initial_loss"]
    loops = runpy.run_path(str(PEERS / "loop_peer.py"))
    for name in ("reused", "copied"):
        assert loops[name](work, lambda: None).loss == pytest.approx(mine["loss"], rel=1e-4)
