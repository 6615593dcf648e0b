"""A server that was killed resumes after the last complete round; an interrupted round runs again."""

import json
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from flower_cases import MemoryGrid, Node, a_loop, a_model, initial, inner, sending
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvgM, Strategy

from salf.aggregation import Corrected, Memory, Rule
from salf.errors import RunFolderError
from salf.flower import FederationRecord, Quantile, SalfStrategy
from salf.flower.server.federation_folder import FederationFolder
from salf.flower.server.round_loop import RoundLoop
from salf.layers import Layer, Layers

MODEL, LAYERS = a_model()
NODES = {node: sending(node % 4, seed=node) for node in (1, 2, 3, 2**64 - 1)}


class Killed(BaseException):
    pass


def loop_in(folder: Path | None, rule: Rule, wrapped: Strategy, nodes: dict[int, Node]) -> RoundLoop:
    strategy = SalfStrategy(wrapped, deadline=Quantile(q=0.5, first=10.0), layers=LAYERS, rule=rule)
    kept = None if folder is None else FederationFolder(folder)
    evaluate = lambda number, _: MetricRecord({"number": float(number)})  # noqa: E731
    return a_loop(MemoryGrid(nodes), strategy, folder=kept, evaluate=evaluate)


def strategies() -> dict[str, Strategy]:
    options = {"fraction_evaluate": 0.0, "min_train_nodes": 4, "min_available_nodes": 4}
    return {
        "average": inner(4),
        "adam": FedAdam(eta=0.01, beta_1=0.9, beta_2=0.99, **options),  # type: ignore[arg-type]
        "momentum": FedAvgM(server_momentum=0.9, **options),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("rule", [Corrected(), Memory()])
@pytest.mark.parametrize("name", ["average", "adam", "momentum"])
def test_a_run_that_was_killed_twice_ends_like_an_undisturbed_one(tmp_path: Path, name: str, rule: Rule) -> None:
    expected = loop_in(None, rule, strategies()[name], NODES).run(initial(MODEL), 6)
    for dies_in in (3, 5):

        def fatal(message: Message, dies_in: int = dies_in) -> Iterable[tuple[float, Message]]:
            if message.metadata.group_id == str(dies_in):
                raise Killed
            return NODES[1](message)

        with pytest.raises(Killed):
            loop_in(tmp_path, rule, strategies()[name], {**NODES, 1: fatal}).run(initial(MODEL), 6)
    result = loop_in(tmp_path, rule, strategies()[name], NODES).run(initial(MODEL), 6)
    for key, value in result.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(value, expected.arrays.to_torch_state_dict()[key], rtol=1e-5, atol=1e-6)
    assert [*result.evaluate_metrics_serverapp] == [0, 1, 2, 3, 4, 5, 6]
    for number in range(1, 7):
        mine, theirs = (each.train_metrics_clientapp[number] for each in (result, expected))
        assert mine["salf-contributors"] == theirs["salf-contributors"]
        assert mine["salf-deadline-s"] == pytest.approx(theirs["salf-deadline-s"])
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    records = [FederationRecord.from_json(line) for line in lines]
    assert [record.round for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[0].depths == (0, 1, 1, 2)
    assert records[-1].time_s == pytest.approx(sum(record.seconds for record in records))


def test_a_round_whose_checkpoint_is_missing_runs_again(tmp_path: Path) -> None:
    loop_in(tmp_path, Corrected(), inner(4), NODES).run(initial(MODEL), 2)
    records = tmp_path / "records.jsonl"
    third = json.loads(records.read_text().splitlines()[1]) | {"round": 3}
    records.write_text(f'{records.read_text()}{json.dumps(third)}\n{{"round": 4, "ti')
    loop_in(tmp_path, Corrected(), inner(4), NODES).run(initial(MODEL), 4)
    assert [record.round for record in FederationFolder(tmp_path).records()] == [1, 2, 3, 4]


def test_a_finished_run_returns_its_results(tmp_path: Path) -> None:
    first = loop_in(tmp_path, Corrected(), inner(4), NODES).run(initial(MODEL), 2)
    loop = loop_in(tmp_path, Corrected(), inner(4), NODES)
    again = loop.run(initial(MODEL), 2)
    assert again.arrays == first.arrays
    assert not loop.exchange.grid.sent  # type: ignore[attr-defined]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    loop_in(tmp_path, Corrected(), inner(4), NODES).run(initial(MODEL), 1)
    other = {name: torch.cat([value, value]) if value.ndim else value for name, value in MODEL.state_dict().items()}
    with pytest.raises(RunFolderError, match="the rounds of another model"):
        loop_in(tmp_path, Corrected(), inner(4), NODES).run(ArrayRecord(other), 2)
    fewer = SalfStrategy(inner(4), deadline=10.0, layers=Layers((Layer("last", ("last.weight", "last.bias")),)))
    with pytest.raises(RunFolderError, match="or of other layers"):
        a_loop(MemoryGrid(NODES), fewer, folder=FederationFolder(tmp_path)).run(initial(MODEL), 2)
    checkpoint = tmp_path / "checkpoint" / "state.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(RunFolderError, match="is damaged"):
        loop_in(tmp_path, Corrected(), inner(4), NODES).run(initial(MODEL), 2)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunFolderError, match="choose another"):
        loop_in(file, Corrected(), inner(4), NODES).run(initial(MODEL), 2)


def test_missing_or_damaged_records_are_refused(tmp_path: Path) -> None:
    loop_in(tmp_path, Corrected(), inner(4), NODES).run(initial(MODEL), 2)
    (tmp_path / "records.jsonl").write_text("")
    with pytest.raises(RunFolderError, match="lacks earlier rounds"):
        loop_in(tmp_path, Corrected(), inner(4), NODES).run(initial(MODEL), 3)
    (tmp_path / "records.jsonl").write_text("nonsense\n")
    with pytest.raises(RunFolderError, match="is damaged"):
        loop_in(tmp_path, Corrected(), inner(4), NODES).run(initial(MODEL), 3)


def test_a_folder_belongs_to_one_server_app_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second app waits, but not forever."""
    holder = ExitStack()
    holder.enter_context(FederationFolder(tmp_path).held())
    with pytest.raises(RunFolderError, match="another process is at work"), FederationFolder(tmp_path, 0.1).held():
        pass
    threading.Timer(0.3, holder.close).start()
    loop_in(tmp_path, Corrected(), inner(4), NODES).run(initial(MODEL), 1)
    assert "another server app uses" in caplog.text
    assert len(FederationFolder(tmp_path).records()) == 1


def test_momentum_is_restored(tmp_path: Path) -> None:
    strategy = strategies()["momentum"]
    assert isinstance(strategy, FedAvgM)
    loop_in(tmp_path, Corrected(), strategy, NODES).run(initial(MODEL), 2)
    fresh = strategies()["momentum"]
    assert isinstance(fresh, FedAvgM)
    FederationFolder(tmp_path).load(fresh)
    assert strategy.momentum_vector is not None
    assert fresh.momentum_vector is not None
    for old, new in zip(strategy.momentum_vector, fresh.momentum_vector, strict=True):
        np.testing.assert_array_equal(np.asarray(old), np.asarray(new))
