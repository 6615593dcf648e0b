"""Picture files: they are valid, the same records give the same bytes, and any name can be drawn."""

import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from salf.errors import RunFolderError
from salf.records.rounds import RoundRecord
from salf.report.looks import MARKS, Look
from salf.report.plots import plot_accuracy, save_figure


def run(*accuracies: float | None, seconds: float = 1.0) -> list[RoundRecord]:
    return [
        RoundRecord(number, seconds * number, None, 2, (2,), 1.0, accuracy=accuracy)
        for number, accuracy in enumerate(accuracies, start=1)
    ]


def png_size(path: Path) -> tuple[int, int]:
    """Return the size of a picture after checking its parts."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    place, kinds = 8, []
    while place < len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        body = content[place + 4 : place + 8 + length]
        assert zlib.crc32(body) == int.from_bytes(content[place + 8 + length : place + 12 + length])
        kinds.append(kind)
        place += 12 + length
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def words(svg: str) -> list[str]:
    return [text for element in ET.fromstring(svg).iter() if (text := (element.text or "").strip())]


def test_pictures_are_valid_and_deterministic(tmp_path: Path) -> None:
    curves = {"fedavg": [run(0.1, None, 0.5), run(0.2, None, 0.7, seconds=2.0)], "salf": [run(0.3, None, 0.4)]}
    for name in ("first", "second"):
        for suffix in (".png", ".svg"):
            save_figure(plot_accuracy(curves, "digits: 2 seeds", target=0.6), tmp_path / f"{name}{suffix}")
    assert png_size(tmp_path / "first.png") == (1200, 675)
    for suffix in (".png", ".svg"):
        first, second = (tmp_path / f"{name}{suffix}" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    svg = (tmp_path / "first.svg").read_text()
    assert {"digits: 2 seeds", "fedavg", "salf", "target 60.0 %", "virtual time (s)"} <= set(words(svg))
    assert "<svg" in svg


def test_a_curve_is_the_mean_of_its_runs_in_a_band_from_worst_to_best() -> None:
    figure = plot_accuracy({"salf": [run(0.1, None, 0.5), run(0.3, None, 0.9, seconds=3.0)]}, "two")
    (axes,) = figure.axes
    (line,) = axes.lines
    assert [*map(float, line.get_xdata())] == [2.0, 6.0]  # type: ignore[arg-type]
    assert [*map(float, line.get_ydata())] == pytest.approx([20.0, 70.0])  # type: ignore[arg-type]
    (band,) = axes.collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((10.0, 90.0))


def test_few_points_or_none_are_no_problem(tmp_path: Path) -> None:
    for runs in ([run(0.5)], [run(None, None)], [run(None), run(None)]):
        save_figure(plot_accuracy({"salf": runs}, "few", target=0.5), tmp_path / "few.png")
        assert png_size(tmp_path / "few.png") == (1200, 675)
    save_figure(plot_accuracy({}, "none"), tmp_path / "none.png")
    assert png_size(tmp_path / "none.png") == (1200, 675)


def test_runs_of_unequal_lengths_are_compared_over_what_they_share() -> None:
    (axes,) = plot_accuracy({"salf": [run(0.1, 0.2, 0.3), run(0.3)]}, "uneven").axes
    assert [*map(float, axes.lines[0].get_ydata())] == pytest.approx([20.0])  # type: ignore[arg-type]


def test_many_methods_can_be_told_apart() -> None:
    curves = {f"method {number}": [run(0.1, number / 30)] for number in range(28)}
    (axes,) = plot_accuracy(curves, "many").axes
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert len(axes.lines) == len(looks) == 28
    assert looks == {(look.colour, look.mark, look.line) for look in map(Look.of, range(28))}
    assert len(set(MARKS.values())) == len(MARKS) == 7
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [*curves]


def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    names = ["$\\foo$ and $", "_hidden", "[bold]<&>", "数据", "a\nb", "long " * 60]
    figure = plot_accuracy({name: [run(0.1, 0.2)] for name in names}, names[0])
    save_figure(figure, tmp_path / "named.png")
    save_figure(figure, tmp_path / "named.svg")
    shown = words((tmp_path / "named.svg").read_text())
    assert [sum(" ".join(name.split())[:59] in text for text in shown) for name in names] == [2, 1, 1, 1, 1, 1]
    (axes,) = plot_accuracy({}, "_hidden " * 60).axes
    assert axes.get_title().startswith(" _hidden")


@pytest.mark.parametrize("place", ["none/plot.png", "file/plot.svg"])
def test_a_place_that_cannot_be_written_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"cannot write .*/plot\.(png|svg): .* directory; choose a folder"):
        save_figure(plot_accuracy({"salf": [run(0.5)]}, "x"), tmp_path / place)
