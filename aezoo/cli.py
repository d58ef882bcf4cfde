"""The `aezoo` command: list, info, train, evaluate, reconstruct, sample.

`train` has no list of options of its own: `--model.KEY`, `--data.KEY` and `--train.KEY` are the keywords of the model's class, of
`load_data` and of `fit`, in YAML as on the command line.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import recipes
from .registry import MODELS, belongs_to, create_model, list_models, nearest, signature

DEFAULT_RECIPE = "fashion"
NOT_FLAGS = {"model": ("self",), "data": ("source",), "train": ("model", "data", "callbacks", "resume")}


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
        if argv[0] not in COMMANDS:
            raise ValueError(f"no command {argv[0]!r}; commands: {', '.join(COMMANDS)}.{nearest(argv[0], COMMANDS)}")
        COMMANDS[argv[0]](argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if debug:
            raise
        print(f"aezoo: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _usage() -> str:
    lines = ["usage: aezoo COMMAND ...", ""]
    lines += [f"  {name:<12}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "aezoo COMMAND --help says more. AEZOO_TRACEBACK=1 shows where an error comes from."])


def _parser(command: str, text: str) -> Any:
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"aezoo {command}", description=text, exit_on_error=False, add_help=True)


def _parse(parser: Any, argv: Sequence[str]) -> Any:
    """parse_args with argparse's complaints as ValueError in one line."""
    from argparse import ArgumentError

    try:
        return parser.parse_args(list(argv))
    except ArgumentError as error:
        text = str(error)
        key = re.search(r'Parser key "([^"]+)"', text)
        if key is None:
            flag = re.search(r"[Uu]nrecognized arguments: (\S+)", text)
            known = [s for a in parser._actions for s in a.option_strings]
            raise ValueError(" ".join(text.split()) + (nearest(flag[1].split("=")[0], known) if flag else "")) from None
        values = [v.split("=", 1)[1] for v in argv if v.startswith(f"--{key[1]}=")]
        kind = next((getattr(a, "_typehint", a.type) for a in parser._actions if a.dest == key[1]), None)
        takes = _words(kind).replace(" | None", "")
        given = f"={values[-1]}" if values else ""
        raise ValueError(f"--{key[1]}{given} is not valid; it takes {takes}") from None


# ------------------------------------------------------------------------------------------------------------ list, info


def command_list(argv: Sequence[str]) -> None:
    """The models of the zoo: aezoo list [PATTERN]"""
    parser = _parser("list", "Names, papers and one line on each model whose name fits the pattern.")
    parser.add_argument("pattern", nargs="?", default="*", help="as in '*vae*'")
    pattern = _parse(parser, argv).pattern
    names = list_models(pattern)
    if not names:
        raise ValueError(
            f"no model fits {pattern!r}; models: {', '.join(list_models())}.{nearest(pattern.strip('*'), list_models())}"
        )
    wide, paper = max(map(len, names)), max(len(MODELS[n].paper) for n in names)
    for name in names:
        print(f"{name:<{wide}}  {MODELS[name].paper:<{paper}}  {_summary(MODELS[name])}")


def _summary(cls: type) -> str:
    """The first sentence of a docstring."""
    text = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[.:]) (?=[A-Z])|:$", text)[0].rstrip(":.").split(": ")[0]


def command_info(argv: Sequence[str]) -> None:
    """One model: formula, paper, size, units, keywords: aezoo info NAME"""
    parser = _parser("info", "What a model is, its number of parameters, its units and its keywords.")
    parser.add_argument("name", help="as aezoo list prints it")
    parser.add_argument(
        "--input_shape", type=list[int], default=[1, 28, 28], help="shape of one sample, for the number of parameters"
    )
    options = _parse(parser, argv)
    cls = MODELS[options.name]
    model = create_model(options.name, input_shape=options.input_shape)
    print(f"{options.name}  ({cls.__module__}.{cls.__name__})\n")
    print(inspect.cleandoc(cls.__doc__ or ""))
    print(f"\nparameters   {model.num_parameters:,} at input_shape={model.input_shape}, latent_dim={model.latent_dim}")
    print(f"units        {model.units} (likelihood {model.likelihood.name!r})")
    print(f"samples      {'yes, from its prior' if model.prior is not None else 'no prior'}")
    using = [r for r in recipes.names() if recipes.read(r).get("model", {}).get("name") == options.name]
    print(f"recipes      {', '.join(using) or 'none'}")
    print("keywords     " + "\n             ".join(_keyword(p) for p in signature(cls).parameters.values()))


def _words(annotation: Any) -> str:
    """A type as a reader would write it."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return re.sub(r"\b(typing|collections\.abc|torch|pathlib(\._local)?)\.", "", str(annotation))


def _keyword(p: inspect.Parameter) -> str:
    kind = _words(p.annotation)
    return (
        f"{p.name}"
        + (f" = {p.default!r}" if p.default is not p.empty else "  (required)")
        + (f"   {kind}" if kind != "Any" else "")
    )


# ----------------------------------------------------------------------------------------------------------------- train


def command_train(argv: Sequence[str]) -> None:
    """Train a model: aezoo train [RECIPE|FILE.yaml] [--model.latent_dim 32 --train.epochs 3 --data PATH ...]"""
    import torch

    from .data import load_data
    from .train import fit

    argv = list(argv)
    if "-h" in argv or "--help" in argv:
        print(_train_help(argv))
        return
    config, name, resume = _train_config(argv)
    source = load_data(config["data"]) if config["data"].get("source") is not None else None
    if source is None:
        raise ValueError(
            "no data: pass --data with a folder, a file or a registered name"
            + (
                " (this run's data was given in Python: resume it there with aezoo.fit(..., resume=True))"
                if resume
                else ""
            )
        )
    torch.manual_seed(config["train"]["seed"])
    model_options = dict(config["model"])
    kind = model_options.pop("name")
    shape = model_options.pop("input_shape", None) or source.shape
    model = create_model(kind, input_shape=shape, **model_options)
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


def _keys(section: str, model: str) -> dict[str, inspect.Parameter]:
    """The keywords that a section takes, with resolved annotations."""
    from .data import load_data
    from .train import fit

    target: Any = {"data": load_data, "train": fit}.get(section)
    if target is None:
        parameters = dict(signature(MODELS[model]).parameters)
    else:
        hints = typing.get_type_hints(target)
        parameters = {k: p.replace(annotation=hints[k]) for k, p in inspect.signature(target).parameters.items()}
    return {k: p for k, p in parameters.items() if k not in NOT_FLAGS[section]}


def _split_flags(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Positional words, and (flag, value) pairs; --model X, --data X and --out X are written out."""
    words, flags = [], []
    rest = list(argv)
    while rest:
        item = rest.pop(0)
        if not item.startswith("--"):
            words.append(item)
            continue
        flag, equals, value = item[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                value = "true"
            else:
                value = rest.pop(0)
        flag = {"model": "model.name", "data": "data.source", "out": "train.out"}.get(flag, flag)
        flags.append((flag, value))
    return words, flags


def _train_config(argv: Sequence[str]) -> tuple[dict[str, dict[str, Any]], str, bool]:
    """(complete configuration, name for the run folder, whether to resume) from recipe, file and flags."""
    words, flags = _split_flags(argv)
    if len(words) > 1:
        raise ValueError(f"train takes one recipe or file; got {', '.join(words)} (flags start with --)")
    resume = next((value for flag, value in flags if flag == "resume"), None)
    flags = [(f, v) for f, v in flags if f != "resume"]
    if resume is not None:
        if words:
            raise ValueError(f"--resume {resume} goes on with that run's own configuration; leave {words[0]!r} out")
        base = recipes.read(_run_file(resume, "config.yaml"))
        flags.append(("train.out", resume))
        name = resume
    else:
        name = words[0] if words else DEFAULT_RECIPE
        base = recipes.read(name)
        name = Path(name).stem
    given = {s: dict(base.get(s, {})) for s in recipes.SECTIONS}
    model = next((v for f, v in flags if f == "model.name"), None)
    if model is not None:
        name = model
        if model != given["model"].get("name"):
            given["model"] = {"name": model}  # another model's keywords would not fit
    source = next((v for f, v in flags if f == "data.source"), None)
    if source is not None and source != given["data"].get("source"):
        given["data"] = {"source": source}
        given["model"].pop("input_shape", None)
        given["train"].pop("batch_size", None)  # was chosen for other data, which may be larger
        name = f"{name}-{Path(source).stem}"
    if "name" not in given["model"]:
        raise ValueError(
            f"no model is named: write 'model: NAME' or pass --model NAME; models: {', '.join(list_models())}"
        )
    MODELS[given["model"]["name"]]  # an unknown name ends here

    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if any(f == f"train.{one}" for f, _ in flags):
            given["train"].pop(other, None)  # the flag's way of saying when to stop replaces the recipe's

    texts: dict[str, str] = {}
    allowed = {s: _keys(s, given["model"]["name"]) for s in recipes.SECTIONS}
    for section in recipes.SECTIONS:
        short = recipes.SHORT.get(section)
        for key, value in given[section].items():
            if key not in allowed[section] and key != short and key != "note":
                raise ValueError(
                    f"{section} takes no key {key!r}; allowed: {', '.join(allowed[section])}.{_near(key, section, allowed)}"
                )
            if key not in (short, "note"):
                texts[f"{section}.{key}"] = value if isinstance(value, str) else json.dumps(value)
    for flag, value in flags:
        section, _, key = flag.partition(".")
        if section not in recipes.SECTIONS or not key:
            every = [f"{s}.{k}" for s in recipes.SECTIONS for k in allowed[s]]
            ends = [e for e in every if e.endswith(f".{flag}")]
            hint = (
                f" Did you mean '--{ends[0]}'?" if ends else nearest(flag, [*every, "model", "data", "out", "resume"])
            )
            raise ValueError(
                f"no flag '--{flag}'; flags are --model, --data, --out, --resume, --model.KEY, --data.KEY, --train.KEY.{hint}"
            )
        if key == recipes.SHORT.get(section):
            continue
        if key not in allowed[section]:
            raise ValueError(
                f"--{flag}: {section} takes no {key!r}; allowed: {', '.join(allowed[section])}.{_near(key, section, allowed)}"
            )
        texts[flag] = value

    parser = _train_parser(allowed)
    parsed = _parse(parser, [f"--{flag}={value}" for flag, value in texts.items()]).as_dict()
    config = {s: dict(parsed.get(s, {})) for s in recipes.SECTIONS}
    config["model"]["name"] = given["model"]["name"]
    config["data"]["source"] = given["data"].get("source")
    return config, name, resume is not None


def _near(key: str, section: str, allowed: dict[str, dict[str, Any]]) -> str:
    if key in ("l2", "l2_weight") and section == "train":
        return " The L2 penalty is train.weight_decay."
    for other in recipes.SECTIONS:
        if other != section and key in allowed[other]:
            return f" Did you mean {f'{other}.{key}'!r}?"
    return nearest(key, allowed[section]) or (belongs_to(key, allowed[section]) if section == "model" else "")


def _train_parser(allowed: dict[str, dict[str, inspect.Parameter]]) -> Any:
    parser = _parser("train", "")
    for section, parameters in allowed.items():
        for key, p in parameters.items():
            default = None if p.default is p.empty else p.default
            if key == "input_shape":
                parser.add_argument(
                    "--model.input_shape", type=list[int] | None, default=None, help="by default the data's"
                )
            elif p.annotation is inspect.Parameter.empty or p.annotation is Any:
                parser.add_argument(f"--{section}.{key}", type=Any, default=default)
            else:
                parser.add_argument(f"--{section}.{key}", type=p.annotation, default=default)
    return parser


def _train_help(argv: Sequence[str]) -> str:
    """Usage, and every flag with its default, for the model that the flags or the recipe name."""
    words, flags = _split_flags([a for a in argv if a not in ("-h", "--help")])
    name = next((v for f, v in flags if f == "model.name"), None)
    name = name or recipes.read(words[0] if words else DEFAULT_RECIPE)["model"]["name"]
    lines = [
        "usage: aezoo train [RECIPE|FILE.yaml] [--model NAME] [--data SOURCE] [--out DIR] [--resume RUN] [--SECTION.KEY VALUE ...]",
        f"\nrecipes: {', '.join(recipes.names())} (default: {DEFAULT_RECIPE})",
    ]
    for section in recipes.SECTIONS:
        title = {"model": f"--model.KEY, keywords of {name}", "data": "--data.KEY", "train": "--train.KEY"}[section]
        lines.append(f"\n{title}:")
        lines += [f"  {_keyword(p)}" for p in _keys(section, name).values()]
    return "\n".join(
        [*lines, "\naezoo info NAME explains a model's keywords; help(aezoo.fit) and help(aezoo.load_data) the others."]
    )


# ------------------------------------------------------------------------------------- evaluate, reconstruct, sample


def _run_file(run: str, name: str) -> Path:
    """A file of a run folder. Raises FileNotFoundError with the nearest folder name."""
    folder = Path(run)
    if not folder.is_dir():
        beside = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise FileNotFoundError(f"no run folder {run!r}.{nearest(run, beside)}")
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{run!r} is no run folder: it holds no {name}")
    return folder / name


def command_evaluate(argv: Sequence[str]) -> None:
    """Figures on held-out data: aezoo evaluate RUN [--data SOURCE] [--log_prob 5000]"""
    from .data import load_data
    from .evaluation import evaluate, table
    from .hub import from_pretrained
    from .storage import write_json

    parser = _parser(
        "evaluate", "Evaluates a run's best weights: on the test split of its data, or on what it held out."
    )
    parser.add_argument("run")
    parser.add_argument("--data", default=None, help="another source than the run's own")
    parser.add_argument(
        "--log_prob", type=int, default=0, help="importance samples for the log-likelihood (0: leave it out)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    o = _parse(parser, argv)
    config = recipes.read(_run_file(o.run, "config.yaml"))
    model = from_pretrained(o.run)
    if o.data is not None:
        source, what = load_data(o.data), f"all of {o.data}"
    else:
        source, what = _held_out(config)
    metrics = evaluate(model, source, seed=o.seed, device=o.device, log_prob=o.log_prob)
    print(f"{model.name} of {o.run} on {what} ({model.units} for its terms; ± standard error)")
    print(table(metrics))
    write_json(Path(o.run) / "evaluation.json", {"data": what, "seed": o.seed, "metrics": metrics})


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

    parser = _parser(
        "reconstruct", "Writes each image's reconstruction to DIR, and one picture of all of them side by side."
    )
    parser.add_argument("run")
    parser.add_argument(
        "images", nargs="+", help="image files or folders of them; arrays (.npy, .csv, ...) for other models"
    )
    parser.add_argument("--out", default="reconstructions", help="folder for the results (default: reconstructions)")
    o = _parse(parser, argv)
    _run_file(o.run, "config.json")
    model = from_pretrained(o.run)
    files: list[Path] = []
    for text in o.images:
        path = Path(text)
        if not path.exists():
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise FileNotFoundError(f"no file {text!r}.{nearest(path.name, beside)}")
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_ENDINGS) if path.is_dir() else [path]
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
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        if pictures:
            x = torch.stack([read_image(p, size, channels) for p in pictures]).float().div(255).view(-1, *shape)
            model.likelihood.check(float(x.min()), float(x.max()))
            y = torch.cat([model.reconstruct(part) for part in x.split(256)])
            written: dict[Path, int] = {}
            for path, image in zip(pictures, y):
                target = out / f"{path.stem}.png"
                written[target] = written.get(target, 0) + 1
                save_image(image, target if written[target] == 1 else out / f"{path.stem}-{written[target]}.png")
            error = (y - x).square().mean()
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
            source.check(model.likelihood.support)
            x = source.peek(len(source), torch.device("cpu"), next(model.parameters()).dtype).x
            y = torch.cat([model.reconstruct(part) for part in x.split(256)])
            np.save(out / f"{path.stem}.npy", y.numpy())
            print(f"{out / f'{path.stem}.npy'}: {len(y)} samples, mean squared error {(y - x).square().mean():.4g}")


def _size_of(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.height, image.width


def command_sample(argv: Sequence[str]) -> None:
    """Draw new samples: aezoo sample RUN -n 64"""
    import torch

    from .hub import from_pretrained
    from .pictures import samples

    parser = _parser("sample", "Draws samples from a generative model and writes them as one picture.")
    parser.add_argument("run")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="picture to write (default: RUN/samples.png)")
    o = _parse(parser, argv)
    _run_file(o.run, "config.json")
    model = from_pretrained(o.run)
    with torch.no_grad():
        x = model.sample(o.n, generator=torch.Generator().manual_seed(o.seed))
    out = Path(o.out) if o.out else Path(o.run) / "samples.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    samples(out, x, x.clamp(0, 1) if model.likelihood.support or (x.min() > -0.5 and x.max() < 1.5) else x)
    print(f"{o.n} samples in {out}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": command_list,
    "info": command_info,
    "train": command_train,
    "evaluate": command_evaluate,
    "reconstruct": command_reconstruct,
    "sample": command_sample,
}
