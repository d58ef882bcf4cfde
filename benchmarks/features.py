"""How much codes tell of labels: linear probe, k-NN and k-means on codes of five models, beside raw pixels and PCA of the same size.

    python benchmarks/features.py --data ROOT                         every data set, model and seed that has no figures yet
    python benchmarks/features.py --data ROOT --minutes 12            stops before a run that would begin later; run it again to go on
    python benchmarks/features.py --data ROOT --only mnist --fresh    one data set, anew
    python benchmarks/features.py --data ROOT --fitted 60000          probes on all training samples

ROOT holds MNIST and FashionMNIST as torchvision lays them out, and cifar10 likewise or as cifar10-train.npz and cifar10-test.npz (x uint8
(N, 3, 32, 32), y). No model sees a label. The linear probe and k-NN are fitted to 20,000 training samples and judged on the test set; k-means
sees the codes of the test set. Figures of every finished run are written to benchmarks/features.json at once, and all of them as a table to
benchmarks/FEATURES.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import aezoo
from aezoo.storage import write_json
from aezoo.tasks.features import probe_report
from aezoo.zoo import processor

HERE = Path(__file__).parent
SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
SIZE = 64  # numbers of a code
MLP = "mlp(widths=(512, 256), activation='silu')"
MODELS: dict[str, dict[str, Any]] = {
    "ae": {"backbone": MLP},
    "denoising_ae": {"backbone": MLP, "corruption": "masking(p=0.5)"},
    "vae": {"backbone": MLP},
    "conv_ae": {"backbone": "conv(widths=(16, 32), activation='silu')"},
    "k_sparse_ae": {"backbone": "linear", "latent_dim": 256, "k": 16, "anneal": 500},
}
MOST_STEPS, STEPS = 600, {"conv_ae": 300}  # optimiser steps of 128 samples
NAMES = ("linear_probe_accuracy", "knn_accuracy", "kmeans_accuracy", "kmeans_nmi")
HEADS = ("linear probe, %", "k-NN, %", "k-means, %", "k-means, NMI")
BASELINES = ("pca", "pixels")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("AEZOO_DATA"), help="folder that holds the data sets")
    parser.add_argument("--only", default=",".join(SETS), help="data sets, with commas between")
    parser.add_argument("--models", default=",".join(MODELS), help="models, with commas between")
    parser.add_argument("--seeds", type=int, default=3, help="all data sets by the first seed, then all by the next")
    parser.add_argument(
        "--fitted", type=int, default=20_000, help="training samples that probes are fitted to, at most"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the training steps")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run is begun after these")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--fresh", action="store_true", help="measure again what has figures already")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for features.json and FEATURES.md")
    return parser.parse_args()


def loaded(name: str, split: str, root: str) -> Any:
    file = Path(root) / f"{name}-{split}.npz"
    return aezoo.load_data(str(file)) if file.is_file() else aezoo.load_data(name, split=split, root=root)


def flat(source: Any, n: int | None = None) -> Iterator[Tensor]:
    """The first n samples in parts, (B, D) in [0, 1]."""
    plan = torch.arange(min(n or len(source), len(source))).split(2000)
    return (batch.x.flatten(1) for batch in source.batches(list(plan), torch.device("cpu")))


def pixels(train: Any, test: Any, most: int) -> tuple[Tensor, Tensor]:
    """The first training samples, as many as are fitted to, and the test samples: (M, D), (N, D)."""
    return torch.cat([*flat(train, most)]), torch.cat([*flat(test)])


def pca(train: Any, test: Any, most: int) -> tuple[Tensor, Tensor]:
    """Coordinates on the first principal components of the training set, exactly: (M, SIZE), (N, SIZE)."""
    mean = sum(x.double().sum(0) for x in flat(train)) / len(train)
    scatter = sum((x - mean).T @ (x - mean) for x in flat(train))
    vectors = torch.linalg.eigh(scatter).eigenvectors[:, -SIZE:]
    first, second = (
        torch.cat([((x - mean) @ vectors).float() for x in flat(s, n)]) for s, n in ((train, most), (test, None))
    )
    return first, second


def steps_of(name: str, share: float) -> int:
    return max(2, round(share * STEPS.get(name, MOST_STEPS)))


def trained(name: str, source: Any, seed: int, share: float, device: str) -> Any:
    torch.manual_seed(seed)
    model = aezoo.create_model(name, input_shape=source.shape, **{"latent_dim": SIZE, **MODELS[name]})
    aezoo.fit(
        model, source, steps=steps_of(name, share), batch_size=128, lr=2e-3, schedule="cosine",
        seed=seed, device=device, precision="fp32", progress=False,
    )  # fmt: skip
    return model


def judged(z: Tensor, y: Tensor, z_test: Tensor, y_test: Tensor, seed: int) -> dict[str, Any]:
    """Figures of one set of features."""
    scores, line = probe_report(z, y, z_test, y_test, seed=seed, progress=False)
    return {
        "scores": {k: [None if v != v else v for v in scores[k]] for k in NAMES},
        "line": line,
        "size": z.shape[1],
        "fitted": len(z),
    }


def measured(data: str, name: str, seed: int, train: Any, test: Any, o: argparse.Namespace) -> dict[str, Any]:
    """The row of one data set, one kind of features and one seed."""
    began = time.perf_counter()
    place = torch.device("cpu")
    if name in MODELS:
        model = trained(name, train, seed, o.share, o.device)
        place, fitted = next(model.parameters()).device, time.perf_counter()
        part = aezoo.load_data(train, limit=o.fitted)
        z, z_test = (aezoo.features(model, s, device=o.device, progress=False) for s in (part, test))
    else:
        z, z_test = (pca if name == "pca" else pixels)(train, test, o.fitted)
        fitted = time.perf_counter() if name == "pca" else began
    found = judged(z, train.labels.long()[: len(z)], z_test, test.labels.long(), seed)
    cuda = place.type == "cuda"
    where = torch.cuda.get_device_name(place) if cuda else f"{processor()}, {torch.get_num_threads()} threads"
    return {
        "data": data, "features": name, "seed": seed, **found, "fit_seconds": fitted - began,
        "seconds": time.perf_counter() - began, "hardware": where, "torch": torch.__version__,
        "steps": steps_of(name, o.share) if name in MODELS else 0,
    }  # fmt: skip


def figure(rows: list[dict[str, Any]], name: str) -> str:
    """Mean ± standard deviation over the seeds; of a single run, ± its standard error, if it has one."""
    scale = 1 if name.endswith("nmi") else 100
    digits = 3 if scale == 1 else 1
    values = [scale * r["scores"][name][0] for r in rows]
    mean = sum(values) / len(values)
    if len(values) > 1:
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        return f"{mean:.{digits}f} ± {spread:.{digits}f}"
    error = rows[0]["scores"][name][1]
    return f"{mean:.{digits}f}" + ("" if error is None or math.isnan(error) else f" (± {scale * error:.{digits}f})")


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# What codes tell of labels",
        "",
        "Written by `python benchmarks/features.py --data ROOT`. Models are trained on all training images without their labels, "
        f"{MOST_STEPS} steps of 128 samples (`conv_ae`: {STEPS['conv_ae']}), Adam at 2e-3 falling by a cosine; PCA is that of all training images. "
        "± is the standard deviation over seeds (training, order, k-means starts); in brackets, of a single run, the binomial standard error over the "
        "test images. Linear probe: multinomial logistic regression on standardised features. k-NN: the majority of the 10 nearest by "
        "angle. Both are fitted to the first training samples, as many as the table says, and judged on all test "
        "images. k-means: ten clusters of the test images' features, the best of ten starts; accuracy by the best assignment of clusters to "
        "classes. Seconds are wall-clock time, of a machine that may have had other work to do.",
        "",
    ]
    for data, title in SETS.items():
        of = [r for r in rows if r["data"] == data]
        if not of:
            continue
        lines += [
            f"## {title}",
            "",
            "| features | numbers | fitted | seeds | " + " | ".join(HEADS) + " | training, s | all, s |",
        ]
        lines.append("|---|" + "---:|" * 9)
        for name in ("pixels", "pca", *MODELS):
            some = [r for r in of if r["features"] == name]
            if some:
                mean = {k: sum(r[k] for r in some) / len(some) for k in ("fit_seconds", "seconds")}
                cells = [figure(some, n) for n in NAMES]
                label = {"pixels": "raw pixels", "pca": "PCA"}.get(name, f"`{name}`")
                lines.append(
                    f"| {label} | {some[0]['size']:,} | {some[0]['fitted']:,} | {len(some)} | {' | '.join(cells)} | "
                    f"{mean['fit_seconds']:.0f} | {mean['seconds']:.0f} |"
                )
        lines.append("")
    places = sorted({f"{r['hardware']}, torch {r['torch']}" for r in rows})
    lines += [f"*{'; '.join(places)}. {sum(r['seconds'] for r in rows) / 60:.0f} minutes in all.*", ""]
    return "\n".join(lines)


def main() -> None:
    o = parse()
    unknown = [s for s in o.only.split(",") if s not in SETS] + [m for m in o.models.split(",") if m not in MODELS]
    if unknown or not o.data:
        raise SystemExit(
            f"--only takes {', '.join(SETS)}, --models {', '.join(MODELS)}; --data the folder of the data sets"
        )
    o.out.mkdir(parents=True, exist_ok=True)
    file = o.out / "features.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    if o.fresh:
        rows = [
            r
            for r in rows
            if r["data"] not in o.only.split(",") or r["features"] not in (*BASELINES, *o.models.split(","))
        ]
    began, sets = time.perf_counter(), o.only.split(",")
    done = {(r["data"], r["features"], r["seed"]) for r in rows}
    todo = [(d, f, 0) for d in sets for f in (*o.models.split(","), *BASELINES)]
    todo += [(d, f, seed) for seed in range(1, o.seeds) for d in sets for f in o.models.split(",")]
    read = lru_cache(lambda d: (loaded(d, "train", o.data), loaded(d, "test", o.data)))
    for data, name, seed in tqdm([t for t in todo if t not in done], "features"):
        if time.perf_counter() - began > 60 * o.minutes:
            break
        rows.append(measured(data, name, seed, *read(data), o))
        tqdm.write(f"{data} {name} seed {seed}: {rows[-1]['line']} ({rows[-1]['seconds']:.0f} s)")
        write_json(file, rows)
        (o.out / "FEATURES.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
