"""Asking more clients than needed, keeping the first."""

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
    """Asking more clients than are needed, and keeping the first (Bonawitz et al., arXiv 1902.01046, §2.2 and §9).

    Of the n clients that the experiment asks, as of every method, the first ⌈n / `ask`⌉ count, and the model becomes
    their mean; the others' work is lost. 1.3 is what that system asks for each client that it needs.
    """

    name: Literal["overselection"] = "overselection"
    ask: Annotated[float, Field(ge=1)] = 1.3

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Wait for the first."""
        return wait_for_first(options[0], math.ceil(len(options[0].whole) / self.ask))

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the received."""
        return Contributors(weight_by_examples=self.weight_by_examples)
