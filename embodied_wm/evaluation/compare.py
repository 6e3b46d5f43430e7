"""One page that compares runs: success, error by horizon, reliability of the cost, speed, and what differed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embodied_wm.evaluation.figures import Picture, horizon_chart, success_bars
from embodied_wm.evaluation.page import compose_page, figure_tables, flatten, format_duration, is_estimate
from embodied_wm.evaluation.pages_imagination import in_unit, last_step
from embodied_wm.evaluation.report import ReportError, load_report, write_atomically

Reports = Mapping[str, Mapping[str, Any]]
"""Name of each run to its report."""
MAX_RUNS = 6
"""As many as the charts have colours."""
_SUCCESS = (
    ("success", "success (%)", 100.0),
    ("success_any", "success at any step (%)", 100.0),
    ("success.oracle", "success of the oracle (%)", 100.0),
    ("cpg", "oracle minus model (%)", 100.0),
    ("final_cost_m", "distance at the end (cm)", 100.0),
    ("steps_to_success", "steps to the goal", 1.0),
)
_COSTS = (
    ("spearman", "rank correlation with physics (1 is best)", 1.0),
    ("spearman_true", "rank correlation, true frames (its ceiling)", 1.0),
    ("elite_regret", "elite regret (0 is best)", 1.0),
    ("elite_regret_chance", "elite regret, by chance", 1.0),
    ("optimism", "optimism, planner's choice (0 is best)", 1.0),
    ("optimism_random", "optimism, random candidates", 1.0),
    ("spread_skill", "spread and skill (1 is best)", 1.0),
    ("contact_f1", "contact onsets, F1 (1 is best)", 1.0),
    ("ghost_motion", "ghost motion, last step (cm, 0 is best)", 100.0),
    ("horizon_at", "steps until off (more is better)", 1.0),
    ("stability", "there and back (cm, 0 is best)", 100.0),
)
_SPEED = (
    ("seconds_per_decision", "one decision, median (ms)", 1000.0),
    ("seconds_per_decision_p95", "one decision, 95th percentile (ms)", 1000.0),
    ("decisions_per_second", "decisions per second", 1.0),
    ("candidate_steps_per_decision", "candidates x steps of a decision", 1.0),
)
"""Key of a report, name on the page, factor to its unit."""
_CURVES = (
    ("state_error", "Position error", "position error (cm)", 100.0, "state_error_copy", "nothing moves", "lower"),
    ("psnr", "PSNR", "PSNR (dB)", 1.0, "psnr_copy", "copying", "higher"),
    ("ssim", "SSIM", "SSIM", 1.0, "ssim_copy", "copying", "higher"),
)
"""Key by horizon, title, axis, factor, key and name of the baseline, which is the first run's, and what is better."""


def write_comparison(sources: Sequence[Path], page: Path) -> Path:
    """Write a page that compares the reports of several runs, and return its path.

    Args:
        sources: Run folders or their report.json; each is named after its folder.
        page: The HTML file to write.

    Raises:
        ReportError: If there are fewer than two runs or too many, or a report cannot be read.
    """
    if not 2 <= len(sources) <= MAX_RUNS:
        raise ReportError(f"Got {len(sources)} reports; a comparison takes 2 to {MAX_RUNS}.")
    names = run_names(sources)
    reports = {name: load_report(source) for name, source in zip(names, sources, strict=True)}
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, render_comparison(reports))
    return page


def run_names(sources: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the folders' paths that tell them apart."""
    folders = [source.parent if source.suffix == ".json" else source for source in map(Path.absolute, sources)]
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise ReportError(f"The same run twice: {', '.join(map(str, sources))}; a comparison wants different ones.")


def render_comparison(reports: Reports) -> str:
    """Return the page."""
    tasks = list(dict.fromkeys(task for report in reports.values() for task in report["tasks"]))
    sections: list[tuple[dict[str, Any], list[Picture]]] = []
    for task in tasks:
        figures = {name: report["tasks"][task] for name, report in reports.items() if task in report["tasks"]}
        sections += _task_sections(task, figures)
    every = "".join(
        figure_tables(f"{name}: {task}", values)
        for name, report in reports.items()
        for task, values in report["tasks"].items()
    )
    return compose_page(
        title=f"{len(reports)} runs compared",
        kind=", ".join(tasks),
        summary="Every figure with its 95% interval: Wilson for rates, Agresti-Caffo for their differences, bootstrap "
        "over episodes for the rest. Intervals that do not overlap tell runs apart.",
        headline="",
        sections=[(_runs_section(reports), []), *sections],
        folded=[("Every figure", every)],
    )


def _section(title: str, text: str, table: dict[str, Any] | None) -> dict[str, Any]:
    return {"title": title, "text": text, "table": table}


def _task_sections(task: str, figures: Mapping[str, Mapping[str, Any]]) -> list[tuple[dict[str, Any], list[Picture]]]:
    found: list[tuple[dict[str, Any], list[Picture]]] = []
    rates = [(name, values["success"]) for name, values in figures.items() if is_estimate(values.get("success"))]
    if rates:
        bars = success_bars(rates, emphasis=[name for name, _ in rates])
        text = (
            "Share of episodes that end within the tolerance of the goal. The oracle is the same planner with MuJoCo."
        )
        found.append((_section(f"{task}: success", text, _table(figures, _SUCCESS)), [bars]))
    charts = _charts(figures)
    if charts:
        text = (
            "How far imagination is from MuJoCo, step by step; bands are 95% intervals, dashed is the baseline of the "
            "first run."
        )
        found.append((_section(f"{task}: error by horizon", text, None), charts))
    costs = _table(figures, _COSTS)
    if costs:
        text = (
            "Does imagination sort candidates as physics does, and is the planner's choice as good as it looks? "
            "Optimism is in the unit of each model's own objective: compare its two rows, not its columns."
        )
        found.append((_section(f"{task}: reliability of the cost", text, costs), []))
    speed = _table(figures, _SPEED)
    if speed:
        found.append((_section(f"{task}: speed", "From pixels to an action, one thread.", speed), []))
    return found


def _table(figures: Mapping[str, Mapping[str, Any]], keys: Sequence[tuple[str, str, float]]) -> dict[str, Any] | None:
    """Return a table of figures, a column for each run that has one; one by horizon gives its last step."""
    found = {
        name: {key: value for key, *_ in keys if (value := _single(values.get(key))) is not None}
        for name, values in figures.items()
    }
    runs = [name for name, values in found.items() if values]
    rows = [
        [label, *((key in found[run] and in_unit(found[run][key], factor)) or None for run in runs)]
        for key, label, factor in keys
        if any(key in found[run] for run in runs)
    ]
    return {"columns": ["figure", *runs], "rows": rows, "units": [""] * (1 + len(runs))} if rows else None


def _single(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping) and "by_horizon" in value:
        return last_step(value)[1]
    return value if is_estimate(value) else None


def _charts(figures: Mapping[str, Mapping[str, Any]]) -> list[Picture]:
    found = []
    for key, title, ylabel, factor, baseline, words, better in _CURVES:
        series = {name: in_unit(values[key], factor) for name, values in figures.items() if _by_horizon(values, key)}
        if not series:
            continue
        first = figures[next(iter(series))]
        if _by_horizon(first, baseline):
            series[words] = in_unit(first[baseline], factor)
        caption = f"{better.capitalize()} is better."
        chart = horizon_chart(series, title=f"{title} by horizon", ylabel=ylabel, caption=caption, references=[words])
        found.append(chart)
    return found


def _by_horizon(values: Mapping[str, Any], key: str) -> bool:
    """Tell whether a report has a figure by horizon; of a training, `psnr` is a single one, of the reconstruction."""
    return isinstance(values.get(key), Mapping) and "by_horizon" in values[key]


def _runs_section(reports: Reports) -> dict[str, Any]:
    rows = []
    for name, report in reports.items():
        run = report["run"]
        time = None if run["wall_seconds"] is None else format_duration(run["wall_seconds"])
        revision = (run["revision"] or "unknown")[:10]
        rows.append([name, report["title"], run["checkpoint"], run["seed"], run["device"], time, revision])
    different = _differences(reports)
    text = "The runs were configured alike." if not different else f"Their configurations differ in {different}."
    columns = ["run", "what", "checkpoint", "seed", "device", "time", "revision"]
    return _section("The runs", text, {"columns": columns, "rows": rows, "units": [""] * len(columns)})


def _differences(reports: Reports) -> str:
    """Name the settings that are not the same in all runs of the kinds that have them; figures compare so far."""
    settings = [(report["kind"], dict(flatten(report["run"]["config"]))) for report in reports.values()]
    having: dict[str, set[str]] = {}
    for kind, each in settings:
        for name in each:
            having.setdefault(name, set()).add(kind)
    different = [
        name
        for name, kinds in having.items()
        if len({json.dumps(each.get(name)) for kind, each in settings if kind in kinds}) > 1
    ]
    return ", ".join(name for name in different if name not in ("run_dir", "checkpoint"))
