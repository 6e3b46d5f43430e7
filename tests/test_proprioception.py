"""Proprioception as tokens: exact round trips, imagined and read back, trained and judged like any other token."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm.data.normalize import FeatureStatistics
from embodied_wm.data.store import EpisodeStore
from embodied_wm.embodiment import Embodiment
from embodied_wm.evaluation.dataset import judge_dataset
from embodied_wm.evaluation.imagined_env import ImaginedEnvConfig, ImaginedVectorEnv, StoreStarts
from embodied_wm.tokenizer.proprioception import ProprioceptionTokens
from embodied_wm.training.embodiment import check_compatible
from embodied_wm.training.frames import felt_rows
from embodied_wm.training.latents import LatentEpisodes, felt_by
from embodied_wm.training.train import train_world_model
from embodied_wm.types import Episode, FeatureSpec
from embodied_wm.world_model import WorldModel

FEATURE = "observation.state"
CONFIG = replace(tiny.MODEL, proprioception=FEATURE)


def tokens_of(size: int, width: int = 8) -> ProprioceptionTokens:
    names = tuple(f"joint_{index}" for index in range(size))
    tokens = ProprioceptionTokens(names=names, units=("rad",) * size, picture_tokens=2, token_width=width)
    spread = np.linspace(0.5, 3.0, size)
    tokens.fit_statistics(
        FeatureStatistics(mean=np.arange(size, dtype=float), std=spread, minimum=-spread, maximum=spread, count=10)
    )
    return tokens


def make_model() -> WorldModel:
    torch.manual_seed(0)
    readouts = {FEATURE: (("x", "y"), ("px", "px"))}
    model = WorldModel(CONFIG, Embodiment(camera=tiny.CAMERA, action_size=2, readouts=readouts))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def frames_and_felt(count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (count, tiny.SIZE, tiny.SIZE, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator), torch.randn(
        count, 2, generator=generator
    )


@pytest.mark.parametrize(("size", "num_tokens"), [(1, 1), (8, 1), (9, 2), (20, 3)])
def test_values_survive_the_round_trip_whatever_their_number(size: int, num_tokens: int) -> None:
    tokens = tokens_of(size)
    values = 3 * torch.randn(4, 5, size)
    latents = tokens.join(torch.randn(4, 5, 2, 8), values)
    assert tokens.num_tokens == num_tokens
    assert latents.shape == (4, 5, 2 + num_tokens, 8)
    assert torch.allclose(tokens.decode(latents), values, atol=1e-5)
    assert (latents[..., 2:, :].flatten(-2)[..., size:] == 0).all()
    assert torch.allclose(tokens.encode(tokens.scale.mean), torch.zeros(num_tokens, 8))


def test_what_is_guessed_is_read_from_the_picture_alone() -> None:
    torch.manual_seed(0)
    tokens, picture = tokens_of(3), torch.randn(500, 2, 8)
    felt = picture.flatten(1) @ torch.randn(16, 3)
    tokens.fit_guess(tokens.join(picture, felt), felt)
    guessed = tokens.decode(tokens.guessed(tokens.join(picture, torch.zeros_like(felt))))
    assert (guessed - felt).abs().max() < 0.1 * felt.std()


def test_bad_proprioception_is_named() -> None:
    tokens = tokens_of(3)
    with pytest.raises(ValueError, match=r"wants 3 finite numbers a frame: joint_0 \(rad\)"):
        tokens.encode(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="finite"):
        tokens.encode(torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match="one row of 3 for each frame"):
        tokens.join(torch.zeros(5, 2, 8), torch.zeros(4, 3))
    frames, felt = frames_and_felt()
    with pytest.raises(ValueError, match="encode_picture"):
        make_model().encode(frames)
    with pytest.raises(ValueError, match="this model has no tokens for it"):
        tiny.make_model().encode(frames, felt)
    with pytest.raises(ValueError, match=r"16x16x3.*image_size"):
        make_model().encode(frames[:, :8], felt)
    with pytest.raises(ValueError, match="no such feature"):
        WorldModel(CONFIG, Embodiment(camera=tiny.CAMERA, action_size=2))


def test_pictures_do_not_depend_on_what_is_felt_and_what_is_felt_not_on_the_picture() -> None:
    model = make_model()
    assert model.proprioception is not None
    frames, felt = frames_and_felt()
    first, second = model.encode(frames, felt), model.encode(frames, -felt)
    assert first.shape == (3, 2, 8)
    assert torch.equal(first[:, :1], second[:, :1])
    assert torch.equal(model.decode(first), model.decode(second))
    assert torch.equal(first[:, :1], model.tokenizer.encode(frames))
    assert torch.allclose(model.proprioception.decode(first), felt, atol=1e-6)
    assert torch.equal(model.encode_picture(frames), model.proprioception.guessed(second))


def test_imagination_depends_on_the_felt_context_and_cached_equals_uncached() -> None:
    from embodied_wm.evaluation.speed import imagination_pair

    model = make_model()
    frames, felt = frames_and_felt()
    chosen, past = torch.rand(4, 5, 2) * 2 - 1, torch.rand(2, 2)

    def imagine(values: Tensor) -> Tensor:
        context = model.prefill(frames, past, proprioception=values)
        return model.imagine(context, chosen, generator=torch.Generator().manual_seed(0))

    first = imagine(felt)
    context = model.prefill(frames[:2], past[:1], proprioception=felt[:2])
    extended = model.extend(context, frames[2], past[1], proprioception=felt[2])
    rolled = model.imagine(extended, chosen, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rolled, first, atol=1e-4)
    assert first.shape == (4, 5, 2, 8)
    assert torch.equal(first, imagine(felt))
    assert not torch.allclose(first[..., :1, :], imagine(felt + 1)[..., :1, :])
    cached, uncached = imagination_pair(model, num_candidates=3, context=3, horizon=4, num_steps=2)
    assert torch.allclose(cached(), uncached(), atol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[EpisodeStore, WorldModel, Path]:
    folder = tmp_path_factory.mktemp("felt")
    store = EpisodeStore.open(tiny.write_store(folder / "store.zarr"))
    model = train_world_model(store, CONFIG, tiny.training(latents="zarr"), folder / "run", seed=0)  # type: ignore[arg-type]
    return store, model, folder / "run"


def test_a_trained_model_keeps_its_tokens_through_saving(trained: tuple[EpisodeStore, WorldModel, Path]) -> None:
    store, model, run = trained
    loaded = WorldModel.load(run / "model")
    assert loaded.fingerprint() == model.fingerprint()
    assert model.proprioception is not None
    train_rows = store.read(FEATURE, 0, int(store.episode_ends[4]))
    assert torch.allclose(model.proprioception.scale.mean, torch.from_numpy(train_rows.mean(0)), atol=1e-4)
    assert "proprioception=torch.zeros(3, 2)" in (run / "model" / "README.md").read_text()
    modes = [
        LatentEpisodes(
            store,
            loaded.tokenizer,
            camera=tiny.CAMERA,
            episodes=[1, 3],
            features=["action", FEATURE],
            mode=mode,
            folder=run / "again.zarr",
            felt=felt_by(loaded),
        ).sampler(length=4, batch_size=3, seed=0)
        for mode in ("memory", "zarr", "online")
    ]
    batches = [sampler.batch(0) for sampler in modes]
    assert loaded.proprioception is not None
    for batch in batches:
        assert torch.allclose(loaded.proprioception.decode(batch["latents"]), batch[FEATURE], atol=1e-4)
        assert torch.allclose(batch["latents"], batches[0]["latents"], atol=1e-5)


def test_held_out_episodes_are_judged_with_what_was_felt(trained: tuple[EpisodeStore, WorldModel, Path]) -> None:
    store, model, _ = trained
    judged = judge_dataset(model, store, [5], context=3, horizon=4, starts_per_episode=2, seed=0)
    assert {"psnr", "latent_mse"} <= set(judged.measures)
    assert torch.equal(felt_rows(store, model, 3, 6), torch.from_numpy(store.read(FEATURE, 3, 6)))  # type: ignore[arg-type]
    starts = StoreStarts(store, camera=tiny.CAMERA, proprioception=FEATURE)
    env = ImaginedVectorEnv(model, starts, 2, ImaginedEnvConfig(horizon=3))
    observations, _ = env.reset(seed=0)
    assert observations["observation"].shape == (2, 2, 8)
    env.close()


def test_a_store_without_what_the_model_feels_is_refused(
    trained: tuple[EpisodeStore, WorldModel, Path], tmp_path: Path
) -> None:
    _, model, _ = trained
    features = {name: spec for name, spec in tiny.features().items() if name != FEATURE}
    rows = tiny.episode(0).features
    with EpisodeStore.create(tmp_path / "blind.zarr", features=features, fps=10.0) as store:
        store.append([Episode(features={name: rows[name] for name in features})] * 3)
    with pytest.raises(ValueError, match=r"wants 'observation.state' of 2 numbers"):
        check_compatible(EpisodeStore.open(tmp_path / "blind.zarr"), model)
    with pytest.raises(ValueError, match="no such feature"):
        train_world_model(EpisodeStore.open(tmp_path / "blind.zarr"), CONFIG, tiny.training(), tmp_path / "run", seed=0)


def test_what_is_felt_may_be_one_number_a_row(tmp_path: Path) -> None:
    """As a gripper's opening of a LeRobot dataset, or the state of an environment with discrete observations."""
    spec = {**tiny.features(), "gripper": FeatureSpec(dtype="int64", shape=())}
    rows = {**tiny.episode(0).features, "gripper": np.arange(tiny.ROWS)}
    with EpisodeStore.create(tmp_path / "s.zarr", features=spec, fps=10.0) as store:
        store.append([Episode(features=rows)] * 4)
    store = EpisodeStore.open(tmp_path / "s.zarr")
    model = train_world_model(
        store, replace(tiny.MODEL, proprioception="gripper"), tiny.training(), tmp_path / "run", seed=0
    )
    assert model.proprioception is not None
    assert model.proprioception.scale.mean.item() == pytest.approx((tiny.ROWS - 1) / 2)
    check_compatible(store, model)
    assert {"psnr"} <= set(
        judge_dataset(model, store, [3], context=3, horizon=4, starts_per_episode=1, seed=0).measures
    )
    starts = StoreStarts(store, camera=tiny.CAMERA, proprioception="gripper")
    ImaginedVectorEnv(model, starts, 2, ImaginedEnvConfig(horizon=3)).reset(seed=0)


def test_what_the_picture_hides_is_imagined_from_what_is_felt(tmp_path: Path) -> None:
    """The dot jumps by a hidden gain that only proprioception tells: with its token, imagination knows where to."""
    spec = {**tiny.features(), FEATURE: FeatureSpec(dtype="float32", shape=(1,), names=("gain",), units=("1",))}
    episodes = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        gain, x = float(rng.choice([-1.0, 1.0])), float(rng.uniform(5, 10))
        frames = np.full((6, 16, 16, 3), 20, np.uint8)
        for row in range(6):
            frames[row, 6:10, round(x) - 2 : round(x) + 2] = 230
            x = float(np.clip(x + 2 * gain, 2, 14))
        values = {tiny.CAMERA: frames, FEATURE: np.full((6, 1), gain, np.float32), "action": np.zeros((6, 2), "f4")}
        episodes.append(Episode(features=values))
    with EpisodeStore.create(tmp_path / "s.zarr", features=spec, fps=10.0) as store:
        store.append(episodes)
    store = EpisodeStore.open(tmp_path / "s.zarr")
    errors = {}
    for feature in ("", FEATURE):
        config = replace(tiny.MODEL, proprioception=feature)
        training = replace(
            tiny.training(120),
            tokenizer=replace(tiny.training(150).tokenizer, learning_rate=3e-3, batch_size=8, warmup_steps=5),
            predictor=replace(tiny.training(250).predictor, learning_rate=3e-3, batch_size=16, warmup_steps=5),
        )
        model = train_world_model(store, config, training, tmp_path / f"run{feature}", seed=0)
        found = []
        for episode in range(36, 40):
            first = 6 * episode
            real = torch.from_numpy(store.read(tiny.CAMERA, first, first + 2))
            felt = felt_rows(store, model, first, first + 2)
            # One frame: two would show where the dot goes.
            context = model.prefill(real[:1], None, proprioception=None if felt is None else felt[:1])
            after = model.imagine(context, torch.zeros(8, 1, 2), generator=torch.Generator().manual_seed(0))[:, 0, :1]
            found.append(float((after - model.tokenizer.encode(real[1])).square().mean()))
        errors[feature] = float(np.mean(found))
    assert errors[FEATURE] < 0.6 * errors[""]
