"""One run of an experiment, kept in a folder or not."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from salf.data import Dataset
from salf.engines import Engine, Training
from salf.experiment import Experiment
from salf.methods import Method
from salf.participation import Starving, starving
from salf.records import RoundRecord, final_accuracy
from salf.runs.checkpoint import load_observed
from salf.runs.folder import RunFolder
from salf.runs.run_files import RunFiles, read_run
from salf.simulation import ServerState, Simulation, with_method


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        experiment: What was run.
        records: One per round.
        folder: Where the run was kept, if it was.
        starving: The layers that starve at the end of the run, input to output.

    >>> run = run_experiment(Experiment.load("digits", rounds=2))
    >>> len(run.records), run.time_s, run.folder
    (2, 2.0, None)
    """

    experiment: Experiment
    records: tuple[RoundRecord, ...]
    folder: Path | None = None
    starving: tuple[Starving, ...] = ()

    @property
    def accuracy(self) -> float:
        """The final test accuracy, between 0 and 1."""
        return final_accuracy(self.records)

    @property
    def time_s(self) -> float:
        """The virtual time at the end."""
        return self.records[-1].time_s


def run_experiment(
    experiment: Experiment,
    out: Path | str | None = None,
    resume: bool = False,  # noqa: FBT001, FBT002 - part of the contract of names
    *,
    method: Method | None = None,
    watch: Callable[[RoundRecord], None] | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    checkpoint_seconds: float = 2.0,
    build_engine: Callable[[Training], Engine] | None = None,
) -> Run:
    """Run an experiment, and keep it in a folder if one is given.

    Args:
        experiment: What to run.
        out: The folder; None keeps nothing.
        resume: Continue a run that was interrupted in that folder, or start it if its first round had not ended.
        method: A method that replaces the experiment's.
        watch: Is called with every record, those of earlier rounds included.
        model: A model that replaces the experiment's; it is copied, never changed.
        dataset: Data that replaces the experiment's.
        checkpoint_seconds: How much work, in seconds of real time, a crash may cost. It costs more where saving would
            otherwise take over a tenth of the time.
        build_engine: Builds an engine that the experiment cannot choose by itself.

    Raises:
        RunFolderError: The folder cannot be written, is in use by another process, already holds a run, or holds one of
            another experiment or on other data.
        SalfError: As for `simulate`.

    Warns:
        StarvationWarning: A layer is sent by hardly any client, or by always the same ones.

    >>> run = run_experiment(Experiment.load("digits", rounds=2, **{"data.clients": 4}))
    >>> len(run.records), run.time_s
    (2, 2.0)
    """
    experiment = with_method(experiment, method)
    prepare = partial(Simulation, experiment, model=model, dataset=dataset, build_engine=build_engine)
    if out is None:
        simulation = prepare()
        return _finish_rounds(simulation, simulation.initial_state(), [], watch)
    given = {"model": model, "data": dataset}
    reasons = [f"{name} was given in Python" for name, value in given.items() if value is not None]
    with RunFolder(
        Path(out), experiment, resume=resume, checkpoint_seconds=checkpoint_seconds, unreproducible=reasons
    ) as folder:
        simulation = prepare()
        folder.keep_timeline(simulation)
        state, records = folder.restore(simulation.initial_state(), simulation.federation.dataset)
        return _finish_rounds(simulation, state.to(simulation.federation.device), records, watch, folder)


def read_finished_run(folder: Path, experiment: Experiment) -> Run | None:
    """Return the run in a folder if all of it was written, None otherwise; nothing is played.

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


def _finish_rounds(
    simulation: Simulation,
    start: ServerState,
    records: list[RoundRecord],
    watch: Callable[[RoundRecord], None] | None,
    folder: RunFolder | None = None,
) -> Run:
    """Play the rounds after the state `start`, save and watch them, and return the whole run."""
    watched = watch or (lambda _: None)
    for record in records:
        watched(record)
    state = start
    for state, record in simulation.run(start):
        records.append(record)
        if folder is not None:
            folder.append(record, state)
        watched(record)
    if folder is not None:
        folder.finish(simulation, state, records)
    starved = starving(state.observed, simulation.layers.names, records[-1].clients)
    return Run(simulation.experiment, tuple(records), None if folder is None else folder.path, starved)
