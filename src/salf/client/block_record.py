"""The bookkeeping behind `Work`: steps, the weights from before them, and the update made from both."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from salf.errors import SalfError
from salf.layers import Layers
from salf.update import Update


class _Payload(NamedTuple):
    """The tensors of an update."""

    deltas: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]


class BlockRecord:
    """What one block has done so far. The block writes it; `Work` shows it to the user.

    Attributes:
        steps: Number of whole optimizer steps.
        layer_steps: Number of steps that each layer received, by name, input to output.
        interrupted: Whether the deadline ended the block.
        finished: Whether the block is over.
        seconds: How long the block lasted.
    """

    def __init__(self, model: nn.Module, layers: Layers, spare_copies: dict[str, Tensor]) -> None:
        """Record a block.

        Args:
            model: The model in training.
            layers: All its layers.
            spare_copies: Memory of earlier blocks' copies, by parameter; taken here and given back with the update.
        """
        self.steps = 0
        self.layer_steps = dict.fromkeys(layers.names, 0)
        self.interrupted = self.finished = False
        self.seconds = 0.0
        self._layers, self._spare = layers, spare_copies
        self._tensors: dict[str, Tensor] = dict(model.named_parameters())
        self._initial: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._payload: _Payload | None = None

    @property
    def depth(self) -> int:
        """The number of layers that received at least one step."""
        return sum(steps > 0 for steps in self.layer_steps.values())

    def keep_initial(self, names: Iterable[str]) -> int:
        """Copy the weights of these parameters before their first change; return how many bytes that copied."""
        first = [name for name in names if name not in self._initial]
        tensors = [self._tensors[name].detach() for name in first]
        copies = [_memory_for(tensor, self._spare.pop(name, None)) for name, tensor in zip(first, tensors, strict=True)]
        if first:
            torch._foreach_copy_(copies, tensors)
            self._initial |= dict(zip(first, copies, strict=True))
        return sum(tensor.nbytes for tensor in tensors)

    def count_step(self, layers: Iterable[str]) -> None:
        """Count an optimizer step over the layers with these names; it is whole unless the block was interrupted."""
        self.steps += not self.interrupted
        for name in layers:
            self.layer_steps[name] += 1

    def finish(self, model: nn.Module, seconds: float) -> None:
        """Note that the block is over, after `seconds`."""
        self._tensors |= dict(model.named_buffers())  # modules may have replaced them
        self._versions = {
            name: _version(self._tensors[name])
            for layer in self._layers
            if self.layer_steps[layer.name]
            for name in layer.parameters
        }
        self.finished, self.seconds = True, seconds

    def update(self, num_examples: int) -> Update:
        """Return the update; the first call must come before anything else writes to the model."""
        if self._payload is None:
            self._payload = self._make_payload()
            self._spare |= self._initial
            self._initial = {}
        steps = {name: count for name, count in self.layer_steps.items() if count}
        return Update(self._payload.deltas, steps, num_examples, self._payload.buffers)

    def _make_payload(self) -> _Payload:
        changed = [name for name, version in self._versions.items() if _version(self._tensors[name]) != version]
        if changed:
            raise SalfError(
                f"the model has changed since the block ended ({', '.join(changed[:3])}"
                f"{', …' if len(changed) > 3 else ''}), so its update is lost; call work.update() first"
            )
        sent = [layer for layer in self._layers if self.layer_steps[layer.name]]
        with torch.no_grad():
            deltas = {
                name: self._tensors[name].detach() - self._initial[name] for layer in sent for name in layer.parameters
            }
            return _Payload(
                deltas, {name: self._tensors[name].detach().clone() for layer in sent for name in layer.buffers}
            )


def _version(tensor: Tensor) -> int:
    """Return autograd's counter of in-place writes to a tensor."""
    return tensor._version  # noqa: SLF001 - the only counter of writes, and it costs nothing to read


def _memory_for(tensor: Tensor, spare: Tensor | None) -> Tensor:
    """Return memory for a copy of `tensor`: the spare if it fits, since allocation is slow."""
    if (
        spare is not None
        and all(getattr(spare, name) == getattr(tensor, name) for name in ("shape", "dtype", "device"))
        and spare.stride() == tensor.stride()
    ):
        return spare
    return torch.empty_like(tensor)
