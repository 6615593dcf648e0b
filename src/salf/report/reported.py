"""What a report is made from: runs, and the groups of runs that differ in nothing but their seed."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from salf.errors import RunFolderError
from salf.records import RoundRecord, TimeLine

# What may differ within a page. The others have no effect on a run's result, or none but by rounding.
_OWN = ("method.", "client.lr", "seed", "engine", "data.root", "evaluate.target", "expected.")


@dataclass(frozen=True)
class ReportedRun:
    """One run: its complete settings as TOML, one record per round that has ended, and its typical round if known.

    Raises `RunFolderError` if there are no records, or they are of models with different numbers of layers.
    """

    settings: str
    records: tuple[RoundRecord, ...]
    timeline: TimeLine | None = None

    def __post_init__(self) -> None:
        depths = {len(record.contributors) for record in self.records}
        if len(depths) != 1:
            raise RunFolderError("the records are not those of one run: their numbers of layers differ")
        if self.timeline is not None and {len(self.timeline.layers)} != depths:
            raise RunFolderError("the time-line is not that of this run: it has another number of layers")

    @cached_property
    def flat(self) -> dict[str, object]:
        """The settings under their dotted names."""
        return flatten(tomllib.loads(self.settings))

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.flat["name"])

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.flat["method.name"])

    @property
    def seed(self) -> int:
        """The seed."""
        return int(str(self.flat["seed"]))

    @property
    def planned(self) -> int:
        """How many rounds the experiment has."""
        return int(str(self.flat["rounds"]))

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, input to output; their numbers from 1 where the names are not known."""
        if self.timeline is not None:
            return self.timeline.layers
        return tuple(str(number + 1) for number in range(len(self.records[0].contributors)))


@dataclass(frozen=True)
class Group:
    """The runs of one method with the same settings, one per seed; `label` tells it from the page's other groups."""

    label: str
    runs: tuple[ReportedRun, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(run.seed for run in self.runs)

    @property
    def curves(self) -> list[tuple[RoundRecord, ...]]:
        """The records of each run."""
        return [run.records for run in self.runs]

    @property
    def is_finished(self) -> bool:
        """Whether each run has all of its rounds."""
        return all(len(run.records) >= run.planned for run in self.runs)


def group_runs(runs: Sequence[ReportedRun]) -> tuple[Group, ...]:
    """Put together what differs in its seed only, in the order in which the first of each is given.

    Raises `RunFolderError` if runs differ in more than seed, method and learning rate, or one is given twice.
    """
    if not runs:
        raise RunFolderError("there are no runs to report")
    common = [{key: value for key, value in run.flat.items() if not key.startswith(_OWN)} for run in runs]
    differing = sorted(key for key in set().union(*common) if any(one.get(key) != common[0].get(key) for one in common))
    if differing:
        raise RunFolderError(
            f"these are runs of different experiments ({', '.join(differing)} differ); a page shows runs that differ "
            "in seed, method and learning rate only: report the others on a page of their own"
        )
    found: dict[str, list[ReportedRun]] = {}
    for run in runs:
        found.setdefault(repr(sorted(_identity(run).items())), []).append(run)
    for same in found.values():
        seeds = [run.seed for run in same]
        if len(set(seeds)) < len(seeds):
            raise RunFolderError(f"the run of {same[0].method} with seed {max(seeds, key=seeds.count)} is given twice")
    firsts = [same[0] for same in found.values()]
    return tuple(
        Group(_label(same[0], firsts), tuple(sorted(same, key=lambda run: run.seed))) for same in found.values()
    )


def _identity(run: ReportedRun) -> dict[str, object]:
    """Return the settings in which groups differ."""
    return {key: value for key, value in run.flat.items() if key.startswith(("method.", "client.lr"))}


def _label(run: ReportedRun, all_runs: Iterable[ReportedRun]) -> str:
    """Name a group by its method and, where others use that, too, by the settings in which they differ."""
    others = [_identity(other) for other in all_runs if other.method == run.method]
    own = _identity(run)
    keys = sorted(key for key in set().union(*others) if any(other.get(key) != own.get(key) for other in others))
    return " · ".join([run.method, *(f"{key} = {own.get(key, 'not set')}" for key in keys)])


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested settings under their dotted names.

    >>> flatten({"rounds": 3, "data": {"name": "digits"}})
    {'rounds': 3, 'data.name': 'digits'}
    """
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
