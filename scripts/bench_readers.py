# pyright: reportMissingImports=false
# (h5py, hdf5plugin and stable_worldmodel live in an environment of their own)
"""Read windows of the same data in several formats; each reader is a process that scripts/bench_loader.py drives.

A reader reads lines from standard input, each a JSON list of [episode, first row of the episode] pairs, reads these
windows in batches, and answers each line with the seconds it took, the processor seconds of all its threads, and the
sum of the last window's actions, so that all can be seen to have read the same. One thread each; Lance and the video
decoder start threads of their own.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 16
BATCH = 16
FPS = 10

type Windows = Sequence[tuple[int, int]]
type Reader = Callable[[Windows], np.ndarray]  # reads a batch and returns its actions, [B, LENGTH, A]


def episodes_of(npz: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (frames [T, H, W, 3] uint8, actions [T, A] float32) of each episode of the exchange file."""
    with np.load(npz) as data:
        frames, actions, ends = data["frames"], data["actions"], data["ends"]
    for start, stop in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
        yield frames[start:stop], actions[start:stop]


def starts_of(npz: str) -> np.ndarray:
    """Return [episodes] int64, the first row of each episode."""
    with np.load(npz) as data:
        return np.concatenate([[0], data["ends"][:-1]])


def open_store(npz: str, store: str) -> Reader:
    """Read our store, nothing of it kept in memory."""
    from embodied_wm.data.store import EpisodeStore

    opened = EpisodeStore.open(store)
    camera = next(name for name, spec in opened.features.items() if spec.is_image)
    firsts = starts_of(npz)

    def read(windows: Windows) -> np.ndarray:
        rows = [int(firsts[episode]) + start for episode, start in windows]
        opened.read_windows(camera, rows, LENGTH)
        return opened.read_windows("action", rows, LENGTH)

    return read


def write_hdf5(npz: str, path: str, *, blosc: bool) -> None:
    """Write one file with chunks and compression like ours (Blosc lz4hc), or with HDF5's own fast codec (lzf)."""
    import h5py
    import hdf5plugin

    with np.load(npz) as data, h5py.File(path, "w", libver="latest") as file:
        for name in ("frames", "actions"):
            rows = data[name]
            codec = hdf5plugin.Blosc(cname="lz4hc", clevel=5, shuffle=0) if blosc else {"compression": "lzf"}
            chunk = (int(data["chunk_rows"]) if name == "frames" else 1024, *rows.shape[1:])
            file.create_dataset(
                name, data=rows, chunks=tuple(min(*pair) for pair in zip(chunk, rows.shape, strict=True)), **codec
            )


def open_hdf5(npz: str, path: str) -> Reader:
    """Read slices with h5py straight into the batch."""
    import h5py
    import hdf5plugin  # noqa: F401 - importing it makes its codecs known

    file: Any = h5py.File(path, "r")
    frames, actions, firsts = file["frames"], file["actions"], starts_of(npz)

    def read(windows: Windows) -> np.ndarray:
        batch = np.empty((len(windows), LENGTH, *frames.shape[1:]), dtype=frames.dtype)
        led = np.empty((len(windows), LENGTH, *actions.shape[1:]), dtype=actions.dtype)
        for index, (episode, start) in enumerate(windows):
            rows = slice(int(firsts[episode]) + start, int(firsts[episode]) + start + LENGTH)
            frames.read_direct(batch, rows, index)
            actions.read_direct(led, rows, index)
        return led

    return read


def write_lance(npz: str, path: str) -> None:
    """Write with stable-worldmodel's own writer and its defaults (JPEG, quality 95)."""
    from stable_worldmodel.data import LanceWriter

    with LanceWriter(path, mode="overwrite") as writer:
        writer.write_episodes({"pixels": list(frames), "action": list(actions)} for frames, actions in episodes_of(npz))


def open_lance(npz: str, path: str) -> Reader:
    """Read batches as stable-worldmodel's data loader does."""
    from stable_worldmodel.data import LanceDataset

    dataset = LanceDataset(path, num_steps=LENGTH)
    indices = {(int(episode), int(start)): index for index, (episode, start) in enumerate(dataset.clip_indices)}

    def read(windows: Windows) -> np.ndarray:
        samples = dataset.__getitems__([indices[window] for window in windows])
        return np.stack([sample["action"].numpy() for sample in samples])

    return read


def write_lerobot(npz: str, path: str) -> None:
    """Write with lerobot's own writer and its defaults (video)."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = None
    for frames, actions in episodes_of(npz):
        if dataset is None:
            features = {
                "observation.images.top": {
                    "dtype": "video",
                    "shape": frames.shape[1:],
                    "names": ["height", "width", "channels"],
                },
                "action": {"dtype": "float32", "shape": actions.shape[1:], "names": None},
            }
            dataset = LeRobotDataset.create("bench/windows", FPS, features, root=path, use_videos=True)
        for frame, action in zip(frames, actions, strict=True):
            dataset.add_frame({"observation.images.top": frame, "action": action, "task": "move"})
        dataset.save_episode()
    if dataset is not None:
        dataset.finalize()


def open_lerobot(npz: str, path: str) -> Reader:
    """Read with lerobot's own reader, frames as bytes."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    ahead = [step / FPS for step in range(LENGTH)]
    deltas = {"observation.images.top": ahead, "action": ahead}
    dataset: Any = LeRobotDataset("bench/windows", root=path, delta_timestamps=deltas, return_uint8=True)
    firsts = starts_of(npz)

    def read(windows: Windows) -> np.ndarray:
        samples = [dataset[int(firsts[episode]) + start] for episode, start in windows]
        return np.stack([sample["action"].numpy() for sample in samples])

    return read


OPEN = {
    "embodied_wm": open_store,
    "hdf5_blosc": open_hdf5,
    "hdf5_lzf": open_hdf5,
    "lance": open_lance,
    "lerobot": open_lerobot,
}
WRITE = {
    "hdf5_blosc": lambda npz, path: write_hdf5(npz, path, blosc=True),
    "hdf5_lzf": lambda npz, path: write_hdf5(npz, path, blosc=False),
    "lance": write_lance,
    "lerobot": write_lerobot,
}


def main(kind: str, npz: str, path: str) -> None:
    """Write the data where they are not there yet, then read what standard input asks for."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    if not Path(path).exists():
        WRITE[kind](npz, path)
    read = OPEN[kind](npz, path)
    for line in sys.stdin:
        windows = [(int(episode), int(start)) for episode, start in json.loads(line)]
        began, processor = time.perf_counter(), time.process_time()
        for first in range(0, len(windows), BATCH):
            actions = read(windows[first : first + BATCH])
        answer = [time.perf_counter() - began, time.process_time() - processor, float(actions[-1].sum())]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
