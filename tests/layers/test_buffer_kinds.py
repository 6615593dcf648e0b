"""What find_layers knows of a model's buffers, and what its user states."""

import pickle
from collections.abc import Callable

import pytest
import torch
from buffer_cases import Causal, Moco, pruned, quantized
from torch import nn

from salf.errors import InvalidSetting, UnsuitableModel
from salf.layers import BufferKind, Layer, Layers, find_layers


def sent(layers: Layers) -> list[str]:
    return [name for layer in layers for name in layer.buffers]


def kinds_of(model: nn.Module, layers: Layers) -> dict[str, BufferKind | None]:
    return {name: layers.kind_of(name, buffer) for name, buffer in model.named_buffers()}


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d, nn.SyncBatchNorm, lambda size: nn.InstanceNorm1d(size, affine=True, track_running_stats=True)],
)
def test_the_buffers_of_batch_normalization_need_no_entry(norm: Callable[[int], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(2, 3), norm(3))
    layers = find_layers(model)
    assert kinds_of(model, layers) == {
        "1.running_mean": "statistic",
        "1.running_var": "statistic",
        "1.num_batches_tracked": "counter",
    }
    assert dict(layers.buffer_kinds) == {}


def test_masks_of_pruned_weights_are_constant() -> None:
    model = pruned()
    layers = find_layers(model)
    assert dict(layers.buffer_kinds) == {"0.weight_mask": "constant"}
    assert sent(layers) == ["0.weight_mask"]


def test_a_mask_without_a_pruned_weight_is_like_any_other_buffer() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("weight_mask", torch.ones(2))
    assert kinds_of(model, find_layers(model)) == {"weight_mask": "statistic"}


def test_buffers_of_fake_quantization_are_never_sent() -> None:
    model = quantized()
    layers = find_layers(model, torch.zeros(4, 6))
    assert set(layers.buffer_kinds) == {name for name, _ in model.named_buffers()}
    assert set(layers.buffer_kinds.values()) == {"local"}
    assert sent(layers) == []


def test_whole_numbers_have_no_kind_unless_it_is_stated() -> None:
    model = Moco()
    assert kinds_of(model, find_layers(model))["queue_ptr"] is None
    layers = find_layers(model, buffer_kinds={"queue_ptr": "local", "queue": "local"})
    assert sent(layers) == ["encoder.1.running_mean", "encoder.1.running_var", "encoder.1.num_batches_tracked"]
    assert dict(layers.buffer_kinds) == {"queue_ptr": "local", "queue": "local"}


def test_a_name_counts_more_than_a_pattern_and_the_first_pattern_more_than_a_later_one() -> None:
    model = nn.Sequential(Moco(), Moco())
    patterns: dict[str, BufferKind] = {"*.queue*": "local", "*.queue_ptr": "counter", "1.queue_ptr": "constant"}
    layers = find_layers(model, buffer_kinds=patterns)
    assert dict(layers.buffer_kinds) == {
        "0.queue": "local",
        "0.queue_ptr": "local",
        "1.queue": "local",
        "1.queue_ptr": "constant",
    }


def test_what_is_stated_counts_more_than_what_is_known() -> None:
    layers = find_layers(pruned(), buffer_kinds={"0.weight_mask": "statistic"})
    assert dict(layers.buffer_kinds) == {"0.weight_mask": "statistic"}


def test_buffers_outside_the_state_dict_have_no_entry() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("seen", torch.tensor(0), persistent=False)
    layers = find_layers(model, buffer_kinds={"seen": "counter"})
    assert (sent(layers), dict(layers.buffer_kinds)) == ([], {})


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ({"pointer": "local"}, "buffer_kinds names 'pointer', which is no buffer of the model; use names in"),
        ({"*.queue": "local"}, r"buffer_kinds names '\*.queue', which is no buffer of the model"),
        ({3: "local"}, "buffer_kinds names 3, which is no buffer of the model"),
        ({"queue_ptr": "statistic"}, "buffer 'queue_ptr' is of type torch.int64, which has no mean; choose another"),
        ({"queue": "counter"}, "buffer 'queue' is of type torch.float32, but a counter is whole; choose another kind"),
    ],
)
def test_a_kind_that_cannot_be_is_named(stated: dict[str, BufferKind], problem: str) -> None:
    with pytest.raises(UnsuitableModel, match=problem):
        find_layers(Moco(), buffer_kinds=stated)


@pytest.mark.parametrize("kind", ["other", None, ["local"]])
def test_a_kind_is_one_of_four(kind: object) -> None:
    message = r"buffer_kinds\['queue'\] is .*; choose 'statistic', 'counter', 'constant' or 'local'"
    with pytest.raises(InvalidSetting, match=message):
        find_layers(Moco(), buffer_kinds={"queue": kind})  # type: ignore[dict-item]
    with pytest.raises(InvalidSetting, match=message):
        Layers((Layer("a", ("w",), ("queue",)),), buffer_kinds={"queue": kind})  # type: ignore[dict-item]


def test_a_local_buffer_belongs_to_no_layer() -> None:
    with pytest.raises(UnsuitableModel, match="'b' is local, but belongs to a layer"):
        Layers((Layer("a", ("w",), ("b",)),), buffer_kinds={"b": "local"})
    with pytest.raises(InvalidSetting, match="buffer_kinds is of type list"):
        Layers((Layer("a", ("w",)),), buffer_kinds=["b"])  # type: ignore[arg-type]


def test_kinds_survive_pickling() -> None:
    layers = find_layers(Causal(), buffer_kinds={"mask": "constant", "rotary": "local"})
    assert pickle.loads(pickle.dumps(layers)) == layers
    assert pickle.loads(pickle.dumps(layers)).buffer_kinds == layers.buffer_kinds
