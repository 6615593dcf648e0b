"""`salf bench`: the performance figures that salf promises, on this machine."""

import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.table import Table
from rich.text import Text

from salf.bench import Case, Figure, all_cases
from salf.cli.console import counted, json_file, print_json, progress_bar, show, table_of, tell
from salf.cli.options import AsJson, names_in, option, path_option
from salf.engines import find_device, title_of
from salf.errors import InvalidSetting
from salf.experiment import did_you_mean
from salf.report import plot_growth, save_figure
from salf.runs import make_folder, write_atomically

CaseNames = Annotated[
    str, option("NAME,…", "Measure these only, or those whose names begin so, such as fused/mlp or round.")
]
ComputeDevice = Annotated[str, option("NAME", "Where to compute: cpu, cuda or, one of several, cuda:N.", "--device")]
MeasuredSeconds = Annotated[float, option("S", "About how long to measure each figure, in seconds.", least=0.0)]
BenchFolder = Annotated[Path | None, path_option("DIR", "Keep bench.json, and a plot of cost against clients.")]


def bench_command(
    only: CaseNames = "",
    device: ComputeDevice = "cpu",
    seconds: MeasuredSeconds = 10.0,
    out: BenchFolder = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast this machine simulates.

    Most figures are ratios, which hardly depend on the machine: two ways of doing the same work are timed in turn, and
    the median of the ratios is printed beside its target. Measure on an idle machine.

    For example: salf bench --only fused,round
    """
    place = find_device(device)
    cases, left_out = _chosen_cases(only, place)
    if not math.isfinite(seconds):
        raise InvalidSetting(f"--seconds is {seconds}; give a number of seconds, such as 10")
    if out is not None:
        make_folder(out)
    figures: dict[str, Figure] = {}
    with progress_bar("bench", len(cases), shown=not as_json) as bar:
        for done, case in enumerate(cases):
            bar.show(done, case.name)
            figures[case.name] = case.measure(seconds)
    result = _bench_json(cases, figures, place, left_out)
    if out is not None:
        _keep_figures(out, result, figures)
    if as_json:
        print_json(result)
        return
    show(_bench_table(cases, figures, place))
    if left_out:
        tell(f"not measured on {place}, because they are about the CPU: {', '.join(left_out)}")
    if out is not None:
        tell(f"kept in {out}")


def _chosen_cases(only: str, device: torch.device) -> tuple[list[Case], list[str]]:
    """Return the cases to measure on a device, and the names of chosen cases that are about the CPU.

    Args:
        only: The names, or beginnings of names, of what to measure, separated by commas; all if it is empty.
        device: Where to compute.

    Raises:
        InvalidSetting: A name is none of a case, nor its beginning.
    """
    cases = all_cases(device)
    wanted = names_in(only)
    known = [case.name for case in cases]
    for name in wanted:
        if not any(one.startswith(name) for one in known):
            hint = did_you_mean(name, known)
            raise InvalidSetting(f"--only names '{name}', which is not measured{hint}; choose from {', '.join(known)}")
    asked = [case for case in cases if case.name.startswith(tuple(wanted or [""]))]
    left_out = [case.name for case in asked if case.cpu_only and device.type != "cpu"]
    return [case for case in asked if case.name not in left_out], left_out


def _keep_figures(folder: Path, result: object, figures: Mapping[str, Figure]) -> None:
    """Write the results, and a plot of the growth with the number of clients if that was measured.

    Args:
        folder: Where to write bench.json, clients.png and clients.svg.
        result: What `_bench_json` returned.
        figures: The figure of each case, by its name.

    Raises:
        RunFolderError: A file cannot be written.
    """
    write_atomically(folder / "bench.json", json_file(result))
    growth = figures.get("growth/mlp")
    if growth is not None:
        details: Any = growth.details
        plot = plot_growth(details["clients"], details["seconds"], "MLP, batch 16, one local step")
        for suffix in (".png", ".svg"):
            save_figure(plot, folder / f"clients{suffix}")


def _bench_json(
    cases: Sequence[Case], figures: Mapping[str, Figure], device: torch.device, left_out: Sequence[str]
) -> dict[str, object]:
    """Return the machine and the figures as what JSON can hold.

    Args:
        cases: What was measured.
        figures: The figure of each case, by its name, in the same order.
        device: Where it was computed.
        left_out: The names of cases that were not measured there.
    """
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": title_of(device),
        },
        "left_out": [*left_out],
        "figures": [
            {
                "name": case.name,
                "what": case.what,
                "value": figure.value,
                "bound": case.bound,
                "target": case.target,
                "unit": case.unit,
                "met": case.is_met(figure.value),
                **figure.details,
            }
            for case, figure in zip(cases, figures.values(), strict=True)
        ],
    }


def _bench_table(cases: Sequence[Case], figures: Mapping[str, Figure], device: torch.device) -> Table:
    """Return the table of figures and targets.

    Args:
        cases: What was measured, a row each.
        figures: The figure of each case, by its name.
        device: Where it was computed; the title names any but the CPU.
    """
    where = "" if device.type == "cpu" else f"{title_of(device)}, "
    threads = counted(torch.get_num_threads(), "thread")
    title = f"{where}{counted(os.cpu_count() or 1, 'core')}, {threads}, torch {torch.__version__}"
    met, missed = Text("met", "green"), Text("missed", "red")
    columns: dict[str, Callable[[Case], str | Text]] = {
        "figure": lambda case: case.name,
        "what": lambda case: case.what,
        "measured": lambda case: (
            f"{figures[case.name].value:{'.0f' if case.unit == 'MiB' else '.3g'}} {case.unit}".strip()
        ),
        "target": lambda case: f"{case.bound} {case.target:g} {case.unit}".strip(),
        "": lambda case: met if case.is_met(figures[case.name].value) else missed,
    }
    table = table_of(title, columns, cases)
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    return table
