"""Latent actions: codes carry what changed, are discrete, and cannot carry the next frame."""

from typing import Any

import pytest
import torch

from embodied_wm.tokenizer.actions import ActionAdapter, LatentActionConfig, LatentActionTokenizer


def moving_latents(batch: int, time: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents [B, T, 1, 6] whose first two channels integrate hidden actions [B, T, 2]; the rest is constant."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.rand(batch, time, 2, generator=generator) * 2 - 1
    scene = torch.randn(batch, 1, 4, generator=generator).expand(-1, time, -1)
    place = torch.cat([torch.zeros(batch, 1, 2), actions[:, :-1].cumsum(1)], dim=1)
    return torch.cat([place, scene], dim=-1)[:, :, None], actions


def trained() -> LatentActionTokenizer:
    torch.manual_seed(0)
    module = LatentActionTokenizer(LatentActionConfig(levels=(9, 9), width=64), num_tokens=1, token_width=6)
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    for step in range(600):
        loss, _ = module.loss(moving_latents(64, 4, step)[0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return module.eval()


def test_codes_carry_the_hidden_action_and_not_the_frame() -> None:
    module = trained()
    latents, actions = moving_latents(256, 4, 9999)
    with torch.no_grad():
        codes = module.encode(latents)
        right = (module.predict(latents[:, :-1], codes) - latents[:, 1:]).square().mean()
        wrong = (module.predict(latents[:, :-1], codes.roll(1, 0)) - latents[:, 1:]).square().mean()
        copy = (latents[:, :-1] - latents[:, 1:]).square().mean()
    inputs = torch.cat([codes.flatten(0, 1), torch.ones(len(codes) * 3, 1)], dim=1)
    targets = actions[:, :-1].flatten(0, 1)
    residual = targets - inputs @ torch.linalg.lstsq(inputs, targets).solution
    assert 1 - residual.var() / targets.var() > 0.8  # the action can be read from the code
    assert right < 0.15 * copy  # and the code explains the change
    assert wrong < 4 * copy  # while the scene of another transition did not travel with its code


def test_codes_are_on_the_grid_and_quantise_is_idempotent() -> None:
    module = LatentActionTokenizer(LatentActionConfig(levels=(5, 9, 3)), num_tokens=2, token_width=4)
    codes = module.encode(torch.randn(8, 5, 2, 4))
    assert codes.shape == (8, 4, 3)
    assert codes.abs().max() <= 1
    assert torch.allclose(module.quantise(codes), codes, atol=1e-6)
    steps = (codes + 1) / 2 * (torch.tensor([5, 9, 3]) - 1)
    assert torch.allclose(steps, steps.round(), atol=1e-5)


@pytest.mark.parametrize("levels", [(8,), (4, 6), (5, 8, 3)])
def test_even_numbers_of_levels_are_on_the_same_grid(levels: tuple[int, ...]) -> None:
    """What is planned with, or adapted, must be a code that is inferred from video, too."""
    torch.manual_seed(0)
    module = LatentActionTokenizer(LatentActionConfig(levels=levels), num_tokens=1, token_width=4)
    codes = module.encode(100 * torch.randn(16, 64, 1, 4)).flatten(0, 1)
    values = module.values()
    assert [len(each) for each in values] == list(levels)
    assert torch.allclose(module.quantise(codes), codes, atol=1e-6)
    for channel, each in enumerate(values):
        assert set(codes[:, channel].tolist()) <= set(each.tolist())
        assert torch.equal(module.quantise(each[:, None].expand(-1, len(levels)))[:, channel], each)
    farthest = module.quantise(torch.ones(1, len(levels)))[0]
    assert torch.equal(farthest, torch.stack([each[-1] for each in values]))


def test_codes_see_only_their_own_transition_and_its_past() -> None:
    module = LatentActionTokenizer(LatentActionConfig(history=2), num_tokens=1, token_width=6)
    latents = moving_latents(2, 6, 0)[0]
    changed = latents.clone()
    changed[:, 4:] += 1
    assert torch.equal(module.encode(latents)[:, :3], module.encode(changed)[:, :3])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"history": 0}, "history=0: expected at least 1 each"),
        ({"width": 0}, "width=0, history=2: expected at least 1 each"),
        ({"levels": ()}, r"levels=\[\]: expected .* at least one channel"),
        ({"levels": (9, 2)}, r"levels=\[9, 2\]: .* at least 3"),
    ],
)
def test_sizes_that_are_none(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LatentActionConfig(**change)


def test_adapter_learns_both_ways() -> None:
    module, adapter = trained(), ActionAdapter(latent_size=6, action_size=2, code_size=2, width=64)
    latents, actions = moving_latents(64, 4, 5)
    with torch.no_grad():
        codes = module.encode(latents)
    optimiser = torch.optim.Adam(adapter.parameters(), lr=3e-3)
    for _ in range(400):
        loss, metrics = adapter.loss(latents[:, :-1], actions[:, :-1], codes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert metrics["action_mse"] < 0.1 * float(actions.var())
    assert metrics["code_mse"] < 0.1 * float(codes.var())
