"""The data sets that can be named in an experiment, and where each comes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from salf.data import cifar, idx
from salf.data.dataset import Dataset
from salf.data.fetch import Archive, cache_folder, fetch
from salf.data.files import CLASSES, Split, expanded
from salf.errors import InvalidSetting
from salf.seeds import stream

_DIGITS_TRAIN = 1500


@dataclass(frozen=True)
class Source:
    """A published image set: its files, and how to read them from the first of several folders that holds them."""

    name: str
    archive: Archive
    read: Callable[[Sequence[Path]], tuple[Split, Split]]

    def load(self, root: Path | str | None = None) -> Dataset:
        """Load the set from `root` or `root/<name>`; without `root` from the user's cache, downloaded if need be."""
        if root is None:
            folders = [cache_folder() / self.name]
            fetch(self.archive, folders[0])
        else:
            base = expanded("data.root", root)
            folders = [base / self.name, base]
        train, test = self.read(folders)
        return _assemble(self.name, train, test, brightest=255)


# Checksums are those of the files as published. The copies that distributions ship are often compressed anew: the same
# images, other bytes. They can be read through `data.root`, which is not checked against these.
_SOURCES = (
    Source(
        "mnist",
        Archive(
            {
                "train-images-idx3-ubyte.gz": "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "train-labels-idx1-ubyte.gz": "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "t10k-images-idx3-ubyte.gz": "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "t10k-labels-idx1-ubyte.gz": "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            },
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        ),
        idx.read,
    ),
    Source(
        "fashion-mnist",
        Archive(
            {
                "train-images-idx3-ubyte.gz": "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "train-labels-idx1-ubyte.gz": "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "t10k-images-idx3-ubyte.gz": "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "t10k-labels-idx1-ubyte.gz": "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            },
            (
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            ),
        ),
        idx.read,
    ),
    Source(
        "cifar10",
        Archive(
            {cifar.PACKED: "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
            ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        ),
        cifar.read,
    ),
)

NAMES = ("digits", *(source.name for source in _SOURCES))
"""The names that `load` knows."""


def load(name: str, root: Path | str | None = None) -> Dataset:
    """Load one of the data sets in `NAMES`, as images whose values were scaled to [0, 1] and normalised to [−1, 1].

    `digits` ships with scikit-learn: 1797 images of shape (1, 8, 8), of which the same 297 are the test set whatever
    the experiment's seed. `mnist` and `fashion-mnist` have images of shape (1, 28, 28), `cifar10` (3, 32, 32); they are
    read from `root` or `root/<name>`, or without `root` downloaded once.

    Raises `InvalidSetting` for an unknown name, and for `digits` with a `root`; `DataUnavailable` for files that are
    missing, damaged or cannot be downloaded.

    >>> digits = load("digits")
    >>> len(digits), len(digits.test_labels), digits.input_shape, digits.num_classes
    (1500, 297, (1, 8, 8), 10)
    """
    if name == "digits":
        if root is not None:
            raise InvalidSetting(
                f"data.root is '{root}', but digits ships with scikit-learn and needs none: leave data.root out, or "
                "set data.name to the data set that is there"
            )
        return _load_digits()
    for source in _SOURCES:
        if source.name == name:
            return source.load(root)
    raise InvalidSetting(f"data.name is '{name}', which is none of {', '.join(NAMES)}")


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits  # noqa: PLC0415 — takes a second to import, and only digits needs it

    pixels, targets = load_digits(return_X_y=True)
    images, labels = pixels.astype(np.uint8).reshape(-1, 1, 8, 8), targets.astype(np.uint8)
    order = stream(0, "digits").permutation(len(labels))
    train, test = order[:_DIGITS_TRAIN], order[_DIGITS_TRAIN:]
    return _assemble("digits", Split(images[train], labels[train]), Split(images[test], labels[test]), brightest=16)


def _assemble(name: str, train: Split, test: Split, brightest: int) -> Dataset:
    inputs, test_inputs = (_normalise(split.images, brightest) for split in (train, test))
    labels, test_labels = (torch.from_numpy(split.labels.astype(np.int64)) for split in (train, test))
    return Dataset(name, inputs, labels, test_inputs, test_labels, CLASSES)


def _normalise(pixels: npt.NDArray[np.uint8], brightest: int) -> torch.Tensor:
    # In place: CIFAR-10 takes 600 MB as float32.
    return torch.from_numpy(pixels.astype(np.float32)).div_(brightest).sub_(0.5).div_(0.5)
