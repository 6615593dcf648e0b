"""Whether an experiment, a model and a data set fit together, checked before the first round."""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from salf import data
from salf.devices import Cohort, CompletionTimes, Devices, Workload
from salf.engines import fork_rng
from salf.errors import InvalidSetting, check_type
from salf.experiment import Experiment
from salf.layers import Layers, is_unchanged
from salf.methods import RoundSchedule

_LONGEST_REASON = 200


def check_arguments(experiment: Experiment, model: nn.Module | None, dataset: data.Dataset | None) -> None:
    """Check the types of what a user passes to a simulation.

    Args:
        experiment: The experiment.
        model: A model that replaces the experiment's, or None.
        dataset: Data that replaces the experiment's; None only if the experiment names data that salf can load.

    Raises:
        InvalidSetting: An argument has a wrong type, the model has no values, or the data is missing.
    """
    if model is not None:
        check_type("model", model, nn.Module, "an nn.Module, already built")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise InvalidSetting("the model has parameters without values, on the device 'meta'; create it on the CPU")
    if dataset is None and experiment.data.name == "tensors":
        raise InvalidSetting("data.name is 'tensors': give the data in Python, as simulate(experiment, dataset=...)")


def check_trainable(model: nn.Module, layers: Layers, dataset: data.Dataset, examples: int) -> None:
    """Check that a model trains on small batches, changes only buffers that it may, and returns one score per class.

    Args:
        model: The model, on the CPU; a copy of it computes one forward pass.
        layers: Its layers.
        dataset: The data, on the CPU.
        examples: The size of the smallest batch that a client will use.

    Raises:
        InvalidSetting: The forward pass fails or changes a buffer whose kind is not known, or its outputs are not of
            shape (examples, classes or more).
    """
    trained = copy.deepcopy(model).train()
    try:
        outputs = _forward(trained, dataset.inputs[:examples])
    except Exception as error:
        raise InvalidSetting(
            f"the model cannot be trained on a batch of {examples}, the smallest that a client would use "
            f"({_reason(error)}); raise client.batch_size, give every client more examples, or choose a model without "
            "batch normalization"
        ) from error
    before = dict(model.named_buffers())
    for name, buffer in trained.named_buffers():
        if name in layers.tensors and layers.kind_of(name, buffer) is None and not is_unchanged(buffer, before[name]):
            raise InvalidSetting(
                f"training changes the buffer '{name}', and its type, {buffer.dtype}, has no mean; register it with "
                "persistent=False, so that it stays on the client"
            )
    classes = 1 + int(max(dataset.labels.max(), dataset.test_labels.max()))
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else None
    if shape is None or len(shape) != 2 or shape[0] != examples or shape[1] < classes:
        returned = f"a tensor of shape {shape}" if shape else f"a {type(outputs).__name__}"
        raise InvalidSetting(
            f"for {examples} examples the model returns {returned}, but scores of shape ({examples}, {classes}) or "
            f"wider are needed, one per label from 0 to {classes - 1}; replace the last layer, or correct the labels"
        )


def check_device(model: nn.Module, inputs: Tensor) -> None:
    """Check that a model computes on the device of its inputs.

    Args:
        model: A model that computes on the CPU, now on the device of `inputs`.
        inputs: A batch of the smallest size.

    Raises:
        InvalidSetting: The forward pass fails there.
    """
    if inputs.is_cpu:
        return
    try:
        _forward(copy.deepcopy(model).train(), inputs)
    except Exception as error:
        raise InvalidSetting(
            f"device is '{inputs.device}', where the model cannot compute ({_reason(error)}); create its tensors on "
            "the device of its inputs, make those that it keeps parameters or buffers, or choose device 'cpu'"
        ) from error


def _forward(model: nn.Module, inputs: Tensor) -> object:
    """Return what a model computes; all random states stay as they are."""
    with fork_rng(inputs.device), torch.no_grad():
        return model(inputs.clone())


def _reason(error: Exception) -> str:
    """Return the text of an error on one line, cut to 200 characters."""
    return " ".join(str(error).split())[:_LONGEST_REASON]


def draw_times(devices: Devices, workload: Workload, cohort: Cohort) -> CompletionTimes:
    """Return what a device model draws for a cohort, if its types, shapes and values can be simulated.

    Raises:
        InvalidSetting: A time is negative or NaN, or an array has another shape than `CompletionTimes` documents.
    """
    times = devices.times(workload, cohort)
    check_type("the result of devices.times", times, CompletionTimes, "CompletionTimes")
    each = (len(cohort.clients), workload.local_steps, workload.costs.num_layers)
    for name, shape in {"ready": each, "sent": each, "whole": each[:1]}.items():
        _check_array(f"devices.times: {name}", getattr(times, name), shape)
    return times


def check_schedule(schedule: RoundSchedule, shape: tuple[int, int]) -> None:
    """Check that a method's schedule of a round fits a cohort; `shape` is (clients, layers).

    Raises:
        InvalidSetting: An array has another shape or a negative value, or the round would last a negative time.
    """
    check_type("the result of method.schedule", schedule, RoundSchedule, "a RoundSchedule")
    for name, expected in {"steps": shape, "finished": shape, "seconds": ()}.items():
        _check_array(f"method.schedule: {name}", getattr(schedule, name), expected)


def _check_array(name: str, value: object, shape: tuple[int, ...]) -> None:
    given = np.shape(np.asarray(value))
    if given != shape:
        raise InvalidSetting(f"{name} has shape {given}; give one of shape {shape}")
    if not bool((np.asarray(value) >= 0).all()):
        raise InvalidSetting(f"{name} has values that are negative or NaN; give numbers of at least 0")
