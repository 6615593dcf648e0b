"""The record of one round of a federation: a simulated round's record, and what only a real federation has."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from salf.flower.server.deadlines import REMEMBERED_ROUNDS, RoundTimes
from salf.records import RoundRecord
from salf.simulation import ServerState


@dataclass(frozen=True)
class FederationState:
    """Everything that determines the next round, as far as the server knows it.

    Attributes:
        server: The round, the global model, and what was observed of each node, by its position in `nodes`.
        nodes: The ids of all nodes, in the order in which they were first sampled.
        times: The times of the last rounds, oldest first.
        upload_rates: The observed rate of replies in bytes per second, by node.
    """

    server: ServerState
    nodes: tuple[int, ...] = ()
    times: tuple[RoundTimes, ...] = ()
    upload_rates: Mapping[int, float] = field(default_factory=dict)

    def with_positions(self, nodes: Iterable[int]) -> tuple["FederationState", list[int]]:
        """Return a state that knows all these nodes, and the position of each."""
        wanted = list(nodes)
        known = {node: position for position, node in enumerate(self.nodes)}
        for node in wanted:
            known.setdefault(node, len(known))
        return replace(self, nodes=tuple(known)), [known[node] for node in wanted]

    def after(self, server: ServerState, times: RoundTimes, upload_rates: Mapping[int, float]) -> "FederationState":
        """Return the state after a round.

        Args:
            server: The new model and observations.
            times: The times of the round.
            upload_rates: The rates observed in the round; each is averaged with the rate known before.
        """
        rates = dict(self.upload_rates)
        for node, rate in upload_rates.items():
            rates[node] = (rates.get(node, rate) + rate) / 2
        return FederationState(server, self.nodes, (*self.times, times)[-REMEMBERED_ROUNDS:], rates)


log = logging.getLogger("flwr.salf")  # below Flower's own logger, whose handlers print it
_LONGEST = 2000  # characters of a reason; how long the reason is, a node decides


def warn_of_node(context: str, node: int, reason: str) -> None:
    """Log a warning about a node.

    Args:
        context: The part of the run, such as `round 3`.
        node: The node's id.
        reason: What is wrong. It may contain text from the node.
    """
    log.warning("%s: node %d: %s", context, node, one_line(reason))


def one_line(text: str) -> str:
    r"""Return a text as one line of printable characters, so that a node cannot forge lines of the log.

    >>> one_line("no memory\nround 3: all is well")
    'no memory round 3: all is well'
    """
    printable = "".join(character if character.isprintable() else " " for character in text[: _LONGEST + 1])
    return printable if len(text) <= _LONGEST else f"{printable[:_LONGEST]}…"


# Why a reply does not enter the model; `missing` and `late` replies did not arrive in time.
RejectReason = Literal["invalid", "duplicate", "wrong-round", "unknown", "failed", "missing", "late"]
_REFUSED: tuple[RejectReason, ...] = ("invalid", "duplicate", "wrong-round", "unknown")
_LISTS = ("contributors", "depths", "empty", "reach", "least_reach")


@dataclass(frozen=True)
class FederationRecord(RoundRecord):
    """One round of a federation on Flower.

    The other fields are those of `salf.RoundRecord`. `time_s` is the real time of all rounds so far, without
    interruptions. `bytes_up` is the size of the accepted replies, and `rejected` the number of refused ones.

    Attributes:
        seconds: The length of the round.
        overshoot_s: By how much the slowest client exceeded its deadline; None if no client reported it.
        missing: The number of sampled clients that did not reply in time.
        failed: The number of sampled clients that replied with an error.
        late: The number of replies to the round before.

    >>> record = FederationRecord(1, 9.5, 10.0, 3, (1, 2), None, seconds=9.5, depths=(1, 1, 1))
    >>> record.contributors, record.missing
    ((1, 2), 0)
    """

    seconds: float = 0.0
    overshoot_s: float | None = None
    missing: int = 0
    failed: int = 0
    late: int = 0

    @classmethod
    def from_json(cls, line: str) -> "FederationRecord":
        """Read what `to_json` wrote.

        Raises:
            ValueError: The line is not the record of a round on Flower.

        >>> record = FederationRecord(1, 9.5, 10.0, 3, (1, 2), None, seconds=9.5, depths=(1, 1, 1))
        >>> FederationRecord.from_json(record.to_json()) == record
        True
        """
        values: Any = json.loads(line)
        known = isinstance(values, dict) and set(values) == {field.name for field in fields(cls)}
        if not known or not all(isinstance(values[name], list) for name in _LISTS):
            raise ValueError("it is not the record of a round on Flower")
        lists = {name: tuple(values[name]) for name in _LISTS}
        return cls(**{**values, **lists})


def count_refused(reject_counts: Counter[RejectReason]) -> int:
    """Return how many replies were refused, without those that were missing, late or failed.

    >>> count_refused(Counter({"invalid": 2, "duplicate": 1, "missing": 5}))
    3
    """
    return sum(reject_counts[reason] for reason in _REFUSED)
