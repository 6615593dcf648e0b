"""One run of an experiment, kept in a folder or not."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from salf.data import Dataset
from salf.engines import Engine, Training
from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.participation import StarvationMonitor, Starving, starving
from salf.records import RoundRecord, final_accuracy
from salf.runs.folder import RunFolder
from salf.simulation import ServerState, Simulation


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        experiment: What was run.
        records: One per round.
        folder: Where the run was kept, if it was.
        starving: The layers that starve at the end of the run, input to output.
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
    watch: Callable[[RoundRecord], None] | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    checkpoint_seconds: float = 2.0,
    build_engine: Callable[[Training], Engine] | None = None,
) -> Run:
    """Run an experiment, keeping it in the folder `out` if one is given. Warns as `simulate` does.

    `resume` goes on with a run that was interrupted in that folder, or starts it if it had not got that far. `watch` is
    called with every record, those of earlier rounds included. A crash costs the work of `checkpoint_seconds` of real
    time at most, or more where saving takes so long that a tenth of the time would go into it. `build_engine` makes an
    engine that the experiment cannot choose by itself. Raises `RunFolderError`
    when the folder cannot be written, is in use by another process, already holds a run, or holds one of another
    experiment or on other data.

    >>> run = run_experiment(Experiment.load("digits", rounds=2, **{"data.clients": 4}))
    >>> len(run.records), run.time_s
    (2, 2.0)
    """
    if out is None:
        simulation = Simulation(experiment, model=model, dataset=dataset, build_engine=build_engine)
        return _play(simulation, simulation.initial_state(), [], watch)
    with RunFolder.open(Path(out), experiment, resume=resume, checkpoint_seconds=checkpoint_seconds) as folder:
        simulation = Simulation(experiment, model=model, dataset=dataset, build_engine=build_engine)
        folder.keep_timeline(simulation)
        state, records = folder.restore(simulation.initial_state(), simulation.federation.dataset)
        return _play(simulation, state.to(simulation.federation.device), records, watch, folder)


def _play(
    simulation: Simulation,
    state: ServerState,
    records: list[RoundRecord],
    watch: Callable[[RoundRecord], None] | None,
    folder: RunFolder | None = None,
) -> Run:
    tell, hunger = watch or _ignore, StarvationMonitor(simulation.layers.names)
    for record in records:
        tell(record)
    while state.round < simulation.experiment.rounds:
        state, record = simulation.play(state)
        if not math.isfinite(record.time_s):
            raise InvalidSetting(f"round {record.round} would never end: choose faster devices, or a shorter deadline")
        records.append(record)
        if folder is not None:
            folder.append(record, state)
        tell(record)
        hunger.warn(state.round, state.observed, record.clients)
    if folder is not None:
        folder.finish(simulation, state, records)
    return Run(
        simulation.experiment,
        tuple(records),
        None if folder is None else folder.path,
        starving(state.observed, simulation.layers.names, records[-1].clients),
    )


def _ignore(_: RoundRecord) -> None:
    """Watch nothing."""
