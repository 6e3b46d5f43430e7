"""The line-up of the benchmarks: models and agents, made from a checkpoint in whatever process they run in."""

import importlib
import importlib.util
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file

from embodied_wm.checkpoint import write_tensors
from embodied_wm.evaluation.agents import Agent, ModelAgent, OracleAgent, PolicyAgent, RandomAgent
from embodied_wm.evaluation.baselines import BaselineConfig, train_baseline
from embodied_wm.evaluation.judged import JudgedModel, JudgedWorldModel, ObjectiveKind, check_fits
from embodied_wm.goal_policy import GoalPolicy
from embodied_wm.predictor.int8 import set_precision
from embodied_wm.predictor.transformer import Precision
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.world_model import ActionKind, WorldModel
from planners.base import Planner
from planners.cautious import Cautious
from planners.control import Control
from planners.gradient import Gradient
from planners.objectives import StepWeights
from planners.proposing import BestProposal, Proposing
from planners.safety import Safety
from planners.search import Searcher
from sim.tasks import get_task

CONTROLLERS = ("model", "oracle", "behaviour_cloning", "inverse_dynamics", "random", "zero")
NEED_NO_MODEL = ("oracle", "random", "zero")
ASKING = (Proposing, BestProposal)
"""Planners that ask for proposals."""
POLICIES = {"behaviour_cloning": 25, "inverse_dynamics": 8}
"""Baseline to the farthest goal, in frames, that it is trained on."""


@dataclass(frozen=True, kw_only=True)
class PlanningSetup:
    """Say what plans, and how.

    Attributes:
        task: The task's name.
        planner: The planner, the oracle's too; see `planner_for`.
        objective: What the world model's planner minimises.
        weights: How much each imagined step counts.
        context: Frames of context.
        rolling: Roll the context on from frame to frame instead of prefilling it at each decision.
        kind: How actions condition the model.
        adapter: What loads a model that is not ours, "package.module:function" or "file.py:function"; see `judged`.
        precision: What imagination multiplies in; see `predictor.int8`.
        denoising_steps: Of each imagined frame.
        proposals: Sequences that a model's goal policy proposes at each decision, where it has one; 0 plans without.
        device: Where our models plan.
        control: Budget, chunks and safety of the model's agent; the oracle executes chunks of the same length.
    """

    task: str
    planner: Planner
    objective: ObjectiveKind
    weights: StepWeights
    context: int = 3
    rolling: bool = False
    kind: ActionKind = "real"
    adapter: str | None = None
    precision: Precision = "fp32"
    denoising_steps: int = 1
    proposals: int = 0
    device: str = "cpu"
    control: Control = field(default_factory=Control)

    def __post_init__(self) -> None:
        """Raise ValueError for a number of proposals below 0."""
        if self.proposals < 0:
            raise ValueError(f"task.proposals={self.proposals}: expected 0, for none, or more")

    def planner_for(self, model: JudgedModel) -> Planner:
        """Return what plans with a model: the planner, around what the model's goal policy proposes if there is one.

        At most half of a planner's candidates are proposals; one that asks for proposals by itself stays as it is.
        """
        planner = self.planner
        if not self.proposals or not model.has_goal_policy or _has(planner, ASKING):
            return planner
        if isinstance(planner, Cautious):
            return replace(planner, planner=_guided(planner.planner, self.proposals))
        return _guided(planner, self.proposals) if isinstance(planner, Searcher) else planner


def check_oracle(planner: Planner) -> None:
    """Raise ValueError for planners that MuJoCo, as the oracle's dynamics, cannot plan with."""
    if _has(planner, (Gradient, *ASKING)):
        raise ValueError(
            f"{type(planner).__name__} wants gradients or proposals, which MuJoCo does not have: it cannot plan for "
            "the oracle. Choose another planner=, or leave the oracle out where controllers can be chosen"
        )


def _has(planner: Any, kinds: tuple[type, ...]) -> bool:
    """Tell whether a planner, or one inside it, is of some kinds."""
    inside = (getattr(planner, part, None) for part in ("planner", "polish"))
    return isinstance(planner, kinds) or any(_has(each, kinds) for each in inside if each is not None)


def _guided(planner: Searcher, most: int) -> Proposing:
    candidates = planner.num_sequences // planner.num_iterations
    return Proposing(planner=planner, num_proposals=max(1, min(most, candidates // 2)), around=True)


class Loads(Protocol):
    """Make a model behind its adapter from a checkpoint."""

    def __call__(self, checkpoint: Path, setup: PlanningSetup, /) -> JudgedModel:
        """Return the model, ready to imagine."""
        ...


def load_judged(checkpoint: Path, setup: PlanningSetup) -> JudgedModel:
    """Load the model that is judged: ours, or through the setup's adapter; checked against the task.

    Raises:
        ValueError: If the adapter cannot be found, or the model is of another camera or number of actions.
    """
    task = get_task(setup.task)
    if setup.adapter is None:
        world_model = WorldModel.load(checkpoint, device=setup.device)
        set_precision(world_model.predictor.transformer, setup.precision)
        model = judged_world_model(world_model, setup)
    elif setup.precision != "fp32" or setup.denoising_steps != 1:
        raise ValueError(
            f"precision={setup.precision}, denoising_steps={setup.denoising_steps}: the model of adapter="
            f"{setup.adapter} chooses its own; leave them"
        )
    else:
        model = _adapter(setup.adapter)(checkpoint, setup)
    check_fits(model, task)
    return model


def judged_world_model(world_model: WorldModel, setup: PlanningSetup) -> JudgedWorldModel:
    """Put our model behind its adapter."""
    return JudgedWorldModel(
        world_model,
        get_task(setup.task),
        objective=setup.objective,
        weights=setup.weights,
        kind=setup.kind,
        num_steps=setup.denoising_steps,
    )


def _adapter(place: str) -> Loads:
    name, _, function = place.rpartition(":")
    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(name).stem, name)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(name)
        return getattr(module, function)
    except (ImportError, FileNotFoundError, AttributeError, ValueError) as error:
        raise ValueError(
            f"adapter={place} cannot be loaded: {error}. An adapter is package.module:function or "
            "path/to/file.py:function, which takes (checkpoint, setup) and returns a JudgedModel; what it imports must "
            "be installed (see embodied_wm/evaluation/judged.py)"
        ) from error


def make_model_agent(checkpoint: Path, setup: PlanningSetup) -> Agent:
    """Make the agent that plans in a model's imagination."""
    model = load_judged(checkpoint, setup)
    return ModelAgent(
        model,
        setup.planner_for(model),
        context=setup.context,
        rolling=setup.rolling,
        control=setup.control,
    )


def make_oracle_agent(setup: PlanningSetup, num_threads: int = 1) -> Agent:
    """Make the same planner on MuJoCo, without a budget: the oracle's time says nothing of a model's."""
    control = Control(
        replan_every=setup.control.replan_every,
        tail=setup.control.tail,
        safety=Safety(max_change=setup.control.safety.max_change),
    )
    return OracleAgent(get_task(setup.task), setup.planner, setup.weights, control=control, num_threads=num_threads)


def make_random_agent(setup: PlanningSetup, scale: float) -> Agent:
    """Make an agent of random (scale 1) or zero actions."""
    return RandomAgent(get_task(setup.task).action_size, scale=scale)


def make_policy_agent(checkpoint: Path, policy: Path, width: int, task: str) -> Agent:
    """Make a baseline policy's agent from its saved weights; it acts on the CPU."""
    world_model = WorldModel.load(checkpoint)
    network = GoalPolicy(
        latent_size=world_model.num_tokens * world_model.token_width,
        action_size=world_model.embodiment.action_size,
        width=width,
    )
    network.load_state_dict(load_file(policy))
    felt = get_task(task).state_proprioception if world_model.proprioception else None
    return PolicyAgent(world_model, network, felt)


def train_baselines(
    checkpoint: Path,
    data: LatentEpisodes,
    run_dir: Path,
    *,
    task: str,
    seed: int,
    config: BaselineConfig | None = None,
    names: Collection[str] = tuple(POLICIES),
) -> Mapping[str, Callable[[], Agent]]:
    """Train some policies without search on the model's own latents; return what makes their agents of a task."""
    config = config or BaselineConfig()
    world_model = WorldModel.load(checkpoint)
    makers: dict[str, Callable[[], Agent]] = {}
    for name in names:
        max_ahead = POLICIES[name]
        policy = train_baseline(name, world_model, data, replace(config, max_ahead=max_ahead), run_dir, seed=seed)
        path = run_dir / f"{name}.safetensors"
        write_tensors(path, policy.state_dict())
        makers[name] = partial(make_policy_agent, checkpoint, path, config.width, task)
    return makers


def line_up(checkpoint: Path | None, setup: PlanningSetup) -> dict[str, Callable[[], Agent]]:
    """Return what makes the agents that need no training: model (where there is a checkpoint), oracle, random, zero."""
    needless: dict[str, Callable[[], Agent]] = {
        "oracle": partial(make_oracle_agent, setup),
        "random": partial(make_random_agent, setup, 1.0),
        "zero": partial(make_random_agent, setup, 0.0),
    }
    return needless if checkpoint is None else {"model": partial(make_model_agent, checkpoint, setup), **needless}
