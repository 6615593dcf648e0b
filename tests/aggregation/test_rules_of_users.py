"""A rule that a user writes is aggregated like a built-in one."""

import numpy as np
import pytest
import torch
from aggregation_cases import OWN_RULES, Cohort, Trusting, cohorts, models, own_rule_twin
from hypothesis import given, settings, strategies as st

from salf.aggregation import Contributions, Contributors, LayerShare, Median, Rule, aggregate, check_rule
from salf.errors import InvalidSetting
from salf.layers.find import Layer, Layers
from salf.update import Update
from salf.values import Floats

LAYERS = Layers((Layer("head", ("w",)),))
STATE = {"w": torch.zeros(1)}
UPDATE = Update({"w": torch.ones(1)}, 1, 4)


@pytest.mark.parametrize("rule", OWN_RULES, ids=lambda rule: type(rule).__name__)
@settings(max_examples=25, deadline=None)
@given(cohort=cohorts(models([torch.float64])), seed=st.integers(0, 99))
def test_rules_of_users_follow_their_formulas(rule: Rule, cohort: Cohort, seed: int) -> None:
    draw = np.random.default_rng(seed)
    clients = draw.permutation(20)[: len(cohort.updates)].tolist()
    reach = draw.uniform(0.2, 1, size=(len(clients), len(cohort.layers)))
    result = aggregate(cohort.state, cohort.updates, cohort.layers, rule, reach=reach, clients=clients)
    expected = own_rule_twin(rule, cohort.state, cohort.layers, cohort.updates, clients, reach)
    for name, value in expected.items():
        torch.testing.assert_close(result.state[name], value, rtol=1e-11, atol=1e-11)


def test_a_rule_gets_reach_in_rows_whatever_its_form() -> None:
    expected = aggregate(STATE, [UPDATE, UPDATE], LAYERS, Trusting(), reach=[[0.5]] * 2, clients=[3, 4])
    result = aggregate(STATE, [UPDATE, UPDATE], LAYERS, Trusting(), reach=[0.5], clients=[3, 4])
    assert torch.equal(result.state["w"], expected.state["w"])


def test_a_rule_that_needs_reach_is_not_applied_without_it() -> None:
    with pytest.raises(InvalidSetting, match="Trusting needs reach; pass each client"):
        aggregate(STATE, [UPDATE], LAYERS, Trusting())


class Wrong(Contributors):
    """Gives weights that are none."""

    def layer_weights(self, contributions: Contributions) -> Floats:
        return contributions.weights * -1

    def factor(self, share: LayerShare) -> float:
        return 1.0


class WrongInTotal(Contributors):
    """Gives weights that are none."""

    def client_weights(self, num_examples: Floats) -> Floats:
        return num_examples * np.nan


def test_weights_must_be_positive() -> None:
    with pytest.raises(InvalidSetting, match=r"Wrong.layer_weights gives -1.0; give numbers above 0"):
        aggregate(STATE, [UPDATE], LAYERS, Wrong())
    with pytest.raises(InvalidSetting, match=r"WrongInTotal.client_weights gives nan; give numbers above 0"):
        aggregate(STATE, [UPDATE], LAYERS, WrongInTotal())


@pytest.mark.parametrize("rule", [*OWN_RULES[1:], WrongInTotal()], ids=lambda rule: type(rule).__name__)
def test_a_centre_replaces_the_mean_of_equal_weights_only(rule: Rule) -> None:
    check_rule(OWN_RULES[0], Median())
    with pytest.raises(InvalidSetting, match="Median weighs all contributors equally"):
        check_rule(rule, Median())
