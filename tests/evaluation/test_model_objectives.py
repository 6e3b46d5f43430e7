"""What the world model's planner minimises, and the simulator as dynamics of many environments."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm.embodiment import Embodiment
from embodied_wm.evaluation.judged import QUANTITIES, JudgedWorldModel, Mixture
from embodied_wm.evaluation.oracle import OracleDynamics, oracle_objective, task_cost
from embodied_wm.world_model import WorldModel
from planners import CEM, Gradient, Polished, StepWeights, plan_batch
from planners.base import PlannerError
from sim.manifest import evaluation_pairs
from sim.tasks import get_task

TASK = get_task("reach")


@pytest.fixture(scope="module")
def world_model() -> WorldModel:
    """Return a model of `reach` whose every weight is at work, with a readout of the task's quantities."""
    torch.manual_seed(0)
    readouts = {QUANTITIES: (TASK.quantity_names, TASK.quantity_units), "sim.reward": (("reward",), ("1",))}
    embodiment = Embodiment(camera="observation.images.top", action_size=2, readouts=readouts)
    model = WorldModel(tiny.MODEL, embodiment)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


class Still(JudgedWorldModel):
    """Imagine with the same noise at every call."""

    def imagine(self, context: Any, actions: Tensor) -> Tensor:
        self.reseed(0)
        return super().imagine(context, actions)


def judged(world_model: WorldModel, objective: Any) -> JudgedWorldModel:
    return Still(world_model, TASK, objective=objective, weights=StepWeights(discount=0.9))


def picture(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (tiny.SIZE, tiny.SIZE, 3), dtype=torch.uint8, generator=generator)


def imagined(world_model: WorldModel) -> tuple[Tensor, Tensor]:
    model = judged(world_model, "latent")
    context = model.prefill(model.encode(picture(0)[None]), torch.zeros(0, 2))
    actions = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return model.imagine(context, actions), actions


def test_reward_is_read_after_each_action_and_needs_no_goal(world_model: WorldModel) -> None:
    states, actions = imagined(world_model)
    mixture = Mixture(state=0.0, reward=2.0)
    costs = [judged(world_model, mixture).objective(picture(seed))(states, actions) for seed in (1, 2)]
    torch.testing.assert_close(costs[0], costs[1])
    read = world_model.readout("sim.reward")(states)[..., 0]
    torch.testing.assert_close(costs[0], -2 * StepWeights(discount=0.9).reduce(read))
    blind = WorldModel(tiny.MODEL, Embodiment(camera="observation.images.top", action_size=2))
    with pytest.raises(ValueError, match=r"reads no reward; it reads: nothing\. Train on .* next.reward or sim.reward"):
        judged(blind, mixture)


def test_a_mixture_weighs_what_it_is_made_of(world_model: WorldModel) -> None:
    states, actions = imagined(world_model)
    goal = picture(1)
    state, latent, steps = (
        judged(world_model, kind).objective(goal)(states, actions) for kind in ("state", "latent", "temporal_distance")
    )
    mixture = Mixture(state=2.0, latent=0.5, temporal_distance=0.2, effort=0.1, change=0.3)
    penalty = 0.1 * actions.square().mean((1, 2)) + 0.3 * actions.diff(dim=1).square().mean((1, 2))
    torch.testing.assert_close(
        judged(world_model, mixture).objective(goal)(states, actions),
        2 * state + 0.5 * latent + 0.2 * steps + penalty.double(),
    )
    only = judged(world_model, Mixture(state=0.0, latent=1.0)).objective(goal)(states, actions)
    torch.testing.assert_close(only, latent)
    with pytest.raises(ValueError, match="one of state, latent, temporal_distance and reward above 0"):
        Mixture(state=0.0, effort=1.0)
    with pytest.raises(ValueError, match="weights of 0 or more"):
        Mixture(change=-1.0)


@pytest.mark.parametrize("name", ["reach", "push"])
def test_costs_of_tasks_have_gradients(name: str) -> None:
    """Central differences; a small step against the gradient lowers the cost by what the gradient says."""
    task = get_task(name)
    start, goal, _ = evaluation_pairs(name, 1, 0)[0]
    cost = task_cost(task, task.state_quantities(goal))
    quantities = torch.from_numpy(task.state_quantities(np.stack([start, start]))).float().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(quantities).sum(), quantities)
    assert gradient.dtype == torch.float32
    assert (gradient.norm(dim=1) > 0.5).all()
    with torch.no_grad():
        lower = cost((quantities - 1e-3 * gradient).double())
        assert not lower.requires_grad
        fall = (cost(quantities.double()) - lower) / (1e-3 * gradient.square().sum(1))
    torch.testing.assert_close(fall, torch.ones(2, dtype=torch.float64), atol=0.05, rtol=0)


@pytest.mark.parametrize("objective", ["state", "latent", Mixture(latent=0.1, change=0.1)])
def test_gradients_of_every_objective_reach_the_actions(world_model: WorldModel, objective: Any) -> None:
    """Adam lowers the cost in imagination, and polishing never makes a plan worse."""
    model = judged(world_model, objective)
    context = model.prefill(model.encode(picture(0)[None]), torch.zeros(0, 2))
    goal = model.objective(picture(1))
    adam = Gradient(horizon=3, num_candidates=4, num_iterations=10)
    plan = adam.plan(model, context, goal, generator=torch.Generator().manual_seed(0))
    assert plan.iteration_mean_costs[-1] < plan.iteration_mean_costs[0]
    cem = CEM(horizon=3, num_candidates=16, num_iterations=2, num_elites=4)
    polished = Polished(planner=cem, polish=adam)
    found = polished.plan(model, context, goal, generator=torch.Generator().manual_seed(0))
    assert found.cost == min(found.iteration_best_costs)
    assert len(found.iteration_best_costs) == 12


def test_the_simulator_has_no_gradient_and_says_so() -> None:
    start, goal, _ = evaluation_pairs("reach", 1, 0)[0]
    objective = oracle_objective(TASK, goal, StepWeights())
    with pytest.raises(PlannerError, match=r"no gradient.*\(MuJoCo is not\).*such as CEM"):
        Gradient(horizon=2).plan(OracleDynamics(TASK), start, objective, generator=torch.Generator())


def test_the_oracle_plans_for_many_environments_at_once() -> None:
    """One rollout for three states gives the plans of three."""
    pairs = evaluation_pairs("reach", 3, 0)
    dynamics = OracleDynamics(TASK)
    objectives = [oracle_objective(TASK, goal, StepWeights()) for _, goal, _ in pairs]
    cem = CEM(horizon=3, num_candidates=16, num_iterations=2, num_elites=4)
    together = plan_batch(
        cem,
        dynamics,
        [start for start, _, _ in pairs],
        objectives,
        generators=[torch.Generator().manual_seed(seed) for seed in range(3)],
    )
    for seed, ((start, _, _), objective, plan) in enumerate(zip(pairs, objectives, together, strict=True)):
        alone = cem.plan(dynamics, start, objective, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(plan.actions, alone.actions)
        assert plan.cost == alone.cost
