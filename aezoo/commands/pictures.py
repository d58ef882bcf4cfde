"""The commands that make pictures with a trained model: reconstruct, sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..flags import command_parser, parse, run_file
from ..registry import nearest


def command_reconstruct(argv: Sequence[str]) -> None:
    """Send images through a model: aezoo reconstruct RUN IMAGES... --out DIR"""
    import torch

    from ..data import load_data
    from ..data.files import IMAGE_ENDINGS, read_image
    from ..hub import from_pretrained
    from ..pictures import is_image, reconstructions, save_image

    parser = command_parser(
        "reconstruct", "Writes each image's reconstruction to DIR, and one picture of all of them side by side."
    )
    parser.add_argument("run")
    parser.add_argument(
        "images", nargs="+", help="image files or folders of them; arrays (.npy, .csv, ...) for other models"
    )
    parser.add_argument("--out", default="reconstructions", help="folder for the results")
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    model = from_pretrained(o.run)
    files = listed(o.images)
    pictures = [p for p in files if p.suffix.lower() in IMAGE_ENDINGS]
    shape = model.input_shape
    size = (shape[-2], shape[-1]) if len(shape) in (2, 3) and is_image(shape) else None
    channels = shape[0] if len(shape) == 3 else 1
    if pictures and (size is None or channels not in (1, 3)):
        raise ValueError(f"{pictures[0]} is an image, but {model.name} of {o.run} takes samples of shape {shape}")
    out = Path(o.out)
    targets = fresh_targets(out, pictures, files)
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        if pictures:
            x = (
                torch.stack([read_image(p, size, channels) for p in pictures])
                .to(next(model.parameters()).dtype)
                .div(255)
            )
            x = x.view(-1, *shape)
            model.likelihood.check(float(x.min()), float(x.max()))
            y = torch.cat([model.reconstruct(part) for part in x.split(256)])
            for target, image in zip(targets, y):
                save_image(image, target)
            error = (y - x).square().nanmean()
            reconstructions(
                out / "comparison.png",
                {"input": x[:10], "output": y[:10]},
                f"{model.name}: mean squared error {error:.4f}",
            )
            fitted = sum(1 for p in pictures if _size_of(p) != size)
            note = f"; {fitted} of other sizes were fitted to {size[0]}x{size[1]}" if fitted and size else ""
            print(f"{len(pictures)} reconstructions and comparison.png in {out}, mean squared error {error:.4f}{note}")
        for path in (p for p in files if p not in pictures):
            import numpy as np

            source = load_data(path).reshaped(shape)
            source.check(model.likelihood.support, model.accepts_missing)
            x = source.peek(len(source), torch.device("cpu"), next(model.parameters()).dtype).x
            y = torch.cat([model.reconstruct(part) for part in x.split(256)])
            np.save(out / f"{path.stem}.npy", y.numpy())
            print(f"{out / f'{path.stem}.npy'}: {len(y)} samples, mean squared error {(y - x).square().nanmean():.4g}")


def listed(texts: Sequence[str]) -> list[Path]:
    """The files that are named, and the images below the folders that are.

    Raises FileNotFoundError with the nearest name, ValueError for a folder without images."""
    from ..data.images import IMAGE_ENDINGS

    files: list[Path] = []
    for text in texts:
        path = Path(text)
        if not path.exists():
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise FileNotFoundError(f"no file {text!r}.{nearest(path.name, beside)}")
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{text!r} holds no image ({', '.join(IMAGE_ENDINGS)})")
        files += found
    return files


def fresh_targets(out: Path, pictures: Sequence[Path], inputs: Sequence[Path]) -> list[Path]:
    """Where each picture's result goes: its name as .png, numbered where two would be the same, beside comparison.png.

    Raises ValueError if any of these is an input."""
    taken: set[Path] = {out / "comparison.png"}
    targets = []
    for path in pictures:
        target, number = out / f"{path.stem}.png", 1
        while target in taken:
            number += 1
            target = out / f"{path.stem}-{number}.png"
        taken.add(target)
        targets.append(target)
    read = {p.resolve() for p in inputs}
    clash = [t for t in [*targets, out / "comparison.png"] if t.resolve() in read]
    if clash:
        raise ValueError(f"--out {out} would overwrite the input {clash[0]}; choose another folder")
    return targets


def _size_of(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.height, image.width


def command_sample(argv: Sequence[str]) -> None:
    """Draw new samples: aezoo sample RUN -n 64 [--condition LABEL]"""
    import torch

    from ..hub import from_pretrained
    from ..pictures import is_image, near_unit, samples

    parser = command_parser("sample", "Draws samples from a generative model and writes them as one picture.")
    parser.add_argument("run")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument(
        "--condition", type=int | None, default=None, help="label of all samples, on models that take one"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="picture to write, by default RUN/samples.png")
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    model = from_pretrained(o.run)
    with torch.no_grad():
        told = {} if o.condition is None else {"condition": torch.full((max(o.n, 0),), o.condition)}
        x = model.sample(o.n, generator=torch.Generator().manual_seed(o.seed), **told)
    out = Path(o.out) if o.out else Path(o.run) / "samples.png"
    out = out if out.suffix else out.with_suffix(".png")
    out.parent.mkdir(parents=True, exist_ok=True)
    samples(out, x, x.clamp(0, 1) if model.likelihood.support or near_unit(x) else x)
    print(f"{o.n} samples in {out}")
    if not is_image(x.shape[1:]):
        import numpy as np

        np.save(out.with_suffix(".npy"), x.numpy())
        print(f"the picture shows at most 8 of them; all are in {out.with_suffix('.npy')}")
