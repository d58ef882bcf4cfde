"""The zoo: one family a file, one import here. Importing a file registers its models."""

from .adversarial import VAEGAN, AdversarialAE, SoftIntroVAE
from .conditional import CVAE
from .contractive import ContractiveAE
from .convolutional import ConvAE, ConvVAE
from .denoising import DenoisingAE, StackedDenoisingAE
from .discrete import JointVAE
from .disentangling import DIPVAE, BetaTCVAE, CapacityVAE, FactorVAE
from .flow_posterior import IAFVAE
from .hierarchical import LadderVAE
from .images import VQGAN, AutoencoderKL, ResnetVAE, TinyAE
from .importance import CIWAE, IWAE, MIWAE
from .masked import MaskedAE
from .matching import SWAE, WAEMMD, InfoVAE
from .quantized import FSQAE, LFQAE, RVQVAE, VQVAE, SimVQAE
from .regularized import RAE
from .sae import BatchTopKSAE, MatryoshkaSAE, TopKSAE
from .sae_coders import Crosscoder, Transcoder
from .sae_penalty import L1SAE, GatedSAE, JumpReLUSAE
from .sequences import LSTMAE, TCNAE, TransformerAE
from .sparse import WTAAE, KSparseAE, SparseAE
from .spherical import SVAE
from .tabular import TabularAE, TabularVAE
from .unet_denoiser import UNetDenoiser
from .vamp import VampVAE
from .vanilla import AE, DeepAE, LinearAE, TiedAE, TiedLinearAE
from .variational import VAE, BetaVAE
from .vq_vae_2 import VQVAE2

__all__ = [
    "AE",
    "CIWAE",
    "CVAE",
    "DIPVAE",
    "FSQAE",
    "IAFVAE",
    "IWAE",
    "L1SAE",
    "LFQAE",
    "LSTMAE",
    "MIWAE",
    "RAE",
    "RVQVAE",
    "SVAE",
    "SWAE",
    "TCNAE",
    "VAE",
    "VAEGAN",
    "VQGAN",
    "VQVAE",
    "VQVAE2",
    "WAEMMD",
    "WTAAE",
    "AdversarialAE",
    "AutoencoderKL",
    "BatchTopKSAE",
    "BetaTCVAE",
    "BetaVAE",
    "CapacityVAE",
    "ContractiveAE",
    "ConvAE",
    "ConvVAE",
    "Crosscoder",
    "DeepAE",
    "DenoisingAE",
    "FactorVAE",
    "GatedSAE",
    "InfoVAE",
    "JointVAE",
    "JumpReLUSAE",
    "KSparseAE",
    "LadderVAE",
    "LinearAE",
    "MaskedAE",
    "MatryoshkaSAE",
    "ResnetVAE",
    "SimVQAE",
    "SoftIntroVAE",
    "SparseAE",
    "StackedDenoisingAE",
    "TabularAE",
    "TabularVAE",
    "TiedAE",
    "TiedLinearAE",
    "TinyAE",
    "TopKSAE",
    "Transcoder",
    "TransformerAE",
    "UNetDenoiser",
    "VampVAE",
]
