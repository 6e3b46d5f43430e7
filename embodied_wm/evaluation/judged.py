"""What the judge needs of a model: the adapter by which any model, ours or not, is judged and plans.

`benchmark imagination` and `benchmark planning` know a model by `JudgedModel` alone; `JudgedWorldModel` is ours. To
have another one judged, subclass `JudgedModel` and name a function that makes it:

    def load(checkpoint: Path, setup: PlanningSetup) -> JudgedModel: ...

    embodied-wm benchmark imagination task=push checkpoint=gru.pt adapter=my_adapter.py:load

The required parts are `encode` (once per frame), `prefill` (once per decision), `imagine` (all candidates, from that
one context: keep it shared, it is what makes a decision fast) and `objective` (the cost of imagined states). The
optional ones return None where a model cannot; what needs them is left out of the report, which says so.
`scripts/judge_recurrent.py` and `scripts/judge_lewm.py` are examples.

Shapes: C context frames, S candidates, H horizon, A action size, Q the task's quantities.
"""

from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from embodied_wm.data.cameras import camera_names
from embodied_wm.dynamics import ImaginedDynamics
from embodied_wm.evaluation.oracle import task_cost
from embodied_wm.predictor.sampler import check_steps
from embodied_wm.world_model import ActionKind, WorldModel
from planners.base import Guided, Objective
from planners.objectives import (
    ActionPenalty,
    GoalDistance,
    Reward,
    StateCost,
    StepWeights,
    TemporalDistance,
    WeightedSum,
)
from sim.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weigh objectives against each other.

    Attributes:
        state: Weight of the task's cost, in metres, of what is read from imagined latents.
        latent: Weight of the Euclidean distance of latents to the goal's.
        temporal_distance: Weight of the steps that the model's readout says it takes to the goal.
        reward: Weight of the reward that is read from imagined latents, whatever the goal image.
        effort: Weight of the mean squared action.
        change: Weight of the mean squared difference of neighbouring actions.
    """

    state: float = 1.0
    latent: float = 0.0
    temporal_distance: float = 0.0
    reward: float = 0.0
    effort: float = 0.0
    change: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for weights that leave nothing to want."""
        if min(astuple(self)) < 0 or self.state + self.latent + self.temporal_distance + self.reward == 0:
            raise ValueError(
                f"got {self}; expected weights of 0 or more, and one of state, latent, temporal_distance and reward "
                "above 0"
            )


Distance = Literal["latent", "state", "temporal_distance"]
ObjectiveKind = Distance | Mixture
QUANTITIES, CONTACT, PROPRIOCEPTION = "sim.quantities", "sim.contact", "observation.state"


class JudgedModel(Protocol):
    """Imagine what a planner asks for, from frames; it is a planner's `Dynamics`, too.

    Attributes:
        camera: The simulator's name of the camera whose frames the model sees, "first+second" for several side by side.
        image_size: Height and width of those frames.
        action_size: A.
        action_low: Smallest action that a planner may try, [A].
        action_high: Largest.
        stride: Frames of data that one step of the model is; of the frames of a context it looks at one in so many.
        remembers: Whether `prefill` takes the codes of all frames before the context, too.
        has_goal_policy: Whether its objectives also propose what a policy would do (planners.Guided).
    """

    camera: str
    image_size: tuple[int, int]
    action_size: int
    action_low: Tensor
    action_high: Tensor
    stride: int = 1
    remembers: bool = False
    has_goal_policy: bool = False

    def encode(self, frames: Tensor) -> Tensor:
        """Return what the model keeps of each frame: uint8 [N, h, w, 3] to codes [N, ...]."""
        ...

    def feel(self, physics: np.ndarray) -> Tensor | None:
        """Return what the model's robot feels of itself in physics states [..., nstate], float [..., P]. Optional.

        A model that implements it has it as the second argument of `encode`; None is a model that only sees.
        """
        return None

    def prefill(self, codes: Tensor, actions: Tensor) -> Any:
        """Return the context that all candidates start from.

        Args:
            codes: Codes of the last frames, oldest first, [C, ...].
            actions: The C - 1 actions between them, [C - 1, A].

        A model that remembers has the codes of all frames before them, [N, ...], as the third argument.
        """
        ...

    def imagine(self, context: Any, actions: Tensor) -> Tensor:
        """Return the states [S, H, ...] after each action of S candidates [S, H, A]."""
        ...

    def objective(self, goal_frame: Tensor) -> Objective:
        """Return the cost of imagined states towards a goal image, uint8 [h, w, 3]: the one that planning minimises."""
        ...

    def extend(self, context: Any, code: Tensor, action: Tensor, *, max_frames: int) -> Any:
        """Return the context with one more frame, of `max_frames` at most. Optional: an agent that rolls needs it."""
        raise ValueError(f"{type(self).__name__} cannot extend a context; use rolling=false")

    def reseed(self, seed: int) -> None:
        """Restart the model's noise; a model without noise has nothing to do."""

    def observe(self, codes: Tensor, actions: Tensor) -> Tensor | None:
        """Return the states [N, T, ...] after *seeing* frames: codes [N, T, ...], and actions [N, T - 1, A] between.

        Optional: `latent_mse`, ceilings, `optimism` and what is compared with the present need it.
        """
        return None

    def decode(self, states: Tensor, seen: Tensor) -> Tensor | None:
        """Return frames uint8 [..., h, w, 3] of states; `seen` is the last frame given. Optional: films, PSNR, SSIM."""
        return None

    def read(self, states: Tensor) -> Tensor | None:
        """Return the task's quantities [..., Q], in its units. Optional: errors in metres, and ghost motion."""
        return None

    def touches(self, states: Tensor) -> Tensor | None:
        """Return whether a contact that counts happened in the step to each state, bool [...]. Optional."""
        return None

    def fingerprints(self) -> dict[str, Any]:
        """Return what identifies the weights ("checkpoint") and the training data ("dataset"), for the report."""
        return {}


class JudgedWorldModel(JudgedModel):
    """Our world model: codes and states are latents, the context is the cached one that all candidates share."""

    def __init__(
        self,
        world_model: WorldModel,
        task: Task,
        *,
        objective: ObjectiveKind,
        weights: StepWeights,
        kind: ActionKind = "real",
        num_steps: int = 1,
    ) -> None:
        """Take a model and what it is judged on.

        Args:
            world_model: The model.
            task: Says which quantities the goal is about.
            objective: "latent" is the Euclidean distance of latents; "state" reads the task's quantities from imagined
                latents and from the goal's latents, and takes their distance in metres; "temporal_distance" is how many
                steps the model's readout says it takes to the goal; a `Mixture` weighs all of these, and reward.
            weights: How much each imagined step counts.
            kind: How actions condition the model.
            num_steps: Denoising steps per imagined frame.

        Raises:
            ValueError: If the model reads another task's quantities, feels what tasks do not tell, lacks a readout
                that the objective needs, or was not trained for so many denoising steps.
        """
        check_steps(world_model.predictor, num_steps)
        read, _ = world_model.embodiment.readouts.get(QUANTITIES, (task.quantity_names, ()))
        if tuple(read) != task.quantity_names:
            raise ValueError(
                f"the model reads {', '.join(read)}; {task.name} has {', '.join(task.quantity_names)}. "
                f"{_other_model(task)}"
            )
        wanted = objective if isinstance(objective, Mixture) else Mixture(**{"state": 0.0, objective: 1.0})
        if wanted.state:
            world_model.readout(QUANTITIES)  # says what to do where there is none
        if wanted.reward:
            world_model.readout(world_model.embodiment.reward_feature)  # the same
        if world_model.config.proprioception not in ("", PROPRIOCEPTION):
            raise ValueError(
                f"the model feels {world_model.config.proprioception!r}; tasks tell {PROPRIOCEPTION!r} alone. Train a "
                f"model with model.proprioception={PROPRIOCEPTION}, or without."
            )
        if wanted.temporal_distance:
            nowhere = world_model.action_low.new_zeros(world_model.num_tokens, world_model.token_width)
            world_model.steps_between(nowhere, nowhere)  # the same
        self.world_model, self.task, self.weights = world_model, task, weights
        self.kind: ActionKind = kind
        self.wanted = wanted
        self.dynamics = ImaginedDynamics(world_model, kind=kind, num_steps=num_steps)
        self.device = next(world_model.parameters()).device
        names = camera_names(world_model.embodiment.camera)
        self.camera = "+".join(name.removeprefix("observation.images.") for name in names)
        self.image_size = world_model.config.tokenizer.frame_size
        self.action_size, self.stride = self.dynamics.action_size, world_model.stride
        self.remembers = world_model.config.predictor.memory > 0
        self.has_goal_policy = world_model.config.goal_policy.width > 0 and kind != "latent"
        self.action_low, self.action_high = self.dynamics.action_low, self.dynamics.action_high

    @torch.no_grad()
    def encode(self, frames: Tensor, proprioception: Tensor | None = None) -> Tensor:
        """Return standardised latents."""
        return self.world_model.encode(frames.to(self.device), proprioception)

    def feel(self, physics: np.ndarray) -> Tensor | None:
        """Return the task's proprioception, if the model has tokens for it."""
        if self.world_model.proprioception is None:
            return None
        return torch.from_numpy(self.task.state_proprioception(physics).astype(np.float32))

    def prefill(self, codes: Tensor, actions: Tensor, past: Tensor | None = None) -> Any:
        """Return keys and values of the context, and of what is remembered of the past, computed once."""
        return self.world_model.prefill_latents(codes, actions.to(self.device), kind=self.kind, past=past)

    def extend(self, context: Any, code: Tensor, action: Tensor, *, max_frames: int) -> Any:
        """Return the context with the new frame's keys and values behind the old ones, as far as the window goes."""
        most = min(max_frames, self.world_model.config.predictor.window - 1)
        return self.world_model.extend_latents(context, code, action.to(self.device), kind=self.kind, max_frames=most)

    def imagine(self, context: Any, actions: Tensor) -> Tensor:
        """Return imagined latents; all candidates get the same noise, so that it does not decide between them."""
        return self.dynamics.imagine(context, actions.to(self.device))

    def imagine_samples(self, context: Any, actions: Tensor, num_samples: int) -> Tensor:
        """Return futures [N, H, K, D] of one sequence, each with noise of its own."""
        return self.dynamics.imagine_samples(context, actions.to(self.device), num_samples)

    def propose(self, context: Any, num: int, horizon: int, generator: torch.Generator, /) -> Tensor:
        """Return action sequences [N, H, A] that the model itself proposes, if it denoises actions."""
        return self.dynamics.propose(context, num, horizon, generator)

    @torch.no_grad()
    def objective(self, goal_frame: Tensor) -> Objective:
        """Return the distance to the goal, in latents or in what is read from them, or both."""
        goal = self.world_model.encode_picture(goal_frame.to(self.device))
        found = self._cost(goal)
        if not self.has_goal_policy:
            return found
        return Guided(objective=found, propose=partial(self.dynamics.propose_towards, goal))

    def _cost(self, goal: Tensor) -> Objective:
        """Return the weighted sum of what is wanted."""
        wanted, weights = self.wanted, self.weights
        terms: list[tuple[float, Objective]] = []
        if wanted.state:
            readout = self.world_model.readout(QUANTITIES)
            cost = task_cost(self.task, readout(goal).cpu())
            terms.append((wanted.state, StateCost(readout=readout, cost=cost, weights=weights)))
        if wanted.latent:
            terms.append((wanted.latent, GoalDistance(goal=goal, weights=weights, metric="euclidean")))
        if wanted.temporal_distance:
            distance = self.world_model.steps_between
            terms.append((wanted.temporal_distance, TemporalDistance(distance=distance, goal=goal, weights=weights)))
        if wanted.reward:
            terms.append((wanted.reward, self._reward()))
        if wanted.effort or wanted.change:
            terms.append((1.0, ActionPenalty(effort=wanted.effort, change=wanted.change)))
        return WeightedSum(terms)

    def _reward(self) -> Objective:
        readout = self.world_model.readout(self.world_model.embodiment.reward_feature)
        return Reward(reward=lambda states, actions: readout(states)[..., 0], weights=self.weights)

    def reseed(self, seed: int) -> None:
        """Restart the noise of imagination."""
        self.dynamics.reseed(seed)

    def observe(self, codes: Tensor, actions: Tensor) -> Tensor:
        """Return the codes: a latent is of one frame."""
        return codes

    def decode(self, states: Tensor, seen: Tensor) -> Tensor:
        """Return decoded frames, blended into the last one seen where nothing changed."""
        return self.world_model.decode(states, seen=seen.to(self.device))

    def read(self, states: Tensor) -> Tensor | None:
        """Return what the readout of the task's quantities says, if the model has it."""
        return self._readout(QUANTITIES, states)

    def touches(self, states: Tensor) -> Tensor | None:
        """Return whether the readout of contacts says more yes than no, if the model has it."""
        found = self._readout(CONTACT, states)
        return None if found is None else found[..., 0] > 0.5

    @torch.no_grad()
    def _readout(self, feature: str, states: Tensor) -> Tensor | None:
        has_it = feature in self.world_model.embodiment.readouts
        return self.world_model.readout(feature)(states) if has_it else None

    def fingerprints(self) -> dict[str, Any]:
        """Return the fingerprints of the weights and of the store that they were trained on."""
        return self.world_model.fingerprints()


def encode_seen(model: JudgedModel, frames: Tensor, physics: np.ndarray) -> Tensor:
    """Return the codes [N, ...] of frames [N, h, w, 3] and of what is felt in their physics states [N, nstate]."""
    felt = model.feel(physics)
    return model.encode(frames) if felt is None else model.encode(frames, felt)  # pyright: ignore[reportCallIssue]


def prefill_seen(model: JudgedModel, codes: Tensor, actions: Tensor, past: Tensor) -> Any:
    """Return the context of codes [C, ...] and the actions between; a model that remembers has the past [N, ...]."""
    if not model.remembers or not len(past):
        return model.prefill(codes, actions)
    return model.prefill(codes, actions, past)  # pyright: ignore[reportCallIssue]


def goal_image(frame: np.ndarray | None, image_size: tuple[int, int]) -> Tensor:
    """Return a goal image uint8 [h, w, 3]; raise ValueError if there is none, or none that a model's encoder takes."""
    shape = (*image_size, 3)
    if frame is None or frame.shape != shape or frame.dtype != np.uint8:
        got = "none" if frame is None else f"{frame.dtype} of shape {frame.shape}"
        raise ValueError(
            f"the goal image does not fit the model: got {got}; expected uint8 of shape {shape}. Render or resize the "
            "goal to the size of the model's own frames, as whole numbers from 0 to 255."
        )
    return torch.from_numpy(frame)


def check_fits(model: JudgedModel, task: Task) -> None:
    """Raise ValueError unless a model's actions and camera are the task's."""
    if model.action_size != task.action_size:
        raise ValueError(
            f"the model wants actions of size {model.action_size}; {task.name} has {task.action_size}: "
            f"{', '.join(task.action_names)}. {_other_model(task)}"
        )
    if not set(model.camera.split("+")) <= set(task.cameras):
        raise ValueError(
            f"the model sees the camera {model.camera!r}; {task.name} has: {', '.join(task.cameras)}. "
            f"{_other_model(task)}"
        )


def _other_model(task: Task) -> str:
    return f"Use a checkpoint that was trained on {task.name}, or another task=."
