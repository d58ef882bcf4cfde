"""Sparse autoencoders that keep the largest activations: of each sample, or of the whole batch.

Legend: B batch, D data dims, K latents; x data, z code, W_enc and W_dec one row per latent, b_enc and b_dec biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional as fn
from .. import sparse_ops
from ..base import AELoss, AEOutput, Terms, count, positive
from ..precision import Averaging
from ..registry import register
from ..wholebatch import batch_sum, whole_batch, whole_size
from .sae_dictionary import SAE, RowDecoder, RowEncoder

AUX = 1 / 32  # weight of AuxK, arXiv:2406.04093, appendix A.2


class LargestSAE(SAE):
    """Base of those that keep the largest activations, with AuxK, which brings dead latents back to life.

    AuxK (arXiv:2406.04093, appendix A.2): e = x - x^, held constant, is reconstructed as e^ = z_dead W_dec, without b_dec, from the
    `aux_k` largest pre-activations among the dead latents, at least 0. Term "aux": |e - e^|^2 / |e|^2 of each sample, 0 where e is 0 or
    no latent is dead; weight 1/32.

    Args (beside those of `SAE`):
        k: latents kept per sample, on average; by default a quarter of the latents, but at most 32.
        aux_k: by default the power of two nearest D/2, but at most K; 0: no auxiliary loss. Backbones other than "linear" have none.
        dead_after: samples of training without a positive value after which a latent is dead (the paper: ten million tokens).
        normalize_decoder: rows are unit vectors after every optimiser step (backbone "linear")."""

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 1024,
        *,
        k: int | None = None,
        aux_k: int | None = None,
        normalize_decoder: bool = True,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        k = min(32, max(1, self.latent_dim // 4)) if k is None else k
        if positive("k", k) > self.latent_dim:
            raise ValueError(f"k={k!r} must be an integer from 1 to latent_dim={self.latent_dim}")
        self.k = int(k)
        self.normalize_decoder = bool(normalize_decoder)
        self.aux_k = self._aux_k(aux_k)

    def _aux_k(self, aux_k: int | None) -> int:
        if not isinstance(self.decoder, RowDecoder):
            if aux_k:
                raise ValueError(f"aux_k={aux_k!r} needs a dictionary; take backbone='linear', or aux_k=0")
            return 0
        if aux_k is None:
            half = max(1.0, math.prod(self.sample_shape()) / 2)
            return min(self.latent_dim, 2 ** round(math.log2(half)))
        if count("aux_k", aux_k) > self.latent_dim:
            raise ValueError(f"aux_k={aux_k!r} must be an integer from 0 to latent_dim={self.latent_dim}")
        return int(aux_k)

    def term_weights(self) -> dict[str, float | Tensor]:
        """AuxK counts in training only: no dead latent takes part in what is judged, and a validation loss that rose with the first
        of them would keep the weights before."""
        return {"aux": AUX if self.training else 0.0} if self.aux_k else {}

    def after_step(self) -> None:
        if self.normalize_decoder and isinstance(self.decoder, RowDecoder) and self.decoder.training:  # not frozen
            self.decoder.normalize()

    def may_be_dead(self) -> bool:
        """Can a latent be dead by now? The host cannot look, but knows that none is before `dead_after` samples were seen: AuxK,
        0 until then, costs nothing so long. What is recorded once and run many times must hold AuxK from the start."""
        recorded = (
            torch.compiler.is_compiling()
            or getattr(torch._C._functorch, "peek_interpreter_stack", lambda: True)() is not None
            or (self.idle.is_cuda and torch.cuda.is_current_stream_capturing())
        )
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        return self.seen >= self.dead_after or recorded or several

    def more_terms(self, h: Tensor, params: Tensor, goal: Tensor) -> Terms:
        if not self.aux_k:
            return {}
        if not self.may_be_dead():
            return self.no_aux(params)
        assert isinstance(self.decoder, RowDecoder)
        z = fn.keep_top_k(h.masked_fill(~self.dead, -torch.inf), self.aux_k).relu()
        return self.aux_term(z @ self.decoder.rows, params, goal)

    def aux_term(self, estimate: Tensor, params: Tensor, goal: Tensor) -> Terms:
        """`estimate` of the residual, (B, P * D): of what the decoder emits per element the first belongs to the mean."""
        residual = (fn.full(goal) - fn.full(self.likelihood.mean(params))).detach().flatten(1)
        error = fn.relative_error(estimate[:, : residual.shape[1]], residual)
        return {"aux": torch.where(self.dead.any(), error, 0)}

    def no_aux(self, params: Tensor) -> Terms:
        """The same while no latent can be dead."""
        return {"aux": fn.full(params).new_zeros(len(params))}


@register("topk_sae")
class TopKSAE(LargestSAE):
    """TopK sparse autoencoder: z = relu(TopK(W_enc (x - b_dec) + b_enc)), x^ = z W_dec + b_dec, loss = |x - x^|^2 / D + AuxK / 32.

    Exactly k latents are kept per sample, those of them that are below 0 as 0. With the default backbone the step is sparse: one
    dense product, the encoder's, forward only; decoder and all gradients touch the k rows that each sample kept. AuxK adds the search
    among the dead latents and the `aux_k` rows that each sample finds there, which is by far the larger part; nothing, though,
    before `dead_after` samples were seen (recorded steps, compiled or as CUDA graphs, search from the start), or with `aux_k=0`.

    Paper: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093 (sections 2.2 and 2.3, appendix A.2).
    Deviations: the plain mean over dims of the squared error, where the paper divides by that of predicting the mean, a constant
    that Adam does not see but that counts beside the weight of AuxK; b_dec starts at 0, not at the data's geometric
    median; W_enc starts as W_dec without a rescaling that matches norms. The authors' code removes from a decoder row's gradient
    the part along the row before each step. Here only the step's outcome is normalised: a step along the row is undone either
    way, but that part does enter Adam's running moments.

    Args (beside those of `BaseAE`):
        k: latents kept per sample; by default a quarter of the latents, but at most 32.
        aux_k: dead latents that try to explain what is left; by default the power of two nearest D/2, but at most K. 0: none.
        dead_after: samples of training without a positive value after which a latent is dead; the paper's ten million. Small
            data sets want less: a few epochs.
        normalize_decoder: after every optimiser step each decoder row is made a unit vector again (default backbone only).
        backbone: "linear" is the model above. Any other ("mlp", "conv", "linear(tied=True)") gets the same TopK code through its
            ordinary dense layers, without the subtraction of b_dec, without unit rows and without AuxK.

    With likelihoods whose decoder emits logits, b_dec is a logit and subtracted all the same. Terms: "recon"; "aux", the share of
    the residual that the dead latents leave unexplained (0 while none is dead). Metrics: those of every SAE ("l0", "dead", "fvu") and
    "active", fraction of all latents that are above 0 for some sample of the batch (in what the loop logs: for some sample of the
    epoch, or of the validation set). `forward` fills in the dense code z, whose gradient is exact; `loss`, which training calls,
    never builds it. Not twice differentiable."""

    paper = "arXiv:2406.04093"

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        values, indices = h.topk(self.k, dim=1, sorted=False)
        return torch.zeros_like(h).scatter(1, indices, values.relu()), {}

    def watched(self, l0: Tensor, fired: Tensor, params: Tensor, goal: Tensor) -> Terms:
        count = batch_sum(fired[None].float())
        parts = {"active": (count > 0).float().mean(), "active.fired": count / whole_size(len(l0))}
        return {**parts, **super().watched(l0, fired, params, goal)}

    # ------------------------------------------------------------------------------------------------- the sparse step

    def is_sparse(self, x: Tensor) -> bool:
        """Can the sparse step be taken? Not through other backbones, with noise on the code, where the device has no
        `embedding_bag`, or in a compiler, which would pass over its own backward passes."""
        if torch.compiler.is_compiling():
            return False
        noise = any(c.where == "latent" for c in self.corruptions)
        return isinstance(self.encoder, RowEncoder) and not noise and x.device.type in ("cpu", "cuda")

    def sparse_step(
        self, x: Tensor, target: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, sparse_ops.SparseCode, Terms, Terms]:
        """Decoder output (B, P, *input_shape), code, terms and metrics. Raises as `forward` does."""
        self.check_input(x)
        goal = self.goal(x, target)
        self.check_condition(condition, len(x))
        assert isinstance(self.encoder, RowEncoder) and isinstance(self.decoder, RowDecoder)
        noisy = self.corrupt(x)
        search = bool(self.aux_k) and self.may_be_dead()
        if search:
            code, spare = self.encoder.sparse_pair(self.source(noisy), self.k, self.dead, self.aux_k)
        else:
            code = self.encoder.sparse(self.source(noisy), self.k)
        params = self.past_code(self.decoder.sparse(code), noisy)
        terms = {"recon": self.likelihood.nll(params, goal)}
        if search:
            terms |= self.aux_term(sparse_ops.decode(spare, self.decoder.rows), params, goal)
        elif self.aux_k:
            terms |= self.no_aux(params)
        with torch.no_grad():
            fires = (code.values > 0).float()
            fired = fires.new_zeros(self.latent_dim).index_add_(0, code.indices.view(-1), fires.view(-1))
            metrics = self.watched(fires.sum(1), fired, params, goal)
        return params, code, terms, metrics

    def forward(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> AEOutput:
        if isinstance(x, Tensor) and self.is_sparse(x):
            params, code, terms, metrics = self.sparse_step(x, target, condition)
            return AEOutput(self.likelihood.mean(params), sparse_ops.dense(code), terms, self.reported(metrics))
        return super().forward(x, target, condition)

    def loss(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> AELoss:
        """As in `BaseAE`, but the sparse step leaves the dense code out."""
        if isinstance(x, Tensor) and self.is_sparse(x):
            return self.weighed(*self.sparse_step(x, target, condition)[2:])
        out = self.propagate(x, target, condition)
        return self.weighed(out.terms, out.metrics)


@register("batch_topk_sae")
class BatchTopKSAE(Averaging, LargestSAE):
    """BatchTopK sparse autoencoder: f = relu(W_enc (x - b_dec) + b_enc); in training the B k largest of the whole batch's B K
    activations are kept, so that a sample uses as many latents as it needs, k on average.

    In evaluation mode z = f * 1[f > tau], for each sample by itself: tau is the running mean (momentum 0.99, bias-corrected, in
    buffers that are saved) of the smallest positive activation that a training batch kept; 0 before the first one. Activations that tie
    with the smallest kept one are kept, too.

    Paper: Bussmann, Leask & Nanda 2024, "BatchTopK sparse autoencoders", arXiv:2412.06410.
    Deviations: the mean over dims of the squared error; tau is a moving average where the paper's is over many batches at the end.
    Decoder rows are unit vectors, and their gradients have no part along them.

    Args (beside those of `BaseAE`): `k`, `aux_k`, `dead_after`, `normalize_decoder` and `backbone` as in `topk_sae`.
    Terms: "recon", and "aux" (weight 1/32). Metrics: "l0", "dead", "fvu"."""

    paper = "arXiv:2412.06410"
    MOMENTUM = 0.99
    averages = ("tau", "tau_weight")
    tau: Tensor
    tau_weight: Tensor

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 1024, **base: Any):
        super().__init__(input_shape, latent_dim, **base)
        self.register_buffer("tau", torch.zeros(()))  # not yet bias-corrected
        self.register_buffer("tau_weight", torch.zeros(()))  # 1 - momentum^t: what corrects it
        if self.normalize_decoder:
            self.project_rows()

    @property
    def threshold(self) -> Tensor:
        """tau, ()."""
        return self.tau / self.tau_weight.clamp_min(1e-30)

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        f = torch.relu(h)
        if not self.training:
            return f * (fn.full(f) > self.threshold), {}
        rows = whole_batch(f.detach())
        cutoff, smallest = fn.batch_cutoff(rows, len(rows) * self.k)
        self.remember(smallest)
        return f * (f.detach() >= cutoff), {}

    @torch.no_grad()
    def remember(self, smallest: Tensor) -> None:
        """Moves tau towards a batch's smallest positive activation; a batch without any changes nothing."""
        some = smallest < torch.inf
        gain = torch.where(some, 1 - self.MOMENTUM, 0.0)
        value = torch.where(some, smallest, 0).to(self.tau)
        self.tau.add_(gain.to(self.tau) * (value - self.tau))
        self.tau_weight.add_(gain.to(self.tau) * (1 - self.tau_weight))


@register("matryoshka_sae")
class MatryoshkaSAE(BatchTopKSAE):
    """Matryoshka sparse autoencoder: the first m latents alone must reconstruct, too, for several m, so the first ones become general
    and the last ones special: loss = sum over m of |x - x^_{1:m}|^2 / D, x^_{1:m} = sum_{i <= m} z_i W_dec,i + b_dec.

    The m are 0, where b_dec stands alone, and the ends of `groups`; the code z is that of one BatchTopK over all latents and serves
    all of them.

    Paper: Bussmann, Nabeshima, Karvonen & Nanda 2025, "Learning multi-level features with Matryoshka sparse autoencoders",
    arXiv:2503.17547 (section 3). Deviations: those of `batch_topk_sae`; fixed groups.

    Args (beside those of `batch_topk_sae`):
        groups: how many latents each prefix has more than the one before it; they add up to K. Default: each half of what is left,
            down to five groups: K/16, K/16, K/8, K/4, K/2.

    Terms: "recon", by all latents; "nested", the sum over the shorter prefixes, the empty one included, in the same unit; "aux"."""

    paper = "arXiv:2503.17547"

    def __init__(
        self, input_shape: Sequence[int], latent_dim: int = 1024, *, groups: Sequence[int] | None = None, **base: Any
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.groups = self._halves() if groups is None else tuple(positive("groups", g) for g in groups)
        if sum(self.groups) != self.latent_dim:
            raise ValueError(f"groups={groups!r} add up to {sum(self.groups)}, not to latent_dim={self.latent_dim}")

    def _halves(self) -> tuple[int, ...]:
        left: int = self.latent_dim
        sizes: list[int] = []
        while left > 1 and len(sizes) < 4:
            sizes.append(left - left // 2)
            left //= 2
        return (left, *reversed(sizes))

    def prefixes(self, z: Tensor) -> list[Tensor]:
        """Decoder output (B, P, *input_shape) for m = 0 and the end of each group but the last."""
        ends = [sum(self.groups[:i]) for i in range(len(self.groups))]
        if not isinstance(self.decoder, RowDecoder):
            place = torch.arange(self.latent_dim, device=z.device)
            return [self.emit(z * (place < m)) for m in ends]
        so_far, rows = self.decoder.bias.expand(z.shape[0], -1), self.decoder.rows
        outputs = [so_far]
        for start, end in zip(ends, ends[1:]):
            so_far = so_far + z[:, start:end] @ rows[start:end]
            outputs.append(so_far)
        return [o.reshape(z.shape[0], *self.decoder.shape) for o in outputs]

    def score(self, params: Tensor, z: Tensor, goal: Tensor) -> Terms:
        terms = super().score(params, z, goal)
        terms["nested"] = torch.stack([self.side_cost(p, goal) for p in self.prefixes(z)]).sum(0)
        return terms
