"""Against devices that are slow for ever: long rounds now and then, memory, smaller batches for the slow."""

from dataclasses import replace
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from salf.devices import Floats
from salf.methods.layerwise import LayerWise, NamedRule
from salf.methods.method import STRICT
from salf.reach import ObservedReach
from salf.rules import Corrected, Memory, Rule
from salf.starvation import left_behind


@validated(frozen=True, kw_only=True, config=STRICT)
class LongRounds(LayerWise):
    """A layer-wise method in which every `long_every`-th round lasts `long_factor` times as long (None: no round).

    The devices that never get to the layers near the input get there then.
    """

    long_every: Annotated[int, Field(ge=2)] | None = 10
    long_factor: Annotated[float, Field(ge=1)] = 5.0

    def in_round(self, round: int, usual_seconds: float, observed: ObservedReach) -> Self:
        """Prolong the deadline when it is the turn, and there is need."""
        if self.long_every is None or round % self.long_every or not self.needs_long_rounds(observed):
            return self
        return replace(self, deadline=(self.deadline or usual_seconds) * self.long_factor)

    def needs_long_rounds(self, observed: ObservedReach) -> bool:  # noqa: ARG002
        """Say whether there is need of a long round, given who reached what in earlier ones."""
        return True


@validated(frozen=True, kw_only=True, config=STRICT)
class Remembering(LongRounds):
    """Layer-wise updates with memory: who does not reach a layer counts with what it last conveyed for it.

    The rule is `Memory`, after MIFA (Gu et al., 2021). Every client must reach every layer now and then, or what it
    last conveyed misleads: every `long_every`-th round waits for everyone, up to `long_factor` deadlines. What is
    remembered takes `budget_bytes` at most; beyond that, what was conveyed longest ago is forgotten.
    """

    name: Literal["memory"] = "memory"
    long_every: Annotated[int, Field(ge=2)] | None = 5
    long_factor: Annotated[float, Field(ge=1)] = 30.0
    budget_bytes: Annotated[int, Field(gt=0)] = 4 * 2**30

    @property
    def own_rule(self) -> Rule:
        """Everyone's last word."""
        return Memory(budget_bytes=self.budget_bytes)


@validated(frozen=True, kw_only=True, config=STRICT)
class SalfPlus(LongRounds):
    """SALF for devices that are slow for ever: the slow ones compute on smaller batches.

    A client is given the share of a batch with which, at the speed it had in earlier rounds, it finishes its job by the
    deadline; so everyone's depth has about the same distribution, which is what makes the paper's correction unbiased
    (ADEL-FL, arXiv 2505.23973, does this for known speeds), and the slow ones' data count as much as the others'. One
    whose batch is down to one example, and is too slow even so, gets its turn in the long rounds. There are none while
    nobody is left behind: while no client reaches a layer much more seldom than the others (`salf.starvation`).
    """

    name: Literal["salfplus"] = "salfplus"
    rule: NamedRule = Field(default_factory=Corrected)

    @property
    def own_rule(self) -> Rule:
        """The chosen rule."""
        return self.rule

    def needs_long_rounds(self, observed: ObservedReach) -> bool:
        """Say whether somebody is left behind."""
        return left_behind(observed)

    def effort(self, speeds: Floats, usual_seconds: float) -> Floats:
        """Give each client as much as it finishes by the deadline, and all to one that is not known yet."""
        return shortened(speeds, self.deadline or usual_seconds)


def shortened(speeds: Floats, seconds: float) -> Floats:
    """Return the share of its batch that each client finishes in some time; 1 where its speed, in jobs/s, is NaN.

    >>> shortened(np.array([0.25, 4.0, np.nan]), seconds=2.0)
    array([0.5, 1. , 1. ])
    """
    return np.clip(np.where(np.isnan(speeds), np.inf, speeds) * seconds, 0.0, 1.0)
