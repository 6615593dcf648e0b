"""Adapters of PEFT: found, sent, aggregated and renamed, with the real library."""

import doctest
from typing import Any

import pytest
import torch
from networks import backward
from torch.optim import SGD
from virtual_time import Clock, on_gradient

import salf
from salf.errors import InvalidSetting

pytest.importorskip("peft", reason="PEFT is not installed: pip install 'salf[peft]'")
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'salf[peft]'")
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import GPT2Config, GPT2LMHeadModel

from salf.integrations import peft

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
ROWS = torch.arange(24).view(3, 8) % 16


def adapted(**named: Any) -> PeftModel:
    torch.manual_seed(0)
    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 3, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    base = GPT2LMHeadModel(GPT2Config(vocab_size=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **sizes))
    config = LoraConfig(r=2, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, **named)
    return get_peft_model(base, config)


def test_its_examples_run() -> None:
    assert doctest.testmod(peft, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


@pytest.mark.parametrize("example", [None, {"input_ids": ROWS, "labels": ROWS}])
def test_a_layer_is_what_a_block_has_of_the_adapter(example: Any) -> None:
    layers = peft.find_adapter_layers(adapted(), example)
    assert layers.names == ("transformer.h.0", "transformer.h.1", "transformer.h.2")
    assert all(len(layer.parameters) == 8 for layer in layers)
    modules = peft.find_adapter_layers(adapted(), example, group="module")
    assert len(modules) == 12
    assert all(len(layer.parameters) == 2 for layer in modules)  # A and B
    assert {name for layer in layers for name in layer.parameters} == set(peft.adapter_state(adapted()))


def test_modules_to_save_are_layers_of_their_own() -> None:
    layers = peft.find_adapter_layers(adapted(modules_to_save=["wpe"]), {"input_ids": ROWS, "labels": ROWS})
    assert layers.names[0] == "transformer.wpe"


def test_names_are_those_of_peft_and_back() -> None:
    for model in (adapted(), adapted(modules_to_save=["wpe"])):
        state, own = peft.adapter_state(model), get_peft_model_state_dict(model)
        renamed = peft.to_peft_names(state)
        assert renamed.keys() == own.keys()
        assert all(torch.equal(renamed[name], own[name]) for name in own)
        assert peft.from_peft_names(own).keys() == state.keys()
        set_peft_model_state_dict(model, renamed)


def test_only_adapters_travel_and_finished_blocks_are_aggregated() -> None:
    server = adapted()
    state, layers = peft.adapter_state(server), peft.find_adapter_layers(server, {"input_ids": ROWS, "labels": ROWS})
    updates = []
    for depth in (1, 3):
        model, clock = adapted(), Clock()
        peft.load_adapter_state(model, state)
        frozen = {name: value.clone() for name, value in model.state_dict().items() if name not in state}
        for layer in layers:  # a second for each block of a backward pass
            on_gradient(model, layer.parameters[0], lambda clock=clock: clock.advance(1.0))  # type: ignore[misc]
        optimizer = SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
        with salf.deadline(model, optimizer, depth, layers=layers, clock=clock) as work:
            for _ in range(2):
                optimizer.zero_grad()
                backward(model(input_ids=ROWS, labels=ROWS).loss)
                optimizer.step()
        assert work.depth == depth
        update = work.update(num_examples=3)
        assert update.deltas.keys() <= state.keys()
        salf.check_update(update, layers, state)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in frozen.items())
        updates.append(update)
    result = salf.aggregate(state, updates, layers, salf.Contributors())
    assert result.contributors == (1, 1, 2)
    peft.load_adapter_state(server, result.state)
    assert all(torch.equal(value, peft.adapter_state(server)[name]) for name, value in result.state.items())


def test_wrong_use_is_refused() -> None:
    model = adapted()
    with pytest.raises(InvalidSetting, match="model is of type Linear"):
        peft.find_adapter_layers(torch.nn.Linear(2, 1))
    with pytest.raises(InvalidSetting, match="group is 'pair'; choose 'block' or 'module'"):
        peft.find_adapter_layers(model, group="pair")  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match="use the same PEFT configuration"):
        peft.load_adapter_state(model, {})
