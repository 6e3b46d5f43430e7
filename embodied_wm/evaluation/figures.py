"""Charts of the report, drawn by matplotlib as SVG in one restrained, colour-blind-safe style.

The page replaces the style's colours by its own light or dark ones, so charts use the named colours below only. Frame
pictures (film_strip, looping) live in film.py and are offered here, too.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator
from numpy.typing import ArrayLike

from embodied_wm.evaluation.film import INK, MUTED, Picture, PictureError, film_rows, film_strip, looping
from embodied_wm.evaluation.statistics import spearman

__all__ = [
    "Picture",
    "PictureError",
    "column_ranges",
    "cost_scatter",
    "film_rows",
    "film_strip",
    "horizon_chart",
    "learning_curve",
    "length_histogram",
    "looping",
    "success_bars",
]

GRID = "#e4e7eb"
COLOURS = ("#0067a5", "#c8500a", "#00805a", "#a3478c", "#8a6d00", "#3c8dc8")
"""After Okabe and Ito (2008), darkened for thin lines on white."""
MAX_SCATTER_POINTS = 1500
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "embodied_wm",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def _axes(width_in: float = 5.0, height_in: float = 3.3) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.add_subplot()


class _PlainLogFormatter(LogFormatterSciNotation):
    """Write 20 instead of 2 x 10^1 beside a logarithmic axis; very small and very large numbers keep their powers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        label = super().__call__(x, pos)
        return f"{x:g}" if label and 1e-3 <= x < 1e5 else label


def _svg(figure: Figure) -> bytes:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL).encode()


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name at its right end (x, y, name, colour), pushed apart where ends are close."""
    low, high = axes.get_ylim()
    logarithmic = axes.get_yscale() == "log"
    forward = np.log10 if logarithmic else np.asarray
    low, high = float(forward(low)), float(forward(high))
    least = 0.075 * (high - low)
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    places: list[float] = []
    for i in order:
        wanted = float(forward(ends[i][1]))
        places.append(wanted if not places else max(wanted, places[-1] + least))
    overflow = max(0.0, places[-1] - high)
    for i, place in zip(order, places, strict=True):
        x, _, name, colour = ends[i]
        y = 10 ** (place - overflow) if logarithmic else place - overflow
        axes.annotate(name, (x, y), xytext=(6, 0), textcoords="offset points", color=colour, va="center")


def _points(label: str, by_horizon: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps [P], values [P] and interval bounds [P, 2] (the value itself where there is none)."""
    cells: Mapping[str, Any] = by_horizon.get("by_horizon", by_horizon)
    if not cells:
        raise PictureError(f"Series {label!r} is empty; expected at least one horizon step.")
    order = sorted(cells, key=int)
    values = np.array([cells[h]["value"] for h in order], dtype=float)
    bounds = np.array([cells[h].get("ci95") or [cells[h]["value"]] * 2 for h in order], dtype=float)
    return np.array([int(h) for h in order]), values, bounds


def horizon_chart(
    series: Mapping[str, Mapping[str, Any]],
    *,
    title: str,
    ylabel: str,
    xlabel: str = "imagined step h",
    caption: str = "",
    references: Sequence[str] = (),
    logarithmic: bool = False,
) -> Picture:
    """Draw figures against the imagined step (or other whole numbers), with 95% intervals as bands.

    Args:
        series: Name to {"by_horizon": {"1": {"value", "ci95", "n"}, ...}}.
        title: Title of the picture.
        ylabel: Quantity and unit.
        xlabel: What the steps are.
        caption: How to read it.
        references: Names of series that are baselines or ceilings: drawn thin, dashed and grey.
        logarithmic: Whether the vertical axis is logarithmic.
    """
    if not series:
        raise PictureError("Got no series; expected at least one.")
    with mpl.rc_context(_STYLE):
        figure, axes = _axes()
        axes.set_yscale("log" if logarithmic else "linear")
        colours = iter(COLOURS * (1 + len(series) // len(COLOURS)))
        ends = []
        for label, by_horizon in series.items():
            steps, values, bounds = _points(label, by_horizon)
            if label in references:
                axes.plot(steps, values, color=MUTED, linewidth=1.1, linestyle=(0, (4, 2.5)))
                ends.append((steps[-1], values[-1], label, MUTED))
                continue
            colour = next(colours)
            axes.fill_between(steps, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.16, linewidth=0)
            axes.plot(steps, values, color=colour, marker="o", markersize=3.2)
            ends.append((steps[-1], values[-1], label, colour))
        axes.set_xlabel(xlabel)
        axes.set_title(ylabel, loc="left", fontsize=9, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not logarithmic:
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        _label_ends(axes, ends)
        return Picture(title=title, caption=caption, kind="svg", data=_svg(figure))


def cost_scatter(
    imagined: Sequence[float] | np.ndarray,
    physical: Sequence[float] | np.ndarray,
    groups: Sequence[str],
    *,
    title: str = "Imagined against physical cost",
    caption: str = "",
    unit: str = "",
    same_unit: bool = False,
) -> Picture:
    """Draw each candidate's imagined cost against the cost that MuJoCo gives it, coloured by where it comes from.

    Args:
        imagined: Costs [N] in imagination.
        physical: Costs [N] in MuJoCo.
        groups: Source of each candidate [N], such as "recorded", "random", "planner".
        title: Title of the picture.
        caption: How to read it; the rank correlation over all points is added.
        unit: Unit of the physical cost.
        same_unit: Whether both costs have that unit, so that the diagonal means agreement.
    """
    x, y, sources = np.asarray(physical, float), np.asarray(imagined, float), np.asarray(groups)
    if x.ndim != 1 or x.shape != y.shape or x.shape != sources.shape or len(x) < 2:
        raise PictureError(f"Got shapes {y.shape}, {x.shape}, {sources.shape}; expected three equal [N] with N >= 2.")
    shown = np.arange(len(x))
    if len(x) > MAX_SCATTER_POINTS:
        shown = np.sort(np.random.default_rng(0).choice(len(x), MAX_SCATTER_POINTS, replace=False))
    with mpl.rc_context({**_STYLE, "axes.grid.axis": "both"}):
        figure, axes = _axes()
        if same_unit:
            ends = [min(x.min(), y.min()), max(x.max(), y.max())]
            axes.plot(ends, ends, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2.5)))
        names = list(dict.fromkeys(groups))
        colours = COLOURS * (1 + len(names) // len(COLOURS))
        for name, colour in zip(names, colours, strict=False):
            chosen = shown[sources[shown] == name]
            axes.plot(
                x[chosen], y[chosen], "o", color=colour, markersize=3.4, alpha=0.55, markeredgewidth=0, label=name
            )
        suffix = f" ({unit})" if unit else ""
        axes.set_xlabel(f"physical cost{suffix}")
        axes.set_title(f"imagined cost{suffix if same_unit else ''}", loc="left", fontsize=9, color=INK)
        figure.legend(loc="outside upper right", ncols=len(names), frameon=False, handletextpad=0.1, markerscale=1.6)
        data = _svg(figure)
    correlation = spearman(x, y)
    told = "undefined, as one of the costs is always the same" if np.isnan(correlation) else f"{correlation:.2f}"
    note = f"Rank correlation over all {len(x):,} points: {told}."
    if len(shown) < len(x):
        note += f" {len(shown):,} of them are drawn."
    return Picture(title=title, caption=f"{caption} {note}".strip(), kind="svg", data=data)


def success_bars(
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    title: str = "Success at the end of the episode",
    caption: str = "Whiskers are 95% Wilson intervals.",
    emphasis: Sequence[str] = (),
    target: float | None = None,
) -> Picture:
    """Draw success rates with their Wilson intervals, one bar per planner or baseline.

    Args:
        rows: Name and estimate (from statistics.wilson) of each, best on top as given.
        title: Title of the picture.
        caption: How to read it.
        emphasis: Names drawn in colour; the first row if empty.
        target: Success rate to reach, drawn as a line.
    """
    if not rows:
        raise PictureError("Got no rows; expected at least one (name, estimate).")
    strong = set(emphasis) or {rows[0][0]}
    with mpl.rc_context({**_STYLE, "axes.grid.axis": "x", "axes.spines.left": False}):
        figure, axes = _axes(height_in=0.75 + 0.4 * len(rows))
        for place, (name, value) in enumerate(rows):
            rate, colour = 100 * value["value"], COLOURS[0] if name in strong else MUTED
            axes.barh(place, rate, height=0.62, color=colour, alpha=0.85 if name in strong else 0.45, linewidth=0)
            low, high = (100 * bound for bound in (value["ci95"] or (value["value"], value["value"])))
            axes.plot([low, high], [place, place], color=INK, linewidth=1.2)
            axes.annotate(f"{rate:.0f}%", (max(high, rate), place), (5, 0), textcoords="offset points", va="center")
        if target is not None:
            axes.axvline(100 * target, color=COLOURS[1], linewidth=1.1, linestyle=(0, (4, 2.5)))
            axes.annotate(f"target {target:.0%}", (100 * target, -0.62), color=COLOURS[1], ha="center", va="bottom")
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], color=INK)
        axes.set_ylim(len(rows) - 0.45, -0.85 if target is not None else -0.6)
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 25), [f"{percent}%" for percent in range(0, 101, 25)])
        return Picture(title=title, caption=caption, kind="svg", data=_svg(figure))


def learning_curve(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str = "Training",
    ylabel: str = "loss",
    xlabel: str = "step",
    caption: str = "",
    logarithmic: bool = True,
) -> Picture:
    """Draw name -> (steps, values) lines, thinned to 300 points each."""
    if not series:
        raise PictureError("Got no series; expected at least one.")
    with mpl.rc_context(_STYLE):
        figure, axes = _axes()
        axes.set_yscale("log" if logarithmic else "linear")
        ends = []
        colours = COLOURS * (1 + len(series) // len(COLOURS))
        for (label, (steps, values)), colour in zip(series.items(), colours, strict=False):
            x, y = np.asarray(steps, float), np.asarray(values, float)
            if x.shape != y.shape or len(x) == 0:
                raise PictureError(f"Series {label!r} has {x.shape} steps and {y.shape} values; expected equal [N].")
            kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), 300)).round().astype(int))
            axes.plot(x[kept], y[kept], color=colour, linewidth=1.4)
            ends.append((x[-1], y[-1], label, colour))
        if logarithmic:
            axes.yaxis.set_major_formatter(_PlainLogFormatter())
            axes.yaxis.set_minor_formatter(_PlainLogFormatter())
        if all(np.equal(np.mod(steps, 1), 0).all() for steps, _ in series.values()):
            axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.set_xlabel(xlabel)
        axes.set_title(ylabel, loc="left", fontsize=9, color=INK)
        _label_ends(axes, ends)
        return Picture(title=title, caption=caption, kind="svg", data=_svg(figure))


def length_histogram(lengths: ArrayLike, *, fps: float, title: str = "Episode lengths", caption: str = "") -> Picture:
    """Draw how many episodes have how many rows; a second scale above says seconds."""
    rows = np.asarray(lengths)
    if rows.ndim != 1 or len(rows) == 0:
        raise PictureError(f"Got lengths of shape {rows.shape}; expected [N] with N >= 1.")
    low, high = int(rows.min()), int(rows.max())
    width = max(1, -(-(high - low + 1) // 30))
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(height_in=2.9)
        axes.hist(rows, bins=(np.arange(low, high + 2 * width, width) - 0.5).tolist(), color=COLOURS[0], alpha=0.85)
        axes.set_title("episodes", loc="left", fontsize=9, color=INK)
        axes.set_xlabel("rows")
        axes.set_xlim(low - 3 * width, high + 4 * width)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        note = f"{low / fps:.3g} to {high / fps:.3g} s at {fps:g} rows per second."
        return Picture(title=title, caption=f"{caption} {note}".strip(), kind="svg", data=_svg(figure))


def column_ranges(columns: Sequence[tuple[str, np.ndarray]], *, title: str, caption: str = "") -> Picture:
    """Draw how the values of each column spread, each over its own range, which stands at the ends.

    Args:
        columns: Name, with its unit, and finite values [N] of each column.
        title: Title of the picture.
        caption: How to read it.
    """
    if not columns or any(len(values) == 0 for _, values in columns):
        raise PictureError(f"Got {len(columns)} columns; expected at least one, with at least one value each.")
    with mpl.rc_context({**_STYLE, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure, axes = _axes(height_in=0.35 + 0.34 * len(columns))
        for place, (_, values) in enumerate(columns):
            low, high = float(values.min()), float(values.max())
            counts = np.histogram(values, bins=60, range=(low, high) if high > low else (low - 1, low + 1))[0]
            # The square root keeps rare values visible beside a robot that mostly rests.
            height = 0.78 * np.sqrt(counts / counts.max())
            axes.fill_between(
                np.linspace(0, 1, 60), place, place - height, step="mid", color=COLOURS[0], alpha=0.75, linewidth=0
            )
            axes.plot([0, 1], [place, place], color=GRID, linewidth=0.7)
            ends = ((-0.015, low, "right"), (1.015, high, "left"))
            for x, value, side in ends if high > low else ends[:1]:
                axes.annotate(f"{value:.3g}", (x, place - 0.05), ha=side, va="bottom", color=MUTED, fontsize=8)
        axes.set_yticks([place - 0.3 for place in range(len(columns))], [name for name, _ in columns])
        axes.tick_params(axis="y", labelcolor=INK, pad=44)
        axes.set_xticks([])
        axes.set_xlim(-0.02, 1.16)
        axes.set_ylim(len(columns) - 0.7, -1.0)
        return Picture(title=title, caption=caption, kind="svg", data=_svg(figure))
