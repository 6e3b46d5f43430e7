"""Imagine: denoise frame after frame for many candidates that share one cached context.

Writing frame t's keys and values and the first denoising step of frame t+1 are one pass through the network: the
clean block of frame t and the noised block of frame t+1 go in together, and the last layer computes outputs for the
noised latents only. `imagine_uncached` recomputes everything at every step; it is the reference that the cache is
tested and timed against.

Tried and left out: classifier-free guidance on actions, x = absent + w (given - absent). On `push` (180 windows of
held-out episodes, nano keypoints, one step) the squared error of latents at h = 8 is least without it: 0.049 at w = 1,
0.050 at 1.1, 0.052 at 1.25 and at 0.8, 0.058 at 1.5; and guidance costs a second pass.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from embodied_wm.predictor.cache import CandidateCache, Context
from embodied_wm.predictor.extension import Extension
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.parts import SMALL, in_parts, one_thread
from embodied_wm.predictor.transformer import BlockCausalTransformer

LedBy = Callable[[int, Tensor], Tensor]
"""(index h, latents [S, K, D] before frame h) to the embedded action [S, width] that leads to imagined frame h."""


def draw_noise(
    model: LatentPredictor, num_candidates: int, horizon: int, generator: torch.Generator, *, shared: bool
) -> Float[Tensor, "candidates horizon tokens noise"]:
    """Draw the noise that each imagined frame starts from; zeros for a model that knows no noise.

    For a model of kind "masked" it is uniform, and what its rounds draw codes by.

    Args:
        model: Gives K, D and the device.
        num_candidates: S.
        horizon: H.
        generator: CPU source of randomness.
        shared: Give all candidates the same noise (common random numbers), so that their differences come from actions.
    """
    shape = (1 if shared else num_candidates, horizon, model.num_tokens, model.token_width)
    if model.masked is not None:
        noise = torch.rand(*shape[:3], model.masked.noise_width, generator=generator)
    else:
        noise = torch.randn(shape, generator=generator) if model.is_stochastic else torch.zeros(shape)
    return noise.expand(num_candidates, -1, -1, -1).to(model.slots.device)


def check_steps(model: LatentPredictor, num_steps: int) -> None:
    """Raise ValueError for a number of denoising steps that a model was not trained for."""
    if num_steps not in model.step_counts:
        raise ValueError(
            f"got num_steps={num_steps} denoising steps of an imagined frame; this model was trained for "
            f"{model.step_counts}: choose one of them (denoising_steps=... of a verb)"
        )


def imagine(
    model: LatentPredictor,
    context: Context,
    led_by: LedBy,
    noise: Float[Tensor, "candidates horizon tokens noise"],
    *,
    num_steps: int = 1,
    is_differentiable: bool = False,
) -> Float[Tensor, "candidates horizon tokens width"]:
    """Imagine H frames for S candidates from a shared cached context.

    Args:
        model: The predictor.
        context: From `model.prefill`.
        led_by: Gives the embedded actions, frame by frame, since a code can depend on what was imagined so far.
        noise: Start of each frame, from `draw_noise`.
        num_steps: Denoising steps per frame: 1, 2, ... up to the model's `max_steps`.
        is_differentiable: Let gradients flow back to what `led_by` gives, at the price of the graph's memory.
    """
    if is_differentiable and model.masked is not None:
        raise ValueError(
            "a model of kind 'masked' imagines codes, through which no gradient flows back to actions; plan without "
            "gradients (planner=cem, icem, mppi), or with a model of kind 'flow'"
        )
    candidates, horizon = noise.shape[:2]
    with torch.set_grad_enabled(is_differentiable):
        cache = CandidateCache(
            context,
            num_candidates=candidates,
            max_tokens=(horizon + 1) * model.block,
            window_tokens=(model.config.window + 1) * model.block,  # two frames go in at once, each with a window
        )
        return torch.stack(list(_frames(model, cache, led_by, noise, num_steps)), dim=1)


def imagine_in_parts(
    model: LatentPredictor,
    context: Context,
    led_by: Callable[[slice], LedBy],
    noise: Float[Tensor, "candidates horizon tokens noise"],
    *,
    num_steps: int = 1,
) -> Float[Tensor, "candidates horizon tokens width"]:
    """Return what `imagine` does without gradients, in parts of the candidates, side by side; see `parts`.

    Args:
        model: The predictor.
        context: From `model.prefill`; not several that are joined.
        led_by: Gives, for rows of the candidates, what `imagine` asks for.
        noise: As for `imagine`.
        num_steps: As for `imagine`.
    """

    def run(rows: slice) -> Tensor:
        return imagine(model, context, led_by(rows), noise[rows], num_steps=num_steps)

    if noise.device.type != "cpu":
        return run(slice(None))
    num_new = model.new_tokens
    is_small = len(noise) * num_new * model.config.transformer.width < SMALL
    with one_thread() if is_small else nullcontext():
        return in_parts(run, len(noise), num_new)


def finite(
    imagined: Float[Tensor, "candidates horizon tokens width"],
) -> Float[Tensor, "candidates horizon tokens width"]:
    """Return imagined latents as they are; raise ValueError if some are not finite."""
    if not math.isfinite(imagined.detach().sum()):  # one number to look at; a sum of finite ones can overflow, too
        is_bad = ~imagined.isfinite().flatten(2).all(-1)
        if is_bad.any():
            (candidates, horizon), first = is_bad.shape, int(is_bad.any(0).nonzero()[0]) + 1
            raise ValueError(
                f"imagined latents hold NaN or infinity from step {first} of {horizon} on, in "
                f"{int(is_bad.any(1).sum())} of {candidates} candidates. Check the checkpoint's weights, and that "
                "actions are in the range that the model was trained on (action_low to action_high)."
            )
    return imagined


@torch.no_grad()
def imagine_frames(
    model: LatentPredictor, cache: CandidateCache, led_by: LedBy, noise: Tensor, *, num_steps: int = 1
) -> Iterator[Tensor]:
    """Yield what `imagine` returns frame by frame, [S, K, D] each; `led_by` is asked just before each.

    Args:
        model: The predictor.
        cache: Of candidates that have imagined nothing yet, with room for H + 1 frames.
        led_by: As for `imagine`; it may wait for an action that is decided on what was imagined last.
        noise: [S, H, K, N], from `draw_noise`.
        num_steps: Denoising steps per frame.
    """
    yield from _frames(model, cache, led_by, noise, num_steps)


def imagine_windows(
    model: LatentPredictor,
    cache: CandidateCache,
    led_by: Float[Tensor, "batch horizon model"],
    noise: Float[Tensor, "batch horizon tokens width"],
    *,
    num_steps: int = 1,
    cut_every: int = 0,
) -> Float[Tensor, "batch horizon tokens width"]:
    """Imagine the H frames that follow B contexts, each its own; the graph is recorded where gradients are enabled.

    Args:
        model: The predictor.
        cache: Of the contexts, with room for H + 1 frames.
        led_by: Embedded action that leads to each imagined frame.
        noise: Start of each frame.
        num_steps: Denoising steps per frame.
        cut_every: Frames after which no gradient flows back from what is imagined later, through latents, keys or
            values; 0 cuts nowhere.
    """
    frames = _frames(model, cache, lambda index, _: led_by[:, index], noise, num_steps, cut_every)
    return torch.stack(list(frames), dim=1)


def _frames(
    model: LatentPredictor,
    cache: CandidateCache,
    led_by: LedBy,
    noise: Tensor,
    num_steps: int,
    cut_every: int = 0,
) -> Iterator[Tensor]:
    check_steps(model, num_steps)
    candidates, horizon = noise.shape[:2]
    block, device, context = model.block, noise.device, cache.context
    is_clean = model.config.clean_pass
    extend = _extension(model, cache, _modulation(model, num_steps, device), horizon)
    latents = context.last_latents.expand(candidates, -1, -1)
    before = earlier = context.before_last.expand(candidates, -1, -1)
    tau_before = 1.0
    action = action_before = led_by(0, latents)
    for index in range(horizon):
        if index:
            action_before, action = action, led_by(index, latents)
        x_tau = model.start(noise[:, index])
        for substep in range(num_steps):
            if is_clean and substep == 0 and index > 0:
                frames = torch.stack([earlier, before, latents, x_tau], dim=1)
                out = extend(_new_blocks(model, torch.stack([action_before, action], dim=1), frames), slice(2), index)
                cache.keep(block)
            else:
                frames = torch.stack([before, latents, x_tau], dim=1)
                row = substep + 1 if is_clean or index == 0 else substep + 1 + num_steps
                out = extend(_new_blocks(model, action[:, None], frames), slice(row, row + 1), index)
            x_tau = model.improve(out, x_tau, noise[:, index], latents, tau_before, number=substep, num_steps=num_steps)
        if not is_clean:
            cache.keep(block)
        yield x_tau
        earlier, before, latents, tau_before = before, latents, x_tau, model.config.context_tau
        if cut_every and (index + 1) % cut_every == 0:
            earlier, before, latents = earlier.detach(), before.detach(), latents.detach()
            cache.detach()


def _modulation(model: LatentPredictor, num_steps: int, device: torch.device) -> Tensor:
    """Return the modulation of frames that become context, of each step behind real ones, and behind imagined ones."""
    imagined, steps = model.config.context_tau, [index / num_steps for index in range(num_steps)]
    levels = torch.tensor([imagined] + 2 * steps, device=device)
    sizes = torch.tensor([1 / model.config.max_steps] + [1 / num_steps] * (2 * num_steps), device=device)
    before = torch.tensor([imagined] + [1.0] * num_steps + [imagined] * num_steps, device=device)
    return model.modulation(levels, sizes, before)


def _new_blocks(model: LatentPredictor, led_by: Tensor, frames: Tensor) -> Tensor:
    """Return the blocks of the last F of F + 2 frames [S, F + 2, K, D], whose actions [S, F, width] led to them."""
    return model.blocks(led_by, frames[:, 2:], frames[:, 1:-1], frames[:, 1:-1] - frames[:, :-2])


def _extension(
    model: LatentPredictor, cache: CandidateCache, modulation: Tensor, num_frames: int
) -> Callable[[Tensor, slice, int], Tensor]:
    """Return what extends the candidates by blocks, given the rows of the modulation and the last new frame's index."""
    block, transformer = model.block, model.transformer
    window_tokens = model.config.window * block
    if type(transformer) is BlockCausalTransformer and not torch.is_grad_enabled():
        return Extension(
            transformer, cache, modulation, block=block, num_frames=num_frames, window_tokens=window_tokens
        )

    def extend(blocks: Tensor, levels: slice, frame: int) -> Tensor:
        last = cache.context.next_position + frame
        positions = torch.arange(last + 1 - blocks.shape[1], last + 1, device=blocks.device)
        rotary = transformer.rotary(positions, block)
        return transformer.extend(blocks, modulation[levels], rotary, cache, window_tokens=window_tokens)

    return extend


@torch.no_grad()
def imagine_uncached(
    model: LatentPredictor,
    context_latents: Float[Tensor, "frames tokens width"],
    context_led_by: Float[Tensor, "1 frames model"],
    led_by: Float[Tensor, "candidates horizon model"],
    noise: Float[Tensor, "candidates horizon tokens noise"],
    *,
    num_steps: int = 1,
    memory: Float[Tensor, "1 memory tokens width"] | None = None,
) -> Float[Tensor, "candidates horizon tokens width"]:
    """Imagine as `imagine` does, re-running the whole window at every step; the reference for tests and timings.

    Args:
        model: The predictor.
        context_latents: Clean latents of the context.
        context_led_by: Embedded actions that led to each context frame, "absent" for the first.
        led_by: Embedded actions of the candidates.
        noise: Start of each frame.
        num_steps: Denoising steps per frame.
        memory: Remembered frames, for models with a memory (from `recall`).
    """
    check_steps(model, num_steps)
    candidates, horizon = led_by.shape[:2]
    remembered = None if memory is None else memory.expand(candidates, -1, -1, -1)
    past = repeat(context_latents, "t k d -> s t k d", s=candidates)
    tokens = torch.cat([repeat(context_led_by, "1 t w -> s t w", s=candidates), led_by], dim=1)
    num_context, step, is_clean = past.shape[1], 1 / num_steps, model.config.clean_pass
    past_tau = torch.ones(candidates, num_context, device=past.device)
    seen, tau = (past, past_tau) if is_clean else (torch.zeros_like(past), torch.zeros_like(past_tau))
    size = torch.full_like(tau, 1 / model.config.max_steps if is_clean else 1.0)
    for index in range(horizon):
        x_tau = model.start(noise[:, index])
        time, like = num_context + index + 1, past_tau[:, :1]
        for substep in range(num_steps):
            windows = torch.cat([past, x_tau[:, None]], 1), torch.cat([past_tau, torch.zeros_like(like)], 1)
            frames = torch.cat([seen, x_tau[:, None]], dim=1)
            levels = torch.cat([tau, torch.full_like(like, substep * step)], dim=1)
            sizes = torch.cat([size, torch.full_like(like, step)], dim=1)
            out = model.see(frames, levels, sizes, tokens[:, :time], *windows, remembered)[:, -1]
            before = past[:, -1], past_tau[:, -1, None, None]
            x_tau = model.improve(out, x_tau, noise[:, index], *before, number=substep, num_steps=num_steps)
        past = torch.cat([past, x_tau[:, None]], dim=1)
        past_tau = torch.cat([past_tau, torch.full_like(like, model.config.context_tau)], dim=1)
        seen, tau, size = (past, past_tau, torch.cat([size, size[:, :1]], 1)) if is_clean else (frames, levels, sizes)
    return past[:, num_context:]
