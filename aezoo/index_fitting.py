"""The training of a prior over a model's indices, for `fit_prior`: the cross-entropy of the indices, by the one loop."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .base import AELoss, BaseAE
from .index_prior import IndexPrior
from .prior_fitting import TRAINING, _check_options, encoded
from .randomness import set_seed
from .registry import signature
from .train import fit


class IndexLikelihood(BaseAE):
    """-log p(indices), nats per sample, as something that the one loop trains; no model of the zoo."""

    def __init__(self, index_prior: IndexPrior):
        super().__init__((index_prior.length,), 1)
        self.index_prior = index_prior

    def build_networks(self) -> None:
        self.encoder = self.decoder = torch.nn.Identity()  # the prior is both

    def loss(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> AELoss:
        nll = self.index_prior.nll(x.long()).mean()
        return AELoss(nll, {"nll": nll}, {})


def _indices(model: Any, x: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return (model.indices(x),)


def fit_index_prior(
    model: BaseAE, data: Any, cls: type[IndexPrior], device: torch.device, seed: int, options: dict[str, Any]
) -> IndexPrior:
    """A prior of kind `cls` over the indices that `model` gives to `data`; `options`: the kind's, and those of `aezoo.fit`.

    Raises ValueError for a model without indices, TypeError for an unknown option."""
    if not hasattr(model, "indices") or not hasattr(model, "num_codes"):
        raise ValueError(
            f"the prior {cls.name!r} is one of a codebook's indices, and {model.name} has a continuous code; take 'gmm' or 'flow'"
        )
    net: Any = model
    own = [k for k in signature(cls).parameters if k not in ("num_codes", "length")]
    trains = [k for k in inspect.signature(fit).parameters if k not in ("model", "data", "device", "seed")]
    _check_options(cls.name, options, [*own, *trains])
    (indices,) = encoded(model, data, device, _indices)
    training = {**TRAINING, "batch_size": min(128, len(indices)), "val": 0.1 if len(indices) >= 200 else None}
    training |= {k: v for k, v in options.items() if k in trains}
    if "epochs" in options:
        training.pop("steps")
    set_seed(seed, device)
    prior = cls(net.num_codes, indices.shape[1], **{k: v for k, v in options.items() if k in own})
    fit(IndexLikelihood(prior), indices.float(), device=device, seed=seed, **training)
    return prior.settled()  # type: ignore[return-value]
