"""Backbones: encoder/decoder pairs that work for any input shape of rank 1 to 4. One family a file, one import here."""

from .base import ACTIVATIONS, BACKBONES, Backbone, Block, Blocks
from .conv import Conv
from .mlp import MLP, Linear

__all__ = ["ACTIVATIONS", "BACKBONES", "MLP", "Backbone", "Block", "Blocks", "Conv", "Linear"]
