"""An experiment on Flower's simulation engine: the same clock and the same tasks, the training in Flower's clients."""

import functools
import logging
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Message, RecordDict
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
    to_record,
    write_reply,
)
from salf.layers import Layers
from salf.methods import is_synchronous
from salf.records import RoundRecord
from salf.runs import Run, run_experiment
from salf.simulation import Simulation

_MOST_NODES = 64  # virtual nodes; each takes one task after another
_POLL_SECONDS = 0.02  # everything is on one machine
_PATIENCE_SECONDS = 3600.0


def run_on_flower(
    experiment: Experiment,
    out: Path | str | None = None,
    resume: bool = False,  # noqa: FBT001, FBT002 - as `run_experiment`
    *,
    watch: Callable[[RoundRecord], None] | None = None,
) -> Run:
    """Run an experiment as `salf.run_experiment` does, but let clients on Flower's simulation engine do the training.

    Who is asked, how far each client gets and what the clock says are the experiment's; the results are those of the
    plain engine up to rounding, since replies are summed as they arrive. Raises what `run_experiment` raises.
    """
    method = experiment.method
    if not is_synchronous(method) or method.submodels is not None:
        raise InvalidSetting(
            f"engine 'flower' does not fit method '{method.name}', whose clients train sub-models or in no rounds: "
            "choose engine 'auto' or another method"
        )
    if experiment.device != "cpu":
        raise InvalidSetting(
            f"device is '{experiment.device}', but clients on Flower's simulation engine compute on the CPU: choose "
            "device 'cpu' or another engine"
        )
    finished: list[Run] = []
    failed: list[BaseException] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - what Flower calls
        try:
            build = functools.partial(FlowerEngine, Exchange(grid, _POLL_SECONDS))
            finished.append(run_experiment(experiment, out, resume, watch=watch, build_engine=build))
        except BaseException as error:  # noqa: BLE001 - it leaves Flower's thread, to be raised in the caller's
            failed.append(error)

    # Ray warns of a change in its treatment of accelerators unless told which to take.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    nodes = min(experiment.client.cohort or experiment.data.clients, _MOST_NODES)
    with _errors_only():
        run_simulation(server, _client_app(experiment), nodes, backend_config={"client_resources": {"num_cpus": 1}})
    if failed:
        raise failed[0]
    if not finished:
        raise SalfError("Flower's simulation engine ended before the run did; see what it printed above")
    return finished[0]


class FlowerEngine:
    """Sends each client's task to a node of a grid, and adds the replies as they come."""

    name = "flower"
    at_once = False
    one_by_one = None

    def __init__(self, exchange: Exchange, training: Training) -> None:
        self._exchange, self._layers = exchange, training.layers

    def train_cohort(self, weights: Mapping[str, Tensor], tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Add what each client conveys; return whose updates were accepted, shape (clients,)."""
        arrays = to_record(weights)
        nodes = sorted(self._exchange.grid.get_node_ids())
        messages = [
            Message(
                RecordDict({"arrays": arrays, "task": _write_task(task, self._layers)}),
                dst_node_id=nodes[place % len(nodes)],
                message_type="train",
            )
            for place, task in enumerate(tasks)
        ]
        sent = self._exchange.push(messages)
        places = {message.metadata.message_id: place for place, message in enumerate(messages)}
        accepted = np.zeros(len(messages), dtype=np.bool_)
        size = sum(len(array.data) for array in arrays.values())
        until = self._exchange.clock() + _PATIENCE_SECONDS
        for reply in self._exchange.replies(sent, until, size):
            place = places.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                raise SalfError(f"client {tasks.clients[place]} failed on Flower: {reply.error.reason}")
            try:
                running.add(read_reply(reply.content, self._layers, weights).update, place)
                accepted[place] = True
            except InvalidUpdate:
                continue
        if places:
            raise SalfError(f"{len(places)} clients have not replied within {_PATIENCE_SECONDS:.0f} s")
        return accepted


def _client_app(experiment: Experiment) -> ClientApp:
    """Return the app of a client, which builds the experiment's model and data once in each process."""
    app = ClientApp()
    settings = replace(experiment, engine="plain").to_toml()

    @app.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001 - what Flower calls
        arrays = message.content.array_records["arrays"]
        task, layers = _read_task(message.content.config_records["task"])
        weights = from_record(arrays)
        (update,) = _trainer(settings).updates(weights, [task])
        sent, record = write_reply(update, ClientReport(), layers, arrays, {}, whole=False)
        return Message(RecordDict({"arrays": sent, "metrics": record}), reply_to=message)

    return app


@functools.lru_cache(maxsize=1)
def _trainer(settings: str) -> PlainEngine:
    engine = Simulation(Experiment.parse(tomllib.loads(settings), "the experiment")).federation.engine
    if not isinstance(engine, PlainEngine):
        raise SalfError("a client on Flower trains by the plain engine")
    return engine


def _write_task(task: ClientTask, layers: Layers) -> ConfigRecord:
    return ConfigRecord(
        {
            "client": task.client,
            "steps": task.steps.tolist(),
            "batches": task.batches.ravel().tolist(),
            "local-steps": len(task.batches),
            "num-examples": task.num_examples,
            "proximal": task.proximal,
            "seed": str(task.seed),  # 63 bits and more are no trouble for text
            "layers": layers_to_json(layers),
        }
    )


def _read_task(record: ConfigRecord) -> tuple[ClientTask, Layers]:
    local_steps = record["local-steps"]
    task = ClientTask(
        int(str(record["client"])),
        np.array(record["steps"], dtype=np.int64),
        np.array(record["batches"], dtype=np.int64).reshape(int(str(local_steps)), -1),
        int(str(record["num-examples"])),
        int(str(record["seed"])),
        float(str(record["proximal"])),
    )
    return task, layers_from_json(str(record["layers"]))


@contextmanager
def _errors_only() -> Iterator[None]:
    """Let Flower print nothing but errors: the command that was called tells of the run."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
