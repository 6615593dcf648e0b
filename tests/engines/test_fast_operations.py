"""The operations that the fused engine has of its own give what torch's give."""

import copy
from itertools import pairwise

import pytest
import torch
from engine_cases import single_thread
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional

from salf.engines.fused.client_norm import client_norms
from salf.engines.fused.pooling import FastMaxPool2d, FastPool, has_fast_form, use_fast_pooling

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)


@settings(max_examples=60, deadline=None)
@given(
    side=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(3, 8), st.integers(3, 8)),
    levels=st.sampled_from([2, 3, 1000]),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_fast_pooling_is_max_pooling_to_the_last_bit(
    side: int, shape: tuple[int, ...], levels: int, channels_last: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(-levels, levels, shape, generator=draw).float() / 7  # few levels make many ties
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    expected, (gradient,) = with_gradient(lambda x: functional.max_pool2d(x, side), x)
    found, (own,) = with_gradient(FastPool(nn.MaxPool2d(side)), x)
    assert torch.equal(found, expected)
    assert torch.equal(own, gradient)


def with_gradient(operation: object, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    assert callable(operation)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    result: Tensor = operation(leaf)
    grad_output = torch.arange(result.numel(), dtype=x.dtype).view(result.shape) - 3
    return result.detach(), torch.autograd.grad(result, leaf, grad_output)


def hooked(module: nn.Module) -> nn.Module:
    """Return a module whose result a hook doubles."""
    module.register_forward_hook(lambda module, x, y: 2 * y)
    return module


@pytest.mark.parametrize(
    ("module", "fast"),
    [
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d((3, 3), 3), True),
        (nn.MaxPool2d(4), False),
        (nn.MaxPool2d(2, 1), False),
        (nn.MaxPool2d((2, 3)), False),
        (nn.MaxPool2d(2, padding=1), False),
        (nn.MaxPool2d(2, ceil_mode=True), False),
        (nn.MaxPool2d(2, return_indices=True), False),
        (nn.MaxPool2d(2, 2, dilation=2), False),
        (nn.AvgPool2d(2), False),
        (hooked(nn.MaxPool2d(2)), False),
    ],
)
def test_only_plain_pooling_has_a_fast_form(module: nn.Module, fast: bool) -> None:
    assert has_fast_form(module) is fast


def test_a_quickened_model_computes_the_same_to_the_last_bit() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.ReLU())
    model = nn.Sequential(block, hooked(nn.MaxPool2d(2)), nn.MaxPool2d(3, 1), nn.Flatten()).eval()
    inputs = torch.randn(5, 2, 16, 16)
    quick = use_fast_pooling(copy.deepcopy(model))
    kinds = [type(module) for module in quick.modules()]
    assert kinds.count(FastMaxPool2d) == 1
    assert kinds.count(nn.MaxPool2d) == 2
    pools = [module for module in quick.modules() if isinstance(module, nn.MaxPool2d)]
    assert [module.kernel_size for module in pools] == [2, 2, 3]
    with torch.inference_mode():
        assert torch.equal(quick(inputs), model(inputs))
    assert [*quick.state_dict()] == [*model.state_dict()]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 4), min_size=1, max_size=5),
    data=st.data(),
    momentum=st.sampled_from([0.1, 0.5, None]),
    affine=st.booleans(),
)
def test_client_norm_normalises_each_client_by_its_own_batch(
    sizes: list[int], data: st.DataObject, momentum: float | None, affine: bool
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum, affine=affine)).double()
    recorded = data.draw(st.integers(0, len(sizes)))
    bounds = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    x = torch.randn(bounds[-1], 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    norm = client_norms(model)["0"]
    norm.begin(recorded, x.device)
    own = model[0]
    assert isinstance(own, nn.BatchNorm2d)
    found = norm(x, own.weight, own.bias, bounds, 0)
    weights, buffers = torch.arange(1, len(sizes) + 1, dtype=torch.float64), []
    for client, (start, end) in enumerate(pairwise(bounds)):
        twin = nn.BatchNorm2d(3, momentum=momentum, affine=affine).double()
        assert torch.equal(found[start:end], twin(x[start:end]))
        buffers.append((weights[client], twin))
    sums = norm.sums(weights, model.state_dict())
    assert bool(sums) is bool(recorded)
    for name in ("running_mean", "running_var") if recorded else ():
        expected = sum(weight * twin.get_buffer(name) for weight, twin in buffers[:recorded])
        assert isinstance(expected, Tensor)
        assert torch.allclose(sums[f"0.{name}"], expected, rtol=1e-12, atol=1e-12)
    if recorded:
        assert int(sums["0.num_batches_tracked"]) == 1
