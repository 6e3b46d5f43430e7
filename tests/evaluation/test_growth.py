"""What is doubled costs what it costs; the page shows it; memory is counted; contexts go beyond the window."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from _pytest.monkeypatch import MonkeyPatch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from embodied_wm.embodiment import Embodiment
from embodied_wm.evaluation import growth, pages
from embodied_wm.evaluation.speed import SpeedConfig, imagination_pair, measure_speed, product_flops, speed_lines
from embodied_wm.predictor.int8 import int8_weight
from embodied_wm.tokenizer.bottleneck import BottleneckConfig
from embodied_wm.world_model import WorldModel, WorldModelConfig


def test_slope_is_the_exponent() -> None:
    sizes = (1, 2, 4, 8)
    assert growth.slope(sizes, [3.0 * size**0.7 for size in sizes]) == pytest.approx(0.7)
    assert growth.slope(sizes, [2.0] * 4) == pytest.approx(0.0)


def test_products_are_counted() -> None:
    first = torch.randn(8, 16)
    assert product_flops(lambda: first @ first.T) == 2 * 8 * 8 * 16
    weight = int8_weight(torch.randn(3, 16))
    assert product_flops(lambda: weight(first)) == 2 * 8 * 16 * 3


def test_a_context_longer_than_the_window_is_timed_and_exact(tiny_checkpoint: Path) -> None:
    model = WorldModel.load(tiny_checkpoint)
    context = 2 * model.config.predictor.window
    cached, uncached = imagination_pair(model, num_candidates=3, context=context, horizon=2, num_steps=1)
    assert (cached() - uncached()).abs().max() <= 1e-4 * uncached().abs().max()
    assert model.predictor.config.window == model.config.predictor.window


def test_growth_decisions_and_memory_are_measured_and_shown(tiny_checkpoint: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "DOUBLED", {name: (1, 2) for name in growth.DOUBLED})
    monkeypatch.setattr(growth, "BASE", {"candidates": 4, "horizon": 2, "tokens": 1, "context": 2})
    monkeypatch.setattr(growth, "CONTEXTS", (2, 12))
    config = SpeedConfig(
        num_candidates=[4],
        context_frames=[1, 8],
        denoising_steps=[1],
        horizon=2,
        repeats=1,
        most_uncached=4,
        grows=True,
    )
    speed = measure_speed(WorldModel.load(tiny_checkpoint), config)
    assert ["speed_up" in row for row in speed["imagine"]] == [True, False]
    assert set(speed["growth"]) == {"candidates", "horizon", "tokens", "context"}
    assert set(speed["decide"]["seconds"]) == {"2", "12"}
    assert 1 < speed["memory"]["ratio"] < 1.2  # 512 candidates of 8 steps behind 64 frames
    sections = [pages.speed_section(speed), *pages.growth_sections(speed)]
    titles = ["Speed of imagination", "How imagination grows", "A decision by context", "Memory"]
    assert [section.title for section in sections] == titles
    assert len(speed_lines(speed)) == 5


def _predictor(**settings: Any) -> WorldModelConfig:
    return replace(tiny.PLAIN, predictor=replace(tiny.PLAIN.predictor, **settings))


_TRANSFORMER = tiny.PLAIN.predictor.transformer
_BOTTLENECK = BottleneckConfig(kind="fsq", levels=(5, 5, 5), width=3)
_CODES = replace(tiny.PLAIN.tokenizer, token_grid=(2, 2), cells_per_token=(1, 1), bottleneck=_BOTTLENECK)


@pytest.mark.parametrize(
    ("config", "rolls"),
    [
        (replace(tiny.PLAIN, tokenizer=replace(tiny.PLAIN.tokenizer, cameras=2)), True),
        (replace(tiny.PLAIN, proprioception="observation.state"), True),
        (replace(_predictor(kind="masked", clean_pass=True), tokenizer=_CODES), True),
        (_predictor(transformer=replace(_TRANSFORMER, mixer="gated_delta"), clean_pass=True), False),
        (_predictor(transformer=replace(_TRANSFORMER, sinks=1)), True),
        (_predictor(memory=2), False),
    ],
    ids=["cameras", "proprioception", "codes", "matrices", "sinks", "memory"],
)
def test_every_kind_of_model_is_timed(config: WorldModelConfig, rolls: bool, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "DOUBLED", {name: (1, 2) for name in growth.DOUBLED})
    monkeypatch.setattr(growth, "BASE", {"candidates": 4, "horizon": 2, "tokens": 1, "context": 2})
    monkeypatch.setattr(growth, "CONTEXTS", (2, 12))
    felt = {"observation.state": (("x", "y"), ("px", "px"))}
    camera = tiny.CAMERA if config.tokenizer.cameras == 1 else f"{tiny.CAMERA}+front"
    model = WorldModel(config, Embodiment(camera=camera, action_size=2, readouts=felt)).eval()
    timed = SpeedConfig(num_candidates=[4], context_frames=[2], denoising_steps=[1], horizon=2, repeats=1, grows=True)
    speed = measure_speed(model, timed)
    ways = {"prefilled", "rolled"} if rolls else {"prefilled"}
    assert [set(each) for each in speed["decide"]["seconds"].values()] == [ways] * 2
    assert 1 < speed["memory"]["ratio"] < 1.2
    assert len(pages.growth_sections(speed)) == 3


class _Yes(TorchDispatchMode):
    """Answer whatever is asked of a number that a tensor holds with 1, since tensors of no memory hold none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 1 if func is torch.ops.aten._local_scalar_dense.default else func(*args, **(kwargs or {}))


def test_everything_is_on_the_models_device_and_waited_for(monkeypatch: MonkeyPatch) -> None:
    """Tensors of a GPU without a GPU: they have no numbers, but refuse to be mixed with those of the CPU."""
    monkeypatch.setattr(growth, "DOUBLED", {name: (1, 2) for name in growth.DOUBLED})
    monkeypatch.setattr(growth, "BASE", {"candidates": 4, "horizon": 2, "tokens": 1, "context": 2})
    monkeypatch.setattr(growth, "CONTEXTS", (2, 12))
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    config = SpeedConfig(num_candidates=[4], context_frames=[2], denoising_steps=[1], horizon=2, repeats=1, grows=True)
    with FakeTensorMode(), _Yes():
        with torch.device("cuda"):
            model = WorldModel(tiny.MODEL, Embodiment(camera=tiny.CAMERA, action_size=2)).eval()
        with pytest.raises(RuntimeError, match="two different devices"):
            torch.add(model.action_low, torch.zeros(2))
        speed = measure_speed(model, config)
        with pytest.raises(ValueError, match=r"clock=cpu, which sees no work on cuda:0; use speed\.clock=wall"):
            measure_speed(model, replace(config, clock="cpu"))
    num_runs = 3 + 5 + sum(map(len, growth.DOUBLED.values())) + 4
    assert waited == [torch.device("cuda", 0)] * (2 * num_runs)  # as a run begins, and as it ends
    assert "peak" not in speed["memory"]  # that is of the process


def test_a_page_without_growth_has_none() -> None:
    assert pages.growth_sections({"imagine": [], "matmul_flops": 1e9}) == []
