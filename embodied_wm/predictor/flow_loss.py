"""What the predictor learns by: flow matching of every frame of a window, shortcuts, and joint actions if any.

Most sequences of a batch learn the clean latents from any noise level (x-prediction, see `flow`); some learn large
denoising steps, whose targets are two steps of half the size by the model itself. Without noise (kind "regression")
it is the squared error of the next latents.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from embodied_wm.predictor import flow
from embodied_wm.predictor.inputs import ABSENT, REAL, ActionInputs
from embodied_wm.predictor.joint import UNLED_WEIGHT

if TYPE_CHECKING:
    from embodied_wm.predictor.model import LatentPredictor


def flow_loss(
    model: "LatentPredictor",
    past: Float[Tensor, "batch time tokens width"],
    past_tau: Float[Tensor, "batch time"],
    latents: Float[Tensor, "batch time tokens width"],
    tau: Float[Tensor, "batch time"],
    noise: Float[Tensor, "batch time tokens width"],
    actions: ActionInputs,
    generator: torch.Generator,
    memory: Float[Tensor, "batch memory tokens width"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Return the loss of targets behind a given context: real frames with noise, or frames imagined before.

    Args:
        model: The predictor.
        past: What stands for each frame as context.
        past_tau: The noise level that is told of it.
        latents: Standardised latents of the true frames.
        tau: Noise levels of the targets; rounded down to a multiple of the step where large steps are trained.
        noise: Noise of the targets.
        actions: Actions in row convention.
        generator: CPU source of which sequences train large steps.
        memory: Remembered frames of each window, for models with a memory.
    """
    batch, time = latents.shape[:2]
    tau, led_by = tau.clone(), model.shift(model.embed_actions(actions))
    if not model.is_stochastic:
        nothing = torch.zeros_like(latents), torch.zeros_like(tau), torch.ones_like(tau)
        error = squared_error(model, model.predict_targets(past, past_tau, *nothing, led_by, memory), latents)[:, 1:]
        loss = (error * _trusted(past_tau)).mean()
        return loss, {"one_step": float(error.detach().mean())}
    jumps = torch.rand(batch, generator=generator) < model.config.shortcut_fraction
    jumps = jumps.to(latents.device)[:, None] & (model.config.max_steps > 1)
    noised, target_led_by = None, None
    if model.joint is not None:
        noised = model.joint.draw(actions.kind == REAL, actions.real, tau, generator)
        led_by, target_led_by = model.joint.led_by(noised, led_by, model.kinds[ABSENT])
        tau, jumps = noised.tau, jumps & ~noised.chosen[:, None]
    step = torch.full_like(tau, 1 / model.config.max_steps)
    # Without asking whether any sequence jumps: processes that share the layers' weights must make the same passes.
    has_jumps = model.config.max_steps > 1 and model.config.shortcut_fraction > 0
    some = jumps[:, 0]
    if has_jumps:
        exponents = torch.randint(
            0, model.config.max_steps.bit_length() - 1, (int(some.sum()), time), generator=generator
        )
        step[some] = 0.5 ** exponents.to(tau)
        tau[some] = (tau[some] / step[some]).floor() * step[some]
    x_tau = flow.interpolate(noise, latents, tau[..., None, None])
    target = latents
    if has_jumps:
        target = latents.clone()
        recalled = None if memory is None else memory[some]
        target[some] = _shortcut_target(
            model, past[some], past_tau[some], x_tau[some], tau[some], step[some], led_by[some], recalled
        )
    out, before, tau_before = model.see_targets(past, past_tau, x_tau, tau, step, led_by, target_led_by, memory)
    error = squared_error(model, model.read(out, before, tau_before), target)
    weight = (1 - 0.9 * tau) * _trusted(past_tau)
    if noised is not None:
        weight = weight * torch.where(noised.chosen[:, None], UNLED_WEIGHT, 1.0)
    loss = (error * weight)[:, 1:].mean()
    with torch.no_grad():
        clean = (past_tau.mean(1, keepdim=True) >= 0.8).expand_as(tau)
        pick = {"one_step": (tau == 0) & jumps, "from_noise": (tau == 0) & ~jumps}
        metrics = {name: float(error[:, 1:][(chosen & clean)[:, 1:]].mean()) for name, chosen in pick.items()}
    if model.joint is not None and noised is not None:
        of_actions, more = model.joint.error(model.norm(out[:, :, 0]), noised)
        loss, metrics = loss + of_actions, metrics | more
    return loss, {name: value for name, value in metrics.items() if value == value}


def squared_error(
    model: "LatentPredictor",
    predicted: Float[Tensor, "batch time tokens width"],
    target: Float[Tensor, "batch time tokens width"],
) -> Float[Tensor, "batch time"]:
    """Return the mean squared error of each frame, its numbers weighed as `visible_share` asks."""
    error = (predicted - target).square()
    return (error if model.error_weights is None else error * model.error_weights).mean((2, 3))


@torch.no_grad()
def _shortcut_target(
    model: "LatentPredictor",
    past: Tensor,
    past_tau: Tensor,
    x_tau: Tensor,
    tau: Tensor,
    step: Tensor,
    led_by: Tensor,
    memory: Tensor | None,
) -> Tensor:
    """Return what one step must predict to equal two of half its size."""
    tau4, step4 = tau[..., None, None], step[..., None, None]
    first = model.predict_targets(past, past_tau, x_tau, tau, step / 2, led_by, memory)
    x_middle = x_tau + flow.velocity(first, x_tau, tau4) * step4 / 2
    second = model.predict_targets(past, past_tau, x_middle, tau + step / 2, step / 2, led_by, memory)
    return flow.two_half_steps_target(first, second, x_tau, x_middle, tau4, step4)


def _trusted(past_tau_BT: Tensor) -> Tensor:
    """Return the weight [B, 1] of sequences: little where the context is noise, or its large errors would drown all."""
    return torch.where(past_tau_BT.mean(1, keepdim=True) < 0.8, 0.1, 1.0)
