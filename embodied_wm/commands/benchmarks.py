"""The benchmark verbs: measure, then write report.json and report.html."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from embodied_wm.commands.errors import UsageError
from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation import pages
from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.imagination import Judged, judge_imagination
from embodied_wm.evaluation.judged import JudgedModel, JudgedWorldModel
from embodied_wm.evaluation.latent_actions import measure_latent_actions, same_codes
from embodied_wm.evaluation.lineup import (
    CONTROLLERS,
    NEED_NO_MODEL,
    POLICIES,
    PlanningSetup,
    check_oracle,
    judged_world_model,
    line_up,
    train_baselines,
)
from embodied_wm.evaluation.page import format_end, format_number
from embodied_wm.evaluation.pages_imagination import last_step
from embodied_wm.evaluation.planning import Episodes, measure_agents, run_agents, time_decisions
from embodied_wm.evaluation.report import Headline, run_record, write_report
from embodied_wm.evaluation.speed import measure_speed, speed_lines
from embodied_wm.training.embodiment import check_compatible
from embodied_wm.training.labels import labelled_of_card
from embodied_wm.training.latents import LatentEpisodes, felt_by
from embodied_wm.training.processes import choose_device
from embodied_wm.world_model import WorldModel
from planners.control import Control
from planners.mpc import Decision
from sim.tasks import get_task, varied_name

TIMED_EPISODES = 2
TIMED_EPISODES_IN_BUDGET = 10
"""Where decisions have a budget, the 99th percentile is wanted."""


def resolved(run_dir: Path) -> dict[str, Any]:
    """Return the run's resolved configuration as plain values."""
    return yaml.safe_load((run_dir / "config.yaml").read_text())


def device_of(config: Mapping[str, Any]) -> str:
    """Return the device of a verb's configuration.

    Raises:
        UsageError: If there is no such device.
    """
    try:
        return str(choose_device(config.get("device", "cpu")))
    except ValueError as error:
        raise UsageError(str(error)) from error


def setup_of(config: Mapping[str, Any]) -> PlanningSetup:
    """Return what plans, from a verb's configuration."""
    return PlanningSetup(
        task=varied_name(config["task"]["name"], config.get("variation", ())),
        planner=config["planner"],
        objective=config["objective"]["kind"],
        weights=config["objective"]["weights"],
        rolling=config.get("rolling", False),
        adapter=config.get("adapter"),
        precision=config.get("precision", "fp32"),
        denoising_steps=config.get("denoising_steps", 1),
        proposals=config["task"].get("proposals", 0),
        device=device_of(config),
        control=config.get("control", Control()),
    )


def planned_steps(planner: Any) -> int:
    """Return imagined sequences x horizon of one decision."""
    return planner.num_sequences * planner.horizon


def benchmark_imagination(model: JudgedModel, config: Mapping[str, Any], run_dir: Path, console: Console) -> None:
    """Measure imagination against physics, of our model or of one behind an adapter."""
    began, seed = time.monotonic(), config["seed"]
    setup = setup_of(config)
    task = get_task(setup.task)
    judged = judge_task(model, setup, config, console)
    headline = imagination_headline(judged)
    page = write_report(
        run_dir,
        kind="imagination",
        run=run_record(
            resolved(run_dir), seed, device=setup.device, wall_seconds=time.monotonic() - began, **model.fingerprints()
        ),
        tasks={task.name: judged.measures},
        sections=pages.imagination_sections(task, judged),
        headline=headline,
        title=f"Imagination against physics: {task.name}",
    )
    say_figures(headline, console)
    console.print(f"wrote [cyan]{page.with_name('report.html')}[/]", soft_wrap=True)


def say_figures(headline: Sequence[Headline], console: Console) -> None:
    """Print the key figures of a report with their intervals."""
    for item in headline:
        shown, unit = format_number(item.value["value"]), f" {item.unit}" if item.unit else ""
        ends = [format_end(end, item.value["value"]) for end in item.value["ci95"] or ()]
        interval = f" [{', '.join(ends)}]" if ends else ""
        console.print(f"{item.label}: {shown}{unit}{interval}, n = {item.value['n']:,}", markup=False, highlight=False)


def judge_task(model: JudgedModel, setup: PlanningSetup, config: Mapping[str, Any], console: Console) -> Judged:
    """Measure imagination on the task and with the planner of a verb's configuration."""
    return judge_imagination(
        get_task(setup.task),
        model,
        setup.planner_for(model),
        config["imagination"],
        weights=setup.weights,
        seed=config["seed"],
        console=console,
    )


def imagination_headline(judged: Judged) -> list[Headline]:
    """Return the key figures of imagination, those that the task has."""
    found = [Headline(label="rank correlation with physics", value=judged.measures["spearman"], target=0.9)]
    if "psnr_over_copy" in judged.measures:
        last, gain = last_step(judged.measures["psnr_over_copy"])
        found.append(Headline(label=f"PSNR over copying, h = {last}", value=gain, unit="dB", target=5.0))
    found.append(Headline(label="elite regret", value=judged.measures["elite_regret"], better="lower"))
    return found


def benchmark_planning(
    model: JudgedModel | None, checkpoint: Path | None, config: Mapping[str, Any], run_dir: Path, console: Console
) -> None:
    """Measure closed-loop planning against baselines and the oracle; without a model, what needs none.

    Args:
        model: The model that is judged, or None.
        checkpoint: Where the agents load it from, each in its process; None where there is no model.
        config: The values of configs/benchmark_planning.yaml.
        run_dir: Folder of the run.
        console: Where progress is shown.
    """
    began, seed = time.monotonic(), config["seed"]
    setup = setup_of(config)
    task = get_task(setup.task)
    runs, measures, decisions = measure_planning(
        setup,
        planning_agents(
            model,
            checkpoint,
            setup,
            config["planning"]["controllers"],
            run_dir,
            seed=seed,
            console=console,
            store=config["planning"].get("store"),
        ),
        view=model.image_size if model else (config["task"]["image_size"],) * 2,
        camera=model.camera if model else config["task"]["camera"] or task.cameras[0],
        num_pairs=config["planning"]["num_pairs"],
        seed=seed,
        console=console,
    )
    marks = model.fingerprints() if model else {}
    page = write_report(
        run_dir,
        kind="planning",
        run=run_record(resolved(run_dir), seed, device=setup.device, wall_seconds=time.monotonic() - began, **marks),
        tasks={task.name: measures},
        sections=[
            *pages.planning_sections(task, runs, measures, replan_every=setup.control.replan_every),
            *pages.decision_sections(decisions, setup.control.budget_ms),
        ],
        headline=planning_headline(measures),
        title=f"Closed-loop planning: {task.name}",
    )
    for name, run in runs.items():
        console.print(f"{name}: success {run.success.mean():.2f}, at any step {run.success_any.mean():.2f}")
    console.print(f"wrote [cyan]{page.with_name('report.html')}[/]", soft_wrap=True)


def planning_agents(
    model: JudgedModel | None,
    checkpoint: Path | None,
    setup: PlanningSetup,
    wanted: Sequence[str],
    run_dir: Path,
    *,
    seed: int,
    console: Console,
    store: str | None = None,
) -> dict[str, Any]:
    """Return what makes each of the wanted agents; policies without search are trained first, on `store`.

    Raises:
        ValueError: No controller, an unknown one, one that needs a model, or our own model, where there is none, or an
            oracle that could not plan.
    """
    valid = NEED_NO_MODEL if checkpoint is None else CONTROLLERS
    if not wanted:
        raise ValueError(f"planning.controllers=[]: expected at least one of: {', '.join(valid)}")
    unknown = [name for name in wanted if name not in valid]
    if unknown:
        why = "unknown controller" if unknown[0] not in CONTROLLERS else "without a model there is no controller"
        raise ValueError(f"{why} {unknown[0]!r}; choose from: {', '.join(valid)}")
    if "oracle" in wanted:
        check_oracle(setup.planner)
    makers = dict(line_up(checkpoint, setup))
    if checkpoint is not None and (policies := [name for name in POLICIES if name in wanted]):
        if not isinstance(model, JudgedWorldModel):
            raise ValueError(
                f"{' and '.join(POLICIES)} are trained on the latents and the data of a checkpoint of ours; leave them "
                "out of planning.controllers, or leave out adapter="
            )
        latents = training_latents(model.world_model, console, store)
        makers |= train_baselines(checkpoint, latents, run_dir, task=setup.task, seed=seed, names=policies)
    return {name: makers[name] for name in wanted}


def planning_headline(measures: Mapping[str, Any]) -> list[Headline]:
    """Return the key figures of planning, those that were measured."""
    found = []
    if "success" in measures:
        found.append(Headline(label="success", value=measures["success"], unit="%", target=0.9))
    elif "success.oracle" in measures:
        found.append(Headline(label="oracle's success", value=measures["success.oracle"], unit="%", target=0.95))
    if "cpg" in measures:
        found.append(Headline(label="oracle minus model", value=measures["cpg"], unit="%", better="lower"))
    if "seconds_per_decision" in measures:
        decision = scaled(measures["seconds_per_decision"], 1e3)
        found.append(Headline(label="one decision", value=decision, unit="ms", better="lower"))
    return found


def measure_planning(
    setup: PlanningSetup,
    makers: Mapping[str, Any],
    *,
    view: tuple[int, int],
    camera: str,
    num_pairs: int,
    seed: int,
    console: Console,
) -> tuple[dict[str, Episodes], dict[str, Any], list[Decision]]:
    """Run all agents on the frozen pairs, time the deciding ones alone; return runs, measures, the model's decisions.

    Args:
        setup: What plans, and how.
        makers: Agent to what makes it.
        view: Height and width of the frames.
        camera: The simulator's name of their camera.
        num_pairs: Start and goal pairs.
        seed: Of pairs, candidates and noise.
        console: Where progress is shown.
    """
    task = get_task(setup.task)
    runs = run_agents(task, makers, num_episodes=num_pairs, seed=seed, image_size=view, camera=camera, console=console)
    deciding = {name: make() for name, make in makers.items() if name not in ("random", "zero")}
    budget_ms = setup.control.budget_ms
    num_timed = TIMED_EPISODES if budget_ms is None else TIMED_EPISODES_IN_BUDGET
    seconds = {
        name: time_decisions(
            task,
            agent,
            num_episodes=num_timed if name == "model" else TIMED_EPISODES,
            seed=seed,
            image_size=view,
            camera=camera,
        )
        for name, agent in deciding.items()
    }
    measures = measure_agents(runs, seconds, planned_steps=planned_steps(setup.planner), seed=seed, budget_ms=budget_ms)
    model = deciding.get("model")
    return runs, measures, model.record if isinstance(model, ModelAgent) else []


def training_latents(model: WorldModel, console: Console, path: str | None = None) -> LatentEpisodes:
    """Encode the episodes that a model was trained on, from the store its card names, or from where that is now.

    Episodes of its store whose labels were withheld from the model are withheld here, too.

    Raises:
        StoreError: If that store is gone.
        ValueError: If it has changed its features, or the model was trained on video alone.
    """
    store = EpisodeStore.open(path or model.card["store"])
    check_compatible(store, model)
    episodes = split_of(model, store)[0]
    labelled = labelled_of_card(model.card) if store.fingerprint() == model.card.get("fingerprint") else None
    if labelled is not None:
        episodes = [episode for episode in episodes if episode in labelled]
    if not episodes:
        raise ValueError(
            f"the model was trained without the labels of {store.path}, so {' and '.join(POLICIES)} have none to "
            "learn from; leave them out of planning.controllers"
        )
    return LatentEpisodes(
        store,
        model.tokenizer,
        camera=model.embodiment.camera,
        episodes=episodes,
        features=["action"],
        console=console,
        felt=felt_by(model),
    )


def split_of(model: WorldModel, store: EpisodeStore) -> tuple[list[int], list[int]]:
    """Return training and held-out episodes: as the model's training split its store, and by default another one."""
    count = model.card.get("episodes")
    if count is None or model.card.get("fingerprint") != store.fingerprint():
        train, held_out = split_episodes(store.num_episodes)
        return train.tolist(), held_out.tolist()
    return list(range(count)), list(range(count, store.num_episodes))


def benchmark_speed(model: WorldModel, config: Mapping[str, Any], run_dir: Path, console: Console) -> None:
    """Time imagination, cached and uncached, and one decision."""
    began, seed = time.monotonic(), config["seed"]
    setup = setup_of(config)
    task = get_task(setup.task)
    speed = measure_speed(model, config["speed"], console=console)
    judged = judged_world_model(model, setup)
    times = time_decisions(
        task,
        ModelAgent(judged, setup.planner_for(judged), context=setup.context),
        num_episodes=TIMED_EPISODES,
        seed=seed,
        image_size=judged.image_size,
        camera=judged.camera,
    )
    measures = measure_agents({}, {"model": times}, planned_steps=planned_steps(setup.planner), seed=seed)
    page = write_report(
        run_dir,
        kind="speed",
        run=run_record(
            resolved(run_dir),
            seed,
            device=model.action_low.device,
            wall_seconds=time.monotonic() - began,
            **model.fingerprints(),
        ),
        tasks={task.name: measures},
        speed=speed,
        sections=[pages.speed_section(speed), *pages.growth_sections(speed)],
        headline=[Headline(label="decisions per second", value=measures["decisions_per_second"])],
        title=f"Speed: {task.name}",
    )
    for line in speed_lines(speed):
        console.print(line, highlight=False)
    console.print(f"wrote [cyan]{page.with_name('report.html')}[/]", soft_wrap=True)


def benchmark_latent_actions(
    model: WorldModel, store: EpisodeStore, run_dir: Path, console: Console, *, seed: int
) -> None:
    """Measure what latent actions carry, on the held-out episodes of a store."""
    began = time.monotonic()
    check_compatible(store, model)
    measures = latent_action_measures(model, store, seed=seed)
    scenes, after = same_codes(model, store, split_of(model, store)[1], context=3, seed=seed)
    picture = pages.same_codes_picture(scenes.numpy(), after.numpy())
    headline = [
        Headline(label="actions read from codes (R²)", value=measures["r2"], target=0.9),
        Headline(label="gain over a random code", value=measures["delta_psnr"], unit="dB", target=5.0),
    ]
    page = write_report(
        run_dir,
        kind="latent_actions",
        run=run_record(
            resolved(run_dir),
            seed,
            device=model.action_low.device,
            wall_seconds=time.monotonic() - began,
            **model.fingerprints(),
        ),
        tasks={model.embodiment.robot: measures},
        sections=[pages.latent_action_section(measures, [picture])],
        headline=headline,
        title=f"Latent actions: {model.embodiment.robot}",
    )
    say_figures(headline, console)
    console.print(f"wrote [cyan]{page.with_name('report.html')}[/]", soft_wrap=True)


def latent_action_measures(model: WorldModel, store: EpisodeStore, *, seed: int) -> dict[str, Any]:
    """Measure latent actions with a probe fitted on (at most 60) training episodes, judged on the held-out ones."""
    train, held_out = split_of(model, store)
    return measure_latent_actions(model, store, train=train[:60], held_out=held_out, context=3, seed=seed)


def scaled(value: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return an estimate in another unit."""
    ends = value["ci95"]
    return {
        "value": value["value"] * factor,
        "ci95": None if ends is None else [end * factor for end in ends],
        "n": value["n"],
    }


__all__ = [
    "benchmark_imagination",
    "benchmark_latent_actions",
    "benchmark_planning",
    "benchmark_speed",
    "device_of",
    "imagination_headline",
    "judge_task",
    "latent_action_measures",
    "measure_planning",
    "planning_agents",
    "resolved",
    "scaled",
    "setup_of",
    "split_of",
    "training_latents",
]
