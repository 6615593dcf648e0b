"""The data sets that an experiment can name, and their origins."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from salf.data.cifar import PACKED, read_cifar
from salf.data.dataset import Dataset
from salf.data.files import CLASSES, Split, expanded
from salf.data.idx import read_idx
from salf.errors import InvalidSetting
from salf.seeds import stream

_DIGITS_TRAIN = 1500


@dataclass(frozen=True)
class Source:
    """A published image set.

    Attributes:
        name: As in `data.name`.
        files: The checksum of each file, written `sha256:…`, by its name.
        mirrors: Addresses to which a name is appended; the first that works is used.
        read: Reads the training and test split from the first of several folders that holds them.
    """

    name: str
    files: Mapping[str, str]
    mirrors: tuple[str, ...]
    read: Callable[[Sequence[Path]], tuple[Split, Split]]

    def load(self, root: Path | str | None = None) -> Dataset:
        """Load the set from `root` or `root/<name>`; None: download it to the cache."""
        if root is None:
            from salf.data.fetch import cache_folder, fetch  # noqa: PLC0415 - imports pooch

            folders = [cache_folder() / self.name]
            fetch(self.files, self.mirrors, folders[0])
        else:
            base = expanded("data.root", root)
            folders = [base / self.name, base]
        train, test = self.read(folders)
        return _assemble(self.name, train, test, brightest=255)


# Checksums of the published files. Distributions often recompress their copies: the same images, other bytes. Such
# copies can be read through `data.root`, whose files are not checked against these.
_SOURCES = (
    Source(
        "mnist",
        {
            "train-images-idx3-ubyte.gz": "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        read_idx,
    ),
    Source(
        "fashion-mnist",
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
        read_idx,
    ),
    Source(
        "cifar10",
        {PACKED: "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        read_cifar,
    ),
)

NAMES = ("digits", *(source.name for source in _SOURCES))
"""The names that `load` knows."""


def load(name: str, root: Path | str | None = None) -> Dataset:
    """Load one of the data sets in `NAMES`, with pixels normalised to [−1, 1].

    `digits` ships with scikit-learn: 1797 images of shape (1, 8, 8). The same 297 are the test set for every seed.
    `mnist` and `fashion-mnist` have images of shape (1, 28, 28), `cifar10` (3, 32, 32).

    Args:
        name: One of `NAMES`.
        root: The folder with the published files, directly or in a folder of the set's name; None: download them once
            to the cache. `digits` takes none.

    Raises:
        InvalidSetting: The name is unknown, or `digits` has a `root`.
        DataUnavailable: Files are missing, damaged, or cannot be downloaded.

    >>> digits = load("digits")
    >>> len(digits), len(digits.test_labels), digits.input_shape, digits.num_classes
    (1500, 297, (1, 8, 8), 10)
    """
    if name == "digits":
        if root is not None:
            raise InvalidSetting(
                f"data.root is '{root}', but digits ships with scikit-learn and needs none; leave data.root out, or "
                "set data.name to the data set in that folder"
            )
        return _load_digits()
    for source in _SOURCES:
        if source.name == name:
            return source.load(root)
    raise InvalidSetting(f"data.name is '{name}'; choose one of {', '.join(NAMES)}")


def _load_digits() -> Dataset:
    """Return scikit-learn's digits, split at random but always alike."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second to import; only digits needs it

    pixels, targets = load_digits(return_X_y=True)
    images, labels = pixels.astype(np.uint8).reshape(-1, 1, 8, 8), targets.astype(np.uint8)
    order = stream(0, "digits").permutation(len(labels))
    train, test = order[:_DIGITS_TRAIN], order[_DIGITS_TRAIN:]
    return _assemble("digits", Split(images[train], labels[train]), Split(images[test], labels[test]), brightest=16)


def _assemble(name: str, train: Split, test: Split, brightest: int) -> Dataset:
    """Return the data set of two splits whose pixels go from 0 to `brightest`."""
    # In place: CIFAR-10 takes 600 MB as float32.
    inputs, test_inputs = (
        torch.from_numpy(split.images.astype(np.float32)).div_(brightest).sub_(0.5).div_(0.5) for split in (train, test)
    )
    labels, test_labels = (torch.from_numpy(split.labels.astype(np.int64)) for split in (train, test))
    return Dataset(name, inputs, labels, test_inputs, test_labels, CLASSES)
