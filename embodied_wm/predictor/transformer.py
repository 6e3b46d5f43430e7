"""Block-causal transformer: full attention within a frame's block, causal across frames.

RMSNorm, QK-norm, rotary positions over time (all tokens of a block share their frame's position), SwiGLU, and adaptive
norm whose modulation is one shared network of the conditioning plus a learned table per layer (as in PixArt-alpha,
arXiv 2310.00426), so that in sampling it is computed once per noise level and not per token.

Two ways through the same weights: `forward` over whole windows (training, uncached imagination) and
`extend` over new tokens with a cache (imagination). A test holds them equal.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from embodied_wm.predictor.cache import CandidateCache, attend_shared


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Configure a `BlockCausalTransformer`.

    Attributes:
        width: Residual width; a multiple of num_heads.
        depth: Layers.
        num_heads: Attention heads.
        hidden: Width of the SwiGLU hidden layer.
        rotary_base: Base of the rotary frequencies; windows are short, so it is small.
    """

    width: int = 128
    depth: int = 2
    num_heads: int = 4
    hidden: int = 352
    rotary_base: float = 200.0


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
    """One pre-norm transformer layer whose norms are modulated by the conditioning."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, self.num_heads = config.width, config.num_heads
        head = width // config.num_heads
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(head), nn.RMSNorm(head)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, width, bias=False)
        self.modulation = nn.Parameter(torch.zeros(6, width))
        nn.init.zeros_(self.modulation)

    def modulated(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Return (shift, scale, gate) of attention and of the MLP from shared modulation [..., 6, width]."""
        return (modulation + self.modulation).unbind(-2)

    def queries_keys_values(self, x: Tensor, mod: tuple[Tensor, ...], rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Return q, k, v of shape [S, h, N, d], q and k normalised and rotated."""
        normed = torch.addcmul(mod[0], self.norm(x), 1 + mod[1])
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(normed).chunk(3, dim=-1))
        return rotate(self.q_norm(q), *rotary), rotate(self.k_norm(k), *rotary), v

    def finish(self, x: Tensor, attended_ShNd: Tensor, mod: tuple[Tensor, ...]) -> Tensor:
        """Add the attention output and the MLP to the residual stream."""
        x = torch.addcmul(x, 1 + mod[2], self.out(attended_ShNd.transpose(1, 2).flatten(2)))
        gate, up = self.gate_up(torch.addcmul(mod[3], self.norm(x), 1 + mod[4])).chunk(2, dim=-1)
        return torch.addcmul(x, 1 + mod[5], self.down(F.silu(gate) * up))


class BlockCausalTransformer(nn.Module):
    """Run tokens of shape [S, N, width] through modulated layers."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.width % config.num_heads or (config.width // config.num_heads) % 2:
            raise ValueError(f"width={config.width} must be an even multiple of num_heads={config.num_heads}")
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        for layer in self.layers:
            for linear in (layer.out, layer.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * config.depth) ** 0.5)

    def rotary(self, positions_N: Int[Tensor, "tokens"]) -> tuple[Tensor, Tensor]:
        """Return rotary tables for the tokens' frame positions."""
        return rotary_angles(positions_N, self.config.width // self.config.num_heads, self.config.rotary_base)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        modulation: Float[Tensor, "batch tokens 6 width"],
        positions: Int[Tensor, "tokens"],
        mask: Bool[Tensor, "tokens tokens"],
        num_outputs: int,
    ) -> Float[Tensor, "batch outputs width"]:
        """Process whole windows under an attention mask (True: may attend); return the last `num_outputs` tokens."""
        rotary = self.rotary(positions)
        for layer in self.layers:
            mod = layer.modulated(modulation)
            q, k, v = layer.queries_keys_values(x, mod, rotary)
            if layer is self.layers[-1]:
                x, q, mask = x[:, -num_outputs:], q[:, :, -num_outputs:], mask[-num_outputs:]
                mod = tuple(part[:, -num_outputs:] for part in mod)
            x = layer.finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask), mod)
        return x

    def keys_values(
        self,
        x: Float[Tensor, "1 tokens width"],
        modulation: Float[Tensor, "1 tokens 6 width"],
        positions: Int[Tensor, "tokens"],
        mask: Bool[Tensor, "tokens tokens"],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return every layer's keys and values [h, N, d] of a context; the last layer stops there."""
        rotary = self.rotary(positions)
        keys, values = [], []
        for layer in self.layers:
            mod = layer.modulated(modulation)
            q, k, v = layer.queries_keys_values(x, mod, rotary)
            keys.append(k[0].contiguous())
            values.append(v[0].contiguous())
            if layer is not self.layers[-1]:
                x = layer.finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask), mod)
        return tuple(keys), tuple(values)

    def extend(
        self,
        x: Float[Tensor, "candidates tokens width"],
        modulation: Float[Tensor, "tokens 6 width"],
        rotary: tuple[Tensor, Tensor],
        cache: CandidateCache,
        *,
        mask: Bool[Tensor, "tokens tokens"] | None,
        window_tokens: int,
        num_outputs: int,
    ) -> Float[Tensor, "candidates outputs width"]:
        """Process new tokens that see the shared context and the candidate's own past.

        Args:
            x: New tokens of every candidate.
            modulation: Modulation per new token; the same for all candidates.
            rotary: Tables of the new tokens' positions.
            cache: The candidates' cache; the new tokens are put behind its kept ones.
            mask: [tokens, tokens], which new tokens each new token may see; None for all. Past ones are always seen.
            window_tokens: Most tokens, new ones included, that attention reaches back over.
            num_outputs: Only the last tokens' outputs are wanted: the last layer computes no others.
        """
        for index, layer in enumerate(self.layers):
            mod = layer.modulated(modulation)
            q, k, v = layer.queries_keys_values(x, mod, rotary)
            cache.put(index, k, v)
            shared, own = cache.visible(index, k.shape[2], window_tokens)
            layer_mask = None if mask is None else F.pad(mask, (own[0].shape[2] - mask.shape[1], 0), value=True)
            if index == len(self.layers) - 1:
                x, q = x[:, -num_outputs:], q[:, :, -num_outputs:]
                mod = tuple(part[-num_outputs:] for part in mod)
                layer_mask = None if layer_mask is None else layer_mask[-num_outputs:]
            x = layer.finish(x, attend_shared(q, shared, own, mask_NM=layer_mask), mod)
        return x
