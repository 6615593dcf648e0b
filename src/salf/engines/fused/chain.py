"""Models that are a chain of well-known operations, differentiated by hand.

In a chain each result is needed by the next operation alone. Every operation can then compute the examples of all
clients in one call, and the backward pass takes the first rows of each result: those of the clients that reach what
comes before. This avoids the overhead of a nested pass, which in small models exceeds the arithmetic.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import pairwise, takewhile
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from salf.engines.fused.chain_ops import Convolution, Dense, Op, Weighted, flattening, pooling, recomputed, relu
from salf.engines.fused.client_norm import ClientNorm
from salf.engines.fused.pooling import FastPool, has_fast_form, is_stock_module
from salf.engines.fused.rows import GradOutput, SortedClients
from salf.engines.fused.tracing import Layout, Traced
from salf.layers import Layers

_FLATTENS: tuple[object, ...] = (torch.flatten, "flatten")
_RELUS: tuple[object, ...] = (torch.relu, functional.relu, "relu")


class ChainPass:
    """The forward and backward pass of a chain over the clients of a cohort.

    Args:
        ops: The operations, input to output.
        parameters: The parameters that are trained, by name.

    Attributes:
        parameters: The parameters that are trained, by name.
        norms: Empty: a chain has no BatchNorm modules.
        layers_apart: True: each layer can weigh clients in its own way.
        clients_apart: True: it can compute each client's own gradients.
    """

    layers_apart = True
    clients_apart = True

    def __init__(self, ops: Sequence[Op | Weighted], parameters: Mapping[str, Tensor]) -> None:
        self.parameters = parameters
        self.norms: Mapping[str, ClientNorm] = {}
        self._weighted = [op for op in ops if isinstance(op, Weighted)]
        # Inference mode makes each call a little faster, but autograd does not work in it.
        needs_autograd = any(isinstance(op, Op) and op.needs_autograd for op in ops)
        self._without_gradient = torch.no_grad if needs_autograd else torch.inference_mode
        self._flattenings = [*takewhile(lambda op: isinstance(op, Op) and op.only_reshapes, ops)]
        # The other operations, each with the nearest layer before it, which needs the gradient of its input.
        self._ops: list[tuple[Op | Weighted, int | None]] = []
        before: int | None = None
        for op in ops[len(self._flattenings) :]:
            self._ops.append((op, before))
            before = before if op.layer is None else op.layer

    def prepared(self, inputs: Tensor) -> Tensor:
        """Return a data set's inputs as a pass takes them: flattened, if the chain begins with that.

        The result shares memory with `inputs` where their order in memory allows it.
        """
        return reduce(lambda x, op: op.forward(x), self._flattenings, inputs)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Compute with these weights from now on; they are not copied."""
        for op in self._weighted:
            op.load(weights)

    def gradients(self, inputs: Tensor, clients: SortedClients, grad_output_of: GradOutput) -> dict[str, Tensor]:
        """Return the sum over the clients of each parameter's gradients, of the layers that some client reaches.

        Args:
            inputs: The examples of all clients, one client after the other, as `prepared`.
            clients: The clients, the deepest first.
            grad_output_of: Gives the gradient of the loss with respect to the model's outputs.
        """
        # Allocated here, since tensors from inference mode cannot be written to afterwards.
        found: dict[str, Tensor] = {}
        for op in self._weighted:
            if op.layer is not None and clients.reached(op.layer):
                found |= op.empty_gradients()
        with self._without_gradient():
            for op, x, grad_output in self._backward(inputs, clients, grad_output_of):
                factor = clients.factors.get(cast("int", op.layer)) if clients.factors else None
                op.grad_params(found, x, grad_output if factor is None else _scaled(grad_output, factor))
        return found

    @torch.no_grad()
    def gradients_of_each(
        self, inputs: Tensor, clients: SortedClients, grad_output_of: GradOutput
    ) -> list[dict[str, Tensor]]:
        """Return the gradients of each client, by name, of the layers that it reaches; arguments as in `gradients`."""
        found: list[dict[str, Tensor]] = [{} for _ in clients.bounds[1:]]
        for op, x, grad_output in self._backward(inputs, clients, grad_output_of):
            for own, (start, end) in zip(found, pairwise(clients.bounds), strict=True):
                if end > len(grad_output):
                    break
                own.update(op.gradients(x[start:end], grad_output[start:end]))
        return found

    def _backward(
        self, inputs: Tensor, clients: SortedClients, grad_output_of: GradOutput
    ) -> Iterator[tuple[Weighted, Tensor, Tensor]]:
        """Compute the outputs, and take the gradient back from them as far as some client reaches.

        Yields:
            Each operation that is trained, the rows of its input that reach it, and the gradient with respect to the
            same rows of its output, whose memory is used again afterwards.
        """
        results = [inputs]
        for op, _ in self._ops:
            results.append(op.forward(results[-1]))
        grad_output, rows = grad_output_of(results[-1]), clients.examples
        for place in range(len(self._ops) - 1, -1, -1):
            op, before = self._ops[place]
            x, y = results[place], results[place + 1]
            if isinstance(op, Weighted) and op.layer is not None:
                yield op, x if rows == clients.examples else x[:rows], grad_output
            reached = 0 if before is None else clients.reached(before)
            if not reached:
                break
            if reached < rows:
                grad_output = grad_output[:reached]
            rows = reached
            grad_output = op.grad_input(x, y, grad_output)


def find_chain(traced: Traced, layers: Layers) -> ChainPass | None:
    """Return the pass of a traced model that is a chain of known operations; None for another model."""
    _, *nodes, output = traced.graph.nodes
    nodes = cast("list[fx.Node]", nodes)
    # Only with examples along the first dimension of each result do the first clients own its first rows.
    by_rows = all(traced.shapes[node] == Layout(0, 1) for node in (*nodes, output))
    if not by_rows or not all(map(_follows, nodes)) or len(output.all_input_nodes) != 1 or layers.aliases:
        return None
    owner = {name: index for index, layer in enumerate(layers) for name in layer.parameters}
    ops: list[Op | Weighted] = []
    for node in nodes:
        op = _op(node, traced.model, owner, after=ops[-1:])
        if op is None:
            return None
        ops.append(op)
    order = [op.layer for op in ops if op.layer is not None]
    targets = [node.target for node in nodes if node.op == "call_module"]
    if order != sorted(order) or len(set(targets)) < len(targets):
        return None
    return ChainPass(ops, {name: value for name, value in traced.model.named_parameters() if name in owner})


def _follows(node: fx.Node) -> bool:
    """Say whether a node takes the result of one other node only, and one other node takes its result."""
    alone = len(node.users) == 1 and len(node.all_input_nodes) == 1 and node.args[:1] == (node.all_input_nodes[0],)
    return alone and (node.op != "call_module" or (len(node.args) == 1 and not node.kwargs))


def _op(
    node: fx.Node, model: nn.Module, owner: Mapping[str, int], *, after: Sequence[Op | Weighted]
) -> Op | Weighted | None:
    """Return the operation of a node that follows `after`; None for an unknown one."""
    # The result of a weighted operation is needed by the next operation only.
    in_place = bool(after) and isinstance(after[-1], Weighted)
    if node.op == "call_module":
        name = str(node.target)
        return _op_of_module(name, model.get_submodule(name), owner, in_place=in_place)
    if node.target in _RELUS:
        return relu(in_place=in_place)
    flatten: Callable[..., Tensor] = torch.flatten
    return flattening(lambda x: flatten(x, *node.args[1:], **node.kwargs)) if node.target in _FLATTENS else None


def _op_of_module(name: str, module: nn.Module, owner: Mapping[str, int], *, in_place: bool) -> Op | Weighted | None:
    """Return the operation of the module called `name`; None for an unknown one."""
    if not is_stock_module(module):
        return None
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return _weighted(name, module, owner)
    if isinstance(module, nn.ReLU):
        return relu(in_place=in_place)
    if isinstance(module, nn.Flatten):
        return flattening(module.forward)
    if isinstance(module, nn.MaxPool2d) and has_fast_form(module):
        return pooling(FastPool(module))
    writes = getattr(module, "inplace", False)
    return None if writes or [*module.parameters(), *module.buffers()] else recomputed(module)


def _weighted(name: str, module: nn.Linear | nn.Conv2d, owner: Mapping[str, int]) -> Weighted | None:
    names = f"{name}.weight", None if module.bias is None else f"{name}.bias"
    if len({owner[own] for own in names if own is not None and own in owner}) > 1:
        return None
    if isinstance(module, nn.Linear):
        return Dense(names, owner)
    padded_otherwise = isinstance(module.padding, str) or module.padding_mode != "zeros"
    return None if padded_otherwise else Convolution(names, owner, module)


def _scaled(grad_output: Tensor, factor: Tensor) -> Tensor:
    """Multiply each example's gradient by its own factor."""
    return grad_output * factor[: len(grad_output)].to(grad_output.dtype).view(-1, *[1] * (grad_output.ndim - 1))
