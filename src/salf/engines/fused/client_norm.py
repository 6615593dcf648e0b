"""Batch normalisation of several clients' examples at once, each by the statistics of its own."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class ClientNorm:
    """Stands in for one BatchNorm module called `name`.

    Of the first `recorded` clients of a pass, those which convey the module's buffers, it keeps the statistics. Where
    it works `together` it normalises all clients in one operation, as if each had channels of its own: faster where
    beginning an operation is what takes time.
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
        """Prepare for a pass of which the first `recorded` clients convey the module's buffers."""
        self._recorded = recorded if self.names else 0
        self._statistics = torch.zeros(2, self._recorded, self._channels, dtype=self._dtype, device=device)
        self.together = device.type != "cpu"

    def __call__(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, bounds: Sequence[int], start: int
    ) -> Tensor:
        """Normalise the examples from place `start` on, which belong to whole clients with these `bounds`."""
        first = bisect_left(bounds, start)
        last = bisect_left(bounds, start + len(x))
        sizes = [bounds[client + 1] - bounds[client] for client in range(first, last)]
        if self.together and len(sizes) > 1 and len(set(sizes)) == 1:
            return self._all_at_once(x, weight, bias, first, len(sizes))
        means, variances = self._statistics
        normal = []
        parts = torch.split(x, sizes)
        for client, part in enumerate(parts, start=first):
            # With a momentum of 1 the running statistics become those of this batch.
            mean, variance = (means[client], variances[client]) if client < self._recorded else (None, None)
            normal.append(functional.batch_norm(part, mean, variance, weight, bias, True, 1.0, self._eps))  # noqa: FBT003
        return normal[0] if len(normal) == 1 else torch.cat(normal)

    def _all_at_once(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, first: int, clients: int) -> Tensor:
        """Normalise the examples of so many clients, which have equally many, from the one at place `first` on."""
        batch, (channels, *pixels) = len(x) // clients, x.shape[1:]
        turned = x.reshape(clients, batch, channels, *pixels).transpose(0, 1).flatten(1, 2)
        weight, bias = (None if value is None else value.repeat(clients) for value in (weight, bias))
        recorded = min(max(self._recorded - first, 0), clients)
        seen = self._statistics.new_zeros(2, clients * channels)
        means, variances = seen if recorded else (None, None)
        normal = functional.batch_norm(turned, means, variances, weight, bias, True, 1.0, self._eps)  # noqa: FBT003
        self._statistics[:, first : first + recorded] = seen.view(2, clients, channels)[:, :recorded]
        return normal.view(batch, clients, channels, *pixels).transpose(0, 1).flatten(0, 1)

    def sums(self, weights: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Σ a_u b_u over the recorded clients for each buffer b, and the maximum of one of whole numbers.

        `weights` holds a_u for all clients of the pass, `state` the buffers with which they began.
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
    """Return a stand-in for each BatchNorm module of `model`, by name."""
    return {
        name: ClientNorm(name, module)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
    }
