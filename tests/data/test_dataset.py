import pytest
import torch

from salf.data import Dataset
from salf.errors import InvalidSetting

GOOD = {
    "inputs": torch.linspace(-1, 1, 36).reshape(6, 2, 3),
    "labels": torch.tensor([0, 1, 2, 0, 1, 2]),
    "test_inputs": torch.zeros(2, 2, 3),
    "test_labels": torch.tensor([3, 0]),
}


def make(**changes: torch.Tensor) -> Dataset:
    given = GOOD | changes
    return Dataset.from_tensors(given["inputs"], given["labels"], given["test_inputs"], given["test_labels"])


def test_sound_tensors_make_a_data_set() -> None:
    dataset = make()
    assert (dataset.name, len(dataset), dataset.input_shape) == ("tensors", 6, (2, 3))
    assert dataset.num_classes == 4, "a class may occur in the test labels alone"
    assert torch.equal(dataset.inputs, GOOD["inputs"])
    assert torch.equal(dataset.test_labels, GOOD["test_labels"])
    assert "tensor(" not in repr(dataset)


@pytest.mark.parametrize(
    ("given", "stored"), [(torch.float64, torch.float32), (torch.float16, torch.float32), (torch.uint8, torch.int64)]
)
def test_inputs_become_float32_and_whole_numbers_int64(given: torch.dtype, stored: torch.dtype) -> None:
    inputs = torch.arange(12).reshape(6, 2).to(given)
    dataset = make(inputs=inputs, test_inputs=inputs[:2])
    assert dataset.inputs.dtype == dataset.test_inputs.dtype == stored
    assert torch.equal(dataset.inputs, inputs.to(stored))


def test_nothing_of_a_graph_is_kept() -> None:
    assert not make(inputs=torch.randn(6, 2, 3, requires_grad=True)).inputs.requires_grad


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_labels_of_any_integer_type_become_int64(dtype: torch.dtype) -> None:
    dataset = make(labels=torch.arange(6).to(dtype))
    assert dataset.labels.dtype == torch.int64
    assert dataset.num_classes == 6


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"labels": torch.zeros(5, dtype=torch.int64)}, "inputs has shape (6, 2, 3), labels (5,)"),
        ({"labels": torch.zeros(6)}, "labels is of type torch.float32"),
        ({"labels": torch.zeros(6, dtype=torch.bool)}, "labels is of type torch.bool"),
        ({"labels": torch.zeros(6, 1, dtype=torch.int64)}, "labels has shape (6, 1)"),
        ({"test_labels": torch.tensor([0, -1])}, "test_labels holds the negative label -1"),
        ({"inputs": torch.full((6, 2, 3), torch.nan)}, "inputs holds values that are not finite"),
        ({"test_inputs": torch.full((2, 2, 3), torch.inf)}, "test_inputs holds values that are not finite"),
        ({"inputs": torch.full((6, 2, 3), 1e300, dtype=torch.float64)}, "not finite as float32"),
        ({"inputs": torch.zeros(6, 2, 3, dtype=torch.complex64)}, "inputs is of type torch.complex64"),
        ({"inputs": torch.zeros(0, 2, 3), "labels": torch.zeros(0, dtype=torch.int64)}, "inputs or labels is empty"),
        ({"inputs": torch.zeros(6, 0, 3), "test_inputs": torch.zeros(2, 0, 3)}, "inputs or labels is empty"),
        ({"inputs": torch.tensor(1.0)}, "inputs has shape ()"),
        ({"test_inputs": torch.randn(2, 3, 2)}, "shape (2, 3), in test_inputs (3, 2)"),
        ({"test_inputs": torch.zeros(2, 2, 3, dtype=torch.int64)}, "test_inputs torch.int64"),
    ],
)
def test_unsound_tensors_are_refused(changes: dict[str, torch.Tensor], complaint: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        make(**changes)
    assert complaint in str(caught.value)


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(InvalidSetting) as caught:
        Dataset.from_tensors(
            torch.full((3, 2), torch.nan), torch.tensor([0.5, 1, 2]), torch.randn(2, 5), torch.tensor([0, -2]), "mine"
        )
    message = str(caught.value)
    assert all(word in message for word in ("'mine'", "not finite", "float32", "negative", "(2,)", "(5,)"))
