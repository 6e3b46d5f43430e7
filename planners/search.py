"""How planners search: they ask for the costs of candidates, are told them, and ask again.

A planner is a dataclass with a `search(space, generator)`: a Python generator that yields `Ask` and is sent `Told`. It
never touches dynamics or objective, so the same search runs for one environment or for many in step (`plan_batch`),
stops at a deadline between two questions, and can be wrapped by another search that changes questions and answers on
the way (planners.knots, planners.polished, planners.proposing). `plan = plan_by_search` in the class makes it a
`planners.base.Planner`.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from planners.base import (
    Dynamics,
    Guided,
    Objective,
    Plan,
    Planner,
    PlannerError,
    Proposals,
    action_bounds,
    check_sequences,
)
from planners.deadline import Deadline, iterations


class Ask(NamedTuple):
    """Ask what candidates [S, H, A] cost; with `is_compared` False they are imagined, but no choice is among them."""

    actions: Tensor
    wants_gradient: bool = False
    is_compared: bool = True


class Told(NamedTuple):
    """Tell the costs [S] of candidates, and the gradient [S, H, A] of each with respect to its actions, if asked."""

    costs: Tensor
    gradient: Tensor | None


class Choice(NamedTuple):
    """What a search ends with.

    Attributes:
        actions: Chosen actions [H, A]; None takes the cheapest of all that were compared.
        cost: Their cost.
        carried: See planners.base.Plan.
    """

    actions: Tensor | None = None
    cost: float = float("nan")
    carried: Tensor | None = None


type Search = Generator[Ask, Told, Choice]


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """What a search knows of the problem.

    Attributes:
        planner: Name, for errors.
        low: Smallest action [A].
        high: Largest action [A].
        starts: Sequences to start from, within the bounds, [N, H, A]; N is 0 where there are none.
        dynamics: Read for further members (`action_set`), never to imagine; None inside a search whose actions are
            not the dynamics' own.
        propose: What the objective, or else the dynamics, propose; None where neither does, and inside such a search.
        context: What the dynamics know about the present; for `propose`.
        horizon: H.
    """

    planner: str
    low: Float[Tensor, " A"]
    high: Float[Tensor, " A"]
    starts: Float[Tensor, "N H A"]
    dynamics: Dynamics | None
    propose: Proposals | None
    context: Any
    horizon: int

    @property
    def scale(self) -> Tensor:
        """Return half of the action range [A], the unit of standard deviations and rates."""
        return (self.high - self.low) / 2

    @property
    def zero(self) -> Tensor:
        """Return zero actions [H, A], or the nearest allowed."""
        return torch.zeros_like(self.low).clamp(self.low, self.high).expand(self.horizon, -1)

    @property
    def centre(self) -> Tensor:
        """Return the sequence [H, A] to search around: the first start, or zero actions."""
        return self.starts[0] if len(self.starts) else self.zero

    def clamp(self, actions: Tensor) -> Tensor:
        """Return actions [..., A] moved into the bounds."""
        return torch.clamp(actions, self.low, self.high)

    def room(self, num_candidates: int, known: Tensor) -> int:
        """Return how many candidates are left to sample beside known ones [N, H, A].

        Raises:
            PlannerError: If there are more known ones than candidates.
        """
        if len(known) > num_candidates:
            raise PlannerError(
                f"{self.planner}: {len(known)} sequences are given (warm starts, proposals, elites and fixed ones); "
                f"expected at most num_candidates={num_candidates}. Give fewer, or imagine more."
            )
        return num_candidates - len(known)


@runtime_checkable
class Searcher(Planner, Protocol):
    """A planner that is written as a search."""

    @property
    def num_iterations(self) -> int:
        """Return how often the search asks for costs of candidates that are compared."""
        ...

    @property
    def num_sequences(self) -> int:
        """Return how many sequences a plan imagines at most."""
        ...

    @property
    def num_recorded(self) -> int:
        """Return how many candidates a Plan records at most."""
        ...

    def search(self, space: Space, generator: torch.Generator) -> Search:
        """Ask for costs of candidates within the bounds, and return the choice."""
        ...


@runtime_checkable
class BatchDynamics(Dynamics, Protocol):
    """Dynamics that imagine for several environments at once."""

    def imagine_batch(
        self, contexts: Sequence[Any], actions: Float[Tensor, "B S H A"]
    ) -> Float[Tensor, "B S H *state"]:
        """Return what `imagine` gives for each context and its own candidates."""
        ...


class CandidateLog:
    """Collect what one search compares and build the Plan from it."""

    def __init__(self) -> None:
        """Start empty."""
        self._actions: list[Tensor] = []
        self._costs: list[Tensor] = []
        self._num_extra = 0

    def add(self, ask: Ask, costs: Tensor) -> None:
        """Remember what was asked, and its costs [S]."""
        if ask.is_compared:
            self._actions.append(ask.actions)
            self._costs.append(costs)
        else:
            self._num_extra += len(costs)

    def cheapest(self, num: int) -> tuple[Tensor, Tensor]:
        """Return the cheapest different candidates of all iterations [N, H, A], cheapest first, and their costs."""
        every, costs = torch.cat(self._actions), torch.cat(self._costs)
        order = costs.argsort(stable=True)
        every, costs = every[order], costs[order]
        chosen: list[int] = []
        for index in range(len(costs)):
            if len(chosen) == num:
                break
            if all(not torch.equal(every[index], every[other]) for other in chosen):
                chosen.append(index)
        return every[chosen], costs[chosen]

    def plan(self, choice: Choice, *, num_recorded: int) -> Plan:
        """Return a Plan that records at most `num_recorded` candidates, evenly over all that were compared."""
        every, costs = torch.cat(self._actions), torch.cat(self._costs)
        iteration = torch.cat([torch.full((len(c),), i) for i, c in enumerate(self._costs)])
        count = min(num_recorded, len(costs))
        kept = torch.arange(count) * len(costs) // max(count, 1)
        best = int(costs.argmin())
        actions, cost = (every[best], float(costs[best])) if choice.actions is None else (choice.actions, choice.cost)
        return Plan(
            actions=actions.clone(),
            cost=cost,
            candidates=every[kept.to(every.device)],
            candidate_costs=costs[kept.to(costs.device)],
            candidate_iterations=iteration[kept],
            iteration_best_costs=tuple(float(c.min()) for c in self._costs),
            iteration_mean_costs=tuple(float(c.mean()) for c in self._costs),
            num_imagined=len(costs) + self._num_extra,
            iteration_cost_stds=tuple(float(c.std(correction=0)) for c in self._costs),
            carried=choice.carried,
        )


def logged(search: Search, log: CandidateLog) -> Search:
    """Search as `search` does, and log every question with its answer."""
    ask = next(search)
    while True:
        told = yield ask
        log.add(ask, told.costs)
        try:
            ask = search.send(told)
        except StopIteration as end:
            return end.value


def plan_by_search(
    self: Searcher,
    dynamics: Dynamics,
    context: Any,
    objective: Objective,
    *,
    warm_start: Float[Tensor, "*N H A"] | None = None,
    generator: torch.Generator,
    deadline: Deadline | None = None,
) -> Plan:
    """Plan for one environment: the `plan` of every planner here; see planners.base.Planner."""
    problem = _Problem(self, dynamics, context, objective, warm_start, generator)
    _run(self, dynamics, [problem], deadline)
    return problem.plan()


def plan_batch(
    planner: Searcher,
    dynamics: BatchDynamics,
    contexts: Sequence[Any],
    objectives: Sequence[Objective],
    *,
    warm_starts: Sequence[Tensor | None] | None = None,
    generators: Sequence[torch.Generator],
    deadline: Deadline | None = None,
) -> list[Plan]:
    """Plan for B environments at once: one `imagine_batch` per iteration for all, and the plans that B calls give.

    Args:
        planner: The planner.
        dynamics: What imagines for all.
        contexts: What they know about each environment's present.
        objectives: What is minimised in each.
        warm_starts: Where each search starts.
        generators: Randomness of each; those of separate calls give the plans of separate calls.
        deadline: As for `Planner.plan`, for all together.

    Raises:
        PlannerError: As `Planner.plan`, or for numbers of arguments that differ, or a planner that plans for one only.
    """
    if not hasattr(planner, "search"):
        raise PlannerError(
            f"plan_batch: {type(planner).__name__} plans for one environment at a time; expected a planner with a "
            "`search`, such as CEM. Call its `plan` for each."
        )
    starts = [None] * len(contexts) if warm_starts is None else list(warm_starts)
    lengths = {len(contexts), len(objectives), len(starts), len(generators)}
    if len(lengths) > 1 or not contexts:
        raise PlannerError(
            f"plan_batch: got {len(contexts)} contexts, {len(objectives)} objectives, {len(starts)} warm starts and "
            f"{len(generators)} generators; expected one of each for every environment."
        )
    problems = [
        _Problem(planner, dynamics, *each, where=f", environment {index}")
        for index, each in enumerate(zip(contexts, objectives, starts, generators, strict=True))
    ]
    _run(planner, dynamics, problems, deadline)
    return [problem.plan() for problem in problems]


class _Problem:
    """One environment's search, and what it has asked."""

    def __init__(
        self,
        planner: Searcher,
        dynamics: Dynamics,
        context: Any,
        objective: Objective,
        warm_start: Tensor | None,
        generator: torch.Generator,
        *,
        where: str = "",
    ) -> None:
        self.where = where
        self.context, self.objective, self.num_recorded = context, objective, planner.num_recorded
        self.log, self.choice = CandidateLog(), Choice()
        name = type(planner).__name__
        low, high = action_bounds(name, dynamics)
        starts = low.new_empty(0, planner.horizon, dynamics.action_size)
        if warm_start is not None:
            checked = check_sequences(name, "warm start", warm_start, planner.horizon, dynamics.action_size)
            starts = torch.clamp(checked.to(low), low, high)
        space = Space(
            planner=name,
            low=low,
            high=high,
            starts=starts,
            dynamics=dynamics,
            propose=objective.propose if isinstance(objective, Guided) else getattr(dynamics, "propose", None),
            context=context,
            horizon=planner.horizon,
        )
        self._search = logged(planner.search(space, generator), self.log)
        self.ask: Ask | None = None

    @torch.no_grad()
    def begin(self) -> None:
        """Ask the first question, for which some searches ask a policy first."""
        self.ask = next(self._search)

    @torch.no_grad()
    def tell(self, told: Told) -> None:
        """Send an answer and keep the next question, None at the end."""
        try:
            self.ask = self._search.send(told)
        except StopIteration as end:
            self.ask, self.choice = None, end.value

    def plan(self) -> Plan:
        """Return the plan; where a deadline stopped the search, of the best candidate so far."""
        return self.log.plan(self.choice, num_recorded=self.num_recorded)


def _run(planner: Searcher, dynamics: Dynamics, problems: Sequence[_Problem], deadline: Deadline | None) -> None:
    """Answer the questions of all searches, iteration by iteration; what is not compared belongs to the last one."""
    name = type(planner).__name__
    for iteration in iterations(name, planner.num_iterations, deadline):
        if iteration == 0:
            for problem in problems:
                problem.begin()
        if not any(problem.ask for problem in problems):  # a search may end early
            return
        _answer(name, iteration, dynamics, [p for p in problems if p.ask])
        while extra := [p for p in problems if p.ask and not p.ask.is_compared]:
            _answer(name, iteration, dynamics, extra)


def _answer(name: str, iteration: int, dynamics: Dynamics, problems: Sequence[_Problem]) -> None:
    asks = [problem.ask for problem in problems if problem.ask is not None]
    if not asks:
        return
    wants = any(ask.wants_gradient for ask in asks)  # one search may have ended its first part sooner than another
    actions = [ask.actions.detach().requires_grad_(wants) for ask in asks]
    with torch.set_grad_enabled(wants):
        costs: list[Tensor] = []
        for index, trajectory in enumerate(_imagine(name, dynamics, [p.context for p in problems], actions)):
            place = f"{name}, iteration {iteration}{problems[index].where}"
            costs.append(_checked_costs(place, trajectory, problems[index].objective, actions[index]))
        gradients = _gradients(f"{name}, iteration {iteration}", costs, actions) if wants else [None] * len(asks)
    for problem, cost, gradient in zip(problems, costs, gradients, strict=True):
        problem.tell(Told(cost.detach(), gradient))


def _imagine(name: str, dynamics: Dynamics, contexts: Sequence[Any], actions: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(actions) == 1:
        return [dynamics.imagine(contexts[0], actions[0])]
    if not isinstance(dynamics, BatchDynamics):
        raise PlannerError(
            f"{name}: {type(dynamics).__name__} imagines for one environment at a time; expected dynamics with "
            "imagine_batch (planners.search.BatchDynamics). Plan for one environment after the other."
        )
    found: dict[int, Tensor] = {}
    for size in {len(each) for each in actions}:  # one, but for a search that runs out of candidates
        alike = [index for index, each in enumerate(actions) if len(each) == size]
        states = dynamics.imagine_batch([contexts[i] for i in alike], torch.stack([actions[i] for i in alike]))
        found |= dict(zip(alike, states.unbind(0), strict=True))
    return [found[index] for index in range(len(actions))]


def _checked_costs(place: str, trajectory: Tensor, objective: Objective, actions: Tensor) -> Tensor:
    if trajectory.shape[:2] != actions.shape[:2]:
        raise PlannerError(
            f"{place}: the dynamics returned states of shape {tuple(trajectory.shape)}; expected "
            f"{tuple(actions.shape[:2])} (candidates, horizon) and the state's own dimensions."
        )
    costs = _one_each(place, objective(trajectory, actions), len(actions))
    _check_finite(place, "cost", costs, "Check the dynamics' output and the objective for this candidate.")
    return costs.to(actions.device)  # tasks count theirs on the CPU


def _one_each(place: str, costs: object, num_candidates: int) -> Tensor:
    if not isinstance(costs, Tensor):
        raise PlannerError(
            f"{place}: the objective returned a {type(costs).__name__}, {costs!r:.60}; expected a torch.Tensor of "
            f"shape {(num_candidates,)}, one cost per candidate."
        )
    if tuple(costs.shape) != (num_candidates,):
        raise PlannerError(
            f"{place}: the objective returned costs of shape {tuple(costs.shape)}; "
            f"expected {(num_candidates,)}, one per candidate. Reduce over time and state inside the objective."
        )
    return costs


def _gradients(place: str, costs: Sequence[Tensor], actions: Sequence[Tensor]) -> list[Tensor]:
    total = torch.stack([cost.sum() for cost in costs]).sum()
    if not total.requires_grad:
        raise PlannerError(
            f"{place}: the costs have no gradient with respect to the actions; expected dynamics and an objective made "
            "of differentiable torch operations (MuJoCo is not). Use a planner that samples, such as CEM."
        )
    gradients = torch.autograd.grad(total, list(actions))
    for gradient in gradients:
        worst = gradient.flatten(1).abs().amax(1)
        _check_finite(place, "gradient", worst, "Check the objective where a distance is 0: a root has no slope there.")
    return list(gradients)


def _check_finite(place: str, what: str, values: Tensor, advice: str) -> None:
    values = values.detach()
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        candidate = int((~finite).nonzero()[0])
        raise PlannerError(
            f"{place}, candidate {candidate}: {what} is {float(values[candidate])} ({int((~finite).sum())} of "
            f"{len(values)} candidates are not finite); expected finite values. {advice}"
        )
