"""A run that is killed at any instant and resumed is, to the byte, the run that was never killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from salf.methods import METHODS

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")

PROGRAM = Path(__file__).parents[1] / "cases" / "lives.py"
KEEPS_MORE_THAN_WEIGHTS = ("salf", "heterofl", "fedasync", "fedbuff", "salfplus")
OTHERS = tuple(method for method in METHODS if method not in KEEPS_MORE_THAN_WEIGHTS)


def check_survival(folder: Path, methods: tuple[str, ...], runs: int, kills: int) -> None:
    """Kill runs of each method; each must end with the bytes of the run that was not killed."""
    command = [sys.executable, str(PROGRAM), str(folder), str(runs), *methods]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    for method, killed in json.loads(done.stdout).items():
        assert killed >= kills, method
        for run in sorted((folder / method).glob("killed-*")):
            for name in ("model.safetensors", "records.jsonl", "experiment.toml", "report.html"):
                assert (run / name).read_bytes() == (folder / method / "undisturbed" / name).read_bytes(), run / name
            assert not list(run.rglob("*.partial"))


def test_a_synchronous_and_an_asynchronous_run_survive_kills(tmp_path: Path) -> None:
    check_survival(tmp_path, ("salf", "fedbuff"), runs=1, kills=2)


@pytest.mark.slow
def test_runs_of_every_method_survive_kills(tmp_path: Path) -> None:
    check_survival(tmp_path / "more", KEEPS_MORE_THAN_WEIGHTS, runs=3, kills=8)
    check_survival(tmp_path / "others", OTHERS, runs=1, kills=2)
