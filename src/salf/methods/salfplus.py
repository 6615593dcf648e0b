"""SALF for permanently slow devices."""

from typing import Literal

from pydantic import Field

from salf.aggregation import AnyRule, Corrected, Rule
from salf.methods.layerwise import LongRounds, shortened
from salf.participation import ObservedReach, left_behind
from salf.values import Floats, validated


@validated
class SalfPlus(LongRounds):
    """SALF for devices that are slow for ever: the slow ones compute on smaller batches.

    A client is given the share of a batch with which, at the speed it had in earlier rounds, it finishes its job by the
    deadline; so everyone's depth has about the same distribution, which is what makes the paper's correction unbiased
    (ADEL-FL, arXiv 2505.23973, does this for known speeds), and the slow ones' data count as much as the others'. One
    whose batch is down to one example, and is too slow even so, gets its turn in the long rounds. There are none while
    nobody is left behind: while no client reaches a layer much more seldom than the others (`salf.starvation`).
    """

    name: Literal["salfplus"] = "salfplus"
    rule: AnyRule = Field(default_factory=Corrected)

    @property
    def own_rule(self) -> Rule:
        """The chosen rule."""
        return self.rule

    def needs_long_rounds(self, observed: ObservedReach) -> bool:
        """Say whether somebody is left behind."""
        return left_behind(observed)

    def batch_fraction(self, speeds: Floats, usual_seconds: float) -> Floats:
        """Give each client as much as it finishes by the deadline, and all to one that is not known yet."""
        return shortened(speeds, self.deadline or usual_seconds)
