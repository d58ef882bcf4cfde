"""Codes from a finite set: each vector of the code is one of a codebook's.

Legend: B batch, C channels of a vector (`latent_dim`), K codes; z encoder output, e code vectors, sg stop-gradient. Terms of the
quantiser are sums over a sample's numbers beside a density (nats per sample), and means beside a plain loss, as the reconstruction is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import BaseAE, Code, number, positive
from ..index_prior import IndexPrior
from ..quantizers import FSQ, LFQ, Quantizer, ResidualQuantizer, SimVQ, VectorQuantizer
from ..registry import register


class QuantizedAE(BaseAE):
    """Base of the models whose code is a grid of code vectors, (latent_dim, *grid); a subclass sets `quantizer`.

    Beside the contract: `indices(x)` and `decode_indices(indices)`, integers from 0 to `num_codes` - 1 in `index_shape`."""

    spatial = True
    main_metric = "perplexity"
    index_prior = True  # its prior is one of indices, which a density of z is not
    quantizer: Quantizer

    @property
    def reduction(self) -> str:
        """Of the quantiser's terms: as the likelihood's."""
        return "sum" if self.likelihood.density else "mean"

    def bottleneck(self, h: Tensor, sample: bool) -> Code:
        z, _, terms, metrics = self.quantizer.counted(h)
        return Code(z, terms, metrics)

    def after_step(self) -> None:
        self.quantizer.after_step()

    @property
    def num_codes(self) -> int:
        return self.quantizer.num_codes

    @property
    def index_shape(self) -> tuple[int, ...]:
        """Shape of one sample's indices."""
        return (*self.grid, *([self.quantizer.levels] if self.quantizer.levels else []))

    def indices(self, x: Tensor) -> Tensor:
        """x (B, *input_shape) -> indices of its code, (B, *index_shape), int64. Deterministic, in evaluation mode."""
        self.check_input(x)
        with self.evaluating():
            return self.indices_of(self.hidden(x))

    def indices_of(self, h: Tensor) -> Tensor:
        return self.quantizer(h).indices

    def by_codebook(self, indices: Tensor) -> dict[str, Tensor]:
        """Indices (B, *index_shape) -> those of each codebook by its name, (B, ...): "1", "2", ... for levels, "" where there is one."""
        if not self.quantizer.levels:
            return {"": indices}
        return {str(i + 1): part for i, part in enumerate(indices.unbind(-1))}

    def codes(self, indices: Tensor) -> Tensor:
        """Indices (B, *index_shape) -> z (B, *latent_shape)."""
        return self.quantizer.codes(indices).to(self._weights_dtype())

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices (B, *index_shape) -> the mean in data space, (B, *input_shape).

        Raises TypeError or ValueError for what are no indices of this model."""
        if not isinstance(indices, Tensor) or indices.is_floating_point():
            got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(f"indices must be a tensor of integers of shape (batch, {self._shape_text}); got {got}")
        if tuple(indices.shape[1:]) != self.index_shape or not indices.dim() or not len(indices):
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}; {self.name} decodes (batch, {self._shape_text})"
            )
        low, high = (int(v) for v in indices.aminmax())
        if low < 0 or high >= self.num_codes:
            raise ValueError(f"indices lie in [{low}, {high}], but {self.name} has codes 0 to {self.num_codes - 1}")
        return self.decode(self.codes(indices))

    def sample(self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n new samples in data space, (n, *input_shape): indices from the prior, decoded. Raises ValueError without a prior."""
        if not isinstance(self.prior, IndexPrior):
            raise ValueError(
                f"{self.name} has no prior to sample from; "
                "aezoo.fit_prior(model, data, 'autoregressive') or 'maskgit' gives it one over its indices"
            )
        like = next(self.parameters())
        indices = self.prior.sample(positive("n", n), self.index_shape, like, generator)
        return self.decode(self.codes(indices), condition)

    @property
    def _shape_text(self) -> str:
        return ", ".join(map(str, self.index_shape))


def weight(name: str, value: float) -> float:
    """`value` if it can weigh a term."""
    return number(name, value, "a number of at least 0", lambda v: 0 <= v < math.inf)


@register("vq_vae")
class VQVAE(QuantizedAE):
    """Vector-quantised autoencoder: recon + |sg(z) - e|^2 + beta |z - sg(e)|^2, e the nearest of K code vectors to each z.

    Paper: van den Oord et al. 2017, arXiv:1711.00937 (eq. 3; moving averages: appendix A.1).
    Deviations: by default the codebook learns by moving averages instead of the second term, starts from encoder outputs of the first
    step's batch, and codes that die are revived (`quantizers.VectorQuantizer`; codebook="gradient", init="random", revive=0 give
    the paper's).

    Args (beside those of `BaseAE`; latent_dim: channels of a code vector): num_codes: K. codebook: "ema" or "gradient". decay, revive,
    rotation, init: as of `quantizers.VectorQuantizer`. beta: weight of the commitment.

    Terms: "commitment", and with codebook="gradient" "codebook". Metrics: "perplexity" and "usage" of the batch, and in the
    history of a training of all samples of the row or of the validation set (`figures`). `encode` returns the
    quantised code. There is no prior to sample from: `fit_prior(model, data, "autoregressive")` gives it one."""

    paper = "arXiv:1711.00937"
    weight_keywords = ("beta",)

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 64,
        *,
        num_codes: int = 512,
        codebook: str = "ema",
        decay: float = 0.99,
        revive: float = 0.1,
        rotation: bool = False,
        init: str = "data",
        beta: float = 0.25,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.beta = weight("beta", beta)
        self.quantizer = VectorQuantizer(
            num_codes, self.latent_dim, codebook=codebook, decay=decay, revive=revive, rotation=rotation, init=init,
            reduction=self.reduction,
        )  # fmt: skip

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"commitment": self.beta}


@register("rvq_vae")
class RVQVAE(QuantizedAE):
    """Residual vector quantisation: each vector is a sum of one code of each level, each level coding what those before left over:
    recon + sum_i (|sg(r_i) - e_i|^2 + beta |r_i - sg(e_i)|^2), r_1 = z, r_{i+1} = r_i - sg(e_i), z_q = sum_i e_i.

    Paper: Zeghidour et al. 2021 (SoundStream), arXiv:2107.03312 (section III.C). Deviations: those of `vq_vae`; no adversarial loss.

    Args (beside those of `vq_vae`): levels. num_codes: K of each level. level_dropout: probability that a sample, in training, has
    only its first levels, as many as a uniform draw says (the paper's quantiser dropout: 1).

    Terms, summed over levels, and metrics, means over them, as of `vq_vae`; indices (B, *grid, levels)."""

    paper = "arXiv:2107.03312"
    weight_keywords = ("beta",)

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 64,
        *,
        num_codes: int = 256,
        levels: int = 4,
        level_dropout: float = 0.0,
        codebook: str = "ema",
        decay: float = 0.99,
        revive: float = 0.1,
        rotation: bool = False,
        init: str = "data",
        beta: float = 0.25,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.beta = weight("beta", beta)
        self.quantizer = ResidualQuantizer(
            num_codes, self.latent_dim, levels=levels, level_dropout=level_dropout, codebook=codebook, decay=decay,
            revive=revive, rotation=rotation, init=init, reduction=self.reduction,
        )  # fmt: skip

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"commitment": self.beta}


@register("sim_vq_ae")
class SimVQAE(QuantizedAE):
    """VQ with a frozen random codebook behind one learned linear map, e = C W^T, so that no code can die alone:
    recon + |sg(z) - e|^2 + beta |z - sg(e)|^2, whose second term moves W.

    Paper: Zhu et al. 2024, arXiv:2411.02038. Deviations: no perceptual or adversarial loss, with which the paper trains its tokenizers
    (`vqgan` has them); the quantiser's terms are reduced as the reconstruction is.

    Args (beside those of `BaseAE`; latent_dim: channels of a code vector): num_codes: K. rotation: gradient by the rotation trick
    (arXiv:2410.06424). beta: weight of the commitment. Terms: "commitment", "codebook". Metrics: "perplexity", "usage"."""

    paper = "arXiv:2411.02038"
    weight_keywords = ("beta",)

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 16,
        *,
        num_codes: int = 512,
        rotation: bool = False,
        beta: float = 0.25,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.beta = weight("beta", beta)
        self.quantizer = SimVQ(num_codes, self.latent_dim, rotation=rotation, reduction=self.reduction)

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"commitment": self.beta}


@register("fsq_ae")
class FSQAE(QuantizedAE):
    """Finite scalar quantisation: channels are bounded by a tanh and rounded to a few levels each; there is no codebook to learn:

    q_c = round(h tanh(z_c + atanh(o / h)) - o) / floor(L_c / 2),  h = (L_c - 1) / 2,  o = 1/2 for even L_c, else 0;  min loss(x, x^).

    Paper: Mentzer et al. 2023, arXiv:2309.15505. Deviations: the shift is atanh(o / h), which sends 0 to 0, where the paper's listing
    has tan(o / h); h is a little larger than (L_c - 1) / 2 (by a factor of 1.001), where the listing's is a little smaller, so that the
    outermost levels are reached before infinity.

    Args (beside those of `BaseAE`): levels: of each channel; their product is the number of codes. latent_dim: channels of a code
    vector; where it is not the number of `levels`, a linear layer leads to one channel a level, and another one back.

    The loss is the reconstruction alone. Metrics: "perplexity", "usage"."""

    paper = "arXiv:2309.15505"

    def __init__(
        self, input_shape: Sequence[int], latent_dim: int = 4, *, levels: Sequence[int] = (8, 5, 5, 5), **base: Any
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.quantizer = FSQ(levels, self.latent_dim, reduction=self.reduction)


@register("lfq_ae")
class LFQAE(QuantizedAE):
    """Lookup-free quantisation: a code is a vector of signs; entropies keep each choice sure and all codes in use:
    recon + beta |z - sg(q)|^2 + entropy_weight (E[H(q(c|z))] - diversity H(E[q(c|z)])).

    Paper: Yu et al. 2023 (MAGVIT-v2), arXiv:2310.05737. Deviation: the weights, which the paper leaves open, and no adversarial loss.

    Args (beside those of `BaseAE`): num_codes: K, a power of 2. latent_dim: channels of a code vector; where it is not log2 K, a
    linear layer leads to log2 K channels, and another one back. temperature: of q(c|z). beta, entropy_weight, diversity: as above.

    Terms: "commitment", "code_entropy", "batch_entropy" (`quantizers.LFQ`). Metrics: "perplexity", "usage"."""

    paper = "arXiv:2310.05737"
    weight_keywords = ("beta", "entropy_weight", "diversity")

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 9,
        *,
        num_codes: int = 512,
        temperature: float = 1.0,
        beta: float = 0.05,
        entropy_weight: float = 0.02,
        diversity: float = 2.0,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.beta, self.entropy_weight = weight("beta", beta), weight("entropy_weight", entropy_weight)
        self.diversity = weight("diversity", diversity)
        self.quantizer = LFQ(num_codes, self.latent_dim, temperature=temperature, reduction=self.reduction)

    def term_weights(self) -> dict[str, float | Tensor]:
        entropy = self.entropy_weight
        return {"commitment": self.beta, "code_entropy": entropy, "batch_entropy": -entropy * self.diversity}
