"""The memory of frames from before the window: exact in the cache, the same for all, learnt where it is needed."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from embodied_wm.predictor import sampler
from embodied_wm.predictor.cache import CandidateCache, Context
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.distillation import check_distillable
from embodied_wm.predictor.inputs import ABSENT, REAL, ActionInputs
from embodied_wm.predictor.memory import furthest_apart, recall
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.rolling import roll
from embodied_wm.predictor.self_forcing import Rollouts, check_rollouts
from embodied_wm.predictor.transformer import TransformerConfig

MEMORY, WIDTH, CANDIDATES, HORIZON = 3, 32, 4, 9


def make(seed: int = 0, **changes: bool | int | str) -> LatentPredictor:
    torch.manual_seed(seed)
    transformer = TransformerConfig(width=WIDTH, depth=2, num_heads=2, hidden=48, sinks=1)
    config = replace(PredictorConfig(transformer=transformer, window=4, memory=MEMORY), **changes)  # type: ignore[arg-type]
    model = LatentPredictor(config, num_tokens=2, token_width=8, action_size=3, code_size=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def absent(frames: int) -> ActionInputs:
    return ActionInputs(torch.full((1, frames), ABSENT))


def imagine(
    model: LatentPredictor, context: Context, led_by: Tensor, noise: Tensor, num_steps: int = 1, gradient: bool = False
) -> Tensor:
    return sampler.imagine(
        model, context, lambda h, _: led_by[:, h], noise, num_steps=num_steps, is_differentiable=gradient
    )


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("clean_pass", [True, False])
@pytest.mark.parametrize("frames", [1, 3])
def test_cached_equals_uncached(num_steps: int, clean_pass: bool, frames: int) -> None:
    """Nine steps behind a window of four: frames leave the window, and what is remembered never does."""
    model = make(clean_pass=clean_pass, action_token=clean_pass)
    latents, past = torch.randn(frames, 2, 8), torch.randn(11, 2, 8)
    led_by, noise = torch.randn(CANDIDATES, HORIZON, WIDTH), torch.randn(CANDIDATES, HORIZON, 2, 8)
    context = model.prefill(latents, absent(frames), past)
    cached = imagine(model, context, led_by, noise, num_steps)
    uncached = sampler.imagine_uncached(
        model, latents, model.shift(model.embed_actions(absent(frames))), led_by, noise,
        num_steps=num_steps, memory=recall(past, latents, model.config.memory),
    )  # fmt: skip
    assert (cached - uncached).abs().max() <= 1e-4 * uncached.abs().max()
    with torch.enable_grad():
        differentiable = imagine(model, context, led_by.requires_grad_(), noise, num_steps, gradient=True)
    assert (differentiable - uncached).abs().max() <= 1e-4 * uncached.abs().max()
    forgetful = imagine(model, model.prefill(latents, absent(frames)), led_by, noise, num_steps)
    assert ((cached - forgetful)[:, -1].abs().amax((1, 2)) > 1e-3).all()  # it still counts at the last step


@torch.no_grad()
def test_order_and_time_of_what_is_remembered_do_not_count() -> None:
    model, latents = make(), torch.randn(3, 2, 8)
    past = torch.randn(MEMORY, 2, 8)
    led_by, noise = torch.randn(CANDIDATES, HORIZON, WIDTH), torch.randn(CANDIDATES, HORIZON, 2, 8)
    found = [imagine(model, model.prefill(latents, absent(3), past[order]), led_by, noise)
             for order in ([0, 1, 2], [2, 0, 1])]  # fmt: skip
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_it_is_shared_by_all_candidates_and_its_cost_does_not_grow_with_the_past() -> None:
    model, latents = make(), torch.randn(3, 2, 8)
    sizes = [model.prefill(latents, absent(3), torch.randn(long, 2, 8)).num_bytes for long in (1, 10, 500)]
    assert sizes[0] == sizes[1] == sizes[2] == 2 * 2 * WIDTH * (MEMORY + 3) * model.block * 4
    context = model.prefill(latents, absent(3), torch.randn(9, 2, 8))
    assert context.memory_tokens == MEMORY * model.block
    assert all(keys.shape[1] == (MEMORY + 3) * model.block for keys in context.keys)


@torch.no_grad()
def test_joined_environments_have_memories_of_their_own() -> None:
    model, led_by = make(), torch.randn(2, HORIZON, WIDTH)
    noise = torch.randn(1, HORIZON, 2, 8).expand(4, -1, -1, -1)
    contexts = [model.prefill(torch.randn(3, 2, 8), absent(3), torch.randn(9, 2, 8)) for _ in range(2)]
    joined = imagine(model, Context.join(contexts, num_candidates=2), led_by.repeat(2, 1, 1), noise)
    for index, context in enumerate(contexts):
        alone = imagine(model, context, led_by, noise[:2])
        torch.testing.assert_close(joined[2 * index : 2 * index + 2], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_a_long_context_loses_to_the_window_is_past(caplog: pytest.LogCaptureFixture) -> None:
    model, latents = make(), torch.randn(9, 2, 8)
    whole = model.prefill(latents, absent(9))
    apart = model.prefill(latents[-3:], absent(3), latents[:-3])
    halves = model.prefill(latents[-5:], absent(5), latents[:-5])
    for other in (apart, halves):
        torch.testing.assert_close(whole.keys, other.keys)
    assert not caplog.records


def test_frames_furthest_apart_are_chosen_and_none_that_is_in_sight() -> None:
    past = torch.tensor([0.0, 0.1, 5.0, 5.1, 9.0, 2.0])[:, None]
    assert furthest_apart(past, torch.tensor([[0.0]]), 3).tolist() == [4, 2, 5]
    assert furthest_apart(past, torch.tensor([[9.0], [5.0]]), 1).tolist() == [0]
    assert sorted(furthest_apart(past[:2], torch.tensor([[9.0]]), 3).tolist()) == [
        0,
        0,
        1,
    ]  # again where there are less
    assert furthest_apart(torch.ones(2, 1), torch.ones(1, 1), 2).tolist() == [0, 0]


@pytest.mark.parametrize(("memory", "low", "high"), [(0, 0.7, 2.0), (1, 0.0, 0.2)])
def test_what_was_seen_long_ago_is_foretold_by_a_model_that_remembers(memory: int, low: float, high: float) -> None:
    """Numbers that were seen before the window come back when the action says so; between them are zeros."""
    torch.manual_seed(1)
    transformer = TransformerConfig(width=WIDTH, depth=2, num_heads=2, hidden=48)
    config = PredictorConfig(transformer=transformer, window=4, memory=memory, absent_fraction=0.0)
    model = LatentPredictor(config, num_tokens=1, token_width=4, action_size=1, code_size=2)
    optimiser, generator = torch.optim.Adam(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
    actions = torch.tensor([-1.0, -1.0, 1.0, -1.0])[None, :, None]
    kind = torch.full((64, 4), REAL)
    for _ in range(400):
        number = torch.randn(64, 1, 1, 4, generator=generator)
        latents = torch.cat([torch.zeros(64, 3, 1, 4), number], dim=1)
        told = ActionInputs(kind, actions.expand(64, -1, -1))
        loss, _ = model.loss(latents, told, generator, number if memory else None)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    errors = []
    for one in range(16):
        known = model.prefill(torch.zeros(3, 1, 4), ActionInputs(kind[:1], actions), number[one] if memory else None)
        noise = torch.randn(1, 1, 1, 4, generator=generator)
        imagined = imagine(model, known, model.embed_real(torch.ones(1, 1, 1)), noise)[0, 0]
        errors.append(float((imagined - number[one, 0]).square().mean()))
    assert low <= sum(errors) / 16 <= high


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"memory": -1}, "memory=-1"), ({"kind": "masked"}, "masked"), ({"joint_actions": True}, "joint_actions")],
)
def test_what_does_not_go_with_a_memory_is_refused(changes: dict[str, int | str | bool], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replace(PredictorConfig(memory=2), **changes).check((2,) * 8, 8)  # type: ignore[arg-type]


def test_a_memory_is_trained_with_what_it_remembers_or_not_at_all() -> None:
    latents, told = torch.randn(2, 5, 2, 8), ActionInputs(torch.full((2, 5), ABSENT))
    for memory, given in ((3, None), (0, torch.randn(2, 3, 2, 8))):
        with pytest.raises(ValueError, match=rf"memory={memory}"):
            make(memory=memory).loss(latents, told, torch.Generator(), given)


def test_what_knows_no_memory_says_so() -> None:
    model = make()
    with pytest.raises(ValueError, match="memory=0"):
        make(memory=0).prefill(torch.randn(2, 2, 8), absent(2), torch.randn(3, 2, 8))
    context = model.prefill(torch.randn(2, 2, 8), absent(2))
    with pytest.raises(ValueError, match=r"predictor\.memory > 0"):
        CandidateCache.apart([context], max_tokens=9)
    with pytest.raises(ValueError, match="rolling=false"):
        roll(model, context, torch.randn(2, 8), torch.randn(WIDTH))
    with pytest.raises(ValueError, match=r"predictor\.memory=3"):
        check_rollouts(model, Rollouts(context=1, horizon=4))
    with pytest.raises(ValueError, match=r"predictor\.memory=3"):
        check_distillable(model, 4)
    with pytest.raises(ValueError, match="NaN"):
        model.prefill(torch.randn(2, 2, 8), absent(2), torch.full((1, 2, 8), torch.nan))
