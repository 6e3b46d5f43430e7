"""Speed of imagination and how it grows: PROTOCOL section 3, the parts `imagine` and `decide`.

Medians over repeats, warm-up excluded, cached and uncached alternately in one run; random inputs, since the time does
not depend on them, on the model's device, whose work is waited for before a clock is read. Weights do not depend on the
window either, so a context that is longer than the model's window is timed with the same weights and a window that
holds it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from embodied_wm.evaluation.growth import measure_growth, measure_memory, with_window
from embodied_wm.evaluation.statistics import bootstrap_quantile
from embodied_wm.predictor import sampler
from embodied_wm.predictor.inputs import ABSENT
from embodied_wm.predictor.int8 import set_precision
from embodied_wm.predictor.memory import recall
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.progress import Track
from embodied_wm.ranges import check_counts
from embodied_wm.world_model import WorldModel

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Say what is timed.

    Attributes:
        num_candidates: Values of S.
        context_frames: Values of C.
        denoising_steps: Steps per imagined frame; those the model was not trained for are left out.
        horizon: H.
        repeats: Timed repeats after one that is not.
        most_uncached: Largest S, and largest C, at which the uncached reference is timed beside the cached one.
        grows: Whether growth with candidates, horizon, tokens and context, decisions and memory are measured, too.
        clock: "wall", or "cpu" for the processor time of this process: where others use the machine, with one thread,
            and the model is on the CPU.
    """

    num_candidates: Sequence[int] = (16, 64, 256)
    context_frames: Sequence[int] = (1, 4)
    denoising_steps: Sequence[int] = (1, 2, 4)
    horizon: int = 8
    repeats: int = 5
    most_uncached: int = 128
    grows: bool = False
    clock: Literal["wall", "cpu"] = "wall"

    def __post_init__(self) -> None:
        """Raise ValueError where there is nothing to time."""
        check_counts(
            num_candidates=self.num_candidates,
            context_frames=self.context_frames,
            denoising_steps=self.denoising_steps,
            horizon=self.horizon,
            repeats=self.repeats,
        )


def clock_of(name: str, device: torch.device) -> Callable[[], float]:
    """Return a clock of CLOCKS that waits for a device's work before it is read.

    Raises:
        ValueError: If processor time is asked for of a model that is not on the CPU.
    """
    clock = CLOCKS[name]
    if device.type == "cpu":
        return clock
    if name == "cpu":
        raise ValueError(f"got speed.clock=cpu, which sees no work on {device}; use speed.clock=wall, or device=cpu")

    def waiting() -> float:
        torch.cuda.synchronize(device)
        return clock()

    return waiting


def median_seconds(
    runs: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, Any]]:
    """Time several functions alternately and return the median of each with its interval."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(repeats):
        for row, run in zip(times, runs, strict=True):
            began = clock()
            run()
            row.append(clock() - began)
    return [bootstrap_quantile(row, 0.5, seed=0) for row in times]


def matmul_flops(device: torch.device, repeats: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure a device's fp32 matrix-product rate, in FLOP/s, at 1024 x 1024."""
    first = torch.randn(1024, 1024, device=device)
    seconds = median_seconds([lambda: first @ first], repeats, clock)[0]["value"]
    return 2 * 1024**3 / seconds


def product_flops(run: Callable[[], object]) -> int:
    """Count the operations of the matrix products in a run, those of int8 too, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what other threads do is not counted
    try:
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten._int_mm: _whole_operations}) as counter:
            run()
    finally:
        torch.set_num_threads(threads)
    return counter.get_total_flops()


def _whole_operations(left: Sequence[int], right: Sequence[int], **_: object) -> int:
    return 2 * left[0] * left[1] * right[1]


def imagination_pair(
    world_model: WorldModel,
    *,
    num_candidates: int,
    context: int,
    horizon: int,
    num_steps: int,
    predictor: LatentPredictor | None = None,
) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """Return cached (prefill included) and uncached imagination of the same random inputs.

    Args:
        world_model: Knows how actions are embedded.
        num_candidates: S.
        context: C.
        horizon: H.
        num_steps: Denoising steps per frame.
        predictor: Instead of the world model's.
    """
    model = with_window(predictor or world_model.predictor, context + horizon)
    device, generator = world_model.action_low.device, torch.Generator().manual_seed(0)
    latents = torch.randn(context, model.num_tokens, model.token_width, generator=generator).to(device)
    past = torch.rand(1, context, world_model.embodiment.action_size, generator=generator).to(device)
    actions = torch.rand(num_candidates, horizon, world_model.embodiment.action_size, generator=generator).to(device)
    noise = sampler.draw_noise(model, num_candidates, horizon, generator, shared=False)
    with torch.no_grad():
        embedded = model.embed_actions(world_model.action_inputs(actions))
        before = model.embed_actions(world_model.action_inputs(past))
        led_by = torch.cat([model.kinds[ABSENT].expand(1, 1, -1), before[:, :-1]], dim=1)

    def cached() -> torch.Tensor:
        prefilled = model.prefill(latents, world_model.action_inputs(past))
        return sampler.imagine_in_parts(
            model, prefilled, lambda rows: lambda index, _: embedded[rows, index], noise, num_steps=num_steps
        )

    def uncached() -> torch.Tensor:
        memory = recall(latents[:0], latents, model.config.memory)
        return sampler.imagine_uncached(model, latents, led_by, embedded, noise, num_steps=num_steps, memory=memory)

    return cached, uncached


def step_by_step(world_model: WorldModel) -> WorldModel:
    """Return a model of the same weights whose steps are of one frame each, and take the actions of several as one."""
    if world_model.stride == 1:
        return world_model
    body = replace(world_model.embodiment, action_size=world_model.chunk_size, action_names=())
    model = WorldModel(replace(world_model.config, temporal_stride=1), body)
    weights = {name: value for name, value in world_model.state_dict().items() if not name.startswith("action")}
    model.load_state_dict(weights, strict=False)  # all but the scales of single actions
    set_precision(model.predictor.transformer, world_model.predictor.transformer.precision)
    return model.to(world_model.action_low.device).eval()


def measure_speed(world_model: WorldModel, config: SpeedConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Time imagination over all combinations that the model supports; a step is one of the predictor.

    Returns:
        "matmul_flops", "threads", "clock", and "imagine": a list of rows {num_candidates, context, num_steps,
        cached_seconds, candidate_steps_per_second, flops, utilisation} and, where the uncached reference was timed,
        {uncached_seconds, speed_up, relative_difference}. With `grows` also "growth", "decide" and "memory"; see
        `growth`.
    """
    world_model = step_by_step(world_model)
    clock = clock_of(config.clock, world_model.action_low.device)
    steps = [count for count in config.denoising_steps if count in world_model.predictor.step_counts]
    cases = [(s, c, n) for s in config.num_candidates for c in config.context_frames for n in steps]
    rows = []
    with Track("time imagination", len(cases), unit="cases", console=console) as track:
        for case in cases:
            rows.append(_row(world_model, config, clock, *case))
            track.advance()
    found = {
        "matmul_flops": matmul_flops(world_model.action_low.device, clock=clock),
        "threads": torch.get_num_threads(),
        "clock": config.clock,
        "imagine": rows,
    }
    if not config.grows:
        return found

    def timed(runs: Sequence[Callable[[], object]]) -> list[dict[str, Any]]:
        return median_seconds(runs, config.repeats, clock)

    return found | measure_growth(world_model, imagination_pair, timed) | {"memory": measure_memory(world_model)}


def _row(
    world_model: WorldModel,
    config: SpeedConfig,
    clock: Callable[[], float],
    num_candidates: int,
    context: int,
    num_steps: int,
) -> dict[str, Any]:
    cached, uncached = imagination_pair(
        world_model, num_candidates=num_candidates, context=context, horizon=config.horizon, num_steps=num_steps
    )
    first = torch.randn(1024, 1024, device=world_model.action_low.device)
    has_reference = max(num_candidates, context) <= config.most_uncached
    runs = [cached, lambda: first @ first, *([uncached] if has_reference else [])]
    fast, product, *slow = median_seconds(runs, config.repeats, clock)
    flops = product_flops(cached)
    row = {
        "num_candidates": num_candidates,
        "context": context,
        "num_steps": num_steps,
        "cached_seconds": fast,
        "candidate_steps_per_second": num_candidates * config.horizon / fast["value"],
        "flops": flops,
        "utilisation": flops / fast["value"] / (2 * 1024**3 / product["value"]),
    }
    if slow:
        row["uncached_seconds"], row["speed_up"] = slow[0], slow[0]["value"] / fast["value"]
        row["relative_difference"] = float((cached() - uncached()).abs().max() / uncached().abs().max())
    return row


def speed_lines(speed: dict[str, Any]) -> list[str]:
    """Return what was measured, a line per figure."""
    lines = []
    for row in speed["imagine"]:
        line = f"S={row['num_candidates']} C={row['context']} {row['num_steps']} denoising: "
        line += (
            f"{row['candidate_steps_per_second']:,.0f} candidate-steps/s, {row['utilisation']:.2f} of the matrix rate"
        )
        lines.append(line + (f", {row['speed_up']:.1f} times uncached" if "speed_up" in row else ""))
    if "growth" in speed:
        slopes = ", ".join(f"{name} {found['slope']:.2f}" for name, found in speed["growth"].items())
        lines.append(f"slopes of doubling: {slopes}")
        decide, memory = speed["decide"], speed["memory"]
        rolled = f" (rolled: {decide['rolled_growth']:.2f})" if "rolled_growth" in decide else ""
        lines.append(
            f"a decision grows {decide['prefilled_growth']:.2f} times{rolled} from the shortest context to the longest"
        )
        peak = f", the process at its peak {memory['peak_ratio']:.2f}" if "peak" in memory else ""
        lines.append(f"memory over the candidates' own keys and values: {memory['ratio']:.3f}{peak}")
    return lines
