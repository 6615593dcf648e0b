"""What a user learns about a finished block, and the update that goes to the server."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from salf.errors import SalfError, check_count
from salf.layers import Layers
from salf.update import Update


class BlockRecord:
    """What one block has done so far. The block writes it; `Work` shows it to the user.

    Attributes:
        steps: Number of whole optimizer steps.
        layer_steps: Number of steps that each layer received, by name, input to output.
        interrupted: Whether the deadline ended the block.
        finished: Whether the block is over.
        seconds: How long the block lasted.
    """

    def __init__(self, model: nn.Module, layers: Layers, spare_copies: dict[str, Tensor]) -> None:
        """Record a block.

        Args:
            model: The model in training.
            layers: All its layers.
            spare_copies: Memory of earlier blocks' copies, by parameter; taken here and given back with the update.
        """
        self.steps = 0
        self.layer_steps = dict.fromkeys(layers.names, 0)
        self.interrupted = self.finished = False
        self.seconds = 0.0
        self._layers, self._spare = layers, spare_copies
        self._tensors: dict[str, Tensor] = dict(model.named_parameters())
        self._initial: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._payload: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    @property
    def depth(self) -> int:
        """The number of layers that received at least one step."""
        return sum(steps > 0 for steps in self.layer_steps.values())

    def keep_initial(self, names: Iterable[str]) -> int:
        """Copy the weights of these parameters before their first change; return how many bytes that copied."""
        first = [name for name in names if name not in self._initial]
        tensors = [self._tensors[name].detach() for name in first]
        copies = [_memory_for(tensor, self._spare.pop(name, None)) for name, tensor in zip(first, tensors, strict=True)]
        if first:
            torch._foreach_copy_(copies, tensors)
            self._initial |= dict(zip(first, copies, strict=True))
        return sum(tensor.nbytes for tensor in tensors)

    def count_step(self, layers: Iterable[str]) -> None:
        """Count an optimizer step over the layers with these names; it is whole unless the block was interrupted."""
        self.steps += not self.interrupted
        for name in layers:
            self.layer_steps[name] += 1

    def finish(self, model: nn.Module, seconds: float) -> None:
        """Note that the block is over, after `seconds`."""
        self._tensors |= dict(model.named_buffers())  # modules may have replaced them
        self._versions = {
            name: _version(self._tensors[name])
            for layer in self._layers
            if self.layer_steps[layer.name]
            for name in layer.parameters
        }
        self.finished, self.seconds = True, seconds

    def update(self, num_examples: int) -> Update:
        """Return the update; the first call must come before anything else writes to the model."""
        if self._payload is None:
            self._payload = self._make_payload()
            self._spare |= self._initial
            self._initial = {}
        steps = {name: count for name, count in self.layer_steps.items() if count}
        deltas, buffers = self._payload
        return Update(deltas, steps, num_examples, buffers)

    def _make_payload(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the deltas and buffers of the layers that received a step."""
        changed = [name for name, version in self._versions.items() if _version(self._tensors[name]) != version]
        if changed:
            raise SalfError(
                f"the model has changed since the block ended ({', '.join(changed[:3])}"
                f"{', …' if len(changed) > 3 else ''}), so its update is lost; call work.update() first"
            )
        sent = [layer for layer in self._layers if self.layer_steps[layer.name]]
        now = {name: tensor.detach() for name, tensor in self._tensors.items()}
        deltas = {name: now[name] - self._initial[name] for layer in sent for name in layer.parameters}
        return deltas, {name: now[name].clone() for layer in sent for name in layer.buffers}


def _version(tensor: Tensor) -> int:
    """Return autograd's counter of in-place writes to a tensor."""
    return tensor._version  # noqa: SLF001 - the only counter of writes, and it costs nothing to read


def _memory_for(tensor: Tensor, spare: Tensor | None) -> Tensor:
    """Return memory for a copy of `tensor`: the spare if it fits, since allocation is slow."""
    if (
        spare is not None
        and all(getattr(spare, name) == getattr(tensor, name) for name in ("shape", "dtype", "device"))
        and spare.stride() == tensor.stride()
    ):
        return spare
    return torch.empty_like(tensor)


class Work:
    """The finished part of a block's training; `salf.deadline` makes it.

    >>> import salf, torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with salf.deadline(model, optimizer, seconds=60) as work:
    ...     model(torch.ones(4, 2)).sum().backward()
    ...     optimizer.step()
    >>> work.steps, work.depth, work.interrupted
    (1, 1, False)
    """

    def __init__(self, record: BlockRecord) -> None:
        self._record = record

    def __repr__(self) -> str:
        return (
            f"Work(steps={self.steps}, depth={self.depth}, interrupted={self.interrupted}, seconds={self.seconds:.4g})"
        )

    @property
    def steps(self) -> int:
        """The number of whole optimizer steps."""
        return self._record.steps

    @property
    def depth(self) -> int:
        """The number of layers, counted from the output, that received at least one step."""
        return self._record.depth

    @property
    def layer_steps(self) -> Mapping[str, int]:
        """The steps of each layer, input to output: one more than `steps` if the interrupted pass completed it."""
        return dict(self._record.layer_steps)

    @property
    def interrupted(self) -> bool:
        """Whether the deadline ended the block."""
        return self._record.interrupted

    @property
    def seconds(self) -> float:
        """How long the block lasted, on the block's clock; 0 until it is over."""
        return self._record.seconds

    def update(self, num_examples: int) -> Update:
        """Return the partial update: local minus initial weights of each layer that received a step.

        Call it after the block, and before anything else writes to the model, such as `load_state_dict`. Later calls
        return the same tensors.

        Args:
            num_examples: The size of the client's data set, at least 1.

        Raises:
            InvalidSetting: `num_examples` is not a whole number of at least 1.
            SalfError: The block is not over, or the model has changed since.

        >>> import salf, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with salf.deadline(model, optimizer, seconds=60) as work:
        ...     model(torch.ones(4, 2)).sum().backward()
        ...     optimizer.step()
        >>> sorted(work.update(num_examples=4).deltas)
        ['bias', 'weight']
        """
        check_count("num_examples", num_examples)
        if not self._record.finished:
            raise SalfError(
                "work.update() is called inside the 'with salf.deadline(...)' block; call it after the block"
            )
        return self._record.update(int(num_examples))
