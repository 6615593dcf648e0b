"""Straggler-aware layer-wise federated learning: a round deadline that keeps the finished work of slow devices.

Public names load on first use, so `import salf` is fast and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from salf import theory as theory
    from salf.aggregation import (
        Aggregated as Aggregated,
        Aggregation as Aggregation,
        Contributors as Contributors,
        Corrected as Corrected,
        Everyone as Everyone,
        InverseProbability as InverseProbability,
        Memory as Memory,
        Rule as Rule,
        aggregate as aggregate,
    )
    from salf.client import Work as Work, deadline as deadline, truncated_gradients as truncated_gradients
    from salf.data import Dataset as Dataset
    from salf.devices import Devices as Devices
    from salf.errors import (
        DataUnavailable as DataUnavailable,
        InvalidSetting as InvalidSetting,
        InvalidUpdate as InvalidUpdate,
        RunFolderError as RunFolderError,
        SalfError as SalfError,
        UnsuitableModel as UnsuitableModel,
    )
    from salf.experiment import Experiment as Experiment, register as register
    from salf.layers import Layer as Layer, Layers as Layers, find_layers as find_layers
    from salf.methods import (
        AsynchronousMethod as AsynchronousMethod,
        Method as Method,
        SynchronousMethod as SynchronousMethod,
    )
    from salf.records import RoundRecord as RoundRecord
    from salf.runs import Run as Run, run_experiment as run_experiment
    from salf.simulation import simulate as simulate
    from salf.update import Update as Update, check_update as check_update

# Where each public name is defined; a test holds this table and the imports above to the same names.
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
