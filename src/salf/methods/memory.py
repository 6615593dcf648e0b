"""Layer-wise updates with memory."""

from typing import Annotated, Literal

from pydantic import Field

from salf.aggregation import Memory, Rule
from salf.methods.layerwise import LongRounds
from salf.values import validated


@validated
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
