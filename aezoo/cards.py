"""Model cards: the README.md that says what a model is, what it was trained on, how good it is, and how to train it again.

The head is YAML that the hub reads (licence, library, tags, task, data, figures as `model-index`), by huggingface_hub's own classes.
Everything in a card stands in the run folder; paths of this machine do not go into it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path, PureWindowsPath
from typing import Any

from . import recipes
from .base import BaseAE
from .flags import summary
from .hub import CARD, from_pretrained, is_hub_name
from .pictures import is_image
from .registry import nearest
from .storage import WEIGHTS, read_json, sha256, write_bytes

LICENSES = (
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m",
    "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail", "osl-3.0", "other", "pddl",
    "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
)  # fmt: skip
ON_HUB = {  # names of data sets here -> there
    "cifar10": "uoft-cs/cifar10", "fashion-mini": "zalando-datasets/fashion_mnist", "fashion_mnist": "zalando-datasets/fashion_mnist",
    "mnist": "ylecun/mnist",
}  # fmt: skip
METRICS = {"mse": "mean squared error per data element", "psnr": "peak signal-to-noise ratio, dB", "samples": ""}


def checked_license(license: str | None) -> str:
    """Raises ValueError for a licence that the hub does not know, with the nearest that it does."""
    if license is None:
        return "unknown"
    if license not in LICENSES:
        raise ValueError(
            f"license={license!r} is none that the hub knows, e.g. mit, apache-2.0, cc-by-4.0; take 'other' for one of your own."
            f"{nearest(license, LICENSES)}"
        )
    return license


def write_card(
    run: str | Path, *, name: str | None = None, license: str | None = None, overwrite: bool = False
) -> Path:
    """Writes RUN/README.md, the card of a run folder's (or any saved) model, for you to edit before `push`; returns its path.

    Args: `name`: "user/name" on the hub, as the card's lines for loading say it. `license`: as the hub spells it.
    Raises ValueError if there is one already, unless `overwrite`."""
    folder = Path(run).expanduser()
    if is_hub_name(str(run)) or not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(run)!r} to write a card for")
    if (folder / CARD).exists() and not overwrite:
        raise ValueError(
            f"{folder / CARD} is there already, perhaps with changes of yours; pass overwrite to write it anew"
        )
    write_bytes(folder / CARD, model_card(from_pretrained(folder), folder, name=name, license=license).encode())
    return folder / CARD


def check_card(path: Path, license: str | None) -> str:
    """A card's text. Raises ValueError if its head cannot be read or says another licence than `license`."""
    from huggingface_hub import ModelCard

    text = path.read_text(encoding="utf-8")
    try:
        head = ModelCard(text).data.to_dict()
    except Exception as error:  # YAML's own and huggingface_hub's
        raise ValueError(f"the head of {path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not head:
        raise ValueError(f"{path} has no head of YAML between two lines of ---; delete it, and push writes one")
    if license is not None and head.get("license") != checked_license(license):
        raise ValueError(
            f"license={license!r}, but {path} says license: {head.get('license')}; change it there, or delete that file"
        )
    return text


def model_card(model: BaseAE, run: Path | None, *, name: str | None = None, license: str | None = None) -> str:
    """The card of a model, from what its run folder holds, if it has one."""
    from huggingface_hub import EvalResult, ModelCardData

    license = checked_license(license)
    config = _recipe(run)
    evaluation = _evaluation(run)
    source = str(config.get("data", {}).get("source") or "unknown")
    task = pipeline(model)
    results = [
        EvalResult(
            task_type=task or "other", dataset_type=ON_HUB.get(source, source), dataset_name=evaluation["data"],
            metric_type=key, metric_name=_metric(key, model), metric_value=float(f"{value['mean']:.6g}"),
        )
        for key, value in evaluation["metrics"].items() if key != "samples" and math.isfinite(value["mean"])
    ]  # fmt: skip
    data = ModelCardData(
        license=license,
        library_name="aezoo",
        pipeline_tag=task,
        tags=_tags(model),
        datasets=[ON_HUB[source]] if source in ON_HUB else None,
        metrics=[key for key in ("mse",) if key in evaluation["metrics"]] or None,
        model_name=(name or model.name).split("/")[-1] if results else None,
        eval_results=results or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name.split('/')[-1] if name else model.name}",
        f"{_sentence(type(model))} Trained with aezoo, the autoencoder zoo for PyTorch.",
        "## Task", _task(model),
        "## Data", _data(config),
        "## Metrics", _metrics(evaluation, model),
        "## Recipe", _again(config),
        "## How to load", _loading(model, name),
        "## Licence", _licence(license),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------------------------ what a run holds


def _recipe(run: Path | None) -> dict[str, dict[str, Any]]:
    """The run's config.yaml without paths of this machine; {} if there is none."""
    if run is None or not (run / "config.yaml").is_file():
        return {}
    config: dict[str, dict[str, Any]] = without_paths(recipes.read(run / "config.yaml"))
    config.get("data", {}).pop("root", None)
    config.get("train", {}).pop("out", None)
    return config


def _evaluation(run: Path | None) -> dict[str, Any]:
    """The run's evaluation.json; no metrics if there is none, or one of other weights. Raises ValueError if it is no such file."""
    if run is None or not (path := run / "evaluation.json").is_file():
        return {"data": "", "metrics": {}}
    found = read_json(path)
    if isinstance(found, dict) and found.get("weights", sha256(run / WEIGHTS)) != sha256(run / WEIGHTS):
        return {"data": "", "metrics": {}}  # figures of other weights: the run went on after it was evaluated
    metrics = found.get("metrics") if isinstance(found, dict) else None
    if not isinstance(metrics, dict) or not all(isinstance(v, dict) and isinstance(v.get("mean"), (int, float)) for v in metrics.values()):  # fmt: skip
        raise ValueError(f"{path} is damaged: no metrics as 'aezoo evaluate' writes them; run that again")
    return {"data": without_paths(str(found.get("data", ""))), "metrics": metrics}


def without_paths(value: Any) -> Any:
    """The same with only the last part of every absolute path: what a card says of a folder is its name."""
    if isinstance(value, dict):
        return {k: without_paths(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(v) for v in value]
    if not isinstance(value, str):
        return value
    if Path(value).is_absolute() or value.startswith("~") or PureWindowsPath(value).is_absolute():
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1] or "."
    return re.sub(r"(?<!\S)(?:~|[A-Za-z]:)?[\\/].*[\\/](?=\S)", "", value)  # inside a sentence


# ------------------------------------------------------------------------------------------------------------- the head


def pipeline(model: BaseAE) -> str | None:
    """The hub's task that fits, for models of images; it has none for codes of series and tables."""
    if not is_image(model.input_shape):
        return None
    if any(c.where == "input" and c.name != "none" for c in model.corruptions) or "denois" in model.name:
        return "image-to-image"
    return (
        "unconditional-image-generation"
        if model.prior is not None and not model.takes_condition
        else "image-feature-extraction"
    )


def _tags(model: BaseAE) -> list[str]:
    tags = ["aezoo", "autoencoder", "pytorch", model.name.replace("_", "-")]
    found = re.match(r"(?:arXiv:)?(\d{4}\.\d{4,5})", type(model).paper)
    return [*tags, f"arxiv:{found[1]}"] if found else tags


# ------------------------------------------------------------------------------------------------------------- sections


def _sentence(cls: type) -> str:
    text = summary(cls)
    return text if text.endswith(".") else text + "."


def _task(model: BaseAE) -> str:
    size = " x ".join(map(str, model.input_shape))
    code = " x ".join(map(str, model.latent_shape))
    lines = [
        f"- model: `{model.name}` ({type(model).paper})",
        f"- sample: {size}, code: {code}; {model.num_parameters:,} parameters",
        f"- reconstruction: likelihood `{model.likelihood.name}`, {model.units}",
        f"- new samples: {f'yes, from its prior (`{model.prior.name}`)' if getattr(model.prior, 'name', '') else 'yes, from its prior' if model.prior is not None else 'no prior'}",
    ]
    if model.likelihood.support:
        low, high = model.likelihood.support
        lines.append(f"- data must lie in [{low:g}, {high:g}]")
    if model.accepts_missing:
        lines.append("- NaN marks what is missing")
    return "\n".join(lines)


def _data(config: dict[str, dict[str, Any]]) -> str:
    data = {k: v for k, v in config.get("data", {}).items() if v is not None}
    source = data.pop("source", None)
    if source is None:
        return "Not recorded: the data was given in Python." if config else "Not recorded."
    options = f", with {', '.join(f'`{k}: {v}`' for k, v in data.items())}" if data else ""
    link = f" ([{ON_HUB[source]}](https://huggingface.co/datasets/{ON_HUB[source]}))" if source in ON_HUB else ""
    held = config.get("train", {}).get("val")
    kept = f" {held:.0%} of it were held out in training." if isinstance(held, float) else ""
    return f"`{source}`{link}{options}.{kept}"


def _metric(key: str, model: BaseAE) -> str:
    return METRICS.get(key) or key


def _metrics(evaluation: dict[str, Any], model: BaseAE) -> str:
    metrics = evaluation["metrics"]
    if not metrics:
        return "None recorded of these weights; `aezoo evaluate` on the run folder records them."
    count = metrics.get("samples", {}).get("mean")
    lines = [
        f"On {evaluation['data'] or 'data that was not recorded'}" + (f", {count:,.0f} samples." if count else "."),
        "",
    ]
    lines += ["| metric | mean | standard error |", "|---|---|---|"]
    for key, value in metrics.items():
        if key != "samples":
            spread = value.get("stderr", math.nan)
            known = isinstance(spread, (int, float)) and math.isfinite(spread)
            lines.append(f"| {key} | {value['mean']:.6g} | {f'{spread:.2g}' if known else ''} |")
    return "\n".join([*lines, "", f"Terms of the loss are in {model.units}; `mse` is per data element, `psnr` in dB."])


def _again(config: dict[str, dict[str, Any]]) -> str:
    if not config:
        return "Not recorded."
    import yaml

    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip()
    return f"As `config.yaml`, `aezoo train config.yaml` trains it again:\n\n```yaml\n{text}\n```"


def _loading(model: BaseAE, name: str | None) -> str:
    told = ", condition=labels" if model.takes_condition and type(model).hidden is not BaseAE.hidden else ""
    sample = (
        [f"new = model.sample(16)  # (16, {', '.join(map(str, model.input_shape))})"] if model.prior is not None else []
    )
    lines = [
        "import aezoo",
        "",
        f'model = aezoo.from_pretrained("hf://{name or "user/name"}")',
        f"z = model.encode(x{told})  # x: (batch, {', '.join(map(str, model.input_shape))})",
        f"back = model.decode(z{told})",
        *sample,
    ]
    code = "\n".join(lines)
    return (
        f"```python\n{code}\n```\n\nThe weights are safetensors, whose sha256 is checked on loading; no file here is a pickle "
        "or runs code."
    )


def _licence(license: str) -> str:
    if license == "unknown":
        return "Unknown: whoever published this model named no licence, so ask before you use it."
    if license == "other":
        return "Other: see what whoever published this model says here."
    return f"`{license}`, as named by whoever published this model."
