"""The gated delta mixer: the paper's recurrence, causality, one memory for all candidates, and what it costs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from embodied_wm.predictor import recurrent, sampler
from embodied_wm.predictor.cache import CandidateCache, Context
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.inputs import REAL, ActionInputs
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.transformer import TransformerConfig


def make(num_tokens: int = 2, depth: int = 3, sinks: int = 0, mixer: str = "gated_delta") -> LatentPredictor:
    torch.manual_seed(0)
    size = TransformerConfig(width=32, depth=depth, num_heads=2, hidden=48, sinks=sinks, mixer=mixer)  # type: ignore[arg-type]
    config = PredictorConfig(transformer=size, window=4)
    model = LatentPredictor(config, num_tokens=num_tokens, token_width=8, action_size=3, code_size=2)
    for parameter in model.parameters():  # no zero initialisation: every path must matter
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def real_actions(*shape: int) -> ActionInputs:
    return ActionInputs(
        torch.full(shape[:2], REAL), real=torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    )


def random_tokens(*shape: int) -> tuple[Tensor, ...]:
    """Return keys, values, beta and log alpha of tokens [*shape, 6]."""
    generator = torch.Generator().manual_seed(2)
    k, v = (torch.randn(*shape, 6, generator=generator) for _ in range(2))
    beta, log_alpha = torch.rand(*shape, generator=generator), -torch.rand(*shape, generator=generator)
    return k, v, beta, log_alpha


def textbook(state: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_alpha: Tensor) -> Tensor:
    """Write tokens [N, ...] one by one, as equation 10 of arXiv 2412.06464 has it."""
    for i in range(len(k)):
        key = k[i] / k[i].norm()
        erased = torch.eye(len(key)) - beta[i] * torch.outer(key, key)
        state = state @ (log_alpha[i].exp() * erased) + beta[i] * torch.outer(v[i], key)
    return state


def test_writing_is_the_papers_recurrence() -> None:
    tokens = random_tokens(4, 2, 5)
    start = torch.randn(2, 6, 6)
    state = recurrent.written(start, *tokens)
    for candidate in range(4):
        for head in range(2):
            expected = textbook(start[head], *(part[candidate, head] for part in tokens))
            torch.testing.assert_close(state[candidate, head], expected, atol=1e-5, rtol=1e-5)
    of_two = recurrent.written(torch.stack([start, 2 * start]), *tokens)  # the first two share one, the others another
    torch.testing.assert_close(of_two[:2], state[:2])
    torch.testing.assert_close(of_two[2:], recurrent.written(2 * start, *(part[2:] for part in tokens)))
    query = torch.randn(4, 2, 3, 6)
    unit = query / query.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(recurrent.read(state, query), torch.einsum("shvk,shnk->shnv", state, unit))


def test_whole_windows_read_what_the_recurrence_left() -> None:
    frames, block = 7, 3
    k, v, beta, log_alpha = random_tokens(2, 2, frames, block)
    query = torch.randn(2, 2, 2 * frames, 2, 6)
    before = torch.arange(frames).repeat(2)
    answers = recurrent.read_window(query, k, v, beta, log_alpha, before)
    state = torch.zeros(2, 2, 6, 6)
    for frame in range(frames):
        for stream in (frame, frames + frame):
            torch.testing.assert_close(
                answers[:, :, stream], recurrent.read(state, query[:, :, stream]), atol=1e-5, rtol=1e-4
            )
        state = recurrent.written(state, *(part[:, :, frame] for part in (k, v, beta, log_alpha)))


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("num_context", [1, 9])
def test_cached_equals_uncached_without_a_window(num_steps: int, num_tokens: int, num_context: int) -> None:
    """Contexts and futures may be longer than `window`, which has no meaning here."""
    model = make(num_tokens)
    latents, past = torch.randn(num_context, num_tokens, 8), real_actions(1, num_context, 3)
    led_by, noise = model.embed_actions(real_actions(5, 8, 3)), torch.randn(5, 8, num_tokens, 8)
    context = model.prefill(latents, past)
    assert (context.num_frames, context.keys) == (num_context, ())
    cached = sampler.imagine(model, context, lambda h, _: led_by[:, h], noise, num_steps=num_steps)
    before = model.shift(model.embed_actions(past))
    uncached = sampler.imagine_uncached(model, latents, before, led_by, noise, num_steps=num_steps)
    assert (cached - uncached).abs().max() <= 1e-4 * uncached.abs().max()


def test_future_frames_and_actions_leave_the_past_unchanged_and_the_past_is_remembered() -> None:
    model = make()
    x, tau = torch.randn(2, 9, 2, 8), torch.rand(2, 9)
    led_by = model.embed_actions(real_actions(2, 9, 3))
    before = model(x, tau, torch.ones_like(tau), led_by)
    changed_x, changed_led_by = x.clone(), led_by.clone()
    changed_x[:, 6:] += 1.0
    changed_led_by[:, 6:] += 1.0
    after = model(changed_x, tau, torch.ones_like(tau), changed_led_by)
    torch.testing.assert_close(before[:, :6], after[:, :6], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before[:, 6:], after[:, 6:])
    shorter = model(x[:1, :6], tau[:1, :6], torch.ones_like(tau[:1, :6]), led_by[:1, :6])  # no frames behind, alone
    torch.testing.assert_close(before[:1, :6], shorter, atol=1e-5, rtol=1e-5)
    changed_x = x.clone()
    changed_x[:, 0] += 1.0
    first = make(depth=1)
    for layer in first.transformer.stack:
        gates = layer.get_submodule("gates")
        gates.get_parameter("weight").data.zero_()
        gates.get_parameter("bias").data[2:] = -4.0  # fade slowly
    differs = (first(changed_x, tau, tau, led_by) - first(x, tau, tau, led_by)).abs().amax((0, 2, 3))
    assert (differs > 1e-4).all()  # frame 8 too, in one layer, where attention's window of 4 would have ended


def test_a_target_is_predicted_as_imagination_would_from_the_frames_before_it() -> None:
    """Two streams: targets read what the context before them wrote, never its own frame, and write nothing."""
    model = make()
    past, x = torch.randn(2, 6, 2, 8), torch.randn(2, 6, 2, 8)
    past_tau, tau = torch.rand(2, 6), torch.rand(2, 6)
    step, finest = torch.full((2, 6), 0.5), torch.full((2, 6), 0.25)
    led_by = model.embed_actions(real_actions(2, 6, 3))
    together = model.predict_targets(past, past_tau, x, tau, step, led_by)
    for frame in range(1, 6):
        window = torch.cat([past[:, :frame], x[:, frame : frame + 1]], dim=1)
        levels = torch.cat([past_tau[:, :frame], tau[:, frame : frame + 1]], dim=1)
        sizes = torch.cat([finest[:, :frame], step[:, frame : frame + 1]], dim=1)
        alone = model(window, levels, sizes, led_by[:, : frame + 1])[:, -1]
        torch.testing.assert_close(together[:, frame], alone, atol=1e-4, rtol=1e-4)


def test_memory_is_constant_and_shared_until_a_candidate_writes() -> None:
    model = make()
    size = 3 * 2 * 16 * 16 * 4  # layers x heads x matrix x bytes
    contexts = [model.prefill(torch.randn(n, 2, 8), real_actions(1, n, 3)) for n in (1, 50)]
    assert [context.num_bytes for context in contexts] == [size, size]
    cache = CandidateCache(contexts[1], num_candidates=5, max_tokens=100)
    led_by = model.embed_actions(real_actions(5, 40, 3))
    sizes = [
        cache.num_bytes
        for _ in sampler.imagine_frames(model, cache, lambda h, _: led_by[:, h], torch.randn(5, 40, 2, 8))
    ]
    assert sizes == [0] + 39 * [5 * size]


@pytest.mark.parametrize("num_steps", [1, 4])
def test_candidates_of_several_contexts_imagine_what_they_would_alone(num_steps: int) -> None:
    model = make()
    contexts = [model.prefill(torch.randn(3, 2, 8), real_actions(1, 3, 3)) for _ in range(3)]
    led_by, noise = model.embed_actions(real_actions(6, 5, 3)), torch.randn(6, 5, 2, 8)

    def imagine(context: Context, chosen: slice) -> Tensor:
        return sampler.imagine(model, context, lambda h, _: led_by[chosen, h], noise[chosen], num_steps=num_steps)

    alone = torch.cat([imagine(context, slice(2 * i, 2 * i + 2)) for i, context in enumerate(contexts)])
    joined = imagine(Context.join(contexts, num_candidates=2), slice(None))
    torch.testing.assert_close(joined, alone, atol=1e-4, rtol=1e-4)
    single = torch.cat([imagine(contexts[i // 2], slice(i, i + 1)) for i in range(6)])
    torch.testing.assert_close(single, alone, atol=1e-4, rtol=1e-4)
    apart = CandidateCache.apart([contexts[i // 2] for i in range(6)], max_tokens=100)
    frames = sampler.imagine_frames(model, apart, lambda h, _: led_by[:, h], noise, num_steps=num_steps)
    torch.testing.assert_close(torch.stack(list(frames), dim=1), alone, atol=1e-4, rtol=1e-4)


def test_gradients_reach_actions_through_the_memory() -> None:
    model = make()
    context = model.prefill(torch.randn(3, 2, 8), real_actions(1, 3, 3))
    led_by = model.embed_actions(real_actions(2, 6, 3)).detach().requires_grad_()
    noise = torch.randn(2, 6, 2, 8)

    def last(chosen: Tensor, *, is_differentiable: bool) -> Tensor:
        return sampler.imagine(model, context, lambda h, _: chosen[:, h], noise, is_differentiable=is_differentiable)[
            :, -1
        ].mean()

    (gradient,) = torch.autograd.grad(last(led_by, is_differentiable=True), led_by)
    assert (gradient.abs().amax((0, 2)) > 0).all()
    direction = torch.randn_like(led_by)
    ends = [last(led_by.detach() + e * direction, is_differentiable=False) for e in (-1e-2, 1e-2)]
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[1] - ends[0]) / 2e-2, rel=0.05, abs=1e-3)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch says so of every RMSNorm
def test_half_precision_leaves_the_memory_in_single() -> None:
    model = make()
    x, tau = torch.randn(2, 6, 2, 8), torch.rand(2, 6)
    led_by = model.embed_actions(real_actions(2, 6, 3))
    exact = model(x, tau, tau, led_by)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x, tau, tau, led_by)
        context = model.prefill(x[0], real_actions(1, 6, 3))
    assert all(state.dtype == torch.float32 for state in context.states)
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_recomputed_activations_change_no_gradient() -> None:
    gradients: list[list[Tensor]] = []
    for recompute in (False, True):
        model = make()
        model.transformer.recompute = recompute
        latents, actions = torch.randn(3, 6, 2, 8, generator=torch.Generator().manual_seed(3)), real_actions(3, 6, 3)
        loss, _ = model.loss(latents, actions, torch.Generator().manual_seed(4))
        loss.backward()
        gates = model.transformer.stack[0].get_submodule("gates").get_parameter("weight")
        assert gates.grad is not None
        assert gates.grad.abs().max() > 0
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_sinks_and_unknown_mixers_are_refused() -> None:
    with pytest.raises(ValueError, match="sinks=2 are a part of attention; with mixer=gated_delta set sinks to 0"):
        make(sinks=2)
    with pytest.raises(ValueError, match=r"mixer='mamba'; expected 'attention' or 'gated_delta'"):
        make(mixer="mamba")


def test_it_learns_to_remember_what_attention_can_no_longer_see() -> None:
    """Frame 0 shows a sign, then come blank frames, and frame 5 shows the sign again; the window is 3 frames."""
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for mixer in ("gated_delta", "attention"):
        torch.manual_seed(0)
        transformer = TransformerConfig(width=32, depth=1, num_heads=2, hidden=32, mixer=mixer)
        config = PredictorConfig(kind="regression", transformer=transformer, window=3, noisy_context_fraction=0.0)
        model = LatentPredictor(config, num_tokens=1, token_width=2, action_size=1, code_size=1)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(120):
            sign = torch.randint(0, 2, (32, 1, 2), generator=generator) * 2.0 - 1
            latents = torch.zeros(32, 6, 1, 2)
            latents[:, 0] = latents[:, 5] = sign
            led_by = torch.zeros(32, 6, 32)
            past_tau, nothing = torch.ones(32, 6), torch.zeros(32, 6)
            found = model.predict_targets(latents, past_tau, torch.zeros_like(latents), nothing, past_tau, led_by)
            error = (found - latents)[:, 5].square().mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
        errors[mixer] = float(error.detach())
    assert errors["gated_delta"] < 0.1
    assert errors["attention"] > 0.7  # no better than not knowing


def test_a_batch_in_which_by_chance_no_sequence_trains_large_steps() -> None:
    """It comes once in ten thousand steps of 32 sequences, and let `einops` divide by zero."""
    model = make().train()
    model.config = replace(model.config, shortcut_fraction=1e-9)
    loss, _ = model.loss(torch.randn(4, 6, 2, 8), real_actions(4, 6, 3), torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite()
