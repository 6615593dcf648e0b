"""A model's buffers from before a step, to undo what a forward pass that counts for nothing has changed."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from salf.layers import Layers


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

    def restore_unchanged(self, before: Mapping[str, int], now: Mapping[str, int]) -> None:
        """Restore the buffers of the layers whose numbers of steps are equal in both mappings; forget the copy."""
        self.restore({name for name, steps in before.items() if now[name] == steps})
        self.discard()

    def restore(self, layers: Collection[str]) -> None:
        """Write the copy, if there is one, into the buffers of the layers with these names."""
        names = [name for layer in self._layers if layer.name in layers for name in layer.buffers]
        with torch.no_grad():
            for name in names if self._copies else ():
                self._model.get_buffer(name).copy_(self._copies[name])
