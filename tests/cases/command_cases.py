"""Small experiments, their folders, and the command line within the process of the tests."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from salf.cli import app
from salf.errors import RunFolderError
from salf.experiment.experiment import Experiment
from salf.records.rounds import RoundRecord
from salf.runs.run import Run, run_experiment

TINY: dict[str, object] = {
    "rounds": 6,
    "data.clients": 4,
    "data.partition": "iid",
    "model.name": "mlp",
    "model.hidden": [8],
    "client.batch_size": 4,
    "evaluate.every": 3,
}

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head, self.spare = nn.Embedding(20, 4), nn.Linear(4, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.words(x).mean(1))

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

def without():
    return nn.Sequential(nn.Flatten(), nn.ReLU())

def broken():
    raise RuntimeError("no weights [/bold] here")

def bracketed():
    model = nn.Module()
    model.add_module("[red]in[/red]", nn.Linear(4, 2))
    model.add_module("[/]", nn.Linear(2, 2))
    return model

class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.zeros(2, 3))

    def forward(self, x):
        return x + self.by
"""


def write_models(folder: Path) -> Path:
    """Write models of a user, in a file of their own."""
    path = folder / "models.py"
    path.write_text(MODELS)
    return path


def wanted(**changes: object) -> dict[str, object]:
    """The settings of a run of milliseconds. Dots in names are written as two underscores."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    kept = TINY if changed.get("model.name", "mlp") == "mlp" else {**TINY, "model.hidden": None}
    return {key: value for key, value in {**kept, **changed}.items() if value is not None}


def tiny(**changes: object) -> Experiment:
    return Experiment.load("digits", **wanted(**changes))


def tiny_run(folder: Path | None = None, **changes: object) -> Run:
    return run_experiment(tiny(**changes), folder)


def settings(**changes: object) -> list[str]:
    """The options that make the preset `digits` such an experiment on the command line."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in wanted(**changes).items()}
    return [part for key, text in texts.items() for part in ("--set", f"{key}={text}")]


@dataclass(frozen=True)
class Called:
    """What a call of the command line came to."""

    code: int
    out: str
    err: str


def salf(*arguments: object, columns: int = 80) -> Called:
    """Call the command line within this process."""
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # a user would see a traceback
    return Called(result.exit_code, result.stdout, result.stderr)


def plain(text: str) -> str:
    """Text without the frames, colours and line breaks of a terminal."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", re.sub(r"\x1b\[[0-9;]*m", "", text)).split())


def refusal(*arguments: object) -> str:
    """The message of a call that must be refused: exit code 2, one line on standard error, nothing else."""
    result = salf(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("salf: ")
    assert result.err.count("\n") == 1
    return result.err.removeprefix("salf: ").rstrip("\n")


def only_json(result: Called) -> dict[str, Any]:
    """The object that a call printed, and nothing besides."""
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\n") == 1
    value = json.loads(result.out)
    assert isinstance(value, dict)
    return value


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def interrupt_after(rounds: int, reason: BaseException) -> Callable[[RoundRecord], None]:
    def watch(record: RoundRecord) -> None:
        if record.round == rounds:
            raise reason

    return watch


def interrupted(folder: Path, rounds: int, experiment: Experiment | None = None) -> None:
    """Leave a run behind that was interrupted after so many rounds."""
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment or tiny(), folder, watch=interrupt_after(rounds, KeyboardInterrupt()))


def refused_resumption(folder: Path, experiment: Experiment | None = None) -> str:
    """The message that refuses to resume a run; nothing in the folder may change."""
    before = content(folder)
    with pytest.raises(RunFolderError) as caught:
        run_experiment(experiment or tiny(), folder, resume=True)
    assert content(folder) == before
    return str(caught.value)
