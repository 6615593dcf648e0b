"""Batch normalization of several clients' examples at once, each client's by its own statistics."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

# A momentum of 1 makes the running statistics those of the batch.
_batch_norm = partial(functional.batch_norm, training=True, momentum=1.0)


class ClientNorm:
    """Replaces one BatchNorm module.

    Args:
        name: The module's name in the model.
        module: The module.

    Attributes:
        names: The names of its buffers in the model, by their names in the module.
        together: Whether it normalizes all clients in one operation, as if each had its own channels: faster on an
            accelerator, where launching an operation takes longer than the operation.
    """

    def __init__(self, name: str, module: _BatchNorm) -> None:
        self._eps, self._momentum = module.eps, module.momentum
        self._channels = module.num_features
        buffers = dict(module.named_buffers(prefix=name, recurse=False))
        self.names = {key.rpartition(".")[2]: key for key in buffers}
        self._dtype = next((value.dtype for value in buffers.values()), torch.float32)
        self._statistics = torch.zeros(2, 0, self._channels)
        self._recorded = 0
        self.together = False

    def begin(self, recorded: int, device: torch.device) -> None:
        """Prepare for a pass, in which the first `recorded` clients send the module's buffers."""
        self._recorded = recorded if self.names else 0
        self._statistics = torch.zeros(2, self._recorded, self._channels, dtype=self._dtype, device=device)
        self.together = device.type != "cpu"

    def __call__(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, bounds: Sequence[int], start: int
    ) -> Tensor:
        """Normalize some examples, which belong to whole clients.

        Args:
            x: The examples, shape (examples, channels, …).
            weight: The module's weight, shape (channels,).
            bias: The module's bias, shape (channels,).
            bounds: Where each client's examples begin, among all of the pass.
            start: The place of the first of these examples among all of the pass.
        """
        first = bisect_left(bounds, start)
        last = bisect_left(bounds, start + len(x))
        sizes = [bounds[client + 1] - bounds[client] for client in range(first, last)]
        if self.together and len(sizes) > 1 and len(set(sizes)) == 1:
            return self._all_at_once(x, weight, bias, first, len(sizes))
        means, variances = self._statistics
        normal = []
        parts = torch.split(x, sizes)
        for client, part in enumerate(parts, start=first):
            mean, variance = (means[client], variances[client]) if client < self._recorded else (None, None)
            normal.append(_batch_norm(part, mean, variance, weight, bias, eps=self._eps))
        return normal[0] if len(normal) == 1 else torch.cat(normal)

    def _all_at_once(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, first: int, clients: int) -> Tensor:
        """Normalize the examples of so many clients with equal batches, from the client at place `first` on."""
        batch, (channels, *pixels) = len(x) // clients, x.shape[1:]
        turned = x.reshape(clients, batch, channels, *pixels).transpose(0, 1).flatten(1, 2)
        weight, bias = (None if value is None else value.repeat(clients) for value in (weight, bias))
        recorded = min(max(self._recorded - first, 0), clients)
        seen = self._statistics.new_zeros(2, clients * channels)
        means, variances = seen if recorded else (None, None)
        normal = _batch_norm(turned, means, variances, weight, bias, eps=self._eps)
        self._statistics[:, first : first + recorded] = seen.view(2, clients, channels)[:, :recorded]
        return normal.view(batch, clients, channels, *pixels).transpose(0, 1).flatten(0, 1)

    def sums(self, weights: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Σ a_u b_u over the recorded clients for each buffer b; the maximum for whole numbers.

        Args:
            weights: a_u for all clients of the pass, shape (clients,).
            state: The global state dict from which they started.
        """
        if not self._recorded:
            return {}
        batches = state[self.names["num_batches_tracked"]] + 1
        share = 1 / float(batches) if self._momentum is None else self._momentum
        weights = weights[: self._recorded].to(self._statistics)
        sums = {self.names["num_batches_tracked"]: batches}
        for key, seen in zip(("running_mean", "running_var"), self._statistics, strict=True):
            old = state[self.names[key]]
            sums[self.names[key]] = (1 - share) * weights.sum() * old + share * (weights @ seen)
        return sums


def client_norms(model: nn.Module) -> dict[str, ClientNorm]:
    """Return the replacement of each BatchNorm module of `model`, by name."""
    return {
        name: ClientNorm(name, module)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
    }
