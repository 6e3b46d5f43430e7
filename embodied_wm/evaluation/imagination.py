"""Imagination against physics: PROTOCOL section 1, measured on candidates that a planner really compares.

Costs: the *imagined* cost of a candidate is what the model's objective says of its imagined states. The *physical*
cost is the task's distance to the goal in metres along MuJoCo's states, weighted over the steps in the same way. Rank
measures (`spearman`, `elite_regret`) compare the two. `optimism` needs one unit, so there the objective is applied to
the states of the true frames and the imagined cost is taken from it: positive means that the future is worse than
imagined.

A model that cannot tell candidates apart gets no favour: `spearman` is 0 where all imagined costs are equal, and
`elite_regret` is the mean over all candidates that share the lowest imagined cost, so such a model scores
`elite_regret_chance`, the regret of choosing blindly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from embodied_wm.evaluation.branches import (
    SOURCES,
    BranchConfig,
    BranchPoint,
    BranchStart,
    branch_points,
    branch_starts,
    planner_candidates,
)
from embodied_wm.evaluation.contacts import onset_f1
from embodied_wm.evaluation.judged import JudgedModel, check_fits, encode_seen, prefill_seen
from embodied_wm.evaluation.similarity import ssim
from embodied_wm.evaluation.statistics import bootstrap_mean, by_horizon, spearman
from embodied_wm.progress import Track
from embodied_wm.tokenizer.frames import psnr
from planners.base import Objective, Planner
from planners.objectives import StepWeights
from sim.branch import Brancher
from sim.tasks.base import Task

NUM_SAMPLES = 3
IMAGES_EVERY = 6
"""Of the candidates of a branch point, every sixth is decoded and compared in pixels; all are in latents and state."""
UNMOVED_M = 1e-4
SAME_COST = 1e-6
"""Imagined costs that differ by less than this, relative to their size, are ties: single precision holds no more."""
CANNOT = {
    "decode": ("the model decodes no frames", ("psnr", "ssim", "psnr_over_copy", "psnr_ceiling", "ssim_ceiling")),
    "observe": (
        "the model has no states of frames that it sees",
        ("latent_mse", "psnr_ceiling", "ssim_ceiling", "state_error_true", "spearman_true", "optimism", "spread_skill"),
    ),
    "read": (
        "the model reads no physical quantities",
        ("state_error", "state_error_true", "ghost_motion", "stability", "horizon_at"),
    ),
    "touches": ("the model reads no contacts", ("contact_f1",)),
    "objects": ("the task has nothing that must not move untouched", ("ghost_motion",)),
    "contact_sensor": ("the task has no contacts that count", ("contact_f1",)),
    "reversible": ("the task is not reversible", ("stability",)),
    "random": ("the model imagines a future in one way alone", ("spread_skill",)),
}
"""What a model or a task may lack: in words, and the measures that are left out then."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Hold the measures of a benchmark run and what its pictures are made of.

    Attributes:
        measures: Key of PROTOCOL to {"value", "ci95", "n"} or {"by_horizon"}.
        missing: Key of PROTOCOL that could not be measured to the reason.
        imagined_costs: [N, S].
        physical_costs: [N, S], metres.
        sources: Where each of the S candidates of a state comes from.
        starts: The states.
        true_frames: Rendered future of the recorded candidate of each state, [N, H, h, w, 3].
        imagined_frames: The same, imagined and decoded; None where the model decodes nothing.
        contacts: Whether a contact that counts happened in each step of it, [N, H].
    """

    measures: dict[str, Any]
    missing: dict[str, str]
    imagined_costs: np.ndarray
    physical_costs: np.ndarray
    sources: tuple[str, ...]
    starts: Sequence[BranchStart]
    true_frames: np.ndarray
    imagined_frames: np.ndarray | None
    contacts: np.ndarray


@dataclass
class _Rows:
    """Collect one row per branch point for every measure, and what could not be measured."""

    curves: dict[str, list[np.ndarray]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def curve(self, key: str, per_step: Tensor | np.ndarray) -> None:
        """Add a [S, H] array, averaged over candidates; no candidate, no row."""
        if len(per_step):
            self.curves.setdefault(key, []).append(np.asarray(per_step, dtype=np.float64).mean(0))

    def value(self, key: str, value: float) -> None:
        """Add one number; undefined ones (NaN) are left out of the mean and of n."""
        if np.isfinite(value):
            self.values.setdefault(key, []).append(float(value))
        else:
            self.missing.setdefault(key, "undefined at every state")

    def lacks(self, part: str) -> None:
        """Note what is left out, and why."""
        reason, keys = CANNOT[part]
        self.missing.update(dict.fromkeys(keys, reason))

    def measures(self, seed: int) -> dict[str, Any]:
        """Return every measure with its interval, bootstrapped over branch points."""
        found = {key: by_horizon(np.stack(rows), seed=seed) for key, rows in self.curves.items()}
        return found | {key: bootstrap_mean(rows, seed=seed) for key, rows in self.values.items()}


@dataclass(frozen=True, kw_only=True)
class _Imagined:
    """Hold what a model imagines at one branch point.

    Attributes:
        context: What it imagines from.
        states: Imagined states [S, H, ...].
        true_states: States after seeing the true frames, [S, H, ...]; None where the model has none.
        present: State at the branch point [...]; None likewise.
    """

    context: Any
    states: Tensor
    true_states: Tensor | None
    present: Tensor | None


class ImaginationJudge:
    """Measure a model on branch points of one task."""

    def __init__(self, task: Task, model: JudgedModel, *, weights: StepWeights) -> None:
        self.task, self.model, self.weights = task, model, weights
        self.brancher = Brancher(task)
        self.rows = _Rows()

    def judge(self, point: BranchPoint) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Add one branch point's measures; return imagined and physical costs, and the decoded recorded future."""
        imagined = self._imagine(point)
        recorded = self._images(point, imagined)
        self._latents(point, imagined)
        self._states(point, imagined)
        self._contacts(point, imagined)
        costs = self._costs(point, imagined)
        self._stability(point, imagined)
        return *costs, recorded

    def context(self, start: BranchStart) -> tuple[Tensor, Any]:
        """Return the codes of the context frames and the context."""
        codes = encode_seen(self.model, torch.from_numpy(start.frames), start.context_physics)
        past = codes[:0]
        if self.model.remembers and len(start.earlier_frames):
            past = encode_seen(self.model, torch.from_numpy(start.earlier_frames), start.earlier_physics)
        return codes, prefill_seen(self.model, codes, torch.from_numpy(start.past_actions), past)

    def _imagine(self, point: BranchPoint) -> _Imagined:
        codes, context = self.context(point.start)
        actions, past = torch.from_numpy(point.actions), torch.from_numpy(point.start.past_actions)
        count = len(actions)
        states_of = point.true_states.reshape(-1, point.true_states.shape[-1])
        seen = encode_seen(self.model, torch.from_numpy(point.true_frames).flatten(0, 1), states_of)
        seen = seen.unflatten(0, point.true_frames.shape[:2])
        every = torch.cat([codes.expand(count, *codes.shape), seen], dim=1)
        states = self.model.observe(every, torch.cat([past.expand(count, *past.shape), actions], dim=1))
        if states is None:
            self.rows.lacks("observe")
        return _Imagined(
            context=context,
            states=self.model.imagine(context, actions),
            true_states=None if states is None else states[:, len(codes) :],
            present=None if states is None else states[0, len(codes) - 1],
        )

    def _read(self, states: Tensor | None) -> np.ndarray | None:
        read = None if states is None else self.model.read(states)
        return None if read is None else read.cpu().numpy().astype(np.float64)

    def _images(self, point: BranchPoint, imagined: _Imagined) -> np.ndarray | None:
        """Compare some futures in pixels; return the decoded future of the first candidate, a recorded one."""
        few = slice(None, None, IMAGES_EVERY)
        last, true = torch.from_numpy(point.start.frames[-1]), torch.from_numpy(point.true_frames[few])
        decoded = self.model.decode(imagined.states[few], last)
        versions = {"": decoded, "_copy": last.expand_as(true)}
        if decoded is None:
            self.rows.lacks("decode")
        elif imagined.true_states is not None:
            versions["_ceiling"] = self.model.decode(imagined.true_states[few], last)
        quality = {}
        for suffix, frames in versions.items():
            if frames is not None:
                quality[suffix] = psnr(frames.cpu(), true)
                self.rows.curve(f"psnr{suffix}", quality[suffix])
                self.rows.curve(f"ssim{suffix}", ssim(frames.cpu(), true))
        if decoded is None:
            return None
        self.rows.curve("psnr_over_copy", quality[""] - quality["_copy"])
        return decoded[0].cpu().numpy()

    def _latents(self, point: BranchPoint, imagined: _Imagined) -> None:
        if imagined.true_states is None:
            return
        error = (imagined.states - imagined.true_states).square().flatten(2).mean(2).cpu()
        self.rows.curve("latent_mse", error)
        actions = torch.from_numpy(point.actions)
        again = self.model.imagine(imagined.context, actions)
        if torch.equal(again, imagined.states):
            self.rows.lacks("random")
            return
        samples = [imagined.states, again]
        samples += [self.model.imagine(imagined.context, actions) for _ in range(NUM_SAMPLES - 2)]
        spread = torch.stack(samples).std(0).flatten(1).mean(1).cpu()
        self.rows.value("spread_skill", spearman(spread.numpy(), error.mean(1).numpy()))

    def _states(self, point: BranchPoint, imagined: _Imagined) -> None:
        truth, read = point.true_quantities, self._read(imagined.states)
        self.rows.curve("state_error_copy", self.task.cost(truth, point.start.quantities))
        if read is None:
            self.rows.lacks("read")
            return
        error = self.task.cost(read, truth)
        self.rows.curve("state_error", error)
        seen = self._read(imagined.true_states)
        if seen is not None:
            self.rows.curve("state_error_true", self.task.cost(seen, truth))
        for source in SOURCES:
            self.rows.curve(f"state_error.{source}", error[[name == source for name in point.sources]])
        if self.task.contact_sensor is not None:
            touched = point.contacts.any(1)
            self.rows.curve("state_error.touched", error[touched])
            self.rows.curve("state_error.untouched", error[~touched])
        for number, name in enumerate(self.task.quantity_names):
            self.rows.curve(f"state_error.{name}", np.abs(read - truth)[..., number])
        beyond = error.mean(0) > self.task.tolerance_m
        self.rows.value("horizon_at", float(np.argmax(beyond)) + 1 if beyond.any() else len(beyond) + 1)
        self._ghosts(point, read, self._read(imagined.present))

    def _ghosts(self, point: BranchPoint, read: np.ndarray, present: np.ndarray | None) -> None:
        """Measure how far imagination moves what MuJoCo does not (from the true place, if the model sees none)."""
        if not self.task.objects:
            self.rows.lacks("objects")
        start = point.start.quantities if present is None else present
        for name, place in self.task.objects.items():
            at = list(place)
            path = point.true_quantities[..., at] - point.start.quantities[at]
            still = np.linalg.norm(path, axis=-1).max(axis=1) < UNMOVED_M
            ghost = np.linalg.norm((read - start)[still][..., at], axis=-1)
            self.rows.curve(f"ghost_motion.{name}", ghost)
            if len(self.task.objects) == 1:
                self.rows.curve("ghost_motion", ghost)

    def _contacts(self, point: BranchPoint, imagined: _Imagined) -> None:
        if self.task.contact_sensor is None:
            self.rows.lacks("contact_sensor")
            return
        states = imagined.states
        present = self.model.touches(imagined.present) if imagined.present is not None else None
        found = self.model.touches(states)
        if found is None:
            self.rows.lacks("touches")
            return
        before = np.full((len(states), 1), point.start.touching)
        imagined_before = before if present is None else np.full_like(before, bool(present))
        self.rows.value(
            "contact_f1",
            onset_f1(
                np.concatenate([imagined_before, found.cpu().numpy()], axis=1),
                np.concatenate([before, point.contacts], axis=1),
            ),
        )

    def _costs(self, point: BranchPoint, imagined: _Imagined) -> tuple[np.ndarray, np.ndarray]:
        objective = self.model.objective(torch.from_numpy(point.start.goal_frame))
        imagined_cost = self._cost(objective, imagined.states, point)
        per_step = torch.from_numpy(self.task.planning_cost(point.true_quantities, point.start.goal_quantities))
        physical_cost = self.weights.reduce(per_step).numpy()
        self.rows.value("spearman", agreement(imagined_cost, physical_cost))
        for source in SOURCES:
            part = [name == source for name in point.sources]
            self.rows.value(f"spearman.{source}", agreement(imagined_cost[part], physical_cost[part]))
        regret = regrets(physical_cost)
        self.rows.value("elite_regret", float(regret[favourites(imagined_cost)].mean()))
        self.rows.value("elite_regret_chance", float(regret.mean()))
        if imagined.true_states is not None:
            seen_cost = self._cost(objective, imagined.true_states, point)
            self.rows.value("spearman_true", agreement(seen_cost, physical_cost))
            surprise = seen_cost - imagined_cost
            self.rows.value("optimism", float(surprise[point.chosen]))
            is_random = [name == "random" for name in point.sources]
            self.rows.value("optimism_random", float(surprise[is_random].mean()))
        return imagined_cost, physical_cost

    def _cost(self, objective: Objective, states: Tensor, point: BranchPoint) -> np.ndarray:
        with torch.no_grad():
            return objective(states, torch.from_numpy(point.actions).to(states.device)).double().cpu().numpy()

    def _stability(self, point: BranchPoint, imagined: _Imagined) -> None:
        if not self.task.reversible:
            self.rows.lacks("reversible")
            return
        half = max(1, point.actions.shape[1] // 2)
        there = point.actions[[name == "recorded" for name in point.sources]][:, :half]
        actions = np.concatenate([there, -there[:, ::-1]], axis=1)
        read = self._read(self.model.imagine(imagined.context, torch.from_numpy(actions)))
        if read is not None:
            truth = self.brancher(point.start.physics, actions).quantities
            self.rows.value("stability", float(self.task.cost(read[:, -1], truth[:, -1]).mean()))


def favourites(costs: np.ndarray) -> np.ndarray:
    """Return which of [S] costs are the lowest, all that tie: bool [S]."""
    return costs <= costs.min() + SAME_COST * np.abs(costs).max()


def regrets(costs: np.ndarray) -> np.ndarray:
    """Return what choosing each of [S] costs more than the best, over the spread; NaN where all cost the same."""
    spread = np.ptp(costs)
    return (costs - costs.min()) / spread if spread > 0 else np.full(len(costs), np.nan)


def agreement(imagined: np.ndarray, physical: np.ndarray) -> float:
    """Return the rank correlation of costs [S]: 0 where imagination sees no difference, NaN where there is none."""
    if np.ptp(physical) > 0 and favourites(imagined).all() and favourites(-imagined).all():
        return 0.0
    return spearman(imagined, physical)


def judge_imagination(
    task: Task,
    model: JudgedModel,
    planner: Planner,
    config: BranchConfig,
    *,
    weights: StepWeights,
    seed: int,
    console: Console | None = None,
) -> Judged:
    """Measure imagination against physics on one task.

    Args:
        task: The task.
        model: The model, behind its adapter.
        planner: Supplies a third of the candidates.
        config: Branch points, candidates, horizon, context.
        weights: How much each step counts for the physical cost; give the model's objective the same.
        seed: Draws states, goals, candidates and noise.
        console: Where progress is shown.

    Raises:
        ValueError: If the model is of another camera or number of actions than the task.
    """
    check_fits(model, task)
    judge = ImaginationJudge(task, model, weights=weights)
    starts: list[BranchStart] = []

    def plan(start: BranchStart) -> tuple[np.ndarray, int]:
        starts.append(start)
        number = seed + len(starts) - 1
        model.reseed(number)
        objective = model.objective(torch.from_numpy(start.goal_frame))
        return planner_candidates(model, planner, judge.context(start)[1], objective, config, seed=number)

    seen = {"image_size": model.image_size, "camera": model.camera}
    points = branch_points(task, branch_starts(task, config, **seen, seed=seed, stride=model.stride), plan, **seen)
    results, truths, contacts, sources = [], [], [], ()
    with Track(f"imagine {task.name}", config.num_branch_points, unit="states", console=console) as track:
        for number, point in enumerate(points):
            model.reseed(seed + config.num_branch_points + number)
            results.append(judge.judge(point))
            truths.append(point.true_frames[0])
            contacts.append(point.contacts[0])
            sources = point.sources
            track.advance()
    judge.brancher.close()
    imagined_costs, physical_costs, recorded = zip(*results, strict=True)
    measures = judge.rows.measures(seed)
    return Judged(
        measures=measures,
        missing=_missing(judge.rows.missing, measures),
        imagined_costs=np.stack(imagined_costs),
        physical_costs=np.stack(physical_costs),
        sources=sources,
        starts=starts,
        true_frames=np.stack(truths),
        imagined_frames=None if recorded[0] is None else np.stack(recorded),
        contacts=np.stack(contacts),
    )


def _missing(noted: Mapping[str, str], measures: Mapping[str, Any]) -> dict[str, str]:
    """Return what was not measured, and why; ghost motion is undefined where every candidate moves the object."""
    found = {"ghost_motion": "no candidate left the object where it was"} | dict(noted)
    names = {name.split(".")[0] for name in measures} | set(measures)
    return {key: reason for key, reason in found.items() if key not in names}
