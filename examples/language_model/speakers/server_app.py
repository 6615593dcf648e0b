"""The server app."""

import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam

from salf.flower import SalfStrategy
from salf.integrations.peft import adapter_state, find_adapter_layers, load_adapter_state
from speakers.task import CONTEXT, DEVICES, HELD_OUT, load_model, perplexity, read_speakers

WAITS = 600.0  # seconds: a deadline that no device misses

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the adapter for several rounds, and print the perplexities after each."""
    torch.set_num_threads(1)
    config = context.run_config
    model, speakers = load_model(Path(config["base"]), config["seed"]), read_speakers(Path(config["text"]))
    example = torch.zeros(1, CONTEXT, dtype=torch.long)
    nodes = len(DEVICES)
    # The clients' step size does not matter: Adam, on the server, divides by the size of the mean update.
    strategy = FedAdam(
        fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, eta=1e-3, tau=1e-7, beta_2=0.99
    )
    deadline = WAITS if config["method"] == "wait" else config["deadline-seconds"]
    strategy = SalfStrategy(
        strategy,
        deadline=deadline,
        layers=find_adapter_layers(model, {"input_ids": example, "labels": example}),
        counted_from="loop",
        grace_seconds=config["grace-seconds"],
    )
    trained, since = 0.0, time.monotonic()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Test the global model on what each speaker says later.

        Neither this time counts, nor that of the first round, in which the clients' processes start.
        """
        nonlocal trained, since
        trained += time.monotonic() - since if server_round > 1 else 0.0
        load_adapter_state(model, arrays.to_torch_state_dict())
        found = {name: perplexity(model, speakers[name][-HELD_OUT:]) for name in DEVICES}
        print("RESULT", json.dumps({"round": server_round, "seconds": trained, "perplexity": found}), flush=True)
        since = time.monotonic()
        return MetricRecord({"perplexity": sum(found.values()) / nodes})

    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(adapter_state(model)),
        num_rounds=config["num-server-rounds"],
        train_config=ConfigRecord({"lr": 1.0}),
        evaluate_fn=evaluate,
    )
