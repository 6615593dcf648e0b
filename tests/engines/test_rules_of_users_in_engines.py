"""A rule that a user writes gives the same in every engine, or the choice falls back to one that computes it."""

import numpy as np
import pytest
import torch
from aggregation_cases import OWN_RULES, Bounding, Fading, Trusting, own_rule_twin
from engine_cases import SGD, Round, engine_for, play, prepared, single_thread, steps_to, tasks_of

from salf.aggregation.rules import Rule
from salf.engines import PlainEngine, choose_engine
from salf.errors import InvalidSetting

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)


# Of a model that is no chain the fused engine computes sums.
SUMS = [rule for rule in OWN_RULES if not rule.needs_individual_updates]
CASES = [
    (kind, name, steps, rule)
    for kind, name, steps, rules in [
        ("plain", "cnn", 2, OWN_RULES),
        ("stacked", "residual", 2, OWN_RULES),
        ("fused", "mlp", 1, OWN_RULES),
        ("fused", "vgg", 1, SUMS),
    ]
    for rule in rules
]


@pytest.mark.parametrize(("kind", "name", "steps", "rule"), CASES)
def test_every_engine_follows_the_formula(kind: str, name: str, steps: int, rule: Rule) -> None:
    subject = prepared(name)
    layers = len(subject.layers)
    depths = [steps * layers, 0, steps * layers - 1, steps * layers - 2, steps * layers]
    played = Round(tasks_of(steps_to(depths, layers), [3, 4, 2, 4, 3], clients=[7, 2, 5, 0, 11]), rule)
    reach = np.random.default_rng(1).uniform(0.2, 1, size=(5, layers))
    result = play(engine_for(kind, name, SGD), subject, Round(played.tasks, rule, reach)).aggregated
    plain = engine_for("plain", name, SGD)
    assert isinstance(plain, PlainEngine)
    updates = list(plain.updates(subject.weights, played.tasks))
    clients = played.tasks.clients.tolist()
    expected = own_rule_twin(rule, subject.weights, subject.layers, updates, clients, reach)
    for parameter, value in expected.items():
        torch.testing.assert_close(result.state[parameter], value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "rule", "engine"),
    [
        ("mlp", Trusting(), "fused"),
        ("vgg", Trusting(), "fused"),
        ("mlp", Bounding(), "fused"),
        ("residual", Bounding(), "stacked"),
        ("residual", Fading(), "stacked"),
    ],
)
def test_the_choice_follows_from_what_the_rule_needs(name: str, rule: Rule, engine: str) -> None:
    assert choose_engine("auto", prepared(name).training(), rule).name == engine


def test_weights_in_layers_of_one_operation_are_left_to_the_plain_engine() -> None:
    training = prepared("tied").training()
    with pytest.warns(UserWarning, match="belongs to several layers"):
        assert choose_engine("auto", training, Trusting()).name == "plain"
    with pytest.raises(InvalidSetting, match="which Trusting weighs apart; choose"):
        choose_engine("fused", training, Trusting())
    with pytest.raises(InvalidSetting, match="Fading needs each client's; choose"):
        choose_engine("fused", training, Fading())
