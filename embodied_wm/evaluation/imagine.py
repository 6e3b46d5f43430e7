"""Imagine one episode of a store with its recorded actions, beside what really happened."""

import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from embodied_wm.data.cameras import side_by_side
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.dataset import imagine_window
from embodied_wm.evaluation.figures import film_strip, looping
from embodied_wm.evaluation.pages_imagination import last_step, quality_charts, step_labels
from embodied_wm.evaluation.report import Headline, Section, run_record, write_report
from embodied_wm.evaluation.statistics import by_horizon
from embodied_wm.predictor.sampler import check_steps
from embodied_wm.training.embodiment import check_compatible
from embodied_wm.training.frames import felt_rows, past_latents
from embodied_wm.world_model import WorldModel


def imagine_episode(
    world_model: WorldModel,
    store: EpisodeStore,
    episode: int,
    run_dir: Path,
    *,
    start: int,
    context_frames: int,
    horizon: int,
    denoising_steps: int = 1,
    seed: int,
    console: Console | None = None,
) -> Path:
    """Imagine what follows some frames of an episode; write films and the error by horizon as a report.

    Args:
        world_model: The model.
        store: Episodes of the same camera and robot.
        episode: Which one, counted from 0.
        run_dir: Where the report goes.
        start: First context frame, a row of the episode.
        context_frames: C, frames that the model is given.
        horizon: Frames to imagine; fewer where the episode ends earlier.
        denoising_steps: Of each imagined frame.
        seed: Of the noise.
        console: Where to say what was written; the terminal if None.

    Returns:
        The path of report.json; report.html and pictures/ lie beside it.

    Raises:
        ValueError: If the store does not fit the model, the episode has no frame left to imagine, or the model was not
            trained for so many denoising steps.
    """
    began = time.monotonic()
    check_compatible(store, world_model)
    check_steps(world_model.predictor, denoising_steps)
    if start < 0 or context_frames < 1 or horizon < 1:
        raise ValueError(
            f"start={start}, context_frames={context_frames}, horizon={horizon}: expected a row from 0 and at least 1 "
            "frame each"
        )
    length = int(store.episode_lengths[episode])
    imagined_steps = min(horizon, length - start - context_frames)
    if imagined_steps < 1:
        raise ValueError(
            f"episode {episode} of {store.path} has {length} rows: after {context_frames} context frames from row "
            f"{start} none is "
            f"left to imagine. Choose start + context_frames of at most {length - 1}, or another episode."
        )
    rows = store.episode(episode).features
    stop = start + context_frames + imagined_steps
    first = int(store.episode_ends[episode]) - length
    window = imagine_window(
        world_model,
        side_by_side(rows.__getitem__, world_model.embodiment.camera)[start:stop],
        np.asarray(rows["action"])[start:stop],
        context=context_frames,
        generator=torch.Generator().manual_seed(seed),
        num_steps=denoising_steps,
        proprioception=felt_rows(store, world_model, first + start, first + stop),
        past=past_latents(store, world_model, first, first + start),
    )
    measures = {key: by_horizon(curve[None], seed=seed) for key, curve in window.curves.items()}
    labels = step_labels(context_frames, imagined_steps)
    words = f"Episode {episode}, rows {start} to {stop - 1}. The first {context_frames} frames are given."
    pictures = [
        film_strip(window.real, window.imagined, labels=labels, caption=words, num_context=context_frames),
        looping(window.real, window.imagined, labels=labels, caption=words),
    ]
    settings = {
        "store": store.path,
        "episode": episode,
        "start": start,
        "context_frames": context_frames,
        "horizon": imagined_steps,
        "denoising_steps": denoising_steps,
    }
    report = write_report(
        run_dir,
        kind="imagination",
        run=run_record(
            settings,
            seed,
            device=next(world_model.parameters()).device,
            dataset=store.fingerprint(),
            checkpoint=world_model.fingerprint(),
            wall_seconds=time.monotonic() - began,
        ),
        tasks={world_model.embodiment.robot: measures},
        sections=[
            Section(title="Real and imagined", pictures=pictures),
            Section(title="How the error grows", pictures=quality_charts(measures)),
        ],
        headline=[
            Headline(label=f"PSNR after {imagined_steps} frames", value=last_step(measures["psnr"])[1], unit="dB"),
            Headline(label="copying the last given frame", value=last_step(measures["psnr_copy"])[1], unit="dB"),
            Headline(label="tokenizer's ceiling", value=last_step(measures["psnr_ceiling"])[1], unit="dB"),
        ],
        title=f"Episode {episode} of {Path(store.path).stem}, imagined",
        summary=f"The model saw {context_frames} frames and then only the recorded actions of {imagined_steps} steps.",
    )
    console = console or Console()
    last = {key: curve[-1] for key, curve in window.curves.items()}
    console.print(
        f"PSNR after {imagined_steps} frames: {last['psnr']:.1f} dB; copying the last given frame "
        f"{last['psnr_copy']:.1f}, the tokenizer's ceiling {last['psnr_ceiling']:.1f}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"wrote [cyan]{report.with_suffix('.html')}[/]", soft_wrap=True)
    return report
