"""An asynchronous server receives one model after another: numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from salf.aggregation.staleness import Buffer, ClientResult, ServerModel, mix
from salf.methods import FedAsync, FedBuff

STATISTICS = {"norm.mean"}


def weights(value: float, mean: float = 0.0, batches: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A model of one weight, one statistic and one counter."""
    return {
        "weight": torch.tensor([value], dtype=dtype),
        "norm.mean": torch.tensor([mean], dtype=dtype),
        "norm.batches": torch.tensor(batches),
    }


def values(model: object) -> tuple[float, float, int]:
    assert isinstance(model, ServerModel)
    state = model.weights
    return state["weight"].item(), state["norm.mean"].item(), int(state["norm.batches"])


@pytest.mark.parametrize(("staleness", "share"), [(0, 0.6), (1, 0.6 / math.sqrt(2)), (3, 0.3), (8, 0.2)])
def test_fedasync_mixes_less_of_what_is_stale(staleness: int, share: float) -> None:
    # From x = 10 and x_new = 20, whatever x_new was trained from.
    arrival = ClientResult(weights(7.0), weights(20.0, mean=1.0, batches=5), staleness)
    after = FedAsync().receive(ServerModel(weights(10.0, batches=9), version=4), arrival, STATISTICS)
    assert values(after) == pytest.approx((10 + 10 * share, share, 9))
    assert (after.version, after.buffer.count) == (5, 0)


def test_hyper_parameters_of_fedasync_enter_its_share() -> None:
    arrival = ClientResult(weights(0.0), weights(1.0), 3)
    assert values(FedAsync(alpha=0.8, a=1.0).receive(ServerModel(weights(0.0)), arrival, ()))[0] == pytest.approx(0.2)
    assert values(FedAsync(alpha=0.8, a=0.0).receive(ServerModel(weights(0.0)), arrival, ()))[0] == pytest.approx(0.8)
    assert values(FedAsync(alpha=1.0, a=0.0).receive(ServerModel(weights(9.0)), arrival, ()))[0] == 1.0
    assert (FedAsync().proximal, FedAsync(rho=0.1).proximal, FedBuff().proximal) == (0.005, 0.1, 0.0)


def test_fedbuff_moves_after_every_third_arrival() -> None:
    method, server = FedBuff(buffer=3, server_lr=0.5), ServerModel(weights(10.0, mean=3.0, batches=1))
    arrivals = [
        ClientResult(weights(10.0), weights(16.0, mean=4.0, batches=2), 0),  # Δ = 6, s = 1
        ClientResult(weights(8.0), weights(4.0, mean=8.0, batches=7), 3),  # Δ = −4, s = 1/2
        ClientResult(weights(9.0), weights(18.0, mean=1.0, batches=3), 8),  # Δ = 9, s = 1/3
    ]
    for count, arrival in enumerate(arrivals[:2], start=1):
        server = method.receive(server, arrival, STATISTICS)
        assert (values(server), server.version, server.buffer.count) == ((10.0, 3.0, 1), 0, count)
    server = method.receive(server, arrivals[2], STATISTICS)
    moved = 10 + 0.5 * (6 - 2 + 3) / 3
    mean = (4 + 8 / 2 + 1 / 3) / (1 + 1 / 2 + 1 / 3)
    assert values(server) == pytest.approx((moved, mean, 7))
    assert (server.version, server.buffer) == (1, Buffer())


def test_a_large_step_of_the_server_never_extrapolates_statistics() -> None:
    method, arrival = FedBuff(buffer=1, server_lr=100.0), ClientResult(weights(1.0, 5.0), weights(2.0, 0.25), 0)
    assert values(method.receive(ServerModel(weights(1.0, 5.0)), arrival, STATISTICS))[:2] == (101.0, 0.25)


def test_what_did_not_change_stays_to_the_last_bit() -> None:
    frozen = weights(0.1, 0.3)
    arrival = ClientResult(frozen, frozen, 2)
    for method in (FedAsync(alpha=0.3), FedAsync(alpha=0.9, a=0.0), FedBuff(buffer=1, server_lr=0.7)):
        assert values(method.receive(ServerModel(frozen), arrival, STATISTICS)) == values(ServerModel(frozen))


def test_short_floats_are_summed_in_single_precision() -> None:
    # A bfloat16 has 8 bits of precision: 256 + 1 is none of its numbers, but 65, the mean of these four, is one.
    buffer, start = Buffer(), {"w": torch.zeros(1, dtype=torch.bfloat16)}
    for value in (256.0, 1.0, 1.0, 2.0):
        buffer = buffer.add(ClientResult(start, {"w": torch.tensor([value], dtype=torch.bfloat16)}, 0), 1.0, ())
    moved = buffer.move(start, 1.0, ())["w"]
    assert (moved.item(), moved.dtype) == (65.0, torch.bfloat16)
    mixed = mix(weights(256.0, dtype=torch.bfloat16), weights(260.0, dtype=torch.bfloat16), 0.5)["weight"]
    assert (mixed.item(), mixed.dtype) == (258.0, torch.bfloat16)


def test_a_move_out_of_range_is_not_made() -> None:
    before = weights(1e38, mean=2.0)
    arrival = ClientResult(before, weights(3e38, mean=1.0), 0)
    after = FedBuff(buffer=1, server_lr=1e3).receive(ServerModel(before), arrival, STATISTICS)
    assert (values(after), after.version) == (values(ServerModel(before)), 1)
