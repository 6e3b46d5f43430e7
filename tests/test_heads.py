"""Readouts: the line is the least-squares one, and takes what the network leaves."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from embodied_wm.data.store import EpisodeStore
from embodied_wm.heads import NOISE, Readout
from embodied_wm.training.latents import LatentEpisodes, LatentsMode
from embodied_wm.training.train import train_world_model
from embodied_wm.world_model import WorldModel


def _readout(latents: Tensor, targets: Tensor) -> Readout:
    readout = Readout(latent_size=latents[0].numel(), names=("x", "y"), units=("m", "m"), width=16)
    readout.fit_statistics(targets)
    return readout


PLACES = replace(tiny.MODEL, tokenizer=replace(tiny.MODEL.tokenizer, keypoints=4, image_size=(tiny.SIZE, tiny.SIZE)))


def test_only_what_reads_places_has_a_line() -> None:
    """A grid's features are read by the network alone; key points, or what is felt, by a line too."""
    body = tiny.make_model().embodiment
    felt = replace(tiny.MODEL, proprioception="observation.state")
    for config, has_line in ((tiny.MODEL, False), (PLACES, True), (felt, True)):
        readout = WorldModel(config, body).readout("observation.state")
        assert (readout.line is not None) == has_line
    latents = torch.randn(50, 2, 3)
    readout = Readout(latent_size=6, names=("x",), units=("m",), width=16, has_line=False)
    readout.fit_line(latents, latents[:, 0, :1])
    assert float(readout(latents).detach().abs().max()) == 0.0


def test_a_readout_that_was_not_fitted_says_the_mean() -> None:
    torch.manual_seed(0)
    latents, targets = torch.randn(50, 2, 3), torch.randn(50, 2)
    readout = _readout(latents, targets)
    assert torch.allclose(readout(latents), targets.mean(0).expand(50, 2))


def test_what_never_changed_may_change_later() -> None:
    """A contact that no labelled row has, as sparse rewards and successes are, must not outweigh all else."""
    torch.manual_seed(0)
    latents, targets = torch.randn(50, 2, 3), torch.randn(50, 2)
    targets[:, 1] = 0.0
    readout = _readout(latents, targets)
    later = targets.clone()
    later[::5, 1] = 1.0
    loss, _ = readout.loss(latents, later, torch.Generator().manual_seed(0))
    assert loss < 2.0
    assert torch.allclose(readout(latents), targets.mean(0).expand(50, 2))
    readout.fit_statistics(targets[:1])
    assert readout.std.tolist() == [1.0, 1.0]


def test_the_line_is_that_of_noised_latents() -> None:
    torch.manual_seed(0)
    latents = torch.randn(400, 2, 3)
    targets = latents.flatten(1) @ torch.randn(6, 2) + 3.0 + 0.1 * torch.randn(400, 2)
    readout = _readout(latents, targets)
    readout.fit_line(latents, targets)
    noised = (latents + NOISE * torch.randn(2000, 400, 2, 3)).flatten(-2)  # the same, by many draws of the noise
    inputs = torch.nn.functional.pad(noised.flatten(0, 1), [0, 1], value=1.0)
    wanted = torch.linalg.lstsq(inputs, targets.repeat(2000, 1)).solution
    assert readout.line is not None
    found = readout.line.weight.T * readout.std
    assert torch.allclose(found, wanted[:-1], atol=2e-3)
    assert (readout(latents) - targets).square().mean().sqrt() < 0.12


def test_the_line_takes_what_the_network_leaves() -> None:
    torch.manual_seed(0)
    latents = torch.randn(400, 2, 3)
    readout = _readout(latents, torch.randn(400, 2))
    for parameter in readout.bend.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    targets = (readout.bend(latents.flatten(1)) + latents.flatten(1)[:, :2]) * readout.std + readout.mean
    readout.fit_line(latents, targets.detach())
    assert (readout(latents) - targets).square().mean().sqrt() < 0.01


def test_more_latents_than_rows_have_a_line() -> None:
    torch.manual_seed(0)
    latents, targets = torch.randn(5, 4, 8), torch.randn(5, 2)
    latents[:, 1] = 0.0  # as the padding of proprioception is
    readout = _readout(latents, targets)
    readout.fit_line(latents, targets)
    assert (readout(latents) - targets).square().mean() < 0.1 * targets.var()


@pytest.mark.parametrize("mode", ["memory", "zarr", "online"])
def test_the_stage_finds_the_line_wherever_latents_are_held(
    tiny_store: Path, tmp_path: Path, mode: LatentsMode
) -> None:
    store = EpisodeStore.open(tiny_store)
    training = replace(tiny.training(1), latents=mode)
    model = train_world_model(store, PLACES, training, tmp_path, seed=0, stages=["tokenizer", "readouts"])
    readout = model.readout("observation.state")
    assert readout.line is not None
    assert readout.line.weight.abs().max() > 0.0
    latents = LatentEpisodes(
        store, model.tokenizer, camera=tiny.CAMERA, episodes=range(5), features=["observation.state"]
    )
    targets = latents.features["observation.state"]
    with torch.no_grad():
        error = (readout(latents.latents) - targets).square().mean(0)
    assert (error < 0.9 * targets.var(0)).all()
