"""What is of a wrong type is refused with its name and what to give instead, before anything is changed."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import salf
from salf.errors import InvalidSetting, InvalidUpdate
from salf.layers.find import find_layers

MODEL = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
LAYERS = find_layers(MODEL)
STATE = {name: tensor.detach().clone() for name, tensor in MODEL.state_dict().items()}
ONES = {name: torch.ones_like(tensor) for name, tensor in STATE.items()}
UPDATE = salf.Update(ONES, 1, 1)
META = salf.Update({**ONES, "0.weight": torch.empty(3, 4, device="meta")}, 1, 1)


def aggregate(**changes: object) -> salf.Aggregated:
    given: dict[str, object] = {"state": STATE, "updates": [UPDATE, UPDATE], "layers": LAYERS, "rule": salf.Corrected()}
    positional = {name: changes.get(name, value) for name, value in given.items()}
    named = {name: value for name, value in changes.items() if name not in given}
    return salf.aggregate(*positional.values(), **named)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: salf.Update(None, 1, 1), "deltas is of type NoneType; give a mapping from names to tensors"),  # type: ignore[arg-type]
        (lambda: salf.Update(ONES, 1, 1, 3), "buffers is of type int; give a mapping from names to tensors"),  # type: ignore[arg-type]
        (lambda: salf.Update(ONES, 1, 1, {}, 3), "passes is of type int; give a mapping from layer names"),  # type: ignore[arg-type]
        (lambda: salf.Update(ONES, 1, 1, examples=None), "examples is of type NoneType; give a mapping"),  # type: ignore[arg-type]
        (lambda: salf.Update({"a": [1]}, 1, 1).to_bytes(), "'a' is of type list; give a tensor"),  # type: ignore[dict-item]
        (META.to_bytes, "'0.weight' is a tensor on meta with layout torch.strided; pass a dense tensor"),
        (lambda: salf.check_update({}, LAYERS, STATE), "update is of type dict; give a salf.Update"),  # type: ignore[arg-type]
        (
            lambda: salf.check_update(UPDATE, [], STATE),  # type: ignore[arg-type]
            "layers is of type list; give the model's layers, as find_layers",
        ),
        (lambda: salf.check_update(UPDATE, LAYERS, None), "state is of type NoneType; give the model's state dict"),  # type: ignore[arg-type]
        (lambda: salf.Layers(None), "sequence is of type NoneType; give a tuple of salf.Layer"),  # type: ignore[arg-type]
        (lambda: salf.Layers((1,)), "an entry of sequence is of type int; give a salf.Layer"),  # type: ignore[arg-type]
        (lambda: aggregate(state=None), "state is of type NoneType; give the model's state dict"),
        (lambda: aggregate(updates=None), "updates is of type NoneType; give the round's updates"),
        (lambda: aggregate(updates=UPDATE), "updates is of type Update; give the round's updates"),
        (lambda: aggregate(updates=[None]), "update is of type NoneType; give a salf.Update"),
        (
            lambda: aggregate(layers=None),
            "layers is of type NoneType; give the model's layers, as find_layers returns them",
        ),
        (
            lambda: aggregate(rule="corrected"),
            r"rule is of type str; give one of the rules, such as salf.Corrected\(\)",
        ),
        (lambda: aggregate(rule=salf.Corrected), "rule is the class Corrected; give one of the rules"),
        (lambda: aggregate(num_clients="2"), "num_clients is of type str; give how many clients were asked"),
        (lambda: aggregate(num_clients=2.5), "num_clients is of type float; give how many clients were asked"),
        (lambda: aggregate(num_clients=10**30), "num_clients is 1000000000000000000000000000000; give at most"),
        (lambda: aggregate(reach=object()), "reach cannot be used: float"),
        (
            lambda: aggregate(reach=[np.nan, 1]),
            "reach holds values that are not probabilities; give numbers between 0 and 1",
        ),
        (lambda: aggregate(clients=3), "clients is of type int; give a number for each client that is asked"),
        (lambda: aggregate(memory=3), "memory is of type int; give the memory of the result before"),
        (lambda: aggregate(weigh="steps"), "weigh is 'steps'; choose 'clients' or 'examples'"),
        (lambda: aggregate(weigh=None), "weigh is None; choose 'clients' or 'examples'"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        call()


def test_an_update_of_no_values_is_refused() -> None:
    with pytest.raises(InvalidUpdate, match=r"'0.weight' is stored as meta, not as a dense tensor"):
        aggregate(updates=[META])
    with pytest.raises(InvalidUpdate, match=r"the state lacks '2.bias', which is in the layers"):
        salf.check_update(UPDATE, LAYERS, {name: value for name, value in STATE.items() if name != "2.bias"})


def test_an_update_of_anything_can_be_shown() -> None:
    assert repr(salf.Update({"a": 1}, 1, 1)) == "Update(1 parameters, 0 buffers, 0 bytes, steps=1, num_examples=1)"  # type: ignore[dict-item]


def test_numbers_of_numpy_are_numbers() -> None:
    assert aggregate(num_clients=np.int64(3), clients=np.array([4, 5])).contributors == (2, 2)
