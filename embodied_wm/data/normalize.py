"""Statistics of a feature over episodes, and the normalisation that they define."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from embodied_wm.data.layout import StoreError
from embodied_wm.data.store import EpisodeStore

MIN_STD = 1e-4
READ_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """Summarise a feature; an image per channel, everything else per element.

    Attributes:
        mean: [*row shape] float64, or [channels] for an image, as `std`, `minimum` and `maximum`.
        std: Population standard deviation.
        count: Number of rows.
    """

    mean: np.ndarray
    std: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    count: int


def compute_statistics(store: EpisodeStore, feature: str, episodes: Sequence[int] | np.ndarray) -> FeatureStatistics:
    """Compute the statistics of a feature over some episodes, in one pass and in float64.

    Raises:
        StoreError: No episode, an unknown feature or episode, or NaN or infinity, naming episode and row.
    """
    if feature not in store.features:
        raise StoreError(f"{store.path} has no feature {feature!r}; it has {sorted(store.features)}.")
    if len(episodes) == 0:
        raise StoreError(f"Statistics of {feature!r} need at least one episode, got none.")
    spec = store.features[feature]
    ends, lengths = store.episode_ends, store.episode_lengths
    block_rows = max(1, READ_BYTES // (8 * math.prod(spec.shape)))
    mean, squares, minimum, maximum, num_values, num_rows = 0.0, 0.0, np.inf, -np.inf, 0, 0
    for episode in episodes:
        if not 0 <= episode < store.num_episodes:
            raise StoreError(f"{store.path} has no episode {episode}; it has {store.num_episodes}, counted from 0.")
        first, stop = int(ends[episode] - lengths[episode]), int(ends[episode])
        for start in range(first, stop, block_rows):
            rows = store.read(feature, start, min(start + block_rows, stop)).astype(np.float64)
            finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            if not finite.all():
                row = start - first + int(np.argmin(finite))
                raise StoreError(
                    f"{store.path}: {feature!r} is not finite in episode {episode}, row {row}. Leave that episode "
                    "out, or mend it."
                )
            num_rows += len(rows)
            if spec.is_image:
                rows = rows.reshape(-1, rows.shape[-1])
            # Merge the moments of two parts (Chan, Golub and LeVeque 1983): stable where the mean is large beside the
            # spread.
            part_mean = rows.mean(axis=0)
            total = num_values + len(rows)
            delta = part_mean - mean
            squares = (
                squares + np.square(rows - part_mean).sum(axis=0) + np.square(delta) * num_values * len(rows) / total
            )
            mean = mean + delta * len(rows) / total
            num_values = total
            minimum, maximum = np.minimum(minimum, rows.min(axis=0)), np.maximum(maximum, rows.max(axis=0))
    std = np.sqrt(squares / num_values)
    return FeatureStatistics(
        mean=np.asarray(mean),
        std=np.asarray(std),
        minimum=np.asarray(minimum),
        maximum=np.asarray(maximum),
        count=num_rows,
    )


class Normalizer(nn.Module):
    """Shift and scale the last axes of a tensor to zero mean and unit variance.

    The statistics are buffers, so they are saved and moved with the model that owns this. An element that hardly varies
    (std below `min_std`) is only shifted, not blown up.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: np.ndarray | Tensor, std: np.ndarray | Tensor, *, min_std: float = MIN_STD) -> None:
        """Keep mean and std, both of the shape of one row.

        Raises:
            ValueError: The shapes differ, or a value is not finite or a std negative.
        """
        super().__init__()
        mean, std = torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(std, dtype=torch.float32)
        if mean.shape != std.shape:
            raise ValueError(f"Mean and std must have one shape, got {tuple(mean.shape)} and {tuple(std.shape)}.")
        if not (mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
            raise ValueError(
                f"Mean and std must be finite and std not negative, got {mean.tolist()} and {std.tolist()}."
            )
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", torch.where(std < min_std, torch.ones_like(std), std))

    @classmethod
    def from_statistics(cls, statistics: FeatureStatistics, *, min_std: float = MIN_STD) -> "Normalizer":
        """Make a normalizer of a feature's statistics."""
        return cls(statistics.mean, statistics.std, min_std=min_std)

    @classmethod
    def identity(cls, size: int) -> "Normalizer":
        """Make a normalizer that changes nothing, of row shape [size], to load saved statistics into."""
        return cls(torch.zeros(size), torch.ones(size))

    def normalize(self, values: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Map physical values to normalised ones."""
        return (values - self.mean) / self.std

    def denormalize(self, values: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Map normalised values back to physical ones."""
        return values * self.std + self.mean
