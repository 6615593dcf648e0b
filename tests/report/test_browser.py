"""The report in a real browser and on paper: it fetches nothing, has no errors, and shows everything legibly."""

import base64
from pathlib import Path

import pytest
from chromium import find_browser, open_page
from report_cases import keep_runs, reported

from salf.methods import METHODS
from salf.report import render_report
from salf.runs.run_files import write_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed (apt-get install chromium)"),
]

# The contrast of each text with what lies behind it, by WCAG 2.2's formula; the backgrounds of the page are opaque.
CONTRASTS = """
(() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest('title')) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(element instanceof SVGElement ? style.fill : style.color)), light(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), walker.currentNode.data.trim()]);
  }
  return found;
})()
"""
FIGURES = """
[...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  const marks = [...svg.querySelectorAll('rect, path, line')].map(mark => mark.getBoundingClientRect());
  return [box.width, box.height, marks.filter(mark => mark.width > 2 || mark.height > 2).length,
          svg.getAttribute('role'), svg.getAttribute('aria-label').length];
})
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
FOLDED = "[...document.querySelectorAll('details > pre')].filter(pre => pre.getBoundingClientRect().height < 50).length"
# Cells of tables that are outside of the screen, or covered by the edge of a box that scrolls.
HIDDEN_CELLS = """
[...document.querySelectorAll('td, tbody th')].filter(cell => {
  const inner = cell.getBoundingClientRect(), outer = cell.closest('.wide').getBoundingClientRect();
  return inner.width < 10 || inner.left < outer.left - 1 || inner.right > outer.right + 1;
}).length
"""
UNREACHABLE = """
[...document.querySelectorAll('body *')].filter(element => {
  const scrolls = ['auto', 'scroll'].includes(getComputedStyle(element).overflowX);
  return scrolls && element.scrollWidth > element.clientWidth && element.tabIndex < 0;
}).length
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    write_page(keep_runs(folder), folder / "report.html")
    assert (folder / "report.html").stat().st_size < 6e6
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_in_a_browser(address: str, tmp_path: Path, width: int, scheme: str) -> None:
    with open_page(address, tmp_path, width=width, scheme=scheme) as page:
        drawn, contrasts = page.value_of(FIGURES), page.value_of(CONTRASTS)
        assert page.value_of(OVERFLOW) <= 0
        assert page.value_of(UNREACHABLE) == 0
        assert page.value_of(HIDDEN_CELLS) == 0
        dark = page.value_of("matchMedia('(prefers-color-scheme: dark)').matches")
        complaints = page.events_of("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        requested = [event["request"]["url"] for event in page.events_of("Network.requestWillBeSent")]
    assert dark == (scheme == "dark")
    assert complaints == []
    assert [one for one in requested if not one.startswith("data:")] == [address]
    # Four of curves; for each of three methods participation, depths and a round.
    assert len(drawn) == 4 + 3 * 3
    for across, down, marks, role, words in drawn:
        assert min(across, down) > 100
        assert marks > 3
        assert role == "img"
        assert words > 20
    assert len(contrasts) > 200
    assert min(contrasts)[0] >= 4.5, min(contrasts)


@pytest.mark.parametrize("width", [390, 1000, 1280])
def test_no_column_is_hidden_however_many_methods_there_are(tmp_path: Path, width: int) -> None:
    page_file = tmp_path / "report.html"
    page_file.write_text(render_report([reported(method) for method in METHODS]), encoding="utf-8")
    with open_page(page_file.as_uri(), tmp_path / "profile", width=width, scheme="light") as page:
        assert page.value_of(HIDDEN_CELLS) == 0
        assert page.value_of(OVERFLOW) <= 0


def test_the_page_on_paper(tmp_path: Path) -> None:
    """Every method's runs fit on A4 within margins of 1 cm, dark on white, with all settings unfolded."""
    page_file = tmp_path / "report.html"
    page_file.write_text(render_report([reported(method) for method in METHODS]), encoding="utf-8")
    profile = tmp_path / "profile"
    with open_page(page_file.as_uri(), profile, width=718, scheme="dark", media="print") as page:
        assert page.value_of("matchMedia('(prefers-color-scheme: dark)').matches")
        assert page.value_of("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.value_of(OVERFLOW) <= 0
        contrasts, folded = page.value_of(CONTRASTS), page.value_of(FOLDED)
        pdf = base64.b64decode(page.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])
    assert min(contrasts)[0] >= 4.5, min(contrasts)
    assert folded == 0
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 50_000


def test_what_the_test_measures_is_measured(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='background:#fff'><p style='color:#999;width:2000px'>pale</p><img src='missing.png'>"
        "<div class=wide style='width:50px'><table><td>narrow<td style='min-width:300px'>wide</table></div>"
        "<script>console.error('x')</script><figure><svg role='img' aria-label='none'></svg></figure>"
    )
    with open_page(bad.as_uri(), tmp_path / "profile", width=360, scheme="light") as page:
        assert page.value_of(CONTRASTS)[0] == [pytest.approx(2.849, abs=0.01), "pale"]
        assert page.value_of(OVERFLOW) > 1000
        assert page.value_of(HIDDEN_CELLS) == 1
        assert page.value_of(FIGURES)[0][2] == 0
        assert page.events_of("Runtime.consoleAPICalled")
        assert len(page.events_of("Network.requestWillBeSent")) == 2
