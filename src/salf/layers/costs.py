"""The cost of each layer of a model in floating-point operations, counted while the model runs."""

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from salf.errors import UnsuitableModel
from salf.layers.find import Layers
from salf.layers.probe import Example, PassTrace, ProbeFailed, tensors_in, trace_passes, twin_of
from salf.layers.wrappers import unwrapped
from salf.values import LayerCosts


def measure_costs(model: nn.Module, example: Example, layers: Layers) -> LayerCosts:
    """Count the floating-point operations of one forward and backward pass, per example of the batch.

    A layer's backward cost is what happens between the completion of the previous layer, in backpropagation's order,
    and its own: its weight gradient, its input gradient, and whatever lies between the two layers. Matrix products,
    convolutions and attention count two operations per multiply-add; everything else counts one per output element.
    Where passes skip layers, a layer's cost is that of the first pass that reaches it. The forward cost is the largest.

    Args:
        model: The model; it does not change.
        example: One batch, as for `find_layers`.
        layers: The model's layers.

    Raises:
        UnsuitableModel: The model cannot be run forward and backward on the example.

    >>> from salf.layers import find_layers
    >>> model = nn.Sequential(nn.Linear(10, 20, bias=False), nn.ReLU(), nn.Linear(20, 5, bias=False))
    >>> example = torch.zeros(1, 10)
    >>> costs = measure_costs(model, example, find_layers(model, example))
    >>> costs.forward, [cost // 100 for cost in costs.backward]
    (620.0, [4.0, 4.0])
    """
    model = unwrapped(model)
    owner = {name: layer.name for layer in layers for name in layer.parameters}
    observed = _count_operations(model, example, owner)
    backward: dict[str, float] = {}
    for trace in observed:
        backward = _backward_costs(trace, owner) | backward
    rows = next((tensor.shape[0] for tensor in tensors_in(example) if tensor.ndim), 1)
    tensors = model.state_dict(keep_vars=True)
    sizes = [sum(tensors[name].nbytes for name in (*layer.parameters, *layer.buffers)) for layer in layers]
    return LayerCosts(
        forward=max(trace.reading_after_forward - trace.reading_before for trace in observed) / rows,
        backward=tuple(backward.get(name, 0.0) / rows for name in layers.names),
        layer_bytes=tuple(sizes),
    )


def _backward_costs(trace: PassTrace, owner: Mapping[str, str]) -> dict[str, float]:
    """Return the operations of each layer that the pass reached."""
    costs: dict[str, float] = {}
    before = trace.reading_after_forward
    for parameter, reading in trace.completions:
        if parameter in owner:
            costs[owner[parameter]] = costs.get(owner[parameter], 0.0) + reading - before
            before = reading
    return costs


def measure_passing(model: nn.Module, example: Example, layers: Layers, costs: LayerCosts) -> LayerCosts:
    """Add to `costs` the part of each layer's backward pass that remains when the layer itself is frozen.

    Gradients must still pass through a frozen layer to reach the layers before it. Each layer is frozen in turn, and
    the operations are counted again.

    Args:
        model: The model; it does not change.
        example: One batch, as for `find_layers`.
        layers: The model's layers.
        costs: The result of `measure_costs` for the same arguments.

    >>> from salf.layers import find_layers
    >>> model = nn.Sequential(nn.Linear(10, 20, bias=False), nn.ReLU(), nn.Linear(20, 5, bias=False))
    >>> layers, example = find_layers(model, torch.zeros(1, 10)), torch.zeros(1, 10)
    >>> costs = measure_passing(model, example, layers, measure_costs(model, example, layers))
    >>> [cost // 100 for cost in costs.passing]
    [0.0, 2.0]
    """
    total = sum(costs.backward)
    passing = []
    for layer, whole in zip(layers, costs.backward, strict=True):
        others = Layers(tuple(other for other in layers if other is not layer))
        twin = twin_of(unwrapped(model))
        for name, parameter in twin.named_parameters(remove_duplicate=False):
            if name in layer.parameters:
                parameter.requires_grad = False
        left = sum(measure_costs(twin, example, others).backward) if len(others) else 0.0
        passing.append(min(max(left - (total - whole), 0.0), whole))
    return replace(costs, passing=tuple(passing))


def _count_operations(model: nn.Module, example: Example, wanted: Collection[str]) -> tuple[PassTrace, ...]:
    """Trace passes that reach the wanted parameters, with the number of operations so far as the reading."""
    counter = _OperationCounter()
    try:
        with counter, _nothing_fused():
            return trace_passes(model, example, lambda: counter.operations, wanted)
    except ProbeFailed as failure:
        raise UnsuitableModel(
            f"the operations of {type(model).__name__} cannot be counted", [str(failure)]
        ) from failure


@contextmanager
def _nothing_fused() -> Iterator[None]:
    """Disable fused kernels for attention and recurrent layers, which hide their operations."""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")  # flags() warns about backends that this build of torch lacks
        with torch.backends.mkldnn.flags(enabled=False):
            yield


class _OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # - untyped in torch
    """Adds up the operations of everything that torch computes in its context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # - untyped in torch
        self.operations = 0.0

    def __torch_dispatch__(
        self,
        function: OpOverload,
        types: object,
        arguments: tuple[object, ...] = (),
        named: Mapping[str, object] | None = None,
    ) -> object:
        result = function(*arguments, **(named or {}))
        known = flop_registry.get(function.overloadpacket)
        if known is not None:
            self.operations += known(*arguments, **(named or {}), out_val=result)
        elif not function.is_view and torch.Tag.inplace_view not in function.tags:
            self.operations += sum(tensor.numel() for tensor in tensors_in(result))
        return result
