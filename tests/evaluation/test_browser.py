"""Pages in a real browser: they render, ask for nothing outside, and show what report.json holds."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pages import CHROMIUM, QUIET, Page, measure, visit, write_run
from PIL import Image

from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.compare import write_comparison
from embodied_wm.evaluation.contact_sheet import write_contact_sheet
from embodied_wm.evaluation.page import flatten, is_estimate

pytestmark = [
    pytest.mark.render,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on PATH; install Debian's chromium"),
]


def figures_of(report: Path) -> set[float]:
    """Return the numbers that a report.json holds of its tasks: values, ends of intervals, some steps of curves."""
    found: set[float] = set()
    for _, leaf in flatten(json.loads(report.read_text())["tasks"]):
        if is_estimate(leaf):
            found |= {leaf["value"], *(leaf["ci95"] or [])}
        else:
            found |= {cell["value"] for step, cell in leaf["by_horizon"].items() if int(step) in (1, 2, 4, 8)}
    return found


def check(page: Path, reports: list[Path], folder: Path) -> None:
    seen = visit(page, folder)
    assert seen.console == []
    assert seen.requests == []
    wanted = set().union(*map(figures_of, reports))
    assert len(wanted) > 20
    assert wanted <= set(Page(seen.html).values)


def test_a_report_shows_its_figures_and_asks_for_nothing(example: Path, tmp_path: Path) -> None:
    check(example.with_suffix(".html"), [example], tmp_path)


def test_a_comparison_shows_the_figures_of_all_and_asks_for_nothing(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, seed=seed, successes=50 + seed) for seed, name in enumerate("abc")]
    page = write_comparison(runs, tmp_path / "compare.html")
    check(page, [run / "report.json" for run in runs], tmp_path)
    assert measure(page, tmp_path, 400) == {"wide": 400, "broken": 0, "figures": 3}


def test_the_checks_see_requests_and_errors(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>nothing()</script>')
    seen = visit(page, tmp_path)
    assert any("127.0.0.1:9" in url for url in seen.requests)
    assert any("nothing is not defined" in line for line in seen.console)


@pytest.mark.parametrize(("page", "width", "num_figures"), [("report", 400, 6), ("report", 1200, 6), ("store", 400, 3)])
def test_page_fits_its_window(
    example: Path, tiny_store: Path, tmp_path: Path, page: str, width: int, num_figures: int
) -> None:
    """Nothing sticks out sideways, every picture loads, and ink is drawn."""
    file = tmp_path / "page.html"
    if page == "report":
        shutil.copy(example.with_suffix(".html"), file)
    else:
        write_contact_sheet(EpisodeStore.open(tiny_store), file)
    assert measure(file, tmp_path, width) == {"wide": width, "broken": 0, "figures": num_figures}
    shot = tmp_path / "page.png"
    options = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},2400"]
    target = (tmp_path / "outer.html").as_uri()
    command = [str(CHROMIUM), *QUIET, *options, f"--screenshot={shot}", target]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    pixels = np.asarray(Image.open(shot).convert("L"))[:, :width]
    assert 0.01 < (pixels < 128).mean() < 0.5
