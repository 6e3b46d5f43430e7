"""Planning speed beside peers, alternately within one run: a ratio, since no machine is like another.

    python scripts/bench_peers.py --venvs ~/.cache/embodied_wm_peers --setup      make each peer's environment, then run
    python scripts/bench_peers.py --venvs ~/.cache/embodied_wm_peers --clock cpu  on a machine that others use

- `lewm`: LeWM as stable-worldmodel 0.1.1 ships it (18 M parameters, 224 pixels, its own CEM), against our nano model
  (64 pixels, our CEM), both from pixels to a plan, at the same candidates, iterations and horizon. Sizes differ by
  what each is made for, so this says what a decision costs, not whose layers are faster. One step of its reference
  spans a block of five actions and one of ours a single action: per action imagined the ratio is a fifth.
- `pytorch_mppi`: the overhead of the search alone. The same point mass, candidates and horizon for its MPPI and for
  ours, one iteration each, a hundred plans a run.
- `dreamer4`: imagination alone, without a planner: cached generation of lucidrains' dreamer4 0.20.2 against ours, from
  latents of three frames and given actions. Width, depth and heads are those of our nano model, one latent token per
  frame; it has no frame pass that can be shared between candidates, so it reads a copy of the context for each, it
  denoises in two steps at least, and writes its cache in a third pass.

Measured on a quiet two-core machine, one thread, `--peers swm --repeats 5`: LeWM 44.7 times slower than ours (43.3 to
46.9; with `--iterations 3 --repeats 6 --clock cpu` 44.2, 42.3 to 44.5), which is 9 times per action imagined;
pytorch_mppi's search 1.1 times (1.1 to 1.1) slower than ours.

`--peers dreamer4 --clock cpu`, one thread: at 96 candidates and 8 frames (`--samples 96 --repeats 5`) ours is 6.9 times
as fast (6.6 to 7.4) with one denoising step, as we plan, and 5.0 times (4.3 to 5.0) with two like it; at 512 candidates
and 16 frames (`--samples 512 --horizon 16 --repeats 3`) 8.5 times (8.1 to 8.6) and 5.8 times (4.6 to 6.1). Its two
layers have as many weights as our two (0.40 M), but 0.21 M more stand behind them; its pools over the layers, another
0.26 M, are left out, in its favour: with them ours was 16.6 and 10.4 times as fast.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from bench_loader import PEER_PACKAGES  # beside this script
from bench_planners import double_integrator
from torch import Tensor

from embodied_wm.cli import compose_config, instantiate_config
from embodied_wm.dynamics import ImaginedDynamics
from embodied_wm.embodiment import Embodiment
from embodied_wm.world_model import WorldModel
from planners import CEM, MPPI
from planners.objectives import GoalDistance

PEERS = {"swm": (*PEER_PACKAGES, "transformers==5.24.0"), "dreamer4": ("dreamer4==0.20.2",)}
"""Folder of an environment to what is installed in it."""
HERE = Path(__file__).resolve().parent
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LEWM_HORIZON = 5
MPPI_CANDIDATES, MPPI_HORIZON, MPPI_REPEATS = 512, 16, 100
DREAMER4_CONTEXT = 3

type Run = Callable[[], float]
"""Plan once and return candidate-steps per second."""


def python_of(venvs: Path, peer: str, *, setup: bool) -> Path:
    """Return the interpreter of a peer's environment, made first where wanted."""
    folder = venvs / peer
    python = folder / "bin" / "python"
    if setup and not python.exists():
        venv.create(folder, with_pip=True)
    if setup:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[peer]], check=True)
    if not python.exists():
        raise SystemExit(f"{python} is missing; run once with --setup, which installs {', '.join(PEERS[peer])}")
    return python


def started(options: argparse.Namespace, peer: str, script: str, **arguments: int) -> tuple[Run, subprocess.Popen[str]]:
    """Start a script of scripts/peers in a peer's environment; return what it does whenever it is asked."""
    python = python_of(options.venvs, peer, setup=options.setup)
    command = [python, "-W", "ignore", HERE / "peers" / script, "--threads", options.threads]
    for name, value in arguments.items():
        command += [f"--{name}", value]
    process = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run() -> float:
        ends: list[IO[str]] = [end for end in (process.stdin, process.stdout) if end is not None]
        ends[0].write("go\n")
        ends[0].flush()
        line = ends[1].readline()
        if not line:
            raise SystemExit(f"{script} ended without an answer; its message is above")
        found = json.loads(line)
        return found["candidate_steps"] / found[options.clock]

    return run, process


def nano() -> WorldModel:
    """Return a nano model of random weights."""
    composed, _ = compose_config("train", {"model": "nano", "data.path": "none"})
    return WorldModel(instantiate_config(composed)["model"], Embodiment(camera="top", action_size=2)).eval()


def ours(options: argparse.Namespace) -> Run:
    """Return a decision of a nano model."""
    model = nano()
    dynamics = ImaginedDynamics(model)
    size = options.samples
    planner = CEM(horizon=LEWM_HORIZON, num_candidates=size, num_iterations=options.iterations, num_elites=size // 10)
    frames = torch.randint(0, 256, (2, *model.config.tokenizer.image_size, 3), dtype=torch.uint8)
    clock = CLOCKS[options.clock]

    def run() -> float:
        began = clock()
        with torch.no_grad():
            objective = GoalDistance(goal=model.encode(frames[1]))
            context = model.prefill(frames[:1], None)
        planner.plan(dynamics, context, objective, generator=torch.Generator().manual_seed(0))
        return size * options.iterations * LEWM_HORIZON / (clock() - began)

    return run


def imagination(options: argparse.Namespace, num_steps: int) -> Run:
    """Return the imagination of a nano model from latents of some frames, with so many denoising steps."""
    model, clock, size = nano(), CLOCKS[options.clock], options.samples
    latents = torch.randn(DREAMER4_CONTEXT, model.num_tokens, model.token_width)
    past = torch.zeros(DREAMER4_CONTEXT - 1, 2)

    def run() -> float:
        actions = torch.rand(size, options.horizon, 2)
        began = clock()
        context = model.prefill_latents(latents, past)
        model.imagine(context, actions, num_steps=num_steps, generator=torch.Generator().manual_seed(0))
        return size * options.horizon / (clock() - began)

    return run


def mppi(options: argparse.Namespace) -> tuple[Run, Run] | None:
    """Return one iteration of our MPPI and of pytorch_mppi's on the same problem; None where it is not installed."""
    peer_module: Any = None
    with suppress(ImportError):
        import pytorch_mppi as peer_module
    if peer_module is None:
        return None
    problem, clock = double_integrator(MPPI_HORIZON), CLOCKS[options.clock]
    low, high = problem.dynamics.action_low, problem.dynamics.action_high

    def step(state: Tensor, action: Tensor) -> Tensor:
        velocity = state[:, 2:] + 0.5 * action
        return torch.cat([state[:, :2] + 0.5 * velocity, velocity], dim=-1)

    def running_cost(state: Tensor, action: Tensor) -> Tensor:
        return state.square().sum(-1) + action.square().sum(-1)

    peer = peer_module.MPPI(
        step, running_cost, 4, noise_sigma=torch.eye(2, dtype=torch.float64), num_samples=MPPI_CANDIDATES,
        horizon=MPPI_HORIZON, u_min=low, u_max=high,
    )  # fmt: skip
    planner = MPPI(horizon=MPPI_HORIZON, num_candidates=MPPI_CANDIDATES, num_iterations=1)
    steps = MPPI_REPEATS * MPPI_CANDIDATES * MPPI_HORIZON

    def run_ours() -> float:
        began = clock()
        for seed in range(MPPI_REPEATS):
            planner.plan(
                problem.dynamics, problem.start, problem.objective, generator=torch.Generator().manual_seed(seed)
            )
        return steps / (clock() - began)

    def run_theirs() -> float:
        began = clock()
        for _ in range(MPPI_REPEATS):
            peer.command(problem.start)
        return steps / (clock() - began)

    return run_ours, run_theirs


def compare(name: str, mine: Run, theirs: Run, repeats: int) -> None:
    """Run both alternately and print the median rates and the median ratio."""
    for run in (mine, theirs):  # warm-up
        run()
    pairs = [(mine(), theirs()) for _ in range(repeats)]
    rates = [statistics.median(rate) for rate in zip(*pairs, strict=True)]
    ratios = sorted(first / second for first, second in pairs)
    print(
        f"{name}: {rates[0]:,.0f} candidate-steps/s, peer {rates[1]:,.0f}: {statistics.median(ratios):.1f} times "
        f"({ratios[0]:.1f} to {ratios[-1]:.1f}, {repeats} pairs)",
        flush=True,
    )


def main() -> None:
    """Print one line per peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venvs", type=Path, required=True, help="folder of the peers' environments")
    parser.add_argument("--setup", action="store_true", help="make the environments first: minutes and gigabytes")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--horizon", type=int, default=8, help="frames that dreamer4 and ours imagine")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), help="peers in environments")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    both = mppi(options)
    if both is None:
        print("pytorch_mppi: not installed (pip install pytorch_mppi)", file=sys.stderr)
    else:
        compare("pytorch_mppi, search alone", *both, options.repeats)
    for peer in options.peers:
        size = {"samples": options.samples}
        if peer == "swm":
            theirs, process = started(options, peer, "lewm_speed.py", **size, iterations=options.iterations)
            mine = {"lewm, from pixels to a plan": ours(options)}
        else:
            size |= {"horizon": options.horizon, "context": DREAMER4_CONTEXT}
            theirs, process = started(options, peer, "dreamer4_speed.py", **size)
            mine = {
                f"dreamer4, imagination, ours with {count} denoising step(s)": imagination(options, count)
                for count in (1, 2)
            }
        try:
            for name, run in mine.items():
                compare(name, run, theirs, options.repeats)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
