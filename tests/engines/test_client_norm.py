"""Batch normalisation of many clients at once, against one client after the other."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from engine_cases import single_thread
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional

from salf.engines.fused.client_norm import ClientNorm

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)
_PIXELS = {nn.BatchNorm1d: (), nn.BatchNorm2d: (2, 3)}


def _normalised(
    module: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, bounds: list[int], recorded: int, start: int, *, together: bool
) -> tuple[Tensor, Mapping[str, Tensor], list[Tensor]]:
    """Return the result, the sums of the buffers, and the gradients of a loss."""
    norm = ClientNorm("norm", module)
    norm.begin(recorded, x.device)
    norm.together = together
    x = x.clone().requires_grad_()
    parameters = list(module.parameters())
    result = norm(x, module.weight, module.bias, bounds, start)
    gradients = torch.autograd.grad((result * torch.arange(result.numel()).view_as(result)).sum(), [x, *parameters])
    state = {f"norm.{name}": value for name, value in module.named_buffers()}
    weights = torch.arange(1.0, len(bounds), dtype=torch.float64)
    return result, norm.sums(weights, state), list(gradients)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([nn.BatchNorm1d, nn.BatchNorm2d]),
    sizes=st.one_of(
        st.integers(2, 5).flatmap(lambda size: st.lists(st.just(size), min_size=1, max_size=5)),
        st.lists(st.integers(2, 5), min_size=1, max_size=5),
    ),
    affine=st.booleans(),
    tracked=st.booleans(),
    data=st.data(),
)
def test_all_clients_together_are_each_client_by_itself(
    kind: type[nn.BatchNorm1d | nn.BatchNorm2d], sizes: list[int], affine: bool, tracked: bool, data: st.DataObject
) -> None:
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    start = data.draw(st.sampled_from(bounds[:-1]))
    recorded = data.draw(st.integers(0, len(sizes)))
    draw = torch.Generator().manual_seed(0)
    module = kind(3, affine=affine, track_running_stats=tracked).double()
    for value in module.parameters():
        nn.init.normal_(value, generator=draw)
    x = torch.randn(bounds[-1] - start, 3, *_PIXELS[kind], generator=draw, dtype=torch.float64)

    one, sums, gradients = _normalised(module, x, bounds, recorded, start, together=True)
    other, expected, expected_gradients = _normalised(module, x, bounds, recorded, start, together=False)

    torch.testing.assert_close(one, other)
    torch.testing.assert_close(gradients, expected_gradients)
    assert sums.keys() == expected.keys()
    torch.testing.assert_close(dict(sums), dict(expected))


def test_each_client_is_normalised_by_its_own_statistics() -> None:
    module = nn.BatchNorm2d(2)
    x = torch.randn(6, 2, 3, 3) * torch.arange(1.0, 7).view(-1, 1, 1, 1)
    for together in (True, False):
        norm = ClientNorm("norm", module)
        norm.begin(2, x.device)
        norm.together = together
        found = norm(x, module.weight, module.bias, [0, 3, 6], 0)
        for start, end in pairwise([0, 3, 6]):
            own = functional.batch_norm(x[start:end], None, None, training=True)
            torch.testing.assert_close(found[start:end], own)


@pytest.mark.parametrize(("device", "together"), [("cpu", False), ("meta", True)])
def test_where_beginning_is_dear_all_are_normalised_together(device: str, together: bool) -> None:
    norm = ClientNorm("norm", nn.BatchNorm1d(2))
    norm.begin(1, torch.device(device))
    assert norm.together is together
