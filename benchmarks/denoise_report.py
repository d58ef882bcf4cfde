"""Table and picture of `benchmarks/denoise.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from denoise_images import Shot
from torch import Tensor

from aezoo.tasks.before_after import before_after
from aezoo.tasks.quality import quality

PUBLISHED = {  # mean PSNR on BSD68 at sigma 15, 25, 50: Zhang et al. 2017, arXiv:1608.03981, table II
    "BM3D (published)": {15: 31.07, 25: 28.57, 50: 25.62},
    "DnCNN, told sigma (published)": {15: 31.73, 25: 29.23, 50: 26.23},
}
NAMES = {"noisy": "noisy input", "bm3d": "BM3D, told sigma", "aezoo": "aezoo `unet_denoiser`, blind"}


def mean(values: Sequence[float]) -> tuple[float, float]:
    """(mean, its standard error)."""
    a = np.asarray(values, dtype=np.float64)
    return float(a.mean()), float(a.std(ddof=1) / math.sqrt(len(a))) if len(a) > 1 else math.nan


def means(rows: list[dict[str, Any]], sides: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and standard error over the images of a set, for each sigma and side; "gain": PSNR above BM3D's, image by image."""
    found = []
    for group, sigma in dict.fromkeys((r["set"], r["sigma"]) for r in rows):
        here = {s: [r for r in rows if (r["set"], r["sigma"], r["side"]) == (group, sigma, s)] for s in sides}
        for side, some in here.items():
            if not some:
                continue
            row: dict[str, Any] = {"set": group, "sigma": sigma, "side": side, "images": len(some)}
            for figure_name in ("psnr", "ssim", "cpu_seconds"):
                row[figure_name], row[f"{figure_name}_stderr"] = mean([r[figure_name] for r in some])
            if side == "aezoo" and here.get("bm3d"):
                other = {r["image"]: r["psnr"] for r in here["bm3d"]}
                row["gain"], row["gain_stderr"] = mean(
                    [r["psnr"] - other[r["image"]] for r in some if r["image"] in other]
                )
            found.append(row)
    return found


def markdown(rows: list[dict[str, Any]], sides: Sequence[str], about: dict[str, Any]) -> str:
    """The whole page."""
    t = about["training"]
    lines = [
        "# Denoising: Set12 and BSD68, Gaussian noise",
        "",
        "One command: `python benchmarks/denoise.py --photos PHOTOS --test DIR`. PSNR in dB and SSIM by torchmetrics, means over images ± "
        "standard error over images; every side restores the same noisy images, and results are clipped to [0, 1] and not rounded. "
        "Gain: PSNR above BM3D's on the same image, mean ± standard error. Seconds: CPU seconds per image on one thread.",
        "",
        "| set | sigma | method | PSNR | SSIM | gain on BM3D | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    found = means(rows, sides)
    for k, m in enumerate(found):
        gain = f"{m['gain']:+.2f} ± {m['gain_stderr']:.2f}" if "gain" in m else ""
        seconds = f"{m['cpu_seconds']:.1f}" if m["side"] != "noisy" else ""
        lines.append(
            f"| {m['set']} ({m['images']}) | {m['sigma']} | {NAMES[m['side']]} | {m['psnr']:.2f} ± {m['psnr_stderr']:.2f} | "
            f"{m['ssim']:.4f} ± {m['ssim_stderr']:.4f} | {gain} | {seconds} |"
        )
        last = k + 1 == len(found) or (found[k + 1]["set"], found[k + 1]["sigma"]) != (m["set"], m["sigma"])
        if m["set"] == "BSD68" and last:
            lines += [
                f"| BSD68 | {m['sigma']} | *{name}* | *{psnr[m['sigma']]:.2f}* | | | |"
                for name, psnr in PUBLISHED.items()
            ]
    steps = f"{t['steps']:,}" + (f" of {t['of']:,} (its time was up)" if t["steps"] < t["of"] else "")
    count = {(m["set"], m["sigma"]): m["images"] for m in found if m["side"] == "bm3d"}
    few = [
        f"{count.get((m['set'], m['sigma']), 0)} of {m['images']} of {m['set']} at sigma {m['sigma']}"
        for m in found
        if "bm3d" in sides and m["side"] == "noisy" and count.get((m["set"], m["sigma"]), 0) < m["images"]
    ]
    if few:
        lines += ["", f"BM3D has not restored all images yet, only {'; '.join(few)}: its means are not those of whole sets, its gains are "
                  "over the images that it has."]  # fmt: skip
    lines += [
        "",
        f"Training: {t['parameters']:,} parameters, {steps} steps of {t['batch_size']} grey crops of {t['crop']} x {t['crop']} pixels "
        f"from {t['photographs']} photographs (held out: {', '.join(t['held_out'])}), sigma uniform in 0 to 55 for each crop, L1 loss, "
        f"{t['seconds'] / 60:.0f} minutes on a machine that other work shared, seed {t['seed']}. One model for all rows, not told sigma.",
        "",
        f"Published rows are those of arXiv:1608.03981, table II, not run here. {about['hardware']}, {about['threads']} thread, torch "
        f"{about['torch']}, aezoo {about['aezoo']}" + (f", bm3d {about['bm3d']} (licence: no commercial use)" if "bm3d" in about else "") + ".",
    ]  # fmt: skip
    return "\n".join(lines)


def picture(path: Path, pictured: list[Shot], work: Path, denoise: Callable[[np.ndarray], Tensor], bm3d: bool) -> None:
    """A row for each held-out photograph: noisy, BM3D, aezoo, clean, with PSNR."""
    rows = []
    for shot in pictured:
        y, clean = np.load(work / "noisy" / shot.place), shot.clean[None]
        versions = {f"noisy, sigma {shot.sigma}": torch.from_numpy(y)[None]}
        if bm3d:
            versions["BM3D, told sigma"] = torch.from_numpy(np.load(work / "bm3d" / shot.place))[None]
        versions["aezoo, blind"] = denoise(y)
        scored = {f"{name}: {quality(x, clean).psnr:.2f} dB": x for name, x in versions.items()}
        rows.append({**scored, f"clean ({shot.name})": clean})
    before_after(path, rows)
