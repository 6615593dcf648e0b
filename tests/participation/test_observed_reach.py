"""`ObservedReach` is counting, and a value."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from salf.participation.observed import ObservedReach

LAYERS = 3
Round = dict[int, list[bool]]
rounds = st.lists(
    st.dictionaries(st.integers(0, 5), st.lists(st.booleans(), min_size=LAYERS, max_size=LAYERS), max_size=5),
    max_size=14,
)


def naive_probability(history: list[Round], client: int, layer: int) -> float:
    asked = [reached for seen in history for reached in seen.values()]
    own = [seen[client] for seen in history if client in seen]
    if own and all(reached[layer] for reached in own) and len(own) >= min(10, sum(map(bool, history))):
        return 1.0
    overall = (sum(reached[layer] for reached in asked) + 1) / (len(asked) + 1)
    return (sum(reached[layer] for reached in own) + 2 * overall) / (len(own) + 2)


@settings(max_examples=100, deadline=None)
@given(history=rounds, clients=st.lists(st.integers(0, 9), max_size=4))
def test_it_is_counting(history: list[Round], clients: list[int]) -> None:
    seen = ObservedReach(LAYERS)
    for each in history:
        seen = seen.observe(list(each), list(each.values()))
    naive = [[naive_probability(history, client, layer) for layer in range(LAYERS)] for client in clients]
    found = seen.probability(clients)
    assert found.shape == (len(clients), LAYERS)
    np.testing.assert_allclose(found, np.array(naive).reshape(len(clients), LAYERS), rtol=1e-14)
    assert ((found > 0) & (found <= 1)).all()


@settings(max_examples=50, deadline=None)
@given(history=rounds)
def test_observing_leaves_what_was_known_alone(history: list[Round]) -> None:
    known = [ObservedReach(LAYERS)]
    expected = [known[0].probability(range(6))]
    for each in history:
        known.append(known[-1].observe(list(each), list(each.values())))
        expected.append(known[-1].probability(range(6)))
    for value, then in zip(known, expected, strict=True):
        assert np.array_equal(value.probability(range(6)), then)


def test_without_evidence_everyone_reaches_everything() -> None:
    assert ObservedReach(2).probability([4, 5]).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_who_was_lucky_once_is_not_certain() -> None:
    """With small cohorts of a large population, one lucky client does not make p_l zero."""
    rng, chance, asked = np.random.default_rng(4), 0.2, 10
    seen = ObservedReach(1)
    empty = []
    for number in range(400):
        clients = rng.choice(1000, asked, replace=False)
        if number >= 200:
            empty.append(float((1 - seen.probability(clients)).prod()))
        seen = seen.observe(clients, rng.random((asked, 1)) < chance)
    assert np.mean(empty) == pytest.approx((1 - chance) ** asked, rel=0.2)


def test_evidence_wins_over_time() -> None:
    seen = ObservedReach(1)
    for _ in range(1000):
        seen = seen.observe([0, 1], [[True], [False]])
    assert seen.probability([0, 1, 2]).ravel() == pytest.approx([1.0, 0.0, 0.5], abs=2e-3)


@pytest.mark.parametrize("reached", [[True, False], [[True, False]], [[True], [False]], [[True] * 3] * 2, []])
def test_a_wrong_shape_is_refused(reached: list[object]) -> None:
    with pytest.raises(ValueError, match="clients, layers"):
        ObservedReach(2).observe([3, 8], np.array(reached))
