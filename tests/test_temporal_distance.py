"""Temporal distance: a quasimetric by construction, exact on small cases, and the shortest way once it has learnt."""

import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm.evaluation.statistics import spearman
from embodied_wm.temporal_distance import TemporalDistance, TemporalDistanceConfig, interval_quasimetric
from embodied_wm.world_model import WorldModel, WorldModelConfig

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
        assert torch.equal(distance(a, b[:1].expand_as(a)), distance(a, b[0]))  # one goal for all


def learnt(transitions: Tensor) -> TemporalDistance:
    """Train on transitions [N, 2, 1, D]."""
    torch.manual_seed(0)
    distance, generator = TemporalDistance(CONFIG, latent_size=transitions.shape[-1]), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(distance.parameters(), lr=3e-3)
    for _ in range(400):
        chosen = torch.randint(len(transitions), (256,), generator=generator)
        loss, _ = distance.loss(transitions[chosen], generator, noise=0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return distance.eval()


def test_it_learns_the_shortest_way_and_that_some_ways_lead_back_around() -> None:
    """Twelve places on a ring that can be walked one way alone: from i to j takes (j - i) mod 12 steps."""
    angle = torch.arange(12) * torch.pi / 6
    places = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None]
    distance = learnt(torch.stack([places, places.roll(-1, 0)], dim=1))
    index = torch.arange(12)
    true = (index[None, :] - index[:, None]) % 12
    with torch.no_grad():
        found = torch.stack([distance(places, goal) for goal in places], dim=1)
    assert spearman(found.flatten().numpy(), true.flatten().numpy()) > 0.9
    one_step = found[index, (index + 1) % 12]
    assert one_step.max() < 1.6
    assert (found.T[index, (index + 1) % 12] > 5 * one_step).all()  # back: eleven steps


def test_a_model_without_the_readout_says_what_to_do() -> None:
    model = tiny.make_model()
    latents = torch.randn(3, 5, 1, 8)
    assert model.steps_between(latents, latents[0, 0]).shape == (3, 5)
    without = WorldModel(WorldModelConfig(), model.embodiment)
    with pytest.raises(ValueError, match=r"no readout of temporal distance; train one with model.temporal_distance"):
        without.steps_between(latents, latents[0, 0])
    assert not [name for name in without.state_dict() if "temporal" in name]
