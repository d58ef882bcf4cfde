"""Classifiers on top of a trained encoder: how much of the labels its code tells.

Legend: B batch, F features of a code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import BaseAE, number, positive


class Classifier(nn.Module):
    """Standardised features of `model.encode` -> logits (B, num_classes), linearly.

    Features are the code, of spatial codes the mean over the grid. `freeze=True`: a linear probe; the model gets no gradient, and
    `fit_probe` finds the weights. `freeze=False`: gradients reach the encoder. Fine-tuning is ordinary supervised training,

        classifier = Classifier(model, 10, freeze=False)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-4)
        for x, y in batches:
            loss = F.cross_entropy(classifier(x), y)
            optimizer.zero_grad(); loss.backward(); optimizer.step()

    which `fit_probe` may precede. The encoder is in evaluation mode throughout (`encode` draws nothing)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: BaseAE, num_classes: int, freeze: bool = True):
        super().__init__()
        self.model, self.freeze = model, bool(freeze)
        like = next(model.parameters())
        shape = model.latent_shape
        features = shape[0] if model.spatial else torch.Size(shape).numel()
        self.head = nn.Linear(features, positive("num_classes", num_classes), dtype=like.dtype, device=like.device)
        self.register_buffer("mean", like.new_zeros(features))
        self.register_buffer("scale", like.new_ones(features))

    def features(self, x: Tensor) -> Tensor:
        """(B, *input_shape) -> (B, F)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            z = self.model.encode(x)
            return z.flatten(2).mean(2) if self.model.spatial else z.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.features(x) - self.mean) / self.scale)


def fit_probe(
    model: BaseAE, data: Any, *, weight_decay: float = 1e-4, max_iter: int = 200, batch_size: int = 512
) -> Classifier:
    """A frozen `Classifier` whose head is the multinomial logistic regression on the features of all of `data`:

        mean over samples of -log p(y | x) + weight_decay / 2 * |W|^2,

    minimised by L-BFGS in float64 from zero weights: the problem is convex, so the outcome depends on nothing that is drawn.
    `data`: a pair (samples, labels) or whatever `load_data` takes that has labels 0, 1, ... Features are standardised by their
    mean and standard deviation over `data`; constant ones are left as they are. The model stays on its device, unchanged.

    Raises ValueError for data without whole-number labels."""
    from .data import data_for

    number("weight_decay", weight_decay, "a number of at least 0", lambda v: 0 <= v < float("inf"))
    like = next(model.parameters())
    source = data_for(model.input_shape, data)
    xs, ys = [], []
    for batch in source.batches(
        list(torch.arange(len(source)).split(positive("batch_size", batch_size))), like.device, like.dtype
    ):
        if batch.y is None or batch.y.is_floating_point() or batch.y.dim() != 1:
            raise ValueError(f"{source.description} has no labels 0, 1, ... to learn; pass a pair (samples, labels)")
        with torch.no_grad():
            z = model.encode(batch.x)
        xs.append((z.flatten(2).mean(2) if model.spatial else z.flatten(1)).double().cpu())
        ys.append(batch.y.long().cpu())
    x, y = torch.cat(xs), torch.cat(ys)
    if int(y.min()) < 0:
        raise ValueError(f"labels must be 0, 1, ...; got {int(y.min())}")
    classifier = Classifier(model, int(y.max()) + 1)
    mean, scale, weight, bias = logistic_regression(x, y, weight_decay, max_iter)
    with torch.no_grad():
        for own, found in [
            (classifier.mean, mean),
            (classifier.scale, scale),
            (classifier.head.weight, weight),
            (classifier.head.bias, bias),
        ]:
            own.copy_(found)
    return classifier


def logistic_regression(
    x: Tensor, y: Tensor, weight_decay: float = 1e-4, max_iter: int = 200
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The multinomial logistic regression that `fit_probe` describes, on features standardised by their own mean and deviation.

    x (N, F) float64, y (N,) labels 0, 1, ... -> mean (F,), scale (F,), weight (classes, F), bias (classes,): the logits of a
    sample are weight @ ((x - mean) / scale) + bias. Constant features have scale 1."""
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 1e-8, scale, 1.0)
    x = (x - mean) / scale
    weight = x.new_zeros(int(y.max()) + 1, x.shape[1], requires_grad=True)
    bias = x.new_zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=positive("max_iter", max_iter), line_search_fn="strong_wolfe", tolerance_grad=1e-6
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return mean, scale, weight.detach(), bias.detach()
