"""The `aezoo` command: it reads the name of a command and runs it. list, info and train are here, the others in `commands/`.

`train` has no list of options of its own: `--model.KEY`, `--data.KEY` and `--train.KEY` are the keywords of the model's class, of
`load_data` and of `fit`, in YAML as on the command line.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import recipes
from .commands.compress import command_compress, command_decompress
from .commands.convert import command_convert
from .commands.denoise import command_denoise
from .commands.detect import command_detect
from .commands.evaluate import command_evaluate
from .commands.export import command_export
from .commands.features import command_features
from .commands.find import built, command_find_batch, command_find_lr
from .commands.generate import command_interpolate, command_traverse
from .commands.hub import command_card, command_pull, command_push
from .commands.pictures import command_reconstruct, command_sample
from .commands.play import command_play
from .commands.prior import command_fit_prior
from .commands.report import command_report
from .commands.start import started
from .commands.zoo import command_zoo
from .flags import command_parser, describe, parse, summary, train_config, train_help
from .registry import MODELS, create_model, list_models, nearest, signature
from .sweep import command_sweep


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command. Exit code 0; 2 with one line on stderr for bad input; 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return
    if argv[0] == "--version":
        from . import __version__

        print(f"aezoo {__version__}")
        return
    debug = os.environ.get("AEZOO_TRACEBACK")
    try:
        argv = _import_users(argv)
        if argv[0] not in COMMANDS:
            raise ValueError(f"no command {argv[0]!r}; commands: {', '.join(COMMANDS)}.{nearest(argv[0], COMMANDS)}")
        COMMANDS[argv[0]](argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError, MemoryError) as error:
        if debug:
            raise
        print(f"aezoo: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _import_users(argv: list[str]) -> list[str]:
    """Imports the modules that `--import NAME` names (of the current folder, too), so that models of the user's own are
    registered; returns the other arguments."""
    while "--import" in argv:
        at = argv.index("--import")
        if at + 1 == len(argv):
            raise ValueError("--import needs the name of a module, e.g. --import my_models for my_models.py")
        name = argv[at + 1].removesuffix(".py")
        argv = argv[:at] + argv[at + 2 :]
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            here = [p.stem for p in Path().glob("*.py")]
            raise ValueError(f"--import {name}: no such module.{nearest(name, here)}") from None
    return argv


def _usage() -> str:
    lines = ["usage: aezoo COMMAND ...", ""]
    lines += [f"  {name:<12}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            *lines,
            "",
            "aezoo COMMAND --help says more. --import MODULE registers models of your own. AEZOO_TRACEBACK=1 shows where an error comes from.",
        ]
    )


# ------------------------------------------------------------------------------------------------------------ list, info


def command_list(argv: Sequence[str]) -> None:
    """The models of the zoo: aezoo list [PATTERN]"""
    parser = command_parser("list", "Names, papers and one line on each model whose name fits the pattern.")
    parser.add_argument("pattern", nargs="?", default="*", help="as in '*vae*'")
    pattern = parse(parser, argv).pattern
    names = list_models(pattern) or list_models(f"*{pattern}*")
    if not names:
        raise ValueError(
            f"no model fits {pattern!r}; models: {', '.join(list_models())}.{nearest(pattern.strip('*'), list_models())}"
        )
    wide, paper = max(map(len, names)), max(len(MODELS[n].paper) for n in names)
    for name in names:
        print(f"{name:<{wide}}  {MODELS[name].paper:<{paper}}  {summary(MODELS[name])}")


def command_info(argv: Sequence[str]) -> None:
    """One model: formula, paper, size, units, keywords: aezoo info NAME"""
    parser = command_parser("info", "What a model is, its number of parameters, its units and its keywords.")
    parser.add_argument("name", help="as aezoo list prints it")
    parser.add_argument(
        "--input_shape", type=list[int], default=[1, 28, 28], help="shape of one sample, for the number of parameters"
    )
    options = parse(parser, argv)
    cls = MODELS[options.name]
    model = create_model(options.name, input_shape=options.input_shape)
    print(f"{options.name}  ({cls.__module__}.{cls.__name__})\n")
    print(inspect.cleandoc(cls.__doc__ or ""))
    print(f"\nparameters   {model.num_parameters:,} at input_shape={model.input_shape}, latent_dim={model.latent_dim}")
    print(f"units        {model.units} (likelihood {model.likelihood.name!r})")
    print(f"samples      {'yes, from its prior' if cls.generative else 'no prior'}")
    using = [r for r in recipes.names() if recipes.read(r).get("model", {}).get("name") == options.name]
    print(f"recipes      {', '.join(using) or 'none'}")
    print("keywords     " + "\n             ".join(describe(p) for p in signature(cls).parameters.values()))


# ----------------------------------------------------------------------------------------------------------------- train


def command_train(argv: Sequence[str]) -> None:
    """Train a model: aezoo train [RECIPE|FILE.yaml] [--model.latent_dim 32 --train.epochs 3 --data PATH ...]"""
    from .train import fit

    argv = list(argv)
    if "-h" in argv or "--help" in argv:
        print(train_help(argv))
        return
    resume = False
    if (start := started(argv)) is not None:
        model, source, settings, name = start
    else:
        config, name, resume = train_config(argv)
        model, source = built(config, resume)
        settings = config["train"]
    train = dict(settings)
    train["out"] = train["out"] or _fresh(Path("runs") / name)
    fit(model, source, resume=resume, **train)


def _fresh(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that is not there yet."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": command_list,
    "zoo": command_zoo,
    "info": command_info,
    "train": command_train,
    "sweep": command_sweep,
    "evaluate": command_evaluate,
    "detect": command_detect,
    "reconstruct": command_reconstruct,
    "denoise": command_denoise,
    "sample": command_sample,
    "interpolate": command_interpolate,
    "traverse": command_traverse,
    "features": command_features,
    "report": command_report,
    "play": command_play,
    "fit-prior": command_fit_prior,
    "export": command_export,
    "compress": command_compress,
    "decompress": command_decompress,
    "card": command_card,
    "push": command_push,
    "pull": command_pull,
    "find-lr": command_find_lr,
    "find-batch": command_find_batch,
    "convert": command_convert,
}
