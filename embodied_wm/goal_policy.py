"""Goal policy: what the data did here, when it was at the goal later: goal-conditioned behaviour cloning on latents.

Alone it is a baseline that a planner must beat. As a part of the model it proposes where the search begins: rolled out
in imagination, it gives whole sequences towards the goal, among which and around which the planner looks for better
ones, as the policy of TD-MPC2 does (arXiv 2310.16828). It pays where good sequences are rare: a hand that has to open,
come down, close and lift is not found by chance (RESULTS.md, "Models that ship").
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from embodied_wm.tokenizer.actions import mlp


@dataclass(frozen=True, kw_only=True)
class GoalPolicyConfig:
    """Configure a `GoalPolicy`.

    Attributes:
        width: Hidden width, such as 256; 0 leaves the policy out of the model.
        max_ahead: Farthest training goal, in frames.
    """

    width: int = 0
    max_ahead: int = 25

    def check(self, *, stride: int, memory: int) -> None:
        """Raise ValueError for models that cannot imagine what comes of one action after another."""
        if self.width and (stride > 1 or memory):
            raise ValueError(
                f"goal_policy.width={self.width} with temporal_stride={stride} and predictor.memory={memory}: a goal "
                "policy acts frame by frame; expected a stride of 1 and no memory, or a width of 0"
            )


class GoalPolicy(nn.Module):
    """Map latents of the present and of a goal to a normalised action."""

    def __init__(self, *, latent_size: int, action_size: int, width: int) -> None:
        super().__init__()
        self.network = mlp((3 * latent_size, width, width, action_size))

    def forward(
        self, now: Float[Tensor, "*batch tokens width"], goal: Float[Tensor, "*goals tokens width"]
    ) -> Float[Tensor, "*batch action"]:
        """Return normalised actions; the goal has the shape of the present, or is one for all."""
        goal = goal.expand_as(now)
        return self.network(torch.cat([now.flatten(-2), goal.flatten(-2), (goal - now).flatten(-2)], dim=-1))
