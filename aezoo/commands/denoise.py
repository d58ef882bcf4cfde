"""The command that takes noise off images: denoise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..flags import command_parser, parse, run_file
from ..registry import nearest
from .pictures import fresh_targets, listed

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 4  # images of the picture


def command_denoise(argv: Sequence[str]) -> None:
    """Take noise off images of any size: aezoo denoise RUN IMAGES... --out DIR [--sigma 25 | --clean DIR]"""
    parser = command_parser(
        "denoise",
        "Writes what a model makes of each image, at the image's own size, to DIR under its name (as .png), and comparison.png, a picture of "
        "before and after. With clean images to compare with, it prints PSNR and SSIM, too.",
    )
    parser.add_argument("run")
    parser.add_argument("images", nargs="+", help="image files, or folders of them")
    parser.add_argument("--out", default="denoised", help="folder for the results")
    parser.add_argument(
        "--clean", default=None, help="the clean images: a folder with the same names, or one file for one image"
    )
    parser.add_argument(
        "--sigma", type=float | None, default=None,
        help="the images are clean: add Gaussian noise with this standard deviation, of 255",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of that noise")
    parser.add_argument(
        "--tile", type=int | None, default=None, help="edge of the tiles, for convolutional models on images too large"
    )
    parser.add_argument(
        "--condition", type=float | None, default=None, help="for models that are told something, e.g. a label"
    )
    parser.add_argument("--device", default="auto")
    o = parse(parser, argv)
    if o.clean is not None and o.sigma is not None:
        raise ValueError(
            "--clean and --sigma exclude each other: with --sigma the images themselves are the clean ones"
        )
    if o.sigma is not None and not 0 <= o.sigma <= 255:
        raise ValueError(f"--sigma={o.sigma:g} must lie in [0, 255]; it is the noise's standard deviation, of 255")
    from ..randomness import checked_seed

    checked_seed(o.seed)
    run_file(o.run, "config.json")
    _run(o)


def _run(o: Any) -> None:
    from tqdm import tqdm

    from ..data.images import IMAGE_ENDINGS, read_image
    from ..hub import from_pretrained
    from ..pictures import save_image
    from ..tasks.before_after import before_after
    from ..tasks.denoise import denoise
    from ..tasks.quality import Quality, quality, torchmetrics_image
    from ..train.hardware import decide

    model = from_pretrained(o.run)
    files = listed(o.images)
    bad = next((p for p in files if p.suffix.lower() not in IMAGE_ENDINGS), None)
    if bad is not None:
        raise ValueError(f"{bad} is no image ({', '.join(IMAGE_ENDINGS)})")
    shape = model.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"{files[0]} is an image, but {model.name} of {o.run} takes samples of shape {shape}")
    clean = _partners(o.clean, files)
    out = Path(o.out)
    targets = fresh_targets(out, files, [*files, *clean])
    compared = bool(clean) or o.sigma is not None
    if compared:
        torchmetrics_image()  # before the work, not after it
    grey = 0
    for i, path in enumerate(files):  # so that a damaged file does not end the work halfway
        size, colour = _looked(path)
        grey += shape[0] == 1 and colour
        if clean and _looked(clean[i])[0] != size:
            raise ValueError(
                f"{clean[i]} has {_words(_looked(clean[i])[0])} pixels, and {path} has {_words(size)}: they are not of the same picture"
            )
    condition = o.condition
    if condition is not None and getattr(model, "num_classes", None):
        condition = int(condition)

    model.to(decide(o.device, "fp32", False).device)
    dtype = next(model.parameters()).dtype
    out.mkdir(parents=True, exist_ok=True)
    shown: list[dict[str, Tensor]] = []
    before: list[Quality] = []
    after: list[Quality] = []
    for i, (path, target) in enumerate(zip(tqdm(files, "denoise", delay=2, leave=False), targets)):
        x = read_image(path, channels=shape[0]).to(dtype) / 255
        goal = read_image(clean[i], channels=shape[0]).to(dtype) / 255 if clean else None
        if o.sigma is not None:
            goal, x = x, noisy(x, o.sigma / 255, o.seed, i)
        y = denoise(model, x, tile=o.tile or "auto", condition=condition, progress=False)
        save_image(y, target)
        if goal is not None:
            before.append(quality(x, goal))
            after.append(quality(y, goal))
            tqdm.write(f"{path.name}: PSNR {before[-1].psnr:.2f} -> {after[-1].psnr:.2f} dB, "
                       f"SSIM {before[-1].ssim:.4f} -> {after[-1].ssim:.4f}")  # fmt: skip
        if len(shown) < SHOWN:
            score = [f": {q[-1].psnr:.2f} dB" if q else "" for q in (before, after)]
            row = {f"{path.name[:20]}{score[0]}": x, f"{model.name}{score[1]}": y}
            shown.append(row if goal is None else {**row, "clean": goal})
    if compared:
        print(f"mean of {len(files)}: {_means(before, after)}")
    before_after(out / "comparison.png", shown)
    note = f"; {grey} in colour were made grey, which the model takes" if grey else ""
    print(f"{len(files)} denoised image{'s' * (len(files) > 1)} and comparison.png in {out}{note}")


def noisy(x: Tensor, sigma: float, seed: int, number: int) -> Tensor:
    """x + sigma eps, eps ~ N(0, I) drawn for the image of that number, neither clipped nor rounded."""
    import torch

    from ..randomness import mix_seed

    draw = torch.Generator().manual_seed(mix_seed(seed, number))
    return x + sigma * torch.randn(x.shape, generator=draw).to(x.dtype)


def _partners(clean: str | None, files: Sequence[Path]) -> list[Path]:
    """The clean image of each file: that of the same name, whatever its ending, in a folder; or the one file for the one image."""
    from ..data.images import IMAGE_ENDINGS

    if clean is None:
        return []
    found = listed([clean])
    if not Path(clean).is_dir():
        if len(files) != 1:
            raise ValueError(
                f"--clean {clean} is one file for {len(files)} images; give the folder of their clean versions"
            )
        if found[0].suffix.lower() not in IMAGE_ENDINGS:
            raise ValueError(f"--clean {clean} is no image ({', '.join(IMAGE_ENDINGS)})")
        return found
    by_name = {p.stem: p for p in found}
    if len(by_name) < len(found):
        twice = next(p for p in found if by_name[p.stem] != p)
        raise ValueError(f"--clean {clean} holds several images named {twice.stem!r}: {twice}, {by_name[twice.stem]}")
    for path in files:
        if path.stem not in by_name:
            raise ValueError(f"--clean {clean} holds no image named {path.stem!r}.{nearest(path.stem, by_name)}")
    return [by_name[path.stem] for path in files]


def _means(before: Sequence[Any], after: Sequence[Any]) -> str:
    parts = [("PSNR", 0, ".2f", " dB"), ("SSIM", 1, ".4f", "")]
    words = []
    for name, k, form, unit in parts:
        a, b = (sum(q[k] for q in qs) / len(qs) for qs in (before, after))
        words.append(f"{name} {a:{form}} -> {b:{form}}{unit}")
    return ", ".join(words)


def _looked(path: Path) -> tuple[tuple[int, int], bool]:
    """((height, width), has colour). Raises ValueError for what is no image."""
    from ..data.images import look

    seen = look(path)
    if isinstance(seen, str):
        raise ValueError(f"{path} cannot be read as an image: {seen}")
    return seen


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
