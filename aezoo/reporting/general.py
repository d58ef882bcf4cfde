"""Sections that every run can have: curves, reconstructions, errors, samples, ways through the latent space, its map."""

from __future__ import annotations

import json
from html import escape
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..directions import no_code
from ..index_prior import IndexPrior
from ..pictures import as_images, projected, to_unit
from . import charts
from .material import Material, Missing, spread_over
from .pieces import (
    CHANNELS,
    bytes_of,
    card,
    cards,
    channels_of,
    curve,
    encoded,
    img,
    number,
    scaled,
    shown,
    signed,
    subtitle,
    tiles,
)

SKIP = {"epoch", "step", "lr", "samples_per_s", "seconds", "stage", "skipped"}
SHOWN = 12  # samples of which the reconstructions are seen
STEPS = 9  # along a way
SPRITE = 32  # pixels of an image in the sheet that the map shows
MAPPED = 1000  # samples on the map


class Section(NamedTuple):
    """One part of the page."""

    key: str
    title: str
    lead: str
    """What is seen here, in one or two sentences."""
    body: str
    """HTML."""


def training(m: Material) -> Section | None:
    """Loss, terms and metrics over the epochs, training beside validation."""
    rows = m.rows
    if not rows:
        raise Missing("there is no row in metrics.jsonl yet")
    per_epoch = max(1.0, max(row["step"] / max(row.get("epoch", 1), 1) for row in rows))
    names = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in SKIP and not k.startswith("val_")]
    if {"loss", "recon"} == {n for n in names if n in ("loss", "recon")} and all(
        row.get("loss") == row.get("recon") for row in rows
    ):
        names.remove("recon")  # the only term is the loss
    stages = list(dict.fromkeys(row.get("stage", "") for row in rows))
    edges = [
        (max(r["step"] for r in rows if r.get("stage", "") == s) / per_epoch, n) for s, n in zip(stages, stages[1:])
    ]
    drawn = []
    for name in names:
        pairs = ((name, "training", "train"), (f"val_{name}", "validation", "val"))
        series = [charts.Line(label, kind, _points(rows, key, per_epoch)) for key, label, kind in pairs]
        if not any(y for line in series for _, y in line.points):
            continue  # nothing is ever missing, dead, skipped
        unit = m.model.units if m.has_model and name in ("loss", "recon", "kl", "elbo") else ""
        drawn.append(charts.lines(name, series, "epoch", unit, edges, log=len(stages) > 1))
    if any("lr" in row for row in rows):
        drawn.append(
            charts.lines(
                "learning rate", [charts.Line("lr", "other", _points(rows, "lr", per_epoch))], "epoch", "", edges
            )
        )
    best = m.best
    said = f"{len(rows):,} rows up to step {rows[-1]['step']:,}."
    if "val_loss" in best:
        said += f" The lowest validation loss is {best['val_loss']:.5g}, in epoch {best['epoch']}."
    if edges:
        said += f" Stages of training: {', '.join(stages)}."
    return Section("training", "Training", said, f'<div class="charts">{"".join(drawn)}</div>')


def _points(rows: list[dict[str, Any]], key: str, per_epoch: float) -> list[tuple[float, float]]:
    return [(row["step"] / per_epoch, float(row[key])) for row in rows if isinstance(row.get(key), (int, float))]


# ------------------------------------------------------------------------------------------------------ reconstructions


def sample_card(m: Material, i: int, scale: float, extra: str = "") -> str:
    """One sample beside its reconstruction and its error."""
    label = m.caption(i)
    told = " · ".join(t for t in (extra, label, f"error {number(float(m.errors[i]))}") if t)
    x, y = m.drawn(m.x[i : i + 1])[0], m.drawn(m.recon[i : i + 1])[0]
    if not m.images:
        return card(curve({"input": x, "output": y}, f"sample {i} and its reconstruction"), told)
    both = [img(scaled(v[None], m.x)[0], f"{name} {i}") for v, name in ((x, "input"), (y, "output"))]
    difference = as_images((y - x)[None])[0]
    return card(f'<div class="trio">{"".join(both)}{signed(difference, scale, f"error {i}")}</div>', told)


def error_scale(m: Material) -> float:
    """The difference that is drawn in full colour: that which only one value in a hundred exceeds."""
    difference = (m.recon - m.x)[:200].abs().flatten().float()
    difference = difference[~difference.isnan()]
    return float(difference[:: max(1, len(difference) // 100_000)].quantile(0.99)) if len(difference) else 1.0


def reconstructions(m: Material) -> Section | None:
    """Input, output and error of samples that the model was not trained on."""
    chosen = spread_over(m.errors, SHOWN if m.images else 8)
    scale = error_scale(m)
    mean = float(m.errors.nanmean())
    how = (
        "Input, output, and their difference: red where the output is too bright, blue where it is too dark."
        if m.images
        else "Input (grey) and output (blue)." + _how_drawn(m)
    )
    said = f"{len(chosen)} samples of {m.what}, from the well to the badly reconstructed. {how} Mean {m.error_name} over {len(m.x):,} samples: {number(mean)}."
    return Section(
        "reconstructions",
        "Reconstructions",
        said,
        cards((sample_card(m, i, scale) for i in chosen), 155 if m.images else 240),
    )


def _how_drawn(m: Material) -> str:
    if len(m.model.input_shape) == 1:
        return " Features are standardised."
    channels = min(m.model.input_shape) if len(m.model.input_shape) == 2 else m.model.input_shape[0]
    return f" Of {channels} channels the first {CHANNELS} are drawn." if channels > CHANNELS else ""


def errors(m: Material) -> Section | None:
    """How the errors are distributed, the samples at both ends, and each class's mean."""
    values = m.errors
    kept = values[~values.isnan()]
    if not len(kept):
        raise Missing("every sample is missing all of its entries")
    mean = float(kept.mean())
    log = float(kept.min()) > 0 and float(kept.max() / kept.median().clamp_min(1e-30)) > 20
    drawn = [
        charts.histogram(
            "squared error of a sample",
            kept.tolist(),
            "mean over its entries",
            log_x=log,
            marks=[(mean, f"mean {mean:.3g}")],
        )
    ]
    if len(m.classes) > 1 and m.labels is not None:
        named = [(m.class_name(c), float(values[m.labels == c].nanmean())) for c in m.classes]
        drawn.append(charts.across("mean error by label", [v for _, v in named], [n for n, _ in named]))
    order = values.nan_to_num(-torch.inf).argsort(descending=True, stable=True)
    best = values.nan_to_num(torch.inf).argsort(stable=True)
    n = min(6 if m.images else 4, max(1, len(kept) // 2))
    scale, size = error_scale(m), 155 if m.images else 240
    body = f'<div class="charts">{"".join(drawn)}</div>'
    for title, chosen in (("Worst", order[:n]), ("Best", best[:n])):
        body += subtitle(title) + cards((sample_card(m, i, scale) for i in chosen.tolist()), size)
    said = f"Of {len(kept):,} samples: mean {number(mean)}, median {number(float(kept.median()))}, largest {number(float(kept.max()))}."
    return Section("errors", "Errors", said, body)


# -------------------------------------------------------------------------------------------------------------- samples


def samples(m: Material) -> Section | None:
    """What the model draws from its prior."""
    model = m.model
    if model.prior is None:
        return None
    n = 36 if m.images else 8
    n = 16 if isinstance(model.prior, IndexPrior) and m.images else n
    x = model.sample(n).cpu()
    like = m.x.cpu() if m.source is not None else x
    name = getattr(model.prior, "name", "") or type(model.prior).__name__
    said = f"{n} draws from the prior ({name.replace('_', ' ')}), decoded."
    if m.images:
        return Section(
            "samples", "New samples", said, tiles((img(v, f"sample {i}") for i, v in enumerate(scaled(x, like))), 80)
        )
    return Section(
        "samples", "New samples", said, cards((card(shown(v, like, f"sample {i}"), "") for i, v in enumerate(x)), 220)
    )


# -------------------------------------------------------------------------------------------------------- latent space


def traversal(m: Material) -> Section | None:
    """One sample, changed along each way through the latent space; and what lies between two samples."""
    if why := no_code(m.model):
        raise Missing(why)
    ways = m.directions
    middle = (
        int((m.z.flatten(1) - ways.centre).square().sum(1).argmin())
        if not m.model.sparse_code
        else spread_over(m.errors, 3)[1]
    )
    z = m.z[middle : middle + 1]
    at = ways.coordinates(z)
    rows = []
    for k, name in enumerate(ways.names):
        stops = torch.linspace(0, 1, STEPS, device=z.device, dtype=z.dtype) * (ways.high[k] - ways.low[k]) + ways.low[k]
        where = at.repeat(STEPS, 1)
        where[:, k] = stops
        out = m.decode(ways.moved(z.expand(STEPS, *z.shape[1:]).contiguous(), where), [middle] * STEPS).cpu()
        rows.append(way(m, out, name, f"{float(stops[0]):.3g} to {float(stops[-1]):.3g}"))
    ends = (
        ("0", "its largest value") if m.model.sparse_code else ("2.5 standard deviations below the mean", "2.5 above")
    )
    label = m.caption(middle)
    said = f"One sample{f' ({label})' if label else ''}, decoded while one number of its code goes from {ends[0]} to {ends[1]}; the others stay. "
    said += (
        "The latents that vary most come first."
        if not ways.names[0].startswith("comp")
        else "The ways are the principal components of the codes."
    )
    body = "".join(rows)
    pairs = _pairs(m)
    if pairs:
        body += subtitle("Between two samples")
        for a, b in pairs:
            t = torch.linspace(0, 1, STEPS, device=z.device, dtype=z.dtype).view(-1, *[1] * (z.dim() - 1))
            mixed = (1 - t) * m.z[a] + t * m.z[b]
            body += way(
                m,
                m.decode(mixed, [a] * STEPS).cpu(),
                " → ".join(filter(None, (m.caption(a), m.caption(b)))) or f"sample {a} → {b}",
                "",
            )
    return Section("latent", "Latent traversal", said, body)


def way(m: Material, out: Tensor, name: str, note: str) -> str:
    """Decoded samples along one way, in a line."""
    if m.images:
        stops = "".join(img(v, f"{name}, step {i + 1}") for i, v in enumerate(scaled(out, m.x)))
    else:
        chosen = {
            f"step{j}": m.drawn(out)[i] for j, i in enumerate((0, STEPS // 4, STEPS // 2, 3 * STEPS // 4, STEPS - 1))
        }
        stops = curve(chosen, name, height=90)
    kind = "" if m.images else " plain"
    return f'<div class="way{kind}"><span class="label">{escape(name)}<small>{escape(note)}</small></span><div class="stops">{stops}</div></div>'


def _pairs(m: Material) -> list[tuple[int, int]]:
    """Samples of different labels, where there are some."""
    if len(m.x) < 6 or m.model.takes_condition:
        return []
    if len(m.classes) > 1 and m.labels is not None:
        firsts = [int((m.labels == c).nonzero()[0]) for c in m.classes]
        turns = [(firsts[i], firsts[(i + len(firsts) // 2) % len(firsts)]) for i in range(min(3, len(firsts)))]
        return [(a, b) for a, b in dict.fromkeys(turns) if a != b]
    return [(0, 1), (2, 3), (4, 5)]


def latent_map(m: Material) -> Section | None:
    """Codes of held-out samples as points, the sample itself under the pointer."""
    z = m.z[:MAPPED]
    points, axes, _ = projected(z)
    n = len(points)
    groups = shades = None
    key = ""
    if m.classes and m.labels is not None:
        groups = [m.classes.index(v) for v in m.labels[:n].tolist()]
        entries = "".join(
            f'<button type="button" data-g="{g}"><i style="background:{charts.COLOURS[g % len(charts.COLOURS)]}"></i>{escape(m.class_name(c))}</button>'
            for g, c in enumerate(m.classes)
        )
        key = f'<div class="groups">{entries}</div>'
    elif m.labels is not None:
        shades = _shades(m.labels[:n].double())
    drawn = charts.scatter([(float(a), float(b)) for a, b in points], groups, shades, *axes)
    dims = z[0].numel()
    said = f"The codes of {n:,} samples of {m.what}" + (
        ", as they are." if dims <= 2 else f": {dims:,} numbers each, on their first two principal components."
    )
    said += " Point at one to see the sample" + ("; press a label to see its own alone." if key else ".")
    return Section("map", "Latent map", said, f'<div class="mapbox" {_thumbs(m, n)}>{drawn}{key}</div>')


def _shades(values: Tensor) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    values = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
    return [to_hex(c) for c in colormaps["viridis"](values.nan_to_num(0.5).numpy())]


def _thumbs(m: Material, n: int) -> str:
    """Attributes with what the pointer shows: a sheet of small images, or curves; and labels."""
    told: dict[str, Any] = {"labels": [m.caption(i) for i in range(n)]}
    if m.images:
        small = to_unit(as_images(m.x[:n]), as_images(m.x))
        if max(small.shape[2:]) > SPRITE:
            factor = SPRITE / max(small.shape[2:])
            size = [max(1, round(s * factor)) for s in small.shape[2:]]
            small = torch.nn.functional.interpolate(small, size, mode="bilinear", antialias=True, align_corners=False)
        height, width = small.shape[2:]
        across = max(1, round((n * height / width) ** 0.5))
        down = -(-n // across)
        sheet = torch.zeros(small.shape[1], down * height, across * width)
        for i, image in enumerate(small):
            r, c = divmod(i, across)
            sheet[:, r * height : (r + 1) * height, c * width : (c + 1) * width] = image
        told |= {"sheet": encoded(bytes_of(sheet), most=None), "w": width, "h": height, "across": across, "down": down}
    else:
        lines = [channels_of(x)[0] for x in m.drawn(m.x[:n])]
        step = max(1, len(lines[0]) // 48)
        told["curves"] = [[None if v != v else float(f"{v:.3g}") for v in line[::step].tolist()] for line in lines]
    return f"data-thumbs='{escape(json.dumps(told), quote=True)}'"
