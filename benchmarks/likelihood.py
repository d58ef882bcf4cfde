"""Test log-likelihood of VAE and IWAE with the one-layer network of Burda et al. 2016 (arXiv:1509.00519), beside what they published.

    python benchmarks/likelihood.py --data ROOT                      a budget for two CPU cores, about half an hour
    python benchmarks/likelihood.py --data ROOT --full --device cuda  the paper's schedule: 3,280 epochs

784-200-200-50 with tanh units, Bernoulli likelihood, MNIST binarised anew at every visit, Adam (eps 1e-4, as in the paper). L_5000 is
-log 1/5000 sum_i p(x, z_i) / q(z_i | x), the mean over test images that the seed draws and binarises once, in nats. The figures are
printed and written to benchmarks/likelihood.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from tqdm import tqdm

import aezoo
from aezoo.train.hardware import processor

PUBLISHED = {"vae": 86.76, "iwae": 84.78}  # table 1 of the paper, one stochastic layer, k = 1 (VAE) and k = 50
BACKBONE = "mlp(widths=(200, 200), activation='tanh')"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("AEZOO_DATA"), help="folder that holds MNIST/raw")
    parser.add_argument("--models", default="vae,iwae")
    parser.add_argument("--epochs", default="60,12", help="of each model; the rate falls by a cosine")
    parser.add_argument("--k", type=int, default=50, help="importance samples of iwae's training bound")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--samples", type=int, default=5000, help="importance samples of the estimate")
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument(
        "--full", action="store_true", help="the paper's schedule and batch size, all 10,000 test images"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


def train(name: str, epochs: int, o: argparse.Namespace) -> tuple[aezoo.BaseAE, int, float]:
    """(model, epochs, seconds)."""
    torch.manual_seed(o.seed)
    options = {"k": o.k} if name == "iwae" else {}
    model = aezoo.create_model(
        name, input_shape=(1, 28, 28), latent_dim=50, backbone=BACKBONE, likelihood="bernoulli", **options
    )
    data = aezoo.load_data("mnist", root=o.data, binarize="dynamic")
    common = {"optimizer": "adam(eps=1e-4)", "device": o.device, "precision": "fp32"}
    began = time.perf_counter()
    if o.full:
        for i in range(8):  # 3^i epochs at 10^(-i/7) times the rate
            aezoo.fit(model, data, epochs=3**i, lr=o.lr * 10 ** (-i / 7), batch_size=20, seed=o.seed + i, **common)
        return model, sum(3**i for i in range(8)), time.perf_counter() - began
    aezoo.fit(model, data, epochs=epochs, lr=o.lr, batch_size=o.batch_size, schedule="cosine", seed=o.seed, **common)
    return model, epochs, time.perf_counter() - began


def estimate(model: aezoo.BaseAE, o: argparse.Namespace) -> tuple[float, float, int]:
    """(L_5000, its standard error over the images, number of images), in nats."""
    source = aezoo.load_data("mnist", root=o.data, split="test", binarize="static")
    if not o.full:
        source = source.subset(source.order(o.seed)[: o.images])
    device = next(model.parameters()).device
    torch.manual_seed(o.seed)
    plan = list(torch.arange(len(source)).split(100))
    values = [
        -model.log_prob(batch.x, o.samples)
        for batch in tqdm(source.batches(plan, device), total=len(plan), desc="log_prob")
    ]
    nll = torch.cat(values).double()
    return float(nll.mean()), float(nll.std() / len(nll) ** 0.5), len(nll)


def main() -> None:
    o = parse()
    rows = []
    for name, epochs in zip(o.models.split(","), map(int, o.epochs.split(","))):
        model, seen, seconds = train(name, epochs, o)
        nll, error, images = estimate(model, o)
        place = next(model.parameters()).device
        where = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{processor()}, {os.cpu_count()} cores"
        rows.append({
            "model": name, "k": o.k if name == "iwae" else 1, "epochs": seen, "nll": nll, "stderr": error, "images": images,
            "samples": o.samples, "published": PUBLISHED.get(name), "published_epochs": 3280, "seconds": seconds,
            "hardware": where, "torch": torch.__version__, "seed": o.seed,
        })  # fmt: skip
        o.out.write_text(json.dumps(rows, indent=1) + "\n")
    for r in rows:
        print(
            f"{r['model']} (k={r['k']}): L_{r['samples']} = {r['nll']:.2f} ± {r['stderr']:.2f} nats on {r['images']:,} test images after "
            f"{r['epochs']:,} epochs ({r['seconds'] / 60:.1f} minutes); published: {r['published']} after {r['published_epochs']:,} epochs"
        )
    print(f"{rows[-1]['hardware']}, torch {torch.__version__}, seed {o.seed}")


if __name__ == "__main__":
    main()
