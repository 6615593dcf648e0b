"""Reports about folders: of runs, and of comparisons, which hold one run per method and seed."""

from collections.abc import Sequence
from pathlib import Path

from salf.errors import RunFolderError
from salf.report import Figures, figures_of, group_runs, render_report
from salf.runs.atomic import reason_of, write_atomically
from salf.runs.run_files import RunFiles, read_run


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the folders of runs, each once.

    Args:
        folders: Folders of runs, or of comparisons, whose runs are in `METHOD/seed-N`.

    Raises:
        RunFolderError: A folder holds neither.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        try:
            single = RunFiles(folder).experiment.exists()
            runs = [folder] if single else sorted(path.parent for path in folder.glob("*/seed-*/experiment.toml"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot look into the folder {folder}: {reason_of(error)}; choose another") from error
        if not runs:
            raise RunFolderError(
                f"{folder} holds neither a run (experiment.toml) nor a comparison (METHOD/seed-N/experiment.toml); "
                "name a folder that salf run --out or salf compare made"
            )
        found |= {run.resolve(): run for run in runs}
    return [*found.values()]


def write_page(runs: Sequence[Path], file: Path) -> list[Figures]:
    """Write one page about the runs in these folders.

    Args:
        runs: Folders of runs.
        file: Where to write the page, which is HTML.

    Returns:
        The figures in the page, one per group of runs that differ in their seed only.

    Raises:
        RunFolderError: A run cannot be read, the runs do not belong on one page, or the page cannot be written.
    """
    reported = [read_run(run) for run in runs]
    write_atomically(file, render_report(reported).encode())
    return [figures_of(group) for group in group_runs(reported)]
