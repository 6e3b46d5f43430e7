"""`embodied-wm demo`, stopped by Ctrl-C and resumed, ends with the models and figures of one that was left alone."""

import shutil
import signal
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file
from test_train_resume import stop_amid

from embodied_wm import cli
from embodied_wm.evaluation.report import load_report

TRAINING = (
    *(option for option in tiny.command_line(num_steps=2) if option != "report=false"),
    "trainer.predictor.num_steps=150",  # long enough to be stopped in it
)
ON_A_TASK = (
    "demo=reach", "episodes=5", "collect.rows=24", "collect.workers=1", "task.image_size=16", *TRAINING,
    "few_labels_predictor.num_steps=2", "imagination.num_branch_points=2", "imagination.num_candidates=6",
    "imagination.horizon=3", "planning.num_pairs=2", "planner.num_candidates=12", "planner.num_iterations=1",
    "planner.num_elites=4", "planner.horizon=3", "speed.num_candidates=[4]", "speed.context_frames=[1]",
    "speed.denoising_steps=[1]", "speed.most_uncached=4",
)  # fmt: skip


def weights(folder: str) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(f"{folder}/model.safetensors").items()}


def stop(options: tuple[str, ...]) -> None:
    """Begin a demo in `parts` and stop it while its predictor is trained."""
    code, errors = stop_amid("predictor", ["demo", *options, "run_dir=parts"], signal.SIGINT)
    assert code == 130
    assert "Stopped by Ctrl-C" in errors
    assert (
        f"to go on: embodied-wm demo run_dir={Path('parts').resolve()} resume=true" in Path("parts/log.txt").read_text()
    )
    assert not Path("parts/model").exists()


@pytest.fixture
def dataset(tiny_store: Path) -> Path:
    """Return a small LeRobot dataset."""
    assert cli.main(["export", f"source={tiny_store}", "out=dot"]) == 0
    return Path("dot")


def test_a_demo_of_a_dataset(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("demo=lerobot", f"source={dataset}", "context_frames=2", "horizon=3", "starts_per_episode=2", *TRAINING)
    assert cli.main(["demo", *options, "run_dir=whole"]) == 0
    stop(options)
    moved = shutil.move(dataset, "elsewhere")
    capsys.readouterr()
    assert cli.main(["demo", *options, "run_dir=parts"]) == 2
    assert "continue it with resume=true" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["demo", "run_dir=parts", "resume=true", "seed=1"]) == 2
    assert "seed=0 (now 1)" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["demo", "run_dir=parts", "resume=true", f"source={moved}"]) == 0
    assert "minutes since it was resumed" in " ".join(capsys.readouterr().out.split())
    assert weights("parts/model") == weights("whole/model")
    whole, parts = (load_report(Path(run)) for run in ("whole", "parts"))
    assert parts["tasks"] == whole["tasks"]
    assert parts["run"]["wall_seconds"] is None  # nobody counted how long it stood still
    assert whole["run"]["wall_seconds"] > 0


@pytest.mark.slow
@pytest.mark.render
def test_a_demo_of_a_task() -> None:
    assert cli.main(["demo", *ON_A_TASK, "run_dir=whole"]) == 0
    stop(ON_A_TASK)
    assert cli.main(["demo", "run_dir=parts", "resume=true"]) == 0
    for model in ("model", "few_labels/model"):
        assert weights(f"parts/{model}") == weights(f"whole/{model}")
    whole, parts = (load_report(Path(run))["tasks"]["reach"] for run in ("whole", "parts"))
    for name in ("spearman", "success", "success.latent_actions", "success.behaviour_cloning"):
        assert parts[name] == whole[name]
