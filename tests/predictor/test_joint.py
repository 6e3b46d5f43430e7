"""Joint actions: one network as forward model, inverse model, policy and video model, on a system known exactly."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm.dynamics import ImaginedDynamics
from embodied_wm.predictor import joint, sampler
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.inputs import ABSENT, REAL, ActionInputs
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.transformer import TransformerConfig
from embodied_wm.world_model import WorldModel
from planners import CEM, GoalDistance
from planners.proposing import Proposing

EFFECT = torch.tensor([0.6, -0.3])
"""What an action of 1 adds to the state."""


def make(*, is_joint: bool = True, width: int = 32, kind: str = "flow") -> LatentPredictor:
    torch.manual_seed(0)
    transformer = TransformerConfig(width=width, depth=2, num_heads=2, hidden=2 * width)
    config = PredictorConfig(kind=kind, transformer=transformer, window=8, joint_actions=is_joint)  # type: ignore[arg-type]
    return LatentPredictor(config, num_tokens=1, token_width=2, action_size=1, code_size=1)


def at_work() -> LatentPredictor:
    model = make()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def episodes(batch: int, generator: torch.Generator, time: int = 5) -> tuple[Tensor, Tensor]:
    """Return states [B, T, 1, 2] and actions [B, T, 1]: +1 or -1 by a coin, each adding its effect to the state."""
    actions = torch.randint(0, 2, (batch, time, 1), generator=generator) * 2.0 - 1
    start = torch.randn(batch, 1, 2, generator=generator)
    moved = torch.cat([torch.zeros(batch, 1, 1), actions[:, :-1].cumsum(1)], dim=1) * EFFECT
    return (start + moved)[:, :, None], actions


def inputs(actions: Tensor) -> ActionInputs:
    return ActionInputs(torch.full(actions.shape[:2], REAL), real=actions)


def test_one_network_is_forward_model_inverse_model_and_policy() -> None:
    model, generator = make(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.fit_change(episodes(256, generator)[0])
    for step in range(300):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / 300)
        states, actions = episodes(64, generator)
        loss, metrics = model.loss(states, inputs(actions), generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert {"one_step", "inverse", "policy"} <= metrics.keys()
    model.eval()
    states, actions = episodes(64, torch.Generator().manual_seed(9))

    found = joint.infer_actions(model, states, torch.Generator().manual_seed(0))
    assert (found - actions[:, :-1]).square().mean() < 0.05  # guessing costs 1

    context = model.prefill(states[0, :3], inputs(actions[:1, :3]))
    proposed, frames = joint.act_and_imagine(model, context, 200, 2, torch.Generator().manual_seed(0))
    assert (proposed.abs() > 0.6).float().mean() > 0.8  # one of both, hardly ever their mean
    assert 0.3 < (proposed > 0).float().mean() < 0.7
    expected = states[0, 2] + proposed.cumsum(1)[..., None] * EFFECT  # what was done is what is seen
    assert (frames - expected)[:, 0].square().mean() < 0.1 * EFFECT.square().mean()

    led_by = model.embed_real(torch.tensor([[[1.0]], [[-1.0]]]).expand(-1, 2, -1))
    noise = sampler.draw_noise(model, 2, 2, torch.Generator().manual_seed(0), shared=False)
    imagined = sampler.imagine(model, context, lambda h, _: led_by[:, h], noise)[:, -1, 0]
    assert torch.allclose(imagined, states[0, 2] + torch.tensor([[2.0], [-2.0]]) * EFFECT, atol=0.25)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_cached_equals_uncached_with_the_action_token_among_the_outputs(num_steps: int) -> None:
    model, states = at_work(), torch.randn(3, 1, 2)
    past, led_by = inputs(torch.randn(1, 3, 1)), model.embed_real(torch.randn(5, 4, 1))
    noise = torch.randn(5, 4, 1, 2)
    context = model.prefill(states, past)
    cached = sampler.imagine(model, context, lambda h, _: led_by[:, h], noise, num_steps=num_steps)
    before = model.shift(model.embed_actions(past))
    uncached = sampler.imagine_uncached(model, states, before, led_by, noise, num_steps=num_steps)
    assert (cached - uncached).abs().max() <= 1e-4 * uncached.abs().max()


def test_proposals_depend_on_the_generator_and_on_nothing_after_them() -> None:
    model = at_work()
    context = model.prefill(torch.randn(3, 1, 2), inputs(torch.randn(1, 3, 1)))
    first, second, other = (
        joint.act_and_imagine(model, context, 4, 3, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_an_inferred_action_sees_its_own_frames_and_no_later_ones() -> None:
    model, states = at_work(), torch.randn(1, 6, 1, 2)
    changed = states.clone()
    changed[:, 4] += 1.0
    first, second = (joint.infer_actions(model, each, torch.Generator().manual_seed(0)) for each in (states, changed))
    assert (first != second).flatten().tolist() == [False, False, False, True, True]


@torch.no_grad()
def test_frames_and_actions_are_predicted_without_later_ones() -> None:
    """As context frames and actions are seen by later ones alone; noised ones by what is predicted beside them."""
    model = at_work()
    tau, step = torch.full((2, 6), 0.5), torch.full((2, 6), 0.25)
    led_by = model.shift(model.embed_real(torch.randn(2, 6, 1)))
    seen = {
        "past": torch.randn(2, 6, 1, 2),
        "led_by": led_by,
        "target": torch.randn(2, 6, 1, 2),
        "noised": torch.randn(2, 6, 1),
    }

    def predicted(past: Tensor, led_by: Tensor, target: Tensor, noised: Tensor) -> Tensor:
        assert model.joint is not None
        embedded = model.joint.embed(noised, tau)
        out, before, tau_before = model.see_targets(past, torch.ones_like(tau), target, tau, step, led_by, embedded)
        actions = model.joint.out(model.norm(out[:, :, 0]))
        return torch.stack([model.read(out, before, tau_before).flatten(2).sum(-1), actions.sum(-1)])

    first, differs = predicted(**seen), {}
    for name, values in seen.items():
        changed = values.clone()
        changed[:, 3] += 1.0
        differs[name] = ((first - predicted(**seen | {name: changed})).abs().amax(1) > 0).tolist()
    later, itself = [False] * 4 + [True] * 2, [False] * 3 + [True] + [False] * 2
    assert differs == {name: [each] * 2 for name, each in zip(seen, (later, later, itself, itself), strict=True)}


def test_without_the_option_nothing_is_there() -> None:
    plain = make(is_joint=False)
    assert not [name for name in plain.state_dict() if "joint" in name]
    assert plain.transformer.first_output == 1
    context = plain.prefill(torch.zeros(1, 1, 2), ActionInputs(torch.full((1, 1), ABSENT)))
    with pytest.raises(ValueError, match=r"train one with model.predictor.joint_actions=true"):
        joint.act_and_imagine(plain, context, 1, 1, torch.Generator())
    with pytest.raises(ValueError, match=r"joint_actions=true denoises actions; got kind='regression'"):
        make(kind="regression")


def test_unlabelled_sequences_teach_no_action() -> None:
    model, generator = make(), torch.Generator().manual_seed(0)
    states, _ = episodes(16, generator)
    loss, metrics = model.loss(states, ActionInputs(torch.full((16, 5), ABSENT)), generator)
    loss.backward()
    assert model.joint is not None
    assert model.joint.out.weight.grad is None or not model.joint.out.weight.grad.any()
    assert not {"inverse", "policy"} & metrics.keys()


def test_a_world_model_proposes_in_the_robots_units_and_planners_take_it() -> None:
    config = replace(tiny.MODEL, predictor=replace(tiny.MODEL.predictor, joint_actions=True))
    torch.manual_seed(0)
    model = WorldModel(config, tiny.make_model().embodiment).eval()
    model.actions.mean.fill_(3.0)
    frames = torch.randint(0, 256, (3, tiny.SIZE, tiny.SIZE, 3), dtype=torch.uint8)
    context = model.prefill(frames, torch.zeros(2, 2))
    proposed = model.propose_actions(context, 5, horizon=4, generator=torch.Generator().manual_seed(0))
    assert proposed.shape == (5, 4, 2)
    assert float(proposed.mean()) == pytest.approx(3.0, abs=0.8)
    assert model.infer_actions(frames).shape == (2, 2)
    planner = Proposing(planner=CEM(horizon=4, num_iterations=1), num_proposals=8)
    objective = GoalDistance(goal=model.encode(frames[-1]))
    plan = planner.plan(ImaginedDynamics(model), context, objective, generator=torch.Generator().manual_seed(0))
    assert plan.actions.shape == (4, 2)
