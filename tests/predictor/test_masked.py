"""Kind "masked": codes there and back, rounds that decide as much as they should, exact caching, coins that agree."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm.predictor import sampler
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.inputs import ABSENT, REAL, ActionInputs
from embodied_wm.predictor.masked import Codes, MaskedTokens, hide, num_undecided
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.transformer import TransformerConfig
from embodied_wm.tokenizer.bottleneck import BottleneckConfig
from embodied_wm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig
from embodied_wm.world_model import WorldModel

LEVELS = (8, 5, 3)


def make(levels: tuple[int, ...] = LEVELS, num_tokens: int = 6, width: int = 32) -> LatentPredictor:
    torch.manual_seed(0)
    transformer = TransformerConfig(width=width, depth=2, num_heads=2, hidden=2 * width)
    config = PredictorConfig(kind="masked", transformer=transformer, window=16)
    return LatentPredictor(
        config, num_tokens=num_tokens, token_width=len(levels), action_size=2, code_size=2, levels=levels
    )


def at_work(model: LatentPredictor) -> LatentPredictor:
    """Return the model with every weight at work, and tokens with statistics of their own."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert model.masked is not None
    model.masked.codes.fit(0.1 * torch.randn(model.num_tokens, model.token_width), torch.tensor([0.5, 0.6, 0.7]))
    return model.eval()


def some_latents(model: LatentPredictor, *shape: int) -> Tensor:
    assert model.masked is not None
    return model.masked.codes.latents(torch.randint(0, model.masked.codes.num_codes, (*shape, model.num_tokens)))


def real_actions(*shape: int) -> ActionInputs:
    return ActionInputs(torch.full(shape[:2], REAL), real=torch.randn(*shape))


def test_codes_go_there_and_back() -> None:
    codes = Codes(LEVELS, num_tokens=4)
    codes.fit(torch.randn(4, 3), torch.rand(3) + 0.5)
    every = torch.arange(codes.num_codes)[:, None].expand(-1, 4)
    latents = codes.latents(every)
    assert torch.equal(codes.indices(latents), every)
    assert torch.equal(codes.indices(latents + 0.02 * torch.randn_like(latents)), every)
    assert len(latents.flatten(1).unique(dim=0)) == codes.num_codes == 120


def test_codes_are_those_of_the_tokenizer() -> None:
    """FSQ's own numbering, through the tokenizer's own statistics."""
    torch.manual_seed(0)
    bottleneck = BottleneckConfig(kind="fsq", width=3, levels=LEVELS)
    config = FrameTokenizerConfig(image_size=(16, 16), channels=(8, 16), token_grid=(2, 2), bottleneck=bottleneck)
    tokenizer = FrameTokenizer(config).eval()
    frames = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8)
    tokenizer.fit_statistics(frames)
    cells = tokenizer._encode_cells(frames.permute(0, 3, 1, 2) / 127.5 - 1)
    indices = tokenizer.bottleneck(cells).indices
    codes = Codes(config.code_levels, num_tokens=4)
    codes.fit(tokenizer.latent_mean, tokenizer.latent_std)
    latents = tokenizer.encode(frames)
    assert indices is not None
    assert len(indices.unique()) > 5
    assert torch.equal(codes.indices(latents), indices.long())
    assert torch.allclose(codes.latents(codes.indices(latents)), latents, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
@pytest.mark.parametrize("num_context", [1, 4])
def test_cached_equals_uncached(num_steps: int, num_context: int) -> None:
    model = at_work(make())
    latents, past = some_latents(model, num_context), real_actions(1, num_context, 2)
    led_by = model.embed_actions(real_actions(5, 6, 2))
    noise = sampler.draw_noise(model, 5, 6, torch.Generator().manual_seed(0), shared=False)
    context = model.prefill(latents, past)
    cached = sampler.imagine(model, context, lambda h, _: led_by[:, h], noise, num_steps=num_steps)
    before = model.shift(model.embed_actions(past))
    uncached = sampler.imagine_uncached(model, latents, before, led_by, noise, num_steps=num_steps)
    assert model.masked is not None
    assert cached.shape == (5, 6, 6, 3)
    assert torch.equal(model.masked.codes.indices(cached), model.masked.codes.indices(uncached))
    assert torch.equal(cached, model.masked.codes.latents(model.masked.codes.indices(cached)))  # nothing but codes
    assert len(cached.flatten(2).unique(dim=0)) == 5
    alone = sampler.imagine(model, context, lambda h, _: led_by[2:3, h], noise[2:3], num_steps=num_steps)
    assert torch.equal(alone[0], cached[2])
    other = sampler.draw_noise(model, 5, 6, torch.Generator().manual_seed(1), shared=False)
    assert not torch.equal(cached, sampler.imagine(model, context, lambda h, _: led_by[:, h], other))


@torch.no_grad()
def test_codes_are_scored_without_later_frames_or_actions_and_without_the_frame_itself() -> None:
    """As context a frame is seen by later ones alone; of itself only what is decided of it is seen."""
    model = at_work(make())
    latents, tau, step = some_latents(model, 2, 6), torch.full((2, 6), 0.5), torch.full((2, 6), 0.25)
    led_by = model.shift(model.embed_actions(real_actions(2, 6, 2)))
    seen = {"past": latents, "target": hide(latents, tau, torch.Generator().manual_seed(0)), "action": led_by}

    def logits(past: Tensor, target: Tensor, action: Tensor) -> Tensor:
        assert model.masked is not None
        out, before, tau_before = model.see_targets(past, torch.ones_like(tau), target, tau, step, action)
        return model.masked.logits(model.norm(out), model.read(out, before, tau_before))

    first, differs = logits(**seen), {}
    for name, values in seen.items():
        changed = values.clone()
        changed[:, 3] += 1.0
        differs[name] = ((first - logits(**seen | {name: changed})).abs().amax((0, 2, 3)) > 0).tolist()
    itself = [False] * 3 + [True] + [False] * 2
    assert differs == {"past": [False] * 4 + [True] * 2, "target": itself, "action": [False] * 3 + [True] * 3}


def test_common_noise_leaves_differences_to_actions() -> None:
    model = at_work(make())
    context = model.prefill(some_latents(model, 2), real_actions(1, 2, 2))
    noise = sampler.draw_noise(model, 3, 4, torch.Generator().manual_seed(0), shared=True)
    led_by = model.embed_actions(real_actions(1, 4, 2)).expand(3, -1, -1)
    same = sampler.imagine(model, context, lambda h, _: led_by[:, h], noise, num_steps=2)
    assert torch.equal(same, same[:1].expand_as(same))


def test_rounds_decide_by_the_schedule_and_never_again() -> None:
    model = at_work(make(num_tokens=16))
    masked = model.masked
    assert masked is not None
    noise = torch.rand(7, 16, masked.noise_width)
    x_tau = model.start(noise)
    left = []
    for number in range(4):
        before = x_tau
        x_tau = masked.decide(torch.randn(7, 16, 120), x_tau, noise, number=number, num_rounds=4)
        decided = ~before.isnan()
        assert torch.equal(x_tau[decided], before[decided])
        left.append(x_tau.isnan().any(-1).sum(1).unique().tolist())
    assert left == [[14], [11], [6], [0]]  # floor(16 cos(pi/2 n/4))
    assert [num_undecided(done, 1) for done in (0.25, 0.5, 1.0)] == [0, 0, 0]


def test_codes_are_drawn_by_their_chances() -> None:
    masked = MaskedTokens((3, 3), num_tokens=2, width=8, max_rounds=1)
    logits = torch.randn(1, 2, 9).expand(20_000, -1, -1)
    noise = torch.rand(20_000, 2, 2, generator=torch.Generator().manual_seed(0))
    drawn = masked.codes.indices(masked.decide(logits, masked.nothing(noise), noise, number=0, num_rounds=1))
    for token in range(2):
        found = drawn[:, token].bincount(minlength=9) / 20_000
        assert torch.allclose(found, logits[0, token].softmax(0), atol=0.015)


def test_training_hides_what_sampling_has_yet_to_decide() -> None:
    latents, generator = torch.randn(8, 5, 16, 3), torch.Generator().manual_seed(0)
    for done in (0.0, 0.25, 0.5, 0.75, 1.0):
        hidden = hide(latents, torch.full((8, 5), done), generator).isnan()
        assert torch.equal(hidden.any(-1), hidden.all(-1))
        count = hidden[..., 0].sum(-1)
        assert (count == max(1, num_undecided(done, 16))).all()
    assert len(hide(latents, torch.full((8, 5), 0.5), generator).isnan()[..., 0].flatten(0, 1).unique(dim=0)) > 30


def test_at_the_start_the_frame_before_is_the_likeliest() -> None:
    model = make().eval()
    assert model.masked is not None
    scene = some_latents(model, 1)
    absent = ActionInputs(torch.full((1, 3), ABSENT))
    context = model.prefill(scene.expand(3, -1, -1), absent)
    noise = sampler.draw_noise(model, 400, 1, torch.Generator().manual_seed(0), shared=False)
    nothing = model.kinds[ABSENT].expand(400, -1)
    found = model.masked.codes.indices(sampler.imagine(model, context, lambda h, _: nothing, noise)[:, 0])
    assert torch.equal(found.mode(0).values, model.masked.codes.indices(scene)[0])


def test_several_rounds_let_tokens_agree_on_a_coin() -> None:
    """All four tokens turn to one code or all to another: one round mixes them, four do not; both see each half."""
    model = make(levels=(3,), num_tokens=4, width=24)
    masked = model.masked
    assert masked is not None
    optimiser, generator = torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    for step in range(120):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 120)
        coin = torch.randint(0, 2, (64, 1, 1), generator=generator).expand(-1, -1, 4) * 2
        indices = torch.cat([torch.ones(64, 1, 4, dtype=torch.long), coin], dim=1)
        loss, metrics = model.loss(masked.codes.latents(indices), absent(64, 2), generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert metrics["from_nothing"] == pytest.approx(math.log(2), abs=0.1)
    model.eval()
    context = model.prefill(torch.zeros(1, 4, 1), absent(1, 1))
    nothing = model.kinds[ABSENT].expand(400, -1)
    agree = {}
    for num_steps in (1, 4):
        noise = sampler.draw_noise(model, 400, 1, torch.Generator().manual_seed(1), shared=False)
        ends = sampler.imagine(model, context, lambda h, _: nothing, noise, num_steps=num_steps)[:, 0, :, 0]
        assert ends.abs().mean() > 0.97  # on either side, hardly ever between
        assert 0.4 < (ends > 0).float().mean() < 0.6
        agree[num_steps] = float((ends.mean(1).abs() > 0.9).float().mean())
    assert agree[1] == pytest.approx(1 / 8, abs=0.08)  # four coins
    assert agree[4] > 0.85


def absent(batch: int, time: int) -> ActionInputs:
    return ActionInputs(torch.full((batch, time), ABSENT))


def with_codes() -> WorldModel:
    torch.manual_seed(0)
    bottleneck = BottleneckConfig(kind="fsq", width=3, levels=LEVELS)
    config = replace(
        tiny.MODEL,
        tokenizer=replace(tiny.MODEL.tokenizer, bottleneck=bottleneck, token_grid=(2, 2), cells_per_token=(1, 1)),
        predictor=replace(tiny.MODEL.predictor, kind="masked"),
    )
    return WorldModel(config, tiny.make_model().embodiment).eval()


def test_a_world_model_of_codes_imagines_decodes_saves_and_loads(tmp_path: Path) -> None:
    model = with_codes()
    assert model.predictor.masked is not None
    model.predictor.masked.codes.fit(torch.randn(4, 3), torch.rand(3) + 0.5)
    model.save(tmp_path / "model")
    again = WorldModel.load(tmp_path / "model")
    size = tiny.MODEL.tokenizer.image_size
    frames = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8)
    context, actions = model.prefill(frames, torch.zeros(2, 2)), torch.rand(4, 3, 2)
    first, second = (
        each.imagine(context, actions, num_steps=2, generator=torch.Generator().manual_seed(5))
        for each in (model, again)
    )
    assert torch.equal(first, second)
    assert model.decode(first).shape == (4, 3, *size, 3)
    with pytest.raises(ValueError, match="kind 'masked' imagines codes, through which no gradient flows"):
        model.imagine(context, actions.requires_grad_(), generator=torch.Generator())


def test_tokens_that_are_no_codes_are_refused() -> None:
    config = replace(tiny.MODEL, predictor=replace(tiny.MODEL.predictor, kind="masked"))
    with pytest.raises(ValueError, match=r"no single FSQ codes. Set model.tokenizer.bottleneck.kind=fsq"):
        WorldModel(config, tiny.make_model().embodiment)
    with pytest.raises(ValueError, match=r"make 390,625 codes per token.*at most 65,536"):
        make(levels=(5,) * 8)
