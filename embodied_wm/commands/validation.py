"""Checks a store and shows what was found."""

import json
from collections.abc import Sequence
from itertools import groupby, zip_longest
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embodied_wm.data.validation import Alignment, Finding, ValidationReport, validate_store
from embodied_wm.progress import Track

SHOWN_ALIKE = 4
"""Findings of one check and feature that the table shows; the file has all."""


def validate(path: str | Path, *, strict: bool, folder: Path, console: Console) -> int:
    """Check a store, print the findings, write validate.json, and return the exit code.

    Raises:
        StoreError: The path is no store.
    """
    with Track("validate", _num_rows(path), unit="rows", console=console) as track:
        report = validate_store(path, progress=lambda done, total: track.advance(done - track.done))
    (folder / "validate.json").write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")
    _show(report, console)
    return int(report.num_errors > 0 or (strict and report.num_warnings > 0))


def _num_rows(path: str | Path) -> int:
    from embodied_wm.data.store import EpisodeStore

    return EpisodeStore.open(path).num_frames


def _show(report: ValidationReport, console: Console) -> None:
    for (severity, check, feature), group in groupby(report.findings, key=lambda f: (f.severity, f.check, f.feature)):
        style = "bold red" if severity == "error" else "bold yellow"
        console.print(Text.assemble((severity, style), f"  {check.replace('_', ' ')}  ", (feature, "cyan")))
        console.print(_table(list(group)))
    for alignment in report.alignments:
        console.print(_alignment_line(alignment), soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{report.path}: {report.num_episodes:,} episodes, {report.num_rows:,} rows in {report.seconds:.1f} s; "
        f"{report.num_errors} findings that break training, {report.num_warnings} warnings",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _table(findings: Sequence[Finding]) -> Table:
    """Return the table of findings of one check and feature, with what to do below each new advice."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("episode", justify="right", no_wrap=True)
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("what was found, and what to do", overflow="fold")
    shown = findings[:SHOWN_ALIKE]
    for finding, following in zip_longest(shown, shown[1:]):
        episode, row = ("all" if place is None else str(place) for place in (finding.episode, finding.row))
        table.add_row(episode, row, Text(finding.message))
        if following is None or following.advice != finding.advice:
            table.add_row("", "", Text(finding.advice, style="italic"))
    rest = [str(finding.episode) for finding in findings[SHOWN_ALIKE:]]
    if rest:
        numbers = ", ".join(rest[:12]) + (", ..." if len(rest) > 12 else "")
        table.add_row("", "", Text(f"{len(rest)} more like these, in episode {numbers}: validate.json has all"))
    return table


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
