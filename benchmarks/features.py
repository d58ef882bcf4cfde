"""How much codes tell of labels: linear probe, k-NN and k-means on codes of five models, beside raw pixels and PCA of the same size.

    python benchmarks/features.py --data ROOT                         every data set, model and seed that has no figures yet
    python benchmarks/features.py --data ROOT --only mnist --fresh    one data set, anew

ROOT holds MNIST and FashionMNIST as torchvision lays them out, and cifar10 likewise or as cifar10-train.npz and cifar10-test.npz (x uint8
(N, 3, 32, 32), y). No model sees a label. The linear probe and k-NN are fitted to the training set and judged on the test set; k-means
sees the codes of the test set. Figures of every finished run are written to benchmarks/features.json at once, and all of them as a table to
benchmarks/FEATURES.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
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
    "k_sparse_ae": {"backbone": "linear", "latent_dim": 1024, "k": 25, "anneal": 500},
}
STEPS = {"conv_ae": 1000}  # optimiser steps of 128 samples; the others 2,000
NAMES = ("linear_probe_accuracy", "knn_accuracy", "kmeans_accuracy", "kmeans_nmi")
HEADS = ("linear probe, %", "k-NN, %", "k-means, %", "k-means, NMI")
WIDE = 1024  # features from which probes are fitted to FITTED samples only
FITTED = 20_000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("AEZOO_DATA"), help="folder that holds the data sets")
    parser.add_argument("--only", default=",".join(SETS), help="data sets, with commas between")
    parser.add_argument("--models", default=",".join(MODELS), help="models, with commas between")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--fresh", action="store_true", help="measure again what has figures already")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for features.json and FEATURES.md")
    return parser.parse_args()


def loaded(name: str, split: str, root: str) -> Any:
    file = Path(root) / f"{name}-{split}.npz"
    return aezoo.load_data(str(file)) if file.is_file() else aezoo.load_data(name, split=split, root=root)


def pixels(source: Any) -> Tensor:
    """(N, D) in [0, 1]."""
    batch = source.peek(len(source), torch.device("cpu"))
    return batch.x.flatten(1)


def pca(train: Tensor, test: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Coordinates on the first principal components of the training set, exactly."""
    mean = train.mean(0)
    centred = train - mean
    vectors = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors[:, -size:].float()
    return centred @ vectors, (test - mean) @ vectors


def trained(name: str, source: Any, seed: int, steps: int, device: str) -> Any:
    torch.manual_seed(seed)
    model = aezoo.create_model(name, input_shape=source.shape, **{"latent_dim": SIZE, **MODELS[name]})
    aezoo.fit(
        model, source, steps=STEPS.get(name, steps) if steps == 2000 else steps, batch_size=128, lr=2e-3, schedule="cosine",
        seed=seed, device=device, precision="fp32", progress=False,
    )  # fmt: skip
    return model


def judged(z: Tensor, y: Tensor, z_test: Tensor, y_test: Tensor, seed: int) -> dict[str, Any]:
    """Figures of one set of features; wide ones are fitted to a part of the training set."""
    if z.shape[1] >= WIDE and len(z) > FITTED:
        z, y = z[:FITTED], y[:FITTED]
    scores, line = probe_report(z, y, z_test, y_test, seed=seed, progress=False)
    return {
        "scores": {k: [None if v != v else v for v in scores[k]] for k in NAMES},
        "line": line,
        "size": z.shape[1],
        "fitted": len(z),
    }


def measure(data: str, o: argparse.Namespace, rows: list[dict[str, Any]], file: Path) -> None:
    """Appends a row for each model and seed of one data set that has none."""
    train, test = (loaded(data, split, o.data) for split in ("train", "test"))
    y, y_test = (s.labels.long() for s in (train, test))
    wanted = [(name, 0) for name in ("pixels", "pca")]
    wanted += [(name, seed) for seed in range(o.seeds) for name in o.models.split(",")]
    done = {(r["data"], r["features"], r["seed"]) for r in rows}
    bar = tqdm([w for w in wanted if (data, *w) not in done], data)
    for name, seed in bar:
        bar.set_postfix_str(f"{name}, seed {seed}")
        began = time.perf_counter()
        if name in MODELS:
            model = trained(name, train, seed, o.steps, o.device)
            fit_seconds = time.perf_counter() - began
            z, z_test = (aezoo.features(model, s, device=o.device, progress=False) for s in (train, test))
            place = next(model.parameters()).device
        else:
            z, z_test, fit_seconds, place = pixels(train), pixels(test), 0.0, torch.device("cpu")
            if name == "pca":
                z, z_test = pca(z, z_test, SIZE)
                fit_seconds = time.perf_counter() - began
        found = judged(z, y, z_test, y_test, seed)
        where = (
            torch.cuda.get_device_name(place)
            if place.type == "cuda"
            else f"{processor()}, {torch.get_num_threads()} threads"
        )
        rows.append({
            "data": data, "features": name, "seed": seed, **found, "fit_seconds": fit_seconds,
            "seconds": time.perf_counter() - began, "hardware": where, "torch": torch.__version__,
            "steps": 0 if name not in MODELS else STEPS.get(name, o.steps) if o.steps == 2000 else o.steps,
        })  # fmt: skip
        write_json(file, rows)
        tqdm.write(f"{data} {name} seed {seed}: {found['line']} ({rows[-1]['seconds']:.0f} s)")


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
        "Written by `python benchmarks/features.py --data ROOT`. Models are trained on the training images without their labels, 2,000 steps "
        "of 128 samples (`conv_ae`: 1,000), Adam at 2e-3 falling by a cosine. ± is the standard deviation over seeds (training, order, k-means "
        "starts); in brackets, where nothing is drawn, the binomial standard error over the test images. Linear probe: multinomial "
        "logistic regression on standardised features. k-NN: the majority of the 10 nearest by angle. Both are fitted to the training "
        f'set (features of {WIDE:,} numbers and more: to its first {FITTED:,} samples, see "fitted") and judged on the 10,000 test '
        "images. k-means: ten clusters of the test images' features, the best of ten starts; accuracy by the best assignment of clusters to "
        "classes.",
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
            if r["data"] not in o.only.split(",") or r["features"] not in ("pixels", "pca", *o.models.split(","))
        ]
    for data in o.only.split(","):
        measure(data, o, rows, file)
        (o.out / "FEATURES.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
