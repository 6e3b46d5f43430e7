"""`embodied-wm demo`, stopped and resumed, ends with the models and the success of one that was left alone."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load_file

from embodied_wm import cli
from embodied_wm.commands import demos
from embodied_wm.evaluation.report import load_report

OPTIONS = (
    "demo=reach", "episodes=5", "collect.rows=24", "collect.workers=1", "task.image_size=16",
    *(option for option in tiny.command_line(num_steps=2) if option != "report=false"),
    "few_labels_predictor.num_steps=2", "imagination.num_branch_points=2", "imagination.num_candidates=6",
    "imagination.horizon=3", "planning.num_pairs=2", "planner.num_candidates=12", "planner.num_iterations=1",
    "planner.num_elites=4", "planner.horizon=3", "speed.num_candidates=[4]", "speed.context_frames=[1]",
    "speed.denoising_steps=[1]", "speed.most_uncached=4",
)  # fmt: skip


def weights(folder: str) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(f"{folder}/model.safetensors").items()}


@pytest.mark.slow
@pytest.mark.render
def test_a_demo_is_stopped_and_resumed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", *OPTIONS, "run_dir=whole"]) == 0
    train, calls = demos.train_world_model, []

    def stopped_at_the_second(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(demos, "train_world_model", stopped_at_the_second)
    assert cli.main(["demo", *OPTIONS, "run_dir=parts"]) == 130
    assert Path("parts/model").is_dir()
    assert not Path("parts/few_labels").exists()
    capsys.readouterr()
    assert cli.main(["demo", *OPTIONS, "run_dir=parts"]) == 2
    assert "continue it with resume=true" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["demo", "run_dir=parts", "resume=true"]) == 0
    for model in ("model", "few_labels/model"):
        assert weights(f"parts/{model}") == weights(f"whole/{model}")
    whole, parts = (load_report(Path(run))["tasks"]["reach"] for run in ("whole", "parts"))
    for name in ("spearman", "success", "success.latent_actions", "success.behaviour_cloning"):
        assert parts[name] == whole[name]
