"""Make a run's page, and look at pages: parsed, or in a headless browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embodied_wm.evaluation.report import run_record, write_report
from embodied_wm.evaluation.statistics import agresti_caffo, bootstrap_mean, by_horizon, estimate, wilson

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_PAGE = "not an origin"
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--allow-file-access-from-files"),
)


def write_run(folder: Path, *, seed: int, successes: int, horizon: int = 8, **more: Any) -> Path:
    """Write a report of imagination and planning whose figures depend on the seed, and return its folder."""
    rng = np.random.default_rng(seed)
    measures: dict[str, Any] = {
        "psnr": by_horizon(30 - np.arange(8) + rng.normal(size=(16, 8)), seed=0),
        "psnr_copy": by_horizon(24 - np.arange(8) + rng.normal(size=(16, 8)), seed=0),
        "state_error": by_horizon(0.002 * np.arange(1, 9) * rng.uniform(1, 2, (16, 8)), seed=0),
        "success": wilson(successes, 100),
        "success.oracle": wilson(97, 100),
        "cpg": agresti_caffo(97, 100, successes, 100),
        "seconds_per_decision": estimate(0.08 + 0.01 * seed, [0.07, 0.12], 80),
        "spearman": bootstrap_mean([0.8 + 0.01 * seed, 0.9, 0.95], seed=0),
    }
    config = {"imagination": {"horizon": horizon}, "seed": seed, "run_dir": str(folder)}
    run = run_record(config, seed, checkpoint=f"abc{seed}", wall_seconds=60.0)
    write_report(folder, kind="planning", run=run, tasks={"push": measures | more}, title=f"Run {seed}")
    return folder


class Page(HTMLParser):
    """Collect tags, text and the values of <data> elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.values: list[float] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self.values.append(float(dict(attrs)["value"] or "nan"))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1][0] != "style":
            self.text += data


class Visit(NamedTuple):
    """Hold a page as a browser made it: its document, what its console said, what addresses it asked for."""

    html: str
    console: list[str]
    requests: list[str]


def visit(page: Path, folder: Path, *options: str) -> Visit:
    """Open a page in a headless browser, whose profile and log go into a folder."""
    log = folder / "net.json"
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
    command += [f"--log-net-log={log}", "--net-log-capture-mode=Everything", *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    asked = [event.get("params", {}) for event in json.loads(log.read_text(errors="replace"))["events"]]
    # What the browser asks for by itself, such as the time, has no origin.
    urls = [each["url"] for each in asked if "url" in each and each.get("initiator", NO_PAGE) != NO_PAGE]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Visit(done.stdout, console, [url for url in urls if not url.startswith(("file:", "data:"))])


def measure(page: Path, folder: Path, width: int) -> dict[str, Any]:
    """Return the width that a page takes in a window of `width` pixels, its broken pictures and its figures.

    The page sits in a frame of the wanted width, because headless windows have a least width; a script outside of it
    measures.
    """
    outer = folder / "outer.html"
    outer.write_text(
        f'<body style="margin:0"><iframe src="{page.as_uri()}" style="border:0;width:{width}px;height:2400px"></iframe>'
        "<script>"
        'onload = () => { const d = document.querySelector("iframe").contentDocument;'
        "document.title = JSON.stringify({wide: d.documentElement.scrollWidth,"
        'broken: [...d.images].filter(i => !i.naturalWidth).length, figures: d.querySelectorAll("figure").length}); }'
        "</script>"
    )
    title = re.search(r"<title>(.*?)</title>", visit(outer, folder, f"--window-size={max(width, 500)},2400").html)
    assert title is not None
    return json.loads(title[1])
