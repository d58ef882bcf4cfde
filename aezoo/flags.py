"""From a recipe or YAML file and flags to one checked configuration.

Nothing here lists an option: what is allowed, its type and its default are read off the signatures of the model's class, of
`load_data` and of `fit`.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import recipes
from .registry import MODELS, belongs_to, list_models, nearest, signature

DEFAULT_RECIPE = "fashion"
BARE = {"profile": "train.profile", "dry_run": "train.dry_run"}  # flags that need no value and no section
NOT_FLAGS = {"model": (), "data": ("source",), "train": ("model", "data", "callbacks", "resume")}


def command_parser(command: str, text: str) -> Any:
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"aezoo {command}", description=text, exit_on_error=False, add_help=True)


def parse(parser: Any, argv: Sequence[str]) -> Any:
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
        values += [b for a, b in zip(argv, argv[1:]) if a == f"--{key[1]}"]
        kind = next((getattr(a, "_typehint", a.type) for a in parser._actions if a.dest == key[1]), None)
        takes = _words(kind)
        given = f"={values[-1]}" if values else ""
        raise ValueError(f"--{key[1]}{given} is not valid; it takes {takes}") from None


def _words(annotation: Any) -> str:
    """A type as a reader would write it; None among several is left out."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(_words(a) for a in typing.get_args(annotation) if a is not type(None))
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return re.sub(r"\b(typing|collections\.abc|torch|pathlib(\._local)?)\.", "", str(annotation))


def describe(p: inspect.Parameter) -> str:
    kind = _words(p.annotation)
    return (
        f"{p.name}"
        + (f" = {p.default!r}" if p.default is not p.empty else "  (required)")
        + (f"   {kind}" if kind != "Any" else "")
    )


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
    """Positional words, and (flag, value) pairs; --model X, --data X, --out X, --logger X, --profile and --dry_run are written out."""
    words, flags = [], []
    rest = list(argv)
    while rest:
        item = rest.pop(0)
        if not item.startswith("--"):
            words.append(item)
            continue
        flag, equals, value = item[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--") or (flag in BARE and rest[0].lower() not in ("true", "false")):
                if flag in ("model", "data", "out", "resume", "logger"):
                    raise ValueError(f"--{flag} needs a value")
                value = "true"
            else:
                value = rest.pop(0)
        flag = {"model": "model.name", "data": "data.source", "out": "train.out", "logger": "train.logger", **BARE}.get(
            flag, flag
        )
        flags.append((flag, value))
    return words, flags


def train_config(argv: Sequence[str]) -> tuple[dict[str, dict[str, Any]], str, bool]:
    """(complete configuration, name for the run folder, whether to resume) from recipe, file and flags."""
    words, flags = _split_flags(argv)
    if len(words) > 1:
        raise ValueError(f"train takes one recipe or file; got {', '.join(words)} (flags start with --)")
    resume = next((value for flag, value in flags if flag == "resume"), None)
    flags = [(f, v) for f, v in flags if f != "resume"]
    if resume is not None:
        if words:
            raise ValueError(f"--resume {resume} goes on with that run's own configuration; leave {words[0]!r} out")
        base = recipes.read(run_file(resume, "config.yaml"))
        if any(f == "train.out" for f, _ in flags):
            raise ValueError(f"--resume {resume} goes on in that folder; leave --out away")
        flags.append(("train.out", resume))
        name = resume
    else:
        if words and words[0] in MODELS and words[0] not in recipes.names():
            flags.insert(0, ("model.name", words.pop(0)))  # `aezoo train vae` means --model vae
        name = words[0] if words else DEFAULT_RECIPE
        base = recipes.read(name)
        name = Path(name).stem
        if not words and any(
            f == "model.name" for f, _ in flags
        ):  # no recipe is meant: the model's and the loop's own defaults
            base = {"data": base["data"], "train": {"val": 0.1}}
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
                f"no flag '--{flag}'; flags are --model, --data, --out, --resume, --logger, --model.KEY, --data.KEY, --train.KEY.{hint}"
            )
        if key == recipes.SHORT.get(section):
            continue
        if key not in allowed[section]:
            raise ValueError(
                f"--{flag}: {section} takes no {key!r}; allowed: {', '.join(allowed[section])}.{_near(key, section, allowed)}"
            )
        texts[flag] = value

    parser = _train_parser(allowed)
    parsed = parse(parser, [f"--{flag}={value}" for flag, value in texts.items()]).as_dict()
    config = {s: dict(parsed.get(s, {})) for s in recipes.SECTIONS}
    config["model"]["name"] = given["model"]["name"]
    config["data"]["source"] = given["data"].get("source")
    return config, name, resume is not None


def data_options(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """(the other arguments, the keywords of `load_data` that --data.KEY VALUE or --data.KEY=VALUE gave)."""
    allowed, rest, texts = {"data": _keys("data", "")}, list(argv), []
    while at := next((i + 1 for i, a in enumerate(rest) if a.startswith("--data.")), 0):
        flag, equals, value = rest.pop(at - 1)[2:].partition("=")
        if not equals:
            value = rest.pop(at - 1) if at <= len(rest) else "true"
        key = flag.removeprefix("data.")
        if key not in allowed["data"]:
            raise ValueError(
                f"--{flag}: data takes no {key!r}; allowed: {', '.join(allowed['data'])}.{nearest(key, allowed['data'])}"
            )
        texts.append(f"--{flag}={value}")
    if not texts:
        return rest, {}
    parsed = parse(_train_parser(allowed), texts).as_dict()["data"]
    return rest, {k: v for k, v in parsed.items() if any(t.startswith(f"--data.{k}=") for t in texts)}


def _near(key: str, section: str, allowed: dict[str, dict[str, Any]]) -> str:
    if key in ("l2", "l2_weight") and section == "train":
        return " The L2 penalty is train.weight_decay."
    for other in recipes.SECTIONS:
        if other != section and key in allowed[other]:
            return f" Did you mean {f'{other}.{key}'!r}?"
    return nearest(key, allowed[section]) or (belongs_to(key, allowed[section]) if section == "model" else "")


def _train_parser(allowed: dict[str, dict[str, inspect.Parameter]]) -> Any:
    parser = command_parser("train", "")
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


def train_help(argv: Sequence[str]) -> str:
    """Usage, and every flag with its default, for the model that the flags or the recipe name."""
    words, flags = _split_flags([a for a in argv if a not in ("-h", "--help")])
    name = next((v for f, v in flags if f == "model.name"), None)
    name = name or recipes.read(words[0] if words else DEFAULT_RECIPE).get("model", {}).get("name", "vae")
    lines = [
        "usage: aezoo train [RECIPE|FILE.yaml] [--model NAME] [--data SOURCE] [--out DIR] [--resume RUN] [--from MODEL] [--profile] [--dry_run] [--SECTION.KEY VALUE ...]",
        f"\nrecipes: {', '.join(recipes.names())} (default: {DEFAULT_RECIPE})",
    ]
    for section in recipes.SECTIONS:
        title = {"model": f"--model.KEY, keywords of {name}", "data": "--data.KEY", "train": "--train.KEY"}[section]
        lines.append(f"\n{title}:")
        lines += [f"  {describe(p)}" for p in _keys(section, name).values()]
    return "\n".join(
        [*lines, "\naezoo info NAME explains a model's keywords; help(aezoo.fit) and help(aezoo.load_data) the others."]
    )


def run_file(run: str, name: str) -> Path:
    """A file of a run folder. Raises FileNotFoundError with the nearest folder name."""
    folder = Path(run)
    if not folder.is_dir():
        beside = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise FileNotFoundError(f"no run folder {run!r}.{nearest(run, beside)}")
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{run!r} is no run folder: it holds no {name}")
    return folder / name


def summary(cls: type) -> str:
    """The first sentence of a docstring."""
    text = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[.:]) (?=[A-Z])|:$", text)[0].rstrip(":.").split(": ")[0]
