"""Every way in which an experiment can be wrong, and what is said about it."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from language import problems_of

from salf import simulate
from salf.aggregation.rules import Corrected, Memory
from salf.errors import InvalidSetting
from salf.experiment import preset_names
from salf.experiment.experiment import DataSettings, Expected, Experiment
from salf.methods import METHODS, DropStragglers, FedAvg, Salf
from salf.models import Cnn, Mlp

DIGITS = "preset 'digits' with overrides: "
RULES = "corrected, contributors, everyone, inverse-probability, memory"
MODELS = "mlp, cnn, vgg11, vgg13, vgg16, vgg19, residual, transformer, factory"
SECTIONS = "data, model, client, devices, method, server, evaluate, expected"
METHOD_NAMES = ", ".join(METHODS)


def problem(key: str, value: object) -> str:
    """What is said about one wrong setting of the preset `digits`."""
    with pytest.raises(InvalidSetting) as caught:
        Experiment.load("digits", **{key: value})
    message = str(caught.value)
    assert problems_of(message) == []
    assert message.startswith(DIGITS)
    return message.removeprefix(DIGITS)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_called_by_its_name(name: str) -> None:
    assert Experiment.load(name).name == name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("method.rule", "corected", f"method.rule is 'corected'; choose one of {RULES} (did you mean 'corrected'?)"),
        ("method.rule.name", "remember", f"method.rule is 'remember'; choose one of {RULES}"),
        ("method.name", "slaf", f"method.name is 'slaf'; choose one of {METHOD_NAMES} (did you mean 'salf'?)"),
        ("method.name", "X", f"method.name is 'X'; choose one of {METHOD_NAMES}"),
        ("method.name", 3, f"method.name is 3; choose one of {METHOD_NAMES}"),
        ("model.name", "vgg12", f"model.name is 'vgg12'; choose one of {MODELS} (did you mean 'vgg19'?)"),
        (
            "devices.kind",
            "physics",
            "devices.kind is 'physics'; choose one of uniform, graded, exponential, physical (did you mean",
        ),
        (
            "data.name",
            "minst",
            "data.name is 'minst'; choose one of digits, mnist, fashion-mnist, cifar10, tensors (did you mean 'mn",
        ),
        (
            "data.name",
            ["mnist"],
            "data.name is ['mnist']; choose one of digits, mnist, fashion-mnist, cifar10, tensors",
        ),
        (
            "data.partition",
            "shard",
            "data.partition is 'shard'; choose one of iid, shards, dirichlet, label-order (did you mean 'shards'?)",
        ),
        ("client.optimizer", "Sgd", "client.optimizer is 'Sgd'; choose one of sgd, adam, adamw (did you mean 'sgd'?)"),
    ],
)
def test_wrong_choices_list_the_right_ones(key: str, value: object, message: str) -> None:
    assert problem(key, value).startswith(message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rounds", "20", "rounds is '20'; choose a whole number"),
        ("rounds", 2.0, "rounds is 2.0; choose a whole number"),
        ("rounds", True, "rounds is true; choose a whole number"),
        ("rounds", [3], "rounds is [3]; choose a whole number"),
        ("rounds", {}, "rounds is {}; choose a whole number"),
        ("rounds", 0, "rounds is 0; choose a number of at least 1"),
        ("seed", -1, "seed is -1; choose a number of at least 0"),
        ("data.clients", -3, "data.clients is -3; choose a number of at least 1"),
        ("data.root", 3, "data.root is 3; choose text"),
        ("data.alpha", 0, "data.alpha is 0; choose a number greater than 0"),
        ("client.lr", "0.1", "client.lr is '0.1'; choose a number"),
        ("client.lr", True, "client.lr is true; choose a number"),
        ("client.lr", math.nan, "client.lr is nan; choose a finite number"),
        ("client.lr", -math.inf, "client.lr is -inf; choose a finite number"),
        ("client.lr", -0.5, "client.lr is -0.5; choose a number greater than 0"),
        ("client.momentum", 1, "client.momentum is 1; choose a number less than 1"),
        ("evaluate.target", 95, "evaluate.target is 95; choose a number of at most 1"),
        ("devices.stragglers", math.nan, "devices.stragglers is nan; choose a finite number"),
        ("devices.lowest_depth", -1, "devices.lowest_depth is -1; choose a number of at least 0"),
        ("method.weight_by_examples", 1, "method.weight_by_examples is 1; choose true or false"),
        ("method.deadline", math.inf, "method.deadline is inf; choose a finite number"),
        ("method.rule.max_correction", 0.5, "method.rule.max_correction is 0.5; choose a number of at least 1"),
        ("model.hidden", 32, "model.hidden is 32; choose a list"),
        ("model.hidden", [8, 0], "model.hidden[1] is 0; choose a number of at least 1"),
        ("model.hidden", [8, "x"], "model.hidden[1] is 'x'; choose a whole number"),
        ("model.channels", [], "model.channels is []; choose a list of at least 1"),
        ("name", "", "name is ''; choose text that is not empty"),
        ("name", 7, "name is 7; choose text"),
        ("model.name", "factory", "model.call is missing; set it"),
        (
            "expected.salf",
            {"accuracy": 2, "tolerance": 0.1},
            "expected.salf.accuracy is 2; choose a number of at most 1",
        ),
        ("expected.slaf.accuracy", 0.9, "unknown key 'expected.slaf' (did you mean 'salf'?); rename or remove it"),
        ("expected.salf", {"acuracy": 1, "accuracy": 1, "tolerance": 1}, "unknown key 'expected.salf.acuracy'"),
        ("client.cohort", 31, "client.cohort is 31, more than data.clients = 30; choose at most 30"),
    ],
)
def test_wrong_values_name_the_key_and_what_it_must_be(key: str, value: object, message: str) -> None:
    assert problem(key, value).startswith(message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", 3, "data is 3, not a section; set what is in it, such as data.name"),
        ("client", [], "client is [], not a section; set what is in it, such as client.optimizer"),
        ("method", "drop", "method is 'drop', not a section; set what is in it, such as method.name = 'drop'"),
        ("devices", None, "devices is None, not a section; set what is in it, such as devices.kind = 'uniform'"),
        (
            "method.rule",
            3,
            "method.rule is 3, not a section; set what is in it, such as method.rule.name = 'corrected'",
        ),
        ("expected.salf", 0.9, "expected.salf is 0.9, not a section"),
        ("rounds.x", 1, "'rounds.x' cannot be set, because rounds is a value, not a section; set rounds instead"),
        ("data.clients.all", 1, "data.clients is {…}; choose a whole number"),
        ("", 1, "'' is not the name of a setting; write it with dots, such as data.clients"),
        ("data.", 1, "'data.' is not the name of a setting; write it with dots, such as data.clients"),
        ("data..root", 1, "'data..root' is not the name of a setting; write it with dots, such as data.clients"),
    ],
)
def test_values_and_sections_are_not_confused(key: str, value: object, message: str) -> None:
    assert problem(key, value).startswith(message)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("dat.clients", "unknown key 'dat' (did you mean 'data'?); rename or remove it"),
        ("data.client", "unknown key 'data.client' (did you mean 'data.clients'?); rename or remove it"),
        ("lr", "unknown key 'lr' (did you mean 'client.lr'?); rename or remove it"),
        ("clients", "unknown key 'clients' (did you mean 'data.clients'?); rename or remove it"),
        ("method.lr", "unknown key 'method.lr' (did you mean 'client.lr'?); rename or remove it"),
        (
            "method.normalise",
            "unknown key 'method.normalise': it belongs to method.name = 'drop', not to 'salf'; remove it",
        ),
        ("model.patch", "unknown key 'model.patch': it belongs to model.name = 'transformer', not to 'cnn'; remove it"),
        (
            "method.rule.max_corr",
            "unknown key 'method.rule.max_corr' (did you mean 'method.rule.max_correction'?); rename or remove it",
        ),
        ("evaluate.zzz", "unknown key 'evaluate.zzz' (known are every, examples, target); rename or remove it"),
        ("zzz", f"unknown key 'zzz' (known are name, seed, rounds, engine, device, {SECTIONS}); rename or remove it"),
    ],
)
def test_unknown_keys_are_told_where_they_belong(key: str, message: str) -> None:
    assert problem(key, 1) == message


def test_a_key_of_another_rule_is_told_so() -> None:
    with pytest.raises(
        InvalidSetting, match=r"it belongs to method\.rule\.name = 'corrected', not to 'memory'; remove it$"
    ):
        Experiment.load("digits", **{"method.rule": "memory", "method.rule.max_correction": 3})


def test_all_problems_are_listed_at_once() -> None:
    wrong = {
        "rounds": -1,
        "client.lr": math.nan,
        "clinet.lr": 1,
        "method.name": "best",
        "rounds.x": 1,
        "data.clients": "many",
    }
    with pytest.raises(InvalidSetting) as caught:
        Experiment.load("digits", **wrong)
    message = str(caught.value)
    for part in (
        "rounds is -1",
        "client.lr is nan",
        "'clinet'",
        "method.name is 'best'",
        "'rounds.x'",
        "clients is 'many'",
    ):
        assert part in message


def test_a_problem_of_a_whole_section_names_the_section() -> None:
    with pytest.raises(InvalidSetting, match=r"client: momentum is an option of sgd, not of adam"):
        Experiment.load("digits", **{"client.momentum": 0.5, "client.optimizer": "adam"})
    with pytest.raises(InvalidSetting, match=r"^preset 'digits' with overrides: model.heads is 3, .*; choose a width"):
        Experiment.load("digits", **{"model.name": "transformer", "model.heads": 3})


def test_naming_another_choice_keeps_only_the_settings_that_it_knows() -> None:
    changed = Experiment.load("digits", **{"model.name": "mlp"})
    assert changed.model == Mlp(hidden=(32,))
    dropping = Experiment.load("digits", **{"method.weight_by_examples": True, "method.name": "drop"})
    assert dropping.method == DropStragglers(weight_by_examples=True)
    fast = Experiment.load("digits", **{"devices.kind": "exponential"})
    assert fast.devices.kind == "exponential"
    # Again the same one: nothing is lost.
    assert Experiment.load("digits", **{"model.name": "cnn"}).model == Experiment.load("digits").model


def test_what_is_asked_for_is_never_dropped_for_a_choice(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"unknown key 'method\.rule': it belongs to method\.name = 'salf'"):
        Experiment.load("digits", **{"method.rule": "memory", "method.name": "fedavg"})
    path = tmp_path / "own.toml"
    path.write_text("[method]\nrule = 'memory'\n")
    assert Experiment.load(path, **{"method.name": "fedavg"}).method == FedAvg()


@pytest.mark.parametrize(
    "overrides",
    [
        {"method.name": "salf", "method.rule": "memory", "method.rule.min_contributors": 2},
        {"method.rule.min_contributors": 2, "method.rule": "memory"},
        {"method.rule.name": "memory", "method.rule.min_contributors": 2, "method.name": "salf"},
        {"method": {"rule": {"name": "memory", "min_contributors": 2}}},
        {"method": Salf(rule=Memory(min_contributors=2))},
        {"method.rule": Memory(min_contributors=2)},
    ],
)
def test_the_order_and_form_of_overrides_do_not_matter(overrides: dict[str, object]) -> None:
    loaded = Experiment.load("digits", **overrides)
    assert loaded.method == Salf(rule=Memory(min_contributors=2))
    assert loaded.client == Experiment.load("digits").client


def test_a_table_sets_what_is_in_it_and_no_more() -> None:
    loaded = Experiment.load("digits", data={"clients": 7}, expected={"fedavg": {"accuracy": 0.5, "tolerance": 0.1}})
    assert loaded.data == DataSettings(clients=7, partition="shards")
    assert loaded.expected == {"fedavg": Expected(accuracy=0.5, tolerance=0.1)}


def test_values_from_python_are_taken_as_a_file_would_hold_them(tmp_path: Path) -> None:
    loaded = Experiment.load(
        "digits", **{"data.root": tmp_path, "rounds": np.int64(3), "client.lr": np.float64(0.5), "model.hidden": (4,)}
    )
    assert (loaded.data.root, loaded.rounds, loaded.client.lr) == (tmp_path, 3, 0.5)
    assert isinstance(loaded.model, Cnn)
    assert loaded.model.hidden == (4,)
    with pytest.raises(InvalidSetting, match="rounds is '<object object"):
        Experiment.load("digits", rounds=object())
    with pytest.raises(InvalidSetting, match=r"name is b'.*', which no file can hold"):
        Experiment.load("digits", name=b"\xff")
    with pytest.raises(InvalidSetting, match="surrogates not allowed"):
        Experiment.load("digits", name="\ud800")


def test_a_section_that_names_no_choice_describes_the_default_one(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[method]\nrule = {max_correction = 3}\n[devices]\nstragglers = 0.5\n[model]\nhidden = []\n")
    loaded = Experiment.load(path)
    assert loaded == Experiment(
        name="own",
        method=Salf(rule=Corrected(max_correction=3)),
        devices=Experiment.load("digits", **{"devices.stragglers": 0.5}).devices,
        model=Mlp(hidden=()),
    )


def test_a_file_says_only_what_differs_and_may_say_its_name(tmp_path: Path) -> None:
    path = tmp_path / "my experiment.toml"
    path.write_text("")
    assert Experiment.load(path) == Experiment(name="my experiment")
    path.write_text("name = 'other'")
    assert Experiment.load(str(path)).name == "other"


def test_a_file_without_the_suffix_is_read_and_a_preset_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "own"):
        Path(name).write_text("rounds = 7")
    assert Experiment.load("own").rounds == 7
    assert Experiment.load("digits").rounds != 7
    assert Experiment.load("./digits").rounds == Experiment.load(Path("digits")).rounds == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rounds = ", "own.toml is not valid TOML: Invalid value"),
        (b"rounds = 1\nrounds = 2", "own.toml is not valid TOML: Cannot overwrite a value"),
        (b"seed = " + b"9" * 5000, "own.toml is not valid TOML: Exceeds the limit"),
        (b"\xff\xfe", "own.toml is not UTF-8 text; save it as UTF-8"),
        (b"[rounds]\nx = 1", "own.toml: rounds is {…}; choose a whole number"),
        (b"data = 3", "own.toml: data is 3, not a section"),
        (b"[[data]]\nclients = 3", "own.toml: data is [{'clients': 3}], not a section"),
        (b"[methd]\nname = 'salf'", "own.toml: unknown key 'methd' (did you mean 'method'?)"),
        (b"seed = 1979-05-27", "own.toml: seed is '1979-05-27'; choose a whole number"),
        (b"client.lr = inf", "own.toml: client.lr is inf; choose a finite number"),
        (b"[expected]\nbest = {accuracy = 0.5, tolerance = 0.1}", "own.toml: unknown key 'expected.best' (known are"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "own.toml").write_bytes(content)
    with pytest.raises(InvalidSetting) as caught:
        Experiment.load(tmp_path / "own.toml")
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidSetting,
        match=r"there is no preset 'digit' \(did you mean 'digits'\?\); choose one of cifar10-vgg11, .*digits, ",
    ):
        Experiment.load("digit")
    with pytest.raises(
        InvalidSetting, match=r"there is no preset ''; choose one of cifar10-vgg11, .* or give the path of a .toml"
    ):
        Experiment.load("")
    with pytest.raises(InvalidSetting, match=r"cannot read the experiment file .*no\.toml: No such file or directory"):
        Experiment.load(tmp_path / "no.toml")
    with pytest.raises(InvalidSetting, match=r"is a folder, not an experiment file; choose one of cifar10-vgg11"):
        Experiment.load(tmp_path)
    (tmp_path / "experiment.toml").touch()
    with pytest.raises(InvalidSetting, match=r"is a folder, .*; pass .*/experiment\.toml$"):
        Experiment.load(str(tmp_path))
    with pytest.raises(InvalidSetting, match=r"cannot read the experiment file .*: Not a directory"):
        Experiment.load(tmp_path / "experiment.toml" / "x")
    with pytest.raises(InvalidSetting, match=r"cannot read the experiment file .*null"):
        Experiment.load("a\0b")
    with pytest.raises(InvalidSetting, match="File name too long"):
        Experiment.load("x" * 5000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.touch(mode=0)
    with pytest.raises(InvalidSetting, match="Permission denied"):
        Experiment.load(path)


def test_with_method_keeps_what_the_other_method_knows() -> None:
    salf = Experiment.load("digits", **{"method.deadline": 2.5, "method.weight_by_examples": True})
    assert salf.with_method("salf") is salf
    assert salf.with_method("drop").method == DropStragglers(deadline=2.5, weight_by_examples=True)
    assert salf.with_method("fedavg").method == FedAvg(weight_by_examples=True)
    assert salf.with_method("drop").data == salf.data
    with pytest.raises(
        InvalidSetting, match=r"there is no method 'slaf'; choose one of fedavg, .* \(did you mean 'salf'\?\)"
    ):
        salf.with_method("slaf")


def test_an_experiment_without_any_setting_runs() -> None:
    assert [record.round for record in simulate(replace(Experiment(), rounds=2))] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        ({}, True),
        ({"seed": 3, "engine": "plain", "device": "cuda", "evaluate.every": 7, "data.root": "/somewhere"}, True),
        ({"method.name": "drop"}, True),
        ({"rounds": 20}, False),
        ({"method.deadline": 2.0}, False),
        ({"name": "mine"}, False),
    ],
)
def test_what_a_preset_promises_holds_for_the_preset(settings: dict[str, object], published: bool) -> None:
    assert Experiment.load("digits", **settings).is_as_published() is published
