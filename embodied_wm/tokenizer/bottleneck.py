"""Bottlenecks between an encoder and a decoder: continuous (SIGReg), KL, FSQ and LFQ behind one interface.

Each maps encoder outputs [..., E] to a `Bottled` of latents [..., D]; E is D, or 2 D for "kl", which wants a mean and a
log variance. The quantisers are those of `vector-quantize-pytorch`. SIGReg is the sketched isotropic Gaussian
regulariser of LeJEPA (arXiv 2511.08544): random one-dimensional projections of the batch are pushed towards N(0, 1) by
the Epps-Pulley statistic. "kl" is the Gaussian posterior of a variational autoencoder (arXiv 1312.6114).
"""

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, LFQ

LOG_VARIANCES = (-30.0, 20.0)
"""Bounds that keep the variance of a posterior a finite number above zero."""

MAX_CODES = 2**18
"""Most codes of one codebook: the quantisers hold them all, and LFQ compares each latent with each."""


@dataclass(frozen=True)
class Bottled:
    """Hold what left a bottleneck.

    Attributes:
        latents: What the decoder gets, [..., D].
        regulariser: Weighted penalty, a scalar.
        indices: Code indices [...] if discrete, or [..., codebooks] of several codebooks.
        kept: What `FrameTokenizer.encode` keeps, [..., D]: the latents without the noise of a sampled posterior.
    """

    latents: Float[Tensor, "*batch width"]
    regulariser: Float[Tensor, ""]
    indices: Int[Tensor, "..."] | None
    kept: Float[Tensor, "*batch width"]


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig:
    """Choose a bottleneck.

    Attributes:
        kind: "continuous", "kl", "fsq" or "lfq".
        width: Channels per cell; for "fsq" it must equal the number of levels times the number of codebooks.
        levels: Levels per channel of one codebook, for "fsq" only.
        codebooks: Parts that the channels of a cell are quantised in, for "fsq" and "lfq"; a codebook of many channels
            holds too many codes to number.
        weight: Weight of the regulariser (SIGReg for "continuous", nats per channel for "kl", entropy and commitment
            for "lfq"). A pixel weighs 1 / 12,288 in a 64x64 frame's squared error, so "kl" wants some 1e-4.
        num_projections: Random directions per step, for SIGReg.
    """

    kind: str = "continuous"
    width: int = 32
    levels: tuple[int, ...] = ()
    codebooks: int = 1
    weight: float = 0.05
    num_projections: int = 128

    @property
    def encoded_width(self) -> int:
        """Return E, the channels per cell that the encoder gives to the bottleneck."""
        return 2 * self.width if self.kind == "kl" else self.width


def sigreg(
    latents_ND: Float[Tensor, "batch width"], *, num_projections: int, generator: torch.Generator | None
) -> Float[Tensor, ""]:
    """Measure how far a batch is from N(0, I): Epps-Pulley statistic over random directions (LeJEPA, eq. 7).

    Args:
        latents_ND: One row per sample.
        num_projections: Number of random unit directions.
        generator: Source of the directions.

    Returns:
        The mean over directions of the weighted squared distance of characteristic functions; 0 for a perfect match.
    """
    width = latents_ND.shape[1]
    directions = torch.randn(width, num_projections, generator=generator).to(latents_ND.device)
    directions = directions / directions.norm(dim=0, keepdim=True)
    knots = torch.linspace(0.2, 4.0, 17, device=latents_ND.device)
    phase = (latents_ND @ directions)[..., None] * knots
    target = torch.exp(-0.5 * knots**2)
    distance = (phase.cos().mean(0) - target) ** 2 + phase.sin().mean(0) ** 2
    return (distance * target).sum(-1).mean() * (knots[1] - knots[0]) * 2


class Continuous(nn.Module):
    """Pass latents through and regularise them towards N(0, I)."""

    def __init__(self, config: BottleneckConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, latents: Float[Tensor, "*batch width"], generator: torch.Generator | None = None) -> Bottled:
        """Return the latents unchanged, with SIGReg over all leading dimensions as the regulariser."""
        flat = latents.reshape(-1, latents.shape[-1])
        if not self.training or self.config.weight == 0:
            return Bottled(latents, latents.new_zeros(()), None, latents)
        penalty = sigreg(flat, num_projections=self.config.num_projections, generator=generator)
        return Bottled(latents, self.config.weight * penalty, None, latents)


def kl_to_standard_normal(
    mean: Float[Tensor, "*batch width"], log_variance: Float[Tensor, "*batch width"]
) -> Float[Tensor, "*batch width"]:
    """Return the KL divergence of N(mean, exp(log_variance)) from N(0, 1), in nats, of each channel."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


class GaussianPosterior(nn.Module):
    """Sample latents from a Gaussian in training, keep its mean elsewhere, and pull it towards N(0, I)."""

    def __init__(self, config: BottleneckConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, latents: Float[Tensor, "*batch encoded"], generator: torch.Generator | None = None) -> Bottled:
        """Return a sample of each posterior where this module trains and there is a generator; else its mean.

        Args:
            latents: Means, then log variances, on the last axis.
            generator: CPU source of the sample.
        """
        mean, log_variance = latents.chunk(2, dim=-1)
        log_variance = log_variance.clamp(*LOG_VARIANCES)
        penalty = self.config.weight * kl_to_standard_normal(mean, log_variance).mean()
        if not self.training or generator is None:
            return Bottled(mean, penalty, None, mean)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        return Bottled(mean + (0.5 * log_variance).exp() * noise, penalty, None, mean)


class Quantised(nn.Module):
    """Round latents to a finite set of codes, with a straight-through gradient."""

    def __init__(self, config: BottleneckConfig) -> None:
        super().__init__()
        self.config = config
        count = config.codebooks
        if count < 1 or config.width % count:
            raise ValueError(f"codebooks={count} must divide width={config.width} into equal parts of channels")
        if config.kind == "fsq" and len(config.levels) * count != config.width:
            raise ValueError(
                f"FSQ has one level count per channel: got width={config.width}, codebooks={count} and "
                f"levels={config.levels}. Set width={len(config.levels) * count} or give {config.width // count} "
                "levels."
            )
        if config.kind == "fsq" and min(config.levels) < 3:
            raise ValueError(f"levels={config.levels}: FSQ rounds to at least 3 levels in every channel")
        num_codes = prod(config.levels) if config.kind == "fsq" else 2 ** (config.width // count)
        if num_codes > MAX_CODES:
            raise ValueError(
                f"{config.kind} of {config.width // count} channels has a codebook of {num_codes} codes; at most "
                f"{MAX_CODES} can be numbered. Raise codebooks={count}, so that each has fewer channels."
            )
        if config.kind == "fsq":
            self.quantiser = FSQ(levels=list(config.levels), num_codebooks=count)
        else:
            self.quantiser = LFQ(dim=config.width, codebook_size=num_codes, num_codebooks=count)

    def forward(self, latents: Float[Tensor, "*batch width"], generator: torch.Generator | None = None) -> Bottled:
        """Return quantised latents in [-1, 1] and their code indices."""
        flat = latents.reshape(1, -1, latents.shape[-1])
        if isinstance(self.quantiser, FSQ):
            quantised, indices = self.quantiser(flat)
            penalty = latents.new_zeros(())
        else:
            quantised, indices, penalty = self.quantiser(flat)
            penalty = self.config.weight * penalty
        codes = quantised.reshape(latents.shape)
        parts = () if self.config.codebooks == 1 else (self.config.codebooks,)
        return Bottled(codes, penalty, indices.reshape(*latents.shape[:-1], *parts), codes)


def make_bottleneck(config: BottleneckConfig) -> Continuous | GaussianPosterior | Quantised:
    """Build the bottleneck that a configuration names.

    Raises:
        ValueError: If the kind is unknown.
    """
    if config.kind == "continuous":
        return Continuous(config)
    if config.kind == "kl":
        return GaussianPosterior(config)
    if config.kind in ("fsq", "lfq"):
        return Quantised(config)
    raise ValueError(f"unknown bottleneck {config.kind!r}; choose one of: continuous, kl, fsq, lfq")
