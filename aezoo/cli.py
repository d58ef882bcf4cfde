"""The `aezoo` command: list, info, train, evaluate, reconstruct, sample.

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
from typing import Any

from . import recipes
from .cli_convert import command_convert
from .cli_export import command_export
from .cli_find import built, command_find_batch, command_find_lr
from .cli_hub import command_card, command_pull, command_push
from .cli_prior import command_fit_prior
from .cli_zoo import command_zoo
from .flags import command_parser, data_options, describe, parse, run_file, summary, train_config, train_help
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
    config, name, resume = train_config(argv)
    model, source = built(config, resume)
    train = dict(config["train"])
    train["out"] = train["out"] or _fresh(Path("runs") / name)
    fit(model, source, resume=resume, **train)


def _fresh(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that is not there yet."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


# ------------------------------------------------------------------------------------- evaluate, reconstruct, sample


def command_evaluate(argv: Sequence[str]) -> None:
    """How good a run is, on held-out data: aezoo evaluate RUN [--data SOURCE --data.KEY VALUE] [--metrics "ssim,active_units"] [--log_prob 5000]"""
    from .data import load_data
    from .evaluation import evaluate, table
    from .hub import from_pretrained
    from .metrics import described
    from .storage import sha256, write_json

    parser = command_parser(
        "evaluate",
        "Evaluates a run's best weights: on the test split of its data, or on what it held out. Prints one table and writes it to "
        "RUN/evaluation.json.",
    )
    parser.add_argument("run", nargs="?", default=None)
    parser.add_argument("--list", action="store_true", help="say what metrics there are")
    parser.add_argument("--data", default=None, help="another source than the run's own")
    parser.add_argument(
        "--metrics",
        default=None,
        help="names or patterns with commas between, as in 'ssim,active_units' (default: what fits and is cheap)",
    )
    parser.add_argument(
        "--log_prob", type=int, default=0, help="importance samples for the log-likelihood (0: leave it out)"
    )
    parser.add_argument(
        "--samples", type=int, default=None, help="draws from the prior to compare with (default: one for each sample)"
    )
    parser.add_argument(
        "--features", default="pixels", help="what samples are compared by: pixels, fashion or inception"
    )
    parser.add_argument("--batch_size", type=int, default=512, help="samples taken at once, 512 at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    argv, options = data_options(argv)
    o = parse(parser, argv)
    if o.list:
        print(described())
        return
    if o.run is None:
        raise ValueError(
            "evaluate needs the folder of a run: aezoo evaluate runs/NAME (aezoo evaluate --list: what there is)"
        )
    run_file(o.run, "config.json")
    model = from_pretrained(o.run)
    if o.data is not None:
        shape = model.input_shape
        if Path(o.data).is_dir() and len(shape) == 3 and shape[0] in (1, 3):
            options = {"size": tuple(shape[1:]), "channels": shape[0], **options}  # pictures are fitted to the model
        source, what = load_data(o.data, **options), f"all of {o.data}"
    else:
        source, what = _held_out(recipes.read(run_file(o.run, "config.yaml")))
    metrics = evaluate(
        model, source, metrics=o.metrics, batch_size=o.batch_size, seed=o.seed, device=o.device, log_prob=o.log_prob,
        samples=o.samples, features=o.features, train=_trained_on(o.run) if o.data is None else None,
    )  # fmt: skip
    print(f"{model.name} of {o.run} on {what} ({model.units} for its terms; ± standard error)")
    print(table(metrics))
    weights = sha256(run_file(o.run, "model.safetensors"))  # a card must not show figures of others
    told = {"data": what, "seed": o.seed, "weights": weights, "metrics": _without_nan(metrics)}
    write_json(Path(o.run) / "evaluation.json", told)


def _without_nan(metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """JSON has no NaN: null stands for it."""
    return {name: {k: None if v != v else v for k, v in value.items()} for name, value in metrics.items()}


def _trained_on(run: str) -> Any:
    """What a run was trained on, as `load_data` takes it, where it is judged on the test split of that data set."""
    from .data import DATASETS

    data = recipes.read(run_file(run, "config.yaml")).get("data", {})
    if data.get("source") not in DATASETS or Path(data["source"]).exists():
        return None
    return data


def _held_out(config: dict[str, dict[str, Any]]) -> tuple[Any, str]:
    """The test split of a registered data set; else what the run held out for validation; else, saying so, all of it."""
    from .data import DATASETS, load_data

    data, train = config.get("data", {}), config.get("train", {})
    if data.get("source") is None:
        raise ValueError("the run's data was given in Python; pass --data")
    if data["source"] in DATASETS and not Path(data["source"]).exists():
        return load_data({**data, "split": "test", "limit": None}), f"the test split of {data['source']}"
    source = load_data(data)
    if isinstance(train.get("val"), float):
        return source.split(train["val"], train.get("seed", 0))[1], f"the part of {data['source']} held out in training"
    return source, f"all of {data['source']}, which it was trained on"


def command_reconstruct(argv: Sequence[str]) -> None:
    """Send images through a model: aezoo reconstruct RUN IMAGES... --out DIR"""
    import torch

    from .data import load_data
    from .data.files import IMAGE_ENDINGS, read_image
    from .hub import from_pretrained
    from .pictures import is_image, reconstructions, save_image

    parser = command_parser(
        "reconstruct", "Writes each image's reconstruction to DIR, and one picture of all of them side by side."
    )
    parser.add_argument("run")
    parser.add_argument(
        "images", nargs="+", help="image files or folders of them; arrays (.npy, .csv, ...) for other models"
    )
    parser.add_argument("--out", default="reconstructions", help="folder for the results")
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    model = from_pretrained(o.run)
    files: list[Path] = []
    for text in o.images:
        path = Path(text)
        if not path.exists():
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise FileNotFoundError(f"no file {text!r}.{nearest(path.name, beside)}")
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{text!r} holds no image ({', '.join(IMAGE_ENDINGS)})")
        files += found
    pictures = [p for p in files if p.suffix.lower() in IMAGE_ENDINGS]
    shape = model.input_shape
    size = (shape[-2], shape[-1]) if len(shape) in (2, 3) and is_image(shape) else None
    channels = shape[0] if len(shape) == 3 else 1
    if pictures and (size is None or channels not in (1, 3)):
        raise ValueError(f"{pictures[0]} is an image, but {model.name} of {o.run} takes samples of shape {shape}")
    out = Path(o.out)
    targets = _targets(out, pictures)
    inputs = {p.resolve() for p in files}
    clash = [t for t in [*targets, out / "comparison.png"] if t.resolve() in inputs]
    if clash:
        raise ValueError(f"--out {o.out} would overwrite the input {clash[0]}; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        if pictures:
            x = (
                torch.stack([read_image(p, size, channels) for p in pictures])
                .to(next(model.parameters()).dtype)
                .div(255)
            )
            x = x.view(-1, *shape)
            model.likelihood.check(float(x.min()), float(x.max()))
            y = torch.cat([model.reconstruct(part) for part in x.split(256)])
            for target, image in zip(targets, y):
                save_image(image, target)
            error = (y - x).square().nanmean()
            reconstructions(
                out / "comparison.png",
                {"input": x[:10], "output": y[:10]},
                f"{model.name}: mean squared error {error:.4f}",
            )
            fitted = sum(1 for p in pictures if _size_of(p) != size)
            note = f"; {fitted} of other sizes were fitted to {size[0]}x{size[1]}" if fitted and size else ""
            print(f"{len(pictures)} reconstructions and comparison.png in {out}, mean squared error {error:.4f}{note}")
        for path in (p for p in files if p not in pictures):
            import numpy as np

            source = load_data(path).reshaped(shape)
            source.check(model.likelihood.support, model.accepts_missing)
            x = source.peek(len(source), torch.device("cpu"), next(model.parameters()).dtype).x
            y = torch.cat([model.reconstruct(part) for part in x.split(256)])
            np.save(out / f"{path.stem}.npy", y.numpy())
            print(f"{out / f'{path.stem}.npy'}: {len(y)} samples, mean squared error {(y - x).square().nanmean():.4g}")


def _targets(out: Path, pictures: Sequence[Path]) -> list[Path]:
    """Where each picture's reconstruction goes: its name as .png, numbered where two would be the same."""
    taken: set[Path] = {out / "comparison.png"}
    targets = []
    for path in pictures:
        target, number = out / f"{path.stem}.png", 1
        while target in taken:
            number += 1
            target = out / f"{path.stem}-{number}.png"
        taken.add(target)
        targets.append(target)
    return targets


def _size_of(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.height, image.width


def command_sample(argv: Sequence[str]) -> None:
    """Draw new samples: aezoo sample RUN -n 64"""
    import torch

    from .hub import from_pretrained
    from .pictures import is_image, samples

    parser = command_parser("sample", "Draws samples from a generative model and writes them as one picture.")
    parser.add_argument("run")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="picture to write, by default RUN/samples.png")
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    model = from_pretrained(o.run)
    with torch.no_grad():
        x = model.sample(o.n, generator=torch.Generator().manual_seed(o.seed))
    out = Path(o.out) if o.out else Path(o.run) / "samples.png"
    out = out if out.suffix else out.with_suffix(".png")
    out.parent.mkdir(parents=True, exist_ok=True)
    samples(out, x, x.clamp(0, 1) if model.likelihood.support or (x.min() > -0.5 and x.max() < 1.5) else x)
    print(f"{o.n} samples in {out}")
    if not is_image(x.shape[1:]):
        import numpy as np

        np.save(out.with_suffix(".npy"), x.numpy())
        print(f"the picture shows at most 8 of them; all are in {out.with_suffix('.npy')}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": command_list,
    "zoo": command_zoo,
    "info": command_info,
    "train": command_train,
    "sweep": command_sweep,
    "evaluate": command_evaluate,
    "reconstruct": command_reconstruct,
    "sample": command_sample,
    "fit-prior": command_fit_prior,
    "export": command_export,
    "card": command_card,
    "push": command_push,
    "pull": command_pull,
    "find-lr": command_find_lr,
    "find-batch": command_find_batch,
    "convert": command_convert,
}
