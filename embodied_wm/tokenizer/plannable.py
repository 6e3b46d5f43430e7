"""Further terms of the tokenizer's training that are meant to make latents plannable, each off unless it has a weight.

- One-step predictability: a small network must foretell the next latents from the two before them, and from the action
  between, where its label may be used. What no one can foretell costs; what moves lawfully does not.
- Inverse dynamics: a small network must tell the action from the latents before and after it (Pathak et al. 2017, arXiv
  1705.05363). What the action moves must then be in the latents, however few pixels it has. Labelled episodes only.
- State: a small network must tell the physical state from the latents of one frame. What a planner reads must then be
  in them, however little of the picture it changes, such as how a small cube is turned. Labelled episodes only.

The networks live with the training, not with the model. All terms reach the encoder through all frames of a window.
Latents are measured in units of their spread in the batch, which is not trained through, so that shrinking them gains
nothing. Whether the first two help: the table in `scripts/study_tokenizer.py`. The third is for what reconstruction
does not keep, as how a small cube is turned (read to 3 instead of 16 degrees beside a hand); where everything is read
well it does harm, since such latents are harder to foretell: `push_t` had 2.4 dB less (RESULTS.md, "Models that ship").
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from embodied_wm.tokenizer.actions import mlp


@dataclass(frozen=True, kw_only=True)
class PlannableConfig:
    """Configure `PlannableTerms`.

    Attributes:
        predictability_weight: Weight of one-step predictability; 0 leaves it out.
        inverse_weight: Weight of inverse dynamics; 0 leaves it out, and no action label is read.
        state_weight: Weight of telling the state; 0 leaves it out, and no state is read.
        state: Feature that is the state.
        width: Hidden width of the networks.
    """

    predictability_weight: float = 0.0
    inverse_weight: float = 0.0
    state_weight: float = 0.0
    state: str = "sim.quantities"
    width: int = 128

    def __post_init__(self) -> None:
        """Refuse weights that would ask for the opposite."""
        if min(self.predictability_weight, self.inverse_weight, self.state_weight) < 0 or self.width < 1:
            raise ValueError(f"got {self}; expected weights of 0 or more and a width of at least 1")

    @property
    def is_on(self) -> bool:
        """Tell whether any term has a weight."""
        return max(self.predictability_weight, self.inverse_weight, self.state_weight) > 0


@dataclass(frozen=True)
class Labels:
    """Hold the labels of a batch of windows, and for which windows they may be read.

    Attributes:
        actions: Normalised, row t leads from frame t to frame t + 1, [B, T, A].
        labelled: [B]; the labels of other windows are never read.
        state: Normalised state of each frame [B, T, Q]; None where none is asked for.
    """

    actions: Float[Tensor, "batch time action"]
    labelled: Bool[Tensor, "batch"]
    state: Float[Tensor, "batch time quantity"] | None = None

    def known(self) -> Float[Tensor, "batch time action"]:
        """Return the actions, zeros where they may not be read."""
        return torch.where(self.labelled[:, None, None], self.actions, 0.0)


class PlannableTerms(nn.Module):
    """Hold the networks of the terms."""

    def __init__(self, config: PlannableConfig, *, latent_size: int, action_size: int, state_size: int = 0) -> None:
        super().__init__()
        self.config, self.action_size = config, action_size
        if config.predictability_weight:  # an action and whether it is known lead it
            self.forward_model = mlp((2 * latent_size + action_size + 1, config.width, config.width, latent_size))
        if config.inverse_weight:
            self.inverse_model = mlp((2 * latent_size, config.width, config.width, action_size))
        if config.state_weight:
            self.state_model = mlp((latent_size, config.width, config.width, state_size))

    def forward(
        self, path: Float[Tensor, "batch time size"], labels: Labels | None
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the weighted sum of the terms, and each one by itself.

        Args:
            path: Latents of consecutive frames, at least three; their gradients are those of the encoder.
            labels: What was done between them, and their states; None where no label may be used, which leaves inverse
                dynamics and states out.
        """
        if path.shape[1] < 3:
            raise ValueError(f"got windows of {path.shape[1]} frames; predictability needs at least 3")
        scaled = path / path.detach().var(dim=(0, 1)).mean().sqrt().clamp_min(1e-2)
        total, metrics = path.new_zeros(()), {}
        if self.config.predictability_weight:
            term = self._predictability(scaled, labels)
            total = total + self.config.predictability_weight * term
            metrics["predictability"] = float(term.detach())
        if self.config.inverse_weight and labels is not None:
            term = self._inverse(scaled, labels)
            total = total + self.config.inverse_weight * term
            metrics["inverse"] = float(term.detach())
        if self.config.state_weight and labels is not None and labels.state is not None:
            term = _known_error(self.state_model(scaled), labels.state, labels.labelled)
            total = total + self.config.state_weight * term
            metrics["state"] = float(term.detach())
        return total, metrics

    def _predictability(self, path_BTN: Tensor, labels: Labels | None) -> Tensor:
        """Return the squared error of the foretold change, in parts of the latents' variance."""
        before, now, after = path_BTN[:, :-2], path_BTN[:, 1:-1], path_BTN[:, 2:]
        led_by = path_BTN.new_zeros(*now.shape[:2], self.action_size + 1)
        if labels is not None:
            is_known = labels.labelled[:, None, None].to(led_by).expand(-1, now.shape[1], 1)
            led_by = torch.cat([labels.known()[:, 1:-1], is_known], dim=-1)
        foretold = now + self.forward_model(torch.cat([now, now - before, led_by], dim=-1))
        return (foretold - after).square().mean()

    def _inverse(self, path_BTN: Tensor, labels: Labels) -> Tensor:
        """Return the squared error of the actions that are told, in parts of their variance; 0 if none is labelled."""
        told = self.inverse_model(torch.cat([path_BTN[:, :-1], path_BTN.diff(dim=1)], dim=-1))
        return _known_error(told, labels.actions[:, :-1], labels.labelled)


def _known_error(told_BTN: Tensor, true_BTN: Tensor, labelled_B: Tensor) -> Tensor:
    """Return the mean squared error of labelled windows; the labels of others, which may be NaN, are not read."""
    known = torch.where(labelled_B[:, None, None], true_BTN, 0.0)
    error = (told_BTN - known).square().mean((1, 2))
    # A sum over all windows, so that every process has gradients of every weight whatever its batch holds.
    return (error * labelled_B).sum() / labelled_B.sum().clamp_min(1)
