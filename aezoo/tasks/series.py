"""Where a series is abnormal: a model of windows goes over it, and steps that it cannot give back are joined to intervals.

Legend: T steps, C channels, W steps of a window, N windows, x series, x^ reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..base import BaseAE, number, positive
from ..models.sequences import SeriesAE
from ..randomness import forked_rng
from ..registry import choice
from ..train.hardware import decide

THRESHOLDS = ("mad", "quantile")


class Interval(NamedTuple):
    """A stretch of abnormal steps."""

    start: int
    """First step."""
    end: int
    """The step behind the last: series[start:end]."""
    severity: float
    """The largest error inside, in thresholds: above 1."""


def sliding_windows(series: Any, window: int, stride: int = 1, shape: Sequence[int] | None = None) -> Tensor:
    """The windows of a series (T,) or (T, C), to train a model on: (N, W, C), or (N, *shape) where `shape` is a model's input_shape.

    Windows begin every `stride` steps, and one ends at the last step, so that every step is in one. Raises ValueError if the
    series is shorter than a window."""
    return _windows(_checked(series), positive("window", window), positive("stride", stride), shape)[0].float()


def detect_series(
    model: BaseAE,
    series: Any,
    window: int | None = None,
    *,
    stride: int = 1,
    normal: Any = None,
    threshold: str = "mad",
    k: float = 6.0,
    q: float = 0.995,
    gap: int | None = None,
    shortest: int = 1,
    batch_size: int = 512,
    device: str | torch.device = "auto",
) -> list[Interval]:
    """The abnormal stretches of a series, in order: a list of `Interval(start, end, severity)`.

    A step's error is sqrt(mean over channels of (x - x^)^2), the squares averaged over all windows that the step is in. Steps
    above the threshold are abnormal; stretches of them with at most `gap` steps between are joined.

    Args:
        model: any model trained on windows of normal series: input_shape (W, C) (lstm_ae, tcn_ae, transformer_ae), (C, W)
            (conv_ae), or (W * C,), step after step (`sliding_windows` makes such windows).
        series: (T,) or (T, C). NaN means that a value is missing: models that take NaN get it, others a line between its
            neighbours in time; its error is not counted, and a step of which nothing is there is never abnormal by itself.
        window: W; by default what the model takes. stride: steps between the starts of windows.
        normal: what the threshold is taken from: (start, stop) steps of this series, a slice, or a normal series of its own; by
            default all of `series`, of which then most should be normal.
        threshold: "mad": median + k * 1.4826 * median absolute deviation of the normal steps' errors; "quantile": their
            `q`-quantile, above which 1 - q of the normal steps are, too.
        gap: by default W // 4. shortest: stretches of fewer steps are left out.
        batch_size: windows at once. device: where it computes.

    The global RNG, the model's mode and its device are left as they were.
    Raises ValueError for a series that is shorter than a window, infinite, or all NaN, and for shapes that do not fit."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")
    choice("threshold", threshold, THRESHOLDS)
    number("k", k, "a number above 0", lambda v: 0 < v < math.inf)
    number("q", q, "a number between 0 and 1", lambda v: 0 < v < 1)
    for name, value in (("stride", stride), ("shortest", shortest), ("batch_size", batch_size)):
        positive(name, value)
    x = _checked(series)
    window = _window_of(model, x.shape[1]) if window is None else positive("window", window)
    gap = window // 4 if gap is None else gap
    if isinstance(gap, bool) or not isinstance(gap, Integral) or gap < 0:
        raise ValueError(f"gap={gap!r} must be a number of steps, an integer of at least 0")
    errors = _errors(model, x, window, stride, batch_size, device)
    if normal is None and not np.any(np.nanmax(x, axis=0) > np.nanmin(x, axis=0)):
        return []  # no step differs from the others
    known = _normal_errors(model, x, errors, normal, (window, stride, batch_size, device))
    limit = _limit(known, threshold, k, q)
    if normal is not None and limit == np.median(known):  # most are the same: then every normal one is known
        limit = float(known.max())
    return _intervals(errors, limit, int(gap), shortest)


def _checked(series: Any) -> np.ndarray:
    """(T,) or (T, C) -> (T, C) float64, NaN allowed."""
    series = series.detach().cpu().numpy() if isinstance(series, Tensor) else series
    try:
        x = np.asarray(series, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"series must be an array of numbers (T,) or (T, C); got {type(series).__name__}") from None
    if x.ndim not in (1, 2) or x.size == 0:
        raise ValueError(f"series has shape {x.shape}; it must be (T,) or (T, C), with at least one step")
    x = x[:, None] if x.ndim == 1 else x
    if np.isinf(x).any():
        raise ValueError(
            f"series holds infinity, first at step {int(np.isinf(x).any(1).argmax())}; NaN marks what is missing"
        )
    empty = np.isnan(x).all(0)
    if empty.any():
        raise ValueError(f"series holds nothing but NaN in channel {int(empty.argmax())}")
    return x


def _window_of(model: BaseAE, channels: int) -> int:
    """W by the model's input_shape."""
    shape = model.input_shape
    if len(shape) == 1 and shape[0] % channels == 0:
        return shape[0] // channels
    if len(shape) == 2 and channels in shape:
        return shape[_time_axis(model, shape, channels)]
    raise ValueError(
        f"{model.name} takes samples of shape {shape}, which hold no windows of a series with {channels} channels"
    )


def _time_axis(model: BaseAE, shape: Sequence[int], channels: int) -> int:
    if shape[0] == shape[1]:
        return 0 if isinstance(model, SeriesAE) else 1
    return 0 if shape[1] == channels else 1


def _windows(x: np.ndarray, window: int, stride: int, shape: Sequence[int] | None) -> tuple[Tensor, np.ndarray]:
    """Windows (N, *shape) float64 of a checked series (T, C), and their first steps (N,)."""
    steps, channels = x.shape
    if steps < window:
        raise ValueError(f"the series has {steps} steps, fewer than a window of {window}")
    starts = np.unique(np.append(np.arange(0, steps - window + 1, stride), steps - window))
    found = torch.from_numpy(x[starts[:, None] + np.arange(window)])  # (N, W, C)
    return (found if shape is None else _as_shape(found, tuple(shape), window, channels)), starts


def _as_shape(found: Tensor, shape: tuple[int, ...], window: int, channels: int, time_axis: int = 0) -> Tensor:
    if shape == (window * channels,):
        return found.flatten(1)
    if shape == (window, channels) and time_axis == 0:
        return found
    if shape == (channels, window):
        return found.transpose(1, 2).contiguous()
    raise ValueError(
        f"windows of {window} steps and {channels} channels fit input_shape ({window}, {channels}), ({channels}, {window}) or "
        f"({window * channels},), not {shape}"
    )


def _errors(model: BaseAE, x: np.ndarray, window: int, stride: int, batch_size: int, device: Any) -> np.ndarray:
    """Each step's error (T,), NaN where nothing of a step is there."""
    steps, channels = x.shape
    shape, axis = model.input_shape, 0
    if len(shape) == 2:
        axis = _time_axis(model, shape, channels)
    windows, starts = _windows(x if model.accepts_missing else _filled(x), window, stride, None)
    place, before = decide(device, "fp32", False).device, next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    total, times = np.zeros((steps, channels)), np.zeros((steps, 1))
    try:
        model.to(place)
        with forked_rng(place), model.evaluating(), torch.no_grad():
            for part, first in zip(
                windows.split(batch_size), np.split(starts, range(batch_size, len(starts), batch_size))
            ):
                inside = _as_shape(part, shape, window, channels, axis).to(place, dtype)
                back = model.reconstruct(inside).cpu().double()
                if len(shape) == 1:
                    back = back.view(-1, window, channels)
                elif axis == 1:
                    back = back.transpose(1, 2)
                at = (first[:, None] + np.arange(window)).ravel()
                np.add.at(total, at, np.nan_to_num((back - part).square().numpy()).reshape(-1, channels))
                np.add.at(times, at, 1.0)
    finally:
        model.to(before)
    squares = np.where(np.isnan(x), np.nan, total / times)
    there = ~np.isnan(squares)
    return np.sqrt(np.where(there, squares, 0.0).sum(1) / np.where(there.any(1), there.sum(1), np.nan))


def _filled(x: np.ndarray) -> np.ndarray:
    """Gaps (NaN) of each channel filled by a line between their neighbours in time; at the ends by the nearest value."""
    x = x.copy()
    at = np.arange(len(x))
    for channel in x.T:
        missing = np.isnan(channel)
        if missing.any():
            channel[missing] = np.interp(at[missing], at[~missing], channel[~missing])
    return x


def _normal_errors(
    model: BaseAE, x: np.ndarray, errors: np.ndarray, normal: Any, how: tuple[int, int, int, Any]
) -> np.ndarray:
    """The errors that the threshold is taken from, without NaN."""
    if normal is None:
        known = errors
    elif isinstance(normal, slice):
        known = errors[normal]
    elif isinstance(normal, (tuple, list)) and len(normal) == 2 and all(isinstance(v, Integral) for v in normal):
        start, stop = (int(v) for v in normal)
        if not 0 <= start < stop <= len(errors):
            raise ValueError(f"normal={normal!r} must be (start, stop) with 0 <= start < stop <= {len(errors)} steps")
        known = errors[start:stop]
    else:
        other = _checked(normal)
        if other.shape[1] != x.shape[1]:
            raise ValueError(f"normal has {other.shape[1]} channels, and series {x.shape[1]}")
        known = _errors(model, other, *how)
    known = known[~np.isnan(known)]
    if not len(known):
        raise ValueError("the normal part holds no step with a value to take a threshold from")
    return known


def _limit(known: np.ndarray, threshold: str, k: float, q: float) -> float:
    """The error above which a step is abnormal."""
    if threshold == "quantile":
        return float(np.quantile(known, q))
    middle = float(np.median(known))
    return middle + k * 1.4826 * float(np.median(np.abs(known - middle)))


def _intervals(errors: np.ndarray, limit: float, gap: int, shortest: int) -> list[Interval]:
    """Steps with errors (T,) above the limit, joined over at most `gap` others."""
    at = np.flatnonzero(np.nan_to_num(errors, nan=-1.0) > limit * (1 + 1e-9) + 1e-12)  # rounding is no anomaly
    if not len(at):
        return []
    parts = np.split(at, np.flatnonzero(np.diff(at) > gap + 1) + 1)
    floor = max(limit, 1e-12)
    found = [Interval(int(p[0]), int(p[-1]) + 1, float(errors[p].max() / floor)) for p in parts]
    return [interval for interval in found if interval.end - interval.start >= shortest]
