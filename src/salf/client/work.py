"""What a user learns about a finished block, and the update that goes to the server."""

from collections.abc import Mapping
from numbers import Integral

from salf.client.block_record import BlockRecord
from salf.errors import InvalidSetting, SalfError
from salf.update import Update


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
        given: object = num_examples
        if isinstance(given, bool) or not isinstance(given, Integral) or num_examples < 1:
            raise InvalidSetting(f"num_examples is {num_examples!r:.40}; give a whole number of at least 1")
        if not self._record.finished:
            raise SalfError(
                "work.update() is called inside the 'with salf.deadline(...)' block; call it after the block"
            )
        return self._record.update(int(num_examples))
