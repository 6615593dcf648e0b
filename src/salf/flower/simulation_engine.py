"""An experiment whose clients train on Flower's simulation engine; clock, cohorts and tasks stay the experiment's."""

import functools
import json
import logging
import os
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from torch import Tensor

from salf.aggregation import Aggregation
from salf.engines import ClientTask, PlainEngine, Tasks, Training
from salf.errors import InvalidSetting, InvalidUpdate, SalfError
from salf.experiment import Experiment
from salf.flower.server import Exchange
from salf.flower.wire import (
    ClientReport,
    from_record,
    layers_from_json,
    layers_to_json,
    read_reply,
    size_of,
    to_record,
    write_reply,
)
from salf.layers import Layers
from salf.methods import is_synchronous
from salf.records import RoundRecord
from salf.runs import Run, run_experiment
from salf.simulation import Simulation

_MOST_NODES = 64  # virtual nodes; each trains one client after another
_POLL_SECONDS = 0.02  # short, because all processes are on one machine
_PATIENCE_SECONDS = 3600.0


def run_on_flower(
    experiment: Experiment,
    out: Path | str | None = None,
    resume: bool = False,  # noqa: FBT001, FBT002 - the signature of `run_experiment`
    *,
    watch: Callable[[RoundRecord], None] | None = None,
) -> Run:
    """Run an experiment as `salf.run_experiment` does, with the clients on Flower's simulation engine.

    The experiment decides which clients are sampled, how far each one gets and what the clock says. The results are
    those of the plain engine up to rounding, because replies are summed in the order in which they arrive.

    Args:
        experiment: An experiment with a synchronous method without sub-models, on the CPU.
        out: The run's folder; None to keep nothing.
        resume: Whether to continue an interrupted run in the folder.
        watch: A function that is called with the record of every round.

    Raises:
        InvalidSetting: The method, the device or a value given in Python does not fit; see also `salf.run_experiment`.
        SalfError: A client failed.
    """
    _check_experiment(experiment)
    outcome: Future[Run] = Future()

    def serve(grid: Grid, _: Context) -> None:
        try:
            build = functools.partial(FlowerEngine, Exchange(grid, _POLL_SECONDS))
            outcome.set_result(run_experiment(experiment, out, resume, watch=watch, build_engine=build))
        except BaseException as error:  # noqa: BLE001 - raised again outside Flower's thread
            outcome.set_exception(error)

    _simulate(experiment, serve)
    if not outcome.done():
        raise SalfError("Flower's simulation engine ended before the run; read its messages above")
    return outcome.result()


def _simulate(experiment: Experiment, serve: Callable[[Grid, Context], None]) -> None:
    """Run a server app on Flower's simulation engine, with the clients of an experiment."""
    # Without this setting, Ray warns that its treatment of accelerators changes.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    server = ServerApp()
    server.main()(serve)
    nodes = min(experiment.client.cohort or experiment.data.clients, _MOST_NODES)
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the calling command reports the run
    try:
        run_simulation(server, _client_app(experiment), nodes, backend_config={"client_resources": {"num_cpus": 1}})
    finally:
        logger.setLevel(level)


def _check_experiment(experiment: Experiment) -> None:
    method = experiment.method
    if not is_synchronous(method) or method.submodels is not None:
        raise InvalidSetting(
            f"engine is 'flower', which does not fit method '{method.name}', whose clients train sub-models or without "
            "rounds; choose engine 'auto' or another method"
        )
    if experiment.device != "cpu":
        raise InvalidSetting(
            f"device is '{experiment.device}', but clients on Flower's simulation engine compute on the CPU; choose "
            "device 'cpu' or another engine"
        )
    if reasons := experiment.unreproducible():
        raise InvalidSetting(
            f"engine is 'flower', whose clients read the experiment from its file, but {', '.join(reasons)}; choose "
            "another engine"
        )


class FlowerEngine:
    """An engine that sends each client's task to a node of a grid, and adds the replies as they arrive.

    Args:
        exchange: What delivers tasks and replies.
        training: The training of the experiment; only its layers are used.
    """

    name = "flower"
    at_once = False
    one_by_one = None

    def __init__(self, exchange: Exchange, training: Training) -> None:
        self._exchange, self._layers = exchange, training.layers

    def train_cohort(self, weights: Mapping[str, Tensor], tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Add what each client sends to the sum; return whose updates were accepted, shape (clients,).

        Args:
            weights: The global model.
            tasks: The clients' tasks.
            running: The sum of the round.

        Raises:
            SalfError: A client failed, or has not replied within an hour.
        """
        arrays = to_record(weights)
        messages = self._messages(arrays, tasks)
        sent = self._exchange.push(messages)
        waiting = {message.metadata.message_id: row for row, message in enumerate(messages)}
        accepted = np.zeros(len(messages), dtype=np.bool_)
        until = self._exchange.clock() + _PATIENCE_SECONDS
        for reply in self._exchange.replies(sent, until, size_of(arrays)):
            row = waiting.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                client, reason = tasks.clients[row], reply.error.reason
                raise SalfError(f"client {client} failed on Flower: {reason}; read its messages above")
            try:
                running.add(read_reply(reply.content, self._layers, weights).update, row)
                accepted[row] = True
            except InvalidUpdate:
                continue
        if waiting:
            raise SalfError(
                f"{len(waiting)} clients have not replied within {_PATIENCE_SECONDS:.0f} s; choose another engine"
            )
        return accepted

    def _messages(self, arrays: ArrayRecord, tasks: Tasks) -> list[Message]:
        """Return a message for each task, to the nodes in turn."""
        nodes = sorted(self._exchange.grid.get_node_ids())
        contents = (RecordDict({"arrays": arrays, "task": _write_task(task, self._layers)}) for task in tasks)
        return [
            Message(content, dst_node_id=nodes[row % len(nodes)], message_type="train")
            for row, content in enumerate(contents)
        ]


def _client_app(experiment: Experiment) -> ClientApp:
    """Return the app of a client, which builds the experiment's model and data once per process."""
    app = ClientApp()
    settings = replace(experiment, engine="plain").to_toml()

    @app.train()
    def train(message: Message, _: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        task, layers = _read_task(message.content.config_records["task"])
        (update,) = _trainer(settings).updates(from_record(arrays), [task])
        sent, record = write_reply(update, ClientReport(), layers, arrays, {}, whole=False)
        return Message(RecordDict({"arrays": sent, "metrics": record}), reply_to=message)

    return app


@functools.lru_cache(maxsize=1)
def _trainer(settings: str) -> PlainEngine:
    """Return the plain engine of an experiment, given as TOML."""
    engine = Simulation(Experiment.parse(tomllib.loads(settings), "the experiment")).federation.engine
    if not isinstance(engine, PlainEngine):
        raise SalfError(f"a client on Flower got engine '{engine.name}'; set engine to 'plain'")
    return engine


def _write_task(task: ClientTask, layers: Layers) -> ConfigRecord:
    """Return a task as the configuration of a message."""
    fields = json.dumps(asdict(task), default=np.ndarray.tolist)
    return ConfigRecord({"task": fields, "layers": layers_to_json(layers)})


def _read_task(record: ConfigRecord) -> tuple[ClientTask, Layers]:
    """Read what `_write_task` wrote."""
    fields = json.loads(str(record["task"]))
    fields |= {name: np.array(fields[name], dtype=np.int64) for name in ("steps", "batches")}
    return ClientTask(**fields), layers_from_json(str(record["layers"]))
