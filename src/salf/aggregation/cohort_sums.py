"""What an aggregation collects over a cohort, and what each client weighs in it: the interface of the engines."""

from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from salf.aggregation.rules import Contributions, Rule
from salf.aggregation.sums import LayerSum, PartialSum, local_progress
from salf.errors import InvalidSetting, InvalidUpdate, check_type, shown
from salf.layers import Layers
from salf.theory import DepthDistribution, empty_probability, reach_probability
from salf.update import Update
from salf.values import Floats, Ints

Reach = npt.ArrayLike | DepthDistribution
Weigh = Literal["clients", "examples"]
_MOST_CLIENTS = 2**53  # beyond it a number of clients is no longer exact as a weight


class CohortSums:
    """The running sums of a round, by layer.

    `Aggregation.sums` is one. Engines that compute many clients at once ask it what each client weighs and add their
    sums with `add_totals`; engines that compute one client after another use `Aggregation.add`.

    Attributes:
        layer_sums: The sums of each layer, input to output.
        received: How many clients were added, including those that sent nothing.
        weight_received: Σ a_u over them.
        needs_individual_updates: Whether each client's own update must be added, not only the cohort's sum: sums do
            not tell how many examples each client's layer has seen.
        weighs_equally: Whether a_u is 1 for every client.
        weighs_examples: Whether a client weighs in each layer by the examples that the layer has seen.
    """

    def __init__(
        self,
        layers: Layers,
        rule: Rule,
        *,
        reach: Reach | None = None,
        clients: Sequence[int] | None = None,
        momentum: float = 0.0,
        weigh: Weigh = "clients",
    ) -> None:
        check_weigh(weigh)
        self.weighs_examples = weigh == "examples"
        self._layers, self._rule, self._clients, self._momentum = layers, rule, clients, momentum
        self._reach = _as_probabilities(reach, len(layers))
        self._shows_updates = rule.needs_individual_updates or rule.memory_bytes is not None
        self.needs_individual_updates = self._shows_updates or self.weighs_examples
        self.weighs_equally = rule.weighs_equally
        self._weighs_layers = rule.weighs_layers or rule.needs_reach
        self.layer_sums = [LayerSum() for _ in layers]
        self.received = 0
        self.weight_received = 0.0

    def weights(self, num_examples: npt.ArrayLike) -> Floats:
        """Return the weights a_u of clients with so many examples, shape (clients,)."""
        found = self._rule.client_weights(np.asarray(num_examples, dtype=np.float64))
        if not (np.isfinite(found) & (found > 0)).all():
            raise InvalidSetting(f"{_name(self._rule)}.client_weights gives {_first(found)}; give numbers above 0")
        return found

    def importance_weights(self, steps: Ints) -> Floats | None:
        """Return w_{u,l}/a_u, by how much more than its weight each client counts in each layer.

        Args:
            steps: The optimizer steps of each layer, shape (clients, layers), in the order of the cohort.

        Returns:
            Shape (clients, layers), 0 where a client takes no step; None if every client counts by its weight alone.

        Raises:
            InvalidSetting: The rule needs individual updates, or `reach` where it is missing or contradicts `steps`.
        """
        if self.needs_individual_updates:
            needing = _name(self._rule) if self._shows_updates else "weigh='examples'"
            raise InvalidSetting(f"{needing} needs each client's own update; use Aggregation.add")
        if not self._weighs_layers:
            return None
        found = self._layer_weights(np.ones((len(steps), 1)), steps, range(len(steps)))
        return None if found is None or (found[steps > 0] == 1).all() else found

    def add_totals(self, clients: int, weight: float, totals: Iterable[PartialSum | None]) -> None:
        """Add all clients of a round at once.

        Args:
            clients: How many clients they are, including those that sent nothing.
            weight: Σ a_u over these.
            totals: The sum of each layer, None for a layer without contributors; they are used up.
        """
        for running, total in zip(self.layer_sums, totals, strict=True):
            if total is not None:
                running.add_total(total)
        self.received += clients
        self.weight_received += weight

    def weight_of(self, num_examples: int) -> float:
        """Return the weight a_u of one client."""
        return 1.0 if self.weighs_equally else float(self.weights([num_examples])[0])

    def layer_weights_of(self, update: Update, steps: Sequence[int], row: int, weight: float) -> list[float]:
        """Return one client's weight w_{u,l} in each layer.

        Args:
            update: What the client sent.
            steps: The optimizer steps of each layer; 0 for a layer that it did not send.
            row: The client's row in `reach`, and its place in `clients`.
            weight: The client's weight a_u.
        """
        if not self._weighs_layers:
            return [weight] * len(steps)
        found = self._layer_weights(np.array([[weight]]), np.array([steps]), [row], update)
        return [weight] * len(steps) if found is None else found[0].tolist()

    def examples_of(self, update: Update, row: int) -> list[int]:
        """Return how many examples of a client count in each layer: 1 where clients are weighed, 0 for a missing layer.

        Raises:
            InvalidUpdate: Examples are weighed, and the update does not report them.
        """
        if not self.weighs_examples:
            return [1] * len(self._layers)
        if update.deltas and not update.examples:
            raise InvalidUpdate(
                f"update {row + 1} has no weight; pass Update(..., examples=...), or weigh='clients'",
                ["it does not say how many examples its layers have seen"],
            )
        return [update.examples.get(layer.name, 0) for layer in self._layers]

    def progress(self, steps: int) -> tuple[float, float]:
        """Return the progress τ of so many steps, and what the rule divides Δ by: τ or 1."""
        taken = float(local_progress(steps, self._momentum))
        return taken, taken if self._rule.normalise == "steps" else 1.0

    def client_at(self, row: int) -> int:
        """Return the number of the client at one place of the cohort."""
        if self._clients is None:
            return row
        _check_row("clients", len(self._clients), row)
        return self._clients[row]

    def count_clients(self, num_clients: int | None) -> int:
        """Return how many clients were asked; `num_clients` is that number if the caller knows it."""
        known = self._reach.shape[0] if self._reach is not None and self._reach.ndim == 2 else None
        given = "yes or no" if isinstance(num_clients, bool) else num_clients
        check_type("num_clients", given, (int, np.integer, NoneType), "how many clients were asked")
        asked = num_clients if num_clients is not None else known if known is not None else self.received
        if asked > _MOST_CLIENTS:
            raise InvalidSetting(f"num_clients is {asked}; give at most 2^53")
        if asked < self.received:
            raise InvalidSetting(f"{self.received} updates came for num_clients={asked}; set it to the clients asked")
        if known is not None and known != asked:
            raise InvalidSetting(f"reach has {known} rows for num_clients={asked} clients; give one row for each")
        return asked

    def empty_probabilities(self, asked: int) -> list[float]:
        """Return p_l of each layer for so many clients asked; zeros without `reach`."""
        if self._reach is None:
            return [0.0] * len(self._layers)
        known = asked if self._reach.ndim == 1 else None
        empty = empty_probability(reach=self._reach, num_clients=known, min_contributors=self._rule.min_contributors)
        chances: list[float] = empty.tolist()
        return chances

    def _layer_weights(
        self, weights: Floats, steps: Ints, rows: Sequence[int], update: Update | None = None
    ) -> Floats | None:
        """Return the checked weights w_{u,l} of some clients, 0 where they sent nothing; None if they are a_u."""
        rule = self._rule
        reach, shown = self._reach_of(rows, steps), update if self._shows_updates else None
        numbers = np.array([self.client_at(row) for row in rows], dtype=np.int64)
        found = rule.layer_weights(Contributions(weights, steps, numbers, reach, shown))
        if found is None:
            return None
        sent = steps > 0
        found = np.where(sent, found, 0.0)
        if not (np.isfinite(found) & (found > 0))[sent].all():
            raise InvalidSetting(f"{_name(rule)}.layer_weights gives {_first(found[sent])}; give numbers above 0")
        return found

    def _reach_of(self, rows: Sequence[int], steps: Ints) -> Floats | None:
        """Return π_{u,l} of some clients, shape (clients, layers); checked if the rule needs it."""
        reach, needed = self._reach, self._rule.needs_reach
        if reach is None:
            if needed and steps.any():
                raise InvalidSetting(f"{_name(self._rule)} needs reach; pass each client's chance to reach each layer")
            return None
        for row in rows if reach.ndim == 2 else ():
            _check_row("reach", len(reach), row)
        own = reach[np.asarray(rows)] if reach.ndim == 2 else np.broadcast_to(reach, steps.shape)
        impossible = np.argwhere((own <= 0) & (steps > 0))
        if needed and len(impossible):
            place, layer = impossible[0].tolist()
            name = self._layers[layer].name
            raise InvalidSetting(
                f"client {rows[place]} sent layer '{name}', which by reach it never reaches; give a reach above 0"
            )
        return own


def _as_probabilities(reach: Reach | None, num_layers: int) -> Floats | None:
    """Return π as an array of shape (layers,) or (clients, layers)."""
    if reach is None:
        return None
    try:
        # Arrays first: to find out whether something is of a protocol takes as long as a small layer's pass.
        if not isinstance(reach, np.ndarray) and isinstance(reach, DepthDistribution):
            reach = reach_probability(depth=reach, num_layers=num_layers)
        chances = np.asarray(reach, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InvalidSetting(f"reach cannot be used: {error}; give an array or a depth distribution") from error
    if chances.ndim not in (1, 2) or chances.shape[-1] != num_layers:
        raise InvalidSetting(f"reach has shape {chances.shape}; give ({num_layers},) or (clients, {num_layers})")
    if not ((chances >= 0) & (chances <= 1)).all():
        raise InvalidSetting("reach holds values that are not probabilities; give numbers between 0 and 1")
    return chances


def check_weigh(weigh: object) -> None:
    """Raise `InvalidSetting` unless `weigh` is one of its two values."""
    if not isinstance(weigh, str) or weigh not in get_args(Weigh):
        raise InvalidSetting(f"weigh is {shown(weigh)}; choose 'clients' or 'examples'")


def _check_row(name: str, size: int, row: int) -> None:
    """Raise `InvalidSetting` unless an argument with so many rows has this row."""
    if not 0 <= row < size:
        raise InvalidSetting(f"{name} has {size} rows, but update {row + 1} arrived; give one row for each client")


def _name(rule: Rule) -> str:
    return type(rule).__name__


def _first(values: Floats) -> float:
    """Return the first number that is no weight."""
    return float(values[~(np.isfinite(values) & (values > 0))][0])
