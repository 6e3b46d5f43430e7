"""Measure the loader: PROTOCOL's `load`, and the tables behind the choices of the data modules.

    python scripts/bench_loader.py load         random 16-frame windows a second: our store, LeRobot, HDF5, Lance
    python scripts/bench_loader.py compression  size, window rate and write rate of codecs and chunk sizes
    python scripts/bench_loader.py pipelines    our reading of shards against zarr's own
    python scripts/bench_loader.py workers      threads against processes
    python scripts/bench_loader.py scale        100,000 episodes against 100

Prints a table, and JSON with `--json FILE`. The data are episodes of the reach task, collected on the first run, or any
store (`--store`). The peers, HDF5 and stable-worldmodel, are installed into an environment of their own on the first
run. All readers run alternately, so a ratio compares what happened within seconds; its interval is over rounds.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_readers
import bench_stores
import numpy as np
from rich.console import Console
from rich.table import Table

from embodied_wm.data.files import default_cache_folder
from embodied_wm.data.layout import chunk_rows
from embodied_wm.data.store import EpisodeStore
from embodied_wm.data.windows import index_windows
from embodied_wm.evaluation.statistics import bootstrap_quantile

SIZES = (64, 128)
PEER_PACKAGES = (
    "stable-worldmodel==0.1.1",
    *("h5py", "hdf5plugin", "imageio", "opencv-python-headless", "pygame", "pymunk", "shapely"),  # what it imports
)
ROUND_SECONDS = 1.0


def collected(folder: Path, size: int) -> Path:
    """Return a store of 60 episodes of the reach task, 100 frames each, collected unless it is there."""
    path = folder / f"reach{size}.zarr"
    if not path.exists():
        command = [sys.executable, "-m", "embodied_wm.cli", "collect", "task=reach", f"task.image_size={size}"]
        subprocess.run(
            [*command, "episodes=60", "rows=100", f"out={path}", f"run_dir={folder / f'collect{size}'}"], check=True
        )
    return path


def peers_python(folder: Path) -> Path:
    """Return the interpreter of the peers' environment, made unless it is there."""
    python = folder / "peers" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "peers", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
    return python


def exchange(folder: Path, store: EpisodeStore, name: str) -> Path:
    """Write frames, actions and episode ends to a file that every reader's process can load."""
    path = folder / f"{name}.npz"
    if not path.exists():
        camera = next(name for name, spec in store.features.items() if spec.is_image)
        np.savez(
            path,
            frames=store.read(camera, 0, store.num_frames),
            actions=store.read("action", 0, store.num_frames),
            ends=store.episode_ends,
            chunk_rows=chunk_rows(store.features[camera]),
        )
    return path


class ReaderProcess:
    """Drive one reader."""

    def __init__(self, kind: str, python: Path, npz: Path, path: Path) -> None:
        self._kind = kind
        script = Path(bench_readers.__file__)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
        self._process = subprocess.Popen(
            [python, script, kind, npz, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def read(self, windows: Sequence[tuple[int, int]]) -> tuple[float, float, float]:
        """Return the seconds and the processor seconds that the windows took, and the sum of the last one's actions."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(windows) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the reader {self._kind} ended; its error stands above")
        seconds, processor_seconds, checksum = json.loads(answer)
        return seconds, processor_seconds, checksum

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure_load(path: Path, folder: Path, python: Path, rounds: int) -> dict[str, Any]:
    """Time all readers alternately on random windows and return rates and ratios with intervals over rounds."""
    store = EpisodeStore.open(path)
    npz = exchange(folder, store, path.stem)
    ends = store.episode_ends
    index = index_windows(ends, range(store.num_episodes), bench_readers.LENGTH)
    firsts = ends - store.episode_lengths
    rng = np.random.default_rng(0)

    def draw(count: int) -> list[tuple[int, int]]:
        chosen = rng.integers(0, len(index), count)
        episodes, starts = index.episodes[chosen], index.starts[chosen]
        return [(int(episode), int(start - firsts[episode])) for episode, start in zip(episodes, starts, strict=True)]

    kinds = list(bench_readers.OPEN)
    places = {kind: path if kind == "embodied_wm" else folder / f"{path.stem}.{kind}" for kind in kinds}
    places["lance"] = folder / f"{path.stem}.lance"
    own = {"embodied_wm", "lerobot"}
    readers = {
        kind: ReaderProcess(kind, Path(sys.executable) if kind in own else python, npz, places[kind]) for kind in kinds
    }
    same = draw(bench_readers.BATCH)
    checksums = {kind: reader.read(same)[2] for kind, reader in readers.items()}
    if not np.allclose(list(checksums.values()), checksums["embodied_wm"], atol=1e-3):
        raise RuntimeError(f"the readers read different windows; sums of actions: {checksums}")
    counts = {}
    for kind, reader in readers.items():
        seconds = reader.read(draw(2 * bench_readers.BATCH))[0]
        counts[kind] = bench_readers.BATCH * max(1, round(2 * ROUND_SECONDS / seconds))
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, reader in readers.items():
            times[kind].append(reader.read(draw(counts[kind]))[:2])
    for reader in readers.values():
        reader.close()
    rates = {kind: counts[kind] / np.array(times[kind]) for kind in kinds}  # [rounds, (clock, processor)]
    return {kind: {**figures(rates[kind], rates["embodied_wm"]), "bytes": size_of(places[kind])} for kind in kinds}


def figures(rates: np.ndarray, ours: np.ndarray) -> dict[str, Any]:
    """Return medians over rounds, with intervals, of rates and of ours over them, by the clock and by the processor."""
    result: dict[str, Any] = {}
    for column, clock in enumerate(("", "_cpu")):
        ratios = ours[:, column] / rates[:, column]
        result[f"windows_per{clock}_second"] = bootstrap_quantile(rates[:, column], 0.5, seed=0)
        result[f"ratio{clock}"] = bootstrap_quantile(ratios, 0.5, seed=0) | {
            "least": float(ratios.min()),
            "most": float(ratios.max()),
        }
    return result


def size_of(path: Path) -> int:
    """Return the bytes of a file or of all files in a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def show_load(measured: dict[str, dict[str, Any]], console: Console) -> None:
    """Print rates and ratios."""
    columns = ("reader", "windows/s", "ours / it (least to most)", "windows/CPU-s", "ours / it (least to most)", "MB")
    for name, readers in measured.items():
        table = Table(title=f"{name}: random windows of {bench_readers.LENGTH} frames")
        for column in columns:
            table.add_column(column, justify="left" if column == "reader" else "right")
        for kind, row in readers.items():
            cells = [kind]
            for clock in ("", "_cpu"):
                ratio = row[f"ratio{clock}"]
                cells.append(f"{row[f'windows_per{clock}_second']['value']:,.0f}")
                cells.append(f"{ratio['value']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})")
            table.add_row(*cells, f"{row['bytes'] / 1e6:.1f}")
        console.print(table)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = ("load", "compression", "pipelines", "workers", "scale")
    parser.add_argument("measure", nargs="?", default="load", choices=measures)
    parser.add_argument("--folder", type=Path, default=default_cache_folder() / "bench", help="where data are made")
    parser.add_argument("--store", type=Path, action="append", help="a store to measure on; may be given repeatedly")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--episodes", type=int, default=100_000, help="episodes of the large store (scale)")
    parser.add_argument("--peers-python", type=Path, help="interpreter that has h5py and stable-worldmodel (load)")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    arguments = parser.parse_args()
    console = Console(width=120)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if arguments.measure == "scale":
        measured = bench_stores.measure_scale(folder, arguments.episodes, arguments.rounds)
        console.print_json(data=measured)
    else:
        stores = arguments.store or [collected(folder, size) for size in SIZES]
        if arguments.measure == "load":
            python = arguments.peers_python or peers_python(folder)
            measured = {path.stem: measure_load(path, folder, python, arguments.rounds) for path in stores}
            show_load(measured, console)
        else:
            measure = getattr(bench_stores, f"measure_{arguments.measure}")
            measured = {path.stem: measure(path, folder, arguments.rounds) for path in stores}
            for name, rows in measured.items():
                bench_stores.show(rows, f"{arguments.measure}, {name}", console)
    if arguments.json:
        report = {"kind": "speed", "wall_seconds": time.monotonic() - began, "speed": {arguments.measure: measured}}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
