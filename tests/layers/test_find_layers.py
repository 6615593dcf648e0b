import copy
import pickle
from collections.abc import Callable, Mapping

import pytest
import torch
from networks import TASKS, Task, backward, mlp_task, parameters_of
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from salf.errors import UnsuitableModel
from salf.layers.find import Layer, Layers, find_layers

every_task = pytest.mark.parametrize("make", TASKS.values(), ids=TASKS.keys())


def parameters_by_layer(layers: Layers) -> dict[str, tuple[str, ...]]:
    return {layer.name: layer.parameters for layer in layers}


def buffers_by_layer(layers: Layers) -> dict[str, tuple[str, ...]]:
    return {layer.name: layer.buffers for layer in layers if layer.buffers}


@every_task
def test_every_trainable_parameter_is_in_one_layer_and_every_buffer_too(make: Callable[[], Task]) -> None:
    task = make()
    for layers in (find_layers(task.model), find_layers(task.model, task.example)):
        owned = [name for layer in layers for name in layer.parameters]
        trainable = [name for name, value in task.model.named_parameters() if value.requires_grad]
        assert sorted([*owned, *layers.unused]) == sorted(trainable)
        buffers = [name for layer in layers for name in layer.buffers]
        assert sorted(buffers) == sorted(name for name, _ in task.model.named_buffers())
        assert layers.aliases.keys() | {*owned, *layers.unused, *buffers} <= task.model.state_dict().keys()


@every_task
def test_layers_are_in_the_order_in_which_their_gradients_become_ready(make: Callable[[], Task]) -> None:
    task = make()
    layers = find_layers(task.model, task.example)
    ready: list[str] = []
    for name, parameter in task.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda _, name=name: ready.append(name)
            )
    backward(task.loss())
    complete = [max(ready.index(name) for name in layer.parameters) for layer in layers]
    assert complete == sorted(complete, reverse=True)


def test_the_order_is_observed_given_an_example_and_declared_without() -> None:
    task = TASKS["misordered"]()
    assert find_layers(task.model).names == ("head", "middle", "stem")
    assert find_layers(task.model, task.example).names == ("stem", "middle", "head")


def test_nested_modules_each_own_what_is_theirs() -> None:
    task = TASKS["nested"]()
    assert parameters_by_layer(find_layers(task.model, task.example)) == {
        "scale": ("scale",),
        "body.0.inner.0": ("body.0.inner.0.weight", "body.0.inner.0.bias"),
        "body.0": ("body.0.gain",),
        "body.1.inner": ("body.1.inner.weight", "body.1.inner.bias"),
        "body.1": ("body.1.gain",),
        "head": ("head.weight", "head.bias"),
    }


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x + self.offset


def test_the_models_own_parameters_are_a_layer_named_after_them() -> None:
    assert parameters_by_layer(find_layers(Bare())) == {"slope+offset": ("slope", "offset")}
    assert parameters_by_layer(find_layers(nn.Linear(2, 1), torch.ones(1, 2))) == {"weight+bias": ("weight", "bias")}


def test_a_group_of_prefixes_joins_what_lies_below_them() -> None:
    task = TASKS["transformer"]()
    layers = find_layers(task.model, task.example, group=["blocks.0", "blocks.1"])
    assert layers.names == ("embed", "position", "blocks.0", "blocks.1", "norm", "head")
    assert len(layers[2].parameters) == len(layers[3].parameters) == 12
    nested = find_layers(task.model, task.example, group=["blocks", "blocks.1"])
    assert nested.names == ("embed", "position", "blocks", "blocks.1", "norm", "head")
    assert nested[3].parameters == layers[3].parameters
    assert find_layers(task.model, group=("blocks",)).names == ("position", "embed", "blocks", "norm", "head")
    assert find_layers(task.model, group="blocks").names == ("position", "embed", "blocks", "norm", "head")


def test_a_prefix_is_not_a_part_of_a_name() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    assert len(find_layers(model, group=["1"])) == 12


def test_a_group_may_be_a_function() -> None:
    task = TASKS["residual"]()
    layers = find_layers(task.model, task.example, group=lambda module: module.partition(".")[0])
    assert layers.names == ("conv", "norm", "block1", "block2", "fc")
    assert len(layers[3].parameters) == 8
    assert len(layers[3].buffers) == 6
    everything = find_layers(task.model, task.example, group=lambda _: "everything")
    assert everything.names == ("everything",)
    assert len(everything[0].parameters) == len(parameters_of(task.model))


def test_a_joined_layer_stands_where_its_last_gradient_becomes_ready() -> None:
    task = TASKS["misordered"]()
    layers = find_layers(task.model, task.example, lambda module: "rim" if module in {"stem", "head"} else module)
    assert layers.names == ("rim", "middle")
    layers = find_layers(task.model, task.example, group=lambda module: "top" if module in {"middle", "head"} else "")
    assert layers.names == ("model", "top")


def test_tied_weights_belong_to_the_layer_nearest_the_input() -> None:
    task = TASKS["transformer"]()
    for layers in (find_layers(task.model), find_layers(task.model, task.example)):
        by_layer = parameters_by_layer(layers)
        assert by_layer["embed"] == ("embed.weight",)
        assert by_layer["head"] == ("head.bias",)
        assert layers.aliases == {"head.weight": "embed.weight"}
        assert task.model.state_dict()["head.weight"] is not None
    assert find_layers(task.model, task.example).names[:2] == ("embed", "position")


class TiedBackwards(nn.Module):
    """Declares the output before the input, whose weight it shares."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(4, 7)
        self.between = nn.Linear(4, 4)
        self.input = nn.Embedding(7, 4)
        self.input.weight = self.output.weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.output(self.between(self.input(x)))
        return scores


def test_tied_weights_declared_in_the_wrong_order_still_do() -> None:
    layers = find_layers(TiedBackwards(), torch.tensor([[0, 1]]))
    assert parameters_by_layer(layers) == {
        "input": ("output.weight",),
        "between": ("between.weight", "between.bias"),
        "output": ("output.bias",),
    }
    assert layers.aliases == {"input.weight": "output.weight"}


def test_a_module_that_is_used_twice_is_one_layer() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 2))
    layers = find_layers(model, torch.ones(1, 3))
    assert parameters_by_layer(layers) == {"0": ("0.weight", "0.bias"), "3": ("3.weight", "3.bias")}
    assert layers.aliases == {"2.weight": "0.weight", "2.bias": "0.bias"}


class Recurrent(nn.Module):
    """Runs one cell over and over, each time behind a checkpoint, so that its gradient arrives in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cell, self.gate, self.head = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.cell, self.stem(x), use_reentrant=True)
        x = checkpoint(self.gate, x, use_reentrant=True)
        scores: Tensor = self.head(checkpoint(self.cell, x, use_reentrant=True))
        return scores


def test_a_gradient_that_arrives_in_parts_is_ready_with_the_last() -> None:
    assert find_layers(Recurrent(), torch.ones(2, 3)).names == ("stem", "cell", "gate", "head")


def test_frozen_parameters_are_in_no_layer() -> None:
    task = TASKS["lora"]()
    layers = find_layers(task.model, task.example)
    assert layers.names == ("lower.down", "lower.up", "upper.down", "upper.up", "head")
    assert not layers.unused
    assert not any("base" in name for layer in layers for name in layer.parameters)


def test_a_frozen_module_inside_a_layer_leaves_the_rest_of_it() -> None:
    task = mlp_task()
    task.model.get_parameter("fc2.weight").requires_grad = False
    task.model.get_submodule("fc1").requires_grad_(requires_grad=False)
    expected = {"fc2": ("fc2.bias",), "fc3": ("fc3.weight", "fc3.bias")}
    assert parameters_by_layer(find_layers(task.model)) == expected
    assert parameters_by_layer(find_layers(task.model, task.example)) == expected


def test_parameters_without_a_gradient_are_listed_and_in_no_layer() -> None:
    task = TASKS["unused"]()
    layers = find_layers(task.model, task.example)
    assert parameters_by_layer(layers) == {"stem": ("stem.weight", "stem.bias"), "head": ("head.weight", "head.bias")}
    assert layers.unused == ("idle.weight", "idle.bias", "head.idle")
    assert not find_layers(task.model).unused


def test_buffers_travel_with_their_owners() -> None:
    task = TASKS["residual"]()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for layers in (find_layers(task.model), find_layers(task.model, task.example)):
        assert buffers_by_layer(layers) == {
            name: tuple(f"{name}.{buffer}" for buffer in statistics) for name in layers.names if "norm" in name
        }


def test_buffers_of_modules_without_parameters_go_with_the_layer_declared_before() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(3, affine=False), nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Tanh(), nn.Linear(4, 2)
    )
    buffers = buffers_by_layer(find_layers(model, torch.ones(2, 3)))
    assert [name.partition(".")[0] for name in buffers["1"]] == ["0"] * 3 + ["2"] * 3
    assert buffers.keys() == {"1"}


def test_buffers_of_a_joined_layer_go_with_it() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    layers = find_layers(model, group=lambda module: "low" if module == "0" else "high")
    assert buffers_by_layer(layers) == {"high": ("1.running_mean", "1.running_var", "1.num_batches_tracked")}


def test_buffers_that_the_state_dict_leaves_out_stay_at_home() -> None:
    model = nn.Linear(2, 1)
    model.register_buffer("cache", torch.ones(1), persistent=False)
    model.register_buffer("count", torch.tensor(0))
    assert find_layers(model)[0].buffers == ("count",)


def test_a_buffer_that_modules_share_travels_under_its_first_name() -> None:
    model, shared = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), torch.ones(2)
    for module in model:
        module.register_buffer("scale", shared)
    layers = find_layers(model, torch.ones(1, 2))
    assert buffers_by_layer(layers) == {"0": ("0.scale",)}
    assert layers.aliases == {"1.scale": "0.scale"}


def test_functions_that_modules_do_not_wrap_are_seen_through() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(3, 2), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = functional.linear(x, self.first.weight, self.first.bias)
            return functional.linear(hidden, self.second.weight, self.second.bias)

    assert find_layers(Functional(), torch.ones(1, 2)).names == ("first", "second")


def test_layers_are_a_sequence_that_can_be_copied_and_sent() -> None:
    layers = find_layers(TASKS["transformer"]().model)
    assert len(layers) == len(layers.names) == 16
    assert layers[-1].name == "head"
    assert [layer.name for layer in layers[:2]] == ["position", "embed"]
    assert layers[0] in layers
    for again in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        assert again == layers
        assert again.aliases == layers.aliases
    assert isinstance(layers.aliases, Mapping)


@pytest.mark.parametrize(
    ("sequence", "reasons"),
    [
        ((), {"there is no layer"}),
        ((Layer("a", ()),), {"layer 'a' owns no parameter"}),
        ((Layer("a", ("w",)), Layer("a", ("v",))), {"two layers are called 'a'"}),
        (
            (Layer("a", ("w",)), Layer("b", ("w", "v"), ("v",))),
            {"'w' belongs to two layers", "'v' belongs to two layers"},
        ),
    ],
)
def test_layers_of_ones_own_are_checked(sequence: tuple[Layer, ...], reasons: set[str]) -> None:
    with pytest.raises(UnsuitableModel) as caught:
        Layers(sequence)
    assert set(caught.value.problems) == reasons
