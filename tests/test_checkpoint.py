"""Checkpoints: exact round trips, and every way in which a folder can be no model of ours."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from embodied_wm import checkpoint
from embodied_wm.checkpoint import CheckpointError
from embodied_wm.world_model import WorldModel


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def imagined(model: WorldModel) -> torch.Tensor:
    frames = torch.randint(
        0, 256, (3, tiny.SIZE, tiny.SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    actions = torch.rand(4, 5, 2, generator=torch.Generator().manual_seed(1))
    context = model.prefill(frames, actions[0, :2])
    return model.imagine(context, actions, generator=torch.Generator().manual_seed(2))


def change(folder: Path, key: str, value: Any) -> None:
    """Set, or with `...` remove, a dotted key of config.json."""
    content = json.loads((folder / "config.json").read_text())
    *parents, last = key.split(".")
    node = content
    for parent in parents:
        node = node[parent]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    (folder / "config.json").write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        WorldModel.load(folder)
    return str(caught.value)


def test_a_loaded_model_imagines_bit_for_bit_what_the_saved_one_does(folder: Path, tmp_path: Path) -> None:
    model = tiny.make_model()
    first, loaded = imagined(model), WorldModel.load(folder)
    assert torch.equal(imagined(loaded), first)
    assert loaded.config == model.config
    assert loaded.embodiment == model.embodiment
    assert loaded.card == {"seed": 0}
    assert loaded.fingerprint() == model.fingerprint()
    assert not loaded.training
    loaded.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_saving_over_a_model_replaces_it(folder: Path) -> None:
    other = tiny.make_model()
    other.tokenizer.get_buffer("latent_mean").fill_(3.0)
    other.save(folder)
    assert torch.equal(imagined(WorldModel.load(folder)), imagined(other))


def test_folders_that_are_not_ours(tmp_path: Path, folder: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "has no config.json" in refusal(tmp_path)
    (tmp_path / "run" / "stages").mkdir(parents=True)
    assert "this training is not finished" in refusal(tmp_path / "run")
    (folder / "model.safetensors").rename(folder / "weights.bin")
    assert "no model.safetensors; the checkpoint is incomplete" in refusal(folder)
    (folder / "config.json").write_text('{"format": ')
    assert "not valid JSON" in refusal(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "not valid JSON" in refusal(folder)
    (folder / "config.json").write_text("[1, 2]")
    assert "format is None, expected 'embodied_wm.world_model'" in refusal(folder)


def test_a_run_of_one_robot_is_its_model_and_one_of_several_names_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "stages").mkdir(parents=True)
    one, two = (run / "robots" / name / "model" for name in ("arm", "hand"))
    model = tiny.make_model()
    model.save(one)
    assert WorldModel.from_pretrained(run).fingerprint() == model.fingerprint()
    model.save(two)
    said = refusal(run)
    assert "models of several robots" in said
    assert str(one) in said
    assert str(two) in said


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", "diffusers", ["format is 'diffusers'", "expected 'embodied_wm.world_model'", "not one of ours"]),
        ("version", 999, ["version 999", "reads version 2", "train again"]),
        ("version", ..., ["version None", "reads version 2"]),
        ("config", ..., ["'config' is 'missing'", "config, embodiment, card"]),
        ("card", [1], ["'card' is [1]"]),
        ("config.predictor.warp", 1, ["PredictorConfig has no field 'warp'", "window", "max_steps"]),
        ("config.predictor.windw", 8, ["no field 'windw'; did you mean window or", "Valid: kind, transformer"]),
        ("config.critic", {}, ["WorldModelConfig has no field 'critic'", "tokenizer, latent_actions, predictor"]),
        ("config.predictor", 3, ["PredictorConfig is 3", "transformer"]),
        ("config.predictor.transformer.width", "wide", ["TransformerConfig.width is 'wide'", "int"]),
        ("config.tokenizer.channels", 8, ["FrameTokenizerConfig.channels is 8", "tuple"]),
        ("config.tokenizer.image_size", [16, 16, 3], ["FrameTokenizerConfig.image_size is [16, 16, 3]"]),
        ("embodiment.camera", ..., ["Embodiment cannot be made of", "camera"]),
        ("embodiment.action_size", 2.5, ["Embodiment.action_size is 2.5"]),
    ],
)
def test_a_changed_description_is_refused_by_name(folder: Path, key: str, value: Any, words: list[str]) -> None:
    change(folder, key, value)
    message = refusal(folder)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("config.predictor.max_steps", 3, "max_steps=3 must be a power of two"),
        ("config.tokenizer.image_size", [17, 16], r"image_size=\(17, 16\) must be a multiple of 4"),
    ],
)
def test_sizes_that_no_model_can_have_are_refused(folder: Path, key: str, value: Any, words: str) -> None:
    change(folder, key, value)
    with pytest.raises(ValueError, match=words):
        WorldModel.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config.predictor.transformer.width", 64),
        ("config.predictor.transformer.depth", 2),
        ("config.latent_actions.levels", [5, 5]),
        ("embodiment.action_size", 3),
        ("embodiment.readouts", {}),
    ],
)
def test_weights_of_another_size_are_refused_with_both_shapes(folder: Path, key: str, value: Any) -> None:
    change(folder, key, value)
    message = refusal(folder)
    assert "does not fit its config.json" in message
    assert "got" in message
    assert "expected" in message


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_weight_file(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "model.safetensors is damaged" in refusal(folder)


def test_missing_and_unknown_tensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    removed = tensors.pop("predictor.slots")
    save_file(tensors, path)
    assert "1 tensors differ, the first is 'predictor.slots': got nothing, expected (1, 32)" in refusal(folder)
    save_file(tensors | {"predictor.slots": removed, "extra": removed.clone()}, path)
    assert "'extra': got (1, 32), expected nothing" in refusal(folder)


class Trap:
    """Leave a file behind when unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("sprung", "w")


def test_nothing_is_unpickled(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    assert "Nothing is unpickled" in refusal(folder)
    torch.save({"predictor.slots": torch.zeros(1, 32)}, path)
    assert "Nothing is unpickled" in refusal(folder)
    (folder / "config.json").write_bytes(pickle.dumps(Trap()))
    refusal(folder)
    assert not (tmp_path / "sprung").exists()


def test_no_module_of_ours_can_unpickle(repository: Path) -> None:
    sources = [path for part in ("embodied_wm", "sim", "planners") for path in (repository / part).rglob("*.py")]
    found = [
        path for path in sources if any(word in path.read_text() for word in ("torch.load", "import pickle", "joblib"))
    ]
    assert len(sources) > 40
    assert not found


def test_a_full_disk_leaves_the_model_that_was_there(folder: Path) -> None:
    code = (
        "import resource, sys, tiny; model = tiny.make_model(); model.tokenizer.latent_mean.fill_(3.0); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])); "
        "model.save(sys.argv[1])"
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before["model.safetensors"]) > 20_000
    tests = Path(__file__).parent
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": f"{tests}:{tests.parent}", "OMP_NUM_THREADS": "1"},
    )
    assert "CheckpointError" in process.stderr
    assert "model.safetensors could not be written" in process.stderr
    assert "what it held before is intact" in process.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    target = tmp_path / "config.json"
    target.mkdir()
    with pytest.raises(CheckpointError, match=r"config.json could not be written"):
        checkpoint.write_json(target, {})
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
