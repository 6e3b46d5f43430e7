"""What each verb does with its instantiated configuration; heavy imports stand inside, so that help stays fast."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from embodied_wm.commands.errors import UsageError
from embodied_wm.commands.run import OVERRIDES, Run, newest_run

if TYPE_CHECKING:
    from embodied_wm.data.store import EpisodeStore
    from embodied_wm.evaluation.judged import JudgedModel
    from embodied_wm.world_model import WorldModel

type Config = Mapping[str, Any]


def collect(config: Config, run: Run) -> None:
    """Collect episodes of a MuJoCo task."""
    from embodied_wm.commands.collection import collect_store

    collect_store(_path(config["out"]), config, run.console)


def import_dataset(config: Config, run: Run) -> None:
    """Import a LeRobot dataset, or an HDF5 file."""
    from embodied_wm.commands.importing import import_store

    report = import_store(config["source"], _path(config["out"]), config, run.console)
    (run.folder / "import.json").write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")


def export(config: Config, run: Run) -> None:
    """Export a store as a LeRobot dataset."""
    from embodied_wm.data.asked import asked_numbers
    from embodied_wm.data.lerobot import export_lerobot
    from embodied_wm.data.store import EpisodeStore
    from embodied_wm.progress import Track

    asked = config["episodes"]
    episodes = None if asked is None else asked_numbers(asked, "episodes", UsageError)
    store, out = EpisodeStore.open(_place(config["source"])), _path(config["out"])
    total = store.num_episodes if episodes is None else len(episodes)
    with Track("export", total, unit="episodes", console=run.console) as track:
        report = export_lerobot(
            store,
            out,
            frames=config["frames"],
            crf=config["crf"],
            episodes=episodes,
            task=config["task"],
            progress=lambda done, _: track.advance(done - track.done),
        )
    cameras = ", ".join(report.cameras) or "none"
    run.console.print(
        f"{out}: {report.episodes:,} episodes, {report.frames:,} frames, cameras: {cameras}", soft_wrap=True
    )
    for note in report.notes:
        run.console.print(f"note: {note}", markup=False, soft_wrap=True)
    (run.folder / "export.json").write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")


def train(config: Config, run: Run) -> None:
    """Train a world model."""
    from embodied_wm.commands.families import train_robots
    from embodied_wm.training.processes import leave_processes

    before = None if config["start_from"] is None else _path(config["start_from"])
    model = train_robots(
        [_place(str(store)) for store in (config["data"]["path"], *config["together"]["stores"])],
        config,
        run,
        start_from=before,
        same_data=_check_same_data,
    )
    if run.leads and config["report"]:
        from embodied_wm.commands.benchmarks import resolved
        from embodied_wm.evaluation.training_report import write_training_report

        page = write_training_report(run.folder, model, resolved(run.folder))
        run.console.print(f"training report: [cyan]{page}[/]", soft_wrap=True)
    leave_processes()


def with_newest(verb: str, overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the overrides of a verb with the run that LATEST in `start_from` stands for now.

    A training that is resumed goes on from the same model, whatever was trained meanwhile.
    """
    start = overrides.get("start_from", "")
    is_newest = verb == "train" and "LATEST" in Path(start).parts
    return dict(overrides) | ({"start_from": str(_path(start))} if is_newest else {})


def with_start(verb: str, overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the overrides of a verb, before them the model's options of what a training goes on from, if any."""
    start = overrides.get("start_from", "null")
    if verb != "train" or start == "null" or "model" in overrides:
        return dict(overrides)
    from embodied_wm.commands.families import model_options

    return model_options(_path(start)) | dict(overrides)


def _check_same_data(store: "EpisodeStore", run: Run, name: str = "data") -> None:
    """Note which data a run is about, or check that a resumed run goes on with the same."""
    note = run.folder / f"{name}.json"
    fingerprint = store.fingerprint()
    if not note.is_file():
        note.write_text(json.dumps({"path": store.path, "fingerprint": fingerprint}) + "\n", encoding="utf-8")
        return
    before = json.loads(note.read_text(encoding="utf-8"))
    if before["fingerprint"] != fingerprint:
        raise UsageError(
            f"resume=true: the run in {run.folder} trains on {before['path']} with fingerprint "
            f"{before['fingerprint']}; {store.path} has {fingerprint}. Give the same data, or start a new run"
        )


def refine(config: Config, run: Run) -> None:
    """Refine a world model where its planner looks."""
    from embodied_wm.commands import benchmarks, refinement

    refinement.refine(
        load_model_for_task(config),
        checkpoint_folder(config).resolve(),
        config,
        run.folder,
        run.console,
        device=benchmarks.device_of(config),
        resumed=run.resumed,
    )


def imagine(config: Config, run: Run) -> None:
    """Imagine an episode of a store."""
    from embodied_wm.data.store import EpisodeStore
    from embodied_wm.evaluation.imagine import imagine_episode

    store = EpisodeStore.open(_place(config["data"]["path"]))
    episode = config["episode"] + (store.num_episodes if config["episode"] < 0 else 0)
    if not 0 <= episode < store.num_episodes:
        raise UsageError(f"episode={config['episode']}: the store holds {store.num_episodes} episodes, counted from 0")
    imagine_episode(
        load_world_model(config),
        store,
        episode,
        run.folder,
        start=config["start"],
        context_frames=config["context_frames"],
        horizon=config["horizon"],
        denoising_steps=config["denoising_steps"],
        seed=config["seed"],
        console=run.console,
    )


def plan(config: Config, run: Run) -> None:
    """Plan one episode in closed loop."""
    from embodied_wm.commands.benchmarks import setup_of
    from embodied_wm.commands.showing import show_page
    from embodied_wm.evaluation.plan_once import plan_once

    world_model, setup = load_model_for_task(config), setup_of(config)
    report = plan_once(world_model, setup, seed=config["seed"], run_dir=run.folder, console=run.console)
    show_page(report.with_suffix(".html"), config["open"])


def benchmark_imagination(config: Config, run: Run) -> None:
    """Measure imagination against physics."""
    from embodied_wm.commands import benchmarks

    benchmarks.benchmark_imagination(load_judged_model(config), config, run.folder, run.console)
    _add_to_card(config, run)


def benchmark_planning(config: Config, run: Run) -> None:
    """Measure closed-loop planning."""
    from embodied_wm.commands import benchmarks

    if "checkpoint" not in config:  # dynamics=oracle has none
        benchmarks.benchmark_planning(None, None, config, run.folder, run.console)
        return
    checkpoint = checkpoint_folder(config) if config["adapter"] is None else _path(config["checkpoint"])
    benchmarks.benchmark_planning(load_judged_model(config), checkpoint, config, run.folder, run.console)
    _add_to_card(config, run)


def benchmark_speed(config: Config, run: Run) -> None:
    """Measure speed."""
    from embodied_wm.commands import benchmarks

    benchmarks.benchmark_speed(load_model_for_task(config), config, run.folder, run.console)
    _add_to_card(config, run)


def benchmark_latent_actions(config: Config, run: Run) -> None:
    """Measure the latent actions."""
    from embodied_wm.commands import benchmarks
    from embodied_wm.data.store import EpisodeStore

    store = EpisodeStore.open(_place(config["data"]["path"]))
    benchmarks.benchmark_latent_actions(load_world_model(config), store, run.folder, run.console, seed=config["seed"])
    _add_to_card(config, run)


USUAL = (
    "task",
    "id",  # of task=gym
    "checkpoint",
    "data.path",
    "planner",
    "objective",
    "imagination.num_branch_points",
    "planning.num_pairs",
    "planning.controllers",
    "planning.store",
    "card",
    "device",
    "seed",
    "run_dir",
)
"""Options with which a benchmark's figures are still those that a model's card shows."""


def _add_to_card(config: Config, run: Run) -> None:
    """Add a benchmark's figures to the card of our own model, unless asked not to; the model itself stays as it is."""
    import yaml

    from embodied_wm.checkpoint import CheckpointError
    from embodied_wm.cli import compose_config, flat_values
    from embodied_wm.evaluation.report import load_report
    from embodied_wm.model_card import add_figures
    from embodied_wm.pretrained import FOLDER

    if not config["card"] or config.get("adapter") is not None:
        return
    folder = checkpoint_folder(config)
    if folder.parent == FOLDER:
        return  # a model that ships keeps the figures it came with
    given = dict(text.split("=", 1) for text in yaml.safe_load((run.folder / OVERRIDES).read_text(encoding="utf-8")))
    usual = {key: value for key, value in given.items() if key in USUAL}
    here, there = (flat_values(compose_config(run.name, each)[0]) for each in (given, usual))
    unusual = [f"{key}={value}" for key, value in here.items() if there.get(key) != value]
    if unusual:
        told = f"its figures are of usual settings, without {', '.join(unusual)}"
        run.console.print(f"note: the model's card was not changed: {told}", markup=False, soft_wrap=True)
        return
    try:
        for line in add_figures(folder, load_report(run.folder)):
            run.console.print(f"note: {line}", markup=False, soft_wrap=True)
    except CheckpointError as error:  # somebody else's folder, perhaps: the figures stand in the report all the same
        run.console.print(f"note: the model's card was not changed: {error}", markup=False, soft_wrap=True)


def demo(config: Config, run: Run) -> None:
    """Run one of the demos."""
    from embodied_wm.commands import demos

    runners = {"task": demos.run_task_demo, "lerobot": demos.run_lerobot_demo}
    runners[config["kind"]](config, run)


def inspect(config: Config, console: Console) -> None:
    """Show a store or a checkpoint."""
    from embodied_wm.commands.inspection import inspect

    out = None if config["out"] is None else _path(config["out"])
    inspect(
        _place(config["path"]),
        statistics=config["statistics"],
        out=out,
        num_episodes=config["episodes"],
        console=console,
    )


def validate(config: Config, run: Run) -> int:
    """Check a store; the exit code says whether training would break."""
    from embodied_wm.commands.validation import validate

    return validate(_place(config["path"]), strict=config["strict"], folder=run.folder, console=run.console)


def edit(config: Config, run: Run) -> None:
    """Merge, split or filter stores."""
    from embodied_wm.commands.edits import edit_stores

    edit_stores({**config, "sources": [_place(str(source)) for source in config["sources"]]}, run.console)


def report(config: Config, console: Console) -> None:
    """Render a report.json again, or compare several."""
    from embodied_wm.evaluation.compare import write_comparison
    from embodied_wm.evaluation.report import render_report

    sources = [_path(text) for text in (config["source"], *config["others"])]
    out = None if config["out"] is None else _path(config["out"])
    compares = bool(config["others"])
    page = write_comparison(sources, out or Path("compare.html")) if compares else render_report(sources[0], out)
    console.print(f"wrote [cyan]{page}[/]", soft_wrap=True)


def load_world_model(config: Config) -> "WorldModel":
    """Load the checkpoint of a configuration onto its device."""
    from embodied_wm.commands.benchmarks import device_of
    from embodied_wm.world_model import WorldModel

    return WorldModel.load(checkpoint_folder(config), device=device_of(config))


def load_model_for_task(config: Config) -> "WorldModel":
    """Load the checkpoint of a configuration, in its precision, and check that it is of the configuration's task."""
    from embodied_wm.data.cameras import camera_names
    from embodied_wm.predictor.int8 import set_precision
    from sim.tasks import get_task, task_names

    task, model = get_task(config["task"]["name"]), load_world_model(config)
    robot, camera = model.embodiment, model.embodiment.camera.removeprefix("observation.images.")
    names = camera_names(robot.camera)
    seen = {name.removeprefix("observation.images.") for name in names}
    is_other = robot.robot != task.name and robot.robot in task_names()
    if is_other or robot.action_size != task.action_size or not seen <= set(task.cameras):
        raise UsageError(
            f"the model of {config['checkpoint']} is of {robot.robot!r}: camera {camera!r}, actions of size "
            f"{robot.action_size}; the task {task.name!r} has the cameras {', '.join(task.cameras)} and actions of "
            f"size {task.action_size}. Choose another task=, or a checkpoint that was trained on {task.name}"
        )
    wanted = config["task"].get("camera")
    if wanted is not None and wanted.split("+") != [name.removeprefix("observation.images.") for name in names]:
        raise UsageError(
            f"task.camera={wanted}: the model of {config['checkpoint']} sees {camera!r}; leave it out, or choose a "
            "checkpoint that was trained on that camera"
        )
    set_precision(model.predictor.transformer, config.get("precision", "fp32"))
    return model


def load_judged_model(config: Config) -> "JudgedModel":
    """Load the model that is judged: ours, which must be of the configuration's task, or one behind an adapter."""
    from embodied_wm.commands.benchmarks import setup_of
    from embodied_wm.evaluation.lineup import judged_world_model, load_judged

    setup = setup_of(config)
    if setup.adapter is None:
        return judged_world_model(load_model_for_task(config), setup)
    return load_judged(_path(config["checkpoint"]), setup)


def checkpoint_folder(config: Config) -> Path:
    """Return the model folder that `checkpoint` names: a folder, a run folder that holds one, or a model that ships."""
    from embodied_wm.checkpoint import model_folder
    from embodied_wm.pretrained import PREFIX, pretrained_folder, pretrained_names

    text = config["checkpoint"]
    if text == PREFIX.rstrip(":"):
        if "task" not in config:
            raise UsageError(f"checkpoint={text}: say which, {PREFIX}NAME; there are {', '.join(pretrained_names())}")
        text = f"{PREFIX}{config['task']['name']}"
    return pretrained_folder(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else model_folder(_path(text))


def _path(text: str) -> Path:
    """Return the path of a text; a part LATEST stands for the newest run in its folder that made something."""
    path = Path(text).expanduser()
    if "LATEST" not in path.parts:
        return path
    place = path.parts.index("LATEST")
    try:
        newest = newest_run(Path(*path.parts[:place]))
    except UsageError as error:
        raise UsageError(f"{text}: {error}") from error
    return newest.joinpath(*path.parts[place + 1 :])


def _place(text: str) -> str | Path:
    """Return a URL as it stands, the folder of a model that ships, and a path as `_path` does."""
    from embodied_wm.pretrained import PREFIX, pretrained_folder

    if text.startswith(PREFIX):
        return pretrained_folder(text.removeprefix(PREFIX))
    return text if "://" in text else _path(text)


RUN: Mapping[str, Callable[[Config, Run], int | None]] = {
    "collect": collect,
    "import": import_dataset,
    "export": export,
    "validate": validate,
    "edit": edit,
    "train": train,
    "refine": refine,
    "imagine": imagine,
    "plan": plan,
    "benchmark_imagination": benchmark_imagination,
    "benchmark_planning": benchmark_planning,
    "benchmark_speed": benchmark_speed,
    "benchmark_latent_actions": benchmark_latent_actions,
    "demo": demo,
}
"""Config name to what a run of it does, and the exit code where that can be other than 0."""

LOOK: Mapping[str, Callable[[Config, Console], None]] = {"inspect": inspect, "report": report}
"""Verbs that only look at something, and so have no run folder."""
