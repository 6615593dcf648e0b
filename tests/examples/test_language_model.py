"""The example of a language model: its data, its layers, its loop under a deadline, and its comparison."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch.optim import SGD
from virtual_time import Clock, on_gradient

import salf

pytest.importorskip("peft", reason="PEFT is not installed: pip install 'salf[peft]'")
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'salf[peft]'")
from salf.integrations import peft

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEXT = "First Citizen:\nSpeak.\n\nAll:\nWe know't,\nwe know't.\n\nFirst Citizen:\nOne word.\n\nno speech\n"


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in ("flower", "language_model"):
        monkeypatch.syspath_prepend(EXAMPLES / folder)
    monkeypatch.delitem(sys.modules, "compare", raising=False)  # both folders have one
    return importlib.import_module("speakers.task")


def test_speakers_are_found_in_any_text_of_this_form(task: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    speakers = task.read_speakers(tmp_path / "text.txt")
    assert {name: bytes(text.tolist()).decode() for name, text in speakers.items()} == {
        "First Citizen": "Speak.\n\nOne word.\n\n\n".replace("\n\n\n", "\n\n"),
        "All": "We know't,\nwe know't.\n\n",
    }
    assert task.possible_clients({"few": torch.tensor([10] * 499), "many": torch.tensor([10] * 500)}) == ["many"]


def test_layers_are_found_as_they_are(task: ModuleType) -> None:
    rows = torch.zeros(1, task.CONTEXT, dtype=torch.long)
    names = salf.find_layers(task.base_model(), {"input_ids": rows, "labels": rows}).names
    assert names[0] == "transformer.wte"
    assert names[-1] == "transformer.ln_f"
    assert len(names) == 27


def test_a_slow_client_sends_the_passes_and_blocks_that_it_finishes(task: ModuleType, tmp_path: Path) -> None:
    state = task.base_model().state_dict()
    save_file({name: value for name, value in state.items() if "lm_head" not in name}, tmp_path / "base.safetensors")
    model, clock = task.load_model(tmp_path / "base.safetensors", seed=0), Clock()
    layers = peft.find_adapter_layers(model)
    assert layers.names == tuple(f"transformer.h.{block}" for block in range(4))
    for layer in layers:
        on_gradient(model, layer.parameters[0], lambda: clock.advance(1.0))
    text = torch.randint(97, 123, (task.HELD_OUT + 500,))
    optimizer = SGD([value for value in model.parameters() if value.requires_grad], lr=1.0)
    with salf.deadline(model, optimizer, 3 * 4 + 2.5, layers=layers, clock=clock, accumulate=task.PASSES) as work:
        loss = task.train(model, optimizer, work.batches(task.batches(text, task.PASSES, seed=1)))
    assert loss > 0
    assert list(work.layer_passes.values()) == [3, 3, 4, 4]
    assert list(work.layer_examples.values()) == [6, 6, 8, 8]
    assert work.update(9).deltas.keys() == peft.adapter_state(model).keys()
    assert task.perplexity(model, text[-task.HELD_OUT :]) > 1


def test_the_comparison_reads_what_runs_have_printed(task: ModuleType) -> None:
    compare = importlib.import_module("compare")
    records = [
        {"round": place, "seconds": 10.0 * place, "perplexity": {"A": 6.0 - place, "B": 4.0}} for place in range(3)
    ]
    assert compare.at(json.loads(json.dumps(records)), 5.0, ["A"]) == 5.5
    assert compare.at(records, 15.0, ["A", "B"]) == 4.25
    assert compare.at(records, 99.0, ["B"]) == 4.0
