"""The statistics that a dataset brings along: kept as what its makers said, not used for anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embodied_wm.data.lerobot.checks import json_value, mapping, read_json, read_json_lines, short


def source_statistics(root: Path, features: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return feature to its statistics, for some features, and a note where they cannot be read.

    They stand in meta/stats.json, or (v2.1) for each episode in meta/episodes_stats.jsonl, of which the mean, standard
    deviation, minimum, maximum and count over all episodes are made.
    """
    whole, by_episode = root / "meta" / "stats.json", root / "meta" / "episodes_stats.jsonl"
    try:
        if whole.is_file():
            found = mapping(read_json(whole), str(whole))
            return {name: json_value(found[name]) for name in features if name in found}, []
        if by_episode.is_file():
            parts = [mapping(record.get("stats"), where) for where, record in read_json_lines(by_episode)]
            return {
                name: _joined([part[name] for part in parts if name in part])
                for name in features
                if any(name in part for part in parts)
            }, []
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        return {}, [f"the dataset's own statistics are damaged ({short(error)}): left out"]
    return {}, []


def _joined(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the statistics of all rows from those of parts of them."""
    low, high, means, stds = (
        np.array([part[key] for part in parts], dtype=np.float64) for key in ("min", "max", "mean", "std")
    )
    counts = np.array([np.ravel(part["count"])[0] for part in parts], dtype=np.float64)
    with np.errstate(all="raise"):
        weights = (counts / counts.sum()).reshape(-1, *[1] * (means.ndim - 1))
        mean = (weights * means).sum(axis=0)
        std = np.sqrt((weights * (stds**2 + (means - mean) ** 2)).sum(axis=0))
    joined = {"min": low.min(axis=0), "max": high.max(axis=0), "mean": mean, "std": std}
    return json_value({**{key: values.tolist() for key, values in joined.items()}, "count": [int(counts.sum())]})
