"""Pre-norm transformer blocks, for whatever is a sequence of vectors: patches, time steps, indices of a codebook.

Legend: B batch, T tokens, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762): softmax(q k^T / sqrt(W / heads)) v in each head.

    The projection to q, k and v has no bias: that of the layer norm before it reaches all three (and one for k alone would cancel
    in the softmax). Torch's fused kernels have no second derivative; a gradient penalty through them needs
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around the step. Raises ValueError if `heads` does not divide `width`."""

    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads={heads!r} must be a positive integer that divides width={width!r}")
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, W), mask (B, T) bool, True where a token is valid -> (B, T, W)."""
        b, t, w = x.shape
        q, k, v = (
            self.qkv(x).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        )  # (B, heads, T, W/heads)
        seen = None if mask is None else self._seen(mask)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=self.causal and seen is None)
        return self.out(y.transpose(1, 2).reshape(b, t, w))

    def _seen(self, mask: Tensor) -> Tensor:
        """(B, T) -> (B, 1, T, T): which tokens each token looks at. Invalid ones look at themselves, since a softmax over nothing
        is NaN."""
        t = mask.shape[1]
        seen = mask[:, None, :] | torch.eye(t, dtype=torch.bool, device=mask.device)
        if self.causal:
            seen = seen.tril()
        return seen[:, None]


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with one hidden layer of mlp_ratio * W GELU units.

    `dropout` is applied to the outcome of both branches, never inside of the attention kernel, where the draws would depend on how
    the batch is spread over processes. `causal=True`: a token looks at itself and those before it."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4, dropout: float = 0.0, causal: bool = False):
        super().__init__()
        hidden = int(mlp_ratio * width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, W), mask (B, T) bool, True where a token is valid (None: all are) -> (B, T, W)."""
        x = x + self.dropout(self.attention(self.norm1(x), mask))
        return x + self.dropout(self.mlp(self.norm2(x)))
