"""How large may a code be, and what makes it say more of the true action?

    python scripts/study_latent_codes.py sizes   --model RUN --store push.zarr --out DIR
    python scripts/study_latent_codes.py recipes --model RUN --store push.zarr --out DIR
    python scripts/study_latent_codes.py ceiling --model RUN --store push.zarr --out DIR

Codes are trained anew on the latents of a trained model's tokenizer. `sizes`: a code that leaks the next frame explains
the change ever better while the true action is read from it no better, and fails with another transition's code.
`recipes`: what might raise R2, three seeds each. `ceiling`: the R2 of a network that is told the actions, from the same
latents, and of a linear probe that is told how the true state changed: a command against a wall changes nothing, so no
code can say it. All go on where they were stopped.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study_latent_actions import kept, print_table, read_actions, remembered, shown
from torch import Tensor, nn

from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.latent_actions import entropy_bits
from embodied_wm.evaluation.statistics import bootstrap_mean, estimate
from embodied_wm.tokenizer.actions import LatentActionConfig, LatentActionTokenizer, mlp
from embodied_wm.tokenizer.frames import psnr
from embodied_wm.training.latents import LatentEpisodes, LatentSampler
from embodied_wm.training.loop import Batch, Loss, Metrics, StageConfig, fit
from embodied_wm.world_model import WorldModel

ADAPTER_STEPS = 800


class AffineForward(LatentActionTokenizer):
    """Predict a change that is linear in the code: past latents say what each channel does, and what happens anyway."""

    def __init__(self, config: LatentActionConfig, *, num_tokens: int, token_width: int) -> None:
        super().__init__(config, num_tokens=num_tokens, token_width=token_width)
        size = num_tokens * token_width
        outputs = size * (config.code_size + 1)
        self.forward_model = mlp((config.history * size, config.width, config.width, outputs))

    def predict(self, latents: Tensor, codes: Tensor) -> Tensor:
        """Predict the latents that follow each frame."""
        parts = self.forward_model(self._past(latents)).unflatten(-1, (self.config.code_size + 1, -1))
        change = parts[..., 0, :] + (parts[..., 1:, :] * codes[..., None]).sum(-2)
        return latents + change.unflatten(-1, self.latent_shape)


def plain(module: LatentActionTokenizer, latents: Tensor, _: torch.Generator) -> Tensor:
    """Return the loss as it is."""
    return module.loss(latents)[0]


def noised(module: LatentActionTokenizer, latents: Tensor, generator: torch.Generator) -> Tensor:
    """Infer and predict from noised latents, so that a code cannot name details of the next frame."""
    seen = latents + 0.1 * torch.randn(latents.shape, generator=generator)
    return (module.predict(seen[:, :-1], module.encode(seen)) - latents[:, 1:]).square().mean()


def two_steps(module: LatentActionTokenizer, latents: Tensor, _: torch.Generator) -> Tensor:
    """Predict the last frame from a prediction of the one before it, too."""
    codes = module.encode(latents)
    first = module.predict(latents[:, :-1], codes)
    path = torch.cat([latents[:, :-2], first[:, -2:-1]], dim=1)
    last = module.predict(path, codes)[:, -1]
    return (first - latents[:, 1:]).square().mean() + (last - latents[:, -1]).square().mean()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Say how codes are trained: which network, by which loss, how long."""

    config: LatentActionConfig = field(default_factory=LatentActionConfig)
    network: type[LatentActionTokenizer] = LatentActionTokenizer
    loss: Callable[[LatentActionTokenizer, Tensor, torch.Generator], Tensor] = plain
    longer: int = 1
    more_frames: int = 0


RECIPES = {
    "default": Recipe(),
    "3 times the steps": Recipe(longer=3),
    "history 1": Recipe(config=LatentActionConfig(history=1)),
    "history 3": Recipe(config=LatentActionConfig(history=3)),
    "width 512": Recipe(config=LatentActionConfig(width=512)),
    "affine in the code": Recipe(network=AffineForward),
    "noised latents": Recipe(loss=noised),
    "two steps": Recipe(loss=two_steps, more_frames=1),
}
LEVELS = ((3,), (9,), (9, 9), (9, 9, 9), (9,) * 4, (9,) * 5)
"""Of codes of 1.6 to 15.8 bits; 18 bits are the most that a codebook can number."""


def train_codes(
    model: WorldModel, data: LatentEpisodes, recipe: Recipe, folder: Path, *, steps: int, seed: int
) -> WorldModel:
    """Return a model around the same tokenizer, with codes and an adapter trained anew."""
    torch.manual_seed(seed)
    made = WorldModel(replace(model.config, latent_actions=recipe.config), model.embodiment)
    made.tokenizer.load_state_dict(model.tokenizer.state_dict())
    made.encode = model.encode
    made.actions.load_state_dict(model.actions.state_dict())
    tokens, width = model.config.tokenizer.num_tokens, model.config.tokenizer.token_width
    codes = made.latent_actions = recipe.network(recipe.config, num_tokens=tokens, token_width=width)
    length = recipe.config.history + 1
    windows = data.sampler(length=length + recipe.more_frames, batch_size=128, seed=seed)
    pairs = data.sampler(length=length, batch_size=256, seed=seed)

    def adapter_loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            targets = codes.encode(batch["latents"])[:, -1]
        latents = batch["latents"][:, -2]
        latents = latents + 0.05 * torch.randn(latents.shape, generator=generator)
        return made.adapter.loss(latents, made.actions.normalize(batch["action"][:, -2]), targets)

    stages: dict[str, tuple[nn.Module, LatentSampler, Loss, int]] = {
        "latent_actions": (
            codes,
            windows,
            lambda batch, generator: (recipe.loss(codes, batch["latents"], generator), {}),
            steps * recipe.longer,
        ),
        "adapter": (made.adapter, pairs, adapter_loss, ADAPTER_STEPS),
    }
    for name, (module, sampler, loss, number) in stages.items():
        stage = StageConfig(num_steps=number, num_threads=1)
        fit(name, nn.ModuleDict({name: module}), sampler.batch, loss, stage, run_dir=folder, seed=seed)
    return made.eval()


@torch.no_grad()
def explained(model: WorldModel, store: EpisodeStore, held_out: list[int], *, seed: int) -> dict[str, Any]:
    """Measure the forward model on held-out transitions: change explained, and decoded, by right and other codes."""
    generator, codes_of = torch.Generator().manual_seed(seed), model.latent_actions.encode
    kinds = ("right", "shuffled", "random")
    share: dict[str, list[float]] = {kind: [] for kind in kinds}
    quality: dict[str, list[float]] = {kind: [] for kind in (*kinds, "copy")}
    for episode in held_out:
        frames = torch.from_numpy(store.episode(episode).features[model.embodiment.camera])
        latents = model.encode(frames)
        right = codes_of(latents[None])[0]
        values = model.latent_actions.values()
        drawn = [each[torch.randint(len(each), (len(right),), generator=generator)] for each in values]
        shuffled = right[torch.randperm(len(right), generator=generator)]
        still = (latents[1:] - latents[:-1]).square().mean()
        places = torch.randint(len(right), (4,), generator=generator)
        for kind, codes in zip(kinds, (right, shuffled, torch.stack(drawn, dim=-1)), strict=True):
            after = model.latent_actions.predict(latents[None, :-1], codes[None])[0]
            share[kind].append(float(1 - (after - latents[1:]).square().mean() / still))
            decoded = [model.decode(after[place], seen=frames[place]) for place in places]
            quality[kind].append(float(psnr(torch.stack(decoded), frames[places + 1]).mean()))
        quality["copy"].append(float(psnr(frames[places], frames[places + 1]).mean()))
    gain = {kind: np.subtract(quality["right"], quality[kind]) for kind in ("copy", "shuffled", "random")}
    return {
        **{f"explained_{kind}": bootstrap_mean(share[kind], seed=seed) for kind in kinds},
        **{f"psnr_over_{kind}": bootstrap_mean(values, seed=seed) for kind, values in gain.items()},
    }


def measured(
    model: WorldModel, store: EpisodeStore, data: LatentEpisodes, recipe: Recipe, folder: Path, *, steps: int, seed: int
) -> dict[str, Any]:
    """Train codes by a recipe and measure them."""
    made = train_codes(model, data, recipe, folder, steps=steps, seed=seed)
    held_out = split_episodes(store.num_episodes)[1].tolist()
    codes = [
        made.latent_actions.encode(
            made.encode(torch.from_numpy(store.episode(e).features[made.embodiment.camera]))[None]
        )
        for e in held_out
    ]
    found = read_actions(made, store, seed=seed) | explained(made, store, held_out, seed=seed)
    return found | {
        "bits": float(np.log2(recipe.config.levels).sum()),
        "bits_used": entropy_bits(torch.cat([each.detach()[0] for each in codes])),
    }


def opened(options: argparse.Namespace) -> tuple[WorldModel, EpisodeStore, LatentEpisodes]:
    """Return the model, its store, and the latents of the store's training episodes."""
    model, store = WorldModel.from_pretrained(options.model), EpisodeStore.open(options.store)
    model.encode = remembered(model.encode)  # pyright: ignore[reportAttributeAccessIssue]
    train = split_episodes(store.num_episodes)[0].tolist()[: options.episodes]
    camera = model.embodiment.camera
    return model, store, LatentEpisodes(store, model.tokenizer, camera=camera, episodes=train, features=["action"])


def r2_by_episode(predicted: list[Tensor], true: list[Tensor], mean: Tensor, *, seed: int) -> dict[str, Any]:
    """Return R2, averaged over action channels, with an interval over episodes."""
    residual = torch.stack([(a - b).square().sum(0) for a, b in zip(predicted, true, strict=True)]).double().numpy()
    total = torch.stack([(each - mean).square().sum(0) for each in true]).double().numpy()

    def r2(chosen: np.ndarray) -> float:
        return float((1 - residual[chosen].sum(0) / np.maximum(total[chosen].sum(0), 1e-9)).mean())

    draws = np.random.default_rng(seed).integers(len(true), size=(1000, len(true)))
    return estimate(
        r2(np.arange(len(true))), np.quantile([r2(draw) for draw in draws], [0.025, 0.975]).tolist(), len(true)
    )


def told_r2(
    model: WorldModel, store: EpisodeStore, data: LatentEpisodes, folder: Path, *, steps: int
) -> dict[str, Any]:
    """Train the inverse model's network on the action labels, and return its R2 on held-out episodes."""
    torch.manual_seed(0)
    width, history = model.config.latent_actions.width, model.config.latent_actions.history
    tokenizer, actions = model.config.tokenizer, model.embodiment.action_size
    size = tokenizer.num_tokens * tokenizer.token_width
    network = mlp(((history + 1) * size, width, width, actions))
    windows = data.sampler(length=history + 1, batch_size=128, seed=0)

    def loss(batch: Batch, _: torch.Generator) -> tuple[Tensor, Metrics]:
        target = model.actions.normalize(batch["action"][:, -2])
        return (network(batch["latents"].flatten(1)) - target).square().mean(), {}

    stage = StageConfig(num_steps=steps, num_threads=1)
    fit("told", nn.ModuleDict({"told": network}), windows.batch, loss, stage, run_dir=folder, seed=0)
    predicted, true = [], []
    for episode in split_episodes(store.num_episodes)[1].tolist():
        rows = store.episode(episode).features
        latents = model.encode(torch.from_numpy(rows[model.embodiment.camera])).flatten(1)
        seen = torch.cat([latents[index : len(latents) - history + index] for index in range(history + 1)], dim=1)
        with torch.no_grad():
            predicted.append(model.actions.denormalize(network(seen)))
        true.append(torch.from_numpy(np.asarray(rows["action"], dtype=np.float32))[history - 1 : -1])
    return r2_by_episode(predicted, true, model.actions.mean, seed=0)


def state_r2(store: EpisodeStore) -> dict[str, Any]:
    """Return the R2 of true actions from how the true state changed and the state, by linear regression."""
    rows = [store.episode(episode).features for episode in range(store.num_episodes)]
    states = [torch.from_numpy(each["sim.quantities"]).double() for each in rows]
    true = [torch.from_numpy(np.asarray(each["action"])).double()[:-1] for each in rows]

    def inputs(state: Tensor) -> Tensor:
        now, change = state[:-1], state.diff(dim=0)
        products = (now[:, None] * change[:, :, None]).flatten(1)
        return torch.cat([now, change, products, torch.ones_like(now[:, :1])], dim=1)

    train, held_out = (part.tolist() for part in split_episodes(store.num_episodes))
    told = torch.linalg.lstsq(torch.cat([inputs(states[e]) for e in train]), torch.cat([true[e] for e in train]))
    mean = torch.cat([true[e] for e in train]).mean(0)
    return r2_by_episode(
        [inputs(states[e]) @ told.solution for e in held_out], [true[e] for e in held_out], mean, seed=0
    )


def ceiling(options: argparse.Namespace) -> None:
    """Print what can be read of the true actions at all."""
    model, store, data = opened(options)
    rows = []
    if "sim.quantities" in store.features:
        found = kept(options.out / "state.json", partial(state_r2, store))
        rows.append(["change of the true state, linear probe", shown(found)])
    make = partial(told_r2, model, store, data, options.out, steps=options.steps)
    rows.append(["latents, network that is told the actions", shown(kept(options.out / "told.json", make))])
    print_table(f"R2 of true actions that codes cannot pass, {model.embodiment.robot}", ["from", "R2"], rows)


SHOWN = {
    "r2": "R2, linear probe",
    "adapter": "R2, adapter",
    "explained_right": "change explained",
    "explained_shuffled": "by another code",
    "psnr_over_copy": "dB over copying",
    "psnr_over_shuffled": "dB over another code",
    "psnr_over_random": "dB over a random code",
}
"""Measure to its column."""


def sizes(options: argparse.Namespace) -> None:
    """Print what codes of increasing size carry."""
    model, store, data = opened(options)
    rows = []
    for levels in LEVELS:
        name = f"{len(levels)} x {levels[0]}"
        if options.only and name not in options.only:
            continue
        folder = options.out / f"levels_{len(levels)}x{levels[0]}"
        recipe = Recipe(config=LatentActionConfig(levels=levels))
        make = partial(measured, model, store, data, recipe, folder, steps=options.steps, seed=options.seed)
        found = kept(folder / f"seed{options.seed}.json", make)
        bits = f"{found['bits']:.1f} / {found['bits_used']:.1f}"
        rows.append([name, bits, *(shown(found[key]) for key in SHOWN)])
    print_table(f"codes of increasing size, {model.embodiment.robot}", ["levels", "bits / used", *SHOWN.values()], rows)


def recipes(options: argparse.Namespace) -> None:
    """Print what each recipe reaches, with three seeds."""
    model, store, data = opened(options)
    rows = []
    for name, recipe in RECIPES.items():
        if options.only and name not in options.only:
            continue
        folder = options.out / name.replace(" ", "_")
        found = []
        for seed in range(options.seeds):
            own = folder / f"seed{seed}"
            make = partial(measured, model, store, data, recipe, own, steps=options.steps, seed=seed)
            found.append(kept(folder / f"seed{seed}.json", make))
        rows.append([name, *(" ".join(f"{each[key]['value']:.2f}" for each in found) for key in SHOWN)])
    print_table(f"recipes, each seed, {model.embodiment.robot}", ["recipe", *SHOWN.values()], rows)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parts = parser.add_subparsers(required=True)
    for name, run in {"sizes": sizes, "recipes": recipes, "ceiling": ceiling}.items():
        part = parts.add_parser(name, help=run.__doc__)
        part.set_defaults(run=run)
        part.add_argument("--out", type=Path, required=True, help="folder of what this part makes")
        part.add_argument("--model", required=True, help="folder of a run or model, pretrained:TASK, or OWNER/NAME")
        part.add_argument("--store", required=True, help="the store it was trained on")
        part.add_argument("--steps", type=int, default=1500, help="steps of the codes")
        part.add_argument("--episodes", type=int, default=None, help="most training episodes; all by default")
        part.add_argument("--seed", type=int, default=0)
        part.add_argument("--only", nargs="*", default=[], help="some of the rows, by name, such as '6 x 9'")
        if name == "recipes":
            part.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    sys.exit(main())
