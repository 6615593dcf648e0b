"""Fixtures of all tests and doctests."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def only_built_in_classes() -> Iterator[None]:
    """Forget the methods, rules and device models that a test or a doctest registers."""
    yield
    for package, registry in (("methods", "METHODS"), ("aggregation", "RULES"), ("devices", "DEVICES")):
        loaded = sys.modules.get(f"salf.{package}")
        if loaded is not None:
            getattr(loaded, registry).clear()
