"""What the built networks are: their shapes, their sizes, and that they can be trained layer by layer."""

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from salf.models import Cnn, Mlp, Model, ResidualNet, Transformer, Vgg, build

DIGITS_CNN = Cnn(channels=(16, 16), kernel=3, padding=1, hidden=(32,))
NETWORKS = {
    "mlp": (Mlp(), (784,)),
    "mlp of images": (Mlp(hidden=(8,)), (1, 8, 8)),
    "softmax regression": (Mlp(hidden=()), (1, 8, 8)),
    "cnn": (Cnn(), (1, 28, 28)),
    "digits cnn": (DIGITS_CNN, (1, 8, 8)),
    "cnn without hidden layers, oblong": (Cnn(channels=(3,), kernel=3, hidden=()), (3, 9, 6)),
    "vgg11": (Vgg(), (3, 32, 32)),
    "residual": (ResidualNet(width=8), (1, 8, 8)),
    "residual, odd and oblong": (ResidualNet(width=4, blocks=(2, 1)), (3, 9, 7)),
    "transformer": (Transformer(), (1, 8, 8)),
    "transformer, oblong": (Transformer(width=12, depth=1, heads=3, patch=2), (3, 8, 4)),
}
NORMALISED = ("vgg11", "residual", "residual, odd and oblong")

every_network = pytest.mark.parametrize(("model", "shape"), NETWORKS.values(), ids=NETWORKS)
every_plain_network = pytest.mark.parametrize(
    ("model", "shape"),
    [network for name, network in NETWORKS.items() if name not in NORMALISED],
    ids=[name for name in NETWORKS if name not in NORMALISED],
)


def examples(shape: tuple[int, ...], count: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@every_network
def test_a_batch_of_examples_gives_one_score_per_class(model: Model, shape: tuple[int, ...]) -> None:
    network = build(model, shape, num_classes=7, seed=0)
    assert network(examples(shape, 3)).shape == (3, 7)
    assert network(examples(shape, 1)).shape == (1, 7)


@every_network
def test_the_gradient_reaches_every_parameter(model: Model, shape: tuple[int, ...]) -> None:
    network = build(model, shape, num_classes=7, seed=0)
    torch.autograd.backward(functional.cross_entropy(network(examples(shape, 4)), torch.tensor([0, 1, 2, 3])))
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # The gradient of a bias before BatchNorm is zero but for rounding, so only weights are held to more.
        assert parameter.dim() == 1 or parameter.grad.any(), name


@every_network
def test_each_module_with_parameters_is_used_once(model: Model, shape: tuple[int, ...]) -> None:
    network = build(model, shape, num_classes=2, seed=0)
    owners = {name: module for name, module in network.named_modules() if [*module.parameters(recurse=False)]}
    calls: Counter[str] = Counter()

    for name, module in owners.items():
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    network(examples(shape, 2))
    assert calls == Counter(dict.fromkeys(owners, 1))


@every_network
def test_the_network_can_be_traced_and_copied(model: Model, shape: tuple[int, ...]) -> None:
    network = build(model, shape, num_classes=3, seed=0).eval()
    batch = examples(shape, 2)
    traced = fx.symbolic_trace(network)
    assert torch.equal(traced(batch), network(batch))
    assert torch.equal(copy.deepcopy(network)(batch), network(batch))


@every_network
def test_in_evaluation_the_rows_of_a_batch_are_independent(model: Model, shape: tuple[int, ...]) -> None:
    network = build(model, shape, num_classes=3, seed=0).eval()
    batch = examples(shape, 3)
    alone = torch.cat([network(row[None]) for row in batch])
    torch.testing.assert_close(network(batch), alone)


@every_plain_network
def test_without_batch_norm_gradients_per_example_can_be_vectorised(model: Model, shape: tuple[int, ...]) -> None:
    network = build(model, shape, num_classes=3, seed=0)
    batch, targets = examples(shape, 3), torch.tensor([0, 1, 2])
    weights: dict[str, Tensor] = dict(network.named_parameters())

    def loss(weights: dict[str, Tensor], example: Tensor, target: Tensor) -> Tensor:
        scores = torch.func.functional_call(network, weights, (example[None],))
        return functional.cross_entropy(scores, target[None])

    # Attention's fast kernel for the CPU has no batching rule: vmap would loop over it, and warn.
    with sdpa_kernel(SDPBackend.MATH):
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, batch, targets)
    torch.autograd.backward(functional.cross_entropy(network(batch), targets))
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(each[name].mean(0), parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_papers_mlp_has_its_size() -> None:
    network = build(Mlp(), (1, 28, 28), num_classes=10, seed=0)
    assert size(network) == (784 * 32 + 32) + (32 * 16 + 16) + (16 * 10 + 10) == 25_818


def test_the_papers_cnn_has_its_size() -> None:
    # 28 → convolution 24 → pooling 12 → convolution 8 → pooling 4
    convolutions = (1 * 6 * 25 + 6) + (6 * 6 * 25 + 6)
    network = build(Cnn(), (1, 28, 28), num_classes=10, seed=0)
    assert size(network) == convolutions + (6 * 4 * 4 * 50 + 50) + (50 * 10 + 10) == 6_422


def test_the_digits_cnn_has_its_size() -> None:
    # 8 → convolution 8 → pooling 4 → convolution 4 → pooling 2
    convolutions = (1 * 16 * 9 + 16) + (16 * 16 * 9 + 16)
    network = build(DIGITS_CNN, (1, 8, 8), num_classes=10, seed=0)
    assert size(network) == convolutions + (16 * 2 * 2 * 32 + 32) + (32 * 10 + 10) == 4_890


def test_vgg11_has_its_size() -> None:
    pairs = [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    # per output channel: the convolution's bias, and BatchNorm's weight and bias
    blocks = sum(9 * inputs * outputs + 3 * outputs for inputs, outputs in pairs)
    network = build(Vgg("vgg11"), (3, 32, 32), num_classes=10, seed=0)
    assert size(network) == blocks + (512 * 10 + 10) == 9_231_114


def test_each_vgg_has_the_layers_of_its_name() -> None:
    models = {11: Vgg("vgg11"), 13: Vgg("vgg13"), 16: Vgg("vgg16"), 19: Vgg("vgg19")}
    for number, model in models.items():
        with torch.device("meta"):
            kinds = Counter(type(module) for module in model.build((3, 32, 32), num_classes=10).modules())
        # The original has three fully connected layers where these have one.
        assert kinds[nn.Conv2d] == kinds[nn.BatchNorm2d] == number - 3
        assert kinds[nn.MaxPool2d] == 5
        assert kinds[nn.Linear] == 1


def test_vgg_takes_larger_images() -> None:
    network = build(Vgg(), (1, 48, 64), num_classes=2, seed=0)
    assert network(examples((1, 48, 64), 1)).shape == (1, 2)


def test_the_residual_net_has_its_size() -> None:
    def block(inputs: int, outputs: int) -> int:
        shortcut = 0 if inputs == outputs else inputs * outputs + 2 * outputs
        return 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs + shortcut

    stem = 9 * 3 * 16 + 2 * 16
    network = build(ResidualNet(blocks=(3, 3, 3)), (3, 32, 32), num_classes=10, seed=0)
    stages = 3 * block(16, 16) + block(16, 32) + 2 * block(32, 32) + block(32, 64) + 2 * block(64, 64)
    # ResNet-20 has 269 722 (He et al.); the two shortcuts that are convolutions add 512 + 64 and 2048 + 128.
    assert size(network) == stem + stages + (64 * 10 + 10) == 269_722 + 2_752


def test_the_transformer_has_its_size() -> None:
    width, patches, features = 32, 4, 16
    block = 2 * 2 * width + (3 * width * width + 3 * width) + (width * width + width) + (8 * width * width + 5 * width)
    network = build(Transformer(), (1, 8, 8), num_classes=10, seed=0)
    assert size(network) == features * width + width + patches * width + 2 * block + 2 * width + 10 * width + 10


def test_the_transformer_cuts_the_image_into_squares() -> None:
    network = build(Transformer(width=4, depth=1, heads=1, patch=2), (1, 4, 4), num_classes=2, seed=0)
    seen: list[Tensor] = []
    network.get_submodule("embed").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.arange(16.0).reshape(1, 1, 4, 4))
    assert seen[0].tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_the_transformer_knows_where_a_patch_was() -> None:
    network = build(Transformer(patch=4), (1, 8, 8), num_classes=2, seed=0)
    image = examples((1, 8, 8), 1)
    assert not torch.allclose(network(image), network(image.flip(2).flip(3)))
    moved = torch.cat([image[:, :, 4:], image[:, :, :4]], dim=2)
    assert not torch.allclose(network(image), network(moved))


def test_attention_is_softmax_of_scaled_products() -> None:
    network = build(Transformer(width=8, depth=1, heads=2, patch=2), (1, 4, 4), num_classes=2, seed=0)
    attention = network.get_submodule("blocks.0.attention")
    tokens = examples((4, 8), 3)
    query, key, value = attention.get_submodule("qkv")(tokens).chunk(3, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 4**0.5
        heads.append(scores.softmax(-1) @ value[..., part])
    torch.testing.assert_close(attention(tokens), attention.get_submodule("out")(torch.cat(heads, dim=-1)))
