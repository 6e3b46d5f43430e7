# pyright: reportMissingImports=false
# (the peer's package is no dependency of this project)
"""Our world model behind stable-worldmodel's solvers: their search, our imagination, in closed loop on a task.

A solver knows a model by `get_cost(info, candidates)`. The context is encoded once per decision and read by all
candidates of all iterations, as our own planners do it.

    pip install stable-worldmodel==0.1.1
    python scripts/swm_solvers.py pretrained:reach --task reach --solver MPPISolver --episodes 30 --horizon 6

Success and milliseconds of a decision on 30 goals, one thread, 48 candidates and (but for predictive sampling) 3
refits, `--horizon 6` on `reach` and 8 on `push` (intervals of a rate of 30 are 0.1 to 0.3 wide; our own CEM solves 1.00
and 0.99 of 100):

    solver                     reach       push
    ICEMSolver                 1.00, 22    0.97, 32
    CEMSolver                  0.73, 21    0.83, 29
    MPPISolver                 0.67, 21    0.90, 31
    PredictiveSamplingSolver   0.83,  9    0.77, 12
    GradientSolver             0.93, 92    0.80, 127
"""

import argparse
import contextlib
import io
import time
from typing import Any

import numpy as np
import stable_worldmodel.solver as solvers
import torch
from gymnasium.spaces import Box
from stable_worldmodel.policy import PlanConfig
from torch import Tensor

from embodied_wm.evaluation.judged import JudgedModel
from embodied_wm.evaluation.lineup import PlanningSetup, load_judged
from embodied_wm.evaluation.planning import Arena
from embodied_wm.hub import fetch
from planners import CEM, StepWeights
from sim.manifest import evaluation_pairs
from sim.tasks import get_task

REFITS = {
    "CEMSolver": {"n_steps": 3, "topk": 8},
    "ICEMSolver": {"n_steps": 3, "topk": 8},
    "MPPISolver": {"n_steps": 3, "topk": 8},
    "GradientSolver": {"n_steps": 3},
    "PredictiveSamplingSolver": {},
}
"""Solvers for bounded continuous actions, with the refits of our own planners' defaults where they refit."""


class CostModel:
    """What a solver needs of a model: costs [B, S] of candidates [B, S, H, A], in the robot's units.

    `info` holds what a solver makes of {"pixels": uint8 [B, T, h, w, 3], "goal": uint8 [B, 1, h, w, 3]}: a copy for
    each candidate (a view). "action" [B, T - 1, A], the actions between the frames, is needed where T > 1.
    """

    def __init__(self, model: JudgedModel) -> None:
        self.model = model

    def get_cost(self, info: dict[str, Any], candidates: Tensor) -> Tensor:
        """Return the costs; what is encoded stays in `info` for the next iteration."""
        if "prepared" not in info:
            info["prepared"] = [self._prepare(info, number) for number in range(len(candidates))]
        costs = []
        for (context, objective), actions in zip(info["prepared"], candidates, strict=True):
            allowed = actions.float().clamp(self.model.action_low, self.model.action_high)
            costs.append(objective(self.model.imagine(context, allowed), allowed))
        return torch.stack(costs)

    def _prepare(self, info: dict[str, Any], number: int) -> tuple[Any, Any]:
        codes = self.model.encode(info["pixels"][number, 0])
        past = (
            info["action"][number, 0] if len(codes) > 1 else self.model.action_low.new_zeros(0, self.model.action_size)
        )
        return self.model.prefill(codes, past), self.model.objective(info["goal"][number, 0, -1])


class SolverAgent:
    """Act by a solver of theirs, in the closed loop that our own planners are judged in."""

    needs_frames = True

    def __init__(self, model: JudgedModel, solver: Any, *, horizon: int) -> None:
        self.model, self.solver = model, solver
        space = Box(-1.0, 1.0, (1, model.action_size))
        solver.configure(action_space=space, n_envs=1, config=PlanConfig(horizon=horizon, receding_horizon=1))
        self.seconds: list[float] = []

    def begin(self, goal_frame: np.ndarray | None, goal_physics: np.ndarray, seed: int) -> None:
        """Take the goal image."""
        self.goal, self.plan = torch.from_numpy(goal_frame)[None, None], None
        self.model.reseed(seed)

    def act(self, frame: np.ndarray | None, physics: np.ndarray) -> np.ndarray:
        """Search from the newest frame, beginning at the last plan."""
        began = time.perf_counter()
        info = {"pixels": torch.from_numpy(frame)[None, None], "goal": self.goal}
        with contextlib.redirect_stdout(io.StringIO()):  # solvers print their times
            plan = self.solver.solve(info, init_action=self.plan)["actions"].float()
        self.plan = plan[:, 1:]
        self.seconds.append(time.perf_counter() - began)
        return plan[0, 0].clamp(self.model.action_low, self.model.action_high).numpy()


def main() -> None:
    """Run episodes and print the success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a model or run, pretrained:TASK, or OWNER/NAME")
    parser.add_argument("--task", default="reach")
    parser.add_argument("--solver", default="CEMSolver", choices=list(REFITS))
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--horizon", type=int, default=6)
    parser.add_argument("--candidates", type=int, default=48)
    options = parser.parse_args()
    setup = PlanningSetup(task=options.task, planner=CEM(), objective="state", weights=StepWeights())
    model, task = load_judged(fetch(options.checkpoint), setup), get_task(options.task)
    knobs = {"num_samples": options.candidates, **REFITS[options.solver]}
    agent = SolverAgent(model, getattr(solvers, options.solver)(CostModel(model), **knobs), horizon=options.horizon)
    arena = Arena(task, image_size=model.image_size, camera=model.camera)
    ends = [arena.run(agent, pair)[0][-1] for pair in evaluation_pairs(task.name, options.episodes, 0)]
    arena.close()
    print(f"{options.solver}: success {np.mean(np.array(ends) <= task.tolerance_m):.2f} of {len(ends)} episodes,")
    print(f"median decision {1e3 * np.median(agent.seconds):.0f} ms")


if __name__ == "__main__":
    main()
