"""The work by Flower's simulation engine: its own `FedAvg`, and one actor for every `--threads` cores.

The functions for clients live in an importable module, so that the actors keep the data and the network in memory from
round to round.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict  # type: ignore[import-not-found, unused-ignore]
from flwr.clientapp import ClientApp  # type: ignore[import-not-found, unused-ignore]
from flwr.serverapp import Grid, ServerApp  # type: ignore[import-not-found, unused-ignore]
from flwr.serverapp.strategy import FedAvg  # type: ignore[import-not-found, unused-ignore]
from flwr.simulation import run_simulation  # type: ignore[import-not-found, unused-ignore]
from torch import nn
from workload import LEARNING_RATE, Outcome, Workload, local_step

PACKAGES = ("flwr", "ray", "torch")


def train(workload: Workload, lap: Callable[[], None]) -> Outcome:
    """Run the simulation; the server's evaluation function, called after each round, only looks at the clock."""
    model = workload.network()
    threads = torch.get_num_threads()

    def clock(round: int, _: ArrayRecord) -> None:
        if round:
            lap()

    def serve(grid: Grid, _: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=workload.clients, min_available_nodes=workload.clients)
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(model.state_dict()),
            num_rounds=workload.rounds,
            train_config=ConfigRecord({"workload": str(workload.path), "threads": threads}),
            evaluate_fn=clock,
        )
        model.load_state_dict(result.arrays.to_torch_state_dict())

    server, client = ServerApp(), ClientApp()
    server.main()(serve)
    client.train()(_train_client)
    run_simulation(
        server, client, workload.clients, backend_config={"client_resources": {"num_cpus": threads, "num_gpus": 0.0}}
    )
    return workload.test(model)


def _train_client(message: Message, context: Context) -> Message:
    config = message.content["config"]
    torch.set_num_threads(config["threads"])
    workload, model = _prepared(config["workload"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    batch = workload.batch(config["server-round"] - 1, context.node_config["partition-id"])
    local_step(model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE), batch)
    answer = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": workload.batch_size})}
    return Message(content=RecordDict(answer), reply_to=message)


@lru_cache(maxsize=1)
def _prepared(path: str) -> tuple[Workload, nn.Module]:
    workload = Workload.read(Path(path))
    return workload, workload.network()
