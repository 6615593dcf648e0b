"""How long the command line and the package take to start."""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from salf.bench.case import Case, Figure

_FEWEST = 3
_IMPORT = """if True:
    import time
    import torch
    began = time.perf_counter()
    import salf
    print(time.perf_counter() - began)
"""


def start_cases() -> list[Case]:
    """Return the cases of `salf --help` and `import salf`, each in processes of its own."""
    return [
        Case("start/help", "salf --help, from start to end", 0.5, "≤", "s", partial(_repeated, _help), cpu_only=True),
        Case("start/import", "import salf, after torch", 0.3, "≤", "s", partial(_repeated, _import), cpu_only=True),
    ]


def _repeated(measure: Callable[[], float], seconds: float) -> Figure:
    """Measure several times within so many seconds.

    Args:
        measure: Starts a process, and returns the seconds that count.
        seconds: About how long to measure; three times at least.

    Returns:
        The median, with the number of measurements.
    """
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _FEWEST or time.perf_counter() < end:
        taken.append(measure())
    return Figure(median(taken), {"times": len(taken)})


def _help() -> float:
    """Return the seconds from the start of `salf --help` to its end."""
    began = time.perf_counter()
    _python("-m", "salf", "--help")
    return time.perf_counter() - began


def _import() -> float:
    """Return the seconds that `import salf` takes in a process that has imported torch."""
    return float(_python("-c", _IMPORT))


def _python(*arguments: str) -> str:
    """Run Python on trusted arguments; return what it prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - no user input
