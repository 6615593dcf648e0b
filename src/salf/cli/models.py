"""Models that are named on the command line: those of experiments, and the user's own with an example."""

from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from salf.data import load
from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.models import build

Shape = Annotated[
    str | None,
    typer.Option(metavar="N,…", help="Shape of one example, without the batch, such as 3,32,32."),
]
Integers = Annotated[bool, typer.Option("--integers", help="Examples are whole numbers, such as tokens.")]
Group = Annotated[
    str, typer.Option(metavar="NAME,…", help="Modules that shall be one layer each, with all that is in them.")
]


def model_of(experiment: Experiment) -> tuple[nn.Module, Tensor]:
    """Build an experiment's model; return it with two examples of its data."""
    dataset = load(experiment.data.name, experiment.data.root)
    network = build(experiment.model, dataset.input_shape, dataset.num_classes, experiment.seed)
    return network, dataset.inputs[:2]


def example_of(shape: str, *, integers: bool) -> Tensor:
    """Make a batch of two examples of a shape such as "3,32,32", all zeros."""
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


def groups_of(text: str) -> list[str] | None:
    """Return the module names in a list such as "body, head"; None where there are none."""
    return [name.strip() for name in text.split(",") if name.strip()] or None
