"""The optimizer step in progress: which layers have their gradient, from how many passes, and what is to be kept."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from salf.client.buffer_snapshot import BufferSnapshot
from salf.client.loop_pattern import LoopPattern
from salf.client.torch_events import reached_parameters
from salf.layers import Layer, Layers


@dataclass
class PassInProgress:
    """One forward pass, and the backward calls that belong to it.

    Attributes:
        calls: The number of backward calls so far.
        arrived: How often each gradient has arrived, by parameter.
        expected: How often each must arrive, as far as the calls tell; None if it is not known.
        roots: The calls themselves, while `expected` is not known: what they differentiate, and their limits.
        hidden: How often each module was called without gradients, in checkpoints that repeat it in the backward pass.
        repeating: How often each module was called again in the backward pass, since the last call within it.
        repeated: How often each module was called again before that call.
        examples: The number of examples.
    """

    calls: int = 0
    arrived: dict[str, int] = field(default_factory=dict)
    expected: Counter[str] | None = None
    roots: list[tuple[Iterable[object], Iterable[object] | None]] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    repeating: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    examples: int = 0


class StepProgress:
    """What the step in progress has gathered.

    A pass has reached a layer when all gradients that the pass brings to the layer are complete. A step may be made of
    several passes; `passes_per_step` is their number, from the user or from earlier steps.

    Attributes:
        complete: Names of the layers that the current pass has reached.
        order: The same names, in the order of their completion.
        since: The time of the last completion, or of the forward pass; None before the first forward pass.
        passes: The number of whole passes that have reached each layer since its last step, by layer.
        examples: The number of examples in them.
        pass_in_progress: The current pass.
        buffers: The model's buffers from before the step.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        sizes: Mapping[str, int],
        pattern: LoopPattern,
        accumulate: int | None = None,
    ) -> None:
        """Prepare the first step.

        Args:
            model: The model in training.
            layers: All its layers.
            sizes: Bytes of the parameters of each layer that the optimizer holds, by layer name; only these are kept.
            pattern: What earlier steps have shown; it learns from this one.
            accumulate: The number of passes per step, if the user gave it. With 1, all passes of a step are one.
        """
        self.buffers = BufferSnapshot(model, layers)
        self._sizes, self._pattern, self._accumulate, self._has_stepped = sizes, pattern, accumulate, False
        self._layers = tuple(layers)
        self._owner = {name: layer for layer in self._layers for name in layer.parameters}
        self._parameters = {name: model.get_parameter(name) for name in self._owner}
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._modules = self._modules_of_layers(model)
        self.complete, self.order = set[str](), list[str]()
        self._kept_bytes: int | None = None
        self.passes, self.examples = Counter[str](), Counter[str]()
        self._parameter_passes = Counter[str]()
        self._discarded, self._stale, self._spoiled = Counter[str](), set[str](), set[str]()
        self._versions = {layer.name: self._gradient_version(layer) for layer in self._layers}
        self.begin_step(())

    @property
    def passes_per_step(self) -> int | None:
        """The number of backward passes per optimizer step; None while it is unknown, or larger than it was before."""
        usual, begun = self._pattern.passes_per_step, bool(self.pass_in_progress.arrived)
        if self._accumulate is not None:  # a block whose steps have fewer passes steps as they do
            return min(self._accumulate, usual) if usual is not None and self._has_stepped else self._accumulate
        if usual is not None and max(self.passes.values(), default=0) + begun > usual:
            return None
        return usual

    def begin_step(self, layers: Collection[str]) -> None:
        """Begin the next step of the layers with these names, which were stepped."""
        self._forget(layers)
        for name in layers:
            self._discarded.pop(name, None)
        for layer in self._layers:
            self._versions[layer.name] = self._gradient_version(layer)
        self._begin_pass()
        self.since: float | None = None

    def learn_step(self, layers: Collection[str]) -> None:
        """Learn from a whole step over the layers with these names."""
        passes = {name: self.passes[name] for name in layers if self.passes[name]}
        if passes:
            self._pattern.learn_step(passes, self._discarded)
            self._has_stepped = True

    def begin_pass(self, now: float, examples: int = 0) -> None:
        """Note that a forward pass over a number of examples begins at the time `now`."""
        self.end_pass()
        self._find_cleared_gradients()
        self.buffers.take()
        self.order, self.since = [], now
        self.pass_in_progress.examples = examples or self.pass_in_progress.examples

    def begin_backward(
        self, now: float, roots: Iterable[object], inputs: Iterable[object] | None, *, exact: bool
    ) -> None:
        """Note that a backward call begins; see `reached_parameters` for its arguments.

        Args:
            now: The time.
            roots: What the call differentiates.
            inputs: The only tensors that get a gradient; None for all.
            exact: Whether to find out at once which gradients will arrive. It takes time, so far from the deadline it
                is left until it is needed.
        """
        self._find_cleared_gradients()
        current = self.pass_in_progress
        current.calls += 1
        current.roots.append((roots, inputs))
        self.since = now if self.since is None else self.since
        if exact:
            self._look_ahead()

    def begin_segment(self, roots: Iterable[object], inputs: Iterable[object] | None) -> None:
        """Note that a backward call within a backward call begins: a checkpoint has repeated its segment."""
        current = self.pass_in_progress
        current.repeated.update(current.repeating)
        current.repeating.clear()
        if current.expected is not None:
            current.expected.update(reached_parameters(roots, inputs, self._names))

    def end_backward(self) -> None:
        """Note that a backward call has ended, and was not cut."""
        self.pass_in_progress.roots.clear()
        for layer in self._layers:
            self._versions[layer.name] = self._gradient_version(layer)

    def arrive(self, name: str) -> str | None:
        """Note that a parameter's gradient is ready; return its layer's name if the pass has now reached that layer."""
        arrived = self.pass_in_progress.arrived
        arrived[name] = arrived.get(name, 0) + 1
        layer = self._owner[name]
        if layer.name in self.complete or layer.name not in self._sizes or not self._is_reached(layer):
            return None
        self.complete.add(layer.name)
        self.order.append(layer.name)
        if self._kept_bytes is not None and not self.passes[layer.name] and self._may_keep(layer):
            self._kept_bytes += self._sizes[layer.name]
        return layer.name

    def needs_more(self, name: str) -> bool:
        """Say whether a gradient must arrive again in the current pass."""
        return self.pass_in_progress.arrived.get(name, 0) < self._required(name)

    def end_pass(self, *, at_step: bool = False) -> None:
        """Count the current pass, which is whole, unless it has brought no gradient, or ends only with the step."""
        current = self.pass_in_progress
        if self._accumulate == 1 and not at_step:
            return
        if not current.arrived:
            if current.calls:
                self._begin_pass()
            return
        for name in current.arrived:
            self._parameter_passes[name] += 1
        for layer in {self._owner[name].name for name in current.arrived}:
            self.passes[layer] += 1
            self.examples[layer] += current.examples
        self._pattern.arrivals, self._pattern.calls = current.arrived, current.calls
        self._begin_pass()

    def cut_pass(self) -> set[str]:
        """Count what the current pass has reached; return the parameters to which it would have brought a gradient."""
        if not self.pass_in_progress.calls:
            self._find_cleared_gradients()
        self._look_ahead()
        current = self.pass_in_progress
        for layer in self._layers:
            if self._is_reached(layer):
                self.passes[layer.name] += 1
                self.examples[layer.name] += current.examples
            for name in layer.parameters:
                count = current.arrived.get(name, 0)
                if count >= self._required(name):
                    self._parameter_passes[name] += count > 0
                elif count:
                    self._spoiled.add(layer.name)  # it holds a part of this pass, which cannot be taken out
        expected = {*current.arrived, *(current.expected or ())}
        self._begin_pass()
        return expected

    def kept(self) -> list[Layer]:
        """Return the layers whose gradient may be stepped now: those that at least one pass has reached."""
        return [layer for layer in self._layers if self._may_keep(layer) and self.passes[layer.name]]

    def kept_bytes(self) -> int:
        """Return the size of the parameters of all layers to keep, those that the current pass has reached included."""
        if self._kept_bytes is None:  # this runs for every layer, so that the sum is kept
            self._kept_bytes = sum(
                self._sizes[layer.name]
                for layer in self._layers
                if (layer.name in self.complete or self.passes[layer.name]) and self._may_keep(layer)
            )
        return self._kept_bytes

    def factor_of(self, name: str) -> float:
        """Return k / j: by what a gradient is multiplied that j of the k passes of a step have reached."""
        passes = self._parameter_passes[name]
        return (self.passes_per_step or passes) / passes if passes else 1.0

    def _may_keep(self, layer: Layer) -> bool:
        is_used = self._discarded[layer.name] >= self._pattern.discarded(layer.name) and layer.name in self._sizes
        return is_used and layer.name not in self._stale and layer.name not in self._spoiled

    def _begin_pass(self) -> None:
        self.pass_in_progress = PassInProgress()
        self.complete, self.order, self._kept_bytes = set(), [], None

    def _is_reached(self, layer: Layer) -> bool:
        """Say whether all gradients that the current pass brings to a layer are there."""
        current, reached = self.pass_in_progress, False
        for name in layer.parameters:
            required = self._required(name)
            if current.arrived.get(name, 0) < required:
                return False
            reached = reached or required > 0
        return reached and all(current.hidden[name] <= current.repeated[name] for name in self._modules[layer.name])

    def _required(self, name: str) -> int:
        """Return how often a gradient must arrive in the current pass."""
        expected, usual = self.pass_in_progress.expected, self._pattern.arrivals
        if expected is None:
            return int(self._parameters[name].requires_grad) if usual is None else usual.get(name, 0)
        # With several backward calls in a pass, a later one may bring more than those so far.
        return max(expected[name], usual.get(name, 0)) if usual and self._pattern.calls > 1 else expected[name]

    def _look_ahead(self) -> None:
        """Find out which gradients the backward calls bring, unless it is known or cannot be known any more."""
        current = self.pass_in_progress
        # What an earlier call or a checkpoint brought cannot be found out any more.
        is_early = len(current.roots) == current.calls and not (current.hidden and current.arrived)
        if current.roots and (is_early or current.expected is not None):
            current.expected = Counter() if current.expected is None else current.expected
            for roots, inputs in current.roots:
                current.expected.update(reached_parameters(roots, inputs, self._names))
            current.roots.clear()

    def _find_cleared_gradients(self) -> None:
        """Find out which layers' gradients were cleared since their last pass, and which should have been."""
        arrived, self._kept_bytes = {self._owner[name].name for name in self.pass_in_progress.arrived}, None
        self._stale = {name for name in self._stale if self.passes[name] or name in arrived}
        cleared = set()
        for layer in self._layers:
            name, version = layer.name, self._gradient_version(layer)
            if self.passes[name] or name in arrived:
                if version is None or (version != self._versions[name] and self._is_blank(layer)):
                    self._discarded[name] += self.passes[name] or 1
                    cleared.add(name)
            elif version is not None and version == self._versions[name] and not self._is_blank(layer):
                self._stale.add(name)  # the gradient of the last step is still there
        if cleared:
            self._forget(cleared)
            if arrived and arrived <= cleared:
                self._begin_pass()

    def _forget(self, layers: Iterable[str]) -> None:
        """Forget the passes that have reached the layers with these names."""
        for name in layers:
            self.passes.pop(name, None)
            self.examples.pop(name, None)
            self._spoiled.discard(name)
            self._stale.discard(name)
        for name, layer in self._owner.items():
            if layer.name not in self.passes:
                self._parameter_passes.pop(name, None)

    def _gradient_version(self, layer: Layer) -> int | None:
        """Return the version of a layer's gradient, which counts writes; None if there is no gradient."""
        for name in layer.parameters:
            gradient = self._parameters[name].grad
            if gradient is not None:
                return gradient._version  # noqa: SLF001 - the only counter of writes, and it costs nothing to read
        return None

    def _is_blank(self, layer: Layer) -> bool:
        gradients = [self._parameters[name].grad for name in layer.parameters]
        return not any(gradient is not None and bool(gradient.any()) for gradient in gradients)

    def _modules_of_layers(self, model: nn.Module) -> dict[str, set[str]]:
        """Return the names of the modules that own a parameter of each layer."""
        modules: dict[str, set[str]] = {layer.name: set() for layer in self._layers}
        for module_name, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                name = self._names.get(id(parameter))
                if name is not None:
                    modules[self._owner[name].name].add(module_name)
        return modules
