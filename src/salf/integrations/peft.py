"""Adapters of PEFT: only they are trained, sent and aggregated; the base model stays on the devices.

A layer is what a block of the base model has of the adapter: all pairs of LoRA matrices A and B of one transformer
block. Half a pair would be no adapter.
"""

import re
from collections.abc import Mapping
from typing import Literal, TypeVar

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from salf import layers
from salf.errors import InvalidSetting, check_type
from salf.layers import Example, Layers

_PREFIX = "base_model.model."
# Where the name of the adapted module ends, and that of its adapter begins.
_ADAPTER = re.compile(r"\.(lora_|modules_to_save|token_adapter|ia3_|vera_|hada_|lokr_|oft_|boft_|original_module)")
_BLOCK = re.compile(r"(.*?\.\d+)\.")
_Value = TypeVar("_Value")


def find_adapter_layers(
    model: PeftModel, example: Example | None = None, *, group: Literal["block", "module"] = "block"
) -> Layers:
    """Find the layers of a model's adapter, from input to output.

    Args:
        model: The model, with an adapter that is trained.
        example: One batch, from which the order is observed, as for `salf.find_layers`.
        group: "block" joins what one block of the base model has; with "module" each adapted module is a layer.

    Raises:
        InvalidSetting: `model` has no PEFT adapter.
        UnsuitableModel: The model cannot be trained layer by layer, for example because its adapter is frozen.

    >>> import torch
    >>> from peft import LoraConfig, get_peft_model
    >>> base = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> model = get_peft_model(base, LoraConfig(r=2, target_modules=["0", "2"]))
    >>> find_adapter_layers(model)[0].parameters
    ('base_model.model.0.lora_A.default.weight', 'base_model.model.0.lora_B.default.weight')
    """
    check_type("model", model, PeftModel, "the result of peft.get_peft_model(...)")
    if group not in {"block", "module"}:
        raise InvalidSetting(f"group is {group!r}; choose 'block' or 'module'")
    return layers.find_layers(model, example, lambda module: _layer_of(module, by_block=group == "block"))


def _layer_of(module: str, *, by_block: bool) -> str:
    adapted = _ADAPTER.split(module, maxsplit=1)[0].removeprefix(_PREFIX)
    block = _BLOCK.match(f"{adapted}.")
    return block[1] if by_block and block else adapted


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """Return the adapter's tensors, by their names in the model: the state that the server keeps and sends.

    >>> import torch
    >>> from peft import LoraConfig, get_peft_model
    >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 2)), LoraConfig(r=2, target_modules=["0"]))
    >>> sorted(adapter_state(model))
    ['base_model.model.0.lora_A.default.weight', 'base_model.model.0.lora_B.default.weight']
    """
    check_type("model", model, PeftModel, "the result of peft.get_peft_model(...)")
    state = model.state_dict()
    names = set(from_peft_names(get_peft_model_state_dict(model), _active(model)))
    return {name: tensor.detach().clone() for name, tensor in state.items() if name in names}


def load_adapter_state(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Write what `adapter_state` returned into a model.

    Raises:
        InvalidSetting: A name in `state` is not in the model's adapter, or the other way around.
    """
    known = adapter_state(model)
    differing = sorted(known.keys() ^ state.keys())
    if differing:
        raise InvalidSetting(
            f"'{differing[0]}' is only in one of the state and the model's adapter; use the same PEFT configuration"
        )
    model.load_state_dict(dict(state), strict=False)


def to_peft_names(state: Mapping[str, _Value], adapter: str = "default") -> dict[str, _Value]:
    """Rename tensors as `get_peft_model_state_dict` names them, to save them in PEFT's format.

    >>> to_peft_names({"base_model.model.0.lora_A.default.weight": 1})
    {'base_model.model.0.lora_A.weight': 1}
    """
    return {
        re.sub(rf"(\.modules_to_save)?\.{re.escape(adapter)}(?=\.|$)", "", name): value for name, value in state.items()
    }


def from_peft_names(state: Mapping[str, _Value], adapter: str = "default") -> dict[str, _Value]:
    """Rename tensors that `get_peft_model_state_dict` named as the model names them.

    >>> from_peft_names({"base_model.model.0.lora_A.weight": 1, "base_model.model.head.weight": 2})
    {'base_model.model.0.lora_A.default.weight': 1, 'base_model.model.head.modules_to_save.default.weight': 2}
    """
    renamed = {}
    for name, value in state.items():
        module, _, last = name.rpartition(".")
        if not _ADAPTER.search(f"{name}."):
            renamed[f"{module}.modules_to_save.{adapter}.{last}"] = value
        elif re.search(r"\.(lora_|vera_|ia3_)\w+$", name) and not last.startswith(("weight", "bias")):
            renamed[f"{name}.{adapter}"] = value
        else:
            renamed[f"{module}.{adapter}.{last}"] = value
    return renamed


def _active(model: PeftModel) -> str:
    return str(model.active_adapter)
