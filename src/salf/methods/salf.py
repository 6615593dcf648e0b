"""SALF: each client sends its finished layers at the deadline."""

from typing import Literal

from salf.methods.layerwise import ChosenRule
from salf.values import validated


@validated
class Salf(ChosenRule):
    """SALF (Lang, Cohen and Shlezinger, arXiv 2403.18375): at the deadline each client sends its finished layers.

    `rule` says how far a layer moves that some clients did not reach. The default is the paper's rule, `Corrected`: the
    mean over the clients U_l that reached layer l, times 1/(1 − p_l), where p_l is the chance that no client does.

    >>> from salf.aggregation import Memory
    >>> Salf(deadline=2.0, rule=Memory()).aggregation_rule.name
    'memory'
    """

    name: Literal["salf"] = "salf"
