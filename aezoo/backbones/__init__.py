"""Backbones: encoder/decoder pairs that work for any input shape of rank 1 to 4. One family a file, one import here."""

from .base import ACTIVATIONS, BACKBONES, Backbone, Block, Blocks
from .conv import Conv
from .mlp import MLP, Linear
from .pair import Pair, build_backbone
from .pretrained import Torchvision
from .resnet import Resnet
from .sequence import LSTM, TCN, Series, Transformer
from .tiny import Tiny
from .unet import UNet
from .vit import ViT

__all__ = [
    "ACTIVATIONS",
    "BACKBONES",
    "LSTM",
    "MLP",
    "TCN",
    "Backbone",
    "Block",
    "Blocks",
    "Conv",
    "Linear",
    "Pair",
    "Resnet",
    "Series",
    "Tiny",
    "Torchvision",
    "Transformer",
    "UNet",
    "ViT",
    "build_backbone",
]
