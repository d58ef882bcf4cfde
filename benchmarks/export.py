"""Exports every model of the zoo, as large as its recipe makes it, and tells how far each file is from the model.

    python benchmarks/export.py                            all models, both formats: about 25 minutes on two cores
    python benchmarks/export.py "*sae" --formats onnx      some models, one format
    python benchmarks/export.py --write benchmarks/EXPORT.md

Each model takes a few steps on its recipe's data first, so that running statistics, codebooks and thresholds are not where they started.
Then encoder, decoder and reconstruction are written and compared with the model on batches of 1 and of 5 samples; they were recorded
with 3. ONNX files are run by onnxruntime on the CPU, programs by torch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import aezoo
from aezoo import zoo
from aezoo.cli_find import built
from aezoo.flags import train_config

HEAD = ("model", "recipe", "sample", "code", "format", "encoder", "decoder", "reconstruct", "MiB", "s")


def trained(name: str, steps: int) -> Any:
    """The model of its recipe after a few steps."""
    config, _, _ = train_config([zoo.recipe_of(name), "--train.seed", "0"])
    model, source = built(config)
    if steps:
        size = config["train"]["batch_size"]
        options = {"compile": False, "progress": False, "device": "cpu", "seed": 0}
        aezoo.fit(model, source, steps=steps, batch_size=min(size if isinstance(size, int) else 64, 64), **options)
    return model


def row(name: str, format: str, model: Any, folder: str) -> tuple[tuple[str, ...], bool]:
    began = time.perf_counter()
    about = (f"`{name}`", f"`{zoo.recipe_of(name)}`", shape(model.input_shape), shape(model.latent_shape), format)
    try:
        files = aezoo.export(model, Path(folder) / format / name, format=format, part="all")
    except ValueError as error:
        return (*about, "", "", " ".join(str(error).split()), "", seconds(began)), False
    size = next(f.path for f in files if f.part == "reconstruct").stat().st_size / 2**20
    return (*about, *(f"{f.difference:.1e}" for f in files), f"{size:.2f}", seconds(began)), True


def shape(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def seconds(began: float) -> str:
    return f"{time.perf_counter() - began:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help="names or patterns, by default all models")
    parser.add_argument("--formats", nargs="+", default=["onnx", "torch-export"], choices=["onnx", "torch-export"])
    parser.add_argument("--steps", type=int, default=5, help="of training before")
    parser.add_argument("--write", help="file for the table")
    o = parser.parse_args()
    began, failed = time.perf_counter(), 0
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    print("\n".join(lines))
    with tempfile.TemporaryDirectory() as folder:
        for name in zoo.models_fitting(o.patterns):
            model = trained(name, o.steps)
            for format in o.formats:
                cells, fine = row(name, format, model, folder)
                failed += not fine
                lines.append("| " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
    versions = [f"torch {torch.__version__}"]
    if "onnx" in o.formats:
        import onnx
        import onnxruntime
        import onnxscript

        versions += [f"{p.__name__} {p.__version__}" for p in (onnx, onnxscript, onnxruntime)]
    note = (
        f"*Largest absolute difference to the model over batches of 1 and of 5 samples, after {o.steps} steps of its recipe; MiB and s: size "
        f"of the reconstruction's file, seconds for writing and checking all three. {zoo.processor()}, {', '.join(versions)}, "
        f"{(time.perf_counter() - began) / 60:.0f} minutes in all.*"
    )
    print(f"\n{note}")
    if o.write:
        title = "# Exports\n\nWritten by `python benchmarks/export.py --write benchmarks/EXPORT.md`.\n\n"
        Path(o.write).write_text(title + "\n".join([*lines, "", note]) + "\n", encoding="utf-8")
    if failed:
        print(f"{failed} could not be exported", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
