"""How does what is imagined answer an action? One step, a grid of commands, beside MuJoCo from the same states.

    python scripts/bench_response.py pretrained:push --task push --quantity pusher_x --channel 0

From the states of `embodied-wm benchmark imagination` one channel of the action goes from its least to its most, the
others are zero. Where MuJoCo's own answer is a straight line (the thing moves freely), a line is laid through the
imagined one. Printed, in mm for lengths (mrad for angles): the slopes, imagined and true, and by how much their
difference varies from state to state; how far the imagined answer is from its line, on average and for small commands
(below a quarter); the offset of the line beside what the readout is off by on the true frame.

A squared loss says none of this: a pusher that stands still for small commands, or goes a twentieth too far, costs it
little, but each step of a plan pays. RESULTS.md has what came out ("How imagination answers an action").
"""

import argparse
from functools import cache

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from embodied_wm.evaluation.branches import BranchConfig, BranchStart, branch_starts
from embodied_wm.world_model import WorldModel
from sim.branch import Brancher
from sim.tasks import get_task
from sim.tasks.base import Task

GRID = np.linspace(-1.0, 1.0, 21)
"""Commands."""
STRAIGHT_MM = 0.2
"""MuJoCo's answer is a straight line if it is nowhere further from one."""
SMALL = 0.25
"""Commands below this are small."""


def lines(answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return slope [N], value at zero [N] and residuals [N, G] of the line through each answer [N, G]."""
    slope, zero = np.polyfit(GRID, answers.T, 1)
    return slope, zero, answers - slope[:, None] * GRID - zero[:, None]


def rms(values: np.ndarray) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.square(values).mean()))


def commands(task: Task, channel: int) -> np.ndarray:
    """Return one step of each command of one channel, the others zero, [G, 1, A]."""
    actions = np.zeros((len(GRID), 1, task.action_size), dtype=np.float32)
    actions[:, 0, channel] = GRID
    return actions


@cache
def straight(
    task: Task, column: int, channel: int, count: int, size: tuple[int, int], camera: str
) -> list[tuple[BranchStart, np.ndarray]]:
    """Return the states in which MuJoCo answers by a straight line, and its answers [G], in thousandths."""
    brancher, actions = Brancher(task, num_threads=1), commands(task, channel)
    found = []
    for start in branch_starts(task, BranchConfig(num_branch_points=count), image_size=size, camera=camera, seed=0):
        answer = 1000 * brancher(start.physics, actions).quantities[:, 0, column]
        if np.abs(lines(answer[None])[2]).max() <= STRAIGHT_MM:
            found.append((start, answer))
    brancher.close()
    return found


def main() -> None:
    """Ask the model and MuJoCo, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("model", nargs="+", help="folders, or pretrained:TASK")
    parser.add_argument("--task", default="push")
    parser.add_argument("--quantity", default="pusher_x", help="what answers")
    parser.add_argument("--channel", type=int, default=0, help="of the action")
    parser.add_argument("--states", type=int, default=160)
    options, console = parser.parse_args(), Console(width=160)
    torch.set_num_threads(1)
    task = get_task(options.task)
    if options.quantity not in task.quantity_names:
        parser.error(f"no quantity {options.quantity!r}; {options.task} has {', '.join(task.quantity_names)}")
    if not 0 <= options.channel < task.action_size:
        parser.error(f"channel {options.channel}; {options.task} has 0 to {task.action_size - 1}")
    column = task.quantity_names.index(options.quantity)
    actions = torch.from_numpy(commands(task, options.channel))
    table = Table("", "slope", "error varies by", "true slope", "off its line", "small commands", "offset (readout's)")
    for name in options.model:
        model = WorldModel.from_pretrained(name)
        readout, size = model.readout("sim.quantities"), model.config.tokenizer.frame_size
        camera = model.embodiment.camera.removeprefix("observation.images.")
        states = straight(task, column, options.channel, options.states, size, camera)
        if not states:
            parser.error(f"{options.quantity} answers channel {options.channel} by a straight line in no state")
        imagined, misread = [], []
        with torch.no_grad():
            for number, (start, _) in enumerate(states):
                latents = model.encode(torch.from_numpy(start.frames))
                context = model.prefill_latents(latents, torch.from_numpy(start.past_actions))
                generator = torch.Generator().manual_seed(number)
                ends = model.imagine(context, actions, generator=generator)[:, 0]
                imagined.append(1000 * readout(ends)[:, column].numpy())
                misread.append(1000 * (float(readout(latents[-1:])[0, column]) - start.quantities[column]))
        slope, zero, residuals = lines(np.stack(imagined))
        true_slope, true_zero, _ = lines(np.stack([answer for _, answer in states]))
        table.add_row(
            f"{name}, {len(states)} states",
            f"{slope.mean():.1f}",
            f"{(slope - true_slope).std():.2f}",
            f"{true_slope.mean():.1f}",
            f"{rms(residuals):.2f}",
            f"{rms(residuals[:, np.abs(GRID) < SMALL]):.2f}",
            f"{rms(zero - true_zero):.2f} ({rms(np.array(misread)):.2f})",
        )
    console.print(f"{options.task}: {options.quantity} after one step of channel {options.channel}, in mm (or mrad)")
    console.print(table)


if __name__ == "__main__":
    main()
