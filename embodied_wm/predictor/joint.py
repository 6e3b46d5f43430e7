"""Joint actions: action tokens with a noise level of their own, so that one network answers four questions.

A frame's block holds the action that led to it and its latents. Where the action is given and the latents are noise,
the network is a forward model; where the latents are given and the action is noise, an inverse model; where both are
noise, a policy and a video model in one (unified world models, arXiv 2504.02792). In training, a part of the sequences
with known actions has noised action tokens among the targets, a third of them beside clean latents, and half of them
with the actions of the past unknown; the action is predicted at its token, as x-prediction. The other sequences are
trained as ever, and actions of the past are clean or absent, never noised.

On a system known exactly, with actions of +1 or -1 by a coin (`tests/predictor/test_joint.py`, 300 steps): inferred
actions were off by a squared 0.0004, of 1; 95% of the proposed ones were near one of the two, half of them near each;
and the frame imagined with a proposed action moved as that action moves it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from embodied_wm.predictor import flow
from embodied_wm.predictor.cache import CandidateCache, Context

if TYPE_CHECKING:
    from embodied_wm.predictor.model import LatentPredictor

FRACTION, GIVEN_LATENTS, UNKNOWN_PAST = 0.3, 1 / 3, 0.5
"""Part of the sequences with noised actions; of these, parts with clean latents and with no actions in the past."""
ACTION_WEIGHT, UNLED_WEIGHT = 0.1, 0.1
"""Weights of the error of actions, and of latents in the sequences whose actions are noised.

Much of both cannot be known, and drowned the rest: `push`, 57 CPU seconds, one seed, errors of latents eight steps
ahead and goals solved: 0.161 and 1 of 10 with weights of 1, 0.128 and 5 with 0.1, 0.139 and 2 with 0.02; inverse errors
and proposals the same.
"""


@dataclass(frozen=True)
class NoisedActions:
    """Hold the noised actions of a batch, in block convention: those at t led to frame t.

    Attributes:
        chosen: [B], sequences whose actions are noised.
        has_past: [B], sequences whose past holds its actions.
        actions: [B, T, A], clean and normalised; zeros before the first frame.
        noised: [B, T, A], on the way from noise at their levels.
        action_tau: [B, T], those levels.
        tau: [B, T], levels of the latents, made clean in some of the chosen.
    """

    chosen: Bool[Tensor, "batch"]
    has_past: Bool[Tensor, "batch"]
    actions: Float[Tensor, "batch time action"]
    noised: Float[Tensor, "batch time action"]
    action_tau: Float[Tensor, "batch time"]
    tau: Float[Tensor, "batch time"]


class JointActions(nn.Module):
    """Embed noised actions, and read clean ones from the output at their token."""

    def __init__(self, *, action_size: int, width: int) -> None:
        super().__init__()
        self.action_size = action_size
        self.noised_in = nn.Sequential(nn.Linear(action_size + 8, width), nn.SiLU(), nn.Linear(width, width))
        self.out = nn.Linear(width, action_size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def embed(
        self, noised: Float[Tensor, "*batch action"], tau: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch model"]:
        """Embed noised actions and their levels as action tokens."""
        phase = tau[..., None] * torch.pi * 2.0 ** torch.arange(-1, 3, device=tau.device)
        return self.noised_in(torch.cat([noised, phase.sin(), phase.cos()], dim=-1))

    def draw(
        self, kinds: Bool[Tensor, "batch time"], real: Tensor | None, tau: Tensor, generator: torch.Generator
    ) -> NoisedActions:
        """Choose sequences and noise their actions.

        Args:
            kinds: Where actions are real ones, in row convention.
            real: [B, T, A], the normalised actions; None where there are none.
            tau: [B, T], levels drawn for the latents.
            generator: CPU source of the choice and the noise.
        """
        (batch, time), device = tau.shape, tau.device
        chances = torch.rand(batch, 3, generator=generator).to(device)
        levels = torch.rand(2, batch, time, generator=generator).to(tau)
        noise = torch.randn(batch, time, self.action_size, generator=generator).to(tau)
        chosen = kinds.all(1) & (chances[:, 0] < FRACTION)
        rows = torch.zeros_like(noise) if real is None else real
        actions = torch.cat([torch.zeros_like(rows[:, :1]), rows[:, :-1]], dim=1)
        action_tau = torch.where(levels[0] < 0.5, 0.0, levels[1])
        clean = chosen & (chances[:, 1] < GIVEN_LATENTS)
        return NoisedActions(
            chosen=chosen,
            has_past=~chosen | (chances[:, 2] >= UNKNOWN_PAST),
            actions=actions,
            noised=flow.interpolate(noise, actions, action_tau[..., None]),
            action_tau=action_tau,
            tau=torch.where(clean[:, None], 1.0, tau),
        )

    def led_by(self, given: NoisedActions, led_by: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the action tokens [B, T, width] of the past and of the targets, from those that tell all actions."""
        noised = self.embed(given.noised, given.action_tau)
        target = torch.where(given.chosen[:, None, None], noised, led_by)
        return torch.where(given.has_past[:, None, None], led_by, absent), target

    def error(self, hidden: Float[Tensor, "batch time model"], given: NoisedActions) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted squared error of the chosen actions, and its value by what is given."""
        error = (self.out(hidden) - given.actions).square().mean(-1)[:, 1:]
        weight = (1 - 0.9 * given.action_tau[:, 1:]) * given.chosen[:, None]
        with torch.no_grad():
            asked = given.chosen[:, None] & (given.action_tau[:, 1:] == 0)
            clean = given.tau[:, 1:] == 1
            picks = {"inverse": asked & clean, "policy": asked & ~clean}
            metrics = {name: float(error[pick].mean()) for name, pick in picks.items()}
        return ACTION_WEIGHT * (error * weight).mean(), metrics


def told_actions(model: "LatentPredictor") -> dict[str, nn.Module]:
    """Return the parts of a predictor that know one robot's real actions, by the ends of their names in training."""
    parts: dict[str, nn.Module] = {"": model.real_in}
    return parts if model.joint is None else parts | {"_joint": model.joint}


@torch.no_grad()
def infer_actions(
    model: "LatentPredictor",
    latents: Float[Tensor, "batch time tokens width"],
    generator: torch.Generator,
    *,
    num_steps: int = 1,
) -> Float[Tensor, "batch steps action"]:
    """Return normalised actions between consecutive frames, from the frames alone: the inverse model.

    Args:
        model: With `joint_actions`.
        latents: Clean latents of consecutive frames.
        generator: CPU source of noise.
        num_steps: Denoising steps; one gives the mean of what could have been done, more a sample of it.
    """
    joint = _joint(model)
    batch, time = latents.shape[:2]
    clean = torch.ones(batch, time, device=latents.device)
    absent = model.kinds[0].expand(batch, time, -1)
    x_tau = torch.randn(batch, time, joint.action_size, generator=generator).to(latents)
    for number in range(num_steps):
        tau = number / num_steps
        noised = joint.embed(x_tau, torch.full_like(clean, tau))
        finest = clean / model.config.max_steps
        out, _, _ = model.see_targets(latents, clean, latents, clean, finest, absent, noised)
        x_tau = flow.euler_step(joint.out(model.norm(out[:, :, 0])), x_tau, tau, 1 / num_steps)
    return x_tau[:, 1:]


@torch.no_grad()
def act_and_imagine(
    model: "LatentPredictor", context: Context, num_candidates: int, horizon: int, generator: torch.Generator
) -> tuple[Float[Tensor, "candidates horizon action"], Float[Tensor, "candidates horizon tokens width"]]:
    """Denoise actions and frames together: what those would do who made the data, and what would come of it.

    Args:
        model: With `joint_actions`.
        context: From `model.prefill`; shared by all candidates.
        num_candidates: S.
        horizon: H.
        generator: CPU source of noise.

    Returns:
        Normalised actions, and the latents that follow each.
    """
    joint, steps = _joint(model), model.config.max_steps
    like, block = context.last_latents, model.block
    shape = (num_candidates, horizon, model.num_tokens, model.token_width)
    noise = torch.randn(shape, generator=generator).to(like)
    action_noise = torch.randn(*shape[:2], joint.action_size, generator=generator).to(like)
    levels = torch.tensor([model.config.context_tau, *(number / steps for number in range(steps))], device=like.device)
    modulation = model.modulation(levels, torch.full_like(levels, 1 / steps), torch.ones_like(levels))
    cache = CandidateCache(context, num_candidates=num_candidates, max_tokens=(horizon + 1) * block)
    latents = like.expand(num_candidates, -1, -1)
    before = earlier = context.before_last.expand(num_candidates, -1, -1)
    tau_before, actions, frames = 1.0, [], []
    for index in range(horizon):
        x_tau, x_action = noise[:, index], action_noise[:, index]
        for number in range(steps):
            noised = joint.embed(x_action, levels[1 + number].expand(num_candidates))
            tokens = model.blocks(noised[:, None], x_tau[:, None], latents[:, None], (latents - before)[:, None])
            merged = number == 0 and index > 0
            if merged:  # as in the sampler: the frame before is written in the same pass
                led_by = model.embed_real(actions[-1][:, None])
                written = model.blocks(led_by, latents[:, None], before[:, None], (before - earlier)[:, None])
                tokens = torch.cat([written, tokens], dim=1)
            position = context.next_position + index
            positions = torch.arange(position - merged, position + 1, device=like.device)
            out = model.transformer.extend(
                tokens,
                modulation[:2] if merged else modulation[1 + number : 2 + number],
                model.transformer.rotary(positions, block),
                cache,
                window_tokens=model.config.window * block,
            )
            if merged:
                cache.keep(block)
            x_action = flow.euler_step(joint.out(model.norm(out[:, 0])), x_action, number / steps, 1 / steps)
            x_tau = model.improve(out, x_tau, noise[:, index], latents, tau_before, number=number, num_steps=steps)
        earlier, before, latents, tau_before = before, latents, x_tau, model.config.context_tau
        actions.append(x_action)
        frames.append(latents)
    return torch.stack(actions, dim=1), torch.stack(frames, dim=1)


def _joint(model: "LatentPredictor") -> JointActions:
    if model.joint is None:
        raise ValueError(
            "this model was trained to be given actions, not to denoise them, so it proposes none; train one with "
            "model.predictor.joint_actions=true model.predictor.action_token=true model.predictor.clean_pass=true, or "
            "with model.goal_policy.width=256, which proposes ways to a goal (ImaginedDynamics.propose_towards), or "
            "plan without proposals, as planner=cem does"
        )
    return model.joint


__all__ = ["JointActions", "NoisedActions", "act_and_imagine", "infer_actions", "told_actions"]
