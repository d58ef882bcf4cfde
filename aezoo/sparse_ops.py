"""Sparse steps of TopK autoencoders: everything but the encoder's product costs B * k rows, not B * K.

A code with k of K latents per sample is kept as values and indices (B, k). Summing weighted rows of a matrix that the indices
name is one `embedding_bag`, in either direction:

    by sample:  out_b = sum_j values_bj W[indices_bj]             decoder; gradient of the encoder's input
    by latent:  G_l   = sum over pairs (b, j) with indices_bj = l of weights_bj rows_b        gradients of both weights

The second needs the B * k pairs sorted by latent, which is done once a step. Both read and write whole contiguous rows, so the
weights are stored with one row per latent: (K, D) for the encoder and for the decoder. Nothing here synchronises with the
host. First derivatives only: a second one raises RuntimeError.

Legend: B batch, D data dims, K latents, k latents kept per sample.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # neighbouring latents that `top_k` first looks at together
LARGE = 2**26  # multiplications from which `affine` asks oneDNN; small products are faster without


class SparseCode(NamedTuple):
    """A code of which each sample keeps k latents."""

    values: Tensor
    """(B, k), at least 0; in no particular order."""
    indices: Tensor
    """(B, k), int64: which latents they are."""
    order: Tensor
    """(B * k,), int64: the pairs (sample, latent), numbered row by row, sorted by latent."""
    offsets: Tensor
    """(K,), int64: where each latent's pairs begin in `order`."""


@cache
def onednn_linear() -> Callable[..., Tensor] | None:
    """oneDNN's x W^T + b in float32, or None where this build of torch lacks it or it does not do what is expected."""
    x, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([5.0])
    try:
        op = torch.ops.mkldnn._linear_pointwise  # not public: hence the trial
        return op if op(x, weight, bias, "none", [], "").tolist() == [[16.0]] else None
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # not there, or with another signature
        return None


@cache
def on_intel() -> bool:
    """Is this CPU of the maker of torch's BLAS?"""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return "Intel" in platform.processor()


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b without gradients: (B, D), (K, D), (K,) -> (B, K).

    Large float32 products on a CPU go to oneDNN: on AMD it is 1.2 to 1.4 times as fast as the BLAS behind `F.linear`, which is MKL, and
    on Intel the slower of the two."""
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and len(x) * weight.numel() >= LARGE
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not on_intel()
        and (fast := onednn_linear()) is not None
    ):
        return fast(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def top_k(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row and where they are, in no particular order: (B, K) -> (B, k), (B, k).

    Exact: what is among the k largest lies in one of the k chunks with the largest maxima, so only those are searched. Ties go
    to one of them. Not differentiable where it searches by chunks; `encode` does not need it to be."""
    rows, latents = z.shape
    chunks = latents // CHUNK
    if latents % CHUNK or chunks < 4 * k:
        return z.topk(k, dim=1, sorted=False)
    chunked = z.reshape(rows * chunks, CHUNK)
    best = chunked.amax(1).view(rows, chunks).topk(k, dim=1, sorted=False).indices  # (B, k), chunks
    first = torch.arange(0, rows * chunks, chunks, device=z.device)
    candidates = chunked.index_select(0, (best + first[:, None]).view(-1)).view(rows, k * CHUNK)
    values, where = candidates.topk(k, dim=1, sorted=False)
    return values, best.gather(1, where // CHUNK) * CHUNK + where % CHUNK


def by_latent(indices: Tensor, num_latents: int) -> tuple[Tensor, Tensor]:
    """Sorts the pairs (sample, latent) by latent: (B, k) -> `order` (B * k,), `offsets` (K,), as in `SparseCode`."""
    latents, order = indices.reshape(-1).sort(stable=True)  # stable: sums run in the order of the samples
    return order, torch.searchsorted(latents, torch.arange(num_latents, device=indices.device))


def sum_by_latent(rows: Tensor, weights: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    """G_l = sum over the pairs (b, j) of latent l of weights_bj rows_b: (B, D), (B, k) -> (K, D)."""
    sample = order // weights.shape[1]
    return F.embedding_bag(
        sample, rows.contiguous(), offsets, mode="sum", per_sample_weights=weights.reshape(-1)[order]
    )


def refuse_second_derivative() -> None:
    """Raises RuntimeError in a backward pass that is itself recorded (create_graph=True): the rows above have no derivative of
    their own, and a penalty on gradients would quietly lack its part."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("the sparse step has first derivatives only: create_graph=True is not possible through it")


class _Encode(torch.autograd.Function):
    """What is kept of `dense`, the pre-activations, which are a constant here: their gradient flows to what they are made of."""

    @staticmethod
    def forward(
        ctx: Any, dense: Tensor, centred: Tensor, x: Tensor, pre_bias: Tensor, weight: Tensor, bias: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values, indices = top_k(dense, k)
        values = values.relu().to(weight.dtype)
        order, offsets = by_latent(indices, len(weight))
        ctx.save_for_backward(centred.to(weight.dtype), weight, values, indices, order, offsets)
        ctx.mark_non_differentiable(indices, order, offsets)
        ctx.input_dtype = x.dtype
        return values, indices, order, offsets

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        centred, weight, values, indices, order, offsets = ctx.saved_tensors
        grad = grad * (values > 0)  # of the kept pre-activations
        grad_x = grad_pre_bias = None
        # sum_b grad_bl, as bags of rows one number wide
        grad_bias = F.embedding_bag(order, grad.reshape(-1, 1), offsets, mode="sum").view(-1)
        if ctx.needs_input_grad[2]:
            grad_x = F.embedding_bag(indices, weight, mode="sum", per_sample_weights=grad).to(ctx.input_dtype)
        if ctx.needs_input_grad[3]:
            grad_pre_bias = -(grad_bias @ weight)  # the sum over the batch comes first: one row for B of them
        grad_weight = sum_by_latent(centred, grad, order, offsets) if ctx.needs_input_grad[4] else None
        return None, None, grad_x, grad_pre_bias, grad_weight, grad_bias, None


class _WeightGradient(torch.autograd.Function):
    """The identity on what was decoded; in the backward pass it adds the gradient of the decoder's weight."""

    @staticmethod
    def forward(ctx: Any, decoded: Tensor, weight: Tensor, values: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(values, order, offsets)
        return decoded.view_as(decoded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        values, order, offsets = ctx.saved_tensors
        grad_weight = sum_by_latent(grad, values, order, offsets) if ctx.needs_input_grad[1] else None
        return grad, grad_weight, None, None, None


def encode(x: Tensor, pre_bias: Tensor, weight: Tensor, bias: Tensor, k: int) -> SparseCode:
    """relu(TopK(W (x - pre_bias) + bias)): x (B, D), pre_bias (D,), weight (K, D), bias (K,) -> `SparseCode`.

    The product with W is the only dense one of the whole step; it runs in autocast's precision, everything else in that of the
    weight. The gradient of what was kept flows to all four inputs, without a (B, K) tensor."""
    dense, centred = _product(x, pre_bias, weight, bias)
    return SparseCode(*_Encode.apply(dense, centred, x, pre_bias, weight, bias, k))


def encode_pair(
    x: Tensor, pre_bias: Tensor, weight: Tensor, bias: Tensor, k: int, among: Tensor, other_k: int
) -> tuple[SparseCode, SparseCode]:
    """`encode`, and the same with the `other_k` largest among some latents, (K,) bool, from one product.

    Where those are fewer than `other_k`, the second code is filled up with zeros, which have no gradient."""
    dense, centred = _product(x, pre_bias, weight, bias)
    masked = dense.masked_fill(~among, -torch.inf)
    return (
        SparseCode(*_Encode.apply(dense, centred, x, pre_bias, weight, bias, k)),
        SparseCode(*_Encode.apply(masked, centred, x, pre_bias, weight, bias, other_k)),
    )


@torch.no_grad()
def _product(x: Tensor, pre_bias: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """W (x - pre_bias) + bias and x - pre_bias, both without gradients."""
    centred = x - pre_bias
    # detached: autocast must not keep this cast, made without gradients, for other uses of the weight
    return affine(centred, weight.detach(), bias.detach()), centred


def decode(code: SparseCode, weight: Tensor) -> Tensor:
    """sum_j values_bj W[indices_bj]: weight (K, D) -> (B, D). Gradients flow to the values and to the weight."""
    decoded = F.embedding_bag(code.indices, weight.detach(), mode="sum", per_sample_weights=code.values)
    return _WeightGradient.apply(decoded, weight, code.values.detach(), code.order, code.offsets)


def dense(code: SparseCode) -> Tensor:
    """The code with its zeros, (B, K). Differentiable; costs nothing in the backward pass where nobody asks."""
    return code.values.new_zeros(len(code.values), len(code.offsets)).scatter(1, code.indices, code.values)
