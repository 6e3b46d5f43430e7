"""Policies that a planner must beat, trained on the same latents and actions: no search, one network pass per decision.

- Goal-conditioned behaviour cloning: what action did the data take here, when it was at the goal any time later in
  the episode?
- Inverse dynamics: what action led from here to the goal, when it was reached within a few steps? At a distance it is
  asked for more than it was trained on; that is the honest amortised baseline.

Both are one network on (latents now, latents of the goal); they differ in how far ahead the training goals lie.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from embodied_wm.goal_policy import GoalPolicy
from embodied_wm.training.goals import goal_batches, goal_policy_loss
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import StageConfig, fit
from embodied_wm.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Configure the training of a baseline.

    Attributes:
        max_ahead: Farthest training goal, in frames.
        width: Hidden width.
        stage: Its training.
    """

    max_ahead: int = 25
    width: int = 256
    stage: StageConfig = field(default_factory=lambda: StageConfig(num_steps=1500, batch_size=256))


def train_baseline(
    name: str,
    world_model: WorldModel,
    data: LatentEpisodes,
    config: BaselineConfig,
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
        config: The baseline's configuration.
        run_dir: Folder of the run.
        seed: Seeds weights and batches.
        console: Where progress is shown.
    """
    torch.manual_seed(seed)
    latent_size = data.latents[0].numel()
    policy = GoalPolicy(latent_size=latent_size, action_size=world_model.embodiment.action_size, width=config.width)
    batch_of = goal_batches(data, batch_size=config.stage.batch_size, max_ahead=config.max_ahead, seed=seed)
    loss, parts = goal_policy_loss(world_model, policy), nn.ModuleDict({"policy": policy})
    fit(name, parts, batch_of, loss, config.stage, run_dir=run_dir, seed=seed, console=console)
    return policy
