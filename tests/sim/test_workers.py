"""Workers end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from sim.workers import end_with_parent
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer={initializer}) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


def outlives_its_parent(folder: Path, initializer: str) -> bool:
    """Kill the parent of a worker; tell whether the worker is there two seconds later, and end it."""
    script = folder / "parent.py"
    script.write_text(PARENT.format(initializer=initializer))
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(40):
        time.sleep(0.05)
        status = Path(f"/proc/{worker}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return False
    os.kill(worker, signal.SIGKILL)
    return True


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    assert not outlives_its_parent(tmp_path, "end_with_parent")


def test_without_it_the_worker_would_stay(tmp_path: Path) -> None:
    assert outlives_its_parent(tmp_path, "None")
