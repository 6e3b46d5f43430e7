"""One self-contained page that shows what an episode store holds: frames of sampled episodes, ranges, lengths."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.figures import Picture, column_ranges, film_rows, length_histogram
from embodied_wm.evaluation.page import compose_page, fact_row, table_html
from embodied_wm.evaluation.report import write_atomically
from embodied_wm.types import FeatureSpec

THUMBNAIL_PX = 272
"""Largest side of a thumbnail: twice what a page shows, for fine screens."""
SHOWN_EPISODES = 20
SAMPLED_EPISODES = 500
COLUMNS_OF_A_PICTURE = 12
_RANGES = "Each column from its smallest to its largest value; heights grow as the square root of the count."
LEADING = ("action", "observation.state")


def write_contact_sheet(store: EpisodeStore, file: Path, *, num_episodes: int = SHOWN_EPISODES) -> Path:
    """Write the page of a store and return its path; `num_episodes` are shown, spread evenly over the store.

    Raises:
        StoreError: Damaged data.
        ValueError: The store holds no episode, or `file` does not end in .html.
        OSError: `file` cannot be written.
    """
    if not store.num_episodes:
        raise ValueError(f"{store.path} holds no episode, so there is nothing to show. Collect or import some.")
    if file.suffix != ".html":
        raise ValueError(f"out={file}: expected a name that ends in .html")
    shown = spread(store.num_episodes, num_episodes)
    cameras = [name for name, spec in store.features.items() if spec.is_image and spec.shape[-1] == 3]
    sampled = {name: _sampled(store, name) for name, spec in store.features.items() if _is_drawn(spec)}
    order = sorted(sampled, key=lambda name: LEADING.index(name) if name in LEADING else len(LEADING))
    ranges = [picture for name in order for picture in _ranges(name, store, sampled[name])]
    sections = [
        *((_section(name, _size(store.features[name])), [_thumbnails(store, name, shown)]) for name in cameras),
        _episodes(store),
        *([(_section("Ranges", _RANGES), ranges)] if ranges else []),
        (_section("Features", "", _feature_table(store)), []),
    ]
    metadata = json.dumps(dict(store.metadata), indent=2, ensure_ascii=False)
    page = compose_page(
        title=Path(store.path).name,
        kind="Episode store",
        summary=_summary(store),
        headline=fact_row(_facts(store)),
        sections=sections,
        folded=[
            ("Every column", _statistics_table(store, sampled)),
            ("Metadata", f"<pre>{escape(metadata)}</pre>"),
        ],
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, page)
    return file


def spread(number: int, wanted: int) -> list[int]:
    """Return at most `wanted` numbers of range(number), spread evenly, first and last among them."""
    return sorted({round(place) for place in np.linspace(0, number - 1, min(wanted, number)).tolist()})


def _facts(store: EpisodeStore) -> list[tuple[str, str, str]]:
    lengths = store.episode_lengths
    seconds = store.num_frames / store.fps
    span_of_lengths = f"{lengths.min()} to {lengths.max()}" if np.ptp(lengths) else f"each {lengths[0]}"
    span, unit = (seconds / 3600, "hours") if seconds >= 7200 else (seconds / 60, "minutes")
    size = store.num_bytes()
    return [
        ("episodes", f"{store.num_episodes:,}", f"{span_of_lengths} rows"),
        ("rows", f"{store.num_frames:,}", f"{store.fps:g} per second"),
        (unit, f"{span:.3g}", "of recording"),
        ("MB on disk", f"{size / 1e6:,.3g}", f"{size / store.num_frames:,.0f} bytes per row"),
    ]


def _summary(store: EpisodeStore) -> str:
    tasks = store.metadata.get("tasks")
    told = [task for task in tasks if isinstance(task, str)] if isinstance(tasks, list) else []
    robot = store.metadata.get("robot")
    sentences = [f"Robot: {robot}." if isinstance(robot, str) else ""]
    if told:
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        sentences.append(f"Tasks: {'; '.join(task.rstrip('.') for task in told[:3])}{more}.")
    return " ".join(sentence for sentence in sentences if sentence)


def _section(title: str, text: str, table: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"title": title, "text": text, "table": table}


def _size(spec: FeatureSpec) -> str:
    return f"{spec.shape[1]} x {spec.shape[0]} pixels."


def _episodes(store: EpisodeStore) -> tuple[dict[str, Any], list[Picture]]:
    lengths = store.episode_lengths
    if lengths.min() == lengths.max():
        text = f"Every episode has {lengths[0]} rows, {lengths[0] / store.fps:.3g} s."
        return _section("Episodes", text, _told(store)), []
    return _section("Episodes", "", _told(store)), [length_histogram(lengths, fps=store.fps)]


def _thumbnails(store: EpisodeStore, camera: str, episodes: Sequence[int]) -> Picture:
    ends, lengths = store.episode_ends, store.episode_lengths
    rows: dict[str, list[np.ndarray | None]] = {"First": [], "Middle": [], "Last": []}
    for episode in episodes:
        stop, length = int(ends[episode]), int(lengths[episode])
        for name, row in (("First", stop - length), ("Middle", stop - length + length // 2), ("Last", stop - 1)):
            rows[name].append(_thumbnail(store.read(camera, row, row + 1)[0]))
    every = "all" if len(episodes) == store.num_episodes else f"{len(episodes)} of {store.num_episodes:,}"
    return film_rows(
        list(rows.items()),
        labels=[f"episode {episode}" for episode in episodes],
        title="First, middle and last frame",
        caption=f"Of {every} episodes, in order.",
    )


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    factor = max(frame.shape[:2]) / THUMBNAIL_PX
    if factor <= 1:
        return frame
    size = (round(frame.shape[1] / factor), round(frame.shape[0] / factor))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


def _is_drawn(spec: FeatureSpec) -> bool:
    return np.dtype(spec.dtype).kind in "fiu" and len(spec.shape) <= 1


def _sampled(store: EpisodeStore, name: str) -> np.ndarray:
    """Return [N, columns] float64: the rows of at most SAMPLED_EPISODES episodes, spread evenly."""
    ends, lengths = store.episode_ends, store.episode_lengths
    rows = [
        store.read(name, int(ends[episode] - lengths[episode]), int(ends[episode]))
        for episode in spread(store.num_episodes, SAMPLED_EPISODES)
    ]
    return np.concatenate(rows).reshape(-1, math.prod(store.features[name].shape)).astype(np.float64)


def _labels(spec: FeatureSpec) -> list[str]:
    width = math.prod(spec.shape)
    names = spec.names if len(spec.names) == width else [str(column) for column in range(width)] if width > 1 else [""]
    units = spec.units if len(spec.units) == width else ("",) * width
    return [f"{name} ({unit})" if unit not in ("", "1") else name for name, unit in zip(names, units, strict=True)]


def _ranges(name: str, store: EpisodeStore, values: np.ndarray) -> list[Picture]:
    labels = _labels(store.features[name])
    finite = [column[np.isfinite(column)] for column in values.T]
    moving = [(label, column) for label, column in zip(labels, finite, strict=True) if len(column) and np.ptp(column)]
    resting = len(labels) - len(moving)
    pictures = []
    for first in range(0, len(moving), COLUMNS_OF_A_PICTURE):
        part = moving[first : first + COLUMNS_OF_A_PICTURE]
        more = f", {part[0][0]} to {part[-1][0]}" if len(moving) > COLUMNS_OF_A_PICTURE else ""
        note = f"{resting} columns that never change are not drawn." if resting and not first else ""
        pictures.append(column_ranges(part, title=f"{name}{more}", caption=note))
    return pictures


def _told(store: EpisodeStore) -> dict[str, Any] | None:
    """Return the table of the tasks' texts and how many episodes each has; None where the infos tell none."""
    counts: dict[str, int] = {}
    for episode in spread(store.num_episodes, SAMPLED_EPISODES):
        task = store.episode_info(episode).get("task")
        if isinstance(task, str):
            counts[task] = counts.get(task, 0) + 1
    if not counts:
        return None
    most = sorted(counts.items(), key=lambda pair: -pair[1])[:20]
    total = "episodes" if store.num_episodes <= SAMPLED_EPISODES else f"episodes, of {SAMPLED_EPISODES} sampled"
    return {"columns": ["task", total], "rows": [[task, count] for task, count in most], "units": ["", ""]}


def _feature_table(store: EpisodeStore) -> dict[str, Any]:
    rows = [
        [
            name,
            spec.dtype,
            " x ".join(map(str, spec.shape)) or "1",
            _some(spec.names),
            _some(tuple(dict.fromkeys(spec.units))),
        ]
        for name, spec in store.features.items()
    ]
    return {"columns": ["feature", "dtype", "shape of a row", "names", "units"], "rows": rows, "units": [""] * 5}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")


def _statistics_table(store: EpisodeStore, sampled: dict[str, np.ndarray]) -> str:
    rows: list[list[object]] = []
    for name, values in sampled.items():
        for label, column in zip(_labels(store.features[name]), values.T, strict=True):
            finite = column[np.isfinite(column)]
            figures = [finite.mean(), finite.std(), finite.min(), finite.max()] if len(finite) else [math.nan] * 4
            rows.append([f"{name}  {label}", *(float(figure) for figure in figures), len(column) - len(finite)])
    columns = ["column", "mean", "std", "minimum", "maximum", "not finite"]
    text = "" if store.num_episodes <= SAMPLED_EPISODES else f"<p>Of {SAMPLED_EPISODES} episodes, spread evenly.</p>"
    return text + table_html(columns, rows, [""] * len(columns))
