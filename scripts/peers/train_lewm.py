# pyright: reportMissingImports=false
# (the peer's package and transformers are no dependencies of this project)
"""Train stable-worldmodel's LeWM or PLDM on the episodes of a store, for a given time, to be judged beside our model.

    pip install stable-worldmodel==0.1.1 transformers
    python scripts/peers/train_lewm.py push.zarr lewm.pt --minutes 30
    python scripts/peers/train_lewm.py push.zarr pldm.pt --minutes 30 --peer pldm

Model class, SIGReg and the recipe are the peer's own (github.com/lucas-maes/le-wm: config/train/lewm.yaml, train.py):
the loss is the squared error of the next embedding, without a stopped gradient, plus 0.09 SIGReg (17 knots, 1024
projections); AdamW at 5e-5 with weight decay 1e-3, linear warm-up and cosine, gradient norm 1, batch 128, three frames
of history and one predicted, dropout 0.1 in the predictor, frames in ImageNet's units, actions in units of their std,
the last tenth of the data held out. Theirs are 100 epochs of 224x224 in bf16 on a GPU, with five actions a step. On a
CPU widths (`--size small`), rate, batch and frameskip are open; what was tried is written in head_to_head.py.

PLDM (arXiv 2502.14819) is in the peer's hands the same encoder and predictor with another loss: instead of SIGReg the
variance and covariance of embeddings, over sequences and along each, and how far embeddings move in a step, by the
peer's weights (scripts/train/config/pldm.yaml; its inverse dynamics have weight 0 there). As the networks are the same
it is judged as a LeWM is, whose rollout is the faster one of the two. The peer's goal-conditioned
behaviour cloning needs weights of DINOv2 that are downloaded, which a machine without a network has not; ours, on our
latents, is measured beside.

Time is CPU time of this process on one thread: other work on the machine takes nothing from the peer. Afterwards, not
counted, our own readouts are fitted on embeddings of the training episodes' real frames, with the steps and the rate of
`embodied-wm demo demo=push`, and errors on the held-out episodes are printed.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_worldmodel.wm.loss import PLDMLoss, SIGReg
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from judge_lewm import HISTORY, REFERENCE, SMALL, build, judged_lewm, normalised, probe

from embodied_wm.data.loader import WindowLoader
from embodied_wm.data.normalize import compute_statistics
from embodied_wm.data.store import EpisodeStore
from embodied_wm.data.windows import split_episodes
from embodied_wm.evaluation.judged import CONTACT, QUANTITIES
from embodied_wm.evaluation.lineup import PlanningSetup
from embodied_wm.heads import Readout
from planners.cem import CEM
from planners.objectives import StepWeights
from sim.tasks import get_task
from sim.tasks.base import Task

SIZES = {"reference": REFERENCE, "small": SMALL}
PLDM_WEIGHTS = {"std_loss": 18.0, "std_t_loss": 0.7, "cov_loss": 12.0, "temp_align_loss": 0.2}
WARMUP = 0.01
PROBE_STEPS, PROBE_BATCH, PROBE_RATE = 1500, 256, 4e-3
AHEAD, NUM_HELD_OUT = 10, 64
PRINT_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Say how a LeWM or PLDM is trained; the defaults are the peer's.

    Attributes:
        peer: "lewm" or "pldm".
        size: Key of SIZES.
        frameskip: Actions of one step.
        batch_size: Windows of an optimiser step.
        learning_rate: Peak of AdamW's rate.
        weight_decay: AdamW's, of all parameters.
        sigreg: Weight of SIGReg, of LeWM alone.
        clip_norm: Largest gradient norm.
        seed: Of weights, batches and projections.
    """

    peer: str = "lewm"
    size: str = "reference"
    frameskip: int = 5
    batch_size: int = 128
    learning_rate: float = 5e-5
    weight_decay: float = 1e-3
    sigreg: float = 0.09
    clip_norm: float = 1.0
    seed: int = 0


Regulariser = Callable[[Tensor], Tensor]


def regulariser_of(recipe: Recipe) -> Regulariser:
    """Return what keeps embeddings [B, T, W] from collapsing, weighed as the peer weighs it."""
    if recipe.peer == "pldm":
        terms = PLDMLoss()

        def weighed(embeddings: Tensor) -> Tensor:
            found = terms(embeddings)
            return torch.stack([weight * found[name] for name, weight in PLDM_WEIGHTS.items()]).sum()

        return weighed
    sigreg = SIGReg(knots=17, num_proj=1024)
    return lambda embeddings: recipe.sigreg * sigreg(embeddings.transpose(0, 1))


def losses(model: Any, regulariser: Regulariser, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the error of the next embedding and the regulariser, as the peer's training takes them.

    Args:
        model: The LeWM or PLDM.
        regulariser: From `regulariser_of`.
        frames: uint8 [B, HISTORY + 1, h, w, 3].
        actions: Normalised, all of a step together, [B, HISTORY, frameskip x A].
    """
    seen = model.encode({"pixels": normalised(frames), "action": actions})
    embeddings = seen["emb"]
    expected = model.predict(embeddings[:, :HISTORY], seen["act_emb"])
    return (expected - embeddings[:, 1:]).square().mean(), regulariser(embeddings)


def rate_at(progress: float) -> float:
    """Return the part of the peak rate after a part of the time: linear warm-up, then cosine to zero."""
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARMUP) / (1 - WARMUP))))


def train(
    loader: WindowLoader, camera: str, recipe: Recipe, mean: Tensor, std: Tensor, seconds: float
) -> tuple[nn.Module, int]:
    """Train for some seconds of CPU time; return the model and how many steps it saw."""
    torch.manual_seed(recipe.seed)
    model = build(recipe.frameskip * len(mean), SIZES[recipe.size]).train()
    regulariser = regulariser_of(recipe)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    began, step, shown = time.process_time(), 0, -PRINT_EVERY_S
    while (spent := time.process_time() - began) < seconds:
        batch = loader.batch(step)
        frames = torch.from_numpy(batch[camera][:, :: recipe.frameskip])
        actions = (torch.from_numpy(batch["action"][:, :-1]) - mean) / std
        error, regular = losses(model, regulariser, frames, actions.unflatten(1, (HISTORY, -1)).flatten(2))
        loss = error + regular
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss is {float(loss)} at step {step}: take a smaller --learning-rate")
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * rate_at(max(spent / seconds, 1e-4))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimiser.step()
        step += 1
        if spent - shown >= PRINT_EVERY_S:
            shown = spent
            print(f"{spent:5.0f} s, step {step}: prediction {error:.4f}, regulariser {regular:.3f}", flush=True)
    return model.eval(), step


@torch.no_grad()
def embed(model: Any, frames: np.ndarray) -> Tensor:
    """Return the embeddings [N, W] of frames [N, h, w, 3]."""
    parts = torch.from_numpy(frames).split(128)
    return torch.cat([model.encode({"pixels": normalised(part)[:, None]})["emb"][:, 0] for part in parts])


def fit_probe(readout: Readout, embeddings: Tensor, targets: Tensor, seed: int) -> dict[str, Tensor]:
    """Fit our readout on embeddings [N, W] as on our own latents; return its weights."""
    readout.fit_statistics(targets)
    readout.fit_line(embeddings[:, None], targets)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(readout.parameters(), lr=PROBE_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 50, 0.05 + 0.95 * rate_at(max(WARMUP, step / PROBE_STEPS)))
    )
    for _ in range(PROBE_STEPS):
        chosen = torch.randint(len(embeddings), (PROBE_BATCH,), generator=generator)
        loss, _ = readout.loss(embeddings[chosen, None], targets[chosen], generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(readout.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return readout.state_dict()


def fit_probes(
    model: nn.Module, store: EpisodeStore, task: Task, camera: str, episodes: np.ndarray, recipe: Recipe
) -> dict[str, dict[str, Tensor]]:
    """Fit probes of the task's quantities, and of contacts where the store has them, on training episodes."""
    stops = store.episode_ends[episodes]
    spans = list(zip(stops - store.episode_lengths[episodes], stops, strict=True))
    embeddings = torch.cat([embed(model, store.read(camera, int(first), int(stop))) for first, stop in spans])
    found = {}
    for name in (QUANTITIES, CONTACT):
        if name in store.features:
            rows = np.concatenate([store.read(name, int(first), int(stop)) for first, stop in spans])
            targets = torch.from_numpy(rows.astype(np.float32)).reshape(len(rows), -1)
            readout = probe(task, name, SIZES[recipe.size].embedding)
            found[name] = fit_probe(readout, embeddings, targets, recipe.seed)
    return found


def held_out_errors(saved: dict[str, Any], store: EpisodeStore, task: Task, camera: str) -> dict[str, float]:
    """Return errors (m) of the goal's quantities on held-out episodes: read from real frames, and AHEAD steps ahead."""
    setup = PlanningSetup(task=task.name, planner=CEM(), objective="state", weights=StepWeights())
    judged = judged_lewm(saved, setup)
    _, held_out = split_episodes(store.num_episodes)
    loader = WindowLoader(
        store,
        episodes=held_out,
        length=HISTORY + AHEAD,
        batch_size=NUM_HELD_OUT,
        features=[camera, "action", QUANTITIES],
        seed=1,
    )
    batch = {name: torch.from_numpy(values) for name, values in loader.batch(0).items()}
    seen, imagined, still = [], [], []
    for frames, actions, truth in zip(batch[camera], batch["action"], batch[QUANTITIES].double().numpy(), strict=True):
        codes = judged.encode(frames[[*range(HISTORY), -1]])
        context = judged.prefill(codes[:HISTORY], actions[: HISTORY - 1])
        states = judged.imagine(context, actions[None, HISTORY - 1 : HISTORY - 1 + AHEAD])[0, -1]
        for place, state in ((seen, codes[-1]), (imagined, states)):
            read = judged.read(state)
            assert read is not None
            place.append(task.cost(read.double().numpy(), truth[-1]))
        still.append(task.cost(truth[HISTORY - 1], truth[-1]))
    return {"seen": float(np.mean(seen)), "imagined": float(np.mean(imagined)), "copied": float(np.mean(still))}


def main() -> None:
    """Train, fit probes, save, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path, help="checkpoint to write, for scripts/judge_lewm.py")
    parser.add_argument("--minutes", type=float, required=True, help="CPU time of training")
    parser.add_argument("--peer", choices=["lewm", "pldm"], default=Recipe.peer)
    parser.add_argument("--size", choices=list(SIZES), default=Recipe.size)
    parser.add_argument("--frameskip", type=int, default=Recipe.frameskip)
    parser.add_argument("--batch-size", type=int, default=Recipe.batch_size)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--probe-episodes", type=int, help="fit probes on so many episodes; all by default")
    options = parser.parse_args()
    recipe = Recipe(**{name: getattr(options, name) for name in asdict(Recipe()) if hasattr(options, name)})
    torch.set_num_threads(1)
    store = EpisodeStore.open(options.store)
    task = get_task(str(store.metadata.get("robot", store.metadata.get("task"))))
    camera = f"observation.images.{task.cameras[0]}"
    episodes, _ = split_episodes(store.num_episodes)
    statistics = compute_statistics(store, "action", episodes.tolist())
    mean, std = torch.from_numpy(statistics.mean), torch.from_numpy(statistics.std).clamp_min(1e-4)
    loader = WindowLoader(
        store,
        episodes=episodes,
        length=HISTORY * recipe.frameskip + 1,
        batch_size=recipe.batch_size,
        features=[camera, "action"],
        seed=recipe.seed,
    )
    began = time.monotonic()
    model, steps = train(loader, camera, recipe, mean, std, 60 * options.minutes)
    saved = {
        "weights": model.state_dict(),
        "widths": asdict(SIZES[recipe.size]),
        "frameskip": recipe.frameskip,
        "action_mean": mean,
        "action_std": std,
        "probes": {},
        "dataset": store.fingerprint(),
        "recipe": asdict(recipe),
        "minutes": options.minutes,
        "steps": steps,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, options.out)  # what took the time, before what may fail
    saved["probes"] = fit_probes(model, store, task, camera, episodes[: options.probe_episodes], recipe)
    torch.save(saved, options.out)
    found = ", ".join(
        f"{name} {100 * value:.2f} cm" for name, value in held_out_errors(saved, store, task, camera).items()
    )
    wall = (time.monotonic() - began) / 60
    print(f"{steps} steps in {options.minutes:g} minutes of CPU time, {wall:.1f} by the clock with probes")
    print(f"held-out error of what the goal is about, {AHEAD} steps ahead: {found}; wrote {options.out}")


if __name__ == "__main__":
    main()
