"""Imagination against physics: PROTOCOL section 1, measured on candidates that a planner really compares.

Costs: the *imagined* cost of a candidate is what the planner's objective says of its imagined latents. The *physical*
cost is the task's distance to the goal in metres along MuJoCo's states, weighted over the steps in the same way. Rank
measures (`spearman`, `elite_regret`) compare the two. `optimism` needs one unit, so there the objective is applied to
the encoded true frames and the imagined cost is taken from it: positive means that the future is worse than imagined.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from embodied_wm.evaluation.branches import SOURCES, BranchConfig, BranchPoint, branch_points
from embodied_wm.evaluation.oracle import QUANTITIES, ObjectiveKind, model_objective
from embodied_wm.evaluation.statistics import bootstrap_mean, by_horizon, spearman
from embodied_wm.progress import Track
from embodied_wm.tokenizer.frames import psnr
from embodied_wm.world_model import WorldModel
from planners.base import Planner
from planners.objectives import StepWeights
from sim.branch import Brancher
from sim.tasks.base import Task

NUM_SAMPLES = 3
IMAGES_EVERY = 6
"""Of the candidates of a branch point, every sixth is decoded and compared in pixels; all are in latents and state."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Hold the measures of a benchmark run and what its pictures are made of.

    Attributes:
        measures: Key of PROTOCOL to {"value", "ci95", "n"} or {"by_horizon"}.
        imagined_costs: [N, S].
        physical_costs: [N, S], metres.
        imagined_frames: Decoded futures of the recorded candidate of each branch point, [N, H, h, w, 3].
        points: The branch points.
    """

    measures: dict[str, Any]
    imagined_costs: np.ndarray
    physical_costs: np.ndarray
    imagined_frames: np.ndarray
    points: list[BranchPoint]


@dataclass
class _Rows:
    """Collect one row per branch point for every measure."""

    curves: dict[str, list[np.ndarray]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)

    def curve(self, key: str, per_step: Tensor | np.ndarray) -> None:
        """Add a [S, H] array, averaged over candidates."""
        self.curves.setdefault(key, []).append(np.asarray(per_step, dtype=np.float64).mean(0))

    def value(self, key: str, value: float) -> None:
        """Add one number; undefined ones (NaN) are left out of the mean and of n."""
        if np.isfinite(value):
            self.values.setdefault(key, []).append(float(value))

    def measures(self, seed: int) -> dict[str, Any]:
        """Return every measure with its interval, bootstrapped over branch points."""
        found = {key: by_horizon(np.stack(rows), seed=seed) for key, rows in self.curves.items()}
        return found | {key: bootstrap_mean(rows, seed=seed) for key, rows in self.values.items()}


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity of uint8 frames [N, h, w, 3], one value each."""
    pair = [frames.permute(0, 3, 1, 2).float() / 255 for frames in (first, second)]
    result = structural_similarity_index_measure(pair[0], pair[1], data_range=1.0, reduction="none")
    return result if isinstance(result, Tensor) else result[0]


class ImaginationJudge:
    """Measure a world model on branch points of one task."""

    def __init__(
        self,
        task: Task,
        world_model: WorldModel,
        *,
        objective: ObjectiveKind,
        weights: StepWeights,
        num_steps: int,
        seed: int,
    ) -> None:
        self.task, self.model, self.weights = task, world_model, weights
        self.objective: ObjectiveKind = objective
        self.num_steps, self.seed = num_steps, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.brancher = Brancher(task)

    def _imagine(self, point: BranchPoint, actions: np.ndarray) -> Tensor:
        context = self.model.prefill(torch.from_numpy(point.frames), torch.from_numpy(point.past_actions))
        return self.model.imagine(
            context, torch.from_numpy(actions), num_steps=self.num_steps, generator=self.generator
        )

    def _read(self, latents: Tensor) -> np.ndarray:
        with torch.no_grad():
            return self.model.readout(QUANTITIES)(latents).numpy().astype(np.float64)

    def judge(self, point: BranchPoint, rows: _Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Add one branch point's measures; return its imagined costs, physical costs and decoded recorded future."""
        true_latents = self.model.encode(torch.from_numpy(point.true_frames))
        samples = torch.stack([self._imagine(point, point.actions) for _ in range(NUM_SAMPLES)])
        imagined = samples[0]
        recorded = self._images(point, imagined, true_latents, rows)
        latent_error = (imagined - true_latents).square().mean((2, 3))
        rows.curve("latent_mse", latent_error)
        self._states(point, imagined, true_latents, rows)
        spread = samples.std(0).mean((1, 2, 3)).numpy()
        rows.value("spread_skill", spearman(spread, latent_error.mean(1).numpy()))
        costs = self._costs(point, imagined, true_latents, rows)
        if self.task.reversible:
            self._stability(point, rows)
        return *costs, recorded

    def _images(self, point: BranchPoint, imagined: Tensor, true_latents: Tensor, rows: _Rows) -> np.ndarray:
        """Compare some futures in pixels; return the decoded future of the first candidate, a recorded one."""
        few = slice(None, None, IMAGES_EVERY)
        last, true = torch.from_numpy(point.frames[-1]), torch.from_numpy(point.true_frames[few])
        decoded = self.model.decode(imagined[few], seen=last)
        ceiling = self.model.decode(true_latents[few], seen=last)
        quality = {}
        for suffix, frames in (("", decoded), ("_copy", last.expand_as(true)), ("_ceiling", ceiling)):
            quality[suffix] = psnr(frames, true)
            rows.curve(f"psnr{suffix}", quality[suffix])
            similar = ssim(frames.flatten(0, 1), true.flatten(0, 1))
            rows.curve(f"ssim{suffix}", similar.view(true.shape[:2]))
        rows.curve("psnr_over_copy", quality[""] - quality["_copy"])
        return decoded[0].numpy()

    def _states(self, point: BranchPoint, imagined: Tensor, true_latents: Tensor, rows: _Rows) -> None:
        truth, read = point.true_quantities, self._read(imagined)
        error = self.task.cost(read, truth)
        rows.curve("state_error", error)
        rows.curve("state_error_true", self.task.cost(self._read(true_latents), truth))
        rows.curve("state_error_copy", self.task.cost(truth, point.quantities))
        for source in SOURCES:
            rows.curve(f"state_error.{source}", error[[name == source for name in point.sources]])
        for number, name in enumerate(self.task.quantity_names):
            rows.curve(f"state_error.{name}", np.abs(read - truth)[..., number])
        beyond = error.mean(0) > self.task.tolerance_m
        rows.value("horizon_at", float(np.argmax(beyond)) + 1 if beyond.any() else len(beyond) + 1)
        with torch.no_grad():
            start = self._read(self.model.encode(torch.from_numpy(point.frames[-1:])))[0]
        for name, place in self.task.objects.items():
            moved = np.linalg.norm((truth[:, -1] - point.quantities)[:, list(place)], axis=-1)
            still = moved < 1e-4
            if still.any():
                ghost = np.linalg.norm((read - start)[still][..., list(place)], axis=-1)
                rows.curve(f"ghost_motion.{name}", ghost)
                if len(self.task.objects) == 1:
                    rows.curve("ghost_motion", ghost)

    def _costs(
        self, point: BranchPoint, imagined: Tensor, true_latents: Tensor, rows: _Rows
    ) -> tuple[np.ndarray, np.ndarray]:
        objective = model_objective(self.objective, self.model, self.task, point.goal_frame, self.weights)
        actions = torch.from_numpy(point.actions)
        with torch.no_grad():
            imagined_cost = objective(imagined, actions).double().numpy()
            encoded_cost = objective(true_latents, actions).double().numpy()
        per_step = torch.from_numpy(self.task.planning_cost(point.true_quantities, point.goal_quantities))
        physical_cost = self.weights.reduce(per_step).numpy()
        rows.value("spearman", spearman(imagined_cost, physical_cost))
        rows.value("spearman_true", spearman(encoded_cost, physical_cost))
        for source in SOURCES:
            part = [name == source for name in point.sources]
            rows.value(f"spearman.{source}", spearman(imagined_cost[part], physical_cost[part]))
        spread = np.ptp(physical_cost)
        if spread > 0:
            chosen = physical_cost[imagined_cost.argmin()]
            rows.value("elite_regret", float((chosen - physical_cost.min()) / spread))
        is_random = [name == "random" for name in point.sources]
        rows.value("optimism", float((encoded_cost - imagined_cost)[point.chosen]))
        rows.value("optimism_random", float((encoded_cost - imagined_cost)[is_random].mean()))
        return imagined_cost, physical_cost

    def _stability(self, point: BranchPoint, rows: _Rows) -> None:
        half = max(1, point.actions.shape[1] // 2)
        there = point.actions[[name == "recorded" for name in point.sources]][:, :half]
        actions = np.concatenate([there, -there[:, ::-1]], axis=1)
        truth = self.brancher(point.physics, actions).quantities
        read = self._read(self._imagine(point, actions))
        rows.value("stability", float(self.task.cost(read[:, -1], truth[:, -1]).mean()))


def judge_imagination(
    task: Task,
    world_model: WorldModel,
    planner: Planner,
    config: BranchConfig,
    *,
    objective: ObjectiveKind,
    weights: StepWeights,
    seed: int,
    num_steps: int = 1,
    console: Console | None = None,
) -> Judged:
    """Measure imagination against physics on one task.

    Args:
        task: The task.
        world_model: The model; it needs a readout of `sim.quantities`.
        planner: Supplies a third of the candidates.
        config: Branch points, candidates, horizon, context.
        objective: What the planner minimises, and the imagined cost.
        weights: How much each imagined step counts.
        seed: Draws states, goals, candidates and noise.
        num_steps: Denoising steps per imagined frame.
        console: Where progress is shown.
    """
    points = branch_points(
        task, world_model, planner, config, objective=objective, weights=weights, seed=seed, console=console
    )
    judge = ImaginationJudge(task, world_model, objective=objective, weights=weights, num_steps=num_steps, seed=seed)
    rows, results = _Rows(), []
    with Track(f"imagine {task.name}", len(points), unit="states", console=console) as track:
        for point in points:
            results.append(judge.judge(point, rows))
            track.advance()
    return Judged(
        measures=rows.measures(seed),
        imagined_costs=np.stack([result[0] for result in results]),
        physical_costs=np.stack([result[1] for result in results]),
        imagined_frames=np.stack([result[2] for result in results]),
        points=points,
    )
