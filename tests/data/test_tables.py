"""Data sets made of tables, as Hugging Face's `datasets` and `flwr-datasets` hand them out."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from salf.data import Dataset, load
from salf.errors import InvalidSetting
from salf.experiment.experiment import Experiment
from salf.runs.run import run_experiment

LABELS = [2, 0, 1, 0]
PIXELS = np.random.default_rng(5).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


class Split:
    """What a split of a Hugging Face data set is to us: columns by name, each decoded row by row."""

    def __init__(self, **columns: list[object]) -> None:
        self.columns = columns

    def __getitem__(self, column: str) -> list[object]:
        return self.columns[column]


def make(inputs: Any, labels: Any = LABELS) -> Dataset:
    split = Split(x=inputs, y=labels)
    return Dataset.from_tables(split, split, inputs="x", labels="y", name="mine")


def test_images_become_normalised_tensors_channels_first() -> None:
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).double() / 255 * 2 - 1
    for images in ([Image.fromarray(image) for image in PIXELS], list(PIXELS), PIXELS):
        dataset = make(images)
        assert (dataset.name, dataset.input_shape, dataset.num_classes) == ("mine", (3, 6, 5), 3)
        assert dataset.inputs.dtype == torch.float32
        assert torch.allclose(dataset.inputs.double(), expected, atol=1e-6)
        assert torch.equal(dataset.inputs, dataset.test_inputs)
        assert dataset.labels.tolist() == dataset.test_labels.tolist() == LABELS
    grey = make([Image.fromarray(image).convert("L") for image in PIXELS])
    assert grey.input_shape == (1, 6, 5)


@pytest.mark.parametrize(
    ("inputs", "stored"), [([[1, 2], [3, 4], [5, 6], [7, 8]], torch.int64), ([[0.5], [1], [2], [3]], torch.float32)]
)
def test_numbers_stay_numbers(inputs: list[list[float]], stored: torch.dtype) -> None:
    dataset = make(inputs)
    assert dataset.inputs.dtype == stored
    assert dataset.inputs.tolist() == inputs


def test_such_a_data_set_is_trained_on() -> None:
    """Digits, handed over as Pillow images."""
    digits = load("digits")

    def split(inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, list[object]]:
        pixels = ((inputs + 1) * 8).round().to(torch.uint8).numpy()
        return {"image": [Image.fromarray(image[0]) for image in pixels], "label": labels.tolist()}

    train, test = split(digits.inputs, digits.labels), split(digits.test_inputs, digits.test_labels)
    dataset = Dataset.from_tables(train, test, inputs="image", labels="label")
    scaled = (digits.inputs + 1) * 8 / 255 * 2 - 1
    assert torch.allclose(dataset.inputs, scaled, atol=1e-6)
    experiment = Experiment.load("digits", rounds=1, engine="plain", **{"data.name": "tensors", "data.clients": 5})
    assert len(run_experiment(experiment, dataset=dataset).records) == 1


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        ([], LABELS, "column 'x' of train is empty; give at least one example"),
        ([PIXELS[0], PIXELS[1][:3]] * 2, LABELS, r"different shapes \(\(3, 5, 3\), \(6, 5, 3\)\); make them equal"),
        (["a", "b", "c", "d"], LABELS, "column 'x' of train holds <U1, not numbers; name another"),
        ([None] * 4, LABELS, "column 'x' of train holds object, not numbers"),
        (PIXELS, LABELS[:3], r"inputs has shape \(4, 3, 6, 5\), labels \(3,\)"),
        (PIXELS, [0.5] * 4, "labels is of type torch.float64"),
        (3, LABELS, "column 'x' of train cannot be read"),
        ([[[1], [2, 3]]] * 4, LABELS, "column 'x' of train cannot be read .*inhomogeneous"),
    ],
)
def test_what_cannot_be_used_is_refused(inputs: Any, labels: Any, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        make(inputs, labels)


def test_a_table_that_is_none_is_refused() -> None:
    good = {"x": PIXELS, "y": LABELS}
    for table, message in ((None, "test is of type NoneType; give a table"), ([1], "test has no column 'x'")):
        with pytest.raises(InvalidSetting, match=message):
            Dataset.from_tables(good, table, inputs="x", labels="y")  # type: ignore[arg-type]

    class Hub(dict[str, list[object]]):
        def __getitem__(self, column: str) -> list[object]:
            raise ValueError(f"Column '{column}' doesn't exist.")

    with pytest.raises(InvalidSetting, match=r"train has no column 'x' \(Column 'x' doesn't exist.\)"):
        Dataset.from_tables(Hub(), Hub(), inputs="x", labels="y")
    with pytest.raises(InvalidSetting, match="train has no column 'z'"):
        Dataset.from_tables(good, good, inputs="z", labels="y")  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match="test_labels is of type list; give a tensor"):
        Dataset.from_tensors(torch.ones(1, 2), torch.ones(1), torch.ones(1, 2), [0])  # type: ignore[arg-type]
