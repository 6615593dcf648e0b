"""A user's own model, named by the function that builds it."""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Literal

from pydantic.dataclasses import dataclass
from torch import nn

from salf.errors import InvalidSetting
from salf.values import STRICT


@dataclass(frozen=True, config=STRICT)
class Factory:
    """A model that a function or class builds without arguments.

    `call` is `package.module:callable`, also for modules in the current folder, or `path/to/file.py:callable`. The
    model must fit the data: it is not told their shape or number of classes.

    >>> Factory("torch.nn:Identity").build((4,), num_classes=4)
    Identity()
    """

    call: str
    name: Literal["factory"] = "factory"

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Call the callable, which must return an `nn.Module`.

        Args:
            input_shape: Ignored; the model must fit the data.
            num_classes: Ignored likewise.

        Raises:
            InvalidSetting: The callable is missing, fails, or returns anything else.
        """
        make = import_callable(self.call)
        try:
            with _searched_first(_folder(self.call)):
                made = make()
        except Exception as reason:
            raise InvalidSetting(
                f"model.call is '{self.call}', which raised {_reason_of(reason)}; "
                "name a callable that builds the model without arguments"
            ) from reason
        if not isinstance(made, nn.Module):
            raise InvalidSetting(
                f"model.call is '{self.call}', which returned a {type(made).__name__}; "
                "name a callable that returns an instance of torch.nn.Module"
            )
        return made


def import_callable(spec: str) -> Callable[..., object]:
    """Import `package.module:callable` or `path/to/file.py:callable`.

    The current folder is searched first, as `python -m` does, and a file can import its neighbours. A file is executed
    once per process, like a module.

    Raises:
        InvalidSetting: The text has another form, the module cannot be imported, or it has no such callable.

    >>> import_callable("collections:OrderedDict")
    <class 'collections.OrderedDict'>
    """
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute:
        raise InvalidSetting(
            f"model.call is '{spec}', which does not name a module and a callable in it; "
            "write 'package.module:callable' or 'path/to/file.py:callable'"
        )
    try:
        with _searched_first(_folder(spec)):
            importlib.invalidate_caches()
            module = _run_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as reason:
        problem = f"model.call is '{spec}', but '{place}' cannot be imported ({_reason_of(reason)})"
        raise InvalidSetting(f"{problem}; correct the name or the module") from reason
    if not hasattr(module, attribute):
        remedy = _suggest(attribute, vars(module))
        raise InvalidSetting(f"model.call is '{spec}', but '{place}' has no '{attribute}'; {remedy}")
    found = getattr(module, attribute)
    if not callable(found):
        raise InvalidSetting(
            f"model.call is '{spec}', but '{attribute}' is a {type(found).__name__}; "
            "name a function or class that builds the model"
        )
    return found  # type: ignore[no-any-return]  # checked above - getattr returns Any


def _folder(spec: str) -> Path:
    """Return the folder that imports search first."""
    place = spec.rpartition(":")[0]
    return Path(place).resolve().parent if place.endswith(".py") else Path.cwd()


@contextmanager
def _searched_first(folder: Path) -> Iterator[None]:
    """Make imports search `folder` first, inside the block only."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(str(folder))


def _run_file(path: Path) -> ModuleType:
    """Return a file as a module with a unique name, executed unless it was before."""
    origin = str(path.resolve())
    name = f"{path.stem}_{hashlib.blake2b(origin.encode(), digest_size=8).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    loader = SourceFileLoader(name, origin)
    spec = ModuleSpec(name, loader, origin=origin)
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _suggest(attribute: str, names: dict[str, object]) -> str:
    """Return the remedy for a name that a module lacks."""
    public = [name for name, value in names.items() if callable(value) and not name.startswith("_")]
    close = difflib.get_close_matches(attribute, public)
    if close:
        return "use " + " or ".join(f"'{name}'" for name in close)
    return "define it there, or name another callable"


def _reason_of(reason: BaseException) -> str:
    """Return the type of an error and its text, if any."""
    return f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__
