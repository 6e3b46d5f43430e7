"""Frames for training: batches of short windows for the tokenizer, and the pictures that show what was learnt."""

import math
from collections.abc import Callable, Generator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embodied_wm.data.cameras import camera_names, side_by_side
from embodied_wm.data.loader import WindowLoader, read_ahead
from embodied_wm.data.normalize import Normalizer, compute_statistics
from embodied_wm.data.store import EpisodeStore
from embodied_wm.training.labels import read_labels
from embodied_wm.training.loop import Batch, Processes
from embodied_wm.world_model import WorldModel

TOKENIZER_WINDOW = 3
COLUMNS = 8
"""Columns of a picture grid."""
CONTEXT = 3


class ReadAhead:
    """Offer batches by their numbers, prepared in advance as long as the numbers follow each other."""

    def __init__(self, read: Callable[[int], Batch], num_readers: int) -> None:
        self._read, self._num_readers = read, num_readers
        self._ahead: Generator[Batch] | None = None
        self._next = 0

    def __call__(self, number: int) -> Batch:
        """Return a batch."""
        if self._ahead is None or number != self._next:
            if self._ahead is not None:
                self._ahead.close()
            self._ahead = read_ahead(self._read, number, self._num_readers)
        self._next = number + 1
        return next(self._ahead)


class WindowLabels:
    """Hold the actions, and the states if wanted, of labelled episodes alone; those of others are not even read."""

    def __init__(
        self, store: EpisodeStore, labelled: Sequence[int], *, measured: Sequence[int] = (), state: str = ""
    ) -> None:
        """Read the labels of some episodes.

        Args:
            store: Has the episodes.
            labelled: Those that are trained on, numbered as in the store.
            measured: Further ones, that are held out: they have labels, too, but no part in the state's scale.
            state: Feature that is the state, which is normalised; empty for none.
        """
        ends, lengths = store.episode_ends, store.episode_lengths
        features = {"action": "action"} | ({"state": state} if state else {})
        self._rows = {
            name: torch.zeros(store.num_frames, math.prod(store.features[feature].shape))
            for name, feature in features.items()
        }
        self._is_labelled = torch.zeros(store.num_episodes, dtype=torch.bool)
        for episode in (*labelled, *measured):
            start, stop = int(ends[episode] - lengths[episode]), int(ends[episode])
            for name, feature in features.items():
                rows = read_labels(store, feature, start, stop).astype(np.float32)
                self._rows[name][start:stop] = torch.from_numpy(rows.reshape(stop - start, -1))
            self._is_labelled[episode] = True
        if state:
            statistics = compute_statistics(store, state, labelled)
            normalizer = Normalizer(statistics.mean.reshape(-1), statistics.std.reshape(-1))
            self._rows["state"] = normalizer.normalize(self._rows["state"])

    def of_windows(self, loader: WindowLoader, number: int) -> Batch:
        """Return "action" and "state" [B, T, ...] of a loader's batch, and whether they are known, "labelled" [B]."""
        chosen = loader.windows(number)
        starts, episodes = loader.index.starts[chosen], torch.from_numpy(loader.index.episodes[chosen])
        rows = torch.from_numpy(starts)[:, None] + torch.arange(loader.index.length)
        return {name: values[rows] for name, values in self._rows.items()} | {"labelled": self._is_labelled[episodes]}


class FrameBatches:
    """Make loaders of windows of three frames, and what reads their batches."""

    def __init__(
        self,
        store: EpisodeStore,
        camera: str,
        *,
        batch_size: int,
        seed: int,
        processes: Processes,
        memory_budget_bytes: int,
        labels: WindowLabels | None = None,
    ) -> None:
        self._store, self._camera, self._processes, self._labels = store, camera, processes, labels
        self._batch_size, self._seed, self._budget = batch_size, seed, memory_budget_bytes

    def loader(self, episodes: Sequence[int], *, alone: bool = False) -> WindowLoader:
        """Return the loader of this process; `alone` as if there were no other, and without filling memory."""
        return WindowLoader(
            self._store,
            episodes=episodes,
            length=TOKENIZER_WINDOW,
            batch_size=self._batch_size,
            features=list(camera_names(self._camera)),
            seed=self._seed,
            memory_budget_bytes=0 if alone else self._budget,
            rank=0 if alone else self._processes.rank,
            world_size=1 if alone else self._processes.world_size,
        )

    def reader(self, loader: WindowLoader) -> Callable[[int], Batch]:
        """Return what reads a loader's batches; threads read ahead from the disk, and for a GPU from memory, too."""

        def read(number: int) -> Batch:
            found = loader.batch(number)
            batch = {"frames": torch.from_numpy(side_by_side(found.__getitem__, self._camera))}
            return batch if self._labels is None else batch | self._labels.of_windows(loader, number)

        is_resident = set(camera_names(self._camera)) <= set(loader.resident_features)
        is_at_hand = is_resident and self._processes.device.type == "cpu"
        return read if is_at_hand else ReadAhead(read, self._processes.num_readers)

    def first_frames(self, episodes: Sequence[int], loader: WindowLoader, num_batches: int) -> Tensor:
        """Return the first frames of the first batches, the same on every process."""
        if self._processes.world_size > 1:
            loader = self.loader(episodes, alone=True)
        found = (loader.batch(number) for number in range(num_batches))
        batches = (side_by_side(batch.__getitem__, self._camera)[:, 0] for batch in found)
        return torch.from_numpy(np.concatenate(list(batches))).to(self._processes.device)


def drawn_reconstruction(store: EpisodeStore, episode: int, model: WorldModel) -> Callable[[], NDArray[np.uint8]]:
    """Return what draws frames of an episode above their reconstructions."""
    frames = side_by_side(partial(store.read, **_rows(store, episode, COLUMNS)), model.embodiment.camera)

    def draw() -> NDArray[np.uint8]:
        real = torch.from_numpy(frames).to(model.action_low.device)
        return np.stack([frames, model.tokenizer.decode(model.tokenizer.encode(real)).cpu().numpy()])

    return draw


def drawn_imagination(
    store: EpisodeStore, episode: int, model: WorldModel, seed: int
) -> Callable[[], NDArray[np.uint8]]:
    """Return what draws the frames that follow a context above those imagined from it and the recorded actions."""
    frames, actions, felt = _window(store, episode, model, CONTEXT + COLUMNS)

    def draw() -> NDArray[np.uint8]:
        device = model.action_low.device
        real, led_by = torch.from_numpy(frames).to(device), torch.from_numpy(actions).to(device)
        context = model.prefill(
            real[:CONTEXT], led_by[: CONTEXT - 1], proprioception=None if felt is None else felt[:CONTEXT]
        )
        future = led_by[None, CONTEXT - 1 : len(frames) - 1]
        imagined = model.imagine(context, future, generator=torch.Generator().manual_seed(seed))[0]
        return np.stack([frames[CONTEXT:], model.decode(imagined, real[CONTEXT - 1]).cpu().numpy()])

    return draw


def felt_rows(store: EpisodeStore, model: WorldModel, start: int, stop: int) -> Tensor | None:
    """Return the proprioception [stop - start, P] of a store's rows that a model wants with its frames, if any."""
    if model.proprioception is None:
        return None
    rows = store.read(model.config.proprioception, start, stop).reshape(stop - start, model.proprioception.size)
    return torch.from_numpy(rows.astype(np.float32)).to(model.action_low.device)


@torch.no_grad()
def past_latents(store: EpisodeStore, model: WorldModel, start: int, stop: int) -> Tensor | None:
    """Return the latents [stop - start, K, D] of a store's rows for a model with a memory; None where there is none."""
    if not model.config.predictor.memory or stop <= start:
        return None
    rows = side_by_side(partial(store.read, start=start, stop=stop), model.embodiment.camera)
    return model.encode(torch.from_numpy(rows).to(model.action_low.device), felt_rows(store, model, start, stop))


def _window(
    store: EpisodeStore, episode: int, model: WorldModel, length: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], Tensor | None]:
    """Return the first frames of an episode, the actions between them, and the proprioception that a model wants."""
    rows = _rows(store, episode, length)
    return (
        side_by_side(partial(store.read, **rows), model.embodiment.camera),
        store.read("action", **rows).astype(np.float32),
        felt_rows(store, model, **rows),
    )


def _rows(store: EpisodeStore, episode: int, length: int) -> dict[str, int]:
    """Return the first rows of an episode, at most so many: where they start and stop in the store."""
    stop = int(store.episode_ends[episode])
    start = stop - int(store.episode_lengths[episode])
    return {"start": start, "stop": min(stop, start + length)}
