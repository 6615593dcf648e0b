"""`salf layers`: the layers of a model, between which a deadline can cut.

Also the models that other commands name: those of experiments, and a user's own with an example of its input.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor, nn

from salf.cli.console import counted, percent, print_json, show, table_of, tell
from salf.cli.options import AsJson, Settings, names_in, option, parse_settings
from salf.data import load
from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.layers import Layers, find_layers, measure_costs
from salf.models import Factory, build
from salf.values import LayerCosts

ExampleShape = Annotated[
    str | None, option("N,…", "Shape of one example, without the batch dimension, such as 3,32,32.")
]
IntegerExample = Annotated[bool, typer.Option("--integers", help="Examples are integers, such as tokens.")]
GroupedModules = Annotated[str, option("NAME,…", "Modules that count as one layer each, with everything inside.")]


def layers_command(
    model: Annotated[str, typer.Argument(metavar="MODULE:CALLABLE", show_default=False)],
    settings: Settings = None,
    example_shape: ExampleShape = None,
    integers: IntegerExample = False,
    group: GroupedModules = "",
    as_json: AsJson = False,
) -> None:
    """List a model's layers, from input to output.

    For each: parameters, bytes, operations, and its share of the backward pass. MODULE:CALLABLE or FILE.py:CALLABLE
    builds the model, without arguments; a preset or an experiment file stands for its own model.

    With the shape of an example, the order is observed and operations are counted; without it, the order is that of
    declaration.

    For example: salf layers torchvision.models:resnet18 --example-shape 3,32,32
    """
    network, example = _named_model(model, parse_settings(settings))
    if example_shape is not None:
        example = example_of(example_shape, integers=integers)
    found = find_layers(network, example, names_in(group) or None)
    costs = None if example is None else measure_costs(network, example, found)
    rows = _layer_rows(network, found, costs)
    if as_json:
        forward, order = (None, "declared") if costs is None else (costs.forward, "observed")
        aside = {"unused": [*found.unused], "aliases": {**found.aliases}, "order": order}
        print_json({"layers": rows, "forward_flops": forward, **aside})
        return
    show(_layers_table(type(network).__name__, rows, found, costs))
    if costs is None:
        tell("The order is that of declaration; pass --example-shape 3,32,32 to observe it and count operations.")


def _named_model(named: str, overrides: dict[str, object]) -> tuple[nn.Module, Tensor | None]:
    """Build a user's model, or that of an experiment with an example of its data.

    Args:
        named: MODULE:CALLABLE or FILE.py:CALLABLE; or a preset or an experiment file.
        overrides: Settings of the experiment; a model of the user's own has none.

    Returns:
        The model and an example, shape (2, …); None in place of the example for a model of the user's own.

    Raises:
        InvalidSetting: The model cannot be built, or settings are given for a model of the user's own.
    """
    if ":" in named:
        if overrides:
            raise InvalidSetting(
                f"--set changes an experiment's settings, but {named} is a model of your own; remove it"
            )
        return build(Factory(call=named), (), 2, seed=0), None
    return model_of(Experiment.load(named, **overrides))


def _layer_rows(network: nn.Module, found: Layers, costs: LayerCosts | None) -> list[dict[str, Any]]:
    """Return the figures of each layer; shares are of the operations of the whole backward pass.

    Args:
        network: The model.
        found: Its layers, input to output.
        costs: Their operations; None if no example is known, and then rows have no figures of operations.
    """
    tensors = dict(network.state_dict(keep_vars=True))
    rows = []
    for index, layer in enumerate(found):
        sizes = [tensors[name] for name in layer.parameters]
        row: dict[str, Any] = {
            "layer": layer.name,
            "parameters": sum(tensor.numel() for tensor in sizes),
            "bytes": sum(tensors[name].nbytes for name in (*layer.parameters, *layer.buffers)),
        }
        if costs is not None:
            backward = sum(costs.backward) or 1.0
            row["backward_flops"] = costs.backward[index]
            row["share"] = costs.backward[index] / backward
            row["complete_after"] = sum(costs.backward[index:]) / backward
        rows.append(row)
    return rows


def _layers_table(model: str, rows: list[dict[str, Any]], found: Layers, costs: LayerCosts | None) -> Table:
    """Return the table of layers, without operations where no example was given.

    Args:
        model: The model's name, for the title.
        rows: What `_layer_rows` returned.
        found: The layers; the caption names parameters that are not used.
        costs: The operations, if they are known.
    """
    forward = "" if costs is None else f", forward pass {_engineering(costs.forward)}FLOP per example"
    counts = "" if costs is None else "backward FLOP: operations per example; complete after: of the backward pass"
    unused = f"no gradient reaches {', '.join(found.unused)}: clients never send them" if found.unused else ""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "layer": lambda row: str(row["layer"]),
        "parameters": lambda row: f"{row['parameters']:,}",
        "bytes": lambda row: f"{row['bytes']:,}",
    }
    if costs is not None:
        columns["backward FLOP"] = lambda row: _engineering(row["backward_flops"])
        columns["share"] = lambda row: percent(row["share"])
        columns["complete after"] = lambda row: percent(row["complete_after"])
    title = f"{model}: {counted(len(found), 'layer')}, input to output{forward}"
    caption = "\n".join(filter(None, (counts, unused)))
    return table_of(title, columns, rows, caption=caption)


def _engineering(number: float) -> str:
    """Write a number with three digits and a unit prefix, the last of them for the unit.

    >>> _engineering(1234567), _engineering(12)
    ('1.23 M', '12 ')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.3g} "


def model_of(experiment: Experiment) -> tuple[nn.Module, Tensor]:
    """Build an experiment's model; return it with two examples of its data, shape (2, …).

    Raises:
        DataUnavailable: The data, which the shape of an input comes from, are not there.
    """
    dataset = load(experiment.data.name, experiment.data.root)
    network = build(experiment.model, dataset.input_shape, dataset.num_classes, experiment.seed)
    return network, dataset.inputs[:2]


def example_of(shape: str, *, integers: bool) -> Tensor:
    """Make a batch of two examples, all zeros.

    Args:
        shape: The shape of one, such as "3,32,32".
        integers: Whether values are of type int64 instead of float32.

    Raises:
        InvalidSetting: The shape is not one, or too large.

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
        raise InvalidSetting(f"--example-shape is '{shape}', which does not fit into memory; reduce it") from error
