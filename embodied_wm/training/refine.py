"""Fine-tune a world model on what its planner visited, beside what it was trained on.

The tokenizer, the codes and all fitted statistics stay as they are, so latents keep their meaning and an objective its
unit; the predictor and the readouts go on from their weights. Every batch holds both kinds of data in a fixed share:
new episodes alone would make the model forget how the rest of the world moves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from embodied_wm.training.latents import LatentEpisodes, LatentSampler
from embodied_wm.training.loop import Batch, Metrics, StageConfig, fit
from embodied_wm.training.losses import conditioning, readout_loss
from embodied_wm.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Configure one round of fine-tuning.

    Attributes:
        predictor_steps: Optimiser steps of the predictor.
        readout_steps: Optimiser steps of the readouts.
        batch_size: Windows per step of the predictor; the readouts see eight times as many single frames.
        learning_rate: Peak of the rate; warm-up, then cosine.
        ema_decay: Decay of the averaged weights that are kept.
        new_share: Part of every batch that comes from the planner's own episodes, in (0, 1).
        sequence_length: Frames per training window of the predictor.
        code_fraction: Part of the sequences conditioned on latent codes instead of real actions.
    """

    predictor_steps: int = 400
    readout_steps: int = 300
    batch_size: int = 32
    learning_rate: float = 5e-4
    ema_decay: float = 0.99
    new_share: float = 0.5
    sequence_length: int = 10
    code_fraction: float = 0.15

    def __post_init__(self) -> None:
        """Raise ValueError where a batch would hold one kind of data alone."""
        if not 0 < self.new_share < 1 or not 0 < round(self.new_share * self.batch_size) < self.batch_size:
            raise ValueError(
                f"new_share={self.new_share} of batch_size={self.batch_size} leaves no old or no new window; expected "
                "a share between 0 and 1 of a batch of at least 2"
            )


def mixed(old: LatentSampler, new: LatentSampler) -> Callable[[int], Batch]:
    """Return what joins the batches of two samplers, old windows first; it depends on the step alone."""

    def batch(step: int) -> Batch:
        first, second = old.batch(step), new.batch(step)
        return {name: torch.cat([values, second[name]]) for name, values in first.items()}

    return batch


def refine_model(
    model: WorldModel,
    old: LatentEpisodes,
    new: LatentEpisodes,
    config: RefineConfig,
    run_dir: Path,
    *,
    seed: int,
    console: Console | None = None,
) -> dict[str, Metrics]:
    """Fine-tune a model's predictor and readouts in place; go on where an earlier call in this folder stopped.

    Args:
        model: The model.
        old: Latents of the episodes it was trained on, with their actions and the readouts' features.
        new: The same of the episodes that its planner made.
        config: How long, and with how much of the new.
        run_dir: Folder of the round.
        seed: Seeds batches and noise.
        console: Where progress is shown.

    Returns:
        Stage to its last metrics.
    """

    def batches(length: int, size: int) -> Callable[[int], Batch]:
        count = round(config.new_share * size)
        first = old.sampler(length=length, batch_size=size - count, seed=seed)
        return mixed(first, new.sampler(length=length, batch_size=count, seed=seed + 1))

    def predictor_loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        batch = batch | {"labelled": torch.ones_like(batch["episode"], dtype=torch.bool)}
        told = conditioning(model, batch, config.code_fraction, generator)
        return model.predictor.loss(batch["latents"], told, generator)

    stages: dict[str, tuple[nn.Module, Callable[[int], Batch], Callable, int]] = {
        "predictor": (
            model.predictor,
            batches(config.sequence_length, config.batch_size),
            predictor_loss,
            config.predictor_steps,
        )
    }
    if model.embodiment.readouts:
        loss = readout_loss(model)
        stages["readouts"] = (model.readouts, batches(1, 8 * config.batch_size), loss, config.readout_steps)
    metrics: dict[str, Metrics] = {}
    for name, (module, batch_of, loss_of, num_steps) in stages.items():
        stage = StageConfig(
            num_steps=num_steps,
            learning_rate=config.learning_rate,
            ema_decay=config.ema_decay,
            warmup_steps=max(1, min(50, num_steps // 5)),
            num_threads=1,
        )
        modules = nn.ModuleDict({name: module})
        metrics[name] = fit(name, modules, batch_of, loss_of, stage, run_dir=run_dir, seed=seed, console=console)
    model.eval()
    return metrics
