"""The verb refine, from a trained model to its page: stopped, resumed, and told what is wrong with its input."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file

from embodied_wm import cli
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.planned_episodes import PlannedEpisodes
from embodied_wm.evaluation.report import load_report
from embodied_wm.training.folder import owned
from embodied_wm.world_model import WorldModel

OPTIONS = (
    "task=reach", "checkpoint=base", "collect.num_episodes=2", "collect.num_branch_points=2",
    "collect.num_branches=3", "training.predictor_steps=3", "training.readout_steps=3", "training.batch_size=4",
    "training.sequence_length=6", "imagination.num_branch_points=2", "imagination.num_candidates=6",
    "imagination.horizon=3", "planning.num_pairs=2", "planner.num_candidates=12", "planner.num_iterations=1",
    "planner.num_elites=4", "planner.horizon=3",
)  # fmt: skip


@pytest.fixture
def base() -> Path:
    """Return a run folder with a tiny model of `reach`."""
    assert cli.main(["collect", "task.image_size=16", "episodes=5", "rows=24", "workers=1", "out=reach.zarr"]) == 0
    assert cli.main(["train", "data.path=reach.zarr", "run_dir=base", *tiny.command_line(num_steps=2)]) == 0
    return Path("base")


def weights(folder: str) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(f"{folder}/model.safetensors").items()}


@pytest.mark.slow
@pytest.mark.render
def test_rounds_are_stopped_resumed_and_added_to(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["refine", *OPTIONS, "rounds=2", "run_dir=whole"]) == 0

    episode = PlannedEpisodes.episode
    monkeypatch.setattr(PlannedEpisodes, "episode", _stopped_at(1))
    assert cli.main(["refine", *OPTIONS, "rounds=1", "run_dir=parts"]) == 130
    assert EpisodeStore.open("parts/episodes.zarr").num_episodes == 1 + 2 * 3
    monkeypatch.setattr(PlannedEpisodes, "episode", episode)
    assert cli.main(["refine", *OPTIONS, "rounds=1", "run_dir=parts", "resume=true"]) == 0
    assert cli.main(["refine", *OPTIONS, "rounds=2", "run_dir=parts", "resume=true"]) == 0
    for place in ("round_1/model", "round_2/model", "model"):
        assert weights(f"parts/{place}") == weights(f"whole/{place}")
    stores = [EpisodeStore.open(f"{run}/episodes.zarr") for run in ("whole", "parts")]
    assert stores[0].fingerprint() == stores[1].fingerprint()
    assert stores[0].num_episodes == 2 * 2 * (1 + 2 * 3)

    report = load_report(Path("whole"))
    assert report["run"]["wall_seconds"] > 0
    assert load_report(Path("parts"))["run"]["wall_seconds"] is None  # the last call took a part of the time alone
    rounds = report["tasks"]["reach"]
    assert list(rounds) == ["round_0", "round_1", "round_2"]
    for number, measures in enumerate(rounds.values()):
        own = [load_report(Path(f"whole/round_{number}/{each}")) for each in ("imagination", "planning")]
        assert measures["spearman"] == own[0]["tasks"]["reach"]["spearman"]
        assert measures["success"] == own[1]["tasks"]["reach"]["success"]
        assert {"elite_regret", "optimism", "cpg"} <= set(measures)
    titles = [picture["title"] for picture in report["sections"][0]["pictures"]]
    assert {"Success at the end of the episode", "Rank correlation with physics", "Elite regret"} <= set(titles)
    card = WorldModel.load("whole/model").card
    assert [note["episodes"] for note in card["refinement"]] == [2, 4]
    assert {entry["kind"] for entry in card["figures"]} == {"imagination", "planning"}
    assert (
        "Refined afterwards, round 2: on 4 episodes of its own planner and 24 branches"
        in Path("whole/model/README.md").read_text()
    )
    assert "figures" not in WorldModel.load("base/model").card


def _stopped_at(count: int):
    calls = 0
    original = PlannedEpisodes.episode

    def episode(self: PlannedEpisodes, number: int):
        nonlocal calls
        calls += 1
        if calls > count:
            raise KeyboardInterrupt
        return original(self, number)

    return episode


@pytest.mark.render
def test_what_cannot_be_refined_is_told(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(option: str) -> str:
        capsys.readouterr()
        rest = [each for each in OPTIONS if not (each.startswith("planner.") and option.startswith("planner="))]
        assert cli.main(["refine", *rest, f"run_dir=refined-{option[0]}", option]) != 0
        return re.sub(r"\s+", " ", capsys.readouterr().err)

    assert "the model of base is of 'reach'" in refused("task=push")
    assert "rounds=0: expected at least 1" in refused("rounds=0")
    assert "Gradient wants gradients or proposals, which MuJoCo does not have" in refused("planner=gradient")
    assert cli.main(["collect", "task.image_size=16", "episodes=2", "rows=24", "workers=1", "out=other.zarr"]) == 0
    message = refused("store=other.zarr")
    assert "the model was trained on" in message
    assert "Give store=..., the same episodes" in message


@pytest.mark.slow
@pytest.mark.render
def test_episodes_that_vanish_amid_a_round_leave_what_was_done(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move("reach.zarr/observation.images.top", "frames")
    capsys.readouterr()
    assert cli.main(["refine", *OPTIONS, "rounds=1", "run_dir=run"]) == 1
    message = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "the episodes of round 1 could not be read" in message
    assert "continue with resume=true" in message
    shutil.move("frames", "reach.zarr/observation.images.top")
    assert cli.main(["refine", *OPTIONS, "rounds=1", "run_dir=run", "resume=true"]) == 0


def test_two_refinements_in_one_folder_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    for name in ("config.yaml", "log.txt"):
        Path("run", name).write_text("of the run that is going on")
    with owned(Path("run")), ThreadPoolExecutor(1) as other:
        assert other.submit(cli.main, ["refine", *OPTIONS, "run_dir=run", "resume=true"]).result() == 1
    assert "run belongs to a run that is going on" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert sorted(path.name for path in Path("run").iterdir()) == [".lock", "config.yaml", "log.txt"]
    assert {Path("run", name).read_text() for name in ("config.yaml", "log.txt")} == {"of the run that is going on"}
