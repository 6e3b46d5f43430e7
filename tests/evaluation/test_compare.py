"""The page that compares runs: whose figure is whose, what is absent, and what differed."""

import json
from pathlib import Path

import pytest
from pages import Page, write_run

from embodied_wm import cli
from embodied_wm.evaluation.compare import run_names, write_comparison
from embodied_wm.evaluation.report import ReportError, render_report, run_record, write_report
from embodied_wm.evaluation.statistics import estimate


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    first = write_run(tmp_path / "a" / "big", seed=0, successes=80)
    second = write_run(tmp_path / "a" / "small", seed=1, successes=41, contact_f1=estimate(0.25, None, 3))
    return [first, second]


def test_every_figure_of_every_run_is_on_the_page(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_comparison(runs, tmp_path / "out" / "compare.html").read_text())
    for folder in runs:
        figures = json.loads((folder / "report.json").read_text())["tasks"]["push"]
        wanted = [figures["success"], figures["cpg"], figures["spearman"], figures["psnr"]["by_horizon"]["8"]]
        assert {figure["value"] for figure in wanted} <= set(page.values)
        assert set(figures["success"]["ci95"]) <= set(page.values)
    assert "big" in page.text
    assert "small" in page.text
    assert [
        text for text in ("push: success", "error by horizon", "reliability", "speed") if text not in page.text
    ] == []


def test_columns_are_of_the_right_run(runs: list[Path], tmp_path: Path) -> None:
    html = write_comparison(runs, tmp_path / "compare.html").read_text()
    table = html[html.index("success (%)") :]
    assert table.index('value="80.0"') < table.index('value="41.0"')
    row = html[html.index("contact onsets, F1") :]
    assert row.index("<td></td>") < row.index('value="0.25"')  # the first run has none


def test_what_differs_is_said(runs: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "a" / "other", seed=0, successes=1, horizon=16)
    assert "differ in seed." in write_comparison(runs, tmp_path / "compare.html").read_text()
    assert "differ in imagination.horizon." in write_comparison([runs[0], other], tmp_path / "compare.html").read_text()


def test_runs_of_different_kinds_do_not_differ_in_what_one_cannot_have(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name, seed=0, successes=1) for name in ("a", "b"))
    report = json.loads((second / "report.json").read_text())
    report["kind"], report["run"]["config"] = "speed", {"speed": {"repeats": 5}}
    (second / "report.json").write_text(json.dumps(report))
    assert "The runs were configured alike." in write_comparison([first, second], tmp_path / "page.html").read_text()


def test_the_command_line_compares_bare_arguments(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert cli.main(["report", *map(str, runs), f"out={out}"]) == 0
    assert out.read_text() == write_comparison(runs, tmp_path / "again.html").read_text()


def test_the_command_line_writes_the_page_of_one_run_where_it_is_asked_to(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    assert cli.main(["report", str(runs[0]), f"out={out}"]) == 0
    assert out.read_text() == render_report(runs[0]).read_text()


def test_trainings_are_compared_though_their_psnr_has_no_horizon(runs: list[Path], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("short", "long")]
    for seed, folder in enumerate(folders):
        figures = {"loss": estimate(0.5 + seed, None, 1), "psnr": estimate(31.5 + seed, None, 1)}
        run = run_record({"seed": seed}, seed)
        write_report(folder, kind="training", run=run, tasks={"tokenizer": figures}, title=f"Training {seed}")
    page = Page(write_comparison(folders, tmp_path / "compare.html").read_text())
    assert {0.5, 1.5, 31.5, 32.5} <= set(page.values)
    assert "error by horizon" not in page.text
    other = write_run(tmp_path / "a" / "other", seed=0, successes=1, psnr_copy=estimate(20.0, None, 1))
    assert "error by horizon" in write_comparison([other, runs[0]], tmp_path / "compare.html").read_text()


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    assert run_names([tmp_path / "x" / "report.json", tmp_path / "y"]) == ["x", "y"]
    assert run_names([tmp_path / "x" / "plan", tmp_path / "y" / "plan"]) == ["x/plan", "y/plan"]
    with pytest.raises(ReportError, match="same run twice"):
        run_names([tmp_path, tmp_path])
    with pytest.raises(ReportError, match="takes 2 to 6"):
        write_comparison([tmp_path], tmp_path / "compare.html")


def test_a_page_that_would_have_the_name_of_a_folder(runs: list[Path], tmp_path: Path) -> None:
    for write in (lambda page: write_comparison(runs, page), lambda page: render_report(runs[0], page)):
        with pytest.raises(ReportError, match="is a folder; give the page a name of its own"):
            write(tmp_path)
    assert not tmp_path.with_name(f"{tmp_path.name}.part").exists()
