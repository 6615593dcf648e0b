"""The server app."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits.task import Net, load_test_data, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the model for several rounds."""
    torch.manual_seed(0)
    model = Net()
    nodes = context.run_config["nodes"]
    share = context.run_config["fraction-evaluate"]
    strategy = FedAvg(fraction_evaluate=share, min_train_nodes=nodes, min_available_nodes=nodes)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        timeout=context.run_config["deadline-seconds"],
        train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}),
        evaluate_fn=evaluate,
    )


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Test the global model on the digits of all nodes."""
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(model, load_test_data(), torch.device("cuda:0" if torch.cuda.is_available() else "cpu"))
    print(f"round {server_round}: accuracy {accuracy:.4f}", flush=True)
    return MetricRecord({"loss": loss, "accuracy": accuracy})
