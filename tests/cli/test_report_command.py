"""`salf report` from folders: finished, unfinished, old, damaged, or none."""

from pathlib import Path

import pytest
from command_cases import only_json, refusal, salf, settings, tiny, tiny_run

from salf.records.rounds import RoundRecord
from salf.runs.run import run_experiment


def test_the_page_of_a_run_is_the_one_that_the_run_wrote(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    written = (tmp_path / "run" / "report.html").read_bytes()
    result = only_json(salf("report", tmp_path / "run", "--json"))
    assert (tmp_path / "run" / "report.html").read_bytes() == written
    (method,) = result["methods"]
    assert result["page"] == str(tmp_path / "run" / "report.html")
    assert (method["method"], method["seeds"], method["rounds"], method["planned"]) == ("salf", [0], 6, 6)
    assert (method["accuracy"], method["deviation"], method["time_s"]) == (run.accuracy, None, run.time_s)
    assert method["bytes_down"] == sum(record.bytes_down for record in run.records)


def test_a_comparison_writes_the_page_that_report_writes(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    done = salf("compare", "digits", *settings(), "--methods", "salf,drop", "--seeds", 2, "--jobs", 1, "--out", folder)
    assert done.code == 0
    assert str(folder / "report.html") in done.out.replace("\n", "")
    page = (folder / "report.html").read_text()
    assert "digits: 2 methods" in page
    told = salf("report", folder, "--out", tmp_path / "again.html")
    assert (told.code, told.out) == (0, f"report on 4 runs (drop, salf): {tmp_path / 'again.html'}\n")
    # Read back, the methods are in the order of the alphabet.
    assert "digits: 2 methods" in (tmp_path / "again.html").read_text()
    twice = only_json(salf("report", folder, folder / "salf" / "seed-0", "--out", tmp_path / "c.html", "--json"))
    assert [(one["method"], one["seeds"]) for one in twice["methods"]] == [("drop", [0, 1]), ("salf", [0, 1])]


def test_several_folders_are_reported_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        tiny_run(Path(f"run-{seed}"), seed=seed)
    assert salf("report", "run-0", "run-1").out == "report on 2 runs (salf): report.html\n"
    assert Path("report.html").exists()


def test_an_interrupted_run_can_be_reported(tmp_path: Path) -> None:
    def stop(record: RoundRecord) -> None:
        if record.round == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(tiny(), tmp_path / "run", watch=stop)
    result = only_json(salf("report", tmp_path / "run", "--json"))
    assert result["methods"][0]["rounds"] == 4
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Not finished" in page
    assert "A typical round" in page


def test_a_folder_without_a_time_line_is_reported_without(tmp_path: Path) -> None:
    tiny_run(tmp_path / "old")
    (tmp_path / "old" / "timeline.json").unlink()
    assert salf("report", tmp_path / "old").code == 0
    assert "No timeline was kept" in (tmp_path / "old" / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("records.jsonl", "{}\n", "records.jsonl is damaged (this is not the record of a round)"),
        ("records.jsonl", None, "no round of the run in"),
        ("timeline.json", "[1]", "; remove it, and the report shows no time-line"),
        ("experiment.toml", "rounds = -1", "cannot be read"),
        ("experiment.toml", None, "holds neither a run (experiment.toml) nor a comparison"),
    ],
)
def test_a_damaged_folder_is_one_message(file: str, content: str | None, message: str, tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_bytes()
    (tmp_path / "run" / file).unlink()
    if content is not None:
        (tmp_path / "run" / file).write_text(content)
    assert message in refusal("report", tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_bytes() == page


@pytest.mark.parametrize(("field", "value"), [("accuracy", '"high"'), ("contributors", '["a"]'), ("time_s", "NaN")])
def test_a_record_of_wrong_values_is_damaged(field: str, value: str, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    line = run.records[-1].to_json()
    start = line.index(f'"{field}": ') + len(field) + 4
    end = line.index(', "', start)
    (tmp_path / "run" / "records.jsonl").write_text(f"{line[:start]}{value}{line[end:]}\n")
    assert f"this is not the record of a round: {field}" in refusal("report", tmp_path / "run")


def test_runs_that_differ_in_any_setting_are_compared(tmp_path: Path) -> None:
    tiny_run(tmp_path / "a")
    tiny_run(tmp_path / "b", data__clients=5)
    result = only_json(salf("report", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "page.html", "--json"))
    assert [one["method"] for one in result["methods"]] == ["salf · data.clients = 4", "salf · data.clients = 5"]


def test_a_page_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    assert "cannot write" in refusal("report", tmp_path / "run", "--out", tmp_path / "none" / "page.html")
    assert "cannot write" in refusal("report", tmp_path / "run", "--out", tmp_path)
    assert "holds neither a run" in refusal("report", tmp_path / "nowhere")
