"""Every n-th row of an episode, with what happened in between gathered into the row that is kept.

Row t of an episode leads from frame t to frame t+1 by its action. Kept are the rows 0, n, 2n, ...; the action of kept
row k stands for the rows k n to (k + 1) n - 1, which lead from its frame to the next kept one. The last block of an
episode may be shorter; its action leads to no kept frame.
"""

from typing import Literal, get_args

import numpy as np

from embodied_wm.data.lerobot.checks import LeRobotError
from embodied_wm.types import FeatureSpec

Aggregation = Literal["last", "sum", "stack"]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)


def strided_spec(name: str, spec: FeatureSpec, stride: int, aggregation: str) -> FeatureSpec:
    """Return the description of a feature after striding; only stacked actions change theirs.

    Raises:
        LeRobotError: Flags were to be summed.
    """
    if stride == 1 or not _is_action(name):
        return spec
    if aggregation == "sum" and spec.dtype == "bool":
        raise LeRobotError(f"action {name!r} holds flags, which cannot be summed; choose aggregation last or stack.")
    if aggregation != "stack":
        return spec
    if len(spec.shape) > 1:
        raise LeRobotError(
            f"action {name!r} has rows of shape {spec.shape}; only vectors can be stacked. Choose aggregation last or "
            "sum."
        )
    size = spec.shape[0] if spec.shape else 1
    return FeatureSpec(
        dtype=spec.dtype,
        shape=(stride * size,),
        names=tuple(f"{name}[{step}]" for step in range(stride) for name in spec.names),
        units=spec.units * stride,
    )


def strided(name: str, rows: np.ndarray, stride: int, aggregation: str) -> np.ndarray:
    """Return the kept rows of a feature: [ceil(rows / stride), *row shape].

    Actions are aggregated; rewards summed; flags other than observed ones are any() of their block; other values of
    the next step (names with next.) are the block's last; all else is as it was at the kept row.

    Args:
        name: Which feature it is.
        rows: [rows, *row shape]
        stride: Rows of one block.
        aggregation: What becomes of a block's actions: its last one, their sum, or all of them behind each other (a
            short last block repeats its last).

    Raises:
        LeRobotError: A sum is too large for its type.
    """
    if stride == 1:
        return rows
    starts = np.arange(0, len(rows), stride)
    lasts = np.minimum(starts + stride, len(rows)) - 1
    part = name.rsplit(".", 1)[-1]
    if _is_action(name) and aggregation == "stack":
        taken = np.minimum(starts[:, None] + np.arange(stride), len(rows) - 1)
        return rows[taken].reshape(len(starts), -1)
    if (_is_action(name) and aggregation == "sum") or (part == "reward" and rows.dtype.kind != "b"):
        return _sum(name, rows, starts)
    if rows.dtype.kind == "b" and not name.startswith(("observation", "action")):
        return np.logical_or.reduceat(rows, starts, axis=0)
    return rows[lasts if _is_action(name) or name.startswith("next.") else starts]


def _sum(name: str, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    wide = np.add.reduceat(rows.astype(np.float64 if rows.dtype.kind == "f" else np.int64), starts, axis=0)
    sums = wide.astype(rows.dtype)
    if rows.dtype.kind != "f" and (sums != wide).any():
        raise LeRobotError(
            f"a sum of {name!r} is too large for its type {rows.dtype}; choose aggregation last or stack"
        )
    return sums


def _is_action(name: str) -> bool:
    return name == "action" or name.startswith(("action.", "action_"))
