"""What a client did in one block under a deadline, and the update it conveys."""

from collections.abc import Iterable, Mapping
from numbers import Integral

import torch
from torch import Tensor, nn

from salf.client.forecast import Pace
from salf.errors import InvalidSetting, SalfError
from salf.layers import Layer, Layers
from salf.update import Update


class Work:
    """The finished part of a block's training.

    `steps` counts whole optimizer steps, `layer_steps` the steps each layer received (one more where an interrupted
    backward pass completed it), `depth` the layers, from the output, that received any. `interrupted` says whether the
    deadline ended the block, `seconds` how long the block lasted, on the block's clock.
    """

    def __init__(self, model: nn.Module, layers: Layers, pace: Pace) -> None:
        self.steps = 0
        self.interrupted = False
        self.seconds = 0.0
        self.finished = False
        self._layers = layers
        self._tensors: dict[str, Tensor] = dict(model.named_parameters())
        self._initial: dict[str, Tensor] = {}
        self._pace = pace
        self._update: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self._layer_steps = dict.fromkeys(layers.names, 0)
        self._versions: dict[str, int] = {}

    def __repr__(self) -> str:
        return (
            f"Work(steps={self.steps}, depth={self.depth}, interrupted={self.interrupted}, seconds={self.seconds:.4g})"
        )

    @property
    def layer_steps(self) -> Mapping[str, int]:
        """Map each layer's name to the number of steps it received, input to output."""
        return dict(self._layer_steps)

    @property
    def depth(self) -> int:
        """The number of layers that received at least one step."""
        return sum(steps > 0 for steps in self._layer_steps.values())

    def update(self, num_examples: int) -> Update:
        """Return what is to be conveyed: for each layer that received a step, local minus initial weights.

        `num_examples` is the size of the client's data set, at least 1. Call it after the block and before anything
        else writes to the model, such as `load_state_dict`; raises `SalfError` if that is too late.
        """
        given: object = num_examples
        if isinstance(given, bool) or not isinstance(given, Integral) or num_examples < 1:
            raise InvalidSetting(f"num_examples is {num_examples!r}; give a whole number of at least 1")
        if not self.finished:
            raise SalfError("work.update() must be called after the 'with salf.deadline(...)' block, not inside it")
        conveyed = [layer for layer in self._layers if self._layer_steps[layer.name]]
        if self._update is None:
            changed = [name for name, count in self._versions.items() if _writes(self._tensors[name]) != count]
            if changed:
                raise SalfError(
                    f"the model was written to since the block ended ({', '.join(changed[:3])}"
                    f"{', …' if len(changed) > 3 else ''}), so what the block did is lost; call work.update() first"
                )
            with torch.no_grad():
                deltas = {
                    name: self._tensors[name].detach() - self._initial[name]
                    for layer in conveyed
                    for name in layer.parameters
                }
                buffers = {name: self._tensors[name].detach().clone() for layer in conveyed for name in layer.buffers}
            self._update = deltas, buffers
            self._pace.spare |= self._initial
            self._initial = {}
        steps = {layer.name: self._layer_steps[layer.name] for layer in conveyed}
        return Update(self._update[0], steps, int(num_examples), self._update[1])

    def keep_initial(self, names: Iterable[str]) -> int:
        """Remember the weights that are about to change for the first time; return how many bytes were copied."""
        fresh = [name for name in names if name not in self._initial]
        tensors = [self._tensors[name].detach() for name in fresh]
        copies = [
            _room(self._pace.spare.pop(name, tensor), tensor) for name, tensor in zip(fresh, tensors, strict=True)
        ]
        if fresh:
            torch._foreach_copy_(copies, tensors)
            self._initial |= dict(zip(fresh, copies, strict=True))
        return sum(tensor.nbytes for tensor in tensors)

    def end(self, model: nn.Module, seconds: float) -> None:
        """Note that the block is over, and which tensors are `model`'s buffers now: a module may have replaced them."""
        self._tensors |= dict(model.named_buffers())
        self._versions = {
            name: _writes(self._tensors[name])
            for layer in self._layers
            if self._layer_steps[layer.name]
            for name in layer.parameters
        }
        self.finished, self.seconds = True, seconds

    def count_step(self, stepped: Iterable[str], *, whole: bool) -> None:
        """Count an optimizer step over the layers called `stepped`."""
        self.steps += whole
        for name in stepped:
            self._layer_steps[name] += 1


class StepInTheMaking:
    """One optimizer step before it is taken: which gradients have arrived, since when, and what to undo.

    `complete` names the layers, out of those that `sizes` gives in bytes, whose gradients have all arrived;
    `complete_bytes` is their size; `order` names those of the current backward pass as they became complete.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        sizes: Mapping[str, int],
        passes: Mapping[str, int] | None,
        accumulate: int | None,
    ) -> None:
        self.order: list[str] = []
        self.since: float | None = None
        self._model, self._sizes = model, sizes
        self._stepped = [layer for layer in layers if layer.name in sizes]
        self._owner = {name: layer for layer in self._stepped for name in layer.parameters}
        # Where each layer's buffers are; the tensors are looked up each time, since a module may replace them.
        self._buffers = {
            layer.name: [(name, *_owner_of(model, name)) for name in layer.buffers] for layer in layers if layer.buffers
        }
        self._parameters = dict(model.named_parameters())
        self._accumulate = accumulate
        self._needs: dict[str, int] = {}
        self._needs_follow_from: tuple[Mapping[str, int] | None, int] | None = None
        self.begin(passes)

    def begin(self, passes: Mapping[str, int] | None) -> None:
        """Start afresh; `passes` says how many backward passes reach each parameter in a step, if that is known."""
        self._expected = passes if self._accumulate is None else None
        self._fewest = self._accumulate or 1
        self._ask()
        self._arrived: dict[str, int] = {}
        self._kept: dict[str, dict[str, Tensor]] = {}
        self.complete: set[str] = set()
        self.complete_bytes = 0
        self.order, self.since = [], None

    def begin_pass(self, now: float) -> None:
        """Note that a forward pass begins."""
        if self._arrived and all(_is_blank(self._parameters[name].grad) for name in self._arrived):
            self.begin(self._expected)
        if self._arrived:  # no step since the last pass: gradients are being accumulated
            if all(self._arrived.get(name, 0) >= need for name, need in (self._expected or {}).items()):
                self._expected = None  # they are more passes than usual
            each = self._accumulate or 1
            self._fewest = max(self._fewest, each * (max(self._arrived.values()) // each + 1))
            self._review()
        if not self._kept:
            with torch.no_grad():
                self._kept = {
                    layer: {name: getattr(module, key).clone() for name, module, key in buffers}
                    for layer, buffers in self._buffers.items()
                }
        self.order, self.since = [], now

    def arrive(self, name: str) -> None:
        """Note that a backward pass has completed the gradient of a parameter."""
        count = self._arrived[name] = self._arrived.get(name, 0) + 1
        if count > self._fewest:
            self._fewest = count
            self._review()
        else:
            self._look_at(self._owner[name])

    def needs_another_pass(self, name: str) -> bool:
        """Say whether a parameter must be reached by further backward passes."""
        return self._arrived.get(name, 0) < self._needs[name]

    def passes(self) -> dict[str, int]:
        """Return how often each gradient has arrived."""
        return dict(self._arrived)

    def restore_buffers(self, names: Iterable[str]) -> None:
        """Give the buffers of the layers called `names` the values from before this step."""
        with torch.no_grad():
            for layer in names:
                for name, value in self._kept.get(layer, {}).items():
                    self._model.get_buffer(name).copy_(value)

    def _review(self) -> None:
        """Decide anew which layers are complete, since more is asked of them than before."""
        self._ask()
        self.complete, self.complete_bytes = set(), 0
        for layer in self._stepped:
            self._look_at(layer)

    def _look_at(self, layer: Layer) -> None:
        """Count `layer` among the complete ones if each of its gradients has arrived as often as this step needs."""
        if layer.name in self.complete:
            return
        for name in layer.parameters:
            if self._arrived.get(name, 0) < self._needs[name]:
                return
        self.complete.add(layer.name)
        self.complete_bytes += self._sizes[layer.name]

    def _ask(self) -> None:
        """Say how often each gradient must arrive; seldom anew, since it is asked for in every step."""
        if self._needs_follow_from == (self._expected, self._fewest):
            return
        self._needs_follow_from = self._expected, self._fewest
        for layer in self._stepped:
            needs = {name: (self._expected or {}).get(name, 0) for name in layer.parameters}
            self._needs |= needs if any(needs.values()) else dict.fromkeys(needs, self._fewest)


def _writes(tensor: Tensor) -> int:
    """Return how often a tensor was written to; autograd counts it, to find what would spoil a backward pass."""
    return tensor._version  # noqa: SLF001


def _owner_of(model: nn.Module, buffer: str) -> tuple[nn.Module, str]:
    """Return the module that a buffer belongs to, and the buffer's name within it."""
    above, _, name = buffer.rpartition(".")
    return model.get_submodule(above), name


def _is_blank(gradient: Tensor | None) -> bool:
    return gradient is None or not bool(gradient.any())


def _room(spare: Tensor, tensor: Tensor) -> Tensor:
    """Return memory for a copy of `tensor`: the spare if it fits, which saves allocating it anew in every block."""
    alike = (spare.shape, spare.dtype, spare.device, spare.stride()) == (
        tensor.shape,
        tensor.dtype,
        tensor.device,
        tensor.stride(),
    )
    return spare if alike and spare is not tensor else torch.empty_like(tensor)
