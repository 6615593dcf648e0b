"""Straggler-aware layer-wise federated learning: a round deadline that keeps the finished work of slow devices.

Public names load on first use, so `import salf` is fast and does not import torch.
"""

from importlib import import_module

# Where each public name is defined. `__init__.pyi` tells type checkers; a test holds both to the same names.
_HOMES = {
    "aggregation": "Aggregated Aggregation Contributors Corrected Everyone InverseProbability Memory Rule aggregate",
    "client": "Work deadline truncated_gradients",
    "data": "Dataset",
    "devices": "Devices",
    "errors": "DataUnavailable InvalidSetting InvalidUpdate RunFolderError SalfError UnsuitableModel",
    "experiment": "Experiment register",
    "layers": "Layer Layers find_layers",
    "methods": "AsynchronousMethod Method SynchronousMethod",
    "records": "RoundRecord",
    "runs": "Run run_experiment",
    "simulation": "simulate",
    "update": "Update check_update",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = ["theory", *sorted(_HOME_OF)]  # noqa: PLE0604 - the table above holds strings only


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name == "theory":
        return import_module("salf.theory")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'salf' has no attribute '{name}'")
    value = getattr(import_module(f"salf.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
