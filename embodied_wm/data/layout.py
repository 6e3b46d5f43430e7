"""How an episode store lies on disk: its header, its arrays, the sizes of its chunks and shards.

A store is one zarr v3 group. Each feature is one array along a single time axis; the group `episodes` holds what
belongs to whole episodes. The header, in the attributes of the root group, says how many episodes and rows are
committed; rows beyond it do not exist for a reader. Writing the header is the one atomic step of a commit, so data are
always written first.

Codec and chunk size were chosen by `scripts/bench_loader.py compression`: times smaller / frames written a second /
random 16-frame windows read a second, the rates per second of processor time (two cores, Python 3.12):

====================== ======================= ====================== =====================
frames                 reach, 64x64            reach, 128x128         CR5 (camera), 64x64
rows in a chunk        8                       4                      8
====================== ======================= ====================== =====================
none                   1.0 / 15,111 / 10,970   1.0 / 4,725 / 3,396    1.0 / 14,596 / 11,475
Blosc lz4-5            14.3 / 22,051 / 12,641  17.0 / 9,690 / 5,363   1.0 / 15,692 / 9,086
**Blosc lz4hc-5**      23.1 / 13,410 / 14,534  29.6 / 4,533 / 6,589   1.2 / 3,150 / 5,350
Blosc lz4hc-9          23.8 / 7,303 / 14,031   31.8 / 2,531 / 6,818   1.2 / 3,347 / 5,248
Blosc lz4-5 bitshuffle 7.4 / 17,025 / 4,185    7.1 / 7,128 / 1,402    1.3 / 13,480 / 4,004
Blosc zstd-1           18.3 / 13,139 / 5,155   21.4 / 6,786 / 1,971   1.2 / 7,760 / 2,301
Blosc zstd-5           26.8 / 10,515 / 7,925   37.3 / 4,060 / 3,758   1.4 / 3,181 / 2,245
zstd-1                 23.8 / 20,270 / 6,965   29.1 / 8,494 / 3,648   1.2 / 9,096 / 2,682
zstd-9                 27.0 / 11,131 / 7,877   37.4 / 3,795 / 3,973   1.4 / 3,379 / 2,232
gzip-1                 15.2 / 11,324 / 2,399   20.8 / 4,659 / 1,107   1.4 / 3,223 / 668
JPEG 95 (lossy)        6.9 / 33,282 / 1,267    15.5 / 17,681 / 1,018  5.9 / 31,601 / 1,307
WebP lossless          17.9 / 3,124 / 1,928    30.3 / 331 / 913       2.5 / 229 / 616
QOI                    13.6 / 96,300 / 7,040   21.8 / 31,319 / 2,394  1.6 / 21,495 / 1,978
JPEG XL lossless       10.9 / 1,546 / 386      13.5 / 1,712 / 218     2.2 / 2,573 / 270
====================== ======================= ====================== =====================

(Image codecs in memory, without the cost of files.) Blosc lz4hc-5 is about as small as zstd-1 and read twice as fast:
what is compressed well is also read faster than what is not compressed at all. Frames of a real camera hardly shrink
without loss: WebP would halve them, and be read 9 times slower. Lossy codecs are left out because a store is what
others are made from. With lz4hc-5, chunks of 2, 4, 8, 16, 32 rows give 10,242, 12,490, 15,893, 13,427, 10,781 windows
a second at 64x64 and 5,624, 6,538, 5,581, 4,962, 3,675 at 128x128.
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
