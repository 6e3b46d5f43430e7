"""A plain recurrent world model, and the adapter by which the benchmark judges it: an example to start from.

A convolutional encoder, a GRU, a deconvolutional decoder and a linear readout of the task's quantities, trained
together on windows of a store: three frames are seen, the rest are imagined from actions alone.

    python scripts/judge_recurrent.py push.zarr gru.pt 60      # store, file to write, seconds of training
    embodied-wm benchmark imagination task=push checkpoint=gru.pt adapter=scripts/judge_recurrent.py:load
"""

import itertools
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embodied_wm.data.loader import WindowLoader
from embodied_wm.data.store import EpisodeStore
from embodied_wm.data.windows import split_episodes
from embodied_wm.evaluation.judged import JudgedModel
from embodied_wm.evaluation.lineup import PlanningSetup
from embodied_wm.evaluation.oracle import task_cost
from planners.base import Objective
from planners.objectives import StateCost, StepWeights
from sim.tasks import get_task
from sim.tasks.base import Task

CODE, HIDDEN, SEEN, WINDOW = 64, 256, 3, 11


class Recurrent(nn.Module):
    """Codes of frames [..., CODE], a recurrent memory [..., HIDDEN], and what is read from codes."""

    def __init__(self, action_size: int, num_quantities: int) -> None:
        super().__init__()
        sizes = (3, 16, 32, 64, 64)
        down = [(nn.Conv2d(a, b, 4, 2, 1), nn.SiLU()) for a, b in itertools.pairwise(sizes)]
        up = [(nn.SiLU(), nn.ConvTranspose2d(b, a, 4, 2, 1)) for a, b in itertools.pairwise(sizes)][::-1]
        self.encoder = nn.Sequential(*(layer for pair in down for layer in pair), nn.Flatten(), nn.Linear(1024, CODE))
        grow = (nn.Linear(CODE, 1024), nn.Unflatten(1, (64, 4, 4)))
        self.decoder = nn.Sequential(*grow, *(layer for pair in up for layer in pair))
        self.memory = nn.GRUCell(CODE + action_size, HIDDEN)
        self.change = nn.Sequential(nn.Linear(HIDDEN + CODE, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, CODE))
        self.readout = nn.Linear(CODE, num_quantities)

    def encode(self, frames: Tensor) -> Tensor:
        """Return codes of uint8 frames [N, 64, 64, 3]."""
        return self.encoder(frames.permute(0, 3, 1, 2).float() / 255 - 0.5)

    def decode(self, codes: Tensor) -> Tensor:
        """Return pixels [N, 64, 64, 3] in [-0.5, 0.5]."""
        return self.decoder(codes).permute(0, 2, 3, 1)

    def step(self, memory: Tensor, code: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the memory and the expected code after an action."""
        memory = self.memory(torch.cat([code, action], dim=-1), memory)
        return memory, code + self.change(torch.cat([memory, code], dim=-1))

    def loss(self, frames: Tensor, actions: Tensor, quantities: Tensor) -> Tensor:
        """Return the error of frames and quantities, seen and imagined; [B, T, ...] each, quantities standardised."""
        codes = self.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        memory, expected = codes.new_zeros(len(codes), HIDDEN), [codes[:, 0]]
        for t in range(frames.shape[1] - 1):
            memory, code = self.step(memory, codes[:, t] if t < SEEN else expected[-1], actions[:, t])
            expected.append(code)
        imagined = torch.stack(expected, dim=1)
        error = F.mse_loss(imagined[:, 1:], codes[:, 1:])
        pixels = frames.flatten(0, 1).float() / 255 - 0.5
        for shown in (codes, imagined):
            error = error + F.mse_loss(self.readout(shown), quantities)
            error = error + 30 * F.mse_loss(self.decode(shown.flatten(0, 1)), pixels)
        return error


class JudgedRecurrent(JudgedModel):
    """The adapter; a state is [code, memory]."""

    def __init__(self, saved: dict[str, Any], task: Task, weights: StepWeights) -> None:
        self.task, self.weights, self.camera, self.image_size = task, weights, saved["camera"], (64, 64)
        self.action_size = len(saved["action_low"])
        self.action_low, self.action_high = saved["action_low"], saved["action_high"]
        self.mean, self.std = saved["mean"], saved["std"]
        self.network = Recurrent(self.action_size, len(self.mean))
        self.network.load_state_dict(saved["weights"])
        self.network.requires_grad_(requires_grad=False)

    def encode(self, frames: Tensor) -> Tensor:
        """Return codes."""
        return torch.cat([self.network.encode(part) for part in frames.split(256)])

    def prefill(self, codes: Tensor, actions: Tensor) -> Tensor:
        """Return the last state: the newest code and the memory of those before."""
        return self.observe(codes[None], actions[None])[0, -1]

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        """Return states; expected codes take the place of seen ones."""
        code, memory = context.expand(len(actions), -1).split((CODE, HIDDEN), dim=-1)
        states = []
        for action in actions.unbind(1):
            memory, code = self.network.step(memory, code, action)
            states.append(torch.cat([code, memory], dim=-1))
        return torch.stack(states, dim=1)

    def objective(self, goal_frame: Tensor) -> Objective:
        """Return the task's cost of what is read from codes, the goal image's too."""
        goal = self.read(self.encode(goal_frame[None]))[0]
        return StateCost(readout=self.read, cost=task_cost(self.task, goal), weights=self.weights)

    def observe(self, codes: Tensor, actions: Tensor) -> Tensor:
        """Return states after seeing frames."""
        memory = codes.new_zeros(len(codes), HIDDEN)
        states = [torch.cat([codes[:, 0], memory], dim=-1)]
        for t in range(codes.shape[1] - 1):
            memory, _ = self.network.step(memory, codes[:, t], actions[:, t])
            states.append(torch.cat([codes[:, t + 1], memory], dim=-1))
        return torch.stack(states, dim=1)

    def decode(self, states: Tensor, seen: Tensor) -> Tensor:
        """Return frames."""
        pixels = self.network.decode(states[..., :CODE].flatten(0, -2)) + 0.5
        return (pixels * 255).round().clamp(0, 255).to(torch.uint8).unflatten(0, states.shape[:-1])

    def read(self, states: Tensor) -> Tensor:
        """Return the task's quantities."""
        return self.network.readout(states[..., :CODE]) * self.std + self.mean


def load(checkpoint: Path, setup: PlanningSetup) -> JudgedModel:
    """Load what `train` wrote; the benchmark calls this."""
    saved = torch.load(checkpoint, weights_only=True)
    return JudgedRecurrent(saved, get_task(setup.task), setup.weights)


def train(store: EpisodeStore, out: Path, *, seconds: float, batch_size: int = 16, seed: int = 0) -> float:
    """Train for some seconds, write a checkpoint, and return the last loss."""
    torch.manual_seed(seed)
    camera = next(name for name in store.features if name.startswith("observation.images."))
    episodes, _ = split_episodes(store.num_episodes)
    names = (camera, "action", "sim.quantities")
    loader = WindowLoader(store, episodes=episodes, length=WINDOW, batch_size=batch_size, features=names, seed=seed)
    sample = [loader.batch(step) for step in range(64)]
    actions, quantities = (torch.cat([torch.from_numpy(b[name]) for b in sample]) for name in names[1:])
    mean, std = quantities.mean((0, 1)), quantities.std((0, 1)).clamp_min(1e-6)
    network = Recurrent(actions.shape[-1], len(mean))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    began, step, loss = time.monotonic(), 0, torch.zeros(())
    while step == 0 or time.monotonic() - began < seconds:
        frames, action, read = (torch.from_numpy(loader.batch(step)[name]) for name in names)
        loss = network.loss(frames, action, (read - mean) / std)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
    torch.save(
        {
            "weights": network.state_dict(),
            "camera": camera.removeprefix("observation.images."),
            "action_low": actions.amin((0, 1)),
            "action_high": actions.amax((0, 1)),
            "mean": mean,
            "std": std,
        },
        out,
    )
    print(f"{step} steps, loss {loss.item():.3f}; wrote {out}")
    return loss.item()


if __name__ == "__main__":
    train(EpisodeStore.open(sys.argv[1]), Path(sys.argv[2]), seconds=float(sys.argv[3]))
