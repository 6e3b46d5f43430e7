"""Structural similarity of frames, by two matrix products per map instead of a two-dimensional convolution.

The same figure as torchmetrics (a test compares them), 2.3 times faster on a CPU, and 1.0 to 1e-5 for equal frames,
where torchmetrics in single precision gives 0.9995: variances of flat areas are rounded.
"""

import functools

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

_SIGMA, _TAPS = 1.5, 11


@functools.cache
def _smoothing(size: int) -> Tensor:
    """Return the matrix [size, size] that takes Gaussian means, with pixels mirrored at the border."""
    offsets = torch.arange(_TAPS) - _TAPS // 2
    taps = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    last = size - 1
    columns = last - (last - (torch.arange(size)[:, None] + offsets).abs()).abs()
    return torch.zeros(size, size).scatter_add_(1, columns, (taps / taps.sum()).expand(size, -1))


def ssim(
    first: UInt8[Tensor, "*batch height width 3"], second: UInt8[Tensor, "*batch height width 3"]
) -> Float[Tensor, "*batch"]:
    """Return the structural similarity of each pair of frames (Wang et al. 2004, Gaussian window of 11 pixels).

    Raises:
        ValueError: If frames are too small to be mirrored at their borders.
    """
    height, width = first.shape[-3:-1]
    if min(height, width) <= _TAPS // 2:
        raise ValueError(f"got frames of {height}x{width}; structural similarity needs {_TAPS // 2 + 1} pixels a side")
    down, across = _smoothing(height).to(first.device), _smoothing(width).T.to(first.device)
    x, y = (frames.movedim(-1, -3).float() / 255 for frames in (first, second))
    mean_x, mean_y, xx, yy, xy = (down @ part @ across for part in (x, y, x * x, y * y, x * y))
    variances = (xx - mean_x**2).clamp_min(0) + (yy - mean_y**2).clamp_min(0)
    contrast = (2 * (xy - mean_x * mean_y) + 0.03**2) / (variances + 0.03**2)
    brightness = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return (brightness * contrast).mean((-3, -2, -1))
