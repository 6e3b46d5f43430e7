"""Extend many candidates by a frame as fast as small matrices allow: what `BlockCausalTransformer.extend` computes.

On a CPU a nano model's imagination is bound by many small operations and not by its matrix products, so all that does
not depend on the candidates (modulation, rotary tables with the weights of the norms of queries and keys folded in) is
made once per call, and what remains is done in few passes over memory. The same weights, equal to float precision (a
test holds that); `BlockCausalTransformer.extend` stays, for gradients.

The whole of imagination (8 steps, prefill included) against what was before, 21 alternating pairs of processes, one
thread of a busy machine, processor time, medians: 1.23 times faster at S = 16, 1.32 at 48, 1.24 at 128, 1.10 at 512;
with sixteen key points 1.11 at 128. How fast that is, one thread, processor time, two runs of each, and which part of a
1024 x 1024 product's FLOP/s it makes: `nano` on `reach` behind 4 frames 55,000 and 58,000 candidate-steps/s at S = 128
(0.42 and 0.47), 67,000 and 72,000 at 512 (0.52 and 0.58); by `scripts/sizes.py --imagine 256` untrained `nano` 54,000
and 64,000 (0.44 and 0.49), `nano_keypoints` 53,000 and 65,000 (0.45 and 0.52), `small` 440 (0.84).

The parts, in processor time on one thread of a busy machine, nano, S = 128, two new frames:

- Softmax over rows of 10 to 30 scores costs 0.1 microseconds a row. Queries and keys are normalised, so scores are
  bounded, no maximum need be subtracted, and `exp`, a sum and one division of the result take 70 instead of 210
  microseconds.
- `nn.RMSNorm` is five operations: 43 microseconds where a length, a hypotenuse and a division take 30. Its root of the
  width is in the tables.
- Queries and keys are normalised and rotated in one go after one copy that puts heads first: 200 instead of 250.
- The last layer needs queries of the latent tokens alone.
- `torch.bmm` takes a naive loop below 400 products a matrix: 130 to 250 where a product and a sum take 70.

Left out, since not faster, or not worth it:

- `scaled_dot_product_attention`: 530 microseconds where both products and softmax above take 300, and it would need S
  copies of the context.
- Modulation folded into the weights of each noise level, one frame after the other: it saves passes, but halves the
  products and doubles the number of operations (16 candidates 17% slower, 128 the same).
- `torch.compile` (inductor, CPU) of what is before and behind attention: 0.90 ms against 0.89 and 2.26 against 2.33,
  as products dominate there (a prototype that is not kept). Of all of a pass, attention too: 0.73 to 0.83 of the time
  of imagination, but minutes of compiling for every shape (`scripts/bench_savings.py --compiled`).
- Queries, keys and values of each head by products of their own, which saves the copy: products 15 to 30% slower.
- Rotation as a matrix product: 118 microseconds where two products of numbers take 100.

Legend of shape suffixes: S candidates, F new frames, n tokens per frame, N = F * n, W width, M tokens of own suffixes,
h heads, d head width, m those of queries, keys and values that are made.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from embodied_wm.predictor.cache import CandidateCache
from embodied_wm.predictor.int8 import int8_weight
from embodied_wm.predictor.transformer import BlockCausalTransformer, Layer

NAIVE_PRODUCTS = 400
"""Products of one matrix below which `torch.bmm` takes a naive loop (aten/src/ATen/native/LinearAlgebra.cpp)."""

type Product = Callable[[Tensor], Tensor]

MOST_SCORE = 60.0
"""Scores up to which exp(score) summed over any window is far from overflow (at 88) and underflow."""


class _Products(NamedTuple):
    """Hold one layer's products with its weights; looking those up in modules takes as long as a small product.

    Attributes:
        heads: That of queries, keys and values; of the last layer, which needs fewer queries, those of queries, and of
            keys and values.
    """

    heads: tuple[Product, ...]
    out: Product
    gate_up: Product
    down: Product


def _products(transformer: BlockCausalTransformer) -> list[_Products]:
    """Return the layers' products; those of int8 are kept until a weight changes."""
    if transformer.precision == "fp32":
        return _made(transformer, lambda weight: partial(linear, weight=weight))
    state = tuple((weight.data_ptr(), weight._version) for weight in transformer.parameters())
    kept, products = _ROUNDED.get(transformer, (None, []))
    if kept != state:
        products = _made(transformer, int8_weight)
        _ROUNDED[transformer] = state, products
    return products


def _made(transformer: BlockCausalTransformer, make: Callable[[Tensor], Product]) -> list[_Products]:
    products, width = [], transformer.config.width
    for layer in transformer.stack:
        qkv = layer.qkv.weight
        heads = (qkv[:width], qkv[width:]) if layer is transformer.stack[-1] else (qkv,)
        others = (layer.out.weight, layer.gate_up.weight, layer.down.weight)
        products.append(_Products(tuple(map(make, heads)), *map(make, others)))
    return products


_ROUNDED: WeakKeyDictionary[BlockCausalTransformer, tuple[tuple[tuple[int, int], ...], list[_Products]]]
_ROUNDED = WeakKeyDictionary()
"""The int8 products of models that use them, and the state of the weights that they were made of."""


class Extension:
    """Extend candidates by one or two frames at a time, without gradients."""

    def __init__(
        self,
        transformer: BlockCausalTransformer,
        cache: CandidateCache,
        modulation: Tensor,
        *,
        block: int,
        num_frames: int,
        window_tokens: int,
    ) -> None:
        """Prepare all that does not depend on the candidates.

        Args:
            transformer: Whose weights are used.
            cache: The candidates' cache.
            modulation: Shared modulation of each noise level, [levels, 6, W].
            block: Tokens per frame.
            num_frames: Frames that will be imagined.
            window_tokens: Most tokens that attention reaches back over, a frame's own included.
        """
        self.cache, self.block, self.window_tokens = cache, block, window_tokens
        self.layers, self.sinks, self.first = transformer.stack, transformer.config.sinks, transformer.first_output
        self.num_fixed = self.sinks + cache.context.memory_tokens  # that no window drops
        self.num_heads, width = transformer.config.num_heads, transformer.config.width
        first = cache.context.next_position
        tables = transformer.rotary(torch.arange(first, first + num_frames, device=modulation.device), block)
        self.turns = [_turns(layer, *tables) for layer in self.layers]
        self.products = _products(transformer)
        ones = modulation.new_tensor([0, 1, 1, 0, 1, 1])[:, None]  # shift, scale, gate, shift, scale, gate
        unit = modulation.new_tensor([1, width**0.5, 1, 1, width**0.5, 1])[:, None]  # see _unit
        self.modulations = [((modulation + layer.modulation + ones) * unit).unsqueeze(-2) for layer in self.layers]
        self.is_bounded = [_bound(layer) < MOST_SCORE for layer in self.layers]
        eps = torch.finfo(modulation.dtype).eps
        self.floor, self.head_floor = ((eps * size) ** 0.5 for size in (width, width // self.num_heads))
        self.floor, self.head_floor = (modulation.new_tensor(floor) for floor in (self.floor, self.head_floor))

    def __call__(self, x_SFnW: Tensor, levels: slice, frame: int) -> Tensor:
        """Return the latent tokens of the last new frame, [S, K, W].

        Args:
            x_SFnW: Blocks of one or two new frames, which are put behind the cache's kept tokens. Of two the first does
                not see the second.
            levels: Rows of the modulation, one per new frame.
            frame: Index of the last new frame among those that will be imagined.
        """
        x, frames = x_SFnW, x_SFnW.shape[1]
        tokens = slice((frame + 1 - frames) * self.block, (frame + 1) * self.block)
        for index, products in enumerate(self.products):
            mod = self.modulations[index][levels].unbind(1)
            straight, crossed = (table[..., tokens, :] for table in self.turns[index])
            normed = torch.addcmul(mod[0], _unit(x, self.floor), mod[1])
            if index < len(self.products) - 1:
                (make_qkv,) = products.heads
                (q, k), v = self._heads(normed, make_qkv, straight, crossed)
            else:
                make_q, make_kv = products.heads
                (k,), v = self._heads(normed, make_kv, straight[1:], crossed[1:])
                x, mod = x[:, -1:, self.first :], [part[-1:] for part in mod]
                latents = (table[:1, ..., self.first - self.block :, :] for table in (straight, crossed))
                (q,), _ = self._heads(normed[:, -1:, self.first :], make_q, *latents)
            self.cache.put(index, k, v)
            attended = self._attend(index, q, num_new=k.shape[2]).view(x.shape)
            x = torch.addcmul(x, mod[2], products.out(attended))
            inner = products.gate_up(torch.addcmul(mod[3], _unit(x, self.floor), mod[4]))
            gate, up = inner.chunk(2, dim=-1)
            x = torch.addcmul(x, mod[5], products.down(silu(gate).mul_(up)))
        return x[:, 0]

    def _heads(self, x: Tensor, product: Product, straight: Tensor, crossed: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a product makes of tokens: what is turned, [m, S, h, N, d], and what then remains."""
        made = product(x)
        shape = (len(x), x.shape[1] * x.shape[2], -1, self.num_heads, straight.shape[-1])
        made_mShNd = made.view(shape).permute(2, 0, 3, 1, 4).contiguous()
        unit = _unit(made_mShNd[: len(straight)], self.head_floor)
        turned = torch.addcmul(unit * straight, unit.roll(unit.shape[-1] // 2, -1), crossed)
        return turned, made_mShNd[-1]

    def _attend(self, index: int, q_ShNd: Tensor, num_new: int) -> Tensor:
        """Attend to the shared prefix and to each candidate's own suffix, [S, N, h, d]; see `cache.attend_shared`."""
        block, has_two = self.block, q_ShNd.shape[2] > self.block
        reach = self.window_tokens + (block if has_two else 0)
        (keys, values), (own_k, own_v) = self.cache.visible(index, num_new, reach)
        if self.sinks:
            keys, values = self.layers[index].with_sinks(keys, values)
        size_s, heads, size_n, width = q_ShNd.shape
        prefix = keys.shape[-2]
        own_scores = torch.bmm(q_ShNd.view(-1, size_n, width), own_k.flatten(0, 1).mT)
        scores = torch.cat([_by_prefix(q_ShNd, keys.mT), own_scores.view(size_s, heads, size_n, -1)], dim=-1)
        if not self.is_bounded[index]:
            scores -= scores.amax(dim=-1, keepdim=True)
        weights = scores.exp_()
        if has_two:
            weights[:, :, :block, -block:] = 0
            too_old = scores.shape[-1] - self.num_fixed - self.window_tokens
            if too_old > 0:
                weights[:, :, block:, self.num_fixed : self.num_fixed + too_old] = 0
        mixed = _by_prefix(weights[..., :prefix], values) + _product(weights[..., prefix:], own_v)
        out = mixed.new_empty(size_s, size_n, heads, width)
        torch.div(mixed.transpose(1, 2), weights.sum(dim=-1, keepdim=True).transpose(1, 2), out=out)
        return out


def _turns(layer: Layer, cos_Nd: Tensor, sin_Nd: Tensor) -> tuple[Tensor, Tensor]:
    """Return what rotates queries and keys: x * the first + (x with its halves swapped) * the second.

    [2, 1, 1, N, d] each, for queries and for keys, with the weights of their norms and the scale of scores in it.
    """
    weights = torch.stack([layer.q_norm.weight, layer.k_norm.weight])[:, None, None, None]
    size = weights.shape[-1]
    first, second = (weights * weights.new_tensor([1.0, size**0.5])[:, None, None, None, None]).chunk(2, dim=-1)
    straight = torch.cat([first * cos_Nd, second * cos_Nd], dim=-1)
    return straight, torch.cat([-second * sin_Nd, first * sin_Nd], dim=-1)


def _bound(layer: Layer) -> float:
    """Return what no score exceeds, as queries and keys are of known length before they are weighted and turned."""
    largest = layer.q_norm.weight.abs().max() * layer.k_norm.weight.abs().max()
    return float(largest) * len(layer.q_norm.weight) ** 0.5


def _unit(x: Tensor, floor: Tensor) -> Tensor:
    """Return x over its length, or over hardly more than `floor`: `nn.RMSNorm`, but for the root of the width."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


def _by_prefix(left_ShNx: Tensor, right: Tensor) -> Tensor:
    """Multiply [S, h, N, x] by the shared [h, x, y], or by [B, h, x, y], each for S / B candidates."""
    size_s, heads, size_n, inner = left_ShNx.shape
    if right.ndim == 3:
        left = left_ShNx.transpose(0, 1).reshape(heads, size_s * size_n, inner)
        return torch.bmm(left, right).view(heads, size_s, size_n, -1).transpose(0, 1)
    return torch.cat([_by_prefix(*pair) for pair in zip(left_ShNx.chunk(len(right)), right, strict=True)])


def _product(left_ShNM: Tensor, right_ShMd: Tensor) -> Tensor:
    """Multiply matrices of each candidate and head."""
    if left_ShNM.shape[2] * right_ShMd.shape[2] * right_ShMd.shape[3] < NAIVE_PRODUCTS:
        return (left_ShNM[..., None] * right_ShMd[:, :, None]).sum(dim=-2)
    return torch.bmm(left_ShNM.flatten(0, 1), right_ShMd.flatten(0, 1)).view(*left_ShNM.shape[:3], -1)
