"""A user's own model, named in a config file by the function that builds it."""

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

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import nn

from salf.errors import InvalidSetting


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Factory:
    """A model built by calling a function or class without arguments.

    `call` says where it is: `package.module:callable`, also for modules in the current folder, or
    `path/to/file.py:callable`. The model itself must fit the data: neither shape nor number of classes is passed on.

    >>> Factory("torch.nn:Identity").build((4,), num_classes=4)
    Identity()
    """

    call: str
    name: Literal["factory"] = "factory"

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Call the callable; raises `InvalidSetting` if it cannot be found, fails, or returns no `nn.Module`."""
        make = import_callable(self.call)
        try:
            with _searched_first(_folder(self.call)):
                made = make()
        except Exception as reason:
            raise InvalidSetting(
                f"model.call is '{self.call}', which raised {_describe(reason)}; "
                "name a callable that builds the model without arguments"
            ) from reason
        if not isinstance(made, nn.Module):
            raise InvalidSetting(
                f"model.call is '{self.call}', which returned a {type(made).__name__}; "
                "name a callable that returns an instance of torch.nn.Module"
            )
        return made


def import_callable(spec: str) -> Callable[..., object]:
    """Import what `package.module:callable` or `path/to/file.py:callable` names.

    Modules are looked for in the current folder first, as `python -m` does; a file's neighbours can be imported by it.
    A file is executed once per process, like a module. Raises `InvalidSetting` if the text has another form, if the
    module cannot be imported, if it lacks the attribute, or if that is not callable.

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
            module = _run_file(Path(place)) if _is_file(place) else importlib.import_module(place)
    except (Exception, SystemExit) as reason:
        raise InvalidSetting(
            f"model.call is '{spec}', but '{place}' cannot be imported ({_describe(reason)}); "
            "mend the name or the module"
        ) from reason
    if not hasattr(module, attribute):
        raise InvalidSetting(
            f"model.call is '{spec}', but '{place}' has no '{attribute}'; {_suggest(attribute, vars(module))}"
        )
    found = getattr(module, attribute)
    if not callable(found):
        raise InvalidSetting(
            f"model.call is '{spec}', but '{attribute}' is a {type(found).__name__}; "
            "name a function or class that builds the model"
        )
    return found  # type: ignore[no-any-return]


def _is_file(place: str) -> bool:
    return place.endswith(".py")


def _folder(spec: str) -> Path:
    """Return the folder in which imports are to be looked for first."""
    place = spec.rpartition(":")[0]
    return Path(place).resolve().parent if _is_file(place) else Path.cwd()


@contextmanager
def _searched_first(folder: Path) -> Iterator[None]:
    """Let imports look into `folder` before anywhere else, and no longer afterwards."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(str(folder))


def _run_file(path: Path) -> ModuleType:
    """Execute a file as a module whose name no other file can have, unless that was done before."""
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
    public = [name for name, value in names.items() if callable(value) and not name.startswith("_")]
    close = difflib.get_close_matches(attribute, public)
    if close:
        return "did you mean " + " or ".join(f"'{name}'" for name in close) + "?"
    return "define it there, or name another callable"


def _describe(reason: BaseException) -> str:
    return f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__
