"""How fast each client works, learnt from what it did in earlier rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from salf.values import Floats

_FORGETTING = 0.1  # the weight of the latest round, once there are ten


@dataclass(frozen=True)
class ObservedSpeeds:
    """The speed of each client that was ever asked, in jobs per second; a value: `observe` returns the next one.

    A job is one round's work on whole batches, receiving and sending included. Each client's speed is the mean over its
    rounds, in which the tenth before the last and those before it fade.

    `known` maps a client to its number of rounds and its speed.

    >>> seen = ObservedSpeeds().observe([3, 8], [2.0, 0.5]).observe([3], [1.0])
    >>> seen.of([3, 8, 5])
    array([1.5, 0.5, nan])
    """

    known: Mapping[int, tuple[int, float]] = field(default_factory=dict)

    def observe(self, clients: npt.ArrayLike, speeds: npt.ArrayLike) -> "ObservedSpeeds":
        """Add the speeds of one round's clients, both of shape (clients,)."""
        known = dict(self.known)
        ids = np.asarray(clients, dtype=np.int64).tolist()
        for client, speed in zip(ids, np.asarray(speeds, dtype=np.float64).tolist(), strict=True):
            rounds, mean = known.get(client, (0, 0.0))
            known[client] = rounds + 1, mean + (speed - mean) * max(1 / (rounds + 1), _FORGETTING)
        return ObservedSpeeds(known)

    def of(self, clients: npt.ArrayLike) -> Floats:
        """Return the speeds of clients, shape (clients,); NaN for one that was never asked."""
        ids = np.asarray(clients, dtype=np.int64).tolist()
        if not self.known:
            return np.full(len(ids), np.nan)
        return np.array([self.known.get(client, (0, np.nan))[1] for client in ids], dtype=np.float64)

    def to_arrays(self) -> dict[str, npt.NDArray[np.int64] | Floats]:
        """Return `clients`, `rounds` and `speeds` as arrays of shape (clients,)."""
        clients = sorted(self.known)
        return {
            "clients": np.array(clients, dtype=np.int64),
            "rounds": np.array([self.known[client][0] for client in clients], dtype=np.int64),
            "speeds": np.array([self.known[client][1] for client in clients], dtype=np.float64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.int64] | Floats]) -> "ObservedSpeeds":
        """Read what `to_arrays` returned."""
        columns = (arrays[name].tolist() for name in ("clients", "rounds", "speeds"))
        return cls({client: (rounds, speed) for client, rounds, speed in zip(*columns, strict=True)})
