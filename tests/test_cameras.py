"""Several cameras: side by side in a frame, apart in tokens; from the simulator to the judge, and bad input named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from embodied_wm.data.cameras import camera_names, frame_shape, side_by_side
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.branches import BranchConfig
from embodied_wm.evaluation.dataset import judge_dataset
from embodied_wm.evaluation.imagination import judge_imagination
from embodied_wm.evaluation.judged import JudgedWorldModel, check_fits
from embodied_wm.tokenizer.cameras import CameraTokenizer, make_tokenizer
from embodied_wm.tokenizer.frames import FrameTokenizer
from embodied_wm.tokenizer.plannable import PlannableConfig
from embodied_wm.training.embodiment import check_compatible
from embodied_wm.training.train import train_world_model
from embodied_wm.types import Episode, FeatureSpec
from embodied_wm.world_model import WorldModel
from planners.cem import CEM
from planners.objectives import StepWeights
from sim.collect import collect, features
from sim.tasks import get_task

TASK = get_task("push")
PAIR = "observation.images.top+front"
TWO = replace(tiny.MODEL.tokenizer, cameras=2)
BOTH = PlannableConfig(predictability_weight=0.1, inverse_weight=0.1, width=16)


def pictures(*shape: int) -> torch.Tensor:
    size = (*shape, tiny.SIZE, 2 * tiny.SIZE, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_names_take_the_prefix_of_the_first() -> None:
    assert camera_names("observation.images.top") == ("observation.images.top",)
    assert camera_names("observation.images.top+wrist") == ("observation.images.top", "observation.images.wrist")
    assert camera_names("observation.images.top+observation.image") == ("observation.images.top", "observation.image")
    assert camera_names("top+front") == ("top", "front")
    for twice in ("top+top", "observation.images.top+wrist+top", "observation.images.top+observation.images.top"):
        with pytest.raises(ValueError, match="a camera stands twice"):
            camera_names(twice)
    frames = {"a": np.zeros((5, 4, 3, 3), np.uint8), "b": np.ones((5, 4, 3, 3), np.uint8)}
    joined = side_by_side(frames.__getitem__, "a+b")
    assert joined.shape == (5, 4, 6, 3)
    assert not joined[:, :, :3].any()
    assert joined[:, :, 3:].all()
    specs = {name: FeatureSpec(dtype="uint8", shape=(4, 3, 3)) for name in "ab"}
    assert frame_shape(specs, "a+b") == (4, 6, 3)
    assert frame_shape(specs, "a+c") is None
    assert frame_shape(specs | {"b": FeatureSpec(dtype="uint8", shape=(4, 4, 3))}, "a+b") is None


def test_tokens_are_those_of_one_camera_after_the_other() -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(TWO).eval()
    assert isinstance(tokenizer, CameraTokenizer)
    frames = pictures(3, 2)
    tokenizer.fit_background(frames[:, 0])
    tokenizer.fit_statistics(frames.flatten(0, 1))
    tokens = tokenizer.encode(frames)
    assert tokens.shape == (3, 2, TWO.num_tokens, TWO.token_width) == (3, 2, 2, 8)
    for index, part in enumerate(tokenizer.parts):
        assert isinstance(part, FrameTokenizer)
        own = frames[..., tiny.SIZE * index : tiny.SIZE * (index + 1), :].contiguous()
        assert torch.equal(tokens[..., index : index + 1, :], part.encode(own))
        decoded = tokenizer.decode(tokens)[..., tiny.SIZE * index : tiny.SIZE * (index + 1), :]
        assert torch.equal(decoded, part.decode(tokens[..., index : index + 1, :]))
    changed = frames.clone()
    changed[..., tiny.SIZE :, :] = 0
    assert torch.equal(tokenizer.encode(changed)[..., :1, :], tokens[..., :1, :])
    assert torch.equal(tokenizer.decode(tokens[0, 0], frames[0, 0]), frames[0, 0])  # nothing changed: the seen frame


def test_the_loss_is_the_cameras_mean_and_further_terms_see_all_latents() -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(TWO)
    assert isinstance(tokenizer, CameraTokenizer)
    frames, seen = pictures(4, 3), []
    loss, metrics = tokenizer.loss(frames, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    apart = [
        part.loss(frames[..., tiny.SIZE * index : tiny.SIZE * (index + 1), :], generator)  # type: ignore[operator]
        for index, part in enumerate(tokenizer.parts)
    ]
    assert float(loss.detach()) == pytest.approx(float((apart[0][0] + apart[1][0]).detach()) / 2)
    assert metrics["psnr"] == pytest.approx((apart[0][1]["psnr"] + apart[1][1]["psnr"]) / 2)

    def further(path: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        seen.append(path.shape)
        return path.new_ones(()), {"further": 1.0}

    more, parts = tokenizer.loss(frames, torch.Generator().manual_seed(0), further)
    assert float(more.detach()) == pytest.approx(float(loss.detach()) + 1)
    assert parts["further"] == 1.0
    assert seen == [(4, 3, 16)]


def test_frames_of_another_size_or_number_of_cameras_are_named() -> None:
    tokenizer = make_tokenizer(TWO)
    with pytest.raises(ValueError, match=r"16x32x3: its 2 cameras of 16x16 side by side"):
        tokenizer.encode(pictures(1)[:, :, : tiny.SIZE])
    with pytest.raises(ValueError, match="make_tokenizer"):
        FrameTokenizer(TWO)
    with pytest.raises(ValueError, match="no camera 'side'"):
        TASK.renderer(16, 32, "top+side")
    with pytest.raises(ValueError, match="cannot be shared by 2 cameras"):
        TASK.renderer(16, 17, "top+front")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[EpisodeStore, WorldModel, Path]:
    """Return a store of `push` with two cameras, and a model of it, with proprioception, trained for two steps."""
    folder = tmp_path_factory.mktemp("cameras")
    specs = {
        name: FeatureSpec(dtype=dtype, shape=shape, names=names, units=units)
        for name, (dtype, shape, names, units) in features(TASK, tiny.SIZE, "top+front").items()
    }
    with EpisodeStore.create(folder / "s.zarr", features=specs, fps=10.0, metadata={"robot": "push"}) as store:
        found = collect(
            "push", num_episodes=3, seed=0, image_size=tiny.SIZE, camera="top+front", num_workers=1, num_rows=12
        )
        store.append([Episode(features=episode["features"], info=episode["info"]) for episode in found])
    store = EpisodeStore.open(folder / "s.zarr")
    config = replace(tiny.MODEL, tokenizer=TWO, proprioception="observation.state")
    training = replace(tiny.training(), camera=PAIR, plannable=BOTH)
    return store, train_world_model(store, config, training, folder / "run", seed=0), folder / "run"


@pytest.mark.render
def test_each_camera_is_a_feature_of_its_own(trained: tuple[EpisodeStore, WorldModel, Path]) -> None:
    store, *_ = trained
    states = store.read("sim.physics", 0, 4)
    for name in ("top", "front"):
        renderer = TASK.renderer(tiny.SIZE, tiny.SIZE, name)
        assert np.array_equal(store.read(f"observation.images.{name}", 0, 4), renderer.render_states(states))
        renderer.close()
    both = TASK.renderer(tiny.SIZE, 2 * tiny.SIZE, "top+front")
    stored = side_by_side(lambda name: store.read(name, 0, 4), PAIR)
    assert np.array_equal(both.render_states(states), stored)
    both.close()


@pytest.mark.render
def test_a_model_of_two_cameras_is_trained_saved_and_judged(trained: tuple[EpisodeStore, WorldModel, Path]) -> None:
    store, model, run = trained
    assert WorldModel.load(run / "model").fingerprint() == model.fingerprint()
    assert f"`{PAIR}`, 16x32" in (run / "model" / "README.md").read_text()
    judged = JudgedWorldModel(model, TASK, objective="state", weights=StepWeights())
    assert (judged.camera, judged.image_size) == ("top+front", (16, 32))
    check_fits(judged, TASK)
    planner = CEM(horizon=3, num_candidates=8, num_iterations=1, num_elites=2, num_kept=1)
    config = BranchConfig(num_branch_points=2, num_candidates=6, horizon=3)
    found = judge_imagination(TASK, judged, planner, config, weights=StepWeights(), seed=0)
    assert found.imagined_frames is not None
    assert found.imagined_frames.shape == found.true_frames.shape == (2, 3, 16, 32, 3)
    assert "psnr" in judge_dataset(model, store, [2], context=3, horizon=3, starts_per_episode=1, seed=0).measures


@pytest.mark.render
def test_stores_and_tasks_without_these_cameras_are_refused(
    trained: tuple[EpisodeStore, WorldModel, Path], tmp_path: Path
) -> None:
    store, model, _ = trained
    with pytest.raises(ValueError, match=r"the model wants 'observation.images.top\+front' of 16x32x3"):
        check_compatible(EpisodeStore.open(tiny.write_store(tmp_path / "one.zarr")), model)
    with pytest.raises(ValueError, match=r"several with camera=NAME\+NAME"):
        train_world_model(store, tiny.MODEL, tiny.training(), tmp_path / "none", seed=0)
    with pytest.raises(ValueError, match=r"configured for \(16, 16, 3\) of 1 camera\(s\)"):
        train_world_model(store, tiny.MODEL, replace(tiny.training(), camera=PAIR), tmp_path / "run", seed=0)
