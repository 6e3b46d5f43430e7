"""How an episode store lies on disk: its header, its arrays, the sizes of its chunks and shards.

A store is one zarr v3 group. Each feature is one array along a single time axis; the group `episodes` holds what
belongs to whole episodes. The header, in the attributes of the root group, says how many episodes and rows are
committed; rows beyond it do not exist for a reader. Writing the header is the one atomic step of a commit, so data are
always written first.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec

from embodied_wm.types import FeatureSpec

FORMAT = "embodied_wm.episodes"
VERSION = 1
ATTRIBUTE = "embodied_wm"
EPISODES = "episodes"

# A chunk is the unit of decompression, a shard is one file. Windows have some tens of rows: of frames, 8 in a chunk
# waste little at a window's ends and still compress well; of large frames fewer, of small vectors as many as are read
# at once without being felt.
CHUNK_ROWS = 8
MIN_CHUNK_BYTES = 32 * 1024
MAX_CHUNK_BYTES = 192 * 1024
MAX_CHUNK_ROWS = 1024
CHUNKS_PER_SHARD = 128

COMPRESSORS: tuple[BytesBytesCodec, ...] = (BloscCodec(cname="lz4hc", clevel=5, shuffle="shuffle"), Crc32cCodec())

# Arrays of the group `episodes`: name -> (dtype, rows per chunk).
EPISODE_ARRAYS = {
    "end": ("int64", 1024),
    "digest": ("uint64", 1024),
    "info_end": ("int64", 1024),
    "info": ("uint8", 65536),
}


class StoreError(ValueError):
    """Report an episode store that cannot be created, opened, read or written, with what to do about it."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Hold what the root attributes say: the features, and how much is committed.

    Attributes:
        fps: Rows per second.
        metadata: JSON values that belong to the whole store.
        num_info_bytes: Committed length of the array of episode infos (JSON text).
    """

    features: Mapping[str, FeatureSpec]
    fps: float
    metadata: Mapping[str, Any]
    num_episodes: int = 0
    num_frames: int = 0
    num_info_bytes: int = 0

    def advanced(self, *, num_episodes: int, num_frames: int, num_info_bytes: int) -> "Header":
        """Return the header after a commit of that many more episodes, rows and bytes of info."""
        return replace(
            self,
            num_episodes=self.num_episodes + num_episodes,
            num_frames=self.num_frames + num_frames,
            num_info_bytes=self.num_info_bytes + num_info_bytes,
        )

    def to_attributes(self) -> dict[str, Any]:
        """Return the JSON form."""
        features = {
            name: {"dtype": spec.dtype, "shape": list(spec.shape), "names": list(spec.names), "units": list(spec.units)}
            for name, spec in self.features.items()
        }
        return {
            ATTRIBUTE: {
                "format": FORMAT,
                "version": VERSION,
                "fps": self.fps,
                "features": features,
                "metadata": dict(self.metadata),
                "num_episodes": self.num_episodes,
                "num_frames": self.num_frames,
                "num_info_bytes": self.num_info_bytes,
            }
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> "Header":
        """Read the JSON form.

        Raises:
            StoreError: The group is not an episode store, is of another version, or its header is damaged.
        """
        raw = attributes.get(ATTRIBUTE)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise StoreError(
                f"{where} is a zarr group but not an episode store: expected the attribute {ATTRIBUTE!r} with format "
                f"{FORMAT!r}, got attributes {sorted(attributes)}. If its creation was interrupted, delete it and "
                "create it again; a LeRobot folder becomes a store with `embodied-wm import`."
            )
        if raw.get("version") != VERSION:
            relation = "newer" if isinstance(raw.get("version"), int) and raw["version"] > VERSION else "older"
            raise StoreError(
                f"{where} has store version {raw.get('version')!r}, which is {relation} than this program's; it reads "
                f"version {VERSION}. Use the embodied_wm release that wrote it, or collect or import the data again."
            )
        try:
            features = {
                str(name): FeatureSpec(
                    dtype=spec["dtype"],
                    shape=tuple(spec["shape"]),
                    names=tuple(spec["names"]),
                    units=tuple(spec["units"]),
                )
                for name, spec in raw["features"].items()
            }
            counts = {key: int(raw[key]) for key in ("num_episodes", "num_frames", "num_info_bytes")}
            return cls(features=features, fps=float(raw["fps"]), metadata=raw["metadata"], **counts)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StoreError(
                f"{where} has a damaged header (attribute {ATTRIBUTE!r} of zarr.json): {type(error).__name__}: "
                f"{error}. Restore zarr.json from a copy, or collect or import the data again."
            ) from error


def check_features(features: Mapping[str, FeatureSpec]) -> None:
    """Check that features can be stored.

    Raises:
        StoreError: No feature, a name that cannot be an array's, a dtype or shape that is not storable.
    """
    if not features:
        raise StoreError("A store needs at least one feature, got none. Pass features={name: FeatureSpec(...)}.")
    for name, spec in features.items():
        if not name or "/" in name or name.startswith((".", "__")) or name in (EPISODES, "zarr.json"):
            raise StoreError(
                f"Feature name {name!r} cannot be used: expected a name without '/', not starting with '.' or '__', "
                f"and other than {EPISODES!r}, such as 'observation.state'."
            )
        try:
            kind = np.dtype(spec.dtype).kind
        except TypeError as error:
            raise StoreError(
                f"Feature {name!r} has unknown dtype {spec.dtype!r}; use a NumPy name such as 'float32'."
            ) from error
        if kind not in "biuf":
            raise StoreError(
                f"Feature {name!r} has dtype {spec.dtype!r}; expected bool, integer or float. Put text into "
                "Episode.info."
            )
        if any(size < 1 for size in spec.shape):
            raise StoreError(f"Feature {name!r} has row shape {spec.shape}; every size must be at least 1.")


def check_json(value: Mapping[str, Any], what: str) -> bytes:
    """Return a mapping as UTF-8 JSON.

    Raises:
        StoreError: It holds something that JSON cannot (NaN, arrays, objects).
    """
    try:
        return json.dumps(dict(value), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise StoreError(f"{what} must hold JSON values only (finite numbers, text, lists, dicts): {error}.") from error


def chunk_rows(spec: FeatureSpec) -> int:
    """Return the rows of one chunk: a power of two."""
    row_bytes = np.dtype(spec.dtype).itemsize * math.prod(spec.shape)
    wanted = min(max(CHUNK_ROWS, MIN_CHUNK_BYTES // row_bytes), MAX_CHUNK_BYTES // row_bytes, MAX_CHUNK_ROWS)
    return 2 ** int(math.log2(max(1, wanted)))


def create_array(
    group: zarr.Group,
    name: str,
    dtype: str,
    row_shape: tuple[int, ...],
    rows: int,
    compressors: Sequence[BytesBytesCodec] = COMPRESSORS,
) -> None:
    """Create one empty array with `rows` rows a chunk.

    Chunks that hold zeros only are written too, so that a missing file is always a fault.
    """
    group.create_array(
        name,
        shape=(0, *row_shape),
        dtype=dtype,
        chunks=(rows, *row_shape),
        shards=(rows * CHUNKS_PER_SHARD, *row_shape),
        compressors=tuple(compressors),
        fill_value=0,
        config={"write_empty_chunks": True},
    )
