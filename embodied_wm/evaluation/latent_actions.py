"""Latent actions: PROTOCOL section 4, the measures that need no closed loop.

`r2`: how much of the true actions' variance a ridge regression on (code, latents, and their products) explains on
held-out episodes. `delta_psnr`: how much better imagination is with the code inferred from the true next frame than
with a random code. The errors of imagination with the right code, with another transition's code and of copying stand
side by side: a code that carried the next frame itself, and not what changed, would betray itself with another
transition's code (`delta_psnr_shuffled` is their difference in pixels).

Leaks: `code_bits` is all that one code can hold, `code_bits_used` the entropy of the codes that really occur. A code
that named the next frame would need the bits of a frame; and applied in another scene it would bring its own scene
along, which `same_codes` lets a person see.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_wm.data.cameras import side_by_side
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.statistics import bootstrap_mean, estimate
from embodied_wm.stride import chunked, context_frames, spread, thinned
from embodied_wm.tokenizer.frames import psnr
from embodied_wm.training.frames import felt_rows
from embodied_wm.world_model import WorldModel

RIDGE = 1e-3


def _features(latents: Tensor, codes: Tensor) -> Tensor:
    """Return the probe's inputs, on the CPU: code, latents, their products, and one."""
    flat, codes = latents.flatten(-2).cpu(), codes.cpu()
    if flat.shape[-1] > 64:
        flat = flat @ torch.linalg.qr(torch.randn(flat.shape[-1], 64, generator=torch.Generator().manual_seed(0)))[0]
    products = (codes[..., None] * flat[..., None, :]).flatten(-2)
    return torch.cat([codes, flat, products, torch.ones_like(codes[..., :1])], dim=-1).double()


def _transitions(world_model: WorldModel, store: EpisodeStore, episode: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return frames [T], latents [T], codes [T-1] and actions [T-1] of one episode, one for each step of the model.

    Actions lie on the CPU, where probes are fitted, the rest where the model is.
    """
    rows = store.episode(episode).features
    frames = torch.from_numpy(side_by_side(rows.__getitem__, world_model.embodiment.camera))
    frames = frames.to(world_model.action_low.device)
    stop = int(store.episode_ends[episode])
    latents = world_model.encode(frames, felt_rows(store, world_model, stop - len(frames), stop))
    with torch.no_grad():
        stride = world_model.stride
        skipped, latents = (len(frames) - 1) % stride, thinned(latents, stride)
        codes = world_model.latent_actions.encode(latents[None])[0]
    actions = torch.from_numpy(np.asarray(rows["action"], dtype=np.float32))[skipped:-1]
    return thinned(frames, stride), latents, codes, chunked(actions, stride)


def probe_r2(
    world_model: WorldModel, store: EpisodeStore, train: list[int], held_out: list[int], *, seed: int
) -> dict[str, Any]:
    """Measure how well real actions are read from codes, on held-out episodes; the interval is over episodes."""
    parts = [_transitions(world_model, store, episode) for episode in train]
    inputs = torch.cat([_features(latents[:-1], codes) for _, latents, codes, _ in parts])
    targets = torch.cat([actions for *_, actions in parts]).double()
    mean = targets.mean(0)
    gram = inputs.T @ inputs + RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, inputs.T @ (targets - mean))
    residual, total = [], []
    for episode in held_out:
        _, latents, codes, actions = _transitions(world_model, store, episode)
        error = _features(latents[:-1], codes) @ weights + mean - actions
        residual.append(error.square().sum(0).numpy())
        total.append((actions - mean).square().sum(0).numpy())
    moving = np.sum(total, axis=0) > 1e-9
    r2 = 1 - np.sum(residual, axis=0)[moving] / np.sum(total, axis=0)[moving]
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(held_out), size=(1000, len(held_out)))
    stack_r, stack_t = np.stack(residual)[:, moving], np.stack(total)[:, moving]
    resampled = (1 - stack_r[draws].sum(1) / np.maximum(stack_t[draws].sum(1), 1e-9)).mean(1)
    interval = np.quantile(resampled, [0.025, 0.975]).tolist() if len(held_out) > 1 else None
    return estimate(float(r2.mean()), interval, len(held_out))


def controllability(
    world_model: WorldModel, store: EpisodeStore, episodes: list[int], *, context: int, seed: int, points_each: int = 4
) -> dict[str, Any]:
    """Measure one-step imagination given the right code, a random code, and another transition's code."""
    generator = torch.Generator().manual_seed(seed)
    gains, over_shuffled, right_errors, shuffled_errors, still_errors = [], [], [], [], []
    values = world_model.latent_actions.values()
    for episode in episodes:
        frames, latents, codes, _ = _transitions(world_model, store, episode)
        for _ in range(points_each):
            now = int(torch.randint(context - 1, len(latents) - 1, (1,), generator=generator))
            past = spread(latents[now - context + 1 : now + 1], world_model.stride)
            known = world_model.prefill_latents(past, None, kind="latent")
            random = torch.stack([each[torch.randint(len(each), (1,), generator=generator)] for each in values], -1)
            other = codes[another(len(codes), now, generator)]
            candidates = torch.stack([codes[now], random[0], other])[:, None]
            after = world_model.imagine(known, candidates, kind="latent", generator=generator, shared_noise=True)[:, 0]
            quality = psnr(world_model.decode(after, seen=frames[now]), frames[now + 1].expand(3, -1, -1, -1))
            gains.append(float(quality[0] - quality[1]))
            over_shuffled.append(float(quality[0] - quality[2]))
            error = (after - latents[now + 1]).square().mean((1, 2))
            right_errors.append(float(error[0]))
            shuffled_errors.append(float(error[2]))
            still_errors.append(float((latents[now] - latents[now + 1]).square().mean()))
    groups = np.repeat(np.arange(len(episodes)), points_each)
    return {
        "delta_psnr": bootstrap_mean(gains, seed=seed, groups=groups),
        "delta_psnr_shuffled": bootstrap_mean(over_shuffled, seed=seed, groups=groups),
        "latent_mse_code": bootstrap_mean(right_errors, seed=seed, groups=groups),
        "latent_mse_shuffled_code": bootstrap_mean(shuffled_errors, seed=seed, groups=groups),
        "latent_mse_copy": bootstrap_mean(still_errors, seed=seed, groups=groups),
    }


def another(count: int, own: int, generator: torch.Generator) -> int:
    """Draw a number below `count`, at least 2, that is not `own`."""
    drawn = int(torch.randint(count - 1, (1,), generator=generator))
    return drawn + (drawn >= own)


def measure_latent_actions(
    world_model: WorldModel, store: EpisodeStore, *, train: list[int], held_out: list[int], context: int, seed: int
) -> dict[str, Any]:
    """Measure `r2`, `delta_psnr`, the codes' errors and their capacity on held-out episodes of a store.

    Raises:
        ValueError: If every held-out episode is too short for the context and a step; those that are, are left out.
    """
    held_out = _long_enough(world_model, store, held_out, max(context + 1, 3))  # another transition, too
    found = controllability(world_model, store, held_out, context=context, seed=seed)
    found["r2"] = probe_r2(world_model, store, train, held_out, seed=seed)
    bits = float(np.log2(np.prod(world_model.latent_actions.config.levels)))
    found["code_bits"] = {"value": bits, "ci95": None, "n": 1}
    codes = torch.cat([_transitions(world_model, store, episode)[2] for episode in held_out]).cpu()
    found["code_bits_used"] = {"value": entropy_bits(codes), "ci95": None, "n": len(codes)}
    return found


def _long_enough(world_model: WorldModel, store: EpisodeStore, episodes: list[int], steps: int) -> list[int]:
    """Return the episodes in which the model looks at so many frames; raise ValueError if there is none."""
    rows, lengths = context_frames(steps, world_model.stride), store.episode_lengths
    found = [episode for episode in episodes if lengths[episode] >= rows]
    if not found:
        raise ValueError(
            f"{store.path}: none of the held-out episodes {episodes} has {rows} rows, which the context and what "
            f"follows take; the longest has {max((int(lengths[e]) for e in episodes), default=0)}. Hold longer "
            "episodes out."
        )
    return found


def entropy_bits(codes: Tensor) -> float:
    """Return the entropy, in bits, of how often each of the codes [N, C] occurs."""
    share = torch.unique(codes, dim=0, return_counts=True)[1].double() / len(codes)
    return float(-(share * share.log2()).sum())


def distant_codes(codes: Tensor, count: int) -> Tensor:
    """Return up to `count` different codes [M, C] of [N, C]: the most frequent, then always the farthest from all."""
    each, counts = torch.unique(codes, dim=0, return_counts=True)
    chosen = [int(counts.argmax())]
    while len(chosen) < min(count, len(each)):
        chosen.append(int(torch.cdist(each, each[chosen]).amin(1).argmax()))
    return each[chosen]


@torch.no_grad()
def same_codes(
    world_model: WorldModel,
    store: EpisodeStore,
    episodes: list[int],
    *,
    context: int,
    seed: int,
    num_scenes: int = 6,
    num_codes: int = 6,
    num_steps: int = 4,
) -> tuple[Tensor, Tensor]:
    """Apply the same codes in different scenes, each for some steps.

    Args:
        world_model: The model.
        store: Where the scenes are.
        episodes: Held-out episodes; scenes and codes come from them.
        context: Frames that the model sees of each scene.
        seed: Draws the scenes' places in their episodes.
        num_scenes: Scenes, each of another episode, as far as there are enough.
        num_codes: Codes, as different from each other as those that occur.
        num_steps: How many times in a row each code is applied.

    Returns:
        The scenes' last seen frames, uint8 [N, h, w, 3], and what follows, decoded, uint8 [N, M, h, w, 3].

    Raises:
        ValueError: If every episode is shorter than the context; those that are, are left out.
    """
    episodes = _long_enough(world_model, store, episodes, max(context, 2))
    generator = torch.Generator().manual_seed(seed)
    parts = [_transitions(world_model, store, episode) for episode in episodes]
    codes = distant_codes(torch.cat([part[2] for part in parts]), num_codes)
    scenes, results = [], []
    for frames, latents, *_ in parts[:num_scenes]:
        now = int(torch.randint(context - 1, len(latents), (1,), generator=generator))
        past = spread(latents[now - context + 1 : now + 1], world_model.stride)
        known = world_model.prefill_latents(past, None, kind="latent")
        after = world_model.imagine(
            known, codes[:, None].expand(-1, num_steps, -1), kind="latent", generator=generator, shared_noise=True
        )
        scenes.append(frames[now])
        results.append(world_model.decode(after[:, -1], seen=frames[now]))
    return torch.stack(scenes).cpu(), torch.stack(results).cpu()
