"""Small readouts of latents: physical quantities or proprioception, as a probe and as a planning objective.

A readout is fitted on latents of real frames, slightly noised so that it also reads imagined ones, and saved with the
model. Its targets come from the episodes themselves (`sim.quantities`, `observation.state`): supervision that the
planner's goal-image objective does not need.

Where latents are places (key points, proprioception) it is a line, found by least squares, plus a network that bends
it: a line says exactly what a network learns badly. Of a grid's features it is the network alone. How far off what
counts is read of true frames (`state_error_true` of `embodied-wm benchmark imagination`, the models that shipped then,
one seed; expected was that a line helps all of them, and that normalisation does harm):

    |                       | network | line and network | line and network without normalisation |
    |-----------------------|---------|------------------|-----------------------------------------|
    | `push` (key points)   | 1.2 mm  | 0.7 mm           | 0.7 mm                                  |
    | `push_t` (key points) | 1.4 mm  | 1.1 mm           | 1.2 mm                                  |
    | `reach` (a grid)      | 1.2 mm  | 1.4 mm           | 2.5 mm                                  |

Of the grid the first two are a tie (three seeds on one set of latents: 1.18 and 1.15 mm in held-out frames), but what
is imagined, which is never quite a frame's, a line reads worse: of the demo's models, seeds 0, 1 and 2, fitted anew
both ways, 7.6, 7.7 and 8.4 mm eight steps ahead with it, 6.7, 6.6 and 6.5 without, and costs rank with physics by
0.993, 0.993 and 0.991 with it, 0.995 each without.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from embodied_wm.tokenizer.actions import mlp

NOISE = 0.05
"""Standard deviation of the noise on latents, which have one of 1."""
MIN_STD = 1e-6
"""Spread, in a quantity's own unit, below which it is constant."""
LINE_ROWS = 20_000
"""Most rows from which the line is found."""


class Readout(nn.Module):
    """Read named quantities, in their units, from the K latent tokens of one frame."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        latent_size: int,
        names: tuple[str, ...],
        units: tuple[str, ...],
        width: int = 256,
        has_line: bool = True,
    ) -> None:
        super().__init__()
        self.names, self.units = names, units
        self.line = nn.Linear(latent_size, len(names)) if has_line else None
        self.bend = mlp((latent_size, width, width, len(names)))
        for module in (self.bend[-1], *([self.line] if self.line else [])):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
        self.register_buffer("mean", torch.zeros(len(names)))
        self.register_buffer("std", torch.ones(len(names)))

    @torch.no_grad()
    def fit_statistics(self, targets: Float[Tensor, "rows quantity"]) -> None:
        """Set the mean and std that outputs are scaled by; what never changes in these rows is only shifted.

        It may change in others, held out or collected later, and in units of next to nothing it would be all that
        counts.
        """
        std = targets.std(0, correction=int(len(targets) > 1))
        self.mean.copy_(targets.mean(0))
        self.std.copy_(torch.where(std < MIN_STD, 1.0, std))

    @torch.no_grad()
    def fit_line(self, latents: Float[Tensor, "rows tokens width"], targets: Float[Tensor, "rows quantity"]) -> None:
        """Find the line by least squares, of what the network leaves, from all rows or `LINE_ROWS` of them.

        Noise on latents acts as a ridge penalty, so this is the line for latents that are noised as in `loss`. Where
        there is no line, nothing is found.
        """
        if self.line is None:
            return
        every = -(-len(latents) // LINE_ROWS)
        inputs, targets = latents[::every].flatten(-2).to(self.mean), targets[::every].to(self.mean)
        remaining = ((targets - self.mean) / self.std - self.bend(inputs)).double()
        inputs_and_one = F.pad(inputs, [0, 1], value=1.0).double()
        ridge = torch.full_like(inputs_and_one[0], len(inputs) * NOISE**2)
        ridge[-1] = 0.0  # of the one, which has no noise
        gram = inputs_and_one.T @ inputs_and_one + ridge.diag()
        solution = torch.linalg.solve(gram, inputs_and_one.T @ remaining)
        self.line.weight.copy_(solution[:-1].T)
        self.line.bias.copy_(solution[-1])

    def forward(self, latents: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch quantity"]:
        """Return the quantities in their units."""
        flat = latents.flatten(-2)
        read = self.bend(flat) if self.line is None else self.line(flat) + self.bend(flat)
        return read * self.std + self.mean

    def loss(
        self,
        latents: Float[Tensor, "*batch tokens width"],
        targets: Float[Tensor, "*batch quantity"],
        generator: torch.Generator,
        noise: float = NOISE,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the squared error in units of the targets' std, on latents with a little noise added."""
        noised = latents + noise * torch.randn(latents.shape, generator=generator).to(latents)
        error = F.mse_loss((self(noised) - self.mean) / self.std, (targets - self.mean) / self.std)
        return error, {"mse": float(error.detach())}
