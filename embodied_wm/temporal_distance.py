"""Temporal distance: how many steps it takes, at best, from one latent to another; a quasimetric learnt from play.

The distance is an interval quasimetric embedding (Wang and Isola, arXiv 2211.15120): d(x, x) = 0, d >= 0 and the
triangle inequality hold by construction, and d(x, y) need not equal d(y, x): falling is quicker than climbing. It is
trained as in quasimetric reinforcement learning (Wang et al., arXiv 2304.01203, equation 10): push every pair of states
apart, under the constraint that one step costs at most one. What remains of the distance between two states is then the
length of the shortest way through the transitions of the data, whoever made them; no goal, reward or expert is needed.

The least steps between two poses of `reach` follow from how fast its joints turn. Of held-out frames, 100 goals and 64
starts for each, the readout's rank correlation (Spearman) with them is 0.958 [0.952, 0.963], that of the Euclidean
distance of latents 0.569 [0.540, 0.597]; with two other seeds 0.962 and 0.964 against 0.559 and 0.576.

    embodied-wm collect task=reach out=reach.zarr episodes=400 seed=0
    python scripts/bench_temporal_distance.py pretrained:reach

A planner reaches more goals by it than by distances of latents, the more the better it imagines: of 100 of `push` 0.89
[0.81, 0.94] with the model that ships, 0.54 [0.44, 0.63] with one of a quarter of the predictor's steps, where latents
gave 0.21 [0.14, 0.30] (12,000 steps of the distance, which is the default; with the earlier model 0.34
[0.25, 0.44] after 1,500 and 0.52 [0.42, 0.62] after 40,000). The other tasks are in RESULTS.md, "Objectives".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from embodied_wm.tokenizer.actions import mlp


@dataclass(frozen=True, kw_only=True)
class TemporalDistanceConfig:
    """Configure a `TemporalDistance`.

    Attributes:
        components: Quasimetrics that are combined; 0 leaves the readout out of the model.
        intervals: Intervals of each.
        width: Hidden width of the network before them.
        horizon: Steps beyond which distances need no longer be told apart.
        slack: Root mean square by which a step may cost more than one, in steps.
    """

    components: int = 0
    intervals: int = 8
    width: int = 256
    horizon: float = 30.0
    slack: float = 0.25


def interval_quasimetric(
    start: Float[Tensor, "*batch components intervals"], end: Float[Tensor, "*batch components intervals"]
) -> Float[Tensor, "*batch components"]:
    """Return the length of the union of the intervals [start, max(start, end)], per component (IQE, eq. 8)."""
    edges, order = torch.cat([start, torch.maximum(start, end)], dim=-1).sort(dim=-1)
    opens = torch.where(order < start.shape[-1], 1, -1)
    is_inside = opens.cumsum(-1)[..., :-1] > 0
    return (edges.diff(dim=-1) * is_inside).sum(-1)


class TemporalDistance(nn.Module):
    """Give the steps from latents to a goal's latents."""

    def __init__(self, config: TemporalDistanceConfig, *, latent_size: int) -> None:
        super().__init__()
        self.config = config
        self.network = mlp((latent_size, config.width, config.width, config.components * config.intervals))
        self.mix = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.price = nn.Parameter(torch.full((), 10.0))  # high: distances grow within the constraint, not back into it

    def embed(self, latents: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch components intervals"]:
        """Return where latents lie on the intervals' axes."""
        return self.network(latents.flatten(-2)).unflatten(-1, (self.config.components, self.config.intervals))

    def forward(
        self, latents: Float[Tensor, "*batch tokens width"], goal: Float[Tensor, "*goals tokens width"]
    ) -> Float[Tensor, "*batch"]:
        """Return the steps from each of the latents to the goal, which has their shape or none but its own."""
        return self.between(self.embed(latents), self.embed(goal))

    def between(
        self, start: Float[Tensor, "*batch components intervals"], end: Float[Tensor, "*goals components intervals"]
    ) -> Float[Tensor, "*batch"]:
        """Return the steps between embedded latents: a mixture of the largest and the mean component."""
        each = interval_quasimetric(start, end.expand_as(start)) * self.log_scale.exp()
        return torch.lerp(each.mean(-1), each.amax(-1), self.mix.sigmoid())

    def loss(
        self, latents: Float[Tensor, "batch two tokens width"], generator: torch.Generator, noise: float = 0.05
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the Lagrangian of the constrained problem; its multiplier `price` climbs where the rest descends.

        Args:
            latents: Pairs of consecutive latents.
            generator: CPU source of the pairs that are pushed apart, and of the noise on latents.
            noise: Standard deviation of noise on latents, so that imagined ones are read too.
        """
        noised = latents + noise * torch.randn(latents.shape, generator=generator).to(latents)
        now, after = self.embed(noised).unbind(1)
        other = now[torch.randperm(len(now), generator=generator).to(latents.device)]
        apart = self.between(now, other)
        pushed = F.softplus(self.config.horizon - apart, beta=0.1).mean()
        too_long = F.relu(self.between(now, after) - 1).square().mean() - self.config.slack**2
        price = F.softplus(self.price)
        loss = pushed + price.detach() * too_long - price * too_long.detach()
        metrics = {
            "apart": float(apart.detach().mean()),
            "one_step": float(self.between(now, after).detach().mean()),
            "over": float(too_long.detach()),
            "price": float(price.detach()),
        }
        return loss, metrics
