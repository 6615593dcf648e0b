"""The input of a report: runs, and groups of runs that differ only in their seed."""

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from salf.errors import RunFolderError
from salf.records import RoundRecord, TimeLine

# Settings that change nothing in a run, and the seed, over which a report averages.
_NOT_COMPARED = ("seed", "data.root", "evaluate.target", "expected.")


@dataclass(frozen=True)
class ReportedRun:
    """One run, as a report needs it.

    Attributes:
        settings: The complete experiment as TOML.
        records: One record per finished round, at least one.
        timeline: A typical round; None if the run's folder has none.
        explanation: One line about the method; empty if there is none.
        unreproducible: Why the settings alone do not reproduce the run, such as "the data was given in Python".

    Raises:
        RunFolderError: There are no records, or records and timeline have different numbers of layers.
    """

    settings: str
    records: tuple[RoundRecord, ...]
    timeline: TimeLine | None = None
    explanation: str = ""
    unreproducible: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        depths = {len(record.contributors) for record in self.records}
        if len(depths) != 1:
            raise RunFolderError(
                f"the records have {' and '.join(map(str, sorted(depths))) or 'no'} layers, so they are not those of "
                "one run; restore records.jsonl, or start the run again in another folder"
            )
        if self.timeline is not None and {len(self.timeline.layers)} != depths:
            raise RunFolderError(
                f"the timeline has {len(self.timeline.layers)} layers and the records have {depths.pop()}; "
                "remove timeline.json"
            )

    @cached_property
    def flat(self) -> dict[str, object]:
        """The settings by their dotted names."""
        return flatten(tomllib.loads(self.settings))

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
        """The number of rounds of the experiment."""
        return int(str(self.flat["rounds"]))

    @property
    def target(self) -> float | None:
        """The accuracy to which the run is timed, 0 to 1; None if the experiment sets none."""
        target = self.flat.get("evaluate.target")
        return None if target is None else float(str(target))

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, input to output; numbers from 1 if the names are unknown."""
        if self.timeline is not None:
            return self.timeline.layers
        return tuple(str(number + 1) for number in range(len(self.records[0].contributors)))


@dataclass(frozen=True)
class RunGroup:
    """Runs with the same settings, one per seed.

    Attributes:
        label: The method's name, and the settings in which the group differs from the others of a report.
        runs: The runs in ascending order of their seeds.
    """

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
    def records(self) -> list[RoundRecord]:
        """The records of all runs."""
        return [record for run in self.runs for record in run.records]

    @property
    def timeline(self) -> TimeLine | None:
        """The typical round of the first run; None if it is not known, or the method has no rounds."""
        timeline = self.runs[0].timeline
        return None if timeline is None or timeline.round is None else timeline

    @property
    def depth_shares(self) -> list[float]:
        """The share of clients that sent 0, 1, … and all layers, in per cent; empty if records have no depths."""
        known = [record.depths for record in self.records if record.depths]
        if len(set(map(len, known))) != 1:
            return []
        total: list[int] = np.sum(known, axis=0).tolist()
        return [100 * (count / max(1, sum(total))) for count in total]

    @property
    def layer_shares(self) -> list[str]:
        """The share of clients that sent each layer, in per cent, over all rounds and runs, input to output."""
        clients = max(1, sum(record.clients for record in self.records))
        total: list[int] = np.sum([record.contributors for record in self.records], axis=0).tolist()
        return [f"{100 * count / clients:.2f}" for count in total]

    @property
    def unreproducible(self) -> tuple[str, ...]:
        """Why the settings do not reproduce the runs, each reason once; empty if they do."""
        return tuple(dict.fromkeys(reason for run in self.runs for reason in run.unreproducible))

    @property
    def is_finished(self) -> bool:
        """Whether each run has all of its rounds."""
        return all(len(run.records) >= run.planned for run in self.runs)


def explanation_of(method: type) -> str:
    """Return the first line of a class's docstring, by which a report explains the method.

    Returns:
        The line; empty if the class has no docstring of its own.

    >>> @dataclass
    ... class MyMethod:
    ...     '''Wait for half of the clients.
    ...
    ...     More about it.
    ...     '''
    >>> explanation_of(MyMethod)
    'Wait for half of the clients.'
    """
    lines = (vars(method).get("__doc__") or "").strip().replace("`", "").splitlines()
    is_generated = lines[:1] and lines[0].startswith(f"{method.__name__}(")  # by `dataclass`
    return "" if not lines or is_generated else lines[0]


def group_runs(runs: Sequence[ReportedRun]) -> tuple[RunGroup, ...]:
    r"""RunGroup runs that differ only in their seed, in the order in which the first of each group is given.

    Raises:
        RunFolderError: There are no runs, or two have the same settings and the same seed.

    >>> record = RoundRecord(1, 2.0, 2.0, 1, (1,), 1.0)
    >>> text = 'name = "digits"\nseed = {}\nrounds = {}\n[method]\nname = "salf"'
    >>> runs = [ReportedRun(text.format(seed, rounds), (record,)) for seed, rounds in ((1, 5), (0, 5), (0, 9))]
    >>> [(group.label, group.seeds) for group in group_runs(runs)]
    [('salf · rounds = 5', (0, 1)), ('salf · rounds = 9', (0,))]
    """
    if not runs:
        raise RunFolderError("there are no runs to report; pass the folder of at least one run")
    found: dict[str, list[ReportedRun]] = {}
    for run in runs:
        found.setdefault(repr(sorted(_compared(run).items())), []).append(run)
    for same in found.values():
        seeds = [run.seed for run in same]
        if len(set(seeds)) < len(seeds):
            raise RunFolderError(
                f"two runs of {same[0].method} with seed {max(seeds, key=seeds.count)} have the same settings; "
                "pass only one of their folders"
            )
    labels = _labels([same[0] for same in found.values()])
    return tuple(
        RunGroup(label, tuple(sorted(same, key=lambda run: run.seed)))
        for label, same in zip(labels, found.values(), strict=True)
    )


def _compared(run: ReportedRun) -> dict[str, object]:
    """Return the settings in which groups may differ."""
    return {key: value for key, value in run.flat.items() if not key.startswith(_NOT_COMPARED)}


def _labels(runs: Sequence[ReportedRun], *, optional: bool = False) -> list[str]:
    """Name each run by its method and the settings in which it differs from the others.

    Args:
        runs: One run of each group.
        optional: Whether to name settings that only some of the runs have, such as those of another model. They are
            named if the labels would be equal without them.
    """
    settings = [_compared(run) for run in runs]
    labels = []
    for run, own in zip(runs, settings, strict=True):
        of_method = [one for one in settings if one["method.name"] == run.method]
        keys = [key for key in differing_keys(settings) if not key.startswith("method.")]
        keys += [key for key in differing_keys(of_method) if key.startswith("method.")]
        common = set(settings[0]).intersection(*settings) | set(own).intersection(*of_method)
        shown = (f"{key} = {str(own.get(key, 'not set'))[:40]}" for key in keys if optional or key in common)
        labels.append(" · ".join([run.method, *shown]))
    return labels if optional or len(set(labels)) == len(labels) else _labels(runs, optional=True)


def differing_keys(settings: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the keys that do not have the same value everywhere, sorted.

    >>> differing_keys([{"rounds": 3, "seed": 0}, {"rounds": 3, "seed": 1, "engine": "plain"}])
    ['engine', 'seed']
    """
    keys = set[str]().union(*settings)
    return sorted(key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings))


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested settings by their dotted names.

    Args:
        settings: Tables within tables, as TOML gives them.
        prefix: What each name begins with, such as "data."; empty for whole experiments.

    >>> flatten({"rounds": 3, "data": {"name": "digits"}})
    {'rounds': 3, 'data.name': 'digits'}
    """
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def marked_lines(settings: str, keys: Collection[str]) -> list[tuple[str, bool]]:
    r"""Return the lines of a TOML document, and whether each belongs to one of the keys.

    Args:
        settings: The document.
        keys: Dotted names.

    >>> marked_lines('seed = 1\n[method]\nname = "salf"\n', {"method.name"})
    [('seed = 1', False), ('[method]', False), ('name = "salf"', True)]
    """
    section, key, lines = "", "", []
    for line in settings.splitlines():
        if heading := re.fullmatch(r"\[([\w.-]+)\]", line):
            section, key = f"{heading[1]}.", ""
        elif entry := re.match(r"([\w-]+) = ", line):
            key = section + entry[1]
        lines.append((line, bool(line) and key in keys))
    return lines
