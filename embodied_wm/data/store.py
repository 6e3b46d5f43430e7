"""Episodes in one zarr v3 store: append whole episodes atomically, read any rows back.

Crash safety rests on three facts. A local store is made beside its place and moved there, so it is there as a whole or
not at all. Every file of it is replaced by rename, never changed in place, so a shard that holds committed rows is at
every moment either the old one or the new one, and both hold those rows. And the header is written last: what was
written beyond it, by a process that was killed, is ignored by readers and overwritten by the next append.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import zarr
from zarr.errors import ContainsGroupError

from embodied_wm.data import layout
from embodied_wm.data.arrays import is_local, lock_for_writing, open_array, open_problems, unlock, write_rows
from embodied_wm.data.episodes import check_episode, digest_episode
from embodied_wm.data.files import CacheConfig, CachedFiles, LocalFiles, prepare_protocol
from embodied_wm.data.layout import EPISODE_ARRAYS, EPISODES, Header, StoreError
from embodied_wm.data.shards import ArrayReader
from embodied_wm.types import Episode, FeatureSpec

__all__ = ["EpisodeStore", "StoreError"]


class EpisodeStore:
    """Read and append episodes; make one with `create` or `open`, not with the constructor."""

    def __init__(
        self,
        path: str,
        group: zarr.Group,
        header: Header,
        *,
        writable: bool,
        lock: int | None = None,
        cache: CacheConfig | None = None,
    ) -> None:
        self.path = path
        self.address = str(Path(path).resolve()) if is_local(path) else path  # from any folder
        self._group = group
        self._header = header
        self._writable = writable
        self._lock = lock
        self._cache = cache or CacheConfig()
        self._readers: dict[str, ArrayReader] = {}
        self._ends = np.asarray(self._episode_rows("end", 0, header.num_episodes))
        if header.num_episodes and self._ends[-1] != header.num_frames:
            raise StoreError(
                f"{path}: the array episodes/end says {self._ends[-1]} rows, the header {header.num_frames}. The "
                "store is damaged; restore it from a copy, or collect or import the data again."
            )

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        features: Mapping[str, FeatureSpec],
        fps: float,
        metadata: Mapping[str, Any] | None = None,
    ) -> Self:
        """Create an empty store, open for appending.

        Raises:
            StoreError: Something is at `path` already, or a feature, fps or metadata cannot be stored.
        """
        where = str(path)
        layout.check_features(features)
        layout.check_json(metadata or {}, "metadata")
        if not np.isfinite(fps) or fps <= 0:
            raise StoreError(f"fps must be a positive number of rows per second, got {fps!r}.")
        if is_local(where) and Path(where).exists() and (not Path(where).is_dir() or any(Path(where).iterdir())):
            raise StoreError(
                f"{where} exists already. Open it with EpisodeStore.open(path, mode='a'), delete it, or choose "
                "another path."
            )
        if not is_local(where):
            prepare_protocol(where)
        header = Header(features=dict(features), fps=float(fps), metadata=dict(metadata or {}))
        # A local store is made beside its place and moved there, so that a kill leaves no half-made one.
        aside = f"{where.rstrip('/')}.creating" if is_local(where) else where
        lock = None
        try:
            lock = _clear_for_creating(aside)
            group = zarr.open_group(aside, mode="w-" if aside == where else "a", zarr_format=3)
            for name, spec in features.items():
                layout.create_array(group, name, spec.dtype, spec.shape, layout.chunk_rows(spec))
            episodes = group.create_group(EPISODES)
            for name, (dtype, rows) in EPISODE_ARRAYS.items():
                layout.create_array(episodes, name, dtype, (), rows)
            group.update_attributes(header.to_attributes())
            if aside != where:
                Path(aside).rename(where)
                group = zarr.open_group(where, mode="r+", zarr_format=3)
        except ContainsGroupError as error:
            raise StoreError(
                f"{where} holds a zarr group already. Open it with mode='a', delete it, or choose another path."
            ) from error
        except OSError as error:
            if aside != where:
                shutil.rmtree(aside, ignore_errors=True)
            unlock(lock)
            raise StoreError(f"{where} could not be created: {error}. Free space or choose another path.") from error
        return cls(where, group, header, writable=True, lock=lock)

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "a"] = "r", *, cache: CacheConfig | None = None) -> Self:
        """Open a store for reading ("r") or for reading and appending ("a").

        Args:
            path: A folder, or a URL that fsspec or obstore reads, such as "s3://bucket/reach.zarr".
            mode: "r" or "a".
            cache: Where files of a store behind a URL are kept; `CacheConfig()` when None.

        Raises:
            StoreError: No such path, not a store, another version, damaged, being appended to by somebody else
            (mode "a"), or behind a URL that cannot be read.
        """
        where = str(path)
        if mode not in ("r", "a"):
            raise StoreError(f"mode must be 'r' (read) or 'a' (read and append), got {mode!r}.")
        if is_local(where) and not Path(where).exists():
            raise StoreError(
                f"No such episode store: {where}. Make one with `embodied-wm collect` or `embodied-wm import`, or "
                "check the path."
            )
        if not is_local(where):
            prepare_protocol(where)
        lock = lock_for_writing(where) if mode == "a" else None
        try:
            group = zarr.open_group(where, mode="r" if mode == "r" else "r+", zarr_format=3)
        except open_problems(where) as error:
            unlock(lock)
            raise StoreError(
                f"{where} is not an episode store: no readable zarr v3 group ({type(error).__name__}: {error}). Give "
                "the folder that holds zarr.json; a LeRobot folder becomes a store with `embodied-wm import "
                "source=FOLDER out=STORE.zarr`."
            ) from error
        try:
            header = Header.from_attributes(dict(group.attrs), where)
            store = cls(where, group, header, writable=mode == "a", lock=lock, cache=cache)
        except StoreError:
            unlock(lock)
            raise
        if mode == "a" and is_local(where):
            for left_over in Path(where).rglob("*.partial"):
                left_over.unlink(missing_ok=True)
        return store

    @property
    def features(self) -> Mapping[str, FeatureSpec]:
        """Return name to description of every feature."""
        return self._header.features

    @property
    def fps(self) -> float:
        """Return rows per second."""
        return self._header.fps

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return the JSON values that belong to the whole store."""
        return self._header.metadata

    @property
    def num_episodes(self) -> int:
        """Return the number of committed episodes."""
        return self._header.num_episodes

    @property
    def num_frames(self) -> int:
        """Return the number of committed rows, over all episodes."""
        return self._header.num_frames

    @property
    def episode_ends(self) -> np.ndarray:
        """Return [num_episodes] int64: one past the last row of each episode."""
        return self._ends.copy()

    @property
    def episode_lengths(self) -> np.ndarray:
        """Return [num_episodes] int64: rows of each episode."""
        return np.diff(self._ends, prepend=0)

    def episode_info(self, index: int) -> dict[str, Any]:
        """Return the JSON values of one episode."""
        self._check_index(index)
        first = max(index - 1, 0)
        ends = self._episode_rows("info_end", first, index + 1)
        start = 0 if index == 0 else int(ends[0])
        return json.loads(self._episode_rows("info", start, int(ends[-1])).tobytes())

    def episode(self, index: int) -> Episode:
        """Read one whole episode, every feature of it."""
        self._check_index(index)
        stop = int(self._ends[index])
        start = stop - int(self.episode_lengths[index])
        return Episode(
            features={name: self.read(name, start, stop) for name in self.features}, info=self.episode_info(index)
        )

    def read(self, feature: str, start: int, stop: int) -> np.ndarray:
        """Read rows [start, stop) of a feature, counted over the whole store: [stop - start, *row shape].

        Raises:
            StoreError: No such feature, rows out of range, a damaged or missing chunk.
        """
        self._check_rows(feature, start, stop)
        return self._reader(feature).read(start, stop)

    def read_windows(self, feature: str, starts: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
        """Read windows of `length` rows at `starts` (rows of the whole store, any order): [B, length, *row shape]."""
        rows = np.asarray(starts, dtype=np.int64)
        if rows.ndim != 1 or length < 1:
            raise StoreError(
                f"Expected a list of starts and a length of at least 1, got shape {rows.shape} and {length}."
            )
        spec = self._spec(feature)
        windows = np.empty((len(rows), length, *spec.shape), dtype=spec.dtype)
        if len(rows):
            self._check_rows(feature, int(rows.min()), int(rows.max()) + length)
            reader = self._reader(feature)
            for window, start in zip(windows, rows.tolist(), strict=True):
                reader.read_into(window, start)
        return windows

    def append(self, episodes: Sequence[Episode]) -> None:
        """Append a group of episodes in one atomic commit: whatever happens, all of them are there afterwards or none.

        A commit costs some tens of milliseconds, so append many short episodes at a time.

        Raises:
            StoreError: The store is read-only, an episode does not match the features, or writing failed (a full disk).
        """
        if not self._writable:
            raise StoreError(
                f"{self.path} is open for reading only. Open it with EpisodeStore.open(path, mode='a') to append."
            )
        if not episodes:
            return
        for position, episode in enumerate(episodes):
            check_episode(episode, self.features, position)
        infos = [
            layout.check_json(episode.info, f"info of episode {position} of the group")
            for position, episode in enumerate(episodes)
        ]
        header = self._header
        ends = header.num_frames + np.cumsum([episode.num_rows for episode in episodes])
        info_ends = header.num_info_bytes + np.cumsum([len(info) for info in infos])
        digests = np.array([digest_episode(episode) for episode in episodes], dtype=np.uint64)
        info_bytes = np.frombuffer(b"".join(infos), dtype=np.uint8)
        advanced = header.advanced(
            num_episodes=len(episodes), num_frames=int(ends[-1]) - header.num_frames, num_info_bytes=len(info_bytes)
        )
        try:
            for name in self.features:
                rows = np.concatenate([episode.features[name] for episode in episodes])
                self._write(name, header.num_frames, rows)
            for name, values in (("end", ends), ("digest", digests), ("info_end", info_ends)):
                self._write(f"{EPISODES}/{name}", header.num_episodes, values)
            self._write(f"{EPISODES}/info", header.num_info_bytes, info_bytes)
            self._commit(advanced)
        except OSError as error:
            raise StoreError(
                f"{self.path}: {len(episodes)} episodes could not be written: {error}. The {header.num_episodes} "
                "episodes committed before are intact. Free space (or raise the limit) and append again."
            ) from error
        self._ends = np.concatenate([self._ends, ends])

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Set some keys of the store's metadata, atomically."""
        if not self._writable:
            raise StoreError(f"{self.path} is open for reading only. Open it with mode='a' to change its metadata.")
        merged = {**self.metadata, **metadata}
        layout.check_json(merged, "metadata")
        self._commit(replace(self._header, metadata=merged))

    def fingerprint(self) -> str:
        """Return 16 hex digits that name the content: features, fps, every row, every info.

        The metadata, and how the episodes were grouped when they were appended, do not matter.
        """
        attributes = Header(features=self.features, fps=self.fps, metadata={}).to_attributes()
        digest = hashlib.blake2b(json.dumps(attributes, sort_keys=True).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self._episode_rows("digest", 0, self.num_episodes)).tobytes())
        return digest.hexdigest()

    def num_bytes(self) -> int:
        """Return the size of the store where it lies.

        Raises:
            StoreError: It lies behind a URL whose server could not be reached.
        """
        return self._files().num_bytes()

    def close(self) -> None:
        """Give up the right to append, so that another process may."""
        self._writable = False
        unlock(self._lock)
        self._lock = None

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()

    def _commit(self, header: Header) -> None:
        self._group.update_attributes(header.to_attributes())
        self._header = header

    def _write(self, name: str, start: int, values: np.ndarray) -> None:
        self._readers.pop(name, None)
        write_rows(open_array(self._group, name, self.path), start, values)

    def _files(self) -> LocalFiles | CachedFiles:
        return LocalFiles(self.path) if is_local(self.path) else CachedFiles(self.path, self._cache)

    def _reader(self, name: str) -> ArrayReader:
        if name not in self._readers:
            self._readers[name] = ArrayReader(open_array(self._group, name, self.path), self._files(), name, self.path)
        return self._readers[name]

    def _episode_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        name = f"{EPISODES}/{name}"
        return self._reader(name).read(start, stop)

    def _spec(self, feature: str) -> FeatureSpec:
        if feature not in self.features:
            raise StoreError(f"{self.path} has no feature {feature!r}; it has {sorted(self.features)}.")
        return self.features[feature]

    def _check_rows(self, feature: str, start: int, stop: int) -> None:
        self._spec(feature)
        if not 0 <= start <= stop <= self.num_frames:
            raise StoreError(
                f"Rows {start} to {stop} of {feature!r} were asked for; {self.path} has rows 0 to {self.num_frames}."
            )

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.num_episodes:
            raise StoreError(f"{self.path} has no episode {index}; it has {self.num_episodes}, counted from 0.")


def _clear_for_creating(aside: str) -> int | None:
    """Lock the folder in which a store is about to be made, and empty it of what a killed process left.

    Raises:
        StoreError: Another process is making the same store.
    """
    if not is_local(aside):
        return None
    Path(aside).mkdir(parents=True, exist_ok=True)
    lock = lock_for_writing(aside)
    for left_over in Path(aside).iterdir():
        if left_over.is_dir():
            shutil.rmtree(left_over)
        elif left_over.name != ".lock":
            left_over.unlink()
    return lock
