"""Which parameters form a layer, and in which order backpropagation completes the layers."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from salf.errors import UnsuitableModel, check_type
from salf.layers.buffers import BufferKind, buffer_kinds as find_kinds, check_kinds, default_kind
from salf.layers.probe import Example, PassTrace, ProbeFailed, merged, trace_passes
from salf.layers.wrappers import sharding_problems, unwrapped

Grouping = Callable[[str], str] | Iterable[str]


@dataclass(frozen=True)
class Layer:
    """The unit of a partial update: a layer is complete when all its parameters have their gradient.

    Attributes:
        name: The layer's name, usually that of its module.
        parameters: Names of its trainable parameters, as in the model's state dict.
        buffers: Names of its buffers, which are sent with the parameters.

    >>> Layer("head", ("head.weight", "head.bias"))
    Layer(name='head', parameters=('head.weight', 'head.bias'), buffers=())
    """

    name: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layers(Sequence[Layer]):
    """The layers of a model, from input to output; backpropagation completes them from last to first.

    `find_layers` makes them. They are a sequence: `layers[-1]` is the layer nearest the output.

    Attributes:
        sequence: The layers, at least one. Every layer has a parameter, and no name occurs twice.
        aliases: Maps each further name of a tied tensor to the name under which it is sent.
        unused: Names of trainable parameters without a gradient in the probe. They never change and are never sent.
        buffer_kinds: Maps a buffer's name to its kind, where this does not follow from its type (see `kind_of`).
            "local" buffers belong to no layer.
        tensors: Names of all parameters and buffers of the layers.

    Raises:
        InvalidSetting: `sequence` is not a tuple of `Layer`, or `buffer_kinds` holds something that is not a kind.
        UnsuitableModel: The layers break a rule above; the error lists every problem.

    >>> layers = Layers((Layer("encoder", ("encoder.weight",)), Layer("head", ("head.weight", "head.bias"))))
    >>> len(layers), layers.names, layers[1].parameters
    (2, ('encoder', 'head'), ('head.weight', 'head.bias'))
    """

    sequence: tuple[Layer, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    buffer_kinds: Mapping[str, BufferKind] = field(default_factory=dict)
    tensors: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_type("sequence", self.sequence, tuple, "a tuple of salf.Layer")
        for layer in self.sequence:
            check_type("an entry of sequence", layer, Layer, "a salf.Layer")
        check_kinds(self.buffer_kinds)
        owned = [name for layer in self.sequence for name in (*layer.parameters, *layer.buffers)]
        problems = [f"'{name}' belongs to two layers" for name in sorted(_repeated(owned))]
        problems += [f"two layers are called '{name}'" for name in sorted(_repeated(self.names))]
        problems += [f"layer '{layer.name}' owns no parameter" for layer in self.sequence if not layer.parameters]
        problems += [f"'{name}' is local, but belongs to a layer" for name in owned if self._is_local(name)]
        if not self.sequence:
            problems.append("there is no layer")
        if problems:
            raise UnsuitableModel("these layers cannot be used; make them with salf.find_layers(model)", problems)
        object.__setattr__(self, "aliases", MappingProxyType(dict(self.aliases)))
        object.__setattr__(self, "buffer_kinds", MappingProxyType(dict(self.buffer_kinds)))
        object.__setattr__(self, "tensors", frozenset(owned))

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names, input to output."""
        return tuple(layer.name for layer in self.sequence)

    def kind_of(self, name: str, buffer: Tensor) -> BufferKind | None:
        """Return the kind of a buffer: stated, or by its type.

        Without a stated kind, floating-point buffers are statistics, and BatchNorm's `num_batches_tracked` is a
        counter. Other whole numbers have no kind: an update must not change them.

        >>> layers = Layers((Layer("head", ("w",), ("mean", "pointer")),))
        >>> layers.kind_of("mean", torch.zeros(2)), layers.kind_of("pointer", torch.tensor(0))
        ('statistic', None)
        """
        return self.buffer_kinds.get(name) or default_kind(name, buffer)

    def _is_local(self, name: str) -> bool:
        return self.buffer_kinds.get(name) == "local"

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
        return (Layers, (self.sequence, dict(self.aliases), self.unused, dict(self.buffer_kinds)))


def find_layers(
    model: nn.Module,
    example: Example | None = None,
    group: Grouping | None = None,
    buffer_kinds: Mapping[str, BufferKind] | None = None,
) -> Layers:
    """Find the layers of a model, from input to output.

    By default, each module that owns trainable parameters is one layer.

    With an example, the order is observed: a copy of the model runs forward and backward, and the layers are ordered by
    the time their gradients are ready. Without one, it is the order in which the modules are declared. That is right
    only for models that call their modules in this order.

    A tied parameter belongs to its owner nearest the input, where its gradient is complete. Frozen parameters belong to
    no layer. With an example, neither do parameters without a gradient.

    Layers that the model skips at random or in turn are found, because the probe repeats its pass with fixed seeds. It
    has one batch only: a branch that no example in it takes, such as an expert without a token, is listed in `unused`.
    Pass a larger batch, or name its module in `group`, which makes it a layer at its place of declaration.

    Of a model wrapped by `torch.compile` or DistributedDataParallel, the layers are those of the model inside, with
    the names of its own state dict. Compile submodules in place, with `module.compile()`, which keeps their names.

    Args:
        model: The model, already built; it does not change.
        example: One batch: a tensor, a tuple or list of positional arguments, or a mapping of named arguments.
        group: Joins modules into one layer. Either a function from a module's name to its layer's name, or the name
            prefixes that form one layer each.
        buffer_kinds: Maps buffers' names, or patterns such as `"*.queue_ptr"`, to their kinds. A "statistic" is
            averaged over the clients that send it. Of a "counter", the maximum counts. A "constant", such as a mask,
            never changes. A "local" buffer, such as the pointer of a queue, is never sent, and the server keeps its
            own. By default, floating-point buffers are statistics, BatchNorm's counters are counters, the masks of
            `torch.nn.utils.prune` are constants, and the buffers of `torch.ao.quantization` are local. Any other
            buffer of whole numbers or truth values must not change unless its kind is stated.

    Raises:
        UnsuitableModel: The model cannot be trained layer by layer; the error lists every problem.
        InvalidSetting: `model` is not a module, or `example` or `buffer_kinds` has a wrong type or value.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    >>> find_layers(model).names
    ('0', '1', '3')
    >>> find_layers(model, group=lambda module: "head" if module == "3" else "body").names
    ('body', 'head')
    """
    check_type("model", model, nn.Module, "an nn.Module, already built")
    model = unwrapped(model)
    group = tuple(group) if isinstance(group, Iterable) and not isinstance(group, str) else group
    problems = _parameter_problems(model)
    observed = _observe(model, example, problems)
    layer_of = _layer_names(model, group, problems)
    kinds = find_kinds(model, buffer_kinds, problems)
    if problems:
        raise UnsuitableModel(f"{type(model).__name__} cannot be trained layer by layer", problems)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    completed = merged(trace.reached for trace in observed) if observed else [*reversed(trainable)]
    owners = _owners(model, observed)
    completed = _with_named(completed, trainable, lambda name: layer_of(owners[name]), group)
    place = {name: index for index, name in enumerate(completed)}
    members: dict[str, list[str]] = {}
    for name in trainable:
        if name in place:
            members.setdefault(layer_of(owners[name]), []).append(name)
    order = sorted(members, key=lambda layer: -max(place[name] for name in members[layer]))
    persistent = {name for name, _ in model.named_buffers()}.intersection(model.state_dict())
    kinds = {name: kind for name, kind in kinds.items() if name in persistent}
    sent = {name for name in persistent if kinds.get(name) != "local"}
    buffers = _assign_buffers(model, sent, members, owners, layer_of)
    return Layers(
        tuple(Layer(layer, tuple(members[layer]), tuple(buffers.get(layer, ()))) for layer in order),
        aliases=_aliases(model),
        unused=tuple(name for name in trainable if name not in place),
        buffer_kinds=kinds,
    )


def _with_named(
    completed: list[str], trainable: list[str], layer_of: Callable[[str], str], group: Grouping | None
) -> list[str]:
    """Add, at their place of declaration, the parameters of layers that `group` names and that had no gradient."""
    if group is None or callable(group):
        return completed
    group = [group] if isinstance(group, str) else group
    reached = {layer_of(name) for name in completed}
    named = {name for name in trainable if layer_of(name) in {*group} - reached}
    declared = [name for name in reversed(trainable) if name in named or name in completed]
    return merged([completed, declared]) if named else completed


def _observe(model: nn.Module, example: Example | None, problems: list[str]) -> tuple[PassTrace, ...]:
    """Run the probe if there is an example and no problem yet; add its failure to `problems`."""
    if example is None:
        return ()
    kinds, needed = (torch.Tensor, tuple, list, Mapping), "one batch: a tensor, or a tuple or mapping of arguments"
    check_type("example", example, kinds, needed)
    try:
        return () if problems else trace_passes(model, example)
    except ProbeFailed as failure:
        problems.append(str(failure))
        return ()


def _parameter_problems(model: nn.Module) -> list[str]:
    parameters = dict(model.named_parameters())
    if sharded := sharding_problems(model):
        return sharded
    lazy = [name for name, parameter in parameters.items() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        return [f"'{name}' has no shape yet; run one batch through the model first" for name in lazy]
    if not parameters:
        return ["it has no parameters; use a model with trainable parameters"]
    trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    if not trainable:
        return ["every parameter is frozen; set requires_grad on those to train"]
    return [
        f"'{name}' is of type {parameter.dtype}, which cannot be averaged; use real floating-point parameters"
        for name, parameter in trainable.items()
        if not parameter.is_floating_point()
    ]


def _layer_names(model: nn.Module, group: Grouping | None, problems: list[str]) -> Callable[[str], str]:
    """Return the function from a module's name to its layer's name; add what is wrong with `group` to `problems`."""
    # Parameters of the model itself have no module name, so they name the layer.
    root = "+".join(name for name, _ in model.named_parameters(recurse=False)) or "model"
    if callable(group):
        named = group
        wrong = [name for name, _ in model.named_modules() if not isinstance(named(name), str)]
        problems += [f"group gives no layer name for module '{name}'; make it return a string" for name in wrong]
        return lambda module: named(module) or root
    prefixes = [] if group is None else _prefixes(model, group, problems)
    return lambda module: next((prefix for prefix in prefixes if _within(module, prefix)), module or root)


def _prefixes(model: nn.Module, group: object, problems: list[str]) -> list[str]:
    """Return the names in `group`, the longest first; add those that are not modules to `problems`."""
    names = list(group) if isinstance(group, Iterable) and not isinstance(group, str) else [group]
    modules = [name for name, _ in model.named_modules()]
    for name in names:
        if not isinstance(name, str):
            problems.append(f"group holds {name!r:.40}, which is not the name of a module; use module names")
        elif not any(_within(module, name) for module in modules):
            problems.append(f"group names '{name}', which is no module of the model; use names in named_modules()")
    return sorted((name for name in names if isinstance(name, str)), key=len, reverse=True)


def _within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def _owners(model: nn.Module, observed: Sequence[PassTrace]) -> dict[str, str]:
    """Map each parameter to the module that owns it; of several owners, to the one nearest the input."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    position = {module: index for index, module in enumerate(merged(trace.called for trace in observed))}
    owners: dict[str, str] = {}
    for module_name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            name, uncalled = names[id(parameter)], len(position)
            if name not in owners or position.get(module_name, uncalled) < position.get(owners[name], uncalled):
                owners[name] = module_name
    return owners


def _assign_buffers(
    model: nn.Module,
    sent: Collection[str],
    members: Mapping[str, list[str]],
    owners: Mapping[str, str],
    layer_of: Callable[[str], str],
) -> dict[str, list[str]]:
    """Map each layer to its buffers in `sent`; those of a module without a layer go to the layer declared before it."""
    owned = {owners[name]: layer for layer, names in members.items() for name in names}
    buffers: dict[str, list[str]] = {}
    nearest = next(iter(members))
    for module_name, module in model.named_modules():
        own = owned.get(module_name, layer_of(module_name))
        nearest = own if own in members else nearest
        for name, _ in module.named_buffers(module_name, recurse=False):
            if name in sent:
                buffers.setdefault(nearest, []).append(name)
    return buffers


def _aliases(model: nn.Module) -> dict[str, str]:
    """Map every further name of a tensor to its first one."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    known = {name: first.setdefault(id(tensor), name) for name, tensor in tensors}
    return {name: alias_of for name, alias_of in known.items() if alias_of != name}


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}
