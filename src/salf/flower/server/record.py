"""What a round of a federation was: a round's record, and what only a real federation has."""

import json
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any, Literal

from salf.records import RoundRecord

# Why a reply changed nothing; `missing` and `late` are no replies to the round in time.
RejectReason = Literal["invalid", "duplicate", "wrong-round", "unknown", "failed", "missing", "late"]
_LISTS = ("contributors", "depths", "empty", "reach", "least_reach")
REFUSED: tuple[RejectReason, ...] = ("invalid", "duplicate", "wrong-round", "unknown")


@dataclass(frozen=True)
class FederationRecord(RoundRecord):
    """One round of a federation on Flower; `time_s` is real time, summed over the rounds, interruptions left out.

    `seconds` is how long the round lasted, `bytes_up` the size of the replies that were let in, `overshoot_s` by how
    much the latest client outlasted its deadline (None: nobody told). Of the asked clients `missing` did not reply in
    time, and `failed` replied with an error; `late` replies belonged to the round before.
    `rejected` counts the replies that were refused.
    """

    seconds: float = 0.0
    overshoot_s: float | None = None
    missing: int = 0
    failed: int = 0
    late: int = 0

    @classmethod
    def from_json(cls, line: str) -> "FederationRecord":
        """Read what `to_json` wrote. Raises `ValueError` for anything else.

        >>> record = FederationRecord(1, 9.5, 10.0, 3, (1, 2), None, seconds=9.5, depths=(1, 1, 1))
        >>> FederationRecord.from_json(record.to_json()) == record
        True
        """
        values: Any = json.loads(line)
        known = isinstance(values, dict) and set(values) == {field.name for field in fields(cls)}
        if not known or not all(isinstance(values[name], list) for name in _LISTS):
            raise ValueError("this is not the record of a round on Flower")
        lists = {name: tuple(values[name]) for name in _LISTS}
        return cls(**{**values, **lists})


def rejected(reject_counts: Counter[RejectReason]) -> int:
    """Return how many replies were refused.

    >>> rejected(Counter({"invalid": 2, "duplicate": 1, "missing": 5}))
    3
    """
    return sum(reject_counts[kind] for kind in REFUSED)
