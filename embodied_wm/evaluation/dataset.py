"""Imagination of held-out episodes of any store: no simulator, so the recorded future is the only truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from embodied_wm.data.cameras import side_by_side
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.similarity import ssim
from embodied_wm.evaluation.statistics import by_horizon
from embodied_wm.progress import Track
from embodied_wm.ranges import check_counts
from embodied_wm.tokenizer.frames import psnr
from embodied_wm.training.embodiment import check_compatible
from embodied_wm.training.frames import felt_rows, past_latents
from embodied_wm.world_model import WorldModel

NUM_FILMS = 4


class Film(NamedTuple):
    """Hold one imagined start: real and imagined frames uint8 [C + H, h, w, 3]; the first `num_context` were given."""

    real: np.ndarray
    imagined: np.ndarray
    num_context: int
    title: str


@dataclass(frozen=True, kw_only=True)
class DatasetJudged:
    """Hold how well held-out episodes were imagined.

    Attributes:
        measures: psnr, ssim (also with _copy: the last context frame; with _ceiling: the true frame encoded and
            decoded like an imagined one), psnr_over_copy (their paired difference) and latent_mse, each
            {"by_horizon"}; intervals are bootstrapped over episodes.
        films: The starts with the largest real motion, one per episode before a second one of any.
        skipped: Episodes that are too short to judge.
    """

    measures: Mapping[str, Any]
    films: Sequence[Film]
    skipped: Sequence[int] = ()


class ImaginedWindow(NamedTuple):
    """Hold one imagined window: per-step values [H] of every measure, and its frames [C + H, h, w, 3]."""

    curves: Mapping[str, np.ndarray]
    real: np.ndarray
    imagined: np.ndarray


def imagine_window(
    world_model: WorldModel,
    frames: np.ndarray,
    actions: np.ndarray,
    *,
    context: int,
    generator: torch.Generator,
    num_steps: int = 1,
    proprioception: Tensor | None = None,
    past: Tensor | None = None,
) -> ImaginedWindow:
    """Imagine the end of a recorded window from its first frames and its actions, and compare.

    Args:
        world_model: The model.
        frames: uint8 [C + H, h, w, 3].
        actions: [C + H - 1, A] or longer; row t leads from frame t to frame t + 1.
        context: C.
        generator: CPU source of noise.
        num_steps: Denoising steps per imagined frame.
        proprioception: [C + H, P], for models that want it with their frames.
        past: Latents [N, K, D] of the frames before the window, for models with a memory.
    """
    device = next(world_model.parameters()).device
    real = torch.from_numpy(frames).to(device)
    led_by = torch.from_numpy(np.asarray(actions, dtype=np.float32)).to(device)
    felt, felt_later = (None, None) if proprioception is None else proprioception.split([context, len(real) - context])
    known = world_model.prefill(real[:context], led_by[: context - 1], proprioception=felt, past=past)
    future = led_by[None, context - 1 : len(frames) - 1]
    latents = world_model.imagine(known, future, num_steps=num_steps, generator=generator)[0]
    true = real[context:]
    true_latents = world_model.encode(true, felt_later)
    imagined = world_model.decode(latents, seen=real[context - 1])
    versions = {
        "": imagined,
        "_copy": real[context - 1].expand_as(true),
        "_ceiling": world_model.decode(true_latents, seen=real[context - 1]),
    }
    curves = {f"psnr{ending}": psnr(shown, true) for ending, shown in versions.items()}
    curves["psnr_over_copy"] = curves["psnr"] - curves["psnr_copy"]
    curves |= {f"ssim{ending}": ssim(shown, true) for ending, shown in versions.items()}
    curves["latent_mse"] = (latents - true_latents).square().mean((1, 2))
    return ImaginedWindow(
        {key: curve.double().cpu().numpy() for key, curve in curves.items()},
        frames,
        torch.cat([real[:context], imagined]).cpu().numpy(),
    )


def judge_dataset(
    world_model: WorldModel,
    store: EpisodeStore,
    episodes: Sequence[int],
    *,
    context: int,
    horizon: int,
    starts_per_episode: int,
    seed: int,
    num_steps: int = 1,
    console: Console | None = None,
) -> DatasetJudged:
    """Imagine futures from random starts of held-out episodes, with the recorded actions.

    Args:
        world_model: The model; its predictor's window should reach back over `context` frames.
        store: Episodes of the same camera and robot.
        episodes: Which ones; none that the model was trained on.
        context: Real frames that the model is given, at least 1.
        horizon: Frames that it imagines.
        starts_per_episode: Starts drawn per episode; all there are, where an episode has fewer.
        seed: Draws starts and noise.
        num_steps: Denoising steps per imagined frame.
        console: Where progress is shown.

    Raises:
        ValueError: If the store does not fit the model, or every episode is too short.
    """
    check_compatible(store, world_model)
    check_counts(context=context, horizon=horizon, starts_per_episode=starts_per_episode)
    length = context + horizon
    lengths = store.episode_lengths
    usable = [episode for episode in episodes if lengths[episode] >= length]
    skipped = [episode for episode in episodes if lengths[episode] < length]
    if not usable:
        raise ValueError(
            f"{store.path}: none of the episodes {list(episodes)} has {length} rows ({context} given, {horizon} "
            "imagined); "
            f"the longest has {max((int(lengths[e]) for e in episodes), default=0)}. Lower horizon or context, or hold "
            "longer episodes out."
        )
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    rows: dict[str, list[np.ndarray]] = {}
    groups: list[int] = []
    films: list[tuple[int, float, Film]] = []
    with Track("imagine held-out episodes", len(usable), unit="episodes", console=console) as track:
        for episode in usable:
            first = int(store.episode_ends[episode] - lengths[episode])
            count = int(lengths[episode]) - length + 1
            starts = np.sort(rng.permutation(count)[:starts_per_episode])
            found = []
            for start in starts.tolist():
                window = imagine_window(
                    world_model,
                    side_by_side(
                        partial(store.read, start=first + start, stop=first + start + length),
                        world_model.embodiment.camera,
                    ),
                    store.read("action", first + start, first + start + length),
                    context=context,
                    generator=generator,
                    num_steps=num_steps,
                    proprioception=felt_rows(store, world_model, first + start, first + start + length),
                    past=past_latents(store, world_model, first, first + start),
                )
                groups.append(episode)
                for key, curve in window.curves.items():
                    rows.setdefault(key, []).append(curve)
                title = f"Episode {episode}, from row {start}"
                found.append((_motion(window.real, context), Film(window.real, window.imagined, context, title)))
            found.sort(key=lambda pair: -pair[0])
            films += [(place, -motion, film) for place, (motion, film) in enumerate(found[:NUM_FILMS])]
            track.advance()
    films.sort(key=lambda entry: entry[:2])
    return DatasetJudged(
        measures={key: by_horizon(np.stack(curves), seed=seed, groups=groups) for key, curves in rows.items()},
        films=[film for *_, film in films[:NUM_FILMS]],
        skipped=skipped,
    )


def _motion(frames: np.ndarray, context: int) -> float:
    """Return the mean absolute change from one frame to the next over the imagined part."""
    return float(np.abs(np.diff(frames[context - 1 :].astype(np.int16), axis=0)).mean())
