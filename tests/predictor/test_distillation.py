"""Distillation: the teacher's many steps become the student's one, without touching the teacher."""

from copy import deepcopy

import pytest
import torch

from embodied_wm.predictor import sampler
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.distillation import check_distillable, denoise, distillation_loss
from embodied_wm.predictor.inputs import REAL, ActionInputs
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.transformer import TransformerConfig


def make(kind: str = "flow", max_steps: int = 4, width: int = 32, std: float = 0.3) -> LatentPredictor:
    torch.manual_seed(0)
    config = PredictorConfig(
        kind=kind,  # type: ignore[arg-type]
        max_steps=max_steps,
        transformer=TransformerConfig(width=width, depth=2, num_heads=2, hidden=2 * width),
        window=4,
        noisy_context_fraction=0.0,
    )
    model = LatentPredictor(config, num_tokens=1, token_width=4, action_size=1, code_size=1)
    if std:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def windows() -> tuple[torch.Tensor, ActionInputs]:
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(8, 3, 1, generator=generator)
    return torch.randn(8, 3, 1, 4, generator=generator), ActionInputs(torch.full((8, 3), REAL), real=real)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_teacher_denoises_as_imagination_does(num_steps: int) -> None:
    model, (latents, actions) = make(), windows()
    led_by = model.shift(model.embed_actions(actions)).detach()
    noise = torch.randn(8, 3, 1, 4)
    ends = denoise(model, latents, torch.ones(8, 3), noise, led_by, num_steps)
    assert actions.real is not None
    for index in range(2):
        one = slice(index, index + 1)
        context = model.prefill(latents[index, :2], ActionInputs(actions.kind[one], real=actions.real[one]))
        imagined = sampler.imagine(
            model, context, lambda h, _, one=one: led_by[one, 2], noise[one, 2:], num_steps=num_steps
        )
        assert torch.allclose(imagined[:, 0], ends[one, 2], atol=1e-4 * float(ends.abs().max()))


def test_the_loss_is_nought_for_a_student_that_agrees_and_gradients_reach_the_student_alone() -> None:
    student, (latents, actions) = make(), windows()
    teacher = deepcopy(student)
    loss, metrics = distillation_loss(student, teacher, latents, actions, torch.Generator().manual_seed(0), num_steps=1)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-10)  # one step of the same weights
    loss, metrics = distillation_loss(student, teacher, latents, actions, torch.Generator().manual_seed(0), num_steps=4)
    loss.backward()
    assert metrics["to_teacher"] > 1e-4
    assert all(p.grad is None for p in teacher.parameters())
    assert sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None) > 0


def test_predictors_without_many_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="kind 'regression' has no such steps"):
        check_distillable(make("regression"), 4)
    with pytest.raises(ValueError, match=r"denoising_steps=8 of the teacher; this predictor was trained for \[1, 2, 4"):
        check_distillable(make(), 8)
    with pytest.raises(ValueError, match="one step has nothing to be distilled to"):
        check_distillable(make(max_steps=1), 1)
    check_distillable(make(), 2)
