"""Temporal distance: a quasimetric by construction, exact on small cases, and the shortest way once it has learnt."""

import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm.evaluation.statistics import spearman
from embodied_wm.temporal_distance import TemporalDistance, TemporalDistanceConfig, interval_quasimetric
from embodied_wm.world_model import WorldModel

CONFIG = TemporalDistanceConfig(components=4, intervals=4, width=32, horizon=20.0)


@pytest.mark.parametrize(
    ("start", "end", "length"),
    [
        ([0.0], [2.0], 2.0),
        ([2.0], [0.0], 0.0),  # one way costs, the other does not
        ([0.0, 1.0], [2.0, 3.0], 3.0),  # overlapping: [0, 3]
        ([0.0, 5.0], [2.0, 6.0], 3.0),  # apart: [0, 2] and [5, 6]
        ([0.0, 1.0, 9.0], [4.0, 2.0, 3.0], 4.0),  # one inside another, one empty
        ([0.0, 2.0], [2.0, 4.0], 4.0),  # touching
    ],
)
def test_the_length_of_a_union_of_intervals(start: list[float], end: list[float], length: float) -> None:
    found = interval_quasimetric(torch.tensor([start]), torch.tensor([end]))
    assert found.tolist() == [pytest.approx(length)]


def test_it_is_a_quasimetric_whatever_its_weights() -> None:
    torch.manual_seed(0)
    distance = TemporalDistance(CONFIG, latent_size=6).double()
    torch.nn.init.normal_(distance.log_scale)
    a, b, c = torch.randn(3, 500, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        assert (distance(a, a) == 0).all()
        assert (distance(a, b) >= 0).all()
        assert (distance(a, c) <= distance(a, b) + distance(b, c) + 1e-9).all()
        assert not torch.allclose(distance(a, b), distance(b, a))
        assert torch.allclose(distance(a, b[:1].expand_as(a)), distance(a, b[0]))  # one goal for all


def places_on(arc: float, count: int) -> Tensor:
    """Return places [N, 1, 2] along a circle's arc, in radians."""
    angle = torch.arange(count) * arc / count
    return torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None]


def learnt(places: Tensor, steps: Tensor) -> Tensor:
    """Train on steps [N, 2] between places, and return the distances [N, N] from each place to each."""
    torch.manual_seed(0)
    config = TemporalDistanceConfig(components=8, intervals=8, width=64, horizon=20.0)
    distance, generator = TemporalDistance(config, latent_size=2), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(distance.parameters(), lr=3e-3)
    for _ in range(500):
        chosen = torch.randint(len(steps), (128,), generator=generator)
        loss, _ = distance.loss(places[steps[chosen]], generator, noise=0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return torch.stack([distance(places, goal) for goal in places], dim=1)


def test_what_lies_close_together_can_be_far_to_go() -> None:
    """Twelve places on a horseshoe: its ends lie side by side and are eleven steps apart."""
    index = torch.arange(12)
    there = torch.stack([index[:-1], index[1:]], dim=1)
    places, true = places_on(5.5, 12), (index[None] - index[:, None]).abs()
    found = learnt(places, torch.cat([there, there.flip(1)]))
    straight = torch.cdist(places[:, 0], places[:, 0])
    assert spearman(found.flatten().numpy(), true.flatten().numpy()) > 0.97
    assert spearman(straight.flatten().numpy(), true.flatten().numpy()) < 0.9
    assert found[0, 11] > 8 * found[0, 1]
    assert found[there[:, 0], there[:, 1]].max() < 1.5


def test_the_way_back_can_be_longer() -> None:
    """Six places on a ring that can be walked one way alone: from i to j takes (j - i) mod 6 steps."""
    index = torch.arange(6)
    true, after = (index[None] - index[:, None]) % 6, (index + 1) % 6
    found = learnt(places_on(2 * torch.pi, 6), torch.stack([index, after], dim=1))
    assert spearman(found.flatten().numpy(), true.flatten().numpy()) > 0.95
    assert found[index, after].max() < 1.5
    assert (found[after, index] > 2.5 * found[index, after]).all()  # five steps


def test_a_model_without_the_readout_says_what_to_do() -> None:
    without = tiny.make_model()
    latents = torch.randn(3, 5, 1, 8)
    assert WorldModel(tiny.MODEL, without.embodiment).steps_between(latents, latents[0, 0]).shape == (3, 5)
    with pytest.raises(ValueError, match=r"no readout of temporal distance; train one with model.temporal_distance"):
        without.steps_between(latents, latents[0, 0])
    assert not [name for name in without.state_dict() if "temporal" in name]
