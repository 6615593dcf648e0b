"""The model, the data and the training loop."""

import logging
import math
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT = 64  # bytes that the model sees
PASSES, ROWS = 16, 2  # a step is the mean over 16 passes of two rows
HELD_OUT = 6000  # bytes at the end of each speaker's text, for the tests
MIN_LINES = 500  # a speaker with fewer lines is no client
# The three clients, and the seconds that each block of the model takes more on their devices, forwards and, twice as
# long, backwards. The last device is about seven times slower than the first one.
DEVICES = {"DUKE VINCENTIO": 0.010, "KING RICHARD II": 0.014, "PETRUCHIO": 0.100}

logging.getLogger("transformers").setLevel(logging.ERROR)


def read_speakers(file: Path) -> dict[str, Tensor]:
    """Return the bytes of everything that each speaker says, by speaker.

    A speech begins with a line `SPEAKER:` and ends with an empty line.
    """
    spoken: dict[str, list[str]] = {}
    for speech in file.read_text(encoding="utf-8").split("\n\n"):
        found = re.match(r"([A-Z][A-Za-z .']+):\n(.*)", speech, re.DOTALL)
        if found:
            spoken.setdefault(found[1], []).append(found[2] + "\n\n")
    return {name: torch.tensor(list("".join(parts).encode())) for name, parts in spoken.items()}


def possible_clients(speakers: dict[str, Tensor]) -> list[str]:
    """Return the speakers with enough lines, those who say most first."""
    lines = {name: int((text == ord("\n")).sum()) for name, text in speakers.items()}
    return sorted((name for name in lines if lines[name] >= MIN_LINES), key=lambda name: -lines[name])


def base_model() -> GPT2LMHeadModel:
    """Return a small GPT-2 over bytes, not trained."""
    sizes = {"n_positions": CONTEXT, "n_embd": 128, "n_layer": 4, "n_head": 4}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **sizes, **off))


def load_model(base: Path, seed: int) -> PeftModel:
    """Return the trained base model with a new adapter."""
    model = base_model()
    model.load_state_dict(load_file(base), strict=False)  # the file has tied weights once
    torch.manual_seed(seed)
    targets = ["c_attn", "c_proj", "c_fc"]
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets, fan_in_fan_out=True))


def random_rows(text: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Return rows of consecutive bytes from random places of a text."""
    places = torch.randint(len(text) - CONTEXT, (rows,), generator=generator)
    return torch.stack([text[place : place + CONTEXT] for place in places])


def batches(text: Tensor, passes: int, seed: int) -> Iterator[Tensor]:
    """Yield the rows of so many passes over the part of a text that is not held out."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        yield random_rows(text[:-HELD_OUT], ROWS, generator)


def train(model: PeftModel, optimizer: Optimizer, loader: Iterable[Tensor]) -> float:
    """Train with one step for every 16 passes, and return the mean loss."""
    losses = []
    for number, rows in enumerate(loader, start=1):
        loss = model(input_ids=rows, labels=rows).loss
        (loss / PASSES).backward()
        if number % PASSES == 0:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses) / max(len(losses), 1)


@torch.no_grad()
def perplexity(model: torch.nn.Module, text: Tensor) -> float:
    """Return exp(mean loss per byte) over a text."""
    rows = text[: len(text) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    model.eval()
    loss = model(input_ids=rows, labels=rows).loss.item()
    model.train()
    return math.exp(loss)


def slow_down(model: PeftModel, seconds: float) -> None:
    """Let each block of the model take some seconds more forwards, and twice as many backwards."""
    for block in model.base_model.model.transformer.h:
        block.register_forward_hook(lambda *_: time.sleep(seconds))
        adapter = next(parameter for parameter in block.parameters() if parameter.requires_grad)
        adapter.register_hook(lambda _: time.sleep(2 * seconds))
