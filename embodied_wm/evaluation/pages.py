"""Sections of the report, made from results: pictures first, plain words, every figure with its interval."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embodied_wm.evaluation.figures import Picture, learning_curve
from embodied_wm.evaluation.film import film_rows
from embodied_wm.evaluation.pages_imagination import dataset_imagination_sections, imagination_sections
from embodied_wm.evaluation.pages_planning import decision_sections, planning_sections
from embodied_wm.evaluation.pages_speed import growth_sections, speed_section
from embodied_wm.evaluation.report import Section, Table
from embodied_wm.training.log import METRICS

__all__ = [
    "dataset_imagination_sections",
    "decision_sections",
    "growth_sections",
    "imagination_sections",
    "latent_action_section",
    "planning_sections",
    "same_codes_picture",
    "speed_section",
    "training_section",
]

_CODES: Mapping[str, tuple[str, str]] = {
    "r2": (
        "true actions read from codes (R²)",
        "Share of the true actions' variance that a linear probe reads from the code and the latents, on held-out "
        "episodes; 1 is all "
        "of it.",
    ),
    "delta_psnr": (
        "gain over a random code (dB)",
        "How much closer to the true next frame imagination comes with the inferred code than with a random one.",
    ),
    "delta_psnr_shuffled": (
        "gain over another transition's code (dB)",
        "The same against the code of another moment; a code that held the next frame itself would fail most here.",
    ),
    "latent_mse_code": (
        "error with the right code",
        "Squared error of one imagined step, in latent units; lower is better.",
    ),
    "latent_mse_shuffled_code": (
        "error with another transition's code",
        "The same with the code of another moment. It must be larger: the code then says what was done here.",
    ),
    "latent_mse_copy": ("error of copying", "The same for assuming that nothing changes."),
    "code_bits": (
        "bits per code",
        "All that one code can hold; a frame's latents hold far more, so it cannot carry a frame.",
    ),
    "code_bits_used": ("bits per code in use", "Entropy of the codes that occur in the held-out episodes."),
}
_STAGES: Mapping[str, str] = {
    "tokenizer": "frames to latents and back",
    "latent_actions": "what was done, inferred from two frames",
    "adapter": "real actions to codes and back",
    "predictor": "the next latents, from past ones and actions",
    "distillation": "one denoising step that ends where many end",
    "self_forcing": "the same, from latents that the model imagined itself",
    "readouts": "physical quantities, read from latents",
    "temporal_distance": "steps from one latent to another",
    "goal_policy": "what the data did on the way to a goal",
}


def latent_action_section(measures: Mapping[str, Any], pictures: Sequence[Picture] = ()) -> Section:
    """Return what a page shows of latent actions.

    Args:
        measures: From `measure_latent_actions`; figures of other kinds among them are left alone.
        pictures: Such as `same_codes_picture`.
    """
    rows = [[name, measures[key], meaning] for key, (name, meaning) in _CODES.items() if key in measures]
    return Section(
        title="Latent actions",
        text="From two frames in a row the model infers a small code of what was done between them, without ever "
        "seeing an "
        "action label. A good code says what the robot did, and steers imagination as the real action does.",
        pictures=pictures,
        table=Table(columns=["figure", "value", "what it means"], rows=rows),
    )


def same_codes_picture(scenes: np.ndarray, after: np.ndarray) -> Picture:
    """Draw the same codes applied in different scenes.

    Args:
        scenes: Last frames seen, uint8 [N, h, w, 3].
        after: What each of M codes leads to in each scene, uint8 [N, M, h, w, 3].
    """
    rows = [(f"scene {number + 1}", [scene, *after[number]]) for number, scene in enumerate(scenes)]
    return film_rows(
        rows,
        labels=["now", *(f"code {number + 1}" for number in range(after.shape[1]))],
        title="The same codes in different scenes",
        caption="Each column applies one code, inferred from video of one scene, four times in a row in all scenes. A "
        "code that says what was done moves every scene alike; one that held the next frame would bring its own scene.",
    )


def training_section(run_dirs: Mapping[str, Path]) -> Section:
    """Return the learning curves of runs, one chart per stage.

    Args:
        run_dirs: Name to the folder of a training run, which holds metrics.jsonl.

    Raises:
        ValueError: If a folder holds no metrics.
    """
    curves: dict[str, dict[str, dict[int, float]]] = {}
    unreadable = 0
    for name, folder in run_dirs.items():
        found, broken = _read_metrics(Path(folder))
        unreadable += broken
        for (stage, kind), points in found.items():
            curves.setdefault(stage, {})[f"{name}{kind}"] = points
    pictures = []
    for stage in sorted(curves, key=lambda stage: list(_STAGES).index(stage) if stage in _STAGES else len(_STAGES)):
        series = {name: (list(points), list(points.values())) for name, points in sorted_points(curves[stage]).items()}
        positive = all(value > 0 for _, values in series.values() for value in values)
        pictures.append(
            learning_curve(
                series, title=f"Stage {stage}", ylabel="loss", caption=_STAGES.get(stage, ""), logarithmic=positive
            )
        )
    note = f" {unreadable} broken lines of the logs, left by an interrupted run, are not drawn." if unreadable else ""
    return Section(title="Training", text=f"Loss of every stage while it was trained.{note}", pictures=pictures)


def sorted_points(runs: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    """Return each run's points in the order of their steps."""
    return {name: dict(sorted(points.items())) for name, points in runs.items()}


def _read_metrics(folder: Path) -> tuple[dict[tuple[str, str], dict[int, float]], int]:
    """Return (stage, "" or ", held out") to step to loss, and how many lines could not be read.

    Of two lines of one step, which a resumed run can leave, the later one counts.
    """
    path = folder / METRICS
    if not path.is_file():
        raise ValueError(f"{path} is missing; give the folder of a training run, which holds {METRICS}")
    found: dict[tuple[str, str], dict[int, float]] = {}
    broken = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            found.setdefault((row["stage"], ""), {})[int(row["step"])] = float(row["loss"])
            if "held_out_loss" in row:
                held_out = found.setdefault((row["stage"], ", held out"), {})
                held_out[int(row["step"])] = float(row["held_out_loss"])
        except (json.JSONDecodeError, KeyError, TypeError):
            broken += 1
    if not found:
        raise ValueError(
            f"{path} holds no line with a stage, a step and a loss; was the run stopped before its 20th step?"
        )
    return found, broken
