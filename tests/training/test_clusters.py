"""The SLURM script and the sweep, with local processes in the place of a cluster."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$CALLS"
[ -n "$DRY" ] && exit 0
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""


def fake_cluster(folder: Path) -> dict[str, str]:
    """Return the environment of a job of one node whose srun starts what it is given right here."""
    programs = {"srun": SRUN, "scontrol": "#!/usr/bin/env bash\necho 127.0.0.1\necho node2\n"}
    for name, text in programs.items():
        path = folder / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "1",
        "SLURM_JOB_ID": "7",
        "GPUS_PER_NODE": "2",
        "PORT": "29641",
        "CALLS": str(folder / "calls"),
        "DRY": "",
    }


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "scripts/slurm_train.sh")
    return subprocess.run(["bash", script, *arguments], capture_output=True, text=True, timeout=280, env=environment)


def test_a_requeued_job_resumes_and_every_node_meets_at_the_first(tmp_path: Path) -> None:
    environment = fake_cluster(tmp_path) | {"DRY": "yes", "SLURM_NNODES": "2"}
    assert submit(environment, "model=base", "run_dir=here").returncode == 0
    Path("here").mkdir()
    Path("here/config.yaml").write_text("")
    assert submit(environment, "model=base", "run_dir=here").returncode == 0
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert "--nnodes 2 --nproc-per-node 2 --rdzv-id 7" in first
    assert "--rdzv-endpoint 127.0.0.1:29641 -m embodied_wm.cli train model=base run_dir=here" in first
    assert second == f"{first} resume=true"
    refused = submit(environment, "model=base")
    assert refused.returncode == 2
    assert "give run_dir=FOLDER" in refused.stderr


@pytest.mark.slow
def test_the_slurm_script_trains_in_two_processes(tmp_path: Path, tiny_store: Path) -> None:
    environment = fake_cluster(tmp_path)
    arguments = [f"data.path={tiny_store}", "run_dir=run", *tiny.command_line(2)]
    done = submit(environment, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = load_file("run/model/model.safetensors")
    assert submit(environment, *arguments).returncode == 0  # requeued: nothing is left to do
    again = load_file("run/model/model.safetensors")
    assert all((again[name] == weights[name]).all() for name in weights)
    assert Path("run/log.txt").read_text().count("end\n") == 2


@pytest.mark.slow
def test_a_sweep_trains_every_combination(tiny_store: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/sweep.py"), "-m", f"data.path={tiny_store}", "hydra.sweep.dir=sweep"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *tiny.command_line(2), "seed=1,2"], capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for number, seed in enumerate((1, 2)):
        folder = Path(f"sweep/{number}/run")
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == seed
        assert json.loads((folder / "model/config.json").read_text())["card"]["seed"] == seed
