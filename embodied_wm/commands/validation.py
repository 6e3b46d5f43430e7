"""Checks a store and shows what was found."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embodied_wm.data.validation import Alignment, Finding, ValidationReport, validate_store
from embodied_wm.progress import Track

SHOWN_ALIKE = 4
"""Findings of one check and feature that the table shows; the file has all."""


def validate(path: Path, *, strict: bool, folder: Path, console: Console) -> int:
    """Check a store, print the findings, write validate.json, and return the exit code.

    Raises:
        StoreError: The path is no store.
    """
    with Track("validate", _num_rows(path), unit="rows", console=console) as track:
        report = validate_store(path, progress=lambda done, total: track.advance(done - track.done))
    (folder / "validate.json").write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")
    _show(report, console)
    return int(report.num_errors > 0 or (strict and report.num_warnings > 0))


def _num_rows(path: Path) -> int:
    from embodied_wm.data.store import EpisodeStore

    return EpisodeStore.open(path).num_frames


def _show(report: ValidationReport, console: Console) -> None:
    if report.findings:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        for title in ("", "check", "feature", "episode", "row", "what was found", "what to do"):
            table.add_column(title, overflow="fold")
        for cells in _lines(report.findings):
            style = "red" if cells[0] == "error" else "yellow" if cells[0] == "warning" else ""
            table.add_row(Text(cells[0], style=style), *(Text(cell) for cell in cells[1:]))
        console.print(table)
    for alignment in report.alignments:
        console.print(_alignment_line(alignment), soft_wrap=True, highlight=False)
    console.print(
        f"{report.path}: {report.num_episodes:,} episodes, {report.num_rows:,} rows in {report.seconds:.1f} s; "
        f"{report.num_errors} findings that break training, {report.num_warnings} warnings",
        soft_wrap=True,
        highlight=False,
    )


def _lines(findings: Sequence[Finding]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of the table; findings of one check and feature say what to do once."""
    for _, group in groupby(findings, key=lambda finding: (finding.severity, finding.check, finding.feature)):
        alike = list(group)
        for number, finding in enumerate(alike[:SHOWN_ALIKE]):
            advice = "" if number and finding.advice == alike[0].advice else finding.advice
            episode, row = (str(place) if place is not None else "all" for place in (finding.episode, finding.row))
            yield finding.severity, finding.check, finding.feature, episode, row, finding.message, advice
        if len(alike) > SHOWN_ALIKE:
            rest = alike[SHOWN_ALIKE:]
            numbers = ", ".join(str(finding.episode) for finding in rest[:12]) + (", ..." if len(rest) > 12 else "")
            yield "", "", "", numbers, "", f"{len(rest)} more like these; validate.json has all", ""


def _alignment_line(alignment: Alignment) -> str:
    share = max(alignment.explained.values())
    if alignment.best_lag is None:
        return (
            f"alignment: actions explain too little of the change of {alignment.feature} to say where they belong "
            f"({max(share, 0):.0%} at most)"
        )
    certainty = "" if alignment.is_certain else ", not surely better than at lag 0"
    return (
        f"alignment: actions explain {share:.0%} of the change of {alignment.feature} at lag "
        f"{alignment.best_lag}{certainty} (0: action_t lies between frame t and frame t+1)"
    )
