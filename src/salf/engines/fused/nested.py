"""One forward pass for clients of different depth, in which each layer's backward pass sees those that reach it.

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
from salf.engines.fused.compiler import Compiler
from salf.engines.fused.rows import GradOutput, Rows, SortedClients
from salf.engines.fused.tracing import Traced
from salf.errors import InvalidSetting
from salf.layers import Layers


class NestedPass:
    """The forward and backward pass of any traced model over the clients of a cohort.

    Args:
        traced: The model; the pass takes over its copy.
        layers: Its layers.

    Attributes:
        parameters: The parameters of the layers, by name.
        norms: What replaces the BatchNorm modules, by name.
        layers_apart: Whether no operation belongs to several layers, so that each layer can weigh clients in its way.
        clients_apart: False: it computes sums over clients only.
    """

    clients_apart = False

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
        # Walking through the modules in every round would take longer than everything else.
        self._weights = [(name, own) for model in (self._live, self._frozen) for name, own in model.named_parameters()]
        compiler = Compiler(traced, self._frozen, owner, self.norms)
        self._steps = [compiler.step(node) for node in traced.graph.nodes]
        self._done_with = compiler.done_with
        self.layers_apart = compiler.layers_apart

    def prepared(self, inputs: Tensor) -> Tensor:
        """Return a data set's inputs as a pass takes them: unchanged."""
        return inputs

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Compute with these weights from now on; parameters are not copied."""
        for name, parameter in self._weights:
            parameter.data = weights[name]
        for name in self._other_buffers:
            if name in weights:
                for model in (self._live, self._frozen):
                    model.get_buffer(name).copy_(weights[name])

    def gradients(self, inputs: Tensor, clients: SortedClients, grad_output_of: GradOutput) -> dict[str, Tensor]:
        """Return the sum over the clients of each parameter's gradients, over those that reach its layer.

        Args:
            inputs: The examples of all clients, one client after the other.
            clients: The clients, the deepest first.
            grad_output_of: Gives the gradient of the loss with respect to the model's outputs.
        """
        outputs = self._run(inputs, clients)
        parameters = [*self.parameters.values()]
        found = torch.autograd.grad(outputs, parameters, grad_output_of(outputs.detach()), allow_unused=True)
        gradients = zip(self.parameters, cast("tuple[Tensor | None, ...]", found), strict=True)
        return _apart({name: gradient for name, gradient in gradients if gradient is not None})

    def gradients_of_each(
        self, inputs: Tensor, clients: SortedClients, grad_output_of: GradOutput
    ) -> list[dict[str, Tensor]]:
        """Refuse: raise `InvalidSetting`."""
        raise InvalidSetting(
            "of this model the fused engine computes sums, but the rule needs each client's own update; "
            "choose 'auto' or 'plain'"
        )

    def _run(self, inputs: Tensor, clients: SortedClients) -> Tensor:
        """Return the model's outputs, with gradient in each layer for the examples that reach it only."""
        values: list[object] = [Rows(None, inputs, 0)]
        for step, done_with in zip(self._steps[1:], self._done_with[1:], strict=True):
            values.append(step(values, clients))
            for place in done_with:
                values[place] = None
        output = values[-1]
        if not isinstance(output, Tensor):
            raise TypeError(f"the model returned a {type(output).__name__}; return a tensor")
        return output


def _apart(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return gradients that share no memory, so that each can be written to: autograd may give one to several."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, gradient in gradients.items():
        shared = gradient.data_ptr() in taken or 0 in gradient.stride()
        apart[name] = gradient.clone(memory_format=torch.contiguous_format) if shared else gradient
        taken.add(gradient.data_ptr())
    return apart
