"""The one-screen version of SALF gives the library's results."""

import io
import runpy
import tokenize
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import salf
from salf.theory import UniformDepth

PATH = Path(__file__).parents[2] / "examples" / "salf_in_60_lines.py"
SCRIPT: dict[str, Any] = runpy.run_path(str(PATH))
LAYERS, STEP = SCRIPT["L"], SCRIPT["η"]
X, Y = torch.rand(8, 64, generator=torch.Generator().manual_seed(1)), torch.arange(8)


def named(changes: dict[int, list[Tensor]], layers: salf.Layers) -> dict[str, Tensor]:
    """A client's changes by the names of parameters."""
    return {
        name: change
        for number, sent in changes.items()
        for name, change in zip(layers[number - 1].parameters, sent, strict=True)
    }


def sent_by_deadline(model: nn.Module, layers: salf.Layers, depth: int) -> dict[str, Tensor]:
    """What a real deadline sends if the time is up when that many layers have their gradients."""
    now = [0.0]
    if depth:
        last = dict(model.named_parameters())[layers[LAYERS - depth].parameters[-1]]
        last.register_post_accumulate_grad_hook(lambda _: now.__setitem__(0, 2.0))  # type: ignore[no-untyped-call]
    optimizer = torch.optim.SGD(model.parameters(), lr=STEP)
    with salf.deadline(model, optimizer, 1.0, clock=lambda: now[0]) as work:
        optimizer.zero_grad()
        now[0] = 0.0 if depth else 2.0
        cross_entropy(model(X), Y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        now[0] = 2.0
    return dict(work.update(num_examples=len(X)).deltas)


@pytest.mark.parametrize("depth", range(LAYERS + 1))
def test_a_client_sends_what_the_library_sends(depth: int) -> None:
    model = SCRIPT["make_model"]()
    layers = salf.find_layers(model)
    changes = named(SCRIPT["client"](model, X, Y, depth), layers)
    gradients = salf.truncated_gradients(cross_entropy(model(X), Y), dict(model.named_parameters()), layers, depth)
    assert changes.keys() == gradients.keys()
    assert all(torch.equal(changes[name], -STEP * gradient) for name, gradient in gradients.items())
    sent = sent_by_deadline(model, layers, depth)
    assert changes.keys() == sent.keys()
    for name, delta in sent.items():
        torch.testing.assert_close(changes[name], delta, rtol=0, atol=1e-7)


@pytest.mark.parametrize("depths", [(4, 3, 3, 2, 1, 1), (4, 4, 4, 4, 4, 4), (2, 1, 2, 1, 1, 2), (0, 0, 0, 0, 0, 0)])
def test_the_server_moves_the_model_as_the_library_does(depths: tuple[int, ...]) -> None:
    model = SCRIPT["make_model"]()
    layers, before = salf.find_layers(model), {name: value.clone() for name, value in model.state_dict().items()}
    changes = [SCRIPT["client"](model, X + place, Y, depth) for place, depth in enumerate(depths)]
    SCRIPT["server"](model, changes, SCRIPT["p"])
    updates = [salf.Update(named(each, layers), steps=1, num_examples=8) for each in changes]
    rule = salf.Corrected()
    expected = salf.aggregate(before, updates, layers, rule, num_clients=len(depths), reach=UniformDepth())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state[name], rtol=0, atol=1e-6)
        assert value.equal(before[name]) == before[name].equal(expected.state[name])


def test_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRIPT["train"].__globals__, "ROUNDS", 150)
    assert SCRIPT["train"]() > 0.5


def test_it_has_at_most_60_lines_of_code() -> None:
    text = PATH.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code = {line for token in tokens if token.type not in ignored for line in range(token.start[0], token.end[0] + 1)}
    assert len(code) <= 60
