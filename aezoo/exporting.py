"""A model as a file that runs without aezoo: ONNX, or a program of `torch.export`.

    encoder       x (B, *input_shape)  -> z (B, *latent_shape)      model.encode(x)
    decoder       z (B, *latent_shape) -> recon (B, *input_shape)   model.decode(z)
    reconstruct   x (B, *input_shape)  -> recon (B, *input_shape)   model.reconstruct(x)

All three are deterministic; the batch axis stays free. Models that are told labels or vectors take them as a second input,
"condition". What was written is read back, run on batches of other sizes than the one that it was recorded with, and compared.

Legend: B batch; x data, z code, recon the reconstruction in data space.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from .base import BaseAE, number
from .randomness import checked_seed
from .registry import choice

PARTS = ("encoder", "decoder", "reconstruct")
SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2"}
RECORDED = 3  # samples in the batch that the program is recorded with
CHECKED = (1, 5)  # sizes of the batches that it is compared on
MISSING = 0.1  # share of the entries left out of these, for models that take missing entries
EXTRA = ("onnx", "onnxscript", "onnxruntime")  # the extra `export`


class Exported(NamedTuple):
    """One file that `export` wrote."""

    path: Path
    part: str
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    """Name of each input -> (dtype, shape of one sample)."""
    difference: float
    """Largest absolute difference to the model, over all checked batches."""
    allowed: float
    """What it may be at most: `tolerance` times the largest value, or `tolerance` where that is below 1."""


def export(
    model: BaseAE,
    path: str | Path,
    *,
    format: str = "onnx",
    part: str = "reconstruct",
    condition: bool | Tensor = True,
    tolerance: float = 1e-4,
    opset: int | None = None,
    seed: int = 0,
) -> list[Exported]:
    """Writes a model's deterministic `encode`, `decode` or `reconstruct` as a file with a free batch axis, and checks it.

    Args:
        path: the file; its ending (.onnx, .pt2) may be left away. With part="all" a folder, for one file each.
        format: "onnx" (needs the extra `export`: pip install "aezoo[export]"), or "torch-export", which `torch.export.load` reads with
            torch alone. That reader uses pickle: load such files only from people you trust.
        part: "encoder", "decoder", "reconstruct" or "all".
        condition: whether a model that is told labels or vectors takes them as a second input; False: they are not known. A
            tensor with one row per sample is an example for models that say neither `num_classes` nor `condition_dim`.
        tolerance: largest allowed difference to the model, relative to the largest value, and absolute where that is below 1.
        opset: of ONNX's operators; torch's default if None.
        seed: of the random samples that are compared. The global RNG is left as it was.

    Returns one `Exported` per file. Nothing is written where the check fails. The model stays as it is.
    Raises ValueError for an unknown format or part, for weights that the format cannot hold, for a model that has no counterpart in
    the format, and for a difference above the tolerance; ImportError if a package is missing."""
    choice("format", format, SUFFIX)
    choice("part", part, (*PARTS, "all"))
    number("tolerance", tolerance, "a number above 0", lambda v: v > 0)
    checked_seed(seed)
    if not isinstance(model, BaseAE):
        raise TypeError(
            f"model must be a BaseAE, as create_model and from_pretrained return; got {type(model).__name__}"
        )
    if format == "onnx":
        need_packages()
    elif opset is not None:
        raise ValueError(f"opset={opset!r} is of ONNX; format={format!r} has none")
    files = _files(Path(path).expanduser(), format, part)
    frozen = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    dtype = next(frozen.parameters()).dtype
    if format == "onnx" and dtype != torch.float32:
        raise ValueError(f"the model's weights are {dtype}, and ONNX files are written in float32; pass model.float()")
    written = []
    for one, target in files:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise ValueError(f"{target} is a folder; name a file, or take part='all'")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            made = _export_one(frozen, Path(folder) / target.name, format, one, condition, tolerance, opset, seed)
            for file in sorted(Path(folder).iterdir(), key=lambda p: p.name == target.name):
                os.replace(file, target.parent / file.name)  # the file itself last: beside it may lie large weights
        written.append(made._replace(path=target))
    return written


def need_packages() -> None:
    """Raises ImportError naming what of the extra `export` is not there."""
    missing = []
    for package in EXTRA:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise ImportError(
            f'ONNX files need {", ".join(missing)}: pip install "aezoo[export]" (or: pip install {" ".join(missing)}); '
            "format='torch-export' needs nothing more"
        )


def _files(path: Path, format: str, part: str) -> list[tuple[str, Path]]:
    """(part, file) for each file to write."""
    suffix = SUFFIX[format]
    if part == "all":
        if path.suffix in SUFFIX.values() or path.is_file():
            raise ValueError(f"path={str(path)!r}: part='all' writes one file each, so name a folder")
        return [(one, path / f"{one}{suffix}") for one in PARTS]
    if path.suffix in SUFFIX.values() and path.suffix != suffix:
        raise ValueError(f"path={str(path)!r} does not fit format={format!r}, whose files end in {suffix}")
    return [(part, path if path.suffix == suffix else path.with_name(path.name + suffix))]


# -------------------------------------------------------------------------------------------------- what goes in and out


class Part(nn.Module):
    """One of `PARTS` as a module of its own."""

    def __init__(self, model: BaseAE, part: str):
        super().__init__()
        self.model = model
        self.call: Callable[..., Tensor] = getattr(
            model, {"encoder": "encode", "decoder": "decode", "reconstruct": "reconstruct"}[part]
        )

    def forward(self, first: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.call(first, condition=condition)


def samples(model: BaseAE, n: int, generator: torch.Generator) -> Tensor:
    """n random samples that the model takes, (n, *input_shape): in [0, 1], whole classes in columns of classes, and some entries
    missing where the model takes that."""
    dtype = next(model.parameters()).dtype
    x = torch.rand(n, *model.input_shape, generator=generator)
    flat = x.view(n, -1)
    for i, classes in enumerate(getattr(model.likelihood, "columns", None) or ()):
        if classes:
            flat[:, i] = (flat[:, i] * classes).floor()
    if model.accepts_missing:
        flat[torch.rand(flat.shape, generator=generator) < MISSING] = torch.nan
    return x.to(dtype)


def conditions(model: BaseAE, n: int, given: bool | Tensor, generator: torch.Generator) -> Tensor | None:
    """What the model is told beside n samples, with n rows; None where it is told nothing."""
    if given is False or not model.takes_condition:
        return None
    if isinstance(given, Tensor):
        if given.dim() == 0 or len(given) == 0:
            raise ValueError(
                f"condition has shape {tuple(given.shape)}; an example needs one row per sample, at least one"
            )
        told = given.detach().cpu().repeat(-(-n // len(given)), *[1] * (given.dim() - 1))[:n]
    elif width := getattr(model, "condition_dim", None):
        told = torch.randn(n, width, generator=generator).to(next(model.parameters()).dtype)
    elif classes := getattr(model, "num_classes", None):
        told = torch.randint(classes, (n,), generator=generator)
    else:
        return None
    model.check_condition(told, n)
    return told


def _inputs(
    model: BaseAE, part: str, n: int, condition: bool | Tensor, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """(x or z, condition) for a batch of n. Codes are those of random samples, so that a quantised one is a quantised one."""
    x, told = samples(model, n, generator), conditions(model, n, condition, generator)
    first = model.encode(x, condition=told).contiguous() if part == "decoder" else x
    return (first,) if told is None else (first, told)


# ------------------------------------------------------------------------------------------------------------ one file


@torch.no_grad()
def _export_one(
    model: BaseAE,
    path: Path,
    format: str,
    part: str,
    condition: bool | Tensor,
    tolerance: float,
    opset: int | None,
    seed: int,
) -> Exported:
    generator = torch.Generator().manual_seed(seed)
    module = Part(model, part).eval()
    args = _inputs(model, part, RECORDED, condition, generator)
    program = recorded(module, args)
    if len(args) == 2 and not _used(program, len(args)):  # conditions that this part does not look at
        args, condition = args[:1], False
        program = recorded(module, args)
    names = ["z" if part == "decoder" else "x", "condition"][: len(args)]
    about = {"model": _name(model), "part": part, "aezoo": _version(), "input_shape": list(model.input_shape)}
    if format == "onnx":
        _write_onnx(program, path, names, "z" if part == "encoder" else "recon", about, opset)
    else:
        with quiet():
            torch.export.save(program, path, extra_files={"aezoo.json": json.dumps(about)})
    run = _runner(path, format, names)
    worst, allowed = 0.0, tolerance
    for n in CHECKED:
        batch = _inputs(model, part, n, condition, generator)
        want, got = module(*batch), run(batch)
        if got.shape != want.shape:
            raise ValueError(
                f"{_name(model)}: the exported {part} gives {tuple(got.shape)} instead of {tuple(want.shape)}"
            )
        difference = float((got.double() - want.double()).abs().max())
        allowed = max(allowed, tolerance * float(want.double().abs().max()))
        worst = max(worst, difference) if difference == difference else float("inf")
    if not worst <= allowed:
        raise ValueError(
            f"{_name(model)}: the exported {part} differs from the model by {worst:.3g}, above the {allowed:.3g} that "
            f"tolerance={tolerance:g} allows; nothing was written"
        )
    inputs = {name: (str(a.dtype).removeprefix("torch."), tuple(a.shape[1:])) for name, a in zip(names, args)}
    return Exported(path, part, inputs, worst, allowed)


def recorded(module: Part, args: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The program of `torch.export`, with a free batch axis. Raises ValueError in one line where there is none."""
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in args)
    with quiet():
        try:
            return pruned(torch.export.export(module, args, dynamic_shapes=shapes, strict=False))
        except Exception as error:  # whatever the tracer or the model raises
            raise ValueError(f"{_name(module.model)} has no program of torch.export: {reason(error)}") from error


def pruned(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without what the output does not depend on: terms of the loss that `bottleneck` computes, critics, a codebook's counts."""
    graph, signature = program.graph_module.graph, program.graph_signature
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # says what a cast, as recorded, was given
            graph.erase_node(node)
    graph.eliminate_dead_code()
    kept = (InputKind.USER_INPUT, InputKind.TOKEN)
    idle = {node.name: node for node in graph.nodes if node.op == "placeholder" and not node.users}
    for spec in [s for s in signature.input_specs if s.kind not in kept and s.arg.name in idle]:
        graph.erase_node(idle[spec.arg.name])
        signature.input_specs.remove(spec)
        program.state_dict.pop(spec.target, None)
        program.constants.pop(spec.target, None)
    program.graph_module.recompile()
    program.validate()
    return program


def _used(program: torch.export.ExportedProgram, inputs: int) -> bool:
    """Does anything look at the values of the last of the inputs? Its batch size may stand for that of the first."""
    wanted = program.graph_signature.user_inputs[inputs - 1]
    node = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == wanted)
    return any(user.target is not torch.ops.aten.sym_size.int for user in node.users)


def _write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    names: Sequence[str],
    output: str,
    about: dict[str, Any],
    opset: int | None,
) -> None:
    with quiet():
        try:
            made = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=list(names),
                output_names=[output],
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:
            raise ValueError(f"{about['model']} has no counterpart in ONNX: {reason(error)}") from error
        assert made is not None
        for key, value in about.items():
            made.model.metadata_props[f"aezoo.{key}"] = value if isinstance(value, str) else json.dumps(value)
        name_batch(made.model.graph)
        made.save(str(path))


def name_batch(graph: Any) -> None:
    """Calls the free axis "batch" in the shapes of an ONNX graph, and what is computed from it accordingly ("2*batch")."""
    symbol = str(graph.inputs[0].shape[0])
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        for i, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                value.shape[i] = re.sub(rf"\b{re.escape(symbol)}\b", "batch", size.value)


def _runner(path: Path, format: str, names: Sequence[str]) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """Inputs -> output, by what stands in the file alone."""
    if format == "torch-export":
        with quiet():
            module = torch.export.load(path).module()
        return lambda batch: module(*batch)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"onnxruntime cannot run the file: {reason(error)}") from error

    def run(batch: tuple[Tensor, ...]) -> Tensor:
        fed = {name: value.numpy() for name, value in zip(names, batch)}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings and log lines, of which none is for the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


def reason(error: BaseException) -> str:
    """What an exporter's error says, in one line: the first line of the error at the bottom of the chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    if len(lines) > 1 and lines[0].startswith("Constraints violated"):
        lines = lines[1:]  # the line that says which
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _name(model: BaseAE) -> str:
    return model.name or type(model).__name__


def _version() -> str:
    from . import __version__

    return __version__
