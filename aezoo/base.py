"""The contract: `BaseAE`, what it returns, and the seams that a variant fills.

    x --corrupt--> encoder --h--> bottleneck --z--> decoder --params--> likelihood

A variant is a subclass that overrides one or two of
    bottleneck(h, sample)   what becomes of the encoder's output: (z, terms), or (z, terms, metrics)
    hidden(x, condition)    x -> h, where more than the encoder takes part
    emit(z, condition)      z -> params, where more than the decoder takes part
    term_weights()          how each term counts in the total (1 where it is not named)
    propagate(x, ...)       where a term needs more than the code, e.g. the input's gradient
    after_step()            what the model counts, once per optimiser step
and says in class attributes what it is. No device, precision or training loop appears here or in `models/`.

Legend: B batch, D data dims, K latents; x data, h encoder output, z latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .backbones import Backbone, Pair, build_backbone
from .corruptions import CORRUPTIONS, Corruption
from .figures import averaged, shown
from .likelihoods import LIKELIHOODS, Likelihood
from .registry import MODELS, Recorded, nearest, plain
from .storage import write_model

Spec = Any  # a piece in any of the four forms that `registry` describes
Terms = dict[str, Tensor]

FORMAT = 1  # of config.json


class AEOutput(NamedTuple):
    """What `model(x)` returns."""

    recon: Tensor
    """The reconstruction in data space, (B, *input_shape): the likelihood's mean, probabilities and never logits."""
    z: Tensor
    """The code, (B, *latent_shape), before any latent corruption; drawn from the posterior where there is one."""
    terms: Terms
    """The parts of the loss, unweighted: (B,) each, or scalar for a term of the whole batch. "recon" is always there; densities
    are in nats per sample."""
    metrics: Terms
    """What is worth watching but not part of the loss, (B,) or scalar."""


class Pass(NamedTuple):
    """What `propagate` returns: one pass before anything that only a reader of the output needs."""

    params: Tensor
    """The decoder's output, (B, P, *input_shape)."""
    z: Tensor
    terms: Terms
    metrics: Terms
    """(B,) or scalar, and the parts of figures that are no means over samples (`figures`)."""


class Code(NamedTuple):
    """What `bottleneck` returns; a plain (z, terms) is one, too."""

    z: Tensor
    terms: Terms
    metrics: Terms | None = None


class AELoss(NamedTuple):
    """What `model.loss(x)` returns: scalars, means over the batch."""

    total: Tensor
    """The weighted sum that training minimises."""
    terms: Terms
    """Its parts, unweighted, so that logs compare across weights."""
    metrics: Terms
    """What is only watched, e.g. "elbo"."""


class Stage(NamedTuple):
    """A stretch of training with parameters of its own, e.g. one layer of greedy pre-training."""

    name: str
    share: float
    """Fraction of all steps."""
    parameters: list[nn.Parameter]


class BaseAE(nn.Module, metaclass=Recorded):
    """An autoencoder with a plain code; base of every model in the zoo.

    Args:
        input_shape: shape of one sample, no batch axis, rank 1 to 4: (features,), (channels, time), (channels, height, width),
            (channels, depth, height, width).
        latent_dim: K, size of the code.
        backbone: the encoder/decoder pair: "mlp", "conv", "resnet", ..., or with options: "mlp(widths=(512, 256), dropout=0.1)"; or two
            modules of your own, (encoder, decoder).
        likelihood: what a reconstruction costs: "mse", "bce", "l1", "huber" (means over dims), "ms_ssim" (pictures), or a density
            "gaussian", "laplace", "bernoulli", "continuous_bernoulli", "logistic_mixture" (nats per sample).
        corruption: noise in training: "none", "gaussian(sigma=0.3)", "masking", "salt_and_pepper", "speckle", "poisson"; each takes
            where="input"|"latent". A list applies several in turn.

    Raises ValueError for shapes, sizes and names that are not allowed, TypeError for an unknown keyword.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    pretrained: ClassVar[tuple[str, ...]] = ()
    code_params: ClassVar[int] = 1  # numbers that the encoder emits per latent
    bound: ClassVar[bool] = False  # the loss holds a KL: the likelihood must be a density
    generative: ClassVar[bool] = False  # has a prior from the start
    weight_keywords: ClassVar[tuple[str, ...]] = ()  # constructor keywords that nothing but `term_weights` reads
    spatial: ClassVar[bool] = False  # the code is a grid of vectors: (latent_dim, *grid)
    takes_condition: ClassVar[bool] = False  # labels or vectors that come with the data reach the model as `condition`
    accepts_missing: ClassVar[bool] = False  # NaN in the data means "not there": it is neither read nor scored
    backbones: ClassVar[tuple[str, ...]] = ()  # the only ones that make sense for this model; (): any
    sparse_code: bool = False  # most latents of a sample are exactly 0
    game: ClassVar[bool] = False  # two sides with opposite aims: the total is not what falls in training
    main_metric: ClassVar[str] = "mse"  # the figure that tells whether this model does what it is for
    recordable: ClassVar[bool] = (
        True  # its loss depends on tensors and attributes alone; a class of yours has to say so itself (`train.taped`)
    )
    prior: Any  # p(z): a module with log_prob and sample, or None
    config: dict[str, Any]
    encoder: nn.Module
    decoder: nn.Module

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        backbone: Spec = "mlp",
        likelihood: Spec = "mse",
        corruption: Spec = "none",
    ):
        super().__init__()
        self.input_shape = checked_shape(input_shape)
        self.latent_dim = positive("latent_dim", latent_dim)
        self.likelihood: Likelihood = LIKELIHOODS.build(likelihood)
        if self.bound and not self.likelihood.density:
            raise ValueError(
                f"{self.name} is trained on a bound in nats per sample, but likelihood={self.likelihood.name!r} is a mean over "
                f"dims (a mean beside a sum multiplies the KL's weight by {math.prod(self.input_shape)} here); "
                f"take likelihood={self.likelihood.instead!r}"
            )
        several = isinstance(corruption, Sequence) and not isinstance(corruption, str)
        self.corruptions: list[Corruption] = [CORRUPTIONS.build(c) for c in (corruption if several else [corruption])]
        self.backbone: Backbone = build_backbone(backbone)
        if self.backbones and self.backbone.name not in self.backbones:
            raise ValueError(
                f"{self.name} is built around a network of its own: backbone={self.backbone.name!r} does not fit; "
                f"allowed: {', '.join(self.backbones)}.{nearest(self.backbone.name, self.backbones)}"
            )
        self.prior = None
        self.grid: tuple[int, ...] = ()
        self.build_networks()

    def build_networks(self) -> None:
        """Sets `encoder`, `decoder` and, for spatial codes, `grid`."""
        sizes = (self.input_shape, self.latent_dim, self.code_params, self.likelihood.num_params)
        if self.spatial:
            self.encoder, self.decoder, self.grid = self.backbone.build_grid(*sizes)
        else:
            self.encoder, self.decoder = self.backbone.build(*sizes)

    # ------------------------------------------------------------------------------------------ the seams of a variant

    def hidden(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x (B, *input_shape) -> h, what the bottleneck takes: (B, code_params * K), or (B, code_params * K, *grid)."""
        return self.encoder(x)

    def emit(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (B, *latent_shape) -> what the likelihood takes: (B, P, *input_shape)."""
        return self.decoder(z)

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms] | Code:
        """What `hidden` returned -> code z (B, *latent_shape), the terms that belong to it, and what is only watched.

        `sample=False` must be deterministic and use no random numbers."""
        return h, {}

    def term_weights(self) -> dict[str, float | Tensor]:
        """Weight of each term in the total; 1 where a term is not named."""
        return {}

    def after_step(self) -> None:
        """Called by the loop after every optimiser step. What is counted here belongs in a buffer, to survive saving."""

    def see_data(self, samples: int) -> None:
        """Called by the loop before the first step with the number of training samples, for losses in which it counts."""

    def rates(self) -> dict[str, dict[str, float]]:
        """Learning rates of their own, as the `groups` of `fit`: {"critic.*": {"lr": 0.5}} as a factor on its `lr`."""
        return {}

    def stages(self) -> list[Stage]:
        """The stretches of training, in order; their shares add up to 1."""
        return [Stage("train", 1.0, list(self.parameters()))]

    stage = 0  # which of `stages()` is being trained; the loop sets it
    adapted: Any = None  # what `adapt` made this model of
    origin: dict[str, Any] | None = None  # what another library's file said beside sizes and weights, see `interop`

    # -------------------------------------------------------------------------------------------------------- training

    def corrupt(self, x: Tensor, where: str = "input") -> Tensor:
        """The corruptions that are active now, in turn."""
        for c in self.corruptions:
            if c.where == where and (self.training or c.when == "always"):
                x = c(x)
        return x

    def forward(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> AEOutput:
        """One pass with everything that training has: corruption (in training mode), a draw from the posterior, all terms.

        `x`, `target` (what to reconstruct; x itself by default): (B, *input_shape). Raises ValueError or TypeError for a wrong
        shape, dtype or an unexpected condition."""
        params, z, terms, metrics = self.propagate(x, target, condition)
        return AEOutput(self.likelihood.mean(params), z, terms, self.reported(metrics))

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        """What `forward` and `loss` share: x -> code -> decoder output and terms."""
        self.check_input(x)
        if target is not None:
            self.check_input(target, "target")
        self.check_condition(condition, x.shape[0])
        code = Code(*self.bottleneck(self.hidden(self.corrupt(x), condition), sample=True))
        params = self.emit(self.corrupt(code.z, "latent"), condition)  # (B, P, *input_shape)
        recon = self.likelihood.nll(params, x if target is None else target)
        return Pass(params, code.z, {"recon": recon, **code.terms}, code.metrics or {})

    def loss(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> AELoss:
        """total = sum over terms of weight * mean over the batch. The weights are applied here and nowhere else."""
        out = self.scored(x, target, condition)
        return self.weighed(out.terms, out.metrics)

    def scored(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass | AEOutput:
        """The pass that `loss` takes."""
        own = type(self).forward is not BaseAE.forward  # a variant that rewrites the whole pass
        return self(x, target, condition) if own else self.propagate(x, target, condition)

    def weighed(self, terms: Terms, metrics: Terms) -> AELoss:
        """What one pass found, (B,) or scalar, as the loss."""
        terms = {name: value.mean() if value.dim() else value for name, value in terms.items()}
        weights = self.term_weights()
        total: Any = None
        for name, value in terms.items():
            weight = weights.get(name)
            value = value if weight is None or (isinstance(weight, float) and weight == 1.0) else weight * value
            total = value if total is None else total + value
        return AELoss(total, terms, averaged(self.reported(metrics)))

    def reported(self, metrics: Terms) -> Terms:
        """The metrics of a pass with or without parts of figures, as whoever asks wants them."""
        return metrics if self.reports_parts else shown(metrics)

    reports_parts = False

    @contextmanager
    def reporting_parts(self) -> Iterator[None]:
        """Inside the block, which the loop and `evaluate` open, the metrics of `loss` and of `model(x)` hold the parts of figures, too
        (`figures`)."""
        before, self.reports_parts = self.reports_parts, True
        try:
            yield
        finally:
            self.reports_parts = before

    # ------------------------------------------------------------------------------------------------------------ use

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one code, without the batch axis."""
        return (self.latent_dim, *self.grid)

    @property
    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())

    @property
    def units(self) -> str:
        """Unit of the reconstruction term."""
        return self.likelihood.units

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode inside the block; the modes that were are restored. Gradients are left as they are."""
        trained = [m for m in self.modules() if m.training]
        for m in trained:
            m.training = False
        try:
            yield
        finally:
            for m in trained:
                m.training = True

    def encode(self, x: Tensor, sample: bool = False, condition: Tensor | None = None) -> Tensor:
        """x (B, *input_shape) -> z (B, *latent_shape). Deterministic; `sample=True` draws from the posterior where there is one.

        Always in evaluation mode: no dropout, no corruption, no random numbers."""
        self.check_input(x)
        self.check_condition(condition, x.shape[0])
        with self.evaluating():
            return self.bottleneck(self.hidden(x, condition), sample=sample)[0]

    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (B, *latent_shape) -> the mean in data space, (B, *input_shape)."""
        if not isinstance(z, Tensor):
            raise TypeError(
                f"z must be a tensor of shape (batch, {_joined(self.latent_shape)}); got {type(z).__name__}"
            )
        self._check_dtype(z, "z")
        if z.dim() < 1 or tuple(z.shape[1:]) != self.latent_shape:
            raise ValueError(f"z has shape {tuple(z.shape)}; {self.name} decodes (batch, {_joined(self.latent_shape)})")
        self.check_condition(condition, z.shape[0])
        with self.evaluating():
            return self.likelihood.mean(self.emit(z, condition))

    def reconstruct(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """decode(encode(x)): no corruption, no random numbers."""
        return self.decode(self.encode(x, condition=condition), condition)

    def sample(self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n new samples in data space, (n, *input_shape): z from the prior, then `decode`.

        Raises ValueError on models without a prior."""
        if self.prior is None:
            able = [m for m in MODELS if MODELS[m].generative]
            raise ValueError(
                f"{self.name} has no prior to sample from; aezoo.fit_prior(model, data, 'gmm') gives it one (on the command line: "
                "aezoo fit-prior RUN); "
                f"models that have one: {', '.join(able)}"
            )
        like = next(self.parameters())
        z = self.prior.sample(positive("n", n), self.latent_shape, like, generator)
        return self.decode(z, condition)

    def log_prob(self, x: Tensor, n: int = 5000) -> Tensor:
        """log p(x) in nats, (B,), on models that define one. Raises ValueError on the others."""
        raise ValueError(f"{self.name} defines no log-likelihood; models with a bound on one do, e.g. vae")

    # -------------------------------------------------------------------------------------------------- check and save

    def check_input(self, x: Tensor, what: str = "x") -> None:
        """Raises TypeError or ValueError if `x` is no batch of floating-point samples of `input_shape`."""
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{what} must be a tensor of shape (batch, {_joined(self.input_shape)}); got {type(x).__name__}"
            )
        self._check_dtype(x, what)
        if tuple(x.shape[1:]) != self.input_shape or x.dim() == 0:
            raise ValueError(
                f"{what} has shape {tuple(x.shape)}; {self.name} takes (batch, {_joined(self.input_shape)})"
                + shape_hint(tuple(x.shape), self.input_shape)
            )
        if x.shape[0] == 0:
            raise ValueError(f"{what} is an empty batch: shape {tuple(x.shape)}")

    def check_samples(self, x: Tensor) -> None:
        """Called by the loop before the first step with all samples (N, *input_shape), where they are one tensor; raises ValueError for
        what this model cannot learn from."""

    def check_condition(self, condition: Tensor | None, n: int) -> None:
        """Raises ValueError if `condition` is none for a batch of `n` samples. None always is one: nothing is known."""
        if condition is None:
            return
        if not self.takes_condition:
            able = [m for m in MODELS if MODELS[m].takes_condition]
            raise ValueError(f"{self.name} takes no condition; models that do: {', '.join(able) or 'none'}")
        if not isinstance(condition, Tensor) or condition.dim() == 0 or condition.shape[0] != n:
            got = tuple(condition.shape) if isinstance(condition, Tensor) else type(condition).__name__
            raise ValueError(f"condition must be a tensor with one entry for each of the {n} samples; got {got}")

    def _weights_dtype(self) -> torch.dtype:
        """That of the first parameter, found once: looking for it takes longer than a layer of a small model."""
        if "_first" not in self.__dict__:
            owner, name = next((m, n) for m in self.modules() for n, p in m.named_parameters(recurse=False))
            object.__setattr__(self, "_first", (owner, name))
        owner, name = self.__dict__["_first"]
        return getattr(owner, name).dtype

    def _check_dtype(self, x: Tensor, what: str) -> None:
        if not x.is_floating_point():
            scale = "; scale it first: x.float() / 255" if x.dtype == torch.uint8 else ""
            raise TypeError(f"{what} has dtype {x.dtype}; a model takes floating point{scale}")
        weights = self._weights_dtype()
        if x.dtype != weights and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"{what} has dtype {x.dtype}, but the model's weights are {weights}; pass {what}.to({weights})"
            )

    def adapt(
        self, input_shape: Sequence[int] | None = None, latent_dim: int | None = None, progress: bool = True
    ) -> Any:
        """A new model of the same configuration for samples of another shape, or with another `latent_dim`, with every weight that
        fits: pictures of another size or number of channels, a wider or narrower code. `adapted` of the new model is the report, of
        which one line is printed unless `progress=False`; `aezoo.adapting` says what becomes of which weight.

        Raises ValueError for a shape or size that the configuration does not take, TypeError for a model around modules of your own."""
        from .adapting import adapt

        return adapt(self, input_shape, latent_dim, progress)

    def save_pretrained(self, directory: str | Path) -> Path:
        """Writes `config.json` (model name and every constructor keyword), `model.safetensors` and, in `checksums.json`, its
        sha256; returns the folder.

        `aezoo.from_pretrained` reads them back. Raises TypeError if a piece was given that has no registered name."""
        config = self.saved_config()
        directory = Path(directory).expanduser()
        write_model(directory, config, self.state_dict())
        return directory

    def saved_config(self) -> dict[str, Any]:
        """What `config.json` holds: the format, the model's name, its constructor keywords, its dtype, and a prior it was given."""
        from . import __version__

        if MODELS.entries.get(self.name) is not type(self):
            raise TypeError(f"{type(self).__name__} is not registered; put @aezoo.register('its_name') above the class")
        dtype = str(next(self.parameters()).dtype).removeprefix("torch.")
        if isinstance(self.backbone, Pair):
            raise TypeError(self.backbone.nameless)
        args = plain(self.config)
        config = {"format": FORMAT, "aezoo": __version__, "model": self.name, "dtype": dtype, "args": args}
        if self.origin is not None:
            config["origin"] = plain(self.origin)
        given = self.prior is not None and (getattr(self.prior, "fitted", False) or not self.generative)
        return {**config, "prior": plain(self.prior)} if given else config  # the constructor makes no such prior


def _joined(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def positive(name: str, value: Any) -> int:
    """`value` if it is an integer above 0; else ValueError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    return int(value)


def number(name: str, value: Any, allowed: str, fine: Callable[[float], bool]) -> float:
    """`value` as a float if it is a real number and `fine`; else ValueError saying what is allowed."""
    if isinstance(value, bool) or not isinstance(value, Real) or not fine(float(value)):
        raise ValueError(f"{name}={value!r} must be {allowed}")
    return float(value)


def count(name: str, value: Any) -> int:
    """`value` if it is an integer of at least 0; else ValueError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 0:
        raise ValueError(f"{name}={value!r} must be an integer of at least 0")
    return int(value)


def checked_shape(shape: Any) -> tuple[int, ...]:
    """The shape of one sample as a tuple. Raises ValueError unless it is 1 to 4 positive integers."""
    shape = (shape,) if isinstance(shape, Integral) else shape
    fine = isinstance(shape, Sequence) and not isinstance(shape, str) and 1 <= len(shape) <= 4
    if not fine or not all(isinstance(s, Integral) and not isinstance(s, bool) and int(s) > 0 for s in shape):
        raise ValueError(
            f"input_shape={shape!r} must be 1 to 4 positive integers without the batch axis, e.g. (1, 28, 28)"
        )
    return tuple(int(s) for s in shape)


def shape_hint(got: tuple[int, ...], want: tuple[int, ...]) -> str:
    """What is probably wrong with a batch of shape `got` where samples of shape `want` are taken."""
    if 0 in got:
        return ""
    if got == want:
        return "; the batch axis is missing: x.unsqueeze(0)"
    if len(want) == 3 and len(got) == 4 and (got[3], got[1], got[2]) == want:
        return "; it looks channels-last: x.permute(0, 3, 1, 2)"
    if len(want) == 2 and got[1:] == want[::-1]:
        return "; the axes are the other way round: x.transpose(1, 2)"
    if math.prod(got[1:]) == math.prod(want):
        return f"; the sizes agree: x.reshape(-1, {_joined(want)})"
    if len(want) == 3 and len(got) == 4 and got[2:] == want[1:]:
        return f"; it has {got[1]} channels and the model takes {want[0]}"
    return ""
