"""What all sparse autoencoders for representations share: a dictionary of rows, counts of which of them are used, and figures.

Legend: B batch, D data dims, K latents, P numbers that the decoder emits per data element (1 but for "predicted" scales);
x data, z code, W_enc and W_dec one row per latent, b_enc and b_dec biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional as fn
from .. import sparse_ops
from ..backbones import Linear
from ..base import BaseAE, Code, Pass, Spec, Terms, count, number, positive
from ..figures import unexplained
from ..wholebatch import batch_sum, whole_batch


class RowDecoder(nn.Module):
    """z W + b with one contiguous row of W per latent: (B, K) -> (B, P, *shape). Rows are unit vectors at the start; of P > 1
    numbers per element, those after the mean start at 0."""

    across = False  # take the part along each row out of its gradient

    def __init__(self, shape: tuple[int, ...], latent_dim: int, num_params: int):
        super().__init__()
        dims = math.prod(shape)
        self.shape = (num_params, *shape)
        self.weight = nn.Parameter(torch.zeros(latent_dim, num_params * dims))
        self.bias = nn.Parameter(torch.zeros(num_params * dims))
        with torch.no_grad():
            self.weight[:, :dims] = F.normalize(torch.randn(latent_dim, dims), dim=1)

    @property
    def rows(self) -> Tensor:
        """The weight, as everything that decodes uses it."""
        return fn.across_rows(self.weight) if self.across else self.weight

    def forward(self, z: Tensor) -> Tensor:
        return torch.addmm(self.bias, z, self.rows).view(z.shape[0], *self.shape)

    def sparse(self, code: sparse_ops.SparseCode) -> Tensor:
        """The same from a sparse code."""
        return (sparse_ops.decode(code, self.rows) + self.bias).view(len(code.values), *self.shape)

    @torch.no_grad()
    def normalize(self) -> None:
        """Makes every row a unit vector."""
        self.weight.div_(torch.linalg.vector_norm(self.weight, dim=1, keepdim=True).clamp_min(1e-12))


class RowEncoder(nn.Module):
    """W (x - b_dec) + b, or W x + b if not `centred`: (B, *shape) -> (B, K). W starts as the decoder's rows, b as 0."""

    decoder: RowDecoder

    def __init__(self, decoder: RowDecoder, dims: int, centred: bool = True):
        super().__init__()
        object.__setattr__(self, "decoder", decoder)  # not registered as a child: b_dec is in the state once
        self.centred = centred
        self.weight = nn.Parameter(decoder.weight.detach()[:, :dims].clone())
        self.bias = nn.Parameter(torch.zeros(len(self.weight)))

    @property
    def pre_bias(self) -> Tensor:
        """What is taken from x: b_dec, or nothing."""
        return self.decoder.bias[: self.weight.shape[1]] if self.centred else self.bias.new_zeros(())

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return F.linear(x - self.pre_bias if self.centred else x, self.weight, self.bias)

    def sparse(self, x: Tensor, k: int) -> sparse_ops.SparseCode:
        """relu(TopK(.)) of the same, sparse."""
        return sparse_ops.encode(x.flatten(1), self.pre_bias, self.weight, self.bias, k)

    def sparse_pair(
        self, x: Tensor, k: int, dead: Tensor, aux_k: int
    ) -> tuple[sparse_ops.SparseCode, sparse_ops.SparseCode]:
        """The same, and relu(TopK(.)) of `aux_k` among the latents that are `dead`, (K,) bool, from one product."""
        return sparse_ops.encode_pair(x.flatten(1), self.pre_bias, self.weight, self.bias, k, dead, aux_k)


class SAE(BaseAE):
    """Base of the sparse autoencoders: K latents, many more than dims, of which each sample uses a few.

    With the backbone "linear" the decoder is a dictionary with a row per latent and the encoder starts as its transpose; other
    backbones keep their own layers. A latent is dead if it was at 0 for the last `dead_after` samples of training; they are counted
    over the whole batch of all processes, in a buffer.

    Metrics: "l0", latents above 0 per sample; "dead", fraction of all latents; "fvu", ||x - x^||^2 / ||x - mean(x)||^2, sums and mean
    over the batch, and in the history of a training over all samples of the row or of the validation set (`figures`). `evaluate` calls
    dead what never fires on its data."""

    main_metric = "fvu"
    sparse_code = True
    idle: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 1024,
        *,
        dead_after: int = 10_000_000,
        backbone: Spec = "linear",
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
        self.dead_after = positive("dead_after", dead_after)
        self.register_buffer("idle", torch.zeros(self.latent_dim, dtype=torch.long))  # samples since it last fired
        self.seen = 0  # samples of training, counted on the host: no latent has been idle for more

    def sample_shape(self) -> tuple[int, ...]:
        """Shape of what is encoded, and of what is decoded."""
        return self.input_shape

    @property
    def has_rows(self) -> bool:
        """Is the decoder a dictionary of rows?"""
        return isinstance(self.decoder, RowDecoder)

    def build_networks(self) -> None:
        shape, outputs = self.sample_shape(), self.likelihood.num_params
        if type(self.backbone) is Linear and not self.backbone.tied:
            self.decoder = RowDecoder(shape, self.latent_dim, outputs)
            self.encoder = RowEncoder(self.decoder, math.prod(shape))
            return
        if self.backbones:
            raise ValueError(
                f"{self.name} has a dictionary of its own: backbone={self.backbone.name!r} with tied=True does not fit; "
                "take backbone='linear'"
            )
        self.encoder, self.decoder = self.backbone.build(shape, self.latent_dim, 1, outputs)

    def project_rows(self) -> None:
        """Rows stay unit vectors: `after_step` normalises them, and their gradients have no part along them."""
        if isinstance(self.decoder, RowDecoder):
            self.decoder.across = True

    def after_step(self) -> None:
        if isinstance(self.decoder, RowDecoder) and self.decoder.across and self.decoder.training:  # not frozen
            self.decoder.normalize()

    # -------------------------------------------------------------------------------------------- one pass, in its parts

    def source(self, x: Tensor) -> Tensor:
        """What of a sample is encoded."""
        return x

    def goal(self, x: Tensor, target: Tensor | None) -> Tensor:
        """What is to be reconstructed. Raises ValueError for a target of another shape."""
        if target is None:
            return x
        self.check_input(target, "target")
        return target

    def hidden(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.encoder(self.source(x))

    def past_code(self, params: Tensor, x: Tensor) -> Tensor:
        """Adds what reaches the output past the code: nothing."""
        return params

    def score(self, params: Tensor, z: Tensor, goal: Tensor) -> Terms:
        """What the reconstruction costs."""
        return {"recon": self.likelihood.nll(params, goal)}

    def more_terms(self, h: Tensor, params: Tensor, goal: Tensor) -> Terms:
        """Terms that need encoder output and reconstruction."""
        return {}

    def side_cost(self, params: Tensor, goal: Tensor) -> Tensor:
        """What another reconstruction than the model's own costs, (B,): leaves a running scale of the likelihood alone."""
        mode, self.likelihood.training = self.likelihood.training, False
        try:
            return self.likelihood.nll(params, goal)
        finally:
            self.likelihood.training = mode

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        self.check_input(x)
        goal = self.goal(x, target)
        self.check_condition(condition, len(x))
        noisy = self.corrupt(x)
        h = self.hidden(noisy)
        code = Code(*self.bottleneck(h, sample=True))
        z = self.corrupt(code.z, "latent")
        params = self.past_code(self.emit(z), noisy)
        terms = {**self.score(params, z, goal), **code.terms, **self.more_terms(h, params, goal)}
        with torch.no_grad():
            fires = code.z > 0
            metrics = self.watched(fires.sum(1).float(), fires.sum(0), params, goal)
        return Pass(params, code.z, terms, metrics)

    # ------------------------------------------------------------------------------------------------ counts and figures

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.seen = self.dead_after  # what is loaded may have been idle for any time

    @property
    def dead(self) -> Tensor:
        """(K,) bool: has not fired for `dead_after` samples."""
        return self.idle >= self.dead_after

    @torch.no_grad()
    def watched(self, l0: Tensor, fired: Tensor, params: Tensor, goal: Tensor) -> Terms:
        """The metrics. Counts the batch in training mode: l0 (B,), and for how many of its samples each latent fired, (K,)."""
        if self.training:
            samples = len(whole_batch(l0))  # those of all processes
            anywhere = batch_sum(fired[None].float()) > 0
            if not torch.compiler.is_compiling():
                self.seen += samples
            self.idle.add_(samples).masked_fill_(anywhere, 0)
        return {"l0": l0, "dead": self.dead.float().mean(), **unexplained(self.likelihood.mean(params), goal)}


class PenalisedSAE(SAE):
    """Base of those that pay for what they use: recon + weight * sparsity.

    Args (beside those of `SAE`):
        weight: lambda. The plain losses ("mse") are means over the D dims where the papers sum, so with them lambda is the paper's
            divided by D. With a density, which sums, it is the paper's for `likelihood="gaussian(sigma=0.7071)"` (|x - x^|^2 up to
            a constant). Default: `lam` of the class, divided by D with plain losses.
        warmup: optimiser steps over which lambda rises linearly from 0 in training (0: none). Evaluation always uses all of it."""

    weight_keywords = ("weight", "warmup")
    lam = 1.0
    num_steps: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 1024,
        *,
        weight: float | None = None,
        warmup: int = 0,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        if weight is None:
            weight = self.lam if self.likelihood.density else self.lam / math.prod(self.sample_shape())
        self.weight = number("weight", weight, "a number of at least 0", lambda v: 0 <= v < math.inf)
        self.warmup = count("warmup", warmup)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))

    def term_weights(self) -> dict[str, float | Tensor]:
        if self.training and self.warmup:
            return {"sparsity": self.weight * (self.num_steps / self.warmup).clamp(max=1.0)}
        return {"sparsity": self.weight}

    def after_step(self) -> None:
        super().after_step()
        self.num_steps += 1
