"""int8 products are as exact as rounding allows, imagination changes little by them, new weights are rounded anew."""

import pytest
import torch
from test_predictor import make_predictor, real_actions

from embodied_wm.predictor import sampler
from embodied_wm.predictor.int8 import LEVELS, int8_weight, set_precision
from embodied_wm.predictor.model import LatentPredictor


def test_whole_numbers_are_multiplied_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-LEVELS, LEVELS + 1, (2, 5, 24), generator=generator).float()
    weight = torch.randint(-LEVELS, LEVELS + 1, (16, 24), generator=generator).float()
    x[..., 0], weight[:, 0] = LEVELS, LEVELS  # so that all scales are 1
    assert torch.equal(int8_weight(weight)(x), x @ weight.T)


def test_other_numbers_are_off_by_no_more_than_rounding_makes_them() -> None:
    x, weight = torch.randn(50, 64) * torch.logspace(-6, 6, 50)[:, None], torch.randn(32, 64)
    step_x, step_w = (each.abs().amax(1) / LEVELS for each in (x, weight))
    exact = x.double() @ weight.T.double()
    bound = step_x[:, None] / 2 * weight.abs().sum(1) + step_w / 2 * x.abs().sum(1, keepdim=True)
    bound += step_x[:, None] * step_w * 64 / 4
    found = int8_weight(weight)(x)
    assert ((found - exact).abs() <= 1.001 * bound).all()
    assert ((found - exact).norm(dim=1) <= 0.02 * exact.norm(dim=1)).all()


def test_zeros_stay_zeros_and_what_is_not_finite_stays_so() -> None:
    x = torch.randn(4, 8)
    x[1] = 0
    x[2, 3], x[3, 3] = torch.nan, torch.inf
    weight = torch.randn(6, 8)
    weight[5] = 0
    made = int8_weight(weight)(x)
    assert torch.equal(made[1], torch.zeros(6))
    assert torch.equal(made[:2, 5], torch.zeros(2))
    assert made[:2].isfinite().all()
    assert not made[2:].isfinite().any()


def imagined(model: LatentPredictor, *, is_differentiable: bool = False) -> torch.Tensor:
    """Imagine with the same context, actions and noise each time."""
    generator = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(shape, generator=generator) for shape in ((3, 2, 8), (4, 6, 2, 8)))
    with torch.no_grad():
        context = model.prefill(latents, real_actions(1, 3, 3))
        led_by = model.embed_actions(real_actions(4, 6, 3))
    return sampler.imagine(
        model, context, lambda h, _: led_by[:, h], noise, is_differentiable=is_differentiable
    ).detach()


@pytest.mark.parametrize("clean_pass", [True, False])
def test_imagination_changes_by_little_and_only_where_no_gradient_flows(clean_pass: bool) -> None:
    model = make_predictor(2, 16, clean_pass=clean_pass)
    exact, followed = imagined(model), imagined(model, is_differentiable=True)
    set_precision(model.transformer, "int8")
    rounded = imagined(model)
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()
    assert torch.equal(imagined(model), rounded)
    assert torch.equal(imagined(model, is_differentiable=True), followed)
    set_precision(model.transformer, "fp32")
    assert torch.equal(imagined(model), exact)


def test_weights_that_change_are_rounded_anew() -> None:
    model, other = make_predictor(2, 16), make_predictor(2, 16)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    for each in (model, other):
        set_precision(each.transformer, "int8")
    before, expected = imagined(model), imagined(other)
    assert not torch.equal(before, expected)
    model.load_state_dict(other.state_dict())
    assert torch.equal(imagined(model), expected)


def test_what_has_no_int8_is_refused() -> None:
    with pytest.raises(ValueError, match="precision=int4: expected one of fp32, int8"):
        set_precision(make_predictor().transformer, "int4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"precision=int8: models of mixer=gated_delta imagine in fp32 alone"):
        set_precision(make_predictor(mixer="gated_delta").transformer, "int8")
    with torch.device("meta"), pytest.raises(ValueError, match="the model is on meta; use device=cpu"):
        set_precision(make_predictor().transformer, "int8")
