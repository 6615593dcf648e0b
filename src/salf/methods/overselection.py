"""Over-selection: ask more clients than needed and keep the first."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from salf.aggregation import Contributors, Rule
from salf.devices import CompletionTimes
from salf.methods.method import SynchronousMethod
from salf.methods.schedules import RoundSchedule, wait_for_first
from salf.values import validated


@validated
class OverSelection(SynchronousMethod):
    """Over-selection: ask more clients than needed, and keep the first (Bonawitz et al., arXiv 1902.01046, §2.2, §9).

    The cohort has n clients, as for every method. The first ⌈n / `ask`⌉ to finish count, and the model becomes their
    mean; the work of the others is lost. 1.3 is what that system asks for each client that it needs.
    """

    name: Literal["overselection"] = "overselection"
    ask: Annotated[float, Field(ge=1)] = 1.3

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Wait for the first clients."""
        return wait_for_first(options[0], math.ceil(len(options[0].whole) / self.ask))

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the first clients."""
        return Contributors(weight_by_examples=self.weight_by_examples)
