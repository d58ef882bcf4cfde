"""Backbones for series: recurrent, convolutional in time, and attention.

A sample is read as T steps of C numbers each. Which axis is time:

    (T,)         T steps of one number
    (T, C)       T steps of C channels
    (C, H, W)    H steps of C * W numbers, an image row by row; (C, D, H, W) likewise along D

and `time=` names another axis of the sample (`time=1` for series kept as (channels, time)).

**Missing steps.** NaN in x means "not there". A step without any number in it (padding at the end of a shorter series, or a gap) is
left out: the recurrent encoder skips it, attention does not see it, convolutions see zeros there, as they do beyond the series'
ends, and means over time pass over it. In a step of which only some numbers are missing, these read as 0. The decoders are
causal: what they emit for a step does not depend on how many steps follow. So a padded series has the same code, and the same
reconstruction at its own steps, as it has alone in a model of its own length with these weights.

Legend: B batch, T steps, C channels, W width, K size of the code, P numbers the likelihood needs per data element.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional as fn
from ..transformer import TransformerBlock
from .base import BACKBONES, Backbone, Blocks


class Layout:
    """Between samples and series: (B, *input_shape) <-> (B, T, C)."""

    def __init__(self, name: str, input_shape: tuple[int, ...], time: int | None):
        rank = len(input_shape)
        axis = (0 if rank < 3 else 1) if time is None else time
        if not 0 <= axis < rank:
            raise ValueError(
                f"{name}: time={time!r} must be an axis of a sample of shape {input_shape}: 0 to {rank - 1}"
            )
        self.axis, self.steps = axis, input_shape[axis]
        self.rest = input_shape[:axis] + input_shape[axis + 1 :]
        self.channels = math.prod(self.rest)

    def series(self, x: Tensor) -> Tensor:
        """(B, *input_shape) -> (B, T, C)."""
        return x.movedim(1 + self.axis, 1).reshape(x.shape[0], self.steps, self.channels)

    def params(self, y: Tensor) -> Tensor:
        """(B, T, P * C) -> (B, P, *input_shape)."""
        return y.unflatten(2, (-1, *self.rest)).movedim(1, 2 + self.axis)


class SeriesEncoder(nn.Module):
    """x (B, *input_shape) with NaN where there is nothing -> what `body` makes of the series -> (B, outputs)."""

    def __init__(self, layout: Layout, body: nn.Module, features: int, outputs: int):
        super().__init__()
        self.layout, self.body, self.head = layout, body, nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        series = self.layout.series(x)
        there = ~torch.isnan(series)
        return self.head(self.body(fn.filled(series, there), there.any(2)))


class SeriesDecoder(nn.Module):
    """z (B, K) -> what `body` makes of it for every step, (B, T, W) -> (B, P, *input_shape)."""

    def __init__(self, layout: Layout, body: nn.Module, features: int, num_params: int):
        super().__init__()
        self.layout, self.body, self.head = layout, body, nn.Linear(features, num_params * layout.channels)

    def forward(self, z: Tensor) -> Tensor:
        return self.layout.params(self.head(self.body(z)))


class Positions(nn.Module):
    """Tells the steps apart: x_t * (1 + gain_t) + shift_t, both learned projections of the fixed sines and cosines of step t
    (arXiv:1706.03762, section 3.5, where they are added as they are). The gain lets a mean over time hold when things happened,
    and one code write differently at each step. A function of t alone, whatever T is."""

    WAVELENGTHS = 32
    table: Tensor

    def __init__(self, steps: int, width: int):
        super().__init__()
        table = fn.sincos_positions((steps,), 2 * self.WAVELENGTHS)
        self.register_buffer("table", table, persistent=False)  # a function of the sizes alone
        self.mix = nn.Linear(2 * self.WAVELENGTHS, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W), or (B, W) the same at every step -> (B, T, W)."""
        gain, shift = self.mix(self.table).chunk(2, dim=1)
        return (x[:, None] if x.dim() == 2 else x) * (1 + gain) + shift


class Series(Backbone):
    """Base of the backbones for series: options that they share, and how their two networks come about."""

    def __init__(self, width: int, layers: int, dropout: float, time: int | None):
        self.width, self.layers = _whole(self.name, "width", width), _whole(self.name, "layers", layers)
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError(f"{self.name}: dropout={dropout!r} must be a number in [0, 1)")
        if time is not None and (isinstance(time, bool) or not isinstance(time, int)):
            raise ValueError(f"{self.name}: time={time!r} must be an axis of a sample, an integer from 0, or None")
        self.dropout, self.time = float(dropout), time

    def bodies(self, layout: Layout, latent_dim: int) -> tuple[nn.Module, int, nn.Module]:
        """(encoder's body (B, T, C), mask (B, T) -> (B, E); E; decoder's body (B, K) -> (B, T, W))."""
        raise TypeError(f"{type(self).__name__} does not define bodies")

    def build(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        layout = Layout(self.name, input_shape, self.time)
        reader, features, writer = self.bodies(layout, latent_dim)
        encoder = SeriesEncoder(layout, reader, features, code_params * latent_dim)
        return Blocks(encoder), Blocks(SeriesDecoder(layout, writer, self.width, num_params))


def _whole(name: str, word: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: {word}={value!r} must be an integer of at least 1")
    return value


# ----------------------------------------------------------------------------------------------------------- recurrent


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Steps by position: x (B, T, W), index (B, S) -> (B, S, W)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def _run(lstm: nn.Module, x: Tensor, start: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """All states of an LSTM, (B, T, C) -> (B, T, W); in full precision on CPUs, not all of which have it in bfloat16."""
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            states: Tensor = lstm(fn.full(x), None if start is None else (fn.full(start[0]), fn.full(start[1])))[0]
            return states
    return lstm(x, None if start is None else (start[0].to(x.dtype), start[1].to(x.dtype)))[0]


class LSTMReader(nn.Module):
    """(B, T, C), mask (B, T) -> the last states of the top layer's directions, (B, W) or (B, 2 W).

    The steps that are there are moved to the front (their order is kept), so one pass over all T steps gives the states of each
    series up to its own last step, which is picked; the backward direction reads each series from its own end. A series of no
    step has the code of zeros. No lengths travel to the host, as packing would need."""

    def __init__(self, channels: int, width: int, layers: int, bidirectional: bool, dropout: float):
        super().__init__()
        self.bidirectional, self.dropout = bidirectional, nn.Dropout(dropout)
        inputs = [channels] + [width * (2 if bidirectional else 1)] * (layers - 1)
        self.ahead = nn.ModuleList(nn.LSTM(n, width, batch_first=True) for n in inputs)
        self.back = nn.ModuleList(nn.LSTM(n, width, batch_first=True) for n in inputs if bidirectional)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        length = mask.sum(1, keepdim=True)  # (B, 1)
        steps = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        x = _take(
            x, torch.where(mask, steps, steps + x.shape[1]).argsort(1)
        )  # no two keys are equal: any sort keeps the order
        mirror = torch.where(steps < length, length - 1 - steps, steps)  # its own inverse
        for i, ahead in enumerate(self.ahead):
            x = self.dropout(x) if i else x
            y = _run(ahead, x)
            if self.bidirectional:
                y = torch.cat([y, _take(_run(self.back[i], _take(x, mirror)), mirror)], 2)
            x = y
        last = _take(x, (length - 1).clamp_min(0))[:, 0]
        if self.bidirectional:  # backwards, the last state is that at the first step
            w = last.shape[1] // 2
            last = torch.cat([last[:, :w], x[:, 0, w:]], 1)
        return fn.filled(last, length > 0)


class LSTMWriter(nn.Module):
    """z (B, K) -> (B, T, W): z sets the state before the first step (through a linear layer) and is the input at every step."""

    def __init__(self, latent_dim: int, steps: int, width: int, layers: int, dropout: float):
        super().__init__()
        self.steps, self.layers, self.width = steps, layers, width
        self.start = nn.Linear(latent_dim, 2 * layers * width)
        self.lstms = nn.ModuleList(nn.LSTM(width if i else latent_dim, width, batch_first=True) for i in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor) -> Tensor:
        start = self.start(z).view(z.shape[0], 2, self.layers, self.width).permute(1, 2, 0, 3)  # (2, layers, B, W)
        x = z[:, None].expand(-1, self.steps, -1)
        for i, lstm in enumerate(self.lstms):
            x = self.dropout(x) if i else x
            hidden, cell = start[0, i : i + 1].tanh(), start[1, i : i + 1]
            x = _run(lstm, x, (hidden.contiguous(), cell.contiguous()))
        return x


@BACKBONES.register("lstm")
class LSTM(Series):
    """LSTMs each way: the encoder's last state leads to the code, and the decoder unrolls from the code.

    As in Srivastava et al. 2015 (arXiv:1502.04681, section 2.2), with the decoder that never sees the series it is to write
    ("unconditional": no teacher forcing). Deviations: the series is written forwards, not in reverse; a code lies between the
    two, which sets the decoder's first state and is its input at every step.

    `width`: units of each layer and direction; `layers`; `bidirectional`: the encoder reads backwards, too; `dropout` between
    layers; `time`: see the module. With a series of one step, recurrent weights of the encoder have no effect."""

    def __init__(
        self,
        width: int = 64,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        time: int | None = None,
    ):
        super().__init__(width, layers, dropout, time)
        self.bidirectional = bool(bidirectional)

    def bodies(self, layout: Layout, latent_dim: int) -> tuple[nn.Module, int, nn.Module]:
        reader = LSTMReader(layout.channels, self.width, self.layers, self.bidirectional, self.dropout)
        writer = LSTMWriter(latent_dim, layout.steps, self.width, self.layers, self.dropout)
        return reader, self.width * (2 if self.bidirectional else 1), writer


# ------------------------------------------------------------------------------------------------- convolution in time


class TCNBlock(nn.Module):
    """relu(x + g(g(x))), g: dilated convolution over time, ReLU, dropout (arXiv:1803.01271, figure 1b): (B, W, T) -> (B, W, T)."""

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float, causal: bool):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, width, kernel, dilation=dilation) for _ in range(2))
        reach = (kernel - 1) * dilation
        self.pad = (reach, 0) if causal else (reach // 2, reach // 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (B, 1, T): what the steps hold that are not there never reaches the others."""
        y = x
        for conv in self.convs:
            y = y if mask is None else fn.filled(y, mask)
            y = self.dropout(torch.relu(conv(F.pad(y, self.pad))))
        return torch.relu(x + y)


class TCNReader(nn.Module):
    """(B, T, C), mask (B, T) -> blocks over the steps -> mean over the steps that are there, (B, W)."""

    def __init__(self, layout: Layout, blocks: list[TCNBlock], width: int):
        super().__init__()
        self.embed, self.positions = nn.Linear(layout.channels, width), Positions(layout.steps, width)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.positions(self.embed(x)).transpose(1, 2)  # (B, W, T)
        for block in self.blocks:
            h = block(h, mask[:, None])
        return fn.masked_time_mean(h.transpose(1, 2), mask)


class TCNWriter(nn.Module):
    """z (B, K) -> the same vector at every step, with positions -> blocks -> (B, T, W)."""

    def __init__(self, layout: Layout, latent_dim: int, blocks: list[TCNBlock], width: int):
        super().__init__()
        self.embed, self.positions = nn.Linear(latent_dim, width), Positions(layout.steps, width)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, z: Tensor) -> Tensor:
        return self.blocks(self.positions(self.embed(z)).transpose(1, 2)).transpose(1, 2)


@BACKBONES.register("tcn")
class TCN(Series):
    """Temporal convolutional networks: residual blocks of dilated convolutions, the dilation doubling from block to block.

    Blocks as in Bai et al. 2018 (arXiv:1803.01271, section 3). Deviations: not causal by default in the encoder, which has the
    whole series; no weight normalisation; the steps are scaled and shifted by their positions (`Positions`), since a mean over time
    would lose when things happened. The mean over the steps that are there leads to the code. The decoder's blocks are causal.

    `width`: channels; `layers`: blocks, so that a step sees 2 (kernel - 1)(2^layers - 1) steps around it; `kernel`, odd;
    `dropout` after each convolution; `causal`: the encoder's steps see only those before them; `time`: see the module."""

    def __init__(
        self,
        width: int = 32,
        layers: int = 4,
        kernel: int = 3,
        dropout: float = 0.0,
        causal: bool = False,
        time: int | None = None,
    ):
        super().__init__(width, layers, dropout, time)
        if _whole(self.name, "kernel", kernel) < 3 or kernel % 2 == 0:
            raise ValueError(f"tcn: kernel={kernel!r} must be an odd integer of at least 3")
        self.kernel, self.causal = kernel, bool(causal)

    def bodies(self, layout: Layout, latent_dim: int) -> tuple[nn.Module, int, nn.Module]:
        def blocks(causal: bool) -> list[TCNBlock]:
            return [TCNBlock(self.width, self.kernel, 2**i, self.dropout, causal) for i in range(self.layers)]

        reader = TCNReader(layout, blocks(self.causal), self.width)
        return reader, self.width, TCNWriter(layout, latent_dim, blocks(True), self.width)


# ----------------------------------------------------------------------------------------------------------- attention


class TransformerReader(nn.Module):
    """(B, T, C), mask (B, T) -> blocks over the steps -> norm -> mean over the steps that are there, (B, W)."""

    def __init__(self, layout: Layout, blocks: list[TransformerBlock], width: int):
        super().__init__()
        self.embed, self.positions = nn.Linear(layout.channels, width), Positions(layout.steps, width)
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.positions(self.embed(x))
        for block in self.blocks:
            h = block(h, mask)
        return fn.masked_time_mean(self.norm(h), mask)


class TransformerWriter(nn.Module):
    """z (B, K) -> the same vector at every step, with positions -> blocks -> norm -> (B, T, W)."""

    def __init__(self, layout: Layout, latent_dim: int, blocks: list[TransformerBlock], width: int):
        super().__init__()
        self.embed, self.positions = nn.Linear(latent_dim, width), Positions(layout.steps, width)
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(self.blocks(self.positions(self.embed(z))))


@BACKBONES.register("transformer")
class Transformer(Series):
    """Transformer encoders each way (arXiv:1706.03762), pre-norm, with `Positions`.

    The mean over the steps that are there leads to the code. The decoder starts from the code at every step and writes all steps at
    once; its attention is causal.

    `width`, a multiple of `heads`; `layers`: blocks; `mlp_ratio`: hidden units of a block's MLP per unit of width; `dropout` on
    both branches of a block; `time`: see the module."""

    def __init__(
        self,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        time: int | None = None,
    ):
        super().__init__(width, layers, dropout, time)
        if self.width % _whole(self.name, "heads", heads):
            raise ValueError(f"transformer: heads={heads!r} must divide width={width!r}")
        if isinstance(mlp_ratio, bool) or not isinstance(mlp_ratio, (int, float)) or not mlp_ratio * width >= 1:
            raise ValueError(f"transformer: mlp_ratio={mlp_ratio!r} must be a number of at least 1 / width")
        self.heads, self.mlp_ratio = heads, mlp_ratio

    def bodies(self, layout: Layout, latent_dim: int) -> tuple[nn.Module, int, nn.Module]:
        def blocks(causal: bool) -> list[TransformerBlock]:
            sizes = (self.width, self.heads, self.mlp_ratio, self.dropout)
            return [TransformerBlock(*sizes, causal=causal) for _ in range(self.layers)]

        reader = TransformerReader(layout, blocks(False), self.width)
        return reader, self.width, TransformerWriter(layout, latent_dim, blocks(True), self.width)
