"""How good a model is on data it was not trained on, in the figures of `aezoo.metrics`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .base import BaseAE, positive
from .data import data_for
from .metrics import METRICS, Subject, chosen
from .metrics.base import Mean
from .randomness import checked_seed, forked_rng, set_seed
from .train.hardware import decide

Report = dict[str, dict[str, Any]]


def evaluate(
    model: BaseAE,
    data: Any,
    *,
    metrics: str | Sequence[str] | None = None,
    batch_size: int = 512,
    device: str | torch.device = "auto",
    seed: int = 0,
    log_prob: int = 0,
    samples: int | None = None,
    features: str | Callable[[torch.Tensor], Any] = "pixels",
    train: Any = None,
    progress: bool = True,
) -> Report:
    """How good a model is on `data` (anything that `load_data` takes), each figure with its standard error.

    Args:
        metrics: names or fnmatch patterns of metrics or of single figures, in a list or a string with commas; by default those that fit
            model and data and are cheap. `aezoo evaluate --list` and `aezoo.metrics` say what there is:
            loss and its terms as in training ("recon", "kl", ...; nats per sample for densities), "elbo" on models with one; mse,
            squared_error, psnr, ssim, fvu of reconstructions; bits_per_dim, log_prob of densities; active_units, mutual_information, mmd
            of posteriors; codebook (perplexity and usage); l0, dead of sparse codes; linear_probe, knn, kmeans (labels); mig, sap,
            dci, factor_vae (a table of factors as labels); frechet_distance, precision_recall of samples from the model.
        batch_size: samples taken at once, at most 512. Figures do not depend on it, but for what a model itself defines over a batch.
        seed: of all draws. Each sample's draws depend on it and on the sample's position, not on what else is asked for.
        log_prob: draws of the importance-sampled log-likelihood (0: not unless it is named, then 5000).
        samples: draws from the prior for metrics that compare with it; by default one for each sample.
        features: what samples are compared by in frechet_distance and precision_recall: "pixels", "fashion" (a small classifier of
            clothes), "inception" (if its weights are on this disk), or a function (N, *shape) -> (N, K).
        train: what the model was trained on, with labels, to which probes are fitted; by default to a half of `data`.
        progress: a bar, if it takes more than two seconds.

    Returns {figure: {"mean", "stderr", "samples", "unit"}}, some with "values" (one for each latent, say), and "samples":
    {"mean": N, ...}. Figures are means over all samples, or of the whole set; each sample counts once. "stderr" is NaN where there is
    none, e.g. for a term of a whole batch (the KL sparsity penalty). Where entries are missing (NaN), errors count those that are
    there; a sample without any counts in none of them. The global RNG is left as it was. The model is moved to `device` and keeps its
    mode.

    Raises ValueError or TypeError for data, names or values that do not fit."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")
    positive("batch_size", batch_size)
    for name, value in (("log_prob", log_prob), ("samples", samples)):
        if value:
            positive(name, value)
    hardware = decide(device, "fp32", False)
    checked_seed(seed)
    with forked_rng(hardware.device), model.evaluating(), torch.no_grad():
        source = data_for(model.input_shape, data)
        low, high = source.check(model.likelihood.support, model.accepts_missing)
        model.likelihood.check(low, high)
        model.to(hardware.device)
        set_seed(seed, hardware.device)
        bar = _bar(len(source), progress)
        subject = Subject(
            model,
            source.to(hardware.device),
            span=(low, high),
            device=hardware.device,
            seed=seed,
            log_prob=log_prob or 0,
            samples=samples,
            features=features,
            train=None if train is None else lambda: data_for(model.input_shape, train).to(hardware.device),
            tick=bar.update,
        )
        wanted = chosen(metrics, subject)
        if log_prob and "log_prob" not in wanted:  # then it is the only one that was refused
            wanted |= chosen("log_prob", subject)
        with bar:
            return _report(subject, wanted, batch_size, bar)


def _report(subject: Subject, wanted: Mapping[str, set[str] | None], batch_size: int, bar: Any) -> Report:
    taken = {name: METRICS[name](subject) for name in wanted}
    means: dict[str, dict[str, Mean]] = {name: {} for name in taken}
    keeps = {k for metric in taken.values() for k in metric.keeps}
    kept: dict[str, list[torch.Tensor]] = {k: [] for k in keeps}
    total = 0
    for seen in subject.pieces(subject.source, batch_size):
        total += len(seen)
        for name, metric in taken.items():
            metric.see(seen)
            for figure, values in metric.each(seen).items():
                means[name].setdefault(figure, Mean()).add(values, len(seen))
        for k in keeps:
            kept[k].append(getattr(seen, k).detach().cpu())
        if "log_prob" not in taken:  # which counts its draws itself
            bar.update(len(seen))
    subject.size = total
    result: Report = {"samples": {"mean": total, "stderr": 0.0, "samples": total, "unit": ""}}
    for name, metric in taken.items():
        whole = metric.whole({k: torch.cat(kept[k]) for k in metric.keeps})
        found = {**{figure: m.figure() for figure, m in means[name].items()}, **whole}
        some = wanted[name]
        for figure, (mean, error, n, values) in found.items():
            if some is None or figure in some:
                error = math.nan if math.isnan(error) else error  # one object, so that equal reports compare equal
                result[figure] = {"mean": mean, "stderr": error, "samples": n, "unit": metric.unit_of(figure)}
                if values is not None:
                    result[figure]["values"] = values
    return result


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total, desc="evaluate", unit=" samples", unit_scale=True, delay=2, leave=False, disable=not progress
    )


def table(metrics: Report) -> str:
    """The figures as lines of text: the number of samples, then mean ± standard error, samples and unit of each figure."""
    rows = [("", "mean", "± stderr", "n", "unit")]
    for name, value in metrics.items():
        if name != "samples":
            error = "" if math.isnan(value["stderr"]) else f"± {value['stderr']:.2g}"
            rows.append((name, f"{value['mean']:.6g}", error, f"{value['samples']:,}", value["unit"]))
    wide = [max(least, *(len(row[i]) for row in rows)) for i, least in enumerate((16, 12, 9, 6, 0))]
    lines = [
        f"{a:<{wide[0]}}{b:>{wide[1] + 2}}  {c:<{wide[2]}}  {d:>{wide[3]}}  {e}".rstrip() for a, b, c, d, e in rows
    ]
    return "\n".join([f"{'samples':<{wide[0]}}{metrics['samples']['mean']:>{wide[1] + 2}.0f}", *lines])
