"""Bottlenecks between an encoder and a decoder: continuous (SIGReg), FSQ and LFQ behind one interface.

Each maps encoder outputs of shape [..., D] to a `Bottled` of the same shape. The quantisers are those of
`vector-quantize-pytorch`. SIGReg is the sketched isotropic Gaussian regulariser of LeJEPA (arXiv 2511.08544): random
one-dimensional projections of the batch are pushed towards N(0, 1) by the Epps-Pulley statistic.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, LFQ


@dataclass(frozen=True)
class Bottled:
    """Hold what left a bottleneck: latents [..., D], a scalar regulariser, code indices [...] if discrete."""

    latents: Float[Tensor, "*batch width"]
    regulariser: Float[Tensor, ""]
    indices: Int[Tensor, "*batch"] | None


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig:
    """Choose a bottleneck.

    Attributes:
        kind: "continuous", "fsq" or "lfq".
        width: Channels per cell; for "fsq" it must equal the number of levels.
        levels: Levels per channel, for "fsq" only.
        weight: Weight of the regulariser (SIGReg for "continuous", entropy and commitment for "lfq").
        num_projections: Random directions per step, for SIGReg.
    """

    kind: str = "continuous"
    width: int = 32
    levels: tuple[int, ...] = ()
    weight: float = 0.05
    num_projections: int = 128


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
            return Bottled(latents, latents.new_zeros(()), None)
        penalty = sigreg(flat, num_projections=self.config.num_projections, generator=generator)
        return Bottled(latents, self.config.weight * penalty, None)


class Quantised(nn.Module):
    """Round latents to a finite set of codes, with a straight-through gradient."""

    def __init__(self, config: BottleneckConfig) -> None:
        super().__init__()
        self.config = config
        if config.kind == "fsq":
            if len(config.levels) != config.width:
                raise ValueError(
                    f"FSQ has one level count per channel: got width={config.width} and levels={config.levels}. "
                    f"Set width={len(config.levels)} or give {config.width} levels."
                )
            self.quantiser = FSQ(levels=list(config.levels))
        else:
            self.quantiser = LFQ(dim=config.width, codebook_size=2**config.width)

    def forward(self, latents: Float[Tensor, "*batch width"], generator: torch.Generator | None = None) -> Bottled:
        """Return quantised latents in [-1, 1] and their code indices."""
        flat = latents.reshape(1, -1, latents.shape[-1])
        if isinstance(self.quantiser, FSQ):
            quantised, indices = self.quantiser(flat)
            penalty = latents.new_zeros(())
        else:
            quantised, indices, penalty = self.quantiser(flat)
            penalty = self.config.weight * penalty
        return Bottled(quantised.reshape(latents.shape), penalty, indices.reshape(latents.shape[:-1]))


def make_bottleneck(config: BottleneckConfig) -> Continuous | Quantised:
    """Build the bottleneck that a configuration names.

    Raises:
        ValueError: If the kind is unknown.
    """
    if config.kind == "continuous":
        return Continuous(config)
    if config.kind in ("fsq", "lfq"):
        return Quantised(config)
    raise ValueError(f"unknown bottleneck {config.kind!r}; choose one of: continuous, fsq, lfq")
