"""Turn a report into one self-contained HTML page: every picture inline, no request to anywhere."""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from embodied_wm.evaluation.figures import COLOURS, GRID
from embodied_wm.evaluation.film import INK, MUTED, Picture
from embodied_wm.evaluation.page_style import STYLE

INTERVALS = "Intervals are 95%: Wilson for rates, Agresti-Caffo for a difference of rates, bootstrap for the rest."
KINDS = {
    "imagination": "Imagination",
    "planning": "Closed-loop planning",
    "speed": "Speed",
    "latent_actions": "Latent actions",
    "demo": "Demonstration",
    "training": "Training",
    "refinement": "Refinement where the planner looks",
}
MEANINGS = {
    "psnr": "decoded imagined frame against the true frame, dB; higher is better",
    "ssim": "structural similarity of the same; higher is better",
    "psnr_copy": "the same for repeating the last context frame (baseline)",
    "psnr_over_copy": "paired difference of the two, dB; above 0 beats copying",
    "ssim_copy": "the same for repeating the last context frame (baseline)",
    "psnr_ceiling": "the same for encoding and decoding the true frame (the tokenizer's ceiling)",
    "ssim_ceiling": "the same for encoding and decoding the true frame (the tokenizer's ceiling)",
    "latent_mse": "imagined latents against the encoded true frame's; lower is better",
    "state_error": "physical state read from imagined latents against MuJoCo's; lower is better",
    "state_error_true": "the same probe on the true frame's latents (its own error)",
    "spearman": "rank correlation of imagined with physical cost over candidates; higher is better",
    "elite_regret_chance": "the same for choosing blindly",
    "elite_regret": "cost lost by trusting imagination's favourite, as a share of the spread; lower is better",
    "optimism": "true minus imagined cost of the planner's choice, in the objective's unit; near 0 is better",
    "optimism_random": "the same for random candidates",
    "spearman_true": "the same, had imagination been perfect: the objective on the true frames",
    "state_error_copy": "error of assuming that nothing moves",
    "ghost_motion": "imagined motion of objects that MuJoCo did not move, m; 0 is best",
    "spread_skill": "correlation of disagreement between samples with true error; higher is better",
    "contact_f1": "contact onsets read from imagination against MuJoCo's; higher is better",
    "stability": "error after actions and then their reversal; lower is better",
    "horizon_at": "first step at which the state error exceeds the success tolerance; higher is better",
    "success": "success at the end of the episode",
    "success_any": "success at any step of the episode",
    "p99_over_budget": "99th percentile of the time of a decision, over its budget; at most 1.2 is asked for",
    "late_decisions": "share of decisions that took more than 1.2 times their budget",
    "cpg": "oracle success minus the model's: the part of failure that is the model's fault; lower is better",
    "r2": "true actions read from latent-action codes, held-out episodes; higher is better",
    "delta_psnr": "PSNR with the inferred code minus PSNR with a random code, dB; higher is better",
    "delta_psnr_shuffled": "PSNR with the inferred code minus PSNR with that of another moment, dB; higher is better",
    "code_bits": "all that one latent-action code can hold, bits",
    "code_bits_used": "entropy of the codes that occur, bits",
    "transfer": "planning success with an adapter fitted to part of the labels; higher is better",
}
_RATES = {"success", "success_any", "cpg", "transfer", "late_decisions"}
"""A figure is a rate, and shown in percent, if one of these is among the dotted parts of its name."""
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {c: f"--c{i}" for i, c in enumerate(COLOURS)}


def format_number(value: float | None, unit: str = "") -> str:
    """Write a number with three significant digits; for the unit "%" the value is a fraction."""
    if value is None or not math.isfinite(value):
        return "undefined"
    if unit == "%":
        percent = f"{100 * value:.1f}".removesuffix(".0")
        return f"{percent}%".replace("-", "\u2212")
    size = abs(value)
    if size >= 1000:
        text = f"{value:,.0f}"
    elif size >= 100 or value == 0 or (value == int(value) and size < 1000):
        text = f"{value:.0f}"
    elif size >= 0.001:
        text = f"{value:.{2 - math.floor(math.log10(size))}f}"
        text = f"{value:.3f}" if size < 0.1 and float(f"{value:.3f}") == value else text
    else:
        text = f"{value:.1e}"
    return text.replace("-", "\u2212")


def format_duration(seconds: float) -> str:
    """Write a time in the unit that suits it: seconds, minutes or hours."""
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 90 * size:
            return f"{format_number(seconds / size)} {unit}"
    return f"{format_number(seconds / 3600)} h"


def _data(value: float | None, unit: str) -> str:
    """Return the formatted number, with its exact value for machines."""
    if value is None:
        return format_number(value)
    return f'<data value="{value!r}">{format_number(value, unit)}</data>'


def _interval(value: Mapping[str, Any], unit: str) -> str:
    if value["ci95"] is None:
        return "no interval"
    return " to ".join(f'<data value="{end!r}">{format_end(end, value["value"], unit)}</data>' for end in value["ci95"])


def format_end(end: float, value: float | None, unit: str = "") -> str:
    """Write an end of the interval of a value: with three decimals at most, or with as many as the value has."""
    text, beside = format_number(end, unit), format_number(value, unit)
    most = max(3, len(beside.partition(".")[2]))
    if "e" in beside or not ("e" in text or len(text.partition(".")[2]) > most):
        return text
    return f"{end:.{most}f}".replace("-", "\u2212") if float(f"{end:.{most}f}") else "0"


def is_estimate(value: object) -> bool:
    """Tell whether a value is {"value", "ci95", "n"}."""
    return isinstance(value, Mapping) and {"value", "ci95", "n"} <= set(value)


def met(value: float, target: float, better: str) -> bool:
    """Tell whether a figure meets its target; better is "higher" or "lower"."""
    return value >= target if better == "higher" else value <= target


def _headline_item(item: Mapping[str, Any]) -> str:
    value, unit = item["value"], item["unit"]
    shown = "" if unit == "%" else f"<small>{escape(unit)}</small>" if unit else ""
    count = f"n = {value['n']:,}" if value["n"] > 1 else "one measurement"
    goal = ""
    if item["target"] is not None:
        good = met(value["value"], item["target"], item["better"])
        word, mark = ("met", "\u2713") if good else ("missed", "\u2717")
        sign = "\u2265" if item["better"] == "higher" else "\u2264"
        number = format_number(item["target"], unit) if unit == "%" else f"{item['target']:,g}"
        goal = (
            f'target {sign}&nbsp;<data value="{item["target"]!r}">{number}</data> '
            f'<span class="{word}">{mark}&nbsp;{word}</span>'
        )
    interval = "" if value["ci95"] is None else f"95%: {_interval(value, unit)}"
    return (
        f'<div><dt>{escape(item["label"])}</dt><dd class="value">{_data(value["value"], unit)}{shown}</dd>'
        f"<dd>{interval}</dd><dd>{count}</dd><dd>{goal}</dd></div>"
    )


def inline_svg(data: bytes, prefix: str) -> str:
    """Return an SVG for an HTML body: ids made unique, colours that follow the page's theme, no namespace URLs."""
    text = data.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    text = re.sub(r'href="#', f'href="#{prefix}', text)
    for colour, variable in _VARIABLES.items():
        text = re.sub(rf'(fill|stroke)="{colour}"', rf'\1="var({variable})"', text)
        text = text.replace(colour, f"var({variable})")
    return text


def _figure(picture: Picture, prefix: str) -> str:
    alternative = escape(f"{picture.title}. {picture.caption}".strip(), quote=True)
    natural = ""
    if picture.kind == "svg":
        body = inline_svg(picture.data, prefix)
        body = body.replace("<svg", f'<svg role="img" aria-label="{alternative}"', 1)
        width = re.search(r'viewBox="0 0 ([\d.]+)', body)
        natural = f' style="--natural: {float(width.group(1)) * 0.8:.0f}px"' if width and picture.wide else ""
    else:
        encoded = base64.b64encode(picture.data).decode()
        body = f'<img class="{picture.kind}" src="data:image/{picture.kind};base64,{encoded}" alt="{alternative}">'
    caption = f"<b>{escape(picture.title)}.</b> {escape(picture.caption)}".strip()
    wide = ' class="wide"' if picture.wide else ""
    return f'<figure{wide}><div class="frame"{natural}>{body}</div><figcaption>{caption}</figcaption></figure>'


def _cell(value: object, unit: str) -> str:
    if is_estimate(value):
        assert isinstance(value, Mapping)
        note = f"{_interval(value, unit)}; n&nbsp;=&nbsp;{value['n']:,}"
        lead = f'<span class="lead">{_data(value["value"], unit)}</span>'
        return f'<td class="estimate">{lead} <span class="ci">({note})</span></td>'
    if isinstance(value, bool) or value is None or isinstance(value, str):
        text = "" if value is None else str(value)
        return f"<td{' class=long' if len(text) > 40 else ''}>{escape(text)}</td>"
    if isinstance(value, int | float):
        return f'<td class="number">{_data(value, unit)}</td>'
    return f"<td><code>{escape(json.dumps(value))}</code></td>"


def table_html(
    columns: Sequence[str], rows: Sequence[Sequence[object]], units: Sequence[str], rates: Sequence[bool] = ()
) -> str:
    """Return a table; `rates` marks the rows whose figures are shown in percent."""
    listed = [list(row) for row in rows]
    percent = list(rates) or [False] * len(listed)
    numeric = [c > 0 and any(isinstance(row[c], int | float) for row in listed) for c in range(len(columns))]
    names = [c if unit in ("", "%") else f"{c} ({unit})" for c, unit in zip(columns, units, strict=True)]
    head = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{escape(c)}</th>'
        for c, number in zip(names, numeric, strict=True)
    )
    body = ""
    for row, rate in zip(listed, percent, strict=True):
        first = f'<th scope="row">{escape(str(row[0]))}</th>'
        rest = "".join(_cell(value, "%" if rate else unit) for value, unit in zip(row[1:], units[1:], strict=True))
        body += f"<tr>{first}{rest}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _section(index: int, section: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    drawn = "".join(_figure(picture, f"s{index}p{i}-") for i, picture in enumerate(pictures))
    table = section["table"]
    parts = [
        f"<h2>{escape(section['title'])}</h2>",
        *(f"<p>{escape(paragraph)}</p>" for paragraph in section["text"].split("\n\n") if paragraph),
        f'<div class="pictures">{drawn}</div>' if drawn else "",
        table_html(table["columns"], table["rows"], table["units"]) if table else "",
    ]
    return "<section>" + "".join(parts) + "</section>"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted name, leaf) pairs of nested figures; estimates and by_horizon dicts are leaves."""
    leaves = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and not is_estimate(value) and "by_horizon" not in value
        leaves += flatten(value, f"{name}.") if nested else [(name, value)]
    return leaves


def _meaning(name: str) -> str:
    """Return what a figure is, by the first part of its dotted name that has a meaning: a round's number has none."""
    return next((MEANINGS[part] for part in name.split(".") if part in MEANINGS), "")


def figure_tables(name: str, figures: Mapping[str, Any]) -> str:
    """Return the tables of every figure of one task: single ones, then those by horizon."""
    leaves = flatten(figures)
    single = [(k, v, _meaning(k)) for k, v in leaves if not isinstance(v, Mapping) or is_estimate(v)]
    parts = [f"<h3>{escape(name)}</h3>"]
    if single:
        rates = [bool(_RATES & set(key.split("."))) for key, *_ in single]
        width = 3 if any(meaning for *_, meaning in single) else 2
        parts.append(
            table_html(["figure", "value", "meaning"][:width], [row[:width] for row in single], [""] * width, rates)
        )
    curves = {k: v["by_horizon"] for k, v in leaves if isinstance(v, Mapping) and "by_horizon" in v}
    steps = sorted({h for cells in curves.values() for h in cells}, key=int)
    if len(steps) > 8:
        steps = [h for h in steps if int(h) in {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, int(steps[-1])}]
    if curves:
        rows = [[k, *(cells.get(h, {}).get("value") for h in steps), _meaning(k)] for k, cells in curves.items()]
        parts.append(
            table_html(["by imagined step", *(f"h = {h}" for h in steps), "meaning"], rows, [""] * (len(steps) + 2))
        )
    return "".join(parts)


def _fold(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary><div>{body}</div></details>"


def _run_record(run: Mapping[str, Any]) -> str:
    rows = [(key, "none" if run[key] is None else str(run[key])) for key in run if key not in ("config", "versions")]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    table = table_html(["record", "value"], [*rows, ("versions", versions)], ["", ""])
    return f"{table}<h3>Resolved configuration</h3><pre>{escape(json.dumps(run['config'], indent=2))}</pre>"


def fact_row(facts: Sequence[tuple[str, str, str]]) -> str:
    """Return (label, value, note) facts as the first row of a page; they are counts, so they have no interval."""
    items = "".join(
        f'<div><dt>{escape(label)}</dt><dd class="value">{escape(value)}</dd><dd>{escape(note)}</dd></div>'
        for label, value, note in facts
    )
    return _headline(items, len(facts))


def _headline(items: str, count: int) -> str:
    columns = count if count <= 6 else -(-count // 2)
    return f'<dl class="headline" style="--columns: {columns}">{items}</dl>' if items else ""


def compose_page(
    *,
    title: str,
    kind: str,
    summary: str,
    headline: str,
    sections: Sequence[tuple[Mapping[str, Any], Sequence[Picture]]],
    folded: Sequence[tuple[str, str]],
) -> str:
    """Return a whole page.

    Args:
        title: Heading.
        kind: Small line above it.
        summary: Plain words under it; blank lines part paragraphs.
        headline: HTML of the first row.
        sections: "title", "text" and "table" ("columns", "rows", "units", or None) of each, and its pictures.
        folded: Title and HTML of what stands folded at the end.
    """
    body = [
        f'<header><p class="kind">{escape(kind)}</p><h1>{escape(title)}</h1>',
        *(f'<p class="summary">{escape(paragraph)}</p>' for paragraph in summary.split("\n\n") if paragraph),
        f"</header>{headline}",
        *(_section(i, section, drawn) for i, (section, drawn) in enumerate(sections)),
        f'<div class="folded">{"".join(_fold(name, inside) for name, inside in folded)}</div>',
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def render_page(report: Mapping[str, Any], pictures: Sequence[Sequence[Picture]]) -> str:
    """Return the page of a report; `pictures` are the decoded pictures of each section."""
    figures = "".join(figure_tables(name, values) for name, values in report["tasks"].items())
    if report["speed"]:
        figures += figure_tables("speed", report["speed"])
    run, items = report["run"], report["headline"]
    headline = _headline("".join(_headline_item(item) for item in items), len(items))
    if any(item["value"]["ci95"] is not None for item in items):
        headline += f'<p class="note">{INTERVALS}</p>'
    time = format_duration(run["wall_seconds"]) if run["wall_seconds"] else ""
    precision = run["config"].get("precision", "fp32")
    rounded = "" if precision == "fp32" else f"imagined in {precision}"
    steps = run["config"].get("denoising_steps", 1)
    denoised = f"{steps} denoising steps" if isinstance(steps, int) and steps > 1 else ""
    facts = [
        KINDS.get(report["kind"], report["kind"]),
        str(run["device"]),
        rounded,
        denoised,
        time,
        f"seed {run['seed']}",
    ]
    return compose_page(
        title=report["title"],
        kind=" \u00b7 ".join(fact for fact in facts if fact),
        summary=report["summary"],
        headline=headline,
        sections=list(zip(report["sections"], pictures, strict=True)),
        folded=[*([("Every figure", figures)] if figures else []), ("Run record", _run_record(run))],
    )
