"""Straggler-aware layer-wise federated learning."""

from typing import Literal

from pydantic import Field

from salf.aggregation import AnyRule, Corrected, Rule
from salf.methods.layerwise import LayerWise
from salf.values import validated


@validated
class Salf(LayerWise):
    """SALF (Lang, Cohen and Shlezinger, arXiv 2403.18375): at the deadline each client conveys its finished layers.

    `rule` says how a layer moves that not everyone reached; the paper's, and the default, is `Corrected`: the mean over
    the clients U_l that reached layer l, times 1/(1 − p_l), where p_l is the chance that nobody does.
    """

    name: Literal["salf"] = "salf"
    rule: AnyRule = Field(default_factory=Corrected)

    @property
    def own_rule(self) -> Rule:
        """The chosen rule."""
        return self.rule
