"""Fully connected backbones: the input is flattened, whatever its rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from .base import BACKBONES, Backbone, Block, Blocks, Tied, check_tied, checked, linear_transposed


@BACKBONES.register("mlp")
class MLP(Backbone):
    """Layers of `widths` units between data and code, mirrored in the decoder: D - w1 - ... - wn - K - wn - ... - w1 - D.

    Each hidden layer is linear, `norm` ("none", "batch", "layer"), `activation`, `dropout`; code and output layers are linear.
    `tied=True`: the decoder uses the encoder's weights transposed, with biases of its own."""

    def __init__(
        self,
        widths: Sequence[int] = (512, 256),
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        tied: bool = False,
    ):
        self.widths = checked(self.name, widths, activation, norm, dropout)
        self.tied = tied
        self.hidden: dict[str, Any] = {"activation": activation, "norm": norm, "dropout": dropout}

    def build(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        dims = math.prod(input_shape)
        sizes = [dims, *self.widths, latent_dim]
        last = len(sizes) - 2
        if self.tied:
            check_tied(self.name, num_params)

        def hidden(is_hidden: bool) -> dict[str, Any]:
            return self.hidden if is_hidden else {}

        layers = [nn.Linear(a, b * (code_params if i == last else 1)) for i, (a, b) in enumerate(zip(sizes, sizes[1:]))]
        encoder = Blocks(
            *(
                Block(layer, sizes[i + 1], before=(dims,) if i == 0 else None, **hidden(i < last))
                for i, layer in enumerate(layers)
            )
        )
        decoder = Blocks(
            *(
                Block(
                    Tied(layers[i], linear_transposed, sizes[i])
                    if self.tied
                    else nn.Linear(sizes[i + 1], sizes[i] * (num_params if i == 0 else 1)),
                    sizes[i],
                    after=(num_params, *input_shape) if i == 0 else None,
                    **hidden(i > 0),
                )
                for i in range(last, -1, -1)
            )
        )
        return encoder, decoder


@BACKBONES.register("linear")
class Linear(MLP):
    """One linear layer each way (with biases): with mse its optimum spans the principal components (Baldi & Hornik 1989)."""

    def __init__(self, tied: bool = False):
        super().__init__(widths=(), tied=tied)
