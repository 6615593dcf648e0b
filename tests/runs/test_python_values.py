"""Runs with values given in Python: their folders say so, their reports print no command that fails."""

from pathlib import Path

import pytest
from command_cases import content, interrupt_after, salf, tiny
from torch import nn

from salf.methods import Salf
from salf.runs.run import run_experiment
from salf.runs.run_files import read_reasons


class Mine(Salf):
    """A method that salf does not know by name."""


def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_folder_says_that_the_model_was_given_in_python(tmp_path: Path) -> None:
    given = model()
    run_experiment(tiny(), tmp_path / "whole", model=given)
    assert read_reasons(tmp_path / "whole") == ("model was given in Python",)
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "model was given in Python" in page
    assert "salf run experiment.toml" not in page
    with pytest.raises(KeyboardInterrupt):
        run_experiment(tiny(), tmp_path / "cut", model=given, watch=interrupt_after(3, KeyboardInterrupt()))
    run_experiment(tiny(), tmp_path / "cut", resume=True, model=given)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    before = content(tmp_path / "whole")
    assert salf("report", tmp_path / "whole").code == 0
    assert content(tmp_path / "whole") == before


def test_a_run_by_a_method_given_in_python_is_resumed_and_reported(tmp_path: Path) -> None:
    whole = run_experiment(tiny(), tmp_path / "whole", method=Mine())
    (reason,) = read_reasons(tmp_path / "whole")
    assert reason.startswith("method ")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(tiny(), tmp_path / "cut", method=Mine(), watch=interrupt_after(3, KeyboardInterrupt()))
    assert run_experiment(tiny(), tmp_path / "cut", resume=True, method=Mine()).records == whole.records
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert salf("report", tmp_path / "whole").code == 0
