"""The time-line of a round, against times that were worked out by hand."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from salf.experiment.experiment import Experiment
from salf.records.timeline import ClientLine, Span, TimeLine
from salf.simulation.server_state import ServerState
from salf.simulation.simulator import Simulation
from salf.simulation.synchronous import SynchronousRounds
from salf.simulation.typical_round import _plans, draw_timeline


def timeline(method: str = "salf", **changes: object) -> tuple[Simulation, TimeLine]:
    wanted: dict[str, object] = {
        "rounds": 30,
        "data.clients": 6,
        "model.name": "mlp",
        "model.hidden": [8],
        "devices.kind": "physical",
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    simulation = Simulation(Experiment.load("digits", **wanted).with_method(method))
    return simulation, simulation.timeline()


def spans(line: ClientLine, activity: str) -> list[Span]:
    return [span for span in line.spans if span.activity == activity]


def test_the_times_of_a_phone_by_hand() -> None:
    alike = {"devices__speed_sigma": 0.0, "devices__jitter": 0.0, "devices__bandwidth_ratio": 1.0}
    simulation, drawn = timeline(
        "fedavg", devices__step_seconds=1.0, devices__bandwidth_bits_per_second=80_000, **alike
    )
    costs = simulation.workload.costs
    whole = costs.forward + sum(costs.backward)
    received = sum(costs.layer_bytes) / 10_000
    forwarded = received + costs.forward / whole
    last = forwarded + costs.backward[1] / whole
    assert (drawn.layers, drawn.clients, drawn.deadline_s) == (simulation.layers.names, 6, None)
    expected = [
        ("receive", None, 0.0, received),
        ("forward", None, received, forwarded),
        ("backward", 1, forwarded, last),
        ("backward", 0, last, received + 1.0),
        ("send", None, received + 1.0, 2 * received + 1.0),
    ]
    for line in drawn.lines:
        assert line.depth == 2
        assert [(span.activity, span.layer) for span in line.spans] == [one[:2] for one in expected]
        assert [span.start_s for span in line.spans] == pytest.approx([one[2] for one in expected])
        assert [span.end_s for span in line.spans] == pytest.approx([one[3] for one in expected])
        assert all(span.counted and not span.cut for span in line.spans)
    assert drawn.end_s == pytest.approx(2 * received + 1.0)


@pytest.mark.parametrize("method", ["salf", "drop", "timelyfl", "fedprox", "overselection"])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_what_is_drawn_is_what_counts(method: str, steps: int) -> None:
    simulation, drawn = timeline(method, client__local_steps=steps, data__clients=20)
    assert drawn.round is not None
    assert isinstance(simulation._rounds, SynchronousRounds)
    state = simulation.initial_state()
    while state.round < drawn.round - 1:
        before = simulation._rounds.plan(state)
        observed = state.observed.observe(before.cohort.clients, before.schedule.steps > 0)
        state = replace(state, round=state.round + 1, speeds=before.speeds, observed=observed)
    plan = simulation._rounds.plan(state)
    for line in drawn.lines:
        counted = plan.schedule.steps[plan.cohort.clients.tolist().index(line.client)]
        assert line.depth == (counted > 0).sum()
        if steps <= 4:
            kept = [span.layer or 0 for span in spans(line, "backward") if span.counted and not span.cut]
            assert np.bincount(kept, minlength=2).tolist() == counted.tolist()
        assert bool(spans(line, "send")) == bool(counted.any())
        busy = [span for span in line.spans if span.activity != "send"]
        assert all(0 <= one.start_s < one.end_s <= drawn.end_s for one in line.spans)
        assert all(one.end_s == pytest.approx(after.start_s) for one, after in itertools.pairwise(busy))
        assert not any(span.cut for span in busy[:-1])


@pytest.mark.parametrize("method", ["fedasync", "fedbuff"])
def test_a_method_without_rounds_has_layers_but_no_round(method: str) -> None:
    simulation, drawn = timeline(method)
    assert drawn == TimeLine(simulation.layers.names)


def test_lines_go_from_the_deepest_client_to_the_shallowest() -> None:
    _, drawn = timeline(data__clients=100)
    depths = [line.depth for line in drawn.lines]
    assert (len(depths), drawn.clients) == (24, 100)
    assert depths == sorted(depths, reverse=True)


class Rounds:
    """Rounds of which each is as deep as it is told to be."""

    def __init__(self, depths: Sequence[int]) -> None:
        self.simulation, _ = timeline()
        self.depths = depths

    def plan(self, state: ServerState) -> object:
        assert isinstance(self.simulation._rounds, SynchronousRounds)
        plan = self.simulation._rounds.plan(state)
        plan.schedule.steps[:] = np.arange(2) >= 2 - self.depths[state.round]
        return plan


def typical_of(depths: Sequence[int], planned: int) -> int | None:
    rounds = Rounds(depths)
    return draw_timeline(rounds, rounds.simulation.initial_state(), ("a", "b"), planned).round  # type: ignore[arg-type]


def test_the_round_nearest_to_the_mean_depth_is_drawn() -> None:
    assert typical_of([0, 2, 2, 1, 2], 5) == 4
    assert typical_of([0, 2, 2, 1, 2], 2) == 1


def test_devices_without_a_forward_time_have_no_forward_pass() -> None:
    _, drawn = timeline(devices__kind="uniform")
    assert {span.activity for line in drawn.lines for span in line.spans} == {"backward"}


def test_a_time_line_comes_back_from_its_file() -> None:
    _, drawn = timeline(client__local_steps=3)
    assert TimeLine.from_json(drawn.to_json()) == drawn
    for damaged in (b"", b"[]", drawn.to_json().replace(b'"forward"', b'"backwards"')):
        with pytest.raises(ValueError, match="validation error"):
            TimeLine.from_json(damaged)


def test_a_long_round_is_drawn_as_long_as_it_was() -> None:
    """Whether a round is long depends on who reached what before: the rounds drawn anew are those that were played."""
    small = {"data.clients": 8, "client.batch_size": 2, "rounds": 20, "model.name": "mlp"}
    method = {"devices.kind": "graded", "method.name": "salfplus", "method.long_every": 4}
    simulation = Simulation(Experiment.load("digits", **small, **method))
    assert isinstance(simulation._rounds, SynchronousRounds)
    drawn = [plan.schedule.deadline_seconds for plan in _plans(simulation._rounds, simulation.initial_state(), 20)]
    state, played = simulation.initial_state(), []
    while state.round < 20:
        state, record = simulation.play(state)
        played.append(record.deadline_s)
    assert drawn == played
    assert set(played) == {1.0, 5.0}
