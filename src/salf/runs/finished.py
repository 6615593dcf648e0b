"""Finished runs, read from their folders without playing or loading anything else."""

from pathlib import Path

from salf.experiment import Experiment
from salf.participation import starving
from salf.runs.checkpoint import load_observed
from salf.runs.run import Run
from salf.runs.run_files import RunFiles, read_run


def read_finished_run(folder: Path, experiment: Experiment) -> Run | None:
    """Return the run in a folder if all of it was written, None otherwise.

    Args:
        folder: The run's folder, which need not exist.
        experiment: The run's experiment; `check_folder` has compared it with the folder's.

    Raises:
        RunFolderError: A file of the run is damaged.
    """
    files = RunFiles(folder)
    if not all(file.exists() for file in (files.checkpoint, files.timeline, files.model, files.report)):
        return None
    # The page is written last; an older one comes from `salf report`, before the run was finished.
    if files.report.stat().st_mtime_ns < files.model.stat().st_mtime_ns:
        return None
    reported, (played, observed) = read_run(folder), load_observed(files.checkpoint)
    records = reported.records
    if not len(records) == played == experiment.rounds:
        return None
    return Run(experiment, records, folder, starving(observed, reported.layers, records[-1].clients))
