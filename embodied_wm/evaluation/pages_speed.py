"""Sections of the report about speed: imagination, how it grows, decisions, memory."""

from collections.abc import Mapping, Sequence
from typing import Any

from embodied_wm.evaluation.figures import Picture, learning_curve
from embodied_wm.evaluation.pages_imagination import in_unit
from embodied_wm.evaluation.report import Section, Table

_GROWING = {
    "candidates": "candidates S",
    "horizon": "imagined steps H",
    "tokens": "tokens per frame K",
    "context": "context frames C",
}


def speed_section(speed: Mapping[str, Any]) -> Section:
    """Return what a page shows of the speed of imagination.

    Args:
        speed: From `measure_speed`.
    """
    rows = [
        [
            f"{row['num_candidates']}, {row['context']}, {row['num_steps']}",
            in_unit(row["cached_seconds"], 1000),
            in_unit(row["uncached_seconds"], 1000) if "uncached_seconds" in row else None,
            f"{row['speed_up']:.1f} ×" if "speed_up" in row else None,  # noqa: RUF001
            round(row["candidate_steps_per_second"]),
            f"{row['utilisation']:.2f}" if "utilisation" in row else None,
            f"{row['relative_difference']:.1e}" if "relative_difference" in row else None,
        ]
        for row in speed["imagine"]
    ]
    rate = speed["matmul_flops"] / 1e9
    return Section(
        title="Speed of imagination",
        text="S candidates, C context frames, D denoising steps of an imagined frame. All candidates read one encoded "
        "context (cached), against encoding everything anew at every step (uncached), timed alternately on the same "
        "inputs. Both must give the same result: the last column is their largest difference, relative. This machine "
        f"multiplies matrices at {rate:,.0f} GFLOP/s; the part of the rate is what the matrix products of imagination "
        f"achieve, with all that is done between them. {_conditions(speed)}",
        pictures=_speed_charts(speed["imagine"]),
        table=Table(
            columns=["S, C, D", "cached", "uncached", "speed-up", "candidate-steps/s", "part of the rate",
                     "difference"],
            rows=rows,
            units=["", "ms", "ms", "", "", "", ""],
        ),
    )  # fmt: skip


def _conditions(speed: Mapping[str, Any]) -> str:
    if speed.get("clock") == "cpu":
        return "Times are processor time of this process, as others used the machine."
    return f"Times are by the clock, with {speed.get('threads', 1)} thread(s)."


def _speed_charts(rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Chart time against candidates at the longest context and fewest denoising steps; none for a single S."""
    both = [row for row in rows if "uncached_seconds" in row]
    if not both:
        return []
    context, steps = max(row["context"] for row in both), min(row["num_steps"] for row in both)
    chosen = [row for row in rows if row["context"] == context and row["num_steps"] == steps]
    if len(chosen) < 2:
        return []
    series = {}
    for name in ("cached", "uncached"):
        timed = [row for row in chosen if f"{name}_seconds" in row]
        counts = [row["num_candidates"] for row in timed]
        series[name] = (counts, [1000 * row[f"{name}_seconds"]["value"] for row in timed])
    return [
        learning_curve(
            series,
            title="Time of imagining all candidates",
            ylabel="time (ms)",
            xlabel="candidates S",
            caption=f"Median; {context} context frames, {steps} denoising step(s) per imagined frame.",
        )
    ]


def growth_sections(speed: Mapping[str, Any]) -> list[Section]:
    """Return what a page shows of how cost grows; nothing where it was not measured.

    Args:
        speed: From `measure_speed`.
    """
    if "growth" not in speed:
        return []
    return [_growth(speed["growth"]), _decisions(speed["decide"]), _memory(speed["memory"])]


def _growth(growth: Mapping[str, Any]) -> Section:
    rows, series = [], {}
    for name, found in growth.items():
        sizes = [int(size) for size in found["seconds"]]
        milliseconds = [1000 * each["value"] for each in found["seconds"].values()]
        rows += [
            [f"{_GROWING[name]} = {size}", in_unit(each, 1000), f"{found['slope']:z.2f}"]
            for size, each in found["seconds"].items()
        ]
        series[name] = ([size / sizes[0] for size in sizes], milliseconds)
    return Section(
        title="How imagination grows",
        text="One thing is doubled, all else stays; one denoising step. The slope is the exponent of the time: 1 is "
        "proportional, 0 is free. Small networks cost less than proportional, as each operation has a price.",
        pictures=[
            learning_curve(
                series,
                title="Time against what is doubled",
                ylabel="time (ms)",
                xlabel="times the smallest",
                caption="Median time of imagining all candidates, prefill included.",
            )
        ],
        table=Table(columns=["case", "time", "slope"], rows=rows, units=["", "ms", ""]),
    )


def _decisions(decide: Mapping[str, Any]) -> Section:
    rolled = f" and {decide['rolled_growth']:.2f} times rolled" if "rolled_growth" in decide else ""
    rows = [
        [f"C = {context}, {way}", in_unit(each, 1000)]
        for context, ways in decide["seconds"].items()
        for way, each in ways.items()
    ]
    return Section(
        title="A decision by context",
        text="Encoding the newest frame, bringing the context up to date (prefilled: all frames anew; rolled: the new "
        "one behind the old), and imagining the candidates of three searches. From the shortest to the longest context "
        f"it grows {decide['prefilled_growth']:.2f} times prefilled{rolled}.",
        table=Table(columns=["decision", "time"], rows=rows, units=["", "ms"]),
    )


def _memory(memory: Mapping[str, Any]) -> Section:
    rows = [["context, shared by all", memory["context"] / 1e6], ["candidates' own", memory["own"] / 1e6]]
    text = (
        f"Keys and values, or matrices, of {memory['num_candidates']} candidates behind {memory['context_frames']} "
        f"context frames take {memory['ratio']:.3f} times what the candidates' own take."
    )
    if "peak" in memory:
        rows.append(["growth of the process at its peak", memory["peak"] / 1e6])
        text += f" The whole process grew by {memory['peak_ratio']:.2f} times that while it imagined."
    return Section(title="Memory", text=text, table=Table(columns=["what", "size"], rows=rows, units=["", "MB"]))
