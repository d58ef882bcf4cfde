"""The zoo: one family a file, one import here. Importing a file registers its models."""

from .convolutional import ConvAE, ConvVAE
from .denoising import DenoisingAE, StackedDenoisingAE
from .sparse import KSparseAE, SparseAE
from .vanilla import AE, DeepAE, LinearAE, TiedAE, TiedLinearAE
from .variational import VAE, BetaVAE

__all__ = [
    "AE",
    "VAE",
    "BetaVAE",
    "ConvAE",
    "ConvVAE",
    "DeepAE",
    "DenoisingAE",
    "KSparseAE",
    "LinearAE",
    "SparseAE",
    "StackedDenoisingAE",
    "TiedAE",
    "TiedLinearAE",
]
