"""New samples by moving in the space of codes: from one sample to another, or along one latent.

    frames = aezoo.interpolate(model, a, b, steps=16, path="slerp")          # (16, *input_shape)
    rows = aezoo.traverse(model, x, dims=[0, 1, 2])                          # (3, 9, *input_shape)

Draws from a prior are `model.sample(n)`, of conditional models `model.sample(n, condition=...)`.

Legend: B batch, T steps, K numbers of a code (all axes flattened).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional as fn
from ..base import BaseAE, number, shape_hint
from ..data.sources import finite_range, floats
from ..models.hierarchical import LadderVAE
from ..models.spherical import SVAE
from ..randomness import checked_seed
from ..registry import choice
from .ranges import MOST, SCALES, categories_of, checked_dims, movable, on_sphere, span_of

PATHS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"linear": fn.lerp, "slerp": fn.slerp}
AT_ONCE = 64  # codes decoded at once


def interpolate(
    model: BaseAE, a: Any, b: Any, steps: int = 16, path: str = "linear", *, condition: Any = None
) -> Tensor:
    """The way from a to b through the space of codes, decoded: (steps, *input_shape), on the model's device.

        z_t = (1 - t) z_a + t z_b                                            path="linear"
        z_t = sin((1-t) W) / sin W z_a + sin(t W) / sin W z_b                path="slerp", W the angle between the codes

    with t = 0, 1/(steps-1), ..., 1; slerp is Shoemake's (1985; for latents White 2016, arXiv:1609.04468): codes of a normal prior lie near a sphere,
    and a straight line leaves it. `functional.slerp` says what becomes of codes that are 0 or opposite. Both ends are the reconstructions of a
    and b, to the bit.

    Args:
        a, b: one sample each, (*input_shape) or a batch of one; or batches of B pairs, which give (B, steps, *input_shape). 8-bit values are
            scaled to [0, 1].
        condition: a label or vector for all, or one for each pair, on models that take one.

    What is interpolated is `encode`'s code, but: on models with a codebook the encoder's output, which is quantised at every step, so that each step
    is a code of the model; categories (`joint_vae`, `aae` with classes) always in a straight line, as probabilities; on `svae` straight
    lines are drawn back onto the sphere; slerp on `ladder_vae` is taken in each layer by itself. Draws nothing; the model's mode is left
    as it was.

    Raises ValueError or TypeError for samples that do not fit the model or each other, NaN (but on models for which it means "missing"), an
    unknown path, fewer than 2 steps, and models whose reconstruction is not decoded from the code alone (a `transcoder` with skip)."""
    _checked_model(model)
    choice("path", path, PATHS)
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 2:
        raise ValueError(f"steps={steps!r} must be an integer of at least 2: the way has two ends")
    (x_a, one), (x_b, _) = samples_of(model, a, "a"), samples_of(model, b, "b")
    if len(x_a) != len(x_b):
        raise ValueError(f"a and b must hold equally many samples; got {len(x_a)} and {len(x_b)}")
    n, t = len(x_a), torch.linspace(0, 1, int(steps), dtype=torch.float64)
    t = t.to(x_a.device, torch.float32 if x_a.device.type == "mps" else torch.float64)
    given = _told(model, condition, n)
    with model.evaluating(), torch.no_grad():
        ends = [_reconstructed(model, x, given) for x in (x_a, x_b)]
        along, back = _space(model, given)
        z = [along(x) for x in (x_a, x_b)]
        way = _way(model, z[0].flatten(1), z[1].flatten(1), t, path)  # (B, T, K)
        codes = back(way.flatten(0, 1).unflatten(1, z[0].shape[1:]))  # (B * T, *latent_shape)
        each = {k: c.repeat_interleave(len(t), 0) for k, c in given.items()}
        out = _decoded(model, codes, each).unflatten(0, (n, len(t)))
    out[:, 0], out[:, -1] = ends[0], ends[1]
    return out[0] if one else out


def traverse(
    model: BaseAE,
    x: Any = None,
    dims: Sequence[int] | int | None = None,
    *,
    steps: int = 9,
    scale: str | None = None,
    span: float = 3.0,
    data: Any = None,
    quantiles: tuple[float, float] = (0.01, 0.99),
    condition: Any = None,
    seed: int = 0,
) -> Tensor:
    """What each latent does: one row for each of `dims`, in which that latent alone moves: (dims, steps, *input_shape).

    Args:
        x: the sample whose code is moved, (*input_shape) or a batch of one; by default the mean code, of the prior or of `data`.
        dims: which latents, 0 to K - 1 (of a code with more axes, in its flattened order); by default those with the largest deviation, 10 at
            most.
        steps: from one end of the range to the other, evenly.
        scale: what the range is measured by.
            "prior": mean ± span standard deviations of the latent under the prior (of 4,096 draws, where it is not N(0, I));
            "posterior": mean ± span standard deviations of q(z|x), on models with a Gaussian posterior;
            "data": between two `quantiles` of the latent over `data` (anything that `load_data` takes), no extrapolation.
            By default "data" if data is given, else "prior".
        condition: a label or vector, on models that take one.
        seed: of the draws from the prior. The global RNG is left as it was.

    On `svae`, whose codes are unit vectors, the other latents shrink or grow together so that the code stays one.

    Raises ValueError or TypeError for samples that do not fit, dims that are not there or never move, models without what `scale` needs, and models
    where one number of the code has no meaning of its own: those with a codebook, and `ladder_vae`, whose lower latents depend on the upper ones; for
    dims that are categories, too."""
    return traversed(
        model,
        x,
        dims,
        steps=steps,
        scale=scale,
        span=span,
        data=data,
        quantiles=quantiles,
        condition=condition,
        seed=seed,
    )[0]


def traversed(
    model: BaseAE, x: Any, dims: Any, *, steps: int, scale: str | None, span: float, data: Any, quantiles: Any, condition: Any,
    seed: int,
) -> tuple[Tensor, list[int]]:  # fmt: skip
    """What `traverse` returns, and the dims that it moved."""
    _checked_model(model)
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 2:
        raise ValueError(f"steps={steps!r} must be an integer of at least 2: a range has two ends")
    number("span", span, "a number above 0", lambda v: 0 < v < math.inf)
    checked_seed(seed)
    scale = choice("scale", scale or ("prior" if data is None else "data"), SCALES)
    movable(model)
    k = math.prod(model.latent_shape)
    free = range(k - categories_of(model))
    named = None if dims is None else checked_dims(model, dims, k, free)
    given = _told(model, condition, 1)
    sample = None if x is None else samples_of(model, x, "x")[0]
    if sample is not None and len(sample) != 1:
        raise ValueError(f"x holds {len(sample)} samples; traverse takes one")
    with model.evaluating(), torch.no_grad():
        if sample is not None:
            _reconstructed(model, sample, given)
        low, high, middle, spread = span_of(model, sample, scale, float(span), data, quantiles, given, seed)
        base = middle if sample is None else model.encode(sample, False, **given).flatten(1)[0].cpu().double()
        if named is None:
            order = spread[: len(free)].argsort(descending=True, stable=True)
            named = sorted(int(d) for d in order[:MOST] if high[d] > low[d])
            if not named:
                raise ValueError(f"no latent of this {model.name} moves over the data: there is no range to go along")
        still = [d for d in named if not high[d] > low[d]]
        if still:
            raise ValueError(
                f"latent {still[0]} of {model.name} has the same value {float(low[still[0]]):.4g} at both ends of its range "
                f"(scale={scale!r}): it never moves; leave it out, or take another scale"
            )
        z = base.repeat(len(named), int(steps), 1)  # (dims, T, K)
        for row, d in enumerate(named):
            z[row, :, d] = torch.linspace(float(low[d]), float(high[d]), int(steps), dtype=z.dtype)
            if isinstance(model, SVAE):
                z[row] = on_sphere(z[row], d)
        like = next(model.parameters())
        codes = z.flatten(0, 1).unflatten(1, model.latent_shape).to(like)
        each = {key: c.repeat_interleave(len(codes), 0) for key, c in given.items()}
        return _decoded(model, codes, each).unflatten(0, (len(named), int(steps))), named


# ------------------------------------------------------------------------------------------------------ what goes in


def _checked_model(model: Any) -> None:
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")


def samples_of(model: BaseAE, x: Any, what: str) -> tuple[Tensor, bool]:
    """(a batch (B, *input_shape) on the model's device in its dtype, whether it holds a single sample).

    Raises TypeError or ValueError for what is none, for NaN and for values outside the likelihood's range."""
    if not isinstance(x, Tensor):
        if type(x).__module__ != "numpy":
            raise TypeError(f"{what} must be a tensor or an array of shape {model.input_shape}; got {type(x).__name__}")
        x = torch.from_numpy(x)
    if not x.is_floating_point() and x.dtype != torch.uint8:
        raise TypeError(f"{what} has dtype {x.dtype}; a sample is floating point, or uint8, which is scaled to [0, 1]")
    like, shape = next(model.parameters()), model.input_shape
    batch = x[None] if tuple(x.shape) == shape else x
    if tuple(batch.shape[1:]) != shape or not batch.dim() or not len(batch):
        raise ValueError(
            f"{what} has shape {tuple(x.shape)}; {model.name} takes a sample of shape {shape}, or a batch of them"
            + shape_hint((1, *x.shape) if x.dim() == len(shape) else tuple(x.shape), shape)
        )
    batch = floats(batch.detach().to(like.device), like.dtype)
    try:
        low, high = finite_range(batch, missing=model.accepts_missing)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    model.likelihood.check(low, high)
    return batch, len(batch) == 1


def _told(model: BaseAE, condition: Any, n: int) -> dict[str, Tensor]:
    """A condition for n samples, as a keyword of `encode` and `decode`; none where there is none."""
    if condition is None:
        return {}
    device = next(model.parameters()).device
    if isinstance(condition, Integral) or (isinstance(condition, Tensor) and condition.dim() == 0):
        condition = torch.full((n,), int(condition), device=device)
    if not isinstance(condition, Tensor):
        try:
            condition = torch.as_tensor(condition)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"condition must be a label, a tensor, or a list of numbers; got {type(condition).__name__}"
            ) from None
    vector = getattr(model, "condition_dim", None)
    if vector is not None and condition.dim() == 1:
        condition = condition[None]
    condition = condition.to(device)
    condition = condition.expand(n, *condition.shape[1:]) if len(condition) == 1 else condition
    model.check_condition(condition, n)
    if getattr(model, "num_classes", None) and callable(getattr(model, "check_labels", None)):
        net: Any = model
        net.check_labels(condition)
    return {"condition": condition}


def _reconstructed(model: BaseAE, x: Tensor, given: dict[str, Tensor]) -> Tensor:
    """The reconstruction. Raises ValueError for a model that does not make it of the code alone."""
    whole = model.reconstruct(x, **given)
    if type(model).reconstruct is not BaseAE.reconstruct:
        of_code = model.decode(model.encode(x, False, **given), **given)
        if of_code.shape != whole.shape or not torch.allclose(of_code, whole, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ValueError(
                f"this {model.name} does not reconstruct from the code alone (pairs, or a way past the code), so that moving the "
                "code says little; take one without them"
            )
    return whole


# -------------------------------------------------------------------------------------------------- ways between codes


def _space(model: BaseAE, given: dict[str, Tensor]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(x -> what is interpolated, that -> codes)."""
    if getattr(model, "index_prior", False):  # a blend of two code vectors is no code: quantise what the encoder says
        return (
            lambda x: model.hidden(x, given.get("condition")),
            lambda h: torch.cat([model.bottleneck(part, sample=False)[0] for part in h.split(AT_ONCE)]),
        )
    return lambda x: model.encode(x, False, **given), lambda z: z


def _way(model: BaseAE, a: Tensor, b: Tensor, t: Tensor, path: str) -> Tensor:
    """Codes (B, K) twice, t (T,) -> (B, T, K), part by part where a code has parts."""
    k = a.shape[1]
    if isinstance(model, LadderVAE):
        sizes, ways = model.decoder.lengths, [path] * len(model.decoder.lengths)
    else:
        categories = categories_of(model)
        sizes, ways = [k - categories, categories], [path, "linear"]
    parts = [
        PATHS[way](p.to(t.dtype), q.to(t.dtype), t) for way, p, q in zip(ways, a.split(sizes, 1), b.split(sizes, 1))
    ]
    whole = torch.cat(parts, 2)
    if isinstance(model, SVAE):
        whole = F.normalize(whole, dim=2)
    return whole.to(a.dtype)


def _decoded(model: BaseAE, codes: Tensor, given: dict[str, Tensor]) -> Tensor:
    """Codes (N, *latent_shape) -> (N, *input_shape), some at a time."""
    parts = []
    for at in torch.arange(len(codes)).split(AT_ONCE):
        cut = slice(int(at[0]), int(at[-1]) + 1)
        parts.append(model.decode(codes[cut], **{k: c[cut] for k, c in given.items()}))
    return torch.cat(parts)
