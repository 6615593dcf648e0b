"""The work in Apple's pfl: its simulated backend and `FederatedAveraging`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend  # type: ignore[import-not-found, unused-ignore]
from pfl.algorithm.base import NNAlgorithmParams  # type: ignore[import-not-found, unused-ignore]
from pfl.algorithm.federated_averaging import FederatedAveraging  # type: ignore[import-not-found, unused-ignore]
from pfl.callback.base import TrainingProcessCallback  # type: ignore[import-not-found, unused-ignore]
from pfl.data.federated_dataset import FederatedDataset  # type: ignore[import-not-found, unused-ignore]
from pfl.data.pytorch import PyTorchTensorDataset  # type: ignore[import-not-found, unused-ignore]
from pfl.data.sampling import get_user_sampler  # type: ignore[import-not-found, unused-ignore]
from pfl.hyperparam.base import NNTrainHyperParams  # type: ignore[import-not-found, unused-ignore]
from pfl.metrics import Metrics, Weighted  # type: ignore[import-not-found, unused-ignore]
from pfl.model.pytorch import PyTorchModel  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor, nn
from workload import LEARNING_RATE, Outcome, Workload

PACKAGES = ("pfl", "torch")


class _Network(nn.Module):
    """The network with the two methods that pfl requires."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss to minimise."""
        return nn.functional.cross_entropy(self.network(inputs), labels)

    def metrics(self, inputs: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return the loss as a metric; pfl evaluates in the first round, which is not timed."""
        with torch.no_grad():
            return {"loss": Weighted(float(self.loss(inputs, labels)) * len(labels), len(labels))}


class _Clock(TrainingProcessCallback):  # type: ignore[misc, unused-ignore]
    """Ends a lap after each round."""

    def __init__(self, lap: Callable[[], None]) -> None:
        self._lap = lap

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """End a lap; never stop the training."""
        self._lap()
        return False, Metrics()


def train(workload: Workload, lap: Callable[[], None]) -> Outcome:
    """Run federated averaging; a user's data set is the batch of the round."""
    np.random.seed(0)  # noqa: NPY002 - the generator that pfl draws its seeds from
    network = _Network(workload.network())
    model = PyTorchModel(
        network, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0)
    )
    drawn = 0

    def make_dataset(client: int) -> PyTorchTensorDataset:
        nonlocal drawn
        number, drawn = drawn // workload.clients, drawn + 1
        return PyTorchTensorDataset(workload.batch(number, client), user_id=str(client))

    users = FederatedDataset(make_dataset, get_user_sampler("minimize_reuse", [*range(workload.clients)]))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=workload.rounds,
            evaluation_frequency=workload.rounds,
            train_cohort_size=workload.clients,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=users, val_data=users),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=workload.batch_size),
        callbacks=[_Clock(lap)],
        send_metrics_to_platform=False,
    )
    return workload.test(network.network)
