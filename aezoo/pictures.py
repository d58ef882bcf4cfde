"""Pictures of what a model does: reconstructions, samples, the course of the loss, and a map of the latent space.

Samples of rank 3 with both sides of at least 5 are shown as images (one channel, or three, else the first), volumes by their middle
slice, samples of rank 2 as images if both sides are at least 8, and all else as curves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .base import BaseAE
    from .data import Source

INK, GRID = "#1f2430", "#d9dde5"


def is_image(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are shown as images."""
    if len(shape) == 3:
        return min(shape[1:]) >= 5
    return len(shape) == 4 or (len(shape) == 2 and min(shape) >= 8)


def as_images(x: Tensor) -> Tensor:
    """(N, *shape) -> (N, 1 or 3, H, W): other channel counts show the first, volumes their middle slice."""
    x = x.detach().float().cpu()
    if x.dim() == 5:
        x = x[:, :, x.shape[2] // 2]
    if x.dim() == 3:
        x = x[:, None]
    return x if x.shape[1] in (1, 3) else x[:, :1]


def to_unit(x: Tensor, like: Tensor | None = None) -> Tensor:
    """Data to [0, 1] for showing: as it is if `like` lies there, else by the range of `like`. What is missing (NaN) becomes grey."""
    like = x if like is None else like
    like = like[~torch.isnan(like)]
    low, high = (float(like.min()), float(like.max())) if like.numel() else (0.0, 1.0)
    if low < 0 or high > 1:
        x = (x - low) / max(high - low, 1e-12)
    return x.clamp(0, 1).nan_to_num(0.5)


def near_unit(x: Tensor) -> bool:
    """Whether x are estimates of data in [0, 1]: but for one value in fifty, all lie in (-0.25, 1.25)."""
    return float(((x > -0.25) & (x < 1.25)).float().mean()) >= 0.98


def grid(rows: Sequence[Tensor], gap: int = 2, smallest: int = 56) -> Any:
    """Rows of images (n, C, H, W) in [0, 1] -> one PIL image on white, small images magnified by a whole factor."""
    from PIL import Image

    rows = [r.expand(-1, 3, -1, -1) for r in rows]
    height, width = rows[0].shape[2:]
    factor = max(1, math.ceil(smallest / max(height, width)))
    rows = [r.repeat_interleave(factor, 2).repeat_interleave(factor, 3) for r in rows]
    height, width = height * factor, width * factor
    across = max(len(r) for r in rows)
    canvas = torch.ones(3, len(rows) * (height + gap) - gap, across * (width + gap) - gap)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[:, top : top + height, left : left + width] = image
    return Image.fromarray((canvas * 255).round().byte().permute(1, 2, 0).numpy())


def save_image(x: Tensor, path: str | Path) -> None:
    """One sample in [0, 1] as a picture file of its own size."""
    from PIL import Image

    image = (as_images(x[None])[0].clamp(0, 1) * 255).round().byte()
    array = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    Image.fromarray(array.numpy()).save(path)


def figure(width: float = 8.0, height: float = 4.5, **grid_options: Any) -> Any:
    """A matplotlib figure without the global state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained", **grid_options)
    FigureCanvasAgg(fig)
    return fig


def plain_axes(ax: Any, title: str = "", x: str = "", y: str = "") -> None:
    ax.set_title(title, loc="left", color=INK, fontsize=11)
    ax.set_xlabel(x, color=INK)
    ax.set_ylabel(y, color=INK)
    ax.tick_params(colors=INK)
    ax.grid(True, color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _curve(sample: Tensor) -> Tensor:
    """One sample as a line: its first channel. Of two axes the shorter one is the channels."""
    sample = sample.detach().float().cpu()
    if sample.dim() == 2 and sample.shape[0] > sample.shape[1]:
        return sample[:, 0]
    return sample.flatten(1)[0] if sample.dim() > 1 else sample


def _axis_of(shape: Sequence[int]) -> str:
    return "feature" if len(shape) == 1 else "step"


def _shown_of(shape: Sequence[int]) -> str:
    channels = min(shape) if len(shape) == 2 else shape[0]
    return f" (channel 1 of {channels})" if len(shape) > 1 and channels > 1 else ""


# ----------------------------------------------------------------------------------------------------- single pictures


def reconstructions(path: Path, rows: dict[str, Tensor], title: str) -> Path:
    """Named rows (same number of samples each) above each other: images, or curves drawn over the first row."""
    first = next(iter(rows.values()))
    fig = None
    if is_image(first.shape[1:]):
        shown = {name: to_unit(as_images(x), as_images(first)) for name, x in rows.items()}
        height, width = next(iter(shown.values())).shape[2:]
        n = len(first)
        cell = 9.0 / max(n, 6)
        fig = figure(cell * n + 1.2, cell * height / width * len(shown) + 0.5)
        for i, (name, images) in enumerate(shown.items()):
            ax = fig.add_subplot(len(shown), 1, i + 1)
            ax.imshow(grid([images], smallest=64), interpolation="nearest", aspect="auto")
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
            ax.set_ylabel(name, rotation=0, ha="right", va="center", color=INK, fontsize=10)
            if i == 0:
                ax.set_title(title, loc="left", color=INK, fontsize=11)
    else:
        n = min(8, len(first))
        fig = figure(11, 4.8)
        names = list(rows)
        axes = fig.subplots(2, (n + 1) // 2, sharex=True, sharey=True, squeeze=False).flatten()
        for j in range(n):
            ax = axes[j]
            for k, name in enumerate(names):
                curve = _curve(rows[name][j])
                style = "-" if k == 0 else "--"
                ax.plot(curve.numpy(), style, color=("#8b93a3", "#d1495b", "#1b6ca8")[k % 3], linewidth=1.2, label=name)
            plain_axes(ax, x=_axis_of(first.shape[1:]) if j >= (n + 1) // 2 else "")
            ax.tick_params(labelsize=7)
        for ax in axes[n:]:
            ax.set_visible(False)
        handles, labels = fig.axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False, fontsize=9)
        fig.suptitle(title + _shown_of(first.shape[1:]), x=0.01, ha="left", color=INK, fontsize=11)
    fig.savefig(path, dpi=130, facecolor="white")
    return path


def samples(path: Path, x: Tensor, like: Tensor, across: int = 8) -> Path:
    """A square grid of generated samples."""
    if is_image(x.shape[1:]):
        shown = to_unit(as_images(x), as_images(like))
        grid(list(shown.split(across))).save(path)
        return path
    fig = figure(11, 4.8)
    axes = fig.subplots(2, 4, sharex=True, sharey=True).flatten()
    for ax, sample in zip(axes, x):
        ax.plot(_curve(sample).numpy(), color="#1b6ca8", linewidth=1.2)
        plain_axes(ax, x=_axis_of(x.shape[1:]) if ax in axes[4:] else "")
        ax.tick_params(labelsize=7)
    for ax in axes[len(x) :]:
        ax.set_visible(False)
    title = f"{min(8, len(x))} of {len(x)} samples" if len(x) > 8 else f"{len(x)} samples"
    fig.suptitle(title + _shown_of(x.shape[1:]), x=0.01, ha="left", color=INK, fontsize=11)
    fig.savefig(path, dpi=130, facecolor="white")
    return path


def curves(path: Path, rows: Sequence[dict[str, Any]], units: str) -> Path:
    """The loss and each of its terms over the epochs, training beside validation; stages of training are set apart.

    Where the first epoch lies far from the others, the axis shows the others."""
    skip = {"epoch", "step", "lr", "samples_per_s", "seconds", "stage"}
    names = [k for k in rows[-1] if k not in skip and not k.startswith("val_")]
    if len(names) == 2 and "loss" in names and "recon" in names:
        names = ["loss"]  # the only term is the loss
    down = 1 if len(names) <= 2 else 2
    across = math.ceil(len(names) / down)
    stages = list(dict.fromkeys(r.get("stage", "") for r in rows))
    per_epoch = max(1, max(r["step"] / r["epoch"] for r in rows))
    fig = figure(max(5.4, 4.6 * across), 3.1 * down)
    for i, name in enumerate(names):
        ax = fig.add_subplot(down, across, i + 1)
        last: list[float] = []
        for key, label, colour in ((name, "training", "#8b93a3"), (f"val_{name}", "validation", "#1b6ca8")):
            for stage in stages:
                part = [(r["step"] / per_epoch, r[key]) for r in rows if key in r and r.get("stage", "") == stage]
                if part:
                    marker = "o" if len(part) < 15 else None
                    ax.plot(*zip(*part), color=colour, label=label, marker=marker, markersize=3)
                    label = "_more of the same"
                    last += [y for _, y in part[1:]] if stage == stages[-1] and len(part) > 5 else []
        if len(last) > 4 and len(stages) == 1:
            gap = 0.08 * (max(last) - min(last) or 1.0)
            ax.set_ylim(min(last) - gap, max(last) + gap)
        for stage, following in zip(stages, stages[1:]):
            edge = max(r["step"] for r in rows if r.get("stage", "") == stage) / per_epoch
            ax.axvline(edge, color=GRID, linewidth=1.2)
            ax.annotate(following, (edge, 1.0), xycoords=("data", "axes fraction"), xytext=(2, -2), fontsize=6, color=INK,
                        textcoords="offset points", va="top", rotation=90)  # fmt: skip
        plain_axes(ax, name, "epoch", units if name != "l1" else "")
        if len(stages) > 1:
            ax.set_yscale("symlog" if any(r.get(name, 1) <= 0 for r in rows) else "log")
        if len(rows) == 1:
            ax.set_xlim(0.5, 1.5)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if i == 0:
            ax.legend(frameon=False, fontsize=9)
    fig.savefig(path, dpi=120, facecolor="white")
    return path


def one_label(labels: Tensor | None, n: int) -> Tensor | None:
    """Labels (n,): as they are, or the first column of a table of whole-numbered factors (n, F); None for vectors, which are no one colour."""
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        labels = labels[:, 0]
    return labels if labels is not None and labels.dim() == 1 and len(labels) == n else None


def projected(z: Tensor) -> tuple[Tensor, tuple[str, str], str]:
    """Codes (N, *latent_shape) as points (N, 2), float64: as they are if they have two numbers, else on their first two principal
    components; the names of the axes; and a title."""
    z = z.detach().double().cpu().flatten(1)
    if z.shape[1] == 1:
        return torch.cat([z, torch.zeros_like(z)], 1), ("z1", ""), "latent space"
    if z.shape[1] == 2:
        return z, ("z1", "z2"), "latent space"
    centred = z - z.mean(0)
    _, s, v = torch.linalg.svd(torch.cat([centred, torch.zeros(2, z.shape[1]).double()]), full_matrices=False)
    share = s.square() / s.square().sum().clamp_min(1e-30)
    axes = (f"first principal component ({share[0]:.0%} of the variance)", f"second ({share[1]:.0%})")
    return centred @ v[:2].T, axes, f"latent space, {z.shape[1]} dimensions"


def latent_map(path: Path, z: Tensor, labels: Tensor | None, class_names: Sequence[str] | None) -> Path:
    """The codes in two dimensions: as they are if there are two, else on their first two principal components.

    Colours are labels (N,), or the first column of a table of whole-numbered factors (N, F)."""
    labels = one_label(labels, len(z))
    points, axes, title = projected(z)
    fig = figure(7.6, 5.6)
    ax = fig.add_subplot()
    size = 9 if len(points) > 500 else 16
    if labels is None:
        ax.scatter(*points.T.numpy(), s=size, c="#1b6ca8", alpha=0.6, linewidths=0)
    else:
        from matplotlib import colormaps

        values = labels.cpu()
        kinds = values.unique()
        if len(kinds) <= 20 and not values.is_floating_point():
            palette = colormaps["tab10" if len(kinds) <= 10 else "tab20"]
            for i, kind in enumerate(kinds.tolist()):
                name = class_names[kind] if class_names is not None and 0 <= kind < len(class_names) else str(kind)
                ax.scatter(
                    *points[values == kind].T.numpy(), s=size, color=palette(i), alpha=0.75, linewidths=0, label=name
                )
            ax.legend(frameon=False, fontsize=9, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
        else:
            dots = ax.scatter(*points.T.numpy(), s=size, c=values.numpy(), cmap="viridis", alpha=0.8, linewidths=0)
            fig.colorbar(dots, ax=ax, label="label")
    plain_axes(ax, title, *axes)
    fig.savefig(path, dpi=120, facecolor="white")
    return path


# ------------------------------------------------------------------------------------------------------ the run's album


def draw_run(
    folder: Path,
    model: BaseAE,
    source: Source,
    rows: Sequence[dict[str, Any]],
    class_names: Sequence[str] | None,
    batch_size: int,
) -> tuple[list[Path], list[str]]:
    """Everything that can be shown of a trained model; returns the files, and why any picture had to be left out.

    Draws from the global RNG. No failure in here can lose a finished run: it is caught and told."""
    folder.mkdir(parents=True, exist_ok=True)
    like = next(model.parameters())

    def draw_reconstructions(path: Path) -> Path:
        x = source.peek(10, like.device, like.dtype).x
        panels = {"input": x}
        for c in model.corruptions:
            if c.where == "input" and c.name != "none":
                panels["corrupted"] = c(panels.get("corrupted", x))
        panels["output"] = model.reconstruct(list(panels.values())[-1])
        error = (panels["output"] - x).square().nanmean()  # of what is there
        return reconstructions(path, panels, f"{model.name}: mean squared error {error:.3g} over these samples")

    def draw_samples(path: Path) -> Path | None:
        return (
            None if model.prior is None else samples(path, model.sample(64), source.peek(64, like.device, like.dtype).x)
        )

    def draw_curves(path: Path) -> Path | None:
        return curves(path, rows, model.units) if rows else None

    def draw_latent(path: Path) -> Path:
        many = source.peek(2000, torch.device("cpu"), like.dtype)
        z = torch.cat([model.encode(part.to(like.device)).cpu() for part in many.x.split(batch_size)])
        return latent_map(path, z, many.y, class_names)

    drawers = {
        "reconstructions.png": draw_reconstructions,
        "samples.png": draw_samples,
        "curves.png": draw_curves,
        "latent.png": draw_latent,
    }
    made, left_out = [], []
    with model.evaluating(), torch.no_grad():
        for name, draw in drawers.items():
            try:
                picture = draw(folder / name)
            except Exception as error:  # whatever a drawing library makes of odd data, the trained weights matter more
                left_out.append(f"{name}: {type(error).__name__}: {error}")
            else:
                made += [picture] if picture is not None else []
    return made, left_out
