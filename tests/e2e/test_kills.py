"""A training killed twenty times at random moments ends with bit for bit the weights of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from embodied_wm import cli

KILLS = 20
TRAIN = """
import sys
from pathlib import Path
import tiny
from embodied_wm.data.store import EpisodeStore
from embodied_wm.training.train import train_world_model
from embodied_wm.training.loop import KeepConfig
store = EpisodeStore.open(sys.argv[1])
keep = KeepConfig(save_every_s=0.05, keep_every=40, evaluate_every=40)
config = tiny.training(200, keep=keep, latents="zarr")
print("ready", flush=True)
train_world_model(store, tiny.MODEL, config, Path(sys.argv[2]), seed=3)
"""


def start(store: Path, run_dir: str) -> subprocess.Popen[str]:
    tests = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(store), run_dir],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{Path(cli.__file__).parents[1]}:{tests}", "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_at_random_moments(tiny_store: Path) -> None:
    began = time.monotonic()
    assert start(tiny_store, "whole").wait() == 0
    whole_s = time.monotonic() - began
    chance = random.Random(0)
    kills = 0
    while kills < KILLS:
        process = start(tiny_store, "parts")
        time.sleep(chance.uniform(0, whole_s / 8))
        process.send_signal(signal.SIGKILL)
        ended = process.wait()
        if ended == 0:  # it was done before
            break
        assert ended == -signal.SIGKILL
        kills += 1
    print(f"{kills} kills of a run of {whole_s:.1f} s")
    assert kills == KILLS
    assert start(tiny_store, "parts").wait() == 0
    whole, parts = (load_file(f"{run}/model/model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert Path("whole/metrics.jsonl").read_text() == Path("parts/metrics.jsonl").read_text()
    assert not list(Path("parts").rglob("*.part"))
