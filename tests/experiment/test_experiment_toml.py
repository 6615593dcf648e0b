"""What is written as TOML is read as the same experiment, whatever it holds."""

import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given, settings, strategies as st

from salf.aggregation.rules import Contributors, Corrected, Everyone, InverseProbability, Memory
from salf.devices import ExponentialLayers, Physical, UniformDepthDevices
from salf.experiment.experiment import ClientSettings, DataSettings, EvaluateSettings, Expected, Experiment
from salf.methods import METHODS, DropStragglers, FedAsync, FedAvg, FedBuff, Salf
from salf.models import Cnn, Factory, Mlp, ResidualNet, Transformer, Vgg

POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
RATE = st.floats(min_value=1e-300, max_value=1e30)
FRACTION = st.floats(min_value=0, max_value=1)
SHARE = st.floats(min_value=1e-9, max_value=1)
COUNT = st.integers(1, 2**40)
SIZES = st.lists(st.integers(1, 4096), max_size=4).map(tuple)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
RULES = st.one_of(
    st.builds(Corrected, max_correction=st.floats(1, 1e6), min_contributors=COUNT),
    *(st.builds(rule, weight_by_examples=st.booleans()) for rule in (Contributors, Everyone, InverseProbability)),
    st.builds(Memory, normalise=st.sampled_from([None, "steps"])),
)
METHOD = st.one_of(
    st.builds(FedAvg, weight_by_examples=st.booleans()),
    st.builds(DropStragglers, deadline=st.none() | POSITIVE, normalise=st.sampled_from(["received", "everyone"])),
    st.builds(FedAsync, deadline=st.none() | POSITIVE, alpha=SHARE, a=FRACTION, rho=FRACTION),
    st.builds(FedBuff, deadline=st.none() | POSITIVE, buffer=COUNT, server_lr=POSITIVE),
    st.builds(Salf, deadline=st.none() | POSITIVE, rule=RULES, reach_from=st.sampled_from(["observed", "known"])),
)
MODEL: st.SearchStrategy[Any] = st.one_of(
    st.builds(Mlp, hidden=SIZES),
    st.builds(Cnn, channels=SIZES.filter(bool), kernel=COUNT, padding=st.integers(0, 9), hidden=SIZES),
    st.builds(Vgg, name=st.sampled_from(["vgg11", "vgg19"])),
    st.builds(ResidualNet, width=COUNT, blocks=SIZES.filter(bool)),
    st.builds(Transformer, width=st.integers(1, 99).map(lambda half: 2 * half), heads=st.just(2)),
    st.builds(Factory, call=TEXT),
)
DEVICES: st.SearchStrategy[Any] = st.one_of(
    st.builds(UniformDepthDevices, stragglers=FRACTION, drawn=st.sampled_from(["once", "round", "persistent"])),
    st.builds(ExponentialLayers, mean_layer_seconds=POSITIVE),
    st.builds(Physical, step_seconds=POSITIVE, jitter=FRACTION, availability=st.sampled_from(["always", "on-off"])),
)
EXPERIMENTS = st.builds(
    Experiment,
    name=TEXT,
    seed=st.integers(0, 2**63 - 1),
    rounds=COUNT,
    data=st.builds(
        DataSettings,
        name=st.sampled_from(["digits", "mnist", "tensors"]),
        root=st.none() | TEXT.filter(lambda text: "\0" not in text).map(Path),
        clients=st.integers(5, 2**40),
        alpha=POSITIVE,
        size_sigma=FRACTION,
    ),
    model=MODEL,
    client=st.builds(
        ClientSettings,
        lr=RATE,
        batch_size=COUNT,
        cohort=st.none() | st.integers(1, 5),
        optimizer=st.sampled_from(["sgd", "adam", "adamw"]),
    ),
    devices=DEVICES,
    method=METHOD,
    evaluate=st.builds(EvaluateSettings, every=COUNT, target=st.none() | SHARE),
    expected=st.dictionaries(
        st.sampled_from(sorted(METHODS)), st.builds(Expected, accuracy=FRACTION, tolerance=SHARE), max_size=2
    ),
)


@settings(max_examples=150, deadline=None)
@given(EXPERIMENTS)
def test_what_is_written_is_read_as_the_same(experiment: Experiment) -> None:
    text = experiment.to_toml()
    read = Experiment.parse(tomllib.loads(text), "here")
    assert read == experiment
    assert read.to_toml() == text


@settings(max_examples=60, deadline=None)
@given(EXPERIMENTS, st.sampled_from(sorted(METHODS)))
def test_another_method_changes_nothing_but_the_method(experiment: Experiment, name: str) -> None:
    other = experiment.with_method(name)
    before, after = tomllib.loads(experiment.to_toml()), tomllib.loads(other.to_toml())
    known, method = before.pop("method"), after.pop("method")
    assert before == after
    assert method["name"] == name
    assert all(method[key] == value for key, value in known.items() if key in method and key != "name")


@settings(max_examples=60, deadline=None)
@given(EXPERIMENTS)
def test_a_file_is_read_as_its_text(experiment: Experiment) -> None:
    dotted = tomllib.loads(experiment.to_toml())
    assert Experiment.load("digits", **dotted, **_cleared(experiment)).method == experiment.method


def _cleared(experiment: Experiment) -> dict[str, object]:
    """Overrides that a table does not imply: what the preset sets and the experiment leaves out."""
    return {} if experiment.evaluate.target is not None else {"evaluate.target": None}
