"""The optimizer step in progress: which layers have their gradient, and what to restore if it never completes."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from salf.layers import Layer, Layers


class RequiredPasses:
    """How many backward passes must reach each parameter before the optimizer step.

    The number is `accumulate` if the user gave it. Otherwise it is what the last whole step needed, or 1. It grows when
    more passes arrive than expected.

    Attributes:
        of: The number of passes for each parameter, by name.
        fewest: The number for parameters about which earlier steps tell nothing.
        usual: What earlier steps needed, by parameter; None if that is unknown or does not apply.
    """

    def __init__(self, layers: Iterable[Layer], accumulate: int | None) -> None:
        self.of: dict[str, int] = {}
        self.fewest = accumulate or 1
        self.usual: Mapping[str, int] | None = None
        self._layers, self._accumulate = tuple(layers), accumulate
        self._computed_from: tuple[Mapping[str, int] | None, int] | None = None

    def reset(self, usual: Mapping[str, int] | None) -> None:
        """Start a new step, given what earlier steps needed."""
        self.usual = usual if self._accumulate is None else None
        self.fewest = self._accumulate or 1
        self._compute()

    def extend(self, arrived: Mapping[str, int]) -> None:
        """Require one more pass, because it begins after the gradients in `arrived` and before a step."""
        if all(arrived.get(name, 0) >= need for name, need in (self.usual or {}).items()):
            self.usual = None  # there are more passes than usual
        each = self._accumulate or 1
        self.raise_to(max(self.fewest, each * (max(arrived.values()) // each + 1)))

    def raise_to(self, passes: int) -> None:
        """Require at least this number of passes."""
        self.fewest = passes
        self._compute()

    def _compute(self) -> None:
        """Compute `of`, unless nothing has changed: this runs in every step."""
        if self._computed_from == (self.usual, self.fewest):
            return
        self._computed_from = self.usual, self.fewest
        for layer in self._layers:
            needs = {name: (self.usual or {}).get(name, 0) for name in layer.parameters}
            self.of |= needs if any(needs.values()) else dict.fromkeys(needs, self.fewest)


class BufferSnapshot:
    """A copy of a model's buffers from before a step."""

    def __init__(self, model: nn.Module, layers: Layers) -> None:
        self._model, self._layers = model, layers
        # Modules may replace a buffer, so the tensors are looked up for each copy.
        paths = {name: name.rpartition(".") for layer in layers for name in layer.buffers}
        self._owners = {name: (model.get_submodule(module), key) for name, (module, _, key) in paths.items()}
        self._copies: dict[str, Tensor] = {}

    def take(self) -> None:
        """Copy all buffers, unless there is a copy."""
        if not self._copies:
            with torch.no_grad():
                self._copies = {name: getattr(module, key).clone() for name, (module, key) in self._owners.items()}

    def discard(self) -> None:
        """Forget the copy."""
        self._copies = {}

    def restore(self, layers: Collection[str]) -> None:
        """Write the copy, if there is one, into the buffers of the layers with these names."""
        names = [name for layer in self._layers if layer.name in layers for name in layer.buffers]
        with torch.no_grad():
            for name in names if self._copies else ():
                self._model.get_buffer(name).copy_(self._copies[name])


class StepProgress:
    """Which layers of the step in progress are complete: all their gradients have arrived often enough.

    Attributes:
        complete: Names of the complete layers.
        complete_bytes: The size of their parameters.
        order: Names of the layers that the current backward pass completed, in this order.
        since: The time of the last completion, or of the forward pass; None before the first forward pass.
        buffers: The model's buffers from before the step.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        sizes: Mapping[str, int],
        passes: Mapping[str, int] | None,
        accumulate: int | None,
    ) -> None:
        """Prepare the first step.

        Args:
            model: The model in training.
            layers: All its layers.
            sizes: Bytes of the parameters of each layer that the optimizer changes, by layer name.
            passes: How many backward passes reach each parameter in a step, if earlier steps have shown it.
            accumulate: The same number for all parameters, if the user gave it.
        """
        self.buffers = BufferSnapshot(model, layers)
        self._sizes = sizes
        self._layers = [layer for layer in layers if layer.name in sizes]
        self._owner = {name: layer for layer in self._layers for name in layer.parameters}
        self._parameters = dict(model.named_parameters())
        self._required = RequiredPasses(self._layers, accumulate)
        self.begin_step(passes)

    def begin_step(self, passes: Mapping[str, int] | None) -> None:
        """Start a new step; `passes` is how many backward passes reach each parameter, if known."""
        self._required.reset(passes)
        self._arrived: dict[str, int] = {}
        self.buffers.discard()
        self.complete: set[str] = set()
        self.complete_bytes = 0
        self.order: list[str] = []
        self.since: float | None = None

    def begin_pass(self, now: float) -> None:
        """Note that a forward pass begins at the time `now`."""
        if self._arrived and all(_is_blank(self._parameters[name].grad) for name in self._arrived):
            self.begin_step(self._required.usual)
        if self._arrived:  # no step since the last pass: the loop accumulates gradients
            self._required.extend(self._arrived)
            self._find_complete()
        self.buffers.take()
        self.order, self.since = [], now

    def arrive(self, name: str) -> str | None:
        """Note that a parameter's gradient is ready; return its layer's name if that layer is complete."""
        count = self._arrived[name] = self._arrived.get(name, 0) + 1
        layer = self._owner[name]
        if count > self._required.fewest:
            self._required.raise_to(count)
            self._find_complete()
        else:
            self._check_complete(layer)
        if layer.name not in self.complete:
            return None
        self.order.append(layer.name)
        return layer.name

    def needs_another_pass(self, name: str) -> bool:
        """Say whether further backward passes must reach a parameter."""
        return self._arrived.get(name, 0) < self._required.of[name]

    def passes(self) -> dict[str, int]:
        """Return how often each gradient has arrived."""
        return dict(self._arrived)

    def _find_complete(self) -> None:
        """Find the complete layers again, after the requirements have grown."""
        self.complete, self.complete_bytes = set(), 0
        for layer in self._layers:
            self._check_complete(layer)

    def _check_complete(self, layer: Layer) -> None:
        """Add a layer to `complete` if each of its gradients has arrived often enough."""
        if layer.name in self.complete:
            return
        arrived, required = self._arrived, self._required.of  # this runs for every gradient
        for name in layer.parameters:
            if arrived.get(name, 0) < required[name]:
                return
        self.complete.add(layer.name)
        self.complete_bytes += self._sizes[layer.name]


def _is_blank(gradient: Tensor | None) -> bool:
    return gradient is None or not bool(gradient.any())
