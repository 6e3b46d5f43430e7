"""What stands between a plan and a robot: limits of actions, and what is done where imagination is not sure."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from planners.base import Dynamics, PlannerError


@runtime_checkable
class SamplesFutures(Protocol):
    """Imagine one action sequence several times, each with noise of its own."""

    def imagine_samples(
        self, context: Any, actions: Float[Tensor, "H A"], num_samples: int
    ) -> Float[Tensor, "N H *state"]:
        """Return independent futures [N, H, ...] of one sequence."""
        ...


@dataclass(frozen=True, kw_only=True)
class Safety:
    """Limit actions, and fall back where samples of the imagined future disagree.

    Attributes:
        max_change: Largest change of an action from one step to the next, in half action ranges; an episode begins at
            the zero action. Candidates are imagined with this limit, so that a plan is what will be executed.
        max_disagreement: Disagreement of imagined futures (`disagreement`, in the unit of the dynamics' states) above
            which a plan is not executed.
        num_samples: Futures that are compared.
        fallback: What is done instead: the zero action (a velocity-controlled robot stands still), or the last action
            again (a position-controlled one does).
    """

    max_change: float | None = None
    max_disagreement: float | None = None
    num_samples: int = 4
    fallback: Literal["zero", "last"] = "zero"

    def __post_init__(self) -> None:
        """Raise PlannerError for knobs outside their ranges."""
        checks = [
            (self.max_change is None or self.max_change > 0, "max_change", "above 0, or None"),
            (self.max_disagreement is None or self.max_disagreement >= 0, "max_disagreement", "0 or more, or None"),
            (self.num_samples >= 2, "num_samples", "at least 2"),
            (self.fallback in ("zero", "last"), "fallback", "'zero' or 'last'"),
        ]
        for valid, name, expected in checks:
            if not valid:
                raise PlannerError(f"Safety: {name}={getattr(self, name)!r}; expected {expected}.")

    def limit(
        self, actions: Float[Tensor, "*batch H A"], previous: Float[Tensor, " A"], low: Tensor, high: Tensor
    ) -> Float[Tensor, "*batch H A"]:
        """Return sequences within the bounds and the limit of change.

        Args:
            actions: Sequences.
            previous: The action before their first one.
            low: Smallest action [A].
            high: Largest.
        """
        actions = torch.clamp(actions, low, high)
        if self.max_change is None:
            return actions
        most = self.max_change * (high - low) / 2
        limited: list[Tensor] = []
        last = previous
        for action in actions.unbind(-2):
            last = torch.clamp(action, last - most, last + most)
            limited.append(last)
        return torch.stack(limited, dim=-2)


def zero_action(dynamics: Dynamics) -> Float[Tensor, " A"]:
    """Return the allowed action nearest to zero."""
    low = dynamics.action_low
    return torch.zeros_like(low).clamp(low, dynamics.action_high)


def disagreement(dynamics: Dynamics, context: Any, actions: Float[Tensor, "H A"], num_samples: int) -> float:
    """Return how much imagined futures of one sequence differ: the std over samples, root mean square over H and state.

    Raises:
        PlannerError: If the dynamics imagine one future only.
    """
    if not isinstance(dynamics, SamplesFutures):
        raise PlannerError(
            f"Safety: {type(dynamics).__name__} has no imagine_samples(context, actions, num_samples), so its futures "
            "cannot disagree; set max_disagreement=None, or add the method."
        )
    futures = dynamics.imagine_samples(context, actions, num_samples)
    if futures.shape[0] != num_samples:
        raise PlannerError(
            f"Safety: imagine_samples returned {futures.shape[0]} futures; expected num_samples={num_samples}."
        )
    return float(futures.var(0).mean().sqrt())
