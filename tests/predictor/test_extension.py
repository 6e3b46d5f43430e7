"""The quick way through the transformer equals the one for gradients and the uncached one; parts equal the whole."""

import threading

import pytest
import torch
from test_predictor import make_predictor, real_actions

from embodied_wm.predictor import parts, sampler
from embodied_wm.predictor.cache import Context
from embodied_wm.predictor.extension import Extension


def both_ways(
    context: Context, num_tokens: int, num_steps: int, *, window: int, sinks: int = 0, clean_pass: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Imagine quickly, and as gradients need it."""
    model = make_predictor(num_tokens, window, sinks, clean_pass=clean_pass)
    led_by, noise = model.embed_actions(real_actions(4, 6, 3)).detach(), torch.randn(4, 6, num_tokens, 8)
    quick, slow = (
        sampler.imagine(
            model, context, lambda h, _: led_by[:, h], noise, num_steps=num_steps, is_differentiable=is_differentiable
        ).detach()
        for is_differentiable in (False, True)
    )
    return quick, slow


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize(("window", "sinks"), [(16, 0), (16, 2), (4, 0), (4, 2), (2, 0)])
@pytest.mark.parametrize("clean_pass", [True, False])
def test_equals_the_way_for_gradients(
    num_steps: int, num_tokens: int, window: int, sinks: int, clean_pass: bool
) -> None:
    model = make_predictor(num_tokens, window=window, sinks=sinks, clean_pass=clean_pass)
    context = model.prefill(torch.randn(min(3, window - 1), num_tokens, 8), real_actions(1, 3, 3))
    quick, slow = both_ways(context, num_tokens, num_steps, window=window, sinks=sinks, clean_pass=clean_pass)
    assert (quick - slow).abs().max() <= 1e-5 * slow.abs().max()


def test_joined_contexts_are_each_read_by_their_own_candidates() -> None:
    model = make_predictor(window=4)
    contexts = [model.prefill(torch.randn(3, 2, 8), real_actions(1, 3, 3)) for _ in range(2)]
    quick, slow = both_ways(Context.join(contexts, num_candidates=2), 2, 1, window=4)
    assert (quick - slow).abs().max() <= 1e-5 * slow.abs().max()


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("clean_pass", [True, False])
def test_cached_equals_uncached_where_the_window_ends_in_imagination(num_steps: int, clean_pass: bool) -> None:
    model = make_predictor(window=5, clean_pass=clean_pass)
    latents, past = torch.randn(4, 2, 8), real_actions(1, 4, 3)
    led_by, noise = model.embed_actions(real_actions(3, 9, 3)), torch.randn(3, 9, 2, 8)
    before = model.shift(model.embed_actions(past))
    cached = sampler.imagine(model, model.prefill(latents, past), lambda h, _: led_by[:, h], noise, num_steps=num_steps)
    uncached = sampler.imagine_uncached(model, latents, before, led_by, noise, num_steps=num_steps)
    assert (cached - uncached).abs().max() <= 1e-4 * uncached.abs().max()


def test_scores_that_exp_could_not_bear_are_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_predictor()
    for layer in model.transformer.stack:
        for norm in (layer.q_norm, layer.k_norm):
            torch.nn.init.constant_(norm.weight, 8.0)
    context = model.prefill(torch.randn(3, 2, 8), real_actions(1, 3, 3))
    led_by, noise = model.embed_actions(real_actions(4, 5, 3)), torch.randn(4, 5, 2, 8)
    built: list[Extension] = []
    prepare = Extension.__init__

    def watch(self: Extension, *args: object, **kwargs: object) -> None:
        prepare(self, *args, **kwargs)  # type: ignore[arg-type]
        built.append(self)

    monkeypatch.setattr(Extension, "__init__", watch)
    quick = sampler.imagine(model, context, lambda h, _: led_by[:, h], noise)
    slow = sampler.imagine(model, context, lambda h, _: led_by[:, h], noise, is_differentiable=True).detach()
    assert [each.is_bounded for each in built] == [[False] * 3]
    assert (quick - slow).abs().max() <= 1e-4 * slow.abs().max()


def test_parts_cover_all_candidates_once_and_are_few_where_there_is_little_to_do() -> None:
    for candidates, new, threads in [(1, 4, 8), (128, 4, 1), (128, 4, 2), (1000, 10, 3), (7, 2000, 2)]:
        rows = parts.split(candidates, new, threads)
        assert [row for part in rows for row in range(part.start, part.stop)] == list(range(candidates))
    assert len(parts.split(16, 4, 2)) == 1
    assert len(parts.split(128, 4, 1)) == 1
    assert len(parts.split(128, 4, 2)) == 2
    assert len(parts.split(600, 4, 2)) == 4  # a multiple of the threads


def test_parts_give_what_the_whole_gives_and_leave_torch_its_threads() -> None:
    before = torch.get_num_threads()
    values = torch.randn(600, 3)
    seen: set[int] = set()

    def run(rows: slice) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return values[rows] * 2

    try:
        torch.set_num_threads(2)
        assert torch.equal(parts.in_parts(run, 600, 4), values * 2)
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (seen, torch.get_num_threads(), found) == ({1}, 2, [2])
    finally:
        torch.set_num_threads(before)


def test_small_work_leaves_torchs_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    with parts.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
