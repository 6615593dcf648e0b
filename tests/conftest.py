"""One thread per test process, and language rules for every error that salf raises in a test."""

import sys
from collections.abc import Iterator
from functools import cache

import language
import pytest
import torch

from salf.errors import SalfError

problems_of = cache(language.problems_of)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread: more of them only slow down networks as small as these, above all beside other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def plain_messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which the package raises an error without a remedy or in archaic words."""
    raised: set[str] = set()
    initialize = SalfError.__init__

    def initialize_and_keep(self: SalfError, *arguments: object) -> None:
        initialize(self, *arguments)
        caller = sys._getframe(1)
        if caller.f_globals.get("__name__") == "salf.errors" and caller.f_back is not None:
            caller = caller.f_back  # from the initializer of a subclass
        if str(caller.f_globals.get("__name__")).startswith("salf."):
            raised.add(str(self))

    monkeypatch.setattr(SalfError, "__init__", initialize_and_keep)
    yield
    assert {message: found for message in raised if (found := problems_of(message))} == {}
