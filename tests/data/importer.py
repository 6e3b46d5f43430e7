"""Import a folder, one episode a commit, saying after each how far it is: to be killed, or to meet a full disk."""

import resource
import sys
import time
from pathlib import Path

from embodied_wm.data.lerobot import episodes, import_lerobot


def say(done: int, total: int) -> None:
    """Print the rows done, and be slow enough to be stopped."""
    print(done, flush=True)
    time.sleep(0.02)


if __name__ == "__main__":
    source, out, *limit = sys.argv[1:]
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit[0]), resource.RLIM_INFINITY))
    episodes.GROUP_BYTES = 1
    import_lerobot(Path(source), Path(out), progress=say)
