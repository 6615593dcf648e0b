"""A thousand hostile replies: the model stays that of the honest nodes, and each reply is logged with its node."""

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flower_cases import MemoryGrid, a_loop, a_model, answer, initial, inner, sending, update_of, wrapped
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from salf.flower.wire import ClientReport, TrainInstructions
from salf.flower.wire.arrays import array_view

MODEL, LAYERS = a_model()
STATE = MODEL.state_dict()
NAMES = [*STATE]
POISON = [float("nan"), float("inf"), -float("inf"), 1e30, -3e38]


def replace_array(message: Message, name: str, values: np.ndarray[Any, Any]) -> None:
    next(iter(message.content.array_records.values()))[name] = Array(values)


def record_of(message: Message) -> MetricRecord:
    return next(iter(message.content.metric_records.values()))


# NumPy's reader evaluates a header as Python, and gives up on some of it by errors that are no ValueError.
headers = st.one_of(
    st.text(max_size=200),
    st.sampled_from(
        ["(" * 5000, "-" * 9000 + "1", "{'descr': '<f4'", "'" * 3, "\\", "{'shape': (1,", "\0", "[" * 199 + "]"]
    ),
    st.sampled_from(["|O", "<U3", "|V8", "<f3", "f99", "[('a', '<f4')]"]).map(
        lambda descr: f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (5, 4), }}"
    ),
    st.sampled_from(["-5", "5 4", "1e3", "True", "5,,4", "9" * 19, "9" * 5000]).map(
        lambda shape: f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}"
    ),
)


def with_header(header: str) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(80)


@st.composite
def arrays_of_any_kind(draw: st.DrawFn, name: str) -> Array:  # noqa: PLR0911 - one for each kind
    """Draw an array that is not one of this name: of another shape or type, poisoned, or no array at all."""
    good = STATE[name].numpy()
    kind = draw(st.sampled_from(["shape", "dtype", "poison", "bytes", "header", "python", "pickle", "stype"]))
    if kind == "shape":
        shape = draw(st.lists(st.integers(0, 4), max_size=3).filter(lambda shape: tuple(shape) != good.shape))
        return Array(np.ones(shape, good.dtype))
    if kind == "dtype":
        return Array(good.astype(draw(st.sampled_from(["float16", "float64", "int8", "uint64", "bool", "complex64"]))))
    if kind == "poison":
        if good.dtype.kind != "f":
            return Array(np.full(good.shape, -(2**62), good.dtype))
        values = good.copy()
        values.flat[draw(st.integers(0, values.size - 1))] = draw(
            st.sampled_from(POISON if "running" in name else [*POISON, 1e4])  # statistics of a batch may be that large
        )
        return Array(values)
    whole = Array(good)
    if kind == "bytes":
        cut = draw(st.integers(0, len(whole.data) - 1))
        return Array(dtype=whole.dtype, shape=whole.shape, stype=whole.stype, data=whole.data[:cut])
    if kind == "python":
        return Array(dtype=whole.dtype, shape=whole.shape, stype=whole.stype, data=with_header(draw(headers)))
    if kind == "header":
        data = whole.data.replace(b"'shape': (", b"'shape': (10000000000000, ", 1)
        return Array(dtype=whole.dtype, shape=whole.shape, stype=whole.stype, data=data)
    data = b"\x80\x04K\x01." if kind == "pickle" else whole.data
    return Array(dtype=whole.dtype, shape=whole.shape, stype="pickle" if kind == "stype" else whole.stype, data=data)


def with_bad_array(message: Message, data: st.DataObject) -> Message:
    name = data.draw(st.sampled_from(NAMES))
    reply = answer(message, update_of(3, LAYERS, STATE, seed=1))
    next(iter(reply.content.array_records.values()))[name] = data.draw(arrays_of_any_kind(name))
    return reply


def with_other_names(message: Message, data: st.DataObject) -> Message:
    reply = answer(message, update_of(3, LAYERS, STATE, seed=1))
    arrays = next(iter(reply.content.array_records.values()))
    if data.draw(st.booleans()):
        arrays[data.draw(st.text(max_size=30).filter(lambda name: name not in NAMES))] = Array(np.ones(3, np.float32))
    else:  # half a layer
        del arrays[data.draw(st.sampled_from(["first.weight", "norm.bias", "last.bias", "norm.running_mean"]))]
    return reply


def with_bad_counts(message: Message, data: st.DataObject) -> Message:
    reply = answer(message, update_of(3, LAYERS, STATE, seed=1))
    record = record_of(reply)
    counted = ["salf-steps", "salf-passes", "salf-examples"]
    key = data.draw(st.sampled_from(["num-examples", *counted, "salf-round", "salf-elapsed-s"]))
    if key == "num-examples":
        bad: Any = st.one_of(st.integers(-(2**62), 0), st.integers(2**53 + 1, 2**62), st.floats(), st.just([1, 2]))
    elif key in counted:
        wrong_length = st.lists(st.integers(0, 3), max_size=6).filter(lambda counts: len(counts) != len(LAYERS))
        bad = st.one_of(st.just([1, -1, 1]), st.just([2**60, 1, 1]), wrong_length, st.sampled_from([1.5, [1.0] * 3]))
        bad = bad if key == "salf-steps" else st.one_of(bad, st.just([1, 0, 1]))
    elif key == "salf-round":
        bad = st.one_of(st.integers(-5, 0), st.integers(2, 2**62), st.floats(), st.just([1]))
    else:
        bad = st.sampled_from([float("nan"), float("inf"), [1.0]])
    record[key] = data.draw(bad)
    return reply


def with_other_records(message: Message, data: st.DataObject) -> Message:
    content = RecordDict()
    for place in range(data.draw(st.integers(0, 2))):
        content[f"arrays{place}"] = ArrayRecord({"first.weight": Array(np.ones((5, 4), np.float32))})
    for place in range(data.draw(st.sampled_from([0, 2]))):
        content[f"metrics{place}"] = MetricRecord({"num-examples": 3})
    if data.draw(st.booleans()):
        content["config"] = ConfigRecord({"salf-round": 1})
    return Message(content, reply_to=message)


def with_an_odd_object(message: Message, data: st.DataObject) -> Message:
    """Return a reply with an array such as Flower decodes, though it makes none."""
    reply = answer(message, update_of(1, LAYERS, STATE))
    odd = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=b"")
    odd.__dict__["data"] = data.draw(st.sampled_from([None, 3, "text", [b"a"]]))
    next(iter(reply.content.array_records.values()))["last.bias"] = odd
    return reply


def failing_loudly(message: Message, data: st.DataObject) -> Message:
    reason = data.draw(st.sampled_from(["no memory\nround 1: node 1: invalid: forged", "\x1b[2J", "x" * 10**5]))
    return Message(Error(code=2, reason=reason), reply_to=message)


def of_another_round(message: Message, data: st.DataObject) -> Message:
    number = data.draw(st.integers(-3, 50).filter(lambda number: number != TrainInstructions.read(message).round))
    return answer(message, update_of(3, LAYERS, STATE, seed=1), ClientReport(number, 1.0, 0.0, interrupted=False))


ATTACKS = [
    with_bad_array,
    with_bad_array,
    with_other_names,
    with_bad_counts,
    with_other_records,
    with_an_odd_object,
    of_another_round,
    failing_loudly,
]
HONEST = {1: (3, 11), 2: (2, 12), 3: (1, 13)}
HOSTILE = range(4, 24)
NODES = len(HONEST) + len(HOSTILE)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """Return the model when the hostile nodes are silent."""
    honest = {node: sending(depth, seed=seed) for node, (depth, seed) in HONEST.items()}
    grid = MemoryGrid({**honest, **{node: lambda _: () for node in HOSTILE}})
    return a_loop(grid, wrapped(inner(NODES), LAYERS)).run(initial(MODEL), 1).arrays.to_torch_state_dict()


@pytest.fixture
def reports(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "flwr.salf"):
        yield caplog


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_thousand_hostile_replies_change_nothing_and_are_logged(
    reports: pytest.LogCaptureFixture, expected: dict[str, torch.Tensor], data: st.DataObject
) -> None:
    """Twenty hostile nodes among three honest ones, 50 times; now and then each sends its reply twice."""
    reports.clear()
    hostile = {node: data.draw(st.sampled_from(ATTACKS), label=f"attack of {node}") for node in HOSTILE}
    twice = data.draw(st.booleans())

    def attack(message: Message) -> Iterable[tuple[float, Message]]:
        reply = hostile[message.metadata.dst_node_id](message, data)
        return [(0.5, reply), (0.5, reply)] if twice else [(0.5, reply)]

    honest = {node: sending(depth, seed=seed) for node, (depth, seed) in HONEST.items()}
    grid = MemoryGrid({**honest, **dict.fromkeys(hostile, attack)})
    loop = a_loop(grid, wrapped(inner(NODES), LAYERS))
    result = loop.run(initial(MODEL), 1)
    for name, value in result.arrays.to_torch_state_dict().items():
        assert torch.isfinite(value.float()).all(), name
        torch.testing.assert_close(value, expected[name])
    metrics = result.train_metrics_clientapp[1]
    failing = sum(attack is failing_loudly for attack in hostile.values())
    assert metrics["salf-failed"] == failing
    assert metrics["salf-rejected"] == len(HOSTILE) * (2 if twice else 1) - failing
    assert metrics["salf-contributors"] == [1, 2, 3]
    logged = [record.getMessage() for record in reports.records if record.name == "flwr.salf"]
    for node in hostile:
        assert len([line for line in logged if line.startswith(f"round 1: node {node}: ")]) == (2 if twice else 1)
    assert len(logged) == len(HOSTILE) * (2 if twice else 1)
    assert all(line.isprintable() and len(line) < 2100 for line in logged)


@given(headers)
def test_a_wrong_header_is_refused_without_evaluating_it(header: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        array_view(Array(dtype="float32", shape=(5, 4), stype="numpy.ndarray", data=with_header(header)))


@given(
    hnp.arrays(
        st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.boolean_dtypes(), hnp.complex_number_dtypes()),
        hnp.array_shapes(min_dims=0, min_side=0),
    )
)
def test_an_array_is_read_as_numpy_reads_it(values: np.ndarray[Any, Any]) -> None:
    for made in (values, np.asfortranarray(values)):
        read = array_view(Array(made))
        assert (read.dtype, read.shape) == (made.dtype, made.shape)
        np.testing.assert_array_equal(read, made)
        assert not read.flags.writeable or not read.size


def test_an_array_that_claims_to_be_huge_costs_no_memory() -> None:
    data = Array(np.ones(4)).data.replace(b"'shape': (4,)", b"'shape': (4000000000000,)", 1)
    with pytest.raises(ValueError, match="its size is not what its header says"):
        array_view(Array(dtype="float64", shape=(4,), stype="numpy.ndarray", data=data))


def test_an_update_within_the_limit_is_accepted_and_one_beyond_it_is_refused() -> None:
    state = {name: value.clone() for name, value in STATE.items()}

    def moved_by(change: float) -> object:
        def node(message: Message) -> Iterable[tuple[float, Message]]:
            update = update_of(1, LAYERS, state)
            deltas = {name: torch.full_like(delta, change) for name, delta in update.deltas.items()}
            return [(1.0, answer(message, type(update)(deltas, update.steps, 1, {})))]

        return node

    for change, accepted in ((9.9, 1), (10.1, 0)):
        grid = MemoryGrid({1: moved_by(change), 2: lambda _: ()})  # type: ignore[dict-item]
        result = a_loop(grid, wrapped(inner(2), LAYERS)).run(initial(MODEL), 1)
        contributors = result.train_metrics_clientapp[1]["salf-contributors"]
        assert json.dumps(contributors) == json.dumps([0, 0, accepted])
