"""How the cost of imagination grows: with candidates, horizon, tokens, context; a decision's cost; memory.

A slope is the exponent of the time in what is doubled, by least squares over the logarithms: 1 is proportional, 0 is
free. Where what is asked is a ratio, both ends are timed alternately in one run.

Nano, processor time of one thread of a busy machine, three repeats: slopes 0.68 in candidates, 1.04 in the horizon,
0.70 in tokens, 0.09 in context; from 4 to 64 context frames a decision grows 1.14 times prefilled, 1.07 times rolled;
keys and values of 512 candidates behind 64 frames take 1.014 times the candidates' own, but with what is computed in
between the process grew by 1.9 times that at its peak.
"""

import copy
import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from embodied_wm.predictor.cache import CandidateCache
from embodied_wm.predictor.int8 import set_precision
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.rolling import roll
from embodied_wm.world_model import WorldModel

BASE = {"candidates": 128, "horizon": 8, "tokens": 1, "context": 4}
DOUBLED: dict[str, tuple[int, ...]] = {
    "candidates": (32, 64, 128, 256),
    "horizon": (4, 8, 16),
    "tokens": (1, 2, 4),
    "context": (4, 8, 16, 32, 64),
}
"""What is doubled; all else is as in BASE, but tokens are the model's own."""

ITERATIONS = 3
"""Searches of a decision, as CEM makes them by default."""

CONTEXTS = (4, 64)
"""Contexts of the decisions that are compared."""

type Timed = Callable[[Sequence[Callable[[], object]]], list[dict[str, Any]]]


class Pair(Protocol):
    """Make cached and uncached imagination; see `speed.imagination_pair`."""

    def __call__(
        self,
        world_model: WorldModel,
        *,
        num_candidates: int,
        context: int,
        horizon: int,
        num_steps: int,
        predictor: LatentPredictor | None = None,
    ) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        """Return both."""
        ...


def with_window(predictor: LatentPredictor, num_frames: int) -> LatentPredictor:
    """Return the predictor, with the same weights and a window of at least so many frames."""
    if num_frames <= predictor.config.window:
        return predictor
    longer = copy.copy(predictor)
    longer.config = replace(predictor.config, window=num_frames)
    return longer


def with_context(world_model: WorldModel, num_frames: int) -> WorldModel:
    """Return a world model of the same weights whose window holds so many frames."""
    predictor = with_window(world_model.predictor, num_frames).config
    with world_model.action_low.device:
        longer = WorldModel(replace(world_model.config, predictor=predictor), world_model.embodiment)
    longer.load_state_dict(world_model.state_dict())
    set_precision(longer.predictor.transformer, world_model.predictor.transformer.precision)
    return longer.eval()


def with_tokens(predictor: LatentPredictor, num_tokens: int) -> LatentPredictor:
    """Return a predictor of the same size, with random weights, for another number of tokens per frame."""
    with predictor.slots.device:
        return LatentPredictor(
            predictor.config,
            num_tokens=num_tokens,
            token_width=predictor.token_width,
            action_size=predictor.real_in[0].in_features,  # pyright: ignore[reportArgumentType]
            code_size=predictor.code_in[0].in_features,  # pyright: ignore[reportArgumentType]
            levels=() if predictor.masked is None else predictor.masked.codes.levels.tolist(),
        ).eval()


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the exponent p of seconds ~ sizes ** p, by least squares over logarithms."""
    x, y = ([math.log(value) for value in values] for values in (sizes, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def measure_growth(world_model: WorldModel, pair: Pair, timed: Timed) -> dict[str, Any]:
    """Time cached imagination, one denoising step, while one thing is doubled; and decisions at two contexts.

    Returns:
        "growth": for each of DOUBLED {"seconds": {size: estimate}, "slope"}. "decide": {context: {"prefilled",
        "rolled"}} seconds of a decision, and "prefilled_growth" and "rolled_growth" from the first context to the last;
        a model with a memory, or with matrices, does not roll.
    """
    growth = {}
    for name, sizes in DOUBLED.items():
        runs = []
        for size in sizes:
            at = {**BASE, name: size}
            predictor = with_tokens(world_model.predictor, size) if name == "tokens" else None
            runs.append(
                pair(
                    world_model,
                    num_candidates=at["candidates"],
                    context=at["context"],
                    horizon=at["horizon"],
                    num_steps=1,
                    predictor=predictor,
                )[0]
            )
        seconds = timed(runs)
        found = dict(zip(map(str, sizes), seconds, strict=True))
        growth[name] = {"seconds": found, "slope": slope(sizes, [each["value"] for each in seconds])}
    return {"growth": growth, "decide": _decisions(world_model, timed)}


def _decisions(world_model: WorldModel, timed: Timed) -> dict[str, Any]:
    """Time decisions: encode the newest frame, bring the context up to date, imagine the candidates of all searches."""
    runs = {context: _decision(world_model, context) for context in CONTEXTS}
    seconds = iter(timed([run for ways in runs.values() for run in ways.values()]))
    rows = {str(context): {way: next(seconds) for way in ways} for context, ways in runs.items()}
    first, last = rows[str(CONTEXTS[0])], rows[str(CONTEXTS[-1])]
    return {"seconds": rows, **{f"{way}_growth": last[way]["value"] / first[way]["value"] for way in first}}


def _decision(world_model: WorldModel, num_frames: int) -> dict[str, Callable[[], object]]:
    """Return decisions from a context that is "prefilled", and from one that is "rolled" on where the model can."""
    longer = with_context(world_model, num_frames + BASE["horizon"] + 1)
    model = longer.predictor
    device, generator = world_model.action_low.device, torch.Generator().manual_seed(0)
    shape = (*world_model.config.tokenizer.frame_size, 3)
    frame = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    felt = None if longer.proprioception is None else torch.zeros(longer.proprioception.size, device=device)
    latents = torch.randn(num_frames, model.num_tokens, model.token_width, generator=generator).to(device)
    size = world_model.embodiment.action_size
    past = torch.rand(num_frames, size, generator=generator).to(device)
    actions = torch.rand(BASE["candidates"], BASE["horizon"], size, generator=generator).to(device)
    old = longer.prefill_latents(latents, past[:-1])
    with torch.no_grad():
        led_by = model.embed_actions(longer.action_inputs(past[None, -1:]))[0, 0]

    def decide(context_of: Callable[[Tensor], Any]) -> None:
        with torch.no_grad():
            context = context_of(longer.encode(frame, felt))
        for _ in range(ITERATIONS):
            longer.imagine(context, actions, generator=generator, shared_noise=True)

    def prefilled() -> None:
        decide(lambda code: longer.prefill_latents(torch.cat([latents[1:], code[None]]), past[1:]))

    def rolled() -> None:
        decide(lambda code: roll(model, old, code, led_by, max_frames=num_frames))

    has_fixed_past = model.config.memory or old.states
    return {"prefilled": prefilled} if has_fixed_past else {"prefilled": prefilled, "rolled": rolled}


def measure_memory(
    world_model: WorldModel, *, num_candidates: int = 512, context: int = 64, horizon: int = 8
) -> dict[str, Any]:
    """Measure what candidates cost in memory beside the context that they share.

    Returns:
        Bytes of "context" (keys and values, or matrices), of all candidates' "own", "ratio": both over `own`, and
        where Linux tells it, of a model on the CPU, "peak": by how much the process grew at most while it imagined, and
        "peak_ratio" over `own`. Candidates are imagined in parts, so not all of `own` need be there at once.
    """
    longer = with_context(world_model, context + horizon)
    model, device = longer.predictor, world_model.action_low.device
    prefilled = longer.prefill_latents(torch.randn(context, model.num_tokens, model.token_width, device=device), None)
    actions = torch.rand(num_candidates, horizon, world_model.embodiment.action_size, device=device)
    if prefilled.states:  # matrices, which are shared until one is written
        own = num_candidates * prefilled.num_bytes
    else:
        tokens = (horizon + 1) * model.block
        own = CandidateCache(prefilled, num_candidates=num_candidates, max_tokens=tokens).num_bytes
    found: dict[str, Any] = {
        "num_candidates": num_candidates,
        "context_frames": context,
        "context": prefilled.num_bytes,
        "own": own,
        "ratio": (prefilled.num_bytes + own) / own,
    }
    if device.type != "cpu":
        return found
    longer.imagine(prefilled, actions[:8], generator=torch.Generator())  # threads and libraries
    peak = peak_growth(lambda: longer.imagine(prefilled, actions, generator=torch.Generator(), shared_noise=True))
    return found if peak is None else {**found, "peak": peak, "peak_ratio": peak / own}


def peak_growth(run: Callable[[], object]) -> int | None:
    """Return by how many bytes this process grew at most in a run; None where the system does not tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is taken now
        reset.write_text("5")
        before = _kilobytes(status, "VmRSS")
        run()
        return 1024 * (_kilobytes(status, "VmHWM") - before)
    except (OSError, AttributeError, StopIteration):
        return None


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
