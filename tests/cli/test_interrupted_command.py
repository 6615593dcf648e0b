"""Ctrl-C prints the complete command that resumes, and that command gives what an undisturbed one gives."""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_cases import Called, content, salf, settings, tiny, tiny_run

from salf.cli.console import Bar
from salf.runs.comparison import compare

# The program heeds Ctrl-C even where the tests were started in the background, which ignores it.
PROGRAM = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("salf", run_name="__main__", alter_sys=True)
"""


def resuming(interrupted: Called) -> list[str]:
    """Return the arguments of the command that an interrupted one has printed."""
    assert (interrupted.code, interrupted.out) == (130, "")
    prefix = "salf: interrupted; resume with: salf "
    assert interrupted.err.startswith(prefix)
    return shlex.split(interrupted.err.removeprefix(prefix))


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Interrupt the command at the second round that it plays after the first."""

    def show(bar: Bar, done: int, note: str = "") -> None:
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Bar, "show", show)
    return monkeypatch


def test_a_run_is_resumed_by_its_folder(tmp_path: Path, interrupt: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my run"
    again = resuming(salf("run", *settings(), "--method", "drop", "--out", folder))
    assert again == ["run", "--resume", str(folder)]
    assert resuming(salf(*again)) == again
    interrupt.undo()
    assert salf(*again).code == 0
    tiny_run(tmp_path / "whole", method__name="drop")
    assert content(folder) == content(tmp_path / "whole")


@pytest.mark.parametrize("more", [[], ["--tune", "0.1,0.3"]])
def test_a_comparison_is_resumed_with_all_its_options(
    more: list[str], tmp_path: Path, interrupt: pytest.MonkeyPatch
) -> None:
    interrupt.chdir(tmp_path)
    given = ["compare", "digits", *settings(), "--methods", "salf,drop", "--seeds", "1", "--jobs", "1", *more]
    again = resuming(salf(*given))
    assert again == [*given, "--out", "runs/digits-comparison", "--resume"]
    assert resuming(salf(*again)) == again
    interrupt.undo()
    interrupt.chdir(tmp_path)
    assert salf(*again).code == 0
    if not more:
        compare(tiny(), ["salf", "drop"], 1, tmp_path / "whole")
        assert content(tmp_path / "runs/digits-comparison/drop") == content(tmp_path / "whole/drop")


def test_where_nothing_was_kept_the_command_is_to_be_run_again(interrupt: pytest.MonkeyPatch) -> None:
    result = salf("run", *settings())
    assert (result.code, result.out) == (130, "")
    assert result.err == "salf: interrupted; nothing was kept, so run the same command again\n"


def test_the_real_command_is_interrupted_and_resumed(tmp_path: Path) -> None:
    many = {"rounds": 300, "evaluate__every": 100}
    folder = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, "run", "digits", *settings(**many), "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_rounds(folder, 20, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
    played = (folder / "records.jsonl").read_bytes().count(b"\n")
    assert 20 <= played < 300
    assert salf(*resuming(Called(process.returncode, out, err))).code == 0
    tiny_run(tmp_path / "whole", **many)
    assert content(folder) == content(tmp_path / "whole")


def wait_for_rounds(folder: Path, rounds: int, process: "subprocess.Popen[str]") -> None:
    records, ends = folder / "records.jsonl", time.monotonic() + 600
    while process.poll() is None and time.monotonic() < ends:
        if records.exists() and records.read_bytes().count(b"\n") >= rounds:
            return
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"{rounds} rounds were not played: {process.communicate()}")
