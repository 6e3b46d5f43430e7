"""Fine-tune a world model on what its planner visited, beside what it was trained on.

The tokenizer, the codes and all fitted statistics stay as they are, so latents keep their meaning and an objective its
unit; the predictor and the readouts go on from their weights. Every batch holds both kinds of data in a fixed share:
new episodes alone would make the model forget how the rest of the world moves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from embodied_wm.predictor.self_forcing import Rollouts
from embodied_wm.ranges import check_fractions, check_least
from embodied_wm.training.forcing import (
    DistillationConfig,
    SelfForcingConfig,
    check_stages,
    distilling_loss,
    self_forcing_loss,
)
from embodied_wm.training.labels import labelled_of_card
from embodied_wm.training.latents import LatentEpisodes, LatentSampler
from embodied_wm.training.loop import Batch, Loss, Metrics, StageConfig, fit
from embodied_wm.training.losses import predictor_loss, readout_loss
from embodied_wm.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Configure one round of fine-tuning.

    Attributes:
        predictor_steps: Optimiser steps of the predictor.
        distillation_steps: Optimiser steps that then make one denoising step of its most; 0 for none.
        self_forcing_steps: Optimiser steps that then train it on contexts that it imagined itself, three real frames
            and the rest of a window of `sequence_length`; 0 for none.
        readout_steps: Optimiser steps of the readouts.
        batch_size: Windows per step of the predictor; the readouts see eight times as many single frames.
        learning_rate: Peak of the rate; warm-up, then cosine.
        ema_decay: Decay of the averaged weights that are kept.
        new_share: Part of every batch that comes from the planner's own episodes, in (0, 1).
        sequence_length: Frames per training window of the predictor.
        code_fraction: Part of the sequences conditioned on latent codes instead of real actions.
    """

    predictor_steps: int = 400
    distillation_steps: int = 0
    self_forcing_steps: int = 0
    readout_steps: int = 300
    batch_size: int = 32
    learning_rate: float = 5e-4
    ema_decay: float = 0.99
    new_share: float = 0.5
    sequence_length: int = 10
    code_fraction: float = 0.15

    def __post_init__(self) -> None:
        """Raise ValueError where a batch would hold one kind of data alone, and for numbers that train nothing."""
        check_least(self, predictor_steps=0, distillation_steps=0, self_forcing_steps=0, readout_steps=0, batch_size=1)
        check_least(self, learning_rate=0, sequence_length=2)
        check_fractions(self, code_fraction="[0, 1]", ema_decay="[0, 1)")
        if not 0 < self.new_share < 1 or not 0 < round(self.new_share * self.batch_size) < self.batch_size:
            raise ValueError(
                f"new_share={self.new_share} of batch_size={self.batch_size} leaves no old or no new window; expected "
                "a share between 0 and 1 of a batch of at least 2"
            )


def mixed(old: LatentSampler, new: LatentSampler, is_labelled: Tensor | None = None) -> Callable[[int], Batch]:
    """Return what joins the batches of two samplers, old windows first; it depends on the step alone.

    Args:
        old: Windows of the episodes that the model was trained on.
        new: Windows of the planner's own, all of whose labels may be used.
        is_labelled: Of which of the old episodes labels may be used, [E]; all by default.
    """

    def batch(step: int) -> Batch:
        first, second = old.batch(step), new.batch(step)
        batch = {name: torch.cat([values, second[name]]) for name, values in first.items()}
        labelled = torch.ones_like(batch["episode"], dtype=torch.bool)
        if is_labelled is not None:
            labelled[: len(first["episode"])] = is_labelled[first["episode"]]
        return batch | {"labelled": labelled}

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
        model: The model. Labels that its training withheld, as its card says, are withheld here, too.
        old: Latents of the episodes it was trained on, with their actions and the readouts' features.
        new: The same of the episodes that its planner made.
        config: How long, and with how much of the new.
        run_dir: Folder of the round.
        seed: Seeds batches and noise.
        console: Where progress is shown.

    Returns:
        Stage to its last metrics.

    Raises:
        ValueError: If the model was trained on video alone.
    """
    chosen = labelled_of_card(model.card)
    is_labelled = None if chosen is None else torch.tensor([episode in chosen for episode in old.episodes])
    if is_labelled is not None and not is_labelled.any():
        raise ValueError(
            "the model was trained without the labels of these episodes; expected some to refine it with. First train "
            "its adapter and readouts on labelled ones: embodied-wm train start_from=MODEL stages=[adapter,readouts]"
        )

    def batches(length: int, size: int, *, labelled_only: bool = False) -> Callable[[int], Batch]:
        count, stride, memory = round(config.new_share * size), model.stride, model.config.predictor.memory
        members = None if is_labelled is None or not labelled_only else is_labelled.nonzero().flatten().tolist()
        given: Any = {"length": length, "stride": stride, "memory": memory}
        first = old.sampler(batch_size=size - count, seed=seed, members=members, **given)
        second = new.sampler(batch_size=count, seed=seed + 1, **given)
        return mixed(first, second, is_labelled)

    windows = batches(config.sequence_length, config.batch_size)
    extra = {"predictor": (lambda: predictor_loss(model, config.code_fraction), config.predictor_steps)}
    extra |= _later_losses(model, config)
    # What makes a loss is called when its stage begins: a teacher is the predictor as the stage before left it.
    stages: dict[str, tuple[nn.Module, Callable[[int], Batch], Callable[[], Loss], int]] = {
        name: (model.predictor, windows, make, num_steps) for name, (make, num_steps) in extra.items()
    }
    if model.embodiment.readouts:
        frames = batches(1, 8 * config.batch_size, labelled_only=True)
        stages["readouts"] = (model.readouts, frames, lambda: readout_loss(model), config.readout_steps)
    metrics: dict[str, Metrics] = {}
    for name, (module, batch_of, make_loss, num_steps) in stages.items():
        stage = StageConfig(
            num_steps=num_steps,
            learning_rate=config.learning_rate,
            ema_decay=config.ema_decay,
            warmup_steps=max(1, min(50, num_steps // 5)),
            num_threads=1,
        )
        modules = nn.ModuleDict({name: module})
        metrics[name] = fit(name, modules, batch_of, make_loss(), stage, run_dir=run_dir, seed=seed, console=console)
    model.eval()
    return metrics


def _later_losses(model: WorldModel, config: RefineConfig) -> dict[str, tuple[Callable[[], Loss], int]]:
    """Return the optional stages of the predictor that a round has: name to (what makes its loss, steps).

    Raises:
        ValueError: If the predictor cannot be trained by one of them.
    """
    most = model.predictor.step_counts[-1]
    distillation = DistillationConfig(
        num_steps=config.distillation_steps, batch_size=config.batch_size, denoising_steps=most
    )
    forcing = SelfForcingConfig(
        num_steps=config.self_forcing_steps,
        batch_size=config.batch_size,
        rollouts=Rollouts(horizon=config.sequence_length - Rollouts.context)
        if config.self_forcing_steps
        else Rollouts(),
    )
    check_stages(model.predictor, distillation, forcing)
    losses: dict[str, tuple[Callable[[], Loss], int]] = {}
    if distillation.num_steps:
        make = partial(distilling_loss, model, distillation, config.code_fraction)
        losses["distillation"] = (make, distillation.num_steps)
    if forcing.num_steps:
        losses["self_forcing"] = (partial(self_forcing_loss, model, forcing, config.code_fraction), forcing.num_steps)
    return losses
