"""Plan one episode in closed loop and show it: what happened, what the planner imagined, and how far from the goal."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.figures import Picture, film_rows, film_strip, learning_curve, looping
from embodied_wm.evaluation.judged import JudgedWorldModel, check_fits
from embodied_wm.evaluation.lineup import PlanningSetup, judged_world_model
from embodied_wm.evaluation.pages_imagination import in_unit
from embodied_wm.evaluation.pages_planning import decision_sections, episode_strip, thinned
from embodied_wm.evaluation.planning import measure_budget
from embodied_wm.evaluation.report import Headline, Section, run_record, write_report
from embodied_wm.evaluation.statistics import bootstrap_quantile, estimate, wilson
from embodied_wm.progress import Track
from embodied_wm.world_model import WorldModel
from planners.mpc import Decision
from sim.branch import Brancher
from sim.manifest import evaluation_pairs
from sim.render import AnyRenderer
from sim.tasks import get_task
from sim.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Hold one episode and what was imagined in it; T steps, N plans, H planned steps.

    Attributes:
        frames: What MuJoCo showed, [T + 1, h, w, 3].
        goal: Goal image.
        cost_m: Distance to the goal [T + 1], metres.
        imagined: Every plan, decoded: [N, H, h, w, 3].
        plan_starts: The step that each plan begins at [N].
        expected: What the plan in force expected of each action, decoded: [T, h, w, 3].
        expected_cost_m: Distance that the planner expected at the end of each plan [N]; None without a readout.
        first_plan: What MuJoCo shows for the first plan, all of it: [H, h, w, 3].
        decisions: The decisions that made the plans.
    """

    frames: np.ndarray
    goal: np.ndarray
    cost_m: np.ndarray
    imagined: np.ndarray
    plan_starts: np.ndarray
    expected: np.ndarray
    expected_cost_m: np.ndarray | None
    first_plan: np.ndarray
    decisions: list[Decision]


def plan_once(world_model: WorldModel, setup: PlanningSetup, *, seed: int, run_dir: Path, console: Console) -> Path:
    """Plan one episode in closed loop and write what happened as a report.

    Args:
        world_model: Plans from frames to a goal image.
        setup: What plans, and how; start and goal are the first pair of the task's frozen list of `seed`.
        seed: Draws the pair and the planner's candidates.
        run_dir: Where the report goes.
        console: Where progress and the outcome are shown.

    Returns:
        The path of report.json; report.html and pictures/ lie beside it.

    Raises:
        ValueError: If the model belongs to another robot or camera.
    """
    began = time.monotonic()
    task, control, model = get_task(setup.task), setup.control, judged_world_model(world_model, setup)
    check_fits(model, task)
    planner = setup.planner_for(model)
    agent = ModelAgent(model, planner, context=setup.context, control=control)
    renderer = task.renderer(*model.image_size, model.camera)
    shown = _run(task, model, agent, renderer, seed, console)
    renderer.close()
    final, reached = float(shown.cost_m[-1]), bool(shown.cost_m[-1] <= task.tolerance_m)
    verdict = f"Goal {'reached' if reached else 'missed'}: the episode ends {100 * final:.1f} cm from it (tolerance "
    verdict += f"{100 * task.tolerance_m:g} cm, {100 * shown.cost_m[0]:.1f} cm at the start)."
    seconds = np.array([decision.seconds for decision in shown.decisions])
    median = bootstrap_quantile(seconds, 0.5, seed=seed)
    measures = {
        "success": wilson(int(reached), 1),
        "final_cost_m": estimate(final, None, 1),
        "start_cost_m": estimate(float(shown.cost_m[0]), None, 1),
        "seconds_per_decision": median,
    }
    if control.budget_ms is not None:
        measures |= measure_budget(seconds, control.budget_ms, seed=seed)
    settings = {
        "task": task.name,
        "planner": repr(planner),
        "objective": str(setup.objective),
        "weights": repr(setup.weights),
        "control": repr(control),
        "precision": world_model.predictor.transformer.precision,
        "denoising_steps": setup.denoising_steps,
    }
    report = write_report(
        run_dir,
        kind="planning",
        run=run_record(
            {**settings, "context": setup.context},
            seed,
            device=next(world_model.parameters()).device,
            dataset=world_model.card.get("fingerprint"),
            checkpoint=world_model.fingerprint(),
            wall_seconds=time.monotonic() - began,
        ),
        tasks={task.name: measures},
        sections=[*_sections(task, shown), *decision_sections(shown.decisions, control.budget_ms)],
        headline=[
            Headline(
                label="distance to the goal at the end",
                value=in_unit(measures["final_cost_m"], 100),
                unit="cm",
                better="lower",
                target=100 * task.tolerance_m,
            ),
            Headline(label="one decision", value=in_unit(median, 1000), unit="ms", better="lower"),
        ],
        title=f"One episode of {task.name}, planned in imagination",
        summary=verdict,
    )
    console.print(verdict, highlight=False)
    console.print(f"wrote [cyan]{report.with_suffix('.html')}[/]", soft_wrap=True)
    return report


def _run(
    task: Task, model: JudgedWorldModel, agent: ModelAgent, renderer: AnyRenderer, seed: int, console: Console
) -> Shown:
    """Run the episode, then decode what was imagined (afterwards, so that it costs no decision time)."""
    start, goal, pair_seed = evaluation_pairs(task.name, 1, seed)[0]
    goal_frame = renderer.render_states(goal[None])[0]
    brancher = Brancher(task, num_threads=1)
    agent.begin(goal_frame, goal, pair_seed)
    states, taken = [start], []
    with Track(f"plan {task.name}", task.episode_steps, unit="decisions", console=console) as track:
        for _ in range(task.episode_steps):
            action = agent.act(renderer.render_states(states[-1][None])[0], states[-1])
            states.append(brancher(states[-1], np.asarray(action, np.float32)[None, None]).states[0, 0])
            taken.append(agent.decision)
            track.advance()
    agent.control.close()
    goal_quantities = task.state_quantities(goal)
    made = [step for step, decision in enumerate(taken) if decision.is_new]
    decisions = [taken[step] for step in made]
    plan_starts = np.array([step - max(taken[step].index, 0) for step in made])
    model.reseed(seed)
    latents = torch.stack([model.imagine(d.context, d.plan.actions[None])[0] for d in decisions])
    read = model.read(latents[:, -1])
    expected_cost_m = None if read is None else task.cost(read.double().cpu().numpy(), goal_quantities)
    replayed = brancher(start, decisions[0].plan.actions.cpu().numpy()[None]).states[0]
    brancher.close()
    frames = renderer.render_states(np.stack(states))
    seen = torch.from_numpy(frames[plan_starts])
    imagined = torch.stack([model.decode(plan, seen=frame) for plan, frame in zip(latents, seen, strict=True)])
    in_force = np.searchsorted(made, np.arange(len(taken)), side="right") - 1
    places = np.array([max(decision.index, 0) for decision in taken])  # a fallback action is of no plan
    imagined = imagined.cpu().numpy()
    return Shown(
        frames=frames,
        goal=goal_frame,
        cost_m=task.cost(task.state_quantities(np.stack(states)), goal_quantities),
        imagined=imagined,
        plan_starts=plan_starts,
        expected=imagined[in_force, places],
        expected_cost_m=expected_cost_m,
        first_plan=renderer.render_states(replayed),
        decisions=decisions,
    )


def _sections(task: Task, shown: Shown) -> list[Section]:
    horizon = shown.imagined.shape[1]
    plan_labels = ["given, t", *(f"t+{step}" for step in range(1, horizon + 1))]
    first = shown.frames[:1]
    happened = episode_strip(
        shown.frames,
        shown.goal,
        title="What happened",
        caption="The episode in MuJoCo, thinned, beside the goal image.",
    )
    motion = looping(
        shown.frames[1:],
        shown.expected,
        labels=[f"step {step}" for step in range(1, len(shown.frames))],
        title="The episode in motion",
        caption="Left what MuJoCo showed; in the middle what the plan in force had expected of that action.",
    )
    plan = film_strip(
        np.concatenate([first, shown.first_plan]),
        np.concatenate([first, shown.imagined[0]]),
        labels=plan_labels,
        title="The first plan",
        caption="The whole plan of the first decision: replayed in MuJoCo, and as the model imagined it when it had "
        "seen one "
        "frame. In the episode only its first actions were carried out.",
        num_context=1,
        goal=shown.goal,
    )
    return [
        Section(title="The episode", pictures=[happened, motion]),
        Section(title="What the planner imagined", pictures=[plan, _intentions(shown)]),
        Section(title="Distance to the goal", pictures=[_distance_chart(task, shown)]),
    ]


def _intentions(shown: Shown) -> Picture:
    plans = thinned(shown.imagined)
    steps = shown.plan_starts[plans]
    return film_rows(
        [("MuJoCo", [*shown.frames[steps], shown.goal]), ("End of the plan", [*shown.imagined[plans, -1], None])],
        labels=[*(f"step {step}" for step in steps), "goal"],
        title="Decision by decision",
        caption="Below each real frame the frame that the plan chosen there was imagined to end in, "
        f"{shown.imagined.shape[1]} "
        "steps later.",
    )


def _distance_chart(task: Task, shown: Shown) -> Picture:
    count = len(shown.cost_m)
    series: dict[str, tuple[np.ndarray, np.ndarray]] = {"in MuJoCo": (np.arange(count), 100 * shown.cost_m)}
    words = "The episode succeeds if it ends within the tolerance."
    if shown.expected_cost_m is not None:
        series["expected at plan's end"] = (shown.plan_starts, 100 * shown.expected_cost_m)
        words += " The second line is how near the goal each plan was imagined to end."
    series["tolerance"] = (np.array([0, count - 1]), np.full(2, 100 * task.tolerance_m))
    return learning_curve(
        series, title="Distance over time", ylabel="distance to the goal (cm)", caption=words, logarithmic=False
    )
