"""Every rule does what the formulas say: a twin in plain loops and double precision agrees to rounding."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from aggregation_cases import FLOATS, WEIGHINGS, Cohort, cohorts, models, rules, same_result
from hypothesis import given, settings, strategies as st
from torch import Tensor

from salf.aggregation.aggregation import aggregate
from salf.aggregation.client_memory import ClientMemory
from salf.aggregation.cohort_sums import Reach, Weigh
from salf.aggregation.rules import Contributors, Corrected, Everyone, InverseProbability, Memory, Rule
from salf.theory import EmpiricalDepth, ExponentialDepth, UniformDepth

Numbers = npt.NDArray[np.float64]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def naive_empty(chances: Sequence[float], enough: int) -> float:
    """P(fewer than `enough` clients come), over every subset of the clients."""
    return sum(
        math.prod(chance if here else 1 - chance for chance, here in zip(chances, come, strict=True))
        for come in itertools.product([True, False], repeat=len(chances))
        if sum(come) < enough
    )


def naive_share(
    rule: Rule, client: int, who: Sequence[int], a: Sequence[float], a_all: float, asked: int, p: float, pi: float
) -> float:
    """By what the rule multiplies Δ_{u,l}."""
    if isinstance(rule, Corrected):
        correction = min(rule.max_correction, 1 / (1 - p)) if p < 1 else rule.max_correction
        return correction * asked / len(who) * a[client] / a_all
    if isinstance(rule, InverseProbability):
        return a[client] / max(pi, rule.least_probability) / a_all
    return a[client] / (a_all if isinstance(rule, Everyone) else sum(a[other] for other in who))


def naive_layer_weights(
    cohort: Cohort, layer: str, a: Sequence[float], who: Sequence[int], weigh: Weigh
) -> list[float]:
    """What each client weighs in a layer: a_u, or a_u n_u with the same sum over the contributors."""
    if weigh == "clients":
        return [*a]
    seen = [update.examples.get(layer, 0) for update in cohort.updates]
    total = sum(a[u] for u in who) / sum(a[u] * seen[u] for u in who)
    return [weight * count * total for weight, count in zip(a, seen, strict=True)]


def naive_steps(rule: Rule, a: Sequence[float], steps: Sequence[int]) -> list[float]:
    """By what `normalise` multiplies each contributor's share."""
    mean = sum(weight * count for weight, count in zip(a, steps, strict=True)) / sum(a)
    return [mean / count if rule.normalise == "steps" else 1.0 for count in steps]


def twin(
    cohort: Cohort,
    rule: Rule,
    asked: int,
    chances: Sequence[Sequence[float]] | None,
    weigh: Weigh = "clients",
    *,
    absolute: bool = False,
) -> dict[str, Numbers]:
    """The new state in plain loops; with `absolute`, of absolute values: the magnitude that rounding goes by."""
    a = [float(update.num_examples) if rule.weight_by_examples else 1.0 for update in cohort.updates]
    a_all = sum(a) * asked / len(a)
    new = {name: numbers(tensor, absolute) for name, tensor in cohort.state.items()}
    for index, layer in enumerate(cohort.layers):
        who = cohort.who(index)
        if len(who) < rule.min_contributors:
            continue
        p = naive_empty([row[index] for row in chances], rule.min_contributors) if chances else 0.0
        own = naive_layer_weights(cohort, layer.name, a, who, weigh)
        scale = naive_steps(rule, [own[u] for u in who], [cohort.updates[u].steps_of(layer.name) for u in who])
        for client, each in zip(who, scale, strict=True):
            pi = chances[client][index] if chances else 1.0
            share = each * naive_share(rule, client, who, own, a_all, asked, p, pi)
            for name in layer.parameters:
                new[name] = new[name] + share * numbers(cohort.updates[client].deltas[name], absolute)
        new |= naive_buffers(cohort, who, layer.buffers, own, absolute)
    return new


def naive_buffers(
    cohort: Cohort, who: Sequence[int], names: Sequence[str], a: Sequence[float], absolute: bool
) -> dict[str, Numbers]:
    new: dict[str, Numbers] = {}
    for name in names:
        senders = [client for client in who if name in cohort.updates[client].buffers]
        values = [numbers(cohort.updates[client].buffers[name], absolute) for client in senders]
        if senders and cohort.state[name].is_floating_point():
            weighted = [a[client] * value for client, value in zip(senders, values, strict=True)]
            new[name] = np.asarray(sum(weighted) / sum(a[client] for client in senders))
        elif senders:
            new[name] = np.max(values, axis=0)
    return new


def numbers(tensor: Tensor, absolute: bool) -> Numbers:
    values = np.asarray(tensor.double().numpy())
    return np.abs(values) if absolute else values


def assert_agrees(state: Mapping[str, Tensor], wanted: Mapping[str, Numbers], magnitude: Mapping[str, Numbers]) -> None:
    assert state.keys() == wanted.keys()
    tolerance = TOLERANCE[state["frozen"].dtype]
    for name, tensor in state.items():
        assert tensor.shape == wanted[name].shape
        assert (np.abs(tensor.double().numpy() - wanted[name]) <= tolerance * magnitude[name]).all(), name


@st.composite
def reaches(draw: st.DrawFn, num_layers: int, asked: int) -> tuple[Reach, list[list[float]]]:
    """A reach in one of its forms, and π_{u,l} spelled out in rows."""
    row = st.lists(st.floats(0.05, 1), min_size=num_layers, max_size=num_layers)
    form = draw(st.sampled_from(["row", "rows", "uniform", "exponential", "counted"]))
    if form == "rows":
        rows = draw(st.lists(row, min_size=asked, max_size=asked))
        return np.array(rows), rows
    if form == "row":
        alike = draw(row)
        return alike, [alike] * asked
    if form == "uniform":
        return UniformDepth(), [[(layer + 1) / num_layers for layer in range(num_layers)]] * asked
    if form == "exponential":  # depth ≥ d unless a Poisson variable of mean T/m stays below d
        poisson = [math.exp(-1.5) * 1.5**count / math.factorial(count) for count in range(num_layers)]
        return ExponentialDepth(2.0, 3.0), [[1 - sum(poisson[: num_layers - i]) for i in range(num_layers)]] * asked
    counts = draw(st.lists(st.integers(1, 9), min_size=num_layers + 1, max_size=num_layers + 1))
    deep = [sum(counts[num_layers - index :]) / sum(counts) for index in range(num_layers)]
    return EmpiricalDepth(tuple(counts)), [deep] * asked


@pytest.mark.parametrize("kind", [Corrected, Contributors, Everyone, InverseProbability])
@settings(max_examples=100, deadline=None)
@given(data=st.data(), cohort=cohorts(), unheard=st.integers(0, 3), weigh=st.sampled_from(WEIGHINGS))
def test_the_rules_follow_their_formulas(
    kind: type[Rule], data: st.DataObject, cohort: Cohort, unheard: int, weigh: Weigh
) -> None:
    rule, asked = data.draw(rules(kind)), len(cohort.updates) + unheard
    reach, chances = data.draw(reaches(len(cohort.layers), asked))
    result = aggregate(cohort.state, cohort.updates, cohort.layers, rule, num_clients=asked, reach=reach, weigh=weigh)
    wanted = twin(cohort, rule, asked, chances, weigh)
    assert_agrees(result.state, wanted, twin(cohort, rule, asked, chances, weigh, absolute=True))
    assert result.contributors == tuple(len(cohort.who(layer)) for layer in range(len(cohort.layers)))
    assert result.overflowed == ()


@pytest.mark.parametrize("kind", [Corrected, Contributors, Everyone])
@settings(max_examples=30, deadline=None)
@given(data=st.data(), cohort=cohorts(), unheard=st.integers(0, 3))
def test_without_reach_nothing_is_corrected(
    kind: type[Rule], data: st.DataObject, cohort: Cohort, unheard: int
) -> None:
    rule, asked = data.draw(rules(kind)), len(cohort.updates) + unheard
    result = aggregate(cohort.state, cohort.updates, cohort.layers, rule, num_clients=asked)
    assert_agrees(result.state, twin(cohort, rule, asked, None), twin(cohort, rule, asked, None, absolute=True))


def twin_memory(
    cohort: Cohort,
    clients: Sequence[int],
    rule: Memory,
    memory: dict[tuple[int, str], tuple[dict[str, Tensor], float, int]],
    weigh: Weigh,
    *,
    absolute: bool = False,
) -> dict[str, Numbers]:
    """Remember what came (in `memory`) and move each layer by everyone's last word."""
    a = [float(update.num_examples) if rule.weight_by_examples else 1.0 for update in cohort.updates]
    new = {name: numbers(tensor, absolute) for name, tensor in cohort.state.items()}
    for index, layer in enumerate(cohort.layers):
        who = cohort.who(index)
        for row in who:
            deltas = {name: cohort.updates[row].deltas[name] for name in layer.parameters}
            seen = cohort.updates[row].examples[layer.name] if weigh == "examples" else 1
            memory[clients[row], layer.name] = (deltas, a[row] * seen, cohort.updates[row].steps_of(layer.name))
        if len(who) < rule.min_contributors:
            continue
        known = [last for (_, name), last in memory.items() if name == layer.name]
        scale = naive_steps(rule, [weight for _, weight, _ in known], [steps for _, _, steps in known])
        for (deltas, weight, _), each in zip(known, scale, strict=True):
            share = each * weight / sum(other for _, other, _ in known)
            for name in layer.parameters:
                new[name] = new[name] + share * numbers(deltas[name], absolute)
        own = naive_layer_weights(cohort, layer.name, a, who, weigh)
        new |= naive_buffers(cohort, who, layer.buffers, own, absolute)
    return new


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(FLOATS), weigh=st.sampled_from(WEIGHINGS))
def test_memory_is_everyones_last_word_over_several_rounds(
    data: st.DataObject, dtype: torch.dtype, weigh: Weigh
) -> None:
    model = data.draw(models([dtype]))
    rule = data.draw(rules(Memory))
    assert isinstance(rule, Memory)
    memory: ClientMemory | None = None
    remembered: dict[tuple[int, str], tuple[dict[str, Tensor], float, int]] = {}
    for _ in range(3):
        cohort = data.draw(cohorts(st.just(model), max_clients=3))
        clients = data.draw(st.permutations(range(6)))[: len(cohort.updates)]
        magnitude = twin_memory(cohort, clients, rule, dict(remembered), weigh, absolute=True)
        wanted = twin_memory(cohort, clients, rule, remembered, weigh)
        before = {} if memory is None else {client: dict(layers) for client, layers in memory.items()}
        result = aggregate(
            cohort.state, cohort.updates, cohort.layers, rule, clients=clients, memory=memory, weigh=weigh
        )
        assert_agrees(result.state, wanted, magnitude)
        assert memory is None or {client: dict(layers) for client, layers in memory.items()} == before
        memory = result.memory
        assert {(client, name) for client, layers in memory.items() for name in layers} == set(remembered)
        model = (cohort.layers, result.state)


@settings(max_examples=20, deadline=None)
@given(cohort=cohorts())
def test_without_clients_memory_goes_by_position(cohort: Cohort) -> None:
    by_position = aggregate(cohort.state, cohort.updates, cohort.layers, Memory())
    places = range(len(cohort.updates))
    assert same_result(by_position, aggregate(cohort.state, cohort.updates, cohort.layers, Memory(), clients=places))
