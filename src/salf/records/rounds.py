"""The record of a round, and what a run's records say: accuracy, time to accuracy, work kept."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

TARGET_SHARE = 0.95  # of the best final accuracy is the target of experiments that set none


@dataclass(frozen=True)
class RoundRecord:
    """One round of a run.

    In methods without rounds, a "round" is a stretch of virtual time, and `clients` counts jobs in place of clients.

    Attributes:
        round: The number of the round, from 1.
        time_s: The virtual time at its end, in seconds.
        deadline_s: Its deadline, in seconds; None if there was none.
        clients: How many clients took part.
        contributors: How many clients sent each layer, input to output.
        work_kept: The share of the clients' finished backward work, in floating-point operations, that entered the
            model, 0 to 1; None if no work was finished.
        depths: How many clients sent 0, 1, … and all layers.
        bytes_down: What the server sent.
        bytes_up: What reached the server in time.
        rejected: How many updates the server refused.
        accuracy: The test accuracy, 0 to 1; None if the round was not evaluated.
        loss: The test loss; None if the round was not evaluated.
        engine: The engine that computed the round.
        empty: p_l of each layer, the chance that no client sends it. Like the next two, it is estimated before the
            round from earlier ones, unless the method was given the true value; empty for methods without rounds.
        reach: The mean over the round's clients of π_{u,l}, the chance that client u sends layer l.
        least_reach: The smallest π_{u,l} among the round's clients.

    >>> import salf
    >>> (record,) = salf.simulate(salf.Experiment.load("digits", rounds=1))
    >>> record.round, record.time_s, record.clients, record.contributors
    (1, 1.0, 30, (7, 17, 23, 30))
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
        """Read what `to_json` wrote.

        Raises:
            ValueError: The line is anything else.
        """
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
    """Return the last accuracy that was evaluated; NaN if none was.

    >>> final_accuracy([RoundRecord(1, 2.0, 2.0, 1, (1,), 1.0, accuracy=0.8), RoundRecord(2, 4.0, 2.0, 1, (1,), 1.0)])
    0.8
    """
    return next((record.accuracy for record in reversed(list(records)) if record.accuracy is not None), math.nan)


def time_to_accuracy(records: Iterable[RoundRecord], target: float) -> float:
    """Return the virtual time, in seconds, at which a run first reached `target`; infinite if it never did.

    >>> time_to_accuracy([RoundRecord(1, 2.0, 2.0, 1, (1,), 1.0, accuracy=0.8)], 0.75)
    2.0
    """
    reached = (record.time_s for record in records if record.accuracy is not None and record.accuracy >= target)
    return next(reached, math.inf)


def target_accuracy(chosen: float | None, methods: Iterable[Sequence[Sequence[RoundRecord]]]) -> float:
    """Return the accuracy to which methods are timed: the chosen one, or 95 % of the best mean final accuracy.

    Args:
        chosen: The experiment's target, 0 to 1; None if it sets none.
        methods: For each method, the records of its runs.

    Returns:
        An accuracy from 0 to 1; NaN if none is chosen and no method was evaluated in every run.

    >>> runs = [[RoundRecord(1, 2.0, 2.0, 1, (1,), 1.0, accuracy=value)] for value in (0.7, 0.9)]
    >>> target_accuracy(None, [runs, runs[:1]]), target_accuracy(0.5, [runs])
    (0.76, 0.5)
    """
    if chosen is not None:
        return chosen
    means = [fmean(map(final_accuracy, runs)) for runs in methods]
    return TARGET_SHARE * max((mean for mean in means if math.isfinite(mean)), default=math.nan)


def accuracy_at(records: Iterable[RoundRecord], seconds: float) -> float:
    """Return the last accuracy evaluated within `seconds` of virtual time; NaN if there is none.

    >>> records = [RoundRecord(number, float(number), None, 1, (1,), 1.0, accuracy=number / 10) for number in (1, 2, 3)]
    >>> accuracy_at(records, 2.5)
    0.2
    """
    return final_accuracy(record for record in records if record.time_s <= seconds)


def mean_work_kept(records: Iterable[RoundRecord]) -> float:
    """Return the mean over rounds of the share of finished work that entered the model.

    Returns:
        A share from 0 to 1; NaN if no work was finished in any round.

    >>> mean_work_kept([RoundRecord(1, 2.0, 2.0, 1, (1,), 1.0), RoundRecord(2, 4.0, 2.0, 1, (1,), 0.5)])
    0.75
    """
    kept = [record.work_kept for record in records if record.work_kept is not None]
    return fmean(kept) if kept else math.nan
