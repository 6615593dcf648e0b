import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from salf.data import NAMES, cifar, idx, load
from salf.data.files import Split
from salf.data.sources import Source
from salf.errors import DataUnavailable, InvalidSetting

PUBLISHED = Path(__file__).parents[3] / "shared" / "data"
DEBIAN = Path("/usr/share/datasets")


def write_idx(folder: Path, label: int) -> None:
    """Write an image set of two training images and one test image, whose labels are all the same."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 2), ("t10k", 1)):
        images = np.full((count, 28, 28), 255, np.uint8)
        images[:, 0, 0] = 0
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, *images.shape) + images.tobytes()
        )
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + bytes([label] * count))


def test_the_documented_names_are_known() -> None:
    assert NAMES == ("digits", "mnist", "fashion-mnist", "cifar10")


def test_digits_are_those_of_scikit_learn_divided_once_and_for_all() -> None:
    digits = load("digits")
    assert (digits.name, len(digits), len(digits.test_labels), digits.num_classes) == ("digits", 1500, 297, 10)
    assert digits.inputs.dtype == torch.float32
    assert digits.labels.dtype == torch.int64
    assert digits.inputs.shape[1:] == digits.test_inputs.shape[1:] == (1, 8, 8)
    assert digits.inputs.min() == -1
    assert digits.inputs.max() == 1
    pixels, labels = load_digits(return_X_y=True)
    given = sorted((*row, label) for row, label in zip(pixels.tolist(), labels.tolist(), strict=True))
    inputs = torch.cat([digits.inputs, digits.test_inputs]).flatten(1).mul(8).add(8)
    both = torch.cat([digits.labels, digits.test_labels])
    assert sorted((*row, label) for row, label in zip(inputs.tolist(), both.tolist(), strict=True)) == given
    # Were these to change, results would no longer compare with earlier ones.
    assert digits.test_labels[:12].tolist() == [5, 0, 1, 9, 5, 7, 1, 9, 3, 8, 0, 6]
    assert digits.test_labels.bincount().min() >= 20


def test_digits_need_no_root(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"digits ships with scikit-learn and needs none; leave data.root out"):
        load("digits", root=tmp_path)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InvalidSetting, match=r"data.name is 'minst'; choose one of digits, mnist, fashion-mnist, cifar10$"
    ):
        load("minst")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("inside", [False, True])
def test_files_are_found_in_the_root_or_in_the_folder_of_that_name(tmp_path: Path, name: str, inside: bool) -> None:
    write_idx(tmp_path / name if inside else tmp_path, label=7)
    dataset = load(name, root=str(tmp_path))
    assert (dataset.name, dataset.num_classes, dataset.input_shape) == (name, 10, (1, 28, 28))
    assert dataset.labels.tolist() == [7, 7]
    assert dataset.labels.dtype == torch.int64
    assert dataset.inputs.dtype == torch.float32
    assert dataset.inputs[0, 0, 0, :2].tolist() == [-1, 1]


def test_two_sets_in_one_root_are_not_confused(tmp_path: Path) -> None:
    write_idx(tmp_path, label=1)
    write_idx(tmp_path / "fashion-mnist", label=2)
    assert load("mnist", root=tmp_path).test_labels.tolist() == [1]
    assert load("fashion-mnist", root=tmp_path).test_labels.tolist() == [2]


def test_cifar10_is_read_and_normalised(tmp_path: Path) -> None:
    for number, name in enumerate(cifar.NAMES):
        (tmp_path / name).write_bytes(bytes([number]) + bytes([51]) * 3072)
    dataset = load("cifar10", root=tmp_path)
    assert (len(dataset), dataset.input_shape, dataset.num_classes) == (5, (3, 32, 32), 10)
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.test_labels.tolist() == [5]
    assert dataset.inputs.flatten().tolist() == pytest.approx([51 / 255 * 2 - 1] * 15360)


def test_a_root_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx(tmp_path / "data" / "mnist", label=3)
    assert load("mnist", root="~/data").labels.tolist() == [3, 3]
    with pytest.raises(DataUnavailable, match=r"data\.root is '~nobody-of-that-name'"):
        load("mnist", root="~nobody-of-that-name")


def test_missing_files_are_named_with_the_places_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable) as caught:
        load("mnist", root=tmp_path)
    wanted = (*idx.NAMES, f"{tmp_path}/mnist", str(tmp_path), "set data.root", "download")
    assert all(word in str(caught.value) for word in wanted)


def test_without_a_root_the_cache_is_filled_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALF_CACHE", str(tmp_path))

    def read(folders: object) -> tuple[Split, Split]:
        assert folders == [tmp_path / "small"]
        split = Split(np.zeros((1, 1, 28, 28), np.uint8), np.zeros(1, np.uint8))
        return split, split

    assert len(Source("small", {}, (), read).load()) == 1
    assert (tmp_path / "small").is_dir()
    with pytest.raises(DataUnavailable, match=r"set data\.root|--set data\.root=DIR"):
        Source("other", {"images": "sha256:" + 64 * "0"}, (), read).load()


@pytest.mark.skipif(not (PUBLISHED / "mnist").is_dir(), reason="the MNIST files are not here")
def test_the_real_mnist() -> None:
    mnist = load("mnist", root=PUBLISHED)
    assert mnist.inputs.shape == (60_000, 1, 28, 28)
    assert mnist.test_inputs.shape == (10_000, 1, 28, 28)
    assert mnist.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # 0.1307 is the mean that is widely quoted for the training images in [0, 1].
    assert float(mnist.inputs.mean()) == pytest.approx(0.1307 * 2 - 1, abs=1e-4)


@pytest.mark.skipif(
    not (DEBIAN / "fashion-mnist").is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_the_real_fashion_mnist() -> None:
    fashion = load("fashion-mnist", root=DEBIAN)
    assert fashion.labels.bincount().tolist() == [6000] * 10
    assert fashion.test_labels.bincount().tolist() == [1000] * 10
    # 0.2860 is the mean that is widely quoted for the training images in [0, 1].
    assert float(fashion.inputs.mean()) == pytest.approx(0.2860 * 2 - 1, abs=2e-4)


@pytest.mark.skipif(not (PUBLISHED / "mnist").is_dir(), reason="the MNIST files are not here")
def test_a_real_file_cut_short(tmp_path: Path) -> None:
    for path in (PUBLISHED / "mnist").glob("*.gz"):
        (tmp_path / path.name).symlink_to(path)
    name = f"{idx.NAMES[2]}.gz"
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(content[:1_000_000])
    with pytest.raises(DataUnavailable, match=f"{name} is damaged"):
        load("mnist", root=tmp_path)
    (tmp_path / name).write_bytes(gzip.compress(gzip.decompress(content)[:-784], compresslevel=1))
    with pytest.raises(DataUnavailable, match="holds 7839216 bytes where its header announces 7840000"):
        load("mnist", root=tmp_path)
