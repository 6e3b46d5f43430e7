"""Self-forcing: train the predictor on contexts that it imagined itself, against the frames that really followed.

In training every context frame is a real one with a little noise; in imagination it is the model's own. Here the model
imagines the last H frames of a window from the real ones before them and the recorded actions, with its own sampler
and cache, so contexts look and are told as in imagination (`context_tau`), but for what would keep a network from
learning to move: `flow.HOLD`, and with gradients `stillness`. Then it learns in one of two ways:

- `cut_every=0`: what it imagined is data. Every true frame is a target of the ordinary loss (`flow_loss`: all noise
  levels, large steps too) behind the imagined frames before it, as in DAgger (arXiv 1011.0686) and the pushforward
  trick (arXiv 2202.03376). The flow objective stays alive and knows which state its own mistakes must be brought back
  to. No gradient flows through the sampler.
- `cut_every=k`: the squared error of the imagined frames themselves, whose gradient flows through the last up to k
  frames of the rollout (k = 1: each frame on its own, as in Self Forcing, arXiv 2506.08009, which restricts the
  gradient to the frame at hand; k = H: backpropagation through all of it). Squared error wants the mean of what
  can follow, so this is for worlds without hidden coins.

What came out (`scripts/bench_drift.py`, `push`, key points, 240 windows of 60 held-out episodes, one seed, a predictor
without action tokens; expected was a fifth to two fifths less error at 8 steps): 400 steps moved the box that moves
from 1.32 to 1.29 cm off at 8 steps (change -0.03 [-0.13, 0.05]) and from 3.03 to 2.66 cm at 16 (-0.37 [-0.69, -0.11])
with imagined frames as data, 61 s; to 1.26 (-0.06 [-0.17, 0.05]) and 2.68 cm (-0.35 [-0.79, 0.00]) with gradients
through 8 frames, 78 s, and its pusher was 0.02 cm worse one step ahead. With 1,200 steps at a rate of 1e-3, imagined
frames as data, the box is off by 1.12 [0.93, 1.3] and 2.24 cm [1.9, 2.6]; 1,200 more steps of the ordinary loss at the
same rate, on windows as long, leave it at 1.25 [1.0, 1.5] and 2.78 cm [2.3, 3.4], latents at 0.18 instead of 0.12 (one
seed). Where frames are seen through noise (`tests/predictor/test_self_forcing.py`; deviation 0.4), 50 steps
through 6 frames took the squared error at 8 steps from 0.155 to 0.095, 50 more ordinary steps to 0.199, imagined
frames as data to 0.184; without that noise a model that was still learning gained nothing over ordinary steps. So both
are off by default; the models that ship were trained with `cut_every=0`, which keeps the flow objective.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from embodied_wm.predictor import sampler
from embodied_wm.predictor.cache import CandidateCache, Context
from embodied_wm.predictor.flow_loss import flow_loss, squared_error
from embodied_wm.predictor.inputs import ActionInputs
from embodied_wm.predictor.model import LatentPredictor

KINDS = ("flow", "regression")


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Say how the model imagines the contexts that it trains on.

    Attributes:
        context: Real frames before each rollout.
        horizon: Imagined frames H.
        denoising_steps: Denoising steps per imagined frame.
        cut_every: 0 takes imagined frames as data; k trains them through the last up to k frames.
    """

    context: int = 3
    horizon: int = 8
    denoising_steps: int = 1
    cut_every: int = 0

    def __post_init__(self) -> None:
        """Refuse rollouts that hold no frame."""
        if self.context < 1 or self.horizon < 2 or not 0 <= self.cut_every <= self.horizon:
            raise ValueError(
                f"got context={self.context}, horizon={self.horizon}, cut_every={self.cut_every}; expected at least 1 "
                "real frame, at least 2 imagined ones, and 0 <= cut_every <= horizon"
            )


def check_rollouts(model: LatentPredictor, rollouts: Rollouts) -> None:
    """Raise ValueError unless a predictor can imagine such rollouts."""
    if model.config.kind not in KINDS:
        raise ValueError(f"self-forcing trains predictors of kind {', '.join(KINDS)}; got {model.config.kind!r}")
    if model.config.memory:
        raise ValueError(
            f"self-forcing imagines windows without remembered frames; got predictor.memory={model.config.memory}, "
            "expected 0. Set the stage's num_steps to 0, or train a model without a memory"
        )
    mixer = model.config.transformer.mixer
    if mixer != "attention":
        raise ValueError(f"self-forcing goes on from keys and values; got mixer={mixer!r}, expected 'attention'")
    if rollouts.denoising_steps not in model.step_counts:
        raise ValueError(
            f"got denoising_steps={rollouts.denoising_steps}; this predictor was trained for {model.step_counts}"
        )
    if rollouts.context >= model.config.window:
        raise ValueError(
            f"got context={rollouts.context} real frames; the predictor's window of {model.config.window} frames holds "
            f"{model.config.window - 1} beside the imagined one"
        )


def imagine_own(
    model: LatentPredictor,
    latents: Float[Tensor, "batch time tokens width"],
    led_by: Float[Tensor, "batch time model"],
    noise: Float[Tensor, "batch horizon tokens width"],
    rollouts: Rollouts,
) -> Float[Tensor, "batch horizon tokens width"]:
    """Imagine the last H frames of windows, each from its own first frames; with a graph where `cut_every` is not 0.

    Args:
        model: The predictor.
        latents: The true frames, of which the first T - H are read.
        led_by: Embedded action that led to each frame.
        noise: Start of each imagined frame.
        rollouts: How to imagine.
    """
    horizon = noise.shape[1]
    context = latents.shape[1] - horizon
    with torch.set_grad_enabled(rollouts.cut_every > 0 and torch.is_grad_enabled()):
        real = latents[:, :context]
        keys, values = model.keys_values(real, led_by[:, :context])
        nothing = Context(
            keys=tuple(layer[0, :, :0] for layer in keys),
            values=tuple(layer[0, :, :0] for layer in values),
            num_frames=0,
            next_position=context,
            last_latents=real[:, -1],
            before_last=real[:, -2:][:, 0],
        )
        cache = CandidateCache(nothing, num_candidates=len(latents), max_tokens=(latents.shape[1] + 1) * model.block)
        for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
            cache.put(layer, k, v)
        cache.keep(context * model.block)
        return sampler.imagine_windows(
            model,
            cache,
            led_by[:, context:],
            noise,
            num_steps=rollouts.denoising_steps,
            cut_every=rollouts.cut_every,
        )


def self_forced_loss(
    model: LatentPredictor,
    latents: Float[Tensor, "batch time tokens width"],
    actions: ActionInputs,
    rollouts: Rollouts,
    generator: torch.Generator,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Return the loss of windows of `context + horizon` frames whose last frames the model imagines itself.

    Args:
        model: The predictor.
        latents: Standardised latents of consecutive frames.
        actions: Actions in row convention; a window without them cannot be brought back to what happened.
        rollouts: How to imagine, and where gradients flow.
        generator: CPU source of noise and noise levels.

    Raises:
        ValueError: If the windows have another length.
    """
    batch, time = latents.shape[:2]
    if time != rollouts.context + rollouts.horizon:
        raise ValueError(
            f"got windows of {time} frames; expected {rollouts.context} real and {rollouts.horizon} imagined ones"
        )
    led_by = model.shift(model.embed_actions(actions))
    start = sampler.draw_noise(model, batch, rollouts.horizon, generator, shared=False)
    own = imagine_own(model, latents, led_by, start, rollouts)
    missed = squared_error(model, own, latents[:, rollouts.context :])
    metrics = {"own_first": float(missed[:, 0].detach().mean()), "own_last": float(missed[:, -1].detach().mean())}
    if rollouts.cut_every:
        return missed.mean(), metrics
    past = torch.cat([latents[:, : rollouts.context], own], dim=1)
    past_tau = torch.ones(batch, time, device=latents.device)
    past_tau[:, rollouts.context :] = model.config.context_tau
    _, tau = model.sample_levels(batch, time, generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    loss, _ = flow_loss(model, past, past_tau, latents, tau.to(latents), noise, actions, generator)
    return loss, metrics
