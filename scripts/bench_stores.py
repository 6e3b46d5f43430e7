# pyright: reportMissingImports=false
# (zarrs and imagecodecs are measured where they are installed)
"""Measures of single choices of the store and the loader, for scripts/bench_loader.py.

Rates are per second of processor time of the thread that reads, which does not depend on what else the machine does;
`workers` and `scale` measure seconds on the clock. Candidates are read alternately, medians over rounds.
"""

import importlib.util
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from rich.console import Console
from rich.table import Table
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from embodied_wm.data import layout
from embodied_wm.data.arrays import open_array, write_rows
from embodied_wm.data.files import LocalFiles
from embodied_wm.data.loader import WindowLoader
from embodied_wm.data.shards import ArrayReader
from embodied_wm.data.store import EpisodeStore
from embodied_wm.types import Episode, FeatureSpec

LENGTH = 16
BATCH = 16
NUM_WINDOWS = 320
SCALE_BATCHES = 200
MAX_ROWS = 6000
GROUP_ROWS = 1000  # rows of one append
CHECK = Crc32cCodec()
BLOSC = {
    "blosc lz4-5": ("lz4", 5, "noshuffle"),
    "blosc lz4hc-5": ("lz4hc", 5, "noshuffle"),
    "blosc lz4hc-9": ("lz4hc", 9, "noshuffle"),
    "blosc lz4-5 bitshuffle": ("lz4", 5, "bitshuffle"),
    "blosc zstd-1": ("zstd", 1, "noshuffle"),
    "blosc zstd-5": ("zstd", 5, "noshuffle"),
    "blosc zstd-1 bitshuffle": ("zstd", 1, "bitshuffle"),
}
CODECS = {
    "none": (CHECK,),
    **{
        name: (BloscCodec(cname=codec, clevel=level, shuffle=shuffle, typesize=1), CHECK)  # type: ignore[arg-type]
        for name, (codec, level, shuffle) in BLOSC.items()
    },
    "zstd-1": (ZstdCodec(level=1), CHECK),
    "zstd-9": (ZstdCodec(level=9), CHECK),
    "gzip-1": (GzipCodec(level=1), CHECK),
}
"""What is measured with chunks of our size; the codec that was chosen, with others."""
CHUNK_ROWS = (1, 2, 4, 8, 16, 32)
IMAGE_CODECS = {
    "jpeg 95 (lossy)": ("jpeg8", {"level": 95}),
    "webp 95 (lossy)": ("webp", {"level": 95, "lossless": False}),
    "webp lossless": ("webp", {"lossless": True}),
    "png": ("png", {"level": 1}),
    "qoi": ("qoi", {}),
    "jpeg xl lossless": ("jpegxl", {"lossless": True, "effort": 1}),
}

type Rows = dict[str, dict[str, float]]
type ReadWindow = Callable[[np.ndarray, int], None]


def frames_of(path: Path) -> np.ndarray:
    """Return the first frames of a store: [N, H, W, 3] uint8."""
    store = EpisodeStore.open(path)
    camera = next(name for name, spec in store.features.items() if spec.is_image)
    return store.read(camera, 0, min(store.num_frames, MAX_ROWS))


def window_rates(readers: Mapping[str, ReadWindow], frames: np.ndarray, rounds: int) -> dict[str, float]:
    """Return windows per second of processor time, medians over alternate rounds, after one that is not timed."""
    starts = np.random.default_rng(0).integers(0, len(frames) - LENGTH, NUM_WINDOWS).tolist()
    batch = np.empty((BATCH, LENGTH, *frames.shape[1:]), dtype=frames.dtype)
    times: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds + 1):
        for name, read in readers.items():
            began = time.process_time()
            for position, start in enumerate(starts):
                read(batch[position % BATCH], start)
            times[name].append(time.process_time() - began)
            if not (batch[-1] == frames[starts[-1] : starts[-1] + LENGTH]).all() and "lossy" not in name:
                raise RuntimeError(f"{name} does not give back what was written")
    return {name: NUM_WINDOWS / float(np.median(rows[1:])) for name, rows in times.items()}


@contextmanager
def scratch_group(folder: Path) -> Iterator[tuple[zarr.Group, str]]:
    """Give a group for arrays that are deleted afterwards."""
    where = tempfile.mkdtemp(dir=folder)
    try:
        yield zarr.open_group(where, mode="w", zarr_format=3), where
    finally:
        shutil.rmtree(where)


def write_candidate(
    group: zarr.Group, where: str, name: str, frames: np.ndarray, rows: int, codecs: Sequence[Any]
) -> tuple[ReadWindow, dict[str, float]]:
    """Write frames as an array, appending as collecting does; return its reader, and size and write rate."""
    layout.create_array(group, name, "uint8", frames.shape[1:], rows, codecs)
    began = time.process_time()
    for start in range(0, len(frames), GROUP_ROWS):
        write_rows(open_array(group, name, where), start, frames[start : start + GROUP_ROWS])
    seconds = time.process_time() - began
    size = sum(file.stat().st_size for file in Path(where, name, "c").rglob("*") if file.is_file())
    reader = ArrayReader(open_array(group, name, where), LocalFiles(where), name, where)
    return reader.read_into, {"times smaller": frames.nbytes / size, "frames written/s": len(frames) / seconds}


def image_candidate(name: str, frames: np.ndarray) -> tuple[ReadWindow, dict[str, float]]:
    """Encode every frame as an image, in memory: without the cost of files, the best that image codecs could do."""
    import imagecodecs

    codec, options = IMAGE_CODECS[name]
    encode, decode = getattr(imagecodecs, f"{codec}_encode"), getattr(imagecodecs, f"{codec}_decode")
    began = time.process_time()
    encoded = [encode(frame, **options) for frame in frames]
    seconds = time.process_time() - began

    def read(window: np.ndarray, start: int) -> None:
        for offset in range(LENGTH):
            window[offset] = decode(encoded[start + offset])

    size = sum(map(len, encoded))
    return read, {"times smaller": frames.nbytes / size, "frames written/s": len(frames) / seconds}


def measure_compression(path: Path, folder: Path, rounds: int) -> Rows:
    """Compare codecs at our chunk size, chunk sizes with our codec, and image codecs."""
    frames = frames_of(path)
    own = layout.chunk_rows(FeatureSpec(dtype="uint8", shape=frames.shape[1:]))
    readers: dict[str, ReadWindow] = {}
    facts: Rows = {}
    with scratch_group(folder) as (group, where):
        candidates = [(f"{name}, {own} rows", own, codecs) for name, codecs in CODECS.items()]
        candidates += [(f"default, {rows} rows", rows, layout.COMPRESSORS) for rows in CHUNK_ROWS]
        for name, rows, codecs in candidates:
            readers[name], facts[name] = write_candidate(group, where, name, frames, rows, codecs)
        if importlib.util.find_spec("imagecodecs"):
            for name in IMAGE_CODECS:
                readers[name], facts[name] = image_candidate(name, frames)
        rates = window_rates(readers, frames, rounds)
    return {name: {**row, "windows/s": rates[name]} for name, row in facts.items()}


def measure_pipelines(path: Path, folder: Path, rounds: int) -> Rows:
    """Compare our reading of a store's frames with zarr's own pipeline and, where it is installed, with zarrs."""
    del folder
    frames = frames_of(path)
    camera = next(name for name, spec in EpisodeStore.open(path).features.items() if spec.is_image)

    def through(pipeline: str) -> ReadWindow:
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            array = zarr.open_group(path, mode="r")[camera]
        assert isinstance(array, zarr.Array)

        def read(window: np.ndarray, start: int) -> None:
            window[...] = array[start : start + LENGTH]

        return read

    group = zarr.open_group(path, mode="r")
    reader = ArrayReader(open_array(group, camera, str(path)), LocalFiles(str(path)), camera, str(path))
    readers = {"ours": reader.read_into, "zarr": through("zarr.core.codec_pipeline.BatchedCodecPipeline")}
    if importlib.util.find_spec("zarrs"):
        readers["zarrs"] = through("zarrs.ZarrsCodecPipeline")
    return {name: {"windows/s": rate} for name, rate in window_rates(readers, frames, rounds).items()}


def make_loader(path: Path) -> WindowLoader:
    """Return a loader of all windows that keeps nothing in memory."""
    store = EpisodeStore.open(path)
    camera = next(name for name, spec in store.features.items() if spec.is_image)
    return WindowLoader(
        store,
        episodes=range(store.num_episodes),
        length=LENGTH,
        batch_size=BATCH,
        features=[camera, "action"],
        seed=0,
        memory_budget_bytes=0,
    )


_LOADERS: dict[str, WindowLoader] = {}


def _batch_in_process(path: str, step: int) -> dict[str, np.ndarray]:
    if path not in _LOADERS:
        _LOADERS[path] = make_loader(Path(path))
    return _LOADERS[path].batch(step)


def measure_workers(path: Path, folder: Path, rounds: int) -> Rows:
    """Compare threads with processes that send their batches to this one, in windows a second on the clock."""
    del folder
    loader, num_batches = make_loader(path), 60
    rates: dict[str, list[float]] = {}
    pools = {count: ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) for count in (1, 2)}

    def consume(name: str, batches: Iterator[object]) -> None:
        began = time.perf_counter()
        for _ in batches:
            pass
        rates.setdefault(name, []).append(num_batches * BATCH / (time.perf_counter() - began))

    for _ in range(rounds + 1):
        consume("no worker", map(loader.batch, range(num_batches)))
        for count in (1, 2, 4):
            stream = loader.iterate(num_readers=count)
            consume(f"threads: {count}", islice(stream, num_batches))
            stream.close()
        for count, pool in pools.items():
            consume(f"processes: {count}", pool.map(_batch_in_process, [str(path)] * num_batches, range(num_batches)))
    for pool in pools.values():
        pool.shutdown()
    return {name: {"windows/s": float(np.median(row[1:]))} for name, row in rates.items()}


def make_scaled(path: Path, num_episodes: int) -> EpisodeStore:
    """Return a store of that many episodes of 20 to 40 small frames, made unless it is there."""
    if path.exists():
        return EpisodeStore.open(path)
    features = {
        "observation.images.top": FeatureSpec(dtype="uint8", shape=(16, 16, 3)),
        "action": FeatureSpec(dtype="float32", shape=(4,)),
    }
    rng = np.random.default_rng(0)
    with EpisodeStore.create(path, features=features, fps=10) as store:
        for first in range(0, num_episodes, 2000):
            episodes = []
            for number in range(first, min(first + 2000, num_episodes)):
                rows = int(rng.integers(20, 41))
                frames = np.zeros((rows, 16, 16, 3), dtype=np.uint8)
                frames[np.arange(rows), np.arange(rows) % 16] = rng.integers(0, 256, 3, dtype=np.uint8)
                actions = rng.normal(size=(rows, 4)).astype(np.float32)
                episode_features = {"observation.images.top": frames, "action": actions}
                episodes.append(Episode(features=episode_features, info={"number": number, "task": "move"}))
            store.append(episodes)
    return EpisodeStore.open(path)


def measure_scale(folder: Path, num_episodes: int, rounds: int) -> dict[str, float]:
    """Compare a large store with one of 100 episodes: seconds to open, and random windows a second."""
    paths = {"small": folder / "episodes100.zarr", "large": folder / f"episodes{num_episodes}.zarr"}
    for name, count in (("small", 100), ("large", num_episodes)):
        make_scaled(paths[name], count)
    began = time.perf_counter()
    EpisodeStore.open(paths["large"])
    open_seconds = time.perf_counter() - began
    began = time.perf_counter()
    loaders = {name: make_loader(path) for name, path in paths.items()}
    index_seconds = time.perf_counter() - began
    ratios, rates = [], []
    for first in range(0, (rounds + 1) * SCALE_BATCHES, SCALE_BATCHES):
        seconds = {}
        for name, loader in loaders.items():
            loader.windows(first)  # the shuffle of an epoch is made once
            began = time.process_time()
            for step in range(first, first + SCALE_BATCHES):
                loader.batch(step)
            seconds[name] = time.process_time() - began
        ratios.append(seconds["small"] / seconds["large"])
        rates.append(SCALE_BATCHES * BATCH / seconds["large"])
    return {
        "episodes": num_episodes,
        "open_seconds": open_seconds,
        "loader_seconds": index_seconds,
        "windows_per_cpu_second": float(np.median(rates[1:])),
        "rate_of_large_over_small": float(np.median(ratios[1:])),
    }


def show(rows: Rows, title: str, console: Console) -> None:
    """Print a table."""
    table = Table(title=title)
    columns = list(next(iter(rows.values())))
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(
            name, *(f"{row[column]:,.1f}" if row[column] < 100 else f"{row[column]:,.0f}" for column in columns)
        )
    console.print(table)
