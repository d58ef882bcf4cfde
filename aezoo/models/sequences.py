"""Autoencoders of series, of different lengths and with gaps.

A model takes series of one length T. Shorter ones are padded with NaN (`aezoo.pad_sequences` does so), and NaN anywhere in the
data means "not there": it is neither read nor scored, and the reconstruction at such an entry is the model's prediction of it.
The code and the loss of a padded series are those of the series alone (see `backbones/sequence.py`).

Legend: B batch, T steps, C channels; x series, z code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional as fn
from ..backbones import Series
from ..base import BaseAE, Code, Pass, Spec
from ..registry import register


class SeriesAE(BaseAE):
    """Base of the models here: only what is there is read and scored.

    Backbones that know no missing entries (mlp, conv) read 0 instead. Corruptions leave missing entries missing."""

    accepts_missing = True

    def corrupt(self, x: Tensor, where: str = "input") -> Tensor:
        noisy = super().corrupt(x, where)
        return noisy if where != "input" or noisy is x else torch.where(torch.isnan(x), x, noisy)

    def hidden(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.encoder(x if isinstance(self.backbone, Series) else fn.filled(x, ~torch.isnan(x)))

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        self.check_input(x)
        if target is not None:
            self.check_input(target, "target")
        self.check_condition(condition, len(x))
        wanted = x if target is None else target
        code = Code(*self.bottleneck(self.hidden(self.corrupt(x), condition), sample=True))
        params = self.emit(self.corrupt(code.z, "latent"), condition)  # (B, P, *input_shape)
        missing = torch.isnan(wanted)
        recon = self.likelihood.nll_observed(params, wanted, ~missing)
        metrics = {**(code.metrics or {}), "missing": fn.per_sample_mean(missing.float())}
        return Pass(params, code.z, {"recon": recon, **code.terms}, metrics)


@register("lstm_ae")
class LSTMAE(SeriesAE):
    """LSTM autoencoder: an LSTM reads the series, its last state becomes the code, and a second LSTM writes the series from it.

    x^_1..T = LSTM_dec(z), z = W LSTM_enc(x_1..T) + b; the loss is the likelihood over the entries that are there: densities sum
    over them, plain losses take each sample's mean over them.

    Paper: Srivastava et al. 2015, "Unsupervised learning of video representations using LSTMs", arXiv:1502.04681 (section 2.2, the
    unconditional decoder). Deviations: a linear code between the two, written forwards; see `aezoo.backbones.LSTM`.

    Samples are (T, C) or (T,); of images the rows are the steps. NaN: padding or gaps, see the module. Metric "missing": share of
    the target's entries that are not there."""

    paper = "arXiv:1502.04681"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "lstm", **base: Any):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)


@register("tcn_ae")
class TCNAE(SeriesAE):
    """Temporal convolutional autoencoder: dilated convolutions over the steps, a mean over time to the code, and causal dilated
    convolutions back: z = W mean_t TCN(x)_t + b, x^_1..T = TCN_dec(z).

    Paper: Bai et al. 2018, "An empirical evaluation of generic convolutional and recurrent networks for sequence modeling",
    arXiv:1803.01271, for the blocks. Deviations: see `aezoo.backbones.TCN`; the autoencoder around them is ours.

    Samples, NaN, loss and metric as in `lstm_ae`."""

    paper = "arXiv:1803.01271"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "tcn", **base: Any):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)


@register("transformer_ae")
class TransformerAE(SeriesAE):
    """Transformer autoencoder: attention over the steps, a mean over time to the code, and causal attention over positions and the
    code back: z = W mean_t Transformer(x)_t + b, x^_1..T = Transformer_dec(z).

    Paper: Vaswani et al. 2017, "Attention is all you need", arXiv:1706.03762, for the blocks. Deviations: pre-norm; the decoder
    has no cross-attention, since the code is one vector that every step starts from; see `aezoo.backbones.Transformer`.

    Samples, NaN, loss and metric as in `lstm_ae`."""

    paper = "arXiv:1706.03762"

    def __init__(
        self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "transformer", **base: Any
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
