"""How much computing each layer of a model takes: floating-point operations, counted while the model runs."""

import copy
import warnings
from collections.abc import Iterator, Mapping
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
from salf.layers.probe import Example, ProbeFailed, tensors_in, trace
from salf.values import LayerCosts


def measure_costs(model: nn.Module, example: Example, layers: Layers) -> LayerCosts:
    """Count the operations of one forward and backward pass of `model` on the batch `example`, per example.

    A layer's backward cost is what happens between the completion of the layer before it, in backpropagation's order,
    and its own: its weight gradient, its input gradient, and whatever lies between the two layers. Matrix products,
    convolutions and attention count two operations per multiply-add, everything else one per element it produces.

    >>> from salf.layers import find_layers
    >>> model = nn.Sequential(nn.Linear(10, 20, bias=False), nn.ReLU(), nn.Linear(20, 5, bias=False))
    >>> example = torch.zeros(1, 10)
    >>> costs = measure_costs(model, example, find_layers(model, example))
    >>> costs.forward, [cost // 100 for cost in costs.backward]
    (620.0, [4.0, 4.0])
    """
    counter = _Counter()
    try:
        with counter, _nothing_fused():
            watched = trace(model, example, lambda: counter.operations)
    except ProbeFailed as failure:
        raise UnsuitableModel(
            f"the operations of {type(model).__name__} cannot be counted", [str(failure)]
        ) from failure
    owner = {name: layer.name for layer in layers for name in layer.parameters}
    backward = dict.fromkeys(layers.names, 0.0)
    before = watched.reading_after_forward
    for completion in watched.completions:
        if completion.parameter in owner:
            backward[owner[completion.parameter]] += completion.reading - before
            before = completion.reading
    rows = next((tensor.shape[0] for tensor in tensors_in(example) if tensor.ndim), 1)
    tensors = dict(model.state_dict(keep_vars=True))
    return LayerCosts(
        forward=(watched.reading_after_forward - watched.reading_before) / rows,
        backward=tuple(backward[name] / rows for name in layers.names),
        layer_bytes=tuple(
            sum(tensors[name].nbytes for name in (*layer.parameters, *layer.buffers)) for layer in layers
        ),
    )


def measure_passing(model: nn.Module, example: Example, layers: Layers, costs: LayerCosts) -> LayerCosts:
    """Return `costs` with what is left of each layer's backward pass where it is not trained, counted one by one.

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
        twin = copy.deepcopy(model)
        for name, parameter in twin.named_parameters(remove_duplicate=False):
            if name in layer.parameters:
                parameter.requires_grad = False
        left = sum(measure_costs(twin, example, others).backward) if len(others) else 0.0
        passing.append(min(max(left - (total - whole), 0.0), whole))
    return replace(costs, passing=tuple(passing))


@contextmanager
def _nothing_fused() -> Iterator[None]:
    """Keep torch from using fused kernels for attention and recurrent layers, which would hide what they compute."""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")  # flags() sets what this build of torch may lack, and warns about it
        with torch.backends.mkldnn.flags(enabled=False):
            yield


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of everything that torch computes while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
