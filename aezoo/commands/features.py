"""The command that writes codes, and tells what they tell of labels: features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import recipes
from ..flags import command_parser, data_options, parse, run_file
from ..runs import held_out, training_split


def command_features(argv: Sequence[str]) -> None:
    """Codes as features, and what they tell of labels: aezoo features RUN [--data SOURCE] [--layer encoder.2] --out codes.npz"""
    from ..data import data_for
    from ..hub import from_pretrained
    from ..tasks.features import features, probe_report

    parser = command_parser(
        "features",
        "Writes the codes of a run's model (x) and the labels (y) to a file that load_data reads, and prints in one line what a linear probe, "
        "10 nearest neighbours and k-means make of them. Data: the test split of a named data set, with the probes fitted to the "
        "training split, which is written, too (x_fit, y_fit); else what the run held out, or --data, with the probes fitted to one half.",
    )
    parser.add_argument("run")
    parser.add_argument("--data", type=str | None, default=None, help="another source than the run's own")
    parser.add_argument(
        "--layer", type=str | None, default=None, help="a submodule, as in encoder.2, instead of the code"
    )
    parser.add_argument("--pool", type=str, default="none", help="none, or mean: over all axes behind the channels")
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--out", type=str, default="codes.npz", help="a file that ends in .npz")
    argv, options = data_options(argv)
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    out = Path(o.out).expanduser()
    out = out if out.suffix else out.with_suffix(".npz")
    if out.suffix.lower() != ".npz":
        raise ValueError(f"--out {o.out} must end in .npz")
    model = from_pretrained(o.run)
    if o.data is not None:
        source, what, fit = data_for(model.input_shape, o.data, **options), f"all of {o.data}", None
    else:
        if options:
            raise ValueError(f"--data.{next(iter(options))} goes with --data")
        source, what = held_out(recipes.read(run_file(o.run, "config.yaml")))
        fit = training_split(recipes.read(run_file(o.run, "config.yaml")))

    def read(data: Any) -> tuple[Any, Any]:
        return features(
            model, data, o.layer, pool=o.pool, labels=True, batch_size=o.batch_size, device=o.device, seed=o.seed
        )

    z, y = read(source)
    arrays = {"x": z, **({} if y is None else {"y": y})}
    z_fit = y_fit = None
    if fit is not None and y is not None:
        z_fit, y_fit = read(fit)
        arrays |= {"x_fit": z_fit, **({} if y_fit is None else {"y_fit": y_fit})}
    _save(out, arrays)
    print(
        f"{out}: x {tuple(z.shape)}, {o.layer or 'the codes'} of {model.name} on {what}{'' if y is None else ', and labels y'}"
    )
    if y is None or y.dim() != 1 or y.is_floating_point():
        has = "no labels" if y is None else f"labels of shape {tuple(y.shape)} and {y.dtype}"
        print(f"no report: it takes one whole-number label for each sample, and the data has {has}")
    elif len(y) < 4:
        print(f"no report: {len(y)} samples are too few")
    elif z_fit is not None and y_fit is not None:
        print(probe_report(z_fit, y_fit, z, y, seed=o.seed)[1])
    else:
        print(probe_report(z, y, seed=o.seed)[1])


def _save(out: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **{name: t.float().numpy() if t.is_floating_point() else t.numpy() for name, t in arrays.items()})
