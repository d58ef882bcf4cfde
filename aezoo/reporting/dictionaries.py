"""Sections of models with dictionaries: how codebooks are used, and what the latents of sparse codes stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..pictures import as_images
from . import charts
from .general import Section
from .material import Material, spread_over
from .pieces import card, cards, img, scaled, shown, signed, subtitle, table, tiles

# ------------------------------------------------------------------------------------------------------------ quantised


def codebook(m: Material) -> Section | None:
    """How often each code is used, and what codes look like when decoded."""
    model: Any = m.model
    if not hasattr(model, "by_codebook"):
        return None
    indices = m.in_parts(lambda x, told: model.indices(x))
    drawn, told, usual = [], [], {}
    for name, index in model.by_codebook(indices).items():
        counts = torch.bincount(index.flatten().cpu(), minlength=model.num_codes).double()
        share = counts / counts.sum()
        used, perplexity = int((counts > 0).sum()), float(torch.exp(-torch.special.xlogy(share, share).sum()))
        what = f"level {name}" if name.isdigit() else name or "codebook"
        told.append((what, model.num_codes, used, f"{used / model.num_codes:.0%}", perplexity))
        order = counts.argsort(descending=True, stable=True)
        usual[name] = order
        top = order[: min(len(order), 256)]
        note = f"{used} of {model.num_codes:,} codes are used" + (
            f"; the first {len(top)} are drawn" if len(top) < len(order) else ""
        )
        drawn.append(
            charts.bars(
                f"{what}: use of each code",
                (100 * share[top]).tolist(),
                [f"code {int(i)}" for i in top],
                "codes, by use",
                "%",
                note=note,
            )
        )
    body = table(("", "codes", "used", "", "perplexity"), told) + f'<div class="charts">{"".join(drawn)}</div>'
    if m.images:
        body += _decoded_codes(m, indices, usual) + _index_maps(m, indices)
    said = f"Over {len(m.x):,} samples of {m.what}. Perplexity is the number of codes that, used equally often, would be as varied."
    return Section("codebook", "Codebook", said, body)


def _decoded_codes(m: Material, indices: Tensor, usual: dict[str, Tensor]) -> str:
    """The most used codes, each in all places of one codebook while the others hold what they hold most often."""
    model: Any = m.model
    body = ""
    for name, order in usual.items():
        chosen = order[:24].tolist()
        made = indices[:1].repeat(len(chosen), *[1] * (indices.dim() - 1))
        for other, part in model.by_codebook(made).items():  # views: they write into `made`
            part.copy_(usual[other][0].to(part))
        part = model.by_codebook(made)[name]
        part.copy_(torch.tensor(chosen, device=part.device).view(-1, *[1] * (part.dim() - 1)).expand_as(part))
        out = scaled(model.decode_indices(made).cpu(), m.x)
        what = f" of level {name}" if name.isdigit() else f" of the {name}" if name else ""
        body += subtitle(f"The {len(chosen)} most used codes{what}, each in every place") + tiles(
            (img(v, f"code {c}", f"code {c}") for v, c in zip(out, chosen)), 76
        )
    return body


def _index_maps(m: Material, indices: Tensor) -> str:
    """Which code stands where: a colour for each."""
    model: Any = m.model
    from colorsys import hsv_to_rgb

    grids = {name: getattr(model, f"{name}_grid", model.grid) for name in model.by_codebook(indices[:1])}
    if any(len(g) != 2 for g in grids.values()):
        return ""
    palette = torch.tensor(
        [hsv_to_rgb(i * 0.618 % 1, 0.45 + 0.35 * (i % 3) / 2, 0.95 - 0.3 * (i % 5) / 4) for i in range(model.num_codes)]
    )
    body = []
    for i in spread_over(m.errors, 6):
        pictures = [img(scaled(m.x[i : i + 1].cpu(), m.x)[0], "input")]
        for name, part in model.by_codebook(indices[i : i + 1]).items():
            pictures.append(img(palette[part.view(grids[name]).cpu()].permute(2, 0, 1), f"indices {name}"))
        pictures.append(img(scaled(m.recon[i : i + 1].cpu(), m.x)[0], "output"))
        body.append(card(f'<div class="row">{"".join(pictures)}</div>', m.caption(i)))
    return subtitle("Which code stands where: input, indices as colours, output") + cards(body, 60 * (2 + len(grids)))


# --------------------------------------------------------------------------------------------------------------- sparse


def sparsity(m: Material) -> Section | None:
    """How often each latent fires, how many fire at a time, what makes the busiest fire, and what they add to the output."""
    model = m.model
    z = m.z.flatten(1)
    fires = z != 0
    if not model.sparse_code and float(fires.float().mean()) > 0.5:
        return None
    if len(model.latent_shape) != 1:
        return None
    rate, l0 = fires.float().mean(0).cpu(), fires.sum(1).cpu()
    dead = int((rate == 0).sum())
    alive = (100 * rate[rate > 0]).tolist()
    note = f"{dead:,} of {len(rate):,} latents never fire on these {len(z):,} samples"
    drawn = [charts.histogram("how often a latent fires", alive, "% of the samples", bins=30, log_x=True, note=note)]
    if int(l0.max()) > int(l0.min()):
        drawn.append(
            charts.histogram(
                "latents that fire for a sample", l0.tolist(), "latents", bins=min(40, int(l0.max() - l0.min()) + 1)
            )
        )
    size = z[fires].abs().float().cpu()
    size = size[:: max(1, len(size) // 20_000)]
    drawn.append(
        charts.histogram("how strongly a latent fires", size.tolist(), "activation, where it is not 0", bins=30)
    )
    power = z.abs().double().sum(0)
    chosen = [int(i) for i in power.argsort(descending=True, stable=True)[:12] if power[i] > 0]
    rows = []
    zero = z.new_zeros(1, *model.latent_shape)
    base = m.drawn(model.decode(zero, **m.told([0])))
    for k in chosen:
        top = z[:, k].abs().argsort(descending=True, stable=True)[:6].tolist()
        one = zero.clone()
        one.view(1, -1)[0, k] = z[top[0], k]
        atom = m.drawn(model.decode(one, **m.told([0]))) - base
        rows.append(_latent_row(m, k, float(rate[k]), top, atom[0]))
    mean = float(l0.double().mean())
    said = f"{mean:.3g} of {len(rate):,} latents fire for a sample on average. "
    said += "Below: the latents with the largest activations, what each adds to the output (red: more, blue: less), and the samples for which it fires most."
    return Section(
        "sparsity",
        "Sparse code",
        said,
        f'<div class="charts">{"".join(drawn)}</div>' + f'<div class="latents">{"".join(rows)}</div>',
    )


def _latent_row(m: Material, k: int, rate: float, top: list[int], atom: Tensor) -> str:
    if m.images:
        part = as_images(atom[None])[0]
        pictures = signed(part, float(part.abs().max()), f"atom of latent {k + 1}", power=1.0)
        pictures = f'<span class="atom">{pictures}</span>' + "".join(
            img(scaled(m.x[i : i + 1].cpu(), m.x)[0], f"sample {i}") for i in top
        )
        kind = ""
    else:
        pictures = shown(atom, atom, f"atom of latent {k + 1}", "atom") + "".join(
            shown(m.drawn(m.x[i : i + 1])[0], m.x, f"sample {i}", "input") for i in top[:3]
        )
        kind = " plain"
    names = [m.caption(i) for i in top]
    common = max(set(names), key=names.count) if any(names) else ""
    note = f"fires for {rate:.1%}" + (
        f" · {names.count(common)} of {len(names)} {common}" if common and names.count(common) > 1 else ""
    )
    return f'<div class="way{kind}"><span class="label">latent {k + 1}<small>{note}</small></span><div class="stops">{pictures}</div></div>'
