"""What a user learns about a finished block, and the update that goes to the server."""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from salf.errors import SalfError, check_count
from salf.layers import Layers
from salf.update import Update

_Batch = TypeVar("_Batch")


class Block(Protocol):
    """What a loop asks its block when it ends itself, which it says by `ends_itself`."""

    ends_itself: bool

    def is_time_up(self) -> bool:
        """Say whether no further batch should begin."""
        ...

    def refuse_batch(self) -> None:
        """Note that the loop asked for a batch after that; this may leave a loop that never ends."""
        ...


class BlockRecord:
    """What one block has done so far. The block writes it; `Work` shows it to the user.

    Attributes:
        layer_steps: Number of steps that each layer received, by name, input to output.
        layer_passes: Number of backward passes whose gradients these steps applied.
        layer_examples: Number of examples in these passes.
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
        self.layer_steps = dict.fromkeys(layers.names, 0)
        self.layer_passes, self.layer_examples = dict(self.layer_steps), dict(self.layer_steps)
        self._whole_steps = dict(self.layer_steps)
        self.interrupted = self.finished = False
        self.seconds = 0.0
        self._layers, self._spare = layers, spare_copies
        self._tensors: dict[str, Tensor] = dict(model.named_parameters())
        self._initial: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._payload: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    @property
    def steps(self) -> int:
        """The number of whole optimizer steps; of several optimizers, the number of the most frequent one."""
        return max(self._whole_steps.values())

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

    def count_step(self, layers: Iterable[str], passes: Mapping[str, int], examples: Mapping[str, int]) -> None:
        """Count an optimizer step; it is whole unless the block was interrupted.

        Args:
            layers: Names of the layers.
            passes: The passes that the step applies, by layer.
            examples: The examples in these passes, by layer.
        """
        for name in layers:
            self._whole_steps[name] += not self.interrupted
            self.layer_steps[name] += 1
            self.layer_passes[name] += passes.get(name, 0)
            self.layer_examples[name] += examples.get(name, 0)

    def finish(self, model: nn.Module, seconds: float) -> None:
        """Note that the block is over, after `seconds`."""
        self._tensors |= dict(model.named_buffers())  # modules may have replaced them
        self._versions = {
            name: version_of(self._tensors[name])
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
        steps, passes, examples = (
            {name: counts[name] for name, steps in self.layer_steps.items() if steps}
            for counts in (self.layer_steps, self.layer_passes, self.layer_examples)
        )
        deltas, buffers = self._payload
        # Examples are not known where the calls of the model cannot be seen.
        known = (counts if all(counts.values()) else {} for counts in (passes, examples))
        return Update(deltas, steps, num_examples, buffers, *known)

    def _make_payload(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the deltas and buffers of the layers that received a step."""
        changed = [name for name, version in self._versions.items() if version_of(self._tensors[name]) != version]
        if changed:
            raise SalfError(
                f"the model has changed since the block ended ({', '.join(changed[:3])}"
                f"{', …' if len(changed) > 3 else ''}), so its update is lost; call work.update() first"
            )
        sent = [layer for layer in self._layers if self.layer_steps[layer.name]]
        now = {name: tensor.detach() for name, tensor in self._tensors.items()}
        deltas = {name: now[name] - self._initial[name] for layer in sent for name in layer.parameters}
        return deltas, {name: now[name].clone() for layer in sent for name in layer.buffers}


def version_of(tensor: Tensor) -> int:
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

    def __init__(self, record: BlockRecord, block: Block) -> None:
        """Show the record of a block, which a `with` statement keeps alive."""
        self._record, self._block = record, weakref.ref(block)

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
        """The steps of each layer, input to output, that of an interrupted pass included."""
        return dict(self._record.layer_steps)

    @property
    def layer_passes(self) -> Mapping[str, int]:
        """The backward passes whose gradients each layer's steps applied, input to output.

        Without gradient accumulation, it equals `layer_steps`. An interrupted step counts the passes that had reached
        the layer.
        """
        return dict(self._record.layer_passes)

    @property
    def layer_examples(self) -> Mapping[str, int]:
        """The examples in these passes: the first dimension of the first tensor that the model was called with.

        It is 0 where calls of the model cannot be seen, as within a compiled one.
        """
        return dict(self._record.layer_examples)

    @property
    def time_is_up(self) -> bool:
        """Whether no further pass should begin, because the deadline is reached or would be before a layer is finished.

        For loops with a stop condition of their own. Where such a loop must not be left by an exception, set
        `ends_itself` of the context manager to True, as `batches` does.

        >>> import math, salf, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> with salf.deadline(model, seconds=math.inf) as work:
        ...     work.time_is_up
        False
        """
        block = self._block()
        return block is None or block.is_time_up()

    def batches(self, loader: Iterable[_Batch]) -> "Batches[_Batch]":
        """Return `loader`, but ending when time is up, for a training function that is to return as usual.

        A backward pass that the deadline interrupts then returns early, with the gradients of the finished layers; the
        function's own clipping, step and logging run on them. No further batch follows. Gradients of unfinished layers
        are zero until the step, which leaves these layers as they are.

        Args:
            loader: The training batches, such as a `DataLoader`. Its length and attributes remain available.

        >>> import salf, torch
        >>> def train(model, loader):
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     losses = []
        ...     for batch in loader:
        ...         optimizer.zero_grad()
        ...         loss = model(batch).sum()
        ...         loss.backward()
        ...         optimizer.step()
        ...         losses.append(loss.item())
        ...     return len(losses)
        >>> model = torch.nn.Linear(2, 1)
        >>> with salf.deadline(model, seconds=60) as work:
        ...     trained = train(model, work.batches([torch.ones(4, 2)] * 3))
        >>> trained, work.steps, work.layer_examples
        (3, 3, {'weight+bias': 12})
        """
        return Batches(loader, self._block, self._record)

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


class Batches(Generic[_Batch]):
    """Batches that end when the time of a block is up, and are all there after it; `Work.batches` makes it."""

    def __init__(self, loader: Iterable[_Batch], block: "weakref.ref[Block]", record: BlockRecord) -> None:
        """Wrap a loader for a block, whose record knows when it is over."""
        self._loader, self._block, self._record = loader, block, record

    def __iter__(self) -> Iterator[_Batch]:
        block = self._block()
        size = len(self._loader) if isinstance(self._loader, Sized) else None
        if block is None or self._record.finished:
            yield from self._loader
            return
        block.ends_itself = True
        if not block.is_time_up():
            for number, batch in enumerate(self._loader, 1):
                if block.is_time_up():  # loading takes time, too
                    break
                yield batch
                if number != size and block.is_time_up():
                    break
            else:
                return
        block.refuse_batch()

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]  # - raises the loader's own error where it has no length

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # copying and pickling look for these before there is a loader
            raise AttributeError(name)
        return getattr(self._loader, name)
