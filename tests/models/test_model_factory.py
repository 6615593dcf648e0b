"""A user's own model: where it is looked for, and what is said when it is not found."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from salf.errors import InvalidSetting
from salf.models import Factory, build, import_callable

NETS = """
from dataclasses import dataclass
from torch import nn

LEARNING_RATE = 0.1

@dataclass
class Sizes:
    inputs: "int" = 4

def make_network():
    return nn.Linear(Sizes().inputs, 2)

def make_late():
    from salf_test_neighbour import WIDTH
    return nn.Linear(WIDTH, 2)

def make_nothing():
    return None

def make_trouble():
    raise ValueError("no luck")

def make_silent_trouble():
    raise AssertionError

def make_sized(width):
    return nn.Linear(width, 2)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder that holds two modules, which are forgotten afterwards."""
    (tmp_path / "salf_test_nets.py").write_text(NETS)
    (tmp_path / "salf_test_neighbour.py").write_text("WIDTH = 3\n")
    monkeypatch.chdir(tmp_path)
    loaded = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - loaded:
        if "salf_test" in name:
            del sys.modules[name]


def refusal(call: str) -> str:
    with pytest.raises(InvalidSetting) as caught:
        build(Factory(call), (4,), num_classes=2, seed=0)
    return str(caught.value)


def test_a_module_in_the_current_folder_is_found(folder: Path) -> None:
    path = list(sys.path)
    network = build(Factory("salf_test_nets:make_network"), (4,), num_classes=2, seed=0)
    assert isinstance(network, nn.Linear)
    assert sys.path == path


def test_a_module_in_a_package_is_found(folder: Path) -> None:
    (folder / "salf_test_package").mkdir()
    (folder / "salf_test_package" / "nets.py").write_text(NETS)
    assert import_callable("salf_test_package.nets:make_network") is not None


@pytest.mark.parametrize("place", ["salf_test_nets.py", "./salf_test_nets.py", "{folder}/salf_test_nets.py"])
def test_a_file_is_found(folder: Path, place: str) -> None:
    call = place.format(folder=folder) + ":make_network"
    assert isinstance(build(Factory(call), (4,), num_classes=2, seed=0), nn.Linear)


def test_a_file_is_executed_once(folder: Path) -> None:
    assert import_callable("salf_test_nets.py:Sizes") is import_callable(f"{folder}/salf_test_nets.py:Sizes")


def test_files_of_one_name_are_told_apart(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "salf_test_nets.py").write_text("def make_network(): return None\n")
    first = import_callable("salf_test_nets.py:make_network")
    assert import_callable("sub/salf_test_nets.py:make_network") is not first


def test_a_file_may_import_its_neighbours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "salf_test_wide.py").write_text(
        "from salf_test_neighbour import WIDTH\nfrom torch import nn\ndef make(): return nn.Linear(WIDTH, 2)\n"
    )
    monkeypatch.chdir(folder.parent)
    assert isinstance(build(Factory(f"{folder}/salf_test_wide.py:make"), (3,), num_classes=2, seed=0), nn.Linear)


def test_imports_inside_the_callable_work(folder: Path) -> None:
    path = list(sys.path)
    assert isinstance(build(Factory("salf_test_nets:make_late"), (3,), num_classes=2, seed=0), nn.Linear)
    assert sys.path == path


def test_what_a_module_does_to_the_search_path_is_its_own_affair(folder: Path) -> None:
    path = list(sys.path)
    (folder / "salf_test_tidy.py").write_text("import sys\nsys.path.pop(0)\nfrom torch.nn import Identity\n")
    assert isinstance(build(Factory("salf_test_tidy:Identity"), (3,), num_classes=2, seed=0), nn.Identity)
    assert sys.path == path


@pytest.mark.parametrize("call", ["", "nets", "nets.py", "nets:", ":make"])
def test_both_parts_are_needed(call: str) -> None:
    assert refusal(call) == (
        f"model.call is '{call}', which does not name a module and a callable in it; "
        "write 'package.module:callable' or 'path/to/file.py:callable'"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import salf_test_nowhere", "ModuleNotFoundError: No module named 'salf_test_nowhere'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("def", "SyntaxError: invalid syntax"),
    ],
)
@pytest.mark.parametrize("place", ["salf_test_broken", "salf_test_broken.py"])
def test_a_module_that_fails_is_named_with_the_reason(folder: Path, place: str, content: str, reason: str) -> None:
    path, loaded = list(sys.path), set(sys.modules)
    (folder / "salf_test_broken.py").write_text(content)
    message = refusal(f"{place}:make")
    assert message.startswith(f"model.call is '{place}:make', but '{place}' cannot be imported ({reason}")
    assert message.endswith("; correct the name or the module")
    assert sys.path == path
    assert not [name for name in set(sys.modules) - loaded if "salf_test" in name]


@pytest.mark.parametrize("place", ["salf_test_nowhere", "salf_test_nowhere.nets", "nowhere/nets.py", "..nets", "a b"])
def test_a_module_that_is_not_there_is_named(folder: Path, place: str) -> None:
    assert f"'{place}' cannot be imported (" in refusal(f"{place}:make")


def test_close_names_are_suggested(folder: Path) -> None:
    message = refusal("salf_test_nets:make_netwrok")
    assert message.startswith("model.call is 'salf_test_nets:make_netwrok', but 'salf_test_nets' has no 'make_netwrok'")
    assert "; use 'make_network'" in message


def test_without_a_close_name_there_is_another_remedy(folder: Path) -> None:
    assert refusal("salf_test_nets:zzz").endswith("has no 'zzz'; define it there, or name another callable")


def test_what_is_not_callable_is_refused(folder: Path) -> None:
    assert "'LEARNING_RATE' is a float; name a function or class" in refusal("salf_test_nets:LEARNING_RATE")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("make_trouble", "raised ValueError: no luck; name"),
        ("make_silent_trouble", "raised AssertionError; name"),
        ("make_sized", "raised TypeError: make_sized() missing 1 required positional argument: 'width'; name"),
        ("make_nothing", "returned a NoneType; name a callable that returns an instance of torch.nn.Module"),
        ("Sizes", "returned a Sizes; name"),
    ],
)
def test_a_call_that_makes_no_model_is_refused(folder: Path, name: str, reason: str) -> None:
    path = list(sys.path)
    message = refusal(f"salf_test_nets:{name}")
    assert message.startswith(f"model.call is 'salf_test_nets:{name}', which {reason}")
    assert sys.path == path


def test_an_installed_package_needs_no_folder() -> None:
    assert import_callable("collections:Counter") is importlib.import_module("collections").Counter
