"""The command that shows a run as one HTML page: report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..flags import command_parser, data_options, parse


def command_report(argv: Sequence[str]) -> None:
    """A run as one HTML page, complete in itself: aezoo report RUN [--data SOURCE --data.KEY VALUE] [--out FILE.html]"""
    from ..reporting import report
    from ..runs import other_data, read_model

    parser = command_parser(
        "report",
        "Writes RUN/report.html: curves, reconstructions, errors, samples, the latent space, what is special about the model, speed and "
        "configuration. Everything lies in the one file. A run that was stopped, or is still training, is shown as far as it came.",
    )
    parser.add_argument("run")
    parser.add_argument("--data", default=None, help="another source than the run's own held-out data")
    parser.add_argument("--out", default=None, help="file to write, by default RUN/report.html")
    parser.add_argument("--samples", type=int, default=1000, help="held-out samples to look at, at most")
    parser.add_argument("--seed", type=int, default=0)
    argv, options = data_options(argv)
    o = parse(parser, argv)
    if options and o.data is None:
        raise ValueError(f"--data.{next(iter(options))} goes with --data SOURCE")
    data: Any = None
    if o.data is not None and Path(o.run).is_dir():
        data = other_data(read_model(Path(o.run)).model, o.data, options)[0]
    path = report(o.run, data=data, out=o.out, samples=o.samples, seed=o.seed)
    print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB, complete in itself")
