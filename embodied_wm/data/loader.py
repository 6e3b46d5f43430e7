"""Batches of windows of one store or several: shuffled, repeatable from (seed, step) alone, read ahead by threads.

A batch of a mixture comes from one store. Robots differ in action size, cameras and image size; a batch that mixed
them would need padding and masks in every tensor, which every model would have to honour, and would spend memory and
time on zeros. A batch of one store has the shapes of that store, as if it were alone, and names it, so that a model
picks the right embedding. All ranks of a distributed run read from the same store at the same step, because ranks that
use different parameters in one step cannot average their gradients.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from embodied_wm.data.layout import StoreError
from embodied_wm.data.store import EpisodeStore
from embodied_wm.data.windows import WindowIndex, index_windows, split_episodes

__all__ = ["MixtureBatch", "MixtureLoader", "MixtureSchedule", "WindowLoader", "split_episodes"]

READ_BYTES = 64 * 2**20
NUM_READERS = 2
MIXTURE_BLOCK = 1000


def read_ahead[Batch](
    read: Callable[[int], Batch], start_step: int = 0, num_readers: int = NUM_READERS
) -> Generator[Batch]:
    """Yield `read(start_step)` and all that follow, for ever and in order, prepared by threads: two each in advance.

    The number of readers changes nothing but the time. Threads, because reading and decompressing release the GIL and
    a batch need not be sent anywhere: on two busy cores, 2 threads gave 3,942 and 3,266 windows of 16 frames a second
    at 64x64 and 128x128, 2 processes that send their batches 1,344 and 514 (`scripts/bench_loader.py workers`).
    """
    if num_readers < 1:
        raise StoreError(f"Reading ahead needs at least 1 reader, got {num_readers}.")
    with ThreadPoolExecutor(max_workers=num_readers, thread_name_prefix="windows") as readers:
        ahead: deque[Future[Batch]] = deque()
        step = start_step
        try:
            while True:
                while len(ahead) < 2 * num_readers:
                    ahead.append(readers.submit(read, step))
                    step += 1
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


class WindowLoader:
    """Draw batches of windows from some episodes of a store.

    Training sees one endless sequence of epochs, each a fresh shuffle of all windows; batch `step` is its part
    [step * batch_size, (step + 1) * batch_size). So a run resumes at any step without replaying the ones before.
    With several ranks, the parts go round: rank r of `world_size` reads part `step * world_size + r`, so an epoch
    shows every window once to one rank or another, and one rank with batches `world_size` times as large sees the same
    windows at each step.
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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Index the windows and load what fits into memory.

        Args:
            store: Where to read.
            episodes: Numbers of the episodes to take windows from.
            length: Rows of a window.
            batch_size: Windows of a batch, on this rank.
            features: Which features a batch holds.
            seed: Seeds the shuffles; the same on all ranks.
            stride: Rows between the starts of neighbouring windows.
            memory_budget_bytes: What features kept in memory may take.
            rank: Which of the processes that train together this is, counted from 0.
            world_size: How many processes train together.

        Raises:
            StoreError: No window exists, an unknown feature, or NaN or infinity in a feature that is loaded.
        """
        if batch_size < 1:
            raise StoreError(f"The batch size must be at least 1, got {batch_size}.")
        if not 0 <= rank < world_size:
            raise StoreError(f"The rank must lie in 0 to world_size - 1 = {world_size - 1}, got {rank}.")
        unknown = sorted(set(features) - set(store.features))
        if unknown or not features:
            raise StoreError(
                f"Expected features among {sorted(store.features)}, got {list(features)} (unknown: {unknown})."
            )
        self._store = store
        self._features = list(features)
        self._seed = seed
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
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
    def robot(self) -> str:
        """Return what the store's metadata say of the robot; "unknown" where they say nothing."""
        return str(self._store.metadata.get("robot", "unknown"))

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
        """Return [batch_size] int64: which windows of the index make up batch `step` of this rank."""
        if step < 0:
            raise StoreError(f"Steps count from 0, got {step}.")
        first = (step * self._world_size + self._rank) * self._batch_size
        positions = np.arange(first, first + self._batch_size)
        epochs, offsets = np.divmod(positions, self.windows_per_epoch)
        return np.concatenate([self._order(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)])

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return batch `step`: feature to [B, T, *row shape]; it depends on seed, step and rank only.

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

    def iterate(self, start_step: int = 0, num_readers: int = NUM_READERS) -> Generator[dict[str, np.ndarray]]:
        """Yield batch `start_step` and all that follow, for ever, prepared by that many threads."""
        return read_ahead(self.batch, start_step, num_readers)

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


@dataclass(frozen=True, kw_only=True)
class MixtureBatch:
    """Hold a batch of one of the stores.

    Attributes:
        source: The store's name in the mixture.
        robot: What the store's metadata says of the robot; "unknown" where they say nothing.
        features: Feature to [B, T, *row shape], with that store's own shapes.
    """

    source: str
    robot: str
    features: Mapping[str, np.ndarray]


class MixtureSchedule:
    """Say which of several sources each batch comes from, by weight.

    The proportions hold exactly in every block of MIXTURE_BLOCK batches, which is shuffled; so which source is next,
    and how many of its batches came before, follow from (seed, step) alone, and a run resumes at any step.
    """

    def __init__(self, weights: Mapping[str, float], *, seed: int) -> None:
        """Fix the proportions.

        Args:
            weights: Name to the share of batches, in any unit; above zero.
            seed: Seeds the order; the same on all ranks.

        Raises:
            StoreError: A weight that is not positive or less than one batch in MIXTURE_BLOCK.
        """
        shares = np.array(list(weights.values()), dtype=np.float64)
        if not (np.isfinite(shares).all() and (shares > 0).all()):
            raise StoreError(f"Weights of a mixture must be positive numbers, got {dict(weights)}.")
        self._names = tuple(weights)
        self._seed = seed
        self._counts = _apportion(shares / shares.sum() * MIXTURE_BLOCK)
        if not self._counts.all():
            rare = self._names[int(np.argmin(self._counts))]
            raise StoreError(
                f"The weight of {rare!r}, {weights[rare]}, is less than one batch in {MIXTURE_BLOCK}. Raise it or "
                "leave that store out."
            )
        self._blocks: dict[int, np.ndarray] = {}

    def source(self, step: int) -> tuple[str, int]:
        """Return which source batch `step` comes from, and how many batches of that source came before it."""
        if step < 0:
            raise StoreError(f"Steps count from 0, got {step}.")
        block, position = divmod(step, MIXTURE_BLOCK)
        order = self._order(block)
        member = int(order[position])
        before = block * int(self._counts[member]) + int((order[:position] == member).sum())
        return self._names[member], before

    def _order(self, block: int) -> np.ndarray:
        known = self._blocks.get(block)
        if known is None:
            members = np.repeat(np.arange(len(self._names)), self._counts)
            known = np.random.default_rng([self._seed, block]).permutation(members)
            self._blocks = {block: known}
        return known


class MixtureLoader:
    """Draw each batch from one of several loaders, by weight (see `MixtureSchedule`).

    Each loader has its own batch size, window length and features, and sees its own windows once an epoch.
    """

    def __init__(self, loaders: Mapping[str, WindowLoader], *, weights: Mapping[str, float], seed: int) -> None:
        """Fix the proportions.

        Args:
            loaders: Name to loader, each made with the rank and the world size of this process.
            weights: Name to the share of batches, in any unit; above zero.
            seed: Seeds the order; the same on all ranks.

        Raises:
            StoreError: No loader, names that differ, or a weight that is not positive or less than one batch in
            MIXTURE_BLOCK.
        """
        if not loaders or set(loaders) != set(weights):
            raise StoreError(
                f"Expected one weight for each store of a mixture, got stores {sorted(loaders)} and weights of "
                f"{sorted(weights)}."
            )
        self._loaders = dict(loaders)
        self._schedule = MixtureSchedule({name: weights[name] for name in loaders}, seed=seed)

    def source(self, step: int) -> tuple[str, int]:
        """Return which store batch `step` comes from, and how many batches of that store came before it."""
        return self._schedule.source(step)

    def batch(self, step: int) -> MixtureBatch:
        """Return batch `step`; it depends on the seeds, the step and the rank only.

        Raises:
            StoreError: NaN or infinity in a float feature, or a damaged store.
        """
        name, own_step = self.source(step)
        loader = self._loaders[name]
        return MixtureBatch(source=name, robot=loader.robot, features=loader.batch(own_step))

    def iterate(self, start_step: int = 0, num_readers: int = NUM_READERS) -> Generator[MixtureBatch]:
        """Yield batch `start_step` and all that follow, for ever, prepared by that many threads."""
        return read_ahead(self.batch, start_step, num_readers)


def _apportion(quotas: np.ndarray) -> np.ndarray:
    """Round to whole numbers with the same sum, the largest remainders up."""
    counts = np.floor(quotas).astype(np.int64)
    left = round(float(quotas.sum())) - int(counts.sum())
    counts[np.argsort(counts - quotas, kind="stable")[:left]] += 1
    return counts


def _finite_rows(rows: np.ndarray) -> np.ndarray:
    """Tell for each row [N, ...] whether all its values are finite; rows that are not float always are."""
    if rows.dtype.kind != "f":
        return np.ones(len(rows), dtype=bool)
    return np.asarray(np.isfinite(rows).reshape(len(rows), -1).all(axis=1))
