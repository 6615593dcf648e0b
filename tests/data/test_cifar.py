import io
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from salf.data import cifar
from salf.errors import DataUnavailable

RECORD = 1 + 3 * 32 * 32


def records(number: int, count: int = 4) -> npt.NDArray[np.uint8]:
    draw = np.random.default_rng(number)
    array = draw.integers(256, size=(count, RECORD), dtype=np.uint8)
    array[:, 0] %= 10
    return array


def write(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(cifar.NAMES):
        records(number).tofile(folder / name)
    (folder / "batches.meta.txt").write_text("airplane\n")
    return folder


def pack(path: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def members() -> dict[str, bytes]:
    # Not in order, as in the published archive.
    names = reversed(list(enumerate(cifar.NAMES)))
    return {f"{cifar.FOLDER}/{name}": records(number).tobytes() for number, name in names}


def check(folders: list[Path]) -> None:
    train, test = cifar.read_cifar(folders)
    expected = np.concatenate([records(number) for number in range(5)])
    assert train.images.shape == (20, 3, 32, 32)
    assert np.array_equal(train.labels, expected[:, 0])
    assert np.array_equal(train.images.reshape(20, -1), expected[:, 1:])
    assert np.array_equal(test.labels, records(5)[:, 0])
    assert test.images[1, 2, 3, 4] == records(5)[1, 1 + 2 * 1024 + 3 * 32 + 4], "planes, then rows, then columns"


@pytest.mark.parametrize("place", ["", "cifar10", cifar.FOLDER, f"cifar10/{cifar.FOLDER}"])
def test_the_batches_are_found_in_each_place(tmp_path: Path, place: str) -> None:
    write(tmp_path / place)
    check([tmp_path / "cifar10", tmp_path])


@pytest.mark.parametrize("place", ["", "cifar10"])
def test_the_archive_is_read_as_published(tmp_path: Path, place: str) -> None:
    (tmp_path / "cifar10").mkdir()
    pack(tmp_path / place / cifar.PACKED, members() | {f"{cifar.FOLDER}/readme.html": b"<html>", "../evil": b"x"})
    before = sorted(tmp_path.rglob("*"))
    check([tmp_path / "cifar10", tmp_path])
    assert sorted(tmp_path.rglob("*")) == before, "nothing is unpacked to disk"


def test_batches_are_preferred_to_their_archive(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / cifar.PACKED).write_bytes(b"never read")
    check([tmp_path])


def test_missing_batches_are_named_with_the_places_looked_in(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable) as caught:
        cifar.read_cifar([tmp_path / "cifar10", tmp_path])
    assert all(
        name in str(caught.value) for name in (*cifar.NAMES, f"{tmp_path}/cifar10", str(tmp_path / cifar.FOLDER))
    )
    (write(tmp_path) / "data_batch_3.bin").unlink()
    with pytest.raises(DataUnavailable, match=f"^data_batch_3.bin not found in {tmp_path};"):
        cifar.read_cifar([tmp_path / "cifar10", tmp_path])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "its 0 bytes are not one or more records"),
        (records(2).tobytes()[:-1], f"its {4 * RECORD - 1} bytes are not"),
        (records(2).tobytes() + b"\0", f"its {4 * RECORD + 1} bytes are not"),
        (records(2, count=2).tobytes(), "it holds 2 images, but data_batch_1.bin holds 4"),
        (b"\x0a" + records(2).tobytes()[1:], "the label 10"),
    ],
)
@pytest.mark.parametrize("name", ["data_batch_2.bin", "test_batch.bin"])
def test_a_damaged_batch_is_refused_by_name(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (write(tmp_path) / name).write_bytes(content)
    with pytest.raises(DataUnavailable) as caught:
        cifar.read_cifar([tmp_path])
    assert str(caught.value).startswith(f"{tmp_path / name} is damaged: ")
    assert complaint in str(caught.value)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / cifar.PACKED
    pack(path, members())
    content = path.read_bytes()
    middle = len(content) // 2
    for harmed in (
        b"",
        b"not an archive",
        content[:middle],
        content[:-20],
        content[:middle] + bytes(200) + content[middle + 200 :],
    ):
        path.write_bytes(harmed)
        with pytest.raises(DataUnavailable, match=f"{cifar.PACKED}.*is damaged"):
            cifar.read_cifar([tmp_path])


def test_an_archive_without_a_batch_is_refused(tmp_path: Path) -> None:
    contents = members()
    del contents[f"{cifar.FOLDER}/data_batch_4.bin"]
    pack(tmp_path / cifar.PACKED, contents)
    with pytest.raises(DataUnavailable, match=r"data_batch_4.bin is not in it"):
        cifar.read_cifar([tmp_path])


def test_a_folder_in_place_of_the_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / cifar.PACKED).mkdir()
    with pytest.raises(DataUnavailable, match="cannot be read: Is a directory"):
        cifar.read_cifar([tmp_path])
