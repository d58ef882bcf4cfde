"""Which metrics are taken: those that are asked for by name or pattern, else those that fit and are cheap."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from ..registry import nearest
from .base import METRICS, Metric, Subject

Wanted = dict[str, set[str] | None]
"""Metric -> the figures that are wanted of it; None: all."""


def chosen(metrics: str | Sequence[str] | None, subject: Subject) -> Wanted:
    """The metrics that `metrics` names, in the order of the registry.

    `metrics`: names and patterns as in fnmatch, of metrics or of single figures, in a list or in one string with commas. A metric's
    name stands for all of its figures. None: those that fit and are cheap.
    Raises ValueError for what is unknown, or does not fit model and data, with the reason."""
    entries = METRICS.entries
    why = {name: entry.why_not(subject) for name, entry in entries.items()}
    fitting = {name: entries[name] for name, reason in why.items() if not reason}
    if metrics is None:
        return {name: None for name, entry in fitting.items() if entry.by_default(subject)}
    figures = {name: entry.figures(subject) for name, entry in fitting.items()}
    wanted: Wanted = {}
    for pattern in names_in(metrics):
        found = _matching(pattern, figures)
        if not found:
            raise ValueError(_refusal(pattern, why, figures, subject))
        for name, some in found.items():
            before = wanted.get(name, set())
            wanted[name] = None if some is None or before is None else before | some
    return {name: wanted[name] for name in entries if name in wanted}


def names_in(metrics: str | Sequence[str]) -> list[str]:
    """The patterns of `metrics`. Raises TypeError or ValueError if there are none."""
    listed = metrics.split(",") if isinstance(metrics, str) else metrics
    if not isinstance(listed, Sequence) or not all(isinstance(m, str) for m in listed):
        raise TypeError(f"metrics={metrics!r} must be names or patterns, e.g. ['psnr', 'log_prob*'], or None")
    found = [m.strip() for m in listed if m.strip()]
    if not found:
        raise ValueError(f"metrics={metrics!r} names none; leave it away for those that fit and are cheap")
    return found


def _matching(pattern: str, figures: dict[str, list[str]]) -> Wanted:
    """What a pattern stands for: metrics of that name, else single figures; with wildcards both."""
    found: Wanted = {name: None for name in figures if fnmatch.fnmatchcase(name, pattern)}
    if found and not any(c in pattern for c in "*?["):
        return found
    for name, some in figures.items():
        hit = {figure for figure in some if fnmatch.fnmatchcase(figure, pattern)}
        if hit and name not in found:
            found[name] = hit
    return found


def _refusal(pattern: str, why: dict[str, str], figures: dict[str, list[str]], subject: Subject) -> str:
    unfit = [
        name
        for name, entry in METRICS.entries.items()
        if why[name] and any(fnmatch.fnmatchcase(n, pattern) for n in (name, *entry.gives))
    ]
    fit = f"those that fit this {subject.model.name} and this data: {', '.join(figures)}"
    if unfit:
        reasons = "; ".join(f"{name!r} does not fit: {why[name]}" for name in unfit)
        return f"metric {reasons}. {fit[0].upper()}{fit[1:]}"
    known = [*METRICS.entries, *(f for some in figures.values() for f in some)]
    known += [figure for entry in METRICS.entries.values() for figure in entry.gives]
    return f"metric {pattern!r} is not known; {fit}.{nearest(pattern, known)}"


def described() -> str:
    """Each metric's name and the first sentence about it, as lines of text."""
    wide = max(map(len, METRICS.entries))
    return "\n".join(f"{name:<{wide}}  {_first_line(entry)}" for name, entry in METRICS.entries.items())


def _first_line(entry: type[Metric]) -> str:
    return (entry.__doc__ or "").strip().split("\n")[0].strip()
