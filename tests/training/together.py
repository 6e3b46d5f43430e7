"""What each of several processes does in `test_processes.py`: a small regression by DDP, then a model by FSDP2."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import tiny
import torch
from torch import Tensor, nn

from embodied_wm.data.store import EpisodeStore
from embodied_wm.training.loop import Batch, Conduct, Metrics, Processes, StageConfig, fit, step_generator
from embodied_wm.training.processes import ComputeConfig, leave_processes, start_processes
from embodied_wm.training.train import TrainConfig, train_world_model

NUM_STEPS = 200
BATCH = 8


def regress(run_dir: Path, processes: Processes, batch_size: int) -> None:
    """Fit a network to a function of rows; a batch is the next rows of one endless sequence, shared by the ranks."""
    torch.manual_seed(0)
    modules = nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 1))})

    def rows(number: int) -> Batch:
        first = (number * processes.world_size + processes.rank) * batch_size
        x = torch.stack([torch.randn(4, generator=step_generator(7, row)) for row in range(first, first + batch_size)])
        return {"x": x, "y": x.square().sum(1, keepdim=True)}

    def loss(batch: Batch, _: torch.Generator) -> tuple[Tensor, Metrics]:
        return (modules["net"](batch["x"]) - batch["y"]).square().mean(), {}

    config = StageConfig(num_steps=NUM_STEPS, learning_rate=0.01, ema_decay=0.9)
    fit("net", modules, rows, loss, config, run_dir=run_dir, seed=0, conduct=Conduct(processes=processes))


def compute(sharding: str) -> ComputeConfig:
    return ComputeConfig(sharding=sharding)


def training(num_steps: int, **changes: object) -> TrainConfig:
    """Return a training whose later stages of the predictor leave it as it was, so that its shards are in the model."""
    config = tiny.training(num_steps, **changes)  # type: ignore[arg-type]
    later = {name: replace(getattr(config, name), learning_rate=0.0) for name in ("distillation", "self_forcing")}
    return replace(config, **later)


def main(store: str, run_dir: str, num_steps: int, sharding: str) -> None:
    torch.set_num_threads(1)
    processes = start_processes(compute(sharding))
    regress(Path(run_dir) / "regression", processes, BATCH)
    config = training(num_steps, compute=compute(sharding))
    model = train_world_model(EpisodeStore.open(store), tiny.MODEL, config, Path(run_dir) / "model", seed=3)
    marks = {"fingerprint": model.fingerprint(), "rank": processes.rank, "world_size": processes.world_size}
    Path(run_dir, f"rank{processes.rank}.json").write_text(json.dumps(marks))
    leave_processes()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
