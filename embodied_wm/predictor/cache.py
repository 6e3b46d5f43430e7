"""Keys and values of the past: one context that every candidate reads, and each candidate's own suffix.

The context of a decision is encoded once. Its keys and values have no candidate dimension: all S candidates attend to
the same tensors through one matrix product (as in Hydragen, arXiv 2402.05099), never to S copies. Beside them each
candidate appends its own imagined frames to a buffer allocated once. Softmax runs over both score blocks together, so
the result is exactly that of ordinary attention over the concatenation.

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
        num_frames: Frames in the context (P = num_frames * tokens per block).
        next_position: Rotary position of the frame that follows the context.
        last_latents: [K, D], latents of the last context frame ([S, K, D] where candidates have a past of their own).
        before_last: [K, D], latents of the frame before it; the same where there is none.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    num_frames: int
    next_position: int
    last_latents: Tensor
    before_last: Tensor

    @property
    def is_joined(self) -> bool:
        """Tell whether candidates have pasts of their own: contexts of several environments in one."""
        return self.last_latents.ndim == 3

    @property
    def num_bytes(self) -> int:
        """Return the memory that the context's keys and values take; it does not depend on S."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

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
        )


def _of_one_length(contexts: Sequence[Context]) -> Context:
    """Return the first of contexts; raise ValueError unless all are as long."""
    lengths = sorted({context.num_frames for context in contexts})
    if len(lengths) != 1:
        raise ValueError(f"got contexts of {lengths} frames; those imagined together must be of one length")
    return contexts[0]


class CandidateCache:
    """Keep the keys and values that S candidates add to a shared context, in buffers allocated once."""

    def __init__(self, context: Context, *, num_candidates: int, max_tokens: int) -> None:
        self.context = context
        heads, _, width = context.keys[0].shape[-3:]
        shape = (num_candidates, heads, max_tokens, width)
        self.keys = [context.keys[0].new_empty(shape) for _ in context.keys]
        self.values = [context.keys[0].new_empty(shape) for _ in context.keys]
        self.num_tokens = 0

    @classmethod
    def apart(cls, contexts: Sequence[Context], *, max_tokens: int) -> Self:
        """Return a cache of candidates that do not share their past: one context each, nothing in common.

        Args:
            contexts: Of the same number of frames; their keys and values are copied in front of what is appended.
            max_tokens: Room for what is appended.

        Raises:
            ValueError: If contexts differ in their number of frames.
        """
        first = _of_one_length(contexts)
        nothing = tuple(keys[:, :0] for keys in first.keys)
        joined = Context(
            keys=nothing,
            values=nothing,
            num_frames=0,
            next_position=first.next_position,
            last_latents=torch.stack([context.last_latents for context in contexts]),
            before_last=torch.stack([context.before_last for context in contexts]),
        )
        past = first.keys[0].shape[1]
        cache = cls(joined, num_candidates=len(contexts), max_tokens=past + max_tokens)
        for layer in range(len(first.keys)):
            keys, values = (torch.stack([getattr(c, name)[layer] for c in contexts]) for name in ("keys", "values"))
            cache.put(layer, keys, values)
        cache.keep(past)
        return cache

    @property
    def num_bytes(self) -> int:
        """Return the memory of the candidates' own keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def put(self, layer: int, k_ShNd: Tensor, v_ShNd: Tensor) -> None:
        """Write new tokens behind the kept ones; only `keep` makes them stay.

        Where gradients flow back to actions the buffers are not written to, as attention to them is differentiated
        later: kept and new tokens are joined instead.
        """
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

    def visible(
        self, layer: int, num_new: int, window_tokens: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return views of the shared and own (keys, values) within the last `window_tokens` tokens."""
        prefix = self.context.keys[layer].shape[-2]
        stop = self.num_tokens + num_new
        first = max(0, prefix + stop - window_tokens)
        own_first = max(0, first - prefix)
        shared = (self.context.keys[layer][..., first:, :], self.context.values[layer][..., first:, :])
        own = (self.keys[layer][:, :, own_first:stop], self.values[layer][:, :, own_first:stop])
        return shared, own

    def keep(self, num_tokens: int) -> None:
        """Make the first `num_tokens` of the last `put` permanent."""
        self.num_tokens += num_tokens


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
