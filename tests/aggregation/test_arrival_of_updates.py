"""Updates may arrive in any order, and one that is refused leaves no trace."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from aggregation_cases import Cohort, any_rule, cohorts, same_result, updates
from hypothesis import assume, given, settings, strategies as st

from salf.aggregation.aggregation import Aggregation, aggregate
from salf.aggregation.rules import Contributors, Corrected, InverseProbability, Memory, Rule
from salf.errors import InvalidSetting, InvalidUpdate
from salf.layers.find import Layer, Layers
from salf.theory import UniformDepth
from salf.update import Update, check_update


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    slack = 1e-5 if first.dtype == torch.float32 else 1e-12
    return (
        torch.allclose(first, second, rtol=slack, atol=10 * slack) if first.is_floating_point() else first.equal(second)
    )


def break_value(update: Update, value: float) -> Update:
    name = next(iter(update.deltas))
    return replace(update, deltas={**update.deltas, name: torch.full_like(update.deltas[name], value)})


def lose_one(update: Update) -> Update:
    return replace(update, deltas=dict(list(update.deltas.items())[1:]))


DAMAGES: list[Callable[[Update], Update]] = [
    lambda update: break_value(update, float("nan")),
    lambda update: break_value(update, float("-inf")),
    lambda update: replace(update, deltas={name: torch.stack([delta] * 2) for name, delta in update.deltas.items()}),
    lambda update: replace(update, deltas={name: delta.to(torch.int64) for name, delta in update.deltas.items()}),
    lambda update: replace(
        update, deltas={name: delta.to(torch.float8_e4m3fn) for name, delta in update.deltas.items()}
    ),
    lambda update: replace(update, deltas={**update.deltas, "stranger": torch.ones(1)}),
    lambda update: replace(update, buffers={**update.buffers, "stranger": torch.ones(1)}),
    lambda update: replace(update, num_examples=0),
    lambda update: replace(update, num_examples=10**400),
    lambda update: replace(update, steps=0),
    lambda update: replace(update, steps=10**400),
    lambda update: replace(update, steps={"stranger": 1}),
    lambda update: replace(update, passes={"stranger": 1}),
    lambda update: replace(update, examples=dict.fromkeys(update.examples, 0)),
    lose_one,
]


def refused(update: Update, cohort: Cohort) -> bool:
    try:
        check_update(update, cohort.layers, cohort.state)
    except InvalidUpdate:
        return True
    return False


@settings(max_examples=100, deadline=None)
@given(rule=any_rule(), cohort=cohorts(), data=st.data())
def test_a_refused_update_leaves_no_trace(rule: Rule, cohort: Cohort, data: st.DataObject) -> None:
    whole = data.draw(updates(cohort.layers, cohort.state, [True] * len(cohort.layers)))
    bad = data.draw(st.sampled_from(DAMAGES))(whole)
    assume(refused(bad, cohort))  # a lost parameter may have been all of its layer, and an empty one holds no NaN
    count = len(cohort.updates)
    honest, mixed = (
        Aggregation(cohort.state, cohort.layers, rule, reach=UniformDepth(), clients=range(count + 1)) for _ in range(2)
    )
    when = data.draw(st.integers(0, count))
    for place in range(count + 1):
        if place == when:
            with pytest.raises(InvalidUpdate):
                mixed.add(bad)
        if place < count:
            honest.add(cohort.updates[place])
            mixed.add(cohort.updates[place])
    assert same_result(mixed.finish(), honest.finish())


def test_an_update_whose_layer_is_never_reached_by_reach_leaves_no_trace() -> None:
    layers = Layers((Layer("first", ("a",)), Layer("second", ("b",))))
    state = {"a": torch.zeros(1), "b": torch.zeros(1)}
    running = Aggregation(state, layers, InverseProbability(), reach=[0.0, 1.0])
    running.add(Update({"b": torch.ones(1)}, 1, 1))
    with pytest.raises(InvalidSetting, match="client 1 sent layer 'first', which by reach it never reaches"):
        running.add(Update({"a": torch.ones(1), "b": torch.ones(1)}, 1, 1))
    assert running.finish().state == {"a": torch.tensor([0.0]), "b": torch.tensor([1.0])}


@settings(max_examples=80, deadline=None)
@given(rule=any_rule(), cohort=cohorts(), data=st.data())
def test_the_order_of_updates_matters_to_rounding_only(rule: Rule, cohort: Cohort, data: st.DataObject) -> None:
    count = len(cohort.updates)
    reach = np.random.default_rng(data.draw(st.integers(0, 99))).uniform(0.1, 1, size=(count + 1, len(cohort.layers)))
    clients = data.draw(st.permutations(range(10, 10 + count)))
    order = data.draw(st.permutations(range(count)))
    ranked = aggregate(cohort.state, cohort.updates, cohort.layers, rule, reach=reach, clients=clients)
    shuffled = aggregate(
        cohort.state,
        [cohort.updates[place] for place in order],
        cohort.layers,
        rule,
        reach=reach[[*order, count]],
        clients=[clients[place] for place in order],
    )
    arriving = Aggregation(cohort.state, cohort.layers, rule, reach=reach, clients=clients)
    for place in order:
        arriving.add(cohort.updates[place], position=place)
    arrived = arriving.finish()
    assert ranked.contributors == arrived.contributors
    assert ranked.memory.keys() == arrived.memory.keys()
    for name, tensor in ranked.state.items():
        assert close(tensor, arrived.state[name])
        assert close(tensor, shuffled.state[name])
        if isinstance(rule, Memory) and ".p" in name:  # it sums in the order of the clients' numbers
            assert torch.equal(tensor, arrived.state[name])


LAYERS = Layers((Layer("first", ("a",)), Layer("second", ("b",))))
STATE = {"a": torch.zeros(1), "b": torch.zeros(1)}
WHOLE = Update({"a": torch.ones(1), "b": torch.ones(1)}, 1, 1)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (Corrected(), {"num_clients": 1}, "2 updates came for num_clients=1"),
        (Corrected(), {"reach": [[1.0, 1.0]] * 3, "num_clients": 4}, "reach has 3 rows for num_clients=4 clients"),
        (Corrected(), {"reach": [[1.0, 1.0]]}, "2 updates came for num_clients=1"),
        (Corrected(), {"reach": [1.0]}, r"reach has shape \(1,\); give \(2,\) or \(clients, 2\)"),
        (Corrected(), {"reach": 0.5}, r"reach has shape \(\)"),
        (Corrected(), {"reach": [[[0.5, 0.5]]]}, r"reach has shape \(1, 1, 2\)"),
        (Corrected(), {"reach": [[0.5, 0.5], [0.5]]}, "reach cannot be used"),
        (Corrected(), {"reach": [0.5, 1.5]}, "not probabilities; give numbers between 0 and 1"),
        (Corrected(), {"reach": [float("nan"), 0.5]}, "not probabilities; give numbers between 0 and 1"),
        (Corrected(), {"reach": UniformDepth(lowest=3)}, "lowest is 3; choose a depth between 0 and num_layers = 2"),
        (InverseProbability(), {}, "InverseProbability needs reach"),
        (InverseProbability(), {"reach": [[1.0, 1.0]]}, "reach has 1 rows, but update 2 arrived"),
        (InverseProbability(), {"reach": [0.0, 1.0]}, "never reaches"),
        (Memory(), {"clients": [3]}, "clients has 1 rows, but update 2 arrived"),
    ],
)
def test_wrong_arguments_are_explained(rule: Rule, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        aggregate(STATE, [WHOLE, WHOLE], LAYERS, rule, **options)


@pytest.mark.parametrize("rule", [InverseProbability(), Memory()])
def test_a_position_before_the_first_is_refused(rule: Rule) -> None:
    running = Aggregation(STATE, LAYERS, rule, reach=[[0.5, 1.0]] * 2, clients=[4, 5])
    with pytest.raises(InvalidSetting, match="but update 0 arrived"):
        running.add(WHOLE, position=-1)


def test_a_state_without_its_layers_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="the state lacks 'b', which its layers name"):
        Aggregation({"a": torch.zeros(1)}, LAYERS, Contributors())
