"""The mathematics of layer-wise updates under a deadline: pure functions.

Layers are numbered l = 1 … L from input to output. A client of depth d has completed the d layers nearest the output,
so it reaches layer l when d ≥ L − l + 1. Arrays over layers run from input to output. Functions raise `InvalidSetting`,
a `ValueError`, for arguments outside the ranges that they state.

Sources of the setting: "Stragglers-Aware Low-Latency Synchronous Federated Learning via Layer-Wise Model Updates"
(arXiv 2403.18375), called "the paper", and "Adaptive Deadline and Batch Layered Synchronized Federated Learning" (arXiv
2505.23973), called "ADEL-FL". Derivations are in docs/theory.md.
"""

from salf.theory.convergence import Constants as Constants
from salf.theory.convergence import asymptotic_bound as asymptotic_bound
from salf.theory.convergence import bound as bound
from salf.theory.convergence import deadline_noise as deadline_noise
from salf.theory.convergence import decaying_steps as decaying_steps
from salf.theory.convergence import error_weights as error_weights
from salf.theory.convergence import recursion as recursion
from salf.theory.convergence import variance_noise as variance_noise
from salf.theory.depths import DepthDistribution as DepthDistribution
from salf.theory.depths import EmpiricalDepth as EmpiricalDepth
from salf.theory.depths import ExponentialDepth as ExponentialDepth
from salf.theory.depths import LogNormalDepth as LogNormalDepth
from salf.theory.depths import UniformDepth as UniformDepth
from salf.theory.depths import empty_probability as empty_probability
from salf.theory.depths import kept_by_dropping as kept_by_dropping
from salf.theory.depths import log_normal_reach as log_normal_reach
from salf.theory.depths import reach_probability as reach_probability
from salf.theory.depths import round_seconds as round_seconds
from salf.theory.schedules import AdaptiveDeadlines as AdaptiveDeadlines
from salf.theory.schedules import adaptive_deadlines as adaptive_deadlines
from salf.theory.schedules import allocate_seconds as allocate_seconds
from salf.theory.schedules import lower_hull as lower_hull
from salf.theory.schedules import scaled_batches as scaled_batches
from salf.theory.variance import estimator_variance as estimator_variance
from salf.theory.variance import imbalance as imbalance
from salf.theory.variance import participation as participation
from salf.theory.variance import variance_factor as variance_factor
