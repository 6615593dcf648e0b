"""A run that is killed at any instant and resumed is, to the byte, the run that was never killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from salf.methods import METHODS

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


OFTEN = ("salf", "heterofl", "fedasync", "fedbuff", "salfplus")


@pytest.mark.parametrize("method", METHODS)
def test_runs_killed_again_and_again_end_with_the_same_bytes(method: str, tmp_path: Path) -> None:
    """Methods that hand on more than weights are killed at least ten times, the others three times or so."""
    folders = 4 if method in OFTEN else 1
    program = Path(__file__).parents[1] / "cases" / "lives.py"
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), method, str(folders)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kills"] >= (10 if method in OFTEN else 2)
    for folder in sorted(tmp_path.glob("killed-*")):
        for name in ("model.safetensors", "records.jsonl", "experiment.toml", "report.html"):
            assert (folder / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), folder / name
        assert not list(folder.rglob("*.partial"))
