"""Models whose score is known beforehand: one that knows physics, one that expects no change, and spoilt ones."""

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from embodied_wm.evaluation.branches import BranchStart
from embodied_wm.evaluation.judged import JudgedModel
from embodied_wm.evaluation.oracle import task_cost
from planners.base import Objective
from planners.objectives import GoalDistance, StateCost, StepWeights
from sim.branch import Brancher
from sim.render import Renderer
from sim.tasks import get_task
from sim.tasks.base import Task

SIZE = (32, 32)
PUSH = get_task("push")
OF_ANOTHER_TASK = pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera": "observation.images.wrist"}, "sees the camera 'wrist'; reach has: top"),
        ({"action_size": 7}, "wants actions of size 7; reach has 2: "),
        ({"readouts": {"sim.quantities": (PUSH.quantity_names, PUSH.quantity_units)}}, "reads pusher_x, .*; reach has"),
    ],
    ids=["camera", "actions", "quantities"],
)
"""What differs in the embodiment of a model of `reach`, and what is said of it."""


class CopyModel(JudgedModel):
    """Expect that nothing changes; a state is a frame."""

    def __init__(self, task: Task, weights: StepWeights) -> None:
        self.camera, self.image_size, self.weights = task.cameras[0], SIZE, weights
        self.action_size = task.action_size
        self.action_low, self.action_high = -torch.ones(task.action_size), torch.ones(task.action_size)

    def encode(self, frames: Tensor) -> Tensor:
        return frames.float()

    def prefill(self, codes: Tensor, actions: Tensor) -> Tensor:
        return codes[-1]

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        return context.expand(*actions.shape[:2], *context.shape)

    def objective(self, goal_frame: Tensor) -> Objective:
        return GoalDistance(goal=goal_frame.float(), weights=self.weights)

    def observe(self, codes: Tensor, actions: Tensor) -> Tensor:
        return codes

    def decode(self, states: Tensor, seen: Tensor) -> Tensor:
        return states.to(torch.uint8)


class OracleModel(JudgedModel):
    """Recognise the states of a benchmark by their frames and replay them in MuJoCo.

    A state is a physics state, whether there was a contact, and metres by which objects are imagined off their place.
    """

    def __init__(
        self,
        task: Task,
        starts: Sequence[BranchStart],
        weights: StepWeights,
        *,
        shuffled: bool = False,
        ghost_m: float = 0.0,
        contact_delay: int = 0,
    ) -> None:
        """Know these states; `shuffled` mixes up candidates, `ghost_m` moves objects by so much a step."""
        self.task, self.weights = task, weights
        self.shuffled, self.ghost_m, self.contact_delay = shuffled, ghost_m, contact_delay
        self.camera, self.image_size = task.cameras[0], SIZE
        self.action_size = task.action_size
        self.action_low, self.action_high = -torch.ones(task.action_size), torch.ones(task.action_size)
        self.context_frames = len(starts[0].frames)
        self.known = {key(start.frames, start.past_actions): start for start in starts}
        self.goals = {start.goal_frame.tobytes(): start.goal_quantities for start in starts}
        self.brancher = Brancher(task, num_threads=1)
        self.renderer = Renderer(task.model, *SIZE, self.camera)

    def encode(self, frames: Tensor) -> Tensor:
        return frames

    def prefill(self, codes: Tensor, actions: Tensor) -> BranchStart:
        return self.known[key(codes.numpy(), actions.numpy())]

    def replay(self, start: BranchStart, actions: Tensor) -> Tensor:
        truth = self.brancher(start.physics, actions.numpy())
        extra = np.stack([truth.contacts, np.zeros_like(truth.contacts)], axis=-1)
        return torch.from_numpy(np.concatenate([truth.states, extra], axis=-1))

    def imagine(self, context: BranchStart, actions: Tensor) -> Tensor:
        states = self.replay(context, actions.flip(0) if self.shuffled else actions)
        states[..., -1] = self.ghost_m * torch.arange(1, actions.shape[1] + 1)
        if self.contact_delay:
            states[..., -2] = states[..., -2].roll(self.contact_delay, 1)
            states[:, : self.contact_delay, -2] = float(context.touching)
        return states

    def objective(self, goal_frame: Tensor) -> Objective:
        goal = self.goals[goal_frame.numpy().tobytes()]
        return StateCost(readout=self.read, cost=task_cost(self.task, goal), weights=self.weights)

    def observe(self, codes: Tensor, actions: Tensor) -> Tensor:
        given = self.context_frames
        start = self.prefill(codes[0, :given], actions[0, : given - 1])
        present = torch.tensor([*start.physics, float(start.touching), 0.0], dtype=torch.float64)
        after = self.replay(start, actions[:, given - 1 :])
        return torch.cat([present.expand(len(codes), given, -1), after], dim=1)

    def decode(self, states: Tensor, seen: Tensor) -> Tensor:
        flat = states[..., :-2].reshape(-1, states.shape[-1] - 2).numpy()
        return torch.from_numpy(self.renderer.render_states(flat)).unflatten(0, states.shape[:-1])

    def read(self, states: Tensor) -> Tensor:
        found = torch.from_numpy(self.task.state_quantities(states[..., :-2].numpy()))
        for place in self.task.objects.values():
            found[..., place[0]] += states[..., -1]
        return found

    def touches(self, states: Tensor) -> Tensor:
        return states[..., -2] > 0.5

    def close(self) -> None:
        self.brancher.close()
        self.renderer.close()


def key(frames: np.ndarray, actions: np.ndarray) -> bytes:
    return frames.tobytes() + actions.tobytes()


def curve(measure: dict) -> list[float]:
    """Return a measure by horizon as numbers."""
    return [cell["value"] for cell in measure["by_horizon"].values()]


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
