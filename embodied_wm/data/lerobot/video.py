"""Frames of a video by their number, decoded in order and resized while they are converted to RGB."""

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from embodied_wm.data.lerobot.checks import LeRobotError, short
from embodied_wm.data.lerobot.resize import Resizer
from embodied_wm.data.lerobot.rows import stamp
from embodied_wm.data.lerobot.versions import Clip

# Frames that are decoded and thrown away rather than sought past, when the next one wanted is a little ahead.
MAX_FRAMES_TO_PASS = 32
# Rows and frames may differ by this many, or this part, before they are thought not to belong together.
MAX_EXCESS = 2
MAX_EXCESS_PART = 0.02


class VideoReader:
    """Read frames of one video file, by number, going forward without seeking wherever that is possible."""

    def __init__(self, path: Path, resizer: Resizer) -> None:
        self._path = path
        self._resizer = resizer
        self._pts = frame_times(path)[0]
        self._next: int | None = 0  # the frame that decoding comes to next; None where it must be sought
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except (FFmpegError, IndexError, OSError) as error:
            raise LeRobotError(f"video {path.name} cannot be opened ({short(error)})") from error
        # One thread each: several videos, or parts of one, are decoded side by side instead.
        self._stream.thread_type = "NONE"
        self._stream.codec_context.thread_count = 1
        self._frames: Iterator[av.VideoFrame] = self._container.decode(self._stream)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Return frames by their number, which must not decrease: [len(numbers), height, width, 3] uint8.

        Raises:
            LeRobotError: The video ends before, or cannot be decoded.
        """
        frames = np.empty((len(numbers), *self._resizer.size, 3), dtype=np.uint8)
        if not len(numbers):
            return frames
        if numbers[-1] >= len(self._pts):
            raise LeRobotError(f"video {self._path.name} has {len(self._pts)} frames, frame {numbers[-1]} was wanted")
        reached = int(numbers[0])
        try:
            self._approach(reached)
            self._next = None  # whatever goes wrong from here on, the next reading seeks
            filled = 0
            while filled < len(numbers):
                frame = next(self._frames)
                number = self._number(frame)
                if number > numbers[filled]:
                    raise LeRobotError(f"video {self._path.name} lacks frame {numbers[filled]}: it cannot be decoded")
                reached = number + 1
                if number == numbers[filled]:
                    image = self._resizer.video(frame)
                    while filled < len(numbers) and numbers[filled] == number:
                        frames[filled] = image
                        filled += 1
            self._next = reached
        except (FFmpegError, StopIteration, ValueError, OSError) as error:
            if isinstance(error, LeRobotError):
                raise
            raise LeRobotError(
                f"video {self._path.name} cannot be decoded near frame {reached} ({type(error).__name__})"
            ) from error
        return frames

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _approach(self, number: int) -> None:
        if self._next is not None and self._next <= number <= self._next + MAX_FRAMES_TO_PASS:
            return
        # Some files lead to a key frame that is shown only after the wanted one, as where frames before it refer to it
        # (open GOP): then further back.
        first, back = number + 1, 0
        while first > number and back <= 2 * number:
            self._container.seek(int(self._pts[max(0, number - back)]), stream=self._stream, backward=True)
            frames = self._container.decode(self._stream)
            frame = next(frames)
            first, back = self._number(frame), max(1, 2 * back)
            self._frames = chain([frame], frames)

    def _number(self, frame: av.VideoFrame) -> int:
        """Return the number of a decoded frame, which must be whole."""
        number = int(np.searchsorted(self._pts, frame.pts)) if frame.pts is not None else len(self._pts)
        if number >= len(self._pts) or frame.is_corrupt:
            raise LeRobotError(f"video {self._path.name} is damaged at frame {number}")
        return number


def frame_times(path: Path) -> tuple[np.ndarray, Fraction]:
    """Return the presentation times of all frames of a video, in order and in its time base, without decoding it.

    Raises:
        LeRobotError: The file is no video, or its frames have no times.
    """
    return _frame_times(path, stamp(path))


@lru_cache(maxsize=256)
def _frame_times(path: Path, _stamp: tuple[int, int]) -> tuple[np.ndarray, Fraction]:
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            packets = (packet for packet in container.demux(stream) if packet.size)
            # Where a file was cut without encoding it anew, its edit list has players drop what lies before the cut.
            times = [packet.pts for packet in packets if not packet.is_discard]
            base = stream.time_base
    except (FFmpegError, IndexError, OSError) as error:
        raise LeRobotError(f"video {path.name} cannot be opened ({short(error)})") from error
    known = [time for time in times if time is not None]
    if base is None or not known or len(set(known)) != len(times):
        raise LeRobotError(
            f"video {path.name} has {len(times)} frames of which {len(set(known))} have a time of their own"
        )
    return np.sort(np.array(known, dtype=np.int64)), base


def frames_per_second(path: Path) -> float:
    """Return the frame rate of a video, from the times of its frames; 0 where it has but one."""
    times, base = frame_times(path)
    if len(times) < 2:
        return 0.0
    return float((len(times) - 1) / ((times[-1] - times[0]) * base))


def clip_range(clip: Clip) -> tuple[int, int]:
    """Return the numbers [first, last) of the frames of a clip, counted in its file."""
    times, base = frame_times(clip.path)
    if clip.from_s is None or clip.to_s is None:
        return 0, len(times)
    seconds = (times - times[0]) * float(base)
    half = 0.5 / max(frames_per_second(clip.path), 1e-6)
    first, last = np.searchsorted(seconds, [clip.from_s - half, clip.to_s - half])
    return int(first), int(last)


def frame_size(path: Path) -> tuple[int, int]:
    """Return the height and width of a video's frames.

    Raises:
        LeRobotError: The file is no video.
    """
    try:
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            size = context.height, context.width
    except (FFmpegError, IndexError, OSError) as error:
        raise LeRobotError(f"video {path.name} cannot be opened ({short(error)})") from error
    if min(size) < 1:
        raise LeRobotError(f"video {path.name} does not say how large its frames are")
    return size


def match_frames(
    num_rows: int,
    num_frames: int,
    *,
    row_fps: float,
    video_fps: float,
    timestamps_s: np.ndarray | None,
    row_numbers: np.ndarray | None = None,
) -> tuple[np.ndarray, str | None]:
    """Decide which frame belongs to which row, from the counts.

    Where there is a frame for each row, row t has frame t, whatever the timestamps say: they may be wall-clock. Where
    rows are missing that their own numbers leave out, a row has the frame of its number. Where there are more or fewer
    frames, as a video of another rate has, the frame is found by time.

    Args:
        num_rows: Rows of the episode.
        num_frames: Frames of its video.
        row_fps: Rate that the metadata declare.
        video_fps: Rate of the frames' own times; 0 where it is not known.
        timestamps_s: [rows] times of the rows, of use only where they agree with the video.
        row_numbers: [rows] the column frame_index, where there is one.

    Returns:
        [rows kept] int64 frame numbers, and a remark if it was not one to one.

    Raises:
        LeRobotError: The counts fit neither way.
    """
    slack = max(MAX_EXCESS, round(MAX_EXCESS_PART * num_rows))
    counts = f"{num_rows} rows and {num_frames} frames"
    if num_frames < 1:
        raise LeRobotError("its part of the video is empty")
    if num_rows == num_frames:
        return np.arange(num_rows), None
    if row_numbers is not None and _leave_out_rows(row_numbers, num_frames, slack):
        return row_numbers[row_numbers < num_frames], f"{counts}: rows are missing, matched by frame_index"
    if abs(num_frames - num_rows) <= slack:
        kept = min(num_rows, num_frames)
        return np.arange(kept), f"{counts}: matched by frame number, the first {kept} kept"
    if video_fps and abs(video_fps / row_fps - 1) > MAX_EXCESS_PART:
        ratio = video_fps / row_fps
        if abs(num_frames - num_rows * ratio) <= max(slack, slack * ratio):
            numbers = _by_time(num_rows, num_frames, row_fps, video_fps, timestamps_s)
            return numbers, f"rows at {row_fps:g} fps, video at {video_fps:.4g} fps: matched by time"
    elif video_fps and num_frames > num_rows:
        return np.arange(num_rows), f"{counts}: matched by frame number, the rest of the video ignored"
    raise LeRobotError(
        f"{num_rows} rows at {row_fps:g} fps and {num_frames} frames at {video_fps:.4g} fps do not belong together"
    )


def _leave_out_rows(row_numbers: np.ndarray, num_frames: int, slack: int) -> bool:
    """Tell whether rows number the frames of a video with gaps between."""
    steps = np.diff(row_numbers)
    ordered = row_numbers[0] >= 0 and (steps > 0).all()
    return bool(ordered and (steps > 1).any() and abs(int(row_numbers[-1]) + 1 - num_frames) <= slack)


def _by_time(
    num_rows: int, num_frames: int, row_fps: float, video_fps: float, timestamps_s: np.ndarray | None
) -> np.ndarray:
    times_s = np.arange(num_rows) / row_fps
    if timestamps_s is not None:
        is_within = timestamps_s[0] >= 0 and timestamps_s[-1] < num_frames / video_fps
        times_s = timestamps_s if is_within and np.all(timestamps_s[1:] > timestamps_s[:-1]) else times_s
    # The nearest frame; of two as near the earlier, which shows nothing of the future.
    numbers = np.ceil(times_s * video_fps - 0.5 - 1e-3).astype(np.int64).clip(min=0)
    return numbers[numbers < num_frames]
