"""Sections of the report about imagination: against MuJoCo on branch points, and against held-out episodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from embodied_wm.evaluation.dataset import DatasetJudged
from embodied_wm.evaluation.figures import Picture, cost_scatter, film_strip, horizon_chart, looping
from embodied_wm.evaluation.film import CONTACT_MARK
from embodied_wm.evaluation.imagination import IMAGES_EVERY, Judged
from embodied_wm.evaluation.page import is_estimate
from embodied_wm.evaluation.report import Section, Table
from embodied_wm.tokenizer.frames import psnr
from sim.tasks.base import Task

STRIP_COLUMNS = 10
COPY, CEILING, PROBE = "copying the last frame", "tokenizer's ceiling", "probe on true frames"
_MEANINGS: Mapping[str, tuple[str, str, str]] = {
    "spearman": (
        "rank correlation",
        "",
        "Does imagination sort candidates as physics does? 1 is the same order, 0 is chance. This is what planning "
        "needs.",
    ),
    "spearman_true": (
        "rank correlation, true frames",
        "",
        "The same, had imagination been perfect: the objective applied to the encoded true frames. The ceiling of the "
        "above.",
    ),
    "elite_regret": (
        "elite regret",
        "",
        "Cost lost by taking imagination's favourite instead of the best candidate, as a share of the spread; 0 is "
        "none.",
    ),
    "elite_regret_chance": ("elite regret, by chance", "", "The same for taking any candidate, without imagination."),
    "optimism": (
        "optimism, planner's choice",
        "",
        "How much worse (in the objective's unit) the future of the planner's choice is than imagined; near 0 means "
        "that "
        "the planner does not exploit the model's mistakes.",
    ),
    "optimism_random": (
        "optimism, random candidates",
        "",
        "The same for random candidates, to compare with: a much larger value above would mean exploitation.",
    ),
    "spread_skill": (
        "spread and skill",
        "",
        "Where several samples of one future disagree, is the error larger? 1 is always, 0 is never: does the model "
        "know "
        "what it does not know?",
    ),
    "contact_f1": (
        "contact onsets (F1)",
        "",
        "Contacts that begin in imagination, against those in MuJoCo: harmonic mean of precision and recall; 1 is "
        "perfect.",
    ),
    "stability": (
        "there and back (cm)",
        "cm",
        "Error of the imagined position after actions and then their reversal; 0 means that imagination returns.",
    ),
    "horizon_at": (
        "steps until off",
        "",
        "First imagined step whose position error exceeds the success tolerance; one more than the longest judged "
        "horizon "
        "where it never does.",
    ),
    "ghost_motion": (
        "ghost motion (cm)",
        "cm",
        "How far imagination moves what MuJoCo did not move, at the last imagined step; 0 is best.",
    ),
}
"""Measure to its name, unit on the page, and one plain sentence."""


def in_unit(value: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return an estimate, or figures by horizon, in another unit."""
    if "by_horizon" in value:
        return {"by_horizon": {step: in_unit(cell, factor) for step, cell in value["by_horizon"].items()}}
    ends = value["ci95"]
    return {
        "value": None if value["value"] is None else factor * value["value"],
        "ci95": None if ends is None else [factor * end for end in ends],
        "n": value["n"],
    }


def step_labels(num_context: int, num_imagined: int, contacts: Sequence[bool] | np.ndarray = ()) -> list[str]:
    """Return labels of given frames, up to "t", and of imagined ones, from "t+1"; steps with contact are marked."""
    given = [f"given, t-{back}" if back else "given, t" for back in reversed(range(num_context))]
    marks = [f" {CONTACT_MARK}" if touched else "" for touched in contacts] or [""] * num_imagined
    return [*given, *(f"t+{step}{mark}" for step, mark in enumerate(marks, start=1))]


def last_step(value: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the last horizon step of a measure and its estimate."""
    step = max(value["by_horizon"], key=int)
    return step, value["by_horizon"][step]


def imagination_sections(task: Task, judged: Judged) -> list[Section]:
    """Return what a page shows of imagination against MuJoCo: films, errors by horizon, costs.

    Args:
        task: The task.
        judged: From `judge_imagination`.
    """
    found = [_films(task, judged), _errors(task, judged.measures), _costs(judged)]
    if judged.missing:
        rows = [list(pair) for pair in sorted(judged.missing.items())]
        found.append(Section(title="Not measured", table=Table(columns=["figure", "why"], rows=rows)))
    return found


def _films(task: Task, judged: Judged) -> Section:
    imagined_frames, context = judged.imagined_frames, len(judged.starts[0].frames)
    if imagined_frames is None:
        return Section(title="What the model imagines", text="The model decodes no frames, so there is nothing to see.")
    quality = psnr(torch.from_numpy(imagined_frames), torch.from_numpy(judged.true_frames)).mean(1).numpy()
    order = np.argsort(-quality, kind="stable").tolist()
    middle = (len(order) - 1) // 2
    typical, worst = order[middle : middle + 2], order[-1]
    chosen = [(index, "Typical") for index in typical if index != worst or len(order) == 1]
    chosen.append((worst, "Worst"))
    strips, loops = [], []
    for place, (index, what) in enumerate(dict(chosen).items()):
        start, imagined = judged.starts[index], imagined_frames[index]
        given = start.frames[-_given_shown(context, len(imagined)) :]
        real, shown = np.concatenate([given, judged.true_frames[index]]), np.concatenate([given, imagined])
        labels = step_labels(len(given), len(imagined), judged.contacts[index])
        rank = f"{what} of {len(order)} states: {quality[index]:.1f} dB PSNR on average over the imagined steps."
        title = f"{what} case" if what == "Worst" else f"Typical case (state {index})"
        strips.append(
            film_strip(
                real,
                shown,
                labels=labels,
                title=title,
                caption=f"{rank} Goal: what the planner's candidates of this state aim at, not these actions.",
                num_context=len(given),
                goal=start.goal_frame,
            )
        )
        if place == 0:
            loops.append(looping(real, shown, labels=labels, title=f"{title}, in motion", caption=rank))
    touched = f" {CONTACT_MARK} marks steps in which MuJoCo has a contact that counts." if judged.contacts.any() else ""
    return Section(
        title="What the model imagines",
        text=f"The model sees {context} frames and then only actions: {imagined_frames.shape[1]} frames are imagined, "
        f"one after the other. MuJoCo replays the same actions from the same state ({task.name}, recorded actions that "
        "no training data hold). The strips begin with the last of the given frames. Typical means in the middle of "
        f"all states when they are sorted by error.{touched}",
        pictures=[*loops, *strips],
    )


def _given_shown(num_context: int, num_imagined: int) -> int:
    """Return how many of the given frames a strip shows: fewer where that keeps it, with its goal, in one band."""
    room = STRIP_COLUMNS - num_imagined - 1
    return min(num_context, room) if room >= 1 else num_context


def _errors(task: Task, measures: Mapping[str, Any]) -> Section:
    pictures = quality_charts(measures)
    if "state_error" in measures:
        series = {"imagined": in_unit(measures["state_error"], 100)}
        names = {"state_error_true": PROBE, "state_error_copy": "nothing moves"}
        series |= {name: in_unit(measures[key], 100) for key, name in names.items() if key in measures}
        tolerance = {"value": 100 * task.tolerance_m, "ci95": None, "n": 1}
        series["success tolerance"] = {"by_horizon": dict.fromkeys(series["imagined"]["by_horizon"], tolerance)}
        pictures.insert(
            0,
            horizon_chart(
                series,
                title="Position error by horizon",
                ylabel="position error (cm)",
                caption="Distance of the position read from imagined latents to MuJoCo's. The probe on true frames "
                "shows how "
                "much of it is the reading itself; the error of assuming that nothing moves shows what there was to "
                "imagine.",
                references=[PROBE, "nothing moves", "success tolerance"],
            ),
        )
        pictures[1:1] = _contact_chart(measures)
    frames = f" Frames are compared for one in {IMAGES_EVERY} of the candidates." if "psnr" in measures else ""
    return Section(
        title="How the error grows",
        text=f"Averaged over all states and candidates: recorded, random, and those that the planner compared.{frames}",
        pictures=pictures,
    )


def _contact_chart(measures: Mapping[str, Any]) -> list[Picture]:
    """Chart the error of candidates with and without a contact, where the task has contacts."""
    names = {"touched": "with contact", "untouched": "without contact"}
    series = {
        name: in_unit(measures[f"state_error.{part}"], 100)
        for part, name in names.items()
        if f"state_error.{part}" in measures
    }
    if "with contact" not in series:
        return []
    words = "The same error, apart for candidates in which MuJoCo has a contact that counts, and for the others."
    return [horizon_chart(series, title="Where imagination breaks", ylabel="position error (cm)", caption=words)]


def quality_charts(measures: Mapping[str, Any]) -> list[Picture]:
    """Return charts of PSNR and SSIM by horizon with the baseline and the ceiling, where they were measured."""
    found = []
    for key, name, ylabel in (("psnr", "PSNR", "PSNR (dB)"), ("ssim", "SSIM", "SSIM")):
        if key not in measures:
            continue
        series = {"imagined": measures[key]}
        endings = (("_copy", COPY), ("_ceiling", CEILING))
        series |= {name: measures[key + ending] for ending, name in endings if key + ending in measures}
        found.append(
            horizon_chart(
                series,
                title=f"{name} by horizon",
                ylabel=ylabel,
                caption="Decoded imagined frames against the true ones; higher is better. The ceiling is the true "
                "frame, encoded and decoded. Both show the last frame given where nothing "
                "changed.",
                references=[COPY, CEILING],
            )
        )
    return found


def _costs(judged: Judged) -> Section:
    sources = list(judged.sources) * len(judged.starts)
    scatter = cost_scatter(
        judged.imagined_costs.ravel(),
        judged.physical_costs.ravel(),
        sources,
        caption="One dot per candidate of every state, by where it comes from. What counts is the order within one "
        "state.",
        unit="m",
    )
    rows = []
    for stem, (name, unit, meaning) in _MEANINGS.items():
        keys = (key for key in judged.measures if key.split(".")[0] == stem)
        for key in sorted(keys, key=lambda key: key != stem):  # what "the same" means comes first
            value, rest = judged.measures[key], key.removeprefix(stem).removeprefix(".")
            shown = value if is_estimate(value) else last_step(value)[1]
            label, words = (f"{name}, {rest}", f"The same, {rest} only.") if rest else (name, meaning)
            rows.append([label, in_unit(shown, 100) if unit == "cm" else shown, words])
    num_points, num_candidates = judged.imagined_costs.shape
    return Section(
        title="Would a planner choose right?",
        text=f"At each of {num_points} states, {num_candidates} action sequences were imagined, and replayed in "
        "MuJoCo. A planner "
        "only needs imagination to sort them as physics does.",
        pictures=[scatter],
        table=Table(columns=["figure", "value", "what it means"], rows=rows),
    )


def dataset_imagination_sections(result: DatasetJudged) -> list[Section]:
    """Return what a page shows of imagined episodes of a data set: films, then quality by horizon.

    Args:
        result: From `judge_dataset`.
    """
    strips, loops = [], []
    for place, film in enumerate(result.films):
        labels = step_labels(film.num_context, len(film.real) - film.num_context)
        strips.append(
            film_strip(film.real, film.imagined, labels=labels, title=film.title, num_context=film.num_context)
        )
        if place < 2:
            loops.append(looping(film.real, film.imagined, labels=labels, title=f"{film.title}, in motion"))
    step, first = last_step(result.measures["psnr"])
    left_out = ", ".join(map(str, result.skipped))
    note = f" Left out as too short: episodes {left_out}." if left_out else ""
    return [
        Section(
            title="Held-out episodes, imagined",
            text="The model sees the given frames and then only the recorded actions. These are the starts with the "
            "largest real "
            f"motion of {first['n']:,}, no choice by quality; no training saw these episodes.{note}",
            pictures=[*loops, *strips],
        ),
        Section(
            title="How the error grows",
            text=f"Averaged over {first['n']:,} starts in held-out episodes, {step} imagined frames each.",
            pictures=quality_charts(result.measures),
            table=_dataset_table(result.measures),
        ),
    ]


def _dataset_table(measures: Mapping[str, Any]) -> Table:
    steps = sorted(measures["psnr"]["by_horizon"], key=int)
    shown: Sequence[str] = [step for step in steps if int(step) in (1, 2, 4, 8, 16, 32) or step == steps[-1]]
    names = {
        "psnr": "PSNR (dB)",
        "psnr_copy": f"PSNR (dB), {COPY}",
        "psnr_over_copy": "PSNR over copying (dB), paired",
        "psnr_ceiling": f"PSNR (dB), {CEILING}",
        "ssim": "SSIM",
        "ssim_copy": f"SSIM, {COPY}",
        "ssim_ceiling": f"SSIM, {CEILING}",
        "latent_mse": "squared error of latents",
    }
    rows = [
        [name, *(measures[key]["by_horizon"][step] for step in shown)] for key, name in names.items() if key in measures
    ]
    return Table(columns=["figure", *(f"h = {step}" for step in shown)], rows=rows)
