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
    Every keyword is one of `BaseAE`."""

    paper = "Rumelhart, Hinton & Williams 1986"


@register("linear_ae")
class LinearAE(BaseAE):
    """One linear layer each way. With mse its optimum is the projection on the first K principal components: any optimum's test
    error is PCA's, while the code is a basis of the same space (not the components themselves).

    Paper: Baldi & Hornik 1989, "Neural networks and principal component analysis"."""

    paper = "Baldi & Hornik 1989"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "linear", **base: Any):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)


@register("deep_ae")
class DeepAE(BaseAE):
    """The deep autoencoder D-1000-500-250-K, K = 30 by default, with a linear code.

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

    Paper: Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders" (section 2.1)."""

    paper = "Vincent et al. 2008"

    def __init__(
        self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "mlp(tied=True)", **base: Any
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)


@register("tied_linear_ae")
class TiedLinearAE(LinearAE):
    """x^ = W^T (W x + b) + c: at the optimum the rows of W are orthonormal and span the principal components.

    Paper: Baldi & Hornik 1989, "Neural networks and principal component analysis"."""

    def __init__(
        self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "linear(tied=True)", **base: Any
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
