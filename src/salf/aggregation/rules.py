"""The rules: how far a layer moves, given what its contributors sent.

With U clients asked, U_l ⊆ {1 … U} those that sent layer l, Δ_{u,l} what they sent, client weights a_u (equal, or the
numbers of examples) and p_l the probability that no client sends the layer, each rule multiplies a weighted sum over
contributors by a factor. Rules are values, and experiment files write them by their `name`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from salf.registry import Choice, Registry
from salf.update import Update
from salf.values import STRICT, Floats, Ints


@dataclass(frozen=True)
class LayerShare:
    """How much of the cohort sent one layer in one round: what a rule's factor depends on.

    Attributes:
        clients: The number of clients asked, U.
        contributors: The number of clients that sent the layer, |U_l|; at least `min_contributors`.
        weight: Σ a_u over the contributors; for a rule that remembers, over all remembered updates of the layer.
        weight_all: Σ a_u over all clients asked.
        empty_probability: p_l, the probability that fewer than `min_contributors` clients send the layer; 0 if the
            aggregation was not given `reach`.
    """

    clients: int
    contributors: int
    weight: float
    weight_all: float
    empty_probability: float


@dataclass(frozen=True)
class Contributions:
    """The clients whose updates of each layer a rule weighs; a row of each array belongs to one client.

    Attributes:
        weights: a_u, shape (clients, 1).
        steps: How many optimizer steps each layer took, shape (clients, layers); 0 where a client did not send it.
        clients: The clients' numbers, shape (clients,); their places in the cohort if they have no numbers.
        reach: π_{u,l}, shape (clients, layers); None if the aggregation was not given `reach`.
        update: The update of the only client, for a rule that needs individual updates; else None.
    """

    weights: Floats
    steps: Ints
    clients: Ints
    reach: Floats | None
    update: Update | None = None


@validated(frozen=True, kw_only=True, config=STRICT)
class Rule(ABC):
    """How far each layer moves in a round. Subclass it, or a built-in rule, to write another one.

    A rule decides what a client weighs (`client_weights`), what it weighs in each layer (`layer_weights`), the factor
    of each layer's sum (`factor`), and what it needs for that: `needs_reach`, `needs_individual_updates` and
    `memory_bytes`. Only `factor` is required. Aggregation and engines use nothing else, so that every rule works with
    every engine. The layer moves by factor · Σ_{U_l} w_{u,l} Δ_{u,l}, where w_{u,l} is the weight in the layer.

    Attributes:
        min_contributors: A layer with fewer contributors stays where it is.
        weight_by_examples: Whether a_u is the client's number of examples instead of 1.
        normalise: With "steps", each Δ is divided by its number of local steps and the mean multiplied by the
            contributors' mean number, so that more steps give a client no more weight (FedNova, layer by layer).
        needs_reach: Whether updates can be aggregated only if `reach` is given.

    This rule takes half of the mean over contributors, and trusts a client less the more steps it took:

    >>> class Cautious(Rule):
    ...     def layer_weights(self, contributions: Contributions) -> Floats:
    ...         return contributions.weights / np.maximum(contributions.steps, 1)
    ...     def factor(self, share: LayerShare) -> float:
    ...         return 0.5 / share.weight
    >>> import salf, torch
    >>> layers = salf.Layers((salf.Layer("head", ("w",)),))
    >>> updates = [salf.Update({"w": torch.tensor([4.0])}, steps=steps, num_examples=1) for steps in (1, 2)]
    >>> salf.aggregate({"w": torch.zeros(1)}, updates, layers, Cautious()).state["w"]  # 0.5 / 2 · (4 / 1 + 4 / 2)
    tensor([1.5000])
    """

    min_contributors: Annotated[int, Field(ge=1)] = 1
    weight_by_examples: bool = False
    normalise: Literal["steps"] | None = None

    needs_reach: ClassVar[bool] = False

    @abstractmethod
    def factor(self, share: LayerShare) -> float:
        """Return the number by which Σ_{U_l} w_{u,l} Δ_{u,l} is multiplied."""

    def client_weights(self, num_examples: Floats) -> Floats:
        """Return the weights a_u > 0 of clients with so many examples; both have shape (clients,)."""
        return num_examples if self.weight_by_examples else np.ones_like(num_examples)

    def layer_weights(self, contributions: Contributions) -> Floats | None:
        """Return the weights w_{u,l} > 0, shape (clients, layers), or None if each client weighs a_u in every layer.

        They are proportional to `contributions.weights`, and do not depend on which other clients are in the rows.
        Values of layers that a client did not send have no effect.
        """
        return None

    @property
    def memory_bytes(self) -> int | None:
        """The memory for each client's last update of each layer; None if the rule uses this round's updates only."""
        return None

    @property
    def needs_individual_updates(self) -> bool:
        """Whether the rule needs each client's own update, not only the sum over the cohort."""
        return self.memory_bytes is not None

    @property
    def weighs_equally(self) -> bool:
        """Whether a_u is 1 for every client."""
        return not self.weight_by_examples and type(self).client_weights is Rule.client_weights

    @property
    def weighs_layers(self) -> bool:
        """Whether a client may weigh other than a_u in a layer."""
        return type(self).layer_weights is not Rule.layer_weights

    @property
    def limits_influence(self) -> bool:
        """Whether each client weighs 1/U in every layer that it sends; noise for privacy relies on that."""
        return False


@validated(frozen=True, config=STRICT)
class Corrected(Rule):
    """The paper's rule: 1/(1−p_l) · (U/|U_l|) · Σ_{U_l} a_u Δ_{u,l} / Σ_all a_u.

    Unbiased for any weights when depths are exchangeable across clients. The variance of the correction 1/(1−p_l)
    explodes with p_l, so it is at most `max_correction`.

    >>> share = LayerShare(clients=10, contributors=4, weight=4, weight_all=10, empty_probability=0.2)
    >>> round(Corrected().factor(share), 6)  # 1/0.8 · 10/4 / 10
    0.3125
    """

    max_correction: Annotated[float, Field(ge=1)] = 2.0
    name: Literal["corrected"] = "corrected"

    def factor(self, share: LayerShare) -> float:
        """Return 1/(1−p_l) · (U/|U_l|) / Σ_all a_u."""
        sent = 1 - share.empty_probability
        correction = 1 / sent if sent * self.max_correction > 1 else self.max_correction
        return correction * (share.clients / share.contributors) / share.weight_all


@validated(frozen=True, config=STRICT)
class Contributors(Rule):
    """The mean over contributors, Σ_{U_l} a_u Δ_{u,l} / Σ_{U_l} a_u: its expectation is too small by the share p_l.

    >>> Contributors().factor(LayerShare(clients=10, contributors=4, weight=4, weight_all=10, empty_probability=0.2))
    0.25
    """

    name: Literal["contributors"] = "contributors"

    def factor(self, share: LayerShare) -> float:
        """Return 1 / Σ_{U_l} a_u."""
        return 1 / share.weight


@validated(frozen=True, config=STRICT)
class Everyone(Rule):
    """The rule of the authors' public code, Σ_{U_l} a_u Δ_{u,l} / Σ_all a_u: absent clients count with Δ = 0.

    >>> Everyone().factor(LayerShare(clients=10, contributors=4, weight=4, weight_all=10, empty_probability=0.2))
    0.1
    """

    name: Literal["everyone"] = "everyone"

    def factor(self, share: LayerShare) -> float:
        """Return 1 / Σ_all a_u."""
        return 1 / share.weight_all

    @property
    def limits_influence(self) -> bool:
        """Whether each client weighs 1/U: with equal weights, unless a subclass changes a part of the mean."""
        is_plain = type(self).factor is Everyone.factor and not self.weighs_layers and not self.needs_individual_updates
        return is_plain and self.weighs_equally and self.normalise is None


@validated(frozen=True, config=STRICT)
class InverseProbability(Rule):
    """Horvitz–Thompson, Σ_{U_l} (a_u/π_{u,l}) Δ_{u,l} / Σ_all a_u: unbiased even if some clients are always slower.

    Needs `reach`, and π_{u,l} > 0 for every client that sends layer l. Its variance explodes as probabilities get
    small: one below `least_probability` counts as `least_probability`, so that no Δ is multiplied by more than its
    inverse.

    >>> reach = np.array([[0.001, 0.5, 1.0]])
    >>> contributions = Contributions(np.ones((1, 1)), np.ones((1, 3), dtype=np.int64), np.zeros(1, np.int64), reach)
    >>> InverseProbability().layer_weights(contributions)
    array([[100.,   2.,   1.]])
    """

    least_probability: Annotated[float, Field(gt=0, le=1)] = 0.01
    name: Literal["inverse-probability"] = "inverse-probability"

    needs_reach: ClassVar[bool] = True

    def layer_weights(self, contributions: Contributions) -> Floats | None:
        """Return a_u/π_{u,l}."""
        if contributions.reach is None:
            return None
        return contributions.weights / np.maximum(contributions.reach, self.least_probability)

    def factor(self, share: LayerShare) -> float:
        """Return 1 / Σ_all a_u."""
        return 1 / share.weight_all


@validated(frozen=True, config=STRICT)
class Memory(Rule):
    """The mean of all clients' last updates: Σ a_u M_{u,l} / Σ a_u, where M_{u,l} is the last Δ_{u,l} that u sent.

    Both sums are over all clients that ever sent layer l. After MIFA (Gu et al., "Fast federated learning in the
    presence of arbitrary device unavailability", 2021), layer by layer. Every client must reach every layer now and
    then. The rule needs memory for one model per client: up to `budget_bytes`, beyond which it forgets the oldest.

    >>> Memory(budget_bytes=2**20).memory_bytes
    1048576
    """

    budget_bytes: Annotated[int, Field(gt=0)] = 4 * 2**30
    name: Literal["memory"] = "memory"

    @property
    def memory_bytes(self) -> int:
        """The memory for the clients' last updates, in bytes."""
        return self.budget_bytes

    def factor(self, share: LayerShare) -> float:
        """Return 1 / Σ a_u over all remembered updates of the layer."""
        return 1 / share.weight


# Every rule by its name; `salf.register` and installed packages add theirs.
_BUILT_IN = (Corrected, Contributors, Everyone, InverseProbability, Memory)
RULES: Registry[Rule] = Registry((Rule,), _BUILT_IN, what="rule", tag="name", group="salf.rules")
AnyRule = Annotated[Rule, Choice(RULES, brief=True)]
