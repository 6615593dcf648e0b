"""Which parameters form a layer, and in which order backpropagation completes the layers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import overload

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from salf.errors import UnsuitableModel, check_type
from salf.layers.probe import Example, ProbeFailed, Trace, trace

Group = Callable[[str], str] | Iterable[str]


@dataclass(frozen=True)
class Layer:
    """The unit in which work is conveyed: it is complete when all its `parameters` have their gradient.

    `parameters` and `buffers` are names as in the model's state dict; buffers travel with the layer that owns them.
    """

    name: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layers(Sequence[Layer]):
    """The layers of a model from input to output; backpropagation completes them from last to first.

    `aliases` maps every further name of a tied tensor to the one under which it is conveyed. `unused` names trainable
    parameters that got no gradient in the probe: they are never conveyed and never change. `tensors` are the names of
    all parameters and buffers of the layers.

    >>> layers = Layers((Layer("encoder", ("encoder.weight",)), Layer("head", ("head.weight", "head.bias"))))
    >>> len(layers), layers.names, layers[1].parameters
    (2, ('encoder', 'head'), ('head.weight', 'head.bias'))
    """

    sequence: tuple[Layer, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    tensors: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_type("sequence", self.sequence, tuple, "a tuple of salf.Layer")
        for layer in self.sequence:
            check_type("an entry of sequence", layer, Layer, "a salf.Layer")
        owned = [name for layer in self.sequence for name in (*layer.parameters, *layer.buffers)]
        problems = [f"'{name}' belongs to two layers" for name in sorted(_repeated(owned))]
        problems += [f"two layers are called '{name}'" for name in sorted(_repeated(self.names))]
        problems += [f"layer '{layer.name}' owns no parameter" for layer in self.sequence if not layer.parameters]
        if not self.sequence:
            problems.append("there is no layer")
        if problems:
            raise UnsuitableModel("these layers cannot be used", problems)
        object.__setattr__(self, "aliases", MappingProxyType(dict(self.aliases)))
        object.__setattr__(self, "tensors", frozenset(owned))

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names, input to output."""
        return tuple(layer.name for layer in self.sequence)

    def __len__(self) -> int:
        return len(self.sequence)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.sequence)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Layer, ...]: ...
    def __getitem__(self, index: int | slice) -> Layer | tuple[Layer, ...]:
        return self.sequence[index]

    def __reduce__(self) -> tuple[object, ...]:
        return (Layers, (self.sequence, dict(self.aliases), self.unused))


def find_layers(model: nn.Module, example: Example | None = None, group: Group | None = None) -> Layers:
    """Find the layers of `model`, from input to output.

    By default each module that owns trainable parameters is one layer. `group` joins several modules into one: a
    function from a module's name to its layer's name, or the name prefixes that shall each be one layer.

    With an `example` (one batch: a tensor, a tuple of positional arguments or a mapping of named ones) the order is
    *observed*: a copy of the model is run forward and backward, and the layers are ordered by when their gradients
    became ready. Without one the order in which the modules were declared is taken, which is right only for models that
    declare their modules in the order in which they call them.

    A tied parameter belongs to its owner nearest the input, where its gradient completes. Frozen parameters, and with
    an example also those that get no gradient, belong to no layer. Raises `UnsuitableModel`, which lists every reason,
    and `InvalidSetting` for what is no model or no example.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    >>> find_layers(model).names
    ('0', '1', '3')
    >>> find_layers(model, group=lambda module: "head" if module == "3" else "body").names
    ('body', 'head')
    """
    check_type("model", model, nn.Module, "an nn.Module, already built")
    if example is not None:
        kinds, needed = (torch.Tensor, tuple, list, Mapping), "one batch: a tensor, or a tuple or mapping of arguments"
        check_type("example", example, kinds, needed)
    problems = _problems(model)
    observed: Trace | None = None
    if not problems and example is not None:
        try:
            observed = trace(model, example)
        except ProbeFailed as failure:
            problems.append(str(failure))
    name_layer = _name_layers(model, group, problems)
    if problems:
        raise UnsuitableModel(f"{type(model).__name__} cannot be trained layer by layer", problems)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if observed is None:
        completed = list(reversed(trainable))
    else:
        completed = [completion.parameter for completion in observed.completions]
    # A gradient that arrives in parts is complete with the last of them.
    place = {name: index for index, name in enumerate(completed)}
    owners = _owners(model, observed)
    members: dict[str, list[str]] = {}
    for name in trainable:
        if name in place:
            members.setdefault(name_layer(owners[name]), []).append(name)
    last = {layer: max(place[name] for name in names) for layer, names in members.items()}
    order = sorted(members, key=lambda layer: -last[layer])
    buffers = _assign_buffers(model, members, owners, name_layer)
    return Layers(
        tuple(Layer(layer, tuple(members[layer]), tuple(buffers.get(layer, ()))) for layer in order),
        aliases=_aliases(model),
        unused=tuple(name for name in trainable if name not in place),
    )


def _problems(model: nn.Module) -> list[str]:
    parameters = dict(model.named_parameters())
    lazy = [name for name, parameter in parameters.items() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        return [f"'{name}' has no shape yet (run one batch through the model first)" for name in lazy]
    if not parameters:
        return ["it has no parameters"]
    trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    if not trainable:
        return ["every parameter is frozen (set requires_grad on what shall be trained)"]
    return [
        f"'{name}' is of type {parameter.dtype}, which cannot be averaged (use real floating-point parameters)"
        for name, parameter in trainable.items()
        if not parameter.is_floating_point()
    ]


def _name_layers(model: nn.Module, group: Group | None, problems: list[str]) -> Callable[[str], str]:
    """Return the function from a module's name to its layer's name; adds to `problems` what `group` has wrong."""
    # Parameters of the model itself have no module name: the layer is named after them.
    root = "+".join(name for name, _ in model.named_parameters(recurse=False)) or "model"
    if group is None:
        return lambda module: module or root
    if callable(group):
        named = group
        wrong = [name for name, _ in model.named_modules() if not isinstance(named(name), str)]
        problems += [f"group gives no layer name for module '{name}'" for name in wrong]
        return lambda module: named(module) or root
    prefixes = _prefixes(model, group, problems)
    return lambda module: next((prefix for prefix in prefixes if _within(module, prefix)), module or root)


def _prefixes(model: nn.Module, group: object, problems: list[str]) -> list[str]:
    """Return the names in `group`, the longest first; adds to `problems` those that are no modules."""
    names = list(group) if isinstance(group, Iterable) and not isinstance(group, str) else [group]
    modules = [name for name, _ in model.named_modules()]
    for name in names:
        if not isinstance(name, str):
            problems.append(f"group holds {name!r}, which is not the name of a module")
        elif not any(_within(module, name) for module in modules):
            problems.append(f"group names '{name}', which is no module of the model")
    return sorted((name for name in names if isinstance(name, str)), key=len, reverse=True)


def _within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def _owners(model: nn.Module, observed: Trace | None) -> dict[str, str]:
    """Map each parameter to the module that owns it; of several owners, to the one nearest the input."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    position = {} if observed is None else {module: index for index, module in enumerate(observed.called)}
    owners: dict[str, str] = {}
    for module_name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            name, late = names[id(parameter)], len(position)
            if name not in owners or position.get(module_name, late) < position.get(owners[name], late):
                owners[name] = module_name
    return owners


def _assign_buffers(
    model: nn.Module, members: Mapping[str, list[str]], owners: Mapping[str, str], name_layer: Callable[[str], str]
) -> dict[str, list[str]]:
    """Give each buffer to its module's layer; buffers of a module without one go to the layer declared before it."""
    travelling = {name for name, _ in model.named_buffers()}.intersection(model.state_dict())
    owned = {owners[name]: layer for layer, names in members.items() for name in names}
    buffers: dict[str, list[str]] = {}
    nearest = next(iter(members))
    for module_name, module in model.named_modules():
        own = owned.get(module_name, name_layer(module_name))
        nearest = own if own in members else nearest
        for name, _ in module.named_buffers(module_name, recurse=False):
            if name in travelling:
                buffers.setdefault(nearest, []).append(name)
    return buffers


def _aliases(model: nn.Module) -> dict[str, str]:
    """Map every further name of a tensor that has several to its first one."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        known = first.setdefault(id(tensor), name)
        if known != name:
            aliases[name] = known
    return aliases


def _repeated(names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
