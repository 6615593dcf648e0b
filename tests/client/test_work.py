"""What a block's work says of itself, and when it is too late to ask for its update."""

import copy

import numpy as np
import pytest
import torch
from networks import mlp_task, train
from torch.optim import SGD

from salf.client.deadline_block import deadline
from salf.client.work import Work
from salf.errors import InvalidSetting, SalfError


def block(steps: int = 2) -> tuple[Work, torch.nn.Module, dict[str, torch.Tensor]]:
    task = mlp_task()
    before = copy.deepcopy(task.model.state_dict())
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 1000.0) as work:
        train(task, optimizer, steps)
    return work, task.model, before


def test_an_update_asked_for_after_the_model_was_reset_is_refused() -> None:
    work, model, before = block()
    model.load_state_dict(before)
    with pytest.raises(SalfError, match=r"has changed since the block ended \(.*, …\), .*; call work.update\(\) first"):
        work.update(5)


def test_an_update_taken_in_time_outlives_what_happens_to_the_model() -> None:
    work, model, before = block()
    first = work.update(5)
    model.load_state_dict(before)
    again = work.update(5)
    assert all(torch.equal(first.deltas[name], again.deltas[name]) for name in first.deltas)
    assert any(bool(delta.any()) for delta in again.deltas.values())


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "3", None])
def test_a_wrong_number_of_examples_is_refused_on_the_client(wrong: int) -> None:
    with pytest.raises(InvalidSetting, match=r"num_examples is .*; choose a whole number of at least 1"):
        block()[0].update(wrong)


def test_a_number_of_examples_may_be_numpys() -> None:
    assert block()[0].update(np.int64(7)).num_examples == 7  # type: ignore[arg-type]


def test_work_and_update_have_a_one_line_repr() -> None:
    work, _, _ = block()
    assert repr(work).startswith("Work(steps=2, depth=3, interrupted=False, seconds=")
    text = repr(work.update(4))
    assert text.startswith("Update(6 parameters, 0 buffers, ")
    assert "num_examples=4, passes={" in text
    assert "\n" not in text
