"""`salf layers`: what a deadline can cut a model into."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from salf.cli.console import AsJson, Settings, counted, parse_settings, percent, print_json, show, tell
from salf.cli.models import Group, Integers, Shape, example_of, groups_of, model_of
from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.layers import Layers, find_layers, measure_costs
from salf.models import Factory, build
from salf.values import LayerCosts


def layers(
    model: Annotated[str, typer.Argument(metavar="MODULE:CALLABLE", show_default=False)],
    settings: Settings = None,
    example_shape: Shape = None,
    integers: Integers = False,
    group: Group = "",
    as_json: AsJson = False,
) -> None:
    """List a model's layers, from input to output: parameters, bytes, operations, share of the backward pass.

    MODULE:CALLABLE or FILE.py:CALLABLE builds the model, without arguments; an experiment stands for its own model.

    With the shape of an example the order is observed and operations are counted; otherwise it is that of declaration.

    For example: salf layers torchvision.models:resnet18 --example-shape 3,32,32
    """
    network, example = _build(model, parse_settings(settings))
    if example_shape is not None:
        example = example_of(example_shape, integers=integers)
    found = find_layers(network, example, groups_of(group))
    costs = None if example is None else measure_costs(network, example, found)
    if as_json:
        print_json(_as_object(network, found, costs))
    else:
        show(_table(network, found, costs))
        if costs is None:
            tell("The order is that of declaration; --example-shape 3,32,32 observes it and counts operations.")


def _build(named: str, overrides: dict[str, object]) -> tuple[nn.Module, Tensor | None]:
    """Build the user's model, or that of a preset with an example of its data."""
    if ":" in named:
        if overrides:
            raise InvalidSetting("--set changes an experiment's settings, but a model of your own was named")
        return build(Factory(call=named), (), 2, seed=0), None
    return model_of(Experiment.load(named, **overrides))


def _rows(network: nn.Module, found: Layers, costs: LayerCosts | None) -> list[dict[str, object]]:
    """Describe each layer; shares are of the operations of the whole backward pass."""
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


def _as_object(network: nn.Module, found: Layers, costs: LayerCosts | None) -> dict[str, object]:
    return {
        "layers": _rows(network, found, costs),
        "forward_flops": None if costs is None else costs.forward,
        "unused": list(found.unused),
        "aliases": dict(found.aliases),
        "order": "declared" if costs is None else "observed",
    }


def _table(network: nn.Module, found: Layers, costs: LayerCosts | None) -> Table:
    forward = "" if costs is None else f", forward pass {_engineering(costs.forward)}FLOP per example"
    table = Table(title=Text(f"{type(network).__name__}: {counted(len(found), 'layer')}, input to output{forward}"))
    table.add_column("layer", style="bold")
    headings = ["parameters", "bytes"]
    if costs is not None:
        headings += ["backward FLOP", "share", "complete after"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in _rows(network, found, costs):
        cells = [str(row["layer"]), f"{row['parameters']:,}", f"{row['bytes']:,}"]
        if costs is not None:
            shares = [float(str(row[key])) for key in ("share", "complete_after")]
            cells += [_engineering(float(str(row["backward_flops"]))), *(percent(share) for share in shares)]
        table.add_row(*map(Text, cells))
    if found.unused:
        table.caption = Text(f"no gradient reaches {', '.join(found.unused)}: never conveyed, never changed")
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
