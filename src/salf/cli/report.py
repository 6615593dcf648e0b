"""`salf report`: one page about runs that are kept in folders."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from salf.cli.console import AsJson, counted, finite, given_path, print_json, tell
from salf.report import Figures
from salf.runs import find_runs, write_page

Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", show_default=False)]
Page = Annotated[
    Path | None,
    typer.Option(
        parser=given_path,
        metavar="FILE",
        help="Where to write the page; by default report.html in the folder, or here if they are several.",
    ),
]


def report(folders: Folders, out: Page = None, as_json: AsJson = False) -> None:
    """Write one HTML page about runs: curves, who conveyed what, a round's time-line, figures, settings.

    A DIR is the folder of a run (salf run --out) or of a comparison (salf compare). Runs on a page may differ in
    method, learning rate and seed. The page needs no network and no other file; runs may still be going on.

    For example: salf report runs/digits-comparison
    """
    runs = find_runs(folders)
    file = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    figures = write_page(runs, file)
    if as_json:
        print_json({"page": str(file), "methods": [_as_object(one) for one in figures]})
    else:
        tell(f"{counted(len(runs), 'run')} by {counted(len(figures), 'method')}: {file}")


def _as_object(figures: Figures) -> dict[str, object]:
    return {key: finite(value) if isinstance(value, float) else value for key, value in asdict(figures).items()}
