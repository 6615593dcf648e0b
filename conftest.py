"""Fixtures of all tests and doctests."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

# Each of these modules imports a library of the same name, which the daily checks do not install.
_INTEGRATIONS = ("accelerate", "lightning", "peft", "transformers")
collect_ignore = [f"src/salf/integrations/{name}.py" for name in _INTEGRATIONS if find_spec(name) is None]


@pytest.fixture(autouse=True)
def only_built_in_classes() -> Iterator[None]:
    """Forget the methods, rules and device models that a test or a doctest registers."""
    yield
    for package, registry in (("methods", "METHODS"), ("aggregation", "RULES"), ("devices", "DEVICES")):
        loaded = sys.modules.get(f"salf.{package}")
        if loaded is not None:
            getattr(loaded, registry).clear()
