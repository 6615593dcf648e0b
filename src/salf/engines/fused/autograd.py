"""Types for autograd functions, which torch leaves untyped."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor


class Context(Protocol):
    """What a `torch.autograd.Function` keeps between its forward and its backward pass."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """The tensors of `save_for_backward`; torch refuses those that were written to since."""
        ...

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the backward pass."""
        ...


def as_function(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """Return the operation that an autograd function defines."""
    return cast("Callable[..., Tensor]", function.apply)
