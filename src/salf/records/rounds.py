"""What a round was, in a form that machines and people can read later."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError


@dataclass(frozen=True)
class RoundRecord:
    """One round of a run.

    `time_s` is the virtual time at its end, `deadline_s` the deadline (None: there was none), `clients` how many were
    asked (where nobody waits: how many jobs were at work), `contributors` how many conveyed each layer, input to
    output, `depths` how many conveyed 0, 1, … and all layers, `work_kept` the share of the finished backward work that
    entered the model (by floating-point operations; None when none was finished), `bytes_down` and `bytes_up` what the
    server sent and what reached it in time, `rejected` how many updates were refused. `accuracy` and `loss`, on the
    test data, are None where they were not evaluated. `engine` names what computed the round.

    What was thought of the clients' chances before the round, per layer: `empty` is p_l, that nobody conveys it,
    `reach` and `least_reach` are the mean and the least π_{u,l} of those asked. They are estimated from earlier rounds,
    unless the method was told the true ones; nothing where there are no rounds.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    round: int
    time_s: float
    deadline_s: float | None
    clients: int
    contributors: tuple[int, ...]
    work_kept: float | None
    depths: tuple[int, ...] = ()
    bytes_down: int = 0
    bytes_up: int = 0
    rejected: int = 0
    accuracy: float | None = None
    loss: float | None = None
    engine: str = "plain"
    empty: tuple[float, ...] = ()
    reach: tuple[float, ...] = ()
    least_reach: tuple[float, ...] = ()

    def to_json(self) -> str:
        """Return one line of JSON, without the line end.

        >>> record = RoundRecord(1, 2.5, 2.5, 30, (3, 30), 1.0)
        >>> RoundRecord.from_json(record.to_json()) == record
        True
        """
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "RoundRecord":
        """Read what `to_json` wrote. Raises `ValueError` for anything else."""
        values = json.loads(line)
        if not isinstance(values, dict) or set(values) != {field.name for field in fields(cls)}:
            raise ValueError("this is not the record of a round")
        try:
            return _ADAPTER.validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"this is not the record of a round: {place}: {first['msg']}") from error


_ADAPTER = TypeAdapter(RoundRecord)


def final_accuracy(records: Iterable[RoundRecord]) -> float:
    """Return the last accuracy that was evaluated; NaN if none was."""
    return next((record.accuracy for record in reversed(list(records)) if record.accuracy is not None), math.nan)


def time_to_accuracy(records: Iterable[RoundRecord], target: float) -> float:
    """Return the virtual time, in seconds, at which `target` was first reached; infinite if it never was.

    >>> time_to_accuracy([RoundRecord(1, 2.0, 2.0, 1, (1,), 1.0, accuracy=0.8)], 0.75)
    2.0
    """
    reached = (record.time_s for record in records if record.accuracy is not None and record.accuracy >= target)
    return next(reached, math.inf)


def accuracy_at(records: Iterable[RoundRecord], seconds: float) -> float:
    """Return the last accuracy that was evaluated within `seconds` of virtual time; NaN if none was.

    >>> records = [RoundRecord(number, float(number), None, 1, (1,), 1.0, accuracy=number / 10) for number in (1, 2, 3)]
    >>> accuracy_at(records, 2.5)
    0.2
    """
    return final_accuracy(record for record in records if record.time_s <= seconds)


def mean_work_kept(records: Iterable[RoundRecord]) -> float:
    """Return the mean over rounds of the share of finished work that entered the model; NaN if none was finished."""
    kept = [record.work_kept for record in records if record.work_kept is not None]
    return fmean(kept) if kept else math.nan
