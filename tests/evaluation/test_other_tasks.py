"""Planning is judged on varied tasks and on other people's environments by the same code as on ours."""

import numpy as np
import pytest

from embodied_wm.evaluation.lineup import PlanningSetup, make_oracle_agent, make_random_agent
from embodied_wm.evaluation.planning import Arena
from planners.cem import CEM
from planners.objectives import StepWeights
from sim.manifest import evaluation_pairs
from sim.tasks import get_task

PLANNER = CEM(horizon=6, num_candidates=32, num_iterations=2, num_elites=6)


def final_costs(name: str, num_pairs: int) -> dict[str, list[float]]:
    """Return the distance to the goal at the end of each episode, by agent."""
    setup = PlanningSetup(task=name, planner=PLANNER, objective="latent", weights=StepWeights())
    arena = Arena(get_task(name), image_size=(16, 16), camera=get_task(name).cameras[0])
    agents = {"oracle": make_oracle_agent(setup), "zero": make_random_agent(setup, 0.0)}
    pairs = evaluation_pairs(name, num_pairs, seed=0)
    found = {agent: [float(arena.run(agents[agent], pair)[0][-1]) for pair in pairs] for agent in agents}
    arena.close()
    return found


def test_the_oracle_plans_with_the_variation_it_meets() -> None:
    task = get_task("reach+gain+delay")
    costs = final_costs(task.name, 3)
    assert np.max(costs["oracle"]) <= task.tolerance_m < np.min(costs["zero"])


@pytest.mark.slow
def test_the_oracle_reaches_in_an_environment_of_others() -> None:
    pytest.importorskip("gymnasium_robotics", reason="not installed: pip install 'embodied-wm[environments]'")
    task = get_task("FetchReach-v4")
    costs = final_costs(task.name, 2)
    assert np.max(costs["oracle"]) <= task.tolerance_m < np.min(costs["zero"])
