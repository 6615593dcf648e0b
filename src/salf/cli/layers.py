"""`salf layers`: the layers of a model, between which a deadline can cut."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from salf.cli.console import plain_table, print_json, show, tell
from salf.cli.models import ExampleShape, GroupedModules, IntegerExample, example_of, groups_of, model_of
from salf.cli.options import AsJson, Settings, parse_settings
from salf.cli.quantities import counted, percent
from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.layers import Layers, find_layers, measure_costs
from salf.models import Factory, build
from salf.values import LayerCosts


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
    found = find_layers(network, example, groups_of(group))
    costs = None if example is None else measure_costs(network, example, found)
    if as_json:
        print_json(_layers_json(network, found, costs))
    else:
        show(_layers_table(network, found, costs))
        if costs is None:
            tell("The order is that of declaration; pass --example-shape 3,32,32 to observe it and count operations.")


def _named_model(named: str, overrides: dict[str, object]) -> tuple[nn.Module, Tensor | None]:
    """Build a user's model, or that of an experiment with an example of its data."""
    if ":" in named:
        if overrides:
            raise InvalidSetting(
                f"--set changes the settings of an experiment, but {named} is a model of your own; remove --set"
            )
        return build(Factory(call=named), (), 2, seed=0), None
    return model_of(Experiment.load(named, **overrides))


def _layer_rows(network: nn.Module, found: Layers, costs: LayerCosts | None) -> list[dict[str, object]]:
    """Return the figures of each layer; shares are of the operations of the whole backward pass."""
    tensors = dict(network.state_dict(keep_vars=True))
    rows: list[dict[str, object]] = []
    for index, layer in enumerate(found):
        sizes = [tensors[name] for name in layer.parameters]
        row: dict[str, object] = {
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


def _layers_json(network: nn.Module, found: Layers, costs: LayerCosts | None) -> dict[str, object]:
    """Return what JSON can hold of a model's layers."""
    return {
        "layers": _layer_rows(network, found, costs),
        "forward_flops": None if costs is None else costs.forward,
        "unused": list(found.unused),
        "aliases": dict(found.aliases),
        "order": "declared" if costs is None else "observed",
    }


def _layers_table(network: nn.Module, found: Layers, costs: LayerCosts | None) -> Table:
    """Return the table of layers, without operations where no example was given."""
    forward = "" if costs is None else f", forward pass {_engineering(costs.forward)}FLOP per example"
    counts = "" if costs is None else "backward FLOP: operations per example; complete after: of the backward pass"
    unused = f"no gradient reaches {', '.join(found.unused)}: clients never send them" if found.unused else ""
    table = plain_table(
        f"{type(network).__name__}: {counted(len(found), 'layer')}, input to output{forward}",
        ["layer", "parameters", "bytes", *(["backward FLOP", "share", "complete after"] if costs is not None else [])],
        caption="\n".join(filter(None, (counts, unused))),
    )
    for row in _layer_rows(network, found, costs):
        cells = [str(row["layer"]), f"{row['parameters']:,}", f"{row['bytes']:,}"]
        if costs is not None:
            shares = [float(str(row[key])) for key in ("share", "complete_after")]
            cells += [_engineering(float(str(row["backward_flops"]))), *(percent(share) for share in shares)]
        table.add_row(*map(Text, cells))
    return table


def _engineering(number: float) -> str:
    """Write a number with three digits and a unit prefix, the last of them for the unit.

    >>> _engineering(1234567), _engineering(12)
    ('1.23 M', '12 ')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.3g} "
