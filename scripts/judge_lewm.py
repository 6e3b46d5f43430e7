# pyright: reportMissingImports=false
# (the peer's package and transformers are no dependencies of this project)
"""stable-worldmodel's LeWM behind the judge's adapter: a peer's model class, judged as ours is.

LeWM (arXiv 2603.19312) predicts embeddings of frames; its own `rollout` imagines. `scripts/peers/train_lewm.py` trains
one on a store and fits probes on its embeddings, which read the task's quantities and contacts as ours are read. It has
no decoder, so films are left out of its report.

    pip install stable-worldmodel==0.1.1 transformers
    embodied-wm benchmark imagination task=push checkpoint=lewm.pt adapter=scripts/judge_lewm.py:load
    embodied-wm benchmark planning task=push checkpoint=lewm.pt adapter=scripts/judge_lewm.py:load objective=latent

`objective=latent` is LeWM's own `criterion`, on the last imagined embedding alone; `objective=state` is the task's cost
of what the probe reads. `checkpoint` is what train_lewm.py wrote, or a plain state_dict of the reference widths, or
`random` for untrained weights; those two have no probe, and plan with objective=latent only.

One step of a LeWM that was trained with a frameskip of n is n actions. The judge asks for a state after every action,
so states in between are linear between the embeddings on both sides, and actions that are missing to a whole step are
zero. Such a model starts from the newest frame alone, as frames n actions apart are not in a context of three.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from stable_worldmodel.wm.lewm.lewm import LeWM
from stable_worldmodel.wm.lewm.module import MLP, Embedder, Predictor
from torch import Tensor
from transformers import ViTConfig, ViTModel

from embodied_wm.evaluation.judged import CONTACT, QUANTITIES, JudgedModel
from embodied_wm.evaluation.lineup import PlanningSetup
from embodied_wm.evaluation.oracle import task_cost
from embodied_wm.heads import Readout
from embodied_wm.stride import filled
from planners.base import Objective
from planners.objectives import StateCost
from sim.tasks import get_task
from sim.tasks.base import Task

SIZE, HISTORY = 64, 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Size a LeWM; the defaults are its reference widths (ViT-tiny, 18 M parameters), with patches of 8 for 64x64.

    Attributes:
        encoder: Width of the ViT.
        encoder_depth: Its layers.
        encoder_heads: Its heads.
        patch: Side of its patches in pixels.
        embedding: Width of embeddings and of the predictor.
        depth: Layers of the predictor.
        heads: Its heads.
        head: Width of each.
        mlp: Width of its feed-forward layers.
        projector: Width of the two projectors.
        dropout: Of the predictor, in training.
    """

    encoder: int = 192
    encoder_depth: int = 12
    encoder_heads: int = 3
    patch: int = 8
    embedding: int = 192
    depth: int = 6
    heads: int = 16
    head: int = 64
    mlp: int = 2048
    projector: int = 2048
    dropout: float = 0.1


REFERENCE = Widths()
SMALL = Widths(encoder=96, encoder_depth=4, patch=16, depth=3, heads=4, head=48, mlp=512, projector=512)
"""For a CPU: a window costs 7 ms of one thread in training (16 to 19 with patches of 8), and 140 in the reference."""


def build(action_size: int, widths: Widths = REFERENCE) -> LeWM:
    """Return a LeWM for frames of 64x64; `action_size` is that of all actions of one step together."""
    encoder = ViTModel(
        ViTConfig(
            hidden_size=widths.encoder,
            num_hidden_layers=widths.encoder_depth,
            num_attention_heads=widths.encoder_heads,
            intermediate_size=4 * widths.encoder,
            image_size=SIZE,
            patch_size=widths.patch,
        ),
        add_pooling_layer=False,
    )
    width = widths.embedding
    predictor = Predictor(
        num_frames=HISTORY,
        depth=widths.depth,
        heads=widths.heads,
        mlp_dim=widths.mlp,
        input_dim=width,
        hidden_dim=width,
        output_dim=width,
        dim_head=widths.head,
        dropout=widths.dropout,
    )
    return LeWM(
        encoder,
        predictor,
        Embedder(input_dim=action_size, smoothed_dim=10, emb_dim=width),
        projector=MLP(widths.encoder, widths.projector, width, norm_fn=torch.nn.BatchNorm1d),
        pred_proj=MLP(width, widths.projector, width, norm_fn=torch.nn.BatchNorm1d),
    ).eval()


def normalised(frames: Tensor) -> Tensor:
    """Return uint8 frames [..., h, w, 3] as LeWM's own pipeline does: ImageNet's mean and std, [..., 3, h, w]."""
    pixels = (frames.float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    return pixels.movedim(-1, -3)


def probe(task: Task, feature: str, width: int) -> Readout:
    """Return our readout, over embeddings of one token, for the task's quantities or its contacts."""
    if feature == CONTACT:
        return Readout(latent_size=width, names=("contact",), units=("contact",))
    units = tuple(quantity.unit for quantity in task.quantities)
    return Readout(latent_size=width, names=task.quantity_names, units=units)


class JudgedLeWM(JudgedModel):
    """The adapter; codes and states are embeddings [..., W], the context is (embeddings, actions between)."""

    def __init__(
        self,
        model: LeWM,
        task: Task,
        setup: PlanningSetup,
        *,
        frameskip: int = 1,
        action_mean: Tensor | None = None,
        action_std: Tensor | None = None,
        probes: Mapping[str, Readout] | None = None,
        marks: Mapping[str, Any] | None = None,
    ) -> None:
        """Take a model and what its training knows.

        Args:
            model: The LeWM.
            task: What it is judged on.
            setup: Says which objective.
            frameskip: Actions of one of its steps.
            action_mean: Mean of actions in its data [A]; zero by default.
            action_std: Their std [A]; one by default.
            probes: Readouts of embeddings, by feature.
            marks: What `fingerprints` returns.

        Raises:
            ValueError: If the objective is neither of the two, or needs a probe that is not there.
        """
        self.model, self.task, self.setup, self.frameskip = model, task, setup, frameskip
        self.camera, self.image_size, self.action_size = task.cameras[0], (SIZE, SIZE), task.action_size
        self.action_low, self.action_high = -torch.ones(task.action_size), torch.ones(task.action_size)
        self.mean = torch.zeros(task.action_size) if action_mean is None else action_mean
        self.std = torch.ones(task.action_size) if action_std is None else action_std
        self.probes, self.marks = dict(probes or {}), dict(marks or {})
        if setup.objective not in ("latent", "state"):
            raise ValueError(f"got objective {setup.objective!r}; LeWM plans with objective=latent or objective=state")
        if setup.objective == "state" and QUANTITIES not in self.probes:
            raise ValueError(
                "objective=state reads the task's quantities from embeddings, and this checkpoint has no probe for "
                "them: take one that scripts/peers/train_lewm.py wrote, or objective=latent, LeWM's own cost."
            )

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Return embeddings of frames."""
        parts = normalised(frames)[:, None].split(128)
        return torch.cat([self.model.encode({"pixels": part})["emb"][:, 0] for part in parts])

    def prefill(self, codes: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Keep both: LeWM has no cache. With a frameskip, keep the newest frame alone."""
        if self.frameskip > 1:
            return codes[-1:], actions[:0]
        return codes, self._normalised(actions)

    @torch.no_grad()
    def imagine(self, context: tuple[Tensor, Tensor], actions: Tensor) -> Tensor:
        """Return predicted embeddings, from embeddings that were computed once; `pixels` only tells their number."""
        codes, past = context
        count, given, horizon = len(actions), len(codes), actions.shape[1]
        missing = -horizon % self.frameskip
        steps = self._normalised(F.pad(actions, (0, 0, 0, missing))).unflatten(1, (-1, self.frameskip)).flatten(2)
        every = torch.cat([past.expand(count, *past.shape), steps], dim=1) if given > 1 else steps
        info = {"pixels": torch.empty(1, count, given, 0), "emb": codes.expand(1, count, *codes.shape)}
        embeddings = self.model.rollout(info, every[None])["predicted_emb"][0]
        return filled(codes[-1], embeddings[:, given:], self.frameskip)[:, :horizon]

    def _normalised(self, actions: Tensor) -> Tensor:
        return (actions - self.mean) / self.std

    def objective(self, goal_frame: Tensor) -> Objective:
        """Return LeWM's own cost, or the task's cost of what the probe reads from each embedding and the goal's."""
        goal = self.encode(goal_frame[None])
        if self.setup.objective == "latent":
            end = goal[None]
            return lambda states, actions: self.model.criterion({"predicted_emb": states[None], "goal_emb": end})[0]
        wanted = self._read(QUANTITIES, goal)
        assert wanted is not None
        return StateCost(
            readout=self._read_quantities, cost=task_cost(self.task, wanted[0]), weights=self.setup.weights
        )

    def observe(self, codes: Tensor, actions: Tensor) -> Tensor:
        """Return the embeddings: each is of one frame."""
        return codes

    def read(self, states: Tensor) -> Tensor | None:
        """Return what the probe says of the task's quantities."""
        return self._read(QUANTITIES, states)

    def touches(self, states: Tensor) -> Tensor | None:
        """Return whether the probe of contacts says more yes than no."""
        found = self._read(CONTACT, states)
        return None if found is None else found[..., 0] > 0.5

    def _read_quantities(self, states: Tensor) -> Tensor:
        return self.probes[QUANTITIES](states[..., None, :])

    @torch.no_grad()
    def _read(self, feature: str, states: Tensor) -> Tensor | None:
        return self.probes[feature](states[..., None, :]) if feature in self.probes else None

    def fingerprints(self) -> dict[str, Any]:
        """Return the fingerprints of the weights and of the store that they were trained on."""
        return self.marks


def judged_lewm(saved: Mapping[str, Any], setup: PlanningSetup) -> JudgedLeWM:
    """Put a LeWM behind its adapter, from what train_lewm.py saves."""
    task, widths = get_task(setup.task), Widths(**saved["widths"])
    model = build(saved["frameskip"] * task.action_size, widths)
    model.load_state_dict(saved["weights"])
    probes = {name: probe(task, name, widths.embedding) for name in saved["probes"]}
    for name, readout in probes.items():
        readout.load_state_dict(saved["probes"][name])
        readout.requires_grad_(requires_grad=False)
    return JudgedLeWM(
        model.requires_grad_(requires_grad=False),
        task,
        setup,
        frameskip=saved["frameskip"],
        action_mean=saved["action_mean"],
        action_std=saved["action_std"],
        probes=probes,
        marks={"dataset": saved["dataset"], "checkpoint": fingerprint(model)},
    )


def fingerprint(model: torch.nn.Module) -> str:
    """Return what identifies a model's weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def load(checkpoint: Path, setup: PlanningSetup) -> JudgedModel:
    """Make the model; the benchmark calls this."""
    if str(checkpoint) != "random":
        saved = torch.load(checkpoint, weights_only=True)
        if "weights" in saved:
            return judged_lewm(saved, setup)
    task = get_task(setup.task)
    torch.manual_seed(0)
    model = build(task.action_size)
    if str(checkpoint) != "random":
        model.load_state_dict(saved)
    return JudgedLeWM(model, task, setup)
