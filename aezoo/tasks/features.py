"""Codes as features: of any model, any layer and any data, and what they tell of labels.

    z = aezoo.features(model, "fashion-mini")                       # (N, K), the codes
    h = aezoo.features(model, x, layer="encoder.2")                 # what that submodule gives
    print(probe_report(z, y, z_test, y_test)[1])                    # linear probe, k-NN, k-means

Legend: N samples, B batch, K numbers of a sample's features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..base import BaseAE, positive
from ..data import data_for
from ..metrics.checks import Scores
from ..metrics.probing import kmeans_scores, knn_accuracy, linear_probe
from ..randomness import checked_seed, forked_rng, set_seed
from ..registry import choice, nearest
from ..train.find import available_memory
from ..train.hardware import decide
from ..train.step import condition_of, told

NEIGHBOURS = 10  # of the k-NN in a report
SHOWN = 20  # names of layers in an error


def features(
    model: BaseAE,
    data: Any,
    layer: str | None = None,
    *,
    pool: str = "none",
    labels: bool = False,
    condition: bool = False,
    batch_size: int = 512,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """The features of every sample of `data`, in order: (N, K) on the CPU, in the model's dtype.

    Args:
        model: any `BaseAE`. It is moved to `device`; its mode and gradients are left as they were.
        data: anything that `load_data` takes, of the model's shape.
        layer: by default the code, `model.encode(x)`, whose axes are flattened; else the name of a submodule ("encoder.2"), whose
            output is taken by a forward hook: in `encode`, or in `reconstruct` if it takes no part in that (layers of the decoder). Of
            a tuple, as an LSTM gives, the first tensor; of several calls the last.
        pool: "none": all axes in a row. "mean": codes or maps (B, C, ...) become their means over all axes behind C, (B, C).
        labels: also return the labels in the same order, (N, ...) or None: (features, labels). A DataLoader may shuffle.
        condition: tell conditional models (`cvae`, ...) what comes with the data. By default they are told nothing, since
            features that were told the labels would tell them back.
        batch_size: samples taken at once; results agree to rounding whatever it is.
        seed: of what the data draws (binarize="dynamic", random transforms). The global RNG is left as it was.
        progress: a bar, if it takes more than two seconds.

    Deterministic: no corruption, no dropout, no draw from a posterior. One batch is held on the device, and the result on the CPU.

    Raises ValueError or TypeError for data that does not fit the model, an unknown layer or one that is not reached, and features that are
    not finite; MemoryError, before anything but the first batch is computed, for a result that does not fit into memory."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")
    choice("pool", pool, ("none", "mean"))
    positive("batch_size", batch_size)
    checked_seed(seed)
    module = None if layer is None else named_layer(model, layer)
    place = decide(device, "fp32", False).device
    with forked_rng(place), model.evaluating(), torch.no_grad():
        source = data_for(model.input_shape, data)
        model.likelihood.check(*source.check(model.likelihood.support, model.accepts_missing))
        model.to(place)
        set_seed(seed, place)
        plan = list(torch.arange(len(source)).split(batch_size))
        found, ys = _Rows(len(source)), []
        with _bar(len(source), progress) as bar:
            for batch in source.to(place).batches(plan, place, next(model.parameters()).dtype, seed):
                given = told(condition_of(model, batch)) if condition else {}
                z = (
                    model.encode(batch.x, False, **given)
                    if module is None
                    else _output(model, layer, module, batch.x, given)
                )
                z = z.flatten(2).mean(2) if pool == "mean" and z.dim() > 2 else z.flatten(1)
                found.add(z)
                ys.append(batch.y)
                bar.update(len(z))
    z = found.done()
    if not bool(torch.isfinite(z).all()):
        bad = int((~torch.isfinite(z).all(1)).nonzero()[0])
        raise ValueError(
            f"{model.name} makes features that are NaN or infinite of this data, first of sample {bad}; "
            "look for it in the data, or for weights that are not finite"
        )
    if not labels:
        return z
    return z, None if any(y is None for y in ys) else torch.cat([y.cpu() for y in ys if y is not None])


class _Rows:
    """(N, K) on the CPU, filled batch by batch; the memory is asked for once, when K is known."""

    def __init__(self, expected: int):
        self.expected, self.filled = expected, 0
        self.rows: Tensor | None = None

    def add(self, part: Tensor) -> None:
        if self.rows is None:
            n = max(self.expected, len(part))
            size = n * part.shape[1] * part.element_size()
            if size > _free():
                raise MemoryError(
                    f"{n:,} x {part.shape[1]:,} features of {part.dtype} take {size / 2**30:.1f} GiB, and {_free() / 2**30:.1f} GiB "
                    "are free; take a part of the data (limit=), pool='mean', or a layer with fewer numbers"
                )
            self.rows = torch.empty(n, part.shape[1], dtype=part.dtype)
        stop = self.filled + len(part)
        if stop > len(self.rows):  # a DataLoader that gives more than its data set has
            self.rows = torch.cat([self.rows, self.rows.new_empty(stop - len(self.rows), part.shape[1])])
        self.rows[self.filled : stop] = part.detach()
        self.filled = stop

    def done(self) -> Tensor:
        if self.rows is None:
            raise ValueError(
                "the data gives no batch: a DataLoader with drop_last=True and fewer samples than a batch?"
            )
        return self.rows[: self.filled]


def _free() -> float:
    try:
        return available_memory()
    except OSError:  # a system that does not say
        return math.inf


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total, desc="features", unit=" samples", unit_scale=True, delay=2, leave=False, disable=not progress
    )


# -------------------------------------------------------------------------------------------------------------- layers


def named_layer(model: BaseAE, layer: str) -> nn.Module:
    """The submodule of that name. Raises ValueError with the nearest name that there is."""
    modules = {name: module for name, module in model.named_modules() if name}
    if not isinstance(layer, str) or layer not in modules:
        raise ValueError(
            f"layer={layer!r} is no submodule of this {model.name}; {_some(modules)}.{nearest(layer, modules)}"
        )
    return modules[layer]


def _some(names: Any) -> str:
    names = list(names)
    more = f", ... ({len(names)} in all, by model.named_modules())" if len(names) > SHOWN else ""
    return f"allowed: {', '.join(names[:SHOWN])}{more}"


@contextmanager
def _tapped(module: nn.Module) -> Iterator[list[Any]]:
    """Inside the block the list holds what the module gave last; a copy, since what follows may work in place."""
    last: list[Any] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        while isinstance(out, (tuple, list)) and out:
            out = out[0]
        last[:] = [out.detach().clone() if isinstance(out, Tensor) else out]

    handle = module.register_forward_hook(keep)
    try:
        yield last
    finally:
        handle.remove()


def _output(model: BaseAE, layer: str | None, module: nn.Module, x: Tensor, given: dict[str, Tensor]) -> Tensor:
    """What the submodule makes of x (B, *input_shape): (B, ...), floating point."""
    with _tapped(module) as last:
        model.encode(x, False, **given)
        if not last:
            model.reconstruct(x, **given)
    if not last:
        raise ValueError(
            f"layer {layer!r} of {model.name} takes no part in encode and reconstruct, or is not called as a module; "
            f"{_some(_reached(model, x, given))}"
        )
    out = last[0]
    if not isinstance(out, Tensor) or out.dim() == 0 or len(out) != len(x):
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"layer {layer!r} of {model.name} gives no row for each of {len(x)} samples, but {got}")
    out = out if out.dim() > 1 else out[:, None]
    return out if out.is_floating_point() else out.to(x.dtype)


def _reached(model: BaseAE, x: Tensor, given: dict[str, Tensor]) -> list[str]:
    """Names of the submodules that are called in `reconstruct`."""
    names: dict[str, None] = {}
    handles = [
        module.register_forward_hook(lambda m, args, out, name=name: names.setdefault(name))
        for name, module in model.named_modules()
        if name
    ]
    try:
        model.reconstruct(x, **given)
    finally:
        for handle in handles:
            handle.remove()
    return list(names)


# -------------------------------------------------------------------------------------------------------------- report


def probe_report(
    z: Any, y: Any, z_test: Any = None, y_test: Any = None, *, seed: int = 0, progress: bool = True
) -> tuple[Scores, str]:
    """What features tell of labels, ({figure: (value, standard error, samples)}, the same in one line).

    A linear probe and the 10 nearest neighbours (by angle; all of them where there are fewer) are fitted to z (M, K) and y (M,) and judged
    on z_test (N, K); without a test part, fitted to one half of z, drawn by `seed`, and judged on the other. k-means, as many clusters as
    there are classes, sees the judged codes alone (without a test part, all). `aezoo.metrics.probing` has their definitions.

    Raises ValueError or TypeError for features and labels that do not fit each other, and for fewer than four samples to halve."""
    from tqdm import tqdm

    from ..metrics.checks import checked_codes, checked_labels

    checked_seed(seed)
    z = checked_codes("z", z)
    y = checked_labels("y", y, len(z), z.device)
    if (z_test is None) != (y_test is None):
        raise ValueError("z_test and y_test go together: codes to judge, and their labels")
    if z_test is None:
        if len(z) < 4:
            raise ValueError(
                f"{len(z)} samples are too few to fit to one half and judge on the other; it takes at least 4"
            )
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed)).to(z.device)
        fit, judge = order[: len(z) // 2], order[len(z) // 2 :]
        whole, parts = (z, y), (z[fit], y[fit], z[judge], y[judge])
    else:
        whole = z_test, y_test
        parts = z, y, z_test, y_test
    scores: Scores = {}
    jobs = [
        lambda: linear_probe(*parts),
        lambda: knn_accuracy(*parts, k=min(NEIGHBOURS, len(parts[0]))),
        lambda: kmeans_scores(*whole, seed=seed),
    ]
    for job in tqdm(jobs, "probes", unit=" probe", delay=2, leave=False, disable=not progress):
        scores |= job()
    return scores, report_line(scores, len(parts[0]))


def report_line(scores: Scores, fitted: int) -> str:
    """Scores in one line, accuracies in per cent ± their standard error."""

    def share(name: str) -> str:
        value, error, _ = scores[name]
        return f"{100 * value:.1f} ± {100 * error:.1f} %"

    return (
        f"linear probe {share('linear_probe_accuracy')}, k-NN by angle {share('knn_accuracy')}, k-means {share('kmeans_accuracy')} "
        f"(NMI {scores['kmeans_nmi'][0]:.3f}); {fitted:,} samples to fit, {scores['linear_probe_accuracy'][2]:,} to judge"
    )
