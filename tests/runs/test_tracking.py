"""What is logged to TensorBoard and MLflow: every round once, also when a run was interrupted and went on."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_cases import refusal, salf, settings, tiny, tiny_run

from salf.records.rounds import RoundRecord
from salf.runs import tracking
from salf.runs.run import run_experiment


def expected(records: tuple[RoundRecord, ...], name: str) -> list[tuple[int, float, float]]:
    """The points of a curve: round, virtual seconds, value."""
    found = ((record, tracking.metrics_of(record).get(name)) for record in records)
    return [(record.round, record.time_s, value) for record, value in found if value is not None]


def interrupted(watch: Callable[[RoundRecord], None]) -> Callable[[RoundRecord], None]:
    def log(record: RoundRecord) -> None:
        watch(record)
        if record.round == 4:
            raise KeyboardInterrupt

    return log


NAMES = ["accuracy", "loss", "work_kept", "time_s", "contributors/layer-01", "contributors/layer-02", "depth/00"]


def read_tensorboard(folder: Path) -> Any:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = module.EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_round_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: tracking)")
    run, logs = tmp_path / "run", tmp_path / "logs"
    with pytest.raises(KeyboardInterrupt), tracking.log_to_tensorboard(logs, tiny(), resume=False) as watch:
        run_experiment(tiny(), run, watch=interrupted(watch))
    assert salf("run", "--resume", run, "--tensorboard", logs).code == 0
    read, records = read_tensorboard(logs), tiny_run().records
    for name in NAMES:
        points = [(event.step, event.wall_time, event.value) for event in read.Scalars(name)]
        assert np.array(points) == pytest.approx(np.array(expected(records, name))), name
    (text,) = read.Tensors("experiment/text_summary")
    assert b"| `method.name` | salf |" in text.tensor_proto.string_val[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_run_does_not_mix_with_the_log_of_one(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: tracking)")
    assert salf("run", *settings(rounds=1), "--tensorboard", tmp_path).code == 0
    (before,) = tmp_path.iterdir()
    message = refusal("run", *settings(rounds=1), "--tensorboard", tmp_path)
    assert message == f"{tmp_path} already holds the log of a run; choose another folder for --tensorboard"
    other = tiny_run(tmp_path.with_name("other"), rounds=2).folder
    assert "another experiment" in refusal("run", "--resume", other, "--set", "rounds=3", "--tensorboard", tmp_path)
    assert [*tmp_path.iterdir()] == [before]
    before.rename(tmp_path / "file")
    assert "cannot log to" in refusal("run", *settings(rounds=1), "--tensorboard", tmp_path / "file" / "below")


@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_every_round_once(tmp_path: Path) -> None:
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra: tracking)")
    run, logs = tmp_path / "run", str(tmp_path / "logs")
    with pytest.raises(KeyboardInterrupt), tracking.log_to_mlflow(logs, tiny(), run, resume=False) as watch:
        run_experiment(tiny(), run, watch=interrupted(watch))
    client = __import__("mlflow").MlflowClient(f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    number = client.get_experiment_by_name("digits").experiment_id
    assert [found.info.status for found in client.search_runs([number])] == ["FAILED"]
    assert salf("run", "--resume", run, "--mlflow", logs).code == 0
    (found,) = client.search_runs([number])
    assert found.info.status == "FINISHED"
    assert found.data.params == tracking.parameters_of(tiny())
    for name in NAMES:
        history = client.get_metric_history(found.info.run_id, name)
        points = sorted((point.step, point.timestamp / 1000, point.value) for point in history)
        assert np.array(points) == pytest.approx(np.array(expected(tiny_run().records, name))), name
    assert salf("run", *settings(), "--mlflow", logs).code == 0
    assert len(client.search_runs([number])) == 2


@pytest.mark.parametrize(("option", "package"), [("--tensorboard", "tensorboard"), ("--mlflow", "mlflow")])
def test_a_missing_package_is_one_message(
    option: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal("run", *settings(), option, tmp_path / "logs", "--out", tmp_path / "run")
    assert message == f"{package} is not installed; install it with pip install 'salf[tracking]'"
    assert [*tmp_path.iterdir()] == []
