"""Latent predictor: diffusion forcing over blocks of [action token, K latent tokens].

Block t holds the action that led to frame t (a_{t-1}, or "absent" for the first frame) and the noised latents of
frame t. Every frame has its own noise level in training (Diffusion Forcing, arXiv 2407.01392), twice: as context for
later frames, mostly nearly clean, and as a target of any level. (Tried first: each frame context or target by chance.
Most targets then stand behind noise, their large errors drown the small ones that matter, and after 1,500 steps one
imagined frame of `reach` was off by 0.029 in latent units where copying is off by 0.034 and an MLP that is told the
state by 0.0006.) With `clean_pass` context and targets are two streams of tokens in one pass, as in imagination, where
a frame goes through once more when it is known. Without, a target's token is context for later ones too: all it lacks
is its own clean frame, which the next token is told anyway. That halves training and one-step imagination at the same
error (`scripts/study_shape.py`). The network predicts clean latents as a change of the frame before; large steps are
taught by the shortcut loss (see `flow`), so the same weights sample in 1, 2 or 4 steps.

A latent token is told its place one frame earlier and how that place was changing, in units of the usual change:
between frames latents move by a tenth of their spread, which a network finds slowly in the difference of two inputs.
(On CR5 video, 200 steps of the same network: one imagined frame off by 0.0072 told the change, 0.0116 not told,
copying 0.0152; a linear map of the change alone reaches two thirds of copying.)

Context frames are corrupted by noise on top of them (`flow.corrupt`), not moved along the path to noise: imagined
frames are told to be a little noisy, and on the path a frame of level 0.97 is also 3% smaller, so that unscaled
imagined frames grew by 3% with every step. (On `push`, 40 held-out episodes, the same tokenizer and 2,000 steps: the
imagined pusher is off by 0.9 cm at 8 steps, where it was off by 2.1 cm; the box by 0.7 cm, was 1.3.)

Actions can be real ones, codes, or absent: one model serves labelled robots and unlabelled video.

`kind="regression"` is the honest baseline behind the same interface: the same transformer, no noise, one pass, the
next latents by squared error. Where a hidden coin decides, it predicts the mean of what can happen, which never happens
(`tests/predictor/test_variants.py`). `kind="masked"` predicts codes of an FSQ tokenizer instead (`predictor.masked`).
"""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from embodied_wm.predictor import flow
from embodied_wm.predictor.cache import Context
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.flow_loss import flow_loss
from embodied_wm.predictor.fourier import FourierFeatures
from embodied_wm.predictor.inputs import ABSENT, LATENT, REAL, ActionInputs, check_finite, previous, previous_change
from embodied_wm.predictor.joint import JointActions
from embodied_wm.predictor.masked import MaskedTokens, masked_loss
from embodied_wm.predictor.memory import before_window, recall
from embodied_wm.predictor.recurrent import GatedDeltaTransformer, transformer_of
from embodied_wm.predictor.transformer import block_causal_mask, two_streams_mask

_LOG = logging.getLogger(__name__)


class LatentPredictor(nn.Module):
    """Predict clean latents from noised ones, past frames and actions."""

    change_std: Tensor
    error_weights: Tensor | None

    def __init__(
        self,
        config: PredictorConfig,
        *,
        num_tokens: int,
        token_width: int,
        action_size: int,
        code_size: int,
        levels: Sequence[int] = (),
    ) -> None:
        """Make a predictor.

        Args:
            config: Its settings.
            num_tokens: K.
            token_width: D.
            action_size: A.
            code_size: Channels of a latent action.
            levels: FSQ levels of the channels of a token, where each token is one code; kind "masked" needs them.

        Raises:
            ValueError: If the configuration is impossible, or does not go with the tokens.
        """
        super().__init__()
        config.check(levels, token_width)
        self.config = config
        self._has_told_window = False
        self.num_tokens, self.token_width = num_tokens, token_width
        width = config.transformer.width
        wants_action = config.joint_actions or not config.action_token
        self.transformer = transformer_of(config.transformer, first_output=0 if wants_action else 1)
        self.latent_in = nn.Linear(3 * token_width, width)
        self.register_buffer("change_std", torch.ones(()))
        self.register_buffer("error_weights", torch.ones(num_tokens, token_width) if config.visible_share else None)
        self.slots = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
        self.kinds = nn.Parameter(torch.randn(3, width) * 0.02)
        self.real_in = nn.Sequential(nn.Linear(action_size, width), nn.SiLU(), nn.Linear(width, width))
        self.code_in = nn.Sequential(nn.Linear(code_size, width), nn.SiLU(), nn.Linear(width, width))
        last = nn.Linear(width, 6 * width)
        nn.init.zeros_(last.weight)
        self.level_in = nn.Sequential(nn.Linear((2 if config.clean_pass else 3) * 16, width), nn.SiLU(), last)
        self.norm = nn.RMSNorm(width)
        self.latent_out = nn.Linear(width, token_width)
        nn.init.zeros_(self.latent_out.weight)
        nn.init.zeros_(self.latent_out.bias)
        self.joint = JointActions(action_size=action_size, width=width) if config.joint_actions else None
        num = config.fourier_features
        self.fourier = FourierFeatures(token_width=token_width, num_features=num, width=width) if num else None
        # A parameter, as robots that are trained together share it with what it belongs to; buffers are a robot's own.
        self.zone = nn.Parameter(torch.zeros(1), requires_grad=False) if config.shrinkage else None
        self.remembered = nn.Parameter(torch.randn(width) * 0.02) if config.memory else None
        self.masked: MaskedTokens | None = None
        if config.kind == "masked":
            self.masked = MaskedTokens(levels, num_tokens=num_tokens, width=width, max_rounds=config.max_steps)

    @property
    def block(self) -> int:
        """Return the tokens per frame: K latent tokens, and the action's where it has one of its own."""
        return self.num_tokens + self.config.action_token

    @property
    def new_tokens(self) -> int:
        """Return the tokens that imagining one more frame puts through the network at once."""
        return self.block * (1 + self.config.clean_pass)

    @property
    def is_stochastic(self) -> bool:
        """Tell whether imagination starts from noise, so that two samples can differ."""
        return self.config.kind != "regression"

    @property
    def step_counts(self) -> list[int]:
        """Return the numbers of denoising steps that the model was trained for."""
        most = self.config.max_steps if self.is_stochastic else 1
        return [2**power for power in range(most.bit_length())]

    def embed_actions(self, actions: ActionInputs) -> Float[Tensor, "batch time width"]:
        """Embed actions, each by its kind."""
        tokens = self.kinds[actions.kind]
        if actions.real is not None:
            tokens = tokens + self.real_in(actions.real) * (actions.kind == REAL)[..., None]
        if actions.codes is not None:
            tokens = tokens + self.code_in(actions.codes) * (actions.kind == LATENT)[..., None]
        return tokens

    def embed_real(self, actions: Float[Tensor, "batch time action"]) -> Float[Tensor, "batch time width"]:
        """Embed normalised real actions."""
        return self.embed_actions(ActionInputs(torch.full(actions.shape[:2], REAL, device=actions.device), actions))

    def modulation(
        self, tau: Float[Tensor, "*batch"], step: Float[Tensor, "*batch"], tau_before: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch 6 width"]:
        """Return the shared modulation for noise levels, step sizes and levels of the frames before.

        The last are told where no clean pass has told them.
        """
        frequencies = torch.pi * 2.0 ** torch.arange(-1, 3, device=tau.device)
        told = [tau, step] if self.config.clean_pass else [tau, step, tau_before]
        phase = torch.stack(told, dim=-1)[..., None] * frequencies
        features = torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(-2)
        features = torch.cat([features, features.square()], dim=-1)
        return self.level_in(features).unflatten(-1, (6, -1))

    @torch.no_grad()
    def fit_change(self, latents: Float[Tensor, "batch time tokens width"]) -> None:
        """Set the unit in which the network is told how latents change, and, once for all, what is no change."""
        self.change_std.copy_(latents.diff(dim=1).std().clamp_min(1e-3))
        if self.zone is not None and not self.zone:
            self.zone.copy_(self.config.shrinkage * self.change_std)

    def blocks(
        self, action_tokens_BTW: Tensor, latents_BTKD: Tensor, before_BTKD: Tensor, change_BTKD: Tensor
    ) -> Tensor:
        """Join the action that led to each frame with its latents: [B, T, block, width].

        A latent token also sees its place one frame before, at that frame's own noise level, and the change that had
        led to it.
        """
        slots = self.slots
        if self.masked is not None:
            latents_BTKD, mark = self.masked.marked(latents_BTKD)
            slots = slots + mark
        inputs = torch.cat([latents_BTKD, before_BTKD, change_BTKD / self.change_std], dim=-1)
        tokens = self.latent_in(inputs) + slots
        if self.fourier is not None:
            tokens = tokens + self.fourier(inputs)
        action_tokens = action_tokens_BTW[:, :, None]
        return torch.cat([action_tokens, tokens], dim=2) if self.config.action_token else tokens + action_tokens

    def shift(self, action_tokens_BTW: Tensor) -> Tensor:
        """Turn row convention (leads away from frame t) into block convention (led to frame t)."""
        first = self.kinds[ABSENT].expand(len(action_tokens_BTW), 1, -1)
        return torch.cat([first, action_tokens_BTW[:, :-1]], dim=1)

    def read(self, x_SNW: Tensor, before: Tensor, tau_before: Tensor | float) -> Tensor:
        """Turn output tokens into latents: a change of the frame before, as far as that frame is not noise."""
        x_SNW = x_SNW[..., -self.num_tokens :, :]  # the action's token may come out before them
        change = self.latent_out(self.norm(x_SNW))
        if self.zone is None:
            return before * flow.trust(tau_before) + change
        change = flow.shrink(change, self.zone, is_training=self.training)
        return before * flow.trust(tau_before, self.config.known_tau) + change

    def start(self, noise_SKN: Tensor) -> Tensor:
        """Return what imagining a frame starts from, [S, K, D]: noise, or nothing decided."""
        return noise_SKN if self.masked is None else self.masked.nothing(noise_SKN)

    def improve(
        self,
        out_SKW: Tensor,
        x_tau: Tensor,
        noise_SKN: Tensor,
        before: Tensor,
        tau_before: Tensor | float,
        *,
        number: int,
        num_steps: int,
    ) -> Tensor:
        """Take the denoising step, or round, with this number: from output tokens and x_tau to the next x_tau."""
        guess = self.read(out_SKW, before, tau_before)
        if self.masked is not None:
            logits = self.masked.logits(self.norm(out_SKW), guess)
            return self.masked.decide(logits, x_tau, noise_SKN, number=number, num_rounds=num_steps)
        step = 1 / num_steps
        is_followed = self.training and torch.is_grad_enabled()  # by gradients, which settled frames have none of
        if self.config.stillness and number == num_steps - 1 and not is_followed:
            guess = flow.settle(guess, before, self.config.stillness * self.change_std)
        return flow.euler_step(guess, x_tau, number * step, step)

    def forward(
        self,
        x_tau: Float[Tensor, "batch time tokens width"],
        tau: Float[Tensor, "batch time"],
        step: Float[Tensor, "batch time"],
        led_by: Float[Tensor, "batch time model"],
    ) -> Float[Tensor, "batch time tokens width"]:
        """Predict the clean latents of every frame of a window, each seeing the frames before it as they are.

        Args:
            x_tau: Noised latents, each frame at its own level.
            tau: Noise level of each frame.
            step: Step size each frame is predicted for.
            led_by: Embedded action that led to each frame, from `shift(embed_actions(...))`.
        """
        return self.read(self.see(x_tau, tau, step, led_by), previous(x_tau), previous(tau)[..., None, None])

    def see(
        self,
        x_tau: Float[Tensor, "batch time tokens width"],
        tau: Float[Tensor, "batch time"],
        step: Float[Tensor, "batch time"],
        led_by: Float[Tensor, "batch time model"],
        past: Float[Tensor, "batch time tokens width"] | None = None,
        past_tau: Float[Tensor, "batch time"] | None = None,
        memory: Float[Tensor, "batch memory tokens width"] | None = None,
    ) -> Float[Tensor, "batch time outputs model"]:
        """Return the output tokens that `forward` reads latents from.

        A frame may be told other latents of the frames before it than what stands there: `past`, of levels `past_tau`.
        """
        past, past_tau = x_tau if past is None else past, tau if past_tau is None else past_tau
        time = x_tau.shape[1]
        positions = torch.arange(time, device=x_tau.device)
        mask = block_causal_mask(time, self.config.window, x_tau.device)
        tokens = self.blocks(led_by, x_tau, previous(past), previous_change(past))
        levels = self.modulation(tau, step, previous(past_tau, first=1.0))
        return self._through(tokens, levels, positions, mask, time, memory)

    def _through(
        self, tokens: Tensor, levels: Tensor, positions: Tensor, mask: Tensor, num_frames: int, memory: Tensor | None
    ) -> Tensor:
        """Run windows, behind what is remembered if anything, through the transformer; its last frames come out."""
        inputs = (tokens, levels, positions, mask)
        if memory is not None:
            inputs = before_window(self, memory, *inputs)
        return self.transformer(*inputs, num_frames)

    def predict_targets(
        self,
        past: Float[Tensor, "batch time tokens width"],
        past_tau: Float[Tensor, "batch time"],
        x_tau: Float[Tensor, "batch time tokens width"],
        tau: Float[Tensor, "batch time"],
        step: Float[Tensor, "batch time"],
        led_by: Float[Tensor, "batch time model"],
        memory: Float[Tensor, "batch memory tokens width"] | None = None,
    ) -> Float[Tensor, "batch time tokens width"]:
        """Predict every frame of a window from its own noised copy and the nearly clean frames before it.

        What imagination does frame by frame happens here for all frames in one pass: a stream of context blocks and a
        stream of target blocks, where target t sees the context before t and itself. Without a clean pass there is one
        stream: target t sees the targets before it, and is told the nearly clean frames before it.

        Args:
            past: Latents as context, each frame noised to its own level.
            past_tau: Those levels.
            x_tau: The same frames as targets, noised to levels of their own.
            tau: Those levels.
            step: Step size each target is predicted for.
            led_by: Embedded action that led to each frame.
            memory: Remembered frames, for models with a memory.
        """
        return self.read(*self.see_targets(past, past_tau, x_tau, tau, step, led_by, memory=memory))

    def see_targets(
        self,
        past: Tensor,
        past_tau: Tensor,
        x_tau: Tensor,
        tau: Tensor,
        step: Tensor,
        led_by: Tensor,
        target_led_by: Tensor | None = None,
        memory: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `predict_targets` reads latents from: output tokens, the frames before and their levels.

        Targets may have embedded actions of their own, where these are noised (`target_led_by`).
        """
        time = x_tau.shape[1]
        before, tau_before, change = previous(past), previous(past_tau), previous_change(past)
        if not self.config.clean_pass:
            out = self.see(x_tau, tau, step, led_by, past, past_tau, memory)
            return out, before, tau_before[..., None, None]
        of_targets = led_by if target_led_by is None else target_led_by
        streams = ((led_by, past), (of_targets, x_tau))
        tokens = torch.cat([self.blocks(tokens, latents, before, change) for tokens, latents in streams], dim=1)
        finest = torch.full_like(past_tau, 1 / self.config.max_steps)
        levels = self.modulation(torch.cat([past_tau, tau], 1), torch.cat([finest, step], 1), tau_before.repeat(1, 2))
        positions, mask = torch.arange(time, device=tau.device), two_streams_mask(time, self.config.window, tau.device)
        out = self._through(tokens, levels, positions.repeat(2), mask, time, memory)
        return out, before, tau_before[..., None, None]

    def sample_levels(self, batch: int, time: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw noise levels [B, T] of context frames and of target frames, each frame its own."""
        past = 1 - self.config.context_noise * torch.rand(batch, time, generator=generator).square()
        any_level = torch.rand(batch, time, generator=generator)
        is_any = torch.rand(batch, 1, generator=generator) < self.config.noisy_context_fraction
        tau = torch.rand(batch, time, generator=generator)
        pure = torch.rand(batch, time, generator=generator) < 0.5
        return torch.where(is_any, any_level, past), torch.where(pure, 0.0, tau)

    def loss(
        self,
        latents: Float[Tensor, "batch time tokens width"],
        actions: ActionInputs,
        generator: torch.Generator,
        memory: Float[Tensor, "batch memory tokens width"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the flow-matching loss of most of the batch plus the shortcut loss of the rest; or regression's.

        Args:
            latents: Standardised latents of consecutive frames.
            actions: Actions in row convention.
            generator: CPU source of noise and noise levels.
            memory: Remembered frames of each window, for models with a memory.

        Raises:
            ValueError: If remembered frames are missing, or not wanted.
        """
        if (memory is None) == bool(self.config.memory):
            raise ValueError(
                f"got {'no' if memory is None else len(memory[0])} remembered frames to train on; this predictor wants "
                f"{self.config.memory}: draw windows by sampler(memory={self.config.memory})"
            )
        batch, time = latents.shape[:2]
        past_tau, tau = (levels.to(latents) for levels in self.sample_levels(batch, time, generator))
        noise, other = (torch.randn(latents.shape, generator=generator).to(latents) for _ in range(2))
        past = flow.corrupt(other, latents, past_tau[..., None, None])
        if self.masked is not None:
            led_by = self.shift(self.embed_actions(actions))
            return masked_loss(self, latents, past, past_tau, tau, led_by, generator)
        return flow_loss(self, past, past_tau, latents, tau, noise, actions, generator, memory)

    @torch.no_grad()
    def prefill(
        self,
        latents: Float[Tensor, "frames tokens width"],
        actions: ActionInputs,
        past: Float[Tensor, "earlier tokens width"] | None = None,
    ) -> Context:
        """Encode a context once, for all candidates.

        Args:
            latents: Clean latents of the context, oldest first; where attention is the memory the last `window - 1`
                frames are used, and a longer context is cut with a warning in the log, once; a model with a memory
                counts what is cut to the past.
            actions: [1, frames - 1] actions between them (row convention); further rows are ignored.
            past: Clean latents of all frames before them, of which a model with a memory remembers some.

        Raises:
            ValueError: If there is no frame, a latent is not finite, or a past is given that is not remembered.
        """
        if len(latents) == 0:
            raise ValueError("got a context of 0 frames; imagination needs at least 1")
        check_finite(latents)
        embedded = self.embed_actions(actions)[:, : len(latents) - 1]
        led_by = torch.cat([self.kinds[ABSENT].expand(1, 1, -1), embedded], dim=1)
        is_recurrent = isinstance(self.transformer, GatedDeltaTransformer)
        keep = len(latents) if is_recurrent else min(len(latents), self.config.window - 1)
        if past is not None and not self.config.memory:
            raise ValueError("got frames of the past; a predictor with memory=0 remembers none, leave them out")
        gone = latents[:-keep]
        if len(gone) and not self.config.memory and not self._has_told_window:
            self._has_told_window = True
            _LOG.warning(
                "a context of %d frames is longer than the window of %d: only its last %d frames are seen (told once)",
                len(latents), self.config.window, keep,
            )  # fmt: skip
        past = gone if past is None else torch.cat([past, gone])
        memory = recall(past, latents[-keep:], self.config.memory)
        latents, led_by = latents[-keep:], led_by[:, -keep:]
        end = (keep, keep, latents[-1], latents[-2:][0])
        if isinstance(self.transformer, GatedDeltaTransformer):
            states = self.transformer.states(*self._context_blocks(latents[None], led_by))
            return Context((), (), *end, states)
        keys, values = ([layer[0] for layer in layers] for layers in self.keys_values(latents[None], led_by, memory))
        remembered = 0 if memory is None else memory.shape[1] * self.block
        return Context(tuple(keys), tuple(values), *end, memory_tokens=remembered)

    def keys_values(
        self,
        latents: Float[Tensor, "batch frames tokens width"],
        led_by: Float[Tensor, "batch frames model"],
        memory: Float[Tensor, "batch memory tokens width"] | None = None,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return every layer's keys and values, [B, h, N, d] each, of remembered and of clean context frames."""
        tokens, modulation, positions = self._context_blocks(latents, led_by)
        inputs = (tokens, modulation, positions, block_causal_mask(len(positions), self.config.window, latents.device))
        if memory is not None:
            inputs = before_window(self, memory, *inputs)
        return self.transformer.keys_values(*inputs)

    def _context_blocks(self, latents: Tensor, led_by: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the blocks of clean context frames, the modulation of each frame, and their positions."""
        blocks = self.known_blocks(led_by, latents, previous(latents), previous_change(latents))
        positions = torch.arange(latents.shape[1], device=latents.device)
        return *blocks, positions

    def known_blocks(
        self, led_by_BTW: Tensor, latents_BTKD: Tensor, before_BTKD: Tensor, change_BTKD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the blocks of frames that are known, as later frames attend to them, and the modulation of each.

        Without a clean pass they stand there as if they had just been imagined in one step, from noise that was zero.
        """
        clean = latents_BTKD.new_ones(latents_BTKD.shape[1])
        if self.config.clean_pass:
            tau, step = clean, clean / self.config.max_steps
        else:
            tau, step, latents_BTKD = torch.zeros_like(clean), clean, torch.zeros_like(latents_BTKD)
        return self.blocks(led_by_BTW, latents_BTKD, before_BTKD, change_BTKD), self.modulation(tau, step, clean)
