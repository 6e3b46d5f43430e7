"""The losses of tokenizer, predictor and readouts, and what the predictor is told: for training and refinement."""

from collections.abc import Callable

import torch
from torch import Tensor

from embodied_wm.predictor.inputs import ABSENT, LATENT, REAL, ActionInputs
from embodied_wm.tokenizer.plannable import Labels, PlannableConfig, PlannableTerms
from embodied_wm.training.loop import Batch, Loss, Metrics
from embodied_wm.world_model import WorldModel


def tokenizer_loss(model: WorldModel, config: PlannableConfig) -> tuple[Loss, PlannableTerms | None]:
    """Return the loss of a model's tokenizer on batches of "frames", and the networks of its further terms if any.

    With further terms a batch also holds "action", "labelled" and, if it is asked for, "state" (`WindowLabels` of
    `training.frames`).
    """
    tokenizer = model.tokenizer
    if not config.is_on:
        return lambda batch, generator: tokenizer.loss(batch["frames"], generator), None
    rows, columns = tokenizer.config.cell_grid
    size = rows * columns * tokenizer.config.bottleneck.width * tokenizer.config.cameras
    state_size = len(model.embodiment.readouts[config.state][0]) if config.state_weight else 0
    terms = PlannableTerms(config, latent_size=size, action_size=model.embodiment.action_size, state_size=state_size)

    def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        labels = Labels(model.actions.normalize(batch["action"]), batch["labelled"], batch.get("state"))
        return tokenizer.loss(batch["frames"], generator, lambda path: terms(path, labels))

    return loss, terms


def conditioning(
    model: WorldModel,
    batch: Batch,
    code_fraction: float,
    generator: torch.Generator,
    *,
    absent_fraction: float | None = None,
) -> ActionInputs:
    """Choose, sequence by sequence, what the predictor is told: real actions, codes or nothing.

    Args:
        model: Gives codes and the units of actions.
        batch: "latents" and "action" of a batch of windows, and "labelled", whether each one's labels may be used [B].
        code_fraction: Part of the labelled sequences that get codes all the same.
        generator: CPU source of the choice.
        absent_fraction: Part of the sequences that are told nothing; the predictor's own by default.
    """
    absent = model.predictor.config.absent_fraction if absent_fraction is None else absent_fraction
    size, time_steps = batch["latents"].shape[:2]
    draw = torch.rand(size, 2, generator=generator).to(batch["labelled"].device)
    kind = torch.where(batch["labelled"] & (draw[:, 0] >= code_fraction), REAL, LATENT)
    kind = torch.where(draw[:, 1] < absent, ABSENT, kind)
    with torch.no_grad():
        codes = model.latent_actions.encode(batch["latents"])
    codes = torch.cat([codes, torch.zeros_like(codes[:, :1])], dim=1)
    is_told = (kind == REAL)[:, None, None]  # others may be NaN, or out of all bounds, and are not looked at
    real = torch.where(is_told, model.normalized(torch.where(is_told, batch["action"], 0.0)), 0.0)
    return ActionInputs(kind[:, None].expand(-1, time_steps), real=real, codes=codes)


def predictor_loss(model: WorldModel, code_fraction: float) -> Loss:
    """Return the loss of a model's predictor on batches of windows, told as `conditioning` chooses."""

    def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        told = conditioning(model, batch, code_fraction, generator)
        return model.predictor.loss(batch["latents"], told, generator, batch.get("memory"))

    return loss


def readout_loss(
    model: WorldModel, *, with_guess: bool = False
) -> Callable[[Batch, torch.Generator], tuple[Tensor, Metrics]]:
    """Return the loss of a model's readouts on the first frame of each window.

    Args:
        model: Has the readouts.
        with_guess: Add the loss of guessing proprioception from the picture, in models that have such tokens.
    """

    def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        parts = {
            name: model.readout(name).loss(batch["latents"][:, 0], batch[name][:, 0], generator)[0]
            for name in model.embodiment.readouts
            if name in batch
        }
        if with_guess and model.proprioception is not None:
            values = batch[model.config.proprioception][:, 0]
            parts["guess"] = model.proprioception.loss(batch["latents"][:, 0], values, generator)[0]
        return torch.stack(list(parts.values())).sum(), {name: float(part.detach()) for name, part in parts.items()}

    return loss
