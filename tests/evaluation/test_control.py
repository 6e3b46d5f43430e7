"""The model's agent under budgets, chunks and asynchronous plans, and what the report says of its decisions."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embodied_wm.dynamics import ImaginedDynamics
from embodied_wm.evaluation import pages
from embodied_wm.evaluation.agents import ModelAgent, PolicyAgent
from embodied_wm.evaluation.judged import JudgedWorldModel
from embodied_wm.evaluation.lineup import PlanningSetup, make_oracle_agent
from embodied_wm.evaluation.planning import measure_budget
from embodied_wm.goal_policy import GoalPolicy
from embodied_wm.world_model import WorldModel
from planners import CEM, MPC, Control, GoalDistance, Safety, StepWeights
from planners.mpc import Decision, Times
from sim.tasks import get_task

SIZE = 16
PLANNER = CEM(horizon=4, num_candidates=16, num_iterations=3, num_elites=4)
NO_PHYSICS = np.zeros(1)


class Ticking:
    """Tell a time that passes by a millisecond whenever it is asked for."""

    def __init__(self) -> None:
        self.now_ms = 0

    def __call__(self) -> float:
        self.now_ms += 1
        return self.now_ms / 1e3


@pytest.fixture
def make_agent(tiny_checkpoint: Path) -> Callable[..., ModelAgent]:
    model = WorldModel.load(tiny_checkpoint)

    def make(**control: object) -> ModelAgent:
        judged = JudgedWorldModel(model, get_task("reach"), objective="latent", weights=StepWeights())
        return ModelAgent(judged, PLANNER, control=Control(**control), clock=Ticking())  # pyright: ignore[reportArgumentType]

    return make


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def drive(agent: ModelAgent, num_steps: int, *, seed: int = 0) -> np.ndarray:
    """Show an agent an episode and return its actions."""
    goal, *frames = images(num_steps + 1, seed)
    agent.begin(goal, NO_PHYSICS, seed)
    return np.stack([agent.act(frame, NO_PHYSICS) for frame in frames])


def test_chunks_plan_at_every_third_step_and_encode_every_frame(make_agent: Callable[..., ModelAgent]) -> None:
    agent = make_agent(replan_every=3)
    actions = drive(agent, 7)
    assert len(agent.seconds) == len(agent.record) == 3
    assert len(agent.codes) == 3
    for number, decision in enumerate(agent.record):
        expected = decision.plan.actions[: len(actions[3 * number : 3 * number + 3])]
        np.testing.assert_array_equal(actions[3 * number : 3 * number + 3], expected.numpy())
        assert decision.context is None
        assert len(decision.plan.candidates) == 0


@pytest.mark.parametrize(
    ("goal", "got"),
    [
        (None, "got none"),
        (np.zeros((2 * SIZE, SIZE, 3), np.uint8), r"got uint8 of shape \(32, 16, 3\)"),
        (np.zeros((SIZE, SIZE), np.uint8), r"got uint8 of shape \(16, 16\)"),
        (np.zeros((SIZE, SIZE, 3), np.float32), r"got float32 of shape \(16, 16, 3\)"),
    ],
    ids=["none", "of another size", "without colours", "of another type"],
)
def test_a_goal_that_does_not_fit_is_refused(
    make_agent: Callable[..., ModelAgent], goal: np.ndarray | None, got: str
) -> None:
    expected = rf"the goal image does not fit the model: {got}; expected uint8 of shape \(16, 16, 3\)"
    agent = make_agent()
    assert isinstance(agent.model, JudgedWorldModel)
    world_model = agent.model.world_model
    for each in (agent, PolicyAgent(world_model, GoalPolicy(latent_size=8, action_size=2, width=4))):
        with pytest.raises(ValueError, match=expected):
            each.begin(goal, NO_PHYSICS, 0)


@pytest.mark.parametrize("control", [{"replan_every": 3}, {"replan_every": 2, "asynchronous": True}])
def test_an_episode_that_ends_mid_plan_leaves_nothing_behind(
    make_agent: Callable[..., ModelAgent], control: dict[str, object]
) -> None:
    """Wherever the episode before ended, and whatever was being searched, the next one is the same."""
    expected = drive(make_agent(**control), 6, seed=1)
    used = make_agent(**control)
    for length in (1, 2, 4):
        drive(used, length, seed=2)
        np.testing.assert_array_equal(drive(used, 6, seed=1), expected)
    used.control.close()


def test_a_budget_is_kept_from_the_first_decision_on(make_agent: Callable[..., ModelAgent]) -> None:
    """Time passes as the clock is asked: a generous budget cuts nothing, a small one does, a tiny one leaves none."""
    generous, small, tiny = (make_agent(budget_ms=budget, min_candidates=16) for budget in (500.0, 15.0, 2.0))
    for agent in (generous, small, tiny):
        drive(agent, 5)
    assert {decision.status for decision in generous.record} == {"planned"}
    assert {decision.status for decision in small.record} == {"cut"}
    assert {decision.status for decision in tiny.record} == {"warm_start"}
    assert max(small.seconds) <= 0.015
    assert not np.array([decision.action.numpy() for decision in tiny.record]).any()


def test_our_model_can_doubt_itself(make_agent: Callable[..., ModelAgent]) -> None:
    """Its futures differ by their noise: a low threshold executes nothing, a high one everything."""
    doubting = make_agent(safety=Safety(max_disagreement=0.0))
    assert not drive(doubting, 3).any()
    disagreements = [decision.disagreement for decision in doubting.record]
    assert all(found is not None and found > 0 for found in disagreements)
    assert {decision.status for decision in doubting.record} == {"fallback"}
    trusting = make_agent(safety=Safety(max_disagreement=1e6))
    assert drive(trusting, 3).any()


def test_futures_of_one_sequence_differ_and_share_their_actions(tiny_checkpoint: Path) -> None:
    judged = JudgedWorldModel(
        WorldModel.load(tiny_checkpoint), get_task("reach"), objective="latent", weights=StepWeights()
    )
    context = judged.prefill(judged.encode(torch.from_numpy(images(1, 0))), torch.zeros(0, 2))
    actions = torch.rand(4, 2)
    judged.reseed(3)
    futures = judged.imagine_samples(context, actions, 5)
    expected = judged.world_model.imagine(
        context, actions.expand(5, -1, -1), generator=torch.Generator().manual_seed(3), shared_noise=False
    )
    assert torch.equal(futures, expected)
    assert futures.std(0).min() > 0


def test_the_oracle_has_chunks_and_limits_but_no_budget() -> None:
    control = Control(
        budget_ms=1.0, replan_every=2, asynchronous=True, safety=Safety(max_change=0.1, max_disagreement=0)
    )
    setup = PlanningSetup(task="reach", planner=PLANNER, objective="latent", weights=StepWeights(), control=control)
    oracle = make_oracle_agent(setup).control.control  # pyright: ignore[reportAttributeAccessIssue]
    assert oracle == Control(replan_every=2, safety=Safety(max_change=0.1))


def test_lateness_is_counted_from_a_fifth_over_the_budget() -> None:
    found = measure_budget(np.array([0.010] * 97 + [0.0239, 0.0241, 0.030]), 20.0, seed=0)
    assert (found["late_decisions"]["value"], found["late_decisions"]["n"]) == (0.02, 100)
    assert found["p99_over_budget"]["value"] == pytest.approx(1.208, abs=0.01)


def test_the_page_says_where_the_time_went(make_agent: Callable[..., ModelAgent]) -> None:
    agent = make_agent()
    drive(agent, 3)
    times = Times(encode_s=0.002, imagine_s=0.010, objective_s=0.003, rest_s=0.005)
    decisions: list[Decision] = [replace(decision, seconds=0.020, times=times) for decision in agent.record]
    decisions[1] = replace(decisions[1], status="cut")
    (section,) = pages.decision_sections(decisions, 25.0)
    assert section.table is not None
    rows = {row[0]: row[1:] for row in section.table.rows}
    assert rows["whole decision"][:2] == pytest.approx([20.0, 20.0])
    assert rows["imagining"] == pytest.approx([10.0, 10.0, 0.5])
    assert rows["encoding frames"][2] == pytest.approx(0.1)
    assert "Each may take 25 ms" in section.text
    assert "1 were stopped by the budget." in section.text
    assert [picture.title for picture in section.pictures] == ["Time of each decision", "Cost by iteration"]
    assert pages.decision_sections([]) == []


def test_a_controller_repeats_an_episode_bit_for_bit_with_a_model_whose_noise_it_reseeds(tiny_checkpoint: Path) -> None:
    dynamics = ImaginedDynamics(WorldModel.load(tiny_checkpoint))
    context = dynamics.world_model.prefill(torch.from_numpy(images(1, 0)), None)
    goal = GoalDistance(goal=torch.zeros(context.last_latents.shape))
    mpc = MPC(CEM(horizon=4, num_candidates=16, num_elites=4), dynamics, seed=0)
    found = []
    for _ in range(2):
        mpc.reset(seed=5)
        found.append([mpc.act(context, goal).action for _ in range(2)])
    assert torch.equal(torch.stack(found[0]), torch.stack(found[1]))


def test_samples_of_a_coded_future_are_of_the_code_that_is_imagined(tiny_checkpoint: Path) -> None:
    dynamics = ImaginedDynamics(WorldModel.load(tiny_checkpoint), kind="latent", shared_noise=False)
    context = dynamics.world_model.prefill(torch.from_numpy(images(1, 0)), None)
    codes = torch.full((3, 3), 0.11)
    dynamics.reseed(1)
    expected = dynamics.imagine(context, codes.expand(4, -1, -1))
    dynamics.reseed(1)
    assert torch.equal(dynamics.imagine_samples(context, codes, 4), expected)
