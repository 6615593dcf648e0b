# What type checkers see of the lazy names in `__init__.py`; a test holds both to the same names.
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
