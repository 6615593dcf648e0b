"""Outputs that are closed, full, or know few letters."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What every command does around its work, without the import of a real one.
PRINT = """
from salf.cli.console import mistakes_reported, tell
with mistakes_reported():
    tell("95.7 % ± 1.0")
"""


def begin(output: int, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PRINT]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, env={**os.environ, **environment})


def end_of(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes | None]:
    """Return how a command ended: its exit status, what it complained about, and what it printed."""
    with process:
        text, errors = process.communicate(timeout=600)
        return process.returncode, errors, text


def is_always_full(device: str) -> bool:
    """Return whether a device never has room; in some containers a file stands in its place."""
    try:
        full = os.open(device, os.O_WRONLY)
    except FileNotFoundError:
        return False
    try:
        os.write(full, b"x")
    except OSError as error:
        return error.errno == errno.ENOSPC
    finally:
        os.close(full)
    return False


def test_an_output_that_no_process_reads_ends_the_command_silently() -> None:
    gone, end = os.pipe()
    os.close(gone)
    process = begin(end)
    os.close(end)
    assert end_of(process) == (1, b"", None)


def test_a_full_disk_is_one_line() -> None:
    if not is_always_full("/dev/full"):
        pytest.skip("this system has no device that is always full")
    with Path("/dev/full").open("w") as full:
        process = begin(full.fileno())
    assert end_of(process) == (2, b"salf: No space left on device\n", None)


def test_an_output_that_knows_few_letters_shows_question_marks() -> None:
    assert end_of(begin(subprocess.PIPE, PYTHONIOENCODING="ascii")) == (0, b"", b"95.7 % ? 1.0\n")
