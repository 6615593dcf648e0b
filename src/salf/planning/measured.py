"""Measured times of real clients, in place of a device model."""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from salf.devices import Cohort, CompletionTimes, Workload
from salf.errors import InvalidSetting
from salf.values import Floats, Ints


@dataclass(frozen=True)
class MeasuredTimes:
    """Measured times of real clients, which repeat them at random.

    In each round, a client repeats a random measurement of its own.

    Attributes:
        sent: Seconds from the start of the round until each layer of each step had reached the server, shape
            (measurements, local steps, layers); infinite means never.
        client: The client of each measurement, numbered from 0 and increasing, shape (measurements,).
    """

    sent: Floats
    client: Ints

    @property
    def num_clients(self) -> int:
        """Number of measured clients."""
        return int(self.client.max()) + 1

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Draw a measured round for each client."""
        first, count = self._places
        drawn = cohort.uniforms("measured", 1)[:, 0] * count[cohort.clients]
        chosen = self.sent[first[cohort.clients] + drawn.astype(np.int64)]
        finite = self.sent[np.isfinite(self.sent)]
        return CompletionTimes(chosen, chosen, chosen[:, -1, 0], give_up_seconds=float(finite.max()))

    def typical_seconds(self, workload: Workload) -> float:
        """Return the median over clients of their median times for the whole workload."""
        whole = self.sent[:, -1, 0]
        medians = [float(np.median(whole[self.client == client])) for client in range(self.num_clients)]
        return float(np.quantile(medians, 0.5, method="lower"))

    def reach(self, workload: Workload, cohort: Cohort, deadline_seconds: float) -> Floats:
        """Return the share of measurements in which each client reached each layer.

        The shape is (clients, layers).
        """
        first, count = self._places
        hits = np.add.reduceat((self.sent[:, 0] <= deadline_seconds).astype(np.float64), first, axis=0)
        return np.asarray(hits / count[:, None], dtype=np.float64)[cohort.clients]

    @cached_property
    def _places(self) -> tuple[Ints, Ints]:
        """The first measurement of each client, and their number."""
        count = np.bincount(self.client)
        return np.cumsum(count) - count, count


def read_times(path: Path, layers: Sequence[str], workload: Workload) -> MeasuredTimes:
    """Read a CSV file of measured times, with one round of one client in each row.

    With the columns `client,seconds`, a row has the time of a client's whole workload, which is divided among the
    layers by their operations. With `client` and one column per layer, it has the seconds from the start of the round
    until that layer arrived; this requires one local step. `inf` stands for a client that never answered.

    Args:
        path: The file, in UTF-8.
        layers: The names of the model's layers, input to output.
        workload: The work that was measured.
    """
    rows = _read_rows(path)
    wanted = _columns(path, rows, layers, workload)
    names = list(dict.fromkeys(row["client"] for row in rows))
    ordered = sorted(enumerate(rows, start=2), key=lambda numbered: names.index(numbered[1]["client"]))
    table = np.array([[_seconds(path, line, key, row[key]) for key in wanted] for line, row in ordered])
    if not np.isfinite(table).any():
        raise InvalidSetting(f"{path} has no finite time; give at least one round in which a client answers")
    owners = np.array([names.index(row["client"]) for _, row in ordered], dtype=np.int64)
    if wanted == ["seconds"]:
        return MeasuredTimes(_in_proportion(table[:, 0], workload), owners)
    early = (np.diff(table, axis=1) > 0).any(axis=1)
    if early.any():
        line = ordered[int(early.argmax())][0]
        raise InvalidSetting(
            f"{path}, line {line}: a layer arrives before one that is nearer to the output; correct the times"
        )
    return MeasuredTimes(table[:, None, :], owners)


def _columns(path: Path, rows: Sequence[Mapping[str, str]], layers: Sequence[str], workload: Workload) -> list[str]:
    """Return the columns of times in the order of the layers."""
    if not rows:
        raise InvalidSetting(f"{path} holds no times; give one row for each measured round of a client")
    columns = [column for column in rows[0] if column != "client"]
    whole = columns == ["seconds"]
    if "client" not in rows[0] or not (whole or sorted(columns) == sorted(layers)):
        found = ", ".join(rows[0])
        raise InvalidSetting(
            f"{path} has the columns {found}; write client,seconds or client,{','.join(layers)} in its first line"
        )
    if not whole and workload.local_steps > 1:
        raise InvalidSetting(
            f"{path} has times of layers, but client.local_steps is {workload.local_steps}; set client.local_steps = 1"
        )
    for line, row in enumerate(rows, start=2):
        if not row["client"].strip():
            raise InvalidSetting(f"{path}, line {line}: the client has no name; give each client a name or a number")
    return ["seconds"] if whole else list(layers)


def _read_rows(path: Path) -> list[Mapping[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, restkey="", restval="")
            twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
            if twice:
                raise InvalidSetting(f"{path} has the column {twice[0]} twice; remove one of them")
            return [row for row in reader if any(row.values())]
    except OSError as error:
        raise InvalidSetting(f"cannot read the times in {path}: {error.strerror}; name another file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidSetting(
            f"cannot read the times in {path}: it is not CSV in UTF-8 ({error}); save it as CSV in UTF-8"
        ) from error


def _seconds(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise InvalidSetting(f"{path}, line {line}: {column} is '{text}'; give seconds, such as 1.5, or inf for never")
    return value


def _in_proportion(seconds: Floats, workload: Workload) -> Floats:
    """Divide times of whole workloads among the layers by their operations.

    The shape is (measurements, local steps, layers).
    """
    backward = np.asarray(workload.costs.backward)[::-1].cumsum()[::-1]
    share = (workload.costs.forward + backward) / (workload.costs.forward + backward[0])
    place = (np.arange(workload.local_steps)[:, None] + share) / workload.local_steps
    return np.asarray(seconds[:, None, None] * place, dtype=np.float64)
