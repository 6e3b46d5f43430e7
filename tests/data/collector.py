"""A process for tests that kill it: collects episodes of `reach` into a store, or continues one."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from embodied_wm.commands.collection import collect_store


def collecting(episodes: int, workers: int) -> dict[str, Any]:
    """Return the values of configs/collect.yaml for small, quick episodes."""
    return {
        "task": {"name": "reach", "image_size": 8, "camera": None},
        "episodes": episodes,
        "policy": "play",
        "rows": 4,
        "workers": workers,
        "seed": 3,
    }


if __name__ == "__main__":
    path, number, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    collect_store(path, collecting(number, workers), Console(quiet=True))
