"""A command that is interrupted, killed and resumed leaves, to the byte, what an undisturbed run leaves."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_cases import INTERRUPTIBLE, content, settings, tiny

from salf.runs.checkpoint import load_checkpoint
from salf.runs.folder import RunFolder
from salf.runs.run import run_experiment

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


class Command:
    """The real command line, playing a run in a folder."""

    def __init__(self, *arguments: str) -> None:
        command = [*INTERRUPTIBLE, "run", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for_rounds(self, folder: Path, rounds: int) -> None:
        began = time.monotonic()
        while self.process.poll() is None and time.monotonic() < began + 600:
            records = folder / "records.jsonl"
            if records.exists() and records.read_bytes().count(b"\n") >= rounds:
                return
            time.sleep(0.01)
        self.process.kill()
        pytest.fail(f"{rounds} rounds were not played: {self.process.communicate()}")

    def end(self, sign: signal.Signals | None = None) -> tuple[int, str, str]:
        if sign is not None:
            self.process.send_signal(sign)
        out, err = self.process.communicate(timeout=600)
        return self.process.returncode, out, err


def test_the_command_is_interrupted_killed_and_resumed(tmp_path: Path) -> None:
    experiment = tiny(rounds=600, evaluate__every=100)
    undisturbed = run_experiment(experiment, tmp_path / "undisturbed")
    folder = tmp_path / "run"

    first = Command("digits", *settings(rounds=600, evaluate__every=100), "--out", str(folder))
    first.wait_for_rounds(folder, 20)
    code, out, err = first.end(signal.SIGINT)
    assert (code, out) == (130, "")
    assert err == "salf: interrupted; a run that is kept in a folder goes on with --resume\n"
    saved = load_checkpoint(folder / "checkpoint" / "state.safetensors")[0].round
    # A round whose record was just written may be without its checkpoint.
    assert 20 <= saved <= len(read_records(folder)) <= saved + 1

    for more in (30, 60):
        killed = Command("--resume", str(folder))
        killed.wait_for_rounds(folder, saved + more)
        assert killed.end(signal.SIGKILL) == (-signal.SIGKILL, "", "")
    code, out, err = Command("--resume", str(folder), "--json").end()
    assert (code, err) == (0, "")
    assert json.loads(out)["accuracy"] == undisturbed.accuracy
    assert content(folder) == content(tmp_path / "undisturbed")
