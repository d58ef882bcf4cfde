"""Charts as inline SVG: lines, histograms, bars, and the map of the latent space. They need no script to be read; where there is one,
a pointer shows the values (`page.js` reads them from `data-chart`)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 12, 34
COLOURS = ("#4c78a8", "#e4803c", "#4f9d6b", "#c8505b", "#8a68b0", "#9a7059", "#d888b8", "#7d8591", "#a8a037", "#3fa3ad",
           "#1f4e79", "#a5531a", "#27613c", "#86252f", "#57377c", "#603f2b", "#9b4c7e", "#474d57", "#66611a", "#19656d")  # fmt: skip


class Line(NamedTuple):
    """One line of a chart."""

    label: str
    kind: str
    """Class of the line: "train", "val", "other"."""
    points: list[tuple[float, float]]


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers within [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((f for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999), default=10)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis whose ends are given as log10."""
    whole = [float(k) for k in range(math.ceil(low), math.floor(high) + 1)]
    if len(whole) >= 2:
        return whole[:: math.ceil(len(whole) / 5)]
    return sorted(math.log10(m * 10.0**k) for k in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)
                  if low <= math.log10(m * 10.0**k) <= high)  # fmt: skip


def short(value: float) -> str:
    """A number at a tick."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.2g}".replace("e-0", "e-") if 0 < size < 1e-3 else f"{value:.4g}"


class Axes:
    """From data to places in the picture."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], log: bool = False, height: int = HEIGHT, left: int = LEFT
    ):
        self.log, self.height, self.left = log, height, left
        self.x0, self.x1 = x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
        low, high = (math.log10(y[0]), math.log10(y[1])) if log else y
        self.y0, self.y1 = (low, high) if high > low else (low - 0.5, low + 0.5)

    def at_x(self, v: float) -> float:
        return self.left + (v - self.x0) / (self.x1 - self.x0) * (WIDTH - self.left - RIGHT)

    def at_y(self, v: float) -> float:
        v = math.log10(max(v, 1e-300)) if self.log else v
        share = min(max((v - self.y0) / (self.y1 - self.y0), -3.0), 4.0)  # what is far outside is clipped anyway
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)

    def frame(self, x: str, y: str, whole: bool = False, marks: bool = True) -> str:
        """Grid, ticks and names of the axes."""
        parts = []
        values = decades(self.y0, self.y1) if self.log else ticks(self.y0, self.y1)
        for v in values:
            v = 10.0**v if self.log else v
            at = self.at_y(v)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{self.left - 6}" y="{at + 3.5:.1f}" text-anchor="end">{short(v)}</text>'
            )
        for v in ticks(self.x0, self.x1, 5) if marks else []:
            if not whole or v == round(v):
                at = self.at_x(v)
                parts.append(
                    f'<text class="tick" x="{at:.1f}" y="{self.height - BOTTOM + 15}" text-anchor="middle">{short(v)}</text>'
                )
        foot = self.height - BOTTOM
        parts.append(f'<line class="axis" x1="{self.left}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}"/>')
        parts.append(
            f'<text class="name" x="{WIDTH - RIGHT}" y="{self.height - 4}" text-anchor="end">{escape(x)}</text>'
        )
        if y:
            parts.append(f'<text class="name" x="{self.left}" y="{self.height - 4}">{escape(y)}</text>')
        return "".join(parts)


def figure(title: str, svg: str, legend: str = "", note: str = "", data: str = "", height: int = HEIGHT) -> str:
    attribute = f" data-chart='{escape(data, quote=True)}'" if data else ""
    under = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}"{attribute}>{svg}</svg>{under}</figure>'
    )


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(label, class) of each line."""
    items = "".join(f'<span class="key {kind}">{escape(label)}</span>' for label, kind in entries)
    return f'<span class="legend">{items}</span>'


def lines(
    title: str, series: Sequence[Line], x: str, y: str = "", edges: Sequence[tuple[float, str]] = (), log: bool = False
) -> str:
    """Lines over a common axis. `edges`: where stages of training begin, with their names. Where the first point lies far off, the axis
    shows the others."""
    series = [line._replace(points=[p for p in line.points if math.isfinite(p[1])]) for line in series]
    series = [line for line in series if line.points]
    if not series:
        return ""
    xs = [p[0] for line in series for p in line.points]
    seen = [p[1] for line in series for p in (line.points[1:] if len(line.points) > 5 and not log else line.points)]
    log = log and min(seen) > 0
    low, high = min(seen), max(seen)
    if log:
        low, high = low / 1.1, high * 1.1
    else:
        gap = 0.06 * (high - low) or abs(high) * 0.05 or 0.5
        low, high = low - gap, high + gap
    axes = Axes((min(xs), max(xs)), (low, high), log)
    parts = [axes.frame(x, y, whole=True)]
    for at, name in edges:
        parts.append(
            f'<line class="edge" x1="{axes.at_x(at):.1f}" x2="{axes.at_x(at):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"><title>{escape(name)}</title></line>'
        )
    drawn = []
    for line in series:
        places = [(axes.at_x(a), axes.at_y(b)) for a, b in line.points]
        path = "L".join(f"{a:.1f},{b:.1f}" for a, b in places)
        drawn.append(f'<path class="line {line.kind}" d="M{path}"/>')
        if len(places) <= 12:
            drawn += [f'<circle class="dot {line.kind}" cx="{a:.1f}" cy="{b:.1f}" r="2.4"/>' for a, b in places]
    box = f"{LEFT} {TOP - 4} {WIDTH - LEFT} {HEIGHT - BOTTOM - TOP + 5}"
    x0, y0, width, height = box.split()
    parts.append(
        f'<svg x="{x0}" y="{y0}" width="{width}" height="{height}" viewBox="{box}" overflow="hidden">{"".join(drawn)}</svg>'
    )
    data = json.dumps({
        "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM, "x": x,
        "lines": [{"label": line.label, "kind": line.kind,
                   "points": [[_sig(a), _sig(b), _sig(axes.at_x(a)), _sig(axes.at_y(b))] for a, b in line.points]} for line in series],
    })  # fmt: skip
    return figure(title, "".join(parts), legend([(line.label, line.kind) for line in series]), data=data)


def _sig(value: float) -> float:
    return float(f"{value:.5g}")


def histogram(
    title: str,
    values: Sequence[float],
    x: str,
    bins: int = 40,
    log_x: bool = False,
    note: str = "",
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """How often which value occurs. `log_x`: bins of equal ratio, of what is above 0. `marks`: values to point out, with their names."""
    kept = [v for v in values if math.isfinite(v) and (not log_x or v > 0)]
    if not kept:
        return ""
    xs = [math.log10(v) for v in kept] if log_x else kept
    low, high = min(xs), max(xs)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / bins
    counts = [0] * bins
    for v in xs:
        counts[min(bins - 1, int((v - low) / width))] += 1
    axes = Axes((low, high), (0, max(counts) * 1.05))
    name = (lambda v: 10.0**v) if log_x else (lambda v: v)
    parts = [axes.frame(x, "", marks=not log_x)]
    if log_x:
        for v in decades(low, high):
            parts.append(
                f'<text class="tick" x="{axes.at_x(v):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{short(10.0**v)}</text>'
            )
    foot = HEIGHT - BOTTOM
    for i, count in enumerate(counts):
        a, b, top = axes.at_x(low + i * width), axes.at_x(low + (i + 1) * width), axes.at_y(count)
        told = f"{short(name(low + i * width))} to {short(name(low + (i + 1) * width))}: {count:,}"
        if count:
            parts.append(
                f'<rect class="bar" x="{a + 0.4:.1f}" y="{top:.1f}" width="{max(b - a - 0.8, 0.6):.1f}" height="{foot - top:.1f}"><title>{told}</title></rect>'
            )
    for value, label in marks:
        at = axes.at_x(math.log10(value) if log_x and value > 0 else value)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{foot}"/>')
        side = "end" if at > WIDTH / 2 else "start"
        parts.append(
            f'<text class="name" x="{at + (-5 if side == "end" else 5):.1f}" y="{TOP + 8}" text-anchor="{side}">{escape(label)}</text>'
        )
    return figure(title, "".join(parts), note=note)


def bars(
    title: str,
    values: Sequence[float],
    labels: Sequence[str],
    x: str = "",
    y: str = "",
    note: str = "",
    kinds: Sequence[str] = (),
) -> str:
    """A bar for each value, in the given order; names under them where there is room."""
    if not values:
        return ""
    axes = Axes(
        (0, len(values)),
        (min(0.0, *values), max(*values, 1e-12) * 1.05) if len(values) > 1 else (0, max(values[0], 1e-12)),
    )
    parts, foot = [axes.frame(x, y, marks=False)], axes.at_y(0.0)
    narrow = (WIDTH - LEFT - RIGHT) / len(values)
    gap = min(2.0, 0.15 * narrow)
    for i, value in enumerate(values):
        at, top = axes.at_x(i), axes.at_y(value)
        kind = kinds[i] if kinds else ""
        parts.append(
            f'<rect class="bar {kind}" x="{at + gap:.2f}" y="{min(top, foot):.1f}" width="{max(narrow - 2 * gap, 0.5):.2f}" '
            f'height="{abs(foot - top):.1f}"><title>{escape(labels[i])}: {short(value)}</title></rect>'
        )
        if narrow >= 7 * max(3, max(map(len, labels))) * 0.9:
            parts.append(
                f'<text class="tick" x="{at + narrow / 2:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{escape(labels[i])}</text>'
            )
    return figure(title, "".join(parts), note=note)


def across(title: str, values: Sequence[float], labels: Sequence[str], note: str = "") -> str:
    """A horizontal bar for each value, which must be at least 0, with its name before it and the value behind."""
    if not values:
        return ""
    row, left = min(24.0, (HEIGHT - 2 * TOP) / len(values)), 92
    top = max(*values, 1e-12)
    parts = []
    for i, (value, label) in enumerate(zip(values, labels)):
        y, width = TOP + i * row, (WIDTH - left - 52) * max(value, 0.0) / top
        middle = y + row / 2 + 3.5
        name = label if len(label) <= 15 else f"{label[:14]}…"
        parts.append(f'<text class="tick" x="{left - 7}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect class="bar" x="{left}" y="{y + 0.14 * row:.1f}" width="{max(width, 0.6):.1f}" height="{0.72 * row:.1f}"/>'
        )
        parts.append(f'<text class="tick" x="{left + width + 6:.1f}" y="{middle:.1f}">{short(value)}</text>')
    return figure(title, "".join(parts), note=note, height=round(2 * TOP + row * len(values)))


def scatter(
    points: Sequence[tuple[float, float]], groups: Sequence[int] | None, shades: Sequence[str] | None, x: str, y: str
) -> str:
    """A map of samples, each circle with its number in `data-i`. `groups`: the number of each one's colour; `shades`: colours themselves."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    gap_x, gap_y = (0.04 * (max(v) - min(v)) or 0.5 for v in (xs, ys))
    height = 300
    axes = Axes((min(xs) - gap_x, max(xs) + gap_x), (min(ys) - gap_y, max(ys) + gap_y), height=height, left=36)
    radius = 1.7 if len(points) > 400 else 2.4
    upright = "".join(
        f'<line class="grid" x1="{axes.at_x(v):.1f}" x2="{axes.at_x(v):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        for v in ticks(axes.x0, axes.x1, 5)
    )
    dots = []
    for i, (a, b) in enumerate(points):
        colour = shades[i] if shades else COLOURS[groups[i] % len(COLOURS)] if groups else COLOURS[0]
        group = f' data-g="{groups[i]}"' if groups else ""
        dots.append(
            f'<circle cx="{axes.at_x(a):.1f}" cy="{axes.at_y(b):.1f}" r="{radius}" fill="{colour}" data-i="{i}"{group}/>'
        )
    return (
        f'<svg class="map" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="latent map">{upright}{axes.frame(x, y)}'
        f'<g class="dots">{"".join(dots)}</g></svg>'
    )
