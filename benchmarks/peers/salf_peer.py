"""The work in salf's simulator, which draws the batches of the workload itself."""

from collections.abc import Callable

from workload import LEARNING_RATE, Outcome, Workload

import salf

PACKAGES = ("salf", "torch")


def train(workload: Workload, lap: Callable[[], None]) -> Outcome:
    """Simulate federated averaging; the last round is evaluated on the training data."""
    rounds = workload.rounds
    settings = {
        "rounds": rounds,
        "seed": 0,
        "data": {"name": "tensors", "clients": workload.clients},
        "client": {"batch_size": workload.batch_size, "lr": LEARNING_RATE},
        "devices": {"kind": "uniform", "stragglers": 0.0},
        "method": {"name": "fedavg"},
        "evaluate": {"every": rounds},
    }
    experiment = salf.Experiment.parse(settings, "the benchmark's settings")
    examples = (workload.inputs, workload.labels)
    dataset = salf.Dataset.from_tensors(*examples, *examples)
    outcome = None
    for record in salf.simulate(experiment, model=workload.network(), dataset=dataset):
        lap()
        if record.accuracy is not None and record.loss is not None:
            outcome = Outcome(record.loss, record.accuracy, f"{record.engine} engine")
    if outcome is None:
        raise RuntimeError("the last round was not evaluated")
    return outcome
