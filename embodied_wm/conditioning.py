"""How a model is told actions: wrapped for its predictor, checked, in units of the data's spread."""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from embodied_wm.data.normalize import Normalizer
from embodied_wm.embodiment import Embodiment
from embodied_wm.predictor.inputs import ABSENT, LATENT, REAL, ActionInputs
from embodied_wm.stride import context_frames, unchunked

ActionKind = Literal["real", "latent", "adapted"]


def check_kind(kind: str) -> None:
    """Raise ValueError for a kind that is none."""
    if kind not in get_args(ActionKind):
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(get_args(ActionKind))}")


class TakesActions:
    """Take real actions, of one step side by side where a step is several frames of data, or codes, or neither."""

    config: Any  # of the model, which takes care of the type
    embodiment: Embodiment
    actions: Normalizer
    action_low: Tensor
    action_high: Tensor

    @property
    def stride(self) -> int:
        """Return how many frames of data, and actions, one step of the predictor is."""
        return self.config.temporal_stride

    @property
    def chunk_size(self) -> int:
        """Return how many numbers the actions of one step are."""
        return self.stride * self.embodiment.action_size

    def context_frames(self, count: int) -> int:
        """Return how many frames of data a context is in which the model looks at `count`."""
        return context_frames(count, self.stride)

    def action_inputs(
        self,
        actions: Float[Tensor, "batch time chunk"] | None,
        *,
        codes: Float[Tensor, "batch time code"] | None = None,
    ) -> ActionInputs:
        """Wrap real actions (in the robot's units, chunks of them) or codes as what the predictor is told.

        Raises:
            ValueError: If actions or codes are of another size than the model's, not finite, or both or none are given.
        """
        if actions is not None and codes is not None:
            raise ValueError("got real actions and codes; an action token is one or the other")
        if actions is not None:
            kind = torch.full(actions.shape[:2], REAL, device=actions.device)
            return ActionInputs(kind, real=self.normalized(actions))
        if codes is not None:
            self._check_codes(codes)
            return ActionInputs(torch.full(codes.shape[:2], LATENT, device=codes.device), codes=codes)
        raise ValueError("got neither actions nor codes; give one, or use `absent_inputs`")

    def absent_inputs(self, batch: int, time: int) -> ActionInputs:
        """Return inputs of a batch of windows whose actions are unknown."""
        return ActionInputs(torch.full((batch, time), ABSENT, device=self.action_low.device))

    def normalized(self, actions: Float[Tensor, "*batch chunk"]) -> Float[Tensor, "*batch chunk"]:
        """Return the actions of steps, each side by side, in units of the data's spread."""
        actions = torch.as_tensor(actions, dtype=self.action_low.dtype, device=self.action_low.device)
        size = actions.shape[-1]
        if self.stride > 1 and (size % self.stride or size == self.embodiment.action_size):
            raise ValueError(
                f"got {size} numbers for a step; this model wants {self.stride} actions side by side, "
                f"{self.chunk_size} numbers (see embodied_wm.stride.chunked)"
            )
        apart = actions.unflatten(-1, (self.stride, -1))
        self._check_actions(apart)
        return self.actions.normalize(apart).flatten(-2)

    def denormalized(self, chunks: Float[Tensor, "*batch steps chunk"]) -> Float[Tensor, "*batch time action"]:
        """Return actions one by one, in the robot's units."""
        return self.actions.denormalize(unchunked(chunks, self.stride))

    def check_stride(self, what: str, instead: str) -> None:
        """Raise ValueError if a step is more than one frame of data, for what takes one action at a time."""
        if self.stride > 1:
            raise ValueError(
                f"this model takes {self.stride} frames of data in one step and cannot {what}; use {instead}, or a "
                "model with temporal_stride=1"
            )

    def check_history(self, kind: ActionKind) -> None:
        """Raise ValueError for no kind, and where codes are inferred from more frames than a context remembers."""
        check_kind(kind)
        history = self.config.latent_actions.history
        if kind == "latent" and history > 2:
            raise ValueError(
                f"codes of this model look at {history} frames before each transition (latent_actions.history), of "
                "which a context remembers 2; prefill it anew with all frames (rolling=false)"
            )

    def _check_actions(self, actions: Tensor) -> None:
        if actions.shape[-1] != self.embodiment.action_size:
            raise ValueError(
                f"got actions of size {actions.shape[-1]}; this model ({self.embodiment.robot}) wants "
                f"{self.embodiment.action_size}: {', '.join(self.embodiment.action_names) or 'unnamed'}"
            )
        if not torch.isfinite(actions).all():
            raise ValueError("got actions with NaN or infinity; repair the data or the planner's bounds")

    def _check_codes(self, codes: Tensor) -> None:
        size = self.config.latent_actions.code_size
        if codes.shape[-1] != size or not torch.isfinite(codes).all():
            raise ValueError(
                f"got codes of size {codes.shape[-1]}; this model wants {size} finite numbers, from its "
                "`latent_actions.encode` or its adapter"
            )
