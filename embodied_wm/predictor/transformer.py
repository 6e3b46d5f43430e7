"""Block-causal transformer: full attention within a frame's block, causal across frames.

RMSNorm, QK-norm, rotary positions over time (all tokens of a block share their frame's position), SwiGLU, and adaptive
norm whose modulation is one shared network of the conditioning plus a learned table per layer (as in PixArt-alpha,
arXiv 2310.00426), so that in sampling it is computed once per noise level and not per token.

`sinks` are learned keys and values without a position that every token may always attend to: where the first tokens of
a sequence take up attention that has nowhere else to go, and leave a bounded window, the rest suffers
(arXiv 2309.17453); these never leave. They cost no memory that grows.

Two ways through the same weights: `forward` over whole windows (training, uncached imagination) and
`extend` over new tokens with a cache (imagination). A test holds them equal.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embodied_wm.predictor.cache import CandidateCache, attend_shared

Precision = Literal["fp32", "int8"]
"""What imagination multiplies in."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Configure a `BlockCausalTransformer`.

    Attributes:
        width: Residual width; a multiple of num_heads.
        depth: Layers.
        num_heads: Attention heads.
        hidden: Width of the SwiGLU hidden layer.
        rotary_base: Base of the rotary frequencies; windows are short, so it is small.
        sinks: Learned keys and values per layer and head that are always visible, whatever the window; 0 for none.
        mixer: What joins frames: "attention" to a window of them, or "gated_delta", a memory of constant size (see
            `recurrent`).
    """

    width: int = 128
    depth: int = 2
    num_heads: int = 4
    hidden: int = 352
    rotary_base: float = 200.0
    sinks: int = 0
    mixer: Literal["attention", "gated_delta"] = "attention"


def block_causal_mask(num_frames: int, window: int, device: torch.device) -> Bool[Tensor, "frames frames"]:
    """Return what frames may attend to: themselves and the `window - 1` frames before."""
    frame = torch.arange(num_frames, device=device)
    gap = frame[:, None] - frame[None, :]
    return (gap >= 0) & (gap < window)


def two_streams_mask(num_frames: int, window: int, device: torch.device) -> Bool[Tensor, "twice twice"]:
    """Return what a stream of frames as context, and behind it the same frames as targets, may attend to.

    Context sees context as in `block_causal_mask`; a target sees the context before it, and itself.
    """
    seen = block_causal_mask(num_frames, window, device)
    itself = torch.eye(num_frames, dtype=torch.bool, device=device)
    of_context = torch.cat([seen, torch.zeros_like(seen)], dim=1)
    return torch.cat([of_context, torch.cat([seen & ~itself, itself], dim=1)])


def two_frames_mask(
    num_seen: int, block: int, window_tokens: int, num_fixed: int, device: torch.device
) -> Bool[Tensor, "new seen"]:
    """Return what two new frames may attend to: the first not the second, which reaches one frame less far back.

    Args:
        num_seen: Tokens that are there, new ones included.
        block: Tokens of a frame.
        window_tokens: Most tokens that a frame reaches back over.
        num_fixed: How many of them, at the front, no window drops.
        device: Where the mask is wanted.
    """
    mask = torch.ones(2 * block, num_seen, dtype=torch.bool, device=device)
    mask[:block, -block:] = False
    mask[block:, num_fixed : num_fixed + max(0, num_seen - num_fixed - window_tokens)] = False
    return mask


def rotary_angles(positions_N: Int[Tensor, "tokens"], head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin tables [N, head_width / 2] of rotary embedding (arXiv 2104.09864)."""
    frequencies = base ** (-torch.arange(0, head_width, 2, device=positions_N.device) / head_width)
    angles = positions_N[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x_ShNd: Tensor, cos_Nd: Tensor, sin_Nd: Tensor) -> Tensor:
    """Rotate pairs (first half, second half) of head channels by their positions' angles."""
    first, second = x_ShNd.chunk(2, dim=-1)
    return torch.cat([first * cos_Nd - second * sin_Nd, first * sin_Nd + second * cos_Nd], dim=-1)


class Layer(nn.Module):
    """One pre-norm transformer layer whose norms are modulated, frame by frame, by the conditioning.

    Attributes:
        first_output: First token of a block that comes out of a last layer: 1 for the latents, 0 with the action's.
    """

    def __init__(self, config: TransformerConfig, first_output: int) -> None:
        super().__init__()
        width, self.num_heads, self.first_output = config.width, config.num_heads, first_output
        head = width // config.num_heads
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(head), nn.RMSNorm(head)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, width, bias=False)
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.sinks = nn.Parameter(torch.randn(2, config.num_heads, config.sinks, head)) if config.sinks else None

    def with_sinks(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put the layer's always visible keys and values before others, [..., h, N, d]; the same where it has none."""
        if self.sinks is None:
            return k, v
        # Items of a parameter want a gradient even where none is recorded, on which torch's FlopCounterMode fails.
        sinks = self.sinks if torch.is_grad_enabled() else self.sinks.detach()
        keys, values = self.k_norm(sinks[0]), sinks[1]
        shape = (*k.shape[:-2], *keys.shape[-2:])
        return torch.cat([keys.expand(shape), k], dim=-2), torch.cat([values.expand(shape), v], dim=-2)

    def modulated(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Return (shift, scale, gate) of attention and of the MLP, [..., F, 1, width], from [..., F, 6, width]."""
        return (modulation + self.modulation).unsqueeze(-3).unbind(-2)

    def queries_keys_values(
        self, x_SFnW: Tensor, mod: tuple[Tensor, ...], rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """Return q, k, v of shape [S, h, F * n, d], q and k normalised and rotated."""
        normed = torch.addcmul(mod[0], self.norm(x_SFnW), 1 + mod[1])
        q, k, v = self.qkv(normed).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return rotate(self.q_norm(q), *rotary), rotate(self.k_norm(k), *rotary), v

    def finish(self, x_SFnW: Tensor, attended_ShNd: Tensor, mod: tuple[Tensor, ...]) -> Tensor:
        """Add the attention output and the MLP to the residual stream."""
        attended = self.out(attended_ShNd.transpose(1, 2).flatten(2)).view(x_SFnW.shape)
        x_SFnW = torch.addcmul(x_SFnW, 1 + mod[2], attended)
        gate, up = self.gate_up(torch.addcmul(mod[3], self.norm(x_SFnW), 1 + mod[4])).chunk(2, dim=-1)
        return torch.addcmul(x_SFnW, 1 + mod[5], self.down(F.silu(gate) * up))

    def select(
        self, x_SFnW: Tensor, q_ShNd: Tensor, mod: tuple[Tensor, ...], num_frames: int
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Keep the tokens that have outputs (all but the action's, where that is not wanted) of the last frames."""
        (frames, block), first = x_SFnW.shape[1:3], self.first_output
        q_ShNd = q_ShNd.unflatten(2, (frames, block))[:, :, -num_frames:, first:].flatten(2, 3)
        return x_SFnW[:, -num_frames:, first:], q_ShNd, tuple(part[..., -num_frames:, :, :] for part in mod)

    def forward(
        self,
        x_SFnW: Tensor,
        modulation: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask_NM: Tensor,
        num_frames: int | None,
    ) -> Tensor:
        """Process whole windows; with `num_frames`, only the latent tokens of that many last frames come out."""
        mod = self.modulated(modulation)
        q, k, v = self.queries_keys_values(x_SFnW, mod, rotary)
        if num_frames is not None:
            x_SFnW, q, mod = self.select(x_SFnW, q, mod, num_frames)
        k, v = self.with_sinks(k, v)
        return self.finish(x_SFnW, F.scaled_dot_product_attention(q, k, v, attn_mask=mask_NM), mod)


class BlockCausalTransformer(nn.Module):
    """Run blocks of tokens, [S, F frames, n tokens per frame, width], through modulated layers.

    Outputs are tokens of the last frames, from the block's token `first_output` on; the action's, before it, has none.

    Attributes:
        recompute: Whether training recomputes activations in the backward pass instead of keeping them.
        precision: What `extension` multiplies in; see `int8.set_precision`.
    """

    recompute = False
    precision: Precision = "fp32"

    def __init__(self, config: TransformerConfig, *, first_output: int = 1, layer: type[Layer] = Layer) -> None:
        super().__init__()
        if config.width % config.num_heads or (config.width // config.num_heads) % 2:
            raise ValueError(f"width={config.width} must be an even multiple of num_heads={config.num_heads}")
        self.config, self.first_output = config, first_output
        self.layers = nn.ModuleList(layer(config, first_output) for _ in range(config.depth))
        for each in self.stack:
            for linear in (each.out, each.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * config.depth) ** 0.5)

    @property
    def stack(self) -> tuple[Layer, ...]:
        """Return the layers, in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Layer))

    def rotary(self, positions_F: Int[Tensor, "frames"], block: int) -> tuple[Tensor, Tensor]:
        """Return rotary tables of all tokens of frames at these positions."""
        head = self.config.width // self.config.num_heads
        return rotary_angles(positions_F.repeat_interleave(block), head, self.config.rotary_base)

    def _token_mask(self, mask_FF: Tensor, block: int) -> Tensor:
        """Return which of the sinks and tokens [M] each token [N] may attend to."""
        mask_NN = mask_FF.repeat_interleave(block, 0).repeat_interleave(block, 1)
        return F.pad(mask_NN, (self.config.sinks, 0), value=True)

    def forward(
        self,
        x: Float[Tensor, "batch frames block width"],
        modulation: Float[Tensor, "batch frames 6 width"],
        positions: Int[Tensor, "frames"],
        mask: Bool[Tensor, "frames frames"],
        num_frames: int,
    ) -> Float[Tensor, "batch outputs tokens width"]:
        """Process whole windows.

        Args:
            x: Blocks of tokens.
            modulation: Shared modulation of each frame.
            positions: Rotary position of each frame.
            mask: True where a frame may attend to another.
            num_frames: Frames, from the last, whose latent tokens are wanted.
        """
        block = x.shape[2]
        rotary = self.rotary(positions, block)
        mask_NM = self._token_mask(mask, block)
        last_mask = mask_NM.unflatten(0, (-1, block))[-num_frames:, self.first_output :].flatten(0, 1)
        for layer in self.stack:
            is_last = layer is self.stack[-1]
            inputs = (x, modulation, rotary, last_mask if is_last else mask_NM, num_frames if is_last else None)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, *inputs, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
            else:
                x = layer(*inputs)
        return x

    def keys_values(
        self,
        x: Float[Tensor, "batch frames block width"],
        modulation: Float[Tensor, "frames 6 width"],
        positions: Int[Tensor, "frames"],
        mask: Bool[Tensor, "frames frames"],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return every layer's keys and values [B, h, N, d] of contexts; the last layer stops there."""
        block = x.shape[2]
        rotary = self.rotary(positions, block)
        mask_NM = self._token_mask(mask, block)
        keys, values = [], []
        for layer in self.stack:
            mod = layer.modulated(modulation)
            q, k, v = layer.queries_keys_values(x, mod, rotary)
            keys.append(k.contiguous())
            values.append(v.contiguous())
            if layer is not self.stack[-1]:
                k, v = layer.with_sinks(k, v)
                x = layer.finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask_NM), mod)
        return tuple(keys), tuple(values)

    def extend(
        self,
        x: Float[Tensor, "candidates frames block width"],
        modulation: Float[Tensor, "frames 6 width"],
        rotary: tuple[Tensor, Tensor],
        cache: CandidateCache,
        *,
        window_tokens: int,
    ) -> Float[Tensor, "candidates tokens width"]:
        """Process one or two new frames that see the shared context and the candidate's own past.

        Of two new frames the first does not see the second, and each has a window of its own. The latent tokens of the
        last are returned.

        Args:
            x: Blocks of the new frames of every candidate.
            modulation: Modulation of each new frame; the same for all candidates.
            rotary: Tables of the new tokens' positions.
            cache: The candidates' cache; the new tokens are put behind its kept ones.
            window_tokens: Most tokens, a frame's own included, that attention reaches back over.
        """
        frames, block = x.shape[1:3]
        for index, layer in enumerate(self.stack):
            mod = layer.modulated(modulation)
            q, k, v = layer.queries_keys_values(x, mod, rotary)
            cache.put(index, k, v)
            is_last = index == len(self.layers) - 1
            reach = window_tokens if is_last else window_tokens + (frames - 1) * block
            shared, own = cache.visible(index, k.shape[2], reach)
            mask = None
            if is_last:
                x, q, mod = layer.select(x, q, mod, 1)
            elif frames > 1:
                fixed = self.config.sinks + cache.context.memory_tokens
                num_seen = self.config.sinks + shared[0].shape[-2] + own[0].shape[2]
                mask = two_frames_mask(num_seen, block, window_tokens, fixed, x.device)
            x = layer.finish(x, attend_shared(q, layer.with_sinks(*shared), own, mask_NL=mask), mod)
        return x[:, 0]
