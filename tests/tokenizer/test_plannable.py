"""Further terms of the tokenizer's training: what they ask for, which labels they read, and that they are off."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from embodied_wm.data.loader import WindowLoader
from embodied_wm.data.normalize import compute_statistics
from embodied_wm.data.store import EpisodeStore
from embodied_wm.tokenizer.plannable import Labels, PlannableConfig, PlannableTerms
from embodied_wm.training.frames import FrameBatches, WindowLabels
from embodied_wm.training.processes import ComputeConfig, start_processes
from embodied_wm.training.train import train_world_model
from embodied_wm.types import FeatureSpec

BOTH = PlannableConfig(predictability_weight=1.0, inverse_weight=1.0, width=32)


def lawful(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return paths [B, 3, 4] whose first half moves by the actions [B, 3, 2], and whose second half is noise."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(64, 3, 2, generator=generator)
    place = torch.cat([torch.zeros(64, 1, 2), actions[:, :-1].cumsum(1)], dim=1)
    return torch.cat([place, torch.randn(64, 3, 2, generator=generator)], dim=-1), actions


def trained(config: PlannableConfig, labelled: torch.Tensor | None, keep: list[int]) -> dict[str, float]:
    torch.manual_seed(0)
    terms = PlannableTerms(config, latent_size=len(keep), action_size=2)
    optimiser = torch.optim.Adam(terms.parameters(), lr=3e-3)
    metrics: dict[str, float] = {}
    for step in range(300):
        path, actions = lawful(step)
        loss, metrics = terms(path[..., keep], None if labelled is None else Labels(actions, labelled))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return metrics


def test_what_actions_move_is_foretold_and_tells_them_and_noise_does_neither() -> None:
    known = torch.ones(64, dtype=torch.bool)
    moved, noise = trained(BOTH, known, [0, 1]), trained(BOTH, known, [2, 3])
    assert moved["predictability"] < 0.1
    assert moved["inverse"] < 0.1
    assert noise["predictability"] > 0.8
    assert noise["inverse"] > 0.8


def test_without_labels_inverse_dynamics_is_left_out_and_the_action_is_not_known() -> None:
    metrics = trained(BOTH, None, [0, 1])
    assert "inverse" not in metrics
    assert metrics["predictability"] > 0.3  # each step adds a fresh unit variance that only the action tells


def test_unlabelled_actions_are_never_read() -> None:
    torch.manual_seed(0)
    terms = PlannableTerms(BOTH, latent_size=4, action_size=2)
    path, actions = lawful(0)
    labelled = torch.arange(64) < 16
    spoilt = torch.where(labelled[:, None, None], actions, torch.nan)
    first, second = (terms(path, Labels(each, labelled)) for each in (actions, spoilt))
    assert torch.equal(first[0], second[0])
    assert torch.isfinite(first[0])
    nothing = terms(path, Labels(spoilt, torch.zeros(64, dtype=torch.bool)))
    assert nothing[1]["inverse"] == 0.0


def test_shrinking_the_latents_gains_nothing() -> None:
    torch.manual_seed(0)
    terms = PlannableTerms(BOTH, latent_size=4, action_size=2)
    path, actions = lawful(0)
    known = Labels(actions, torch.ones(64, dtype=torch.bool))
    assert torch.allclose(terms(path, known)[0], terms(0.1 * path, known)[0], rtol=1e-4)


def test_bad_windows_and_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        PlannableTerms(BOTH, latent_size=4, action_size=2)(torch.zeros(2, 2, 4), None)
    with pytest.raises(ValueError, match="weights of 0 or more"):
        PlannableConfig(inverse_weight=-1.0)


def test_training_reads_labels_of_labelled_episodes_alone_and_saves_no_heads(tmp_path: Path) -> None:
    store = EpisodeStore.open(tiny.write_store(tmp_path / "store.zarr"))
    model = train_world_model(
        store,
        tiny.MODEL,
        tiny.training(labelled_fraction=0.4, plannable=BOTH),  # type: ignore[arg-type]
        tmp_path / "run",
        seed=0,
        stages=("tokenizer",),
    )
    assert {"predictability", "inverse"} <= set(model.card["metrics"]["tokenizer"])
    assert not [name for name in model.state_dict() if "forward_model" in name and "latent_actions" not in name]
    plain = train_world_model(store, tiny.MODEL, tiny.training(), tmp_path / "plain", seed=0, stages=("tokenizer",))
    assert set(plain.card["metrics"]["tokenizer"]) == {"loss", "mse", "regulariser", "straightness", "psnr"}
    assert plain.state_dict().keys() == model.state_dict().keys()


def test_the_state_is_told_from_what_shows_it_and_other_states_are_never_read(tmp_path: Path) -> None:
    config = PlannableConfig(state_weight=1.0, width=32)
    generator = torch.Generator().manual_seed(0)
    labelled = torch.arange(64) < 48
    for shows, most in ((True, 0.2), (False, None)):
        torch.manual_seed(0)
        terms = PlannableTerms(config, latent_size=4, action_size=2, state_size=2)
        optimiser = torch.optim.Adam(terms.parameters(), lr=3e-3)
        metrics: dict[str, float] = {}
        for _ in range(300):
            path = torch.randn(64, 3, 4, generator=generator)
            state = path[..., :2].square() if shows else torch.randn(64, 3, 2, generator=generator)
            spoilt = torch.where(labelled[:, None, None], state, torch.nan)
            loss, metrics = terms(path, Labels(torch.zeros(64, 3, 2), labelled, spoilt))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert metrics["state"] < most if most else metrics["state"] > 0.8
    store = EpisodeStore.open(tiny.write_store(tmp_path / "store.zarr"))
    told = replace(config, state="observation.state")
    model = train_world_model(
        store,
        tiny.MODEL,
        tiny.training(labelled_fraction=0.4, plannable=told),  # type: ignore[arg-type]
        tmp_path / "run",
        seed=0,
        stages=("tokenizer",),
    )
    assert 0 < model.card["metrics"]["tokenizer"]["state"] < 5
    with pytest.raises(ValueError, match=r"plannable\.state=action: expected a feature"):
        train_world_model(
            store,
            tiny.MODEL,
            tiny.training(plannable=replace(config, state="action")),  # type: ignore[arg-type]
            tmp_path / "wrong",
            seed=0,
        )


def test_a_state_of_one_number_is_a_column(tmp_path: Path) -> None:
    episodes = [tiny.episode(seed) for seed in range(3)]
    rewards = {"next.reward": FeatureSpec(dtype="float64", shape=())}
    with EpisodeStore.create(tmp_path / "a.zarr", features=tiny.features() | rewards, fps=10.0) as store:
        for each in episodes:
            store.append([replace(each, features={**each.features, "next.reward": np.arange(each.num_rows) * 1.0})])
    labels = WindowLabels(EpisodeStore.open(tmp_path / "a.zarr"), [0, 1], state="next.reward")
    batches = FrameBatches(
        EpisodeStore.open(tmp_path / "a.zarr"),
        tiny.CAMERA,
        batch_size=3,
        seed=0,
        processes=start_processes(ComputeConfig()),
        memory_budget_bytes=2**20,
        labels=labels,
    )
    batch = labels.of_windows(batches.loader([0, 1]), 0)
    assert batch["state"].shape == (3, 3, 1)
    assert batch["state"].dtype == torch.float32
    assert batch["action"].shape == (3, 3, 2)


def test_a_state_that_is_an_outcome_is_told_of_the_frame_that_shows_it(tmp_path: Path) -> None:
    """As the readouts of rewards are trained: row t holds what the action after frame t led to."""
    rewards = {"next.reward": FeatureSpec(dtype="float64", shape=())}
    with EpisodeStore.create(tmp_path / "a.zarr", features=tiny.features() | rewards, fps=10.0) as store:
        rows = tiny.episode(0)
        store.append([replace(rows, features={**rows.features, "next.reward": np.arange(rows.num_rows) * 1.0})])
    store = EpisodeStore.open(tmp_path / "a.zarr")
    labels = WindowLabels(store, [0], state="next.reward")
    loader = WindowLoader(store, episodes=[0], length=3, batch_size=8, features=["next.reward"], seed=0)
    told, held = labels.of_windows(loader, 0)["state"][..., 0], loader.batch(0)["next.reward"]
    statistics = compute_statistics(store, "next.reward", [0])
    seen = torch.from_numpy((held - 1 - statistics.mean) / statistics.std).float()
    is_first = torch.from_numpy(held == 0)
    assert torch.allclose(told[~is_first], seen[~is_first], atol=1e-5)
