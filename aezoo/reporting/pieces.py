"""The pieces of HTML that sections are made of: images, curves, tables, cards. Text is escaped here and nowhere else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from ..pictures import as_images, is_image

LARGEST = 160  # pixels of an image's longer side; larger ones are made smaller
LOSSLESS = 64  # pixels up to which an image is PNG, beyond WebP
CHANNELS = 3  # of a series that are drawn
POINTS = 256  # of a curve that are drawn
OVER, UNDER = (209, 73, 91), (27, 108, 168)  # colours of errors above and below 0

# ------------------------------------------------------------------------------------------------------------- pictures


def encoded(array: Any, most: int | None = LARGEST) -> str:
    """An array (H, W), (H, W, 3) or (H, W, 4) of bytes -> the data URI of an image file, at most `most` pixels wide and high."""
    from PIL import Image

    image = Image.fromarray(array)
    if most is not None and max(image.size) > most:
        factor = most / max(image.size)
        image = image.resize((max(1, round(s * factor)) for s in image.size), Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    buffer = io.BytesIO()
    small = most is None or max(image.size) <= LOSSLESS
    image.save(buffer, "PNG" if small else "WEBP", **({"optimize": True} if small else {"quality": 88}))
    return f"data:image/{'png' if small else 'webp'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def bytes_of(image: Tensor) -> Any:
    """(1 or 3, H, W) in [0, 1] -> (H, W) or (H, W, 3), uint8."""
    pixels = (image.clamp(0, 1) * 255).round().byte()
    return (pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous()).numpy()


def img(image: Tensor, alt: str, title: str = "") -> str:
    """(1 or 3, H, W) in [0, 1] -> an image."""
    return tag_of(bytes_of(image), alt, title)


def tag_of(array: Any, alt: str, title: str = "") -> str:
    height, width = array.shape[:2]
    shown = f' title="{escape(title)}"' if title else ""
    return f'<img src="{encoded(array)}" width="{width}" height="{height}" alt="{escape(alt)}"{shown}>'


def signed(difference: Tensor, scale: float, alt: str, power: float = 0.5) -> str:
    """(C, H, W), any sign -> an image that is clear at 0, red above and blue below, opaque at `scale`; channels are averaged.

    `power` of the share of `scale` is the opacity: below 1, small values are seen, too."""
    value = (difference.mean(0) / max(scale, 1e-12)).clamp(-1, 1).nan_to_num(0)
    colour = torch.where(value[..., None] > 0, torch.tensor(OVER), torch.tensor(UNDER))
    alpha = (value.abs().pow(power) * 255).round()[..., None]
    return tag_of(torch.cat([colour, alpha], 2).byte().numpy(), alt)


def tiles(pieces: Iterable[str], size: int = 64, kind: str = "") -> str:
    """Pieces of about `size` pixels side by side, in as many lines as it takes."""
    return f'<div class="tiles {kind}" style="--size:{size}px">{"".join(pieces)}</div>'


# --------------------------------------------------------------------------------------------------------------- curves


def channels_of(sample: Tensor) -> Tensor:
    """One sample as lines (C, T): of two axes the shorter one is the channels; more are flattened to one line each."""
    sample = sample.detach().float().cpu()
    if sample.dim() == 2 and sample.shape[0] > sample.shape[1]:
        sample = sample.T
    lines = sample.flatten(1) if sample.dim() > 1 else sample[None]
    step = -(-lines.shape[1] // POINTS)
    return lines[:CHANNELS, ::step]


def curve(named: dict[str, Tensor], alt: str, height: int = 64) -> str:
    """Samples of one shape, drawn over each other: a channel a panel, one class of line for each name."""
    lines = {name: channels_of(sample) for name, sample in named.items()}
    first = next(iter(lines.values()))
    panels = []
    for c in range(len(first)):
        seen = torch.cat([x[c][~x[c].isnan()] for x in lines.values()])
        low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
        span = high - low or 1.0
        drawn = [f'<path class="{escape(name)}" d="{_path(x[c], low, span, height)}"/>' for name, x in lines.items()]
        panels.append(
            f'<svg class="curve" viewBox="0 0 160 {height}" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(alt)}">{"".join(drawn)}</svg>'
        )
    return f'<div class="panels">{"".join(panels)}</div>'


def _path(line: Tensor, low: float, span: float, height: int) -> str:
    """An SVG path with a gap where the line is NaN; a single value between gaps is a dash."""
    width, parts, pen = 160 / max(len(line) - 1, 1), [], "M"
    for i, value in enumerate(line.tolist()):
        if value != value:
            pen = "M"
            continue
        y = 3 + (height - 6) * (1 - (value - low) / span)
        parts.append(f"{pen}{i * width:.4g},{y:.4g}" + ("h.1" if pen == "M" else ""))
        pen = "L"
    return "".join(parts)


def shown(sample: Tensor, like: Tensor, alt: str, kind: str = "output") -> str:
    """One sample (*shape): an image, scaled as `like` is, or a curve."""
    if is_image(sample.shape):
        return img(scaled(sample[None], like)[0], alt)
    return curve({kind: sample}, alt)


def scaled(x: Tensor, like: Tensor) -> Tensor:
    """(N, *shape) -> images in [0, 1], by the range of the data `like`."""
    from ..pictures import to_unit

    return to_unit(as_images(x), as_images(like))


# ----------------------------------------------------------------------------------------------------------------- text


def number(value: Any) -> str:
    """A figure as a reader wants it: four digits, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    if value != value:
        return "–"
    if isinstance(value, int) or (abs(value) >= 10000 and value == round(value)):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and values side by side; those without a value are left out."""
    rows = [(k, number(v)) for k, v in pairs if v not in (None, "")]
    return '<dl class="facts">' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows) + "</dl>"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    """A table that scrolls by itself where it is too wide. Cells that begin with '<' are HTML of `pieces`."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    lines = ["<tr>" + "".join(_cell(c) for c in row) + "</tr>" for row in rows]
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, Html):
        return f"<td>{value}</td>"
    right = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"<td{' class=n' if right else ''}>{escape(number(value))}</td>"


class Html(str):
    """Text that is HTML already."""


def code(text: str, language: str) -> str:
    """A block of code, with a button that copies it."""
    return (
        f'<div class="code"><button type="button" class="copy">copy</button>'
        f'<pre><code class="{language}">{escape(text.strip())}</code></pre></div>'
    )


def card(body: str, caption: str) -> str:
    return f'<figure class="card">{body}<figcaption>{escape(caption)}</figcaption></figure>'


def cards(pieces: Iterable[str], size: int = 168) -> str:
    return f'<div class="cards" style="--size:{size}px">{"".join(pieces)}</div>'


def subtitle(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def say(text: str) -> str:
    return f"<p>{escape(text)}</p>"
