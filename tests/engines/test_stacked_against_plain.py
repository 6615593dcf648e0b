"""The stacked engine gives the states that the plain one gives, for several local steps and every optimizer."""

from dataclasses import replace

import pytest
import torch
from engine_cases import (
    DECAYING,
    DOUBLE,
    HEAVY,
    SGD,
    SINGLE,
    Round,
    assert_close,
    assert_states_close,
    engine_for,
    play,
    prepared,
    rounds,
    single_thread,
    steps_to,
    tasks_of,
)
from engine_models import MODELS
from hypothesis import given, settings, strategies as st

from salf.aggregation.rules import Memory
from salf.engines import OptimizerSettings

ADAPTIVE = [
    OptimizerSettings(optimizer="adam", lr=0.01),
    OptimizerSettings(optimizer="adam", lr=0.01, weight_decay=0.05),
    OptimizerSettings(optimizer="adamw", lr=0.01, weight_decay=0.5),
]
# They blow the rounding error of a gradient that is zero but for rounding, such as that of a bias before BatchNorm, up
# by their step over epsilon, 1e6.
ADAPTIVE_DOUBLE = 1e-7
# A cumulative mean needs the number of batches as a number, which no vectorised computation can give.
VECTORISED = [name for name in MODELS if name != "cumulative-norm"]

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)


def compare(name: str, data: st.DataObject, hows: list[OptimizerSettings], *, double: bool) -> None:
    subject = prepared(name, double=double)
    # What has no gradient but rounding errors is moved by whole steps under an adaptive optimizer.
    how = data.draw(st.sampled_from([how for how in hows if how.optimizer == "sgd" or name != "bare-norms"]))
    stacked, plain = (engine_for(kind, name, how, double=double) for kind in ("stacked", "plain"))
    # A proximal term would feed an adaptive optimizer with the rounding errors of earlier steps.
    steps, plainly = data.draw(st.integers(1, 4)), how.optimizer == "sgd"
    # Two numbers are always 1 and -1 when normalized: their gradient is rounding noise, about 1e-5 in single precision.
    least = 3 if name == "bare-norms" and not double else 2
    played = data.draw(rounds(len(subject.layers), local_steps=steps, sums=False, proximal=plainly, least=least))
    tolerance = SINGLE if not double else DOUBLE if how.optimizer == "sgd" else ADAPTIVE_DOUBLE
    assert_close(play(stacked, subject, played), play(plain, subject, played), tolerance)


@pytest.mark.parametrize("name", VECTORISED)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_in_double_precision(name: str, data: st.DataObject) -> None:
    # Two numbers normalised are 1 and -1 whatever they were: there the gradient is next to nothing but rounding.
    adaptive = [] if name in {"bare-norms", "frozen"} else ADAPTIVE
    compare(name, data, [SGD, DECAYING, HEAVY, *adaptive], double=True)


# The same rounds each time: a number that is rounded to the other side of a ReLU's kink changes more than rounding.
# No adaptive optimizer: it would make whole steps of rounding errors.
@pytest.mark.parametrize("name", VECTORISED)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
def test_in_single_precision(name: str, data: st.DataObject) -> None:
    compare(name, data, [SGD, DECAYING, HEAVY], double=False)


@pytest.mark.parametrize("how", [HEAVY, *ADAPTIVE], ids=str)
def test_a_round_in_which_every_layer_count_occurs(how: OptimizerSettings) -> None:
    subject = prepared("vgg")
    layers = len(subject.layers)
    depths = range(3 * layers + 1)
    played = Round(tasks_of(steps_to(depths, layers), [3, 4] * 8), Memory())
    stacked, plain = (engine_for(kind, "vgg", how) for kind in ("stacked", "plain"))
    assert_close(play(stacked, subject, played), play(plain, subject, played), ADAPTIVE_DOUBLE)


@pytest.mark.parametrize(("fast", "name", "steps"), [("stacked", "residual", 2), ("fused", "cnn", 1)])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_what_clients_are_remembered_for_is_the_same_in_the_next_round(
    fast: str, name: str, steps: int, data: st.DataObject
) -> None:
    subject = prepared(name)
    found = []
    sequence = [data.draw(rounds(len(subject.layers), local_steps=steps, sums=False)) for _ in range(3)]
    for kind in (fast, "plain"):
        engine, own, memory = engine_for(kind, name, SGD), subject, None
        results = []
        for played in sequence:
            results.append(play(engine, own, replace(played, rule=Memory(), reach=None, memory=memory)))
            own, memory = own._replace(weights=results[-1].aggregated.state), results[-1].aggregated.memory
        found.append(results[-1])
    assert_close(found[0], found[1], DOUBLE)
    one, other = (result.aggregated.memory for result in found)
    for client, layers in other.items():
        for layer, last in layers.items():
            mine = one[client][layer]
            assert (mine.weight, mine.steps) == (last.weight, last.steps)
            assert_states_close(mine.deltas, last.deltas, 1e-8)  # relative to a change, which is smaller than a weight


def test_momentum_and_the_state_of_adam_do_not_outlive_a_round() -> None:
    subject = prepared("mlp")
    played = Round(tasks_of(steps_to([12, 10, 7], 3), [4, 4, 3]), Memory())
    for how in (HEAVY, *ADAPTIVE):
        engine = engine_for("stacked", "mlp", how)
        first, again = play(engine, subject, played), play(engine, subject, played)
        assert all(torch.equal(value, again.aggregated.state[name]) for name, value in first.aggregated.state.items())
