"""Frozen dataclasses that cross module borders, and the key to the dimension letters.

Dimension key, used in jaxtyping annotations and as name suffixes in dense bodies:

====== ==================================================================
letter meaning
====== ==================================================================
B      batch (windows, environments)
T      time steps (frames) of a window
K      latent tokens per frame
D      width of one latent token
S      candidate action sequences of a planner
H      horizon, imagined steps
A      action size
C      context frames
====== ==================================================================

Row t of an episode is (observation_t, action_t): action_t is applied *between* frame t and frame t+1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """Describe one per-row feature of an episode store.

    Attributes:
        dtype: NumPy dtype name, such as "uint8" or "float32".
        shape: Shape of one row, without time; () for a scalar.
        names: Names of the last axis, where they are known.
        units: Units of the last axis ("m", "rad", ...), where they are known.
    """

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        """Tell whether rows are height x width x channel images of bytes."""
        return self.dtype == "uint8" and len(self.shape) == 3


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Hold one episode in memory.

    Attributes:
        features: Name to array of shape [T, *row shape]; every feature has the same T.
        info: JSON values that belong to the whole episode (seed, task text, ...).
    """

    features: Mapping[str, NDArray[Any]]
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def num_rows(self) -> int:
        """Return T, the number of rows."""
        return len(next(iter(self.features.values())))
