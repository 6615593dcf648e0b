"""Measured times of real clients, in place of a device model."""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from salf.devices import Cohort, CompletionTimes, Workload
from salf.errors import InvalidSetting
from salf.values import Floats


@dataclass(frozen=True)
class MeasuredTimes:
    """Times of rounds that were measured: in each round, a client repeats a random one of its own.

    `conveyed`, of shape (measurements, local steps, layers), says when each layer of each step had reached the server;
    `client`, of shape (measurements,), whose round it was, numbered from 0. Infinite means never.
    """

    conveyed: Floats
    client: npt.NDArray[np.int64]

    @property
    def num_clients(self) -> int:
        """How many clients were measured."""
        return int(self.client.max()) + 1

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Draw a measured round for each client."""
        first, count = self._places
        drawn = cohort.uniforms("measured", 1)[:, 0] * count[cohort.clients]
        chosen = self.conveyed[first[cohort.clients] + drawn.astype(np.int64)]
        finite = self.conveyed[np.isfinite(self.conveyed)]
        return CompletionTimes(chosen, chosen, chosen[:, -1, 0], give_up_seconds=float(finite.max()))

    def typical_seconds(self, workload: Workload) -> float:
        """Return the median over clients of each one's median time for the whole job."""
        whole = self.conveyed[:, -1, 0]
        medians = [float(np.median(whole[self.client == client])) for client in range(self.num_clients)]
        return float(np.quantile(medians, 0.5, method="lower"))

    def reach(self, workload: Workload, cohort: Cohort, deadline_seconds: float) -> Floats:
        """Return how often each client reached each layer by the deadline, shape (clients, layers)."""
        first, count = self._places
        hits = np.add.reduceat((self.conveyed[:, 0] <= deadline_seconds).astype(np.float64), first, axis=0)
        return np.asarray(hits / count[:, None], dtype=np.float64)[cohort.clients]

    @cached_property
    def _places(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where each client's measurements begin, and how many they are."""
        count = np.bincount(self.client)
        return np.cumsum(count) - count, count


def read_times(path: Path, layers: Sequence[str], workload: Workload) -> MeasuredTimes:
    """Read a CSV file of measured times, one round of one client in each row; `inf` for one that never answered.

    With the columns `client,seconds` a row says how long the client took for its whole job; its layers are taken to
    have been conveyed in proportion to their operations. With `client` and a column for each layer, named as in
    `layers`, it says when that layer had arrived, in seconds from the start of the round; this takes one local step.
    Raises `InvalidSetting` for a file that cannot be read so.
    """
    rows = _read(path)
    if not rows:
        raise InvalidSetting(f"{path} holds no times; give one row for each measured round of a client")
    columns = [column for column in rows[0] if column != "client"]
    whole = columns == ["seconds"]
    if "client" not in rows[0] or not (whole or sorted(columns) == sorted(layers)):
        found = ", ".join(rows[0])
        raise InvalidSetting(
            f"{path} has the columns {found}; it needs client,seconds or client,{','.join(layers)}, in its first line"
        )
    if not whole and workload.local_steps > 1:
        raise InvalidSetting(
            f"{path} has times of layers, which need client.local_steps = 1, not {workload.local_steps}"
        )
    for line, row in enumerate(rows, start=2):
        if not row["client"].strip():
            raise InvalidSetting(f"{path}, line {line}: the client has no name; give each client one, or a number")
    names = list(dict.fromkeys(row["client"] for row in rows))
    ordered = sorted(enumerate(rows, start=2), key=lambda numbered: names.index(numbered[1]["client"]))
    wanted = ["seconds"] if whole else list(layers)
    table = np.array([[_seconds(path, line, key, row[key]) for key in wanted] for line, row in ordered])
    if not whole and (np.diff(table, axis=1) > 0).any():
        line = ordered[int((np.diff(table, axis=1) > 0).any(axis=1).argmax())][0]
        raise InvalidSetting(f"{path}, line {line}: a layer arrives before one that is nearer to the output")
    if not np.isfinite(table).any():
        raise InvalidSetting(f"{path} has no finite time; at least one client must answer")
    conveyed = _in_proportion(table[:, 0], workload) if whole else table[:, None, :]
    return MeasuredTimes(conveyed, np.array([names.index(row["client"]) for _, row in ordered], dtype=np.int64))


def _read(path: Path) -> list[Mapping[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, restkey="", restval="")
            twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
            if twice:
                raise InvalidSetting(f"{path} has the column {twice[0]} twice; leave one of them")
            return [row for row in reader if any(row.values())]
    except OSError as error:
        raise InvalidSetting(f"cannot read the times in {path}: {error.strerror}; name another file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidSetting(f"cannot read the times in {path}: it is not CSV in UTF-8 ({error})") from error


def _seconds(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise InvalidSetting(f"{path}, line {line}: {column} is '{text}'; give seconds, such as 1.5, or inf for never")
    return value


def _in_proportion(seconds: Floats, workload: Workload) -> Floats:
    """Divide whole jobs among forward pass and layers by their operations, shape (measurements, steps, layers)."""
    backward = np.asarray(workload.costs.backward)[::-1].cumsum()[::-1]
    share = (workload.costs.forward + backward) / (workload.costs.forward + backward[0])
    place = (np.arange(workload.local_steps)[:, None] + share) / workload.local_steps
    return np.asarray(seconds[:, None, None] * place, dtype=np.float64)
