"""What salf raises when something outside it is wrong: one clear message, never a half-done change."""

from collections.abc import Iterable


class SalfError(Exception):
    """A mistake the caller can mend. The message names the thing, the place and the remedy."""


class InvalidSetting(SalfError):
    """A setting, option or argument has a wrong value."""


class DataUnavailable(SalfError):
    """A data set is missing, incomplete or damaged."""


class RunFolderError(SalfError):
    """A run's folder cannot be written, read, or does not belong to this experiment."""


def check_type(name: str, value: object, kind: type | tuple[type, ...], needed: str) -> None:
    """Raise `InvalidSetting` unless the argument called `name` is of a type; `needed` says in words what is.

    >>> check_type("model", None, dict, "an nn.Module")
    Traceback (most recent call last):
    salf.errors.InvalidSetting: model is of type NoneType; give an nn.Module
    """
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise InvalidSetting(f"{name} is {given}; give {needed}")


class _Problems(SalfError):
    """An error that lists every problem found, not only the first."""

    def __init__(self, what: str, problems: Iterable[str]) -> None:
        self.what = what
        self.problems = tuple(problems)
        super().__init__(what, self.problems)

    def __str__(self) -> str:
        return f"{self.what}: " + "; ".join(self.problems)


class UnsuitableModel(_Problems):
    """A model, or a model with its optimizer, that cannot be trained layer-wise; `problems` lists every reason."""


class InvalidUpdate(_Problems):
    """A client's update that must not be aggregated; `problems` lists every reason."""
