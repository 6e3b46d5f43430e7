"""The two demos: a MuJoCo task from nothing to a checked plan, and a LeRobot folder imagined."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from embodied_wm.commands import benchmarks
from embodied_wm.commands.collection import collect_store
from embodied_wm.commands.importing import show_import
from embodied_wm.commands.run import Run
from embodied_wm.data.cameras import camera_names
from embodied_wm.data.lerobot import import_lerobot
from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation import pages
from embodied_wm.evaluation.dataset import judge_dataset
from embodied_wm.evaluation.lineup import check_oracle, judged_world_model, line_up, make_model_agent, train_baselines
from embodied_wm.evaluation.pages_imagination import last_step
from embodied_wm.evaluation.report import Headline, Section, run_record, write_report
from embodied_wm.evaluation.speed import measure_speed
from embodied_wm.progress import track_reports
from embodied_wm.ranges import check_counts
from embodied_wm.training.train import train_world_model
from sim.tasks import get_task

FEW_LABELS = 0.05


def run_task_demo(config: Mapping[str, Any], run: Run) -> Path:
    """Collect, train everything from nothing, imagine, plan, check against MuJoCo, and write the report."""
    began, seed, run_dir, console = time.monotonic(), config["seed"], run.folder, run.console
    task = get_task(config["task"]["name"])
    setup = benchmarks.setup_of(config)
    check_oracle(setup.planner)
    path = run_dir / "episodes.zarr"
    collect_store(
        path, {**config["collect"], "task": config["task"], "episodes": config["episodes"], "seed": seed}, console
    )
    store = EpisodeStore.open(path)
    model = train_world_model(store, config["model"], config["trainer"], run_dir, seed=seed, console=console)
    few_dir = run_dir / "few_labels"
    few = train_world_model(
        store,
        config["model"],
        replace(config["trainer"], labelled_fraction=FEW_LABELS, predictor=config["few_labels_predictor"]),
        few_dir,
        seed=seed,
        stages=("adapter", "predictor", "readouts", "goal_policy"),
        start_from=model,
        console=console,
    )
    behind = judged_world_model(model, setup)
    judged = benchmarks.judge_task(behind, setup, config, console)
    makers = dict(line_up(run_dir / "model", setup))
    makers["latent_actions"] = partial(make_model_agent, few_dir / "model", replace(setup, kind="adapted"))
    latents = benchmarks.training_latents(model, console)
    makers |= train_baselines(run_dir / "model", latents, run_dir, task=setup.task, seed=seed)
    runs, planned, decisions = benchmarks.measure_planning(
        setup,
        makers,
        view=behind.image_size,
        camera=behind.camera,
        num_pairs=config["planning"]["num_pairs"],
        seed=seed,
        console=console,
    )
    codes = benchmarks.latent_action_measures(few, store, seed=seed)
    speed = measure_speed(model, config["speed"], console=console)
    measures = {**judged.measures, **planned, **codes}
    last, gain = last_step(measures["psnr_over_copy"])
    page = write_report(
        run_dir,
        kind="demo",
        run=run_record(benchmarks.resolved(run_dir), seed, wall_seconds=_whole(run, began), **model.fingerprints()),
        tasks={task.name: measures},
        speed=speed,
        sections=[
            *pages.imagination_sections(task, judged),
            *pages.planning_sections(task, runs, measures),
            *pages.decision_sections(decisions),
            pages.latent_action_section(measures),
            pages.speed_section(speed),
            pages.training_section({"all labels": run_dir, "5% of the labels": few_dir}),
        ],
        headline=[
            Headline(label="success at the end", value=planned["success"], unit="%", target=0.9),
            Headline(
                label="through latent actions, 5% labels", value=planned["success.latent_actions"], unit="%", target=0.8
            ),
            Headline(label="rank correlation with physics", value=measures["spearman"], target=0.9),
            Headline(label=f"PSNR over copying, h = {last}", value=gain, unit="dB", target=5.0),
            Headline(
                label="one decision, pixels to action",
                value=benchmarks.scaled(planned["seconds_per_decision"], 1e3),
                unit="ms",
                better="lower",
                target=100.0,
            ),
        ],
        title=f"{task.name.capitalize()}: imagined, planned, and checked against MuJoCo",
    )
    _tell(console, measures)
    _close(run, began, page)
    return page


def _whole(run: Run, began: float) -> float | None:
    """Return how long a run took, in seconds; None where it was stopped in between."""
    return None if run.resumed else time.monotonic() - began


def _close(run: Run, began: float, page: Path) -> None:
    minutes = f"{(time.monotonic() - began) / 60:.1f} minutes{' since it was resumed' if run.resumed else ''}"
    run.console.print(f"{minutes}; wrote [cyan]{page.with_name('report.html')}[/]", soft_wrap=True)


def _tell(console: Console, measures: Mapping[str, Any]) -> None:
    """Say in a few lines what came out."""
    shown = {
        "success, world model": "success",
        "success, latent actions with 5% of the labels": "success.latent_actions",
        "success, MuJoCo oracle": "success.oracle",
        "success, behaviour cloning": "success.behaviour_cloning",
        "success, inverse dynamics": "success.inverse_dynamics",
        "success, random actions": "success.random",
        "rank correlation of imagined with physical cost": "spearman",
        "PSNR over the copy baseline at the last step, dB": "psnr_over_copy",
        "seconds per decision": "seconds_per_decision",
        "actions read from latent codes, R2": "r2",
    }
    for label, key in shown.items():
        if key in measures:
            measure = measures[key]
            _say(console, label, last_step(measure)[1] if "by_horizon" in measure else measure)


def _say(console: Console, label: str, measure: Mapping[str, Any]) -> None:
    """Print one estimate with its interval."""
    ends = measure["ci95"]
    interval = f"  [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
    console.print(f"  {label:<52} {measure['value']:.3f}{interval}", highlight=False)


def run_lerobot_demo(config: Mapping[str, Any], run: Run) -> Path:
    """Import a LeRobot folder, train on all but its last episodes, imagine those, and write the report."""
    check_counts(  # before hours of training
        context=config["context_frames"], horizon=config["horizon"], starts_per_episode=config["starts_per_episode"]
    )
    began, seed, run_dir, console = time.monotonic(), config["seed"], run.folder, run.console
    path = run_dir / "episodes.zarr"
    with track_reports("import", unit="frames", console=console) as advance:
        imported = import_lerobot(
            Path(config["source"]).expanduser(),
            path,
            cameras=list(camera_names(config["camera"])) if config["camera"] else None,
            image_size=tuple(config["model"].tokenizer.image_size),
            progress=advance,
        )
    show_import(imported, path, console)
    store = EpisodeStore.open(path)
    trainer = replace(config["trainer"], camera=config["camera"] or config["trainer"].camera)
    model = train_world_model(store, config["model"], trainer, run_dir, seed=seed, console=console)
    held_out = split_episodes(store.num_episodes, trainer.held_out_fraction)[1].tolist()
    judged = judge_dataset(
        model,
        store,
        held_out,
        context=config["context_frames"],
        horizon=config["horizon"],
        starts_per_episode=config["starts_per_episode"],
        seed=seed,
        console=console,
    )
    codes = benchmarks.latent_action_measures(model, store, seed=seed)
    measures = {**judged.measures, **codes}
    step = str(min(4, config["horizon"]))
    sections: list[Section] = [
        *pages.dataset_imagination_sections(judged),
        pages.latent_action_section(measures),
        pages.training_section({"training": run_dir}),
    ]
    page = write_report(
        run_dir,
        kind="demo",
        run=run_record(benchmarks.resolved(run_dir), seed, wall_seconds=_whole(run, began), **model.fingerprints()),
        tasks={model.embodiment.robot: measures},
        sections=sections,
        headline=[
            Headline(label=f"PSNR at h = {step}", value=measures["psnr"]["by_horizon"][step], unit="dB"),
            Headline(
                label=f"PSNR over copying, h = {step}",
                value=measures["psnr_over_copy"]["by_horizon"][step],
                unit="dB",
                target=0.0,
            ),
            Headline(
                label=f"ceiling of the tokenizer, h = {step}",
                value=measures["psnr_ceiling"]["by_horizon"][step],
                unit="dB",
            ),
            Headline(label="actions read from codes (R²)", value=measures["r2"]),
            Headline(label="gain over a random code", value=measures["delta_psnr"], unit="dB"),
        ],
        title=f"{model.embodiment.robot}: held-out episodes, imagined from {config['context_frames']} frames",
    )
    for key in ("psnr", "psnr_copy", "psnr_over_copy", "psnr_ceiling", "ssim", "ssim_copy"):
        _say(console, f"{key} at h = {step}", measures[key]["by_horizon"][step])
    _close(run, began, page)
    return page
