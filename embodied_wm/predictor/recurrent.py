"""Constant memory: the gated delta rule over time, in place of attention to a window of past frames.

Each layer and head keeps one matrix S. A token with key k (of length 1) and value v first lets the matrix fade, then
corrects what it answers to that key (Yang et al., arXiv 2412.06464, equation 10):

    S <- alpha S (1 - beta k k^T) + beta v k^T,    alpha and beta in (0, 1) from the token

The tokens of frame t read S q as the frames before t left it, attend to each other by ordinary attention, and then
write themselves, in order. Nothing else of the past is kept: a frame costs the same after 10 frames and after 10,000,
there is no window and no position. A context is one matrix per layer and head that all candidates read; a candidate has
matrices of its own from its first imagined frame on.

Two ways through the same weights: whole windows at once (`corrections` turns the recurrence into one triangular solve
and masked linear attention, section 3.3 of the paper), and frame by frame with matrices (`read`, `written`). Tests hold
both equal to the recurrence above. The delta rule runs in single precision whatever the rest does.

What it costs, counted for nano key points (16 candidates, 8 frames ahead): 5.08 MFLOP per candidate and frame where
attention to a window of 16 takes 4.96, 23.3 per frame in training against 22.7, 0.4% more weights, and 48 KiB of memory
for each candidate, always, where the window's keys and values take 114. Its many small products take longer than that:
60 microseconds of processor time for a candidate's frame, attention 28.

It predicts no worse (`scripts/bench_mixers.py pretrained:push push.zarr`: 1,000 steps each, three seeds, 256 held-out
windows; squared errors of latents): 0.0035 one frame ahead, 0.031 (0.032, 0.031, 0.030) eight and 0.091 (0.095, 0.101,
0.079) sixteen frames ahead, beside 0.0034, 0.032 (0.032, 0.032, 0.033) and 0.106 (0.106, 0.107, 0.105) with attention,
and 0.019, 0.53 and 1.25 by copying; expected was a tie. It also learns to remember what a window no longer shows
(`tests/predictor/test_recurrent.py`). Attention is the default, as it takes half the time and its contexts can be
rolled on and given a memory.

Legend of shape suffixes: S candidates or windows, F frames, n tokens per frame, N tokens, h heads, d head width, and vk
for a matrix from keys to values; G groups that share a matrix.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embodied_wm.predictor.cache import CandidateCache
from embodied_wm.predictor.transformer import BlockCausalTransformer, Layer, TransformerConfig

SLOWEST, FASTEST = 0.01, 0.5
"""Rates at which the heads' matrices fade per token before training."""


def corrections(k_ShNd: Tensor, v_ShNd: Tensor, beta_ShN: Tensor, fade_ShN: Tensor) -> Tensor:
    """Return what each token really adds: S after token i is the sum over j <= i of exp(fade_i - fade_j) u_j k_j^T.

    Args:
        k_ShNd: Keys of length 1.
        v_ShNd: Values, less what a matrix from before already answers to the keys.
        beta_ShN: How much of the answer is corrected.
        fade_ShN: Sum of log alpha up to each token, its own included.

    Returns:
        u [S, h, N, d].
    """
    gap = fade_ShN[..., :, None] - fade_ShN[..., None, :]
    is_earlier = torch.ones(gap.shape[-2:], dtype=torch.bool, device=gap.device).tril(-1)
    overlap = k_ShNd @ k_ShNd.mT * gap.masked_fill(~is_earlier, float("-inf")).exp()
    beta_ShN1 = beta_ShN[..., None]
    return torch.linalg.solve_triangular(beta_ShN1 * overlap, beta_ShN1 * v_ShNd, upper=False, unitriangular=True)


def read(state: Tensor, q_ShNd: Tensor) -> Tensor:
    """Return the matrices' answers [S, h, N, d] to queries, whose length is made 1.

    Args:
        state: [h, v, k], one for all; or [G, h, v, k], each of S / G candidates.
        q_ShNd: Queries.
    """
    with torch.autocast(q_ShNd.device.type, enabled=False):
        return _answers(_groups(state), _unit(q_ShNd))


def written(state: Tensor, k_ShNd: Tensor, v_ShNd: Tensor, beta_ShN: Tensor, log_alpha_ShN: Tensor) -> Tensor:
    """Return each candidate's own matrices [S, h, v, k] after its tokens are written to those that it read.

    Args:
        state: As for `read`.
        k_ShNd: Keys, whose length is made 1.
        v_ShNd: Values.
        beta_ShN: How much of the matrix's answer to the key is corrected.
        log_alpha_ShN: Logarithm of what is left of the matrix.
    """
    with torch.autocast(k_ShNd.device.type, enabled=False):
        state, keys, fade = _groups(state), _unit(k_ShNd), log_alpha_ShN.cumsum(-1)
        missing = v_ShNd.float() - fade.exp()[..., None] * _answers(state, keys)
        added = corrections(keys, missing, beta_ShN, fade)
        left = (fade[..., -1:] - fade).exp()
        state = state.repeat_interleave(len(keys) // len(state), 0) if len(state) < len(keys) else state
        return fade[..., -1].exp()[..., None, None] * state + (added * left[..., None]).mT @ keys


def read_window(
    q_ShFnd: Tensor, k_ShFnd: Tensor, v_ShFnd: Tensor, beta_ShFn: Tensor, log_alpha_ShFn: Tensor, before_F: Tensor
) -> Tensor:
    """Return what frames read from the matrices as the frames before them left these, [S, h, F, n, d].

    Args:
        q_ShFnd: Queries of the frames that read, of all or some of their tokens.
        k_ShFnd: Keys of the frames that are written, in order.
        v_ShFnd: Their values.
        beta_ShFn: As for `written`.
        log_alpha_ShFn: As for `written`.
        before_F: How many frames each reading frame finds written.
    """
    with torch.autocast(q_ShFnd.device.type, enabled=False):
        block, num_queries = k_ShFnd.shape[3], q_ShFnd.shape[3]
        keys, fade = _unit(k_ShFnd.flatten(2, 3)), log_alpha_ShFn.flatten(2).cumsum(-1)
        added = corrections(keys, v_ShFnd.flatten(2, 3).float(), beta_ShFn.flatten(2), fade)
        fade_before = F.pad(fade[..., block - 1 :: block], (1, 0))[..., before_F].repeat_interleave(num_queries, -1)
        frame = torch.arange(k_ShFnd.shape[2], device=keys.device).repeat_interleave(block)
        is_written = frame < before_F.repeat_interleave(num_queries)[:, None]
        gap = (fade_before[..., :, None] - fade[..., None, :]).masked_fill(~is_written, float("-inf"))
        answers = (_unit(q_ShFnd.flatten(2, 3)) @ keys.mT * gap.exp()) @ added
        return answers.unflatten(2, (-1, num_queries))


def _answers(state_Ghvk: Tensor, q_ShNd: Tensor) -> Tensor:
    """Return each group's matrix times the queries of its candidates, as one product per group."""
    q = rearrange(q_ShNd, "(g s) h n k -> g h (s n) k", g=len(state_Ghvk))
    return rearrange(q @ state_Ghvk.mT, "g h (s n) v -> (g s) h n v", n=q_ShNd.shape[2])


def _groups(state: Tensor) -> Tensor:
    return state if state.ndim == 4 else state[None]


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


class GatedDeltaLayer(Layer):
    """A layer whose tokens attend within their frame and read what matrices keep of the frames before."""

    def __init__(self, config: TransformerConfig, first_output: int) -> None:
        super().__init__(config, first_output)
        heads = config.num_heads
        self.gates = nn.Linear(config.width, 2 * heads)
        self.read_norm = nn.RMSNorm(config.width // heads)
        rates = torch.linspace(SLOWEST**0.5, FASTEST**0.5, heads).square()
        with torch.no_grad():
            self.gates.weight.mul_(0.1)
            self.gates.bias.copy_(torch.cat([torch.zeros(heads), rates.expm1().log()]))

    def project(self, x_SFnW: Tensor, mod: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return q, k, v [S, h, F, n, d], beta and log alpha [S, h, F, n]."""
        normed = torch.addcmul(mod[0], self.norm(x_SFnW), 1 + mod[1])
        q, k, v = rearrange(self.qkv(normed), "s f n (three h d) -> three s h f n d", three=3, h=self.num_heads)
        beta, rate = rearrange(self.gates(normed), "s f n (two h) -> two s h f n", two=2)
        return self.q_norm(q), self.k_norm(k), v, beta.float().sigmoid(), -F.softplus(rate.float())

    def mixed(self, x_SFnW: Tensor, within_ShFnd: Tensor, past_ShFnd: Tensor, mod: tuple[Tensor, ...]) -> Tensor:
        """Add what was attended to within frames and what was read of the past, then the MLP."""
        attended = within_ShFnd + self.read_norm(past_ShFnd).to(within_ShFnd.dtype)
        return self.finish(x_SFnW, attended.flatten(2, 3), mod)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] (frames written before, where attention has masks)
        self, x_SFnW: Tensor, modulation: Tensor, before_F: Tensor, num_writers: int, num_frames: int | None
    ) -> Tensor:
        """Process whole windows.

        Args:
            x_SFnW: Tokens.
            modulation: Shared modulation of each frame.
            before_F: How many frames each frame finds written.
            num_writers: How many frames, from the first, are written.
            num_frames: Where given, only the latent tokens of that many last frames come out.
        """
        mod = self.modulated(modulation)
        q, k, v, beta, log_alpha = self.project(x_SFnW, mod)
        seen_k, seen_v = k, v
        if num_frames is not None:
            q, seen_k, seen_v = q[:, :, -num_frames:, self.first_output :], k[:, :, -num_frames:], v[:, :, -num_frames:]
            before_F, x_SFnW = before_F[-num_frames:], x_SFnW[:, -num_frames:, self.first_output :]
            mod = tuple(part[..., -num_frames:, :, :] for part in mod)
        k, v, beta, log_alpha = (part[:, :, :num_writers] for part in (k, v, beta, log_alpha))
        past = read_window(q, k, v, beta, log_alpha, before_F)
        return self.mixed(x_SFnW, _within(q, seen_k, seen_v), past, mod)

    def extended(self, x_SFnW: Tensor, modulation: Tensor, state: Tensor, *, is_last: bool) -> tuple[Tensor, Tensor]:
        """Process one new frame, or one that is written and one that then reads; return them and the matrices.

        Args:
            x_SFnW: Tokens of one or two frames.
            modulation: Of each frame.
            state: The matrices before, as `read` takes them.
            is_last: Return the latent tokens of the last frame only.
        """
        mod = self.modulated(modulation)
        q, k, v, beta, log_alpha = self.project(x_SFnW, mod)
        states = [state]
        if x_SFnW.shape[1] == 2:
            states.append(written(state, k[:, :, 0], v[:, :, 0], beta[:, :, 0], log_alpha[:, :, 0]))
        if is_last:
            q, k, v, states = q[:, :, -1:, self.first_output :], k[:, :, -1:], v[:, :, -1:], states[-1:]
            x_SFnW, mod = x_SFnW[:, -1:, self.first_output :], tuple(part[..., -1:, :, :] for part in mod)
        past = torch.stack([read(each, q[:, :, frame]) for frame, each in enumerate(states)], dim=2)
        return self.mixed(x_SFnW, _within(q, k, v), past, mod), states[-1]


class GatedDeltaTransformer(BlockCausalTransformer):
    """Run blocks of tokens through layers whose memory of past frames is of constant size."""

    def __init__(self, config: TransformerConfig, *, first_output: int = 1) -> None:
        if config.sinks:
            raise ValueError(f"sinks={config.sinks} are a part of attention; with mixer=gated_delta set sinks to 0")
        super().__init__(config, first_output=first_output, layer=GatedDeltaLayer)

    def forward(
        self,
        x: Float[Tensor, "batch frames block width"],
        modulation: Float[Tensor, "batch frames 6 width"],
        positions: Int[Tensor, "frames"],
        mask: Bool[Tensor, "frames frames"],
        num_frames: int,
    ) -> Float[Tensor, "batch outputs tokens width"]:
        """Process whole windows.

        Args:
            x: Blocks of tokens: `num_frames` frames, or as many context frames and then as many target frames.
            modulation: Shared modulation of each frame.
            positions: Of each frame, from 0: how many frames it finds written.
            mask: Not used, as what the past can tell is bounded by the matrices.
            num_frames: Frames, from the last, whose latent tokens are wanted; as many, from the first, are written.
        """
        del mask
        for layer in self.stack:
            inputs = (x, modulation, positions, num_frames, num_frames if layer is self.stack[-1] else None)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, *inputs, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
            else:
                x = layer(*inputs)
        return x

    def states(
        self,
        x: Float[Tensor, "1 frames block width"],
        modulation: Float[Tensor, "frames 6 width"],
        positions: Int[Tensor, "frames"],
    ) -> tuple[Tensor, ...]:
        """Return every layer's matrices [h, v, k] after a context."""
        states = []
        for layer in self.stack:
            assert isinstance(layer, GatedDeltaLayer)
            _, k, v, beta, log_alpha = layer.project(x, layer.modulated(modulation))
            empty = k.new_zeros(layer.num_heads, v.shape[-1], k.shape[-1], dtype=torch.float32)
            tokens = (part.flatten(2, 3) for part in (k, v, beta, log_alpha))
            states.append(written(empty, *tokens)[0])
            if layer is not self.stack[-1]:
                x = layer(x, modulation, positions, x.shape[1], None)
        return tuple(states)

    def extend(
        self,
        x: Float[Tensor, "candidates frames block width"],
        modulation: Float[Tensor, "frames 6 width"],
        rotary: tuple[Tensor, Tensor],
        cache: CandidateCache,
        *,
        window_tokens: int,
    ) -> Float[Tensor, "candidates tokens width"]:
        """Process one new frame, or two of which the first is written and the second sees it.

        Args:
            x: Blocks of the new frames of every candidate.
            modulation: Modulation of each new frame; the same for all candidates.
            rotary: Not used; there are no positions.
            cache: The candidates' cache, whose matrices are put anew where a frame is written.
            window_tokens: Not used; there is no window.
        """
        del rotary, window_tokens
        for index, layer in enumerate(self.stack):
            assert isinstance(layer, GatedDeltaLayer)
            is_last = index == len(self.layers) - 1
            x, state = layer.extended(x, modulation, cache.states[index], is_last=is_last)
            cache.put_state(index, state)
        return x[:, 0]


def transformer_of(config: TransformerConfig, *, first_output: int = 1) -> BlockCausalTransformer:
    """Return the network that the configuration names.

    Args:
        config: Its size and mixer.
        first_output: First token of a block that comes out: 1 leaves the action's out.

    Raises:
        ValueError: If there is no such mixer.
    """
    if config.mixer == "attention":
        return BlockCausalTransformer(config, first_output=first_output)
    if config.mixer == "gated_delta":
        return GatedDeltaTransformer(config, first_output=first_output)
    raise ValueError(f"transformer.mixer={config.mixer!r}; expected 'attention' or 'gated_delta'")


def _within(q_ShFnd: Tensor, k_ShFnd: Tensor, v_ShFnd: Tensor) -> Tensor:
    """Attend within each frame."""
    q, k, v = (rearrange(part, "s h f n d -> (s f) h n d") for part in (q_ShFnd, k_ShFnd, v_ShFnd))
    attended = F.scaled_dot_product_attention(q, k, v)
    return attended.unflatten(0, (len(q_ShFnd), q_ShFnd.shape[2])).transpose(1, 2)  # einops knows no part of size 0
