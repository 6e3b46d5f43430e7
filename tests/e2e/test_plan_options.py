"""`embodied-wm plan`: who proposes, and what imagination multiplies in, is what was asked for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from torch import Tensor

from embodied_wm import cli
from embodied_wm.predictor import int8
from embodied_wm.world_model import WorldModel


@pytest.mark.render
def test_a_model_that_denoises_actions_plans_with_its_own_proposals(capsys: pytest.CaptureFixture[str]) -> None:
    predictor = replace(tiny.MODEL.predictor, joint_actions=True)
    config, body = tiny.PLAIN, tiny.make_model().embodiment
    WorldModel(replace(config, predictor=predictor), body).save("model")
    small = ["planner.planner.num_candidates=24", "planner.planner.horizon=2", "planner.num_proposals=8"]
    command = ["plan", "checkpoint=model", "planner=proposing", "objective=latent", "open=false", *small]
    assert cli.main([*command, "run_dir=run"]) == 0
    planner = json.loads(Path("run/report.json").read_text())["run"]["config"]["planner"]
    assert planner.startswith("Proposing(planner=CEM(horizon=2")
    assert "num_proposals=8" in planner
    WorldModel(config, body).save("model")
    capsys.readouterr()
    assert cli.main([*command, "run_dir=other"]) == 1
    assert "train one with model.predictor.joint_actions=true" in " ".join(capsys.readouterr().err.split())


@pytest.mark.render
def test_a_model_with_a_goal_policy_is_planned_with_around_what_that_proposes() -> None:
    WorldModel(tiny.MODEL, tiny.make_model().embodiment).save("model")
    command = ["plan", "checkpoint=model", "objective=latent", "open=false", "planner.num_candidates=24"]
    for proposals in (0, 5):
        assert cli.main([*command, f"task.proposals={proposals}", f"run_dir=with_{proposals}"]) == 0
    plain, around = (
        json.loads(Path(f"with_{proposals}/report.json").read_text())["run"]["config"]["planner"]
        for proposals in (0, 5)
    )
    assert around.startswith(f"Proposing(planner={plain}, num_proposals=5")
    assert around.endswith("around=True)")


@pytest.mark.render
@pytest.mark.parametrize(("precision", "code"), [("fp32", 0), ("int8", 0), ("int4", 1)])
def test_plans_are_imagined_in_the_precision_that_is_asked_for(
    precision: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded: list[int] = []
    monkeypatch.setattr(int8.Int8Weight, "__call__", lambda weight, x: rounded.append(1) or x @ weight_of(weight))
    tiny.make_model().save("model")
    command = ["plan", "checkpoint=model", "objective=latent", "open=false", "planner.horizon=2", "run_dir=run"]
    assert cli.main([*command, f"precision={precision}"]) == code
    assert bool(rounded) == (precision == "int8")
    if code:
        assert "precision=int4: expected one of fp32, int8" in " ".join(capsys.readouterr().err.split())
    else:
        assert ("imagined in int8" in Path("run/report.html").read_text()) == (precision == "int8")


def weight_of(weight: int8.Int8Weight) -> Tensor:
    return weight.codes * weight.scales
