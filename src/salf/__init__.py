"""Straggler-aware layer-wise federated learning: a round deadline that loses no work of the slow devices."""

from salf.aggregation import Aggregated as Aggregated
from salf.aggregation import Aggregation as Aggregation
from salf.aggregation import aggregate as aggregate
from salf.backprop import deadline as deadline
from salf.backprop import truncated_gradients as truncated_gradients
from salf.data import Dataset as Dataset
from salf.errors import InvalidSetting as InvalidSetting
from salf.errors import InvalidUpdate as InvalidUpdate
from salf.errors import SalfError as SalfError
from salf.errors import UnsuitableModel as UnsuitableModel
from salf.experiment import Experiment as Experiment
from salf.layers import Layer as Layer
from salf.layers import Layers as Layers
from salf.layers import find_layers as find_layers
from salf.records import RoundRecord as RoundRecord
from salf.rules import Contributors as Contributors
from salf.rules import Corrected as Corrected
from salf.rules import Everyone as Everyone
from salf.rules import InverseProbability as InverseProbability
from salf.rules import Memory as Memory
from salf.runs import Run as Run
from salf.runs import run_experiment as run_experiment
from salf.simulation import simulate as simulate
from salf.updates import Update as Update
from salf.updates import check_update as check_update
from salf.work import Work as Work
