"""Batches of windows: shuffled, repeatable from (seed, step) alone, read ahead in the background."""

import math
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from embodied_wm.data.layout import StoreError
from embodied_wm.data.store import EpisodeStore
from embodied_wm.data.windows import WindowIndex, index_windows, split_episodes

__all__ = ["WindowLoader", "split_episodes"]

READ_BYTES = 64 * 2**20
NUM_READERS = 2
NUM_READ_AHEAD = 4


class WindowLoader:
    """Draw batches of windows from some episodes of a store.

    Training sees one endless sequence of epochs, each a fresh shuffle of all windows; batch `step` is its part
    [step * batch_size, (step + 1) * batch_size). So a run resumes at any step without replaying the ones before.
    Features are kept in memory, smallest first, as far as they fit the budget; the others are read from the store.
    """

    def __init__(
        self,
        store: EpisodeStore,
        *,
        episodes: Sequence[int] | np.ndarray,
        length: int,
        batch_size: int,
        features: Sequence[str],
        seed: int,
        stride: int = 1,
        memory_budget_bytes: int = 2**31,
    ) -> None:
        """Index the windows and load what fits into memory.

        Raises:
            StoreError: No window exists, an unknown feature, or NaN or infinity in a feature that is loaded.
        """
        if batch_size < 1:
            raise StoreError(f"The batch size must be at least 1, got {batch_size}.")
        unknown = sorted(set(features) - set(store.features))
        if unknown or not features:
            raise StoreError(
                f"Expected features among {sorted(store.features)}, got {list(features)} (unknown: {unknown})."
            )
        self._store = store
        self._features = list(features)
        self._seed = seed
        self._batch_size = batch_size
        self._ends = store.episode_ends
        self._index = index_windows(self._ends, [int(index) for index in episodes], length, stride)
        self._lock = threading.Lock()
        self._orders: dict[int, np.ndarray] = {}
        # Rows in memory are those of the chosen episodes, one episode after the other; _shift leads from store rows to
        # them.
        chosen = np.unique(self._index.episodes)
        lengths = store.episode_lengths[chosen]
        self._shift = np.zeros(store.num_episodes, dtype=np.int64)
        self._shift[chosen] = np.cumsum(lengths) - self._ends[chosen]
        self._resident: dict[str, np.ndarray] = {}
        sizes = {
            name: int(lengths.sum())
            * math.prod(store.features[name].shape)
            * np.dtype(store.features[name].dtype).itemsize
            for name in self._features
        }
        for name in sorted(sizes, key=lambda name: sizes[name]):
            memory_budget_bytes -= sizes[name]
            if memory_budget_bytes < 0:
                break
            self._resident[name] = self._load(name, chosen)

    @property
    def windows_per_epoch(self) -> int:
        """Return how many different windows there are."""
        return len(self._index)

    @property
    def index(self) -> WindowIndex:
        """Return the windows, with the episodes that were too short for one."""
        return self._index

    @property
    def resident_features(self) -> tuple[str, ...]:
        """Return the features that are kept in memory."""
        return tuple(name for name in self._features if name in self._resident)

    def windows(self, step: int) -> np.ndarray:
        """Return [batch_size] int64: which windows of the index make up batch `step`."""
        if step < 0:
            raise StoreError(f"Steps count from 0, got {step}.")
        first = step * self._batch_size
        positions = np.arange(first, first + self._batch_size)
        epochs, offsets = np.divmod(positions, self.windows_per_epoch)
        return np.concatenate([self._order(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)])

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return batch `step`: feature to [B, T, *row shape]; it depends on the seed and the step only.

        Raises:
            StoreError: NaN or infinity in a float feature, or a damaged store.
        """
        chosen = self.windows(step)
        starts, episodes = self._index.starts[chosen], self._index.episodes[chosen]
        rows = (starts + self._shift[episodes])[:, None] + np.arange(self._index.length)
        batch = {}
        for name in self._features:
            if name in self._resident:
                batch[name] = self._resident[name][rows]
            else:
                batch[name] = self._store.read_windows(name, starts, self._index.length)
                finite = _finite_rows(batch[name].reshape(-1, *batch[name].shape[2:]))
                if not finite.all():
                    window, offset = np.divmod(int(np.argmin(finite)), self._index.length)
                    self._raise_not_finite(name, int(starts[window] + offset))
        return batch

    def iterate(self, start_step: int = 0) -> Generator[dict[str, np.ndarray]]:
        """Yield batch `start_step` and all that follow, for ever, preparing some in the background."""
        with ThreadPoolExecutor(max_workers=NUM_READERS, thread_name_prefix="windows") as readers:
            ahead: deque[Future[dict[str, np.ndarray]]] = deque()
            step = start_step
            try:
                while True:
                    while len(ahead) < NUM_READ_AHEAD:
                        ahead.append(readers.submit(self.batch, step))
                        step += 1
                    yield ahead.popleft().result()
            finally:
                for waiting in ahead:
                    waiting.cancel()

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                for old in sorted(self._orders)[:-1]:
                    del self._orders[old]
                self._orders[epoch] = np.random.default_rng([self._seed, epoch]).permutation(self.windows_per_epoch)
            return self._orders[epoch]

    def _load(self, name: str, episodes: np.ndarray) -> np.ndarray:
        """Read a feature of some episodes into one array, in blocks, and check that it is finite."""
        spec = self._store.features[name]
        lengths = self._store.episode_lengths[episodes]
        rows = np.empty((int(lengths.sum()), *spec.shape), dtype=spec.dtype)
        block_rows = max(1, READ_BYTES // max(1, rows.itemsize * math.prod(spec.shape)))
        filled = 0
        # Neighbouring episodes are read as one.
        for run in np.split(episodes, np.flatnonzero(np.diff(episodes) != 1) + 1):
            first = int(self._ends[run[0]] - self._store.episode_lengths[run[0]])
            for start in range(first, int(self._ends[run[-1]]), block_rows):
                block = self._store.read(name, start, min(start + block_rows, int(self._ends[run[-1]])))
                finite = _finite_rows(block)
                if not finite.all():
                    self._raise_not_finite(name, start + int(np.argmin(finite)))
                rows[filled : filled + len(block)] = block
                filled += len(block)
        return rows

    def _raise_not_finite(self, name: str, row: int) -> None:
        episode = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[episode] - self._store.episode_lengths[episode])
        value = self._store.read(name, row, row + 1)[0]
        raise StoreError(
            f"{self._store.path}: {name!r} is not finite in episode {episode}, row {row - first} of that episode (row "
            f"{row} of the store): {np.array2string(value, threshold=16)}. Leave that episode out, or mend it and "
            "collect or import again."
        )


def _finite_rows(rows: np.ndarray) -> np.ndarray:
    """Tell for each row [N, ...] whether all its values are finite; rows that are not float always are."""
    if rows.dtype.kind != "f":
        return np.ones(len(rows), dtype=bool)
    return np.asarray(np.isfinite(rows).reshape(len(rows), -1).all(axis=1))
