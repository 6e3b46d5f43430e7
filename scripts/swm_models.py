# pyright: reportMissingImports=false
# (the peer's package and transformers are no dependencies of this project)
"""Our planners over stable-worldmodel's models: any model with `get_cost(info, candidates)`, such as LeWM.

Such a model keeps its states to itself and returns costs, so the dynamics imagine nothing and the objective is the
model's own cost.

    pip install stable-worldmodel==0.1.1 transformers
    python scripts/swm_models.py --task push --checkpoint lewm.pt --budget-ms 500

`--checkpoint` is a state_dict that torch.save wrote; without one the weights are random, and so is the behaviour.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planners import CEM, MPC, Control, Objective


class NoStates:
    """Dynamics of a model that returns costs only: what is imagined are the actions themselves."""

    def __init__(self, action_low: Tensor, action_high: Tensor) -> None:
        self.action_size, self.action_low, self.action_high = len(action_low), action_low, action_high

    def imagine(self, context: Any, actions: Tensor) -> Tensor:
        """Return the actions."""
        return actions


def cost_of(model: Any, info: dict[str, Tensor]) -> Objective:
    """Return a model's cost as an objective, from one moment.

    Args:
        model: Has `get_cost`.
        info: What is known, each of shape [1, T, ...]: "pixels", "goal", "action", as the model wants them.
    """
    prepared: dict[int, dict[str, Any]] = {}  # by S: models keep what they encoded in `info`, for each candidate

    @torch.no_grad()
    def cost(trajectory: Tensor, actions: Tensor) -> Tensor:
        count = len(actions)
        if count not in prepared:
            prepared[count] = {name: value[:, None].expand(-1, count, *value.shape[1:]) for name, value in info.items()}
        return model.get_cost(prepared[count], actions[None])[0]

    return cost


def main() -> None:
    """Run one episode and print how far from the goal it ends."""
    from judge_lewm import IMAGENET_MEAN, IMAGENET_STD, SIZE, build

    from sim.branch import Brancher
    from sim.manifest import evaluation_pairs
    from sim.tasks import get_task

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="reach")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--budget-ms", type=float)
    parser.add_argument("--candidates", type=int, default=16)
    options = parser.parse_args()
    task = get_task(options.task)
    torch.manual_seed(0)
    model = build(task.action_size)
    if options.checkpoint is not None:
        weights = torch.load(options.checkpoint, weights_only=True)
        if "widths" in weights:
            raise SystemExit(
                f"{options.checkpoint} comes from train_lewm.py; scripts/peers/head_to_head.py plans with it"
            )
        model.load_state_dict(weights)
    renderer, brancher = task.renderer(SIZE, SIZE, task.cameras[0]), Brancher(task, num_threads=1)

    def pixels(physics: np.ndarray) -> Tensor:
        image = torch.from_numpy(renderer.render_states(physics[None])).float() / 255
        return ((image - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(0, 3, 1, 2)[None]

    start, goal, seed = evaluation_pairs(task.name, 1, 0)[0]
    ones = torch.ones(task.action_size)
    planner = CEM(horizon=6, num_candidates=options.candidates, num_iterations=3, num_elites=4)
    control = MPC(planner, NoStates(-ones, ones), seed=seed, control=Control(budget_ms=options.budget_ms))
    info = {"goal": pixels(goal), "action": torch.zeros(1, 1, task.action_size)}
    states, seconds = [start], []
    for _ in range(task.episode_steps):
        decision = control.act(None, cost_of(model, {**info, "pixels": pixels(states[-1])}))
        seconds.append(decision.seconds)
        states.append(brancher(states[-1], decision.action.numpy()[None, None]).states[0, 0])
    end = task.cost(task.state_quantities(states[-1]), task.state_quantities(goal))
    print(f"{task.name}: {100 * float(end):.1f} cm from the goal; median decision {1e3 * np.median(seconds):.0f} ms")
    brancher.close()
    renderer.close()


if __name__ == "__main__":
    main()
