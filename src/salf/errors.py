"""Errors for callers' mistakes, and checks of arguments that packages share.

A message says what is wrong, where, and, after a semicolon, what to do.
"""

import math
from collections.abc import Iterable
from numbers import Integral, Real

_LONGEST = 40
_MOST = 8  # problems listed in a message


class SalfError(Exception):
    """A mistake that the caller can correct: the base of all errors of salf.

    >>> import salf
    >>> try:
    ...     salf.Experiment.load("digits", rounds=0)
    ... except salf.SalfError as error:
    ...     print(error)
    preset 'digits' with overrides: rounds is 0; choose a number of at least 1
    """


class InvalidSetting(SalfError, ValueError):
    """A setting, option or argument has a wrong value.

    >>> import salf
    >>> salf.Experiment.load("digits", rounds=0)
    Traceback (most recent call last):
    salf.errors.InvalidSetting: preset 'digits' with overrides: rounds is 0; choose a number of at least 1
    """


class DataUnavailable(SalfError):
    """A data set is missing, incomplete or damaged.

    >>> from salf.data import load
    >>> load("mnist", "nowhere")
    Traceback (most recent call last):
    salf.errors.DataUnavailable: ... not found in nowhere/mnist or nowhere; set data.root, or leave it out to download
    """


class RunFolderError(SalfError):
    """A run's folder cannot be read or written, or belongs to another experiment.

    >>> import salf
    >>> salf.run_experiment(salf.Experiment.load("digits", rounds=1), out=__file__)
    Traceback (most recent call last):
    salf.errors.RunFolderError: ...
    """


def check_type(name: str, value: object, kind: type | tuple[type, ...], needed: str) -> None:
    """Raise `InvalidSetting` unless an argument is an instance of `kind`.

    Args:
        name: What the message calls the argument.
        value: The argument.
        kind: A class or several, as `isinstance` takes them.
        needed: The same in words, with an article.

    >>> check_type("model", None, dict, "an nn.Module")
    Traceback (most recent call last):
    salf.errors.InvalidSetting: model is of type NoneType; give an nn.Module
    """
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise InvalidSetting(f"{name} is {given}; give {needed}")


def check_positive(name: str, value: object, *, finite: bool = True) -> None:
    """Raise `InvalidSetting` unless an argument is a real number greater than 0.

    Args:
        name: What the message calls the argument.
        value: The argument; True, False and NaN are refused.
        finite: Whether infinity is refused too.

    >>> check_positive("seconds", 1.5)
    >>> check_positive("seconds", -1.0)
    Traceback (most recent call last):
    salf.errors.InvalidSetting: seconds is -1.0; choose a number greater than 0
    """
    number = _as_float(value)
    if not number > 0 or (finite and number == math.inf):
        kind = "finite number" if number == math.inf else "number"
        raise InvalidSetting(f"{name} is {shown(value)}; choose a {kind} greater than 0")


def check_non_negative(name: str, value: object) -> None:
    """Raise `InvalidSetting` unless an argument is a finite real number of at least 0.

    >>> check_non_negative("speed_sigma", float("nan"))
    Traceback (most recent call last):
    salf.errors.InvalidSetting: speed_sigma is nan; choose a finite number of at least 0
    """
    if not 0 <= _as_float(value) < math.inf:
        raise InvalidSetting(f"{name} is {shown(value)}; choose a finite number of at least 0")


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Raise `InvalidSetting` unless an argument is a whole number of at least `least`.

    >>> check_count("num_clients", 0)
    Traceback (most recent call last):
    salf.errors.InvalidSetting: num_clients is 0; choose a whole number of at least 1
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InvalidSetting(f"{name} is {shown(value)}; choose a whole number of at least {least}")


def shown(value: object) -> str:
    """Return the `repr` of a value for a message, cut to 40 characters.

    >>> shown([0.5] * 1000)
    '[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5…'
    """
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _as_float(value: object) -> float:
    """Return a real number as a float, NaN for anything else, True and False included."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # a whole number that no float holds
        return math.nan


class _Problems(SalfError):
    """An error with every problem found in `problems`; the message lists the first of them."""

    def __init__(self, what: str, problems: Iterable[str]) -> None:
        self.what = what
        self.problems = tuple(problems)
        super().__init__(what, self.problems)

    def __str__(self) -> str:
        more = [f"and {len(self.problems) - _MOST} more problems"] if len(self.problems) > _MOST else []
        return f"{self.what}: " + "; ".join([*self.problems[:_MOST], *more])


class UnsuitableModel(_Problems):
    """A model, or its optimizer, that cannot be trained layer by layer.

    Attributes:
        problems: Every reason, each with its remedy.

    >>> import salf, torch
    >>> salf.find_layers(torch.nn.ReLU())
    Traceback (most recent call last):
    salf.errors.UnsuitableModel: ReLU cannot be trained layer by layer: it has no parameters; use a model with ...
    """


class InvalidUpdate(_Problems):
    """A client's update that must not be aggregated.

    Attributes:
        problems: Every reason.

    >>> import salf, torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> update = salf.Update({"weight": torch.ones(2, 1)}, steps=1, num_examples=4)
    >>> salf.check_update(update, salf.find_layers(model), model.state_dict())
    Traceback (most recent call last):
    salf.errors.InvalidUpdate: this update cannot be aggregated; ...: 'weight' has shape (2, 1), not (1, 1)
    """
