"""The content of pages about runs that were made by hand."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markupsafe import escape
from report_cases import TIMELINE, record, reported

from salf.errors import RunFolderError
from salf.methods import METHODS
from salf.records import ClientLine, Span
from salf.report import ReportedRun, explanation_of, figures_of, group_runs, render_report
from salf.report.looks import Look


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
        "Results",
        "Accuracy and loss",
        "Clients that sent each layer",
        "Share of the clients in each round, in per cent",
        "Depth that clients reached",
        "A typical round",
        "Settings",
    ]
    assert page.rows[1][:2] == ["salf", "45.40 % ± 7.07"]
    assert page.rows[2][:2] == ["drop", "40.40 %"]
    assert ["in", "25.00", "25.00"] in page.rows
    assert ["out", "75.00", "75.00"] in page.rows
    assert len(page.summaries) == 4 + 2 + 2 + 2
    assert "salf from 45.2 to 45.4" in page.summaries[0]
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
        for level, shape in re.findall(r'<path class="h(\d)" d="([^"]*)"', page)
    }
    assert tops == {"2": [62.0], "4": [36.0], "6": [10.0]}


def test_the_time_line_draws_every_span_and_marks_what_was_lost() -> None:
    page = render_report([reported()])
    titles = re.findall(r'class="([a-z0-9 ]+)"[^>]*><title>client (\d): ([^<]*)<', page)
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
    assert "name = &#34;drop&#34;" in marked
    assert {"lr = 0.2", "lr = 0.5"} <= set(marked)
    assert "rounds = 4" not in marked
    assert render_report([reported("salf"), reported("salf", 1)]).count("<mark>") == 0


def test_variants_of_a_method_have_different_labels() -> None:
    runs = [reported(method__deadline=deadline) for deadline in (1.0, 2.0)] + [reported("drop")]
    labels = [group.label for group in group_runs(runs)]
    assert labels == ["salf · method.deadline = 1.0", "salf · method.deadline = 2.0", "drop"]


def test_runs_that_differ_in_any_setting_are_told_apart_by_it() -> None:
    runs = [reported("salf", seed, data__clients=clients) for clients in (4, 7) for seed in (0, 1)]
    groups = group_runs([*runs, reported("drop", data__clients=4)])
    assert [(group.label, group.seeds) for group in groups] == [
        ("salf · data.clients = 4", (0, 1)),
        ("salf · data.clients = 7", (0, 1)),
        ("drop · data.clients = 4", (0,)),
    ]
    assert len(group_runs([reported(), reported(engine="plain")])) == 2


def test_runs_of_other_models_have_a_table_of_their_own() -> None:
    other = replace(reported(model__name="mlp"), records=(record(1, contributors=(4,), depths=(0, 4)),), timeline=None)
    page = outline(reported(), other)
    assert ["layer", "salf · model.name = cnn"] in page.rows
    assert ["1", "100.00"] in page.rows


def test_settings_without_effect_on_the_result_do_not_separate_runs() -> None:
    (group,) = group_runs([reported(), reported(seed=1, data__root="elsewhere", evaluate__target=0.5)])
    assert group.label == "salf"


def test_the_same_run_twice_is_refused() -> None:
    with pytest.raises(RunFolderError, match="two runs of salf with seed 0 have the same settings; pass only one"):
        render_report([reported(), reported()])
    with pytest.raises(RunFolderError, match="there are no runs"):
        render_report([])


def test_a_run_that_its_settings_do_not_reproduce_says_why() -> None:
    reason = 'data.name is "tensors": the data was given in Python'
    own = replace(reported(), unreproducible=(reason,))
    alone, both = render_report([own]), render_report([own, reported("drop")])
    assert escape(reason) in alone
    assert "do not reproduce the results" in alone
    assert "salf run" not in alone
    assert f"<li>{escape(f'salf: {reason}')}</li>" in both
    assert "To reproduce the others" in both
    assert "do not reproduce" not in render_report([reported()])


def test_each_method_is_explained_in_one_line() -> None:
    page = render_report([replace(reported(), explanation="Layers <count>."), reported("drop")])
    assert re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page) == [("salf", "Layers &lt;count&gt;.")]
    assert "<dl>" not in render_report([reported()])
    assert all(explanation_of(method) for method in METHODS.values())


def test_the_target_is_drawn_where_there_is_one() -> None:
    chosen = render_report([reported(evaluate__target=0.9)])
    assert chosen.count('<path class="target"') == 3  # the legend, and two figures
    assert "target: 90 %" in chosen
    assert "sets no target" not in chosen
    assert 'class="target"' not in render_report([reported()])
    # Of several methods, 95 % of the best final accuracy.
    derived = render_report([reported(), reported("drop", seed=1), reported("salf", seed=1)])
    assert "target: 47.88 %" in derived
    assert "sets no target" in derived


def test_legends_show_only_what_occurs() -> None:
    page = render_report([reported()])
    assert "receives the model" in page
    line = ClientLine(0, 1, (Span("backward", 0.0, 1.0, counted=True, layer=2),))
    bare = render_report([replace(reported(), timeline=replace(TIMELINE, lines=(line,)))])
    assert re.findall(r'class="(\w+)"/></svg>([^<;]*)', bare)[-1:] == [("backward", "backward pass")]
    assert "switched off" not in page
    phones = reported(devices__kind="physical", devices__availability="on-off")
    assert "switched off" in render_report([phones])
    untested = replace(reported("drop"), records=(record(1),))
    assert re.findall("</svg>([^<]*)</li>", render_report([reported(), untested]))[0] == "salf"


def test_curves_have_the_marks_of_picture_files() -> None:
    page = render_report([reported(method) for method in METHODS][:9])
    legend = re.findall(r'stroke-dasharray="([^"]*)"/><path class="mark c(\d)" d="([^"]*)"', page)[-9:]
    looks = [Look.of(place) for place in range(9)]
    assert set(legend) == {(look.dashes, str(look.number), look.shape) for look in looks}


def test_records_that_contradict_each_other_are_refused() -> None:
    run = reported()
    with pytest.raises(RunFolderError, match="the records have 2 and 3 layers"):
        replace(run, records=(*run.records, record(5, contributors=(1, 2))))
    with pytest.raises(RunFolderError, match="the timeline has 1 layers and the records have 3"):
        replace(run, timeline=replace(TIMELINE, layers=("one",)))


def test_a_run_without_tests_depths_or_time_line_still_has_a_page() -> None:
    bare = tuple(record(number, accuracy=None, loss=None, depths=(), work_kept=None) for number in (1, 2, 3))
    page = Outline(render_report([replace(reported(), records=bare, timeline=None)]))
    assert page.headings[-2:] == ["A typical round", "Settings"]
    assert "Depth that clients reached" not in page.headings
    assert page.rows[1][:6] == ["salf", "–", "–", "6 s", "–", "12 MB"]
    assert page.rows[1][7] == "3 of 4"
    assert [row[0] for row in page.rows[3:]] == ["1", "2", "3"]


def test_unfinished_runs_are_named() -> None:
    page = render_report([reported("salf", rounds=4), reported("drop", rounds=2)])
    assert "<strong>Not finished:</strong> drop." in page
    assert "So far, of salf and drop" in page
    assert "Not finished" not in render_report([reported()])


def test_long_runs_and_many_methods_stay_small() -> None:
    long = tuple(record(number, contributors=(number % 5, number % 3, 4)) for number in range(1, 10_001))
    runs = [replace(reported(method, rounds=1), records=long) for method in ("fedavg", "drop", "salf", "timelyfl")]
    assert len(render_report(runs)) < 0.5e6
