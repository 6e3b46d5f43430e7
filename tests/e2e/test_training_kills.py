"""A training killed twenty times at random moments ends with bit for bit the weights of one that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from embodied_wm import cli

KILLS = 20
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import tiny
from embodied_wm.data.store import EpisodeStore
from embodied_wm.training.train import train_world_model
from embodied_wm.training.loop import KeepConfig

def start(run_dir):
    pid = os.fork()  # after the imports, before any thread: a start costs no seconds
    if pid:
        return pid
    keep = KeepConfig(save_every_s=0.02, keep_every=40, evaluate_every=40)
    config = tiny.training(120, keep=keep, latents="zarr")
    train_world_model(EpisodeStore.open(sys.argv[1]), tiny.MODEL, config, Path(run_dir), seed=3)
    os._exit(0)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

began = time.monotonic()
assert ended(start("whole")) == 0
whole_s = time.monotonic() - began
chance = random.Random(int(sys.argv[3]))
places = []
for _ in range(int(sys.argv[2])):
    pid = start("parts")
    time.sleep(chance.uniform(0, whole_s / 12))  # in the mean they reach five sixths of the run
    os.kill(pid, signal.SIGKILL)
    code = ended(pid)
    if code == 0:  # it was done before
        break
    assert code == -signal.SIGKILL, code
    log = Path("parts/metrics.jsonl")
    lines = log.read_text().splitlines() if log.is_file() else []
    places.append([json.loads(line)["stage"] for line in lines if line.endswith("}")][-1:] or ["before the first log"])
assert ended(start("parts")) == 0
print(json.dumps({"kills": len(places), "whole_s": whole_s, "places": [place[0] for place in places]}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_at_random_moments(tiny_store: Path) -> None:
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_store), str(KILLS), "0"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{Path(cli.__file__).parents[1]}:{tests}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["kills"] == KILLS
    assert len(set(told["places"])) >= 3  # in several stages
    whole, parts = (load_file(f"{run}/model/model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert Path("whole/metrics.jsonl").read_text() == Path("parts/metrics.jsonl").read_text()
