"""Modules that compute what their type says."""

from torch import nn


def is_stock_module(module: nn.Module) -> bool:
    """Say whether calling a module means what its type says, and nothing else."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks  # noqa: SLF001
    return type(module).__module__.startswith("torch.nn.modules.") and not any(hooks) and "forward" not in vars(module)
