"""A run that is killed at any of its steps of writing, and resumed, is to the byte the run that was never killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_cases import content

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


def test_a_run_killed_at_any_step_of_writing_gives_the_same_bytes(tmp_path: Path) -> None:
    program = Path(__file__).parents[1] / "cases" / "killed_steps.py"
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    # At least: two folders; settings, time-line, records, two checkpoints, model, report, each made sure of and named.
    assert steps >= 16
    undisturbed = content(tmp_path / "undisturbed")
    assert list(undisturbed) == [
        ".lock",
        "checkpoint/state.safetensors",
        "experiment.toml",
        "model.safetensors",
        "records.jsonl",
        "report.html",
        "timeline.json",
    ]
    for step in range(1, steps + 1):
        assert content(tmp_path / f"killed-{step}") == undisturbed, f"killed before step {step}"
