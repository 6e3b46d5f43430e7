"""Plan with stable-worldmodel's LeWM, at its reference sizes, whenever asked; the other end of `bench_peers.py`.

Runs in the peer's own environment and imports nothing of this project. Reads a line, plans once, prints one JSON line:
{"wall": seconds, "cpu": seconds, "candidate_steps": samples x iterations x horizon}. Weights are random, as the time
does not depend on them: ViT-tiny at 224 pixels, patches of 14; 6 layers of 16 heads; horizon 5, five actions a step.
"""

import argparse
import contextlib
import io
import json
import sys
import time
from types import SimpleNamespace

import gymnasium
import numpy as np
import torch
from stable_worldmodel.solver import CEMSolver  # pyright: ignore[reportMissingImports]
from stable_worldmodel.wm.lewm.lewm import LeWM  # pyright: ignore[reportMissingImports]
from stable_worldmodel.wm.lewm.module import MLP, Embedder, Predictor  # pyright: ignore[reportMissingImports]
from transformers import ViTConfig, ViTModel  # pyright: ignore[reportMissingImports]

WIDTH, PIXELS, HORIZON, ACTIONS, BLOCK, HISTORY = 192, 224, 5, 2, 5, 3


def build() -> LeWM:
    """Return the model with random weights."""
    vit = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=4 * WIDTH,
        image_size=PIXELS,
        patch_size=14,
    )
    predictor = Predictor(
        num_frames=HISTORY, depth=6, heads=16, mlp_dim=2048, input_dim=WIDTH, hidden_dim=WIDTH, output_dim=WIDTH,
        dim_head=64,
    )  # fmt: skip
    projectors = [MLP(WIDTH, 2048, WIDTH, norm_fn=torch.nn.BatchNorm1d) for _ in range(2)]
    embedder = Embedder(input_dim=ACTIONS * BLOCK, smoothed_dim=10, emb_dim=WIDTH)
    encoder = ViTModel(vit, add_pooling_layer=False)
    return LeWM(encoder, predictor, embedder, projector=projectors[0], pred_proj=projectors[1]).eval()


def main() -> None:
    """Answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    solver = CEMSolver(
        build(), batch_size=1, num_samples=options.samples, n_steps=options.iterations, topk=options.samples // 10
    )
    solver.configure(
        action_space=gymnasium.spaces.Box(-1, 1, (1, ACTIONS), np.float32),
        n_envs=1,
        config=SimpleNamespace(horizon=HORIZON, action_block=BLOCK, receding_horizon=HORIZON),
    )
    shape = (1, 1, 3, PIXELS, PIXELS)
    for _ in sys.stdin:
        info = {"pixels": torch.rand(shape), "goal": torch.rand(shape), "action": torch.zeros(1, 1, ACTIONS * BLOCK)}
        wall, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            solver.solve(info)
        steps = options.samples * options.iterations * HORIZON
        found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "candidate_steps": steps}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
