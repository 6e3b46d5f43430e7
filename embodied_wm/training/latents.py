"""Episodes as latents: what every stage after the frame tokenizer trains on.

Frames are encoded once, into memory (18,000 frames of 16 tokens x 32 channels take 37 MB) or into an episode store
beside the run, which later stages and resumed runs read from the disk; or each batch anew, which is what both save.
Into memory every process encodes all of them; the store is made by one and read by all.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from embodied_wm.data.cameras import side_by_side
from embodied_wm.data.store import EpisodeStore
from embodied_wm.data.windows import index_windows
from embodied_wm.progress import Track
from embodied_wm.stride import chunked
from embodied_wm.tokenizer.cameras import CameraTokenizer
from embodied_wm.tokenizer.frames import FrameTokenizer
from embodied_wm.tokenizer.proprioception import ProprioceptionTokens
from embodied_wm.training.labels import read_labels
from embodied_wm.training.loop import Batch, Processes, step_generator
from embodied_wm.types import Episode, FeatureSpec
from embodied_wm.world_model import WorldModel

LatentsMode = Literal["memory", "zarr", "online"]
MODES: tuple[LatentsMode, ...] = ("memory", "zarr", "online")
GROUP = 32
"""Episodes of one commit to a store of latents."""


@dataclass(frozen=True)
class Felt:
    """Name a feature of proprioception and hold what turns it into tokens."""

    feature: str
    tokens: ProprioceptionTokens


def felt_by(model: WorldModel) -> Felt | None:
    """Return the proprioception that a model's latents hold, None where it only sees."""
    return None if model.proprioception is None else Felt(model.config.proprioception, model.proprioception)


class LatentEpisodes:
    """Hold the latents and low-dimensional features of chosen episodes, and draw random windows of them.

    Attributes:
        episodes: Numbers of the episodes in their store.
        ends: [E], rows before the end of each, counted over the held episodes.
        features: Name to [rows, size].
        latents: [rows, K, D]; no rows where they are not held in memory.
    """

    def __init__(
        self,
        store: EpisodeStore,
        tokenizer: FrameTokenizer | CameraTokenizer,
        *,
        camera: str,
        episodes: Sequence[int],
        features: Sequence[str],
        console: Console | None = None,
        mode: LatentsMode = "memory",
        folder: Path | None = None,
        processes: Processes | None = None,
        felt: Felt | None = None,
    ) -> None:
        """Encode the episodes, or prepare to.

        Args:
            store: Where the frames are.
            tokenizer: What encodes them.
            camera: Feature of the frames.
            episodes: Which episodes.
            features: Low-dimensional features to hold beside the latents.
            console: Where progress is shown.
            mode: "memory", "zarr" (a store of latents in `folder`, made by the main process) or "online" (each batch
                anew).
            folder: For "zarr".
            processes: Which processes train together; this one alone by default.
            felt: Proprioception that becomes tokens behind the picture's.

        Raises:
            ValueError: If the mode is unknown, or "zarr" has no folder.
            StoreError: If episodes cannot be read, or latents not be written.
        """
        if mode not in MODES or (mode == "zarr" and folder is None):
            raise ValueError(f"latents={mode!r} in folder {folder}: choose one of {', '.join(MODES)}; zarr needs one")
        self._store, self._tokenizer, self._camera, self._felt = store, tokenizer, camera, felt
        num_tokens = tokenizer.config.num_tokens + (felt.tokens.num_tokens if felt else 0)
        self._latent_shape = (num_tokens, tokenizer.config.token_width)
        self.processes = processes or Processes()
        self.episodes = tuple(int(index) for index in episodes)
        lengths = store.episode_lengths[list(self.episodes)]
        self.ends = np.cumsum(lengths)
        self._first_rows = torch.from_numpy(store.episode_ends[list(self.episodes)] - lengths)
        self.features = {name: self._load(name) for name in features}
        self.latents = torch.empty(0, *self._latent_shape)
        self._read: Callable[[Tensor, int], Tensor] = self._encode_windows
        if mode == "memory":
            self.latents = torch.cat([latents for _, latents in self._encoded(0, console)])
            self._read = lambda starts, length: self.latents[starts[:, None] + torch.arange(length)]
        elif folder is not None and mode == "zarr":
            if self.processes.is_main:
                self._precompute(folder, console)
            self.processes.wait()
            encoded = EpisodeStore.open(folder)
            self._read = lambda starts, length: torch.from_numpy(
                encoded.read_windows("latents", starts.numpy(), length)
            )

    @property
    def num_episodes(self) -> int:
        """Return how many episodes are held."""
        return len(self.episodes)

    def rows_of(self, episode: int) -> slice:
        """Return the rows of the n-th held episode."""
        stop = int(self.ends[episode])
        return slice(int(self.ends[episode - 1]) if episode else 0, stop)

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """Return the latents [B, length, K, D] of windows that start at these rows [B]."""
        return self._read(starts, length)

    def sampler(
        self,
        *,
        length: int,
        batch_size: int,
        seed: int,
        members: Sequence[int] | None = None,
        stride: int = 1,
        memory: int = 0,
    ) -> "LatentSampler":
        """Return a sampler of random windows from some (all by default) of the held episodes.

        With a stride a window is one row in so many, and its actions are all those up to the next row, side by side;
        where latents are not in memory, the rows in between are read all the same. With a memory a batch also holds
        latents [B, M, K, D] of that many random rows from before each window, of its episode.
        """
        chosen = list(range(self.num_episodes)) if members is None else list(members)
        return LatentSampler(
            self, length=length, batch_size=batch_size, seed=seed, members=chosen, stride=stride, memory=memory
        )

    def _load(self, name: str) -> Tensor:
        rows = [read_labels(self._store, name, *self._store_rows(place)) for place in range(self.num_episodes)]
        values = torch.from_numpy(np.concatenate(rows).astype(np.float32, copy=False))
        return values.reshape(len(values), -1)

    def _store_rows(self, place: int) -> tuple[int, int]:
        """Return the first row of the n-th held episode in its store, and the row after its last."""
        stop = int(self._store.episode_ends[self.episodes[place]])
        return int(self._first_rows[place]), stop

    @torch.no_grad()
    def _encode(self, read: Callable[[str], np.ndarray]) -> Tensor:
        """Encode the rows that `read` gives of a feature."""
        device = next(self._tokenizer.parameters()).device
        latents = self._tokenizer.encode(torch.from_numpy(side_by_side(read, self._camera)).to(device))
        if self._felt:
            values = torch.from_numpy(read(self._felt.feature).astype(np.float32, copy=False)).to(device)
            latents = self._felt.tokens.join(latents, values.reshape(*latents.shape[:-2], -1))
        return latents.cpu()

    def _encoded(self, first: int, console: Console | None) -> Iterator[tuple[int, Tensor]]:
        """Yield the place and the latents of every held episode from the n-th on."""
        start = int(self.ends[first - 1]) if first else 0
        with Track("encode frames", int(self.ends[-1]), unit="frames", start=start, console=console) as track:
            for place in range(first, self.num_episodes):
                begin, stop = self._store_rows(place)
                yield place, self._encode(partial(self._store.read, start=begin, stop=stop))
                track.advance(stop - begin)

    def _encode_windows(self, starts: Tensor, length: int) -> Tensor:
        """Read the frames of windows and encode them."""
        places = torch.searchsorted(torch.from_numpy(self.ends), starts, right=True)
        before = torch.from_numpy(np.concatenate([[0], self.ends[:-1]]))
        rows = self._first_rows[places] + starts - before[places]
        return self._encode(partial(self._store.read_windows, starts=rows.numpy(), length=length))

    def _precompute(self, folder: Path, console: Console | None) -> None:
        """Make the store of latents, or go on with it where an earlier call was stopped."""
        origin = {
            "store": self._store.fingerprint(),
            "camera": self._camera,
            "tokenizer": _fingerprint(self._tokenizer),
            "episodes": list(self.episodes),
        }
        if self._felt:
            origin["felt"] = [self._felt.feature, _fingerprint(self._felt.tokens.scale)]
        if folder.exists() and EpisodeStore.open(folder).metadata.get("latents_of") != origin:
            shutil.rmtree(folder)  # of other weights, data or episodes
        folder.parent.mkdir(parents=True, exist_ok=True)
        spec = FeatureSpec(dtype="float32", shape=self._latent_shape)
        opened = (
            EpisodeStore.open(folder, "a")
            if folder.exists()
            else EpisodeStore.create(
                folder, features={"latents": spec}, fps=self._store.fps, metadata={"latents_of": origin}
            )
        )
        with opened as target:
            waiting: list[Episode] = []
            for place, latents in self._encoded(target.num_episodes, console):
                waiting.append(Episode(features={"latents": latents.numpy()}))
                if len(waiting) == GROUP or place == self.num_episodes - 1:
                    target.append(waiting)
                    waiting.clear()


class LatentSampler:
    """Draw windows at random; a batch depends on the seed, its number and the rank alone."""

    def __init__(
        self,
        data: LatentEpisodes,
        *,
        length: int,
        batch_size: int,
        seed: int,
        members: Sequence[int],
        stride: int = 1,
        memory: int = 0,
    ) -> None:
        self.num_rows = (length - 1) * stride + 1
        index = index_windows(data.ends, members, self.num_rows)
        self.data, self.batch_size, self.seed, self.stride, self.memory = data, batch_size, seed, stride, memory
        self.starts, self.episodes = torch.from_numpy(index.starts), torch.from_numpy(index.episodes)
        self.offsets = torch.arange(self.num_rows)

    def batch(self, number: int) -> Batch:
        """Return latents, features and the held-episode number of a batch of windows of this process."""
        processes = self.data.processes
        return self.numbered(number * processes.world_size + processes.rank)

    def numbered(self, number: int) -> Batch:
        """Return a batch by its number among those of all processes."""
        generator = step_generator(self.seed, number)
        chosen = torch.randint(len(self.starts), (self.batch_size,), generator=generator)
        starts = self.starts[chosen]
        rows = starts[:, None] + self.offsets
        batch = {name: values[rows[:, :: self.stride]] for name, values in self.data.features.items()}
        if self.stride > 1 and "action" in batch:
            batch["action"] = chunked(self.data.features["action"][rows], self.stride)
        latents = self.data.windows(starts, self.num_rows)[:, :: self.stride]
        if self.memory:
            batch["memory"] = self._remembered(starts, self.episodes[chosen], generator)
        return batch | {"latents": latents, "episode": self.episodes[chosen]}

    def _remembered(self, starts: Tensor, episodes: Tensor, generator: torch.Generator) -> Tensor:
        """Return latents [B, M, K, D] of random rows before the windows; of its first row where a window has none."""
        firsts = torch.from_numpy(np.concatenate([[0], self.data.ends]))[episodes]
        earlier = (starts - firsts).clamp_min(1)[:, None]
        rows = firsts[:, None] + (torch.rand(len(starts), self.memory, generator=generator) * earlier).long()
        return self.data.windows(rows.flatten(), 1)[:, 0].unflatten(0, rows.shape)


def _fingerprint(module: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


__all__ = ["MODES", "Felt", "LatentEpisodes", "LatentSampler", "LatentsMode", "felt_by"]
