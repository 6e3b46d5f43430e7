"""What is trained, planned and measured on a GPU, a pretended one, is what the CPU makes of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from pretended_gpu import pretended_gpu
from torch import Tensor

from embodied_wm.conditioning import ActionKind
from embodied_wm.data.store import EpisodeStore
from embodied_wm.dynamics import ImaginedDynamics
from embodied_wm.evaluation.imagined_env import ImaginedEnvConfig, ImaginedVectorEnv, StoreStarts
from embodied_wm.evaluation.latent_actions import measure_latent_actions, same_codes
from embodied_wm.training.processes import ComputeConfig
from embodied_wm.training.train import train_world_model
from embodied_wm.world_model import WorldModel
from planners import CEM, ICEM, MPPI, Cautious, Gradient, Knots, Polished, PredictiveSampling, TreeSearch
from planners.base import Planner

HORIZON = 3
SMALL = CEM(horizon=HORIZON, num_candidates=8, num_iterations=2, num_elites=3, num_kept=2)
ADAM = Gradient(horizon=HORIZON, num_candidates=4, num_iterations=2)
PLANNERS: dict[str, tuple[Planner, ActionKind]] = {
    "cem": (SMALL, "real"),
    "icem": (ICEM(horizon=HORIZON, num_candidates=8, num_elites=3, num_kept=2), "real"),
    "mppi": (MPPI(horizon=HORIZON, num_candidates=8), "real"),
    "predictive-sampling": (PredictiveSampling(horizon=HORIZON, num_candidates=8), "real"),
    "gradient": (ADAM, "real"),
    "polished": (Polished(planner=SMALL, polish=ADAM, num_polished=2), "real"),
    "knots": (Knots(planner=replace(SMALL, horizon=2), horizon=HORIZON), "real"),
    "cautious": (Cautious(planner=SMALL), "real"),
    "tree": (TreeSearch(horizon=HORIZON, num_candidates=12), "real"),
    "tree of codes": (TreeSearch(horizon=HORIZON, num_candidates=12), "latent"),
}


def test_the_pretence_refuses_what_a_gpu_refuses() -> None:
    with pretended_gpu():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert (there.device.type, here.device.type, there.cpu().device.type) == ("cuda", "cpu", "cpu")
        assert torch.equal((there + there.new_tensor([1.0, 2.0, 3.0])).cpu(), torch.tensor([2.0, 3.0, 4.0]))
        with pytest.raises(RuntimeError, match="same device"):
            torch.add(there, here)
        with pytest.raises(TypeError, match="to numpy"):
            there.numpy()
    assert torch.ones(1).device.type == "cpu"


def test_training_on_a_gpu_is_training_on_the_cpu(tiny_store: Path, tmp_path: Path) -> None:
    """Batches and noise are drawn on the CPU, so in single precision every weight is the same."""

    def trained(device: str) -> WorldModel:
        config = replace(tiny.training(), compute=ComputeConfig(device=device, precision="fp32"))
        return train_world_model(EpisodeStore.open(tiny_store), tiny.MODEL, config, tmp_path / device, seed=0)

    expected = trained("cpu").state_dict()
    with pretended_gpu():
        found = trained("cuda").cpu().state_dict()
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("planner", "kind"), PLANNERS.values(), ids=PLANNERS)
def test_plans_on_a_gpu_are_those_on_the_cpu(planner: Planner, kind: ActionKind, tiny_store: Path) -> None:
    """Tasks count costs with NumPy, so an objective answers on the CPU."""
    frames = torch.from_numpy(EpisodeStore.open(tiny_store).episode(0).features[tiny.CAMERA][:3])

    def to_corner(states: Tensor, actions: Tensor) -> Tensor:
        return (states - 1).square().flatten(1).mean(1).cpu()

    def planned(device: str) -> tuple[Tensor, float]:
        model = tiny.make_model().to(device)
        known = model.prefill(frames.to(device), torch.zeros(2, model.embodiment.action_size, device=device))
        generator = torch.Generator().manual_seed(0)
        plan = planner.plan(ImaginedDynamics(model, kind=kind), known, to_corner, generator=generator)
        assert plan.actions.device.type == device
        return plan.actions.cpu(), float(plan.cost)

    expected, cost = planned("cpu")
    with pretended_gpu():
        found, cost_there = planned("cuda")
    torch.testing.assert_close(found, expected)
    assert cost_there == pytest.approx(cost)


def test_latent_actions_are_measured_on_a_gpu(tiny_store: Path) -> None:
    store, split = EpisodeStore.open(tiny_store), {"train": [0, 1, 2], "held_out": [4, 5]}
    expected = measure_latent_actions(tiny.make_model(), store, **split, context=3, seed=0)
    scenes, after = same_codes(tiny.make_model(), store, [4, 5], context=3, seed=0)
    with pretended_gpu():
        model = tiny.make_model().to("cuda")
        found = measure_latent_actions(model, store, **split, context=3, seed=0)
        pictures = same_codes(model, store, [4, 5], context=3, seed=0)
        assert [each.device.type for each in pictures] == ["cpu", "cpu"]
    assert torch.equal(pictures[0], scenes)
    assert torch.equal(pictures[1], after)
    for name, measure in expected.items():
        assert found[name]["value"] == pytest.approx(measure["value"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("observation", ["latents", "state", "frame"])
def test_the_imagined_environment_runs_on_a_gpu(observation: Any, tiny_store: Path) -> None:
    starts = StoreStarts(EpisodeStore.open(tiny_store), camera=tiny.CAMERA, context=3)
    readout = "observation.state" if observation == "state" else ""
    config = ImaginedEnvConfig(horizon=3, observation=observation, readout=readout)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 2, 2)).astype(np.float32)

    def path(device: str) -> list[Any]:
        env = ImaginedVectorEnv(tiny.make_model().to(device), starts, 2, config)
        return [env.reset(seed=5)[0]["observation"], *(env.step(each)[0]["observation"] for each in actions)]

    expected = path("cpu")
    with pretended_gpu():
        found = path("cuda")
    for here, there in zip(expected, found, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)


def test_a_context_rolls_on_on_a_gpu(tiny_store: Path) -> None:
    rows = EpisodeStore.open(tiny_store).episode(0).features
    frames, actions = torch.from_numpy(rows[tiny.CAMERA][:6]), torch.from_numpy(rows["action"][:6])

    def imagined(device: str) -> Tensor:
        model = tiny.make_model().to(device)
        latents, led = model.encode(frames.to(device)), actions.to(device)
        context = model.prefill_latents(latents[:3], led[:2])
        for time in range(3, 6):
            context = model.extend_latents(context, latents[time], led[time - 1])
        ahead = torch.zeros(2, 3, 2, device=device)
        return model.imagine(context, ahead, generator=torch.Generator().manual_seed(0), num_steps=2).cpu()

    expected = imagined("cpu")
    with pretended_gpu():
        torch.testing.assert_close(imagined("cuda"), expected)
