"""A run is never lost: what is kept beside the last state, spikes, SIGTERM, locks, vanished data, schedules."""

import json
import math
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_training import batch_of, network, run, same
from torch import Tensor, nn

from embodied_wm.data.layout import StoreError
from embodied_wm.data.store import EpisodeStore
from embodied_wm.tokenizer.frames import FrameTokenizer
from embodied_wm.tokenizer.plannable import PlannableConfig
from embodied_wm.training import loop
from embodied_wm.training.folder import owned
from embodied_wm.training.interrupts import Terminated
from embodied_wm.training.loop import Batch, KeepConfig, Metrics, StageConfig, TrainingError, fit
from embodied_wm.training.together import RobotStore, train_together
from embodied_wm.training.train import train_world_model


def test_constant_then_decay_warms_up_stays_and_comes_down() -> None:
    config = StageConfig(
        num_steps=100, learning_rate=1.0, warmup_steps=10, schedule="constant_then_decay", decay_fraction=0.2
    )
    rates = [loop.learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10:81] == pytest.approx([1.0] * 71)
    assert rates[81:] == pytest.approx([0.05 + 0.95 * (100 - step) / 20 for step in range(81, 100)])
    longer = StageConfig(
        num_steps=300, learning_rate=1.0, warmup_steps=10, schedule="constant_then_decay", decay_fraction=0.2
    )
    assert [loop.learning_rate(longer, step) for step in range(80)] == rates[:80]  # prolonged, it is the same run
    with pytest.raises(ValueError, match="choose one of cosine, constant_then_decay"):
        StageConfig(schedule="linear")


def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path: Path) -> None:
    def large(step: int) -> Batch:
        halves = [batch_of(2 * step), batch_of(2 * step + 1)]
        return {key: torch.cat([half[key] for half in halves]) for key in halves[0]}

    weights: list[dict[str, Tensor]] = []
    for name, batches, accumulate in (("halves", batch_of, 2), ("large", large, 1)):
        modules = network()
        config = StageConfig(num_steps=24, learning_rate=0.05, warmup_steps=3, accumulate=accumulate)

        def loss(batch: Batch, _: torch.Generator, modules: nn.ModuleDict = modules) -> tuple[Tensor, Metrics]:
            return (modules["net"](batch["x"]) - batch["y"]).square().mean(), {}

        fit("stage", modules, batches, loss, config, run_dir=tmp_path / name, seed=1)
        weights.append(modules.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-5)


def test_sigterm_amid_an_update_saves_and_stops_as_ctrl_c_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    original, count = torch.optim.AdamW.step, 0

    def terminated(self: torch.optim.AdamW) -> None:
        nonlocal count
        count += 1
        if count == 9:
            signal.raise_signal(signal.SIGTERM)
        original(self)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", terminated)
        with pytest.raises(Terminated, match="SIGTERM"):
            run(tmp_path / "parts")
    assert signal.getsignal(signal.SIGTERM) == before
    assert int(load_file(tmp_path / "parts/stages/stage.safetensors")["step"]) == 9
    assert same(run(tmp_path / "parts").state_dict(), whole.state_dict())


def test_states_are_kept_every_so_many_steps_and_lead_back(tmp_path: Path) -> None:
    whole = run(tmp_path, keep=KeepConfig(keep_every=10))
    stages = tmp_path / "stages"
    assert sorted(path.name for path in stages.iterdir()) == [
        "stage.safetensors",
        "stage.step0000010.safetensors",
        "stage.step0000020.safetensors",
    ]
    assert int(load_file(stages / "stage.step0000010.safetensors")["step"]) == 10
    shutil.copyfile(stages / "stage.step0000010.safetensors", stages / "stage.safetensors")
    assert same(run(tmp_path, seed=99).state_dict(), whole.state_dict())


def held_out(number: int) -> Batch:
    return batch_of(1000 + number)


def test_the_best_weights_are_those_with_the_lowest_held_out_loss(tmp_path: Path) -> None:
    config = StageConfig(num_steps=40, learning_rate=0.05, warmup_steps=3)

    def spoilt(step: int) -> Batch:  # from step 20 on training makes the network worse
        batch = batch_of(step)
        return batch if step < 20 else batch | {"y": -batch["y"]}

    keep = KeepConfig(evaluate_every=5, num_held_out=2, final="best")
    last = run(tmp_path / "last", config=config, batches=spoilt)
    best = run(tmp_path / "best", config=config, batches=spoilt, keep=keep, held_out=held_out)
    lines = [json.loads(line) for line in (tmp_path / "best/metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["held_out_loss"] for line in lines}
    assert list(losses) == list(range(5, 41, 5))
    assert min(losses, key=losses.__getitem__) == 20
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "until", config=config, batches=lambda step: spoilt(step) if step < 20 else interrupt())
    saved = load_file(tmp_path / "until/stages/stage.safetensors")
    assert all(torch.equal(tensor, saved[f"module.{name}"]) for name, tensor in best.state_dict().items())
    assert not same(best.state_dict(), last.state_dict())
    assert same(load_file(tmp_path / "best/stages/stage.best.safetensors"), dict(best.state_dict()))


def test_a_stage_too_short_to_be_measured_ends_with_its_averaged_weights(tmp_path: Path) -> None:
    config = StageConfig(num_steps=24, learning_rate=0.05, warmup_steps=3, ema_decay=0.9)
    averaged = run(tmp_path / "last", config=config)
    keep = KeepConfig(evaluate_every=50, final="best")
    assert same(run(tmp_path / "best", config=config, keep=keep, held_out=held_out).state_dict(), averaged.state_dict())


def interrupt() -> Batch:
    raise KeyboardInterrupt


def test_measuring_the_held_out_loss_changes_nothing(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    watched = run(tmp_path / "watched", keep=KeepConfig(evaluate_every=5, num_held_out=2), held_out=held_out)
    assert same(plain.state_dict(), watched.state_dict())


def test_measuring_teaches_the_tokenizer_nothing_of_the_held_out_states(tmp_path: Path, tiny_store: Path) -> None:
    plannable = PlannableConfig(state_weight=1.0, state="observation.state")
    config = replace(tiny.training(3), plannable=plannable)
    found: list[str] = []
    for name, keep in (("plain", KeepConfig()), ("watched", KeepConfig(evaluate_every=2, num_held_out=1))):
        given = (EpisodeStore.open(tiny_store), tiny.MODEL, replace(config, keep=keep), tmp_path / name)
        found.append(train_world_model(*given, seed=0, stages=["tokenizer"]).fingerprint())
    assert found[0] == found[1]


@pytest.mark.parametrize("max_spikes", [2, 1])
def test_spikes_are_left_out_counted_and_stop_training_past_a_bound(tmp_path: Path, max_spikes: int) -> None:
    config = StageConfig(num_steps=80, learning_rate=0.01, warmup_steps=3)
    spikes = (60, 70)

    def batches(step: int) -> Batch:
        batch = batch_of(step)
        return {"x": batch["x"], "y": batch["y"] + 1e4 * (step in spikes)}

    keep = KeepConfig(max_spikes=max_spikes)
    if max_spikes == 1:
        with pytest.raises(TrainingError, match=r"jumped above 20 times its mean 2 times .* up to step 71"):
            run(tmp_path, config=config, batches=batches, keep=keep)
        assert int(load_file(tmp_path / "stages/stage.safetensors")["step"]) == 71
        return
    run(tmp_path, config=config, batches=batches, keep=keep)
    saved = load_file(tmp_path / "stages/stage.safetensors")
    assert int(saved["num_skipped"]) == 2
    assert max(float(tensor.abs().max()) for name, tensor in saved.items() if name.startswith("module.")) < 5
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped"] == 2
    assert last["loss"] < 100
    through = run(tmp_path / "through", config=config, batches=batches, keep=KeepConfig(spike_factor=0))
    assert not same(through.state_dict(), load_file(tmp_path / "stages/stage.safetensors"))


def test_a_spike_before_a_stop_is_remembered(tmp_path: Path) -> None:
    config = StageConfig(num_steps=80, learning_rate=0.01, warmup_steps=3)

    def batches(step: int, stop_at: int = -1) -> Batch:
        if step == stop_at:
            raise KeyboardInterrupt
        batch = batch_of(step)
        return {"x": batch["x"], "y": batch["y"] + 1e4 * (step in (60, 70))}

    whole = run(tmp_path / "whole", config=config, batches=batches)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", config=config, batches=lambda step: batches(step, 65))
    assert same(run(tmp_path / "parts", config=config, batches=batches).state_dict(), whole.state_dict())
    files = [load_file(tmp_path / each / "stages/stage.safetensors") for each in ("whole", "parts")]
    assert same(*files)
    assert math.isfinite(float(files[0]["loss_mean"]))


def test_a_state_of_an_earlier_release_without_counts_is_resumed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    whole = run(tmp_path / "whole")

    def interrupted(step: int) -> Batch:
        if step == 10:
            raise KeyboardInterrupt
        return batch_of(step)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", batches=interrupted)
    path = tmp_path / "parts/stages/stage.safetensors"
    kept = {key: value for key, value in load_file(path).items() if key not in ("loss_mean", "num_skipped", "best")}
    save_file(kept, path)
    assert same(run(tmp_path / "parts").state_dict(), whole.state_dict())


@pytest.mark.parametrize("error", [StoreError("array 'action' is missing"), FileNotFoundError("gone")])
def test_data_that_vanish_leave_the_steps_before_and_a_word_on_what_to_do(tmp_path: Path, error: Exception) -> None:
    def batches(step: int) -> Batch:
        if step == 7:
            raise error
        return batch_of(step)

    with pytest.raises(TrainingError, match=r"data of stage could not be read at step 7.*resume=true"):
        run(tmp_path, batches=batches)
    assert int(load_file(tmp_path / "stages/stage.safetensors")["step"]) == 7
    assert same(run(tmp_path).state_dict(), run(tmp_path / "whole").state_dict())


def test_a_store_deleted_amid_training(tmp_path: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "s.zarr"))
    original = loop.step_generator

    def deletes(seed: int, step: int) -> torch.Generator:
        if step == 2:
            shutil.rmtree(store, ignore_errors=True)
        return original(seed, step)

    monkeypatch.setattr(loop, "step_generator", deletes)
    config = tiny.training(12, memory_budget_mb=0)
    with pytest.raises(TrainingError, match=r"data of tokenizer could not be read at step \d+: .*s.zarr.*resume=true"):
        train_world_model(EpisodeStore.open(store), tiny.MODEL, config, tmp_path / "run", seed=0)
    assert int(load_file(tmp_path / "run/stages/tokenizer.safetensors")["step"]) > 0


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("latents", ["memory", "zarr", "online"])
def test_a_store_deleted_between_two_stages(
    tmp_path: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch, latents: str, together: bool
) -> None:
    path = Path(shutil.copytree(tiny_store, tmp_path / "s.zarr"))
    store, config = EpisodeStore.open(path), tiny.training(2, latents=latents)  # type: ignore[arg-type]
    train, data = (train_together, {"dot": RobotStore(store=store)}) if together else (train_world_model, store)
    original = FrameTokenizer.fit_statistics

    def deletes(self: FrameTokenizer, frames: Tensor) -> None:
        original(self, frames)
        shutil.rmtree(path / tiny.CAMERA)

    monkeypatch.setattr(FrameTokenizer, "fit_statistics", deletes)
    with pytest.raises(TrainingError, match=r"data of latent_actions could not be read.*s.zarr.*resume=true"):
        train(data, tiny.MODEL, config, tmp_path / "run", seed=0)  # type: ignore[arg-type]
    assert int(load_file(tmp_path / "run/stages/tokenizer.safetensors")["step"]) == 2


def test_a_run_folder_that_cannot_be_written(tmp_path: Path, tiny_store: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingError, match=r"run folder .*file/run cannot be written.*another run_dir"):
        train_world_model(EpisodeStore.open(tiny_store), tiny.MODEL, tiny.training(), tmp_path / "file" / "run", seed=0)


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path) -> None:
    words = rf"belongs to a run that is going on \(process {os.getpid()} on "
    with ThreadPoolExecutor(1) as others:
        another = owned(tmp_path)
        others.submit(another.__enter__).result()
        with pytest.raises(TrainingError, match=words), owned(tmp_path):
            pass
        others.submit(another.__exit__, None, None, None).result()
    with owned(tmp_path):  # the lock went with its holder
        pass


def test_a_training_in_a_run_of_its_own_shares_the_lock(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as others, owned(tmp_path):
        with owned(tmp_path / "sub" / ".."):
            pass
        with pytest.raises(TrainingError, match="belongs to a run"):  # what came inside left the lock where it was
            others.submit(owned(tmp_path).__enter__).result()


def test_only_weights_that_are_measured_can_be_the_best() -> None:
    with pytest.raises(ValueError, match="set evaluate_every"):
        KeepConfig(final="best")
