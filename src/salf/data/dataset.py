"""A data set in memory: training and test examples with their labels."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from salf import seeds
from salf.data.tables import Columns, read_column
from salf.errors import InvalidSetting, check_type


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples with their labels.

    Attributes:
        name: What messages and records call it.
        inputs: Shape (examples, *input_shape), float32 and normalised, or int64 for numbers of tokens.
        labels: Shape (examples,), int64, in 0 … `num_classes` − 1.
        test_inputs: Like `inputs`.
        test_labels: Like `labels`.
        num_classes: The number of classes.

    >>> examples = Dataset.from_tensors(torch.zeros(6, 4), torch.arange(6) % 3, torch.zeros(2, 4), torch.tensor([0, 2]))
    >>> len(examples), examples.input_shape, examples.num_classes
    (6, (4,), 3)
    """

    name: str
    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    test_inputs: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    num_classes: int

    @classmethod
    def from_tensors(
        cls, inputs: Tensor, labels: Tensor, test_inputs: Tensor, test_labels: Tensor, name: str = "tensors"
    ) -> Self:
        """Make a data set of tensors, which are copied only to change their type.

        Args:
            inputs: Training examples. Floating types become float32 and are not normalised; integers become int64.
            labels: Their classes from 0, of any integer type, shape (examples,).
            test_inputs: Test examples of the same shape and kind.
            test_labels: Their classes. The largest label of both sets `num_classes`.
            name: What messages and records call the data set.

        Raises:
            InvalidSetting: The tensors do not fit; the message lists every problem.
        """
        given = {"inputs": inputs, "labels": labels, "test_inputs": test_inputs, "test_labels": test_labels}
        for argument, tensor in given.items():
            check_type(argument, tensor, Tensor, "a tensor")
        problems = [
            *_tensor_problems(inputs, labels, "inputs", "labels"),
            *_tensor_problems(test_inputs, test_labels, "test_inputs", "test_labels"),
        ]
        if inputs.shape[1:] != test_inputs.shape[1:]:
            shapes = f"{tuple(inputs.shape[1:])}, in test_inputs {tuple(test_inputs.shape[1:])}"
            problems.append(f"one example in inputs has shape {shapes}; give both the same shape")
        if inputs.is_floating_point() != test_inputs.is_floating_point():
            problems.append(f"inputs are {inputs.dtype}, test_inputs {test_inputs.dtype}; convert one of them")
        if problems:
            raise InvalidSetting(f"the data set '{name}' cannot be used: " + "; ".join(problems))
        labels, test_labels = _converted(labels), _converted(test_labels)
        classes = 1 + max(int(labels.max()), int(test_labels.max()))
        return cls(name, _converted(inputs), labels, _converted(test_inputs), test_labels, classes)

    @classmethod
    def from_tables(cls, train: Columns, test: Columns, *, inputs: str, labels: str, name: str = "tables") -> Self:
        """Make a data set of two tables, such as splits of Hugging Face's `datasets`.

        Images become float32 of shape (channels, height, width), normalised to [−1, 1]. Other columns are treated as in
        `from_tensors`, whose errors apply.

        Args:
            train: Training examples: a mapping from names to columns.
            test: Test examples, with the same columns.
            inputs: The name of the column of examples.
            labels: The name of the column of labels.
            name: What messages and records call the data set.

        >>> train = {"pixels": torch.zeros(6, 8, 8, 3, dtype=torch.uint8), "digit": [0, 1, 2, 0, 1, 2]}
        >>> data = Dataset.from_tables(train, train, inputs="pixels", labels="digit")
        >>> data.input_shape, data.inputs.min().item(), data.num_classes
        ((3, 8, 8), -1.0, 3)
        """
        return cls.from_tensors(
            read_column(train, inputs, where="train"),
            read_column(train, labels, where="train"),
            read_column(test, inputs, where="test"),
            read_column(test, labels, where="test"),
            name,
        )

    def held_out(self, seed: int, share: float = 0.1) -> Self:
        """Return a data set that tests on a held-out share of the training examples.

        The test data of this data set is not used.

        Args:
            seed: Chooses the examples.
            share: The share of the training examples, at least one.

        >>> data = Dataset.from_tensors(torch.ones(20, 2), torch.arange(20), torch.ones(3, 2), torch.arange(3))
        >>> len(data.held_out(seed=1)), len(data.held_out(seed=1).test_labels)
        (18, 2)
        """
        chosen = torch.from_numpy(seeds.stream(seed, "held-out").permutation(len(self)))
        cut = max(1, round(share * len(self)))
        out, kept = chosen[:cut].sort().values, chosen[cut:].sort().values
        inputs, labels = self.inputs, self.labels
        return replace(self, inputs=inputs[kept], labels=labels[kept], test_inputs=inputs[out], test_labels=labels[out])

    def cpu(self) -> Self:
        """Return the same data in CPU memory, copied only if necessary."""
        inputs, labels, test_inputs, test_labels = (tensor.cpu() for tensor in self._tensors())
        return replace(self, inputs=inputs, labels=labels, test_inputs=test_inputs, test_labels=test_labels)

    def fingerprint(self) -> str:
        """Return a hash of all examples and labels.

        >>> data = Dataset.from_tensors(torch.ones(4, 2), torch.arange(4), torch.ones(3, 2), torch.arange(3))
        >>> data.fingerprint() == data.held_out(seed=1).fingerprint()
        False
        """
        digest = hashlib.blake2b(digest_size=16)
        for tensor in self._tensors():
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.inputs.shape[1:])

    def __len__(self) -> int:
        return self.labels.shape[0]

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.inputs, self.labels, self.test_inputs, self.test_labels


def _tensor_problems(inputs: Tensor, labels: Tensor, inputs_name: str, labels_name: str) -> list[str]:
    """Return what is wrong with training or test tensors, and the remedies."""
    problems = []
    if inputs.numel() == 0 or labels.numel() == 0:
        problems.append(f"{inputs_name} or {labels_name} is empty; give at least one example")
    elif inputs.is_complex() or inputs.dtype == torch.bool:
        problems.append(f"{inputs_name} is of type {inputs.dtype}; use real or whole numbers")
    elif not bool(_converted(inputs).isfinite().all()):
        problems.append(f"{inputs_name} holds values that are not finite as float32; remove or replace them")
    if labels.dim() != 1:
        problems.append(f"{labels_name} has shape {tuple(labels.shape)}; give one number per example")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        problems.append(f"{labels_name} is of type {labels.dtype}; use integers")
    elif labels.numel() and (smallest := int(labels.to(torch.int64).min())) < 0:
        problems.append(f"{labels_name} holds the negative label {smallest}; write classes from 0")
    if inputs.shape[:1] != labels.shape[:1]:
        shapes = f"{inputs_name} has shape {tuple(inputs.shape)}, {labels_name} {tuple(labels.shape)}"
        problems.append(f"{shapes}; give one label per example")
    return problems


def _converted(values: Tensor) -> Tensor:
    """Return floating numbers as float32 and integers as int64."""
    return values.detach().to(torch.float32 if values.is_floating_point() else torch.int64)
