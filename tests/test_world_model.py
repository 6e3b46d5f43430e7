"""A world model's promises: every kind of action steers it, seeds repeat it, planners use it, bad input is named."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm.dynamics import ImaginedDynamics
from embodied_wm.evaluation.speed import imagination_pair
from embodied_wm.predictor.cache import Context
from embodied_wm.tokenizer.actions import LatentActionConfig
from embodied_wm.tokenizer.frames import check_is_tensor
from embodied_wm.world_model import ActionKind, WorldModel
from planners.base import Dynamics
from planners.cem import CEM
from planners.gradient import Gradient
from planners.objectives import GoalDistance, StepWeights
from planners.tree import TreeSearch

KINDS: tuple[ActionKind, ...] = ("real", "latent", "adapted")


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny.make_model()


def frames(count: int = 3, size: int = tiny.SIZE) -> Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def actions(kind: ActionKind, seed: int = 1, candidates: int = 4, horizon: int = 5) -> Tensor:
    size = 3 if kind == "latent" else 2
    return torch.rand(candidates, horizon, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def imagine(model: WorldModel, kind: ActionKind, chosen: Tensor, *, seed: int = 2, num_steps: int = 1) -> Tensor:
    past = torch.rand(2, 2, generator=torch.Generator().manual_seed(3))
    context = model.prefill(frames(), past, kind=kind)
    return model.imagine(context, chosen, kind=kind, num_steps=num_steps, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_actions_of_every_kind_steer_what_is_imagined_from_their_step_on(model: WorldModel, kind: ActionKind) -> None:
    chosen = actions(kind)
    other = chosen.clone()
    other[:, 2:] = actions(kind, seed=9)[:, 2:]
    first, second = imagine(model, kind, chosen), imagine(model, kind, other)
    assert first.shape == (4, 5, 1, 8)
    assert torch.equal(first[:, :2], second[:, :2])  # row convention: action t leads to frame t + 1, no earlier one
    changed = (first[:, 2:] - second[:, 2:]).abs().amax((1, 2, 3)) > 1e-4
    assert changed.float().mean() >= (0.5 if kind == "adapted" else 1)  # two real actions can share a code


def test_the_kinds_differ_and_absent_actions_are_a_kind_of_their_own(model: WorldModel) -> None:
    real, adapted = imagine(model, "real", actions("real")), imagine(model, "adapted", actions("real"))
    assert not torch.allclose(real, adapted)
    past = actions("real")[0, :2]
    contexts = [model.prefill(frames(), past, kind=kind) for kind in KINDS] + [model.prefill(frames(), None)]
    imagined = [
        model.imagine(context, actions("real"), generator=torch.Generator().manual_seed(0)) for context in contexts
    ]
    for index, first in enumerate(imagined):
        assert all(not torch.allclose(first, second) for second in imagined[:index])


def test_latent_actions_of_a_context_come_from_its_frames(model: WorldModel) -> None:
    first, second = (model.prefill(frames(), past, kind="latent") for past in (None, actions("real")[0, :2]))
    assert all(torch.equal(*pair) for pair in zip(first.keys, second.keys, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_same_seed_imagines_the_same_bits(model: WorldModel, kind: ActionKind, num_steps: int) -> None:
    first = imagine(model, kind, actions(kind), num_steps=num_steps)
    assert torch.equal(first, imagine(model, kind, actions(kind), num_steps=num_steps))
    assert not torch.equal(first, imagine(model, kind, actions(kind), num_steps=num_steps, seed=7))


def test_shared_noise_leaves_only_the_actions_to_tell_candidates_apart(model: WorldModel) -> None:
    context = model.prefill(frames(), None)
    chosen = actions("real")[:1].expand(3, -1, -1)
    shared = model.imagine(context, chosen, generator=torch.Generator().manual_seed(0), shared_noise=True)
    assert torch.allclose(shared[0], shared[1], atol=1e-6)
    own = model.imagine(context, chosen, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(own[0], own[1], atol=1e-4)


@pytest.mark.parametrize("kind", ["real", "adapted"])
@pytest.mark.parametrize(
    ("bad", "words"),
    [(torch.zeros(2, 3, 5), r"size 5.*wants 2: a, b"), (torch.full((2, 3, 2), torch.nan), "NaN or infinity")],
)
def test_bad_actions_are_refused(model: WorldModel, kind: ActionKind, bad: Tensor, words: str) -> None:
    context = model.prefill(frames(), None)
    with pytest.raises(ValueError, match=words):
        model.imagine(context, bad, kind=kind, generator=torch.Generator())
    with pytest.raises(ValueError, match=words):
        model.prefill(frames(), bad[0, :2], kind=kind)


def test_bad_frames_steps_and_readouts_are_refused(model: WorldModel) -> None:
    with pytest.raises(ValueError, match=r"\(3, 20, 20, 3\).*16x16x3"):
        model.prefill(frames(size=20), None)
    with pytest.raises(ValueError, match="context of 0 frames"):
        model.prefill(frames(0), None)
    with pytest.raises(ValueError, match=r"num_steps=3.*\[1, 2, 4\]"):
        imagine(model, "real", actions("real"), num_steps=3)
    with pytest.raises(ValueError, match=r"no readout of 'force'; it has: observation.state"):
        model.readout("force")
    with pytest.raises(ValueError, match="one or the other"):
        model.action_inputs(actions("real"), codes=actions("latent"))
    with pytest.raises(ValueError, match="neither actions nor codes"):
        model.action_inputs(None)


def test_contexts_and_candidates_of_another_size_are_refused(model: WorldModel) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 2, 8\); this model wants \[frames, 1 tokens, 8 channels"):
        model.prefill_latents(torch.zeros(3, 2, 8), None)
    with pytest.raises(ValueError, match=r"3 context frames and actions of shape \(1, 2\); expected the 2 "):
        model.prefill_latents(model.encode(frames()), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"actions of shape \(3, 2\); expected the 2 actions between them, \[2, 2\]"):
        model.prefill_latents(model.encode(frames()), torch.zeros(3, 2))  # which of them lie between is not known
    context = model.prefill(frames(), None)
    with pytest.raises(ValueError, match="codes of size 2; this model wants 3 finite numbers"):
        model.imagine(context, torch.zeros(4, 5, 2), kind="latent", generator=torch.Generator())
    for shape in ((0, 5, 2), (4, 0, 2)):
        with pytest.raises(ValueError, match=r"expected \[candidates, steps, numbers\], at least one each"):
            model.imagine(context, torch.zeros(shape), generator=torch.Generator())


def test_numpys_doubles_are_actions_and_other_kinds_are_none(model: WorldModel) -> None:
    past, future = actions("real")[0, :2], actions("real")
    context = model.prefill(frames(), past)
    doubled = model.prefill(frames(), past.double())
    first = model.imagine(context, future, generator=torch.Generator().manual_seed(0))
    second = model.imagine(doubled, future.double(), generator=torch.Generator().manual_seed(0))
    assert torch.equal(first, second)
    for wrong in (
        lambda: model.prefill(frames(), past, kind="reel"),  # type: ignore[arg-type]
        lambda: model.imagine(context, future, kind="codes", generator=torch.Generator()),  # type: ignore[arg-type]
        lambda: ImaginedDynamics(model, kind="codes"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"kind='(reel|codes)': expected one of real, latent, adapted"):
            wrong()


def test_latents_without_their_tokens_are_not_decoded(model: WorldModel) -> None:
    latents = model.encode(frames())
    with pytest.raises(ValueError, match=r"shape \(3, 8\); this model wants \[..., 1 tokens, 8 channels"):
        model.decode(latents[:, 0])


def test_numpys_arrays_are_told_from_tensors() -> None:
    with pytest.raises(ValueError, match=r"got frames of type ndarray; expected a torch.Tensor, .*from_numpy"):
        check_is_tensor("frames", frames().numpy())


def test_frames_pass_through_tokens_and_actions_are_inferred(model: WorldModel) -> None:
    latents = model.encode(frames())
    decoded = model.decode(latents)
    assert decoded.shape == frames().shape
    assert decoded.dtype == torch.uint8
    assert model.infer_actions(frames()).shape == (2, 2)


def test_a_planner_plans_in_imagination_within_the_bounds_of_the_data() -> None:
    model = tiny.make_model()
    model.get_buffer("action_low").copy_(torch.tensor([-0.5, 0.1]))
    model.get_buffer("action_high").copy_(torch.tensor([0.25, 0.9]))
    for parameter in model.predictor.real_in.parameters():
        parameter.data.mul_(5)  # so that actions matter more than the noise, which is another in each iteration
    context = model.prefill(frames(), None)
    dynamics = ImaginedDynamics(model, seed=4)
    assert isinstance(dynamics, Dynamics)
    aim = torch.tensor([[0.2, 0.8]]).expand(1, 4, 2)  # actions that lead exactly to the goal
    goal = dynamics.imagine(context, aim)[0, -1]
    planner = CEM(horizon=4, num_candidates=32, num_iterations=4, num_elites=6)
    plans = [
        planner.plan(
            ImaginedDynamics(model, seed=4),
            context,
            GoalDistance(goal=goal),
            generator=torch.Generator().manual_seed(0),
        )
        for _ in range(2)
    ]
    assert torch.equal(plans[0].actions, plans[1].actions)
    every = torch.cat([plans[0].actions[None], plans[0].candidates])
    assert (every >= dynamics.action_low).all()
    assert (every <= dynamics.action_high).all()
    spread = torch.rand(64, 4, 2, generator=torch.Generator().manual_seed(1))
    anyhow = dynamics.action_low + spread * (dynamics.action_high - dynamics.action_low)
    tried = torch.cat([plans[0].actions[None], anyhow])  # all with the same noise
    costs = GoalDistance(goal=goal)(ImaginedDynamics(model, seed=4).imagine(context, tried), tried)
    assert costs[0] < costs[1:].quantile(0.1)
    assert plans[0].num_imagined == 4 * 32


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("context", [1, 3])
def test_the_pair_that_is_timed_imagines_the_same(model: WorldModel, context: int, num_steps: int) -> None:
    cached, uncached = imagination_pair(model, num_candidates=5, context=context, horizon=5, num_steps=num_steps)
    first, second = cached(), uncached()
    assert (first - second).abs().max() <= 1e-4 * second.abs().max()


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_back_to_actions_that_ask_for_them(model: WorldModel, kind: ActionKind, num_steps: int) -> None:
    chosen = actions(kind)
    plain = imagine(model, kind, chosen, num_steps=num_steps)
    assert not plain.requires_grad  # no graph, although gradients are enabled and the weights have them
    followed = chosen.clone().requires_grad_()
    imagined = imagine(model, kind, followed, num_steps=num_steps)
    assert torch.allclose(plain, imagined, atol=1e-5)
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad((imagined * weights).sum(), followed)
    steps = torch.autograd.grad(imagine(model, kind, followed, num_steps=num_steps)[:, 2].sum(), followed)[0]
    assert torch.equal(steps[:, 3:], torch.zeros_like(steps[:, 3:]))  # row convention: later actions change nothing
    assert (steps[:, :3].abs().amax((0, 2)) > 0).all()
    if kind == "adapted":  # codes are rounded: the gradient is of what they were before
        return
    direction = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(6))
    ends = [(imagine(model, kind, chosen + e * direction, num_steps=num_steps) * weights).sum() for e in (-5e-3, 5e-3)]
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[1] - ends[0]) / 1e-2, rel=0.02, abs=0.02)


def test_no_gradient_is_recorded_where_gradients_are_off(model: WorldModel) -> None:
    followed = actions("real").requires_grad_()
    with torch.no_grad():
        assert not imagine(model, "real", followed).requires_grad


@pytest.mark.parametrize("wants_gradient", [False, True])
def test_imagination_that_is_not_finite_says_from_which_step_in_how_many_candidates(wants_gradient: bool) -> None:
    model = tiny.make_model()
    with torch.no_grad():
        next(model.predictor.real_in.parameters()).fill_(1e20)
    context, chosen = model.prefill(frames(), None), torch.zeros(4, 5, 2)
    chosen[1, 2] = chosen[3, 4] = 1e20  # finite, but not what the network makes of it
    chosen.requires_grad_(wants_gradient)
    with pytest.raises(ValueError, match="NaN or infinity from step 3 of 5 on, in 2 of 4 candidates"):
        model.imagine(context, chosen, generator=torch.Generator())
    assert model.imagine(context, chosen[:1], generator=torch.Generator()).isfinite().all()


def test_weights_that_are_not_finite_stop_a_plan_before_its_costs_are_compared() -> None:
    model = tiny.make_model()
    with torch.no_grad():
        model.predictor.latent_out.bias.fill_(torch.nan)
    context, goal = model.prefill(frames(), None), GoalDistance(goal=torch.zeros(1, 8))
    with pytest.raises(ValueError, match="from step 1 of 4 on, in 16 of 16 candidates"):
        CEM(horizon=4, num_candidates=16).plan(ImaginedDynamics(model), context, goal, generator=torch.Generator())


class Same(ImaginedDynamics):
    """Imagine with the same noise at every call."""

    def imagine(self, context: Context, actions: Tensor) -> Tensor:
        self.generator.manual_seed(4)
        return super().imagine(context, actions)


def test_a_gradient_planner_finds_the_actions_that_lead_to_a_goal() -> None:
    model = tiny.make_model()
    context = model.prefill(frames(), None)
    aim = torch.tensor([[0.2, 0.8]]).expand(1, 4, 2)
    end = ImaginedDynamics(model, seed=4).imagine(context, aim)[0, -1]
    goal = GoalDistance(goal=end, weights=StepWeights(running=0.0))

    planner = Gradient(horizon=4, num_candidates=8, num_iterations=24)
    plan = planner.plan(Same(model), context, goal, generator=torch.Generator().manual_seed(0))
    assert plan.cost < 0.02 * plan.iteration_mean_costs[0]
    found = plan.actions[None]
    assert plan.cost == pytest.approx(float(goal(Same(model).imagine(context, found), found)), rel=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("levels", [(8,), (4, 6)])
def test_every_code_is_one_that_the_tokenizer_infers(levels: tuple[int, ...]) -> None:
    config = replace(tiny.PLAIN, latent_actions=LatentActionConfig(width=16, levels=levels))
    model = WorldModel(config, tiny.make_model().embodiment)
    dynamics = ImaginedDynamics(model, kind="latent")
    codes = dynamics.action_set
    assert codes is not None
    assert codes.shape == (math.prod(levels), len(levels))
    assert len(codes.unique(dim=0)) == len(codes)
    assert torch.equal(model.latent_actions.quantise(codes), codes)
    assert ((codes >= dynamics.action_low) & (codes <= dynamics.action_high)).all()


def test_planners_plan_in_latent_codes() -> None:
    """Any planner searches the codes; tree search takes them from the set of all."""
    model = tiny.make_model()
    context = model.prefill(frames(), None)
    dynamics = Same(model, kind="latent")
    codes = dynamics.action_set
    assert codes is not None
    assert codes.shape == (9**3, 3)
    assert len(codes.unique(dim=0)) == 9**3
    rounded = model.latent_actions.quantise(codes + 0.1)
    chosen = dynamics.imagine(context, (codes[:4, None] + 0.1).expand(-1, 2, -1).clamp(-1, 1))
    exact = ImaginedDynamics(model, kind="latent", seed=4).imagine(context, rounded[:4, None].expand(-1, 2, -1))
    assert torch.equal(chosen, exact)
    assert ImaginedDynamics(model).action_set is None
    goal = dynamics.imagine(context, codes[700].expand(1, 2, -1))[0, -1]
    planner = TreeSearch(horizon=2, num_candidates=32, num_iterations=8)
    objective = GoalDistance(goal=goal, weights=StepWeights(running=0.0))
    plan = planner.plan(dynamics, context, objective, generator=torch.Generator().manual_seed(0))
    assert (torch.cdist(plan.candidates.flatten(0, 1), codes).amin(1) == 0).all()
    assert plan.cost < 0.5 * plan.iteration_mean_costs[0]


@pytest.mark.parametrize("kind", ["real", "adapted"])
def test_many_environments_are_imagined_in_one_pass(kind: ActionKind) -> None:
    """Each environment's candidates read its own context, of which there is one; plans are those of each alone."""
    model = tiny.make_model()
    seen = [frames(3), frames(3).flip(0), frames(3).roll(5, dims=1)]
    past = actions("real", seed=7)[:3, :2]
    contexts = [model.prefill(f, p, kind=kind) for f, p in zip(seen, past, strict=True)]
    chosen = torch.stack([actions(kind, seed=seed) for seed in range(3)])
    together = Same(model, kind=kind).imagine_batch(contexts, chosen)
    alone = torch.stack([Same(model, kind=kind).imagine(*each) for each in zip(contexts, chosen, strict=True)])
    assert together.shape == (3, 4, 5, 1, 8)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    joined = Context.join(contexts, num_candidates=100)
    assert joined.num_bytes == sum(context.num_bytes for context in contexts)
    with pytest.raises(ValueError, match=r"contexts of \[2, 3\] frames"):
        Context.join([contexts[0], model.prefill(frames(2), past[0, :1], kind=kind)], num_candidates=2)
    followed = chosen.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Same(model, kind=kind).imagine_batch(contexts, followed)[1].sum(), followed)
    assert (gradient[1] != 0).any()
    assert (gradient[[0, 2]] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_extended_frame_by_frame_equals_a_prefill_of_all(model: WorldModel, kind: ActionKind) -> None:
    seen = frames(4)
    past = actions("real")[0, :3]
    context = model.prefill(seen[:1], None)
    for frame, action in zip(seen[1:], past, strict=True):
        context = model.extend(context, frame, action, kind=kind)
    whole = model.prefill(seen, past, kind=kind)
    assert (context.num_frames, context.next_position) == (whole.num_frames, whole.next_position)
    for mine, theirs in zip((*context.keys, *context.values), (*whole.keys, *whole.values), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert torch.allclose(context.before_last, whole.before_last)


def test_codes_that_look_further_back_than_a_context_do_not_extend_it(model: WorldModel) -> None:
    codes = replace(tiny.MODEL.latent_actions, history=3)
    longer = WorldModel(replace(tiny.MODEL, latent_actions=codes), model.embodiment).eval()
    context = longer.prefill(frames(4), None, kind="latent")
    with pytest.raises(ValueError, match="look at 3 frames before each transition"):
        longer.extend(context, frames(1)[0], None, kind="latent")
    assert longer.extend(context, frames(1)[0], torch.zeros(2), kind="adapted").num_frames == 5


def test_unknown_actions_extend_a_context_too_and_its_length_is_bounded(model: WorldModel) -> None:
    context = model.prefill(frames(2), None)
    for frame in frames(5):
        context = model.extend(context, frame, None, max_frames=3)
    assert (context.num_frames, context.next_position) == (3, 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_latents_that_are_not_finite_are_refused_whatever_the_actions(
    model: WorldModel, kind: ActionKind, bad: float
) -> None:
    latents, between = torch.zeros(3, 1, 8), torch.zeros(2, 2)
    context = model.prefill_latents(latents, between, kind=kind)
    latents[1, 0, 2] = bad
    with pytest.raises(ValueError, match="seen frames' latents hold NaN or infinity"):
        model.prefill_latents(latents, between, kind=kind)
    with pytest.raises(ValueError, match="seen frames' latents hold NaN or infinity"):
        model.extend_latents(context, latents[1], between[0], kind=kind)


@pytest.mark.parametrize("kind", ["real", "adapted"])
def test_a_context_is_not_extended_by_actions_of_another_size_or_not_finite(
    model: WorldModel, kind: ActionKind
) -> None:
    context = model.prefill(frames(2), None)
    for action, message in (
        (torch.zeros(3), "got actions of size 3; .* wants 2: a, b"),
        (torch.tensor([0, torch.inf]), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            model.extend(context, frames(1)[0], action, kind=kind)
