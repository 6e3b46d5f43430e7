# pyright: reportMissingImports=false
# (the peer's package and transformers are no dependencies of this project)
"""stable-worldmodel's LeWM behind the judge's adapter: a peer's model class, judged as ours is.

LeWM (arXiv 2603.19312) predicts embeddings of frames; its own `rollout` imagines and its own `criterion` is the cost.
It has no decoder and no readout, so films and errors in metres are left out of its report.

    pip install stable-worldmodel==0.1.1 transformers
    embodied-wm benchmark imagination task=push checkpoint=random adapter=scripts/judge_lewm.py:load

`checkpoint` is a state_dict that torch.save wrote, or `random` for untrained weights.
"""

from pathlib import Path

import torch
from stable_worldmodel.wm.lewm.lewm import LeWM
from stable_worldmodel.wm.lewm.module import MLP, Embedder, Predictor
from torch import Tensor
from transformers import ViTConfig, ViTModel

from embodied_wm.evaluation.judged import JudgedModel
from embodied_wm.evaluation.lineup import PlanningSetup
from planners.base import Objective
from sim.tasks import get_task

SIZE, WIDTH, HISTORY = 64, 192, 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(action_size: int) -> LeWM:
    """Return a LeWM of its reference widths for frames of 64x64 and one action a step."""
    encoder = ViTModel(
        ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=12,
            num_attention_heads=3,
            intermediate_size=4 * WIDTH,
            image_size=SIZE,
            patch_size=8,
        ),
        add_pooling_layer=False,
    )
    predictor = Predictor(
        num_frames=HISTORY,
        depth=6,
        heads=16,
        mlp_dim=2048,
        input_dim=WIDTH,
        hidden_dim=WIDTH,
        output_dim=WIDTH,
        dim_head=64,
    )
    return LeWM(
        encoder,
        predictor,
        Embedder(input_dim=action_size, smoothed_dim=10, emb_dim=WIDTH),
        projector=MLP(WIDTH, 2048, WIDTH, norm_fn=torch.nn.BatchNorm1d),
        pred_proj=MLP(WIDTH, 2048, WIDTH, norm_fn=torch.nn.BatchNorm1d),
    ).eval()


class JudgedLeWM(JudgedModel):
    """The adapter; codes and states are embeddings [..., WIDTH], the context is (embeddings, actions between)."""

    def __init__(self, model: LeWM, camera: str, action_size: int) -> None:
        self.model, self.camera, self.image_size, self.action_size = model, camera, (SIZE, SIZE), action_size
        self.action_low, self.action_high = -torch.ones(action_size), torch.ones(action_size)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Return embeddings of frames, normalised as LeWM's own pipeline does."""
        pixels = (frames.float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
        parts = pixels.permute(0, 3, 1, 2)[:, None].split(128)
        return torch.cat([self.model.encode({"pixels": part})["emb"][:, 0] for part in parts])

    def prefill(self, codes: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Keep both: LeWM has no cache."""
        return codes, actions

    @torch.no_grad()
    def imagine(self, context: tuple[Tensor, Tensor], actions: Tensor) -> Tensor:
        """Return predicted embeddings, from embeddings that were computed once; `pixels` only tells their number."""
        codes, past = context
        count, given = len(actions), len(codes)
        every = torch.cat([past.expand(count, *past.shape), actions], dim=1)
        info = {"pixels": torch.empty(1, count, given, 0), "emb": codes.expand(1, count, *codes.shape)}
        return self.model.rollout(info, every[None])["predicted_emb"][0, :, given:]

    def objective(self, goal_frame: Tensor) -> Objective:
        """Return LeWM's own cost: the squared distance of the last embedding to the goal's."""
        goal = self.encode(goal_frame[None])[None, None]
        return lambda states, actions: self.model.criterion({"predicted_emb": states[None], "goal_emb": goal})[0]

    def observe(self, codes: Tensor, actions: Tensor) -> Tensor:
        """Return the embeddings: each is of one frame."""
        return codes


def load(checkpoint: Path, setup: PlanningSetup) -> JudgedModel:
    """Make the model; the benchmark calls this."""
    task = get_task(setup.task)
    torch.manual_seed(0)
    model = build(task.action_size)
    if str(checkpoint) != "random":
        model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return JudgedLeWM(model, task.cameras[0], task.action_size)
