"""`salf report`: one page about runs that are kept in folders."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from salf.cli.console import counted, print_json, tell
from salf.cli.options import AsJson, path_option
from salf.runs import find_runs, write_page

Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", show_default=False)]
PageFile = Annotated[
    Path | None,
    path_option("FILE", "The page; by default report.html in the folder, or in this folder if several are given."),
]


def report_command(folders: Folders, out: PageFile = None, as_json: AsJson = False) -> None:
    """Write one HTML page about runs.

    It shows accuracy over time, which layers clients sent, a typical round, figures and settings. A DIR is the folder
    of a run (salf run --out) or of a comparison (salf compare); runs need not be finished. Runs that differ in their
    seed only are averaged; other settings that differ are named. The page needs no network and no other file.

    For example: salf report runs/digits-comparison
    """
    runs = find_runs(folders)
    file = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    figures = write_page(runs, file)
    if as_json:
        print_json({"page": str(file), "methods": [asdict(one) for one in figures]})
    else:
        tell(f"report on {counted(len(runs), 'run')} ({', '.join(one.method for one in figures)}): {file}")
