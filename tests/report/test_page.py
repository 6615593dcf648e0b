"""What stands on a page about runs that were made by hand."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_cases import TIMELINE, record, reported

from salf.errors import RunFolderError
from salf.report import ReportedRun, figures_of, group_runs, render_report


class Outline(HTMLParser):
    """Headings, alternative texts and rows of tables; that every element is closed is checked."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.summaries: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "link"}:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "svg" and dict(attrs).get("role") == "img":
            self.summaries.append(dict(attrs)["aria-label"] or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"h1", "h2", "h3"}:
            self.headings.append(data)
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1].append(data)


def outline(*runs: ReportedRun) -> Outline:
    return Outline(render_report(runs))


def test_figures_are_means_over_seeds() -> None:
    (group,) = group_runs([reported(seed=2), reported(seed=0)])
    figures = figures_of(group)
    assert figures.seeds == (0, 2)
    assert figures.accuracy == pytest.approx((0.404 + 0.604) / 2)
    assert figures.deviation == pytest.approx(0.2 / 2**0.5)
    assert figures.loss == pytest.approx(1.996)
    assert (figures.rounds, figures.planned, figures.time_s, figures.work_kept) == (4, 4, 8.0, 0.5)
    assert (figures.bytes_down, figures.bytes_up, figures.rejected) == (16e6, 4e6, 0)


def test_a_page_has_its_sections_figures_and_texts() -> None:
    page = outline(reported("salf"), reported("salf", 1), reported("drop"))
    assert page.headings == [
        "digits: 2 methods",
        "Figures",
        "Accuracy and loss",
        "Clients that conveyed each layer",
        "Share of the clients asked, in per cent",
        "How deep clients got",
        "A typical round",
        "Settings",
    ]
    assert page.rows[1][:2] == ["salf", "45.40 % ± 7.07"]
    assert page.rows[2][:2] == ["drop", "40.40 %"]
    assert ["in", "25.00", "25.00"] in page.rows
    assert ["out", "75.00", "75.00"] in page.rows
    assert len(page.summaries) == 4 + 2 + 2 + 2
    assert "salf from 0.452 to 0.454" in page.summaries[0]
    assert page.summaries[4].endswith("in 1.0; hidden 2.0; out 3.0")
    assert page.summaries[6].endswith("0: 25.0 %; 1: 25.0 %; 2: 25.0 %; 3: 25.0 %")
    assert page.summaries[8].startswith("Round 3, with a deadline of 2 s, ended after 2 s. Of 3 layers")


def test_a_page_needs_nothing_from_elsewhere_and_names_cannot_break_it() -> None:
    page = render_report([reported(name='<b>&"</b><script>alert(1)</script>')])
    Outline(page)
    assert "<script" not in page
    assert not re.findall(r"https?:|url\(|@import|\bsrc=", page)
    assert re.findall(r'href="([^"]*)"', page) == ["data:,"]


def test_the_heat_map_has_a_cell_per_layer_of_its_colour() -> None:
    page = render_report([reported()])
    # 1, 2 and 3 of 4 clients are two, four and six of the eight levels; the input is the lowest row.
    tops = {
        level: [float(top) for _, top in re.findall(r"M([\d.]+) ([\d.]+)h", shape)]
        for shape, level in re.findall(r'<path d="([^"]*)" class="h(\d)"', page)
    }
    assert tops == {"2": [62.0], "4": [36.0], "6": [10.0]}


def test_the_time_line_draws_every_span_and_marks_what_was_lost() -> None:
    page = render_report([reported()])
    titles = re.findall(r'class="([a-z0-9 ]+)"><title>client (\d): ([^<]*)<', page)
    assert titles == [
        ("receive", "2", "receive, 0 to 0.2 s"),
        ("forward", "2", "forward, 0.2 to 0.7 s"),
        ("backward b2", "2", "backward of layer out, 0.7 to 1.2 s"),
        ("backward b1 lost", "2", "backward of layer hidden, 1.2 to 2 s, cut off"),
        ("send", "2", "send, 1.2 to 1.5 s"),
        ("forward lost", "0", "forward, 0 to 2 s, cut off"),
    ]


def test_settings_that_differ_are_marked() -> None:
    page = render_report([reported("salf"), reported("drop", client__lr=0.5)])
    marked = re.findall("<mark>([^<]*)</mark>", page)
    assert "name = &quot;drop&quot;" in marked
    assert {"lr = 0.2", "lr = 0.5"} <= set(marked)
    assert "rounds = 4" not in marked
    assert render_report([reported("salf"), reported("salf", 1)]).count("<mark>") == 0


def test_variants_of_a_method_are_told_apart() -> None:
    runs = [reported(method__deadline=deadline) for deadline in (1.0, 2.0)] + [reported("drop")]
    labels = [group.label for group in group_runs(runs)]
    assert labels == ["salf · method.deadline = 1.0", "salf · method.deadline = 2.0", "drop"]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([reported(seed=1, data__clients=7, model__name="cnn")], "different experiments .*data.clients.* differ"),
        ([reported()], "the run of salf with seed 0 is given twice"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(others: list[ReportedRun], message: str) -> None:
    with pytest.raises(RunFolderError, match=message):
        render_report([reported(), *others])


def test_records_that_contradict_each_other_are_refused() -> None:
    run = reported()
    with pytest.raises(RunFolderError, match="numbers of layers differ"):
        replace(run, records=(*run.records, record(5, contributors=(1, 2))))
    with pytest.raises(RunFolderError, match="another number of layers"):
        replace(run, timeline=replace(TIMELINE, layers=("one",)))


def test_a_run_without_tests_depths_or_time_line_still_has_a_page() -> None:
    bare = tuple(record(number, accuracy=None, loss=None, depths=(), work_kept=None) for number in (1, 2, 3))
    page = Outline(render_report([replace(reported(), records=bare, timeline=None)]))
    assert page.headings[-2:] == ["A typical round", "Settings"]
    assert "How deep clients got" not in page.headings
    assert page.rows[1][:6] == ["salf", "–", "–", "6 s", "–", "12 MB"]
    assert page.rows[1][8] == "3 of 4"
    assert [row[0] for row in page.rows[3:]] == ["1", "2", "3"]


def test_an_unfinished_run_is_said_to_be_one() -> None:
    page = render_report([reported("salf", rounds=4), reported("drop", rounds=2)])
    assert "<strong>Not finished:</strong> drop." in page
    assert "Not finished" not in render_report([reported()])


def test_long_runs_and_many_methods_stay_small() -> None:
    long = tuple(record(number, contributors=(number % 5, number % 3, 4)) for number in range(1, 10_001))
    runs = [replace(reported(method, rounds=1), records=long) for method in ("fedavg", "drop", "salf", "timelyfl")]
    assert len(render_report(runs)) < 0.5e6
