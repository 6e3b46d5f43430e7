"""Frames of several cameras: their pictures side by side, left to right as a name such as "top+wrist" lists them."""

from collections.abc import Callable, Mapping

import numpy as np

from embodied_wm.types import FeatureSpec


def camera_names(camera: str) -> tuple[str, ...]:
    """Return the features of the cameras that "observation.images.top+wrist" names, with the first one's prefix.

    Raises:
        ValueError: One camera twice.
    """
    first, *others = camera.split("+")
    prefix = first.rpartition(".")[0]
    names = (first, *(f"{prefix}.{name}" if prefix and "." not in name else name for name in others))
    if len(set(names)) < len(names):
        raise ValueError(f"camera={camera}: a camera stands twice; expected each once, such as top+wrist")
    return names


def side_by_side(read: Callable[[str], np.ndarray], camera: str) -> np.ndarray:
    """Return the frames [..., height, width, 3] of a camera, or of several that a name lists, joined along the width.

    Args:
        read: Feature to its frames, all of one size.
        camera: What `camera_names` takes.
    """
    names = camera_names(camera)
    return read(camera) if len(names) == 1 else np.concatenate([read(name) for name in names], axis=-2)


def frame_shape(features: Mapping[str, FeatureSpec], camera: str) -> tuple[int, ...] | None:
    """Return the shape of the frames that `side_by_side` gives; None where a camera is missing or sizes differ."""
    specs = [features.get(name) for name in camera_names(camera)]
    shapes = {spec.shape for spec in specs if spec is not None and spec.is_image}
    if any(spec is None for spec in specs) or len(shapes) != 1:
        return None
    height, width, channels = shapes.pop()
    return height, width * len(specs), channels
