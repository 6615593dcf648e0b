"""Modules that compute what their type says."""

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_stock_module(module: nn.Module) -> bool:
    """Say whether a module is one of torch's, without hooks and with the `forward` of its class.

    >>> module = nn.Linear(1, 1)
    >>> handle = module.register_forward_hook(print)
    >>> is_stock_module(nn.Linear(1, 1)), is_stock_module(module)
    (True, False)
    """
    own = vars(module)
    return type(module).__module__.startswith("torch.nn.modules.") and not (
        "forward" in own or any(own[hooks] for hooks in _HOOKS)
    )
