"""The training loop and the stages: resuming bit for bit, interruptions, bad losses, learning."""

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from embodied_wm.checkpoint import CheckpointError
from embodied_wm.data.layout import StoreError
from embodied_wm.data.store import EpisodeStore
from embodied_wm.training import loop
from embodied_wm.training.loop import Batch, Conduct, KeepConfig, Metrics, StageConfig, TrainingError, fit
from embodied_wm.training.train import STAGES, train_world_model

CONFIG = StageConfig(num_steps=24, learning_rate=0.05, warmup_steps=3, ema_decay=0.9)


def network(seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({"net": nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))})


def batch_of(step: int) -> Batch:
    x = torch.randn(16, 3, generator=loop.step_generator(5, step))
    return {"x": x, "y": x.sum(1, keepdim=True)}


def loss_of(modules: nn.ModuleDict) -> Callable[[Batch, torch.Generator], tuple[Tensor, Metrics]]:
    def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        noisy = batch["x"] + 0.01 * torch.randn(batch["x"].shape, generator=generator)
        return (modules["net"](noisy) - batch["y"]).square().mean(), {}

    return loss


def run(
    folder: Path,
    *,
    config: StageConfig = CONFIG,
    batches: Callable[[int], Batch] = batch_of,
    seed: int = 0,
    keep: KeepConfig | None = None,
    held_out: Callable[[int], Batch] | None = None,
) -> nn.ModuleDict:
    modules = network(seed)
    conduct = Conduct(keep=keep or KeepConfig())
    fit(
        "stage",
        modules,
        batches,
        loss_of(modules),
        config,
        run_dir=folder,
        seed=1,
        held_out_of=held_out,
        conduct=conduct,
    )
    return modules


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_loop_learns_and_its_rate_warms_up_and_decays(tmp_path: Path) -> None:
    modules = network()
    fit(
        "stage",
        modules,
        batch_of,
        loss_of(modules),
        StageConfig(num_steps=300, learning_rate=0.02),
        run_dir=tmp_path,
        seed=0,
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20, 301, 20))
    assert lines[-1]["loss"] < 0.02 * lines[0]["loss"]
    rates = [loop.learning_rate(CONFIG, step) for step in range(24)]
    assert max(rates) == rates[2] == pytest.approx(0.05)
    assert rates[0] < rates[1] < rates[2] > rates[12] > rates[23] > 0.05 * 0.05


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("stop", [0, 1, 7, 23])
def test_interrupted_and_resumed_is_bitwise_what_was_never_stopped(tmp_path: Path, stop: int, ema_decay: float) -> None:
    config = StageConfig(num_steps=24, learning_rate=0.05, warmup_steps=3, ema_decay=ema_decay)
    whole = run(tmp_path / "whole", config=config)

    def interrupted(step: int) -> Batch:
        if step == stop:
            raise KeyboardInterrupt
        return batch_of(step)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", config=config, batches=interrupted)
    assert int(load_file(tmp_path / "parts/stages/stage.safetensors")["step"]) == stop
    resumed = run(tmp_path / "parts", config=config, seed=99)  # other first weights: all must come from the file
    assert same(resumed.state_dict(), whole.state_dict())
    files = [load_file(tmp_path / each / "stages/stage.safetensors") for each in ("parts", "whole")]
    assert same(*files)
    assert any(name.startswith("optimiser.") for name in files[0])
    assert any(name.startswith("ema.") for name in files[0]) == (ema_decay > 0)
    assert (tmp_path / "parts/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_ctrl_c_amid_an_update_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    original = torch.optim.AdamW.step
    count = 0

    def pressed(self: torch.optim.AdamW) -> None:
        nonlocal count
        count += 1
        if count == 9:
            signal.raise_signal(signal.SIGINT)
        original(self)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", pressed)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "parts")
    finally:
        signal.signal(signal.SIGINT, before)
    assert int(load_file(tmp_path / "parts/stages/stage.safetensors")["step"]) == 9
    assert same(run(tmp_path / "parts").state_dict(), whole.state_dict())


@pytest.mark.parametrize("amid", ["update", "measurement", "vanished data"])
def test_a_step_that_is_done_is_measured_and_logged_whatever_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amid: str
) -> None:
    """The best weights, and what is in the log, are those of a run that nobody stopped."""
    keep, measured = KeepConfig(evaluate_every=4, num_held_out=2, final="best", save_every_s=0.0), 0

    def held_out(step: int) -> Batch:
        return batch_of(1000 + step)

    def stopped(step: int) -> Batch:
        nonlocal measured
        measured += 1
        if measured == 10 and amid == "vanished data":
            raise StoreError("gone")
        if measured == 10 and amid == "measurement":
            signal.raise_signal(signal.SIGINT)
        return held_out(step)

    def pressed(self: torch.optim.AdamW) -> None:
        nonlocal updates
        updates += 1
        if updates == 20 and amid == "update":
            signal.raise_signal(signal.SIGINT)
        original(self)

    original, updates = torch.optim.AdamW.step, 0
    whole = run(tmp_path / "whole", keep=keep, held_out=held_out)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", pressed)
            with pytest.raises(TrainingError if amid == "vanished data" else KeyboardInterrupt):
                run(tmp_path / "parts", keep=keep, held_out=stopped)
    finally:
        signal.signal(signal.SIGINT, before)
    assert same(run(tmp_path / "parts", keep=keep, held_out=held_out).state_dict(), whole.state_dict())
    assert (tmp_path / "parts/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_an_update_that_an_error_left_half_done_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    count = 0

    def half_done(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == 9:
            raise KeyboardInterrupt

    original = torch.optim.AdamW.step
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda self: (original(self), half_done())[0])
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", keep=KeepConfig(save_every_s=0.0))
    assert int(load_file(tmp_path / "parts/stages/stage.safetensors")["step"]) == 8
    assert same(run(tmp_path / "parts").state_dict(), whole.state_dict())


def test_a_kill_leaves_the_log_without_doubles_and_without_half_a_line(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")

    def interrupted(step: int) -> Batch:
        if step == 19:
            raise KeyboardInterrupt
        return batch_of(step)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", batches=interrupted)
    with (tmp_path / "parts/metrics.jsonl").open("a") as log:  # logged after the last save, and cut short
        log.write('{"stage": "stage", "step": 20, "loss": 9.0}\n{"stage": "stage", "st')
    assert same(run(tmp_path / "parts").state_dict(), whole.state_dict())
    assert (tmp_path / "parts/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("accumulate", "number"), [(1, 5), (3, 15), (3, 17)])
def test_a_loss_that_is_not_finite_stops_keeps_the_batch_and_the_weights_before(
    tmp_path: Path, bad: float, accumulate: int, number: int
) -> None:
    config = replace(CONFIG, accumulate=accumulate)

    def batches(index: int) -> Batch:
        batch = batch_of(index)
        if index == number:
            batch["x"][3, 1] = bad
        return batch

    with pytest.raises(TrainingError, match=r"(?s)loss became \S+ .* at step 5.*bad_batch.*learning_rate \(now 0.05\)"):
        run(tmp_path, config=config, batches=batches)
    kept = load_file(tmp_path / "stages/stage.bad_batch.safetensors")
    assert not torch.isfinite(kept["x"][3, 1])
    assert torch.equal(kept["y"], batch_of(number)["y"])
    saved = load_file(tmp_path / "stages/stage.safetensors")
    assert int(saved["step"]) == 5
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    whole = run(tmp_path / "whole", config=config)
    assert same(run(tmp_path, config=config).state_dict(), whole.state_dict())  # mended data: it goes on


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    modules = network()

    def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        return torch.sqrt((modules["net"](batch["x"]) * 0).square().sum()), {}  # 0, with gradient 0 / 0

    with pytest.raises(TrainingError, match="gradient norm nan"):
        fit("stage", modules, batch_of, loss, CONFIG, run_dir=tmp_path, seed=0)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "stages/stage.safetensors").values())


def test_a_saved_stage_of_another_model_or_damaged_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    other = nn.ModuleDict({"net": nn.Linear(4, 1)})
    with pytest.raises(TrainingError, match=r"another model.*'module.net.0.bias'.*config.yaml"):
        fit("stage", other, batch_of, loss_of(other), CONFIG, run_dir=tmp_path, seed=1)
    saved = tmp_path / "stages/stage.safetensors"
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"stage.safetensors is damaged"):
        run(tmp_path)


def test_every_stage_trains_two_steps_and_resumes_bitwise(tmp_path: Path, tiny_store: Path) -> None:
    store = EpisodeStore.open(tiny_store)
    whole = train_world_model(store, tiny.MODEL, tiny.training(2), tmp_path / "whole", seed=3)
    assert list(whole.card["metrics"]) == list(STAGES)
    for name in STAGES:
        assert int(load_file(tmp_path / f"whole/stages/{name}.safetensors")["step"]) == 2
    again = train_world_model(store, tiny.MODEL, tiny.training(2), tmp_path / "again", seed=3)
    assert same(again.state_dict(), whole.state_dict())
    other = train_world_model(store, tiny.MODEL, tiny.training(2), tmp_path / "other", seed=4)
    assert not same(other.state_dict(), whole.state_dict())
    for name in STAGES[2:]:  # as if killed before the third stage was first saved
        (tmp_path / f"again/stages/{name}.safetensors").unlink()
    resumed = train_world_model(store, tiny.MODEL, tiny.training(2), tmp_path / "again", seed=3)
    assert same(resumed.state_dict(), whole.state_dict())
    assert not (tmp_path / "again/model/model.safetensors.part").exists()
    assert same(load_file(tmp_path / "again/model/model.safetensors"), whole.state_dict())


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_interrupted_and_resumed_is_bitwise_the_same(
    tmp_path: Path, tiny_store: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EpisodeStore.open(tiny_store)
    whole = train_world_model(store, tiny.MODEL, tiny.training(2), tmp_path / "whole", seed=3)
    original = loop.step_generator

    def interrupt_second_step(seed: int, step: int) -> torch.Generator:
        if step == 1 and (tmp_path / "parts/stages").is_dir() and reached(stage, tmp_path / "parts"):
            raise KeyboardInterrupt
        return original(seed, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step_generator", interrupt_second_step)
        with pytest.raises(KeyboardInterrupt):
            train_world_model(store, tiny.MODEL, tiny.training(2), tmp_path / "parts", seed=3)
    assert not (tmp_path / "parts/model").exists()
    assert int(load_file(tmp_path / f"parts/stages/{stage}.safetensors")["step"]) == 1
    resumed = train_world_model(store, tiny.MODEL, tiny.training(2), tmp_path / "parts", seed=3)
    assert same(resumed.state_dict(), whole.state_dict())


def reached(stage: str, folder: Path) -> bool:
    """Tell whether every stage before this one is done."""
    return all((folder / f"stages/{name}.safetensors").is_file() for name in STAGES[: STAGES.index(stage)])


def test_stages_that_do_not_exist_are_refused_with_those_that_do(tmp_path: Path, tiny_store: Path) -> None:
    with pytest.raises(ValueError, match=f"unknown training stage 'actor'; choose from: {', '.join(STAGES)}"):
        train_world_model(
            EpisodeStore.open(tiny_store), tiny.MODEL, tiny.training(), tmp_path, seed=0, stages=["actor"]
        )
    assert not list(tmp_path.iterdir())


def test_left_out_stages_keep_the_weights_they_start_from(tmp_path: Path, tiny_store: Path) -> None:
    first = tiny.make_model()
    model = train_world_model(
        EpisodeStore.open(tiny_store),
        tiny.MODEL,
        tiny.training(),
        tmp_path,
        seed=0,
        stages=["adapter", "predictor", "readouts"],
        start_from=first,
    )
    for part in ("tokenizer", "latent_actions"):
        assert same(getattr(model, part).state_dict(), getattr(first, part).state_dict())
    assert not same(model.predictor.state_dict(), first.predictor.state_dict())


def test_an_action_that_rests_where_labels_are_is_not_blown_up_elsewhere(tmp_path: Path) -> None:
    """A gripper that the labelled episodes never close closes in one that is held out, and by its own size."""
    episodes = [tiny.episode(seed) for seed in range(4)]
    for place, each in enumerate(episodes):
        each.features["action"][:, 1] = 0.5 if place == 3 else 0.3
    store = EpisodeStore.open(tiny.write_store(tmp_path / "rests.zarr", episodes))
    model = train_world_model(store, tiny.MODEL, tiny.training(2), tmp_path / "run", seed=0)
    told = model.normalized(torch.tensor([0.0, 0.5]))
    assert told[1] == pytest.approx(0.2)
    assert model.action_low[1] == model.action_high[1] == pytest.approx(0.3)


def test_one_batch_overfits_the_predictor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny.WorldModel(tiny.MODEL, tiny.make_model().embodiment)
    latents = torch.randn(4, 6, 1, 8, generator=torch.Generator().manual_seed(0)).cumsum(1) / 2
    actions = torch.rand(4, 6, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    batch = {"latents": latents, "actions": actions}

    def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        return model.predictor.loss(batch["latents"], model.action_inputs(batch["actions"]), generator)

    def mean_loss() -> float:
        with torch.no_grad():
            return float(
                np.mean([float(loss(batch, torch.Generator().manual_seed(1000 + seed))[0]) for seed in range(20)])
            )

    before = mean_loss()
    config = StageConfig(num_steps=250, learning_rate=1e-2)
    fit(
        "predictor",
        nn.ModuleDict({"predictor": model.predictor}),
        lambda _: batch,
        loss,
        config,
        run_dir=tmp_path,
        seed=0,
    )
    assert mean_loss() < before / 10
