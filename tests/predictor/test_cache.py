"""The candidates' buffers: no larger than the window asks for, and exactly what unbounded ones would give."""

import pytest
import torch
from torch import Tensor

from embodied_wm.predictor import sampler
from embodied_wm.predictor.cache import CandidateCache, Context
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.inputs import ABSENT, ActionInputs
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.transformer import TransformerConfig

HORIZON, CANDIDATES = 22, 4


def make(window: int) -> LatentPredictor:
    torch.manual_seed(0)
    config = PredictorConfig(
        transformer=TransformerConfig(width=32, depth=2, num_heads=2, hidden=48, sinks=1), window=window
    )
    model = LatentPredictor(config, num_tokens=2, token_width=8, action_size=3, code_size=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def contexts(model: LatentPredictor, frames: int) -> list[Context]:
    absent = ActionInputs(torch.full((1, frames), ABSENT))
    return [model.prefill(torch.randn(frames, 2, 8), absent) for _ in range(CANDIDATES)]


@torch.no_grad()  # the shape checks hide from imagine_frames' own decorator that it is a generator
def imagine(model: LatentPredictor, cache: CandidateCache, led_by: Tensor, noise: Tensor, num_steps: int) -> Tensor:
    frames = sampler.imagine_frames(model, cache, lambda h, _: led_by[:, h], noise, num_steps=num_steps)
    return torch.stack(list(frames), dim=1)


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize(("window", "frames"), [(2, 1), (4, 3), (16, 5)])
@pytest.mark.parametrize("past", ["shared", "joined", "apart"])
def test_bounded_buffers_imagine_the_same_bits(num_steps: int, window: int, frames: int, past: str) -> None:
    model = make(window)
    each = contexts(model, frames)
    led_by, noise = torch.randn(CANDIDATES, HORIZON, 32), torch.randn(CANDIDATES, HORIZON, 2, 8)
    found = []
    for bound in (None, (window + 1) * model.block):
        room = (HORIZON + 1) * model.block
        if past == "apart":
            cache = CandidateCache.apart(each, max_tokens=room, window_tokens=bound)
        else:
            context = each[0] if past == "shared" else Context.join(each[:2], num_candidates=CANDIDATES // 2)
            cache = CandidateCache(context, num_candidates=CANDIDATES, max_tokens=room, window_tokens=bound)
        found.append(imagine(model, cache, led_by, noise, num_steps))
    assert torch.equal(found[0], found[1])


@torch.no_grad()
def test_memory_is_flat_however_far_is_imagined() -> None:
    model = make(window=4)
    context = contexts(model, 3)[0]
    block, sizes = model.block, []
    for horizon in (1, 5, 30, 100):
        cache = CandidateCache(
            context, num_candidates=CANDIDATES, max_tokens=(horizon + 1) * block, window_tokens=4 * block
        )
        during = {cache.num_bytes}
        frames = sampler.imagine_frames(
            model, cache, lambda h, _: torch.zeros(CANDIDATES, 32), torch.randn(CANDIDATES, horizon, 2, 8)
        )
        during.update(cache.num_bytes for _ in frames)
        assert len(during) == 1
        sizes.append(during.pop())
    token = 2 * 2 * CANDIDATES * 32 * 4  # keys and values x layers x candidates x width x bytes
    assert sizes[0] == 2 * block * token
    assert sizes[1] == sizes[2] == sizes[3] == (4 * block + 1) * token


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize(("window", "frames"), [(2, 1), (4, 3), (5, 1)])
def test_cached_equals_uncached_after_the_window_is_full(num_steps: int, window: int, frames: int) -> None:
    """Frame t is written in one pass with frame t + 1: it must see the frame that has just left the other's window."""
    model = make(window)
    latents, absent = torch.randn(frames, 2, 8), ActionInputs(torch.full((1, frames), ABSENT))
    led_by, noise = torch.randn(CANDIDATES, 12, 32), torch.randn(CANDIDATES, 12, 2, 8)
    context = model.prefill(latents, absent)
    cached = sampler.imagine(model, context, lambda h, _: led_by[:, h], noise, num_steps=num_steps)
    before = model.shift(model.embed_actions(absent))
    uncached = sampler.imagine_uncached(model, latents, before, led_by, noise, num_steps=num_steps)
    assert (cached - uncached).abs().max() <= 1e-4 * uncached.abs().max()


def test_gradients_pass_through_moved_buffers() -> None:
    model = make(window=3)
    context = contexts(model, 2)[0]
    led_by = torch.randn(CANDIDATES, HORIZON, 32, requires_grad=True)
    noise = torch.randn(CANDIDATES, HORIZON, 2, 8)
    imagined = sampler.imagine(model, context, lambda h, _: led_by[:, h], noise, is_differentiable=True)
    cache = CandidateCache(context, num_candidates=CANDIDATES, max_tokens=(HORIZON + 1) * model.block)
    torch.testing.assert_close(imagined, imagine(model, cache, led_by.detach(), noise, 1), atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(imagined[:, 9].sum(), led_by)
    assert (gradient[:, 4:10].abs().amax((0, 2)) > 0).all()
    assert (gradient[:, 10:] == 0).all()
