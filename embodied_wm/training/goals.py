"""Training of goal policies: goals are what the same episode was at some time later (hindsight)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from embodied_wm.goal_policy import GoalPolicy
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import Batch, Loss, Metrics, step_generator
from embodied_wm.world_model import WorldModel


def goal_batches(
    data: LatentEpisodes,
    *,
    batch_size: int,
    max_ahead: int,
    seed: int,
    members: Sequence[int] | None = None,
) -> Callable[[int], Batch]:
    """Return what draws batches of latents now, latents of a goal, and the action that was taken.

    Args:
        data: Episodes as latents, with the feature "action".
        batch_size: Pairs of each batch.
        max_ahead: Farthest goal, in frames; all that the episode has room for are equally likely.
        seed: Of the batches.
        members: Which of the episodes; None is all of them.
    """
    rows = [data.rows_of(member) for member in (range(len(data.ends)) if members is None else members)]
    usable = torch.cat([torch.arange(each.start, each.stop - 1) for each in rows])
    lasts = torch.cat([torch.full((each.stop - 1 - each.start,), each.stop - 1) for each in rows])

    def batch_of(step: int) -> Batch:
        processes = data.processes
        generator = step_generator(seed, step * processes.world_size + processes.rank)
        drawn = torch.randint(len(usable), (batch_size,), generator=generator)
        now, last = usable[drawn], lasts[drawn]
        room = (last - now).clamp_max(max_ahead)
        ahead = 1 + (torch.rand(batch_size, generator=generator) * room).long().clamp_max(max_ahead - 1)
        goals = torch.minimum(now + ahead, last)
        start, goal = data.windows(torch.cat([now, goals]), 1)[:, 0].chunk(2)
        return {"now": start, "goal": goal, "action": data.features["action"][now]}

    return batch_of


def goal_policy_loss(world_model: WorldModel, policy: GoalPolicy) -> Loss:
    """Return the squared error of normalised actions; what is felt at the goal is guessed, as of a goal image."""
    felt = world_model.proprioception

    def loss(batch: Batch, _: torch.Generator) -> tuple[Tensor, Metrics]:
        goal = batch["goal"] if felt is None else felt.guessed(batch["goal"])
        error = F.mse_loss(policy(batch["now"], goal), world_model.actions.normalize(batch["action"]))
        return error, {"mse": float(error.detach())}

    return loss
