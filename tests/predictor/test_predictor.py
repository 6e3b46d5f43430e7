"""Cache, causality, seeds and step counts of the predictor and its sampler."""

from typing import Any

import pytest
import torch

from embodied_wm.predictor import sampler
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.inputs import ABSENT, LATENT, REAL, ActionInputs
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.transformer import TransformerConfig


def make_predictor(
    num_tokens: int = 2, window: int = 16, sinks: int = 0, *, mixer: str = "attention", **changes: Any
) -> LatentPredictor:
    """Return a predictor with every weight at work; `changes` are other options of its configuration."""
    torch.manual_seed(0)
    transformer = TransformerConfig(width=32, depth=3, num_heads=2, hidden=48, sinks=sinks, mixer=mixer)  # type: ignore[arg-type]
    config = PredictorConfig(transformer=transformer, window=window, **changes)
    model = LatentPredictor(config, num_tokens=num_tokens, token_width=8, action_size=3, code_size=2, levels=(3,) * 8)
    for parameter in model.parameters():  # no zero initialisation: every path must matter
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    if config.shrinkage:
        model.fit_change(torch.randn(8, 6, num_tokens, 8))
    return model.eval()


def real_actions(*shape: int) -> ActionInputs:
    return ActionInputs(
        torch.full(shape[:2], REAL), real=torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    )


@pytest.mark.parametrize(("kind", "num_steps"), [("flow", 1), ("flow", 2), ("flow", 4), ("regression", 1)])
@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("num_context", [1, 4])
@pytest.mark.parametrize("action_token", [True, False])
@pytest.mark.parametrize("clean_pass", [True, False])
def test_cached_equals_uncached(
    kind: str, num_steps: int, num_tokens: int, num_context: int, action_token: bool, clean_pass: bool
) -> None:
    model = make_predictor(num_tokens, kind=kind, action_token=action_token, clean_pass=clean_pass)
    latents = torch.randn(num_context, num_tokens, 8)
    past = real_actions(1, num_context, 3)
    led_by = model.embed_actions(real_actions(5, 6, 3))
    noise = sampler.draw_noise(model, 5, 6, torch.Generator().manual_seed(0), shared=False)
    context_led_by = model.shift(model.embed_actions(past))
    cached = sampler.imagine(model, model.prefill(latents, past), lambda h, _: led_by[:, h], noise, num_steps=num_steps)
    uncached = sampler.imagine_uncached(model, latents, context_led_by, led_by, noise, num_steps=num_steps)
    assert (cached - uncached).abs().max() <= 1e-4 * uncached.abs().max()


@pytest.mark.parametrize("num_steps", [1, 4])
def test_sinks_are_seen_by_all_from_everywhere(num_steps: int) -> None:
    """They are no tokens: they take no place in the context, and later frames see them as the first ones do."""
    model = make_predictor(sinks=2)
    latents, past = torch.randn(4, 2, 8), real_actions(1, 4, 3)
    led_by = model.embed_actions(real_actions(5, 6, 3))
    noise = torch.randn(5, 6, 2, 8)
    context = model.prefill(latents, past)
    cached = sampler.imagine(model, context, lambda h, _: led_by[:, h], noise, num_steps=num_steps)
    before = model.shift(model.embed_actions(past))
    uncached = sampler.imagine_uncached(model, latents, before, led_by, noise, num_steps=num_steps)
    assert (cached - uncached).abs().max() <= 1e-4 * uncached.abs().max()
    assert context.num_bytes == make_predictor().prefill(latents, past).num_bytes
    for layer in model.transformer.stack:
        assert layer.sinks is not None
        torch.nn.init.zeros_(layer.sinks)
    other = sampler.imagine(model, context, lambda h, _: led_by[:, h], noise, num_steps=num_steps)
    assert ((cached - other).abs().amax((2, 3)) > 1e-4).all()  # also the last frames


def test_future_frames_and_actions_leave_the_past_unchanged() -> None:
    model = make_predictor()
    x, tau = torch.randn(2, 6, 2, 8), torch.rand(2, 6)
    led_by = model.embed_actions(real_actions(2, 6, 3))
    before = model(x, tau, torch.ones_like(tau), led_by)
    changed_x, changed_led_by = x.clone(), led_by.clone()
    changed_x[:, 4:] += 1.0
    changed_led_by[:, 4:] += 1.0
    after = model(changed_x, tau, torch.ones_like(tau), changed_led_by)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_without_a_clean_pass_targets_are_told_the_past_and_see_no_future() -> None:
    """What stands for a frame as context is the target before it: its noise is seen, later frames are not."""
    model = make_predictor(clean_pass=False)
    latents, noise, levels = torch.randn(1, 6, 2, 8), torch.randn(1, 6, 2, 8), torch.full((1, 6), 0.5)
    led_by = model.shift(model.embed_actions(real_actions(1, 6, 3)))
    first = model.predict_targets(latents, levels, noise, levels, levels, led_by)
    changes = {}
    for name, frames in {"past": (latents.clone(), noise), "noise": (latents, noise.clone())}.items():
        frames[name == "noise"][:, 3] += 1.0
        second = model.predict_targets(frames[0], levels, frames[1], levels, levels, led_by)
        changes[name] = ((first - second).abs().amax(dim=(0, 2, 3)) > 0).tolist()
    assert changes == {"past": [False] * 4 + [True] * 2, "noise": [False] * 3 + [True] * 3}


@pytest.mark.parametrize(
    ("other", "message"), [({"joint_actions": True}, "joint_actions=True"), ({"kind": "masked"}, "masked")]
)
def test_what_needs_a_clean_pass_says_so(other: dict[str, object], message: str) -> None:
    config = PredictorConfig(clean_pass=False, **other)  # pyright: ignore[reportArgumentType] (as configurations do)
    with pytest.raises(ValueError, match=message):
        LatentPredictor(config, num_tokens=1, token_width=2, action_size=1, code_size=1, levels=(3, 3))


@pytest.mark.parametrize("action_token", [True, False])
def test_the_action_that_leads_to_a_frame_changes_it(action_token: bool) -> None:
    """Row convention: action t must first change frame t + 1, not frame t."""
    model = make_predictor(action_token=action_token)
    x, tau = torch.randn(1, 5, 2, 8), torch.rand(1, 5)
    actions = real_actions(1, 5, 3)
    assert actions.real is not None
    changed = actions.real.clone()
    changed[:, 2] += 1.0
    other = ActionInputs(actions.kind, real=changed)
    first, second = (model(x, tau, tau, model.shift(model.embed_actions(each))) for each in (actions, other))
    differs = (first - second).abs().amax(dim=(0, 2, 3)) > 0
    assert differs.tolist() == [False, False, False, True, True]


def test_window_bounds_what_attention_reaches() -> None:
    model = make_predictor(window=3)
    x, tau = torch.randn(1, 6, 2, 8), torch.rand(1, 6)
    led_by = model.embed_actions(real_actions(1, 6, 3))
    model.transformer.layers = model.transformer.layers[:1]  # one layer: three frames, each told of the two before it
    before = model(x, tau, tau, led_by)
    x[:, 0] += 1.0
    after = model(x, tau, tau, led_by)
    assert torch.equal(before[:, 5:], after[:, 5:])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_the_change_so_far_is_told_in_its_own_unit() -> None:
    """Latents that all change twice as much, with the unit fitted anew, give the same inputs of change."""
    model = make_predictor()
    latents = torch.randn(4, 6, 2, 8).cumsum(1)
    model.fit_change(latents)
    first = float(model.change_std)
    model.fit_change(2 * latents)
    assert float(model.change_std) == pytest.approx(2 * first)
    assert first == pytest.approx(1.0, abs=0.2)
    x, tau = latents[:1], torch.ones(1, 6)
    led_by = model.embed_actions(real_actions(1, 6, 3))
    before = model(x, tau, tau, led_by)
    model.change_std.fill_(1e9)  # as good as not told
    after = model(x, tau, tau, led_by)
    assert torch.allclose(before[:, :2], after[:, :2])  # two frames are needed for a change
    assert not torch.allclose(before[:, 2], after[:, 2])


@pytest.mark.parametrize("clean_pass", [True, False])
def test_a_resting_scene_neither_grows_nor_fades_in_imagination(clean_pass: bool) -> None:
    """What is told about imagined frames must be true of them: a scale that is wrong by 3% compounds to 40% here."""
    torch.manual_seed(0)
    transformer = TransformerConfig(width=32, depth=1, num_heads=2, hidden=48)
    config = PredictorConfig(transformer=transformer, clean_pass=clean_pass)
    model = LatentPredictor(config, num_tokens=1, token_width=4, action_size=1, code_size=1)
    absent = ActionInputs(torch.full((32, 6), ABSENT))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        scenes = torch.randn(32, 1, 1, 4, generator=generator).expand(-1, 6, -1, -1)
        loss, _ = model.loss(scenes, absent, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    scenes = torch.randn(64, 1, 1, 4, generator=generator)
    nothing = model.kinds[ABSENT].expand(1, -1)
    ends = []
    for scene in scenes:
        context = model.prefill(scene.expand(3, -1, -1), ActionInputs(torch.full((1, 3), ABSENT)))
        noise = torch.randn(1, 12, 1, 4, generator=generator)
        ends.append(sampler.imagine(model, context, lambda h, _: nothing, noise)[0, -1])
    start, end = scenes.flatten(), torch.stack(ends).flatten()
    assert float(start @ end / (start @ start)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"clean_pass": False},
        {"kind": "regression"},
        {"kind": "regression", "clean_pass": False},
        {"joint_actions": True},
        {"shrinkage": 0.3, "fourier_features": 8},
    ],
    ids=str,
)
def test_candidates_do_not_influence_each_other(variant: dict[str, Any]) -> None:
    """Alone, beside a few, or beside many: the same is imagined."""
    model = make_predictor(**variant)
    context = model.prefill(torch.randn(3, 2, 8), real_actions(1, 3, 3))
    led_by = model.embed_actions(real_actions(40, 5, 3))
    noise = sampler.draw_noise(model, 40, 5, torch.Generator().manual_seed(0), shared=False)

    def imagine(rows: list[int]) -> torch.Tensor:
        return sampler.imagine(model, context, lambda h, _: led_by[rows, h], noise[rows])

    alone = imagine([2])
    for rows in ([30, 2, 33], list(range(40))):
        together = imagine(rows)
        assert torch.allclose(together[rows.index(2)], alone[0], atol=1e-5)
        assert not torch.allclose(together[0], alone[0], atol=0.1)


def test_context_memory_does_not_grow_with_candidates() -> None:
    model = make_predictor()
    context = model.prefill(torch.randn(4, 2, 8), real_actions(1, 4, 3))
    assert context.num_bytes == 2 * 3 * 4 * 3 * 32 * 4  # keys and values x layers x frames x tokens x width x bytes


def test_long_context_is_cut_to_the_window_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = make_predictor(window=4)
    latents = torch.randn(9, 2, 8)
    actions = real_actions(1, 9, 3)
    short = ActionInputs(actions.kind[:, -3:], real=actions.real[:, -3:])  # type: ignore[index]
    context = model.prefill(latents, actions)
    assert context.num_frames == 3
    assert torch.equal(context.last_latents, latents[-1])
    assert not torch.equal(context.keys[0], model.prefill(latents[-3:], short).keys[0])  # the action before is known
    model.prefill(latents, actions)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "a context of 9 frames is longer than the window of 4: only its last 3 frames are seen (told once)"


@pytest.mark.parametrize("num_steps", [0, 3, 8])
def test_untrained_step_counts_are_refused_with_the_valid_ones(num_steps: int) -> None:
    model = make_predictor()
    context = model.prefill(torch.randn(1, 2, 8), real_actions(1, 1, 3))
    with pytest.raises(ValueError, match=r"\[1, 2, 4\]"):
        sampler.imagine(model, context, lambda h, _: torch.zeros(1, 32), torch.randn(1, 1, 2, 8), num_steps=num_steps)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"clean_pass": False},
        {"kind": "regression"},
        {"kind": "masked"},
        {"joint_actions": True},
        {"mixer": "gated_delta"},
    ],
    ids=str,
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_empty_and_broken_contexts_are_refused(variant: dict[str, Any], bad: float) -> None:
    model, latents = make_predictor(**variant), torch.randn(3, 2, 8)
    with pytest.raises(ValueError, match="0 frames"):
        model.prefill(latents[:0], real_actions(1, 1, 3))
    for place in ((0, 0, 0), (2, 1, 7)):
        broken = latents.clone()
        broken[place] = bad
        with pytest.raises(ValueError, match="seen frames' latents hold NaN or infinity"):
            model.prefill(broken, real_actions(1, 3, 3))


def test_action_kinds_embed_differently() -> None:
    model = make_predictor()
    kind = torch.tensor([[REAL, LATENT, ABSENT]])
    tokens = model.embed_actions(ActionInputs(kind, real=torch.ones(1, 3, 3), codes=torch.ones(1, 3, 2)))
    moved = model.embed_actions(ActionInputs(kind, real=2 * torch.ones(1, 3, 3), codes=torch.ones(1, 3, 2)))
    assert (tokens != moved).any(-1).tolist() == [[True, False, False]]
