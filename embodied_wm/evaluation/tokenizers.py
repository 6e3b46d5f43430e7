"""What a tokenizer's latents are good for, before any predictor: pictures by area, readings, one step foretold."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor, nn

from embodied_wm.heads import Readout
from embodied_wm.tokenizer.actions import mlp
from embodied_wm.tokenizer.frames import FrameTokenizer
from embodied_wm.training.latents import LatentEpisodes

BATCH = 256
HELD_OUT_BATCHES = 12


def train_for(
    seconds: float, modules: Sequence[nn.Module], loss_of: Callable[[int], Tensor], *, rate: float, most: int = 10**9
) -> int:
    """Train for some CPU seconds of this process or at most some steps, with a cosine over whichever ends it.

    Args:
        seconds: CPU time, so that other work on the machine does not shorten the training.
        modules: What is trained, in place; left in evaluation mode.
        loss_of: Number of a step to its loss.
        rate: Peak of the learning rate.
        most: Most steps.

    Returns:
        The steps that were done.
    """
    parameters = [parameter for module in modules for parameter in module.train().parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95))
    began, step, done = time.process_time(), 0, 0.0
    while done < 1:
        warm, slope = min(1.0, (step + 1) / 50), 0.05 + 0.475 * (1 + math.cos(math.pi * done))
        for group in optimiser.param_groups:
            group["lr"] = rate * warm * slope
        optimiser.zero_grad(set_to_none=True)
        loss_of(step).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        done = max((time.process_time() - began) / seconds, step / most)
    for module in modules:
        module.eval()
    return step


@torch.no_grad()
def area_quality(
    tokenizer: FrameTokenizer,
    frames: UInt8[Tensor, "frames height width 3"],
    areas: Mapping[str, Bool[Tensor, "frames height width"]],
) -> dict[str, float]:
    """Return the PSNR in dB of decoded frames over the pixels of each area, all frames together.

    A small thing is a small part of a frame: one that is lost costs the frame's PSNR next to nothing, and its own
    area's nearly everything. Nothing is blended in from frames that were seen.
    """
    decoded = tokenizer.decode(tokenizer.encode(frames))
    error = (decoded.float() - frames.float()).div(255).square().mean(-1)
    return {name: float(-10 * torch.log10(error[area].mean().clamp_min(1e-6))) for name, area in areas.items()}


def fit_reading(train: LatentEpisodes, feature: str, names: tuple[str, ...], *, num_steps: int) -> Readout:
    """Fit a readout of a feature to latents, always from the same start."""
    torch.manual_seed(0)
    readout = Readout(latent_size=train.latents[0].numel(), names=names, units=("",) * len(names))
    readout.fit_statistics(train.features[feature])
    readout.fit_line(train.latents, train.features[feature])
    sampler = train.sampler(length=1, batch_size=BATCH, seed=0)

    def loss_of(step: int) -> Tensor:
        batch, generator = sampler.batch(step), torch.Generator().manual_seed(step)
        return readout.loss(batch["latents"][:, 0], batch[feature][:, 0], generator)[0]

    train_for(math.inf, [readout], loss_of, rate=4e-3, most=num_steps)
    return readout


def foretold(train: LatentEpisodes, test: LatentEpisodes, *, num_steps: int) -> float:
    """Return the part of the latents' change in a step that a fresh small network foretells, given the action.

    1 is all of it, 0 is what expecting no change gets; measured on other episodes than it is trained on.
    """
    torch.manual_seed(0)
    size, action_size = train.latents[0].numel(), train.features["action"].shape[1]
    network = mlp((2 * size + action_size, 256, 256, size))

    def errors(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        path = batch["latents"].flatten(2)
        inputs = torch.cat([path[:, 1], path[:, 1] - path[:, 0], batch["action"][:, 1]], dim=-1)
        change = path[:, 2] - path[:, 1]
        return (network(inputs) - change).square().mean(), change.square().mean()

    sampler, held_out = (part.sampler(length=3, batch_size=BATCH, seed=0) for part in (train, test))
    scale = errors(sampler.batch(0))[1]
    train_for(math.inf, [network], lambda step: errors(sampler.batch(step))[0] / scale, rate=2e-3, most=num_steps)
    with torch.no_grad():
        sums = torch.tensor([errors(held_out.batch(number)) for number in range(HELD_OUT_BATCHES)]).sum(0)
    return float(1 - sums[0] / sums[1])
