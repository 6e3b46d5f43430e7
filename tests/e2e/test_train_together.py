"""`embodied-wm train` on several robots: one model folder each, adopted by a third, and refused where lists differ."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from embodied_wm import cli
from embodied_wm.evaluation.report import load_report
from embodied_wm.world_model import WorldModel


def test_robots_train_together_and_another_is_adopted(tiny_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrist = "observation.images.wrist"
    episodes = [tiny.episode(seed, rows=15, action_size=3, camera=wrist) for seed in range(4)]
    other = tiny.write_store(Path("three.zarr"), episodes, action_size=3, camera=wrist)
    base = ["train", f"data.path={tiny_store}", *tiny.command_line(2)]
    together = [*base, f"together.stores=[{other}]", "together.labelled=[0.5,0]", "run_dir=run", "report=true"]
    assert cli.main(together) == 0
    dot, three = (WorldModel.load(Path("run/robots") / name / "model") for name in ("dot", "three"))
    assert torch.equal(dot.predictor.slots, three.predictor.slots)
    assert (dot.embodiment.action_size, three.embodiment.action_size) == (2, 3)
    assert Path("run/report.html").is_file()
    assert (dot.card["labelled_episodes"], three.card["labelled_episodes"]) == (2, 0)

    new = ["train", f"data.path={other}", *tiny.command_line(2), "start_from=run", "run_dir=new", "report=true"]
    assert cli.main([*new, "stages=[adapter,readouts]", "together.labelled=[1.0]"]) == 0
    adopted = WorldModel.load(Path("new/robots/three/model"))
    assert "adapter of robots/three" in Path("new/report.html").read_text()
    assert torch.equal(adopted.predictor.slots, three.predictor.slots)
    assert not torch.equal(adopted.actions.std, three.actions.std)  # it knows its labels now

    capsys.readouterr()
    assert cli.main([*base, f"together.stores=[{other}]", "together.weights=[1,2,3]", "run_dir=uneven"]) == 2
    assert "together.weights has 3 entries for 2 stores: dot, three" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*base, f"together.stores=[{tiny_store}]", "run_dir=twice"]) == 2
    Path("elsewhere").mkdir()
    moved = other.rename(Path("elsewhere") / other.name)
    assert cli.main([*together, f"together.stores=[{moved}]", "resume=true"]) == 0
    assert WorldModel.load(Path("run/robots/dot/model")).fingerprint() == dot.fingerprint()


def test_a_goal_policy_is_added_to_a_trained_model(tiny_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All else stays, though the model's folder has not the store's name; its card says what was trained when."""
    base = ["train", f"data.path={tiny_store}", *tiny.command_line(2)]
    assert cli.main([*base, "model.goal_policy.width=0", "run_dir=run"]) == 0
    assert cli.main([*base, "stages=[goal_policy]", "start_from=run/model", "run_dir=new"]) == 0
    before, after = WorldModel.load("run/model"), WorldModel.load("new/robots/dot/model")
    old, new = before.state_dict(), after.state_dict()
    assert {name for name in new if name not in old} == {name for name in new if name.startswith("goal_policy.")}
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())
    assert after.card["steps"] == before.card["steps"] | {"goal_policy": 2}
    assert "goal_policy" not in after.card["adopted"]
    assert "readouts" in after.card["adopted"]
    own = ["train", f"data.path={tiny_store}", "start_from=new/robots/dot", "trainer.goal_policy.num_steps=2"]
    assert cli.main([*own, "stages=[goal_policy]", "model.goal_policy.width=8", "run_dir=wider"]) == 0
    wider = WorldModel.load("wider/robots/dot/model").config  # the model's own options but for what is given
    assert wider == replace(after.config, goal_policy=replace(after.config.goal_policy, width=8))
    capsys.readouterr()
    line = [*base, "stages=[goal_policy]", "start_from=run/model", "run_dir=other"]
    assert cli.main([*line, "trainer.camera=observation.images.none"]) == 1
    assert "observation.images.none" in capsys.readouterr().err  # the option counts here, too


def test_a_resumed_run_goes_on_from_the_same_model(tiny_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["train", f"data.path={tiny_store}", *tiny.command_line(2)]
    new = [*base, "stages=[goal_policy]", "start_from=runs/train/LATEST", "run_dir=new"]
    assert cli.main([*base, "model.goal_policy.width=0"]) == 0
    assert cli.main(new) == 0
    before = WorldModel.load("new/robots/dot/model").fingerprint()
    assert cli.main([*base, "seed=1", "model.goal_policy.width=0"]) == 0  # now this is the newest
    assert cli.main(["train", "run_dir=new", "resume=true"]) == 0
    assert WorldModel.load("new/robots/dot/model").fingerprint() == before
    capsys.readouterr()
    assert cli.main([*new, "resume=true"]) == 2
    assert "has start_from=" in capsys.readouterr().err


def test_a_report_counts_the_time_of_all_robots(tiny_store: Path) -> None:
    """Also where that of the first is video alone, and its card knows of no stage with labels."""
    other = tiny.write_store(Path("other.zarr"))
    line = ["train", f"data.path={tiny_store}", f"together.stores=[{other}]", "together.labelled=[0,1]"]
    assert cli.main([*line, "run_dir=run", *tiny.command_line(2), "report=true"]) == 0
    report = load_report(Path("run"))
    (table,) = (section["table"]["rows"] for section in report["sections"] if section["title"] == "Speed")
    seconds = {stage: time for stage, _, time in table}
    assert {"distillation", "adapter of robots/other", "readouts of robots/other"} <= set(seconds)
    assert None not in seconds.values()
    assert report["run"]["wall_seconds"] == pytest.approx(sum(seconds.values()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["together.weights=[0,1]"], "together.weights=[0, 1]: expected numbers above 0, one for each store"),
        (["together.weights=[a,1]"], "together.weights=['a', 1]: expected numbers above 0"),
        (["together.labelled=[1,yes]"], "together.labelled=[1, 'yes']: expected parts from 0"),
        (["together.labelled=[1,1.5]"], "together.labelled=[1, 1.5]: expected parts from 0"),
        (["together.cameras=[3,4]"], "together.cameras=[3, 4]: expected names"),
        (["together.stores=[]", "together.labelled=[0.5]"], "is one: set trainer.labelled_fraction, or give"),
        (["together.stores=[]", "together.weights=[1]"], "is one: leave it out"),
    ],
)
def test_lists_of_robots_that_say_nothing_are_refused(
    tiny_store: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.write_store(Path("other.zarr"))
    line = ["train", f"data.path={tiny_store}", f"together.stores=[{other}]", "run_dir=run", *tiny.command_line(2)]
    assert cli.main([*line, *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not Path("run/robots").exists()
