"""The commands that use a trained model as a codec: compress, decompress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import recipes
from ..flags import command_parser, data_options, parse, run_file
from ..registry import nearest


def command_compress(argv: Sequence[str]) -> None:
    """Pictures or arrays as .aez files: aezoo compress RUN photo.png -o photo.aez [--lossless]"""
    from ..data import DATASETS

    parser = command_parser(
        "compress",
        "Writes a picture of any size, each picture of a folder, or an array (.npy, .csv, ...) as .aez: rounded codes by integer "
        "tables, or lossless by bits back. The codec is fitted to the run's own training data at the first call and kept in RUN "
        '(codec.json, codec.safetensors); aezoo decompress needs it. Needs pip install "aezoo[compress]".',
    )
    parser.add_argument("run")
    parser.add_argument(
        "input", help="an image, a folder of images, a file of arrays, or a data set's name (its test samples)"
    )
    parser.add_argument(
        "-o", "--out", default=None, help="file, or folder for a folder; by default the input's name, .aez"
    )
    parser.add_argument(
        "--lossless", action="store_true", help="bits back; for VAEs with likelihood bernoulli or logistic_mixture"
    )
    parser.add_argument(
        "--extra",
        type=float,
        default=None,
        help="fraction by which rounding may raise the squared error: fits the codec anew",
    )
    parser.add_argument(
        "--data", default=None, help="fits the codec anew, to another source than what the run was trained on"
    )
    argv, options = data_options(argv)
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    named = not Path(o.input).exists() and o.input in DATASETS
    sources = [Path(o.input)] if named else _inputs(o.input)
    out = _output(o.input, o.out, ".aez")
    codec = _codec(o, options)
    total, pixels = 0, 0
    for path in sources:
        target = out / f"{path.stem}.aez" if Path(o.input).is_dir() else out
        size, values = _compress_one(codec, path, target, named)
        total, pixels = total + size, pixels + values
    if len(sources) > 1:
        print(f"{len(sources)} files in {out}: {total:,} bytes, {8 * total / pixels:.4g} bits per pixel")
    print(f"back: aezoo decompress {o.run} {out}")


def _compress_one(codec: Any, path: Path, target: Path, named: bool) -> tuple[int, int]:
    """Writes one file; returns (its bytes, pixels or values of its data). `named`: of a data set's test samples, not of a file."""
    from ..data.files import IMAGE_ENDINGS, read_image
    from ..data.images import lost_in_reading
    from ..storage import write_bytes
    from ..tasks.mosaic import channels_of

    shape = codec.model.input_shape
    if path.suffix.lower() in IMAGE_ENDINGS:
        channels = channels_of(shape)
        if channels is None:
            raise ValueError(f"{path} is an image, but {codec.model.name} takes samples of shape {shape}")
        x = read_image(path, None, channels)
        lost = lost_in_reading(path, channels)
        if lost and codec.lossless:
            raise ValueError(
                f"{path} has {lost}, which {codec.model.name} does not take, so it could not come back as it is; convert it first"
            )
        note = f"; {lost} left out" if lost else ""
        data = codec.compress_picture(x)
        count, unit, of = x.shape[1] * x.shape[2], "pixel", f"{x.shape[2]}x{x.shape[1]} pixels"
    else:
        from ..data import load_data

        source = load_data(str(path), split="test" if named else "train").reshaped(shape)
        source.check(codec.model.likelihood.support)
        x = source.x.view(-1, *shape)  # type: ignore[attr-defined]
        data = codec.compress(x)
        count, unit, of, note = x.numel(), "value", f"{len(x):,} samples of shape {shape}", ""
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, data)
    size = 0 if named else path.stat().st_size
    against = f", {size / len(data):.3g} times smaller than {path.name}" if size > len(data) else ""
    print(
        f"{target}: {of} in {len(data):,} bytes with header and checksums, {8 * len(data) / count:.4g} bits per {unit}{against}; "
        f"{_quality(codec, data, x)}{note}"
    )
    return len(data), count


def _quality(codec: Any, data: bytes, x: Any) -> str:
    """Decodes what was written, and says how far it is from the data."""
    import torch

    back = codec.decompress(data)
    if codec.lossless:
        if not torch.equal(back, x):
            raise RuntimeError("what was decoded is not what was coded; please report this")
        return "decoded to the bit"
    x = x.double() / 255 if x.dtype == torch.uint8 else x.double()
    error = float((back.double() - x).square().mean())
    unit_range = codec.model.likelihood.support or (float(x.min()) >= 0 and float(x.max()) <= 1)
    psnr = f", PSNR {-10 * math.log10(error):.4g} dB" if unit_range and error else ""
    return f"mean squared error {error:.4g}{psnr}"


def _codec(o: Any, options: dict[str, Any]) -> Any:
    """The run's codec, fitted and saved if there is none that fits."""
    from ..data import data_for
    from ..hub import from_pretrained
    from ..tasks.compress import Codec
    from .prior import trained_on

    model = from_pretrained(o.run)
    why = "it has none yet"
    if o.extra is None and o.data is None:
        try:
            return Codec.load(o.run, model, o.lossless)
        except FileNotFoundError:
            pass
        except ValueError as error:
            if "other weights" not in str(error):
                raise
            why = "the one there was fitted to other weights"
    else:
        why = "asked for by --data" if o.data is not None else f"asked for by --extra {o.extra:g}"
    if o.data is not None:
        source, what = data_for(model.input_shape, o.data, **options), f"all of {o.data}"
    else:
        source, _, what = trained_on(recipes.read(run_file(o.run, "config.yaml")))
    codec = Codec.fit(model, source, lossless=o.lossless, **({} if o.extra is None else {"extra": o.extra}))
    _keep_old(o.run, model, codec)
    codec.save(o.run)
    kind = "lossless codec" if o.lossless else "codec"
    print(f"{kind} of {model.name} fitted to {what} ({why}); it is saved in {o.run}, and decompressing needs it")
    return codec


def _old_codec(run: str, tables: bytes) -> Path:
    """Where a codec of the run lies that another one has taken the place of."""
    return Path(run) / "codecs" / tables.hex()


def _keep_old(run: str, model: Any, codec: Any) -> None:
    """What was written with the codec that `codec` takes the place of can still be read."""
    from ..tasks.aez import HASH
    from ..tasks.compress import Codec

    try:
        old = Codec.load(run, model, codec.lossless)
    except (FileNotFoundError, ValueError):  # none, or one of other weights, whose files need these weights anyway
        return
    if old.hash != codec.hash:
        print(f"the codec that was there is kept in {old.save(_old_codec(run, old.hash[:HASH]))}")


def _codec_of(run: str, held: Any, what: str) -> Any:
    """The run's codec that wrote a file. Raises ValueError if the run has none of its kind."""
    from ..hub import from_pretrained
    from ..tasks.aez import HASH
    from ..tasks.codec_files import model_hash
    from ..tasks.compress import Codec

    model = from_pretrained(run)
    if held.model != (mine := model_hash(model)[:HASH]):
        raise ValueError(
            f"{what}: written with another model's weights ({held.model.hex()}) than those of {run} ({mine.hex()}); decompress with "
            "the run that compressed it"
        )
    older = _old_codec(run, held.codec)
    return Codec.load(older if older.is_dir() else run, model, held.lossless)


def command_decompress(argv: Sequence[str]) -> None:
    """What .aez files hold: aezoo decompress RUN photo.aez -o out.png"""
    from ..storage import sync
    from ..tasks import aez

    parser = command_parser(
        "decompress", "Writes the picture (.png) or the samples (.npy) that an .aez file, or each of a folder, holds."
    )
    parser.add_argument("run", help="the run that compressed it, with its codec")
    parser.add_argument("input", help="an .aez file, or a folder of them")
    parser.add_argument(
        "-o",
        "--out",
        default=None,
        help="file, or folder for a folder; by default the input's name, .png or .npy, and NAME-back where that is there already",
    )
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    codecs: dict[Any, Any] = {}
    for path in _inputs(o.input, (".aez",)):
        data = path.read_bytes()
        held = aez.read(data, str(path))
        key = held.lossless, held.model, held.codec
        if key not in codecs:
            codecs[key] = _codec_of(o.run, held, str(path))
        x = codecs[key].decompress(data, what=str(path))
        ending = ".png" if held.picture else ".npy"
        base = _output(o.input, o.out, ending)
        target = base / f"{path.stem}{ending}" if Path(o.input).is_dir() else base
        if o.out is None and target.exists():  # most likely what was compressed
            target = target.with_name(f"{path.stem}-back{ending}")
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(x, target, held.picture is not None, held.lossless)
        sync(target)
        print(
            f"{target}: {'x'.join(map(str, reversed(held.picture))) + ' pixels' if held.picture else f'{len(x):,} samples of shape {held.shape}'}"
        )


def _write(x: Any, target: Path, picture: bool, lossless: bool) -> None:
    import numpy as np
    import torch

    from ..pictures import save_image

    if not picture:
        if target.suffix.lower() != ".npy":
            raise ValueError(f"{target}: samples are written as .npy: -o {target.with_suffix('.npy')}")
        np.save(target, x.numpy())
    elif target.suffix.lower() == ".npy":
        np.save(target, x.numpy())
    else:
        from PIL import Image

        if target.suffix.lower() not in {e for e, kind in Image.registered_extensions().items() if kind in Image.SAVE}:
            raise ValueError(
                f"{target}: {target.suffix or 'no ending'} is no kind of picture that can be written; take .png"
            )
        if lossless and target.suffix.lower() not in (".png", ".bmp", ".tif", ".tiff", ".pgm", ".ppm"):
            raise ValueError(
                f"{target}: {target.suffix} would not keep every bit of what was coded without loss; take .png"
            )
        save_image(x.float() / 255 if x.dtype == torch.uint8 else x, target)


def _inputs(text: str, endings: tuple[str, ...] = ()) -> list[Path]:
    """The file, or those of a folder with one of the endings (of images by default), that an argument names."""
    from ..data.files import IMAGE_ENDINGS

    path, endings = Path(text), endings or IMAGE_ENDINGS
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings)
        if not found:
            raise ValueError(f"{text!r} holds no file with the ending {', '.join(endings)}")
        names = [p.stem for p in found]
        if twice := [n for n in names if names.count(n) > 1]:
            raise ValueError(f"{text!r} holds several files named {twice[0]!r}, which would be written to one")
        return found
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"no file {text!r}.{nearest(path.name, beside)}")
    return [path]


def _output(source: str, given: str | None, ending: str) -> Path:
    """Where the result goes; never the input itself."""
    path = Path(source)
    if path.is_dir():
        return Path(given) if given else path
    target = Path(given) if given else path.with_suffix(ending)
    if target.is_dir():
        target = target / path.with_suffix(ending).name
    if target.resolve() == path.resolve():
        raise ValueError(f"-o {given} would overwrite the input; choose another file")
    return target
