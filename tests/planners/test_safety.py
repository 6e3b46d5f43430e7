"""Limits of actions, and imagination that is not sure of itself."""

from dataclasses import replace

import pytest
import torch
from test_mpc import HORIZON, Integrator, near_three
from torch import Tensor

from planners import CEM, MPC, Control, Safety
from planners.base import PlannerError
from planners.safety import disagreement

PLANNER = CEM(horizon=HORIZON, num_candidates=64, num_iterations=3, num_elites=8)
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])


class Unsure(Integrator):
    """Futures of one sequence are apart by twice `spread`: their std is that times the square root of 2."""

    def __init__(self) -> None:
        self.spread, self.asked = 0.0, 0

    def imagine_samples(self, context: Tensor, actions: Tensor, num_samples: int) -> Tensor:
        """Return positions [N, H, 1]."""
        self.asked += 1
        offsets = self.spread * torch.tensor([1.0, -1.0]).repeat(num_samples // 2)
        return self.imagine(context, actions[None]) + offsets[:, None, None]


def test_limits_are_exact() -> None:
    """Half ranges are 1 and 2, so 0.1 of them is 0.1 and 0.2; bounds come first."""
    actions = torch.tensor([[1.0, 9.0], [1.0, 9.0], [-1.0, -9.0]])
    limited = Safety(max_change=0.1).limit(actions, torch.tensor([0.0, 3.9]), LOW, HIGH)
    torch.testing.assert_close(limited, torch.tensor([[0.1, 4.0], [0.2, 4.0], [0.1, 3.8]]))
    assert torch.equal(Safety().limit(actions, torch.zeros(2), LOW, HIGH), actions.clamp(LOW, HIGH))


def test_what_is_imagined_and_executed_keeps_the_limit_of_change() -> None:
    imagined: list[Tensor] = []

    class Watched(Integrator):
        def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
            imagined.append(actions)
            return super().imagine(context, actions)

    mpc = MPC(PLANNER, Watched(), seed=0, control=Control(safety=Safety(max_change=0.25)))
    position, previous = torch.zeros(1), torch.zeros(1)
    for _ in range(6):
        imagined.clear()
        decision = mpc.act(position, near_three)
        steps = torch.cat(imagined)
        changes = torch.cat([previous.expand(len(steps), 1, 1), steps], dim=1).diff(dim=1).abs()
        assert changes.max() <= 0.25 + 1e-6
        assert abs(float(decision.action - previous)) <= 0.25 + 1e-6
        torch.testing.assert_close(decision.action, decision.plan.actions[0])
        previous = decision.action
        position = position + previous
    assert float(position) > 2.0  # at full speed from the fourth step on: 0.25 + 0.5 + 0.75 + 1 ...


def test_disagreement_is_the_std_of_futures() -> None:
    dynamics = Unsure()
    dynamics.spread = 0.3
    found = disagreement(dynamics, torch.zeros(1), torch.zeros(HORIZON, 1), 2)
    assert found == pytest.approx(0.3 * 2**0.5)


def test_an_unsure_plan_is_not_executed_and_another_is_made_at_once() -> None:
    dynamics = Unsure()
    control = Control(replan_every=3, safety=Safety(max_disagreement=0.2))
    mpc = MPC(PLANNER, dynamics, seed=0, control=control)
    sure = mpc.act(torch.zeros(1), near_three)
    assert (sure.status, sure.disagreement, sure.index) == ("planned", 0.0, 0)
    assert dynamics.asked == 1
    assert [mpc.act(torch.zeros(1), near_three).status for _ in range(2)] == ["reused", "reused"]
    dynamics.spread = 1.0
    for _ in range(2):
        unsure = mpc.act(torch.zeros(1), near_three)
        assert (unsure.status, unsure.index) == ("fallback", -1)
        assert unsure.action.tolist() == [0.0]
        assert unsure.disagreement == pytest.approx(2 / 3**0.5)  # std of 1, -1, 1, -1
        assert mpc.due
    dynamics.spread = 0.0
    assert mpc.act(torch.zeros(1), near_three).status == "planned"


def test_the_fallback_can_be_the_last_action_again() -> None:
    dynamics = Unsure()
    control = Control(safety=Safety(max_disagreement=0.2, fallback="last"))
    mpc = MPC(PLANNER, dynamics, seed=0, control=control)
    last = mpc.act(torch.zeros(1), near_three).action
    dynamics.spread = 1.0
    assert torch.equal(mpc.act(torch.zeros(1), near_three).action, last)
    assert float(last) > 0.5


def test_dynamics_of_one_future_cannot_disagree() -> None:
    mpc = MPC(PLANNER, Integrator(), seed=0, control=Control(safety=Safety(max_disagreement=0.2)))
    with pytest.raises(PlannerError, match="Integrator has no imagine_samples"):
        mpc.act(torch.zeros(1), near_three)


@pytest.mark.parametrize(
    ("name", "value"), [("max_change", 0.0), ("max_disagreement", -1.0), ("num_samples", 1), ("fallback", "stop")]
)
def test_bad_settings_are_named(name: str, value: object) -> None:
    with pytest.raises(PlannerError, match=f"Safety: {name}={value!r}; expected"):
        replace(Safety(), **{name: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("name", "value"), [("budget_ms", 0.0), ("min_candidates", 0), ("max_wait_ms", -1.0)])
def test_bad_control_is_named(name: str, value: object) -> None:
    with pytest.raises(PlannerError, match=f"Control: {name}={value!r}; expected"):
        replace(Control(), **{name: value})  # pyright: ignore[reportArgumentType]
