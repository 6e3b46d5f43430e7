"""Print what each model size costs, from the configurations: parameters, FLOPs, memory, time.

    python scripts/sizes.py                         one column per model
    python scripts/sizes.py --mfu 0.4 --gpus 8      expected time at another utilisation, on more GPUs
    python scripts/sizes.py --hours 10000           storage, loader bandwidth and days for that many hours of episodes
    python scripts/sizes.py --models nano small --imagine 256    how fast untrained ones imagine so many candidates here
    python scripts/sizes.py --models nano small --imagine 256 --precision int8    and with int8 products

Parameters are counted, FLOPs are counted by torch.utils.flop_counter over the operations of a forward and a backward
pass on the meta device (shapes without numbers), the memory of activations is the sum of what autograd keeps for that
backward pass. Time is arithmetic: FLOPs over peak times utilisation. The utilisation is an assumption; the peaks are
NVIDIA's data sheet (dense bf16), and for the CPU the measured matrix product of DESIGN section 11. On a CPU small
matrices reach less of it: `nano` took 220 seconds on one thread of a quiet machine and 800 on a slower, busy one, where
a utilisation of 0.35 of two cores says 151.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from embodied_wm.cli import compose_config, instantiate_config
from embodied_wm.embodiment import Embodiment
from embodied_wm.evaluation.speed import SpeedConfig, measure_speed
from embodied_wm.predictor.int8 import set_precision
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.transformer import Precision
from embodied_wm.tokenizer.actions import ActionAdapter, LatentActionTokenizer
from embodied_wm.tokenizer.frames import FrameTokenizer
from embodied_wm.training.frames import TOKENIZER_WINDOW
from embodied_wm.training.train import TrainConfig
from embodied_wm.world_model import WorldModel, WorldModelConfig

MODELS = {
    "nano": "cpu",
    "nano_keypoints": "cpu",
    "small": "gpu",
    "small_keypoints": "gpu",
    "base": "gpu_large",
    "large": "gpu_large",
}
"""Model to the trainer whose steps and batches it is trained with."""

HARDWARE = {"H200": 989e12, "2 CPU cores": 137e9}
"""Peak FLOP/s."""

GPU_MEMORY = 141e9
"""Bytes of an H200."""

ACTION_SIZE = 7
BYTES_PER_PARAMETER = 4 + 4 + 8 + 4
"""Weights, gradients, AdamW's two moments, averaged weights; all fp32, also in mixed precision."""

FPS = 30
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Hold what one frame costs in training: FLOPs forward, FLOPs forward and backward, bytes kept in between."""

    forward: float
    both: float
    kept_bytes: float


@dataclass(frozen=True, kw_only=True)
class Size:
    """Hold what a model costs; FLOPs and bytes are per frame."""

    parameters: dict[str, int]
    transformer: int
    tokenizer: Pass
    predictor: Pass
    predictor_training: float
    latent_bytes: int
    frame_bytes: int
    trainer: TrainConfig

    @property
    def frames(self) -> dict[str, int]:
        """Return how many frames each large stage trains on, on one process."""
        stages = {"tokenizer": TOKENIZER_WINDOW, "predictor": self.trainer.sequence_length}
        return {
            name: (stage := getattr(self.trainer, name)).num_steps * stage.batch_size * stage.accumulate * length
            for name, length in stages.items()
        }

    @property
    def training_flops(self) -> float:
        """Return the FLOPs of both large stages."""
        frames = self.frames
        return frames["tokenizer"] * self.tokenizer.both + frames["predictor"] * self.predictor_training

    def memory_bytes(self) -> float:
        """Return state plus activations of the predictor stage's batch."""
        return self.state_bytes + self.trainer.predictor.batch_size * self.window_bytes

    @property
    def state_bytes(self) -> float:
        """Return what does not depend on the batch: weights, gradients, AdamW, averaged weights."""
        return sum(self.parameters.values()) * BYTES_PER_PARAMETER

    @property
    def window_bytes(self) -> float:
        """Return the activations of one window in the predictor stage; in bf16 about half of those in fp32."""
        share = 1.0 if self.trainer.compute.device == "cpu" else 0.5
        return share * self.trainer.sequence_length * self.predictor.kept_bytes

    def fitting_windows(self, memory_bytes: float) -> int:
        """Return how many windows per batch fit into a tenth less than a GPU's memory; accumulate makes up the rest."""
        return max(0, int((0.9 * memory_bytes - self.state_bytes) / self.window_bytes))


def measure(run: Callable[[], Tensor], num_frames: int) -> Pass:
    """Count a forward and a backward pass over some frames."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[id(tensor)] = tensor.nbytes
            alive.append(tensor)
        return tensor

    alive: list[Tensor] = []
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = run().sum()
        forward = counter.get_total_flops()
        out.backward()
    both = counter.get_total_flops()
    return Pass(forward=forward / num_frames, both=both / num_frames, kept_bytes=sum(kept.values()) / num_frames)


def size_of(name: str, trainer: str) -> Size:
    """Build a model without memory and count."""
    composed, _ = compose_config("train", {"model": name, "trainer": trainer, "data.path": "none"})
    config = instantiate_config(composed)
    described: WorldModelConfig = config["model"]
    training: TrainConfig = config["trainer"]
    tokens, width, code = (
        described.tokenizer.num_tokens,
        described.tokenizer.token_width,
        described.latent_actions.code_size,
    )
    parts: dict[str, nn.Module] = {
        "latent_actions": LatentActionTokenizer(described.latent_actions, num_tokens=tokens, token_width=width),
        "adapter": ActionAdapter(latent_size=tokens * width, action_size=ACTION_SIZE, code_size=code),
    }
    time = training.sequence_length
    with torch.device("meta"):
        tokenizer = FrameTokenizer(described.tokenizer)
        predictor = LatentPredictor(
            described.predictor, num_tokens=tokens, token_width=width, action_size=ACTION_SIZE, code_size=code
        )
        pixels = torch.empty(time, 3, *described.tokenizer.image_size)
        latents, levels = torch.empty(1, time, tokens, width), torch.empty(1, time)
        led_by = torch.empty(1, time, described.predictor.transformer.width)
        of_tokenizer = measure(lambda: tokenizer.reconstruct(pixels), time)
        of_predictor = measure(
            lambda: predictor.predict_targets(latents, levels, latents, levels, levels, led_by), time
        )
    parts |= {"tokenizer": tokenizer, "predictor": predictor}
    return Size(
        parameters={name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        transformer=sum(p.numel() for p in predictor.transformer.parameters()),
        tokenizer=of_tokenizer,
        predictor=of_predictor,
        # Sequences that learn large steps need two more forward passes for their targets.
        predictor_training=of_predictor.both + 2 * described.predictor.shortcut_fraction * of_predictor.forward,
        latent_bytes=4 * latents[0, 0].numel(),
        frame_bytes=3 * described.tokenizer.image_size[0] * described.tokenizer.image_size[1],
        trainer=training,
    )


def sizes_table(sizes: dict[str, Size], mfu: float, gpus: int) -> Table:
    """Return the table of what each size costs."""
    table = Table(title=f"Model sizes; time at a utilisation of {mfu:.2f} (an assumption), {gpus} GPU(s)")
    table.add_column("")
    for name in sizes:
        table.add_column(name, justify="right")
    parts = ["tokenizer", "latent_actions", "adapter", "predictor"]
    rows: dict[str, Callable[[Size], str]] = {
        f"parameters, {part}": lambda size, part=part: f"{size.parameters[part]:,}" for part in parts
    }
    rows |= {
        "parameters in all": lambda size: f"{sum(size.parameters.values()):,}",
        "trainer": lambda size: MODELS[next(name for name, each in sizes.items() if each is size)],
        "FLOPs to encode and decode a frame": lambda size: f"{size.tokenizer.forward:.3g}",
        "FLOPs to train the tokenizer on a frame": lambda size: f"{size.tokenizer.both:.3g}",
        "FLOPs to train the predictor on a frame": lambda size: f"{size.predictor_training:.3g}",
        "frames seen, tokenizer": lambda size: f"{size.frames['tokenizer']:,}",
        "frames seen, predictor": lambda size: f"{size.frames['predictor']:,}",
        "training FLOPs": lambda size: f"{size.training_flops:.3g}",
        "memory, predictor stage (GB)": lambda size: f"{size.memory_bytes() / 1e9:.3g}",
        "of it weights, gradients, AdamW, EMA (GB)": lambda size: f"{size.state_bytes / 1e9:.3g}",
        "windows per batch configured": lambda size: f"{size.trainer.predictor.batch_size}",
        f"windows that fit {GPU_MEMORY / 1e9:.0f} GB": lambda size: f"{size.fitting_windows(GPU_MEMORY):,}",
    }
    for hardware, peak in HARDWARE.items():
        count = 1 if "CPU" in hardware else gpus
        rows[f"hours on {count} x {hardware}"] = lambda size, peak=peak * count: (
            f"{size.training_flops / (peak * mfu) / 3600:.3g}"
        )
    for label, row in rows.items():
        table.add_row(label, *(row(size) for size in sizes.values()))
    return table


def corpus_table(sizes: dict[str, Size], hours: float, mfu: float, gpus: int, passes: float) -> Table:
    """Return the table of what training on many hours of episodes needs."""
    frames = hours * 3600 * FPS
    table = Table(title=f"{hours:,.0f} hours at {FPS} frames/s = {frames:.3g} frames, {passes:g} passes, {gpus} H200")
    table.add_column("")
    for name in sizes:
        table.add_column(name, justify="right")

    def seconds(size: Size) -> float:
        flops = passes * frames * (size.tokenizer.both + size.predictor_training)
        return flops / (HARDWARE["H200"] * mfu * gpus)

    rows: dict[str, Callable[[Size], str]] = {
        "frames uncompressed (TB)": lambda size: f"{frames * size.frame_bytes / 1e12:.3g}",
        "latents, fp32 (TB)": lambda size: f"{frames * size.latent_bytes / 1e12:.3g}",
        "days": lambda size: f"{seconds(size) / SECONDS_PER_DAY:.3g}",
        "frames per second to load (tokenizer stage)": lambda size: (
            f"{HARDWARE['H200'] * mfu * gpus / size.tokenizer.both:.3g}"
        ),
        "GB/s of uncompressed frames (tokenizer stage)": lambda size: (
            f"{HARDWARE['H200'] * mfu * gpus / size.tokenizer.both * size.frame_bytes / 1e9:.3g}"
        ),
        "GB/s of latents (predictor stage)": lambda size: (
            f"{HARDWARE['H200'] * mfu * gpus / size.predictor_training * size.latent_bytes / 1e9:.3g}"
        ),
    }
    for label, row in rows.items():
        table.add_row(label, *(row(size) for size in sizes.values()))
    return table


def imagination_table(names: list[str], num_candidates: int, precision: Precision) -> Table:
    """Time imagination with first weights on this machine, one thread, one denoising step, 4 frames of context."""
    torch.set_num_threads(1)
    config = SpeedConfig(
        num_candidates=[num_candidates], context_frames=[4], denoising_steps=[1], most_uncached=0, clock="cpu"
    )
    robot = Embodiment(camera="none", action_size=ACTION_SIZE)
    table = Table(title=f"{num_candidates} candidates, {config.horizon} steps, on this machine, by processor time")
    for column in ("model", "candidate-steps a second", "FLOP/s", "part of the matrix product's FLOP/s"):
        table.add_column(column, justify="right")
    for name in names:
        composed, _ = compose_config("train", {"model": name, "data.path": "none"})
        model = WorldModel(instantiate_config(composed)["model"], robot)
        set_precision(model.predictor.transformer, precision)
        row = measure_speed(model, config)["imagine"][0]
        flops = row["flops"] / row["cached_seconds"]["value"]
        table.add_row(name, f"{row['candidate_steps_per_second']:,.0f}", f"{flops:.3g}", f"{row['utilisation']:.2f}")
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mfu", type=float, default=0.35, help="part of the peak that is reached")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--hours", type=float, default=0.0, help="hours of episodes, for the second table")
    parser.add_argument("--passes", type=float, default=4.0, help="times that every frame is seen, in the second table")
    parser.add_argument("--imagine", type=int, default=0, help="candidates that are imagined; 0 times nothing")
    parser.add_argument("--precision", default="fp32", choices=get_args(Precision), help="what they are imagined in")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    sizes = {name: size_of(name, MODELS[name]) for name in arguments.models}
    console = Console(width=max(120, 44 + 18 * len(sizes)))
    console.print(sizes_table(sizes, arguments.mfu, arguments.gpus))
    if arguments.hours:
        console.print(corpus_table(sizes, arguments.hours, arguments.mfu, arguments.gpus, arguments.passes))
    if arguments.imagine:
        console.print(imagination_table(arguments.models, arguments.imagine, arguments.precision))


if __name__ == "__main__":
    main()
