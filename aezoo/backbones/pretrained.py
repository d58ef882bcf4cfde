"""Residual networks of torchvision as encoders, from random or from published weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import ResnetDecoder, halved
from ..registry import choice
from .base import BACKBONES, Backbone

FAMILIES = ("resnet", "resnext", "wide_resnet")
STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the data that the published weights were trained on
SMALL = 64  # pictures up to this size have the small stem


def torchvision_models() -> Any:
    """The module `torchvision.models`. Raises ImportError saying what to do where it does not load."""
    try:
        import torchvision.models as models
    except (
        ImportError,
        RuntimeError,
        AttributeError,
        OSError,
    ) as error:  # a build for another torch fails in many ways
        raise ImportError(
            f"backbone 'torchvision' needs the package torchvision, which does not load here ({type(error).__name__}: {error}); "
            f"install the build that belongs to torch {torch.__version__}, or take backbone='resnet'"
        ) from error
    return models


@BACKBONES.register("torchvision")
class Torchvision(Backbone):
    """A residual network of torchvision (He et al. 2015, arXiv:1512.03385) without its last layer as the encoder; the decoder is that
    of backbone "resnet". Pictures only: (channels, height, width).

    `model`: "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", ... `weights`: None (random), "DEFAULT" or one of the model's
    weights by name ("IMAGENET1K_V1"), fetched when the model is built. Published weights take data in [0, 1], which is shifted and
    scaled as they expect, and any number of channels: the first convolution's kernels become their mean over colours, so
    that a grey picture, or several equal channels, give the response to the same picture in colour.
    `stem`: "imagenet" (7x7 stride 2, max-pooling: a 32nd of the size), "small" (3x3 stride 1, no pooling: an 8th; of published
    kernels the middle), or "auto": small up to 64 pixels. `width`: channels of the decoder's largest maps, doubled twice on the way
    down. `blocks`: of the decoder, as of "resnet"."""

    def __init__(
        self,
        model: str = "resnet18",
        weights: str | None = None,
        stem: str = "auto",
        width: int = 32,
        blocks: int = 1,
    ):
        models = torchvision_models()
        names = [n for n in models.list_models(module=models) if n.startswith(FAMILIES)]
        self.model = choice(f"{self.name}: model", model, names)
        if weights is not None:
            known = [w.name for w in models.get_model_weights(model)]
            choice(f"{self.name}: weights", weights, ["DEFAULT", *known])
        self.weights, self.stem = weights, choice(f"{self.name}: stem", stem, ["auto", "small", "imagenet"])
        for key, value in {"width": width, "blocks": blocks}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"torchvision: {key}={value!r} must be an integer of at least 1")
        self.width, self.blocks = width, blocks

    def build(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        trunk, widths, grid = self._parts(input_shape)
        smallest = (widths[-1], *grid)
        head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(trunk.features, code_params * latent_dim)
        )
        decoder = ResnetDecoder(input_shape, widths, widths[-1], num_params, self.blocks, attention=False)
        first = nn.Linear(latent_dim, math.prod(smallest))
        return nn.Sequential(trunk, head), nn.Sequential(first, nn.Unflatten(1, smallest), decoder)

    def build_grid(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
        trunk, widths, grid = self._parts(input_shape)
        head = nn.Conv2d(trunk.features, code_params * latent_dim, 1)
        decoder = ResnetDecoder(input_shape, widths, latent_dim, num_params, self.blocks, attention=False)
        return nn.Sequential(trunk, head), decoder, grid

    def _parts(self, input_shape: tuple[int, ...]) -> tuple[Trunk, list[int], tuple[int, ...]]:
        """The encoder's trunk, the decoder's widths, and the size of the smallest map."""
        if len(input_shape) != 3:
            raise ValueError(
                f"backbone 'torchvision' takes pictures, input_shape=(channels, height, width), not {input_shape!r}; "
                "backbone='resnet' takes any shape"
            )
        channels, *size = input_shape
        small = self.stem == "small" or (self.stem == "auto" and min(size) <= SMALL)
        times = 3 if small else 5
        widths = [self.width * min(2**i, 4) for i in range(times + 1)]
        return Trunk(self.model, self.weights, channels, small), widths, halved(size, times)[-1]


class Trunk(nn.Module):
    """(B, channels, H, W) -> (B, features, h, w): torchvision's network `model` up to its last map."""

    mean: Tensor | None
    std: Tensor

    def __init__(self, model: str, weights: str | None, channels: int, small: bool):
        super().__init__()
        net = torchvision_models().get_model(model, weights=weights)
        self.features: int = net.fc.in_features
        first = nn.Conv2d(
            channels, 64, 3 if small else 7, stride=1 if small else 2, padding=1 if small else 3, bias=False
        )
        if weights is None:
            nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        else:
            with torch.no_grad():
                first.weight.copy_(adapted(net.conv1.weight, channels, small))
        net.conv1 = first
        if small:
            net.maxpool = nn.Identity()
        del net.avgpool, net.fc
        self.net = net
        own = channels == len(MEAN)
        mean, std = (torch.tensor(v if own else [sum(v) / len(v)]).view(1, -1, 1, 1) for v in (MEAN, STD))
        self.register_buffer("mean", mean if weights else None, persistent=False)
        self.register_buffer("std", std if weights else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.mean is None else (x - self.mean) / self.std
        for stage in STAGES:
            h = getattr(self.net, stage)(h)
        return h


def adapted(kernels: Tensor, channels: int, small: bool) -> Tensor:
    """The first convolution's (C', 3, 7, 7) for another number of channels, whose responses add up to the same where all
    channels are equal, and for the small stem the kernels' middle, (C', channels, 3, 3)."""
    if channels != kernels.shape[1]:
        kernels = kernels.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
    return kernels[:, :, 2:5, 2:5] if small else kernels
