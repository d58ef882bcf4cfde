"""Priors p(z): what a generative model samples its latents from, and what `aezoo.fit_prior` fits to the codes of any model.

    prior.log_prob(z)                             (B, *latent_shape) -> (B,), nats per sample
    prior.sample(n, shape, like, generator)       (n, *shape), with the dtype and device of `like`

All but the standard normal are densities of the flattened code. What is fitted is kept in buffers: it is saved with the model, follows
it to its device and dtype, and no training touches it.

Legend: B batch, N codes, K numbers of a code (all axes flattened), C components.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import functional as fn
from .base import number, positive
from .flows import FLOWS
from .functional.core import LOG_2PI
from .registry import Recorded, Registry, choice

PRIORS: Registry[Prior] = Registry("prior")
CHUNK = 2**24  # numbers held at once by log_prob
RIDGE = 1e-6  # added to variances of standardised codes, so that a latent that never moves has a density


class Prior(nn.Module, metaclass=Recorded):
    """Base of all priors. A subclass gives `fit`, `_log_prob` and `_draw` on flat codes, (B, K)."""

    name = ""
    config: dict[str, Any]
    dim: int  # K
    fitted = False  # by `fit_prior`, or read from a file: then it is part of the saved model

    @classmethod
    def fitted_to(cls, z: Tensor, seed: int, **options: Any) -> Prior:
        """A prior fitted to codes z (N, K), float64 on the CPU; `options` are the constructor's beside `dim`."""
        prior = cls(dim=z.shape[1], **options).double()
        prior.fit(z, seed)
        return prior.settled()

    def fit(self, z: Tensor, seed: int) -> None:
        """Sets the buffers from codes z (N, K), float64 on the CPU."""
        raise TypeError(f"{type(self).__name__} does not define fit")

    def settled(self) -> Prior:
        """Marks the prior as fitted and turns its weights into buffers: no optimiser, average or penalty ever sees them."""
        for module in self.modules():
            for name, p in list(module._parameters.items()):
                del module._parameters[name]
                module.register_buffer(name, None if p is None else p.detach())
        self.fitted = True
        return self

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, (B, *latent_shape) -> (B,). Raises ValueError for codes of another size."""
        self._check(z.shape[1:], "z")
        return self._log_prob(fn.full(z).flatten(1))

    def sample(self, n: int, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """n draws of the given latent shape, with the dtype and device of `like`: (n, *shape)."""
        self._check(shape, "shape")
        return self._draw(n, generator).to(like).view(n, *shape)

    def _check(self, shape: tuple[int, ...], what: str) -> None:
        if math.prod(shape) != self.dim:
            raise ValueError(f"{what}: codes of shape {tuple(shape)} do not fit a prior over {self.dim} numbers")

    def _log_prob(self, z: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define _log_prob")

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define _draw")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A checkpoint from before the prior was fitted leaves it as it is."""
        if self.fitted and not any(name.startswith(prefix) for name in state_dict):
            state_dict.update({prefix + name: v for name, v in self.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)


@PRIORS.register("standard_normal")
class StandardNormal(Prior):
    """p(z) = N(0, I). There is nothing to fit."""

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def fitted_to(cls, z: Tensor, seed: int, **options: Any) -> Prior:
        return cls(**options).settled()

    def log_prob(self, z: Tensor) -> Tensor:
        """(B, ...) -> (B,)."""
        return -fn.gaussian_nll(z, torch.zeros_like(z), 0.0)

    def sample(self, n: int, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """n draws of the given latent shape, with the dtype and device of `like`: (n, *shape)."""
        return torch.randn((n, *shape), dtype=like.dtype, device=like.device, generator=generator)


@PRIORS.register("gmm")
class GaussianMixture(Prior):
    """p(z) = sum_c w_c N(z; mu_c, L_c L_c^T), fitted by expectation maximisation (scikit-learn's) on standardised codes.

    Args: components, C; covariance, "full" or "diag"; iterations, most steps of EM. 1e-6 of each latent's variance is added to the
    covariances. (For the codes of a plain autoencoder: Ghosh et al. 2019, arXiv:1903.12436, sec. 4.)"""

    weights: Tensor
    means: Tensor
    scales: Tensor

    def __init__(self, dim: int, components: int = 10, covariance: str = "full", iterations: int = 200):
        super().__init__()
        self.dim, self.components = positive("dim", dim), positive("components", components)
        self.covariance = choice("covariance", covariance, ["full", "diag"])
        self.iterations = positive("iterations", iterations)
        scale = torch.eye(dim) if covariance == "full" else torch.ones(dim)
        self.register_buffer("weights", torch.full((components,), 1 / components))  # (C,)
        self.register_buffer("means", torch.zeros(components, dim))  # (C, K)
        self.register_buffer("scales", scale.repeat(components, *(1,) * scale.dim()))  # L: (C, K, K), lower; or (C, K)

    def fit(self, z: Tensor, seed: int) -> None:
        from sklearn.mixture import GaussianMixture as Sklearn

        enough(z, self.components, "components")
        mean, std = z.mean(0), spread(z)
        found = Sklearn(
            self.components,
            covariance_type=self.covariance,
            reg_covar=RIDGE,
            max_iter=self.iterations,
            random_state=seed % 2**32,
        ).fit(((z - mean) / std).numpy())
        covariances = torch.from_numpy(found.covariances_)
        if self.covariance == "full":
            scales = std[:, None] * torch.linalg.cholesky(covariances)
        else:
            scales = std * covariances.sqrt()
        self.weights.copy_(torch.from_numpy(found.weights_))
        self.means.copy_(mean + std * torch.from_numpy(found.means_))
        self.scales.copy_(scales)

    def _log_prob(self, z: Tensor) -> Tensor:
        weights, means, scales = (fn.full(b).to(z.dtype) for b in (self.weights, self.means, self.scales))

        def of(z: Tensor) -> Tensor:
            away = (z[None] - means[:, None]).mT  # (C, K, B)
            if self.covariance == "full":
                away = torch.linalg.solve_triangular(scales, away, upper=False)
                log_scale = scales.diagonal(dim1=1, dim2=2).log().sum(1)
            else:
                away, log_scale = away / scales[:, :, None], scales.log().sum(1)
            log_normal = -0.5 * away.square().sum(1) - log_scale[:, None] - 0.5 * self.dim * LOG_2PI  # (C, B)
            return torch.logsumexp(weights.log()[:, None] + log_normal, 0)

        return in_parts(of, z, self.components * self.dim)

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        weights, means, scales = (fn.full(b) for b in (self.weights, self.means, self.scales))
        index = torch.multinomial(weights, n, True, generator=generator)
        noise = torch.randn((n, self.dim), dtype=means.dtype, device=means.device, generator=generator)
        if self.covariance == "full":
            return means[index] + (scales[index] @ noise[:, :, None])[:, :, 0]
        return means[index] + scales[index] * noise


@PRIORS.register("normal")
class Normal(GaussianMixture):
    """p(z) = N(mean, covariance) with the moments of the codes. Args: covariance, "full" or "diag"."""

    def __init__(self, dim: int, covariance: str = "full"):
        super().__init__(dim, 1, covariance)


@PRIORS.register("vamp")
class Vamp(GaussianMixture):
    """p(z) = 1/C sum_c q(z|u_c), the mixture of a model's own posteriors at C training samples u_c, picked by the seed.

    For models with a Gaussian `posterior`. Paper: Tomczak & Welling 2017, arXiv:1705.07120, eq. 9, with samples of the data for the
    learned pseudo-inputs (its "VampPrior data"), and after the training instead of in it. Args: components, C."""

    def __init__(self, dim: int, components: int = 100):
        super().__init__(dim, components, "diag")

    @classmethod
    def fitted_to(cls, z: Tensor, seed: int, *, logvar: Tensor | None = None, **options: Any) -> Prior:
        """From all samples' posteriors: means `z` and `logvar`, (N, K) each."""
        assert logvar is not None
        prior = cls(dim=z.shape[1], **options).double()
        enough(z, prior.components, "components")
        index = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))[: prior.components]
        prior.means.copy_(z[index])
        prior.scales.copy_((0.5 * logvar[index]).exp())
        return prior.settled()


@PRIORS.register("kde")
class KDE(Prior):
    """Kernel density: p(z) = 1/N sum_n N(z; z_n, diag (h s_j)^2), s_j the standard deviation of latent j.

    Args:
        codes: the most codes that are kept; of more, so many are picked by the seed. A fitted prior says how many it has.
        bandwidth: h; "scott": N^(-1/(K+4)), or "silverman": (N (K+2)/4)^(-1/(K+4)), or a number in units of s_j.

    Near its own codes it is sharp, and far from them poor, in more than a few dimensions."""

    points: Tensor
    widths: Tensor

    def __init__(self, dim: int, codes: int = 5000, bandwidth: str | float = "scott"):
        super().__init__()
        self.dim = positive("dim", dim)
        if isinstance(bandwidth, str):
            choice("bandwidth", bandwidth, ["scott", "silverman"])
        else:
            number("bandwidth", bandwidth, "'scott', 'silverman' or a number above 0", lambda v: 0 < v < math.inf)
        self.bandwidth = bandwidth
        self.register_buffer("points", torch.zeros(positive("codes", codes), dim))  # (N, K)
        self.register_buffer("widths", torch.ones(dim))  # h s_j

    @classmethod
    def fitted_to(cls, z: Tensor, seed: int, **options: Any) -> Prior:
        most = options.pop("codes", cls.__signature__.parameters["codes"].default)
        return super().fitted_to(z, seed, codes=min(positive("codes", most), len(z)), **options)

    def fit(self, z: Tensor, seed: int) -> None:
        kept = len(self.points)
        index = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))[:kept]
        size = {"scott": float(kept), "silverman": kept * (self.dim + 2) / 4}
        named = isinstance(self.bandwidth, str)
        h = size[str(self.bandwidth)] ** (-1 / (self.dim + 4)) if named else float(self.bandwidth)
        self.points.copy_(z[index.sort().values])
        self.widths.copy_(h * spread(z))

    def _log_prob(self, z: Tensor) -> Tensor:
        points, widths = (fn.full(b).to(z.dtype) for b in (self.points, self.widths))
        constant = math.log(len(points)) + widths.log().sum() + 0.5 * self.dim * LOG_2PI
        points = points / widths

        def of(z: Tensor) -> Tensor:
            distance = torch.cdist(z / widths, points, compute_mode="donot_use_mm_for_euclid_dist")  # (B, N)
            return torch.logsumexp(-0.5 * distance.square(), 1) - constant

        return in_parts(of, z, len(points))

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        points, widths = fn.full(self.points), fn.full(self.widths)
        index = torch.randint(len(points), (n,), device=points.device, generator=generator)
        noise = torch.randn((n, self.dim), dtype=points.dtype, device=points.device, generator=generator)
        return points[index] + widths * noise


@PRIORS.register("flow")
class Flow(Prior):
    """log p(z) = log N(f(y); 0, I) + log |det df/dy| - sum_j log s_j, y the standardised code, f a normalising flow.

    Args: flow, "realnvp" (arXiv:1605.08803) or "maf" (arXiv:1705.07057; K times slower to sample); layers; width, hidden units.
    Trained by the one loop (`aezoo.fit`), whose keywords `fit_prior` takes, too: steps=1000, lr=1e-3, ..."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, flow: str = "realnvp", layers: int = 6, width: int = 64):
        super().__init__()
        self.dim = positive("dim", dim)
        self.flow = FLOWS[choice("flow", flow, FLOWS)](dim, layers, width)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, z: Tensor, seed: int) -> None:
        """Sets what standardises; the flow itself is trained by the loop."""
        self.mean.copy_(z.mean(0))
        self.std.copy_(spread(z))

    def _log_prob(self, z: Tensor) -> Tensor:
        u, log_det = self.flow((z - fn.full(self.mean)) / fn.full(self.std))
        return log_det - fn.gaussian_nll(u, torch.zeros_like(u), 0.0) - fn.full(self.std).log().sum()

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        mean, std = fn.full(self.mean), fn.full(self.std)
        u = torch.randn((n, self.dim), dtype=mean.dtype, device=mean.device, generator=generator)
        return mean + std * self.flow.inverse(u)[0]


def spread(z: Tensor) -> Tensor:
    """The standard deviation of each latent, (N, K) -> (K,); at least 1e-6 of the largest, for latents that never move.

    Raises ValueError if none moves."""
    std = z.std(0, correction=0)
    if not bool(std.max() > 0):
        raise ValueError(f"all {len(z)} codes are the same: there is no density to fit")
    return std.clamp_min(1e-6 * float(std.max()))


def enough(z: Tensor, wanted: int, what: str) -> None:
    """Raises ValueError if there are fewer codes than `wanted`."""
    less = f", or {what} of at most {len(z)}" if what == "components" else ""
    if len(z) < wanted:
        raise ValueError(f"{what}={wanted}, but the data gives no more than {len(z)}; pass more samples{less}")


def in_parts(of: Callable[[Tensor], Tensor], z: Tensor, cost: int) -> Tensor:
    """of(z), (B, K) -> (B,), where each row holds `cost` numbers meanwhile."""
    return torch.cat([of(part) for part in z.split(max(1, CHUNK // cost))])
