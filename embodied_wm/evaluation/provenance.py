"""The record of a run that every report carries: code, configuration, machine, packages, data, time and memory."""

import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "numpy", "mujoco", "gymnasium", "zarr", "lerobot", "av", "pyarrow", "einops", "hydra-core")


def git_revision() -> str | None:
    """Return the commit of the checkout that this file belongs to ("-dirty" if changed); None for an installed copy."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process, or of its largest finished child if that was larger."""
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def run_record(
    config: Mapping[str, Any],
    seed: int,
    *,
    device: str | torch.device = "cpu",
    dataset: str | None = None,
    checkpoint: str | None = None,
    wall_seconds: float | None = None,
) -> dict[str, Any]:
    """Return the record that every report carries.

    Args:
        config: Resolved configuration, JSON types.
        seed: Seed of the run.
        device: Device of the model.
        dataset: Fingerprint of the data set.
        checkpoint: Fingerprint of the checkpoint.
        wall_seconds: Duration of the run so far.
    """
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("embodied-wm", *_PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "revision": git_revision(),
        "config": dict(config),
        "seed": seed,
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "versions": versions,
        "dataset": dataset,
        "checkpoint": checkpoint,
        "wall_seconds": wall_seconds,
        "peak_rss_bytes": peak_rss_bytes(),
    }
