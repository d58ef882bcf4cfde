"""Transformers over patches, for samples of rank 1 to 4 and of any size.

Legend: B batch, C channels, N patches on a grid, T of them that are looked at, W width, K numbers per code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .. import functional as fn
from ..registry import choice
from ..transformer import TransformerBlock
from .base import BACKBONES, Backbone


class Layout(NamedTuple):
    """How samples are cut: (channels, *size) into patches on a grid. Samples of rank 1 are one channel."""

    channels: int
    size: tuple[int, ...]
    patch: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        return fn.patch_grid(self.size, self.patch)

    @property
    def num_patches(self) -> int:
        """N."""
        return math.prod(self.grid)

    def patchify(self, x: Tensor) -> Tensor:
        """(B, *input_shape), or (B, P, *input_shape) -> (B, N, C or P * C, prod(patch))."""
        return fn.patchify(x.reshape(x.shape[0], -1, *self.size), self.patch)


class Positions(nn.Module):
    """Adds what tells patches apart: sines and cosines, or learned numbers that start as these. (B, N, W) -> the same."""

    table: Tensor

    def __init__(self, grid: tuple[int, ...], width: int, learned: bool):
        super().__init__()
        table = fn.sincos_positions(grid, width)
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.table


class PatchEncoder(nn.Module):
    """(B, *input_shape) -> (B, outputs) from the mean over all patches, or with `pool=False` (B, outputs, *grid)."""

    def __init__(self, layout: Layout, outputs: int, pool: bool, learned: bool, blocks: dict[str, Any], depth: int):
        super().__init__()
        width = blocks["width"]
        self.layout, self.pool = layout, pool
        self.embed = nn.Linear(layout.channels * math.prod(layout.patch), width)
        self.embed_norm = nn.LayerNorm(width)  # in data of small values the positions would drown what the patches hold
        self.positions = Positions(layout.grid, width, learned)
        self.blocks = nn.Sequential(*(TransformerBlock(**blocks) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, *input_shape) -> one token for each patch, with its position, (B, N, W)."""
        return self.positions(self.embed_norm(self.embed(self.layout.patchify(x).flatten(2))))

    def features(self, tokens: Tensor) -> Tensor:
        """Any of the tokens, in any order -> what the blocks make of them, (B, T, W)."""
        return self.norm(self.blocks(tokens))

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(self.tokens(x))
        if self.pool:
            return self.head(h.mean(1))
        return self.head(h).transpose(1, 2).reshape(x.shape[0], -1, *self.layout.grid)


class PatchDecoder(nn.Module):
    """(B, K), of which a linear layer makes a token for each patch, or with `pool=False` (B, K, *grid) -> (B, num_params, *input_shape)."""

    def __init__(
        self,
        layout: Layout,
        inputs: int,
        shape: tuple[int, ...],
        pool: bool,
        learned: bool,
        blocks: dict[str, Any],
        depth: int,
    ):
        super().__init__()
        width = blocks["width"]
        self.layout, self.shape, self.pool = layout, shape, pool
        self.embed = nn.Linear(inputs, width * (layout.num_patches if pool else 1))
        self.positions = Positions(layout.grid, width, learned)
        self.blocks = nn.Sequential(*(TransformerBlock(**blocks) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, shape[0] * layout.channels * math.prod(layout.patch))

    def data(self, tokens: Tensor) -> Tensor:
        """A token for each patch, (B, N, W), without its position -> (B, num_params, *input_shape)."""
        h = self.head(self.norm(self.blocks(self.positions(tokens))))
        patches = h.reshape(*h.shape[:2], -1, math.prod(self.layout.patch))  # (B, N, num_params * C, prod(patch))
        return fn.unpatchify(patches, self.layout.patch, self.layout.size).reshape(tokens.shape[0], *self.shape)

    def forward(self, z: Tensor) -> Tensor:
        if self.pool:
            return self.data(self.embed(z).reshape(z.shape[0], self.layout.num_patches, -1))
        return self.data(self.embed(z.flatten(2).transpose(1, 2)))


@BACKBONES.register("vit")
class ViT(Backbone):
    """Vision transformer: patches become tokens, pre-norm transformer blocks mix them, and the code is read off their mean. In the
    decoder a linear layer makes a token for each patch of the code, blocks mix these, and each is mapped to its patch.

    Paper: Dosovitskiy et al. 2020, arXiv:2010.11929. There is no class token, the embedded patches go through a layer norm,
    and learned positions start as sines and cosines.

    `input_shape`: (L,) is one channel of length L, (C, L), (C, H, W) or (C, D, H, W). `patch`: its size along each axis behind the
    channels, one number for all or one each; default: about an eighth of the axis. Where it does not divide, the last slice is
    repeated at the end, and cropped after. `width` of the tokens, `depth` blocks, `heads`, hidden units of a block `mlp_ratio`
    times its width; `decoder_width` and `decoder_depth` are those of the encoder unless given. `positions`: "learned" or "sincos"
    (fixed). `dropout` of each block's outcome."""

    def __init__(
        self,
        patch: int | Sequence[int] | None = None,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        decoder_width: int | None = None,
        decoder_depth: int | None = None,
        positions: str = "learned",
        dropout: float = 0.0,
    ):
        self.patch = patch
        self.depth = self._count("depth", depth)
        self.decoder_depth = self.depth if decoder_depth is None else self._count("decoder_depth", decoder_depth)
        self.learned = choice("vit: positions", positions, ["learned", "sincos"]) == "learned"
        if not (isinstance(dropout, (int, float)) and 0 <= dropout < 1):
            raise ValueError(f"vit: dropout={dropout!r} must be a number in [0, 1)")
        if not (isinstance(mlp_ratio, (int, float)) and mlp_ratio > 0):
            raise ValueError(f"vit: mlp_ratio={mlp_ratio!r} must be a number > 0")
        self._count("heads", heads)
        self.blocks: dict[str, Any] = {"width": width, "heads": heads, "mlp_ratio": mlp_ratio, "dropout": dropout}
        self.decoder_blocks = {**self.blocks, "width": width if decoder_width is None else decoder_width}
        for word, blocks in (("width", self.blocks), ("decoder_width", self.decoder_blocks)):
            if self._count(word, blocks["width"]) % heads:
                raise ValueError(f"vit: {word}={blocks['width']!r} must be a multiple of heads={heads!r}")

    def _count(self, word: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"vit: {word}={value!r} must be an integer of at least 1")
        return value

    def layout(self, input_shape: tuple[int, ...]) -> Layout:
        """How samples of this shape are cut into patches. Raises ValueError for a patch size that does not fit."""
        channels, *size = input_shape if len(input_shape) > 1 else (1, *input_shape)
        patch = fn.default_patch(size) if self.patch is None else self.patch
        patch = tuple(patch) if isinstance(patch, Sequence) else (patch,) * len(size)
        fine = len(patch) == len(size) and all(isinstance(p, int) and not isinstance(p, bool) for p in patch)
        if not fine or not all(1 <= p <= s for p, s in zip(patch, size)):
            raise ValueError(
                f"vit: patch={self.patch!r} must be a positive integer, or one for each axis of {tuple(size)}, and none longer "
                "than its axis"
            )
        return Layout(channels, tuple(size), patch)

    def build(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[PatchEncoder, PatchDecoder]:
        return self._pair(input_shape, latent_dim, code_params, num_params, pool=True)

    def build_grid(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[PatchEncoder, PatchDecoder, tuple[int, ...]]:
        """One vector for each patch."""
        encoder, decoder = self._pair(input_shape, latent_dim, code_params, num_params, pool=False)
        return encoder, decoder, encoder.layout.grid

    def _pair(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int, num_params: int, pool: bool
    ) -> tuple[PatchEncoder, PatchDecoder]:
        layout, shape = self.layout(input_shape), (num_params, *input_shape)
        encoder = PatchEncoder(layout, code_params * latent_dim, pool, self.learned, self.blocks, self.depth)
        decoder = PatchDecoder(layout, latent_dim, shape, pool, self.learned, self.decoder_blocks, self.decoder_depth)
        return encoder, decoder
