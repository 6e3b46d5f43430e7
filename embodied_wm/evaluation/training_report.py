"""The page of a training: losses, pictures of what was learnt, speed and configuration."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from embodied_wm.evaluation.pages import training_section
from embodied_wm.evaluation.report import Headline, Picture, Section, Table, run_record, write_report
from embodied_wm.training.log import METRICS
from embodied_wm.training.observer import GRIDS, seconds_spent, speed_log
from embodied_wm.world_model import WorldModel

SHARED = "training"
"""What the stages are called that are no robot's own."""
_GRID_WORDS: Mapping[str, str] = {
    "tokenizer": "Above, frames of a held-out episode; below, the same encoded and decoded.",
    "predictor": "Above, how a held-out episode went on; below, how the model imagined it from three frames and the "
    "recorded actions.",
}


def write_training_report(run_dir: Path, model: WorldModel, config: Mapping[str, Any]) -> Path:
    """Write report.json and report.html into a training's folder and return the page's path.

    Args:
        run_dir: Folder of the run, with its metrics, speed and picture grids.
        model: What was trained.
        config: The run's resolved configuration.

    Raises:
        ValueError: If the folder holds no metrics.
    """
    card, folders = model.card, _folders(run_dir)
    adopted = card.get("adopted", ())  # stages of an earlier run, which has a report of its own
    times = _times(folders, {stage: spent for stage, spent in card["seconds"].items() if stage not in adopted})
    sections = [training_section(folders), *_pictures(run_dir), *_speed(folders, times)]
    losses = {
        stage: {key: _figure(value) for key, value in metrics.items()}
        for stage, metrics in card["metrics"].items()
        if stage not in adopted
    }
    written = write_report(
        run_dir,
        kind="training",
        run=run_record(
            config,
            card["seed"],
            device=model.action_low.device,
            wall_seconds=sum(spent for each in times.values() for spent in each.values()),
            **model.fingerprints(),
        ),
        tasks={stage: figures for stage, figures in losses.items() if figures},
        sections=sections,
        headline=[
            Headline(label=f"{stage}, last loss", value=figures["loss"], better="lower")
            for stage, figures in losses.items()
            if "loss" in figures
        ],
        title=f"Training of {model.embodiment.robot}",
        summary=f"{card['episodes']:,} episodes of {card['store']}, {card['labelled_episodes']:,} of them with action "
        f"labels; {sum(parameter.numel() for parameter in model.parameters()):,} parameters. Losses are those of the "
        "last logged step, one batch each.",
    )
    return written.with_suffix(".html")


def _folders(run_dir: Path) -> dict[str, Path]:
    """Return name to folder of what was trained: the run's shared stages, and those of each of its robots, if any."""
    robots = sorted(run_dir.glob("robots/*"))
    found = {f"robots/{folder.name}": folder for folder in robots if (folder / METRICS).is_file()}
    is_shared = (run_dir / METRICS).is_file() or not found
    return ({SHARED: run_dir} if is_shared else {}) | found


def _figure(value: float) -> dict[str, Any]:
    return {"value": value, "ci95": None, "n": 1}


def _pictures(run_dir: Path) -> list[Section]:
    """Return the first and the last grid of every stage that drew some."""
    stages: dict[str, list[Path]] = {}
    for path in sorted((run_dir / GRIDS).glob("*.png")):
        stages.setdefault(path.stem.rsplit("-", 1)[0], []).append(path)
    pictures = [
        Picture(
            title=f"{stage} after {int(path.stem.rsplit('-', 1)[1]):,} steps",
            caption=_GRID_WORDS.get(stage, ""),
            kind="png",
            data=path.read_bytes(),
            wide=True,
        )
        for stage, paths in stages.items()
        for path in dict.fromkeys((paths[0], paths[-1]))
    ]
    return [Section(title="What was learnt", pictures=pictures)] if pictures else []


def _times(folders: Mapping[str, Path], known: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the seconds of each stage in each folder: those that are known, of one robot's card, or those logged."""
    found: dict[str, dict[str, float]] = {}
    for name, folder in folders.items():
        stages = dict.fromkeys(record["stage"] for record in speed_log(folder))
        found[name] = {stage: round(seconds_spent(folder, stage), 2) for stage in stages}
        if name == SHARED:  # of several robots, a card has those of its own stages too
            found[name] |= {stage: spent for stage, spent in known.items() if stage in stages or len(folders) == 1}
    return found


def _speed(folders: Mapping[str, Path], times: Mapping[str, Mapping[str, float]]) -> list[Section]:
    """Return the table of each stage's speed; none where nothing was logged."""
    rows: list[list[Any]] = []
    for name, folder in folders.items():
        rates = dict[str, list[float]]()
        for record in speed_log(folder):
            rates.setdefault(record["stage"], []).append(record["frames_per_s"])
        of = "" if name == SHARED else f" of {name}"
        rows += [[f"{stage}{of}", round(median(values)), times[name][stage]] for stage, values in rates.items()]
    if not rows:
        return []
    return [
        Section(
            title="Speed",
            text="Median over the log of the frames that all processes together trained on per second, and the seconds "
            "of each stage.",
            table=Table(columns=["stage", "frames per second", "time"], rows=rows, units=["", "", "s"]),
        )
    ]
