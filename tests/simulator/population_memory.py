"""Plays three rounds in a process of its own and prints its largest memory in MiB, for `test_populations`.

python population_memory.py CLIENTS COHORT MODEL SIDE EXAMPLES
"""

import resource
import sys

import torch

from salf.data import Dataset
from salf.experiment import Experiment
from salf.simulation import Simulation


def main(clients: int, cohort: int, model: str, side: int, examples: int) -> None:
    torch.set_num_threads(1)  # other tests use the other cores
    inputs, labels = torch.randn(examples, 1, side, side), torch.arange(examples) % 10
    dataset = Dataset.from_tensors(inputs, labels, inputs[:20], labels[:20])
    settings = {
        "rounds": 3,
        "data.name": "tensors",
        "data.partition": "iid",
        "data.clients": clients,
        "client.cohort": cohort,
        "model.name": model,
    }
    simulation = Simulation(Experiment.load("digits", **settings), dataset=dataset)
    state = simulation.initial_state()
    for _ in range(3):
        state, _record = simulation.play(state)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
