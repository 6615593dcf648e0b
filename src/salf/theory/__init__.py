"""The mathematics of layer-wise updates under a deadline: pure functions.

Layers are numbered l = 1 … L from input to output. A client of depth d has completed the d layers nearest the output,
so it reaches layer l when d ≥ L − l + 1. Arrays over layers run from input to output. Functions raise `InvalidSetting`,
a `ValueError`, for arguments outside the ranges that they state.

Sources of the setting: "Stragglers-Aware Low-Latency Synchronous Federated Learning via Layer-Wise Model Updates"
(arXiv 2403.18375), called "the paper", and "Adaptive Deadline and Batch Layered Synchronized Federated Learning" (arXiv
2505.23973), called "ADEL-FL". Derivations are in docs/theory.md.

>>> from salf import theory
>>> theory.reach_probability(depth=theory.UniformDepth(), num_layers=4)
array([0.25, 0.5 , 0.75, 1.  ])
"""

from salf.theory.convergence import (
    Constants as Constants,
    asymptotic_bound as asymptotic_bound,
    bound as bound,
    deadline_noise as deadline_noise,
    decaying_steps as decaying_steps,
    error_weights as error_weights,
    recursion as recursion,
    variance_noise as variance_noise,
)
from salf.theory.depths import (
    DepthDistribution as DepthDistribution,
    EmpiricalDepth as EmpiricalDepth,
    ExponentialDepth as ExponentialDepth,
    LogNormalDepth as LogNormalDepth,
    UniformDepth as UniformDepth,
    empty_probability as empty_probability,
    kept_by_dropping as kept_by_dropping,
    log_normal_reach as log_normal_reach,
    reach_probability as reach_probability,
    round_seconds as round_seconds,
)
from salf.theory.schedules import (
    AdaptiveDeadlines as AdaptiveDeadlines,
    adaptive_deadlines as adaptive_deadlines,
    allocate_seconds as allocate_seconds,
    lower_hull as lower_hull,
    scaled_batches as scaled_batches,
)
from salf.theory.variance import (
    estimator_variance as estimator_variance,
    imbalance as imbalance,
    participation as participation,
    variance_factor as variance_factor,
)
