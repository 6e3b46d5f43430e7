"""Write, check, load and re-render reports: report.json (the figures), pictures/ and report.html (one page)."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from embodied_wm.evaluation.film import Picture
from embodied_wm.evaluation.page import KINDS, is_estimate, render_page
from embodied_wm.evaluation.provenance import run_record

__all__ = [
    "RUN_KEYS",
    "Headline",
    "ReportError",
    "Section",
    "Table",
    "check_schema",
    "load_report",
    "render_report",
    "run_record",
    "write_report",
]

RUN_KEYS = (
    "revision",
    "config",
    "seed",
    "device",
    "threads",
    "versions",
    "dataset",
    "checkpoint",
    "wall_seconds",
    "peak_rss_bytes",
)


class ReportError(ValueError):
    """Say that a report does not have the form that PROTOCOL section 5 asks for."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Hold a table; cells are text, numbers or estimates {"value", "ci95", "n"}.

    Attributes:
        columns: Column names; the first column holds row names.
        rows: One cell per column.
        units: Unit per column ("%" shows fractions as percents); none if empty.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    units: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """Hold one part of the page: pictures first, then a table; blank lines in `text` part paragraphs."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    table: Table | None = None


@dataclass(frozen=True, kw_only=True)
class Headline:
    """Hold one key figure of the first row of the page.

    Attributes:
        label: What it is, in few words.
        value: Estimate {"value", "ci95", "n"}.
        unit: Its unit; with "%" the value is a fraction that is shown in percent.
        better: Which direction is better.
        target: Value to reach, in the value's own unit, if there is one.
    """

    label: str
    value: Mapping[str, Any]
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"
    target: float | None = None


def _plain(value: Any, where: str) -> Any:
    """Return a value made of JSON types only; a figure that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return _plain(value.tolist(), where)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ReportError(f"{where} is a {type(value).__name__}; expected JSON types, NumPy arrays or scalars.")


def _require(condition: bool, where: str, got: object, expected: str) -> None:
    if not condition:
        raise ReportError(f"report.{where} is {got!r:.120}; expected {expected}.")


def _check_estimate(value: Any, where: str) -> None:
    _require(is_estimate(value), where, value, 'an estimate {"value", "ci95", "n"}')
    interval = value["ci95"]
    numbers = isinstance(interval, list) and len(interval) == 2 and all(isinstance(x, int | float) for x in interval)
    _require(value["value"] is None or isinstance(value["value"], int | float), f"{where}.value", value, "a number")
    _require(interval is None or numbers, f"{where}.ci95", interval, "[low, high] or null")
    _require(isinstance(value["n"], int) and value["n"] >= 0, f"{where}.n", value["n"], "a count")


def _check_figures(tree: Any, where: str) -> None:
    """Check a tree of named figures: estimates, by_horizon dicts of estimates, deeper names."""
    _require(isinstance(tree, Mapping) and len(tree) > 0, where, tree, "a mapping of figures, not empty")
    for key, value in tree.items():
        name = f"{where}.{key}"
        if is_estimate(value):
            _check_estimate(value, name)
        elif isinstance(value, Mapping) and "by_horizon" in value:
            for step, cell in value["by_horizon"].items():
                _require(bool(re.fullmatch(r"[1-9]\d*", step)), f"{name}.by_horizon", step, "steps named 1, 2, ...")
                _check_estimate(cell, f"{name}.by_horizon.{step}")
        else:
            _check_figures(value, name)


def check_schema(report: Mapping[str, Any]) -> None:
    """Raise ReportError, naming the key, where a report breaks the contract of PROTOCOL section 5."""
    for key in ("kind", "run", "tasks", "speed", "title", "summary", "headline", "sections"):
        _require(key in report, key, "missing", "present")
    _require(report["kind"] in KINDS, "kind", report["kind"], "one of " + ", ".join(KINDS))
    for key in RUN_KEYS:
        _require(key in report["run"], f"run.{key}", "missing", "present; run_record() makes it")
    for task, figures in report["tasks"].items():
        _check_figures(figures, f"tasks.{task}")
    for i, item in enumerate(report["headline"]):
        _check_estimate(item.get("value"), f"headline[{i}].value")
        _require(item["value"]["value"] is not None, f"headline[{i}].value.value", None, "a finite number")
        _require(item.get("better") in ("higher", "lower"), f"headline[{i}].better", item, "'higher' or 'lower'")
    for i, section in enumerate(report["sections"]):
        table = section["table"]
        widths = {len(row) for row in table["rows"]} if table else set()
        _require(not widths or widths == {len(table["columns"])}, f"sections[{i}].table", widths, "one cell per column")


def write_report(
    folder: Path,
    *,
    kind: str,
    run: Mapping[str, Any],
    tasks: Mapping[str, Any],
    speed: Mapping[str, Any] | None = None,
    sections: Sequence[Section] = (),
    headline: Sequence[Headline] = (),
    title: str | None = None,
    summary: str = "",
) -> Path:
    """Write report.json, pictures/ and report.html into a folder and return the path of report.json.

    Args:
        folder: Where to write; made if missing.
        kind: One of KINDS.
        run: What run_record() returns.
        tasks: Task to key to estimate, or to {"by_horizon": {step: estimate}}, nested as needed.
        speed: Figures of speed, of the same form.
        sections: Parts of the page, in order.
        headline: Key figures for the first row.
        title: Heading of the page; named after the kind if None.
        summary: Plain words under the heading.
    """
    folder = Path(folder)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    listed = []
    for i, section in enumerate(sections):
        entries = []
        for j, picture in enumerate(section.pictures):
            slug = re.sub(r"[^a-z0-9]+", "-", picture.title.lower()).strip("-")[:40]
            name = f"pictures/{i + 1:02d}-{j + 1:02d}-{slug}.{picture.kind}"
            (folder / name).write_bytes(picture.data)
            words = {key: value for key, value in vars(picture).items() if key != "data"}
            entries.append(words | {"file": name})
        table = asdict(section.table) if section.table else None
        if table:
            table["units"] = list(table["units"]) or [""] * len(table["columns"])
        listed.append({"title": section.title, "text": section.text, "pictures": entries, "table": table})
    report = _plain(
        {
            "kind": kind,
            "title": title or KINDS.get(kind, kind),
            "summary": summary,
            "run": run,
            "headline": [asdict(item) for item in headline],
            "tasks": tasks,
            "speed": speed or {},
            "sections": listed,
        },
        "report",
    )
    check_schema(report)
    path = folder / "report.json"
    write_atomically(path, json.dumps(report, indent=1, allow_nan=False))
    render_report(path)
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that its name never stands for half of it; raise ReportError if a folder has that name."""
    if path.is_dir():
        raise ReportError(f"{path} is a folder; give the page a name of its own, such as {path / 'page.html'}.")
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def load_report(path: Path) -> dict[str, Any]:
    """Read and check a report.json (or the folder that holds one)."""
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReportError(f"No report at {path}; expected the folder of a finished run, or its report.json.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ReportError(f"{path} is not JSON ({error}); expected a report.json that this project wrote.") from error
    if not isinstance(report, dict):
        raise ReportError(f"{path} holds a {type(report).__name__}; expected a report, a JSON object.")
    check_schema(report)
    return report


def render_report(path: Path, page: Path | None = None) -> Path:
    """Write the page of a report.json from it and its pictures, and return its path; report.html beside it if None."""
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    report = load_report(path)
    pictures = []
    for section in report["sections"]:
        drawn = []
        for entry in section["pictures"]:
            file = path.parent / entry["file"]
            if not file.is_file():
                raise ReportError(
                    f"The picture {file} is missing; keep report.json together with its pictures/ folder."
                )
            words = {key: value for key, value in entry.items() if key != "file"}
            drawn.append(Picture(**words, data=file.read_bytes()))
        pictures.append(drawn)
    page = page or path.with_suffix(".html")
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, render_page(report, pictures))
    return page
