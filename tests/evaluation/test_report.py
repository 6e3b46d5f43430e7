"""The report: figures in JSON, one self-contained page, and what happens to bad input."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page
from PIL import Image

from embodied_wm.evaluation import figures
from embodied_wm.evaluation.film import difference
from embodied_wm.evaluation.page import MEANINGS, format_duration, format_end, format_number
from embodied_wm.evaluation.report import (
    RUN_KEYS,
    Headline,
    ReportError,
    Section,
    Table,
    check_schema,
    load_report,
    render_report,
    run_record,
    write_report,
)
from embodied_wm.evaluation.statistics import estimate, wilson


def minimal(folder: Path, **changes: Any) -> Path:
    given: dict[str, Any] = {
        "kind": "demo",
        "run": run_record({"a": 1}, 0),
        "tasks": {"reach": {"success": wilson(9, 10)}},
    }
    return write_report(folder, **(given | changes))


def test_json_has_the_contract_keys(example: Path) -> None:
    report = json.loads(example.read_text())
    assert report["kind"] == "demo"
    assert tuple(report["run"]) == RUN_KEYS
    assert report["tasks"]["reach"]["psnr"]["by_horizon"]["8"].keys() == {"value", "ci95", "n"}
    assert report["tasks"]["reach"]["success"]["oracle: CEM in MuJoCo"]["value"] == 1.0
    assert report["run"]["peak_rss_bytes"] > 10 * 2**20
    assert report["run"]["versions"]["torch"]


def test_page_requests_nothing(example: Path) -> None:
    """Every reference is a data URI or an anchor of the page, in attributes and in styles."""
    html = example.with_suffix(".html").read_text()
    page = Page(html)
    references = [
        attributes[name]
        for tag, attributes in page.tags
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
        if attributes.get(name)
    ]
    assert len(references) > 30
    assert [r for r in references if not (r or "").startswith(("data:", "#"))] == []
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert "http" not in html
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base"}


def test_every_headline_number_is_on_the_page(example: Path) -> None:
    """Values, bounds, targets and counts are readable, and exact for machines."""
    report = json.loads(example.read_text())
    page = Page(example.with_suffix(".html").read_text())
    assert len(report["headline"]) == 6
    for item in report["headline"]:
        numbers = [item["value"]["value"], *(item["value"]["ci95"] or [])]
        assert {*numbers, item["target"]} <= set(page.values)
        assert all(format_number(number, item["unit"]) in page.text for number in numbers)
        assert item["label"] in page.text
        assert f"n = {item['value']['n']}" in page.text or item["value"]["n"] == 1
    assert page.text.count("missed") == 1
    assert "Agresti-Caffo for a difference of rates" in page.text  # of which "oracle minus model" is one


def test_times_are_in_the_unit_that_suits_them() -> None:
    assert [format_duration(seconds) for seconds in (0.25, 16.6, 89, 128, 5399, 5400)] == [
        "0.250 s",
        "16.6 s",
        "89 s",
        "2.13 min",
        "90.0 min",
        "1.50 h",
    ]


def test_a_page_says_in_which_precision_was_imagined(tmp_path: Path) -> None:
    for config, is_said in (({}, False), ({"precision": "fp32"}, False), ({"precision": "int8"}, True)):
        page = minimal(tmp_path, run=run_record(config, 0)).with_suffix(".html")
        assert ("imagined in int8" in page.read_text()) == is_said


def test_rates_are_in_percent_and_counts_of_steps_are_not(tmp_path: Path) -> None:
    names = ("success.oracle", "round_1.success_any", "cpg", "late_decisions", "steps_to_success", "final_cost_m")
    page = minimal(tmp_path, tasks={"reach": dict.fromkeys(names, estimate(0.5, None, 4))}).with_suffix(".html")
    shown = dict(
        re.findall(r'<th scope="row">([^<]+)</th><td[^>]*><span[^>]*><data[^>]*>([^<]+)</data>', page.read_text())
    )
    assert {name for name in names if shown[name] == "50%"} == set(names[:4])
    assert [shown[name] for name in names[4:]] == ["0.500", "0.500"]


def test_figures_of_a_round_have_their_meaning(tmp_path: Path) -> None:
    page = minimal(tmp_path, tasks={"reach": {"round_1": {"success": wilson(1, 4)}}}).with_suffix(".html")
    assert MEANINGS["success"] in page.read_text()


def test_ids_are_unique_and_every_internal_reference_resolves(example: Path) -> None:
    html = example.with_suffix(".html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', html)) <= set(ids)


def test_charts_follow_the_theme(example: Path) -> None:
    """No colour of a chart stays fixed, so dark pages have light ink."""
    html = example.with_suffix(".html").read_text()
    charts = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    charts = re.sub(r'"data:[^"]*"', "", charts)
    assert "var(--ink)" in charts
    assert "var(--c1)" in charts
    assert re.findall(r"#[0-9a-fA-F]{6}\b", charts) == []


def test_pictures_carry_words(example: Path) -> None:
    page = Page(example.with_suffix(".html").read_text())
    alternatives = [a.get("alt") for t, a in page.tags if t == "img"]
    alternatives += [a.get("aria-label") for t, a in page.tags if t == "svg"]
    assert len(alternatives) == 6
    assert all(alternatives)


def test_rendering_again_gives_the_same_page(example: Path, tmp_path: Path) -> None:
    """A report folder moves as a whole."""
    shutil.copytree(example.parent, tmp_path / "moved")
    page = tmp_path / "moved" / "report.html"
    before = page.read_text()
    page.unlink()
    assert render_report(tmp_path / "moved") == page
    assert page.read_text() == before


def test_text_is_escaped(tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script>'
    table = Table(columns=[nasty, "b"], rows=[[nasty, 1.0]])
    path = minimal(
        tmp_path,
        title=nasty,
        summary=nasty,
        sections=[Section(title=nasty, text=nasty, table=table)],
        headline=[Headline(label=nasty, value=wilson(1, 2), unit=nasty)],
    )
    page = Page(path.with_suffix(".html").read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(nasty) >= 7


def test_arrays_become_lists_and_undefined_becomes_null(tmp_path: Path) -> None:
    undefined = {"value": np.float32("nan"), "ci95": None, "n": np.int64(3)}
    path = minimal(
        tmp_path, tasks={"push": {"spearman": undefined, "by_hand": {"x": {"value": 1, "ci95": np.zeros(2), "n": 1}}}}
    )
    figures_read = load_report(tmp_path)["tasks"]["push"]
    assert figures_read["spearman"] == {"value": None, "ci95": None, "n": 3}
    assert figures_read["by_hand"]["x"]["ci95"] == [0.0, 0.0]
    assert "undefined" in path.with_suffix(".html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "poem"}, "report.kind is 'poem'; expected one of imagination, planning"),
        ({"run": {"seed": 0}}, "report.run.revision"),
        ({"tasks": {"reach": {"success": 0.9}}}, r"report.tasks.reach.success is 0.9"),
        ({"tasks": {"reach": {"psnr": {"by_horizon": {"0": wilson(1, 2)}}}}}, "steps named 1, 2"),
        ({"tasks": {"reach": {"success": {"value": 1, "ci95": [1], "n": 1}}}}, r"success.ci95 is \[1\]"),
        ({"tasks": {"reach": object()}}, "report.tasks.reach is a object"),
        ({"sections": [Section(title="t", table=Table(columns=["a", "b"], rows=[["x"]]))]}, "one cell per column"),
        ({"headline": [Headline(label="x", value={"value": float("nan"), "ci95": None, "n": 1})]}, "a finite number"),
    ],
)
def test_a_report_that_breaks_the_contract_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ReportError, match=message):
        minimal(tmp_path, **changes)
    assert not (tmp_path / "report.json").exists()


def test_unreadable_reports_have_clear_errors(tmp_path: Path, example: Path) -> None:
    with pytest.raises(ReportError, match=r"No report at .*report\.json"):
        load_report(tmp_path)
    (tmp_path / "report.json").write_text('{"kind": ')
    with pytest.raises(ReportError, match="is not JSON"):
        load_report(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ReportError, match="holds a list"):
        load_report(tmp_path)
    shutil.copy(example, tmp_path / "report.json")
    with pytest.raises(ReportError, match=r"picture .* is missing"):
        render_report(tmp_path)
    with pytest.raises(ReportError, match=r"report\.headline"):
        check_schema({"kind": "demo", "run": {}, "tasks": {}, "speed": {}, "title": "", "summary": "", "sections": []})


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.934, "%", "93.4%"),
        (1.0, "%", "100%"),
        (-0.05, "%", "\u22125%"),
        (0.942, "", "0.942"),
        (7.284, "dB", "7.28"),
        (12345.6, "", "12,346"),
        (-0.0123, "m", "\u22120.0123"),
        (0.02, "m", "0.020"),
        (3.2e-6, "", "3.2e\u221206"),
        (0.0, "", "0"),
        (64, "", "64"),
        (9.996, "", "10.00"),
    ],
)
def test_numbers_read_well(value: float, unit: str, text: str) -> None:
    assert format_number(value, unit) == text


@pytest.mark.parametrize(
    ("end", "value", "text"),
    [
        (0.00989, 0.150, "0.010"),
        (-3.0e-4, 0.00292, "\u22120.00030"),
        (-3.0e-4, 0.015, "0"),
        (0.0155, 0.00462, "0.0155"),
        (8.25, 8.75, "8.25"),
        (1e-6, 3.2e-6, "1.0e\u221206"),
    ],
)
def test_an_interval_is_as_fine_as_its_value(end: float, value: float, text: str) -> None:
    assert format_end(end, value) == text


def test_only_a_page_with_an_interval_says_which(tmp_path: Path) -> None:
    sure, unsure = Headline(label="loss", value=estimate(0.2, None, 1)), Headline(label="success", value=wilson(3, 4))
    for name, headline, said in (("a", [sure], False), ("b", [sure, unsure], True)):
        page = render_report(minimal(tmp_path / name, headline=headline)).read_text()
        assert ("Intervals are 95%" in page) == said


def test_axes_say_plain_numbers() -> None:
    picture = figures.learning_curve({"time": ([1, 2], [20.0, 70.0])}, xlabel="iteration")
    text = re.sub(r"<style.*?</style>", "", picture.data.decode(), flags=re.DOTALL)
    ticks = re.findall(r"<text[^>]*>([^<]+)</text>", text)
    assert {"1", "2", "20", "60"} <= set(ticks)
    assert not [tick for tick in ticks if "." in tick]


def test_pictures_are_what_they_say(episode: tuple[np.ndarray, np.ndarray]) -> None:
    real, imagined = episode
    loop = figures.looping(real, imagined)
    image = Image.open(io.BytesIO(loop.data))
    assert image.format == "WEBP"
    assert image.n_frames == 12  # pyright: ignore[reportAttributeAccessIssue]
    assert image.info["loop"] == 0
    strip = figures.film_strip(real[:4], imagined[:4], labels=["a", "b", "c", "d"], num_context=1).data.decode()
    assert strip.count("<image") == 4 + 4 + 3
    assert strip.count("image-rendering: pixelated") == 11
    first = difference(real, real)
    assert (first == first[0, 0, 0]).all()


def test_the_mark_of_a_contact_is_a_dot_in_animations(episode: tuple[np.ndarray, np.ndarray]) -> None:
    def label_of_second(label: str) -> np.ndarray:
        loop = figures.looping(episode[0][:2], episode[1][:2], labels=["t", label])
        image = Image.open(io.BytesIO(loop.data))
        image.seek(1)
        return np.asarray(image.convert("RGBA"))[-25:, :, 3] > 128

    added = label_of_second("t+1 \u25cf") & ~label_of_second("t+1 ")
    widths = [int(row.sum()) for row in added if row.any()]
    assert widths[0] < max(widths) > widths[-1], "it is round, and no box for a sign that the font lacks"
    assert 60 < sum(widths) < 120


def test_a_model_to_which_all_candidates_cost_the_same_has_no_correlation() -> None:
    assert "points: 1.00." in figures.cost_scatter([1.0, 2.0], [1.0, 2.0], ["a", "b"]).caption
    same = figures.cost_scatter([1.0, 1.0], [1.0, 2.0], ["a", "b"]).caption
    assert "points: undefined, as one of the costs is always the same." in same


def test_bad_pictures_are_refused(episode: tuple[np.ndarray, np.ndarray]) -> None:
    real, imagined = episode
    with pytest.raises(figures.PictureError, match="expected uint8 frames"):
        figures.film_strip(real / 255.0, imagined, labels=[str(t) for t in range(12)])
    with pytest.raises(figures.PictureError, match="expected the same"):
        figures.looping(real[:3], imagined)
    with pytest.raises(figures.PictureError, match="2 labels"):
        figures.film_strip(real, imagined, labels=["a", "b"])
    with pytest.raises(figures.PictureError, match="three equal"):
        figures.cost_scatter([1.0, 2.0], [1.0], ["a", "b"])
