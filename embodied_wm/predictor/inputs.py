"""What a predictor is told of actions: for every step real ones, codes, or nothing."""

from dataclasses import dataclass

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
