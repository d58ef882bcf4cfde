"""How good a model is on data it was not trained on."""

from __future__ import annotations

import math
from typing import Any

import torch

from . import functional as fn
from .base import BaseAE, positive
from .data import load_data
from .randomness import checked_seed, forked_rng, set_seed
from .train.hardware import decide


def evaluate(
    model: BaseAE,
    data: Any,
    *,
    batch_size: int = 512,
    device: str | torch.device = "auto",
    seed: int = 0,
    log_prob: int = 0,
) -> dict[str, dict[str, float]]:
    """Means over all samples of `data` (anything that `load_data` takes), each with its standard error.

    Returns {metric: {"mean": ..., "stderr": ...}}, and "samples": {"mean": N}:
        loss and its terms as in training ("recon", "kl", ...; nats per sample for densities), "elbo" on models with one;
        mse: squared error per data element of `model.reconstruct(x)`; squared_error: the same summed over a sample;
        psnr: peak signal-to-noise ratio in dB at peak 1, for data in [0, 1] (the mean over samples);
        log_prob: importance-sampled log-likelihood in nats with that many draws, if `log_prob` > 0.
    Where entries are missing (NaN), errors count those that are there; a sample without any counts in none of them.
    A term of a whole batch (the KL sparsity penalty, say) has no standard error: NaN. The same seed gives the same figures; the
    global RNG is left as it was. The model is moved to `device` and keeps its mode.

    Raises ValueError or TypeError if the data does not fit the model."""
    positive("batch_size", batch_size)
    if log_prob:
        positive("log_prob", log_prob)
    hardware = decide(device, "fp32", False)
    checked_seed(seed)
    dtype = next(model.parameters()).dtype
    sums: dict[str, list[float]] = {}  # metric: [sum, sum of squares, samples]
    whole_batch = set()

    def add(name: str, values: torch.Tensor, samples: int) -> None:
        if values.dim() == 0:
            whole_batch.add(name)
            values = values.expand(samples)
        values = values.double() if values.device.type != "mps" else values
        total = sums.setdefault(name, [0.0, 0.0, 0.0])
        total[0] += float(values.sum())
        total[1] += float(values.square().sum())
        total[2] += len(values)

    with forked_rng(hardware.device), model.evaluating(), torch.no_grad():
        source = load_data(data).reshaped(model.input_shape)
        low, high = source.check(model.likelihood.support, model.accepts_missing)
        model.likelihood.check(low, high)
        model.to(hardware.device)
        source = source.to(hardware.device)
        set_seed(seed, hardware.device)
        plan = list(torch.arange(len(source)).split(batch_size))
        for batch in source.batches(plan, hardware.device, dtype, seed):
            told = {"condition": batch.y} if model.takes_condition and batch.y is not None else {}
            out = model(batch.x, **told)
            count = len(batch.x)
            weights = model.term_weights()
            terms = [v * weights.get(k, 1.0) for k, v in out.terms.items()]
            add("loss", torch.stack([t if t.dim() else t.expand(count) for t in terms]).sum(0), count)
            for name, value in {**out.terms, **out.metrics}.items():
                add(name, value, count)
            summed, mse = _errors(model.reconstruct(batch.x, **told), batch.x, model.accepts_missing)
            add("mse", mse, len(mse))
            add("squared_error", summed, len(summed))
            if low >= 0 and high <= 1:
                add("psnr", -10 * torch.log10(mse.clamp_min(1e-10)), len(mse))
            if log_prob:
                add("log_prob", model.log_prob(batch.x, log_prob, **told), count)
    result = {}
    for name, (total, squares, n) in sums.items():
        mean = total / n
        spread = max(0.0, squares / n - mean * mean) * n / max(1.0, n - 1)
        result[name] = {"mean": mean, "stderr": math.nan if name in whole_batch else math.sqrt(spread / n)}
    return {"samples": {"mean": sums["loss"][2], "stderr": 0.0}, **result}


def _errors(recon: torch.Tensor, x: torch.Tensor, missing: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(summed, mean) squared error of each sample that has an entry which is there: (B, *shape) twice -> (<= B,) twice."""
    error = (recon - x).square().flatten(1)
    if not missing:
        return error.sum(1), error.mean(1)
    there = ~torch.isnan(x.flatten(1))
    kept = there.any(1)
    return fn.masked_sum(error, there)[kept], fn.masked_mean(error, there)[kept]


def table(metrics: dict[str, dict[str, float]]) -> str:
    """The metrics as lines of text."""
    lines = [f"{'samples':<16}{metrics['samples']['mean']:>14.0f}"]
    for name, value in metrics.items():
        if name != "samples":
            error = "" if math.isnan(value["stderr"]) else f"  ± {value['stderr']:.2g}"
            lines.append(f"{name:<16}{value['mean']:>14.6g}{error}")
    return "\n".join(lines)
