"""Whether the weights have changed, as told by the counters of writes that PyTorch keeps."""

from collections.abc import Iterable

from torch import nn

from salf.client.work import version_of


class WeightVersions:
    """Notices changes of a model's weights that no optimizer step has made."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = tuple(parameters)
        self._initial = self._now()
        self._at_first_pass: int | None = None
        self._calls = 0  # backward calls since the last step

    def begin_step(self) -> None:
        """Note that an optimizer step has ended."""
        self._at_first_pass, self._calls = None, 0

    def begin_backward(self) -> bool:
        """Note that a backward call begins; return whether it is the first one of a step."""
        self._calls += 1
        if self._at_first_pass is not None:
            return False
        self._at_first_pass = self._now()
        return True

    def are_within_step(self, passes: int | None) -> bool:
        """Say whether a step of several passes has moved the weights and is still to move them back, as SAM's.

        Args:
            passes: The usual number of passes per step. After more than twice as many, it will not.
        """
        if self._at_first_pass is None or self._calls > 2 * (passes or 1) + 1:
            return False
        return self._now() != self._at_first_pass

    def have_changed(self) -> bool:
        """Say whether the weights have changed since the beginning."""
        return self._now() != self._initial

    def _now(self) -> int:
        return sum(map(version_of, self._parameters))
