"""A context that is rolled on equals a prefill of the whole history, and its memory is bounded."""

import pytest
import torch
from test_predictor import make_predictor, real_actions
from torch import Tensor

from embodied_wm.predictor import sampler
from embodied_wm.predictor.cache import Context
from embodied_wm.predictor.inputs import ActionInputs
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.rolling import roll
from embodied_wm.predictor.transformer import block_causal_mask

FRAMES = 12


def history(model: LatentPredictor) -> tuple[Tensor, ActionInputs, Tensor]:
    latents, actions = torch.randn(FRAMES, 2, 8), real_actions(1, FRAMES, 3)
    return latents, actions, model.shift(model.embed_actions(actions))[0]


def rolled(model: LatentPredictor, latents: Tensor, led_by: Tensor, max_frames: int | None = None) -> Context:
    nothing = ActionInputs(torch.zeros(1, 1, dtype=torch.long))
    context = model.prefill(latents[:1], nothing)
    for frame in range(1, len(latents)):
        context = roll(model, context, latents[frame], led_by[frame], max_frames=max_frames)
    return context


def whole(model: LatentPredictor, latents: Tensor, led_by: Tensor, max_frames: int) -> tuple[Tensor, ...]:
    """Return the keys of a prefill of all frames, each of which sees `max_frames` before it."""
    before = torch.cat([torch.zeros_like(latents[:1]), latents[:-1]])
    change = torch.cat([torch.zeros_like(latents[:2]), latents.diff(dim=0)[:-1]])
    tokens, modulation = model.known_blocks(led_by[None], latents[None], before[None], change[None])
    mask = block_causal_mask(len(latents), max_frames + 1, latents.device)
    keys, _ = model.transformer.keys_values(tokens, modulation, torch.arange(len(latents)), mask)
    return tuple(layer[0] for layer in keys)


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("max_frames", [2, 4, None])
@pytest.mark.parametrize("clean_pass", [True, False])
@torch.no_grad()
def test_equals_a_prefill_of_the_whole_history(max_frames: int | None, sinks: int, clean_pass: bool) -> None:
    model = make_predictor(window=6, sinks=sinks, clean_pass=clean_pass)
    latents, _, led_by = history(model)
    context = rolled(model, latents, led_by, max_frames)
    kept = max_frames or 5
    assert (context.num_frames, context.next_position) == (kept, FRAMES)
    for keys, expected in zip(context.keys, whole(model, latents, led_by, kept), strict=True):
        assert keys.shape == (2, kept * 3, 16)
        assert torch.allclose(keys, expected[:, -kept * 3 :], atol=2e-5)


@torch.no_grad()
def test_before_the_window_is_full_it_equals_the_ordinary_prefill() -> None:
    model = make_predictor()
    latents, actions, led_by = history(model)
    one, other = rolled(model, latents, led_by), model.prefill(latents, actions)
    assert one.num_bytes == other.num_bytes
    for mine, theirs in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("clean_pass", [True, False])
@torch.no_grad()
def test_imagination_from_it_equals_the_uncached_one_of_the_whole_history(num_steps: int, clean_pass: bool) -> None:
    """Beyond the window too, where frames drop out one by one while others are imagined."""
    model = make_predictor(window=6, clean_pass=clean_pass)
    latents, _, led_by = history(model)
    candidates, noise = model.embed_actions(real_actions(3, 8, 3)), torch.randn(3, 8, 2, 8)
    context = rolled(model, latents, led_by)
    found = sampler.imagine(model, context, lambda h, _: candidates[:, h], noise, num_steps=num_steps)
    expected = sampler.imagine_uncached(model, latents, led_by[None], candidates, noise, num_steps=num_steps)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_memory_is_bounded_and_what_is_dropped_is_freed() -> None:
    model = make_predictor(window=4)
    latents, _, led_by = history(model)
    context = rolled(model, latents, led_by)
    assert context.num_bytes == 2 * 3 * 3 * 3 * 32 * 4  # keys and values x layers x frames x tokens x width x bytes
    assert all(each.untyped_storage().nbytes() == each.nbytes for each in (*context.keys, *context.values))


def test_frames_that_cannot_be_kept_are_refused() -> None:
    model = make_predictor(window=4)
    latents, actions, led_by = history(model)
    context = model.prefill(latents[:3], actions)
    with pytest.raises(ValueError, match="1 to 3"):
        roll(model, context, latents[3], led_by[3], max_frames=4)
    with pytest.raises(ValueError, match="NaN"):
        roll(model, context, latents[3] * float("nan"), led_by[3])
