"""Sections of single families of models: what makes each one special. A section returns None where it does not apply."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from .. import functional as fn
from ..models.contractive import ContractiveAE
from ..models.hierarchical import LadderVAE
from ..models.masked import MaskedAE
from ..models.sae import MatryoshkaSAE
from ..models.tabular import Tabular
from ..noise import WORDS, at_level, corrupted_by, input_noise, noise_levels
from ..prior_fitting import gaussian_posterior
from . import charts
from .general import Section, way
from .material import Material, spread_over
from .pieces import Html, card, cards, img, scaled, shown, subtitle, table

# ------------------------------------------------------------------------------------------------------------ denoisers


def denoising(m: Material) -> Section | None:
    """Noisy input and output at several levels of noise, and the errors of both."""
    noise = input_noise(m.model)
    if noise is None or isinstance(m.model, MaskedAE):
        return None
    chosen = spread_over(m.errors, 6 if m.images else 4)
    some = torch.arange(min(256, len(m.x)))
    word, before, after, body = WORDS[noise.name], [], [], ""
    for level in noise_levels(noise):
        with corrupted_by(m.model, at_level(noise, level)):
            noisy = m.model.corrupt(m.x[some])
            theirs = m.model.corrupt(m.x[chosen])
        back = m.model.reconstruct(noisy, **m.told(some))
        shown_back = m.model.reconstruct(theirs, **m.told(chosen))
        errors = [float((v - m.x[some]).square().nanmean()) for v in (noisy, back)]
        before.append((level, errors[0]))
        after.append((level, errors[1]))
        title = f"{word} {level:.3g}: mean squared error {errors[0]:.3g} → {errors[1]:.3g}"
        body += subtitle(title) + _pairs(m, theirs, shown_back)
    lines = [charts.Line("noisy input", "train", before), charts.Line("output", "val", after)]
    chart = charts.lines("error over the noise", lines, word)
    low, high = noise.level  # type: ignore[attr-defined]
    trained = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    said = f"What goes in and what comes out, at levels below and above that of the training ({noise.name.replace('_', ' ')}, {word} {trained})."
    return Section("denoising", "Denoising", said, f'<div class="charts">{chart}</div>{body}')


def _pairs(m: Material, before: Tensor, after: Tensor) -> str:
    """Two batches, sample by sample beside each other."""
    if not m.images:
        from .pieces import curve

        both = (
            card(curve({"input": a, "output": b}, "noisy and output"), "") for a, b in zip(before.cpu(), after.cpu())
        )
        return cards(both, 240)
    a, b = scaled(before.cpu(), m.x), scaled(after.cpu(), m.x)
    return cards(
        (card(f'<div class="duo">{img(u, "noisy input")}{img(v, "output")}</div>', "") for u, v in zip(a, b)), 120
    )


# --------------------------------------------------------------------------------------------------------------- masked


def masked(m: Material) -> Section | None:
    """What is hidden, and what is put in its place."""
    model = m.model
    if not isinstance(model, MaskedAE) or not m.images:
        return None
    chosen = spread_over(m.errors, 6)
    x = m.x[chosen]
    layout, own = model.encoder.layout, model.num_masked
    body = ""
    for share in sorted({0.5, own / layout.num_patches, 0.9}):
        model.num_masked = min(layout.num_patches - 1, max(1, round(share * layout.num_patches)))
        try:
            visible, hidden = model.draw_mask(x)
            filled = model.likelihood.mean(model.fill_in(x, visible)[1])
        finally:
            count, model.num_masked = model.num_masked, own
        patches, guess = layout.patchify(x), layout.patchify(filled)
        if model.norm_pixels:  # back to data space by each patch's own mean and deviation, which only this page knows
            guess = guess * patches.var(3, unbiased=False, keepdim=True).add(1e-6).sqrt() + patches.mean(
                3, keepdim=True
            )
        whole = _put(guess, visible, fn.take_rows(patches, visible))
        blank = _put(patches, hidden, torch.full_like(fn.take_rows(patches, hidden), torch.nan))
        full, holes = (fn.unpatchify(v, layout.patch, layout.size).reshape(x.shape).cpu() for v in (whole, blank))
        error = float((full.to(x) - x).square().sum() / (x.numel() * count / layout.num_patches))
        title = f"{count} of {layout.num_patches} patches hidden: mean squared error {error:.3g} on these"
        trios = []
        for a, b, c in zip(scaled(holes, m.x), scaled(full, m.x), scaled(x.cpu(), m.x)):
            trios.append(
                card(
                    f'<div class="trio">{img(a, "what the model sees")}{img(b, "filled in")}{img(c, "original")}</div>',
                    "",
                )
            )
        body += subtitle(title + (" (as in training)" if count == own else "")) + cards(trios, 168)
    said = "What the model sees (hidden patches are grey), what it makes of it (visible patches are pasted back), and the original."
    return Section("masked", "Filled in", said, body)


def _put(patches: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """patches (B, N, C, S) with `rows` (B, M, C, S) at the places `index` (B, M)."""
    return fn.put_rows(patches.flatten(2), index, rows.flatten(2)).view_as(patches)


# --------------------------------------------------------------------------------------------------------------- levels


def levels(m: Material) -> Section | None:
    """What each level of a hierarchical code adds."""
    model: Any = m.model
    chosen = spread_over(m.errors, 6 if m.images else 4)
    x, z = m.x[chosen], m.z[chosen]
    stages: list[tuple[str, Tensor]] = []
    if isinstance(model, LadderVAE):
        parts = model.decoder.split(z)
        for keep in range(1, len(parts) + 1):

            def choose(i: int, mu: Tensor, logvar: Tensor, keep: int = keep) -> Tensor:
                return parts[i] if i >= len(parts) - keep else mu  # below: what the layers above expect

            t = model.decoder.walk(len(z), choose, z)
            params = model.decoder.out(t).reshape(len(z), -1, *model.input_shape)
            size = " x ".join(map(str, model.decoder.maps[len(parts) - keep][1:]))
            stages.append(
                (
                    f"layer {len(parts) - keep + 1}{' alone' if keep == 1 else ' added'} ({size})",
                    model.likelihood.mean(params),
                )
            )
    elif getattr(getattr(model, "quantizer", None), "levels", 0) > 1:
        indices = model.indices(x)
        for keep in range(1, indices.shape[-1] + 1):
            code = model.quantizer.codes(indices[..., :keep]).to(z)
            stages.append(("level 1 alone" if keep == 1 else f"level {keep} added", model.decode(code)))
    elif hasattr(model, "top_quantizer"):
        top = torch.cat([z[..., : model.top_size], m.z[..., model.top_size :].mean(0).expand(len(z), -1, -1)], 2)
        stages = [("top level alone, the bottom at its mean", model.decode(top)), ("both levels", m.recon[chosen])]
    elif isinstance(model, MatryoshkaSAE):
        ends = [sum(model.groups[: i + 1]) for i in range(len(model.groups))]
        outs = [model.likelihood.mean(p) for p in model.prefixes(z)][1:] + [m.recon[chosen]]
        stages = [(f"first {end:,} latents", out) for end, out in zip(ends, outs)]
    if not stages:
        return None
    body = "".join(_stage(m, name, out.cpu(), x.cpu()) for name, out in [*stages, ("input", x)])
    drawn = ""
    best = m.best
    layers = sorted(int(k[7:]) for k in best if k.startswith("val_kl_") and k[7:].isdigit())
    if layers:
        drawn = charts.bars(
            "KL of each layer",
            [best[f"val_kl_{i}"] for i in layers],
            [f"layer {i}" for i in layers],
            "1: the finest",
            "nats",
        )
    said = "What is decoded from the coarsest level alone, and with each finer one beside it."
    return Section("levels", "Levels", said, (f'<div class="charts">{drawn}</div>' if drawn else "") + body)


def _stage(m: Material, name: str, out: Tensor, x: Tensor) -> str:
    note = "" if name == "input" else f"error {float((out - x).square().nanmean()):.3g}"
    pieces = [img(v, name) for v in scaled(out, m.x)] if m.images else [shown(v, m.x, name) for v in m.drawn(out)]
    kind = "" if m.images else " plain"
    return f'<div class="way{kind}"><span class="label">{name}<small>{note}</small></span><div class="stops">{"".join(pieces)}</div></div>'


# ---------------------------------------------------------------------------------------------------------- other kinds


def posterior(m: Material) -> Section | None:
    """How many nats each latent of a variational model tells."""
    model = m.model
    if len(model.latent_shape) != 1 or not hasattr(model, "posterior"):
        return None
    found = gaussian_posterior(model, m.x[:512], m.told(slice(0, 512)))
    if found is None or getattr(model.prior, "name", "") != "standard_normal":
        return None
    mu, logvar = (v.double().cpu() for v in found)
    if len(mu) < 2:  # which latents are active is told by a variance
        return None
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean(0)
    order = kl.argsort(descending=True, stable=True)
    active = int((mu.var(0) > 0.01).sum())
    top = order[:64].tolist()
    kinds = ["" if mu[:, k].var() > 0.01 else "idle" for k in top]
    chart = charts.bars(
        "KL(q(z|x) || p(z)) of each latent",
        kl[top].tolist(),
        [f"z{k + 1}" for k in top],
        "latents",
        "nats",
        kinds=kinds,
    )
    sizes = charts.histogram(
        "posterior deviations",
        (0.5 * logvar).exp().mean(0).tolist(),
        "mean sigma of a latent (1: the prior's)",
        bins=24,
    )
    said = f"{active} of {len(kl)} latents are active (the variance of their mean over the data is above 0.01); together they tell {float(kl.sum()):.3g} nats."
    return Section("posterior", "Posterior", said, f'<div class="charts">{chart}{sizes if len(kl) > 30 else ""}</div>')


def conditions(m: Material) -> Section | None:
    """Samples of each class, and of each category of a code that holds categories."""
    model: Any = m.model
    like = m.like
    if getattr(model, "categories", ()):
        rows, start = [], model.latent_dim
        middle = spread_over(m.errors, 3)[1]
        for j, size in enumerate(model.categories):
            z = m.z[middle].repeat(size, 1)
            z[:, start : start + size] = torch.eye(size, dtype=z.dtype, device=z.device)
            rows.append(way(m, model.decode(z).cpu(), f"categories of c{j + 1}", "the rest of the code stays"))
            start += size
        return Section(
            "categories", "Categories", "One sample, decoded with each category of its discrete latents.", "".join(rows)
        )
    classes = getattr(model, "num_classes", None)
    if not classes or not model.takes_condition or classes > 20 or not m.images:
        return None
    rows = []
    for c in range(classes):
        if hasattr(model, "class_critic"):  # the class is part of the code
            z = model.prior.sample(8, model.latent_shape, like)
            z[:, -classes:] = torch.nn.functional.one_hot(torch.tensor(c), classes).to(z)
            out = model.decode(z)
        else:
            out = model.sample(8, condition=torch.full((8,), c, device=like.device))
        rows.append(way(m, out.cpu(), m.class_name(c), ""))
    return Section(
        "classes", "Samples of each class", "Eight draws for each label that the model can be told.", "".join(rows)
    )


def tabular(m: Material) -> Section | None:
    """Errors of each column, and rows beside their reconstructions."""
    model = m.model
    if not isinstance(model, Tabular):
        return None
    mixed = model.likelihood
    x, y = m.x.flatten(1).cpu(), m.recon.flatten(1).cpu()
    there = ~torch.isnan(x)
    spread = torch.ones(x.shape[1])
    spread[mixed.numeric.cpu()] = mixed.spread.float().cpu()
    names, quality, kinds = [], [], []
    for d, classes in enumerate(mixed.columns):
        a, b = x[there[:, d], d], y[there[:, d], d]
        if not len(a):
            continue
        if classes:
            told = float((a == b).float().mean())
        else:
            told = 1 - float((a - b).square().mean() / (a - a.mean()).square().mean().clamp_min(1e-30))
        names.append(f"{d + 1}")
        quality.append(max(told, 0.0))
        kinds.append("second" if classes else "")
    note = (
        "columns of numbers: share of the variance that is explained; of classes (orange): share of rows that are right"
    )
    chart = charts.bars("how well each column is told", quality, names, "column", "", note=note, kinds=kinds)
    chosen = spread_over(m.errors, 5)
    rows = []
    for d, classes in enumerate(mixed.columns):
        cells: list[Any] = [f"{d + 1}", f"{classes} classes" if classes else "number"]
        for i in chosen:
            was, now = float(x[i, d]), float(y[i, d])
            if was != was:
                cells.append(Html(f'<span class="gap">– → {now:.4g}</span>'))
                continue
            off = float(was != now) if classes else min(1.0, abs(was - now) / float(spread[d]))
            cells.append(Html(f'<span class="off" style="--off:{off:.2f}">{was:.4g} → {now:.4g}</span>'))
        rows.append(cells)
    missing = float((~there).float().mean())
    said = f"{x.shape[1]} columns, {sum(1 for c in mixed.columns if c)} of them of classes; {missing:.1%} of the entries are missing, and the model fills them in (–)."
    body = f'<div class="charts">{chart}</div>' + subtitle("Rows and what the model makes of them")
    body += table(("column", "kind", *(f"row {i}" for i in chosen)), rows, "rows")
    return Section("columns", "Columns", said, body)


def contraction(m: Material) -> Section | None:
    """The singular values of the encoder's Jacobian: in how many directions the code moves at all."""
    model = m.model
    if not isinstance(model, ContractiveAE):
        return None
    chosen = spread_over(m.errors, 8)
    x = m.x[chosen]

    def code(v: Tensor) -> Tensor:
        return model.encode(v[None]).flatten()

    with torch.enable_grad():
        jacobians = torch.stack([jacobian(code, v).flatten(1) for v in x])
    values = torch.linalg.svdvals(jacobians.double().cpu()).mean(0)
    points = [(i + 1.0, float(v)) for i, v in enumerate(values[:100]) if v > 0]
    chart = charts.lines("singular values of dh/dx", [charts.Line("mean", "val", points)], "rank", log=len(points) > 1)
    said = f"Of the encoder's Jacobian, mean over {len(chosen)} samples: a contractive code moves in few directions of the data, and hardly in the others."
    return Section("contraction", "Contraction", said, f'<div class="charts">{chart}</div>')
