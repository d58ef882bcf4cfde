"""A trained model for data of another shape, or with another number of latents: `model.adapt(input_shape=..., latent_dim=...)`.

The new model has the configuration of the old one, and every weight that fits. A weight whose size follows the data's shape is carried
over, so that the new model does to a picture what the old one does to that picture resized and recoloured:

    x_old = D x_new,   x_new' = U x_old'        w_new = w_old D where a layer reads data,  w_new = U w_old where it writes data

D and U act on each axis. Along height, width, depth or time: linear interpolation, with antialiasing where the axis gets shorter.
Along the channels: taken in turn, so grey to colour is the mean of the channels and back the same value in each; colour to grey the
other way round (for a first convolution on grey pictures: the sum of its kernels over the channels). For one fully connected layer each
way, or more, and for convolutions with other channels, this is exact; for the layer between convolutions and code the feature maps are
resized in place of the picture, which is near.

Latents: the first ones keep their weights. Those that come in addition have an encoder's weights of a new model and are not read by the
decoder (its weights for them are 0) until they are trained; so a wider code changes no reconstruction.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import Pair
from .backbones.sequence import Series
from .base import BaseAE, checked_shape, positive
from .priors import PRIORS
from .registry import plain

Layout = tuple[tuple[str, int, int], ...]  # the parts of one axis, slowest first: (kind, old size, new size)

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Adapted(NamedTuple):
    """What became of each tensor of the state. `print(model.adapted)` lists it."""

    kept: list[str]
    """The same values."""
    resized: dict[str, str]
    """Carried over to another size, and what of them: "channels", "size", "latents"."""
    new: list[str]
    """As in a model that was just made: nothing fitted."""
    dropped: list[str]
    """Of the old model, without a place in the new one."""

    def __str__(self) -> str:
        lines = [f"kept     {len(self.kept)}: {', '.join(self.kept) or 'nothing'}"]
        lines += [f"resized  {name} ({how})" for name, how in self.resized.items()]
        lines += [f"new      {name}" for name in self.new] + [f"dropped  {name}" for name in self.dropped]
        return "\n".join(lines)

    def summary(self) -> str:
        """One line."""
        parts = [f"{len(self.kept)} weights kept"]
        for word, names in (("resized", list(self.resized)), ("new", self.new), ("dropped", self.dropped)):
            if names:
                parts.append(f"{len(names)} {word} ({', '.join(names[:4])}{', ...' * (len(names) > 4)})")
        return ", ".join(parts)


def adapt(
    model: BaseAE, input_shape: Sequence[int] | None = None, latent_dim: int | None = None, progress: bool = True
) -> BaseAE:
    """A new model of the same configuration for samples of another shape, or with another number of latents; see the module's docstring
    for what becomes of the weights. `model` stays as it is.

    Args: `input_shape`, `latent_dim`: what is to change. `progress`: say on the terminal what was kept.
    Returns the model, whose `adapted` is the `Adapted` report. What is new is drawn from torch's generator, as in `create_model`.
    Raises ValueError for a shape or size that the configuration does not take, TypeError for a model without a `latent_dim` and for
    one around modules of your own."""
    if input_shape is None and latent_dim is None:
        raise ValueError(
            "adapt needs what is to change: input_shape=, the shape of one sample, or latent_dim=, or both"
        )
    if isinstance(model.backbone, Pair):
        raise TypeError(
            f"{model.name} is built around modules of your own, which adapt cannot make anew; give the backbone by name"
        )
    keywords = plain(model.config)
    if latent_dim is not None and "latent_dim" not in keywords:
        raise TypeError(f"{model.name} has no latent_dim to adapt; it takes {', '.join(keywords)}")
    shape = model.input_shape if input_shape is None else checked_shape(input_shape)
    keywords["input_shape"] = shape
    if latent_dim is not None:
        keywords["latent_dim"] = positive("latent_dim", latent_dim)
    first = next(model.parameters())
    new: BaseAE = type(model)(**keywords).to(first.device, first.dtype)
    new.origin = copy.deepcopy(model.origin)
    given = model.prior is not None and (getattr(model.prior, "fitted", False) or not model.generative)
    if given and new.latent_shape == model.latent_shape:
        new.prior = PRIORS.build(plain(model.prior)).settled().to(first.device, first.dtype)
    state, report = _carried(model, new)
    new.load_state_dict(state)
    new.train(model.training)
    new.adapted = report
    if progress:
        sizes = f"{model.input_shape} -> {model.latent_dim} becomes {new.input_shape} -> {new.latent_dim}"
        print(f"{model.name} {sizes}: {report.summary()}")
    return new


def _carried(old: BaseAE, new: BaseAE) -> tuple[dict[str, Tensor], Adapted]:
    """The new model's state, and where it is from."""
    before, state, report = old.state_dict(), dict(new.state_dict()), Adapted([], {}, [], [])
    report.dropped.extend(name for name in before if name not in state)
    grids = _grids(old, new)
    for name, fresh in state.items():
        was = before.get(name)
        if was is None or was.dim() != fresh.dim():
            report.new.append(name)
        elif was.shape == fresh.shape:
            state[name] = was.detach().clone()
            report.kept.append(name)
        else:
            found = _resized(old, new, name, was.detach(), fresh, grids)
            if found is None:
                report.new.append(name)
            else:
                state[name], report.resized[name] = found
    return state, report


def _resized(
    old: BaseAE, new: BaseAE, name: str, was: Tensor, fresh: Tensor, grids: list[Layout]
) -> tuple[Tensor, str] | None:
    """`was` with the shape of `fresh`, and what changed; None if an axis is of no known kind."""
    roles = _roles(new, name)
    kinds: list[str] = []
    value = was.double()
    for axis, (n, m) in enumerate(zip(was.shape, fresh.shape)):
        if n == m:
            continue
        layout = next(_layouts(old, new, name, roles.get(axis, ""), n, m, grids), None)
        if layout is None:
            return None
        value = _along(value, axis, layout, roles.get(axis) == "reads", fresh)
        changed = {"channel": "channels", "axis": "size", "latent": "latents"}
        kinds += [changed[kind] for kind, a, b in layout if a != b]
    return value.to(fresh.dtype), " and ".join(dict.fromkeys(kinds))


def _roles(model: BaseAE, name: str) -> dict[int, str]:
    """Which axis of a weight reads what comes in, which writes what goes out, and which holds the positions of tokens: {axis: role}."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path) if path else model
    if isinstance(module, (nn.Linear, *_CONV)) and getattr(module, "groups", 1) == 1:
        return {0: "writes", 1: "reads"} if leaf == "weight" else {0: "writes"}
    if isinstance(module, _TRANSPOSED) and module.groups == 1:
        return {0: "reads", 1: "writes"} if leaf == "weight" else {0: "writes"}
    if leaf == "bias" and hasattr(module, "owner"):  # of a tied layer
        return {0: "writes"}
    return {0: "holds"} if leaf == "table" else {}  # the positions of tokens


def _grids(old: BaseAE, new: BaseAE) -> list[Layout]:
    """Feature maps that become vectors, (channels, *grid), where both models have them at the same places; tokens of patches on a grid,
    and the patches themselves."""
    there = {name: m.unflattened_size for name, m in old.named_modules() if isinstance(m, nn.Unflatten)}
    found = []
    for name, m in new.named_modules():
        if isinstance(m, nn.Unflatten) and name in there:
            a, b = _plain_sizes(there[name]), _plain_sizes(m.unflattened_size)
            if len(a) == len(b) and a[0] == b[0]:
                found.append((("feature", a[0], b[0]), *_axes(a[1:], b[1:])))
    cut: Any = [getattr(m.encoder, "layout", None) for m in (old, new)]
    if all(hasattr(layout, "patch") for layout in cut) and len(cut[0].grid) == len(cut[1].grid):
        found.append((*_axes(cut[0].grid, cut[1].grid), ("token", 1, 1)))
        found.append((("channel", cut[0].channels, cut[1].channels), *_axes(cut[0].patch, cut[1].patch)))
    return found


def _axes(a: Sequence[int], b: Sequence[int]) -> Layout:
    return tuple(("axis", s, t) for s, t in zip(a, b))


def _plain_sizes(sizes: Any) -> tuple[int, ...]:
    return tuple(int(s) for s in sizes)


def _layouts(old: BaseAE, new: BaseAE, name: str, role: str, n: int, m: int, grids: list[Layout]) -> Iterator[Layout]:
    """The ways in which an axis of n numbers and one of m can be read as the same thing, the likeliest first."""
    side = name.split(".")[0]
    inner = (side == "encoder" and role == "writes") or (side == "decoder" and role == "reads")  # towards the code
    outer = (side == "encoder" and role == "reads") or (side == "decoder" and role == "writes")  # towards the data
    a, b = old.latent_dim, new.latent_dim
    if not outer and a != b and n % a == 0 and n // a * b == m:
        yield ("feature", n // a, n // a), ("latent", a, b)
    x, y = old.input_shape, new.input_shape
    if inner or not role or len(x) != len(y) or isinstance(new.backbone, Series):
        return
    data = (("channel", x[0], y[0]), *_axes(x[1:], y[1:])) if len(x) > 1 else ()
    for layout in [*grids, *([data] if data else []), *([data[:1]] if data else [])]:
        size = _size(layout)
        if n % size[0] == 0 and n // size[0] * size[1] == m:
            rest = n // size[0]  # of a token's features, which come last, or of what comes before a map
            features = (("feature", rest, rest),)
            yield (*layout[:-1], *features) if layout[-1][0] == "token" else (*features, *layout)


def _size(layout: Layout) -> tuple[int, int]:
    n = m = 1
    for _, a, b in layout:
        n, m = n * a, m * b
    return n, m


def _along(value: Tensor, axis: int, layout: Layout, reads: bool, fresh: Tensor) -> Tensor:
    """`value` with one axis carried over, part by part."""
    value = value.unflatten(axis, [a for _, a, _ in layout])
    for part, (kind, a, b) in enumerate(layout, start=axis):
        if a == b:
            continue
        if kind == "latent":
            value = _latents(value, part, axis, b, reads, fresh)
            continue
        carry = (_turns if kind == "channel" else _interpolation)(*((b, a) if reads else (a, b)))
        matrix = (carry.T if reads else carry).to(value.device)  # (b, a)
        value = torch.tensordot(value, matrix, dims=([part], [1])).movedim(-1, part)
    return value.flatten(axis, axis + len(layout) - 1)


def _latents(value: Tensor, part: int, axis: int, count: int, reads: bool, fresh: Tensor) -> Tensor:
    """The first latents keep their weights; more of them are those of a new model, or 0 where a layer reads them."""
    common = value.narrow(part, 0, min(count, value.shape[part]))
    if count <= value.shape[part]:
        return common
    if reads or fresh.shape[:axis] != value.shape[:axis] or fresh.shape[axis + 1 :] != value.shape[part + 1 :]:
        rest = value.new_zeros([count - s if i == part else s for i, s in enumerate(value.shape)])
    else:
        whole = fresh.double().unflatten(axis, (-1, count))
        rest = whole.narrow(part, value.shape[part], count - value.shape[part])
    return torch.cat([common, rest], part)


def _turns(n: int, m: int) -> Tensor:
    """(m, n): n channels become m, taken in turn: each is the one whose number it has mod n, or the mean of those that share its own."""
    matrix = torch.zeros(m, n, dtype=torch.float64)
    for i in range(max(n, m)):
        matrix[i % m, i % n] = 1
    return matrix / matrix.sum(1, keepdim=True)


def _interpolation(n: int, m: int) -> Tensor:
    """(m, n): an axis of n positions becomes one of m, by linear interpolation; rows add up to 1."""
    eye = torch.eye(n, dtype=torch.float64)[None, None]
    rows: Tensor = F.interpolate(eye, size=(n, m), mode="bilinear", antialias=True, align_corners=False)[0, 0]
    return rows.T
