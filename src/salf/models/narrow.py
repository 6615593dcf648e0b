"""Narrower versions of a network, with the first channels of every hidden layer."""

import copy
import math
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from salf.errors import InvalidSetting

# Modules that work with any number of channels.
_PASSIVE = (
    *(nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus),
)
_WEIGHTED = (nn.Linear, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Scale(nn.Module):
    """Multiplies by `factor` in training mode: HeteroFL's Scaler (arXiv 2010.01264).

    In evaluation mode it is the identity.

    >>> import torch
    >>> scale = Scale(4.0)
    >>> scale(torch.ones(1)).item(), scale.eval()(torch.ones(1)).item()
    (4.0, 1.0)
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`."""
        return x * self.factor if self.training else x

    def extra_repr(self) -> str:
        """Return the factor for `repr`."""
        return f"factor={self.factor:g}"


def narrow(model: nn.Module, width: float, *, scaler: bool = True) -> nn.Sequential:
    """Return a copy whose hidden layers keep their first ⌈width · n⌉ of n channels.

    Parameters keep their names, and the first rows and columns of each remain. The first layer keeps its inputs, the
    last its classes. BatchNorm keeps no running statistics: HeteroFL's static normalisation (arXiv 2010.01264).

    Args:
        model: An `nn.Sequential`, nested or not, of linear layers, convolutions without groups, BatchNorm, activations,
            pooling, dropout and flattening, which ends in a linear layer; others raise `InvalidSetting`.
        width: Above 0 and at most 1.
        scaler: Whether a `Scale` by 1/width follows every narrowed layer, before BatchNorm or activation.

    >>> wide = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> [tuple(parameter.shape) for parameter in narrow(wide, 0.5).parameters()]
    [(3, 4), (3,), (2, 3), (2,)]
    """
    twin = copy.deepcopy(_require_chain(model))
    modules = [module for _, module in _leaves(twin)]
    last = [module for module in modules if isinstance(module, _WEIGHTED)][-1]
    channels: tuple[int, int] | None = None  # of the next input: how many there are, and how many are kept
    for module in modules:
        if isinstance(module, _WEIGHTED):
            outputs = module.weight.shape[0]
            kept = outputs if module is last else math.ceil(width * outputs)
            _narrow_weighted(module, _kept(module.weight.shape[1], channels), kept)
            channels = (outputs, kept)
        elif isinstance(module, _NORMS):
            _narrow_norm(module, _kept(module.num_features, channels))
    return _with_scalers(twin, 1 / width, last) if scaler and width < 1 else twin


def prefixes(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return views of the first rows and columns of tensors, in the shapes of `like`.

    Args:
        tensors: Tensors by name.
        like: Smaller tensors of some of these names.

    >>> import torch
    >>> prefixes({"w": torch.arange(6).reshape(2, 3)}, {"w": torch.empty(2, 1)})["w"].tolist()
    [[0], [3]]
    """
    return {name: tensors[name][tuple(map(slice, small.shape))] for name, small in like.items()}


def _kept(size: int, channels: tuple[int, int] | None) -> int:
    """Return how many of `size` inputs belong to the kept channels."""
    if channels is None:
        return size
    every, kept = channels
    return size // every * kept


def _narrow_weighted(module: nn.Linear | nn.Conv2d, inputs: int, outputs: int) -> None:
    """Keep the first inputs and outputs of a layer."""
    module.weight = _leading(module.weight, outputs, inputs)
    if module.bias is not None:
        module.bias = _leading(module.bias, outputs)
    if isinstance(module, nn.Linear):
        module.in_features, module.out_features = inputs, outputs
    else:
        module.in_channels, module.out_channels = inputs, outputs


def _narrow_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, features: int) -> None:
    """Keep the first features of a BatchNorm, without running statistics."""
    module.num_features = features
    if module.affine:
        module.weight, module.bias = _leading(module.weight, features), _leading(module.bias, features)
    module.track_running_stats = False
    module.running_mean = module.running_var = module.num_batches_tracked = None


def _leading(parameter: Tensor, *sizes: int) -> nn.Parameter:
    """Return the first entries of a parameter along each dimension, as a new one."""
    return nn.Parameter(parameter.detach()[tuple(map(slice, sizes))].clone(), parameter.requires_grad)


def _with_scalers(chain: nn.Sequential, factor: float, last: nn.Module) -> nn.Sequential:
    """Return the chain with a `Scale` after each layer with weights except the last."""
    scaled = nn.Sequential()
    for name, module in _children(chain):
        scaled.add_module(name, _with_scalers(module, factor, last) if isinstance(module, nn.Sequential) else module)
        if isinstance(module, _WEIGHTED) and module is not last:
            scaled.add_module(f"{name} scaled", Scale(factor))  # with a space, which no attribute's name has
    return scaled


def _children(chain: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """Return the modules of a chain in call order, repeated ones included."""
    return [(name, chain.get_submodule(name)) for name in chain._modules]  # noqa: SLF001 - named_children skips those


def _leaves(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of nested chains in call order."""
    if type(model) is not nn.Sequential:
        yield name, model
        return
    for child, module in _children(model):
        yield from _leaves(module, f"{name}.{child}" if name else child)


def _require_chain(model: nn.Module) -> nn.Sequential:
    """Return a model that can be narrowed; raise `InvalidSetting` for others."""
    leaves = list(_leaves(model))
    problems = [problem for name, module in leaves for problem in _narrowing_problems(name, module)]
    weighted = [module for _, module in leaves if [*module.parameters()]]
    parameters = [parameter for module in weighted for parameter in module.parameters()]
    if len(set(map(id, parameters))) < len(parameters):
        problems.append("it uses some parameters twice")
    if not problems and not (weighted and isinstance(weighted[-1], nn.Linear)):
        problems.append("its last parameters are not those of a linear layer")
    if isinstance(model, nn.Sequential) and not problems:
        return model
    raise InvalidSetting(
        f"method.name is 'heterofl', which narrows plain chains of layers, but in this {type(model).__name__} "
        f"{', '.join(problems)}; choose model.name 'mlp', 'cnn' or 'vgg11', build the model as an nn.Sequential of "
        "such layers, or choose another method, such as 'salf'"
    )


def _narrowing_problems(name: str, module: nn.Module) -> Iterator[str]:
    """Yield the reason why a module cannot be narrowed."""
    if not name:
        yield "nothing is an nn.Sequential"
    elif type(module) not in (*_PASSIVE, *_WEIGHTED, *_NORMS):
        yield f"'{name}' is a {type(module).__name__}"
    elif isinstance(module, nn.Conv2d) and module.groups > 1:
        yield f"'{name}' is a convolution in {module.groups} groups"
