"""How far a latent is moved: the numbers of a code that move by themselves, and the range of each under prior, posterior or data.

Legend: N samples, K numbers of a code (all axes flattened), T steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import BaseAE
from ..models.adversarial import AdversarialAE
from ..models.discrete import JointVAE
from ..models.hierarchical import LadderVAE
from ..models.spherical import SVAE
from ..prior_fitting import gaussian_posterior
from ..priors import StandardNormal
from .features import features

SCALES = ("prior", "posterior", "data")
DRAWS = 4096  # of a prior, for the moments of its latents
MOST = 10  # dims that are traversed if none are named


def categories_of(model: BaseAE) -> int:
    """How many numbers at the end of the code are categories or their probabilities."""
    if isinstance(model, JointVAE):
        return sum(model.categories)
    return model.num_classes if isinstance(model, AdversarialAE) else 0


def movable(model: BaseAE) -> None:
    """Raises ValueError for a model where one number of the code has no meaning of its own."""
    if getattr(model, "index_prior", False):
        raise ValueError(
            f"{model.name} has a code of vectors from a codebook, of which no number moves by itself; "
            "aezoo.interpolate goes from one sample to another"
        )
    if isinstance(model, LadderVAE):
        raise ValueError(
            f"{model.name} has layers of latents, the lower ones given the upper ones, of which none moves by itself; "
            "aezoo.interpolate goes from one sample to another"
        )


def checked_dims(model: BaseAE, dims: Any, k: int, free: range) -> list[int]:
    """`dims` as a list. Raises TypeError or ValueError for what is no number of the code, and for categories."""
    several = [dims] if isinstance(dims, Integral) else list(dims) if isinstance(dims, (Sequence, Tensor)) else None
    if several is None or isinstance(dims, str) or not several:
        raise TypeError(f"dims={dims!r} must be one or several integers from 0 to {k - 1}")
    found = []
    for d in several:
        d = d.item() if isinstance(d, Tensor) and d.dim() == 0 else d
        if isinstance(d, bool) or not isinstance(d, Integral):
            raise TypeError(f"dims holds {d!r}; dims are integers from 0 to {k - 1}")
        d = int(d)
        if not 0 <= d < k:
            raise ValueError(f"dims holds {d}, but a code of this {model.name} has the numbers 0 to {k - 1}")
        if d not in free:
            raise ValueError(
                f"dims holds {d}, which is a category of this {model.name}; those that move by themselves are 0 to {len(free) - 1}"
            )
        found.append(d)
    return found


def span_of(
    model: BaseAE,
    x: Tensor | None,
    scale: str,
    span: float,
    data: Any,
    quantiles: Any,
    given: dict[str, Tensor],
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(lowest value of each latent, highest, mean, deviation), (K,) each, float64 on the CPU."""
    if scale == "data":
        if data is None:
            raise ValueError("scale='data' takes the range from data: pass data=, what the model was trained on")
        pair = tuple(quantiles) if isinstance(quantiles, (tuple, list)) else ()
        if len(pair) != 2 or not all(isinstance(q, (int, float)) for q in pair) or not 0 <= pair[0] < pair[1] <= 1:
            raise ValueError(f"quantiles={quantiles!r} must be two rising numbers in [0, 1], e.g. (0.01, 0.99)")
        place = next(model.parameters()).device
        z = features(model, data, condition=bool(given), device=place, seed=seed).double()
        if len(z) < 2:
            raise ValueError(f"scale='data' needs at least 2 samples to take a range from; data holds {len(z)}")
        ends = z.new_tensor(pair)
        low, high = torch.stack([torch.quantile(column, ends) for column in z.T]).T
        return low, high, z.mean(0), z.std(0)
    if data is not None:
        raise ValueError(f"data= goes with scale='data'; scale={scale!r} does not look at it")
    if scale == "posterior":
        if x is None:
            raise ValueError("scale='posterior' is that of a sample: pass x")
        found = gaussian_posterior(model, x, given)
        if found is None:
            raise ValueError(f"{model.name} has no Gaussian posterior; take scale='data' with data=, or scale='prior'")
        mu, std = found[0][0].flatten().cpu().double(), (0.5 * found[1][0].flatten().cpu().double()).exp()
        if len(mu) < math.prod(model.latent_shape):  # categories follow
            z = model.encode(x, False, **given).flatten(1)[0].cpu().double()
            mu, std = torch.cat([mu, z[len(mu) :]]), F.pad(std, (0, len(z) - len(mu)))
    else:
        if model.prior is None:
            raise ValueError(
                f"{model.name} has no prior to take a range from; pass data= (what it was trained on), or give it one: "
                "aezoo.fit_prior(model, data, 'gmm'); on the command line --data SOURCE, or aezoo fit-prior RUN"
            )
        mu, std = _prior_moments(model, seed)
    low, high = mu - span * std, mu + span * std
    if isinstance(model, SVAE):
        low, high = low.clamp_min(-1.0), high.clamp_max(1.0)
    return low, high, mu, std


def _prior_moments(model: BaseAE, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each latent under the prior, (K,) float64 on the CPU."""
    k = math.prod(model.latent_shape)
    if isinstance(model.prior, StandardNormal):
        return torch.zeros(k, dtype=torch.float64), torch.ones(k, dtype=torch.float64)
    like = next(model.parameters())
    g = torch.Generator(like.device).manual_seed(seed)
    z = model.prior.sample(DRAWS, model.latent_shape, like, g).flatten(1).cpu().double()
    if not isinstance(model, SVAE):
        return z.mean(0), z.std(0)
    pole = torch.zeros(k, dtype=torch.float64)  # the mean of a uniform draw is no code
    pole[0] = 1.0
    return pole, z.std(0)


def on_sphere(z: Tensor, d: int) -> Tensor:
    """Unit vectors (T, K) of which number d has been set: the others are scaled so that the length is 1 again."""
    others = torch.arange(z.shape[1]) != d
    rest = z[:, others]
    length = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
    rest = torch.where(length > 1e-12, rest / length.clamp_min(1e-12), torch.full_like(rest, rest.shape[1] ** -0.5))
    z = z.clone()
    z[:, others] = rest * (1 - z[:, d : d + 1].square()).clamp_min(0).sqrt()
    return z
