"""Settings of a `LatentPredictor`, and which of them go together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from embodied_wm.predictor.transformer import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Configure a `LatentPredictor`.

    Attributes:
        kind: "flow" (diffusion forcing), "regression" (one pass without noise, the baseline that flow must beat) or
            "masked" (codes of an FSQ tokenizer, decided in rounds).
        transformer: Size of the network.
        window: Frames that attention reaches back over, the present one included; a mixer of constant memory has none.
        max_steps: Most denoising steps the model is trained for; a power of two.
        context_tau: Noise level (told, not added) of context frames that the model imagined itself.
        context_noise: Most noise (1 - tau) of nearly clean context frames in training.
        noisy_context_fraction: Part of the sequences whose context frames have any noise level.
        shortcut_fraction: Part of each batch that trains large steps.
        absent_fraction: Part of the sequences trained without actions.
        action_token: Whether the action is a token of its own in each block; if not, it is added to the latent tokens
            that it led to, which halves the cost of a frame of one token.
        clean_pass: Whether a frame, once known, goes through the network again to be context for later ones; if not,
            the pass that predicted it is what they attend to, which halves the cost of training and of one-step
            imagination.
        joint_actions: Denoise actions too, so that the model also infers and proposes them (`predictor.joint`).
        memory: Frames from before the window that every frame may attend to as well (`predictor.memory`); 0 for none.
        shrinkage: Predicted changes smaller than this times the usual change (`change_std` when first trained) are
            none, larger ones nearer to none by as much, so that what rests stays where it is; in imagination those of
            up to 1.5 times that are none, too (`flow.shrink`, `flow.HOLD`). Frames that are as good as known are then
            taken as they are. What moves more slowly stands still, so less is better: with 0.3 the pusher of `push`
            stood still for commands below a tenth. 0 for none.
        stillness: An imagined frame that differs from the one before by less than this times the usual change (root
            mean square over all numbers, by today's `change_std`) is that one, as what creeps in a scene at rest adds
            up. For latents of which all change a little with everything, as grids do (0.3); key points change one by
            one, for which there is `shrinkage`, and a little of this where that is small. A motion that would start
            more slowly never starts, and planners by gradients get none from a frame that stays. 0 for none;
            `scripts/bench_stillness.py` says what it does to which motion.
        fourier_features: Sines of learned sums of latents that tokens are told too (`fourier`); 0 for none.
        visible_share: Part, in [0, 1], of the weight of errors in training that numbers of a latent share by how much
            the decoded picture moves with them (`training.visible`); the rest is the same for all.
    """

    kind: Literal["flow", "regression", "masked"] = "flow"
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    window: int = 16
    max_steps: int = 4
    context_tau: float = 0.97
    context_noise: float = 0.06
    noisy_context_fraction: float = 0.1
    shortcut_fraction: float = 0.25
    absent_fraction: float = 0.1
    action_token: bool = True
    clean_pass: bool = True
    joint_actions: bool = False
    memory: int = 0
    shrinkage: float = 0.0
    stillness: float = 0.0
    fourier_features: int = 0
    visible_share: float = 0.0

    @property
    def known_tau(self) -> float:
        """Return the noise level from which a frame counts as known: imagined ones do, and nearly clean context."""
        return min(self.context_tau, 1 - self.context_noise)

    def check(self, levels: Sequence[int], token_width: int) -> None:
        """Raise ValueError if the settings are impossible, or do not go with tokens of that width.

        Args:
            levels: FSQ levels of the channels of a token, where each token is one code.
            token_width: Channels of a token.
        """
        if self.max_steps < 1 or self.max_steps & (self.max_steps - 1):
            raise ValueError(f"max_steps={self.max_steps} must be a power of two (1, 2, 4, ...)")
        if self.kind not in ("flow", "regression", "masked"):
            raise ValueError(f"predictor.kind={self.kind!r}; expected 'flow', 'regression' or 'masked'")
        if not 0 <= self.visible_share <= 1:
            raise ValueError(f"predictor.visible_share={self.visible_share}; expected a part in [0, 1], such as 0.75")
        for name in ("shrinkage", "stillness"):
            value: float = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"predictor.{name}={value}; expected a part of the usual change, such as 0.3, or 0 for none"
                )
        for name in ("shrinkage", "stillness", "visible_share"):
            if (value := getattr(self, name)) and self.kind == "masked":
                raise ValueError(
                    f"predictor.{name}={value} is for latents that change a little; got codes (kind='masked'), "
                    "expected 0, or another kind"
                )
        if self.kind == "masked" and len(levels) != token_width:
            raise ValueError(
                f"predictor.kind='masked' predicts codes, one per token; these tokens of {token_width} channels are no "
                "single FSQ codes. Set model.tokenizer.bottleneck.kind=fsq with levels=[8,5,5,5], width=4, "
                "tokenizer.token_grid=[4,4] and cells_per_token=[1,1] (as model=nano_codes does), or choose "
                "predictor.kind=flow."
            )
        if self.fourier_features < 0:
            raise ValueError(
                f"predictor.fourier_features={self.fourier_features}; expected a number of them, such as 128, or 0"
            )
        if self.joint_actions and (self.kind != "flow" or not self.action_token):
            raise ValueError(
                f"joint_actions=true denoises actions; got kind={self.kind!r} and action_token="
                f"{self.action_token}, expected 'flow' and a token for the action"
            )
        mixer = self.transformer.mixer
        if not self.clean_pass and (self.joint_actions or self.kind == "masked" or mixer != "attention"):
            raise ValueError(
                "clean_pass=false is for kind 'flow' or 'regression', mixer 'attention' and no joint_actions; got "
                f"kind={self.kind!r}, mixer={mixer!r}, joint_actions={self.joint_actions}"
            )
        if self.memory < 0 or (self.memory and (self.kind == "masked" or mixer != "attention" or self.joint_actions)):
            raise ValueError(
                "memory is a number of frames, for kind 'flow' or 'regression', mixer 'attention' and no "
                f"joint_actions; got memory={self.memory}, kind={self.kind!r}, mixer={mixer!r}, joint_actions="
                f"{self.joint_actions}"
            )
