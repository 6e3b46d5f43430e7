"""Masked tokens: a frame as codes that are decided in a few parallel rounds (MaskGIT, arXiv 2202.04200).

Where the tokenizer's bottleneck is FSQ, a latent token is one of finitely many codes. In training a random share of a
frame's tokens is hidden, and the network says how likely each code is for each of them, given the others, the frames
before and the action (cross-entropy). Imagination starts from a frame of which nothing is decided. Every round samples
a code for each undecided token and keeps those it is most confident of, as many as the cosine schedule says; the last
round keeps all. So one round draws all tokens independently of each other, several let later ones agree with earlier.
(Four tokens that one coin decides, 120 training steps: they agree in 12% of frames drawn in one round, which is chance,
in 47% of those drawn in two and in 97% of those drawn in four. Training must hide as many tokens as sampling has yet to
decide at a level that is told: rounded up instead of down, four rounds agreed in 57%.)

An undecided token is NaN in the latents of its frame; the network is told by a mark in its place. Codes are read from a
guess of the latents, a change of the frame before as in flow, by their distance to it, plus a free score of each code:
at the start the frame before is the likeliest guess, and chances with several peaks are possible.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from embodied_wm.predictor.model import LatentPredictor

CHOICE_TEMPERATURE = 4.5
"""Noise on the confidence by which tokens are kept, less with every round; MaskGIT's own value. Without it, the tokens
that a coin decides are all left to the last round and then drawn apart from each other."""

MOST_CODES = 2**16


class Codes(nn.Module):
    """Turn standardised latents of an FSQ tokenizer into code indices and back.

    Standardised latents are (level / middle - 1 - mean) / std with levels from 0, so the indices depend on the
    tokenizer's statistics, of which this keeps a copy.
    """

    mean: Tensor
    std: Tensor
    levels: Tensor
    middle: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int], *, num_tokens: int) -> None:
        super().__init__()
        self.num_codes = math.prod(levels)
        steps = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("mean", torch.zeros(num_tokens, len(levels)))
        self.register_buffer("std", torch.ones(len(levels)))
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("middle", torch.tensor([float(count // 2) for count in levels]), persistent=False)
        self.register_buffer("basis", torch.tensor(steps), persistent=False)

    @torch.no_grad()
    def fit_to(self, tokenizer: nn.Module) -> None:
        """Take over the statistics of a tokenizer's latents.

        Raises:
            ValueError: If it is a tokenizer of several cameras.
        """
        mean, std = (getattr(tokenizer, name, None) for name in ("latent_mean", "latent_std"))
        if not isinstance(mean, Tensor) or not isinstance(std, Tensor):
            raise ValueError("predictor.kind='masked' predicts the codes of one camera; set model.tokenizer.cameras=1")
        self.fit(mean, std)

    def fit(self, mean: Float[Tensor, "tokens width"], std: Float[Tensor, "width"]) -> None:
        """Take over the statistics by which the tokenizer standardises its latents."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def places(self, latents: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch tokens width"]:
        """Return where latents lie on the axis of each channel's levels: whole numbers from 0 are the levels."""
        return (latents * self.std + self.mean + 1) * self.middle

    def indices(self, latents: Float[Tensor, "*batch tokens width"]) -> Int[Tensor, "*batch tokens"]:
        """Return the code nearest to latents, channel by channel."""
        nearest = self.places(latents).round().clamp(torch.zeros_like(self.middle), self.levels - 1.0)
        return (nearest.long() * self.basis).sum(-1)

    def latents(self, indices: Int[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch tokens width"]:
        """Return the standardised latents of codes."""
        return (self.all_places()[indices] / self.middle - 1 - self.mean) / self.std

    def all_places(self) -> Float[Tensor, "codes width"]:
        """Return the levels of every code."""
        every = torch.arange(self.num_codes, device=self.basis.device)[:, None]
        return ((every // self.basis) % self.levels).to(self.middle)


class MaskedTokens(nn.Module):
    """Say what an undecided token looks like to the network, read the chances of codes, and decide."""

    def __init__(self, levels: Sequence[int], *, num_tokens: int, width: int, max_rounds: int) -> None:
        super().__init__()
        if math.prod(levels) > MOST_CODES:
            raise ValueError(
                f"levels={list(levels)} make {math.prod(levels):,} codes per token; kind='masked' scores each, at most "
                f"{MOST_CODES:,}. Give fewer channels or levels, such as [8,5,5,5], and more tokens."
            )
        self.codes = Codes(levels, num_tokens=num_tokens)
        self.noise_width = 2 * max_rounds
        self.mark = nn.Parameter(torch.randn(width) * 0.02)
        self.sharpness = nn.Parameter(torch.zeros(len(levels)))
        self.score = nn.Linear(width, self.codes.num_codes)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def marked(self, latents_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents with zeros where they are undecided, and what is added to the tokens there."""
        undecided = latents_BTKD.isnan()
        return latents_BTKD.masked_fill(undecided, 0.0), undecided[..., :1] * self.mark

    def nothing(self, noise: Float[Tensor, "*batch tokens noise"]) -> Float[Tensor, "*batch tokens width"]:
        """Return frames of which no token is decided."""
        return noise.new_full((*noise.shape[:-1], len(self.codes.levels)), math.nan)

    def logits(
        self, hidden: Float[Tensor, "*batch tokens model"], guess: Float[Tensor, "*batch tokens width"]
    ) -> Float[Tensor, "*batch tokens codes"]:
        """Return the scores of all codes, from normalised outputs and a guess of the latents.

        The squared distance of the guess to every code is written as a product, without its part that all codes share.
        """
        every = self.codes.all_places()
        sharp = F.softplus(self.sharpness)
        return self.score(hidden) + (2 * sharp * self.codes.places(guess)) @ every.T - every.square() @ sharp

    def decide(
        self,
        logits: Float[Tensor, "candidates tokens codes"],
        x_tau: Float[Tensor, "candidates tokens width"],
        noise: Float[Tensor, "candidates tokens noise"],
        *,
        number: int,
        num_rounds: int,
    ) -> Float[Tensor, "candidates tokens width"]:
        """Decide some tokens more: sample all that are undecided and keep those that seem surest.

        Args:
            logits: Scores of all codes.
            x_tau: The frame so far, NaN where it is undecided.
            noise: Uniform in [0, 1); two of them per token and round.
            number: Which round this is, from 0.
            num_rounds: How many there are; the last decides all.
        """
        undecided = x_tau.isnan().any(-1)
        chances = logits.softmax(-1)
        sums = chances.cumsum(-1)
        drawn, luck = noise[..., 2 * number : 2 * number + 2].unbind(-1)
        chosen = torch.searchsorted(sums, (drawn * sums[..., -1])[..., None].contiguous(), right=True)
        chosen = chosen.clamp_max(logits.shape[-1] - 1)
        done = (number + 1) / num_rounds
        gumbel = -(-luck.clamp(1e-6, 1 - 1e-6).log()).log()
        surety = chances.gather(-1, chosen)[..., 0].log() + CHOICE_TEMPERATURE * (1 - done) * gumbel
        surety = surety.masked_fill(~undecided, math.inf)
        num_kept = surety.shape[-1] - num_undecided(done, surety.shape[-1])
        is_kept = surety >= surety.topk(max(num_kept, 1), dim=-1).values[..., -1:]
        return torch.where((undecided & is_kept)[..., None], self.codes.latents(chosen[..., 0]), x_tau)


def num_undecided(done: float, num_tokens: int) -> int:
    """Return how many tokens of a frame are still undecided when a part of the rounds is done (cosine schedule)."""
    return math.floor(num_tokens * math.cos(math.pi / 2 * done) + 1e-5)


def hide(
    latents: Float[Tensor, "batch time tokens width"], tau: Float[Tensor, "batch time"], generator: torch.Generator
) -> Float[Tensor, "batch time tokens width"]:
    """Return latents of which random tokens are undecided (NaN), as many as when the part `tau` of the rounds is done.

    At least one of each frame is.
    """
    num_tokens = latents.shape[2]
    order = torch.rand(latents.shape[:3], generator=generator).to(latents.device).argsort(-1).argsort(-1)
    num_hidden = (num_tokens * torch.cos(math.pi / 2 * tau) + 1e-5).floor().clamp_min(1)
    return latents.masked_fill((order < num_hidden[..., None])[..., None], math.nan)


def masked_loss(
    model: "LatentPredictor",
    latents: Float[Tensor, "batch time tokens width"],
    past: Float[Tensor, "batch time tokens width"],
    past_tau: Float[Tensor, "batch time"],
    tau: Float[Tensor, "batch time"],
    led_by: Float[Tensor, "batch time model"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Return the cross-entropy of the hidden tokens' codes, and its value where all of a frame were hidden.

    Args:
        model: Of kind "masked".
        latents: Standardised latents of consecutive frames.
        past: The same as context, each frame noised to its own level.
        past_tau: Those levels.
        tau: Part of the rounds after which each target frame is seen.
        led_by: Embedded action that led to each frame.
        generator: CPU source of what is hidden.
    """
    masked = model.masked
    assert masked is not None
    x_tau = hide(latents, tau, generator)
    exponents = torch.randint(0, model.config.max_steps.bit_length(), tau.shape, generator=generator)
    step = 0.5 ** exponents.to(tau)
    out, before, tau_before = model.see_targets(past, past_tau, x_tau, tau, step, led_by)
    logits = masked.logits(model.norm(out), model.read(out, before, tau_before))[:, 1:]
    wanted = masked.codes.indices(latents)[:, 1:]
    error = F.cross_entropy(logits.flatten(0, -2), wanted.flatten(), reduction="none").view(wanted.shape)
    hidden = x_tau.isnan().any(-1)[:, 1:]
    weight = hidden * torch.where(past_tau.mean(1) < 0.8, 0.1, 1.0)[:, None, None]
    loss = (error * weight).sum() / weight.sum()
    with torch.no_grad():
        whole = (tau[:, 1:] == 0) & (past_tau.mean(1, keepdim=True) >= 0.8)
        found = (logits.argmax(-1) == wanted).float()
        metrics = {"from_nothing": float(error[whole].mean()), "right": float(found[whole].mean())}
    return loss, {name: value for name, value in metrics.items() if value == value}


__all__ = ["Codes", "MaskedTokens", "hide", "masked_loss", "num_undecided"]
