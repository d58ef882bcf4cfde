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
from ..pictures import as_images
from ..prior_fitting import gaussian_posterior
from . import charts
from .general import Section, way
from .material import Material, spread_over
from .pieces import Html, card, cards, img, scaled, shown, signed, subtitle, table, tiles

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
