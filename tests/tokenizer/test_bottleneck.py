"""What each bottleneck lets through, what it costs, and what it refuses."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from embodied_wm.tokenizer.bottleneck import BottleneckConfig, kl_to_standard_normal, make_bottleneck, sigreg
from embodied_wm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig


def test_sigreg_is_small_for_a_standard_normal_and_large_for_a_collapsed_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4096, 16, generator=generator)
    values = [
        float(sigreg(batch, num_projections=64, generator=generator))
        for batch in (normal, normal * 0.05, normal + 3, normal.sign() * 2)
    ]
    assert values[0] < 0.005
    assert min(values[1:]) > 10 * values[0]


@pytest.mark.parametrize("kind", ["continuous", "kl", "fsq", "lfq"])
def test_every_bottleneck_keeps_shape_and_passes_gradients(kind: str) -> None:
    levels = (5, 5, 5, 5) if kind == "fsq" else ()
    config = BottleneckConfig(kind=kind, width=4, levels=levels)
    encoded = torch.randn(6, 3, config.encoded_width, requires_grad=True)
    bottled = make_bottleneck(config)(encoded, torch.Generator().manual_seed(0))
    (bottled.latents.square().sum() + bottled.regulariser).backward()
    assert bottled.latents.shape == bottled.kept.shape == (6, 3, 4)
    assert encoded.grad is not None
    assert (encoded.grad.abs().sum((0, 1)) > 0).all()
    assert (bottled.indices is None) == (kind in ("continuous", "kl"))
    assert torch.equal(bottled.latents, bottled.kept) == (kind != "kl")


def test_kl_is_that_of_the_closed_form_and_of_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    posterior, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros(()), torch.ones(()))
    found = kl_to_standard_normal(mean, log_variance)
    assert torch.allclose(found, kl_divergence(posterior, prior))
    samples = posterior.mean + posterior.stddev * torch.randn(200_000, 7, 5, generator=generator, dtype=torch.float64)
    estimated = (posterior.log_prob(samples) - prior.log_prob(samples)).mean(0)
    assert torch.allclose(found, estimated, atol=0.03)
    assert float(kl_to_standard_normal(torch.zeros(3), torch.zeros(3)).abs().sum()) == 0.0


def test_a_posterior_is_sampled_in_training_and_its_mean_is_kept_elsewhere() -> None:
    bottleneck = make_bottleneck(BottleneckConfig(kind="kl", width=2, weight=0.5))
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.1, 3.0])
    encoded = torch.cat([mean, 2 * std.log()]).expand(50_000, -1)
    bottled = bottleneck(encoded, torch.Generator().manual_seed(0))
    assert torch.allclose(bottled.latents.mean(0), mean, atol=0.05)
    assert torch.allclose(bottled.latents.std(0), std, rtol=0.02)
    assert torch.equal(bottled.kept, encoded[:, :2])
    expected = 0.5 * kl_divergence(Normal(mean, std), Normal(torch.zeros(2), torch.ones(2))).mean()
    assert float(bottled.regulariser) == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(bottleneck(encoded).latents, encoded[:, :2])
    assert torch.equal(bottleneck.eval()(encoded, torch.Generator().manual_seed(0)).latents, encoded[:, :2])


def test_the_kl_alone_trains_a_posterior_to_the_standard_normal() -> None:
    bottleneck = make_bottleneck(BottleneckConfig(kind="kl", width=3, weight=1.0))
    encoded = torch.nn.Parameter(torch.tensor([2.0, -1.0, 0.5, -3.0, 1.0, 0.3]))
    optimiser = torch.optim.Adam([encoded], lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        bottleneck(encoded[None], torch.Generator().manual_seed(0)).regulariser.backward()
        optimiser.step()
    assert float(encoded.detach().abs().max()) < 0.02


def test_a_kl_tokenizer_encodes_means_and_learns() -> None:
    torch.manual_seed(0)
    config = FrameTokenizerConfig(
        image_size=(16, 16), channels=(8, 16), bottleneck=BottleneckConfig(kind="kl", width=8, weight=1e-4)
    )
    tokenizer = FrameTokenizer(config)
    frames = torch.zeros(4, 3, 16, 16, 3, dtype=torch.uint8)
    for index in range(4):
        frames[index, :, 3 * index : 3 * index + 4, 2:10] = 200
    optimiser = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    for step in range(300):
        loss, metrics = tokenizer.loss(frames, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert metrics["psnr"] > 22
    assert tokenizer.encode(frames).shape == (4, 3, 1, 8)
    assert torch.equal(tokenizer.encode(frames), tokenizer.encode(frames))  # no noise, though it still trains
    assert torch.equal(tokenizer.encode(frames), tokenizer.eval().encode(frames))


@pytest.mark.parametrize(("kind", "levels"), [("fsq", (8, 5, 5, 5)), ("lfq", ())])
def test_wide_cells_are_quantised_in_parts(kind: str, levels: tuple[int, ...]) -> None:
    wide = make_bottleneck(BottleneckConfig(kind=kind, width=16, levels=levels, codebooks=4)).eval()
    narrow = make_bottleneck(BottleneckConfig(kind=kind, width=4, levels=levels)).eval()
    encoded = 2 * torch.randn(5, 16)
    bottled = wide(encoded)
    assert torch.equal(bottled.latents.unflatten(-1, (4, 4)), narrow(encoded.unflatten(-1, (4, 4))).latents)
    assert bottled.indices is not None
    assert bottled.indices.shape == (5, 4)
    assert len(bottled.latents[:, -1].unique()) <= 5


def test_what_cannot_be_quantised_is_refused_with_what_can() -> None:
    with pytest.raises(ValueError, match="continuous, kl, fsq, lfq"):
        make_bottleneck(BottleneckConfig(kind="vq"))
    with pytest.raises(ValueError, match="levels"):
        make_bottleneck(BottleneckConfig(kind="fsq", width=3, levels=(5, 5)))
    with pytest.raises(ValueError, match="at least 3 levels"):
        make_bottleneck(BottleneckConfig(kind="fsq", width=2, levels=(2, 5)))
    with pytest.raises(ValueError, match="codebooks=3 must divide"):
        make_bottleneck(BottleneckConfig(kind="lfq", width=8, codebooks=3))
    with pytest.raises(ValueError, match="Raise codebooks=1"):
        make_bottleneck(BottleneckConfig(kind="lfq", width=32))
    with pytest.raises(ValueError, match="places have no variance"):
        FrameTokenizer(
            FrameTokenizerConfig(
                image_size=(16, 16), channels=(8, 16), keypoints=2, bottleneck=BottleneckConfig(kind="kl", width=4)
            )
        )
