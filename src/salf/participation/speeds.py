"""The speed of each client, observed in earlier rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from salf.values import Floats, Ints

_FORGETTING = 0.1  # the weight of the latest round from the tenth on


@dataclass(frozen=True)
class ObservedSpeeds:
    """Each client's mean speed in workloads per second; `observe` gives the next one.

    A workload is one round's work on whole batches, with download and upload. The mean over a client's first ten rounds
    is plain; after that it is an exponential moving average with weight 0.1.

    Attributes:
        known: Maps a client to its number of rounds and its mean speed.

    >>> seen = ObservedSpeeds().observe([3, 8], [2.0, 0.5]).observe([3], [1.0])
    >>> seen.of([3, 8, 5])
    array([1.5, 0.5, nan])
    """

    known: Mapping[int, tuple[int, float]] = field(default_factory=dict)

    def observe(self, clients: npt.ArrayLike, speeds: npt.ArrayLike) -> "ObservedSpeeds":
        """Add one round: the numbers of its clients and their speeds, of shape (clients,)."""
        known = dict(self.known)
        ids = np.asarray(clients, dtype=np.int64).tolist()
        for client, speed in zip(ids, np.asarray(speeds, dtype=np.float64).tolist(), strict=True):
            rounds, mean = known.get(client, (0, 0.0))
            known[client] = rounds + 1, mean + (speed - mean) * max(1 / (rounds + 1), _FORGETTING)
        return ObservedSpeeds(known)

    def of(self, clients: npt.ArrayLike) -> Floats:
        """Return the clients' speeds, shape (clients,); NaN for clients never observed."""
        ids = np.asarray(clients, dtype=np.int64).tolist()
        if not self.known:
            return np.full(len(ids), np.nan)
        return np.array([self.known.get(client, (0, np.nan))[1] for client in ids], dtype=np.float64)

    def to_arrays(self) -> dict[str, Ints | Floats]:
        """Return `clients`, `rounds` and `speeds` as arrays of shape (clients,)."""
        clients = sorted(self.known)
        return {
            "clients": np.array(clients, dtype=np.int64),
            "rounds": np.array([self.known[client][0] for client in clients], dtype=np.int64),
            "speeds": np.array([self.known[client][1] for client in clients], dtype=np.float64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Ints | Floats]) -> "ObservedSpeeds":
        """Return the value whose `to_arrays` gave `arrays`."""
        columns = (arrays[name].tolist() for name in ("clients", "rounds", "speeds"))
        return cls({client: (rounds, speed) for client, rounds, speed in zip(*columns, strict=True)})
