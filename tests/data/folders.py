"""Write small LeRobot folders whose frames and rows say where they belong, with whatever fault a test wants."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from embodied_wm.types import Episode

CAMERA = "observation.images.top"
SIZE = (32, 48)


def gray(episode: int, frame: int) -> int:
    """Return the gray level of a frame."""
    return 40 + 60 * (episode % 3) + 4 * (frame % 14)


def png(level: int) -> bytes:
    """Return a small uniform picture, compressed."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def write_video(path: Path, levels: Sequence[int], fps: int = 10, gop: int = 5) -> None:
    """Write a video of uniform frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"g": str(gop), "crf": "5", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((*SIZE, 3), level, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_noise(path: Path, num_frames: int) -> None:
    """Write a video of noise, which no codec makes small."""
    rng = np.random.default_rng(len(str(path)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5", "crf": "5"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for _ in range(num_frames):
            noise = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())


def assert_frames(episode: Episode, source_episode: int, frames: Iterable[int]) -> None:
    """Check that frame t of a stored episode is frame frames[t] of its video."""
    levels = episode.features[CAMERA].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, [gray(source_episode, frame) for frame in frames], atol=1.9)


@dataclass(kw_only=True)
class Folder:
    """Describe a folder; `write` makes it.

    Attributes:
        lengths: Rows of each episode.
        num_frames: Episode to number of video frames, where it differs from the rows.
        columns: Columns of all rows, over those that are made.
    """

    version: str = "v2.1"
    lengths: Sequence[int] = (6, 9, 4)
    video_fps: int = 10
    num_frames: Mapping[int, int] = field(default_factory=dict)
    columns: Mapping[str, pa.Array] = field(default_factory=dict)
    features: Mapping[str, object] = field(default_factory=dict)
    task_column: str = "task"

    def table(self, episode: int) -> pa.Table:
        """Return the rows of one episode; its timestamps are wall-clock, so of no use."""
        length = self.lengths[episode]
        rows = np.arange(length)
        first = sum(self.lengths[:episode])
        action = np.stack([np.full(length, episode), rows], axis=1).astype(np.float32)
        columns = {
            "observation.state": pa.array(list(action.astype(np.float64)), type=pa.list_(pa.float64())),
            "action": pa.FixedSizeListArray.from_arrays(pa.array(action.reshape(-1)), 2),
            "timestamp": pa.array((rows / 10 + 1.5 * (rows > 2)).astype(np.float32)),
            "frame_index": pa.array(rows),
            "episode_index": pa.array(np.full(length, episode)),
            "index": pa.array(first + rows),
            "task_index": pa.array(np.full(length, episode % 2)),
        }
        columns |= {name: column.slice(first, length) for name, column in self.columns.items()}
        return pa.table(columns)

    def levels(self, episode: int) -> list[int]:
        """Return the gray levels of one episode's video."""
        return [gray(episode, frame) for frame in range(self.num_frames.get(episode, self.lengths[episode]))]

    def write(self, root: Path) -> Path:
        """Write the folder and return it."""
        features = {
            "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
            "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            CAMERA: {"dtype": "video", "shape": [3, *SIZE], "names": None},
            **self.features,
        }
        info = {"codebase_version": self.version, "fps": 10, "robot_type": "arm", "features": features}
        info |= {"total_episodes": 99, "data_path": "elsewhere/{episode_index}.parquet"}
        (root / "meta").mkdir(parents=True)
        (root / "meta/info.json").write_text(json.dumps(info))
        tasks = ["lift", "push"]
        if self.version == "v3.0":
            pq.write_table(pa.table({"task_index": [0, 1], self.task_column: tasks}), root / "meta/tasks.parquet")
            self._write_v3(root)
        else:
            lines = [json.dumps({"task_index": number, "task": task}) for number, task in enumerate(tasks)]
            (root / "meta/tasks.jsonl").write_text("\n".join(lines))
            self._write_v2(root)
        return root

    def _write_v2(self, root: Path) -> None:
        (root / "data/chunk-000").mkdir(parents=True)
        records = []
        for episode, length in enumerate(self.lengths):
            pq.write_table(self.table(episode), root / f"data/chunk-000/episode_{episode:06d}.parquet")
            write_video(
                root / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4", self.levels(episode), self.video_fps
            )
            records.append({"episode_index": episode, "length": length, "tasks": ["x"]})
        lines = [json.dumps(record) for record in [*records, records[0]]]  # one row twice
        (root / "meta/episodes.jsonl").write_text("\n".join(lines))

    def _write_v3(self, root: Path) -> None:
        numbers = range(len(self.lengths))
        (root / "data/chunk-000").mkdir(parents=True)
        pq.write_table(
            pa.concat_tables([self.table(episode) for episode in numbers]), root / "data/chunk-000/file-000.parquet"
        )
        levels = [self.levels(episode) for episode in numbers]
        write_video(
            root / f"videos/{CAMERA}/chunk-000/file-000.mp4",
            [level for part in levels for level in part],
            self.video_fps,
        )
        ends = np.cumsum([len(part) for part in levels]) / self.video_fps
        meta = {
            "episode_index": list(numbers),
            "length": list(self.lengths),
            f"videos/{CAMERA}/chunk_index": [0] * len(levels),
            f"videos/{CAMERA}/file_index": [0] * len(levels),
            f"videos/{CAMERA}/from_timestamp": [0.0, *ends[:-1]],
            f"videos/{CAMERA}/to_timestamp": list(ends),
            "stats/action/mean": [[0.0]] * len(levels),
        }
        table = pa.table(meta)
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), root / "meta/episodes/chunk-000/file-000.parquet")
