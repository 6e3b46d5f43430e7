"""Made-up but plausible results of a demo, and a report that is filled with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from embodied_wm.evaluation import figures
from embodied_wm.evaluation.report import Headline, Section, Table, run_record, write_report
from embodied_wm.evaluation.statistics import agresti_caffo, bootstrap_mean, bootstrap_quantile, by_horizon, wilson

LABELS = ["context", "context", *(f"t+{h}" for h in range(1, 11))]


def arm_frames(shoulder: np.ndarray, elbow: np.ndarray, blur: np.ndarray) -> np.ndarray:
    """Draw a two-link arm per angle pair (rad) as uint8 [T, 64, 64, 3]."""
    frames = []
    for first, bend, radius in zip(shoulder, elbow, blur, strict=True):
        image = Image.new("RGB", (256, 256), (238, 236, 230))
        draw = ImageDraw.Draw(image)
        joint = (128 + 62 * np.cos(first), 128 - 62 * np.sin(first))
        tip = (joint[0] + 54 * np.cos(first + bend), joint[1] - 54 * np.sin(first + bend))
        draw.line([(128, 128), joint], fill=(58, 82, 122), width=22)
        draw.line([joint, tip], fill=(214, 122, 60), width=18)
        for (x, y), size, colour in (
            ((128, 128), 15, (40, 56, 84)),
            (joint, 12, (58, 82, 122)),
            (tip, 13, (178, 44, 60)),
        ):
            draw.ellipse([x - size, y - size, x + size, y + size], fill=colour)
        frames.append(image.filter(ImageFilter.GaussianBlur(4 * float(radius))).resize((64, 64), Image.Resampling.BOX))
    return np.stack([np.asarray(frame) for frame in frames])


def drawn_episode() -> tuple[np.ndarray, np.ndarray]:
    """Return real and imagined frames, [12, 64, 64, 3] each; imagination drifts and blurs."""
    steps = np.arange(12)
    drift = np.clip(steps - 1, 0, None)
    shoulder, elbow = 0.3 + 0.16 * steps, 1.9 - 0.11 * steps
    real = arm_frames(shoulder, elbow, np.zeros(12))
    return real, arm_frames(shoulder + 0.012 * drift, elbow - 0.02 * drift, 0.2 + 0.06 * drift)


def curves(seed: int = 0) -> dict[str, Any]:
    """Return psnr, its copy baseline and its ceiling by horizon."""
    rng = np.random.default_rng(seed)
    h = np.arange(1, 17)
    episode = np.repeat(np.arange(16), 4)
    noise = rng.normal(0, 1.4, (64, 1)) + rng.normal(0, 0.6, (64, 16))
    return {
        "psnr": by_horizon(24 + 9.5 * np.exp(-h / 9) + noise, seed=0, groups=episode),
        "psnr_copy": by_horizon(15.5 + 11 * np.exp(-h / 3) + noise, seed=0, groups=episode),
        "psnr_ceiling": by_horizon(34.2 + 0 * h + 0.4 * noise, seed=0, groups=episode),
        "state_error": by_horizon(0.002 + 0.0009 * h * np.exp(0.2 * noise), seed=0, groups=episode),
    }


def costs(num: int = 900) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return imagined costs, physical costs (m) and the source of each candidate."""
    rng = np.random.default_rng(1)
    groups = np.array(["recorded", "random", "planner"])[np.arange(num) % 3]
    physical = rng.gamma(3.0, 0.045, num) * np.where(groups == "planner", 0.45, 1.0)
    imagined = 2.1 * physical + rng.normal(0, 0.028, num) - np.where(groups == "planner", 0.02, 0.0)
    return np.clip(imagined, 0.005, None), physical, groups.tolist()


SUCCESS = [
    ("CEM in imagination", 93),
    ("CEM through latent actions", 85),
    ("random shooting in imagination", 71),
    ("oracle: CEM in MuJoCo", 100),
    ("inverse dynamics", 62),
    ("behaviour cloning", 58),
    ("random actions", 6),
    ("zero actions", 0),
]


def sections() -> list[Section]:
    """Return the parts of a page with every kind of picture."""
    real, imagined = drawn_episode()
    by_h = curves()
    film = figures.film_strip(
        real, imagined, labels=LABELS, num_context=2, goal=real[-1], caption="Two given frames, then ten imagined ones."
    )
    loop = figures.looping(
        real,
        imagined,
        labels=LABELS,
        caption="The same episode; the bar shows the time. Step labels count from the last given frame.",
    )
    rows = [(name, wilson(k, 100)) for name, k in SUCCESS]
    steps = np.arange(1, 3001)
    losses = {
        "tokenizer": (steps, 0.02 + 0.9 / np.sqrt(steps)),
        "predictor": (steps[:2000], 0.06 + 0.7 / np.sqrt(steps[:2000])),
    }
    return [
        Section(
            title="What it imagines",
            text="The model is given two frames and ten actions, and imagines what the camera will see. "
            "MuJoCo renders what happens.",
            pictures=[film, loop],
        ),
        Section(
            title="Imagination against physics",
            text="64 states from held-out episodes, 24 candidate action sequences each.\n\n"
            "Every candidate is imagined and replayed from exactly the same physical state.",
            pictures=[
                figures.horizon_chart(
                    {"imagined": by_h["psnr"], "copy baseline": by_h["psnr_copy"], "ceiling": by_h["psnr_ceiling"]},
                    title="Image error by horizon",
                    ylabel="PSNR (dB)",
                    caption="Bands are 95% intervals over episodes.",
                    references=("copy baseline", "ceiling"),
                ),
                figures.cost_scatter(*costs(), unit="m", caption="Each point is one candidate."),
            ],
        ),
        Section(
            title="Planning",
            text="Start and goal come from a frozen list; success is measured at the end of the episode.",
            pictures=[
                figures.success_bars(rows, target=0.9, emphasis=("CEM in imagination", "CEM through latent actions")),
                figures.learning_curve(losses, caption="Losses on training batches."),
            ],
            table=Table(
                columns=["planner", "success", "median decision"],
                rows=[(name, value, 47.0 + i if i < 4 else None) for i, (name, value) in enumerate(rows)],
                units=["", "%", "ms"],
            ),
        ),
    ]


def headline() -> list[Headline]:
    """Return the key figures of issue 2 with their targets."""
    rng = np.random.default_rng(2)
    ranks = np.clip(rng.normal(0.94, 0.04, 64), -1, 1)
    milliseconds = 47 + rng.gamma(2.0, 3.0, 300)
    return [
        Headline(label="goals reached, tip within 2 cm", value=wilson(93, 100), unit="%", target=0.9),
        Headline(label="the same through latent actions", value=wilson(79, 100), unit="%", target=0.8),
        Headline(
            label="rank correlation of imagined with physical cost", value=bootstrap_mean(ranks, seed=0), target=0.9
        ),
        Headline(
            label="PSNR at h = 8 above the copy baseline",
            value=bootstrap_mean(rng.normal(7.3, 1.5, 64), seed=0),
            unit="dB",
            target=5.0,
        ),
        Headline(
            label="one decision, pixels to action",
            value=bootstrap_quantile(milliseconds, 0.5, seed=0),
            unit="ms",
            better="lower",
            target=100.0,
        ),
        Headline(
            label="wall time, everything in it",
            value={"value": 9.63, "ci95": None, "n": 1},
            unit="min",
            better="lower",
            target=15.0,
        ),
    ]


def write_example(folder: Path) -> Path:
    """Write a full report and return the path of its report.json."""
    planning = {
        "success": {name: wilson(k, 100) for name, k in SUCCESS},
        "cpg": agresti_caffo(100, 100, 93, 100),
        "spearman": headline()[2].value,
    }
    config = {"task": "reach", "model": "nano", "planner": {"name": "cem", "num_candidates": 128, "horizon": 8}}
    run = run_record(config, 0, dataset="b1946ac9", checkpoint="591785b7", wall_seconds=577.8)
    return write_report(
        folder,
        kind="demo",
        run=run,
        tasks={"reach": curves() | planning},
        speed={"decide": {"median_ms": headline()[4].value}},
        sections=sections(),
        headline=headline(),
        title="A world model learnt in ten minutes plans a reaching arm",
        summary="From 400 play episodes, a tokenizer and a latent predictor were trained from nothing on a CPU. "
        "A planner then searched in their imagination, and MuJoCo judged every imagined future.",
    )


@pytest.fixture(scope="session")
def episode() -> tuple[np.ndarray, np.ndarray]:
    return drawn_episode()


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("report"))
