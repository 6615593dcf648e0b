"""The files of a run's folder, how they are read, and reports about them.

A folder of a comparison holds one folder of a run per method and seed.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from salf.errors import InvalidSetting, RunFolderError, shown
from salf.experiment import Experiment, reasons_in
from salf.methods import METHODS
from salf.records import RoundRecord, TimeLine
from salf.report import Figures, ReportedRun, explanation_of, figures_of, flatten, group_runs, render_report
from salf.runs.atomic import ELSEWHERE, reading, reason_of, write_atomically

_NO_RESULT = ("data.root", "evaluate.target", "expected")  # settings that do not change a run's results
_MOST_NAMED = 5


class RunFiles:
    """The paths of a run's files, which need not exist.

    Args:
        folder: The run's folder.

    Attributes:
        experiment: The complete settings, as TOML.
        records: One JSON object per round, a line each.
        checkpoint: The state after some round, from which the run resumes.
        model: The final model's state dict.
        timeline: Each client's activities in a typical round, as JSON.
        report: The page about the run.

    >>> RunFiles(Path("runs/first")).records.as_posix()
    'runs/first/records.jsonl'
    """

    def __init__(self, folder: Path) -> None:
        self.experiment = folder / "experiment.toml"
        self.records = folder / "records.jsonl"
        self.checkpoint = folder / "checkpoint" / "state.safetensors"
        self.model = folder / "model.safetensors"
        self.timeline = folder / "timeline.json"
        self.report = folder / "report.html"

    def present(self) -> list[Path]:
        """Return the files that exist. Raises `OSError` where the folder cannot be read."""
        return [file for file in vars(self).values() if file.exists()]


def check_folder(folder: Path, experiment: Experiment, *, resume: bool) -> None:
    """Refuse a folder that cannot take a run; change nothing.

    Args:
        folder: The run's folder, which need not exist.
        experiment: What the run is to compute.
        resume: Whether a run that is already there continues.

    Raises:
        RunFolderError: The folder holds a run and `resume` is false, or it holds a run of another experiment.
    """
    files = RunFiles(folder)
    try:
        present = files.present()
    except OSError as error:
        raise RunFolderError(f"cannot look into the folder {folder}: {reason_of(error)}; choose another") from error
    if not present:
        return
    if not resume:
        raise RunFolderError(
            f"{folder} already holds a run; resume it (salf run --resume {folder}; salf compare: add --resume; "
            "Python: resume=True), or choose another folder"
        )
    if files.experiment not in present:
        raise RunFolderError(f"{folder} holds {present[0].name} but no experiment.toml; {ELSEWHERE}")
    differing = _differences(_read_settings(folder), experiment.to_toml())
    if differing:
        raise RunFolderError(
            f"{folder} holds a run of another experiment, in which {'; '.join(differing)}; "
            "resume it with its own settings, or choose another folder"
        )


def read_experiment(folder: Path) -> Experiment:
    """Read the experiment of the run in a folder. Raises `RunFolderError` if there is none."""
    file = RunFiles(folder).experiment
    try:
        return Experiment.load(file)
    except InvalidSetting as error:
        if file.exists():
            raise RunFolderError(f"the experiment of the run in {folder} cannot be read: {error}") from error
        raise RunFolderError(f"{folder} holds no run (there is no {file}); name the folder of a run") from error


def read_records(folder: Path) -> list[RoundRecord]:
    """Read the records of the run in a folder.

    A last line that a crash cut short does not count.

    Raises:
        RunFolderError: The file cannot be read, or is damaged.
    """
    file = RunFiles(folder).records
    with reading(file):
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        records = [RoundRecord.from_json(line.decode()) for line in lines]
        for number, record in enumerate(records, start=1):
            if record.round != number:
                raise ValueError(f"line {number} is not of round {number}")
    return records


def read_run(folder: Path) -> ReportedRun:
    """Read what a report says about the run in a folder, which need not be finished.

    A folder of an earlier version, without a time-line, is read without it.

    Raises:
        RunFolderError: There is no run, no round of it has ended, or a file is damaged.
    """
    settings, records = _read_settings(folder), read_records(folder)
    if not records:
        raise RunFolderError(f"no round of the run in {folder} has ended; wait for the first, then report it")
    file = RunFiles(folder).timeline
    with reading(file, "remove it, and the report shows no time-line"):
        timeline = TimeLine.from_json(file.read_bytes()) if file.exists() else None
        return reported_run(settings, records, timeline)


def reported_run(settings: str, records: Sequence[RoundRecord], timeline: TimeLine | None) -> ReportedRun:
    """Return a run as a report needs it.

    Args:
        settings: The content of `experiment.toml`, with the comments of `Experiment.to_toml`.
        records: One per round that has ended.
        timeline: A typical round, if known.
    """
    method = METHODS.get(tomllib.loads(settings)["method"]["name"])
    explanation = "" if method is None else explanation_of(method)
    return ReportedRun(settings, tuple(records), timeline, explanation, reasons_in(settings))


def _read_settings(folder: Path) -> str:
    """Return the complete settings of the run in a folder, as TOML.

    Where they do not reproduce the run they are not validated: they may name classes that are unknown here.
    """
    file = RunFiles(folder).experiment
    if not read_reasons(folder):
        return read_experiment(folder).to_toml()
    with reading(file):
        text = file.read_text(encoding="utf-8")
        tomllib.loads(text)["method"]["name"]
        return text


def read_reasons(folder: Path) -> tuple[str, ...]:
    """Return why the settings of the run in a folder do not reproduce it, a phrase each; see `Experiment.to_toml`."""
    file = RunFiles(folder).experiment
    return reasons_in(file.read_text(encoding="utf-8", errors="replace")) if file.exists() else ()


def _differences(known: str, wanted: str) -> list[str]:
    """Name the settings that differ and on which results depend; both are TOML."""
    before, after = (flatten(tomllib.loads(settings)) for settings in (known, wanted))
    changed = [
        f"{key} is {_shown(before.get(key))}, not {_shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_NO_RESULT)
    ]
    more = len(changed) - _MOST_NAMED
    return changed if more <= 0 else [*changed[:_MOST_NAMED], f"{more} more settings differ"]


def _shown(value: object) -> str:
    """Write a setting's value, a long one cut short."""
    return "not set" if value is None else shown(value)


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
