"""WorldModel: frame tokenizer, latent actions, predictor and readouts behind one interface.

Once per decision `context = world_model.prefill(frames, actions)`; then `world_model.imagine(context, candidates)`
gives the latents of S futures from that one cached context, and `world_model.decode(latents)` their frames. A model
is saved as safetensors and JSON.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from embodied_wm import checkpoint, model_card
from embodied_wm.conditioning import ActionKind, TakesActions, check_kind
from embodied_wm.data.normalize import Normalizer
from embodied_wm.embodiment import Embodiment
from embodied_wm.goal_policy import GoalPolicy, GoalPolicyConfig
from embodied_wm.heads import Readout
from embodied_wm.hub import HubModel
from embodied_wm.predictor import joint, sampler
from embodied_wm.predictor.cache import CandidateCache, Context
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.inputs import ActionInputs, check_finite, check_latents
from embodied_wm.predictor.model import LatentPredictor
from embodied_wm.predictor.rolling import roll
from embodied_wm.stride import chunked, filled, thinned
from embodied_wm.temporal_distance import TemporalDistance, TemporalDistanceConfig
from embodied_wm.tokenizer.actions import ActionAdapter, LatentActionConfig, LatentActionTokenizer
from embodied_wm.tokenizer.cameras import make_tokenizer
from embodied_wm.tokenizer.frames import FrameTokenizerConfig, check_is_tensor
from embodied_wm.tokenizer.proprioception import joined, make_proprioception


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Configure every part of a `WorldModel`.

    `proprioception` is a feature that becomes tokens, "" is none; `temporal_stride` is frames of data from one latent
    that the predictor sees to the next (`embodied_wm.stride`).
    """

    tokenizer: FrameTokenizerConfig = field(default_factory=FrameTokenizerConfig)
    latent_actions: LatentActionConfig = field(default_factory=LatentActionConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    temporal_distance: TemporalDistanceConfig = field(default_factory=TemporalDistanceConfig)
    goal_policy: GoalPolicyConfig = field(default_factory=GoalPolicyConfig)
    proprioception: str = ""
    temporal_stride: int = 1


class WorldModel(nn.Module, TakesActions, HubModel):
    """Encode, imagine, decode and infer actions; the parts are public attributes."""

    config: WorldModelConfig

    def __init__(self, config: WorldModelConfig, embodiment: Embodiment, *, card: dict[str, Any] | None = None) -> None:
        super().__init__()
        if config.temporal_stride < 1:
            raise ValueError(f"temporal_stride={config.temporal_stride}: expected 1 or more frames of data a step")
        self.config, self.embodiment = config, embodiment
        self.card: dict[str, Any] = card or {}
        tokens, width, code = config.tokenizer.num_tokens, config.tokenizer.token_width, config.latent_actions.code_size
        self.tokenizer = make_tokenizer(config.tokenizer)
        self.proprioception = make_proprioception(config.proprioception, embodiment.readouts, tokens, width)
        tokens += 0 if self.proprioception is None else self.proprioception.num_tokens
        self.num_tokens, self.token_width = tokens, width
        self.latent_actions = LatentActionTokenizer(config.latent_actions, num_tokens=tokens, token_width=width)
        self.adapter = ActionAdapter(latent_size=tokens * width, action_size=self.chunk_size, code_size=code)
        self.predictor = LatentPredictor(
            config.predictor,
            num_tokens=tokens,
            token_width=width,
            action_size=self.chunk_size,
            code_size=code,
            levels=config.tokenizer.code_levels,
        )
        are_places = config.tokenizer.keypoints > 0 or self.proprioception is not None
        self.readouts = nn.ModuleDict(
            {
                _module_key(name): Readout(latent_size=tokens * width, names=names, units=units, has_line=are_places)
                for name, (names, units) in embodiment.readouts.items()
            }
        )
        if config.temporal_distance.components:
            self.temporal_distance = TemporalDistance(config.temporal_distance, latent_size=tokens * width)
        config.goal_policy.check(stride=config.temporal_stride, memory=config.predictor.memory)
        if wide := config.goal_policy.width:
            self.goal_policy = GoalPolicy(latent_size=tokens * width, action_size=embodiment.action_size, width=wide)
        self.actions = Normalizer(torch.zeros(embodiment.action_size), torch.ones(embodiment.action_size))
        self.register_buffer("action_low", -torch.ones(embodiment.action_size))
        self.register_buffer("action_high", torch.ones(embodiment.action_size))

    def take_over(self, part: str, source: "WorldModel") -> None:
        """Copy the weights of a part; raise ValueError if its codes are of other steps than this model's."""
        if part != "tokenizer" and source.stride != self.stride:
            raise ValueError(
                f"temporal_stride={self.stride} cannot take over {part} of temporal_stride={source.stride}"
            )
        getattr(self, part).load_state_dict(getattr(source, part).state_dict())

    def readout(self, feature: str) -> Readout:
        """Return the readout of a feature.

        Raises:
            ValueError: If the model has none for it; the message lists those it has.
        """
        key = _module_key(feature)
        if key not in self.readouts:
            raise ValueError(
                f"this model has no readout of {feature!r}; it has: {', '.join(self.embodiment.readouts) or 'none'}. "
                f"Train on a store that holds the feature, or plan with objective=latent."
            )
        return self.readouts[key]  # pyright: ignore[reportReturnType]

    def steps_between(
        self, latents: Float[Tensor, "*batch tokens width"], goal: Float[Tensor, "tokens width"]
    ) -> Float[Tensor, "*batch"]:
        """Return how many steps it takes, at best, from latents to a goal's.

        Raises:
            ValueError: If the model was made without that readout.
        """
        if not self.config.temporal_distance.components:
            raise ValueError(
                "this model has no readout of temporal distance; train one with model.temporal_distance.components=8, "
                "or plan with objective=latent."
            )
        return self.temporal_distance(latents, goal)

    def encode(
        self,
        frames: UInt8[Tensor, "*batch height width 3"],
        proprioception: Float[Tensor, "*rows size"] | None = None,
    ) -> Float[Tensor, "*batch tokens channels"]:
        """Encode uint8 frames, and proprioception for models that want it, into standardised latents.

        Raises:
            ValueError: If frames or proprioception do not fit the model, or one of them is missing or not wanted.
        """
        return joined(self.tokenizer.encode(frames), proprioception, self.proprioception)

    @torch.no_grad()
    def encode_picture(self, frames: UInt8[Tensor, "*batch height width 3"]) -> Float[Tensor, "*batch tokens channels"]:
        """Encode frames alone, such as goal images; proprioception, where the model wants it, is guessed from them."""
        picture = self.tokenizer.encode(frames)
        return picture if self.proprioception is None else self.proprioception.guessed(picture)

    def decode(
        self,
        latents: Float[Tensor, "*batch tokens channels"],
        seen: UInt8[Tensor, "height width 3"] | None = None,
    ) -> UInt8[Tensor, "*batch height width 3"]:
        """Decode latents into uint8 frames, blended into a frame `seen` before where nothing has changed."""
        check_latents(latents, self.num_tokens, self.token_width)
        if seen is not None and seen.ndim != 3:
            raise ValueError(f"got a seen frame of shape {tuple(seen.shape)}; expected one frame [height, width, 3]")
        return self.tokenizer.decode(latents[..., : self.config.tokenizer.num_tokens, :], seen)

    def _check_latents(self, latents: Tensor) -> None:
        check_latents(latents, self.num_tokens, self.token_width, axes=1)
        check_finite(latents)  # codes that are inferred from them would be blamed

    @torch.no_grad()
    def prefill(
        self,
        frames: UInt8[Tensor, "frames height width 3"],
        actions: Float[Tensor, "frames-1 action"] | None,
        *,
        kind: ActionKind = "real",
        proprioception: Float[Tensor, "rows size"] | None = None,
        past: Float[Tensor, "earlier tokens channels"] | None = None,
    ) -> Context:
        """Encode context frames and the actions between them, once per decision.

        Args:
            frames: C frames, oldest first.
            actions: C - 1 actions between them; None where they are unknown.
            kind: "real" conditions on the actions, "adapted" on the codes that the adapter gives them, "latent" on
                codes inferred from the frames themselves (`actions` are not read).
            proprioception: What the robot felt at each frame, for models that want it.
            past: Latents of all frames before them, from `encode`, of which a model with a memory (`predictor.memory`
                above 0) chooses some; other models refuse them.
        """
        return self.prefill_latents(self.encode(frames, proprioception), actions, kind=kind, past=past)

    @torch.no_grad()
    def prefill_latents(
        self,
        latents: Float[Tensor, "frames tokens width"],
        actions: Tensor | None,
        *,
        kind: ActionKind = "real",
        past: Float[Tensor, "earlier tokens width"] | None = None,
    ) -> Context:
        """Do what `prefill` does, from latents."""
        if past is not None:
            self._check_latents(past)
        inputs, latents = self._context_inputs(latents, actions, kind)
        return self.predictor.prefill(latents, inputs, past)

    def _context_inputs(self, latents: Tensor, actions: Tensor | None, kind: ActionKind) -> tuple[ActionInputs, Tensor]:
        """Return what a predictor is told of the actions between context frames, and the frames that it looks at."""
        self._check_latents(latents)
        check_kind(kind)
        between, frames, stride = len(latents) - 1, len(latents), self.stride
        latents = thinned(latents, stride)
        if len(latents) == 1 or (actions is None and kind != "latent"):
            return self.absent_inputs(1, len(latents)), latents
        if kind == "latent":
            return self.action_inputs(None, codes=self.latent_actions.encode(latents[None])), latents
        check_is_tensor("actions", actions)
        assert actions is not None
        if actions.ndim != 2 or len(actions) != between:
            raise ValueError(
                f"got {frames} context frames and actions of shape {tuple(actions.shape)}; expected the {between} "
                f"actions between them, [{between}, {self.embodiment.action_size}], or None where they are unknown"
            )
        actions = chunked(actions[between % stride :], stride)
        if kind == "adapted":
            codes = self._adapt(latents[:-1], actions)
            return self.action_inputs(None, codes=codes[None]), latents
        return self.action_inputs(actions[None]), latents

    @torch.no_grad()
    def extend(
        self,
        context: Context,
        frame: UInt8[Tensor, "height width 3"],
        action: Float[Tensor, " action"] | None,
        *,
        kind: ActionKind = "real",
        max_frames: int | None = None,
        proprioception: Float[Tensor, " size"] | None = None,
    ) -> Context:
        """Return a context with one more frame at its end, without encoding the old ones again.

        It equals a prefill of the whole history in which each frame sees at most `max_frames` before it; see `rolling`.

        Args:
            context: From `prefill`, of the same kind, or from this.
            frame: The new frame.
            action: What was done between the context's last frame and this one; None where it is unknown.
            kind: As for `prefill`.
            max_frames: Frames that are kept, the oldest dropped; None keeps the window but one, the most there can be.
            proprioception: What the robot felt at the new frame, for models that want it.
        """
        latents = self.encode(frame, proprioception)
        return self.extend_latents(context, latents, action, kind=kind, max_frames=max_frames)

    @torch.no_grad()
    def extend_latents(
        self,
        context: Context,
        latents: Float[Tensor, "tokens width"],
        action: Tensor | None,
        *,
        kind: ActionKind = "real",
        max_frames: int | None = None,
    ) -> Context:
        """Do what `extend` does, from latents."""
        self.check_stride("extend", "rolling=false")
        self._check_latents(latents[None])
        self.check_history(kind)
        if kind == "latent":
            past = torch.stack([context.before_last, context.last_latents, latents])
            inputs = self.action_inputs(None, codes=self.latent_actions.encode(past[None])[:, -1:])
        elif action is None:
            inputs = self.absent_inputs(1, 1)
        elif kind == "adapted":
            inputs = self.action_inputs(None, codes=self._adapt(context.last_latents[None], action[None])[None])
        else:
            inputs = self.action_inputs(action[None, None])
        led_by = self.predictor.embed_actions(inputs)[0, 0]
        return roll(self.predictor, context, latents, led_by, max_frames=max_frames)

    def _adapt(self, latents: Tensor, actions: Tensor) -> Tensor:
        return self.latent_actions.quantise(self.adapter.to_code(latents, self.normalized(actions)))

    def _led_by(self, actions_SHA: Tensor, kind: ActionKind) -> sampler.LedBy:
        """Return what embeds the action that leads to each imagined frame."""
        if kind == "adapted":

            def adapted(index: int, latents_SKD: Tensor) -> Tensor:
                codes = self._adapt(latents_SKD, actions_SHA[:, index])
                return self.predictor.embed_actions(self.action_inputs(None, codes=codes[:, None]))[:, 0]

            return adapted
        inputs = self.action_inputs(actions_SHA) if kind == "real" else self.action_inputs(None, codes=actions_SHA)
        embedded = self.predictor.embed_actions(inputs)
        return lambda index, _: embedded[:, index]

    def imagine(
        self,
        context: Context,
        actions: Float[Tensor, "candidates horizon action"],
        *,
        kind: ActionKind = "real",
        num_steps: int = 1,
        generator: torch.Generator,
        shared_noise: bool = False,
    ) -> Float[Tensor, "candidates horizon tokens width"]:
        """Imagine the latents that follow S candidate action sequences.

        Gradients flow back to the actions where these require them (and gradients are enabled); else no graph is
        recorded.

        Args:
            context: From `prefill`; read by all candidates, never copied.
            actions: Real actions, or codes where kind is "latent".
            kind: "real", "latent" (actions are codes, one for each `temporal_stride` frames) or "adapted" (real actions
                through the adapter's codes).
            num_steps: Denoising steps per frame.
            generator: CPU source of noise.
            shared_noise: Give all candidates the same noise.

        Raises:
            ValueError: If actions do not fit the model, or what is imagined is not finite.
        """
        check_kind(kind)
        check_is_tensor("actions", actions)
        if actions.ndim != 3 or 0 in actions.shape:
            raise ValueError(
                f"got actions of shape {tuple(actions.shape)}; expected [candidates, steps, numbers], at least one each"
            )
        wants_gradient = torch.is_grad_enabled() and actions.requires_grad
        horizon, stride = actions.shape[1], self.stride if kind != "latent" else 1
        actions = chunked(actions, stride)
        noise = sampler.draw_noise(self.predictor, actions.shape[0], actions.shape[1], generator, shared=shared_noise)
        if not wants_gradient and not context.is_joined:
            imagined = sampler.imagine_in_parts(
                self.predictor, context, lambda rows: self._led_by(actions[rows], kind), noise, num_steps=num_steps
            )
        else:
            with torch.set_grad_enabled(wants_gradient):
                led_by = self._led_by(actions, kind)
            imagined = sampler.imagine(
                self.predictor, context, led_by, noise, num_steps=num_steps, is_differentiable=wants_gradient
            )
        return filled(context.last_latents, sampler.finite(imagined), stride)[:, :horizon]

    def imagine_frames(
        self,
        contexts: Sequence[Context],
        next_actions: Callable[[], Tensor],
        noise: Float[Tensor, "candidates horizon tokens noise"],
        *,
        kind: ActionKind = "real",
        num_steps: int = 1,
    ) -> Iterator[Tensor]:
        """Yield imagined latents [S, K, D] frame by frame, each after asking for the actions [S, A] that lead to it.

        Args:
            contexts: One for each candidate, of the same number of frames, from `prefill`.
            next_actions: Called before each frame.
            noise: Start of each frame; as much as is drawn is the most that can be imagined.
            kind: As for `imagine`.
            num_steps: Denoising steps per frame.
        """
        self.check_stride("imagine one frame at a time", "imagine(), which takes all actions at once")
        block, window = self.predictor.block, self.predictor.config.window
        cache = CandidateCache.apart(
            contexts, max_tokens=(noise.shape[1] + 1) * block, window_tokens=(window + 1) * block
        )

        def led_by(index: int, latents: Tensor) -> Tensor:
            return self._led_by(next_actions()[:, None], kind)(0, latents)

        return sampler.imagine_frames(self.predictor, cache, led_by, noise, num_steps=num_steps)

    @torch.no_grad()
    def infer_actions(
        self,
        frames: UInt8[Tensor, "frames height width 3"],
        proprioception: Float[Tensor, "rows size"] | None = None,
    ) -> Float[Tensor, "steps action"]:
        """Infer the real actions between consecutive frames: by the predictor where it denoises actions, or by codes.

        Codes are those of the latent actions, and the adapter turns them into the robot's.
        """
        if (len(frames) - 1) % self.stride:
            raise ValueError(f"got {len(frames)} frames; expected one more than a multiple of {self.stride}")
        latents = thinned(self.encode(frames, proprioception), self.stride)
        if self.predictor.joint is not None:
            generator = torch.Generator().manual_seed(0)  # the mean of what could have been done needs no luck
            return self.denormalized(joint.infer_actions(self.predictor, latents[None], generator)[0])
        codes = self.latent_actions.encode(latents[None])[0]
        return self.denormalized(self.adapter.to_action(latents[:-1], codes))

    @torch.no_grad()
    def propose_actions(
        self, context: Context, num: int, *, horizon: int = 1, generator: torch.Generator
    ) -> Float[Tensor, "num horizon action"]:
        """Sample what those who made the data would do next: the model as a policy.

        Args:
            context: From `prefill`.
            num: How many sequences.
            horizon: Steps; frames between them are imagined.
            generator: CPU source of noise.

        Raises:
            ValueError: If the model was not trained with `joint_actions`.
        """
        steps = -(-horizon // self.stride)
        actions, _ = joint.act_and_imagine(self.predictor, context, num, steps, generator)
        return self.denormalized(actions)[:, :horizon]

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that depend on every weight."""
        return checkpoint.fingerprint(self.state_dict())

    def fingerprints(self) -> dict[str, Any]:
        """Return what a report says of the weights ("checkpoint") and of the store they were trained on ("dataset")."""
        return {"dataset": self.card.get("fingerprint"), "checkpoint": self.fingerprint()}

    def save(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and the model card README.md, atomically, each file by rename."""
        checkpoint.save_model(
            Path(folder), self.state_dict(), config=self.config, embodiment=self.embodiment, card=self.card
        )
        model_card.write_readme(Path(folder))

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> Self:
        """Load a model that `save` wrote; nothing is unpickled.

        Raises:
            CheckpointError: If the folder is no checkpoint of ours, of another version, or its tensors do not fit.
        """
        described = checkpoint.read_description(Path(folder))
        config = checkpoint.from_json(WorldModelConfig, described["config"])
        embodiment = checkpoint.from_json(Embodiment, described["embodiment"])
        try:
            model = cls(config, embodiment, card=described["card"])
        except (ValueError, RuntimeError) as error:
            raise checkpoint.CheckpointError(f"{folder}/config.json describes no possible model: {error}") from error
        checkpoint.load_tensors(Path(folder), model)
        return model.to(device).eval()


def _module_key(feature: str) -> str:
    return feature.replace(".", "_")


__all__ = ["ActionKind", "WorldModel", "WorldModelConfig"]
