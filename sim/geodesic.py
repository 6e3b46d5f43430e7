"""Shortest ways among boxes: how far it really is from one place to another for a disc that must go round walls."""

import functools
import heapq
import itertools

import numpy as np

_STEPS = [(i, j) for i, j in itertools.product(range(-2, 3), repeat=2) if np.gcd(i, j) == 1]


def distance_to_boxes(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the distance from points [..., 2] to the nearest box (centre and half size, [N, 4]), [...], 0 inside."""
    outside = np.maximum(np.abs(points[..., None, :] - boxes[:, :2]) - boxes[:, 2:], 0.0)
    return np.sqrt(np.square(outside).sum(axis=-1)).min(axis=-1)


class Geodesics:
    """Lengths of shortest ways on a grid of 16 directions, at most 3% longer than the true ones.

    The field of one goal is computed once and kept; reading it at a point is bilinear interpolation.
    """

    def __init__(self, boxes: np.ndarray, *, radius_m: float, half_size_m: float, spacing_m: float = 0.01) -> None:
        """Mark the grid's places that the disc cannot be at.

        Args:
            boxes: Centre x, y and half size x, y of every wall, [N, 4], in metres.
            radius_m: Radius of the disc.
            half_size_m: The grid covers [-half_size_m, half_size_m] in both directions.
            spacing_m: Distance of neighbouring places of the grid.
        """
        self.spacing_m = spacing_m
        self.half_size_m = half_size_m
        count = round(2.0 * half_size_m / spacing_m) + 1
        axis = np.linspace(-half_size_m, half_size_m, count)
        self._places = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
        self._free = distance_to_boxes(self._places, boxes) >= radius_m - 1e-9
        self._boxes, self._radius_m = boxes, radius_m
        self._field = functools.lru_cache(maxsize=256)(self._compute_field)

    def is_free(self, points: np.ndarray) -> np.ndarray:
        """Tell where the disc fits, [...], at points [..., 2]."""
        return distance_to_boxes(np.asarray(points), self._boxes) >= self._radius_m

    def distance(self, points: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return the length of the shortest way from points [..., 2] to `goal` [2], [...], in metres.

        Points and goals that are inside a wall count as the nearest place beside it; points beyond the grid first go
        straight to its border.
        """
        return self.distances(points, np.asarray(goal)[None])[..., 0]

    def distances(self, points: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Return the lengths of the shortest ways from points [..., 2] to each of the goals [G, 2], [..., G]."""
        points = np.asarray(points)
        fields = np.stack([self._field(float(x), float(y)) for x, y in goals])
        last = fields.shape[-1] - 1
        inside = np.clip(points, -self.half_size_m, self.half_size_m)
        scaled = np.clip((inside + self.half_size_m) / self.spacing_m, 0.0, last)
        low = np.minimum(scaled.astype(int), last - 1)  # also where the border itself is read, in any precision
        part = scaled - low
        i, j, u, v = low[..., 0], low[..., 1], part[..., 0], part[..., 1]
        near = (1 - u) * ((1 - v) * fields[:, i, j] + v * fields[:, i, j + 1])
        far = u * ((1 - v) * fields[:, i + 1, j] + v * fields[:, i + 1, j + 1])
        beyond = np.sqrt(np.square(points - inside).sum(axis=-1))
        straight = np.sqrt(np.square(points[..., None, :] - goals).sum(axis=-1))
        return np.maximum(np.moveaxis(near + far + beyond, 0, -1), straight)

    def _compute_field(self, goal_x: float, goal_y: float) -> np.ndarray:
        """Spread out from a goal over the free places (Dijkstra), then into the walls."""
        field = np.full(self._free.shape, np.inf)
        straight = np.sqrt(np.square(self._places - (goal_x, goal_y)).sum(axis=-1))
        around = self._free & (straight < 1.5 * self.spacing_m)
        if not around.any():
            around = self._free & (straight <= straight[self._free].min())
        field[around] = straight[around]
        heap = [(float(field[place]), place) for place in zip(*np.nonzero(around), strict=True)]
        heapq.heapify(heap)
        while heap:
            length, (i, j) = heapq.heappop(heap)
            if length > field[i, j]:
                continue
            for (i_next, j_next), step in self._neighbours[i, j]:
                if length + step < field[i_next, j_next]:
                    field[i_next, j_next] = length + step
                    heapq.heappush(heap, (length + step, (i_next, j_next)))
        return self._filled(field)

    @functools.cached_property
    def _neighbours(self) -> dict[tuple[int, int], list[tuple[tuple[int, int], float]]]:
        """Return the free places next to each free place, and how far they are (m)."""
        free = {(int(i), int(j)) for i, j in np.argwhere(self._free)}
        lengths = [(i, j, self.spacing_m * float(np.hypot(i, j))) for i, j in _STEPS]
        return {
            (i, j): [((i + di, j + dj), length) for di, dj, length in lengths if (i + di, j + dj) in free]
            for i, j in free
        }

    def _filled(self, field: np.ndarray) -> np.ndarray:
        """Give places just inside walls the least value of a neighbour plus the step; places further in, the largest.

        Reading at a free point beside a wall needs the former; the latter keeps what looks ahead out of the walls.
        """
        padded = np.pad(field, 1, constant_values=np.inf)
        rows, columns = field.shape
        steps = [
            padded[1 + i : 1 + i + rows, 1 + j : 1 + j + columns] + self.spacing_m * np.hypot(i, j)
            for i, j in itertools.product((-1, 0, 1), repeat=2)
        ]
        filled = np.where(np.isfinite(field), field, np.min(steps, axis=0))
        return np.where(np.isfinite(filled), filled, filled[np.isfinite(filled)].max())
