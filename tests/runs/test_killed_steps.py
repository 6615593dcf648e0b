"""A run that is killed at any of its steps of writing, and resumed, is to the byte the run that was never killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_cases import content

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


PROGRAM = Path(__file__).parents[1] / "cases" / "killed_steps.py"
FILES = [
    ".lock",
    "checkpoint/state.safetensors",
    "experiment.toml",
    "model.safetensors",
    "records.jsonl",
    "report.html",
    "timeline.json",
]


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_step_of_writing_gives_the_same_bytes(stride: int, tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    last = int(done.stdout)
    # Two folders; settings, time-line, records, two checkpoints, model and report, each synced and named.
    assert last >= 16
    undisturbed = content(tmp_path / "undisturbed")
    assert list(undisturbed) == FILES
    for step in range(1, last + 1, stride):
        assert content(tmp_path / f"killed-{step}") == undisturbed, f"killed before step {step}"
