"""Imagine with lucidrains' dreamer4, whenever asked; the other end of `bench_peers.py`.

Runs in the peer's own environment and imports nothing of this project. Reads a line, imagines once, prints one JSON
line: {"wall": seconds, "cpu": seconds, "candidate_steps": samples x horizon}.

`DynamicsWorldModel.generate` with its time cache, from latents and given actions: nothing is decoded, and no reward,
action or value is predicted. Weights are random. Sizes are as near to our nano model as its parameters allow, in its
favour where they differ: width 128, two layers, one over space and one over time, four heads of 32, one latent token
of 32 channels, one spatial token, no registers, no attention pools over the layers. It denoises in two steps, the
fewest that it accepts, and takes a third pass per frame to write its cache.
"""

import argparse
import json
import sys
import time

import torch
from dreamer4 import DynamicsWorldModel  # pyright: ignore[reportMissingImports]

WIDTH, TOKENS, CHANNELS, ACTIONS = 128, 1, 32, 2
NUM_STEPS = 2


def build() -> DynamicsWorldModel:
    """Return the model with random weights."""
    return DynamicsWorldModel(
        dim=WIDTH,
        dim_latent=CHANNELS,
        num_latent_tokens=TOKENS,
        num_spatial_tokens=TOKENS,
        num_register_tokens=0,
        num_continuous_actions=ACTIONS,
        predict_terminals=False,
        depth=2,
        time_block_every=2,
        attn_heads=4,
        attn_dim_head=32,
        transformer_kwargs={"use_attn_pool": False},
    ).eval()


@torch.no_grad()
def main() -> None:
    """Answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument("--context", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build()
    frames = options.context + options.horizon
    for _ in sys.stdin:
        latents = torch.rand(1, options.context, TOKENS, CHANNELS).expand(options.samples, -1, -1, -1)
        actions = torch.rand(options.samples, frames - 1, ACTIONS)
        wall, cpu = time.perf_counter(), time.process_time()
        model.generate(
            time_steps=frames,
            num_steps=NUM_STEPS,
            batch_size=options.samples,
            prompt_latents=latents,
            prompt_continuous_actions=actions,
            use_time_cache=True,
            store_agent_embed=False,
            return_decoded_video=False,
        )
        steps = options.samples * options.horizon
        found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "candidate_steps": steps}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
