"""Compare ways to shrink a video's frames, in truth to the mean over each stored pixel's area and in time.

Example: python scripts/bench_resize.py episode_000000.mp4 64
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

EVERY, FRAMES = 20, 60


def read_frames(path: Path) -> list[av.VideoFrame]:
    """Decode some frames, far apart."""
    with av.open(str(path)) as container:
        frames = [frame for number, frame in enumerate(container.decode(video=0)) if number % EVERY == 0]
    return frames[:FRAMES]


def whole(frame: av.VideoFrame) -> np.ndarray:
    """Return a frame at its own size: [height, width, 3] uint8."""
    return VideoReformatter().reformat(frame, format="gbrp").to_ndarray()


def exact(frame: av.VideoFrame, size: int) -> np.ndarray:
    """Return the mean over the area of each pixel, not rounded: [size, size, 3] float32."""
    channels = np.moveaxis(whole(frame).astype(np.float32), -1, 0)
    shrunk = [Image.fromarray(channel).resize((size, size), Image.Resampling.BOX) for channel in channels]
    return np.stack([np.asarray(channel) for channel in shrunk], axis=-1)


def ways(size: int) -> dict[str, Callable[[av.VideoFrame], np.ndarray]]:
    """Return what is compared: FFmpeg's scaler, to planar and to packed RGB, and Pillow's box filter."""
    reformatter = VideoReformatter()

    def scaled(interpolation: Interpolation, layout: str) -> Callable[[av.VideoFrame], np.ndarray]:
        return lambda frame: reformatter.reformat(
            frame, width=size, height=size, format=layout, interpolation=interpolation
        ).to_ndarray()

    kinds = ("AREA", "BICUBIC", "LANCZOS", "BILINEAR", "POINT")
    found = {f"{kind.lower()}, planar RGB": scaled(Interpolation[kind], "gbrp") for kind in kinds}
    found["area, packed RGB"] = scaled(Interpolation.AREA, "rgb24")
    found["Pillow's box"] = lambda frame: np.asarray(
        Image.fromarray(whole(frame)).resize((size, size), Image.Resampling.BOX)
    )
    return found


def main(path: Path, size: int) -> None:
    """Print a line for each way: decibels and milliseconds a frame."""
    frames = read_frames(path)
    expected = np.stack([exact(frame, size) for frame in frames])
    for name, shrink in ways(size).items():
        began = time.perf_counter()
        found = np.stack([shrink(frame) for frame in frames])
        milliseconds = 1000 * (time.perf_counter() - began) / len(frames)
        psnr = 10 * np.log10(255**2 / np.mean((found - expected) ** 2))
        print(f"{name:<24} {psnr:5.1f} dB {milliseconds:6.2f} ms")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
