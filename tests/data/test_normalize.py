import numpy as np
import pytest
import torch

from embodied_wm.data.normalize import Normalizer, compute_statistics
from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.types import Episode, FeatureSpec


@pytest.fixture
def episodes():
    rng = np.random.default_rng(0)
    return [
        {
            "observation.images.top": rng.integers(0, 256, (rows, 4, 5, 3), dtype=np.uint8),
            # A mean far larger than the spread: the naive formula for the variance fails here.
            "action": (1e4 + rng.normal(size=(rows, 2)) * [1e-2, 5]).astype(np.float64),
            "next.reward": rng.normal(size=rows).astype(np.float32),
        }
        for rows in (7, 12, 30)
    ]


@pytest.fixture
def store(tmp_path, episodes):
    features = {
        "observation.images.top": FeatureSpec(dtype="uint8", shape=(4, 5, 3)),
        "action": FeatureSpec(dtype="float64", shape=(2,)),
        "next.reward": FeatureSpec(dtype="float32", shape=()),
    }
    store = EpisodeStore.create(tmp_path / "s.zarr", features=features, fps=10)
    store.append([Episode(features=features) for features in episodes])
    return store


@pytest.mark.parametrize(("name", "axes"), [("action", 0), ("next.reward", 0), ("observation.images.top", (0, 1, 2))])
def test_statistics_equal_those_of_all_rows_in_memory(store, episodes, name, axes):
    statistics = compute_statistics(store, name, [0, 2])
    rows = np.concatenate([episodes[0][name], episodes[2][name]]).astype(np.float64)
    np.testing.assert_allclose(statistics.mean, rows.mean(axis=axes), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, rows.std(axis=axes), rtol=1e-9)
    np.testing.assert_array_equal(statistics.minimum, rows.min(axis=axes))
    np.testing.assert_array_equal(statistics.maximum, rows.max(axis=axes))
    assert statistics.count == 37


def test_normalised_values_have_zero_mean_and_unit_std_and_come_back(store, episodes):
    normalizer = Normalizer.from_statistics(compute_statistics(store, "action", [0, 1, 2]))
    values = torch.from_numpy(np.concatenate([episode["action"] for episode in episodes]))
    normalised = normalizer.normalize(values)
    torch.testing.assert_close(normalised[:, 1].mean(), torch.tensor(0.0, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        normalised[:, 1].std(correction=0), torch.tensor(1.0, dtype=torch.float64), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(normalizer.denormalize(normalised), values)


def test_an_element_that_does_not_vary_is_only_shifted():
    normalizer = Normalizer(np.array([2.0, 1.0]), np.array([0.0, 0.5]))
    torch.testing.assert_close(normalizer.normalize(torch.tensor([[2.5, 2.0]])), torch.tensor([[0.5, 2.0]]))


def test_statistics_travel_in_the_state_dict():
    normalizer = Normalizer(np.array([2.0, 1.0]), np.array([3.0, 0.5]))
    restored = Normalizer.identity(2)
    restored.load_state_dict(normalizer.state_dict())
    values = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restored.normalize(values), normalizer.normalize(values))
    assert not list(normalizer.parameters())


def test_clear_errors(store, tmp_path):
    with pytest.raises(StoreError, match="no feature 'state'"):
        compute_statistics(store, "state", [0])
    with pytest.raises(StoreError, match="at least one episode"):
        compute_statistics(store, "action", [])
    with pytest.raises(StoreError, match="no episode 9"):
        compute_statistics(store, "action", [9])
    with pytest.raises(ValueError, match="one shape"):
        Normalizer(np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match="finite"):
        Normalizer(np.zeros(2), np.array([1, np.nan]))
    actions = np.zeros((5, 1), dtype=np.float32)
    actions[3] = np.inf
    broken = EpisodeStore.create(
        tmp_path / "b.zarr", features={"action": FeatureSpec(dtype="float32", shape=(1,))}, fps=1
    )
    broken.append([Episode(features={"action": actions[:2]}), Episode(features={"action": actions})])
    with pytest.raises(StoreError, match="'action' is not finite in episode 1, row 3"):
        compute_statistics(broken, "action", [0, 1])
