"""A server that keeps its rounds in a folder, and the final model beside them."""

from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import save_file

from deployed.task import a_model
from salf.flower import SalfStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds."""
    model, layers = a_model()
    settings = context.run_config
    nodes = int(settings["nodes"])
    strategy = SalfStrategy(
        FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes),
        deadline=float(settings["deadline-seconds"]),
        grace_seconds=float(settings["grace-seconds"]),
        layers=layers,
        folder=str(settings["folder"]),
    )
    result = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=int(settings["num-server-rounds"]))
    save_file(result.arrays.to_torch_state_dict(), Path(str(settings["folder"])) / "model.safetensors")
