"""Latent predictor: diffusion forcing over blocks of [action token, K latent tokens].

Block t holds the action that led to frame t (a_{t-1}, or "absent" for the first frame) and the noised latents of frame t.
Every frame has its own noise level in training (Diffusion Forcing, arXiv 2407.01392). Half of the sequences draw all levels
uniformly; in the other half most frames are nearly clean context and some are targets of any noise, which is what
imagination meets. The network predicts clean latents; large steps are taught by the shortcut
loss (see `flow`), so the same weights sample in 1, 2 or 4 steps.

The action token can be real (embedded), latent (a code) or absent; one model serves labelled robots and unlabelled video.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from embodied_wm.predictor import flow
from embodied_wm.predictor.cache import Context
from embodied_wm.predictor.transformer import BlockCausalTransformer, TransformerConfig

ABSENT, REAL, LATENT = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Configure a `LatentPredictor`.

    Attributes:
        transformer: Size of the network.
        window: Frames that attention reaches back over, the present one included.
        max_steps: Most denoising steps the model is trained for; a power of two.
        context_tau: Noise level (told, not added) of context frames that the model imagined itself.
        shortcut_fraction: Part of each batch that trains large steps.
        absent_fraction: Part of the sequences trained without actions.
    """

    transformer: TransformerConfig = TransformerConfig()
    window: int = 16
    max_steps: int = 4
    context_tau: float = 0.95
    shortcut_fraction: float = 0.25
    absent_fraction: float = 0.1


@dataclass(frozen=True)
class ActionInputs:
    """Hold the actions of a batch of windows in row convention: row t leads from frame t to frame t+1.

    Attributes:
        kind: [B, T], each ABSENT, REAL or LATENT.
        real: [B, T, A], normalised; read where kind is REAL. None where the model has no real actions.
        codes: [B, T, code]; read where kind is LATENT. None where there are none.
    """

    kind: Int[Tensor, "batch time"]
    real: Float[Tensor, "batch time action"] | None = None
    codes: Float[Tensor, "batch time code"] | None = None


def block_causal_mask(num_frames: int, block: int, window: int, device: torch.device) -> Tensor:
    """Return [N, N] booleans: a token sees its own frame's block and the `window - 1` frames before it."""
    frame = torch.arange(num_frames, device=device).repeat_interleave(block)
    gap = frame[:, None] - frame[None, :]
    return (gap >= 0) & (gap < window)


class LatentPredictor(nn.Module):
    """Predict clean latents from noised ones, past frames and actions."""

    def __init__(
        self, config: PredictorConfig, *, num_tokens: int, token_width: int, action_size: int, code_size: int
    ) -> None:
        super().__init__()
        if config.max_steps < 1 or config.max_steps & (config.max_steps - 1):
            raise ValueError(f"max_steps={config.max_steps} must be a power of two (1, 2, 4, ...)")
        self.config = config
        self.num_tokens, self.token_width = num_tokens, token_width
        width = config.transformer.width
        self.transformer = BlockCausalTransformer(config.transformer)
        self.latent_in = nn.Linear(token_width, width)
        self.slots = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
        self.kinds = nn.Parameter(torch.randn(3, width) * 0.02)
        self.real_in = nn.Sequential(nn.Linear(action_size, width), nn.SiLU(), nn.Linear(width, width))
        self.code_in = nn.Sequential(nn.Linear(code_size, width), nn.SiLU(), nn.Linear(width, width))
        self.level_in = nn.Sequential(nn.Linear(2 * 16, width), nn.SiLU(), nn.Linear(width, 6 * width))
        self.norm = nn.RMSNorm(width)
        self.latent_out = nn.Linear(width, token_width)
        nn.init.zeros_(self.latent_out.weight)
        nn.init.zeros_(self.latent_out.bias)
        nn.init.zeros_(self.level_in[2].weight)

    @property
    def block(self) -> int:
        """Return the tokens per frame: one action token and K latent tokens."""
        return 1 + self.num_tokens

    def embed_actions(self, actions: ActionInputs) -> Float[Tensor, "batch time width"]:
        """Embed actions, each by its kind."""
        tokens = self.kinds[actions.kind]
        if actions.real is not None:
            tokens = tokens + self.real_in(actions.real) * (actions.kind == REAL)[..., None]
        if actions.codes is not None:
            tokens = tokens + self.code_in(actions.codes) * (actions.kind == LATENT)[..., None]
        return tokens

    def modulation(self, tau: Float[Tensor, "*batch"], step: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 6 width"]:
        """Return the shared modulation for noise levels and step sizes."""
        frequencies = torch.pi * 2.0 ** torch.arange(-1, 3, device=tau.device)
        phase = torch.stack([tau, step], dim=-1)[..., None] * frequencies
        features = torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(-2)
        features = torch.cat([features, features.square()], dim=-1)
        return self.level_in(features).unflatten(-1, (6, -1))

    def blocks(self, action_tokens_BTW: Tensor, latents_BTKD: Tensor) -> Tensor:
        """Interleave the token that led to each frame with its latents: [B, T, 1 + K, width]."""
        return torch.cat([action_tokens_BTW[:, :, None], self.latent_in(latents_BTKD) + self.slots], dim=2)

    def shift(self, action_tokens_BTW: Tensor) -> Tensor:
        """Turn row convention (leads away from frame t) into block convention (led to frame t)."""
        first = self.kinds[ABSENT].expand(len(action_tokens_BTW), 1, -1)
        return torch.cat([first, action_tokens_BTW[:, :-1]], dim=1)

    def read(self, x_SNW: Tensor) -> Tensor:
        """Turn output tokens of latent slots into latents."""
        return self.latent_out(self.norm(x_SNW))

    def forward(
        self,
        x_tau: Float[Tensor, "batch time tokens width"],
        tau: Float[Tensor, "batch time"],
        step: Float[Tensor, "batch time"],
        led_by: Float[Tensor, "batch time model"],
    ) -> Float[Tensor, "batch time tokens width"]:
        """Predict the clean latents of every frame of a window.

        Args:
            x_tau: Noised latents, each frame at its own level.
            tau: Noise level of each frame.
            step: Step size each frame is predicted for.
            led_by: Embedded action that led to each frame, from `shift(embed_actions(...))`.
        """
        time, block = x_tau.shape[1], self.block
        tokens = rearrange(self.blocks(led_by, x_tau), "b t n w -> b (t n) w")
        modulation = repeat(self.modulation(tau, step), "b t six w -> b (t n) six w", n=block)
        positions = torch.arange(time, device=x_tau.device).repeat_interleave(block)
        mask = block_causal_mask(time, block, self.config.window, x_tau.device)
        out = self.transformer(tokens, modulation, positions, mask)
        return self.read(rearrange(out, "b (t n) w -> b t n w", n=block)[:, :, 1:])

    def sample_levels(self, batch: int, time: int, generator: torch.Generator) -> Float[Tensor, "batch time"]:
        """Draw a noise level for every frame; the first half of the batch keeps most frames nearly clean."""
        uniform = torch.rand(batch, time, generator=generator)
        near_clean = 1 - 0.1 * torch.rand(batch, time, generator=generator)
        is_context = torch.rand(batch, time, generator=generator) < 0.6
        is_context[batch // 2 :] = False
        pure = torch.rand(batch, time, generator=generator) < 0.3
        levels = torch.where(pure, 0.0, uniform)
        return torch.where(is_context, near_clean, levels)

    def loss(
        self, latents: Float[Tensor, "batch time tokens width"], actions: ActionInputs, generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the flow-matching loss of most of the batch plus the shortcut loss of the rest.

        Args:
            latents: Standardised latents of consecutive frames.
            actions: Actions in row convention.
            generator: CPU source of noise and noise levels.
        """
        batch, time = latents.shape[:2]
        device = latents.device
        noise = torch.randn(latents.shape, generator=generator).to(device)
        levels = self.sample_levels(batch, time, generator).to(device)
        led_by = self.shift(self.embed_actions(actions))
        num_shortcut = int(batch * self.config.shortcut_fraction) if self.config.max_steps > 1 else 0
        rest = slice(num_shortcut, batch)
        finest = torch.full_like(levels, 1 / self.config.max_steps)
        tau = levels[rest, :, None, None]
        x_tau = flow.interpolate(noise[rest], latents[rest], tau)
        error = (self(x_tau, levels[rest], finest[rest], led_by[rest]) - latents[rest]) ** 2
        weight = 1 - 0.9 * tau
        loss = (error * weight).mean()
        with torch.no_grad():
            from_noise = levels[rest] == 0
            metrics = {"flow": float(loss.detach()), "mse_from_noise": float(error.mean((2, 3))[from_noise].mean())}
        if num_shortcut:
            part = slice(0, num_shortcut)
            shortcut = self._shortcut_loss(latents[part], noise[part], led_by[part], levels[part], generator)
            loss = loss + self.config.shortcut_fraction * shortcut
            metrics["shortcut"] = float(shortcut.detach())
        return loss, metrics

    def _shortcut_loss(
        self, latents: Tensor, noise: Tensor, led_by: Tensor, levels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Teach one step of size 1/2^j to equal two of half its size, at random frames of the window."""
        exponents = torch.randint(0, self.config.max_steps.bit_length() - 1, levels.shape, generator=generator)
        step = 0.5**exponents.to(levels)
        start = (torch.rand(levels.shape, generator=generator).to(levels) / step).floor() * step
        start = torch.where((levels < 0.9) | (start == 0), start, levels)
        jumps = levels < 0.9
        tau = torch.where(jumps, start, levels)
        step = torch.where(jumps, step, 1 / self.config.max_steps)
        tau4, step4 = tau[..., None, None], step[..., None, None]
        x_tau = flow.interpolate(noise, latents, tau4)
        with torch.no_grad():
            first = self(x_tau, tau, step / 2, led_by)
            moved = x_tau + flow.velocity(first, x_tau, tau4) * step4 / 2
            x_middle = torch.where(jumps[..., None, None], moved, x_tau)
            tau_middle = torch.where(jumps, tau + step / 2, tau)
            second = self(x_middle, tau_middle, step / 2, led_by)
            target = flow.two_half_steps_target(first, second, x_tau, x_middle, tau4, step4)
        error = ((self(x_tau, tau, step, led_by) - target) ** 2).mean((2, 3))
        return (error * jumps * (1 - 0.9 * tau)).sum() / jumps.sum().clamp_min(1)

    @torch.no_grad()
    def prefill(
        self, latents: Float[Tensor, "frames tokens width"], actions: ActionInputs
    ) -> Context:
        """Encode a context once, for all candidates.

        Args:
            latents: Clean latents of the context, oldest first; the last `window - 1` frames are used.
            actions: [1, frames - 1] actions between them (row convention); further rows are ignored.

        Raises:
            ValueError: If there is no frame, or a latent is not finite.
        """
        if len(latents) == 0:
            raise ValueError("got a context of 0 frames; imagination needs at least 1")
        if not torch.isfinite(latents).all():
            raise ValueError("the context's latents hold NaN or infinity; check the frames and the checkpoint")
        embedded = self.embed_actions(actions)[:, : len(latents) - 1]
        led_by = torch.cat([self.kinds[ABSENT].expand(1, 1, -1), embedded], dim=1)
        keep = min(len(latents), self.config.window - 1)
        latents, led_by = latents[-keep:], led_by[:, -keep:]
        tokens = rearrange(self.blocks(led_by, latents[None]), "b t n w -> b (t n) w")
        clean = torch.ones(1, device=latents.device)
        modulation = repeat(self.modulation(clean, clean / self.config.max_steps), "1 six w -> 1 n six w", n=tokens.shape[1])
        positions = torch.arange(keep, device=latents.device).repeat_interleave(self.block)
        mask = block_causal_mask(keep, self.block, self.config.window, latents.device)
        keys, values = self.transformer.keys_values(tokens, modulation, positions, mask)
        return Context(keys, values, keep, keep, latents[-1])
