"""`check_update` lists everything that is wrong with an update, and lets pass what is right."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from salf.errors import InvalidUpdate
from salf.layers.find import Layer, Layers
from salf.update import Update, check_update

LAYERS = Layers(
    (
        Layer("stem", ("stem.weight", "stem.bias"), ("stem.mean", "stem.count")),
        Layer("body", ("body.weight", "body.bias")),
        Layer("neck", ("neck.weight",), ("neck.mean",)),
        Layer("head", ("head.weight", "head.bias")),
    )
)
STATE = {
    "stem.weight": torch.zeros(2, 3),
    "stem.bias": torch.zeros(2),
    "stem.mean": torch.zeros(2),
    "stem.count": torch.tensor(0),
    "body.weight": torch.zeros(2, dtype=torch.float16),
    "body.bias": torch.zeros(()),
    "neck.weight": torch.zeros(1, 0),
    "neck.mean": torch.zeros(3),
    "head.weight": torch.zeros(4, dtype=torch.float64),
    "head.bias": torch.zeros(2),
    "frozen": torch.zeros(2),
}


@dataclass
class Draft:
    """A good update in which to put what is wrong."""

    deltas: dict[str, Any] = field(
        default_factory=lambda: {name: STATE[name].clone() for layer in LAYERS for name in layer.parameters}
    )
    steps: Any = field(default_factory=lambda: {"stem": 2, "body": 1, "neck": 99, "head": 3})
    num_examples: Any = 10
    buffers: dict[str, Any] = field(
        default_factory=lambda: {name: STATE[name].clone() for layer in LAYERS for name in layer.buffers}
    )
    passes: Any = field(default_factory=lambda: {"stem": 1, "body": 9, "neck": 9, "head": 2**53})
    examples: Any = field(default_factory=lambda: {"stem": 4, "body": 4, "neck": 8, "head": 8})

    def problems(self) -> tuple[str, ...]:
        try:
            check_update(Update(**vars(self)), LAYERS, STATE)
        except InvalidUpdate as error:
            return error.problems
        return ()


def put(kind: str, name: str, value: object) -> Callable[[Draft], None]:
    return lambda draft: getattr(draft, kind).__setitem__(name, value)


def drop(kind: str, *names: str) -> Callable[[Draft], None]:
    def without(draft: Draft) -> None:
        for name in names:
            del getattr(draft, kind)[name]

    return without


def give(kind: str, value: object) -> Callable[[Draft], None]:
    return lambda draft: setattr(draft, kind, value)


# Damages that do not hide one another, each with what is said about it.
APART: list[tuple[Callable[[Draft], None], str]] = [
    (give("num_examples", 0), "num_examples is 0, not an integer from 1 to 2^53"),
    (put("steps", "tail", 1), "steps name 'tail', which is not a layer of this model"),
    (put("steps", "neck", 0), "layer 'neck' has 0 steps, not an integer from 1 to 2^53"),
    (put("passes", "neck", 0), "layer 'neck' has 0 passes, not an integer from 1 to 2^53"),
    (put("passes", "tail", 1), "passes name 'tail', which is not a layer of this model"),
    (put("examples", "stem", 2**53 + 1), f"layer 'stem' has {2**53 + 1} examples, not an integer from 1 to 2^53"),
    (put("examples", "tail", None), "examples name 'tail', which is not a layer of this model"),
    (drop("examples", "head"), "layer 'head' has 0 examples, not an integer from 1 to 2^53"),
    (put("deltas", "tail.weight", torch.zeros(1)), "'tail.weight' is not a trainable parameter of this model"),
    (put("deltas", "frozen", torch.zeros(2)), "'frozen' is not a trainable parameter of this model"),
    (put("deltas", "stem.mean", torch.zeros(2)), "'stem.mean' is not a trainable parameter of this model"),
    (put("buffers", "frozen", torch.zeros(2)), "'frozen' is not a buffer of a layer of this model"),
    (put("deltas", "stem.weight", torch.zeros(3, 2)), "'stem.weight' has shape (3, 2), not (2, 3)"),
    (put("deltas", "stem.bias", torch.zeros(2).int()), "'stem.bias' has type torch.int32, not torch.float32"),
    (drop("deltas", "body.weight"), "a part of layer 'body' is missing (body.weight)"),
    (put("deltas", "body.bias", torch.tensor(float("nan"))), "'body.bias' holds values that are not finite"),
    (drop("buffers", "stem.count"), "a part of the buffers of layer 'stem' is missing (stem.count)"),
    (put("buffers", "stem.mean", torch.tensor([0.0, -torch.inf])), "'stem.mean' holds values that are not finite"),
    (put("deltas", "neck.weight", [[]]), "'neck.weight' is a list, not a tensor"),
    (put("buffers", "neck.mean", None), "'neck.mean' is a NoneType, not a tensor"),
    (
        put("deltas", "head.weight", torch.zeros(4).double().to_sparse()),
        "'head.weight' is stored as torch.sparse_coo, not as a dense tensor",
    ),
    (put("deltas", "head.bias", torch.tensor([0.0, torch.inf])), "'head.bias' holds values that are not finite"),
]


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from(range(len(APART)))))
def test_every_problem_is_listed_once(chosen: set[int]) -> None:
    draft = Draft()
    for index in sorted(chosen):
        APART[index][0](draft)
    assert sorted(draft.problems()) == sorted(APART[index][1] for index in chosen)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (drop("deltas", "neck.weight"), "buffer 'neck.mean' is sent without its layer 'neck'"),
        (drop("deltas", "stem.weight", "stem.bias"), "buffer 'stem.count' is sent without its layer 'stem'"),
        (drop("steps", "head"), "layer 'head' has 0 steps, not an integer from 1 to 2^53"),
        (put("deltas", "body.bias", torch.zeros(1)), "'body.bias' has shape (1,), not ()"),
        (put("deltas", "head.bias", torch.zeros(2).to(torch.float8_e5m2)), "'head.bias' has type torch.float8_e5m2"),
        (put("deltas", "head.bias", torch.zeros(2).to(torch.complex64)), "'head.bias' has type torch.complex64"),
        (put("buffers", "stem.count", torch.tensor(0.0)), "'stem.count' has type torch.float32, not torch.int64"),
        (put("buffers", "stem.count", torch.tensor(0).int()), "'stem.count' has type torch.int32, not torch.int64"),
        (put("buffers", "stem.mean", torch.zeros(2).int()), "'stem.mean' has type torch.int32, not torch.float32"),
    ],
)
def test_a_problem_is_named(damage: Callable[[Draft], None], problem: str) -> None:
    draft = Draft()
    damage(draft)
    assert any(problem in listed for listed in draft.problems())


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_complex_numbers_of_half_precision_are_named() -> None:
    draft = Draft()
    put("deltas", "head.bias", torch.zeros(2, dtype=torch.complex32))(draft)
    assert any("'head.bias' has type torch.complex32" in listed for listed in draft.problems())


def test_the_message_names_every_problem() -> None:
    with pytest.raises(
        InvalidUpdate, match=r"cannot be aggregated; correct the client that sent it: num_examples is 0, .*; 'x' is not"
    ):
        check_update(Update({"x": torch.zeros(1)}, 1, 0), LAYERS, STATE)


@pytest.mark.parametrize("value", [0, -1, True, False, 1.0, float("nan"), "1", None, [1], 2**53 + 1, 10**400])
def test_counts_are_whole_numbers_of_at_least_one(value: object) -> None:
    draft = Draft(num_examples=value)
    assert draft.problems() == (f"num_examples is {value!r:.40}, not an integer from 1 to 2^53",)
    for steps, wrong in ((value, LAYERS.names), ({**Draft().steps, "body": value}, ("body",))):
        assert Draft(steps=steps).problems() == tuple(
            f"layer '{name}' has {value!r:.40} steps, not an integer from 1 to 2^53" for name in wrong
        )
    for kind in ("passes", "examples"):
        assert Draft(**{kind: dict.fromkeys(LAYERS.names, 1) | {"body": value}}).problems() == (
            f"layer 'body' has {value!r:.40} {kind}, not an integer from 1 to 2^53",
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_point_type_passes(dtype: torch.dtype) -> None:
    draft = Draft()
    for tensors in (draft.deltas, draft.buffers):
        tensors |= {name: value.to(dtype) for name, value in tensors.items() if value.is_floating_point()}
    assert draft.problems() == ()
    draft.deltas["head.bias"][0] = torch.nan
    assert draft.problems() == ("'head.bias' holds values that are not finite",)


def test_passes_and_examples_may_be_left_out_each() -> None:
    assert (
        Draft(passes={}).problems() == Draft(examples={}).problems() == Draft(passes={}, examples={}).problems() == ()
    )


def test_counts_of_layers_that_were_not_sent_are_of_no_interest() -> None:
    draft = Draft(passes={**Draft().passes, "body": 0}, examples={**Draft().examples, "body": None})
    drop("deltas", "body.weight", "body.bias")(draft)
    assert draft.problems() == ()


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(LAYERS.names)), st.booleans(), st.integers(1, 9))
def test_any_whole_layers_pass(names: set[str], statistics: bool, steps: int) -> None:
    layers = [layer for layer in LAYERS if layer.name in names]
    draft = Draft(
        deltas={name: STATE[name] for layer in layers for name in layer.parameters},
        steps=steps,
        buffers={name: STATE[name] for layer in layers for name in layer.buffers if statistics},
    )
    assert draft.problems() == ()


def test_finite_values_pass_even_when_their_sum_is_not() -> None:
    draft = Draft()
    draft.deltas["head.bias"] = torch.tensor([3e38, 3e38])
    draft.deltas["body.weight"] = torch.tensor([6e4, 6e4], dtype=torch.float16)
    draft.buffers["stem.mean"] = torch.tensor([-3e38, -3e38])
    assert draft.problems() == ()
    draft.deltas["head.bias"] = torch.tensor([torch.inf, -torch.inf])
    assert draft.problems() == ("'head.bias' holds values that are not finite",)


def test_an_update_cannot_be_changed_from_outside() -> None:
    deltas, steps, buffers = {"a": torch.zeros(1)}, {"layer": 1}, {"b": torch.zeros(1)}
    passes, examples = {"layer": 2}, {"layer": 9}
    update = Update(deltas, steps, 3, buffers, passes, examples)
    later: list[dict[str, Any]] = [deltas, steps, buffers, passes, examples]
    for given_mapping in later:
        given_mapping.clear()
    assert (set(update.deltas), update.steps, set(update.buffers)) == ({"a"}, {"layer": 1}, {"b"})
    assert (update.passes, update.examples) == ({"layer": 2}, {"layer": 9})
    kept: list[Any] = [update.deltas, update.steps, update.buffers, update.passes, update.examples]
    for mapping in kept:
        with pytest.raises(TypeError):
            mapping["c"] = 1
    with pytest.raises(AttributeError):
        update.num_examples = 4  # type: ignore[misc]


def test_steps_and_layers_of_an_update() -> None:
    head, body = LAYERS[3], LAYERS[1]
    both: dict[str, Tensor] = {name: STATE[name] for name in head.parameters}
    update = Update({**both, "body.bias": STATE["body.bias"]}, {"head": 2}, 1)
    assert (update.includes(head), update.includes(body)) == (True, False)
    assert (update.steps_of("head"), update.steps_of("body")) == (2, 0)
    assert Update(both, 4, 1).steps_of("head") == 4
