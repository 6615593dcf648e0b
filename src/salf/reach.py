"""How often each client reached each layer, observed over the rounds of a run whose depth distribution nobody knows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_PRIOR_ROUNDS = 2.0  # how many rounds of evidence the frequency over all clients counts for


@dataclass(frozen=True)
class ObservedReach:
    """Counts of rounds asked and layers reached per client; a value: `observe` returns the next one.

    The probability that client u reaches layer l is estimated as its own frequency, smoothed towards that of all
    clients: π̂_{u,l} = (reached_{u,l} + 2 q̂_l) / (rounds_u + 2), q̂_l = (Σ reached_l + 1) / (Σ rounds + 1). Without
    evidence it is 1, so nothing is corrected before anyone was seen to miss a layer; and a client that never missed a
    layer is taken to be certain of it, so that p_l is 0 as soon as there is one.

    >>> seen = ObservedReach(num_layers=2).observe([3, 8], [[False, True], [True, True]])
    >>> seen.probability([3, 8, 5]).round(3)
    array([[0.444, 1.   ], [1.   , 1.   ], [0.667, 1.   ]])
    """

    num_layers: int
    rounds: Mapping[int, int] = field(default_factory=dict)
    reached: Mapping[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    total_rounds: int = 0
    total_reached: npt.NDArray[np.int64] | None = None

    def observe(self, clients: npt.ArrayLike, reached: npt.ArrayLike) -> "ObservedReach":
        """Count one round: `reached` has shape (clients, layers), true where a client reached a layer."""
        ids = np.asarray(clients).tolist()
        hits = np.asarray(reached, dtype=np.int64)
        if hits.shape != (len(ids), self.num_layers) and (ids or hits.size):
            raise ValueError(f"reached has shape {hits.shape}, not ({len(ids)}, {self.num_layers}): clients, layers")
        rounds, counts = dict(self.rounds), dict(self.reached)
        nothing = np.zeros(self.num_layers, dtype=np.int64)
        for client, row in zip(ids, hits, strict=True):
            rounds[client] = rounds.get(client, 0) + 1
            counts[client] = counts.get(client, nothing) + row
        total = nothing if self.total_reached is None else self.total_reached
        return ObservedReach(
            self.num_layers, rounds, counts, self.total_rounds + len(hits), total + hits.sum(axis=0, dtype=np.int64)
        )

    def probability(self, clients: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Estimate π_{u,l} for the given clients, shape (clients, layers)."""
        nothing = np.zeros(self.num_layers, dtype=np.int64)
        total = nothing if self.total_reached is None else self.total_reached
        overall = (total + 1) / (self.total_rounds + 1)
        ids = np.asarray(clients).tolist()
        rounds = np.array([self.rounds.get(client, 0) for client in ids], dtype=np.float64)[:, None]
        reached = np.array([self.reached.get(client, nothing) for client in ids]).reshape(len(ids), self.num_layers)
        smoothed = (reached + _PRIOR_ROUNDS * overall) / (rounds + _PRIOR_ROUNDS)
        return np.where((rounds > 0) & (reached == rounds), 1.0, smoothed)

    def to_arrays(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return the counts as arrays: `clients` and `rounds` of shape (clients,), `reached` of (clients, layers)."""
        clients = sorted(self.rounds)
        reached = np.array([self.reached[client] for client in clients], dtype=np.int64)
        return {
            "clients": np.array(clients, dtype=np.int64),
            "rounds": np.array([self.rounds[client] for client in clients], dtype=np.int64),
            "reached": reached.reshape(len(clients), self.num_layers),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.int64]]) -> "ObservedReach":
        """Read what `to_arrays` returned."""
        clients, rounds, reached = arrays["clients"].tolist(), arrays["rounds"], arrays["reached"]
        return cls(
            reached.shape[1],
            dict(zip(clients, rounds.tolist(), strict=True)),
            dict(zip(clients, reached, strict=True)),
            int(rounds.sum()),
            reached.sum(axis=0, dtype=np.int64),
        )
