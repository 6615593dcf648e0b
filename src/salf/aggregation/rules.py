"""The rules: how far a layer moves, given what its contributors conveyed.

With U clients asked, U_l ⊆ {1 … U} those that conveyed layer l, Δ_{u,l} what they conveyed, client weights a_u (equal,
or the numbers of examples) and p_l the probability that nobody conveys the layer, each rule multiplies the sum over
contributors by a factor of its own. They are values, and are written in experiment files by their `name`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from salf.values import STRICT, Choice, Registry


@dataclass(frozen=True)
class LayerShare:
    """What a rule is told of one layer in one round."""

    clients: int
    contributors: int
    weight: float
    weight_all: float
    empty_probability: float


@validated(frozen=True, kw_only=True, config=STRICT)
class Rule(ABC):
    """How far a layer moves, given the sum of what was conveyed for it.

    `min_contributors`: a layer with fewer stays. `weight_by_examples`: a_u is the client's number of examples instead
    of 1. `normalise="steps"`: each Δ is divided by its number of local steps and the mean multiplied by the
    contributors' mean number, so that nobody weighs more for having done more steps (FedNova, layer by layer).
    """

    min_contributors: Annotated[int, Field(ge=1)] = 1
    weight_by_examples: bool = False
    normalise: Literal["steps"] | None = None

    @abstractmethod
    def factor(self, share: LayerShare) -> float:
        """Return the number by which Σ_{U_l} a_u Δ_{u,l} is multiplied."""


@validated(frozen=True, config=STRICT)
class Corrected(Rule):
    """The paper's rule: 1/(1−p_l) · (U/|U_l|) · Σ_{U_l} a_u Δ_{u,l} / Σ_all a_u.

    Unbiased for any weights when depths are exchangeable across clients. The correction 1/(1−p_l), whose variance
    explodes with p_l, is at most `max_correction`.
    """

    max_correction: Annotated[float, Field(ge=1)] = 2.0
    name: Literal["corrected"] = "corrected"

    def factor(self, share: LayerShare) -> float:
        """Return the number by which Σ_{U_l} a_u Δ_{u,l} is multiplied."""
        conveyed = 1 - share.empty_probability
        correction = 1 / conveyed if conveyed * self.max_correction > 1 else self.max_correction
        return correction * (share.clients / share.contributors) / share.weight_all


@validated(frozen=True, config=STRICT)
class Contributors(Rule):
    """The mean over contributors, Σ_{U_l} a_u Δ_{u,l} / Σ_{U_l} a_u: its expectation is too small by the share p_l."""

    name: Literal["contributors"] = "contributors"

    def factor(self, share: LayerShare) -> float:
        """Return the number by which Σ_{U_l} a_u Δ_{u,l} is multiplied."""
        return 1 / share.weight


@validated(frozen=True, config=STRICT)
class Everyone(Rule):
    """The rule of the authors' public code, Σ_{U_l} a_u Δ_{u,l} / Σ_all a_u: the absent count with the old weights."""

    name: Literal["everyone"] = "everyone"

    def factor(self, share: LayerShare) -> float:
        """Return the number by which Σ_{U_l} a_u Δ_{u,l} is multiplied."""
        return 1 / share.weight_all


@validated(frozen=True, config=STRICT)
class InverseProbability(Rule):
    """Horvitz–Thompson, Σ_{U_l} (a_u/π_{u,l}) Δ_{u,l} / Σ_all a_u: unbiased even when some clients are always slower.

    Needs `reach`, and π_{u,l} > 0 for whoever conveys layer l. Its variance explodes as chances get small: one below
    `least_probability` is taken to be that, so that nobody's Δ is multiplied by more than its inverse.
    """

    least_probability: Annotated[float, Field(gt=0, le=1)] = 0.01
    name: Literal["inverse-probability"] = "inverse-probability"

    def factor(self, share: LayerShare) -> float:
        """Return the number by which Σ_{U_l} (a_u/π_{u,l}) Δ_{u,l} is multiplied."""
        return 1 / share.weight_all


@validated(frozen=True, config=STRICT)
class Memory(Rule):
    """Everyone's last word: Σ_all a_u M_{u,l} / Σ_{all with a memory} a_u, M_{u,l} the last Δ_{u,l} that u conveyed.

    After MIFA (Gu et al., "Fast federated learning in the presence of arbitrary device unavailability", 2021), layer by
    layer. Needs every client to reach every layer now and then, and memory for one model per client: up to
    `budget_bytes`, beyond which what was conveyed longest ago is forgotten.
    """

    budget_bytes: Annotated[int, Field(gt=0)] = 4 * 2**30
    name: Literal["memory"] = "memory"

    def factor(self, share: LayerShare) -> float:
        """Return the number by which Σ_all a_u M_{u,l} is multiplied."""
        return 1 / share.weight


# Every rule by its name; `salf.register` and installed packages add theirs.
RULES: Registry[Rule] = Registry(
    (Rule,),
    (Corrected, Contributors, Everyone, InverseProbability, Memory),
    what="rule",
    tag="name",
    group="salf.rules",
)
AnyRule = Annotated[Rule, Choice(RULES, brief=True)]
