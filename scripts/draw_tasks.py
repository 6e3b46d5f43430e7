"""Draw every task's start (above) and goal (below) side by side: the picture of the tasks in the README.

Example: python scripts/draw_tasks.py sim/assets/tasks.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from sim import get_task, task_names
from sim.manifest import draw_pair

SIZE = 160
GAP = 6
PAIR_SEED = 4


def main() -> None:
    """Render one start and goal of each task and save them as one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="where to save the picture, such as tasks.png")
    columns = []
    path = parser.parse_args().path
    for name in task_names():
        renderer = get_task(name).renderer(SIZE, SIZE)
        start, goal = renderer.render_states(np.stack(draw_pair(name, PAIR_SEED)[:2]))
        renderer.close()
        gap = np.full((GAP, SIZE, 3), 255, dtype=np.uint8)
        columns += [np.concatenate([start, gap, goal]), np.full((2 * SIZE + GAP, GAP, 3), 255, dtype=np.uint8)]
    Image.fromarray(np.concatenate(columns[:-1], axis=1)).save(path, optimize=True)
    print(f"drew {', '.join(task_names())} into {path}")


if __name__ == "__main__":
    main()
