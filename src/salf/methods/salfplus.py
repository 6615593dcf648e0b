"""SALF for permanently slow devices."""

from dataclasses import field
from typing import Literal

from salf.aggregation import AnyRule, Corrected, Rule
from salf.methods.layerwise import LongRounds, share_finished
from salf.participation import ObservedReach, left_behind
from salf.values import Floats, validated


@validated
class SalfPlus(LongRounds):
    """SALF for permanently slow devices, which compute on smaller batches.

    A client gets the share of a batch with which, at its speed in earlier rounds, it finishes by the deadline. So the
    depth of every client has about the same distribution, which makes the paper's correction unbiased, and data of slow
    clients count as much as others. (ADEL-FL, arXiv 2505.23973, does this for known speeds.) A client that is too slow
    for a batch of one example contributes in the long rounds. These occur only while some client reaches a layer much
    less often than the others (`salf.participation.left_behind`).
    """

    name: Literal["salfplus"] = "salfplus"
    rule: AnyRule = field(default_factory=Corrected)

    @property
    def aggregation_rule(self) -> Rule:
        """The chosen rule."""
        return self.weighted(self.rule)

    def needs_long_rounds(self, observed: ObservedReach) -> bool:
        """Return whether some client is left behind."""
        return left_behind(observed)

    def batch_fraction(self, speeds: Floats, usual_seconds: float) -> Floats:
        """Give each client what it finishes by the deadline, and a whole batch if its speed is unknown."""
        return share_finished(speeds, self.deadline_seconds(usual_seconds))
