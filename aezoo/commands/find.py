"""Commands that prepare a run: find-lr, find-batch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from ..flags import command_parser, parse, train_config
from ..randomness import checked_seed
from ..registry import create_model


def data_of(config: dict[str, dict[str, Any]], resume: bool = False) -> Any:
    """The source of a complete configuration; torch's generator is seeded with its seed. Raises ValueError without data."""
    import torch

    from ..data import load_data

    if config["data"].get("source") is None:
        given = (
            " (this run's data was given in Python: resume it there with aezoo.fit(..., resume=True))" if resume else ""
        )
        raise ValueError(f"no data: pass --data with a folder, a file or a registered name{given}")
    source = load_data(config["data"])
    torch.manual_seed(checked_seed(config["train"]["seed"]))
    return source


def built(config: dict[str, dict[str, Any]], resume: bool = False) -> tuple[Any, Any]:
    """(model, source) of a complete configuration; the weights depend on its seed. Raises ValueError without data."""
    source = data_of(config, resume)
    options = dict(config["model"])
    kind = options.pop("name")
    shape = options.pop("input_shape", None) or source.shape
    return create_model(kind, input_shape=shape, **options), source


def _split(argv: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the command's own flags with their values, all else)."""
    mine, rest, left = [], [], list(argv)
    while left:
        item = left.pop(0)
        if item.partition("=")[0] in own:
            mine += [item] if "=" in item else [item, *left[:1]]
            left = left if "=" in item else left[1:]
        else:
            rest.append(item)
    return mine, rest


def command_find_lr(argv: Sequence[str]) -> None:
    """A learning rate by a range test: aezoo find-lr [RECIPE|FILE.yaml] [flags as train] [--picture lr.png]"""
    from ..train.range_test import find_lr

    parser = command_parser(
        "find-lr",
        "Trains a copy of the model while the rate rises, and says where the loss fell fastest. Takes aezoo train's flags, too.",
    )
    parser.add_argument("--lowest", type=float, default=1e-7)
    parser.add_argument("--highest", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--picture", default=None, help="file to draw loss over rate to")
    if {"-h", "--help"} & set(argv):
        print(parser.format_help())
        return
    mine, rest = _split(argv, ("--lowest", "--highest", "--steps", "--picture"))
    o = parse(parser, mine)
    config, _, resume = train_config(rest)
    model, source = built(config, resume)
    taken = {k: v for k, v in config["train"].items() if k in inspect.signature(find_lr).parameters and k != "steps"}
    if taken["batch_size"] == "auto":
        from ..train.find import find_batch_size

        taken["batch_size"] = find_batch_size(model, source, optimizer=taken["optimizer"], device=taken["device"])
    result = find_lr(model, source, lowest=o.lowest, highest=o.highest, steps=o.steps, **taken)
    bottom = result.losses.index(min(result.losses))
    print(
        f"{model.name}: the loss fell from {result.losses[0]:.5g} to {result.losses[bottom]:.5g} at lr {result.lrs[bottom]:.2g}, "
        f"fastest at {result.suggestion:.2g} ({len(result.lrs)} rates up to {result.lrs[-1]:.2g})"
    )
    if o.picture:
        print(f"picture: {result.plot(o.picture)}")
    print(f"pass --train.lr {result.suggestion:.2g}")


def command_find_batch(argv: Sequence[str]) -> None:
    """The largest batch that fits into memory: aezoo find-batch [RECIPE|FILE.yaml] [flags as train] [--headroom 0.8]"""
    from ..train.find import said, search

    parser = command_parser(
        "find-batch",
        "Tries batch sizes in processes of their own and prints the largest that fits. Takes aezoo train's flags, too.",
    )
    parser.add_argument("--headroom", type=float, default=0.8, help="fraction of the memory that may be used")
    parser.add_argument("--largest", type=int | None, default=None, help="try no larger size")
    if {"-h", "--help"} & set(argv):
        print(parser.format_help())
        return
    mine, rest = _split(argv, ("--headroom", "--largest"))
    o = parse(parser, mine)
    config, _, resume = train_config(rest)
    model, source = built(config, resume)
    taken = {k: config["train"][k] for k in ("optimizer", "recompute", "device", "precision")}
    found = search(model, source, headroom=o.headroom, largest=o.largest, **taken)
    print(f"{model.name}: {said(found)}")
    print(f"pass --train.batch_size {found.batch_size}")
