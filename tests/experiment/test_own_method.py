"""The example package of an own method, rule and device model: installed as any package, and found by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method"
COMMAND = ["compare", "digits", "--methods", "salf,mine", "--seeds", "1", "--jobs", "1", "--json"]
SETTINGS = ["rounds=2", "data.clients=5", "devices.kind=two-speeds", "devices.slow_seconds=4"]


@pytest.mark.slow
def test_the_example_is_installed_and_compared(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for file in ("pyproject.toml", "own_method.py"):
        (source / file).write_bytes((EXAMPLE / file).read_bytes())
    install = [
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(target),
        str(source),
    ]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    path = os.pathsep.join([str(target), *filter(None, [os.environ.get("PYTHONPATH")])])
    outcome = subprocess.run(
        [sys.executable, "-m", "salf", *COMMAND, *(part for setting in SETTINGS for part in ("--set", setting))],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "mine" in json.dumps(json.loads(outcome.stdout))
