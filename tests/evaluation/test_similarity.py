"""Structural similarity against the reference implementation."""

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from embodied_wm.evaluation.similarity import ssim


@pytest.mark.parametrize("size", [(64, 64), (16, 24), (6, 7)])
def test_equals_the_reference(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 256, (2, 3, *size, 3), generator=generator, dtype=torch.uint8)
    second = (first.float() + 40 * torch.randn(first.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    second[0, 0] = first[0, 0]
    pair = [frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 for frames in (first, second)]
    expected = structural_similarity_index_measure(pair[0], pair[1], data_range=1.0, reduction="none")
    found = ssim(first, second)
    assert found.shape == (2, 3)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(found.flatten(), expected, atol=2e-5, rtol=0)
    assert found[0, 0] == pytest.approx(1.0, abs=1e-6)


def test_too_small_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="got frames of 5x64"):
        ssim(*torch.zeros(2, 1, 5, 64, 3, dtype=torch.uint8))
