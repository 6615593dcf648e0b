"""What is public is listed: the package exports exactly these names."""

import types

import salf

PUBLIC = {
    "Aggregated",
    "Aggregation",
    "Contributors",
    "Corrected",
    "DataUnavailable",
    "Dataset",
    "Everyone",
    "Experiment",
    "InvalidSetting",
    "InvalidUpdate",
    "InverseProbability",
    "Layer",
    "Layers",
    "Memory",
    "RoundRecord",
    "Run",
    "RunFolderError",
    "SalfError",
    "UnsuitableModel",
    "Update",
    "Work",
    "aggregate",
    "check_update",
    "deadline",
    "find_layers",
    "run_experiment",
    "simulate",
    "truncated_gradients",
}


def test_the_package_exports_what_is_listed() -> None:
    exported = {name for name, value in vars(salf).items() if not name.startswith("_")}
    modules = {name for name in exported if isinstance(getattr(salf, name), types.ModuleType)}
    assert exported - modules == PUBLIC
