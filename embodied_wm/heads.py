"""Small readouts of latents: physical quantities or proprioception, as a probe and as a planning objective.

A readout is fitted on latents of real frames, slightly noised so that it also reads imagined ones, and saved with the
model. Its targets come from the episodes themselves (`sim.quantities`, `observation.state`): supervision that the
planner's goal-image objective does not need.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from embodied_wm.tokenizer.actions import mlp


class Readout(nn.Module):
    """Read named quantities, in their units, from the K latent tokens of one frame."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, latent_size: int, names: tuple[str, ...], units: tuple[str, ...], width: int = 256) -> None:
        super().__init__()
        self.names, self.units = names, units
        self.network = mlp((latent_size, width, width, len(names)))
        self.register_buffer("mean", torch.zeros(len(names)))
        self.register_buffer("std", torch.ones(len(names)))

    def fit_statistics(self, targets: Float[Tensor, "rows quantity"]) -> None:
        """Set the mean and std that the network's outputs are scaled by."""
        self.mean.copy_(targets.mean(0))
        self.std.copy_(targets.std(0).clamp_min(1e-6))

    def forward(self, latents: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch quantity"]:
        """Return the quantities in their units."""
        return self.network(latents.flatten(-2)) * self.std + self.mean

    def loss(
        self,
        latents: Float[Tensor, "*batch tokens width"],
        targets: Float[Tensor, "*batch quantity"],
        generator: torch.Generator,
        noise: float = 0.05,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the squared error in units of the targets' std, on latents with a little noise added."""
        noised = latents + noise * torch.randn(latents.shape, generator=generator).to(latents)
        error = F.mse_loss((self(noised) - self.mean) / self.std, (targets - self.mean) / self.std)
        return error, {"mse": float(error.detach())}
