"""Reports about folders: those of runs, and those of comparisons, which hold a run per method and seed."""

from collections.abc import Sequence
from pathlib import Path

from salf.errors import RunFolderError
from salf.report import Figures, figures_of, group_runs, render_report
from salf.runs.atomic import write_atomically
from salf.runs.folder import RunFolder


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the folders of runs among `folders`, and in those that hold a comparison (METHOD/seed-N), each once.

    Raises `RunFolderError` for a folder with neither.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        try:
            single = (folder / "experiment.toml").exists()
            runs = [folder] if single else sorted(path.parent for path in folder.glob("*/seed-*/experiment.toml"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot look into the folder {folder}: {error}; choose another") from error
        if not runs:
            raise RunFolderError(
                f"{folder} holds neither a run (experiment.toml) nor a comparison (METHOD/seed-N/experiment.toml); "
                "name a folder that salf run --out or salf compare has made"
            )
        found |= {run.resolve(): run for run in runs}
    return [*found.values()]


def write_page(runs: Sequence[Path], file: Path) -> list[Figures]:
    """Write the page about the runs in these folders to `file`, and return the figures in it.

    Raises `RunFolderError` if a run cannot be read, they are not of one experiment, or the page cannot be written.
    """
    reported = [RunFolder.read(run) for run in runs]
    write_atomically(file, render_report(reported).encode())
    return [figures_of(group) for group in group_runs(reported)]
