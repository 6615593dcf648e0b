"""Methods, rules and device models of users: registered, or given as values."""

import copy
import pickle
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from language import problems_of
from pydantic import Field
from simulator_cases import small_data, small_experiment

import salf
from salf.aggregation import RULES, AnyRule, Corrected, LayerShare
from salf.devices import DEVICES, GradedSpeeds
from salf.errors import InvalidSetting
from salf.experiment import ClientSettings, Experiment, reasons_in
from salf.methods import METHODS, DropStragglers, LayerWise, Salf
from salf.values import Positive, validated

HERE = __name__


class Halved(Corrected):
    """A subclass that keeps the name of its base, and has no decorator of its own."""

    def factor(self, share: LayerShare) -> float:
        return super().factor(share) / 2


class Strict(DropStragglers):
    pass


class Still(GradedSpeeds):
    pass


@validated
class Mine(LayerWise):
    name: Literal["mine"] = "mine"
    strength: Positive = 1.0

    @property
    def aggregation_rule(self) -> salf.Rule:
        return Corrected()


@validated
class WithFunction(LayerWise):
    name: Literal["with-function"] = "with-function"
    scale: Callable[[float], float] = abs

    @property
    def aggregation_rule(self) -> salf.Rule:
        return Corrected()


@pytest.fixture
def registered() -> None:
    """Register the classes for one test."""
    salf.register(Mine)
    salf.register(WithFunction)


@pytest.mark.parametrize(
    ("overrides", "kept", "reasons"),
    [
        ({"method.rule": Halved()}, Salf(rule=Halved()), ("method.rule was given in Python: {}:Halved",)),
        ({"method": Salf(rule=Halved())}, Salf(rule=Halved()), ("method.rule was given in Python: {}:Halved",)),
        ({"method": {"rule": Halved()}}, Salf(rule=Halved()), ("method.rule was given in Python: {}:Halved",)),
        ({"method": Strict(deadline=3.0)}, Strict(deadline=3.0), ("method was given in Python: {}:Strict",)),
        ({"method": Mine()}, Mine(), ("method was given in Python: {}:Mine",)),
        ({"devices": Still(seconds=2.0)}, Salf(), ("devices was given in Python: {}:Still",)),
        ({"data.name": "tensors"}, Salf(), ("data was given in Python",)),
        ({}, Salf(), ()),
    ],
)
def test_values_given_in_python_are_kept_and_named(
    overrides: dict[str, Any], kept: salf.Method, reasons: tuple[str, ...]
) -> None:
    experiment = Experiment.load("digits", **overrides)
    assert experiment.method == kept
    assert type(experiment.method) is type(kept)
    assert type(getattr(experiment.method, "rule", None)) is type(getattr(kept, "rule", None))
    assert isinstance(overrides.get("devices", experiment.devices), type(experiment.devices))
    assert experiment.unreproducible() == tuple(reason.format(HERE) for reason in reasons)
    assert reasons_in(experiment.to_toml()) == experiment.unreproducible()
    assert Experiment.load("digits", **overrides).to_toml() == experiment.to_toml()


@dataclass(frozen=True, kw_only=True)
class Plain(Salf):
    """A class that no pydantic decorator has seen."""

    name: Literal["plain"] = "plain"  # type: ignore[assignment]  # - another name than that of the base
    anything: object = field(default_factory=object)


@validated
class WithRule(Mine):
    rule: AnyRule = Field(default_factory=Corrected)


@dataclass(frozen=True)
class PlainWithRule(WithRule):
    """A plain dataclass that inherits a default which only pydantic understands, so that no table describes it."""

    name: Literal["plain-with-rule"] = "plain-with-rule"  # type: ignore[assignment]  # - as above


def test_values_of_plain_dataclasses_are_kept_and_written() -> None:
    for method in (Plain(deadline=2.0), PlainWithRule()):
        experiment = replace(Experiment(), method=method)
        assert experiment.method is method
        assert f'name = "{HERE}:{type(method).__name__}"' in experiment.to_toml()
        assert experiment.unreproducible()[0] == f"method was given in Python: {HERE}:{type(method).__name__}"
    assert Plain().rule == Corrected()


def test_wrong_values_in_python_are_refused_with_a_remedy() -> None:
    with pytest.raises(InvalidSetting, match=r"^Experiment\.rounds is -1; choose a number of at least 1$"):
        Experiment(rounds=-1)
    with pytest.raises(InvalidSetting, match=r"^Experiment\.method is 3; choose a table of settings, or an instance$"):
        replace(Experiment(), method=3)  # type: ignore[arg-type]  # - the error is the test
    with pytest.raises(
        InvalidSetting, match=r"^client\.cohort is 99, more than data\.clients = 30; choose at most 30$"
    ):
        replace(Experiment(), client=ClientSettings(cohort=99))
    with pytest.raises(InvalidSetting, match=r"^Salf has no setting 'dealine'; rename or remove it$"):
        Salf(dealine=1.0)  # type: ignore[call-arg]  # - the error is the test
    with pytest.raises(
        InvalidSetting, match=r"deadline is -1; .*; Salf\.reach_from is 'no'; choose one of observed, known$"
    ):
        Salf(deadline=-1, reach_from="no")  # type: ignore[arg-type]  # - the error is the test


def test_a_validated_value_is_copied_and_pickled() -> None:
    experiment = Experiment(rounds=7, method=Salf(deadline=2.0))
    assert pickle.loads(pickle.dumps(experiment)) == copy.deepcopy(experiment) == experiment


def test_settings_nested_as_in_a_file_may_hold_values() -> None:
    experiment = Experiment.parse({"method": {"rule": Halved(max_correction=3.0)}, "devices": Still()}, "here")
    assert experiment.method == Salf(rule=Halved(max_correction=3.0))
    assert type(experiment.devices) is Still
    assert replace(Experiment(), method=Mine()).method == Mine()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method.rule": Halved()}, "method.rule is '{}:Halved', a rule that is not registered; register its class"),
        ({"method": Mine()}, "method.name is '{}:Mine', a method that is not registered; register its class"),
        ({"devices": Still()}, "devices.kind is '{}:Still', a device model that is not registered; register its class"),
    ],
)
def test_a_file_that_names_an_unregistered_class_is_refused(
    overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(Experiment.load("digits", **overrides).to_toml())
    with pytest.raises(InvalidSetting) as caught:
        Experiment.load(path)
    assert str(caught.value).startswith(f"{path}: {message.format(HERE)}")
    assert problems_of(str(caught.value)) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": Halved()}, "method is an instance of Halved; pass an instance of SynchronousMethod or"),
        ({"method.rule": Salf()}, "method.rule is an instance of Salf; pass an instance of Rule"),
        ({"model": Salf()}, "model is an instance of Salf; pass an instance of Mlp or"),
        ({"method": Mine(), "method.deadline": 3.0}, "because method is an instance given in Python; set method"),
    ],
)
def test_values_in_the_wrong_place_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        Experiment.load("digits", **overrides)
    assert message in str(caught.value)
    assert problems_of(str(caught.value)) == []


@pytest.mark.usefixtures("registered")
def test_a_registered_class_is_known_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[method]\nname = 'mine'\nstrength = 2")
    experiment = Experiment.load(path)
    assert experiment.method == Mine(strength=2.0)
    assert Experiment.load("digits", **{"method.name": "mine", "method.strength": 2}).method == Mine(strength=2.0)
    assert Experiment.load("digits", method=Mine(strength=2.0)).method == Mine(strength=2.0)
    assert Experiment.load("digits", **{"method.deadline": 2.5}).with_method("mine").method == Mine(deadline=2.5)
    assert [*METHODS][-2:] == ["mine", "with-function"]
    assert tomllib.loads(experiment.to_toml())["method"]["name"] == "mine"
    assert Experiment.parse(tomllib.loads(experiment.to_toml()), "here") == experiment
    assert experiment.unreproducible() == (f"method is registered in Python: {HERE}:Mine",)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("method.strength", -1, "method.strength is -1; choose a number greater than 0"),
        ("method.strenght", 1, "unknown key 'method.strenght' (did you mean 'method.strength'?); rename or remove it"),
        ("method.rule", "memory", "unknown key 'method.rule': it belongs to method.name = 'salf' or 'adel' or"),
    ],
)
def test_settings_of_a_registered_class_are_validated_like_built_in_ones(
    setting: str, value: object, message: str
) -> None:
    with pytest.raises(InvalidSetting) as caught:
        Experiment.load("digits", **{"method.name": "mine", setting: value})
    assert message in str(caught.value)


@pytest.mark.usefixtures("registered")
def test_a_registered_class_with_settings_that_no_file_holds_is_given_in_python() -> None:
    experiment = Experiment.load("digits", method=WithFunction(scale=float))
    assert experiment.method == WithFunction(scale=float)
    assert experiment.unreproducible() == (f"method was given in Python: {HERE}:WithFunction",)
    assert tomllib.loads(experiment.to_toml())["method"]["scale"] == "a value of type builtins:type"


def test_what_is_no_extension_cannot_be_registered() -> None:
    with pytest.raises(InvalidSetting, match="make it a subclass of one of SynchronousMethod, "):
        salf.register(int)
    with pytest.raises(InvalidSetting, match="is abstract; define aggregation_rule, schedule"):
        salf.register(type("Empty", (salf.SynchronousMethod,), {"name": "empty", "__annotations__": {"name": str}}))


def test_a_run_is_that_of_the_value() -> None:
    """Half steps end elsewhere; the class by the same name would end where the built-in rule does."""
    small = small_experiment({"rounds": 1, "evaluate.every": 1, "engine": "plain"})
    runs = [
        [record.loss for record in salf.simulate(replace(small, method=Salf(rule=rule)), dataset=small_data())]
        for rule in (Corrected(), Halved())
    ]
    assert runs[0] != runs[1]


def test_installed_packages_are_found_by_their_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installed package: a module and its metadata in a folder of the search path."""
    example = Path(__file__).parents[2] / "examples" / "own_method"
    (tmp_path / "own_method.py").write_bytes((example / "own_method.py").read_bytes())
    project = tomllib.loads((example / "pyproject.toml").read_text())["project"]
    info = tmp_path / "salf_own_method-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    groups = project["entry-points"].items()
    entries = [f"[{group}]\n{name} = {place}\n" for group, names in groups for name, place in names.items()]
    (info / "entry_points.txt").write_text("\n".join(entries))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_method", raising=False)
    for registry in (METHODS, RULES, DEVICES):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
        monkeypatch.setattr(registry, "_portable", set(registry._portable))
        monkeypatch.setattr(registry, "_installed", None)
    names = {"method.name": "mine", "method.rule.temper": 1, "devices.kind": "two-speeds"}
    experiment = Experiment.load("digits", **names)
    assert experiment.unreproducible() == ()
    assert (experiment.method.name, experiment.devices.kind) == ("mine", "two-speeds")
    assert [*METHODS][-1] == "mine"
    assert [record.deadline_s for record in salf.simulate(tiny(experiment), dataset=small_data())] == [1.0]


def tiny(experiment: Experiment) -> Experiment:
    return replace(small_experiment({"rounds": 1}), method=experiment.method, devices=experiment.devices)
