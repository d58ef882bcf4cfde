"""Autoencoders with nothing but a narrow code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..base import BaseAE, Spec
from ..registry import register


@register("ae")
class AE(BaseAE):
    """The plain autoencoder: min over encoder e and decoder d of E[loss(x, d(e(x)))].

    Paper: Rumelhart, Hinton & Williams 1986, "Learning internal representations by error propagation".
    Deviations: ReLU hidden units by default, where the paper's are logistic (`mlp(activation='sigmoid')`), and any likelihood.
    Every keyword is one of `BaseAE`."""

    paper = "Rumelhart, Hinton & Williams 1986"


@register("linear_ae")
class LinearAE(BaseAE):
    """One linear layer each way, x^ = V (W x + b) + c: min |x - x^|^2 / D. With mse its optimum is the projection on the first K principal components: any optimum's test
    error is PCA's, while the code is a basis of the same space (not the components themselves).

    Paper: Baldi & Hornik 1989, "Neural networks and principal component analysis".
    Deviations: biases, so that the data need not be centred; found by gradient steps like everything here."""

    paper = "Baldi & Hornik 1989"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "linear", **base: Any):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)


@register("deep_ae")
class DeepAE(BaseAE):
    """The deep autoencoder D-1000-500-250-K, K = 30 by default, with a linear code: min loss(x, x^) with
    z = W_4 s(W_3 s(W_2 s(W_1 x))), x^ = V_1 s(V_2 s(V_3 s(V_4 z))), s the hidden units (biases left out).

    Paper: Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks".
    Deviations: ReLU hidden units trained from random weights, where the paper has logistic units that are first pre-trained as
    restricted Boltzmann machines (`backbone="mlp(widths=(1000, 500, 250), activation='sigmoid')"` gives its units)."""

    paper = "Hinton & Salakhutdinov 2006"

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 30,
        *,
        backbone: Spec = "mlp(widths=(1000, 500, 250))",
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)


@register("tied_ae")
class TiedAE(BaseAE):
    """A plain autoencoder whose decoder uses the encoder's weights transposed: half the weights, and a mild regulariser.
    Of one layer: x^ = W^T (W x + b) + c; of several, h = s(W_1 x + b_1), z = W_2 h + b_2, x^ = W_1^T s(W_2^T z + c_2) + c_1.

    Paper: Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders" (section 2.1).
    Deviations: by default several layers of ReLU units, where the paper has one sigmoid layer; no corruption (that is `denoising_ae`),
    and tied weights, which the paper leaves open, always."""

    paper = "Vincent et al. 2008"

    def __init__(
        self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "mlp(tied=True)", **base: Any
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)


@register("tied_linear_ae")
class TiedLinearAE(LinearAE):
    """x^ = W^T (W x + b) + c: at the optimum the rows of W are orthonormal and span the principal components.

    Paper: Baldi & Hornik 1989, "Neural networks and principal component analysis".
    Deviations: those of `linear_ae`; the transposed weights are not the paper's, whose two layers are free."""

    def __init__(
        self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "linear(tied=True)", **base: Any
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
