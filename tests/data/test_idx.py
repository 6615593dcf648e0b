import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st

from salf.data import idx
from salf.errors import DataUnavailable

Bytes = npt.NDArray[np.uint8]

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = idx.NAMES


def encode(array: Bytes) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def arrays(train: int = 5, test: int = 3) -> dict[str, Bytes]:
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(train + test, 28, 28), dtype=np.uint8)
    labels = draw.integers(10, size=train + test, dtype=np.uint8)
    return dict(zip(idx.NAMES, (images[:train], labels[:train], images[train:], labels[train:]), strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, array in arrays().items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(encode(array)))
    return tmp_path


def test_what_was_written_is_read(folder: Path) -> None:
    written = arrays()
    train, test = idx.read_idx([folder])
    assert train.images.shape == (5, 1, 28, 28)
    assert np.array_equal(train.images[:, 0], written[TRAIN_IMAGES])
    assert np.array_equal(train.labels, written[TRAIN_LABELS])
    assert np.array_equal(test.images[:, 0], written[TEST_IMAGES])
    assert np.array_equal(test.labels, written[TEST_LABELS])


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_content_tells_whether_a_file_is_gzipped(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    for name, array in arrays().items():
        (tmp_path / (name + suffix)).write_bytes(pack(encode(array)))
    assert np.array_equal(idx.read_idx([tmp_path])[1].images[:, 0], arrays()[TEST_IMAGES])


def test_the_first_folder_with_any_file_is_the_one(folder: Path) -> None:
    inner = folder / "mnist"
    inner.mkdir()
    assert len(idx.read_idx([inner, folder])[0].labels) == 5
    (inner / TEST_LABELS).write_bytes(encode(arrays()[TEST_LABELS]))
    with pytest.raises(DataUnavailable, match=f"{TRAIN_IMAGES}.gz, .* not found in {inner};"):
        idx.read_idx([inner, folder])


def test_a_missing_file_is_named_alone(folder: Path) -> None:
    (folder / f"{TEST_LABELS}.gz").unlink()
    with pytest.raises(DataUnavailable) as caught:
        idx.read_idx([folder / "mnist", folder])
    assert str(caught.value).startswith(f"{TEST_LABELS}.gz not found in {folder}; ")


GOOD_IMAGES, GOOD_LABELS = encode(arrays()[TRAIN_IMAGES]), encode(arrays()[TRAIN_LABELS])
PACKED = gzip.compress(GOOD_IMAGES)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (TRAIN_IMAGES, b"", "begins with the bytes ''"),
        (TRAIN_IMAGES, GOOD_IMAGES[:10], "ends within its header, after 10 bytes"),
        (TRAIN_IMAGES, GOOD_LABELS, "begins with the bytes '00000801', not '00000803'"),
        (TRAIN_IMAGES, b"\0\0\x0d\x03" + GOOD_IMAGES[4:], "begins with the bytes '00000d03'"),
        (TRAIN_IMAGES, b"<html>404</html>", "begins with the bytes '3c68746d'"),
        (TRAIN_IMAGES, GOOD_IMAGES[:-1], "holds 3919 bytes where its header announces 3920"),
        (TRAIN_IMAGES, GOOD_IMAGES + b"\0", "holds 3921 bytes where its header announces 3920"),
        (TRAIN_IMAGES, struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3), "holds 0 bytes where"),
        (TRAIN_IMAGES, encode(np.zeros((5, 27, 28), np.uint8)), "27×28 pixels, not 28×28"),
        (TRAIN_IMAGES, encode(np.zeros((0, 28, 28), np.uint8)), "holds nothing"),
        (TRAIN_IMAGES, PACKED[:-1], "cannot be decompressed"),
        (TRAIN_IMAGES, PACKED[:4], "cannot be decompressed"),
        (TRAIN_IMAGES, PACKED[: len(PACKED) // 2], "cannot be decompressed"),
        (TRAIN_IMAGES, PACKED[:500] + b"\0" * 100 + PACKED[600:], "cannot be decompressed"),
        (TRAIN_IMAGES, PACKED[:-8] + b"\1" * 8, "cannot be decompressed"),
        (TRAIN_IMAGES, PACKED + b"more", "cannot be decompressed"),
        (TRAIN_LABELS, encode(np.zeros(4, np.uint8)), f"4 labels for the 5 images in {TRAIN_IMAGES}"),
        (TRAIN_LABELS, encode(np.full(5, 10, np.uint8)), "holds the label 10; labels go from 0 to 9"),
    ],
)
def test_a_damaged_file_is_refused_by_name(folder: Path, name: str, content: bytes, complaint: str) -> None:
    (folder / name).write_bytes(content)  # without .gz: found before the sound one
    with pytest.raises(DataUnavailable) as caught:
        idx.read_idx([folder])
    message = str(caught.value)
    assert message.startswith(f"{folder / name} is damaged: ")
    assert complaint in message
    assert "data.root" in message


@settings(max_examples=200)
@given(place=st.integers(0, len(PACKED) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_no_damage_ends_in_another_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, cut: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "harmed"
    if not folder.exists():
        folder.mkdir()
        for name, array in arrays().items():
            (folder / name).write_bytes(encode(array))
    (folder / TRAIN_IMAGES).write_bytes(PACKED[:place] + (b"" if cut else bytes([byte]) + PACKED[place + 1 :]))
    try:
        train, _ = idx.read_idx([folder])
    except DataUnavailable:
        return
    assert np.array_equal(train.images[:, 0], arrays()[TRAIN_IMAGES]), "harm to the gzip header alone does no harm"


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / TRAIN_IMAGES).mkdir()
    with pytest.raises(DataUnavailable, match=f"{TRAIN_IMAGES} cannot be read: Is a directory"):
        idx.read_idx([folder])


def test_a_file_that_must_not_be_read_is_refused(folder: Path) -> None:
    locked = folder / f"{TRAIN_IMAGES}.gz"
    locked.chmod(0)
    try:
        locked.read_bytes()
    except PermissionError:
        with pytest.raises(DataUnavailable, match="cannot be read: Permission denied"):
            idx.read_idx([folder])
    else:
        pytest.skip("permissions do not bind this user")


def test_an_impossible_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="cannot be read: File name too long"):
        idx.read_idx([tmp_path / ("a" * 300)])
