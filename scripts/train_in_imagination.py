"""Train a small policy inside a world model's imagination, then run it in MuJoCo: no search at decision time.

Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347, equation 7) without a critic: the advantage of an
action is the discounted progress towards the goal that followed it. MuJoCo is used for the test alone.

    python scripts/train_in_imagination.py runs/train/LATEST/model --task reach --store reach.zarr
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.imagined_env import ImaginedEnvConfig, ImaginedVectorEnv, StoreStarts
from embodied_wm.evaluation.judged import JudgedWorldModel
from embodied_wm.evaluation.planning import Arena
from embodied_wm.tokenizer.actions import mlp
from embodied_wm.world_model import WorldModel
from planners import StepWeights
from sim.manifest import evaluation_pairs
from sim.tasks import get_task

STD, DISCOUNT, CLIP, EPOCHS = 0.4, 0.8, 0.2, 6


class Policy(nn.Module):
    """Map latents of the present and of the goal to the mean of an action in [-1, 1]."""

    def __init__(self, latent_size: int, action_size: int) -> None:
        super().__init__()
        self.network = mlp((2 * latent_size, 128, 128, action_size))

    def forward(self, now: Tensor, goal: Tensor) -> Tensor:
        """Return means [..., A] for latents [..., K, D]."""
        return torch.tanh(self.network(torch.cat([(goal - now).flatten(-2), now.flatten(-2)], dim=-1)))


def rollout(env: ImaginedVectorEnv, policy: Policy) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Imagine one episode in every environment; return latents, goals, actions and rewards, [T, S, ...] each."""
    seen, _ = env.reset()
    rows = []
    for _ in range(env.imagination.config.horizon):
        now, goal = torch.from_numpy(seen["observation"]), torch.from_numpy(seen["goal"])
        with torch.no_grad():
            action = Normal(policy(now, goal), STD).sample()
        seen, reward, *_ = env.step(action.numpy())
        rows.append((now, goal, action, torch.from_numpy(reward).float()))
    now, goal, action, reward = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return now, goal, action, reward


def improve(policy: Policy, optimizer: torch.optim.Optimizer, env: ImaginedVectorEnv) -> float:
    """Make one update from one batch of imagined episodes; return the mean reward at their end."""
    now, goal, action, reward = rollout(env, policy)
    progress = reward.diff(dim=0)  # from the second step on: what an action changed
    advantage = torch.zeros_like(progress)
    last = torch.zeros_like(progress[0])
    for step in reversed(range(len(progress))):
        last = progress[step] + DISCOUNT * last
        advantage[step] = last
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    now, goal, action = now[1:], goal[1:], action[1:]
    with torch.no_grad():
        before = Normal(policy(now, goal), STD).log_prob(action).sum(-1)
    for _ in range(EPOCHS):
        ratio = (Normal(policy(now, goal), STD).log_prob(action).sum(-1) - before).exp()
        loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(reward[-1].mean())


class TrainedAgent:
    """Act by the policy's mean, from the newest frame."""

    needs_frames = True

    def __init__(self, model: WorldModel, policy: Policy) -> None:
        self.model, self.policy = model, policy
        self.seconds: list[float] = []

    def begin(self, goal_frame: np.ndarray | None, goal_physics: np.ndarray, seed: int) -> None:
        """Encode the goal image."""
        assert goal_frame is not None
        self.goal = self.model.encode(torch.from_numpy(goal_frame))

    @torch.no_grad()
    def act(self, frame: np.ndarray | None, physics: np.ndarray) -> np.ndarray:
        """Return the mean action."""
        assert frame is not None
        began = time.perf_counter()
        action = self.policy(self.model.encode(torch.from_numpy(frame)), self.goal)
        self.seconds.append(time.perf_counter() - began)
        return action.numpy()


def main() -> None:
    """Train, and print the success in MuJoCo before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--task", default="reach")
    parser.add_argument("--store", required=True, help="episodes that imagination starts from")
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--environments", type=int, default=64)
    parser.add_argument("--horizon", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model, task = WorldModel.load(options.checkpoint), get_task(options.task)
    judged = JudgedWorldModel(model, task, objective="state", weights=StepWeights())
    starts = StoreStarts(EpisodeStore.open(options.store), camera=model.embodiment.camera)
    config = ImaginedEnvConfig(horizon=options.horizon)
    env = ImaginedVectorEnv(model, starts, options.environments, config, objective=judged.objective)
    env.reset(seed=options.seed)
    tokenizer = model.config.tokenizer
    policy = Policy(tokenizer.num_tokens * tokenizer.token_width, task.action_size)
    arena = Arena(task, image_size=judged.image_size, camera=judged.camera)
    pairs = evaluation_pairs(task.name, options.pairs, 0)

    def success() -> float:
        ends = [arena.run(TrainedAgent(model, policy), pair)[0][-1] for pair in pairs]
        return float(np.mean(np.array(ends) <= task.tolerance_m))

    print(f"before: success {success():.2f} of {len(pairs)} episodes in MuJoCo", flush=True)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for update in range(options.updates):
        reward = improve(policy, optimizer, env)
        if update % 10 == 9:
            print(f"update {update + 1}: reward at the end of imagined episodes {reward:.3f}", flush=True)
    print(f"after: success {success():.2f} of {len(pairs)} episodes in MuJoCo")
    arena.close()


if __name__ == "__main__":
    main()
