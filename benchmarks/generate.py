"""How close samples come to Fashion-MNIST: Fréchet distance, precision and recall of five models under several priors, beside real pictures.

    python benchmarks/generate.py --data ROOT                     every model, prior and seed that has no figures yet
    python benchmarks/generate.py --data ROOT --minutes 12        stops before a model that would begin later; run it again to go on

ROOT holds FashionMNIST as torchvision lays it out. What pictures are compared by are the 64 features of a small classifier of clothes that is
trained here, on the 9,000 training pictures of fashion-mini (a part of Fashion-MNIST's): these are no published FIDs. Figures go to
benchmarks/generate.json after every model, a table to GENERATE.md and rows of samples to GENERATE.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import aezoo
from aezoo.metrics.features import feature_extractor
from aezoo.metrics.frechet import frechet_distance, precision_recall
from aezoo.randomness import mix_seed
from aezoo.storage import write_json
from aezoo.tasks import save_grid
from aezoo.zoo import processor

HERE = Path(__file__).parent
MLP = "mlp(widths=(512, 256), activation='silu')"
MODELS: dict[str, dict[str, Any]] = {
    "ae": {"latent_dim": 16, "backbone": MLP},
    "rae": {"latent_dim": 16, "backbone": MLP},
    "vae": {"latent_dim": 16, "backbone": MLP},
    "wae_mmd": {"latent_dim": 16, "backbone": MLP, "weight": 0.1},
    "vq_vae": {
        "latent_dim": 32,
        "backbone": "conv(widths=(32, 64), activation='silu')",
        "num_codes": 256,
        "decay": 0.95,
    },
}
STEPS = {"ae": 1000, "rae": 700, "vae": 1000, "wae_mmd": 700, "vq_vae": 400}
DENSITIES = {"normal": {}, "gmm": {"components": 10}, "flow": {"steps": 600}}
INDICES = {"autoregressive": {"width": 64, "layers": 2, "steps": 500, "lr": 3e-3}}
CODES = 10_000  # training pictures whose codes a prior is fitted to
FIGURES = ("frechet_distance", "precision", "recall")
ACROSS = 14  # samples of a row of the picture


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("AEZOO_DATA"), help="folder that holds FashionMNIST/raw")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=5_000, help="of each prior, and real pictures beside them")
    parser.add_argument("--share", type=float, default=1.0, help="of the training steps")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no model is begun after these")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--fresh", action="store_true", help="measure again what has figures already")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for generate.json, GENERATE.md and GENERATE.png")
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "aezoo-generate", help="for samples to draw"
    )
    return parser.parse_args()


def trained(name: str, source: Any, seed: int, o: argparse.Namespace) -> Any:
    torch.manual_seed(seed)
    model = aezoo.create_model(name, input_shape=source.shape, **MODELS[name])
    aezoo.fit(
        model, source, steps=max(2, round(o.share * STEPS[name])), batch_size=128, lr=2e-3, schedule="cosine", seed=seed, device=o.device,
        precision="fp32", progress=False,
    )  # fmt: skip
    return model


@torch.no_grad()
def drawn(model: Any, n: int, seed: int) -> Tensor:
    """n samples in [0, 1], on the CPU."""
    parts = []
    for i, first in enumerate(range(0, n, 500)):
        torch.manual_seed(mix_seed(seed, i))
        parts.append(model.sample(min(500, n - first)).clamp(0, 1).cpu())
    return torch.cat(parts)


def compared(real: Tensor, fake: Tensor, errors: bool = False) -> dict[str, list[float | None]]:
    """Fréchet distance, precision and recall of features; [value, jackknife's error or None]."""
    scores = {
        **frechet_distance(real, fake, groups=10 if errors else 0),
        **precision_recall(real, fake, halves=10 if errors else 0),
    }
    return {k: [v[0], None if math.isnan(v[1]) else v[1]] for k, v in scores.items()}


class Bench:
    def __init__(self, o: argparse.Namespace):
        self.o, self.began, self.file = o, time.perf_counter(), o.out / "generate.json"
        o.keep.mkdir(parents=True, exist_ok=True)
        o.out.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = (
            json.loads(self.file.read_text()) if self.file.is_file() and not o.fresh else []
        )
        self.train, self.test = (aezoo.load_data("fashion_mnist", split=s, root=o.data) for s in ("train", "test"))
        self.look = feature_extractor("fashion")
        self.pictures = self.test.peek(o.samples, torch.device("cpu")).x
        self.real = self.look(self.pictures)

    def add(
        self, model: str, prior: str, seed: int, x: Tensor, seconds: dict[str, float], errors: bool = False
    ) -> None:
        scores = compared(self.real, self.look(x), errors)
        place = (
            torch.cuda.get_device_name()
            if self.o.device.startswith("cuda")
            else f"{processor()}, {torch.get_num_threads()} threads"
        )
        self.rows.append({
            "model": model, "prior": prior, "seed": seed, "samples": len(x), "scores": scores, **seconds, "share": self.o.share,
            "features": self.look.description, "hardware": place, "torch": torch.__version__,
        })  # fmt: skip
        if seed == 0:
            np.save(self.o.keep / f"{model}-{prior}.npy", (x[:ACROSS] * 255).round().byte().numpy())
        tqdm.write(f"{model} {prior} seed {seed}: " + ", ".join(f"{k} {v[0]:.4g}" for k, v in scores.items()))

    def floor(self) -> None:
        """Other real pictures: what there is left to reach."""
        if not any(r["model"] == "real" for r in self.rows):
            order = self.train.order(0)[: self.o.samples]
            self.add("real", "training pictures", 0, self.train.subset(order.sort().values).peek(len(order), torch.device("cpu")).x,
                     {"train_seconds": 0.0, "prior_seconds": 0.0, "sample_seconds": 0.0}, errors=True)  # fmt: skip
            write_json(self.file, self.rows)

    def one(self, name: str, seed: int) -> None:
        """All rows of one model and seed."""
        start = time.perf_counter()
        model = trained(name, self.train, seed, self.o)
        train = time.perf_counter() - start
        like = next(model.parameters())
        with torch.no_grad():
            parts = self.pictures.split(500)
            back = torch.cat([model.reconstruct(x.to(like)).clamp(0, 1).cpu() for x in parts])
        self.add(
            name,
            "none: reconstructions",
            seed,
            back,
            {"train_seconds": train, "prior_seconds": 0.0, "sample_seconds": 0.0},
        )
        kinds: dict[str, Any] = {"own": None} if model.prior is not None else {}
        kinds |= INDICES if getattr(model, "index_prior", False) else DENSITIES
        codes = self.train.subset(self.train.order(seed)[:CODES])
        for kind, options in kinds.items():
            start = time.perf_counter()
            if options is not None:
                if "steps" in options:
                    options = {**options, "steps": max(2, round(self.o.share * options["steps"]))}
                aezoo.fit_prior(model, codes, kind, device=self.o.device, seed=seed, **options)
            fitted = time.perf_counter()
            x = drawn(model, self.o.samples, seed)
            spent = {"prior_seconds": fitted - start, "sample_seconds": time.perf_counter() - fitted}
            self.add(name, kind, seed, x, {"train_seconds": train, **spent})
        write_json(self.file, self.rows)

    def run(self) -> None:
        self.floor()
        done = {(r["model"], r["seed"]) for r in self.rows}
        todo = [(m, s) for s in range(self.o.seeds) for m in self.o.models.split(",") if (m, s) not in done]
        for name, seed in tqdm(todo, "models"):
            if time.perf_counter() - self.began > 60 * self.o.minutes:
                break
            self.one(name, seed)
            self.written()

    def written(self) -> None:
        (self.o.out / "GENERATE.md").write_text(markdown(self.rows))
        rows, names = [self.pictures[:ACROSS]], ["real test pictures"]
        for model in MODELS:
            for prior in dict.fromkeys(r["prior"] for r in self.rows if r["model"] == model):
                kept = self.o.keep / f"{model}-{prior}.npy"
                if kept.is_file():
                    rows.append(torch.from_numpy(np.load(kept)).float() / 255)
                    names.append(f"{model}, {'reconstructions' if prior.startswith('none') else prior}")
        save_grid(torch.stack(rows), self.o.out / "GENERATE.png", names)


def cell(rows: list[dict[str, Any]], name: str) -> str:
    """Mean ± standard deviation over seeds; of one run the value (± the jackknife's error)."""
    digits = 2 if name == "frechet_distance" else 3
    values = [r["scores"][name][0] for r in rows]
    mean = sum(values) / len(values)
    if len(values) > 1:
        return f"{mean:.{digits}f} ± {math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)):.{digits}f}"
    error = rows[0]["scores"][name][1]
    return f"{mean:.{digits}f}" + ("" if error is None else f" (± {error:.{digits}f})")


def markdown(rows: list[dict[str, Any]]) -> str:
    n = rows[0]["samples"]
    lines = [
        "# Samples, by model and prior",
        "",
        f"Written by `python benchmarks/generate.py --data ROOT`: {n:,} samples beside the first {n:,} test pictures of Fashion-MNIST. "
        f"Features: {rows[0]['features']}; so the Fréchet distances compare within this table only. Precision: the share of samples among the "
        'real ones, recall: the share of real ones among the samples (arXiv:1904.06991, k = 3). "real" are as many training pictures, the floor; '
        '"none: reconstructions" are those of the test pictures themselves, the best that a model\'s decoder was asked for. '
        f"Priors other than the model's own are fitted to the codes of {CODES:,} training pictures. ± is the standard deviation over "
        "seeds (training, prior, draws); in brackets, the jackknife's error of a single comparison. Seconds are wall time, on a machine that may "
        "have had other work.",
        "",
        "| model | prior | seeds | Fréchet distance | precision | recall | training, s | prior, s | sampling, s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model in ("real", *MODELS):
        of = [r for r in rows if r["model"] == model]
        for prior in dict.fromkeys(r["prior"] for r in of):
            some = [r for r in of if r["prior"] == prior]
            spent = [
                f"{sum(r[k] for r in some) / len(some):.0f}"
                for k in ("train_seconds", "prior_seconds", "sample_seconds")
            ]
            label = model if model == "real" else f"`{model}`"
            lines.append(
                f"| {label} | {prior} | {len(some)} | {' | '.join(cell(some, f) for f in FIGURES)} | {' | '.join(spent)} |"
            )
    steps = ", ".join(f"`{m}` {s:,}" for m, s in STEPS.items())
    places = sorted({f"{r['hardware']}, torch {r['torch']}" for r in rows})
    shares = sorted({r["share"] for r in rows})
    note = "" if shares == [1.0] else f" Shares of these steps: {', '.join(f'{s:g}' for s in shares)}."
    lines += [
        "",
        f"Training: steps of 128 pictures ({steps}), Adam at 2e-3 falling by a cosine; all with 16 latents, `vq_vae` with 7x7 of 256 codes.{note} "
        "Seconds are wall-clock time, of a machine that may have had other work to do.",
        "",
        "![Rows of samples: real pictures, then each model's reconstructions and its samples by prior](GENERATE.png)",
        "",
        f"*{'; '.join(places)}.*",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    o = parse()
    unknown = [m for m in o.models.split(",") if m not in MODELS]
    if unknown or not o.data:
        raise SystemExit(f"--models takes {', '.join(MODELS)}; --data the folder that holds FashionMNIST/raw")
    bench = Bench(o)
    bench.run()
    bench.written()
    print(markdown(bench.rows))


if __name__ == "__main__":
    main()
