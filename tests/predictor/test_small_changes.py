"""A dead zone of predicted changes, and Fourier features: what rests stays; all ways to imagine agree as they did."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_predictor import make_predictor, real_actions
from torch import Tensor

from embodied_wm.predictor import flow, sampler
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.fourier import FourierFeatures
from embodied_wm.predictor.inputs import ABSENT, ActionInputs
from embodied_wm.predictor.joint import act_and_imagine
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.transformer import TransformerConfig


@pytest.mark.parametrize("is_training", [True, False])
def test_small_changes_are_none_and_can_still_be_learned(is_training: bool) -> None:
    change = torch.tensor([0.0, 0.05, -0.099, 0.14, 0.3, -1.0], requires_grad=True)
    shrunk = flow.shrink(change, torch.tensor([0.1]), is_training=is_training)
    assert shrunk[:3].tolist() == [0.0, 0.0, 0.0]
    assert shrunk.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.04 * is_training, 0.2, -0.9], abs=1e-6)
    shrunk.sum().backward()
    assert change.grad is not None
    assert change.grad.tolist() == pytest.approx([flow.LEAK * is_training] * 3 + [1.0 * is_training] + [1.0] * 2)
    assert torch.equal(flow.shrink(change, torch.zeros(1), is_training=is_training), change)


def test_nearly_clean_values_are_taken_as_they_are() -> None:
    """Or latents at rest fade by a thousandth each frame: by a fifth in 256."""
    tau = torch.tensor([1.0, 0.97, 0.94, 0.5])
    trusted = flow.trust(tau, 0.94)
    assert isinstance(trusted, Tensor)
    assert trusted.tolist() == pytest.approx([1.0, 1.0, 1.0, 1 / (1 + 0.44**2)])
    assert flow.trust(0.97, 0.94) == 1
    assert flow.trust(0.97) == pytest.approx(1 / (1 + 0.03**2))


@pytest.mark.parametrize(("context_tau", "context_noise"), [(0.97, 0.06), (0.97, 0.0), (0.9, 0.06)])
def test_imagined_frames_do_not_fade(context_tau: float, context_noise: float) -> None:
    model = make_predictor(shrinkage=0.3, context_tau=context_tau, context_noise=context_noise)
    before = torch.randn(4, 2, 8)
    assert torch.equal(model.read(torch.zeros(4, 2, 32), before, context_tau), before + model.read(
        torch.zeros(4, 2, 32), torch.zeros(4, 2, 8), 1.0
    ))  # fmt: skip


def test_frames_that_hardly_change_are_the_frames_before() -> None:
    before = torch.randn(2, 2, 8)
    after = before + torch.tensor([0.09, 0.11])[:, None, None]
    settled = flow.settle(after, before, torch.tensor(0.1))
    assert torch.equal(settled[0], before[0])
    assert torch.equal(settled[1], after[1])


def test_frames_settle_unless_gradients_train_through_them() -> None:
    model = make_predictor(stillness=1e6)
    out, before = torch.randn(3, 2, 32, requires_grad=True), torch.randn(3, 2, 8)

    def improved() -> Tensor:
        return model.improve(out, torch.zeros(3, 2, 8), torch.zeros(3, 2, 8), before, 0.97, number=0, num_steps=1)

    assert torch.equal(improved(), before)
    model.train()
    assert improved().requires_grad
    with torch.no_grad():  # what self-forcing takes as data looks as in imagination
        assert torch.equal(improved(), before)


def test_frames_of_proposed_actions_settle_too() -> None:
    model = make_predictor(stillness=1e6, joint_actions=True)
    latents = torch.randn(3, 2, 8)
    context = model.prefill(latents, real_actions(1, 3, 3))
    _, frames = act_and_imagine(model, context, 4, 3, torch.Generator().manual_seed(0))
    assert torch.equal(frames, latents[-1].expand(4, 3, -1, -1))


def test_gradients_leak_in_training_alone() -> None:
    model = make_predictor(shrinkage=0.3)
    assert model.zone is not None
    model.zone.fill_(100.0)  # all changes are none
    for training, leaks in ((True, True), (False, False)):
        out = torch.randn(4, 2, 32, requires_grad=True)
        model.train(training).read(out, torch.zeros(4, 2, 8), 1.0).square().sum().backward()
        model.read(out, torch.ones(4, 2, 8), 1.0).sum().backward()
        assert out.grad is not None
        assert bool(out.grad.any()) is leaks


def test_the_zone_is_set_once_in_usual_changes() -> None:
    model = make_predictor(shrinkage=0.3)
    assert model.zone is not None
    first = float(model.zone)
    assert first == pytest.approx(0.3 * float(model.change_std))
    model.fit_change(10 * torch.randn(8, 6, 2, 8))  # of another robot, say, with the same network
    assert float(model.zone) == first
    assert float(model.change_std) > 5 * first
    assert "zone" in model.state_dict()


@pytest.mark.parametrize("steps", ["least", "most"])
@pytest.mark.parametrize("holds", ["numbers", "frames"])
@pytest.mark.parametrize(
    "variant", [{}, {"clean_pass": False}, {"joint_actions": True}, {"kind": "regression"}, {"mixer": "gated_delta"}]
)
def test_all_ways_to_imagine_agree(variant: dict[str, Any], holds: str, steps: str) -> None:
    """Cached, uncached, and with gradients, which are those of what is imagined."""
    model = make_predictor(shrinkage=0.3 if holds == "numbers" else 0.0, fourier_features=8, **variant)
    num_steps = model.step_counts[0 if steps == "least" else -1]
    latents, past = torch.randn(3, 2, 8), real_actions(1, 3, 3)
    led_by = model.embed_actions(real_actions(3, 4, 3)).detach()
    noise = torch.randn(3, 4, 2, 8)
    context, context_led_by = model.prefill(latents, past), model.shift(model.embed_actions(past))

    def imagine(led_by: Tensor, *, is_differentiable: bool = False) -> Tensor:
        how = {"num_steps": num_steps, "is_differentiable": is_differentiable}
        return sampler.imagine(model, context, lambda h, _: led_by[:, h], noise, **how)

    def changes(frames: Tensor) -> Tensor:
        return torch.cat([latents[-1:].expand(3, 1, -1, -1), frames], dim=1).diff(dim=1)

    if holds == "frames":  # some of the first ones, by a limit in the middle of what they change by
        first = changes(imagine(led_by))[:, 0].square().mean((1, 2)).sqrt()
        model.config = replace(model.config, stillness=float((first.min() + first.max()) / 2 / model.change_std))
        is_still = (changes(imagine(led_by))[:, 0] == 0).all(-1).all(-1)
        assert is_still.any()
        assert not is_still.all()
    cached = imagine(led_by)
    uncached = sampler.imagine_uncached(model, latents, context_led_by, led_by, noise, num_steps=num_steps)
    assert (cached - uncached).abs().max() <= 1e-4 * uncached.abs().max()
    chosen = led_by.clone().requires_grad_()
    followed = imagine(chosen, is_differentiable=True)
    torch.testing.assert_close(followed, cached, atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(followed.mean(), chosen)
    direction = torch.randn_like(led_by)
    ends = [imagine(led_by + e * direction).double().mean() for e in (-1e-3, 1e-3)]
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[1] - ends[0]) / 2e-3, rel=0.1, abs=1e-3)


def test_fourier_features_start_from_what_is_known() -> None:
    features = FourierFeatures(token_width=8, num_features=16, width=32)
    told = torch.randn(5, 24)
    other = told.clone()
    other[:, :8] += 1.0  # the frame itself, noise at first
    assert torch.equal(features(told), features(other))
    assert not torch.allclose(features(told), features(told + 0.3))
    features(told).square().sum().backward()
    assert features.into.weight.grad is not None
    assert (features.into.weight.grad[:, :8] != 0).any()


def walks(generator: torch.Generator, num_scenes: int) -> Tensor:
    """Return scenes [N, 6, 1, 4] in which each channel rests or moves on as it did."""
    start = torch.randn(num_scenes, 1, 1, 4, generator=generator)
    speed = 0.2 * torch.randn(num_scenes, 1, 1, 4, generator=generator)
    rests = torch.rand(speed.shape, generator=generator) < 0.5
    return start + speed.masked_fill(rests, 0.0) * torch.arange(6)[:, None, None]


@torch.no_grad()
def drift_at_rest(model: LatentPredictor) -> float:
    """Return how far, in the mean, channels of resting scenes have moved after 64 imagined frames."""
    generator, nothing = torch.Generator().manual_seed(1), model.kinds[ABSENT].expand(1, -1)
    moved = []
    for scene in torch.randn(16, 1, 1, 4, generator=generator):
        context = model.prefill(scene.expand(3, -1, -1), ActionInputs(torch.full((1, 3), ABSENT)))
        noise = torch.randn(1, 64, 1, 4, generator=generator)
        moved.append(sampler.imagine(model, context, lambda h, _: nothing, noise)[0, -1] - scene)
    return float(torch.stack(moved).abs().mean())


def trained(**changes: Any) -> LatentPredictor:
    torch.manual_seed(0)
    transformer = TransformerConfig(width=32, depth=1, num_heads=2, hidden=48)
    model = LatentPredictor(
        PredictorConfig(transformer=transformer, clean_pass=False, **changes),
        num_tokens=1, token_width=4, action_size=1, code_size=1,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model.fit_change(walks(generator, 256))
    optimiser, absent = torch.optim.Adam(model.parameters(), lr=3e-3), ActionInputs(torch.full((32, 6), ABSENT))
    for _ in range(300):
        loss, _ = model.loss(walks(generator, 32), absent, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize(("changes", "part"), [({"shrinkage": 0.3}, 0.1), ({"stillness": 0.3}, 0.3)])
def test_what_rests_stays(changes: dict[str, float], part: float) -> None:
    assert drift_at_rest(trained(**changes)) < part * drift_at_rest(trained())


@pytest.mark.parametrize(
    "changes",
    [{"shrinkage": -0.1}, {"stillness": float("nan")}, {"stillness": 0.3, "kind": "masked"}, {"fourier_features": -1}],
)
def test_impossible_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"predictor\.{next(iter(changes))}=.*expected"):
        LatentPredictor(PredictorConfig(**changes), num_tokens=1, token_width=4, action_size=1, code_size=1)
