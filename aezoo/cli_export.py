"""The command that writes a trained model as a file which runs without aezoo: export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .flags import command_parser, parse, run_file


def command_export(argv: Sequence[str]) -> None:
    """A model as ONNX or torch.export file: aezoo export RUN [--format onnx|torch-export] [--part all|encoder|decoder|reconstruct]"""
    from .exporting import PARTS, SUFFIX, export
    from .hub import from_pretrained
    from .registry import choice

    parser = command_parser(
        "export",
        "Writes the deterministic encoder, decoder or reconstruction of a run's best weights with a free batch axis, runs what it wrote "
        "on batches of other sizes, and prints the largest difference to the model. A difference above the tolerance is an error. "
        'ONNX needs pip install "aezoo[export]".',
    )
    parser.add_argument("run")
    parser.add_argument("--format", type=str, default="onnx", help=f"one of {', '.join(SUFFIX)}")
    parser.add_argument("--part", type=str, default="reconstruct", help=f"one of {', '.join(PARTS)}, all")
    parser.add_argument(
        "--out", default=None, help="file, by default RUN/export/PART.onnx or .pt2; with --part all a folder"
    )
    parser.add_argument(
        "--condition",
        type=bool,
        default=True,
        help="false: models told labels or vectors take no second input for them",
    )
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest allowed difference, relative above 1")
    parser.add_argument("--opset", type=int, default=None, help="of ONNX; by default torch's")
    parser.add_argument("--seed", type=int, default=0, help="of the samples that are compared")
    o = parse(parser, argv)
    choice("--format", o.format, SUFFIX)
    choice("--part", o.part, (*PARTS, "all"))
    run_file(o.run, "config.json")
    model = from_pretrained(o.run)
    folder = Path(o.run) / "export"
    out = Path(o.out) if o.out else folder if o.part == "all" else folder / f"{o.part}{SUFFIX[o.format]}"
    files = export(
        model, out, format=o.format, part=o.part, condition=o.condition, tolerance=o.tolerance, opset=o.opset, seed=o.seed
    )  # fmt: skip
    for file in files:
        takes = ", ".join(
            f"{name} {kind} ({', '.join(map(str, ('B', *shape)))})" for name, (kind, shape) in file.inputs.items()
        )
        print(f"{file.path}: {file.part} of {model.name}; takes {takes}; {file.path.stat().st_size / 2**20:.2f} MiB")
        print(f"  largest difference to the model {file.difference:.2g} (allowed: {file.allowed:.2g})")
