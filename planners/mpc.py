"""Model predictive control: plan, execute the first actions, shift the plan, plan again. The only planner state.

A latency budget stops the search in time; asynchronous control searches in a thread while the last plan is executed;
a safety layer limits actions and refuses plans that imagination is not sure of. Every `Decision` says what was done
and where its time went.
"""

import concurrent.futures
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from planners.base import Dynamics, Objective, Plan, Planner, action_bounds
from planners.control import Control, cheaper
from planners.deadline import Deadline, Durations, OutOfTime
from planners.executed import Executed
from planners.safety import disagreement, zero_action

Status = Literal["planned", "cut", "warm_start", "reused", "late", "fallback", "spent"]
"""What an action comes from: a search; one that the deadline cut short; no search, as there was no time for an
iteration; the plan of an earlier decision; the same because the next plan is late; the fallback action, as imagined
futures disagree; the fallback action, as the plan is spent before the next one is there."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Hold where the time of making a plan went, in seconds; the parts add up to all of it.

    Attributes:
        encode_s: From the input to the call of `MPC.act`: encoding a frame, prefilling the context.
        imagine_s: In the dynamics.
        objective_s: In the objective.
        rest_s: The planner itself, and the check of the plan.
    """

    encode_s: float = 0.0
    imagine_s: float = 0.0
    objective_s: float = 0.0
    rest_s: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """Hold one action to execute, and how it came about.

    Attributes:
        action: [A], within bounds and limits.
        plan: The plan that is executed; its costs by iteration are the cost curve.
        index: The action's place in the plan; -1 where the action is none of it (`status` is "fallback" or "spent").
        status: What the action comes from.
        is_new: Whether a plan was made for this action, rather than an earlier one reused.
        seconds: From the input to the action; 0 where an earlier plan was reused.
        times: Where the time of making the plan went, in whichever thread; zeros where an earlier plan was reused.
        disagreement: Disagreement of imagined futures of the plan; None where it was not asked for.
        context: What the plan was made from.
    """

    action: Float[Tensor, " A"]
    plan: Plan
    index: int
    status: Status
    is_new: bool
    seconds: float
    times: Times
    disagreement: float | None
    context: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class _Request:
    """Hold what one search starts from.

    Attributes:
        context: The present.
        objective: What is minimised.
        encode_s: Time that the input has taken so far; it counts to the budget.
        warm_start: The last plan, or all that it carries, shifted to the present.
        previous: The action executed last.
        committed: Actions that are executed while the search goes on.
    """

    context: Any
    objective: Objective
    encode_s: float
    warm_start: Tensor | None
    previous: Tensor | None
    committed: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """Hold what one search gave."""

    plan: Plan
    status: Status
    times: Times
    disagreement: float | None
    context: Any


class MPC:
    """Act in receding horizon; keeps the last plan as the next warm start, the generator, and learnt durations."""

    def __init__(
        self,
        planner: Planner,
        dynamics: Dynamics,
        *,
        seed: int,
        control: Control | None = None,
        clock: Callable[[], float] = time.perf_counter,
        executor: concurrent.futures.Executor | None = None,
    ) -> None:
        """Prepare control.

        Args:
            planner: What plans.
            dynamics: What it plans with.
            seed: Seed of the planner's samples.
            control: Budget, chunks, safety.
            clock: Seconds, for budgets and times.
            executor: Runs asynchronous searches, one at a time; a thread of its own if None.

        Raises:
            PlannerError: If the horizon is too short for the control, or nothing lies between the dynamics' bounds.
        """
        action_bounds(type(self).__name__, dynamics)
        self.control = control or Control()
        self.control.check_horizon(planner.horizon)
        self._planner, self._dynamics, self._clock = planner, dynamics, clock
        searchers = [planner]
        if self.control.budget_ms is not None:
            searchers += cheaper(planner, self.control)
        self._searchers = [(searcher, Deadline(clock=clock)) for searcher in searchers]
        self._afterwards = Durations()
        self._executor = executor
        if self.control.asynchronous and executor is None:
            self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._generator = torch.Generator()
        self._job: concurrent.futures.Future[_Found] | None = None
        self.reset(seed=seed)

    def reset(self, *, seed: int) -> None:
        """Forget the last plan, seed the generator and the dynamics' own noise: call it at the start of every episode.

        A search that is under way is waited for and its plan dropped; what was learnt about durations is kept.
        """
        if self._job is not None and not self._job.cancel():
            concurrent.futures.wait([self._job])
        self._job = None
        self._generator.manual_seed(seed)
        if callable(reseed := getattr(self._dynamics, "reseed", None)):
            reseed(seed)
        self._found: _Found | None = None
        self._next = 0
        """Index of the plan's action that is executed next."""
        self._age = 0
        """Steps since the plan was made, or since the next one was asked for."""
        self._previous: Tensor | None = None

    def close(self) -> None:
        """End the thread of asynchronous control."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    @property
    def due(self) -> bool:
        """Tell whether the next act() plans, or asks for a plan; if not, it needs no context."""
        return self._found is None or self._age >= self.control.replan_every

    @property
    def warm_start(self) -> Float[Tensor, "*M H A"] | None:
        """Return the last plan, or all that it carries, without its executed steps, filled at its end."""
        if self._found is None:
            return None
        plan = self._found.plan
        actions = plan.actions if plan.carried is None else plan.carried
        num_executed = min(self._next, len(plan.actions))
        last = actions[..., -1:, :] if self.control.tail == "last" else zero_action(self._dynamics).to(actions)
        filler = last.expand(*actions.shape[:-2], num_executed, -1)
        return torch.cat([actions[..., num_executed:, :], filler], dim=-2)

    def learn_durations(self, context: Any, objective: Objective, *, repeats: int = 3) -> None:
        """Time searches with every number of candidates, so that already the first decision is in time.

        Call `reset` afterwards.
        """
        for searcher, deadline in self._searchers:
            for _ in range(repeats):
                deadline.start(float("inf"))
                searcher.plan(
                    Executed(self._dynamics, self.control.safety),
                    context,
                    objective,
                    generator=self._generator,
                    deadline=deadline,
                )
        for _ in range(repeats):  # what follows a search is learnt, too
            self._search(self._request(context, objective, 0.0))

    def act(self, context: Any, objective: Objective, *, began: float | None = None) -> Decision:
        """Return the action [A] to execute now.

        Args:
            context: The present, as the dynamics know it; not read where nothing is `due`.
            objective: What is minimised.
            began: Time, on this controller's clock, at which the input came; the budget counts from there.
        """
        now = self._clock()
        began = now if began is None else began
        status: Status = "reused"
        if self._found is None or (self.due and not self.control.asynchronous):
            self._found = self._search(self._request(context, objective, now - began))
            self._next, self._age, status = 0, 0, self._found.status
        elif self.due:
            status = self._adopt()
        if self.control.asynchronous and self._job is None:
            self._ask(self._request(context, objective, now - began))
        return self._execute(self._found, status, began)

    def _request(self, context: Any, objective: Objective, encode_s: float) -> _Request:
        """Return what a search from the present starts from, captured here, as a thread may be slow to read it."""
        committed = None
        if self.control.asynchronous and self._found is not None:
            rest = self._found.plan.actions[self._next : self._next + self.control.replan_every]
            committed = self._fallback().expand(len(rest), -1) if self._is_doubted(self._found) else rest
        return _Request(
            context=context,
            objective=objective,
            encode_s=encode_s,
            warm_start=self.warm_start,
            previous=self._previous,
            committed=committed,
        )

    def _ask(self, request: _Request) -> None:
        """Begin the search for the plan after the next `replan_every` steps."""
        assert self._executor is not None
        self._job, self._age = self._executor.submit(self._search, request), 0

    def _adopt(self) -> Status:
        """Take the plan that was asked for, from the step on that is present now; "late" where it is not ready."""
        assert self._job is not None
        max_wait_ms = self.control.max_wait_ms
        concurrent.futures.wait([self._job], timeout=None if max_wait_ms is None else max_wait_ms / 1e3)
        if not self._job.done():
            return "late"
        self._found, self._job = self._job.result(), None
        self._next = self._age
        return self._found.status

    def _is_doubted(self, found: _Found) -> bool:
        most = self.control.safety.max_disagreement
        return most is not None and found.disagreement is not None and found.disagreement > most

    def _fallback(self) -> Tensor:
        zero = zero_action(self._dynamics)
        return zero if self.control.safety.fallback == "zero" or self._previous is None else self._previous

    def _execute(self, found: _Found, status: Status, began: float) -> Decision:
        """Return the decision of the next action of a plan, and count it as executed."""
        low, high = self._dynamics.action_low, self._dynamics.action_high
        is_new, index = status not in ("reused", "late"), self._next
        doubted = self._is_doubted(found)
        if doubted or index >= len(found.plan.actions):
            action, index, status = self._fallback(), -1, "fallback" if doubted else "spent"
        else:
            action = found.plan.actions[index].to(low)
        previous = zero_action(self._dynamics) if self._previous is None else self._previous
        action = self.control.safety.limit(action[None], previous, low, high)[0]
        if doubted and not self.control.asynchronous:
            self._age = self.control.replan_every  # nothing of the plan is executed: the next step makes another
        else:
            self._next, self._age = self._next + 1, self._age + 1
        self._previous = action
        return Decision(
            action=action,
            plan=found.plan,
            index=index,
            status=status,
            is_new=is_new,
            seconds=self._clock() - began if is_new else 0.0,
            times=found.times if is_new else Times(),
            disagreement=found.disagreement,
            context=found.context,
        )

    def _search(self, request: _Request) -> _Found:
        """Search until the budget is spent, with as many candidates as it allows for, and check the plan."""
        began = self._clock()
        safety, context = self.control.safety, request.context
        seen = Executed(
            self._dynamics, safety, previous=request.previous, committed=request.committed, clock=self._clock
        )
        plan, status, searched = self._search_within(seen, request, began)
        plan = self._unsearched(request.warm_start) if plan is None else plan
        doubt = None
        if safety.max_disagreement is not None:
            doubt = disagreement(self._dynamics, context, plan.actions, safety.num_samples)
        ended = self._clock()
        self._afterwards.add(ended - searched)
        times = Times(
            encode_s=request.encode_s,
            imagine_s=seen.imagine_s,
            objective_s=seen.objective_s,
            rest_s=ended - began - seen.imagine_s - seen.objective_s,
        )
        return _Found(plan=plan, status=status, times=times, disagreement=doubt, context=context)

    def _search_within(self, seen: Executed, request: _Request, began: float) -> tuple[Plan | None, Status, float]:
        """Return the plan, if there was time for one, its status, and when the last iteration ended."""
        budget_ms = self.control.budget_ms
        until = float("inf")
        if budget_ms is not None:
            until = began + budget_ms / 1e3 - request.encode_s - self._afterwards.expected
        objective = seen.objective(request.objective)
        warm_start = request.warm_start
        for searcher, deadline in self._searchers:
            deadline.start(until - self._clock())
            try:
                plan = searcher.plan(
                    seen,
                    request.context,
                    objective,
                    warm_start=None if warm_start is None else warm_start[..., : searcher.horizon, :],
                    generator=self._generator,
                    deadline=deadline,
                )
            except OutOfTime:
                if warm_start is not None:  # of several sequences fewer candidates have no room but for the first
                    warm_start = _first(warm_start)
                continue
            plan = self._lengthened(seen.plan(plan), warm_start)
            return plan, "cut" if deadline.was_cut else "planned", deadline.last_s
        return None, "warm_start", self._clock()

    def _lengthened(self, plan: Plan, warm_start: Tensor | None) -> Plan:
        """Return a plan that looks less far ahead with the end of the warm start, or zero actions, behind it."""
        done = len(plan.actions)
        if done == self._planner.horizon:
            return plan
        rest = self._unsearched(warm_start).actions[done:].to(plan.actions)
        candidates = torch.cat([plan.candidates, rest.expand(len(plan.candidates), -1, -1)], dim=1)
        return replace(plan, actions=torch.cat([plan.actions, rest]), candidates=candidates, carried=None)

    def _unsearched(self, warm_start: Tensor | None) -> Plan:
        """Return the warm start, or zero actions, as a plan of unknown cost."""
        horizon, size = self._planner.horizon, self._dynamics.action_size
        zero = zero_action(self._dynamics).expand(horizon, -1).clone()
        actions = zero if warm_start is None else _first(warm_start)
        return Plan(
            actions=actions,
            cost=float("nan"),
            candidates=actions.new_empty(0, horizon, size),
            candidate_costs=actions.new_empty(0),
            candidate_iterations=torch.empty(0, dtype=torch.int64),
            iteration_best_costs=(),
            iteration_mean_costs=(),
            num_imagined=0,
        )


def _first(sequences: Float[Tensor, "*M H A"]) -> Float[Tensor, "H A"]:
    """Return the first of several sequences, or the only one."""
    return sequences.flatten(0, -3)[0] if sequences.ndim > 2 else sequences
