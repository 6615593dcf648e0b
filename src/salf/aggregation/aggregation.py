"""The one place that knows what happens to a layer that was not conveyed.

A rule of `salf.rules` says how far a layer moves; one with fewer than `min_contributors` contributors stays where it
is. Buffers are averaged over contributors and never extrapolated; integer buffers take the maximum.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from salf.aggregation.client_memory import ClientMemory, Recollection, Remembered
from salf.aggregation.rules import InverseProbability, LayerShare, Memory, Rule
from salf.aggregation.sums import LayerSum, PartialSum, mean_of
from salf.errors import InvalidSetting, check_type
from salf.layers import Layer, Layers
from salf.theory import DepthDistribution, empty_probability, reach_probability
from salf.update import Update, all_finite, check_update
from salf.values import Floats

Reach = npt.ArrayLike | DepthDistribution
_MOST_CLIENTS = 2**53  # beyond it a number of clients is no longer exact as a weight


@dataclass(frozen=True)
class Aggregated:
    """The new global state, and who made it.

    `contributors` counts, per layer from input to output, the clients that conveyed it in this round.
    `overflowed` names layers whose sum, or new value, is not finite; they stayed where they were.
    `empty_probability` holds p_l for each layer, 0 where no `reach` was given, and nothing where nobody needed it.
    """

    state: dict[str, Tensor]
    contributors: tuple[int, ...]
    memory: ClientMemory = field(default_factory=dict)
    overflowed: tuple[str, ...] = ()
    empty_probability: tuple[float, ...] = ()


def aggregate(
    state: Mapping[str, Tensor],
    updates: Iterable[Update],
    layers: Layers,
    rule: Rule,
    *,
    num_clients: int | None = None,
    reach: Reach | None = None,
    clients: Sequence[int] | None = None,
    memory: ClientMemory | None = None,
) -> Aggregated:
    """Aggregate one round's updates, layer by layer, into a new state; `state` and the updates stay as they are.

    `num_clients` is U, the number of clients asked; by default as many as there are updates. A client that conveyed
    nothing counts whether it sent an empty update or none. Where clients are weighed by examples, one that sent none is
    taken to weigh as much as the senders do on average: send an empty update where its number of examples is known.
    `reach` gives π_{u,l}: of shape (layers,), (clients, layers) with one row for each client asked, those with an
    update first, or a depth distribution of `salf.theory`; without it p_l is taken as 0. `clients` identifies the
    senders, for `Memory`; `memory` is the `memory` of the previous result.

    Raises `InvalidUpdate` for an update that must not be aggregated and `InvalidSetting` for wrong arguments.

    >>> from salf.layers import Layer, Layers
    >>> from salf.aggregation.rules import Corrected
    >>> layers = Layers((Layer("body", ("body.weight",)), Layer("head", ("head.weight",))))
    >>> state = {"body.weight": torch.zeros(2), "head.weight": torch.zeros(2)}
    >>> whole = Update({"body.weight": torch.ones(2), "head.weight": torch.ones(2)}, steps=1, num_examples=10)
    >>> part = Update({"head.weight": 3 * torch.ones(2)}, steps=1, num_examples=10)
    >>> result = aggregate(state, [whole, part], layers, Corrected(), reach=[0.5, 1.0])
    >>> result.contributors, result.state["body.weight"][0].item(), result.state["head.weight"][0].item()
    ((1, 2), 1.3333333730697632, 2.0)
    """
    check_type("updates", updates, Iterable, "the round's updates, as a list or another iterable")
    running = Aggregation(state, layers, rule, reach=reach, clients=clients, memory=memory)
    for update in updates:
        running.add(update)
    return running.finish(num_clients)


class Aggregation:
    """`aggregate` for updates that arrive one by one: memory does not grow with their number.

    `momentum` is that of the clients' SGD, which matters to a rule that normalises by steps.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        layers: Layers,
        rule: Rule,
        *,
        reach: Reach | None = None,
        clients: Sequence[int] | None = None,
        memory: ClientMemory | None = None,
        momentum: float = 0.0,
    ) -> None:
        check_type("state", state, (dict, Mapping), "the model's state dict")
        check_type("layers", layers, Layers, "the model's layers, as find_layers returns them")
        check_type("rule", rule, Rule, "one of the rules, such as salf.Corrected()")
        check_type("memory", memory, (NoneType, Mapping), "the memory of the result before")
        check_type("clients", clients, (NoneType, np.ndarray, Sequence), "a number for each client that is asked")
        if not layers.tensors <= state.keys():
            missing = sorted(layers.tensors - state.keys())
            raise InvalidSetting(f"the state lacks {', '.join(map(repr, missing))}, which its layers name")
        self._state, self._layers, self._rule = state, layers, rule
        self._clients, self._momentum = clients, momentum
        self._reach = _as_probabilities(reach, len(layers))
        self._memory = Recollection(memory or {}, rule.budget_bytes) if isinstance(rule, Memory) else None
        self._known = memory or {}
        self._sums = [LayerSum() for _ in layers]
        self._received = 0
        self._weight_received = 0.0

    @torch.no_grad()
    def add(self, update: Update, position: int | None = None, *, checked: bool = False) -> None:
        """Add one client's update; one that raises `InvalidUpdate` changes nothing.

        `position` is the client's row in `reach` and its place in `clients`; by default they come in that order. Of an
        update that is `checked` the caller knows that `check_update` accepts it.
        """
        if not checked:
            check_update(update, self._layers, self._state)
        row = self._received if position is None else position
        weight = float(update.num_examples) if self._rule.weight_by_examples else 1.0
        conveyed = [index for index, layer in enumerate(self._layers) if update.conveys(layer)]
        chances = [self._chance(row, index) for index in conveyed]
        if self._memory is not None:
            self._remember(self._memory, update, row, weight)
        progress: dict[int, float] = {}  # of two numbers of steps at most
        for index, chance in zip(conveyed, chances, strict=True):
            layer, total = self._layers[index], self._sums[index]
            taken = update.steps_of(layer.name)
            if taken not in progress:
                progress[taken] = float(self._progress(taken))
            steps = progress[taken]
            each = steps if self._rule.normalise == "steps" else 1
            deltas = {} if isinstance(self._rule, Memory) else self._at_home(update.deltas, layer.parameters)
            total.add(deltas, weight / chance / each, weight, steps)
            buffers = self._at_home(update.buffers, layer.buffers)
            if buffers:
                total.add_buffers(buffers, weight)
        self._received += 1
        self._weight_received += weight

    @property
    def needs_individual_updates(self) -> bool:
        """Whether the rule needs each client's own update, not their sum."""
        return self._memory is not None

    @property
    def weighs_by_examples(self) -> bool:
        """Whether clients weigh their numbers of examples; else each weighs 1."""
        return self._rule.weight_by_examples

    def weights(self, num_examples: npt.ArrayLike) -> Floats:
        """Return the weights a_u of clients with so many examples, shape (clients,)."""
        examples = np.asarray(num_examples, dtype=np.float64)
        return examples if self._rule.weight_by_examples else np.ones_like(examples)

    def importance_weights(self, steps: npt.ArrayLike) -> Floats | None:
        """Return by how much more than its weight each client's Δ of each layer counts, shape (clients, layers).

        `steps`, of that shape, counts the optimizer steps of each layer; what is returned for a layer without any is 0.
        None if every client counts by its weight alone. Raises `InvalidSetting` for `Memory`, which needs each client's
        own update.
        """
        if isinstance(self._rule, Memory):
            raise InvalidSetting("the rule 'memory' needs each client's own update, not their sum")
        if not isinstance(self._rule, InverseProbability):
            return None
        importance_weights = np.zeros(np.shape(steps))
        conveyed = np.asarray(steps) > 0
        for row, layer in np.argwhere(conveyed).tolist():
            importance_weights[row, layer] = 1 / self._chance(row, layer)
        return None if (importance_weights[conveyed] == 1).all() else importance_weights

    def add_totals(self, clients: int, weight: float, totals: Iterable[PartialSum | None]) -> None:
        """Add all clients of a round at once, given the sums of what they conveyed, layer by layer.

        `clients` and `weight`, the sum of their weights, include those that convey nothing. A layer without
        contributors has no total; the totals are used up.
        """
        for running, total in zip(self._sums, totals, strict=True):
            if total is not None:
                running.add_total(total)
        self._received += clients
        self._weight_received += weight

    @torch.no_grad()
    def finish(self, num_clients: int | None = None) -> Aggregated:
        """Return the new state, given how many clients were asked (by default, as many as were added).

        The sums are used up: an `Aggregation` is finished once.
        """
        asked = self._count_clients(num_clients)
        empty = self._empty_probabilities(asked)
        # Clients asked that never answered weigh as much as the mean of those that did.
        weight_all = self._weight_received * asked / self._received if self._received else 0.0
        sums: dict[str, Tensor] = {}
        factors: list[float] = []
        means: dict[str, Tensor] = {}
        idle: dict[str, Tensor] = {}
        for layer, total, chance in zip(self._layers, self._sums, empty, strict=True):
            moved = total if self._memory is None else self._recall(self._memory, layer)
            if total.contributors < self._rule.min_contributors:
                idle |= total.scaled() | total.buffers
                continue
            factor = self._rule.factor(LayerShare(asked, total.contributors, moved.weight, weight_all, chance))
            if self._rule.normalise == "steps":
                factor *= moved.weighted_steps / moved.weight
            factor *= moved.scale
            sums |= {name: moved.deltas.pop(name) for name in layer.parameters}
            factors += [factor] * len(layer.parameters)
            means |= {
                name: mean_of(self._state[name], value, total.buffer_weight) for name, value in total.buffers.items()
            }
        changed = self._moved(sums, factors) | means
        overflowed = _overflowed(self._layers, changed | idle)
        for layer in overflowed:
            for name in (*layer.parameters, *layer.buffers):
                changed.pop(name, None)
        first = {name: self._layers.aliases.get(name, name) for name in self._state}
        new = {
            name: changed[first[name]] if first[name] in changed else old.clone() for name, old in self._state.items()
        }
        contributors = tuple(total.contributors for total in self._sums)
        memory = self._known if self._memory is None else self._memory.memory
        return Aggregated(new, contributors, memory, tuple(layer.name for layer in overflowed), tuple(empty))

    def _moved(self, sums: Mapping[str, Tensor], factors: list[float]) -> dict[str, Tensor]:
        """Return old + factor · sum for some parameters, in their own type; the sums are used up."""
        values, old = [*sums.values()], [self._state[name] for name in sums]
        if values:
            torch._foreach_mul_(values, factors)
            torch._foreach_add_(values, old)
        return {
            name: value if value.dtype is before.dtype else value.to(before.dtype)
            for name, value, before in zip(sums, values, old, strict=True)
        }

    def _progress(self, steps: npt.ArrayLike) -> Floats:
        return local_progress(steps, self._momentum)

    def _at_home(self, tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        """Return those of `names` that were conveyed, on the device of the state."""
        return {name: tensors[name].to(self._state[name].device) for name in names if name in tensors}

    def _chance(self, row: int, layer: int) -> float:
        if not isinstance(self._rule, InverseProbability):
            return 1.0
        if self._reach is None:
            raise InvalidSetting("InverseProbability needs reach, the probability that each client reaches each layer")
        if self._reach.ndim == 2 and not 0 <= row < len(self._reach):
            raise InvalidSetting(f"reach has {len(self._reach)} rows, but update {row + 1} arrived")
        chance = float(self._reach[row, layer] if self._reach.ndim == 2 else self._reach[layer])
        if chance <= 0:
            raise InvalidSetting(
                f"client {row} conveyed layer '{self._layers[layer].name}', which by reach it never reaches (π = 0)"
            )
        return max(chance, self._rule.least_probability)

    def _remember(self, memory: Recollection, update: Update, row: int, weight: float) -> None:
        if self._clients is not None and not 0 <= row < len(self._clients):
            raise InvalidSetting(f"clients names {len(self._clients)} clients, but update {row + 1} arrived")
        memory.keep(
            row if self._clients is None else self._clients[row],
            {
                layer.name: Remembered(
                    {name: update.deltas[name].clone() for name in layer.parameters},
                    weight,
                    update.steps_of(layer.name),
                    memory.turn,
                )
                for layer in self._layers
                if update.conveys(layer)
            },
        )

    def _recall(self, memory: Recollection, layer: Layer) -> LayerSum:
        """Sum what every client last conveyed for a layer."""
        total = LayerSum()
        for last in memory.of(layer.name):
            steps = float(self._progress(last.steps))
            each = steps if self._rule.normalise == "steps" else 1
            total.add(last.deltas, last.weight / each, last.weight, steps)
        return total

    def _count_clients(self, num_clients: int | None) -> int:
        known = self._reach.shape[0] if self._reach is not None and self._reach.ndim == 2 else None
        given = "yes or no" if isinstance(num_clients, bool) else num_clients
        check_type("num_clients", given, (int, np.integer, NoneType), "how many clients were asked")
        asked = num_clients if num_clients is not None else known if known is not None else self._received
        if asked > _MOST_CLIENTS:
            raise InvalidSetting(f"num_clients is {asked}; give at most 2^53")
        if asked < self._received:
            raise InvalidSetting(f"{self._received} updates came from num_clients={asked} clients")
        if known is not None and known != asked:
            raise InvalidSetting(f"reach has {known} rows for num_clients={asked} clients")
        return asked

    def _empty_probabilities(self, asked: int) -> list[float]:
        if self._reach is None:
            return [0.0] * len(self._layers)
        known = asked if self._reach.ndim == 1 else None
        empty = empty_probability(reach=self._reach, num_clients=known, min_contributors=self._rule.min_contributors)
        chances: list[float] = empty.tolist()
        return chances


def local_progress(steps: npt.ArrayLike, momentum: float) -> Floats:
    """Return how far so many local steps go: the sum ‖a‖₁ of the weights with which their gradients enter Δ.

    For SGD with momentum ρ that is (τ − ρ (1 − ρ^τ)/(1 − ρ)) / (1 − ρ) (FedNova, arXiv 2007.07481, §4).

    >>> local_progress([1, 2], momentum=0.5)  # after two steps the first gradient has entered as 1 + 0.5
    array([1. , 2.5])
    """
    taken = np.asarray(steps, dtype=np.float64)
    rest = 1 - momentum
    return np.asarray((taken - momentum * (1 - momentum**taken) / rest) / rest, dtype=np.float64)


def _as_probabilities(reach: Reach | None, num_layers: int) -> npt.NDArray[np.float64] | None:
    if reach is None:
        return None
    try:
        # Arrays first: to find out whether something is of a protocol takes as long as a small layer's pass.
        if isinstance(reach, np.ndarray) or not isinstance(reach, DepthDistribution):
            given = reach
        else:
            given = reach_probability(depth=reach, num_layers=num_layers)
        chances = np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InvalidSetting(f"reach cannot be used: {error}") from error
    if chances.ndim not in (1, 2) or chances.shape[-1] != num_layers:
        raise InvalidSetting(
            f"reach has shape {chances.shape}, not ({num_layers},) or (clients, {num_layers}) for {num_layers} layers"
        )
    if not ((chances >= 0) & (chances <= 1)).all():
        raise InvalidSetting("reach holds values that are not probabilities between 0 and 1")
    return chances


def _overflowed(layers: Layers, values: Mapping[str, Tensor]) -> list[Layer]:
    """Return the layers of which a value is not finite."""
    if all_finite([*values.values()]):
        return []
    names = {layer.name: [name for name in (*layer.parameters, *layer.buffers) if name in values] for layer in layers}
    return [layer for layer in layers if not all_finite([values[name] for name in names[layer.name]])]
