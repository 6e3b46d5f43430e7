"""Frames resized by area, so that nothing flickers and no thin thing is lost."""

import numpy as np
from PIL import Image


def resize_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize [T, H, W, 3] uint8 to [T, height, width, 3]; frames of that size already are returned as they are."""
    if frames.shape[1:3] == size:
        return frames
    resized = np.empty((len(frames), *size, 3), dtype=np.uint8)
    for place, frame in zip(resized, frames, strict=True):
        place[...] = np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BOX))
    return resized
