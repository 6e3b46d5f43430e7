"""Errors of prediction weigh what is seen: weights against a decoder whose answer is known, in training and on disk."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm.data.store import EpisodeStore
from embodied_wm.predictor.flow_loss import squared_error
from embodied_wm.training.train import train_world_model
from embodied_wm.training.visible import visible_weights
from embodied_wm.world_model import WorldModel


def with_share(share: float) -> WorldModel:
    model = tiny.make_model()
    config = replace(model.config, predictor=replace(model.config.predictor, visible_share=share))
    return WorldModel(config, model.embodiment)


def test_weights_are_shared_by_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving the first channel by 0.1 changes every pixel by 4, the second by 2: 16 and 4 parts of 20."""
    model = with_share(0.75)

    def decode(latents: Tensor) -> Tensor:
        grey = 100 + 40 * latents[:, 0, 0] + 20 * latents[:, 0, 1]
        return grey.round().to(torch.uint8)[:, None, None, None].expand(-1, tiny.SIZE, tiny.SIZE, 3)

    monkeypatch.setattr(model, "decode", decode)
    latents = torch.zeros(5, model.num_tokens, model.token_width)
    weights, size = visible_weights(model, latents), latents[0].numel()
    assert float(weights.mean()) == pytest.approx(1.0)
    assert float(weights[0, 0]) == pytest.approx(0.75 * size * 16 / 20 + 0.25)
    assert float(weights[0, 1]) == pytest.approx(0.75 * size * 4 / 20 + 0.25)
    assert weights.flatten()[2:].tolist() == pytest.approx([0.25] * (size - 2))


def test_errors_are_weighed() -> None:
    predictor = with_share(0.5).predictor
    assert predictor.error_weights is not None
    predictor.error_weights.zero_()[0, 1] = 3.0
    missed = torch.randn(2, 4, *predictor.error_weights.shape, generator=torch.Generator().manual_seed(0))
    found = squared_error(predictor, missed, torch.zeros_like(missed))
    torch.testing.assert_close(found, 3 * missed[:, :, 0, 1].square() / missed[0, 0].numel())


def test_training_finds_the_weights_and_keeps_them(tiny_store: Path, tmp_path: Path) -> None:
    config = replace(tiny.MODEL, predictor=replace(tiny.MODEL.predictor, visible_share=0.75))
    stages = ["tokenizer", "predictor", "self_forcing"]
    model = train_world_model(EpisodeStore.open(tiny_store), config, tiny.training(), tmp_path, seed=0, stages=stages)
    weights = model.predictor.error_weights
    assert weights is not None
    assert float(weights.mean()) == pytest.approx(1.0)
    assert float(weights.std()) > 0.1
    kept = WorldModel.load(tmp_path / "model").predictor.error_weights
    assert kept is not None
    assert torch.equal(kept, weights)


def test_without_a_share_there_is_nothing_to_weigh_or_keep() -> None:
    model = tiny.make_model()
    assert model.predictor.error_weights is None
    assert not any("error_weights" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("changes", "says"), [({"visible_share": 1.5}, r"\[0, 1\]"), ({"visible_share": 0.5, "kind": "masked"}, "codes")]
)
def test_a_share_that_means_nothing_is_refused(changes: dict, says: str) -> None:
    config = replace(tiny.MODEL.predictor, **changes)
    with pytest.raises(ValueError, match=says):
        config.check([2] * 8, 8)
