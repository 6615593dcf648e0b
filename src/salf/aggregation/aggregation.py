"""Aggregation, layer by layer: the one place that knows what happens to a layer that was not sent.

A rule says how far a layer moves; a layer with fewer than `min_contributors` contributors stays where it is. Buffers
that are statistics are averaged over contributors and never extrapolated; counters take the maximum; others stay.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType

import numpy as np
import torch
from torch import Tensor

from salf.aggregation.client_memory import ClientMemory, Recollection
from salf.aggregation.cohort_sums import CohortSums, Reach, Weigh
from salf.aggregation.rules import LayerShare, Rule
from salf.aggregation.sums import at_home
from salf.errors import InvalidSetting, check_type
from salf.layers import Layer, Layers, is_continuous, is_unchanged, stays_finite
from salf.update import Update, all_finite, check_update

_MOVING = ("running_mean", "running_var")  # every pass changes them, so that to compare them only takes time


@dataclass(frozen=True)
class Aggregated:
    """The new global state, and which clients contributed to it.

    Attributes:
        state: The new state dict.
        contributors: The number of clients that sent each layer, input to output.
        memory: Each client's last updates, for a rule that remembers them; pass it to the next aggregation.
        overflowed: The names of layers whose sum, or new value, is not finite; they stay where they were.
        empty_probability: p_l of each layer, 0 without `reach`; empty where it was not computed.

    >>> import salf
    >>> layers = salf.find_layers(torch.nn.Linear(1, 1, bias=False))
    >>> update = salf.Update({"weight": torch.ones(1, 1)}, steps=1, num_examples=4)
    >>> result = salf.aggregate({"weight": torch.ones(1, 1)}, [update], layers, salf.Contributors())
    >>> result.contributors, result.state["weight"].item()
    ((1,), 2.0)
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
    weigh: Weigh = "clients",
) -> Aggregated:
    """Aggregate one round's updates, layer by layer, into a new state; the arguments do not change.

    Args:
        state: The global state dict.
        updates: The clients' updates; an empty one counts like a missing one, but tells the client's weight.
        layers: The model's layers, as `find_layers` returns them.
        rule: How far each layer moves.
        num_clients: The number of clients asked, U; by default the number of updates. Those without an update weigh
            as much as the others do on average.
        reach: π_{u,l}, of shape (layers,) or (clients, layers) with one row for each client asked, those with an update
            first; or a depth distribution of `salf.theory`. Without it p_l counts as 0.
        clients: The senders' numbers, for rules that tell clients apart over rounds, such as `Memory`.
        memory: The `memory` of the previous round's result.
        weigh: With "examples", a client weighs in each layer by the number of examples that the layer has seen
            (`Update.examples`): least noise where the clients' data are alike. With "clients", all count alike, or by
            the rule's weights: unbiased where the data differ.

    Raises `InvalidUpdate` for an update that must not be aggregated, and `InvalidSetting` for a wrong argument.

    >>> from salf import Corrected, Layer
    >>> layers = Layers((Layer("body", ("body",)), Layer("head", ("head",))))
    >>> whole = Update({"body": torch.ones(1), "head": torch.ones(1)}, steps=1, num_examples=10)
    >>> part = Update({"head": 3 * torch.ones(1)}, steps=1, num_examples=10)
    >>> state = {"body": torch.zeros(1), "head": torch.zeros(1)}
    >>> aggregate(state, [whole, part], layers, Corrected(), reach=[0.5, 1.0]).state
    {'body': tensor([1.3333]), 'head': tensor([2.])}
    """
    check_type("updates", updates, Iterable, "the round's updates, as a list or another iterable")
    running = Aggregation(state, layers, rule, reach=reach, clients=clients, memory=memory, weigh=weigh)
    for update in updates:
        running.add(update)
    return running.finish(num_clients)


class Aggregation:
    """`aggregate` for updates that arrive one by one: its memory does not grow with their number.

    Args:
        state: The global state dict; it is not changed.
        layers: The model's layers.
        rule: How far each layer moves.
        reach: As in `aggregate`.
        clients: As in `aggregate`.
        memory: As in `aggregate`.
        momentum: The momentum of the clients' SGD, for rules that normalise by steps.
        weigh: As in `aggregate`. With n_{u,l} the examples of a layer, its contributors weigh a_u n_{u,l}
            Σ a_u / Σ a_u n_{u,l} instead of a_u, which leaves their total weight, so the meaning of a rule's factor, as
            it is.

    Attributes:
        sums: The interface of engines that compute many clients at once.

    >>> from salf.layers import Layer, Layers, is_continuous, is_unchanged, stays_finite
    >>> from salf.aggregation.rules import Contributors
    >>> running = Aggregation({"w": torch.zeros(1)}, Layers((Layer("head", ("w",)),)), Contributors())
    >>> running.add(Update({"w": torch.tensor([1.0])}, steps=1, num_examples=5))
    >>> running.add(Update({"w": torch.tensor([2.0])}, steps=1, num_examples=5))
    >>> running.finish().state
    {'w': tensor([1.5000])}
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
        weigh: Weigh = "clients",
    ) -> None:
        check_type("state", state, (dict, Mapping), "the model's state dict")
        check_type("layers", layers, Layers, "the model's layers, as find_layers returns them")
        check_type("rule", rule, Rule, "one of the rules, such as salf.Corrected()")
        check_type("memory", memory, (NoneType, Mapping), "the memory of the result before")
        check_type("clients", clients, (NoneType, np.ndarray, Sequence), "a number for each client that is asked")
        if not layers.tensors <= state.keys():
            missing = ", ".join(map(repr, sorted(layers.tensors - state.keys())[:5]))
            raise InvalidSetting(f"the state lacks {missing}, which its layers name; pass the whole state dict")
        self._state, self._layers, self._rule = state, layers, rule
        self._combined = combined_buffers(layers, state)
        self._compared = {
            name
            for names in self._combined
            for name in names
            if not name.endswith(_MOVING) and is_continuous(state[name])
        }
        self._known = memory or {}
        budget = rule.memory_bytes
        self.sums = CohortSums(layers, rule, reach=reach, clients=clients, momentum=momentum, weigh=weigh)
        by_examples = self.sums.weighs_examples
        self._memory = None if budget is None else Recollection(self._known, budget, by_examples=by_examples)

    @torch.no_grad()
    def add(self, update: Update, position: int | None = None, *, checked: bool = False) -> None:
        """Add one client's update; one that raises changes nothing.

        Args:
            update: What the client sent.
            position: The client's row in `reach` and its place in `clients`; by default updates come in that order.
            checked: Whether the caller knows that `check_update` accepts the update.

        Raises:
            InvalidUpdate: The update must not be aggregated.
            InvalidSetting: `reach` or `clients` do not fit the update.
        """
        if not checked:
            check_update(update, self._layers, self._state)
        row = self.sums.received if position is None else position
        weight = self.sums.weight_of(update.num_examples)
        steps = [update.steps_of(layer.name) if update.includes(layer) else 0 for layer in self._layers]
        own, examples = self.sums.layer_weights_of(update, steps, row, weight), self.sums.examples_of(update, row)
        if self._memory is not None:
            self._memory.remember(update, self._layers, self.sums.client_at(row), own, self._at_home)
        progress = {count: self.sums.progress(count) for count in {*steps} - {0}}
        for layer, combined, count, own_weight, seen, total in zip(
            self._layers, self._combined, steps, own, examples, self.sums.layer_sums, strict=True
        ):
            if not count:
                continue
            (taken, divisor), relative = progress[count], total.relative(seen)
            deltas = {} if self._memory is not None else self._at_home(update.deltas, layer.parameters)
            total.add(deltas, own_weight / divisor, weight, taken, relative)
            buffers = self._at_home(update.buffers, combined)
            if buffers:
                unchanged = self._unchanged(update.buffers, buffers) if self._compared else ()
                total.add_buffers(buffers, weight * relative, unchanged)
        self.sums.received += 1
        self.sums.weight_received += weight

    @torch.no_grad()
    def finish(self, num_clients: int | None = None) -> Aggregated:
        """Return the new state; the sums are used up, so an `Aggregation` is finished once.

        Args:
            num_clients: The number of clients asked; by default the number of those added.

        Raises:
            InvalidSetting: `num_clients` contradicts `reach` or the number of updates.
        """
        asked = self.sums.count_clients(num_clients)
        empty = self.sums.empty_probabilities(asked)
        changed, idle = self._moved(asked, empty)
        overflowed = _overflowed(self._layers, changed | idle, self._state)
        for layer in overflowed:
            for name in (*layer.parameters, *layer.buffers):
                changed.pop(name, None)
        aliases, new = self._layers.aliases, {}
        for name, old in self._state.items():
            moved = changed.get(aliases.get(name, name))
            new[name] = old.clone() if moved is None else moved
        contributors = tuple(total.contributors for total in self.sums.layer_sums)
        memory = self._known if self._memory is None else self._memory.memory
        return Aggregated(new, contributors, memory, tuple(layer.name for layer in overflowed), tuple(empty))

    def _moved(self, asked: int, empty: Sequence[float]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the new values of layers with enough contributors, and the sums of those with too few, by name."""
        received, weight_received = self.sums.received, self.sums.weight_received
        # Clients asked that never answered weigh as much as the mean of those that did.
        weight_all = weight_received * asked / received if received else 0.0
        deltas: dict[str, Tensor] = {}
        factors: list[float] = []
        means: dict[str, Tensor] = {}
        idle: dict[str, Tensor] = {}
        for layer, total, chance in zip(self._layers, self.sums.layer_sums, empty, strict=True):
            moved = total if self._memory is None else self._memory.sum_of(layer, self.sums.progress)
            if total.contributors < self._rule.min_contributors:
                idle |= total.scaled() | total.buffers
                continue
            factor = self._rule.factor(LayerShare(asked, total.contributors, moved.weight, weight_all, chance))
            factor *= moved.factor
            if self._rule.normalise == "steps":
                factor *= moved.mean_steps
            deltas |= {name: moved.deltas.pop(name) for name in layer.parameters}
            factors += [factor * moved.scale] * len(layer.parameters)
            means |= {name: total.buffer_mean(name, self._state[name]) for name in total.buffers}
        return self._added(deltas, factors) | means, idle

    def _added(self, sums: Mapping[str, Tensor], factors: list[float]) -> dict[str, Tensor]:
        """Return old + factor · sum for some parameters, in their own type; the sums are used up."""
        values, old = [*sums.values()], [self._state[name] for name in sums]
        if values:
            torch._foreach_mul_(values, factors)
            torch._foreach_add_(values, old)
        return {name: value.to(before.dtype) for name, value, before in zip(sums, values, old, strict=True)}

    def _unchanged(self, buffers: Mapping[str, Tensor], names: Iterable[str]) -> list[str]:
        """Return which statistics a client leaves as they are, which their mean would not do bit for bit."""
        compared = self._compared.intersection(names)
        return [name for name in compared if is_unchanged(buffers[name], self._state[name])]

    def _at_home(self, tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        """Return those of `names` that were sent, on the device of the state and in a type that is wide enough."""
        return {name: at_home(self._state[name], tensors[name]) for name in names if name in tensors}


def combined_buffers(layers: Layers, state: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Return the names of each layer's buffers that updates may change: its statistics and counters."""
    may_change = {"statistic", "counter"}
    return [
        tuple(name for name in layer.buffers if layers.kind_of(name, state[name]) in may_change) for layer in layers
    ]


def _overflowed(layers: Layers, values: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[Layer]:
    """Return the layers with a value that is not finite, except for values of buffers that were not finite before."""
    if all_finite([*values.values()]):
        return []

    def is_fine(layer: Layer) -> bool:
        own = [values[name] for name in layer.parameters if name in values]
        return all_finite(own) and all(stays_finite(values[n], state[n]) for n in layer.buffers if n in values)

    return [layer for layer in layers if not is_fine(layer)]
