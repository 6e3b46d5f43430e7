"""What an import was told to do, as it is written into the store: an import may only be continued with the same."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embodied_wm.data.asked import asked_cameras, asked_numbers, asked_size
from embodied_wm.data.lerobot.checks import LeRobotError, short
from embodied_wm.data.lerobot.resize import FITS
from embodied_wm.data.lerobot.source import check_folder
from embodied_wm.data.lerobot.stride import AGGREGATIONS

# What of a dataset's folder its identity rests on; a download leaves other files in it.
PARTS = ("meta", "data", "videos", "images")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold what defines the store, in one form for one meaning.

    Attributes:
        source: 16 hex digits that name the dataset: the content of its metadata, the names and sizes of its files.
        cameras: Cameras to take, sorted; None for all.
        image_size: Height and width of the stored frames; None for each camera's own.
        fit: How frames of another shape are brought to it.
        stride: Every how many rows one is kept.
        aggregation: What becomes of the actions between; None where nothing is between.
        episodes: Episodes to take, sorted; None for all.
    """

    source: str
    cameras: tuple[str, ...] | None
    image_size: tuple[int, int] | None
    fit: str
    stride: int
    aggregation: str | None
    episodes: tuple[int, ...] | None

    def to_json(self) -> dict[str, Any]:
        """Return the form in which a store keeps them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def make_settings(
    root: Path,
    *,
    cameras: Sequence[str] | str | None,
    image_size: Sequence[int] | None,
    fit: str,
    stride: int,
    aggregation: str,
    episodes: Sequence[int] | int | None,
) -> Settings:
    """Check what was asked for and bring it into one form.

    Raises:
        LeRobotError: A value is none of the possible ones, or the folder holds no dataset.
    """
    size = None if image_size is None else asked_size(image_size, LeRobotError)
    if fit not in FITS:
        raise LeRobotError(f"fit={fit}: expected one of {', '.join(FITS)}.")
    if aggregation not in AGGREGATIONS:
        raise LeRobotError(f"aggregation={aggregation}: expected one of {', '.join(AGGREGATIONS)}.")
    if stride < 1:
        raise LeRobotError(f"stride={stride}: expected at least 1; 2 keeps every other row.")
    names = None if cameras is None else sorted(set(asked_cameras(cameras, LeRobotError)))
    numbers = None if episodes is None else sorted(set(asked_numbers(episodes, "episodes", LeRobotError)))
    return Settings(
        source=identity(root),
        cameras=None if names is None else tuple(names),
        image_size=size,
        fit=fit if size is not None else "stretch",
        stride=stride,
        aggregation=aggregation if stride > 1 else None,
        episodes=None if numbers is None else tuple(numbers),
    )


def identity(root: Path) -> str:
    """Return 16 hex digits that name a dataset, wherever it lies.

    Raises:
        LeRobotError: The folder holds no dataset, or its files cannot be read.
    """
    check_folder(root)
    digest = hashlib.blake2b(digest_size=8)
    try:
        for part in PARTS:
            for folder, folders, files in os.walk(root / part):
                folders.sort()
                for name in sorted(files):
                    path = Path(folder, name)
                    digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
                    if part == "meta":
                        digest.update(path.read_bytes())
    except OSError as error:
        raise LeRobotError(f"{root} cannot be read ({short(error)}). Download it again.") from error
    return digest.hexdigest()
