"""Models that are named on the command line: those of experiments, and a user's own with an example."""

from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from salf.cli.options import option
from salf.data import load
from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.models import build

ExampleShape = Annotated[
    str | None, option("N,…", "Shape of one example, without the batch dimension, such as 3,32,32.")
]
IntegerExample = Annotated[bool, typer.Option("--integers", help="Examples are integers, such as tokens.")]
GroupedModules = Annotated[str, option("NAME,…", "Modules that count as one layer each, with everything inside.")]


def model_of(experiment: Experiment) -> tuple[nn.Module, Tensor]:
    """Build an experiment's model; return it with two examples of its data, shape (2, …)."""
    dataset = load(experiment.data.name, experiment.data.root)
    network = build(experiment.model, dataset.input_shape, dataset.num_classes, experiment.seed)
    return network, dataset.inputs[:2]


def example_of(shape: str, *, integers: bool) -> Tensor:
    """Make a batch of two examples, all zeros.

    Args:
        shape: The shape of one, such as "3,32,32".
        integers: Whether values are of type int64 instead of float32.

    >>> tuple(example_of("3,32,32", integers=False).shape)
    (2, 3, 32, 32)
    """
    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise InvalidSetting(f"--example-shape is '{shape}'; give whole numbers of at least 1, such as 3,32,32")
    try:
        return torch.zeros(2, *sizes, dtype=torch.int64 if integers else torch.float32)
    except (RuntimeError, TypeError) as error:  # too much memory, or too large a number
        raise InvalidSetting(
            f"--example-shape is '{shape}', which does not fit into memory; give a smaller one"
        ) from error
