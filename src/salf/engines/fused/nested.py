"""One forward pass for clients of different depth, of which each layer's backward pass sees only those that reach it.

With the examples in the order of their clients' depth, the deepest first, those that reach layer l are the first n_l,
and n_1 ≤ … ≤ n_L. Every result of the model is therefore kept in two parts: a *head*, which takes part in
backpropagation, and a *tail*, which does not. The head grows as the pass goes on.
"""

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from salf.engines.fused.client_norm import client_norms
from salf.engines.fused.operations import Compiler
from salf.engines.fused.rows import GradOutput, Rows, SortedClients
from salf.engines.fused.tracing import Traced
from salf.layers import Layers


class NestedPass:
    """The forward pass of a traced model over a crowd of clients. It takes the traced model for its own.

    `parameters` are those of the layers, `norms` what stands in for the BatchNorm modules, both by name.
    `layers_apart` says whether no single operation belongs to several layers, so that each can weigh clients its way.
    """

    def __init__(self, traced: Traced, layers: Layers) -> None:
        self._live = traced.model
        owner = {name: index for index, layer in enumerate(layers) for name in layer.parameters}
        owner |= {name: owner[first] for name, first in layers.aliases.items() if first in owner}
        for name, parameter in self._live.named_parameters():
            parameter.requires_grad_(name in owner)
        self._frozen = copy.deepcopy(traced.model).requires_grad_(requires_grad=False)
        self.parameters = {name: value for name, value in self._live.named_parameters() if name in owner}
        self.norms = client_norms(self._live)
        norm_buffers = {name for norm in self.norms.values() for name in norm.names.values()}
        self._other_buffers = [name for name, _ in self._live.named_buffers() if name not in norm_buffers]
        # Walking through the modules in every round would cost more than all the rest.
        self._weights = [(name, own) for model in (self._live, self._frozen) for name, own in model.named_parameters()]
        compiler = Compiler(traced, self._frozen, owner, self.norms)
        self._steps = [compiler.step(node) for node in traced.graph.nodes]
        self._done_with = compiler.done_with
        self.layers_apart, self.clients_apart = compiler.layers_apart, False

    def prepared(self, inputs: Tensor) -> Tensor:
        """Return a data set's inputs as a pass takes them: as they are."""
        return inputs

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Compute with these weights from now on; parameters are not copied."""
        for name, parameter in self._weights:
            parameter.data = weights[name]
        for name in self._other_buffers:
            if name in weights:
                for model in (self._live, self._frozen):
                    model.get_buffer(name).copy_(weights[name])

    def gradients(self, inputs: Tensor, crowd: SortedClients, slope_of: GradOutput) -> dict[str, Tensor]:
        """Return the sums over the crowd, by parameter, in each layer over those that reach it."""
        outputs = self._run(inputs, crowd)
        parameters = [*self.parameters.values()]
        found = torch.autograd.grad(outputs, parameters, slope_of(outputs.detach()), allow_unused=True)
        gradients = zip(self.parameters, cast("tuple[Tensor | None, ...]", found), strict=True)
        return _apart({name: gradient for name, gradient in gradients if gradient is not None})

    def _run(self, inputs: Tensor, crowd: SortedClients) -> Tensor:
        """Return the model's outputs for `inputs`, with gradient in each layer for those that reach it only."""
        values: list[object] = [Rows(None, inputs, 0)]
        for step, done_with in zip(self._steps[1:], self._done_with[1:], strict=True):
            values.append(step(values, crowd))
            for place in done_with:
                values[place] = None
        output = values[-1]
        if not isinstance(output, Tensor):
            raise TypeError(f"the model returned a {type(output).__name__}")
        return output


def _apart(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return gradients of which each has memory of its own to be written to: autograd may give one to several."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, gradient in gradients.items():
        shared = gradient.data_ptr() in taken or 0 in gradient.stride()
        apart[name] = gradient.clone(memory_format=torch.contiguous_format) if shared else gradient
        taken.add(gradient.data_ptr())
    return apart
