"""Sections of the report about closed-loop planning."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embodied_wm.evaluation.figures import Picture, film_rows, learning_curve, success_bars
from embodied_wm.evaluation.page import format_number
from embodied_wm.evaluation.pages_imagination import in_unit
from embodied_wm.evaluation.planning import Episodes
from embodied_wm.evaluation.report import Section, Table
from planners.mpc import Decision
from sim.tasks.base import Task

AGENTS: Mapping[str, str] = {
    "model": "world model",
    "latent_actions": "through latent actions, 5% labels",
    "oracle": "MuJoCo oracle",
    "behaviour_cloning": "behaviour cloning",
    "inverse_dynamics": "inverse dynamics",
    "random": "random actions",
    "zero": "zero actions",
}
"""Agents in the order of the page, with their names for people."""
OURS = ("model", "latent_actions")
NUM_STRIPS, STRIP_COLUMNS = 3, 9
_COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("success", "success", 1.0, "%"),
    ("success_any", "at any step", 1.0, "%"),
    ("final_cost_m", "end distance", 100.0, "cm"),
    ("steps_to_success", "steps to goal", 1.0, ""),
    ("seconds_per_decision", "decision", 1000.0, "ms"),
    ("seconds_per_decision_p95", "p95", 1000.0, "ms"),
)
"""Key of PROTOCOL, column, factor to the column's unit, unit."""
_WITH_INTERVAL = ("success", "final_cost_m")
"""Columns with their intervals; the others' stand under "Every figure", or the table would not fit a page."""


def planning_sections(
    task: Task, runs: Mapping[str, Episodes], measures: Mapping[str, Any], *, replan_every: int = 1
) -> list[Section]:
    """Return what a page shows of closed-loop planning: rates, films of episodes, a table.

    Args:
        task: The task.
        runs: Agent to its episodes.
        measures: From `measure_agents`.
        replan_every: Steps from one plan to the next.
    """
    names = [name for name in AGENTS if name in runs] + [name for name in runs if name not in AGENTS]
    bars = success_bars(
        [(AGENTS.get(name, name), measures[_key("success", name)]) for name in names],
        emphasis=[AGENTS[name] for name in names if name in OURS],
        caption="Share of episodes that end within the tolerance of the goal; whiskers are 95% Wilson intervals.",
    )
    strips = _strips(task, runs["model"]) if "model" in runs and runs["model"].films.size else []
    count = len(next(iter(runs.values())).success)
    planning, steps = "", f"at each of {task.episode_steps} steps"
    if replan_every > 1:
        steps = f"once every {replan_every} of {task.episode_steps} steps"
    if "model" in runs:
        planning = f"The world model sees frames and a goal image and plans {steps}. "
    elif "oracle" in runs:
        planning = f"The oracle sees the physical state and plans with MuJoCo {steps}. "
    text = (
        f"All agents meet the same {count:,} pairs of start and goal; pairs that are solved at the start, or by doing "
        "nothing, "
        f"are left out. {planning}"
        f"Success means within {100 * task.tolerance_m:g} cm of the goal in MuJoCo's state when the episode ends: "
        "arriving and leaving again does not count. A decision is timed from pixels to action, median and 95th "
        'percentile. The intervals of the plain numbers stand under "Every figure".'
    )
    share = cpg_sentence(measures)
    rows = []
    for name in names:
        cells = []
        for key, _, factor, _ in _COLUMNS:
            found = figure(measures, key, name)
            shown = found and in_unit(found, factor)
            cells.append(shown if key in _WITH_INTERVAL else shown and shown["value"])
        rows.append([AGENTS.get(name, name), *cells])
    table = Table(
        columns=["agent", *(column for _, column, *_ in _COLUMNS)],
        rows=rows,
        units=["", *(unit for *_, unit in _COLUMNS)],
    )
    return [
        Section(
            title="Does planning in imagination work?",
            text=f"{text}\n\n{share}" if share else text,
            pictures=[bars],
            table=table,
        ),
        *([Section(title="Episodes, as MuJoCo showed them", text=_FILMS, pictures=strips)] if strips else []),
    ]


_FILMS = "The world model's planner in closed loop, from the start to the end of the episode, beside the goal image."


def figure(measures: Mapping[str, Any], key: str, agent: str) -> dict[str, Any] | None:
    """Return an agent's figure, None where it was not measured (an agent that never succeeds needs no steps to it)."""
    return measures.get(_key(key, agent))


def _key(key: str, agent: str) -> str:
    return key if agent == "model" else f"{key}.{agent}"


def cpg_sentence(measures: Mapping[str, Any]) -> str:
    """Say in words how much of failure is the model's fault; "" where that was not measured."""
    if "cpg" not in measures:
        return ""
    cpg = measures["cpg"]
    rates = [format_number(measures[key]["value"], "%") for key in ("success.oracle", "success")]
    low, high = (format_number(end, "%") for end in cpg["ci95"])
    return (
        "The same planner with MuJoCo itself as its model (the oracle, which no goal policy guides) ends at the goal "
        f"in {rates[0]} of the episodes, in imagination in {rates[1]}. The difference, "
        f"{format_number(cpg['value'], '%')} (95%: {low} to {high}), is the part of failure that is the model's fault; "
        "what the oracle misses is the planner's."
    )


def thinned(frames: np.ndarray, columns: int = STRIP_COLUMNS) -> np.ndarray:
    """Return at most `columns` indices of frames, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int))


def episode_strip(frames: np.ndarray, goal: np.ndarray, *, title: str, caption: str) -> Picture:
    """Draw an episode, thinned, with its goal image as the last column."""
    shown = thinned(frames)
    return film_rows(
        [("MuJoCo", [*frames[shown], goal])],
        labels=[*(f"step {step}" for step in shown), "goal"],
        title=title,
        caption=caption,
    )


def _strips(task: Task, run: Episodes) -> list[Picture]:
    filmed = range(len(run.films))
    reached = [index for index in filmed if run.success[index]]
    failed = [index for index in filmed if not run.success[index]]
    room = NUM_STRIPS - min(1, len(failed))
    chosen = sorted([*reached[:room], *failed[: NUM_STRIPS - len(reached[:room])]])
    pictures = []
    for index in chosen:
        word = "goal reached" if run.success[index] else "goal missed"
        pictures.append(
            episode_strip(
                run.films[index],
                run.goals[index],
                title=f"Episode {index + 1}: {word}",
                caption=f"It ends {100 * run.final_cost_m[index]:.1f} cm from the goal; the tolerance is "
                f"{100 * task.tolerance_m:g} cm.",
            )
        )
    return pictures


_PARTS: Mapping[str, str] = {
    "encode_s": "encoding frames",
    "imagine_s": "imagining",
    "objective_s": "costs of what was imagined",
    "rest_s": "the planner itself",
}


def decision_sections(decisions: Sequence[Decision], budget_ms: float | None = None) -> list[Section]:
    """Return what a page shows of single decisions: their times, where the time goes, how the search went.

    Args:
        decisions: Decisions that made plans, in order; no section where there are none.
        budget_ms: What each may take, where that is limited.
    """
    if not decisions:
        return []
    total_ms = 1e3 * np.array([decision.seconds for decision in decisions])
    parts_ms = {part: 1e3 * np.array([getattr(d.times, part) for d in decisions]) for part in _PARTS}
    searched_ms = np.sum(list(parts_ms.values()), axis=0)
    pictures = [_times_chart(total_ms, parts_ms["imagine_s"], budget_ms), *_cost_curve(decisions)]
    table = Table(
        columns=["part", "median", "p99", "share"],
        rows=[
            ["whole decision", float(np.median(total_ms)), float(np.quantile(total_ms, 0.99)), None],
            *(
                [name, float(np.median(ms)), float(np.quantile(ms, 0.99)), float(ms.sum() / searched_ms.sum())]
                for (part, name) in _PARTS.items()
                for ms in (parts_ms[part],)
            ),
        ],
        units=["", "ms", "ms", "%"],
    )
    return [Section(title="What a decision takes", text=_words(decisions, budget_ms), pictures=pictures, table=table)]


def _words(decisions: Sequence[Decision], budget_ms: float | None) -> str:
    text = f"{len(decisions):,} decisions of the world model's planner, timed alone, from pixels to action."
    if budget_ms is not None:
        text += f" Each may take {budget_ms:g} ms: the search stops before an iteration that would not end in time."
    words = {
        "cut": "were stopped by the budget",
        "warm_start": "had no time for one iteration and went on with the last plan, if there was one",
        "fallback": "were not executed, since imagined futures disagreed",
        "spent": "came when nothing of the plan was left",
    }
    counts = {status: sum(d.status == status for d in decisions) for status in words}
    return " ".join([text, *(f"{count:,} {words[status]}." for status, count in counts.items() if count)])


def _times_chart(total_ms: np.ndarray, imagine_ms: np.ndarray, budget_ms: float | None) -> Picture:
    numbers = np.arange(1, len(total_ms) + 1)
    series: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "whole decision": (numbers, total_ms),
        "imagining": (numbers, imagine_ms),
    }
    if budget_ms is not None:
        series["budget"] = (numbers[[0, -1]], np.full(2, budget_ms))
    return learning_curve(
        series,
        title="Time of each decision",
        ylabel="milliseconds",
        xlabel="decision",
        caption="One after another, at most 300 of them drawn.",
        logarithmic=False,
    )


def _cost_curve(decisions: Sequence[Decision]) -> list[Picture]:
    """Draw how cost falls from iteration to iteration, in the mean over the longest searches."""
    length = max(len(decision.plan.iteration_best_costs) for decision in decisions)
    if length < 2:
        return []
    plans = [d.plan for d in decisions if len(d.plan.iteration_best_costs) == length]
    best = np.mean([plan.iteration_best_costs for plan in plans], axis=0)
    mean = np.mean([plan.iteration_mean_costs for plan in plans], axis=0)
    std = np.mean([plan.iteration_cost_stds for plan in plans], axis=0)
    steps = np.arange(1, length + 1)
    return [
        learning_curve(
            {"mean": (steps, mean), "best": (steps, best), "spread (std)": (steps, std)},
            title="Cost by iteration",
            ylabel="imagined cost of the candidates",
            xlabel="iteration",
            caption=f"Mean over {len(plans):,} decisions. Where the spread is gone, further iterations change nothing.",
            logarithmic=False,
        )
    ]
