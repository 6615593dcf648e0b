"""Models inside wrappers: torch.compile and data parallelism, which work, and sharding, which does not."""

from torch import nn

_INSIDE = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module"}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile`, DistributedDataParallel and DataParallel, or the model itself.

    >>> model = nn.Linear(2, 1)
    >>> unwrapped(nn.DataParallel(model)) is model
    True
    """
    while type(model).__module__.startswith("torch.") and type(model).__name__ in _INSIDE:
        model = getattr(model, _INSIDE[type(model).__name__])
    return model


def sharding_problems(model: nn.Module) -> list[str]:
    """Name what FSDP has sharded: one process holds only a part of each such parameter."""
    remedy = "find the layers before sharding, and train on one device without sharding"
    flat = [name for name, module in model.named_modules() if type(module).__name__ == "FullyShardedDataParallel"]
    if flat:
        return [f"module '{name}' is sharded by FullyShardedDataParallel; {remedy}" for name in flat]
    sharded = [name for name, parameter in model.named_parameters() if type(parameter).__name__ == "DTensor"]
    return [f"'{name}' is sharded by fully_shard (a DTensor); {remedy}" for name in sharded]
