"""Observers that log a run to TensorBoard or MLflow; they get every record, also those before a resumption."""

import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from salf.errors import InvalidSetting, RunFolderError
from salf.experiment import Experiment
from salf.records import RoundRecord
from salf.report import flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch.utils.tensorboard import SummaryWriter

RecordObserver = Callable[[RoundRecord], None]
_TAG = "salf.folder"  # of an MLflow run: the folder of the run that is logged
_SUFFIX = ".salf"  # of the names of the event files that are written here, and no others


def metrics_of(record: RoundRecord) -> dict[str, float]:
    """Return a round's figures under the names by which they are logged; those that the round lacks are left out.

    >>> sorted(metrics_of(RoundRecord(1, 2.0, 2.0, 3, (1, 2), 0.5, depths=(1, 1, 1))))
    ['contributors/layer-01', 'contributors/layer-02', 'depth/00', 'depth/01', 'depth/02', 'time_s', 'work_kept']
    """
    found = {"accuracy": record.accuracy, "loss": record.loss, "work_kept": record.work_kept, "time_s": record.time_s}
    return {
        **{name: value for name, value in found.items() if value is not None},
        **{f"contributors/layer-{layer:02d}": float(n) for layer, n in enumerate(record.contributors, start=1)},
        **{f"depth/{depth:02d}": float(n) for depth, n in enumerate(record.depths)},
    }


def parameters_of(experiment: Experiment) -> dict[str, str]:
    """Return the settings under their dotted names, as text."""
    return {key: str(value) for key, value in flatten(tomllib.loads(experiment.to_toml())).items()}


@contextmanager
def log_to_tensorboard(folder: Path, experiment: Experiment, *, resume: bool) -> Iterator[RecordObserver]:
    """Log to TensorBoard event files: the step is the round, the wall time the virtual time in seconds.

    Args:
        folder: Where the event files go; it is made if it does not exist.
        experiment: The run's experiment; its settings are logged as a table.
        resume: Whether to replace the log of an earlier, interrupted run: all its records come again.

    Raises:
        RunFolderError: The folder holds a log and `resume` is false, or it cannot be written.
        InvalidSetting: TensorBoard is not installed.
    """
    _need("tensorboard")
    writer_class = _need("torch.utils.tensorboard").SummaryWriter
    try:
        earlier = [*folder.glob(f"events.out.tfevents.*{_SUFFIX}")]
        if earlier and not resume:
            raise RunFolderError(f"{folder} already holds the log of a run; choose another folder for --tensorboard")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot log to {folder}: {error}; choose another folder for --tensorboard") from error
    table = "".join(f"| `{key}` | {value} |\n" for key, value in parameters_of(experiment).items())
    with ExitStack() as opened:

        @cache  # at the first record: a run that is refused neither leaves a log nor removes an earlier one
        def writer() -> "SummaryWriter":
            begun: SummaryWriter = writer_class(str(folder), filename_suffix=_SUFFIX)
            opened.callback(begun.close)
            for file in earlier:
                file.unlink(missing_ok=True)
            begun.add_text("experiment", f"| setting | value |\n|---|---|\n{table}", 0, walltime=0.0)
            return begun

        def log(record: RoundRecord) -> None:
            for name, value in metrics_of(record).items():
                writer().add_scalar(name, value, record.round, walltime=record.time_s)

        yield log


@contextmanager
def log_to_mlflow(
    address: str, experiment: Experiment, folder: Path | None, *, resume: bool
) -> Iterator[RecordObserver]:
    """Log to an MLflow run: the step is the round, the time stamp the virtual time in milliseconds.

    Args:
        address: That of a server or database, or a folder in which to keep a database.
        experiment: The run's experiment; its settings are logged as parameters.
        folder: The run's folder, by which a resumed run finds its log.
        resume: Whether to continue the MLflow run that belongs to `folder`; rounds that it has are not logged again.

    Raises:
        RunFolderError: MLflow refuses; a resumed run logs the rounds that are missing.
        InvalidSetting: MLflow is not installed.
    """
    client_class, entities = _need("mlflow").MlflowClient, _need("mlflow.entities")
    refused = _need("mlflow.exceptions").MlflowException
    for package in ("sqlalchemy", "alembic"):
        _need(package)
    try:
        client = client_class(_tracking_uri(address))
        number, known = _open_run(client, experiment, folder, resume=resume)
    except (refused, OSError) as error:
        raise RunFolderError(f"cannot log to {address}: {error}; choose another address for --mlflow") from error

    def log(record: RoundRecord) -> None:
        if record.round <= known:
            return
        stamp = round(1000 * record.time_s)
        found = [entities.Metric(name, value, stamp, record.round) for name, value in metrics_of(record).items()]
        try:
            client.log_batch(number, metrics=found)
        except refused as error:
            raise RunFolderError(f"cannot log to {address}: {error}; check MLflow, then resume the run") from error

    try:
        yield log
    except BaseException:
        with suppress(refused):  # the error that ended the run is reported
            client.set_terminated(number, "FAILED")
        raise
    client.set_terminated(number, "FINISHED")


def _need(module: str) -> ModuleType:
    """Import an optional package. Raises `InvalidSetting` if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InvalidSetting(
            f"{module.partition('.')[0]} is not installed; install it with pip install 'salf[tracking]'"
        ) from error


def _tracking_uri(address: str) -> str:
    """Return the address of a database in a folder, which is made; other addresses stay as they are."""
    if "://" in address or address == "databricks":
        return address
    folder = Path(address).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def _open_run(client: "MlflowClient", experiment: Experiment, folder: Path | None, *, resume: bool) -> tuple[str, int]:
    """Find the MLflow run to continue, or begin one; return its number and the last round that it has."""
    found = client.get_experiment_by_name(experiment.name)
    number = client.create_experiment(experiment.name) if found is None else found.experiment_id
    tags = {} if folder is None else {_TAG: str(folder.resolve())}
    if resume and folder is not None:
        for run in client.search_runs([number]):
            if run.data.tags.get(_TAG) == tags[_TAG]:
                logged = client.get_metric_history(run.info.run_id, "time_s")
                return run.info.run_id, max((point.step for point in logged), default=0)
    name = f"{experiment.method.name}, seed {experiment.seed}"
    run = client.create_run(number, tags=tags, run_name=name)
    for key, value in parameters_of(experiment).items():
        client.log_param(run.info.run_id, key, value)
    return run.info.run_id, 0
