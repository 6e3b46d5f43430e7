"""What a predictor is told: of actions, for every step real ones, codes, or nothing; and of the frames before."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

ABSENT, REAL, LATENT = 0, 1, 2


@dataclass(frozen=True)
class ActionInputs:
    """Hold the actions of a batch of windows in row convention: row t leads from frame t to frame t+1.

    Attributes:
        kind: [B, T], each ABSENT, REAL or LATENT.
        real: [B, T, A], normalised; read where kind is REAL. None where the model has no real actions.
        codes: [B, T, code]; read where kind is LATENT. None where there are none.
    """

    kind: Int[Tensor, "batch time"]
    real: Float[Tensor, "batch time action"] | None = None
    codes: Float[Tensor, "batch time code"] | None = None


def check_latents(latents: Tensor, tokens: int, width: int, *, axes: int | None = None) -> None:
    """Raise ValueError unless latents are of a model's shape, with `axes` axes before that, any number if None."""
    if tuple(latents.shape[-2:]) != (tokens, width) or axes not in (None, latents.ndim - 2):
        before = "..." if axes is None else "frames" if axes == 1 else f"{axes} axes"
        raise ValueError(
            f"got latents of shape {tuple(latents.shape)}; this model wants [{before}, {tokens} tokens, {width} "
            "channels], from its own `encode` or `imagine`"
        )


def check_finite(latents: Tensor) -> None:
    """Raise ValueError if latents of seen frames are not finite."""
    if not torch.isfinite(latents).all():
        raise ValueError("the seen frames' latents hold NaN or infinity; check the frames and the checkpoint")


def previous(values_BT: Tensor, first: float = 0.0) -> Tensor:
    """Return what stood one frame earlier, and `first` before the first."""
    return torch.cat([torch.full_like(values_BT[:, :1], first), values_BT[:, :-1]], dim=1)


def previous_change(values_BT: Tensor) -> Tensor:
    """Return how the frame before differed from the one before that; zeros where there are not two."""
    change = torch.cat([torch.zeros_like(values_BT[:, :1]), values_BT.diff(dim=1)], dim=1)
    return previous(change)
