"""BatchNorm statistics that no client has kept, measured over training examples."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# The common base of BatchNorm in one, two and three dimensions.
_BatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - torch has no public name for it
_BATCH = 512


def has_batchnorm(model: nn.Module) -> bool:
    """Return whether a model normalizes over the batch, so that it trains on two examples or more."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def static_statistics(
    model: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor, order: Tensor
) -> dict[str, Tensor]:
    """Measure BatchNorm's running statistics of a model in one pass over examples.

    This is HeteroFL's static batch normalization (arXiv 2010.01264): cumulative averages over batches, as with momentum
    None. Each layer sees inputs that the layers before it have normalized by the batch. All other modules are in
    evaluation mode. A model without running statistics costs nothing.

    Args:
        model: The model; it is copied, never changed.
        weights: The state dict to measure with.
        inputs: The training inputs, on the model's device.
        order: In which order the examples are taken, as indices of `inputs`. They are cut into batches of at most 512,
            whose sizes differ by at most one.

    Returns:
        The statistics by buffer name.

    >>> norm = nn.BatchNorm1d(1)
    >>> found = static_statistics(norm, norm.state_dict(), torch.tensor([[1.0], [2.0], [6.0]]), torch.arange(3))
    >>> found["running_mean"].item(), found["running_var"].item()
    (3.0, 7.0)
    """
    if not _tracked(model):
        return {}
    twin = copy.deepcopy(model).eval()
    twin.load_state_dict(weights)
    names: list[str] = []
    for name, module in _tracked(twin).items():
        module.reset_running_stats()
        module.momentum = None
        module.train()
        names += [f"{name}.{buffer}" if name else buffer for buffer, _ in module.named_buffers()]
    with torch.inference_mode():
        for batch in order.tensor_split(-(-len(order) // _BATCH)):
            twin(inputs[batch])
    return {name: twin.get_buffer(name).clone() for name in names}


def _tracked(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm modules that keep running statistics, by name."""
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, _BatchNorm) and module.track_running_stats}
