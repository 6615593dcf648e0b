"""What is public is listed, once for type checkers and once for the import on first use."""

import ast
from pathlib import Path

import pytest

import salf

PUBLIC = [
    "Aggregated",
    "Aggregation",
    "AsynchronousMethod",
    "Contributors",
    "Corrected",
    "DataUnavailable",
    "Dataset",
    "Devices",
    "Everyone",
    "Experiment",
    "InvalidSetting",
    "InvalidUpdate",
    "InverseProbability",
    "Layer",
    "Layers",
    "Memory",
    "Method",
    "RoundRecord",
    "Rule",
    "Run",
    "RunFolderError",
    "SalfError",
    "SynchronousMethod",
    "UnsuitableModel",
    "Update",
    "Work",
    "aggregate",
    "check_update",
    "deadline",
    "find_layers",
    "register",
    "run_experiment",
    "simulate",
    "theory",
    "truncated_gradients",
]


def test_the_package_exports_what_is_listed() -> None:
    assert sorted(vars(salf)["__all__"]) == PUBLIC
    assert set(PUBLIC) <= set(dir(salf))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_that_runs_as_a_doctest(name: str) -> None:
    assert ">>> " in getattr(salf, name).__doc__


def test_type_checkers_see_the_same_names_in_the_same_places() -> None:
    tree = ast.parse(Path(salf.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    homes = {name: f"salf.{home}" for name, home in vars(salf)["_HOME_OF"].items()}
    assert seen == {**homes, "theory": "salf"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(salf, "nothing")  # noqa: B009 - type checkers know that there is none
