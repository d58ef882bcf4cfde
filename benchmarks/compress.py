"""How small trained models make pictures, beside PNG, WebP, bz2 and JPEG on the same ones.

    python benchmarks/compress.py --data ROOT --photos FOLDER      ROOT holds MNIST/raw; FOLDER .png photographs

Lossless: all 10,000 test images of MNIST, as 8-bit pixels and binarised once, in one .aez file of bits back (BB-ANS, arXiv:1901.04866).
Bits per pixel are 8 len(file) / pixels: header, checksums and the bits to start with are counted, the model's weights are not (as in
the paper). What is decoded is compared with the data. PNG and WebP code each image by itself, and all of them as one picture of 100
rows of 100; bz2 the whole array of bytes (of bits, where there are two values).
Lossy: PSNR against bits per pixel of rounded codes, at several fractions `extra`, beside JPEG and WebP at the same rates: for the MNIST test images
in one file (JPEG and WebP get them as one picture), and for photographs that the model never saw.

Models are trained first (seeds 0 to --seeds - 1), single-threaded, and kept in --runs. Figures are printed and written to compress.json and
COMPRESS.md beside this script, the picture of rates to COMPRESS.png.
"""

from __future__ import annotations

import argparse
import bz2
import io
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compress_models import HELD_OUT, RECIPES, photographs, trained
from PIL import Image

import aezoo
from aezoo.data.images import read_image
from aezoo.pictures import figure, plain_axes
from aezoo.storage import read_json, write_bytes, write_json
from aezoo.zoo import processor

PUBLISHED = {"grey": {"BB-ANS": 1.41, "bz2": 1.42, "WebP": 2.10, "PNG": 2.79}, "binary": {"BB-ANS": 0.19}}
EXTRAS = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)
HERE = Path(__file__).resolve().parent


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("AEZOO_DATA"), help="folder that holds MNIST/raw")
    parser.add_argument(
        "--photos", type=Path, default=None, help="folder of .png photographs; without it they are left out"
    )
    parser.add_argument("--runs", type=Path, default=HERE / "runs-compress", help="where trained models are kept")
    parser.add_argument("--seeds", type=int, default=3, help="of the lossless models")
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument(
        "--parts", default="lossless,lossy", help="what to run; the other's figures are read from --out"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------------------- others


def packed(image: Image.Image, kind: str, **options: Any) -> int:
    """Bytes of a picture in a file of this kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.tell()


LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {"optimize": True}),
    "WebP": ("WEBP", {"lossless": True, "quality": 100, "method": 6}),
}


def montage(x: torch.Tensor) -> Image.Image:
    """Grey images (N, 1, H, W) of 8 bits as one, 100 in a row; N is cut to whole rows."""
    across = min(100, len(x))
    n, h, w = len(x) // across * across, *x.shape[2:]
    return Image.fromarray(x[:n].view(n // across, across, h, w).permute(0, 2, 1, 3).reshape(-1, across * w).numpy())


def others(x: torch.Tensor, binary: bool) -> dict[str, float]:
    """Bits per pixel of PNG, WebP and bz2 on images (N, 1, H, W) of 8 bits."""
    pixels, found = x.numel(), {}
    one = "1" if binary else "L"
    whole = montage(x).convert(one)
    for name, (kind, options) in LOSSLESS.items():
        mode = one if kind == "PNG" else "RGB"
        each = sum(packed(Image.fromarray(i.numpy()).convert(mode), kind, **options) for i in x[:, 0])
        found[f"{name}, each image a file"] = 8 * each / pixels
        found[f"{name}, one picture of all"] = (
            8 * packed(whole.convert(mode), kind, **options) / (whole.width * whole.height)
        )
    array = np.packbits(x.numpy() > 0) if binary else x.numpy()
    found["bz2, the whole array"] = 8 * len(bz2.compress(array.tobytes(), 9)) / pixels
    return found


# ------------------------------------------------------------------------------------------------------------ lossless


def lossless(name: str, seed: int, o: argparse.Namespace, x: torch.Tensor) -> dict[str, Any]:
    """One row: rate, the bound it should reach, and seconds. Raises RuntimeError if a single pixel comes back wrong."""
    model = trained(name, seed, o.data, o.photos, o.runs).eval()
    train = aezoo.load_data(**RECIPES[name].data, root=o.data)
    codec = aezoo.Codec.fit(model, train, lossless=True)
    began = time.perf_counter()
    data = codec.compress(x, together=128)
    coded = time.perf_counter()
    back = codec.decompress(data)
    seconds = coded - began, time.perf_counter() - coded
    if not torch.equal(back, x):
        raise RuntimeError(f"{name}, seed {seed}: what was decoded is not what was coded")
    bound = aezoo.evaluate(model, x.float() / 255, metrics="elbo", device="cpu", progress=False)["elbo"]["mean"]
    row = {
        "bits_per_pixel": 8 * len(data) / x.numel(),
        "elbo_bits_per_pixel": -bound / math.log(2) / x[0].numel(),
        "bytes": len(data),
        "seconds_compress": seconds[0],
        "seconds_decompress": seconds[1],
        "parameters": model.num_parameters,
    }
    print(
        f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.5g}" for k, v in row.items()) + ", decoded to the bit",
        flush=True,
    )
    return row


# ---------------------------------------------------------------------------------------------------------------- lossy


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of 8-bit pictures, dB."""
    return 10 * math.log10(255**2 / max(1e-9, float(((a.astype(float) - b.astype(float)) ** 2).mean())))


def at_rate(image: Image.Image, kind: str, size: float) -> tuple[int, float]:
    """(bytes, PSNR) of the best quality of JPEG or WebP whose file is at most `size` bytes; the lowest quality if none is."""
    best, low, high = None, 1, 100
    while low <= high:
        quality = (low + high) // 2
        file = io.BytesIO()
        options = {"optimize": True} if kind == "JPEG" else {"method": 4}
        image.save(file, kind, quality=quality, **options)
        if file.tell() <= size or quality == 1:
            best, low = file.getvalue(), quality + 1
        else:
            high = quality - 1
    assert best is not None
    with Image.open(io.BytesIO(best)) as back:
        return len(best), psnr(np.asarray(back.convert(image.mode)), np.asarray(image))


def digits_curve(o: argparse.Namespace, x: torch.Tensor) -> list[dict[str, Any]]:
    model = trained("codes", 0, o.data, o.photos, o.runs).eval()
    train = aezoo.load_data(**RECIPES["codes"].data, root=o.data)
    whole, rows = montage(x), []
    x = x[: whole.width * whole.height // x[0].numel()]
    for extra in EXTRAS:
        codec = aezoo.Codec.fit(model, train, extra=extra)
        data = codec.compress(x)
        back = (codec.decompress(data).clamp(0, 1) * 255).round().to(torch.uint8)
        rows.append(compared([whole], [len(data)], [psnr(back.numpy(), x.numpy())], extra))
    return rows


def photos_curve(o: argparse.Namespace) -> list[dict[str, Any]]:
    from compress_models import crops

    model = trained("photos", 0, o.data, o.photos, o.runs).eval()
    seen = crops(o.photos, 64, 0)[::4]
    pictures = [read_image(p, None, 3) for p in photographs(o.photos)[-HELD_OUT:]]
    images = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures]
    rows = []
    for extra in EXTRAS:
        codec = aezoo.Codec.fit(model, seen, extra=extra)
        sizes, quality = [], []
        for picture in pictures:
            data = codec.compress_picture(picture)
            back = (codec.decompress(data).clamp(0, 1) * 255).round().to(torch.uint8)
            sizes.append(len(data))
            quality.append(psnr(back.numpy(), picture.numpy()))
        rows.append(compared(images, sizes, quality, extra))
    return rows


def compared(images: list[Image.Image], sizes: list[int], quality: list[float], extra: float) -> dict[str, Any]:
    """A row: mean bits per pixel and PSNR of aezoo, and of JPEG and WebP given each picture's own number of bytes."""
    pixels = [i.width * i.height for i in images]
    row: dict[str, Any] = {"extra": extra, "aezoo": _mean(sizes, pixels, quality)}
    for kind in ("JPEG", "WEBP"):
        found = [at_rate(i, kind, s) for i, s in zip(images, sizes)]
        row[kind] = _mean([s for s, _ in found], pixels, [q for _, q in found])
    print(row, flush=True)
    return row


def _mean(sizes: list[int], pixels: list[int], quality: list[float]) -> dict[str, float]:
    rates = [8 * s / p for s, p in zip(sizes, pixels)]
    return {"bits_per_pixel": statistics.mean(rates), "psnr": statistics.mean(quality)}


# --------------------------------------------------------------------------------------------------------------- report


def draw(path: Path, curves: dict[str, list[dict[str, Any]]]) -> None:
    fig = figure(5.2 * len(curves), 4.2)
    for number, (title, rows) in enumerate(curves.items()):
        ax = fig.add_subplot(1, len(curves), number + 1)
        for name, colour, marker in (("aezoo", "#c2410c", "o"), ("JPEG", "#1d4ed8", "s"), ("WEBP", "#15803d", "^")):
            points = sorted((r[name]["bits_per_pixel"], r[name]["psnr"]) for r in rows)
            label = "WebP" if name == "WEBP" else name
            ax.plot(*zip(*points), marker=marker, color=colour, label=label, linewidth=1.5, markersize=5)
        plain_axes(ax, title, "bits per pixel", "PSNR, dB")
        ax.legend(frameon=False)
    fig.savefig(path, dpi=110)


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f} (one seed)"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} ({len(values)} seeds)"


def report(found: dict[str, Any], curves: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "# Compression",
        "",
        f"Made by `python benchmarks/compress.py --data ROOT --photos PHOTOS`. {found['hardware']}.",
        "",
    ]
    lines += [
        "## Lossless: MNIST test images",
        "",
        f"{found['images']:,} images in one file; bits per pixel with headers and the bits to start with, decoded to the bit in this run. Weights are not "
        "counted. ± is the standard deviation over training seeds.",
        "",
    ]
    for name, title in (("grey", "8-bit pixels"), ("binary", "binarised once")):
        if name not in found:
            continue
        rows, published = found[name]["seeds"], PUBLISHED[name]
        best = [r["bits_per_pixel"] for r in rows]
        model = RECIPES[name]
        lines += [f"| {title} | bits per pixel | published |", "|---|---|---|"]
        lines += [f"| **aezoo, bits back** | **{spread(best)}** | {published['BB-ANS']:.2f} (BB-ANS) |"]
        lines += [f"| its bound, -ELBO | {spread([r['elbo_bits_per_pixel'] for r in rows])} | |"]
        for other, rate in found[name]["others"].items():
            known = published.get(other.split(",")[0]) if "one picture" not in other else None
            lines.append(f"| {other} | {rate:.4f} | {f'{known:.2f}' if known else ''} |")
        times = [statistics.mean(r[f"seconds_{k}"] for r in rows) for k in ("compress", "decompress")]
        lines += [
            "",
            f"`{model.model['name']}`, {model.model['backbone']}, {model.model['latent_dim']} latents, {model.model['likelihood']}, "
            f"{rows[0]['parameters']:,} weights, {model.stop:,} steps of {model.fit['batch_size']}. {times[0]:.0f} s to compress, {times[1]:.0f} s to decompress, wall time on the machine as loaded as said above.",
            "",
        ]
    lines += [
        "## Lossy: rounded codes, beside JPEG and WebP",
        "",
        "JPEG and WebP have the best quality that takes no more bytes than aezoo, or their lowest. One training seed. More bits cannot lift a codec "
        "above its model's own error: the last dB of a curve is what the small network makes of unrounded codes.",
        "",
        "![PSNR against bits per pixel](COMPRESS.png)",
        "",
    ]
    for title, rows in curves.items():
        lines += [
            f"| {title}: `extra` | bits per pixel | PSNR | JPEG: bpp | PSNR | WebP: bpp | PSNR |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in rows:
            cells = [f"{r[k]['bits_per_pixel']:.3f} | {r[k]['psnr']:.2f}" for k in ("aezoo", "JPEG", "WEBP")]
            lines.append(f"| {r['extra']} | {' | '.join(cells)} |")
        lines += ["", *(_verdict(rows, kind) for kind in ("JPEG", "WEBP")), ""]
    return "\n".join(lines).rstrip() + "\n"


def _verdict(rows: list[dict[str, Any]], kind: str) -> str:
    """One sentence: at how many rates which is better, where the other reaches the rate at all."""
    name = "WebP" if kind == "WEBP" else kind
    same = [r for r in rows if r[kind]["bits_per_pixel"] <= 1.02 * r["aezoo"]["bits_per_pixel"]]
    won = sum(r["aezoo"]["psnr"] > r[kind]["psnr"] for r in same)
    text = f"{name}: aezoo has the higher PSNR at {won} of the {len(same)} rates that {name} reaches." if same else ""
    beyond = len(rows) - len(same)
    if beyond:
        text += f" At {beyond} of {len(rows)} the file of {name}'s lowest quality is larger than aezoo's: there the row shows that one, at its larger size."
    return f"- {text.strip() if text else text}".replace("-  ", "- ")


def main() -> None:
    o = parse()
    torch.set_num_threads(1)
    o.out.mkdir(parents=True, exist_ok=True)
    o.runs.mkdir(parents=True, exist_ok=True)
    before = read_json(o.out / "compress.json") if (o.out / "compress.json").is_file() else {}
    curves: dict[str, list[dict[str, Any]]] = before.pop("lossy", {})
    found: dict[str, Any] = {
        **before,
        "hardware": f"{processor()}, one thread, load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores, torch {torch.__version__}",
        "images": o.images,
    }
    write: Callable[[], None] = lambda: write_json(o.out / "compress.json", {**found, "lossy": curves})  # noqa: E731
    grey = aezoo.load_data("mnist", root=o.data, split="test", limit=o.images).peek(o.images, torch.device("cpu")).x
    grey = (grey * 255).round().to(torch.uint8)
    for name in ("grey", "binary") if "lossless" in o.parts else ():
        x = grey
        if name == "binary":
            drawn = aezoo.load_data("mnist", root=o.data, split="test", limit=o.images, binarize="static")
            x = (drawn.peek(o.images, torch.device("cpu")).x * 255).to(torch.uint8)
        found[name] = {"seeds": [], "others": others(x, name == "binary"), "published": PUBLISHED[name]}
        for other, rate in found[name]["others"].items():
            print(f"{name}: {other}: {rate:.4f} bits per pixel", flush=True)
        for seed in range(o.seeds):
            found[name]["seeds"].append(lossless(name, seed, o, x))
            write()
    if "lossy" in o.parts:
        curves[f"MNIST, {o.images:,} test images in one file"] = digits_curve(o, grey)
        write()
    if "lossy" in o.parts and o.photos is not None:
        curves[f"{HELD_OUT} photographs"] = photos_curve(o)
        write()
    if curves:
        draw(o.out / "COMPRESS.png", curves)
    text = report(found, curves)
    write_bytes(o.out / "COMPRESS.md", text.encode())
    print(json.dumps(found, indent=2))
    print(text)


if __name__ == "__main__":
    main()
