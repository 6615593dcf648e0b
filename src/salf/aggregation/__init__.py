"""Aggregation of partial updates, layer by layer: rules, running sums, robust centres and the server's optimizer.

`aggregate` and `Aggregation` apply a `Rule`. To write another rule, subclass `Rule` (its docstring shows how) or a
built-in rule: `LayerShare` and `Contributions` are what it decides on. Engines add a whole cohort with `CohortSums`.
"""

from salf.aggregation.aggregation import Aggregated as Aggregated
from salf.aggregation.aggregation import Aggregation as Aggregation
from salf.aggregation.aggregation import aggregate as aggregate
from salf.aggregation.client_memory import ClientMemory as ClientMemory
from salf.aggregation.client_memory import Remembered as Remembered
from salf.aggregation.cohort_sums import CohortSums as CohortSums
from salf.aggregation.robust import Centre as Centre
from salf.aggregation.robust import ClippedLayers as ClippedLayers
from salf.aggregation.robust import Median as Median
from salf.aggregation.robust import RobustAggregation as RobustAggregation
from salf.aggregation.robust import TrimmedMean as TrimmedMean
from salf.aggregation.robust import check_rule as check_rule
from salf.aggregation.robust import norm_of as norm_of
from salf.aggregation.rules import RULES as RULES
from salf.aggregation.rules import AnyRule as AnyRule
from salf.aggregation.rules import Contributions as Contributions
from salf.aggregation.rules import Contributors as Contributors
from salf.aggregation.rules import Corrected as Corrected
from salf.aggregation.rules import Everyone as Everyone
from salf.aggregation.rules import InverseProbability as InverseProbability
from salf.aggregation.rules import LayerShare as LayerShare
from salf.aggregation.rules import Memory as Memory
from salf.aggregation.rules import Rule as Rule
from salf.aggregation.server_optimizer import OptimizerState as OptimizerState
from salf.aggregation.server_optimizer import ServerOptimizer as ServerOptimizer
from salf.aggregation.staleness import Buffer as Buffer
from salf.aggregation.staleness import ClientResult as ClientResult
from salf.aggregation.staleness import ServerModel as ServerModel
from salf.aggregation.staleness import Weights as Weights
from salf.aggregation.staleness import mix as mix
from salf.aggregation.sums import PartialSum as PartialSum
