"""Products with int8 weights, for imagination on a CPU.

Weights are rounded once, per output channel; inputs at each product, per token; sums are exact in 32 bits. Each product
of random numbers is off by 0.8% of its length. Only what `extension` multiplies by weights is rounded: attention,
norms, what goes in and comes out, encoders and readouts stay in fp32, and so does what gradients flow through.

How much faster that is, and what else was tried, is in `scripts/bench_savings.py`. It is for CPUs with products of int8
(VNNI); on others it can be slower: `embodied-wm benchmark speed checkpoint=... precision=int8` tells.
"""

from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from embodied_wm.predictor.transformer import BlockCausalTransformer, Precision

LEVELS = 127
"""Largest number that is used; -128 has no counterpart."""


class Int8Weight(NamedTuple):
    """Hold a weight as whole numbers and the scale of each output channel; it is called as the product with it."""

    codes: Int8[Tensor, "inputs outputs"]
    scales: Float[Tensor, " outputs"]

    def __call__(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Return x times the weight; a token that is not finite stays so."""
        rows = x.reshape(-1, x.shape[-1])
        codes, scales = _rounded(rows)
        whole = torch.ops.aten._int_mm(codes, self.codes)
        return torch.mul(whole, scales).mul_(self.scales).view(*x.shape[:-1], -1)


def int8_weight(weight: Float[Tensor, "outputs inputs"]) -> Int8Weight:
    """Round a weight of `nn.Linear`."""
    codes, scales = _rounded(weight)
    return Int8Weight(codes.t().contiguous(), scales[:, 0])


def set_precision(transformer: BlockCausalTransformer, precision: Precision) -> None:
    """Choose what imagination without gradients multiplies in: "fp32", or "int8" on a CPU.

    Raises:
        ValueError: If the precision is unknown, or int8 is asked for of a model that is not on the CPU or has another
            mixer than attention.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision}: expected one of {', '.join(get_args(Precision))}")
    device = next(transformer.parameters()).device
    if precision == "int8" and device.type != "cpu":
        raise ValueError(f"precision=int8: the model is on {device}; use device=cpu, or precision=fp32")
    if precision == "int8" and type(transformer) is not BlockCausalTransformer:
        raise ValueError(
            f"precision=int8: models of mixer={transformer.config.mixer} imagine in fp32 alone; use precision=fp32"
        )
    transformer.precision = precision


def _rounded(rows: Float[Tensor, "rows width"]) -> tuple[Int8[Tensor, "rows width"], Float[Tensor, "rows 1"]]:
    """Return rows as whole numbers, and the scale of each."""
    scales = rows.abs().amax(1, keepdim=True).mul_(1 / LEVELS).clamp_min_(torch.finfo(rows.dtype).tiny)
    return (rows / scales).round_().to(torch.int8), scales
