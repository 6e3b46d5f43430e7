"""Several processes: the loss of one with twice the batch, shards that load anywhere, one writer."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import together
import torch
from safetensors.torch import load_file
from torch import nn

from embodied_wm import cli
from embodied_wm.checkpoint import CheckpointError
from embodied_wm.data.store import EpisodeStore
from embodied_wm.training.folder import owned
from embodied_wm.training.frames import FrameBatches, ReadAhead
from embodied_wm.training.processes import ComputeConfig, Processes, choose_device, prepare, start_processes
from embodied_wm.training.state import StageFiles, StageState, TrainingError
from embodied_wm.training.train import STAGES, TrainConfig, train_world_model
from embodied_wm.world_model import WorldModel

NUM_STEPS = 20
TIMEOUT_S = 270
TESTS = Path(__file__).parents[1]


def start(number: int, *arguments: str) -> subprocess.Popen[str]:
    """Start `torchrun --nproc-per-node NUMBER ...`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}:{TESTS / 'training'}", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(number)]
    return subprocess.Popen(
        [*launcher, "--master-port", str(port), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def launch(number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `torchrun --nproc-per-node NUMBER ...` to its end."""
    job = start(number, *arguments)
    try:
        out, errors = job.communicate(timeout=TIMEOUT_S)
    finally:
        job.terminate()  # and with it the processes that it started
    return subprocess.CompletedProcess(arguments, job.returncode, out, errors)


def losses(run_dir: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"], line["loss"]) for line in lines]


def twice_the_batch(config: TrainConfig) -> TrainConfig:
    doubled = {name: dataclasses.replace(getattr(config, name), accumulate=2) for name in STAGES}
    return dataclasses.replace(config, **doubled)


@pytest.fixture(scope="module")
def two(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what two processes did: DDP for small stages, FSDP2 for the predictor."""
    return in_two(tiny_store, tmp_path_factory.mktemp("two"), NUM_STEPS, "fsdp2")


def in_two(store: Path, folder: Path, num_steps: int, sharding: str) -> Path:
    """Train in two processes, and return the folder."""
    done = launch(2, str(TESTS / "training/together.py"), str(store), str(folder), str(num_steps), sharding)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_have_the_loss_of_one_with_twice_the_batch(two: Path, tiny_store: Path, tmp_path: Path) -> None:
    check_against_one(two, tiny_store, tmp_path, NUM_STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_200_steps_of_two_processes_have_the_losses_of_one(tiny_store: Path, tmp_path: Path, sharding: str) -> None:
    check_against_one(in_two(tiny_store, tmp_path / "two", 200, sharding), tiny_store, tmp_path, 200)


def check_against_one(two: Path, tiny_store: Path, tmp_path: Path, num_steps: int) -> None:
    """Train in this process with twice the batch, and compare losses and weights with those of two."""
    together.regress(tmp_path / "regression", Processes(), 2 * together.BATCH)
    one = losses(tmp_path / "regression")
    assert one[-1][:2] == ("net", 200)
    assert one[-1][2] < 0.1 * one[0][2]
    train_world_model(
        EpisodeStore.open(tiny_store),
        tiny.MODEL,
        twice_the_batch(together.training(num_steps)),
        tmp_path / "model",
        seed=3,
    )
    one += losses(tmp_path / "model")
    both = losses(two / "regression") + losses(two / "model")
    assert [row[:2] for row in both] == [row[:2] for row in one]
    assert {row[0] for row in both} == {"net", *STAGES}
    for (stage, step, first), (_, _, second) in zip(one, both, strict=True):
        assert abs(first - second) < 1e-4, (stage, step)
    for name, tensor in load_file(tmp_path / "model/model/model.safetensors").items():
        torch.testing.assert_close(load_file(two / "model/model/model.safetensors")[name], tensor, rtol=1e-3, atol=1e-4)


def test_every_process_ends_with_the_same_model_and_one_of_them_writes(two: Path) -> None:
    marks = [json.loads((two / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [mark["rank"] for mark in marks] == [0, 1]
    assert marks[0]["fingerprint"] == marks[1]["fingerprint"] == tiny.WorldModel.load(two / "model/model").fingerprint()
    steps = [step for stage, step, _ in losses(two / "model") if stage == "tokenizer"]
    assert steps == [20]  # each line once
    stages = two / "model/stages"
    assert sorted(path.name for path in stages.iterdir()) == sorted(
        [f"{name}.safetensors" for name in STAGES if name != "predictor"] + ["predictor.sharded"]
    )
    assert len(list((stages / "predictor.sharded").iterdir())) == 2


def predictor_state(model: WorldModel | None = None, use_ema: bool = True) -> StageState:
    modules = nn.ModuleDict({"predictor": (model or tiny.make_model()).predictor})
    decayed = [p for p in modules.parameters() if p.ndim >= 2]
    others = [p for p in modules.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW([{"params": decayed}, {"params": others}])
    return StageState(modules, optimiser, use_ema)


def test_shards_of_two_processes_load_in_one(two: Path, tmp_path: Path) -> None:
    state = predictor_state()
    StageFiles(two / "model/stages", "predictor", Processes()).load_last(state)
    assert state.step == NUM_STEPS
    assert state.loss_mean > 0
    assert all(float(each["step"]) == NUM_STEPS for each in state.optimiser.state.values())
    assert any(bool(each["exp_avg_sq"].any()) for each in state.optimiser.state.values())
    state.use_ema()
    model = load_file(two / "model/model/model.safetensors")
    for name, tensor in state.modules["predictor"].state_dict().items():
        assert torch.equal(tensor, model[f"predictor.{name}"]), name
    own = StageFiles(tmp_path, "predictor", Processes())
    own.save_last(state)
    again = predictor_state()
    own.load_last(again)
    assert torch.equal(again.parameters[0], state.parameters[0])


def test_shards_that_a_kill_left_beside_are_older_than_what_one_process_saved_since(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "model/stages", tmp_path / "stages")
    (tmp_path / "stages/predictor.sharded").rename(tmp_path / "stages/predictor.before")  # killed while replacing them
    files, state = StageFiles(tmp_path / "stages", "predictor", Processes()), predictor_state()
    files.load_last(state)
    assert state.step == NUM_STEPS
    state.step += 1
    files.save_last(state)
    again = predictor_state()
    files.load_last(again)
    assert again.step == NUM_STEPS + 1


def test_damaged_shards_are_refused(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "model/stages", tmp_path / "stages")
    shard = next((tmp_path / "stages/predictor.sharded").iterdir())
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"predictor.sharded could not be read .* damaged or of another model"):
        StageFiles(tmp_path / "stages", "predictor", Processes()).load_last(predictor_state())
    shard.unlink()
    with pytest.raises((CheckpointError, TrainingError), match=r"damaged or of another|or lacks a file"):
        StageFiles(tmp_path / "stages", "predictor", Processes()).load_last(predictor_state())


def test_shards_of_another_model_are_refused_with_the_tensors_that_differ(two: Path) -> None:
    transformer = dataclasses.replace(tiny.MODEL.predictor.transformer, hidden=40)
    config = dataclasses.replace(
        tiny.MODEL, predictor=dataclasses.replace(tiny.MODEL.predictor, transformer=transformer)
    )
    other = predictor_state(WorldModel(config, tiny.make_model().embodiment))
    with pytest.raises(TrainingError) as caught:
        StageFiles(two / "model/stages", "predictor", Processes()).load_last(other)
    layer = "module.predictor.transformer.layers.0"
    assert "predictor.sharded is of another model, or lacks a file: 2 tensors differ" in str(caught.value)
    assert f"'{layer}.down.weight': it holds (32, 32), this model (32, 40); '{layer}.gate_up" in str(caught.value)
    assert "config.yaml" in str(caught.value)


@pytest.mark.slow
def test_a_sharded_run_goes_on_with_three_processes_and_then_with_one(tiny_store: Path) -> None:
    stages = [f"trainer.{name}.num_steps={20}" for name in STAGES]
    command = ["-m", "embodied_wm.cli", "train", f"data.path={tiny_store}", "run_dir=run", *tiny.command_line(20)]
    command += ["trainer.compute.sharding=fsdp2", *stages]
    assert launch(2, *command).returncode == 0
    before = load_file("run/model/model.safetensors")
    for number in (3, 1):
        again = launch(number, *command, "resume=true")
        assert again.returncode == 0, again.stderr[-3000:]
        after = load_file("run/model/model.safetensors")
        assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("predictor"))


@pytest.mark.slow
def test_a_sharded_run_that_is_taken_back_keeps_its_steps_again(tiny_store: Path) -> None:
    command = ["-m", "embodied_wm.cli", "train", f"data.path={tiny_store}", "run_dir=run", *tiny.command_line(20)]
    command += ["trainer.compute.sharding=fsdp2", "trainer.keep.keep_every=10"]
    assert launch(2, *command).returncode == 0
    before, stages = load_file("run/model/model.safetensors"), Path("run/stages")
    shutil.rmtree(stages / "predictor.sharded")
    shutil.copytree(stages / "predictor.step0000010.sharded", stages / "predictor.sharded")
    again = launch(2, *command, "resume=true")
    assert again.returncode == 0, again.stderr[-3000:]
    after = load_file("run/model/model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("predictor"))
    assert not list(stages.glob("*.part"))


@pytest.mark.slow
def test_sigterm_stops_every_process_at_the_same_step_and_the_run_goes_on(tiny_store: Path) -> None:
    steps = [*tiny.command_line(20), "trainer.predictor.num_steps=100", "trainer.compute.sharding=fsdp2"]
    command = ["-m", "embodied_wm.cli", "train", f"data.path={tiny_store}", *steps]
    assert launch(2, *command, "run_dir=whole").returncode == 0
    job = start(2, *command, "run_dir=parts")
    log = Path("parts/metrics.jsonl")
    deadline_s = time.monotonic() + 200
    while time.monotonic() < deadline_s and not (log.is_file() and '"predictor"' in log.read_text()):
        time.sleep(0.05)
    job.terminate()
    _, errors = job.communicate(timeout=100)
    assert job.returncode != 0
    assert "Stopped by SIGTERM" in errors
    assert not Path("parts/model").exists()
    assert len(list(Path("parts/stages/predictor.sharded").iterdir())) == 2
    resumed = launch(2, *command, "run_dir=parts", "resume=true")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert losses(Path("parts")) == losses(Path("whole"))
    whole, parts = (load_file(f"{run}/model/model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_every_process_ends_where_the_folder_belongs_to_another_run(tiny_store: Path) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("")
    with owned(Path("run")):
        command = ["-m", "embodied_wm.cli", "train", f"data.path={tiny_store}", "run_dir=run", *tiny.command_line()]
        done = launch(2, *command, "resume=true")
    assert done.returncode != 0
    assert "belongs to a run that is going on" in done.stderr
    assert "the main process could not open the run's folder" in done.stderr
    assert Path("run/config.yaml").read_text() == ""


def test_only_training_shares_its_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["collect", "out=x.zarr"]) == 2
    assert "collect runs in one process, and 2 were started" in capsys.readouterr().err.replace("\n", " ")


def test_ranks_share_out_the_frames_of_one_loader(tiny_store: Path) -> None:
    store, size = EpisodeStore.open(tiny_store), 4

    def batches(rank: int, world_size: int, batch_size: int) -> FrameBatches:
        processes = Processes(rank=rank, world_size=world_size)
        return FrameBatches(
            store, tiny.CAMERA, batch_size=batch_size, seed=0, processes=processes, memory_budget_bytes=0
        )

    one = batches(0, 1, 2 * size)
    whole = one.reader(one.loader([0, 1, 2]))
    parts = [each.reader(each.loader([0, 1, 2])) for each in (batches(rank, 2, size) for rank in range(2))]
    for number in (0, 1, 5, 2):
        joined = torch.cat([part(number)["frames"] for part in parts])
        assert torch.equal(joined, whole(number)["frames"])


def test_reading_ahead_gives_each_batch_by_its_number() -> None:
    read: list[int] = []

    def batch(number: int) -> dict[str, torch.Tensor]:
        read.append(number)
        return {"number": torch.tensor(number)}

    ahead = ReadAhead(batch, num_readers=2)
    assert [int(ahead(number)["number"]) for number in (3, 4, 5, 0, 1, 9)] == [3, 4, 5, 0, 1, 9]
    until = time.monotonic() + 60
    while 10 not in read and time.monotonic() < until:  # is prepared before anybody asks
        time.sleep(0.01)
    assert 10 in read


def test_a_process_alone_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = start_processes(ComputeConfig())
    assert (processes.rank, processes.world_size, processes.device.type) == (0, 1, "cpu")
    assert processes.total([1.5, 0.0]) == [1.5, 0.0]
    assert processes.share("x") == "x"
    assert processes.is_main
    assert not processes.is_sharding


def test_readers_are_shared_between_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    each = Processes(config=ComputeConfig(readers=0))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert each.num_readers == 16
    monkeypatch.setattr("os.cpu_count", lambda: 128)
    assert each.num_readers == 16  # each keeps batches in memory
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert each.num_readers == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert each.num_readers == 2
    assert Processes(config=ComputeConfig(readers=3)).num_readers == 3
    with pytest.raises(ValueError, match="readers=-1: expected a number of threads, or 0"):
        ComputeConfig(readers=-1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"precision": "fp8"}, "choose one of auto, fp32, bf16"), ({"sharding": "zero"}, "choose one of ddp, fsdp2")],
)
def test_choices_that_do_not_exist(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ComputeConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        choose_device("gpu")


def test_recomputed_activations_change_no_gradient() -> None:
    gradients: list[list[torch.Tensor]] = []
    for recompute in (False, True):
        model = tiny.make_model()
        prepare(model, Processes(config=ComputeConfig(recompute=recompute)))
        assert model.predictor.transformer.recompute == recompute
        latents = torch.randn(3, 6, 1, 8, generator=torch.Generator().manual_seed(0))
        actions = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(1))
        inputs = model.action_inputs(actions)
        loss, _ = model.predictor.loss(latents, inputs, torch.Generator().manual_seed(2))
        loss.backward()
        gradients.append([p.grad for p in model.predictor.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # a norm is slower so, not wrong
def test_mixed_precision_trains_on_what_it_says(tmp_path: Path, tiny_store: Path) -> None:
    store = EpisodeStore.open(tiny_store)
    results = {}
    for precision in ("fp32", "auto", "bf16"):
        config = tiny.training(2, compute=ComputeConfig(precision=precision))  # type: ignore[arg-type]
        train_world_model(store, tiny.MODEL, config, tmp_path / precision, seed=0)
        results[precision] = load_file(tmp_path / precision / "model/model.safetensors")
    same = {key: torch.equal(tensor, results["auto"][key]) for key, tensor in results["fp32"].items()}
    assert all(same.values())  # a CPU's own precision
    other = results["bf16"]
    assert all(tensor.dtype == torch.float32 for tensor in other.values())
    assert not all(torch.equal(tensor, other[key]) for key, tensor in results["fp32"].items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's own code, while it compiles
def test_compiled_networks_have_the_same_loss(tmp_path: Path, tiny_store: Path) -> None:
    store = EpisodeStore.open(tiny_store)
    for compiled in (False, True):
        config = tiny.training(20, compute=ComputeConfig(compile=compiled))  # type: ignore[arg-type]
        train_world_model(store, tiny.MODEL, config, tmp_path / str(compiled), seed=0)
    for (stage, step, first), (_, _, second) in zip(losses(tmp_path / "False"), losses(tmp_path / "True"), strict=True):
        assert abs(first - second) < 1e-3 * max(1, abs(first)), (stage, step)
