"""One forward pass for clients of different depth, in which each layer's backward pass sees those that reach it.

With the examples in the order of their clients' depth, the deepest first, those that reach layer l are the first n_l,
and n_1 ≤ … ≤ n_L. Every result of the model is therefore kept in two parts: a *head*, which takes part in
backpropagation, and a *tail*, which does not. The head grows as the pass goes on.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from salf.engines.fused.client_norm import ClientNorm, client_norms
from salf.engines.fused.operations import NO_LAYERS, Call, LayerModule, Operation, Step, batch_independent, elementary
from salf.engines.fused.pooling import FastPool, has_fast_form
from salf.engines.fused.rows import (
    BatchIndependent,
    GradOutput,
    Ref,
    Rows,
    SortedClients,
    has_counts,
    number_of,
    refs_in,
)
from salf.engines.fused.tracing import Layout, Shared, Traced, holds, unsuitable
from salf.engines.tasks import REMEDY
from salf.errors import InvalidSetting
from salf.layers import Layers

_Arguments = TypeVar("_Arguments", bound="fx.node.Argument")


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
        compiler = _Compiler(traced, self._frozen, owner, self.norms)
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
            f"the fused engine only sums this model's updates, but the rule needs each client's{REMEDY}"
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


class _Compiler:
    """Turns the nodes of a traced model into steps.

    Args:
        traced: The model, whose parameters have gradients.
        frozen: A copy of it without gradients.
        owner: The layers of the parameters that are trained, by name.
        norms: What replaces the BatchNorm modules, by name.

    Attributes:
        done_with: For each node, the places of the results that no later node needs.
        layers_apart: Whether no operation so far belongs to several layers.
    """

    def __init__(
        self, traced: Traced, frozen: nn.Module, owner: Mapping[str, int], norms: Mapping[str, ClientNorm]
    ) -> None:
        self._live, self._frozen, self._norms, self._shapes = traced.model, frozen, norms, traced.shapes
        self._layer_of = {id(value): owner[name] for name, value in self._live.named_parameters() if name in owner}
        self._place = {node: place for place, node in enumerate(traced.graph.nodes)}
        self._uses: dict[fx.Node, frozenset[int]] = {}
        last = {source: node for node in traced.graph.nodes for source in node.all_input_nodes}
        ends: defaultdict[fx.Node, list[int]] = defaultdict(list)
        for source, node in last.items():
            ends[node].append(self._place[source])
        self.done_with = [tuple(ends[node]) for node in traced.graph.nodes]
        self.layers_apart = True

    def step(self, node: fx.Node) -> Step:
        """Return the step of one node. Nodes come in the order of the graph.

        Raises `UnsuitableModel` for a result that depends on several layers, but not on the examples.
        """
        shape = self._shapes[node]
        self._uses[node] = NO_LAYERS
        if node.op == "output":
            return _output(cast("Ref", self._referred(node.args[0])))
        if node.op == "placeholder" or not holds(shape, Layout, Shared):
            return _always(None)
        if node.op == "get_attr":
            return self._attribute(node)
        arguments: tuple[object, ...] = self._referred(node.args)
        named = self._referred(node.kwargs)
        refs = tuple(refs_in((arguments, named)))
        own = self._layers_of_module(node)
        uses = frozenset({*own.values(), *(layer for ref in refs if not ref.has_rows for layer in ref.uses)})
        if not any(ref.has_rows for ref in refs) and not holds(shape, Layout):
            if len(uses) > 1:
                raise unsuitable(self._live, f"'{node.name}' depends on several layers")
            self._uses[node] = uses
            return batch_independent(lambda live: self._function(node, live=live), arguments, named, uses)
        self.layers_apart &= len(uses) <= 1
        rows = tuple(ref for ref in refs if ref.has_rows)
        is_norm = node.op == "call_module" and node.target in self._norms
        operation = self._norm(node, own) if is_norm else self._operation(node, own)
        call = Call(operation, arguments, named, rows, uses, shape)
        alone = len(refs) == 1 and not has_counts((arguments, named)) and arguments[:1] == refs
        return self._simplified(node, call) if alone and not is_norm else call

    def _simplified(self, node: fx.Node, call: Call) -> Step:
        """Return the simplest step for a call whose first argument alone is rows."""
        (ref,), rest = call.rows, call.arguments[1:]
        if not call.uses:
            function = self._function(node, live=True)
            if isinstance(function, nn.MaxPool2d) and has_fast_form(function):
                function = FastPool(function)
            return elementary(_bound(function, rest, call.named) if rest or call.named else function, ref.place)
        if len(call.uses) == 1 and node.op == "call_module" and not rest and not call.named:
            (layer,) = call.uses
            return LayerModule(*self._modules(node), ref, layer, call.shape, call)
        return call

    def _modules(self, node: fx.Node) -> tuple[nn.Module, nn.Module]:
        """Return the module that a node calls, with gradient and without."""
        return self._live.get_submodule(str(node.target)), self._frozen.get_submodule(str(node.target))

    def _function(self, node: fx.Node, *, live: bool) -> Callable[..., object]:
        """Return what a node calls, with gradient or without."""
        if node.op == "call_module":
            return self._modules(node)[0 if live else 1]
        if node.op == "call_method":
            return _method(str(node.target))
        return cast("Callable[..., object]", node.target)

    def _operation(self, node: fx.Node, own: Mapping[str, int]) -> Operation:
        """Return what gives the function of a node: its module with gradient in all its layers, in none, or in some."""
        alive, frozen = self._function(node, live=True), self._function(node, live=False)
        owned = frozenset(own.values())

        def choose(live: frozenset[int], _: SortedClients, __: int) -> Callable[..., object]:
            if not owned or owned <= live:
                return alive
            if not owned & live:
                return frozen
            module = self._modules(node)[0]
            some: dict[str, Tensor] = {name: module.get_parameter(name) for name, layer in own.items() if layer in live}
            return partial(_call_with, cast("nn.Module", frozen), some)

        return choose

    def _norm(self, node: fx.Node, own: Mapping[str, int]) -> Operation:
        """Return what gives the function of a BatchNorm module: its replacement, with the module's parameters."""
        norm, (alive, frozen) = self._norms[str(node.target)], self._modules(node)
        owned = frozenset(own.values())

        def choose(live: frozenset[int], clients: SortedClients, start: int) -> Callable[..., object]:
            module = alive if owned and owned <= live else frozen
            weight, bias = cast("tuple[Tensor | None, Tensor | None]", (module.weight, module.bias))
            return lambda x: norm(x, weight, bias, clients.bounds, start)

        return choose

    def _layers_of_module(self, node: fx.Node) -> dict[str, int]:
        """Return the layers of the parameters of a node's module, by their names within it."""
        if node.op != "call_module":
            return {}
        own = self._modules(node)[0].named_parameters()
        return {name: self._layer_of[id(value)] for name, value in own if id(value) in self._layer_of}

    def _attribute(self, node: fx.Node) -> Step:
        """Return the step of a node that is a parameter or another attribute of the model."""
        live, frozen = (attrgetter(str(node.target))(model) for model in (self._live, self._frozen))
        if id(live) not in self._layer_of:
            return _always(frozen)
        self._uses[node] = frozenset({self._layer_of[id(live)]})
        return _always(BatchIndependent(live, frozen))

    def _referred(self, arguments: _Arguments) -> _Arguments:
        """Replace the nodes in arguments by references, or by their values if these are no tensors."""
        return fx.node.map_arg(arguments, cast("Callable[[fx.Node], fx.node.Argument]", self._refer))

    def _refer(self, node: fx.Node) -> object:
        shape = self._shapes[node]
        return Ref(self._place[node], shape, self._uses[node]) if holds(shape, Layout, Shared) else number_of(shape)


def _always(result: object) -> Step:
    return lambda _, __: result


def _output(ref: Ref) -> Step:
    """Return the step that ends the graph: it gives the outputs for all examples."""
    return lambda values, clients: values[ref.place].grown(clients.examples, ref.shape).head


def _call_with(module: nn.Module, parameters: dict[str, Tensor], *arguments: object, **named: object) -> object:
    """Call a module with some parameters in the place of its own."""
    return functional_call(module, parameters, arguments, named)


def _bound(
    function: Callable[..., object], rest: tuple[object, ...], named: Mapping[str, object]
) -> Callable[..., object]:
    """Return a function of the first argument alone."""
    return lambda x: function(x, *rest, **named)


def _method(name: str) -> Callable[..., object]:
    return lambda x, *arguments, **named: getattr(x, name)(*arguments, **named)
