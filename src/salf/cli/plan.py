"""`salf plan`: which deadline to choose, before the first round."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from torch import Tensor, nn

from salf.cli.console import counted, print_json, show, tell
from salf.cli.layers import ExampleShape, GroupedModules, IntegerExample, example_of, model_of
from salf.cli.options import AsJson, Named, Settings, names_in, option, parse_settings, path_option, positive_numbers
from salf.cli.plan_tables import advice, plan_json, plan_tables
from salf.devices import Workload
from salf.errors import InvalidSetting
from salf.experiment import Experiment, did_you_mean
from salf.layers import find_layers, measure_costs
from salf.models import Factory, build
from salf.planning import ASSUMED, STEPS, Fleet, MeasuredTimes, Task, make_plan, read_times
from salf.report import plot_deadlines, save_figure
from salf.theory import Constants

OwnModel = Annotated[
    str | None, option("MODULE:CALLABLE", "A model of your own in place of the experiment's.", "--model")
]
TimesFile = Annotated[
    Path | None, path_option("FILE.csv", "Measured times in place of a device model: client,seconds in each row.")
]
TimeBudget = Annotated[
    float | None, option("S", "Virtual time to spend; by default what the experiment's rounds would take.")
]
DeadlineList = Annotated[str, option("S,…", "Consider these deadlines only, in seconds.")]
ConstantList = Annotated[
    list[str] | None, option("NAME=VALUE", f"A constant of the bound: {', '.join(ASSUMED)}.", "--constant")
]
StepSizes = Annotated[str, option("NAME", f"How step sizes fall: {', '.join(STEPS)}.")]
PlotFile = Annotated[Path | None, path_option("FILE", "Draw the plan into this file, .png or .svg.")]


def plan_command(
    experiment: Named = "digits",
    settings: Settings = None,
    model: OwnModel = None,
    example_shape: ExampleShape = None,
    integers: IntegerExample = False,
    group: GroupedModules = "",
    times: TimesFile = None,
    budget: TimeBudget = None,
    deadlines: DeadlineList = "",
    constants: ConstantList = None,
    steps: StepSizes = "adel",
    out: PlotFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the effect of each deadline on a model and its devices, and recommend one.

    The experiment says which clients take part and on which devices; if none is named, it is digits. --model with
    --example-shape puts a model of your own in its place, --times the measured times of real clients.

    For example: salf plan digits --set devices.kind=physical --budget 600 --out plan.svg
    """
    if out is not None and out.suffix not in (".png", ".svg"):
        raise InvalidSetting(f"--out is '{out}'; name a file that ends in .png or .svg")
    wanted, known = positive_numbers("--deadlines", deadlines, "0.5,1,2"), _constants(constants or [])
    overrides = parse_settings(settings)
    chosen = Experiment.load(experiment, **overrides)
    network, example = _model(chosen, overrides, model, example_shape, integers=integers)
    layers = find_layers(network, example, names_in(group) or None)
    workload = Workload(measure_costs(network, example, layers), chosen.client.local_steps)
    measured = None if times is None else read_times(times, layers.names, workload)
    fleet = _fleet(chosen, overrides, workload, measured)
    own = getattr(chosen.method, "deadline", None)
    own = own if isinstance(own, float) and times is None else fleet.devices.typical_seconds(fleet.workload)
    made = make_plan(fleet, _task(fleet, known, budget, steps, chosen.rounds, own), own, wanted)
    name = f"{model or chosen.name} on {times or chosen.devices.kind}"
    if out is not None:
        save_figure(plot_deadlines(made.outlooks, layers.names, made.best.deadline_seconds, name), out)
    if as_json:
        print_json(plan_json(name, layers.names, fleet, own, made))
        return
    for table in plan_tables(name, layers.names, fleet, own, made):
        show(table)
    for line in advice(layers.names, made):
        tell(line)
    if out is not None:
        tell(f"plot: {out}")


def _model(
    experiment: Experiment, overrides: dict[str, object], named: str | None, shape: str | None, *, integers: bool
) -> tuple[nn.Module, Tensor]:
    """Return the model to plan for, with an example of its input.

    Args:
        experiment: Whose model and data are used if no other model is named.
        overrides: The settings of `--set`; none of them may be about the model if one is named.
        named: MODULE:CALLABLE, a model of the user's own.
        shape: The shape of its input, such as "3,32,32".
        integers: Whether its input is of integers.

    Raises:
        InvalidSetting: The options contradict each other, or the shape is missing.
    """
    if named is None:
        if shape is not None or integers:
            raise InvalidSetting(
                "--example-shape and --integers describe a model of your own; add --model MODULE:CALLABLE"
            )
        return model_of(experiment)
    if shape is None:
        raise InvalidSetting(f"--model {named} needs the shape of an input; add --example-shape, such as 3,32,32")
    settings = [key for key in overrides if key.split(".")[0] == "model"]
    if settings:
        raise InvalidSetting(f"--set {settings[0]} and --model both choose the model; give only one")
    return build(Factory(call=named), (), 2, seed=0), example_of(shape, integers=integers)


def _fleet(
    experiment: Experiment, overrides: dict[str, object], workload: Workload, measured: MeasuredTimes | None
) -> Fleet:
    """Return the clients and their devices: the experiment's, or those that were measured.

    Args:
        experiment: Whose clients and devices are used if no times were measured.
        overrides: The settings of `--set`; none of them may be about the clients if times were measured.
        workload: What a client computes in a round.
        measured: The times of real clients.

    Raises:
        InvalidSetting: The options contradict each other, or a cohort has more clients than were measured.
    """
    asked, population = experiment.client.cohort, experiment.data.clients
    if measured is None:
        return Fleet(experiment.devices, workload, population, asked or population, experiment.seed)
    for key in overrides:
        if key == "data.clients" or key.split(".")[0] == "devices":
            raise InvalidSetting(f"--set {key} and --times both choose the clients; give only one")
    population = measured.num_clients
    if asked is not None and asked > population:
        clients = counted(population, "client")
        raise InvalidSetting(f"client.cohort is {asked}, but --times has {clients}; choose a smaller cohort")
    return Fleet(measured, workload, population, asked or population, experiment.seed)


def _task(
    fleet: Fleet, known: dict[str, float], budget: float | None, steps: str, rounds: int, deadline: float
) -> Task:
    """Return the task; by default its time is what the experiment's rounds take with their own deadline.

    Args:
        fleet: The clients and their devices.
        known: Constants of the bound that the user gave, by name; others are assumed.
        budget: The virtual time to spend, in seconds; None for what the experiment's rounds take.
        steps: How step sizes fall, one of `STEPS`.
        rounds: The experiment's number of rounds.
        deadline: Its own deadline, in seconds.

    Raises:
        InvalidSetting: A value is not allowed.
    """
    if steps not in STEPS:
        raise InvalidSetting(f"--steps is '{steps}'{did_you_mean(steps, STEPS)}; choose one of {', '.join(STEPS)}")
    if budget is not None and not 0 < budget < math.inf:
        raise InvalidSetting(f"--budget is {budget:g}; give a positive number of seconds")
    values = {**ASSUMED, **known}
    initial_error = values.pop("initial_error")
    try:
        constants = Constants(num_clients=fleet.asked, **values)
    except ValueError as error:
        raise InvalidSetting(f"--constant: {error}") from error
    time = rounds * fleet.rounds.round_seconds(deadline) if budget is None else budget
    return Task(constants, initial_error, time, steps)


def _constants(pairs: Sequence[str]) -> dict[str, float]:
    """Read NAME=VALUE pairs.

    Args:
        pairs: The values of all `--constant` options.

    Raises:
        InvalidSetting: A name is unknown, or a value is not a number of at least 0.
    """
    given: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in ASSUMED:
            hint = did_you_mean(name, [*ASSUMED])
            raise InvalidSetting(f"--constant names '{name}'{hint}; choose one of {', '.join(ASSUMED)}")
        try:
            given[name] = float(text)
        except ValueError:
            given[name] = math.nan
        if not 0 <= given[name] < math.inf:
            raise InvalidSetting(f"--constant {name} is '{text}'; give a number of at least 0")
    return given
