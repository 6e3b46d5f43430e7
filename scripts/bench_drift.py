"""How far does imagination drift from what happened, by horizon, and what do the stages after the predictor's change?

    python scripts/bench_drift.py CHECKPOINT STORE
    python scripts/bench_drift.py CHECKPOINT STORE --variant self_forcing:num_steps=400,rollouts.horizon=8 --seeds 0 1 2
    python scripts/bench_drift.py CHECKPOINT STORE --variant distillation:num_steps=300 \
        --variant predictor:num_steps=600,length=11

Held-out episodes, three real frames, then recorded actions alone. Errors of latents, and of the places (cm) that the
model's readout finds in them: over all windows, and over those in which the thing moves at all. Beside them copying
the last real place, and the readout on true frames, below which nothing can come. One denoising step against the
most, in dB of decoded frames. Each variant is trained from the checkpoint on the episodes that it was trained on;
"predictor" goes on with the ordinary loss, for comparison at equal cost. Intervals: bootstrap over episodes; where a
variant was trained with several seeds, they are pooled. A gain counts only against "predictor" with as many steps and
windows as long: what is trained longer, on longer windows and at a lower rate, drifts less in any case.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.statistics import bootstrap_mean
from embodied_wm.predictor.cache import Context
from embodied_wm.predictor.self_forcing import Rollouts
from embodied_wm.tokenizer.frames import psnr
from embodied_wm.training.forcing import DistillationConfig, SelfForcingConfig, distilling_loss, self_forcing_loss
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import StageConfig, fit
from embodied_wm.training.losses import predictor_loss
from embodied_wm.world_model import WorldModel

CONTEXT, HORIZONS = 3, (1, 4, 8, 16)
STRIDE = 10
"""Rows between the windows of an episode."""
MOVED_CM = 0.5
"""A thing moves in a window if it gets this far from where it was last seen."""
CODE_FRACTION = 0.15
QUANTITIES = "sim.quantities"
Figures = dict[str, np.ndarray]
"""Measure to [windows, horizons]; NaN where it does not apply."""


@dataclass(frozen=True, kw_only=True)
class LongerConfig(StageConfig):
    """Configure more of the predictor stage, on windows of `length` frames."""

    num_steps: int = 400
    batch_size: int = 32
    learning_rate: float = 5e-4
    ema_decay: float = 0.99
    length: int = 11


STAGES = {"self_forcing": SelfForcingConfig, "distillation": DistillationConfig, "predictor": LongerConfig}


class Drift:
    """Hold the held-out windows, and measure models on them."""

    def __init__(
        self,
        model: WorldModel,
        store: EpisodeStore,
        *,
        context: int = CONTEXT,
        held_out: Sequence[int] | None = None,
    ) -> None:
        if held_out is None:
            if store.fingerprint() != model.card["fingerprint"]:
                raise ValueError(
                    f"got a store of {store.num_episodes} episodes that the model was not trained on (it was on "
                    f"{model.card['store']}), so which of them it has not seen is unknown; give that store"
                )
            held_out = range(model.card["episodes"], model.card["episodes"] + model.card["held_out_episodes"])
        self.store, self.horizon = store, max(HORIZONS)
        self.context = context = model.context_frames(context)
        self.data = encoded(model, store, held_out)
        starts, episodes = [], []
        for place in range(self.data.num_episodes):
            rows = self.data.rows_of(place)
            found = list(range(rows.start, rows.stop - context - self.horizon + 1, STRIDE))
            starts += found
            episodes += [place] * len(found)
        self.starts, self.episodes = torch.tensor(starts), np.array(episodes)
        rows = self.starts[:, None] + torch.arange(context + self.horizon)
        self.latents, self.actions = self.data.latents[rows], self.data.features["action"][rows]
        self.things = things_of(model)
        quantities = self.data.features[QUANTITIES][rows] if self.things else torch.zeros(len(rows), rows.shape[1], 0)
        self.places = {name: 100 * quantities[..., columns].numpy() for name, columns in self.things.items()}
        self.moves = {name: moves(places[:, context - 1 :]) for name, places in self.places.items()}
        first = [int(store.episode_ends[e] - store.episode_lengths[e]) for e in held_out]
        offsets = np.array([first[e] - self.data.rows_of(e).start for e in self.episodes])
        frame_rows = self.starts.numpy() + offsets
        self.frames = store.read_windows(model.embodiment.camera, frame_rows, context + self.horizon)

    @torch.no_grad()
    def imagine(self, model: WorldModel, num_steps: int, seed: int) -> Tensor:
        """Return the imagined latents [windows, H, K, D]."""
        last = self.context - 1
        contexts = [
            model.prefill_latents(latents, actions[:last])
            for latents, actions in zip(self.latents[:, : self.context], self.actions, strict=True)
        ]
        generator = torch.Generator().manual_seed(seed)
        led_by = self.actions[:, last : last + self.horizon]
        return model.imagine(Context.join(contexts, num_candidates=1), led_by, num_steps=num_steps, generator=generator)

    def measure(self, model: WorldModel, seed: int) -> Figures:
        """Return all figures of a model."""
        at = [h - 1 for h in HORIZONS]
        truth = self.latents[:, self.context :][:, at]
        most = model.predictor.step_counts[-1]
        figures: Figures = {}
        quality = {}
        for num_steps in sorted({1, most}):
            suffix = "" if num_steps == 1 else f", {num_steps} steps"
            imagined = self.imagine(model, num_steps, seed)[:, at]
            figures[f"latents{suffix}"] = (imagined - truth).square().mean((2, 3)).numpy()
            figures |= {f"{name}{suffix}": error for name, error in self.misplaced(model, imagined).items()}
            quality[num_steps] = self.quality(model, imagined)
        if most > 1:
            figures[f"dB of 1 step over {most}"] = quality[1] - quality[most]
            ratio = figures[f"latents, {most} steps"] / figures["latents"]
            figures[f"dB of latents, 1 step over {most}"] = 10 * np.log10(ratio)
        return figures

    @torch.no_grad()
    def misplaced(self, model: WorldModel, latents: Tensor) -> Figures:
        """Return how far (cm) from the truth things are found in latents [windows, horizons, K, D]."""
        if not self.things:
            return {}
        read = 100 * model.readout(QUANTITIES)(latents).numpy()
        found: Figures = {}
        for name, columns in self.things.items():
            true = self.places[name][:, self.context :][:, [h - 1 for h in HORIZONS]]
            error = np.linalg.norm(read[..., columns] - true, axis=-1)
            found |= {f"{name} (cm)": error, f"{name} that moves (cm)": self.only(name, error)}
        return found

    def baselines(self, model: WorldModel) -> Figures:
        """Return the error of copying, and that of the readout on true frames."""
        at = [h - 1 for h in HORIZONS]
        last = self.latents[:, self.context - 1 : self.context]
        truth = self.latents[:, self.context :][:, at]
        figures = {"latents, copied": (last - truth).square().mean((2, 3)).numpy()}
        for name, places in self.places.items():
            error = np.linalg.norm(
                places[:, self.context - 1 : self.context] - places[:, self.context :][:, at], axis=-1
            )
            figures[f"{name} that moves, copied (cm)"] = self.only(name, error)
        return figures | {f"{name}, true frames": error for name, error in self.misplaced(model, truth).items()}

    def only(self, name: str, error: np.ndarray) -> np.ndarray:
        """Return errors of the windows in which a thing moves, NaN elsewhere."""
        return np.where(self.moves[name][:, None], error, np.nan)

    @torch.no_grad()
    def quality(self, model: WorldModel, latents: Tensor) -> np.ndarray:
        """Return the PSNR (dB) of decoded frames, [windows, horizons]."""
        rows = []
        for frames, imagined in zip(torch.from_numpy(self.frames), latents, strict=True):
            true = frames[[self.context + h - 1 for h in HORIZONS]]
            rows.append(psnr(model.decode(imagined, frames[self.context - 1]), true).numpy())
        return np.stack(rows)


def encoded(model: WorldModel, store: EpisodeStore, episodes: Sequence[int]) -> LatentEpisodes:
    """Return the latents of episodes with their actions and, where there are any, physical quantities."""
    features = ["action", *(name for name in model.embodiment.readouts if name == QUANTITIES)]
    return LatentEpisodes(store, model.tokenizer, camera=model.embodiment.camera, episodes=episodes, features=features)


def things_of(model: WorldModel) -> dict[str, list[int]]:
    """Return the things with an x and a y in metres, and where these stand among the quantities."""
    names, units = model.embodiment.readouts.get(QUANTITIES, ((), ()))
    pairs = [name[:-2] for name, unit in zip(names, units, strict=True) if name.endswith("_x") and unit == "m"]
    return {name: [names.index(f"{name}_x"), names.index(f"{name}_y")] for name in pairs if f"{name}_y" in names}


def moves(places_cm: np.ndarray) -> np.ndarray:
    """Tell [windows] whether a thing at places [windows, 1 + H, 2] leaves where it was last seen."""
    return (np.linalg.norm(places_cm - places_cm[:, :1], axis=-1) > MOVED_CM).any(1)


def parse(variant: str) -> tuple[str, Any]:
    """Return the stage and the configuration that STAGE:key=value,key=value names."""
    stage, _, settings = variant.partition(":")
    if stage not in STAGES:
        raise SystemExit(f"unknown stage {stage!r} in --variant {variant}; choose from: {', '.join(STAGES)}")
    settings = OmegaConf.to_container(OmegaConf.from_dotlist([each for each in settings.split(",") if each]))
    assert isinstance(settings, dict)
    chosen = {"num_threads": 1, **{str(key): value for key, value in settings.items()}}
    if "rollouts" in chosen:
        chosen["rollouts"] = Rollouts(**chosen["rollouts"])
    return stage, STAGES[stage](**chosen)


def train(base: WorldModel, data: LatentEpisodes, stage: str, config: Any, seed: int) -> WorldModel:
    """Return a copy of a model after one more stage."""
    model = deepcopy(base)
    length = 10 if stage == "distillation" else config.length
    memory = model.config.predictor.memory
    sampler = data.sampler(length=length, batch_size=config.batch_size, seed=seed, memory=memory)
    everything = torch.ones(config.batch_size, dtype=torch.bool)

    loss = predictor_loss(model, CODE_FRACTION)
    if stage == "self_forcing":
        loss = self_forcing_loss(model, config, CODE_FRACTION)
    elif stage == "distillation":
        loss = distilling_loss(model, config, CODE_FRACTION)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            stage,
            nn.ModuleDict({"predictor": model.predictor}),
            lambda number: sampler.batch(number) | {"labelled": everything},
            loss,
            config,
            run_dir=Path(folder),
            seed=seed,
            console=Console(quiet=True),
        )
    return model.eval()


def shown(values: np.ndarray, episodes: np.ndarray) -> str:
    """Return a mean over what applies, with its interval."""
    applies = np.isfinite(values)
    if not applies.any():
        return "-"
    figure = bootstrap_mean(values[applies], seed=0, groups=episodes[applies])
    low, high = figure["ci95"] or (float("nan"),) * 2
    return f"{figure['value']:.3g} [{low:.2g}, {high:.2g}]"


def show(title: str, figures: Figures, episodes: np.ndarray, console: Console) -> None:
    """Print a table of figures by horizon."""
    table = Table("", *(f"h = {h}" for h in HORIZONS), title=title, title_justify="left")
    for name, values in figures.items():
        table.add_row(name, *(shown(values[:, column], episodes) for column in range(len(HORIZONS))))
    console.print(table)


def main() -> None:
    """Measure the checkpoint, then every variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("checkpoint", type=Path, help="folder of a model, or of the run that trained it")
    parser.add_argument("store", type=Path, help="the episodes that it was trained on")
    parser.add_argument("--variant", action="append", default=[], help="STAGE:key=value,... to train from there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--save", type=Path, help="keep each variant's model in this folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, store, console = WorldModel.from_pretrained(options.checkpoint), EpisodeStore.open(options.store), Console()
    drift = Drift(model, store)
    before = drift.measure(model, seed=0)
    count = len(drift.episodes)
    console.print(
        f"{count} windows of {drift.data.num_episodes} held-out episodes",
        {k: int(v.sum()) for k, v in drift.moves.items()},
    )
    show("no model", drift.baselines(model), drift.episodes, console)
    show("as it is", before, drift.episodes, console)
    data = encoded(model, store, range(model.card["episodes"])) if options.variant else None
    for number, variant in enumerate(options.variant):
        assert data is not None
        stage, config = parse(variant)
        runs, seconds = [], []
        for seed in options.seeds:
            began = time.process_time()
            trained = train(model, data, stage, config, seed)
            seconds.append(time.process_time() - began)
            runs.append(drift.measure(trained, seed=0))
            if options.save:
                trained.save(options.save / f"{number}_{stage}_seed{seed}")
        after = {name: np.concatenate([run[name] for run in runs]) for name in before}
        episodes = np.tile(drift.episodes, len(runs))
        note = f"{variant}: {np.mean(seconds):.0f} s of CPU time each, {len(runs)} seeds"
        show(note, after, episodes, console)
        change = {name: after[name] - np.tile(before[name], (len(runs), 1)) for name in before}
        show("change", change, episodes, console)
        each = {
            name: [f"{np.nanmean(run[name][:, -2]):.3g}/{np.nanmean(run[name][:, -1]):.3g}" for run in runs]
            for name in before
            if "that moves (cm)" in name or name == "latents"
        }
        console.print(f"h = {HORIZONS[-2]} / {HORIZONS[-1]}, seed by seed:", each, soft_wrap=True)


if __name__ == "__main__":
    main()
