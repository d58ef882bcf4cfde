"""The command `aezoo zoo`: every model, trained by its recipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..flags import command_parser, parse
from ..randomness import checked_seed


def command_zoo(argv: Sequence[str]) -> None:
    """Train every model by its recipe and print what each learned: aezoo zoo --check [PATTERN ...]"""
    from .. import zoo

    parser = command_parser(
        "zoo",
        "Trains each model by its recipe on data that is at hand and prints size, speed, loss and main metric before and after. "
        "Exit code 1 if a model does not learn. Without --check it only names the recipes.",
    )
    parser.add_argument("patterns", nargs="*", default=[], help="names or patterns, as in '*vae*'; by default all")
    parser.add_argument("--check", action="store_true", help="train them: at most 25 minutes for all on two cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", default=None, help="file to put the table into, between its zoo markers")
    o = parse(parser, argv)
    names = zoo.models_fitting(o.patterns)
    if not o.check:
        wide = max(map(len, names))
        for name in names:
            print(f"{name:<{wide}}  aezoo train {zoo.recipe_of(name)}")
        return
    checked_seed(o.seed)
    began, rows = time.perf_counter(), []
    widths = (max(map(len, [*names, "model"])), 14, 12, 7, 10, 20, 34, 4)
    print(_line(zoo.HEAD, widths))
    from tqdm import tqdm

    bar = tqdm(zoo.check(names, o.device, o.seed), total=len(names), unit="model", file=sys.stderr, leave=False)
    for row in bar:
        rows.append(row)
        with bar.external_write_mode(sys.stdout):
            print(_line(zoo.cells(row), widths) + ("" if row.learned else "  DID NOT LEARN"), flush=True)
    line = zoo.hardware_line(o.seed, time.perf_counter() - began, o.device)
    print(line)
    if o.write:
        zoo.write_into(Path(o.write), zoo.as_markdown(rows, line))
    failed = [row.name for row in rows if not row.learned]
    if failed:
        print(f"aezoo: {len(failed)} of {len(rows)} did not learn: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def _line(parts: Sequence[str], widths: Sequence[int]) -> str:
    left = {0, 1, 5, 6}
    return "  ".join(f"{p:<{w}}" if i in left else f"{p:>{w}}" for i, (p, w) in enumerate(zip(parts, widths))).rstrip()
