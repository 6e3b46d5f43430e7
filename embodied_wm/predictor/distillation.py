"""Distillation to one step: what a frozen copy denoises in many steps is what the model must denoise in one.

The shortcut loss (`flow`) also teaches large steps, each from two of half its size by the model as it is, so errors of
the small steps' changing teacher add up from 4 to 2 to 1 steps. Here the teacher stands still and takes all its steps:
from the same noise and the same nearly clean context the student's single step must end where the teacher's many do
(as in knowledge distillation of samplers, arXiv 2101.02388, and the last stage of progressive distillation,
arXiv 2202.00512). A noise that the teacher takes to one of two futures is taken there by the student too, so unlike
squared error against what happened this does not blur.

In the same CPU time (50 seconds; flow that never learns large steps for 35, distilled for 15; three seeds) it is a tie
with shortcuts. On `push` one step has 27.2 dB [26.2, 28.0] (27.6, 26.8, 27.0) against the decoded truth eight steps
ahead, its teacher in four 27.3 (27.9, 27.0, 27.2), with shortcuts one step 27.1 [26.1, 28.0] (27.0, 27.1, 27.1)
(`scripts/bench_predictors.py --kinds flow distilled`). On `fork`, which a hidden coin decides, energy scores are 5.8 cm
[5.6, 6.1] (5.5, 5.5, 6.4), 5.8 (5.7, 5.5, 6.1) and 5.9 [5.7, 6.1] (5.3, 5.9, 6.5), outcomes covered 30% [24, 35], 28%
and 18% [13, 23] (`scripts/bench_stochastic.py`). Expected was that the student loses a little of its teacher; it lost
none that shows. Shortcuts stay the default: their model imagines in one, two or four steps, and goes on learning.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from embodied_wm.predictor import flow
from embodied_wm.predictor.flow_loss import squared_error
from embodied_wm.predictor.inputs import ActionInputs
from embodied_wm.predictor.model import LatentPredictor


def check_distillable(model: LatentPredictor, num_steps: int) -> None:
    """Raise ValueError unless a predictor denoises in `num_steps` steps, more than one, and has no memory."""
    if not model.is_stochastic or model.config.kind != "flow":
        raise ValueError(
            f"distillation makes one denoising step of many; a predictor of kind {model.config.kind!r} has no such "
            "steps. Set the stage's num_steps to 0, or train kind=flow"
        )
    if model.config.memory:
        raise ValueError(
            f"distillation knows no remembered frames; got predictor.memory={model.config.memory}, expected 0. "
            "Set the stage's num_steps to 0, or train a model without a memory"
        )
    if num_steps not in model.step_counts[1:]:
        raise ValueError(
            f"got denoising_steps={num_steps} of the teacher; this predictor was trained for "
            f"{model.step_counts}, and one step has nothing to be distilled to"
        )


@torch.no_grad()
def denoise(
    teacher: LatentPredictor,
    past: Float[Tensor, "batch time tokens width"],
    past_tau: Float[Tensor, "batch time"],
    noise: Float[Tensor, "batch time tokens width"],
    led_by: Float[Tensor, "batch time model"],
    num_steps: int,
) -> Float[Tensor, "batch time tokens width"]:
    """Denoise every frame of windows, each behind the context before it, in several steps.

    Args:
        teacher: The predictor.
        past: Latents as context.
        past_tau: Their noise levels.
        noise: Start of each frame.
        led_by: Embedded action that led to each frame, by the teacher.
        num_steps: Denoising steps.
    """
    x_tau, step = noise, 1 / num_steps
    for index in range(num_steps):
        tau = torch.full_like(past_tau, index * step)
        predicted = teacher.predict_targets(past, past_tau, x_tau, tau, torch.full_like(tau, step), led_by)
        x_tau = flow.euler_step(predicted, x_tau, index * step, step)
    return x_tau


def distillation_loss(
    student: LatentPredictor,
    teacher: LatentPredictor,
    latents: Float[Tensor, "batch time tokens width"],
    actions: ActionInputs,
    generator: torch.Generator,
    *,
    num_steps: int,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Return the squared error of the student's one step against the teacher's many.

    Args:
        student: The predictor that is trained.
        teacher: Its frozen copy.
        latents: Standardised latents of consecutive frames; they are the context alone.
        actions: Actions in row convention.
        generator: CPU source of noise and of the context's noise levels.
        num_steps: Steps of the teacher.
    """
    batch, time = latents.shape[:2]
    past_tau, _ = student.sample_levels(batch, time, generator)
    past_tau = past_tau.to(latents)
    noise, other = (torch.randn(latents.shape, generator=generator).to(latents) for _ in range(2))
    past = flow.corrupt(other, latents, past_tau[..., None, None])
    with torch.no_grad():
        told = teacher.shift(teacher.embed_actions(actions))
    target = denoise(teacher, past, past_tau, noise, told, num_steps)
    led_by = student.shift(student.embed_actions(actions))
    tau = torch.zeros_like(past_tau)
    predicted = student.predict_targets(past, past_tau, noise, tau, torch.ones_like(tau), led_by)
    error = squared_error(student, predicted, target)[:, 1:]
    clean = (past_tau.mean(1) >= 0.8)[:, None].expand_as(error)
    weight = torch.where(clean, 1.0, 0.1)
    metrics = {"to_teacher": float(error[clean].detach().mean())} if clean.any() else {}
    return (error * weight).mean(), metrics
