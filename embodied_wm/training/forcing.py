"""Optional stages after the predictor's: self-forcing and distillation to one denoising step.

Both go on from the trained predictor; a part of every batch trains on the stage's own loss, the rest on the ordinary
one, so that what was learnt is kept. Both are left out where their `num_steps` is 0, which is the default. They are
replicated and not sharded where several processes train (rollouts pass through the layers' parts, which FSDP2 does not
gather).
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from embodied_wm.predictor.distillation import check_distillable, distillation_loss
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.self_forcing import Rollouts, check_rollouts, self_forced_loss
from embodied_wm.training.loop import StageConfig
from embodied_wm.training.losses import conditioning, predictor_loss
from embodied_wm.training.processes import Batch, Loss, Metrics
from embodied_wm.world_model import WorldModel


def _check_share(share: float, batch_size: int) -> None:
    if not 0 < share <= 1 or not round(share * batch_size):
        raise ValueError(
            f"share={share} of batch_size={batch_size} leaves no window to the stage's own loss; expected a share of "
            "at most 1 that is at least one window"
        )


@dataclass(frozen=True, kw_only=True)
class SelfForcingConfig(StageConfig):
    """Configure the self-forcing stage; 0 steps leave it out.

    Attributes:
        share: Part of every batch that is trained on the model's own contexts.
        rollouts: How the model imagines them; windows hold `context + horizon` frames.
    """

    num_steps: int = 0
    batch_size: int = 32
    learning_rate: float = 5e-4
    ema_decay: float = 0.99
    share: float = 0.5
    rollouts: Rollouts = field(default_factory=Rollouts)

    def __post_init__(self) -> None:
        """Refuse a share that leaves the stage without windows."""
        super().__post_init__()
        _check_share(self.share, self.batch_size)

    @property
    def length(self) -> int:
        """Return the frames of a training window."""
        return self.rollouts.context + self.rollouts.horizon


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(StageConfig):
    """Configure the distillation stage; 0 steps leave it out.

    Attributes:
        share: Part of every batch whose single step is trained towards the teacher's many.
        denoising_steps: Denoising steps of the teacher.
    """

    num_steps: int = 0
    batch_size: int = 32
    learning_rate: float = 5e-4
    ema_decay: float = 0.99
    share: float = 0.5
    denoising_steps: int = 4

    def __post_init__(self) -> None:
        """Refuse a share that leaves the stage without windows."""
        super().__post_init__()
        _check_share(self.share, self.batch_size)


def check_stages(predictor: LatentPredictor, distillation: DistillationConfig, forcing: SelfForcingConfig) -> None:
    """Raise ValueError unless a predictor can be trained by those of the two stages that have steps."""
    if distillation.num_steps:
        check_distillable(predictor, distillation.denoising_steps)
    if forcing.num_steps:
        check_rollouts(predictor, forcing.rollouts)


def self_forcing_loss(model: WorldModel, config: SelfForcingConfig, code_fraction: float) -> Loss:
    """Return the loss of the self-forcing stage: a share of each batch on own contexts, the rest as before.

    Raises:
        ValueError: If the predictor cannot imagine such rollouts.
    """
    check_rollouts(model.predictor, config.rollouts)

    def own(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        told = conditioning(model, batch, code_fraction, generator, absent_fraction=0.0)
        return self_forced_loss(model.predictor, batch["latents"], told, config.rollouts, generator)

    return _shared(model, own, config.share, code_fraction)


def distilling_loss(model: WorldModel, config: DistillationConfig, code_fraction: float) -> Loss:
    """Return the loss of the distillation stage; the teacher is the predictor as it is now.

    Raises:
        ValueError: If the predictor has no steps to distil.
    """
    check_distillable(model.predictor, config.denoising_steps)
    teacher = _frozen_copy(model.predictor)

    def own(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        told = conditioning(model, batch, code_fraction, generator)
        return distillation_loss(
            model.predictor, teacher, batch["latents"], told, generator, num_steps=config.denoising_steps
        )

    return _shared(model, own, config.share, code_fraction)


def _frozen_copy(predictor: LatentPredictor) -> LatentPredictor:
    """Return a copy that no optimiser changes. It must be made before the stage's saved state is loaded."""
    return deepcopy(predictor).requires_grad_(False).eval()


def _shared(
    model: WorldModel, own: Callable[[Batch, torch.Generator], tuple[Tensor, Metrics]], share: float, fraction: float
) -> Loss:
    """Return the loss that trains the first windows of a batch by `own` and the others as the predictor stage does."""
    as_before = predictor_loss(model, fraction)

    def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        size = len(batch["latents"])
        count = max(1, round(share * size))
        first, metrics = own({name: values[:count] for name, values in batch.items()}, generator)
        if count == size:
            return first, metrics
        rest = {name: values[count:] for name, values in batch.items()}
        second, others = as_before(rest, generator)
        return (count * first + (size - count) * second) / size, others | metrics

    return loss


__all__ = ["DistillationConfig", "SelfForcingConfig", "check_stages", "distilling_loss", "self_forcing_loss"]
