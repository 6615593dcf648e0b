"""`find_layers` and `measure_costs` on wrapped, reparametrized and skipping models."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from salf.errors import UnsuitableModel
from salf.layers import find_layers, measure_costs, measure_passing

Model = Callable[[], nn.Module]


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_compiled_model_has_the_names_of_the_model_inside() -> None:
    model = chain()
    plain = find_layers(model, torch.ones(2, 3))
    compiled = cast("nn.Module", torch.compile(model, backend="eager"))
    assert find_layers(compiled, torch.ones(2, 3)) == plain
    assert plain.tensors == set(model.state_dict())
    assert measure_costs(compiled, torch.ones(2, 3), plain) == measure_costs(model, torch.ones(2, 3), plain)
    model.compile(backend="eager")
    assert find_layers(model, torch.ones(2, 3)) == plain


@pytest.mark.usefixtures("group_of_one")
def test_a_model_in_ddp_has_the_names_of_the_model_inside() -> None:
    wrapped = nn.parallel.DistributedDataParallel(chain())
    assert find_layers(wrapped, torch.ones(2, 3)).names == ("0", "2")


@pytest.mark.usefixtures("group_of_one")
def test_a_sharded_model_is_rejected_by_name() -> None:
    mesh = init_device_mesh("cpu", (1,))
    with pytest.raises(UnsuitableModel, match=r"'0.weight' is sharded by fully_shard.*; find the layers before"):
        find_layers(cast("nn.Module", fully_shard(chain(), mesh=mesh)), torch.ones(2, 3))


def test_a_flat_sharded_model_is_rejected_by_name() -> None:
    flat = type("FullyShardedDataParallel", (nn.Sequential,), {})(nn.Linear(3, 2))
    with pytest.raises(UnsuitableModel, match=r"FullyShardedDataParallel; find the layers before"):
        find_layers(flat)


def pruned(linear: nn.Linear) -> nn.Module:
    prune_weight: Any = prune.l1_unstructured
    prune_weight(linear, "weight", amount=0.5)
    return linear


@pytest.mark.parametrize(
    ("change", "tensors"),
    [
        (weight_norm, {"bias", "weight_g", "weight_v"}),
        (spectral_norm, {"bias", "weight_orig", "weight_u", "weight_v"}),
        (pruned, {"bias", "weight_orig", "weight_mask"}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_a_hook_computes_are_seen_after_a_forward_pass(
    change: Callable[[nn.Linear], nn.Module], tensors: set[str]
) -> None:
    model = nn.Sequential(change(nn.Linear(3, 4)), nn.Linear(4, 2))
    model(torch.ones(2, 3))
    layers = find_layers(model, torch.ones(2, 3))
    assert layers.names == ("0", "1")
    assert {name.removeprefix("0.") for name in (*layers[0].parameters, *layers[0].buffers)} == tensors
    costs = measure_passing(model, torch.ones(2, 3), layers, measure_costs(model, torch.ones(2, 3), layers))
    assert costs.passing is not None
    assert len(costs.passing) == 2


def test_parametrized_weights_can_join_the_layer_of_their_module() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    layers = find_layers(model, torch.ones(2, 3), group=["0"])
    assert layers.names == ("0", "1")
    assert layers.tensors == set(model.state_dict())


@dataclass
class Answer:
    scores: Tensor
    loss: Tensor | None = None


class Returning(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.wrap = nn.Linear(3, 2), wrap

    def forward(self, inputs: Tensor) -> object:
        return self.wrap(self.inner(inputs))


@pytest.mark.parametrize(
    "wrap", [Answer, lambda out: {out}, lambda out: [None, {"a": Answer(out)}], lambda out: frozenset({out})]
)
def test_tensors_are_found_in_any_output(wrap: Callable[[Tensor], object]) -> None:
    assert find_layers(Returning(wrap), torch.ones(2, 3)).names == ("inner",)


class Dropping(nn.Module):
    """Skips each of its layers with a given generator."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.blocks, self.draw = nn.ModuleList(nn.Linear(3, 3) for _ in range(4)), draw

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            if not self.training or self.draw() < 0.5:
                inputs = inputs + block(inputs)
        return inputs


class Alternating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.heads, self.turn = nn.Linear(3, 3), nn.ModuleList(nn.Linear(3, 2) for _ in range(3)), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.turn += 1
        head: nn.Module = self.heads[self.turn % 3]
        return torch.as_tensor(head(self.trunk(inputs)))


class Experts(nn.Module):
    """Routes each row to the expert with the highest score, with noise in training."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.router, self.noise = nn.Linear(3, 3), noise
        self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        scores = self.router(inputs).softmax(-1)
        chosen = int((scores + self.noise * torch.rand_like(scores)).sum(0).argmax()) if self.noise else 0
        return torch.as_tensor(self.experts[chosen](inputs) * scores[:, chosen : chosen + 1])


@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), random.random, np.random.rand])
def test_layers_that_are_dropped_at_random_are_found_for_any_random_state(draw: Callable[[], float]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), random.getstate()
        layers = find_layers(Dropping(draw), torch.ones(2, 3))
        assert layers.names == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
        assert random.getstate() == before[1]
        model = Dropping(draw)
        assert all(measure_costs(model, torch.ones(1, 3), find_layers(model, torch.ones(1, 3))).backward)


def test_heads_that_alternate_and_experts_with_noise_are_found() -> None:
    torch.manual_seed(0)
    layers = find_layers(Alternating(), torch.ones(2, 3))
    assert layers.unused == ()
    assert layers.names[0] == "trunk"
    assert set(layers.names[1:]) == {"heads.0", "heads.1", "heads.2"}
    assert find_layers(Experts(noise=5.0), torch.ones(2, 3)).unused == ()


def test_an_expert_that_no_example_reaches_can_be_named() -> None:
    model = Experts(noise=0.0)
    assert find_layers(model, torch.ones(2, 3)).unused == tuple(
        f"experts.{expert}.{part}" for expert in (1, 2) for part in ("weight", "bias")
    )
    layers = find_layers(model, torch.ones(2, 3), group=iter(["experts.1", "experts.2"]))
    assert layers.unused == ()
    assert set(layers.names) == {"router", "experts.0", "experts.1", "experts.2"}
    assert layers.names.index("experts.1") < layers.names.index("experts.2")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_module_is_one_layer(kind: Callable[..., nn.Module]) -> None:
    recurrent = kind(3, 4, num_layers=2)
    layers = find_layers(recurrent, torch.ones(5, 2, 3))
    assert len(layers) == 1
    assert layers.tensors == set(recurrent.state_dict())


class Conv1D(nn.Module):
    """GPT-2's linear layer, whose weight is transposed."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.addmm(self.bias, inputs, self.weight)


class LowRank(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.lora_a, self.lora_b = nn.Linear(3, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.base(inputs) + self.lora_b(self.lora_a(inputs)))


class Adversaries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.discriminator, self.generator = nn.Linear(4, 1), nn.Linear(3, 4)

    def forward(self, noise: Tensor) -> Tensor:
        return torch.as_tensor(self.discriminator(self.generator(noise)))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.Sequential(Conv1D(4, 3), nn.GELU(), Conv1D(2, 4)), ("0", "2")),
        (lambda: LowRank(Conv1D(4, 3)), ("lora_a", "lora_b")),
        (Adversaries, ("generator", "discriminator")),
    ],
)
def test_common_families_have_their_modules_as_layers(make: Model, names: tuple[str, ...]) -> None:
    assert find_layers(make(), torch.ones(2, 3)).names == names
