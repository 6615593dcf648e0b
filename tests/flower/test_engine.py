"""An experiment on Flower's simulation engine: what the plain engine gives, up to rounding."""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flower_cases import MemoryGrid
from flwr.app import Context, Error, Message, RecordDict
from safetensors.torch import load_file

from salf.aggregation import Contributors
from salf.errors import InvalidSetting, SalfError
from salf.experiment import Experiment
from salf.flower.server.exchange import Exchange
from salf.flower.simulation_engine import FlowerEngine, _client_app, run_on_flower
from salf.methods import Salf
from salf.records import RoundRecord
from salf.runs import run_experiment
from salf.simulation import Simulation

RUN = Experiment.load(
    "digits",
    rounds=3,
    engine="flower",
    **{"data.clients": 6, "client.batch_size": 8, "client.local_steps": 2, "evaluate.every": 1},
)
CONTEXT = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def simulation_on(grid: MemoryGrid) -> Simulation:
    exchange = Exchange(grid, 0.25, grid.clock, grid.clock.sleep)
    return Simulation(RUN, build_engine=lambda training: FlowerEngine(exchange, training))


@pytest.mark.parametrize("rule", ["corrected", "memory", "inverse-probability"])
def test_clients_that_train_on_flower_give_what_the_plain_engine_gives(rule: str) -> None:
    run = replace(RUN, method=Experiment.load("digits", **{"method.rule": rule}).method)
    client = _client_app(run)
    node = lambda message: [(0.1, client(message, CONTEXT))]  # noqa: E731
    grid = MemoryGrid(dict.fromkeys((1, 2, 3), node))
    exchange = Exchange(grid, 0.25, grid.clock, grid.clock.sleep)
    flower = Simulation(run, build_engine=lambda training: FlowerEngine(exchange, training))
    plain = Simulation(replace(run, engine="plain"))
    mine, theirs = flower.initial_state(), plain.initial_state()
    for _ in range(3):
        mine, record = flower.play(mine)
        theirs, expected = plain.play(theirs)
        assert record.contributors == expected.contributors
        assert record.engine == "flower"
    for name, value in theirs.weights.items():
        torch.testing.assert_close(mine.weights[name], value, rtol=1e-5, atol=1e-6)


def test_a_client_that_fails_or_does_not_reply_ends_the_run_with_a_reason() -> None:
    def failing(message: Message) -> Iterable[tuple[float, Message]]:
        return [(0.1, Message(Error(code=1, reason="no memory"), reply_to=message))]

    simulation = simulation_on(MemoryGrid({1: failing}))
    with pytest.raises(SalfError, match="failed on Flower: no memory"):
        simulation.play(simulation.initial_state())
    simulation = simulation_on(MemoryGrid({1: lambda _: []}))
    with pytest.raises(SalfError, match="6 clients have not replied"):
        simulation.play(simulation.initial_state())


def test_an_invalid_update_is_counted_and_left_out() -> None:
    client = _client_app(RUN)

    def node(message: Message) -> Iterable[tuple[float, Message]]:
        reply = client(message, CONTEXT)
        if json.loads(str(message.content.config_records["task"]["task"]))["client"] == 0:
            reply.content.metric_records["metrics"]["num-examples"] = 0
        return [(0.1, reply)]

    simulation = simulation_on(MemoryGrid({1: node}))
    _, record = simulation.play(simulation.initial_state())
    assert record.rejected == 1


def test_the_engine_cannot_be_chosen_outside_flower() -> None:
    with pytest.raises(InvalidSetting, match="use salf run --engine flower"):
        Simulation(RUN)


def test_clients_on_flower_compute_on_the_cpu_only() -> None:
    with pytest.raises(InvalidSetting, match="device is 'cuda', but clients on Flower's simulation engine compute on"):
        run_on_flower(replace(RUN, device="cuda"))


def test_clients_on_flower_need_an_experiment_that_its_file_describes_completely() -> None:
    class Halved(Contributors):
        """A rule that another process does not know."""

    for changed in (replace(RUN, method=Salf(rule=Halved())), replace(RUN, data=replace(RUN.data, name="tensors"))):
        with pytest.raises(InvalidSetting, match=r"from its file, but .*given in Python.*; choose another engine"):
            run_on_flower(changed)


@pytest.mark.slow
def test_a_run_on_flowers_simulation_engine_ends_like_a_plain_one(tmp_path: Path) -> None:
    """The whole command, with Ray and its processes."""
    file = tmp_path / "experiment.toml"
    run = replace(RUN, rounds=2)
    file.write_text(run.to_toml())
    command = [sys.executable, "-m", "salf", "run", str(file), "--engine", "flower", "--out", str(tmp_path / "flower")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plain = run_experiment(replace(run, engine="plain"), tmp_path / "plain")
    records = [RoundRecord.from_json(line) for line in (tmp_path / "flower" / "records.jsonl").read_text().splitlines()]
    assert [record.engine for record in records] == ["flower"] * 2
    assert [record.contributors for record in records] == [record.contributors for record in plain.records]
    assert [record.time_s for record in records] == [record.time_s for record in plain.records]
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("flower", "plain"))
    assert set(mine) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(mine[name].numpy(), value.numpy(), rtol=1e-5, atol=1e-6)
