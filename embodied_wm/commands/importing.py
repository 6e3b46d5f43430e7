"""Imports a LeRobot dataset or an HDF5 file, and says in a table what was taken, mended and left out."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from embodied_wm.commands.errors import UsageError
from embodied_wm.data.hdf5 import import_hdf5
from embodied_wm.data.imports import Finding, ImportReport
from embodied_wm.data.lerobot import import_lerobot
from embodied_wm.evaluation.provenance import peak_rss_bytes
from embodied_wm.progress import track_reports

LEROBOT_ONLY = {"revision": None, "fit": "stretch", "stride": 1, "aggregation": "last"}
NUMBER = re.compile(r"\d+(\.\d+)?")


def import_store(source: str, out: Path, config: Mapping[str, Any], console: Console) -> ImportReport:
    """Import with a bar, and show the table.

    Args:
        source: LeRobot folder or owner/name of the hub, or HDF5 file.
        out: Folder of the store.
        config: The values of configs/import.yaml.
        console: Where to print.

    Raises:
        LeRobotError: The source cannot be imported like this.
        Hdf5Error: The same, of an HDF5 file.
        UsageError: An option does not go with the kind of source.
        StoreError: `out` cannot be written, or is something else.
    """
    with track_reports("import", unit="frames", console=console) as advance:
        common: dict[str, Any] = {name: config[name] for name in ("cameras", "episodes", "strict")}
        common["progress"] = advance
        if Path(source).expanduser().is_file():
            _check_hdf5_options(config)
            size = tuple(config["image_size"])
            report = import_hdf5(Path(source).expanduser(), out, fps=config["fps"], image_size=size, **common)
        else:
            if config["fps"] is not None:
                raise UsageError("fps= is for HDF5 files; a LeRobot dataset says its own")
            report = import_lerobot(
                source,
                out,
                revision=config["revision"],
                image_size=config["image_size"] or None,
                fit=config["fit"],
                stride=config["stride"],
                aggregation=config["aggregation"],
                num_workers=config["workers"],
                **common,
            )
    show_import(report, out, console)
    return report


def _check_hdf5_options(config: Mapping[str, Any]) -> None:
    """Refuse what an HDF5 import would silently ignore."""
    for name, default in LEROBOT_ONLY.items():
        if config[name] != default:
            raise UsageError(f"{name}={config[name]} is for LeRobot datasets; an HDF5 file is taken as it stands")
    if len(config["image_size"]) != 2:
        raise UsageError("an HDF5 file needs image_size=[HEIGHT,WIDTH]")


def show_import(report: ImportReport, out: Path, console: Console) -> None:
    """Print what an import took, mended and left out, each with its reason."""
    if report.found == report.episodes:
        console.print(f"{out} holds this import already; nothing to do", soft_wrap=True, markup=False)
    elif report.found:
        console.print(f"continued {out}, which held {report.found} episodes", soft_wrap=True, markup=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("episodes", justify="right")
    table.add_column("frames", justify="right")
    table.add_column("why, and which", overflow="fold")
    cameras = ", ".join(report.cameras) or "none"
    table.add_row("taken", f"{report.episodes:,}", f"{report.frames:,}", f"cameras: {cameras}")
    for what, findings in (("repaired", report.repaired), ("skipped", report.skipped)):
        for found in grouped(findings):
            episodes = sorted({finding.episode for finding in found})
            rows = f"{sum(finding.rows for finding in found):,}"
            table.add_row(what, f"{len(episodes):,}", rows, f"{reason_of(found)} [episodes {ranges(episodes)}]")
    for note in report.notes:
        table.add_row("note", "", "", note)
    console.print(table, markup=False)
    console.print(
        f"{report.seconds:.1f} s, peak memory of this process {peak_rss_bytes() / 2**30:.2f} GiB", highlight=False
    )


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Return findings in groups whose reasons differ in numbers alone."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(NUMBER.sub("#", finding.reason), []).append(finding)
    return list(groups.values())


def reason_of(found: Sequence[Finding]) -> str:
    """Return the reason of a group; where its numbers differ, that of its first episode."""
    if len({finding.reason for finding in found}) == 1:
        return found[0].reason
    return f"such as {found[0].episode}: {found[0].reason}"


def ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as 0-3, 7, 9-11."""
    edges = [0, *(place for place, (a, b) in enumerate(pairwise(numbers), start=1) if b != a + 1), len(numbers)]
    parts = [(numbers[start], numbers[stop - 1]) for start, stop in pairwise(edges) if stop > start]
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
