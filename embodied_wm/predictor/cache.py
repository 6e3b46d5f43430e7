"""Keys and values of the past: one context that every candidate reads, and each candidate's own suffix.

The context of a decision is encoded once. Its keys and values have no candidate dimension: all S candidates attend to
the same tensors through one matrix product (as in Hydragen, arXiv 2402.05099), never to S copies. Beside them each
candidate appends its own imagined frames to a buffer allocated once. Softmax runs over both score blocks together, so
the result is exactly that of ordinary attention over the concatenation. The buffer holds little more than the window
that attention reaches back over: what has left the window is overwritten, so that memory does not grow with the
horizon.

A predictor whose memory is of constant size (see `recurrent`) has matrices instead of keys and values: the context's,
which all candidates read, until each has written a frame of its own.

Legend of shape suffixes: S candidates, N query tokens, P tokens of the shared prefix, M tokens of the own suffix, L
of both, h heads, d head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """Hold a prefilled context, shared by all candidates.

    Attributes:
        keys: Per layer, [h, P, d], already rotated to their frame positions; [B, h, P, d] where B contexts are joined.
        values: Per layer, the same.
        num_frames: Frames in the context (P = num_frames * tokens per block + memory_tokens).
        next_position: Rotary position of the frame that follows the context.
        last_latents: [K, D], latents of the last context frame ([S, K, D] where candidates have a past of their own).
        before_last: [K, D], latents of the frame before it; the same where there is none.
        states: Per layer, matrices [h, d, d] ([B, h, d, d] where joined) of a predictor that has no keys and values.
        memory_tokens: Of the keys and values, how many at the front are of remembered frames, which no window drops.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    num_frames: int
    next_position: int
    last_latents: Tensor
    before_last: Tensor
    states: tuple[Tensor, ...] = ()
    memory_tokens: int = 0

    @property
    def is_joined(self) -> bool:
        """Tell whether candidates have pasts of their own: contexts of several environments in one."""
        return self.last_latents.ndim == 3

    @property
    def num_bytes(self) -> int:
        """Return the memory that the context's keys and values, or matrices, take; it does not depend on S."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values, *self.states))

    @classmethod
    def join(cls, contexts: Sequence[Self], *, num_candidates: int) -> Self:
        """Return one context of B environments, for B times S candidates, those of the first environment first.

        Args:
            contexts: One of each environment, of the same number of frames; each is still read by its S candidates.
            num_candidates: S, candidates of each environment.

        Raises:
            ValueError: If contexts differ in their number of frames.
        """
        first = _of_one_length(contexts)
        last, before = (torch.stack([getattr(c, name) for c in contexts]) for name in ("last_latents", "before_last"))
        return cls(
            keys=tuple(torch.stack(keys) for keys in zip(*(c.keys for c in contexts), strict=True)),
            values=tuple(torch.stack(values) for values in zip(*(c.values for c in contexts), strict=True)),
            num_frames=first.num_frames,
            next_position=first.next_position,
            last_latents=last.repeat_interleave(num_candidates, 0),
            before_last=before.repeat_interleave(num_candidates, 0),
            states=tuple(torch.stack(states) for states in zip(*(c.states for c in contexts), strict=True)),
            memory_tokens=first.memory_tokens,
        )


def _of_one_length(contexts: Sequence[Context]) -> Context:
    """Return the first of contexts; raise ValueError unless all are as long."""
    lengths = sorted({context.num_frames for context in contexts})
    if len(lengths) != 1:
        raise ValueError(f"got contexts of {lengths} frames; those imagined together must be of one length")
    return contexts[0]


class CandidateCache:
    """Keep what S candidates add to a shared context: keys and values in buffers allocated once, or matrices.

    Attributes:
        context: What all candidates read.
        states: Per layer, the matrices that candidates read next, of a predictor that has them.
    """

    def __init__(
        self, context: Context, *, num_candidates: int, max_tokens: int, window_tokens: int | None = None
    ) -> None:
        """Allocate the buffers.

        Args:
            context: What all candidates read.
            num_candidates: S.
            max_tokens: Most tokens that each candidate will add.
            window_tokens: Most tokens that attention reaches back over, new ones included; the buffers are no larger
                than that and an eighth. None keeps all tokens.
        """
        self.context, self.window_tokens = context, window_tokens
        self.num_tokens = self.num_dropped = 0
        self.states = list(context.states)
        self._next_states = list(context.states)
        if window_tokens is not None:
            max_tokens = min(max_tokens, window_tokens + max(1, window_tokens // 8))
        self.max_tokens = max_tokens
        self.keys, self.values = ([_buffer(keys, num_candidates, max_tokens) for keys in context.keys] for _ in "kv")

    @classmethod
    def apart(cls, contexts: Sequence[Context], *, max_tokens: int, window_tokens: int | None = None) -> Self:
        """Return a cache of candidates that do not share their past: one context each, nothing in common.

        Args:
            contexts: Of the same number of frames; their keys and values are copied in front of what is appended.
            max_tokens: Room for what is appended.
            window_tokens: As for a cache with a shared context.

        Raises:
            ValueError: If contexts differ in their number of frames, or hold remembered frames.
        """
        first = _of_one_length(contexts)
        if first.memory_tokens:
            raise ValueError(
                "candidates with pasts of their own cannot remember frames from before the window; got a context of a "
                "model with predictor.memory > 0: imagine from one context (imagine()), or take a model without"
            )
        nothing = tuple(keys[:, :0] for keys in first.keys)
        joined = Context(
            keys=nothing,
            values=nothing,
            num_frames=0,
            next_position=first.next_position,
            last_latents=torch.stack([context.last_latents for context in contexts]),
            before_last=torch.stack([context.before_last for context in contexts]),
            states=tuple(torch.stack(states) for states in zip(*(c.states for c in contexts), strict=True)),
        )
        past = first.keys[0].shape[1] if first.keys else 0
        cache = cls(joined, num_candidates=len(contexts), max_tokens=past + max_tokens, window_tokens=window_tokens)
        for layer in range(len(first.keys)):
            keys, values = (torch.stack([getattr(c, name)[layer] for c in contexts]) for name in ("keys", "values"))
            cache.put(layer, keys, values)
        cache.num_tokens = past
        return cache

    @property
    def num_bytes(self) -> int:
        """Return the memory of the candidates' own keys and values, or matrices."""
        own = [state for state, shared in zip(self.states, self.context.states, strict=True) if state is not shared]
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values, *own))

    def put(self, layer: int, k_ShNd: Tensor, v_ShNd: Tensor) -> None:
        """Write new tokens behind the kept ones; only `keep` makes them stay.

        Where gradients flow back to actions the buffers are not written to, as attention to them is differentiated
        later: kept and new tokens are joined instead.
        """
        if layer == 0:
            self._make_room(k_ShNd.shape[2])
        if k_ShNd.requires_grad:
            self.keys[layer] = torch.cat([self.keys[layer][:, :, : self.num_tokens], k_ShNd], dim=2)
            self.values[layer] = torch.cat([self.values[layer][:, :, : self.num_tokens], v_ShNd], dim=2)
            return
        stop = self.num_tokens + k_ShNd.shape[2]
        self.keys[layer][:, :, self.num_tokens : stop] = k_ShNd
        self.values[layer][:, :, self.num_tokens : stop] = v_ShNd

    def detach(self) -> None:
        """Let no gradient flow back through what is kept."""
        self.keys, self.values = ([each.detach() for each in layers] for layers in (self.keys, self.values))

    def _make_room(self, num_new: int) -> None:
        """Move what new tokens can still see to the front of the buffers, where these would not fit behind the rest."""
        if self.window_tokens is None or self.num_tokens + num_new <= self.max_tokens:
            return
        kept = max(0, self.window_tokens - num_new)
        first = self.num_tokens - kept
        for tensors in (self.keys, self.values):  # new buffers: the old ones may be needed for gradients
            for layer, tensor in enumerate(tensors):
                fresh = _buffer(tensor, len(tensor), max(self.max_tokens, kept + num_new))
                fresh[:, :, :kept] = tensor[:, :, first : self.num_tokens]
                tensors[layer] = fresh
        self.num_tokens, self.num_dropped = kept, self.num_dropped + first

    def put_state(self, layer: int, state: Tensor) -> None:
        """Hold a layer's matrices as they are after the new frame; only `keep` makes them those that are read."""
        self._next_states[layer] = state

    def visible(
        self, layer: int, num_new: int, window_tokens: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the shared and own (keys, values) within the last `window_tokens` tokens, and what is remembered."""
        memory = self.context.memory_tokens
        prefix = self.context.keys[layer].shape[-2] - memory
        stop = self.num_tokens + num_new
        first = max(0, prefix + self.num_dropped + stop - window_tokens)
        own_first = max(0, first - prefix - self.num_dropped)
        shared = (
            _without(self.context.keys[layer], memory, first),
            _without(self.context.values[layer], memory, first),
        )
        own = (self.keys[layer][:, :, own_first:stop], self.values[layer][:, :, own_first:stop])
        return shared, own

    def keep(self, num_tokens: int) -> None:
        """Make the first `num_tokens` of the last `put`, or the matrices of the last `put_state`, permanent."""
        self.num_tokens += num_tokens
        self.states = list(self._next_states)


def _without(tokens_hPd: Tensor, memory: int, num: int) -> Tensor:
    """Return keys or values without the `num` oldest behind those of remembered frames; a view where nothing is."""
    if memory and num:
        return torch.cat([tokens_hPd[..., :memory, :], tokens_hPd[..., memory + num :, :]], dim=-2)
    return tokens_hPd[..., num:, :]


def _buffer(like: Tensor, num_candidates: int, max_tokens: int) -> Tensor:
    heads, _, width = like.shape[-3:]
    return like.new_empty(num_candidates, heads, max_tokens, width)


def attend_shared(
    q_ShNd: Tensor,
    shared: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    *,
    mask_NL: Tensor | None = None,
) -> Tensor:
    """Attend to a shared prefix and to each candidate's own suffix, exactly.

    Args:
        q_ShNd: Queries, rotated.
        shared: Keys and values [h, P, d] of the prefix, or [B, h, P, d] of B prefixes, each of S / B candidates.
        own: Keys and values [S, h, M, d] of the suffix.
        mask_NL: True where a query may see a token of the prefix or, behind these, of the suffix; None lets it see all.

    Returns:
        [S, h, N, d], as softmax attention over the concatenated prefix and suffix gives.
    """
    if shared[0].ndim == 4:  # everything else of a layer is one product for all environments
        num = len(shared[0])
        own_of_each = zip(own[0].chunk(num), own[1].chunk(num), strict=True)
        of_each = zip(q_ShNd.chunk(num), zip(*shared, strict=True), own_of_each, strict=True)
        return torch.cat([attend_shared(*each, mask_NL=mask_NL) for each in of_each])
    shared_k_hPd, shared_v_hPd = shared
    own_k_ShMd, own_v_ShMd = own
    size_s, heads, size_n, width = q_ShNd.shape
    prefix = shared_k_hPd.shape[1]
    q_ShNd = q_ShNd * width**-0.5
    q_hXd = q_ShNd.transpose(0, 1).reshape(heads, size_s * size_n, width)
    prefix_scores = torch.bmm(q_hXd, shared_k_hPd.transpose(1, 2)).view(heads, size_s, size_n, prefix).transpose(0, 1)
    own_scores = q_ShNd @ own_k_ShMd.transpose(2, 3)
    scores = torch.cat([prefix_scores, own_scores], dim=-1)
    if mask_NL is not None:
        scores = scores.masked_fill(~mask_NL, float("-inf"))
    weights = scores.softmax(dim=-1)
    w_hXP = weights[..., :prefix].transpose(0, 1).reshape(heads, size_s * size_n, prefix)
    from_prefix = torch.bmm(w_hXP, shared_v_hPd).view(heads, size_s, size_n, width).transpose(0, 1)
    return from_prefix + weights[..., prefix:] @ own_v_ShMd
