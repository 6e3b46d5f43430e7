"""Policies that a planner must beat, trained on the same latents and actions: no search, one network pass per decision.

- Goal-conditioned behaviour cloning: what action did the data take here, when it was at the goal any time later in
  the episode?
- Inverse dynamics: what action led from here to the goal, when it was reached within a few steps? At a distance it is
  asked for more than it was trained on; that is the honest amortised baseline.

Both are one network on (latents now, latents of the goal); they differ in how far ahead the training goals lie.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn

from embodied_wm.tokenizer.actions import mlp
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import Batch, Metrics, StageConfig, fit, step_generator
from embodied_wm.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class GoalPolicyConfig:
    """Configure a `GoalPolicy`.

    Attributes:
        max_ahead: Farthest training goal, in frames.
        width: Hidden width.
        stage: Its training.
    """

    max_ahead: int = 25
    width: int = 256
    stage: StageConfig = field(default_factory=lambda: StageConfig(num_steps=1500, batch_size=256))


class GoalPolicy(nn.Module):
    """Map latents of the present and of a goal to a normalised action."""

    def __init__(self, *, latent_size: int, action_size: int, width: int) -> None:
        super().__init__()
        self.network = mlp((3 * latent_size, width, width, action_size))

    def forward(
        self, now: Float[Tensor, "*batch tokens width"], goal: Float[Tensor, "*batch tokens width"]
    ) -> Float[Tensor, "*batch action"]:
        """Return normalised actions."""
        return self.network(torch.cat([now.flatten(-2), goal.flatten(-2), (goal - now).flatten(-2)], dim=-1))


def train_goal_policy(
    name: str,
    world_model: WorldModel,
    data: LatentEpisodes,
    config: GoalPolicyConfig,
    run_dir: Path,
    *,
    seed: int,
    console: Console | None = None,
) -> GoalPolicy:
    """Train a goal policy with goals from the future of the same episode (hindsight).

    Args:
        name: Of its stage.
        world_model: Gives sizes and action statistics.
        data: Training episodes as latents, with the feature "action".
        config: The policy's configuration.
        run_dir: Folder of the run.
        seed: Seeds weights and batches.
        console: Where progress is shown.
    """
    torch.manual_seed(seed)
    latent_size = data.latents[0].numel()
    policy = GoalPolicy(latent_size=latent_size, action_size=world_model.embodiment.action_size, width=config.width)
    ends = torch.from_numpy(np.repeat(data.ends, np.diff(data.ends, prepend=0)))
    usable = torch.nonzero(torch.arange(len(ends)) < ends - 1)[:, 0]

    def batch_of(step: int) -> Batch:
        generator = step_generator(seed, step)
        rows = usable[torch.randint(len(usable), (config.stage.batch_size,), generator=generator)]
        room = (ends[rows] - 1 - rows).clamp_max(config.max_ahead)
        ahead = 1 + (torch.rand(len(rows), generator=generator) * room).long().clamp_max(config.max_ahead - 1)
        goal = torch.minimum(rows + ahead, ends[rows] - 1)
        goals, felt = data.latents[goal], world_model.proprioception
        goals = goals if felt is None else felt.guessed(goals)  # of a goal image no one knows what is felt there
        return {"now": data.latents[rows], "goal": goals, "action": data.features["action"][rows]}

    def loss_of(batch: Batch, _: torch.Generator) -> tuple[Tensor, Metrics]:
        target = world_model.actions.normalize(batch["action"])
        loss = F.mse_loss(policy(batch["now"], batch["goal"]), target)
        return loss, {"mse": float(loss.detach())}

    fit(
        name,
        nn.ModuleDict({"policy": policy}),
        batch_of,
        loss_of,
        config.stage,
        run_dir=run_dir,
        seed=seed,
        console=console,
    )
    return policy
