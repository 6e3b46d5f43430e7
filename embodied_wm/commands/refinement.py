"""The refinement loop: plan in the simulator, collect, fine-tune, measure, again; resumable between and inside rounds.

Folder of a run: `episodes.zarr`, what all rounds collected; `round_N`, each with its `model` (round 0 is the model that
was given), its training log and the reports of `benchmark imagination` and `benchmark planning`; `model`, the last
round's; `report.html`, the curves over rounds.
"""

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from embodied_wm.commands import benchmarks
from embodied_wm.commands.errors import UsageError
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.judged import JudgedModel, check_fits
from embodied_wm.evaluation.lineup import PlanningSetup, check_oracle, judged_world_model
from embodied_wm.evaluation.pages_refinement import refinement_headline, refinement_sections
from embodied_wm.evaluation.planned_episodes import PlannedEpisodes, planned_features
from embodied_wm.evaluation.report import load_report, run_record, write_report
from embodied_wm.evaluation.statistics import agresti_caffo
from embodied_wm.model_card import add_figures
from embodied_wm.progress import Track
from embodied_wm.training.embodiment import check_compatible
from embodied_wm.training.latents import LatentEpisodes, felt_by
from embodied_wm.training.loop import resumable
from embodied_wm.training.refine import refine_model
from embodied_wm.world_model import WorldModel
from sim.tasks import get_task

MEASURES = ("imagination", "planning")


def refine(
    model: WorldModel,
    checkpoint: Path,
    config: Mapping[str, Any],
    run_dir: Path,
    console: Console,
    *,
    device: str,
    resumed: bool,
) -> None:
    """Refine a model for some rounds and write the report.

    Args:
        model: The model that was given.
        checkpoint: Its folder.
        config: The values of configs/refine.yaml.
        run_dir: Folder of the run; what is there is not done again.
        console: Where progress is shown.
        device: Where the model runs.
        resumed: Whether an earlier call did a part of it, whose time nobody noted.
    """
    began = time.monotonic()
    loop = _Loop(model, checkpoint, config, run_dir, console, device)
    loop.measure(0)
    for number in range(1, config["rounds"] + 1):
        if not (loop.folder(number) / "model" / "config.json").is_file():
            loop.train(number)
        loop.measure(number)
    last = WorldModel.load(loop.checkpoint(config["rounds"]))
    last.save(run_dir / "model")
    task = get_task(loop.setup.task)
    rounds = loop.results()
    page = write_report(
        run_dir,
        kind="refinement",
        run=run_record(
            benchmarks.resolved(run_dir),
            config["seed"],
            wall_seconds=None if resumed else time.monotonic() - began,
            **last.fingerprints(),
        ),
        tasks={task.name: {f"round_{number}": measures for number, measures in enumerate(rounds)}},
        sections=refinement_sections(rounds, [loop.collected(number) for number in range(len(rounds))]),
        headline=refinement_headline(rounds),
        title=f"Refinement: {task.name}",
    )
    console.print(f"wrote [cyan]{page.with_name('report.html')}[/]", soft_wrap=True)


class _Loop:
    """Hold what the rounds share."""

    def __init__(
        self,
        model: WorldModel,
        checkpoint: Path,
        config: Mapping[str, Any],
        run_dir: Path,
        console: Console,
        device: str,
    ) -> None:
        self.config, self.run_dir, self.console, self.device = config, run_dir, console, device
        self.setup: PlanningSetup = benchmarks.setup_of(config)
        self.base, self.base_folder = model, checkpoint
        self.task = get_task(self.setup.task)
        check_fits(self.judged(model), self.task)
        check_oracle(self.setup.planner)
        if config["rounds"] < 1:
            raise UsageError(f"rounds={config['rounds']}: expected at least 1")
        self.old_store, self.old_episodes = _training_episodes(model, config["store"])
        self.old: LatentEpisodes | None = None

    def folder(self, number: int) -> Path:
        """Return the folder of a round."""
        return self.run_dir / f"round_{number}"

    def checkpoint(self, number: int) -> Path:
        """Return the model folder after a round; after round 0 it is the one that was given."""
        return self.folder(number) / "model" if number else self.base_folder

    def judged(self, model: WorldModel) -> JudgedModel:
        """Put a model behind the adapter that plans and is judged."""
        return judged_world_model(model, self.setup)

    def train(self, number: int) -> None:
        """Collect a round's episodes, fine-tune the model of the round before on them, and save it."""
        before = WorldModel.load(self.checkpoint(number - 1), device=self.device)
        store = self.collect(number, before)
        model = WorldModel.load(self.checkpoint(number - 1))
        told = (
            name for name in model.embodiment.readouts if name in store.features and name in self.old_store.features
        )
        features = ["action", *told]  # a reward is told by the environment that recorded it, not by one that replans
        shared: dict[str, Any] = {"camera": model.embodiment.camera, "features": features, "console": self.console}
        shared["felt"] = felt_by(model)
        with resumable(f"the episodes of round {number} could not be read"):
            if self.old is None:
                self.old = LatentEpisodes(self.old_store, model.tokenizer, episodes=self.old_episodes, **shared)
            new = LatentEpisodes(store, model.tokenizer, episodes=range(store.num_episodes), **shared)
        seed = self.config["seed"] + 1000 * number
        training = self.config["training"]
        metrics = refine_model(model, self.old, new, training, self.folder(number), seed=seed, console=self.console)
        note = {
            "round": number,
            "store": store.path,
            **self.collected(number),
            "predictor_steps": training.predictor_steps,
            "readout_steps": training.readout_steps,
            "new_share": training.new_share,
            "loss": {name: round(each["loss"], 6) for name, each in metrics.items()},
        }
        optional = ("distillation_steps", "self_forcing_steps")
        note |= {name: getattr(training, name) for name in optional if getattr(training, name)}
        model.card = {key: value for key, value in model.card.items() if key != "figures"}
        model.card["refinement"] = [*model.card.get("refinement", []), note]
        model.save(self.folder(number) / "model")

    def collect(self, number: int, model: WorldModel) -> EpisodeStore:
        """Append closed-loop episodes and branches until the store holds this round's; return it, open for reading."""
        wanted = number * self.config["collect"].num_episodes
        path, judged = self.run_dir / "episodes.zarr", self.judged(model)
        maker = PlannedEpisodes(
            self.task,
            judged,
            self.setup.planner_for(judged),
            self.config["collect"],
            context=self.setup.context,
            min_rows=(self.config["training"].sequence_length - 1) * model.stride + 1,
            seed=self.config["seed"],
        )
        if path.exists():
            store = EpisodeStore.open(path, mode="a")
        else:
            source = {"kind": "refine", "task": self.task.name, "seed": self.config["seed"]}
            store = EpisodeStore.create(
                path,
                features=planned_features(self.task, judged),
                fps=self.task.fps,
                metadata={"source": source, "robot": self.task.robot},
            )
        with maker, closing(store):
            done = _num_planned(store)
            name = f"round {number}: plan {self.task.name}"
            with Track(name, wanted, unit="episodes", start=min(done, wanted), console=self.console) as track:
                for index in range(done, wanted):
                    store.append(maker.episode(index))  # an episode and its branches in one commit
                    track.advance()
        return EpisodeStore.open(path)

    def collected(self, number: int) -> dict[str, int]:
        """Return how much the store holds after a round: planned episodes, branches, rows."""
        path = self.run_dir / "episodes.zarr"
        if not number or not path.exists():
            return {"episodes": 0, "branches": 0, "rows": 0}
        count, store = number * self.config["collect"].num_episodes, EpisodeStore.open(path)
        planned = [i for i in range(store.num_episodes) if store.episode_info(i)["policy"] == "planned"]
        end = [*planned, store.num_episodes][count]  # each is followed by its branches
        return {"episodes": count, "branches": end - count, "rows": int(store.episode_ends[end - 1])}

    def measure(self, number: int) -> None:
        """Measure a round's model by the benchmarks, each into its folder, where that is not done."""
        place, model = self.checkpoint(number), None
        for measure in MEASURES:
            folder = self.folder(number) / measure
            if (folder / "report.json").is_file():
                continue
            model = model or WorldModel.load(place, device=self.device)
            self.console.print(f"round {number}: {measure}")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.run_dir / "config.yaml", folder)
            if measure == "imagination":
                benchmarks.benchmark_imagination(self.judged(model), self.config, folder, self.console)
            else:
                controllers = ["model"] if number else ["model", "oracle"]
                config = {**self.config, "planning": {**self.config["planning"], "controllers": controllers}}
                benchmarks.benchmark_planning(self.judged(model), place, config, folder, self.console)
            if number:
                add_figures(place, load_report(folder))
        found = json.loads((self.folder(number) / MEASURES[0] / "report.json").read_text(encoding="utf-8"))
        if number == 0 and found["run"]["checkpoint"] != self.base.fingerprint():
            raise UsageError(
                f"resume=true: the run in {self.run_dir} refines the model {found['run']['checkpoint']}; "
                f"{self.base_folder} now holds {self.base.fingerprint()}. Give the same model, or start a new run"
            )

    def results(self) -> list[dict[str, Any]]:
        """Return the measures of every round, with `cpg` against the oracle of round 0."""
        rounds = []
        for number in range(self.config["rounds"] + 1):
            measures: dict[str, Any] = {}
            for measure in MEASURES:
                measures |= load_report(self.folder(number) / measure)["tasks"][self.task.name]
            rounds.append(measures)
        oracle = rounds[0]["success.oracle"]
        for measures in rounds:
            counts = [round(rate["value"] * rate["n"]) for rate in (oracle, measures["success"])]
            measures["cpg"] = agresti_caffo(counts[0], oracle["n"], counts[1], measures["success"]["n"])
        return rounds


def _training_episodes(model: WorldModel, store_path: str | None) -> tuple[EpisodeStore, range]:
    """Return the store that a model was trained on, and its training episodes (the first ones, see `split_episodes`).

    Raises:
        UsageError: The card names none, or the store is another one.
    """
    card = model.card
    place = store_path or card.get("store")
    if not place or "episodes" not in card:
        raise UsageError("the model's card does not say on which episodes it was trained; train one with this release")
    store = EpisodeStore.open(place)
    if store.fingerprint() != card.get("fingerprint"):
        raise UsageError(
            f"{store.path} has the fingerprint {store.fingerprint()}; the model was trained on "
            f"{card.get('fingerprint')}. Give store=..., the same episodes"
        )
    check_compatible(store, model)
    return store, range(card["episodes"])


def _num_planned(store: EpisodeStore) -> int:
    infos = (store.episode_info(index) for index in range(store.num_episodes))
    return sum(info["policy"] == "planned" for info in infos)
