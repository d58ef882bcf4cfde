"""New samples from models without a prior: the Markov chain of a denoising autoencoder.

Legend: B batch; x data, x~ noisy data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import BaseAE, count
from .randomness import forked_rng, set_seed


def walkback(model: BaseAE, x: Tensor, steps: int, generator: torch.Generator | None = None) -> Tensor:
    """The states that x (B, *input_shape) has come to after `steps` rounds of x~ ~ C(x~ | x), x ~ P(x | x~).

    C is the noise on the input that the model was trained with, P(x | x~) its likelihood at what it makes of x~ (a plain loss has no
    distribution and gives its mean). If P is the true conditional distribution of clean data given noisy data, the chain's
    stationary distribution is that of the data: Bengio et al. 2013, arXiv:1305.6663, theorem 1. (The paper's walkback training runs
    such a chain from each training sample and learns to come back; this is the chain alone.)

    `generator`: where all draws come from, a CPU generator; by default torch's global one, which is left alone otherwise.
    Raises ValueError for a model without noise on its input, or a batch that does not fit."""
    model.check_input(x)
    count("steps", steps)
    noise = [c for c in model.corruptions if c.where == "input" and c.name != "none"]
    if not noise:
        raise ValueError(
            f"walkback needs noise on the input, and this {model.name} has none; give it one, e.g. corruption='gaussian(sigma=0.3)'"
        )
    if generator is not None:
        with forked_rng(x.device):
            set_seed(int(torch.randint(2**62, (), generator=generator)), x.device)
            return walkback(model, x, steps)
    with model.evaluating(), torch.no_grad():
        for _ in range(steps):
            noisy = x
            for c in noise:
                noisy = c(noisy)
            z = model.bottleneck(model.hidden(noisy), sample=True)[0]
            x = model.likelihood.sample(model.emit(z)).to(x.dtype)
    return x
