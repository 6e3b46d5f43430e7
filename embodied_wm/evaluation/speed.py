"""Speed of imagination and of a decision: PROTOCOL section 3, the parts `imagine` and `decide`.

Medians over repeats, warm-up excluded, cached and uncached alternately in one run; random inputs, since the time does
not depend on them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from embodied_wm.evaluation.statistics import bootstrap_quantile
from embodied_wm.predictor import sampler
from embodied_wm.predictor.model import ABSENT
from embodied_wm.progress import Track
from embodied_wm.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Say what is timed.

    Attributes:
        num_candidates: Values of S.
        context_frames: Values of C; those beyond the model's window are left out.
        denoising_steps: Steps per imagined frame; those the model was not trained for are left out.
        horizon: H.
        repeats: Timed repeats after one that is not.
    """

    num_candidates: Sequence[int] = (16, 64, 256)
    context_frames: Sequence[int] = (1, 4)
    denoising_steps: Sequence[int] = (1, 2, 4)
    horizon: int = 8
    repeats: int = 5


def median_seconds(runs: Sequence[Callable[[], object]], repeats: int) -> list[dict[str, Any]]:
    """Time several functions alternately and return the median of each with its interval."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(repeats):
        for row, run in zip(times, runs, strict=True):
            began = time.perf_counter()
            run()
            row.append(time.perf_counter() - began)
    return [bootstrap_quantile(row, 0.5, seed=0) for row in times]


def matmul_flops(repeats: int = 5) -> float:
    """Measure this machine's fp32 matrix-product rate, in FLOP/s, at 1024 x 1024."""
    first = torch.randn(1024, 1024)
    seconds = median_seconds([lambda: first @ first], repeats)[0]["value"]
    return 2 * 1024**3 / seconds


def imagination_pair(
    world_model: WorldModel, *, num_candidates: int, context: int, horizon: int, num_steps: int
) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """Return cached (prefill included) and uncached imagination of the same random inputs."""
    model = world_model.predictor
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(context, model.num_tokens, model.token_width, generator=generator)
    past = torch.rand(1, context, world_model.embodiment.action_size, generator=generator)
    actions = torch.rand(num_candidates, horizon, world_model.embodiment.action_size, generator=generator)
    noise = sampler.draw_noise(model, num_candidates, horizon, generator, shared=False)
    with torch.no_grad():
        embedded = model.embed_actions(world_model.action_inputs(actions))
        before = model.embed_actions(world_model.action_inputs(past))
        led_by = torch.cat([model.kinds[ABSENT].expand(1, 1, -1), before[:, :-1]], dim=1)

    def cached() -> torch.Tensor:
        prefilled = model.prefill(latents, world_model.action_inputs(past))
        return sampler.imagine(model, prefilled, lambda index, _: embedded[:, index], noise, num_steps=num_steps)

    def uncached() -> torch.Tensor:
        return sampler.imagine_uncached(model, latents, led_by, embedded, noise, num_steps=num_steps)

    return cached, uncached


def measure_speed(world_model: WorldModel, config: SpeedConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Time imagination over all combinations that the model supports.

    Returns:
        "matmul_flops", and "imagine": a list of rows {num_candidates, context, num_steps, cached_seconds,
        uncached_seconds, candidate_steps_per_second, speed_up, relative_difference}.
    """
    predictor = world_model.predictor.config
    steps = [count for count in config.denoising_steps if count in world_model.predictor.step_counts]
    contexts = [count for count in config.context_frames if count + config.horizon <= predictor.window]
    cases = [(s, c, n) for s in config.num_candidates for c in contexts for n in steps]
    rows = []
    with Track("time imagination", len(cases), unit="cases", console=console) as track:
        for candidates, context, num_steps in cases:
            cached, uncached = imagination_pair(
                world_model, num_candidates=candidates, context=context, horizon=config.horizon, num_steps=num_steps
            )
            fast, slow = median_seconds([cached, uncached], config.repeats)
            difference = (cached() - uncached()).abs().max() / uncached().abs().max()
            rows.append(
                {
                    "num_candidates": candidates,
                    "context": context,
                    "num_steps": num_steps,
                    "cached_seconds": fast,
                    "uncached_seconds": slow,
                    "candidate_steps_per_second": candidates * config.horizon / fast["value"],
                    "speed_up": slow["value"] / fast["value"],
                    "relative_difference": float(difference),
                }
            )
            track.advance()
    return {"matmul_flops": matmul_flops(), "imagine": rows}
