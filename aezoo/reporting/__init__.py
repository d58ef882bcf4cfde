"""`aezoo report RUN`: one HTML page that shows a run, complete in itself: images, style and script lie in the file, and it asks no network.

    runs.read_*, material.Material ──> sections (general, families, about) ──> page

A section is a function of the material that returns a `Section`, or None where it does not apply to the model. What it cannot show it
raises, and the page says so at its end: no section can keep the others from being seen. pieces.py and charts.py make the HTML.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..base import BaseAE, positive
from ..cards import without_paths
from ..data import data_for
from ..hub import is_hub_name
from ..randomness import checked_seed, forked_rng, set_seed
from ..runs import held_out, read_config, read_model
from ..storage import CONFIG, write_bytes
from ..train.checkpoints import Checkpoints
from . import about, dictionaries, families, general
from .general import Section
from .material import Material, Missing
from .page import page

PAGE = "report.html"
SECTIONS: tuple[Callable[[Material], Section | None], ...] = (
    general.training, general.reconstructions, families.masked, families.denoising, families.tabular, general.samples, families.conditions,
    general.traversal, families.levels, general.latent_map, families.posterior, dictionaries.codebook, dictionaries.sparsity,
    families.contraction, general.errors, about.evaluation, about.speed, about.configuration, about.loading,
)  # fmt: skip
NAMES = {
    "training": "Training", "reconstructions": "Reconstructions", "masked": "Filled in", "denoising": "Denoising", "tabular": "Columns",
    "samples": "New samples", "conditions": "Samples of each class", "traversal": "Latent traversal", "levels": "Levels",
    "latent_map": "Latent map", "posterior": "Posterior", "codebook": "Codebook", "sparsity": "Sparse code",
    "contraction": "Contraction", "errors": "Errors", "evaluation": "Evaluation", "speed": "Speed", "configuration": "Configuration",
    "loading": "Load it",
}  # fmt: skip


def report(
    run: str | Path,
    *,
    data: Any = None,
    out: str | Path | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Path:
    """Writes RUN/report.html, a page that shows a run: its curves, what the model makes of held-out samples, what is special about it,
    its configuration and speed; returns its path.

    Args:
        run: a run folder, also of a run that was stopped or is still training, or any saved model.
        data: what to show the model, as `load_data` takes it. Default: the test split of the run's data set, else what the run held out,
            else its data. If there is none (it was given in Python, or was moved), the page shows what there is and says what is missing.
        out: file to write instead.
        samples: held-out samples that are looked at, at most.
        seed: of all draws.

    The page is of the best weights, of a run without any saved ones those of its newest checkpoint. The run is not changed; the global
    RNG is left as it was. Raises FileNotFoundError if `run` is no folder of a run, ValueError for data that does not fit the model."""
    folder = Path(run).expanduser()
    if is_hub_name(str(run)) or not folder.is_dir():
        raise FileNotFoundError(f"no run folder {str(run)!r} to report on")
    if not (folder / CONFIG).is_file() and not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{str(run)!r} is no run folder: it holds neither config.yaml nor {CONFIG}")
    positive("samples", samples)
    target = Path(out).expanduser() if out is not None else folder / PAGE
    if target.is_dir():
        raise ValueError(f"out={str(out)!r} is a folder; name a file, e.g. {target / PAGE}")
    with forked_rng(torch.device("cpu")), torch.no_grad():
        m, absent = gather(folder, data, samples, checked_seed(seed))
        found = []
        for make in SECTIONS:
            section, why = made(make, m)
            found += [section] if section is not None else []
            absent += [why] if why else []
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, page(m, found, absent).encode())
    return target


def gather(folder: Path, data: Any, samples: int, seed: int) -> tuple[Material, list[str]]:
    """What there is of a run, and what there is not. Raises ValueError if `data` was given and does not fit."""
    absent = []
    config = read_config(folder)
    model: BaseAE | None = None
    weights = ""
    try:
        model, weights = read_model(folder)
        model.eval()
    except (FileNotFoundError, ValueError) as error:
        if not config and not Checkpoints(folder / "checkpoints").paths():
            raise
        absent.append(f"Everything that needs the model: {plain(error, folder)}")
    m = Material(folder, config, model, weights, samples, seed)
    if model is None:
        return m, absent
    set_seed(seed, torch.device("cpu"))
    if data is not None:
        source = data_for(model.input_shape, data)
        model.likelihood.check(*source.check(model.likelihood.support, model.accepts_missing))
        m.source, m.what = source, without_paths(source.description)
        return m, absent
    try:
        source, what = held_out(config)
        m.what = without_paths(what)
        m.source = source.reshaped(model.input_shape)
        m.x  # what cannot be read is found out here  # noqa: B018
    except (ValueError, TypeError, OSError, ImportError) as error:
        m.source = None
        why = plain(error, folder).replace("; pass --data", "")
        absent.append(
            f"Everything that needs data: {why}. aezoo report RUN --data SOURCE, or aezoo.report(run, data=...), shows it on data of yours"
        )
    return m, absent


def made(make: Callable[[Material], Section | None], m: Material) -> tuple[Section | None, str]:
    """A section, or why there is none. What odd data does to a picture costs that picture and no other."""
    set_seed(m.seed, torch.device("cpu"))
    try:
        return make(m), ""
    except Missing as error:
        needs_both = str(error) in ("there are no weights", "there is no data to show")  # said once, for all
        return None, "" if needs_both else f"{NAMES[make.__name__]}: {error}"
    except Exception as error:
        if os.environ.get("AEZOO_TRACEBACK"):
            raise
        return None, f"{NAMES[make.__name__]}: {type(error).__name__}: {plain(error, m.folder)}"


def plain(error: Exception, folder: Path) -> str:
    """An error in one line."""
    return " ".join(str(error).split())


__all__ = ["report"]
