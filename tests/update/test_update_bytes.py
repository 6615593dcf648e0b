"""An update survives the wire bit for bit; whatever else arrives is refused with `InvalidUpdate` and nothing worse."""

import json
import pickle
import struct
from collections.abc import Mapping
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from salf.aggregation.aggregation import Aggregation
from salf.aggregation.rules import Memory
from salf.errors import InvalidUpdate
from salf.layers.find import Layer, Layers
from salf.update import Update

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
OTHERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.complex64]
SHAPES: list[tuple[int, ...]] = [(), (1,), (4,), (2, 3), (0,), (0, 2), (2, 1, 2)]


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[torch.dtype]) -> Tensor:
    """A tensor of any bits (so of any NaN), now and then a view of something larger."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(st.sampled_from(SHAPES))
    view = draw(st.sampled_from(["plain", "strided", "transposed", "expanded"]))
    larger = torch.Size([*shape, 2]).numel() * dtype.itemsize
    values = torch.frombuffer(bytearray(draw(st.binary(min_size=larger, max_size=larger)) or b" " * 16), dtype=dtype)
    if view == "expanded":
        return values[0].expand(shape)
    whole = values[: larger // dtype.itemsize].reshape(*shape, 2)
    if view == "strided":
        return whole[..., 1]
    return whole.permute(*reversed(range(whole.ndim)))[0] if view == "transposed" else whole[..., 0].clone()


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, list[int]]:
    return (
        tensor.dtype,
        tensor.shape,
        tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).tolist(),
    )


def all_bits(mapping: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size, list[int]]]:
    return {name: bits(tensor) for name, tensor in mapping.items()}


@settings(max_examples=50, deadline=None)
@given(
    deltas=st.dictionaries(st.text(max_size=8), tensors(FLOATS), max_size=4),
    buffers=st.dictionaries(st.text(max_size=8), tensors(FLOATS + OTHERS), max_size=3),
    steps=st.integers(0, 2**53) | st.dictionaries(st.text(max_size=8), st.integers(0, 9), max_size=3),
    num_examples=st.integers(0, 2**53),
    counts=st.tuples(*[st.dictionaries(st.text(max_size=8), st.integers(0, 2**60), max_size=3)] * 2),
    shared=st.booleans(),
)
def test_nothing_is_lost(
    deltas: dict[str, Tensor],
    buffers: dict[str, Tensor],
    steps: int | dict[str, int],
    num_examples: int,
    counts: tuple[dict[str, int], dict[str, int]],
    shared: bool,
) -> None:
    if shared and deltas:  # two names of one tensor, and one that overlaps them
        first = next(iter(deltas.values()))
        deltas |= {"again": first, "turned": first.t() if first.ndim == 2 else first.reshape(-1)[1:]}
    update = Update(deltas, steps, num_examples, buffers, *counts)
    for read in (Update.from_bytes(update.to_bytes()), pickle.loads(pickle.dumps(update))):
        assert all_bits(read.deltas) == all_bits(deltas)
        assert all_bits(read.buffers) == all_bits(buffers)
        assert (read.steps, read.num_examples) == (steps, num_examples)
        assert (read.passes, read.examples) == counts


def test_what_is_not_counted_is_not_written() -> None:
    before, after = Update({}, 1, 1), Update({}, 1, 1, {}, {"head": 3}, {"head": 12})
    assert json.loads(before.to_bytes()[8:])["__metadata__"] == {"salf": json.dumps(HEADER, sort_keys=True)}
    assert Update.from_bytes(before.to_bytes()).examples == {}
    assert repr(before) == "Update(0 parameters, 0 buffers, 0 bytes, steps=1, num_examples=1)"
    assert repr(after).endswith("num_examples=1, passes={'head': 3}, examples={'head': 12})")


def test_gradients_and_the_senders_memory_stay_behind() -> None:
    weight = torch.ones(2, requires_grad=True)
    read = Update.from_bytes(Update({"w": 2 * weight}, 1, 1).to_bytes())
    assert not read.deltas["w"].requires_grad
    read.deltas["w"].add_(1)
    assert weight.tolist() == [1, 1]


LAYERS = Layers((Layer("body", ("body.w",), ("body.mean",)), Layer("head", ("head.w",))))
STATE = {"body.w": torch.zeros(2), "body.mean": torch.zeros(()), "head.w": torch.zeros(2, dtype=torch.float16)}
VALID = Update(
    {"body.w": torch.ones(2), "head.w": torch.ones(2, dtype=torch.float16)},
    {"body": 1, "head": 2},
    8,
    {"body.mean": torch.tensor(1.5)},
).to_bytes()


def receive(payload: bytes) -> bool:
    """Take a payload as a server does; any error but `InvalidUpdate` goes through."""
    try:
        running = Aggregation(STATE, LAYERS, Memory(weight_by_examples=True, normalise="steps"))
        running.add(Update.from_bytes(payload))
    except InvalidUpdate:
        return False
    running.finish()
    return True


HEADER = {"format": "salf-update-1", "steps": 1, "num_examples": 1}


def payload(metadata: object, tensors: Mapping[str, object] | None = None, body: bytes = b"") -> bytes:
    """Write the bytes of a safetensors file by hand."""
    text = json.dumps({"__metadata__": metadata, **(tensors or {})}).encode()
    return struct.pack("<Q", len(text)) + text + body


def metadata(update: str = json.dumps(HEADER)) -> dict[str, Any]:
    return {"salf": update}


def one_tensor(dtype: str, shape: list[int], size: int, name: str = "delta/body.w") -> bytes:
    return payload(metadata(), {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, b"\1" * size)


def test_valid_payloads_are_taken() -> None:
    assert receive(VALID)
    assert all(
        receive(one_tensor(dtype, [2], size)) for dtype, size in (("F32", 8), ("F16", 4), ("BF16", 4), ("F64", 16))
    )
    assert receive(payload(metadata()))


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        b"PK\x03\x04 some other format",
        b"{}",
        VALID[:-1],
        VALID + b"\0",
        safetensors.torch.save({"body.w": torch.ones(2)}),
        safetensors.torch.save({"delta/body.w": torch.ones(2)}, metadata={"format": "pt"}),
        payload(None),
        payload({}),
        payload({"salf": '{"format": "salf-update-1"}'}),
        payload({"salf": '{"format": "salf-update-2", "steps": 1, "num_examples": 1}'}),
        payload({"salf": 3}),
        *(
            payload(metadata(update))
            for update in (
                "",
                "{",
                "[]",
                "3",
                "null",
                '"steps"',
                "{}",
                '{"steps": 1}',
                '{"format": "salf-update-1", "steps": 1}',
                *(json.dumps(HEADER | {kind: 3}) for kind in ("passes", "examples")),
                json.dumps(HEADER | {"examples": None}),
            )
        ),
        payload(metadata("[" * 100_000)),
        payload(metadata('{"format": "salf-update-1", "steps": 1, "num_examples": ' + "1" * 5000 + "}")),
        one_tensor("F32", [2], 8, name="gradient/body.w"),
        one_tensor("F32", [2], 8, name="body.w"),
        one_tensor("F33", [2], 8),
        one_tensor("F4", [4], 2),
        one_tensor("F8_E8M0", [2], 2),
        one_tensor("F32", [3], 8),
        one_tensor("F32", [0, 2**62, 8], 0),
        one_tensor("F32", [0, 2**63], 0),
        one_tensor("F32", [-1], 8),
    ],
    ids=lambda wrong: f"{len(wrong)} bytes",
)
def test_what_is_no_update_is_refused(wrong: bytes) -> None:
    with pytest.raises(InvalidUpdate, match=r"^these bytes are not an update; send "):
        Update.from_bytes(wrong)


WRONG_COUNTS: list[dict[str, object]] = [
    {"num_examples": 10**400},
    {"num_examples": None},
    {"num_examples": {}},
    {"num_examples": float("inf")},
    {"steps": 10**400},
    {"steps": "1"},
    {"steps": [1]},
    {"steps": {"head": [1]}},
    {"steps": {"head": 1, "": 1}},
    {"passes": {"head": 0}},
    {"passes": {"body": 1}},
    {"examples": {"head": 1, "": 1}},
    {"examples": {"head": 10**400}},
]


@pytest.mark.parametrize(
    "wrong",
    [
        *(one_tensor(dtype, [2], 2) for dtype in ("F8_E4M3", "F8_E5M2", "U8", "BOOL")),
        one_tensor("U16", [2], 4),
        *(one_tensor(dtype, [2], 16) for dtype in ("C64", "U64")),
        one_tensor("F32", [0, 2**62], 0),
        one_tensor("F32", [2], 8, name="delta/"),
        *(
            payload(
                metadata(json.dumps(HEADER | change)),
                {"delta/head.w": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}},
                b"\1" * 4,
            )
            for change in WRONG_COUNTS
        ),
    ],
    ids=lambda wrong: f"{len(wrong)} bytes",
)
def test_what_cannot_be_aggregated_is_refused(wrong: bytes) -> None:
    assert not receive(wrong)


def test_a_cut_payload_is_refused() -> None:
    for length in range(len(VALID)):
        with pytest.raises(InvalidUpdate):
            Update.from_bytes(VALID[:length])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(noise: bytes) -> None:
    assert not receive(noise)
    receive(struct.pack("<Q", len(noise)) + noise)
    receive(payload(metadata()) + noise)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(max_size=3)), min_size=1, max_size=4))
def test_a_damaged_payload_is_taken_or_refused(edits: list[tuple[int, bytes]]) -> None:
    damaged = VALID
    for place, piece in edits:
        damaged = damaged[:place] + piece + damaged[place + 1 :]
    receive(damaged)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


COUNTS = JSON | st.dictionaries(st.sampled_from(LAYERS.names), JSON)


@settings(max_examples=80, deadline=None)
@given(steps=COUNTS, num_examples=JSON, examples=COUNTS)
def test_any_counts_are_taken_or_refused(steps: object, num_examples: object, examples: object) -> None:
    tensors = {"delta/body.w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    counts = {"steps": steps, "num_examples": num_examples, "examples": examples}
    taken = receive(payload(metadata(json.dumps(HEADER | counts)), tensors, b"\1" * 8))
    here = [each.get("body") if isinstance(each, dict) else each for each in (steps, examples or 1)]
    assert not taken or all(type(count) is int and count >= 1 for count in (*here, num_examples))
