"""Goal policies: what they learn from, what they propose in imagination, and how planners are given it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm import cli
from embodied_wm.data.store import EpisodeStore
from embodied_wm.dynamics import ImaginedDynamics
from embodied_wm.evaluation.judged import JudgedModel
from embodied_wm.evaluation.lineup import PlanningSetup
from embodied_wm.goal_policy import GoalPolicy, GoalPolicyConfig
from embodied_wm.predictor.cache import Context
from embodied_wm.training.goals import goal_batches, goal_policy_loss
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import StageConfig, fit
from embodied_wm.world_model import WorldModel
from planners import CEM, GoalDistance, Guided, Knots, Planner, Polished, Proposing, plan_batch
from planners.objectives import StepWeights

HORIZON = 4
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> LatentEpisodes:
    """Six episodes whose "latents" are the numbers of their rows."""
    store = EpisodeStore.open(tiny.write_store(tmp_path_factory.mktemp("goals") / "dot.zarr"))
    tokenizer = tiny.make_model().tokenizer
    data = LatentEpisodes(store, tokenizer, camera=tiny.CAMERA, episodes=range(6), features=["action"])
    data.latents = torch.arange(len(data.latents), dtype=torch.float32)[:, None, None]
    return data


@pytest.fixture
def model() -> WorldModel:
    """A model whose actions have a mean and a scale, and whose policy looks at what it is given."""
    made = tiny.make_model()
    for parameter in made.goal_policy.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    made.goal_policy.network[-1].weight.data.mul_(0.02)  # pyright: ignore[reportOperatorIssue, reportCallIssue, reportArgumentType]
    made.actions.mean.copy_(torch.tensor([0.1, -0.2]))
    made.actions.std.copy_(torch.tensor([0.4, 0.3]))
    return made


def context_of(model: WorldModel) -> Context:
    """Return a context of three frames."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, model.num_tokens, model.token_width, generator=generator)
    return model.prefill_latents(latents, torch.zeros(2, 2))


def goal_of(model: WorldModel) -> Tensor:
    """Return a goal's latents."""
    return torch.randn(model.num_tokens, model.token_width, generator=torch.Generator().manual_seed(2))


def proposals(model: WorldModel, num: int, *, seed: int = 0) -> Tensor:
    """Return what a model proposes."""
    generator = torch.Generator().manual_seed(seed)
    return ImaginedDynamics(model).propose_towards(goal_of(model), context_of(model), num, HORIZON, generator)


def test_goals_are_later_frames_of_the_same_episode_and_not_too_far(numbered: LatentEpisodes) -> None:
    """Every distance that an episode has room for occurs, and only those; the last frame of an episode has no goal."""
    batch = goal_batches(numbered, batch_size=4000, max_ahead=5, seed=3)(0)
    now, goal = batch["now"].flatten().long(), batch["goal"].flatten().long()
    assert set((goal - now).tolist()) == {1, 2, 3, 4, 5}
    assert torch.equal(now // tiny.ROWS, goal // tiny.ROWS)
    assert set((now % tiny.ROWS).tolist()) == set(range(tiny.ROWS - 1))
    assert torch.equal(batch["action"], numbered.features["action"][now])


def test_only_the_given_episodes_are_learnt_from_and_batches_depend_on_their_number(numbered: LatentEpisodes) -> None:
    batch_of = goal_batches(numbered, batch_size=500, max_ahead=5, seed=3, members=[1, 4])
    assert set((batch_of(0)["now"].flatten().long() // tiny.ROWS).tolist()) == {1, 4}
    assert torch.equal(batch_of(7)["now"], batch_of(7)["now"])
    assert not torch.equal(batch_of(7)["now"], batch_of(8)["now"])


def test_a_policy_learns_the_way_to_the_goal(tmp_path: Path) -> None:
    """Where what was done is half of the way to the goal, that is what it does."""
    world_model = tiny.make_model()
    policy = GoalPolicy(latent_size=2, action_size=2, width=32)

    def batch_of(step: int) -> dict[str, Tensor]:
        now, goal = torch.randn(2, 64, 1, 2, generator=torch.Generator().manual_seed(step))
        return {"now": now, "goal": goal, "action": 0.5 * (goal - now)[:, 0]}

    config = StageConfig(num_steps=300, batch_size=64, learning_rate=0.005)
    parts = torch.nn.ModuleDict({"policy": policy})
    fit("policy", parts, batch_of, goal_policy_loss(world_model, policy), config, run_dir=tmp_path, seed=0)
    now, goal = torch.tensor([[0.3, -0.5]]), torch.tensor([[-0.7, 0.5]])
    torch.testing.assert_close(policy(now, goal), torch.tensor([-0.5, 0.5]), atol=0.05, rtol=0)


def test_the_first_proposal_is_what_the_policy_does_in_what_is_imagined(model: WorldModel) -> None:
    """Imagining the proposed actions leads to latents in which the policy does just that."""
    dynamics, context, goal = ImaginedDynamics(model), context_of(model), goal_of(model)
    actions = dynamics.propose_towards(goal, context, 1, HORIZON, torch.Generator().manual_seed(0))
    again = ImaginedDynamics(model)  # with its noise from the start
    latents = again.imagine(context, actions)[0]
    before = torch.cat([context.last_latents[None], latents[:-1]])
    done = model.actions.denormalize(model.goal_policy(before, goal)).clamp(model.action_low, model.action_high)
    torch.testing.assert_close(actions[0], done.detach(), atol=1e-4, rtol=0)
    assert (actions[0].diff(dim=0).abs() > 1e-3).any()


def test_proposals_stray_further_and_further_and_stay_within_bounds(model: WorldModel) -> None:
    model.action_high.fill_(0.6)
    model.action_low.fill_(-0.6)
    found = proposals(model, 200)
    assert found.shape == (200, HORIZON, 2)
    assert float(found.abs().max()) == pytest.approx(0.6)
    astray = (found[:, 0] - found[:1, 0]).abs().mean(1)
    assert astray[0] == 0
    assert astray[100:].mean() > 1.5 * astray[1:100].mean() > 0.01
    assert torch.equal(found, proposals(model, 200))
    assert not torch.equal(found, proposals(model, 200, seed=1))


def test_a_model_without_a_goal_policy_says_how_to_get_one(model: WorldModel) -> None:
    plain = WorldModel(replace(model.config, goal_policy=GoalPolicyConfig()), model.embodiment)
    assert not any("goal_policy" in name for name in plain.state_dict())
    with pytest.raises(ValueError, match=r"model\.goal_policy\.width=256, or plan without proposals"):
        proposals(plain, 1)
    latent = ImaginedDynamics(model, kind="latent")
    with pytest.raises(ValueError, match="real actions"):
        latent.propose_towards(goal_of(model), context_of(model), 1, 2, torch.Generator())


@pytest.mark.parametrize(
    ("planner", "number", "has_policy", "is_guided"),
    [
        (CEM(), 8, True, True),
        (CEM(), 0, True, False),
        (CEM(), 8, False, False),
        (Proposing(num_proposals=2), 8, True, False),  # asks for its own number
        (Knots(planner=CEM(horizon=4), horizon=8), 8, True, True),
        (Polished(planner=Proposing(planner=CEM(horizon=6)), polish=CEM(horizon=6)), 8, True, False),
    ],
)
def test_who_plans_around_proposals(planner: Planner, number: int, has_policy: bool, is_guided: bool) -> None:
    class Some(JudgedModel):
        has_goal_policy = has_policy

    setup = PlanningSetup(task="reach", planner=planner, objective="state", weights=StepWeights(), proposals=number)
    expected = Proposing(planner=planner, num_proposals=8, around=True) if is_guided else planner  # type: ignore[arg-type]
    assert setup.planner_for(Some()) == expected  # type: ignore[abstract]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs/planner").glob("*.yaml")))
def test_every_planner_that_can_be_configured_plans_around_a_goal_policy(model: WorldModel, name: str) -> None:
    """Also those that compare few candidates, of which at most half are proposals."""
    composed, _ = cli.compose_config("plan", {"planner": name, "task": "reach", "checkpoint": "none"})
    config = cli.instantiate_config(composed)
    setup = PlanningSetup(
        task="reach", planner=config["planner"], objective="latent", weights=StepWeights(), proposals=16
    )

    class Judged(JudgedModel):
        has_goal_policy = True

    planner, dynamics, goal = setup.planner_for(Judged()), ImaginedDynamics(model), goal_of(model)  # type: ignore[abstract]
    objective = Guided(objective=GoalDistance(goal=goal), propose=partial(dynamics.propose_towards, goal))
    generator = torch.Generator().manual_seed(0)
    first = dynamics.propose_towards(goal, context_of(model), 1, planner.horizon, torch.Generator().manual_seed(5))[0]
    plan = planner.plan(dynamics, context_of(model), objective, generator=generator)
    assert isinstance(planner.planner if name == "cautious" else planner, Proposing)  # type: ignore[attr-defined]
    assert plan.actions.shape == (planner.horizon, 2)
    if name == "cem":  # the policy's own sequence is among the candidates, up to the noise of its imagination
        assert float((plan.candidates - first).abs().amax((1, 2)).min()) < 0.05


def test_plans_of_a_batch_are_those_of_separate_calls(model: WorldModel) -> None:
    """Proposals for one environment leave the noise of imagination for the next as it was."""
    goals = [goal_of(model), -goal_of(model)]
    planner = Proposing(planner=CEM(horizon=HORIZON, num_candidates=12, num_elites=4), num_proposals=3, around=True)

    def planned(some: list[Tensor], seeds: list[int]) -> list[Tensor]:
        dynamics = ImaginedDynamics(model)
        objectives = [
            Guided(objective=GoalDistance(goal=goal), propose=partial(dynamics.propose_towards, goal)) for goal in some
        ]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        contexts = [context_of(model)] * len(some)
        return [p.actions for p in plan_batch(planner, dynamics, contexts, objectives, generators=generators)]

    together = planned(goals, [0, 1])
    for seed, goal in enumerate(goals):
        torch.testing.assert_close(together[seed], planned([goal], [seed])[0], atol=1e-5, rtol=0)
    assert not torch.equal(*together)


@pytest.mark.parametrize("changes", [{"temporal_stride": 2}, {"predictor": replace(tiny.MODEL.predictor, memory=2)}])
def test_models_that_do_not_imagine_frame_by_frame_have_none(model: WorldModel, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a goal policy acts frame by frame; expected a stride of 1 and no memory"):
        WorldModel(replace(model.config, **changes), model.embodiment)
