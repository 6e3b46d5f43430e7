"""Self-forcing: own contexts as in imagination, gradients that go as far as they should, and less drift."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from embodied_wm.predictor import sampler
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.inputs import REAL, ActionInputs
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.self_forcing import Rollouts, check_rollouts, imagine_own, self_forced_loss
from embodied_wm.predictor.transformer import TransformerConfig

ROLLOUTS = Rollouts(context=2, horizon=4)


def make(window: int = 16, kind: str = "flow", std: float = 0.3, sinks: int = 0, depth: int = 2) -> LatentPredictor:
    torch.manual_seed(0)
    transformer = TransformerConfig(width=32, depth=depth, num_heads=2, hidden=48, sinks=sinks)
    config = PredictorConfig(kind=kind, transformer=transformer, window=window)  # type: ignore[arg-type]
    model = LatentPredictor(config, num_tokens=2, token_width=4, action_size=3, code_size=2)
    if std:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def windows(batch: int = 3, time: int = 6) -> tuple[Tensor, ActionInputs]:
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(batch, time, 3, generator=generator)
    return torch.randn(batch, time, 2, 4, generator=generator), ActionInputs(torch.full((batch, time), REAL), real=real)


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("window", [16, 4])
@pytest.mark.parametrize("cut_every", [0, 1, 4])
@pytest.mark.parametrize("sinks", [0, 2])
def test_own_contexts_are_what_imagination_gives(num_steps: int, window: int, cut_every: int, sinks: int) -> None:
    model, (latents, actions) = make(window, sinks=sinks), windows()
    rollouts = replace(ROLLOUTS, denoising_steps=num_steps, cut_every=cut_every)
    led_by = model.shift(model.embed_actions(actions)).detach()
    noise = torch.randn(3, 4, 2, 4)
    own = imagine_own(model, latents, led_by, noise, rollouts)
    assert own.requires_grad == (cut_every > 0)
    assert actions.real is not None
    for index in range(3):
        past = ActionInputs(actions.kind[index : index + 1], real=actions.real[index : index + 1])
        context = model.prefill(latents[index, :2], past)
        one = slice(index, index + 1)
        alone = sampler.imagine(
            model, context, lambda h, _, one=one: led_by[one, 2 + h], noise[one], num_steps=num_steps
        )
        assert torch.allclose(own[one], alone, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize(("cut_every", "reached"), [(1, {3}), (2, {2, 3}), (4, {0, 1, 2, 3}), (3, {3})])
def test_gradients_flow_back_as_many_frames_as_asked_for(cut_every: int, reached: set[int]) -> None:
    """The last frame's error must reach the start of those frames alone after which nothing was cut."""
    model, (latents, actions) = make(), windows()
    led_by = model.shift(model.embed_actions(actions)).detach()
    noise = torch.randn(3, 4, 2, 4, requires_grad=True)
    own = imagine_own(model, latents, led_by, noise, replace(ROLLOUTS, cut_every=cut_every))
    (gradient,) = torch.autograd.grad(own[:, 3].square().sum(), noise)
    assert {frame for frame in range(4) if gradient[:, frame].abs().max() > 0} == reached


def test_imagined_frames_as_data_carry_no_gradient_and_every_weight_learns() -> None:
    model, (latents, actions) = make(), windows(batch=16)
    led_by = model.shift(model.embed_actions(actions))
    own = imagine_own(model, latents, led_by, torch.randn(16, 4, 2, 4), ROLLOUTS)
    assert not own.requires_grad
    loss, metrics = self_forced_loss(model, latents, actions, ROLLOUTS, torch.Generator().manual_seed(0))
    loss.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert silent <= {"code_in.0.weight", "code_in.0.bias", "code_in.2.weight", "code_in.2.bias"}
    assert metrics["own_last"] > 0


@pytest.mark.parametrize("cut_every", [0, 2])
def test_regression_is_forced_too_and_the_same_seed_gives_the_same_loss(cut_every: int) -> None:
    model, (latents, actions) = make(kind="regression"), windows()
    rollouts = replace(ROLLOUTS, cut_every=cut_every)
    first, second = (
        self_forced_loss(model, latents, actions, rollouts, torch.Generator().manual_seed(4))[0] for _ in range(2)
    )
    assert torch.isfinite(first)
    assert torch.equal(first, second)


def test_rollouts_that_a_predictor_cannot_make_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 1 real frame, at least 2 imagined ones"):
        Rollouts(horizon=1)
    with pytest.raises(ValueError, match=r"denoising_steps=3; this predictor was trained for \[1, 2, 4\]"):
        check_rollouts(make(), Rollouts(denoising_steps=3))
    with pytest.raises(ValueError, match="window of 4 frames holds 3"):
        check_rollouts(make(window=4), Rollouts(context=4))
    latents, actions = windows(time=7)
    with pytest.raises(ValueError, match="windows of 7 frames; expected 2 real and 4 imagined"):
        self_forced_loss(make(), latents, actions, ROLLOUTS, torch.Generator())


def swing(batch: int, time: int, generator: torch.Generator) -> tuple[Tensor, ActionInputs]:
    """Return windows of two pendulums that are kicked: turned a little each frame, unstable, bent by a tanh."""
    kicks = torch.rand(batch, time, 3, generator=generator) * 2 - 1
    state = torch.randn(batch, 2, 4, generator=generator)
    turn = torch.linalg.matrix_exp(
        torch.tensor([[0.05, 0.4, 0, 0], [-0.4, 0.05, 0, 0], [0, 0, 0.05, 0.7], [0, 0, -0.7, 0.05]])
    )
    frames = [state]
    for step in range(time - 1):
        push = torch.zeros(batch, 2, 4)
        push[:, 0, 1], push[:, 1, 3], push[:, 0, 3] = kicks[:, step].unbind(1)
        frames.append(1.5 * torch.tanh((frames[-1] @ turn.T + 0.4 * push) / 1.5))
    return torch.stack(frames, 1), ActionInputs(torch.full((batch, time), REAL), real=kicks)


CLEAN, KICKS = swing(1536, 10, torch.Generator().manual_seed(7))
SEEN = CLEAN + 0.4 * torch.randn(CLEAN.shape, generator=torch.Generator().manual_seed(8))
"""What is seen of them: with noise, so that what is best one step ahead is not what is best to go on from."""


def some(windows: Tensor, time: int) -> tuple[Tensor, ActionInputs]:
    assert KICKS.real is not None
    return SEEN[windows, :time], ActionInputs(KICKS.kind[windows, :time], real=KICKS.real[windows, :time])


def trained(model: LatentPredictor, num_steps: int, rollouts: Rollouts | None, rate: float) -> LatentPredictor:
    """Train by the ordinary loss, or half by it and half by the loss on own rollouts."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    for step in range(num_steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - 0.95 * step / num_steps)
        latents, actions = some(torch.randint(1280, (32,), generator=generator), 8)
        loss, _ = model.loss(latents, actions, generator)
        if rollouts is not None:
            loss = (loss + self_forced_loss(model, latents, actions, rollouts, generator)[0]) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def drift(model: LatentPredictor) -> Tensor:
    """Return the squared error [8] of frames imagined in one step from two seen ones, against what is behind them."""
    held_out = torch.arange(1280, 1536)
    latents, actions = some(held_out, 10)
    with torch.no_grad():
        led_by = model.shift(model.embed_actions(actions))
        noise = torch.randn(256, 8, 2, 4, generator=torch.Generator().manual_seed(3))
        own = imagine_own(model, latents, led_by, noise, Rollouts(context=2, horizon=8))
    return (own - CLEAN[held_out, 2:]).square().mean((0, 2, 3))


def test_training_through_own_rollouts_lowers_their_error_where_more_of_the_same_does_not() -> None:
    model = make(std=0, depth=1)
    model.fit_change(SEEN[:64])
    before = drift(trained(model, 150, None, 6e-3))
    longer = drift(trained(deepcopy(model), 50, None, 3e-3))
    forced = drift(trained(model, 50, Rollouts(context=2, horizon=6, cut_every=6), 3e-3))
    assert float(forced[7]) < 0.8 * min(float(before[7]), float(longer[7]))
    assert float(forced[0]) < 1.05 * float(before[0])
