"""Aggregation of partial updates, layer by layer: rules, running sums, robust centres and the server's optimizer.

`aggregate` and `Aggregation` apply a `Rule`. To write another rule, subclass `Rule` (its docstring shows how) or a
built-in rule: `LayerShare` and `Contributions` are what it decides on. Engines add a whole cohort with `CohortSums`.
"""

from salf.aggregation.aggregation import Aggregated as Aggregated, Aggregation as Aggregation, aggregate as aggregate
from salf.aggregation.client_memory import ClientMemory as ClientMemory, Remembered as Remembered
from salf.aggregation.cohort_sums import CohortSums as CohortSums, Weigh as Weigh, check_weigh as check_weigh
from salf.aggregation.robust import (
    Centre as Centre,
    ClippedLayers as ClippedLayers,
    Median as Median,
    RobustAggregation as RobustAggregation,
    TrimmedMean as TrimmedMean,
    check_rule as check_rule,
    norm_of as norm_of,
)
from salf.aggregation.rules import (
    RULES as RULES,
    AnyRule as AnyRule,
    Contributions as Contributions,
    Contributors as Contributors,
    Corrected as Corrected,
    Everyone as Everyone,
    InverseProbability as InverseProbability,
    LayerShare as LayerShare,
    Memory as Memory,
    Rule as Rule,
)
from salf.aggregation.server_optimizer import OptimizerState as OptimizerState, ServerOptimizer as ServerOptimizer
from salf.aggregation.staleness import (
    Buffer as Buffer,
    ClientResult as ClientResult,
    ServerModel as ServerModel,
    Weights as Weights,
    mix as mix,
)
from salf.aggregation.sums import PartialSum as PartialSum
