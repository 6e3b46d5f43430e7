"""Variants behind the predictor's interface: regression, which blurs where a coin decides; sinks; guidance."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from embodied_wm.predictor import sampler
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.inputs import ABSENT, ActionInputs
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.transformer import TransformerConfig

Kind = Literal["flow", "regression"]


def make(kind: Kind, width: int = 48) -> LatentPredictor:
    torch.manual_seed(0)
    config = PredictorConfig(
        kind=kind, transformer=TransformerConfig(width=width, depth=2, num_heads=2, hidden=2 * width), window=4
    )
    return LatentPredictor(config, num_tokens=1, token_width=4, action_size=1, code_size=1)


def absent(batch: int, time: int) -> ActionInputs:
    return ActionInputs(torch.full((batch, time), ABSENT))


def train(model: LatentPredictor, num_steps: int, futures: Tensor, chances: list[float]) -> LatentPredictor:
    """Train on windows [0, future]: which of the futures [N, 4] follows is drawn, and nothing tells which."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(num_steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / num_steps)
        drawn = torch.multinomial(torch.tensor(chances), 64, replacement=True, generator=generator)
        latents = torch.stack([torch.zeros(64, 1, 4), futures[drawn][:, None]], dim=1)
        loss, _ = model.loss(latents, absent(64, 2), generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def samples(model: LatentPredictor, count: int = 256, num_steps: int = 1) -> Tensor:
    """Return imagined latents [count, 4] of the one frame that follows."""
    context = model.prefill(torch.zeros(1, 1, 4), absent(1, 1))
    nothing = model.kinds[ABSENT].expand(count, -1)
    noise = sampler.draw_noise(model, count, 1, torch.Generator().manual_seed(1), shared=False)
    return sampler.imagine(model, context, lambda h, _: nothing, noise, num_steps=num_steps)[:, 0, 0]


def test_regression_has_one_answer_one_step_and_no_noise() -> None:
    model = make("regression")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    found = samples(model)
    assert torch.equal(found, found[:1].expand(256, -1))
    assert (model.step_counts, make("flow").step_counts) == ([1], [1, 2, 4])
    with pytest.raises(ValueError, match=r"num_steps=2.*this model was trained for \[1\]"):
        samples(model, num_steps=2)
    with pytest.raises(ValueError, match=r"predictor.kind='gan'; expected 'flow', 'regression' or 'masked'"):
        make("gan")  # type: ignore[arg-type]


def test_regression_learns_the_mean_of_what_can_follow() -> None:
    """Two futures with chances 3/4 and 1/4: squared error is least at their weighted mean, whatever the modes."""
    futures = torch.tensor([[1.0, 0.0, -1.0, 0.5], [-1.0, 1.0, 0.0, 0.5]])
    found = samples(train(make("regression", width=16), 300, futures, [0.75, 0.25]), count=1)[0]
    assert torch.allclose(found, torch.tensor([0.5, 0.25, -0.75, 0.5]), atol=0.12)
    assert float((found - futures).norm(dim=1).min()) > 0.5


@pytest.mark.slow
def test_diffusion_keeps_two_futures_apart_where_regression_blurs() -> None:
    """The next latent is +1 or -1 by a hidden coin: no sample of regression is near either, most of diffusion's are."""
    futures, coin = torch.tensor([[1.0], [-1.0]]).expand(2, 4), [0.5, 0.5]
    flow, regression = (train(make(kind), 1200, futures, coin) for kind in ("flow", "regression"))
    ends = samples(flow, num_steps=4).mean(1)
    assert 0.25 < (ends > 0).float().mean() < 0.75
    assert (ends.abs() > 0.6).float().mean() > 0.65
    assert samples(regression).abs().max() < 0.25
    distances = [
        (samples(model, num_steps=n)[:, None] - futures).norm(dim=2).amin(1).mean()
        for model, n in ((flow, 4), (regression, 1))
    ]
    assert distances[0] < 0.5 * distances[1]  # of a sample to the nearest thing that can happen; blurring: sqrt(4)
    assert float(distances[1]) == pytest.approx(2.0, abs=0.4)
    tau, finest = torch.tensor([[1.0, 0.0]]), torch.full((1, 2), 0.25)
    noise = sampler.draw_noise(flow, 256, 1, torch.Generator().manual_seed(2), shared=False)
    window = torch.cat([torch.zeros(256, 1, 1, 4), noise], dim=1)
    nothing = flow.kinds[ABSENT].expand(256, 2, -1)
    with torch.no_grad():
        mean = flow(window, tau.expand(256, -1), finest.expand(256, -1), nothing)[:, 1]
    assert float(mean.mean((1, 2)).abs().mean()) < 0.25  # the flow's own first step, asked for the mean, blurs too
