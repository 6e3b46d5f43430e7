"""Episodes as latents in memory: what every stage after the frame tokenizer trains on.

Frames are encoded once; 18,000 frames of 16 tokens x 32 channels take 37 MB.
"""

from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from embodied_wm.data.store import EpisodeStore
from embodied_wm.data.windows import index_windows
from embodied_wm.progress import Track
from embodied_wm.tokenizer.frames import FrameTokenizer
from embodied_wm.training.loop import Batch, step_generator


class LatentEpisodes:
    """Hold the latents and low-dimensional features of chosen episodes, and draw random windows of them."""

    def __init__(
        self,
        store: EpisodeStore,
        tokenizer: FrameTokenizer,
        *,
        camera: str,
        episodes: Sequence[int],
        features: Sequence[str],
        console: Console | None = None,
    ) -> None:
        lengths = store.episode_lengths
        self.episodes = tuple(int(index) for index in episodes)
        self.ends = np.cumsum(lengths[list(self.episodes)])
        latents: list[Tensor] = []
        values: dict[str, list[Tensor]] = {name: [] for name in features}
        with Track("encode frames", int(self.ends[-1]), unit="frames", console=console) as track:
            for index in self.episodes:
                stop = int(store.episode_ends[index])
                start = stop - int(lengths[index])
                latents.append(tokenizer.encode(torch.from_numpy(store.read(camera, start, stop))))
                for name in features:
                    rows = torch.from_numpy(np.asarray(store.read(name, start, stop), dtype=np.float32))
                    values[name].append(rows.reshape(len(rows), -1))
                track.advance(stop - start)
        self.latents = torch.cat(latents)
        self.features = {name: torch.cat(rows) for name, rows in values.items()}

    @property
    def num_episodes(self) -> int:
        """Return how many episodes are held."""
        return len(self.episodes)

    def rows_of(self, episode: int) -> slice:
        """Return the rows of the n-th held episode."""
        stop = int(self.ends[episode])
        return slice(int(self.ends[episode - 1]) if episode else 0, stop)

    def sampler(
        self, *, length: int, batch_size: int, seed: int, members: Sequence[int] | None = None
    ) -> "LatentSampler":
        """Return a sampler of random windows from some (all by default) of the held episodes."""
        chosen = list(range(self.num_episodes)) if members is None else list(members)
        return LatentSampler(self, length=length, batch_size=batch_size, seed=seed, members=chosen)


class LatentSampler:
    """Draw windows at random; a batch depends on the seed and the step alone."""

    def __init__(
        self, data: LatentEpisodes, *, length: int, batch_size: int, seed: int, members: Sequence[int]
    ) -> None:
        index = index_windows(data.ends, members, length)
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.starts, self.episodes = torch.from_numpy(index.starts), torch.from_numpy(index.episodes)
        self.offsets = torch.arange(length)

    def batch(self, step: int) -> Batch:
        """Return latents, features and the held-episode number of a batch of windows."""
        chosen = torch.randint(len(self.starts), (self.batch_size,), generator=step_generator(self.seed, step))
        rows = self.starts[chosen][:, None] + self.offsets
        batch = {name: values[rows] for name, values in self.data.features.items()}
        return batch | {"latents": self.data.latents[rows], "episode": self.episodes[chosen]}
