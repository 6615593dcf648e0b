"""Statistics of BatchNorm that no training has kept."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# The common base of BatchNorm in one, two and three dimensions.
_Norm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001
_BATCH = 512


def statistics(model: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor, order: Tensor) -> dict[str, Tensor]:
    """Return BatchNorm's running statistics for a model with these `weights` (a state dict), by buffer name.

    As in HeteroFL's static normalisation (arXiv 2010.01264, "Static batch normalization") they are cumulative averages,
    as with momentum None, over batches of the examples `inputs`, taken in the `order` of these indices; the batches
    differ by at most one example. It takes one pass: a layer sees what the layers before it give when normalised by
    the batch. Everything but BatchNorm is in evaluation mode. A model that keeps no statistics has none, and costs
    nothing. `model` stays as it is.

    >>> norm = nn.BatchNorm1d(1)
    >>> found = statistics(norm, norm.state_dict(), torch.tensor([[1.0], [2.0], [6.0]]), torch.arange(3))
    >>> found["running_mean"].item(), found["running_var"].item()
    (3.0, 7.0)
    """
    if not any(isinstance(module, _Norm) and module.track_running_stats for module in model.modules()):
        return {}
    twin = copy.deepcopy(model).eval()
    twin.load_state_dict(weights)
    names: list[str] = []
    for name, module in twin.named_modules():
        if isinstance(module, _Norm) and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None
            module.train()
            names += [f"{name}.{buffer}" if name else buffer for buffer, _ in module.named_buffers()]
    with torch.inference_mode():
        for batch in order.tensor_split(-(-len(order) // _BATCH)):
            twin(inputs[batch])
    return {name: twin.get_buffer(name).clone() for name in names}
