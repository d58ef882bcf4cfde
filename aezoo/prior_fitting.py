"""`fit_prior`: a density fitted to a trained model's codes, so that it can sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import functional as fn
from .base import AELoss, BaseAE
from .data import data_for
from .index_prior import IndexPrior
from .priors import PRIORS, Flow, Prior, Vamp, enough
from .randomness import checked_seed, forked_rng, set_seed
from .registry import nearest, parse_spec, signature
from .train import fit
from .train.hardware import decide
from .train.step import condition_of, told

BATCH = 512
TRAINING: dict[str, Any] = {"steps": 1000, "lr": 1e-3, "schedule": "cosine", "precision": "fp32", "progress": False}


def fit_prior(
    model: BaseAE,
    data: Any,
    kind: str | Mapping[str, Any] = "gmm",
    *,
    device: str | torch.device = "auto",
    seed: int = 0,
    **options: Any,
) -> BaseAE:
    """Fits a prior to the codes of `data`, sets `model.prior` and returns the model, which then can `sample` and saves it, too.

    Args:
        model: any trained `BaseAE`. It is moved to `device` and keeps its mode.
        data: anything that `load_data` takes; the data that the model was trained on.
        kind: "gmm", "normal", "kde", "flow", "vamp" (the mixture of the model's own posteriors, for VAEs), "standard_normal"
            (nothing is fitted); "autoregressive" or "maskgit" for models with a codebook; with options: "gmm(components=20)".
        seed: of all draws; the global RNG is left as it was.
        options: those of the kind (`help(aezoo.priors.KDE)` and so on), and those of `aezoo.fit` for the kinds that it trains;
            by default steps=1000, lr=1e-3, schedule="cosine", and val=0.1 from 200 codes on.

    On a VAE, codes are drawn from q(z|x), one for each sample: the mean of the posteriors over the data is the prior with the best
    bound for a given encoder and decoder (arXiv:1705.07120, sec. 2), while their means alone lack the posteriors' width. `log_prob`
    uses the new prior. So does the loss of models that compare with their prior (vamp_vae); that of the others keeps its closed form
    to N(0, I). Training the model on moves its codes away from the prior, which is not trained then: fit it anew.

    Raises ValueError or TypeError for an unknown kind or option, too few codes, a kind that does not suit the model's code, or data
    that does not fit."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")
    name, said = parse_spec("prior", kind) if isinstance(kind, (str, Mapping)) else (kind, {})
    cls, options = PRIORS[name], {**said, **options}
    checked_seed(seed)
    place = decide(device, "fp32", False).device
    indices = issubclass(cls, IndexPrior)
    if getattr(model, "index_prior", False) and not indices:
        raise ValueError(f"{_discrete(model)}: the prior {name!r} is a density; take 'autoregressive' or 'maskgit'")
    if not indices and cls is not Flow:
        _check_options(name, options, [k for k in cls.__signature__.parameters if k != "dim"])
    with forked_rng(place):
        model.to(place)
        set_seed(seed, place)
        if indices:
            from .index_fitting import fit_index_prior

            prior: Prior = fit_index_prior(model, data, cls, place, seed, options)
        elif cls is Vamp:
            mu, logvar = encoded(model, data, place, _gaussian)
            prior = cls.fitted_to(mu, seed, logvar=logvar, **options)
        else:
            (z,) = encoded(model, data, place, _code)
            enough(z, 2, "codes")
            prior = _flow(z, place, seed, options) if cls is Flow else cls.fitted_to(z, seed, **options)
    prior.eval()
    model.prior = prior.to(place, next(model.parameters()).dtype)
    return model


def codes(model: BaseAE, data: Any, device: str | torch.device = "auto", seed: int = 0) -> Tensor:
    """The flat codes that `fit_prior` fits, (N, K), float64 on the CPU: drawn from the posterior where there is one."""
    place = decide(device, "fp32", False).device
    with forked_rng(place):
        model.to(place)
        set_seed(checked_seed(seed), place)
        return encoded(model, data, place, _code)[0]


Encoding = Callable[[BaseAE, Tensor, dict[str, Tensor]], tuple[Tensor, ...]]


def encoded(model: BaseAE, data: Any, device: torch.device, encoding: Encoding) -> tuple[Tensor, ...]:
    """`encoding` of all samples in order: tensors (N, K), float64 on the CPU. Raises ValueError for codes that are not finite."""
    source = data_for(model.input_shape, data)
    model.likelihood.check(*source.check(model.likelihood.support, model.accepts_missing))
    plan = list(torch.arange(len(source)).split(BATCH))
    parts: list[tuple[Tensor, ...]] = []
    with model.evaluating(), torch.no_grad():
        for batch in source.to(device).batches(plan, device, next(model.parameters()).dtype):
            found = encoding(model, batch.x, told(condition_of(model, batch)))
            parts.append(tuple(t.flatten(1).cpu().double() for t in found))
    whole = tuple(torch.cat(column) for column in zip(*parts))
    if not all(bool(t.isfinite().all()) for t in whole):
        raise ValueError(f"{model.name} makes codes that are not finite of this data; no density fits them")
    return whole


def _code(model: BaseAE, x: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    z = model.encode(x, sample=True, **given)
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise ValueError(f"{_discrete(model)}: no density fits them")
    return (z,)


def _discrete(model: BaseAE) -> str:
    return f"{model.name} has discrete codes (indices into a codebook)"


def gaussian_posterior(model: BaseAE, x: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """mu and logvar of q(z|x), or None if the model does not draw from that Gaussian, which its log q(z|x) tells."""
    if callable(getattr(model, "posterior", None)) and callable(getattr(model, "draw", None)):
        net: Any = model
        h = net.hidden(x, given.get("condition"))
        found, (z, log_q) = net.posterior(h), net.draw(h)
        if isinstance(found, tuple) and len(found) == 2 and all(f.shape == z.shape for f in found):
            mu, logvar = found
            if torch.allclose(-fn.gaussian_nll(z, mu, 0.5 * logvar), log_q, rtol=1e-2, atol=1e-2):
                return mu, logvar
    return None


def _gaussian(model: BaseAE, x: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    found = gaussian_posterior(model, x, given)
    if found is not None:
        return found
    raise ValueError(
        f"the prior 'vamp' is a mixture of Gaussian posteriors, which {model.name} does not have (vae does); "
        "take 'gmm', 'kde' or 'flow'"
    )


def _check_options(kind: str, options: Mapping[str, Any], allowed: list[str]) -> None:
    for key in options:
        if key not in allowed:
            raise TypeError(
                f"the prior {kind!r} takes no option {key!r}; allowed: {', '.join(allowed)}.{nearest(key, allowed)}"
            )


# ---------------------------------------------------------------------------------------------------------------- flow


class FlowDensity(BaseAE):
    """-log p(z) of a flow, in nats per code, as something that the one loop trains; no model of the zoo."""

    def __init__(self, density: Flow):
        super().__init__((density.dim,), density.dim)
        self.density = density

    def build_networks(self) -> None:
        self.encoder = self.decoder = torch.nn.Identity()  # the flow is both

    def loss(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> AELoss:
        nll = -self.density.log_prob(x).mean()
        return AELoss(nll, {"nll": nll}, {})


def _flow(z: Tensor, device: torch.device, seed: int, options: dict[str, Any]) -> Prior:
    """A flow trained on codes z (N, K) by the loop."""
    own = [k for k in signature(Flow).parameters if k != "dim"]
    trains = [k for k in inspect.signature(fit).parameters if k not in ("model", "data", "device", "seed")]
    _check_options("flow", options, [*own, *trains])
    training: dict[str, Any] = {**TRAINING, "batch_size": min(256, len(z)), "val": 0.1 if len(z) >= 200 else None}
    training |= {k: v for k, v in options.items() if k in trains}
    if "epochs" in options:
        training.pop("steps")
    set_seed(seed, device)
    density = Flow(z.shape[1], **{k: v for k, v in options.items() if k in own})
    density.fit(z, seed)
    fit(FlowDensity(density), z.float(), device=device, seed=seed, **training)
    return density.settled()
