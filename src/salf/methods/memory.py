"""Layer-wise updates with memory."""

from typing import Annotated, Literal

from pydantic import Field

from salf.aggregation import Memory, Rule
from salf.methods.layerwise import LongRounds
from salf.values import validated


@validated
class Remembering(LongRounds):
    """Layer-wise updates with memory: a client that misses a layer counts with its last update of that layer.

    The rule is `Memory`, after MIFA (Gu et al., 2021). An old update misleads, so every client should reach every layer
    now and then: every `long_every`-th round waits for all clients, up to `long_factor` deadlines. The memory takes at
    most `budget_bytes`; beyond that, the oldest updates are forgotten.
    """

    name: Literal["memory"] = "memory"
    long_every: Annotated[int, Field(ge=2)] | None = 5
    long_factor: Annotated[float, Field(ge=1)] = 30.0
    budget_bytes: Annotated[int, Field(gt=0)] = 4 * 2**30

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the last updates of all clients."""
        return self.weighted(Memory(budget_bytes=self.budget_bytes))
