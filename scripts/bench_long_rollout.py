"""Imagine 512 frames of scenes that rest, or that repeat themselves, and compare them with MuJoCo.

    python scripts/bench_long_rollout.py CHECKPOINT [--task reach] [--scenes 8] [--horizon 512] [--window 10]

From a few frames of a resting scene the model imagines what zero actions lead to (nothing), and what actions lead to
whose period is 16 frames (each channel a sine of its own phase). Printed, by horizon: PSNR against MuJoCo over the 16
frames that end there, beside the tokenizer's own on the true frames; the squared error of latents; the spread of
imagined latents over the spread of true ones, and the part of them outside the range that true ones span, widened by a
tenth; the memory of the candidates' cache. Then, per motion, the PSNR at 256 less the PSNR at 32, over scenes.

Scenes have their contexts apart, one candidate each. A blow-up shows in the spread, a drift in the PSNR. `--window`
makes attention reach back over fewer frames than the model was configured for.

What came out, for nano models of the default recipe with attention (6 scenes; written frames still had a window that
was one frame short): memory is flat and nothing blows up, but scenes drift, and the aim, a PSNR at 256 within 3 dB of
that at 32, is missed.

    | task, motion    | PSNR at 16, 32, 64, 128, 256   | 256 less 32             | spread at 256 |
    |-----------------|--------------------------------|-------------------------|---------------|
    | push, resting   | 26.4, 21.7, 19.7, 18.2, 17.3   | -4.4 dB [-5.0, -3.8]    | 0.71          |
    | push, periodic  | 26.9, 20.9, 19.2, 17.8, 17.1   | -3.8 dB [-4.6, -2.6]    | 0.65          |
    | reach, resting  | 34.5, 26.4, 22.3, 20.5, 19.5   | -6.9 dB [-8.7, -5.0]    | 0.95          |
    | reach, periodic | 27.1, 24.8, 22.7, 21.1, 20.0   | -4.8 dB [-6.2, -3.5]    | 1.11          |

Where it comes from, on `push` at rest: the pusher creeps, by 1.2 cm after 4 frames, 2.5 after 8 and 7.8 after 32 (x, by
the readout, imagined from zeros), in a direction that stays (cosine of one frame's change with the next's 0.99), while
the box moves by 0.1 cm in 8. A suspected cause, not put to a test: of the actions of play 0.007% are below 0.02 in both
channels, so a pusher at rest was hardly ever seen. (On `reach`, where 6.5% are, it drifts as well, so that is not all.)
What does not mend it, as squared error of latents of 8 scenes at rest after 32 and 256 frames: as configured 0.092 and
0.80; windows of 10 and 6 frames instead of 16 (training windows have 10) 0.078 and 0.78, 0.077 and 0.61; imagining from
zeros instead of noise 0.102 and 0.71; four denoising steps 0.106 and 0.70; with a window of 10, imagined frames told to
be clean 0.073 and 0.80, told 0.9 0.21 and 1.9.

The model of `push` that shipped before (key points, self-forcing; 8 scenes): 34.1, 24.5, 20.9, 18.9 and 17.6 dB at
rest, 30.4, 25.0, 21.3, 19.1 and 17.7 in periodic motion, 256 less 32 -7.0 dB [-8.4, -5.5] and -7.3 dB [-8.6, -6.0];
after 512 frames at rest latents spread 4.6 times as far as true ones, as nothing keeps key points in the picture.
Training on windows that stand still under actions of zero (a tenth of all, 2,000 steps and 1,000 of self-forcing more)
did not help: -6.1 dB [-7.7, -4.7] and a spread of 7.0, as many steps without them -6.1 dB [-7.5, -4.5] and 7.0.

What did: a dead zone of predicted changes (`predictor.shrinkage`), and to take nearly clean frames as they are. The
second came to light by the first: with a zone alone, spreads of imagined latents fell by a thousandth each frame, to
0.64 after 512, however small a change was cut off, as the frame before was multiplied by `flow.trust` of the level that
imagined frames are told to have. Models of `push` with the steps of the one that ships (16,000 and 3,000, the same
tokenizer, 128 Fourier features, one training each), 8 scenes at rest, PSNR at 32, 256, 512 and spread at 512; "when
measured" is the model of the line before, trained without and measured with it:

    | zone                                   | frame before as it is | 32, 256, 512 dB     | spread |
    |----------------------------------------|-----------------------|---------------------|--------|
    | none (shipped before, no features)     | no                    | 24.5, 17.6, 17.6    | 4.6    |
    | 0.5, change^3 / (change^2 + zone^2)    | no                    | 33.5, 21.4, 19.1    | 0.73   |
    | the same                               | when measured         | 40.6, 26.5, 23.4    | 1.04   |
    | 0.5, change^5 / (change^4 + zone^4)    | no                    | 31.8, 19.8, 18.8    | 0.82   |
    | the same                               | when measured         | 40.1, 23.7, 21.7    | 1.14   |
    | 0.3, soft threshold                    | no                    | 38.2, 21.4, 18.9    | 0.64   |
    | the same                               | when measured         | 57.5, 56.2, 55.7    | 1.03   |
    | 0.3, soft threshold                    | yes                   | 56.5, 47.9, 46.5    | 1.02   |
    | the same, held (the library's)         | yes                   | 60.0, 60.0, 60.0    | 1.01   |

The last but one still crept in some scenes, where the network says a little more than the zone: 256 less 32 were -8.6
dB [-13.7, -3.6], with other scenes (--seed 1, 2) -5.9 and -7.7. Held (`flow.HOLD`: what is left of a change is none up
to half the zone, too, once trained) the same weights have 0.0 dB, and -0.3 and -1.0 with other scenes: the aim, 256
within 3 dB of 32, is met at rest. All scenes together (24, 256 frames): -7.1 dB [-10.0, -4.1] not held, -4.2 [-6.9,
-1.8] held up to a quarter of the zone, -0.5 [-1.4, 0.0] up to half, 0.0 up to all of it; a wider zone when measured
does it as well (-0.5 [-1.5, 0.0] with 1.5 times the zone), but takes periodic scenes from 31.4 to 29.2 dB after 16
frames, where holding takes nothing (31.4 up to half, 31.2 up to all). On the judge's candidates half takes hardly
anything either (27.7 dB eight steps ahead, 27.8 not held; all of it 27.4).

Periodic motion adds up its errors: 32.0 dB after 16, 28.2 after 32, 22.2 after 256 for the last, 256 less 32 -6.0 dB
[-8.0, -4.0]. Standing still in training (a tenth of the windows, 4,000 steps) helps a little beside a zone: squared
errors after 64 frames at rest of 0.015 instead of 0.034; without a zone they are 0.28.

The model that ships since has a smaller zone, 0.1, which lets slow things move (RESULTS.md, "How imagination answers an
action"). It creeps at rest, 57.9, 48.7 and 45.9 dB after 32, 256 and 512 frames, unless frames that hardly change are
the ones before (`predictor.stillness`): with 0.03 256 less 32 is -1.5 dB [-3.7, -0.1], with 0.06, which ships, -0.1
[-0.2, 0.0], with other scenes (--seed 1, 2) -2.0 [-4.8, 0.0] and -0.8 [-2.3, 0.0].
"""

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from embodied_wm.evaluation.statistics import bootstrap_mean
from embodied_wm.predictor import sampler
from embodied_wm.predictor.cache import CandidateCache
from embodied_wm.tokenizer.frames import psnr
from embodied_wm.world_model import WorldModel
from sim.branch import Brancher
from sim.tasks import get_task

CONTEXT, PERIOD, AMPLITUDE = 4, 16, 0.6
SHOWN = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Scenes:
    """Hold N scenes by MuJoCo.

    Attributes:
        context: Frames that the model is given, uint8 [N, C, h, w, 3].
        ends: The horizons that are looked at, each by the PERIOD frames that end there.
        future: Those frames, [N, ends * PERIOD, h, w, 3].
        actions: [N, C + H - 1, A].
    """

    context: Tensor
    ends: tuple[int, ...]
    future: Tensor
    actions: Tensor

    @property
    def seen(self) -> Tensor:
        """Return which imagined frames, counted from 0, `future` holds."""
        return torch.cat([torch.arange(end - PERIOD, end) for end in self.ends])


def periodic(num_scenes: int, num_steps: int, action_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return actions [N, T, A] whose sum over each period is zero; nothing moves while the context is seen."""
    phase = rng.uniform(0, 2 * np.pi, (num_scenes, 1, action_size))
    angle = 2 * np.pi * np.arange(num_steps - CONTEXT + 1)[None, :, None] / PERIOD + phase
    moving = AMPLITUDE * np.sin(angle)
    return np.concatenate([np.zeros((num_scenes, CONTEXT - 1, action_size)), moving], axis=1)


def scenes(task_name: str, model: WorldModel, motion: str, options: argparse.Namespace) -> Scenes:
    """Draw resting scenes and let MuJoCo act."""
    task, rng = get_task(task_name), np.random.default_rng(options.seed)
    starts = np.stack([task.reset(task.model, rng) for _ in range(options.scenes)])
    num_steps = CONTEXT - 1 + options.horizon
    actions = np.zeros((options.scenes, num_steps, task.action_size))
    if motion == "periodic":
        actions = periodic(options.scenes, num_steps, task.action_size, rng)
    actions = actions.astype(np.float32)
    brancher = Brancher(task, num_threads=1)
    states = np.concatenate([starts[:, None], brancher(starts, actions).states], axis=1)
    brancher.close()
    ends = tuple(end for end in SHOWN if end <= options.horizon)
    rows = [*range(CONTEXT), *(CONTEXT + row for end in ends for row in range(end - PERIOD, end))]
    renderer = task.renderer(*model.config.tokenizer.image_size, model.embodiment.camera.rpartition(".")[2])
    frames = torch.from_numpy(np.stack([renderer.render_states(each[rows]) for each in states]))
    renderer.close()
    return Scenes(frames[:, :CONTEXT], ends, frames[:, CONTEXT:], torch.from_numpy(actions))


@torch.no_grad()
def imagined(
    model: WorldModel, latents: Tensor, actions: Tensor, options: argparse.Namespace
) -> Iterator[tuple[Tensor, int]]:
    """Yield each imagined frame's latents [N, K, D] and the bytes of the candidates' cache."""
    predictor, horizon = model.predictor, options.horizon
    contexts = [model.prefill_latents(past, acted[: CONTEXT - 1]) for past, acted in zip(latents, actions, strict=True)]
    cache = CandidateCache.apart(
        contexts,
        max_tokens=(horizon + 1) * predictor.block,
        window_tokens=(predictor.config.window + 1) * predictor.block,
    )
    generator = torch.Generator().manual_seed(options.seed)
    noise = sampler.draw_noise(predictor, len(latents), horizon, generator, shared=False)
    led_by = predictor.embed_actions(model.action_inputs(actions[:, CONTEXT - 1 :]))
    frames = sampler.imagine_frames(predictor, cache, lambda h, _: led_by[:, h], noise, num_steps=options.num_steps)
    for frame in frames:
        yield frame, cache.num_bytes


def measure(model: WorldModel, found: Scenes, options: argparse.Namespace, console: Console) -> dict[int, Tensor]:
    """Print a line by horizon; return every scene's PSNR [N] at each."""
    rows = list(imagined(model, model.encode(found.context), found.actions, options))
    future, true = torch.stack([row[0] for row in rows], dim=1)[:, found.seen], model.encode(found.future)
    low, high = true.flatten(0, 1).amin(0), true.flatten(0, 1).amax(0)
    margin = 0.1 * (high - low)
    curves = {
        "psnr": _quality(model, future, found),
        "ceiling": _quality(model, true, found),
        "latent mse": (future - true).square().mean((2, 3)),
        "outside": ((future < low - margin) | (future > high + margin)).float().mean((2, 3)),
    }
    for place, end in enumerate(found.ends):
        span = slice(place * PERIOD, (place + 1) * PERIOD)
        words = "  ".join(f"{name} {values[:, span].mean():8.4f}" for name, values in curves.items())
        spread = float(future[:, span].std() / true[:, span].std())
        console.print(f"  h={end:4d}  {words}  spread {spread:5.2f}  cache {rows[end - 1][1] / 1024:6.0f} KiB")
    by_scene = curves["psnr"].unflatten(1, (-1, PERIOD)).mean(2)
    return dict(zip(found.ends, by_scene.unbind(1), strict=True))


def _quality(model: WorldModel, latents: Tensor, found: Scenes) -> Tensor:
    """Return the PSNR [N, T] of decoded latents, the last context frame being seen."""
    each = zip(latents, found.context[:, -1], found.future, strict=True)
    return torch.stack([psnr(model.decode(z, seen), frames) for z, seen, frames in each])


def main() -> None:
    """Measure both motions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--task", default=None, help="the model's own task where it is left out")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--horizon", type=int, default=512)
    parser.add_argument(
        "--window", type=int, default=0, help="frames that attention reaches back over; 0 is the model's"
    )
    parser.add_argument("--num-steps", type=int, default=1, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, console = WorldModel.from_pretrained(options.checkpoint), Console(width=140, highlight=False)
    if options.window:
        model.predictor.config = dataclasses.replace(model.predictor.config, window=options.window)
    task = options.task or model.embodiment.robot
    mixer, window = model.config.predictor.transformer.mixer, model.predictor.config.window
    console.print(f"{task}, {mixer}, window {window}, {options.num_steps} denoising steps, {options.scenes} scenes")
    for motion in ("resting", "periodic"):
        console.print(f"{motion}:")
        quality = measure(model, scenes(task, model, motion, options), options, console)
        if {32, 256} <= set(quality):
            figure = bootstrap_mean((quality[256] - quality[32]).tolist(), seed=0)
            low, high = figure["ci95"]
            console.print(f"  psnr at 256 less at 32: {figure['value']:+.2f} dB [{low:+.2f}, {high:+.2f}]")


if __name__ == "__main__":
    main()
