"""A world model as what planners plan with: `planners.base.Dynamics` by imagination, one environment or many."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from embodied_wm.conditioning import ActionKind, check_kind
from embodied_wm.predictor.cache import Context
from embodied_wm.predictor.sampler import draw_noise
from embodied_wm.world_model import WorldModel

PROPOSAL_NOISE = 0.6
"""Largest standard deviation of the noise on a goal policy's actions, in half action ranges."""
PROPOSAL_CORRELATION = 0.5
"""Correlation of that noise from step to step."""


class ImaginedDynamics:
    """Offer a world model to a planner: real actions in, imagined latents out.

    With kind "latent" actions are latent codes instead, each channel in [-1, 1] and rounded to its levels.

    Attributes:
        action_size: A.
        action_low: [A], smallest action of the training data's range.
        action_high: [A], largest.
    """

    def __init__(
        self,
        world_model: WorldModel,
        *,
        kind: ActionKind = "real",
        num_steps: int = 1,
        seed: int = 0,
        shared_noise: bool = True,
    ) -> None:
        check_kind(kind)
        self.world_model, self.num_steps, self.shared_noise = world_model, num_steps, shared_noise
        self.kind: ActionKind = kind
        self.generator = torch.Generator().manual_seed(seed)
        self.action_size = world_model.embodiment.action_size
        self.action_low: Tensor = world_model.action_low
        self.action_high: Tensor = world_model.action_high
        if kind == "latent":
            if world_model.stride > 1:
                raise ValueError(
                    f"one code of this model stands for {world_model.stride} actions, planners plan one by one; "
                    "take a model with temporal_stride=1, or kind='adapted'"
                )
            self.action_size = world_model.config.latent_actions.code_size
            self.action_high = torch.ones(self.action_size, device=world_model.action_high.device)
            self.action_low = -self.action_high

    def reseed(self, seed: int) -> None:
        """Start the noise of imagination anew; `planners.mpc.MPC` does it at the start of every episode."""
        self.generator.manual_seed(seed)

    @property
    def action_set(self) -> Float[Tensor, "M A"] | None:
        """Return every latent code, for planners.tree; None where actions are real ones."""
        if self.kind != "latent":
            return None
        every = torch.cartesian_prod(*self.world_model.latent_actions.values())
        return every.reshape(-1, self.action_size)  # of one channel it would be flat

    def imagine(self, context: Context, actions: Float[Tensor, "S H A"]) -> Float[Tensor, "S H K D"]:
        """Imagine all candidates from one shared context."""
        return self._imagine(context, actions, shared_noise=self.shared_noise)

    def _imagine(self, context: Context, actions: Tensor, *, shared_noise: bool) -> Tensor:
        if self.kind == "latent":
            actions = self.world_model.latent_actions.quantise(actions)
        return self.world_model.imagine(
            context,
            actions,
            kind=self.kind,
            num_steps=self.num_steps,
            generator=self.generator,
            shared_noise=shared_noise,
        )

    def propose(
        self, context: Context, num: int, horizon: int, generator: torch.Generator, /
    ) -> Float[Tensor, "num horizon A"]:
        """Propose action sequences, as planners.proposing.Proposals; the model must denoise actions."""
        if self.kind == "latent":
            raise ValueError("a model proposes real actions, and these dynamics take codes; use kind='real'")
        return self.world_model.propose_actions(context, num, horizon=horizon, generator=generator)

    @torch.no_grad()
    def propose_towards(
        self, goal: Float[Tensor, "K D"], context: Context, num: int, horizon: int, generator: torch.Generator, /
    ) -> Float[Tensor, "num horizon A"]:
        """Propose what the model's goal policy does on the way to a goal's latents, rolled out in imagination.

        The first sequence is the policy's own; the others are led astray by noise, each more than the one before, so
        that they also show how the policy comes back.

        Raises:
            ValueError: If the model has no goal policy, or imagines several frames in a step.
        """
        model = self.world_model
        if self.kind == "latent" or not model.config.goal_policy.width:
            raise ValueError(
                "only models with a goal policy propose ways to a goal, and real actions; train one with "
                "model.goal_policy.width=256, or plan without proposals (task.proposals=0)"
            )
        scale = torch.linspace(0, PROPOSAL_NOISE, num)[:, None].to(goal) * (self.action_high - self.action_low) / 2
        latents, astray = context.last_latents.expand(num, -1, -1), torch.zeros_like(scale)
        noise = draw_noise(model.predictor, num, horizon, generator, shared=self.shared_noise)
        actions: list[Tensor] = []
        frames = model.imagine_frames(
            [context] * num, lambda: actions[-1], noise, kind=self.kind, num_steps=self.num_steps
        )
        for index in range(horizon):
            fresh = torch.randn(num, self.action_size, generator=generator).to(goal)
            share = PROPOSAL_CORRELATION if index else 0.0
            astray = share * astray + (1 - share**2) ** 0.5 * fresh
            action = model.actions.denormalize(model.goal_policy(latents, goal)) + scale * astray
            actions.append(torch.clamp(action, self.action_low, self.action_high))
            latents = latents if index == horizon - 1 else next(frames)
        return torch.stack(actions, dim=1)

    def imagine_batch(
        self, contexts: Sequence[Context], actions: Float[Tensor, "B S H A"]
    ) -> Float[Tensor, "B S H K D"]:
        """Imagine the candidates of B environments in one pass, each from its own environment's shared context."""
        joined = Context.join(contexts, num_candidates=actions.shape[1])
        return self.imagine(joined, actions.flatten(0, 1)).unflatten(0, actions.shape[:2])

    def imagine_samples(
        self, context: Context, actions: Float[Tensor, "H A"], num_samples: int
    ) -> Float[Tensor, "N H K D"]:
        """Imagine one sequence several times, each with noise of its own: where they differ, the model is not sure."""
        return self._imagine(context, actions.expand(num_samples, -1, -1), shared_noise=False)
