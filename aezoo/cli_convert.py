"""The command that turns files of one kind into another: convert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .flags import command_parser, parse, run_file


def command_convert(argv: Sequence[str]) -> None:
    """To and from other libraries' files: aezoo convert RUN OUT --to saelens | FOLDER OUT --from auto | FILE.pt OUT.safetensors"""
    from .interop import FORMATS

    names = ", ".join(FORMATS)
    parser = command_parser(
        "convert",
        "With --to, writes a run or saved model as another library's; with --from, another library's model as one of aezoo's; with "
        "neither, the tensors of a file of torch.save as safetensors. No code of a file's is run.",
    )
    parser.add_argument("source", help="a run or saved model (--to), a foreign folder (--from), or a .pt file")
    parser.add_argument("out", help="a folder, or a name that ends in .safetensors for a .pt file")
    parser.add_argument("--to", default=None, metavar="FORMAT", help=f"write OUT as a model of {names}")
    parser.add_argument("--from", default=None, metavar="FORMAT", help=f"SOURCE is a model of {names}, or auto")
    parser.add_argument(
        "--input_shape",
        type=list[int] | None,
        default=None,
        help="with --from: of one sample, where the files do not say it",
    )
    parser.add_argument("--key", default=None, help="where the tensors lie in a .pt file, e.g. state_dict or ema.model")
    parser.add_argument("--overwrite", action="store_true", help="OUT may be there already")
    o = parse(parser, argv)
    to, source = o["to"], o["from"]
    if to is None and source is None:
        _tensors(o)
        return
    if o.key is not None:
        raise ValueError(f"--key {o.key} is for .pt files without --to and --from")
    if o.input_shape is not None and source is None:
        raise ValueError(f"--input_shape {o.input_shape} goes with --from")
    _model(o.source, Path(o.out).expanduser(), source, to, o.input_shape, o.overwrite)


def _tensors(o: Any) -> None:
    from .convert import convert

    if Path(o.source).expanduser().is_dir():
        raise ValueError(
            f"{o.source} is a folder: pass --from auto (another library's model) or --to FORMAT (a run or saved model)"
        )
    done = convert(o.source, o.out, o.key, o.overwrite)
    numbers = sum(v.numel() for v in done.tensors.values())
    print(f"{done.path}: {len(done.tensors)} tensors, {numbers:,} numbers")
    if done.left_out:
        more = ", ..." if len(done.left_out) > 5 else ""
        print(f"left out, being no tensors: {', '.join(done.left_out[:5])}{more}")


def _model(text: str, out: Path, source: str | None, to: str | None, shape: list[int] | None, overwrite: bool) -> None:
    from .hub import from_pretrained
    from .interop import load_foreign, module, save_foreign

    if to is not None:
        module(to)  # an unknown name is an error before anything is read
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not overwrite):
        what = "a file" if out.is_file() else "there already, and not empty; pass --overwrite"
        raise ValueError(f"{out} is {what}; or choose another folder")
    if out.is_dir() and Path(text).expanduser().exists() and out.samefile(Path(text).expanduser()):
        raise ValueError(f"{out} is the model to convert itself; choose another folder")
    if source is None:
        run_file(text, "config.json")
    options = {} if shape is None else {"input_shape": shape}
    model = load_foreign(text, source, **options) if source is not None else from_pretrained(text)
    folder = save_foreign(model, out, to) if to is not None else model.save_pretrained(out)
    print(f"{folder}: {model.name}, {model.num_parameters:,} numbers, as {to or 'aezoo'}")
