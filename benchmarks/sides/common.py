"""What the sides of a benchmark share: arguments, data, clock and the formulas of the final losses.

Each side is a script that trains once in a process of its own and prints one line of JSON. Nothing here imports aezoo or a peer,
and torch is imported only where a function needs it (a Keras side may run on JAX).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

LR = 1e-3
LATENTS, KEPT = 12288, 32  # of the sparse autoencoders
EVALUATION_ROWS = 2000  # rows at once, so that evaluating never needs more memory than training


def arguments(**defaults: Any) -> argparse.Namespace:
    """The flags that all sides know; `defaults` are those of this side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder that holds MNIST/raw, as torchvision lays it out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=None, help="train on the first that many samples only")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--net", default="mlp", choices=["mlp", "conv"], help="which VAE")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="the whole step compiled")
    parser.add_argument("--many", type=int, default=1, help="models trained at once")
    parser.set_defaults(**defaults)
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------------------- clock


class Report:
    """Collects what a side measures; `write` prints it as one line of JSON."""

    def __init__(self, args: argparse.Namespace, *packages: str):
        self.args, self.packages = args, packages
        self.seconds: list[float] = []
        self.values: dict[str, Any] = {"imported_mb": peak_mb()}
        self.mark = self.began = time.perf_counter()

    def start(self) -> None:
        """The training call comes next."""
        self.synchronise()
        self.mark = self.began = time.perf_counter()

    def epoch(self, *_: Any) -> None:
        """An epoch has just ended. Takes and ignores whatever a callback is given."""
        self.synchronise()
        now = time.perf_counter()
        self.seconds.append(now - self.mark)
        self.mark = now

    def trained(self) -> None:
        """The training call has returned: notes how long it took, how long after the start of the process that is, and the
        largest memory until now."""
        self.synchronise()
        self.values["fit_s"] = time.perf_counter() - self.began
        self.values["ready_s"] = time.time() - float(os.environ.get("BENCHMARK_STARTED", "nan"))
        self.values["peak_mb"] = peak_mb()
        if self.args.device.startswith("cuda"):
            import torch

            self.values["device_peak_mb"] = torch.cuda.max_memory_allocated() / 1e6

    def scoring(self, score: Callable[[], Any], in_training: bool = False) -> None:
        """Times the scoring of all rows: the middle one of three calls, which return when the scores are on the host.

        `in_training`: the training call has scored the rows already, as a part of it."""
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            score()
            seconds.append(time.perf_counter() - began)
        self.values["score_s"] = sorted(seconds)[1]
        self.values["scored_s"] = self.values["fit_s"] + (0.0 if in_training else self.values["score_s"])

    def synchronise(self) -> None:
        if self.args.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()

    def write(self, **values: Any) -> None:
        versions = {name: importlib.metadata.version(name) for name in self.packages}
        record = {"epoch_s": self.seconds, **self.values, **values, "versions": versions}
        sys.stdout.flush()
        print("\n" + json.dumps(record), flush=True)


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB. VmHWM rather than ru_maxrss, which a child inherits."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory instead of giving it back to the kernel at nearly every step: no page faults then.

    mallopt(M_MMAP_MAX = -4, 0) and mallopt(M_TRIM_THRESHOLD = -1, 2^31 - 1)."""
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-4, 0)
            libc.mallopt(-1, 2**31 - 1)


# -------------------------------------------------------------------------------------------------------------- data


def images(args: argparse.Namespace, train: bool = True) -> np.ndarray:
    """MNIST's pixels, uint8 (N, 784)."""
    path = args.data / "MNIST" / "raw" / f"{'train' if train else 't10k'}-images-idx3-ubyte"
    count = -1 if args.samples is None or not train else 784 * args.samples
    return np.fromfile(path, np.uint8, count, offset=16).reshape(-1, 784)


def float_images(args: argparse.Namespace) -> np.ndarray:
    """The training images as float32 in [0, 1], for the sides that take no uint8."""
    return np.divide(images(args), 255, dtype=np.float32)


def table(args: argparse.Namespace) -> np.ndarray:
    """50,000 rows of 32 standardised features, float32: eight hidden causes, mixed, bent and noisy; always the same."""
    rng = np.random.default_rng(0)
    causes = rng.standard_normal((50_000, 8))
    mixed = np.tanh(causes @ rng.standard_normal((8, 32))) + 0.3 * rng.standard_normal((50_000, 32))
    return ((mixed - mixed.mean(0)) / mixed.std(0)).astype(np.float32)[: args.samples]


def batches_of_activations(x: Any, args: argparse.Namespace, report: Report) -> Iterator[Any]:
    """Batches in a new random order each epoch, for the loops that ask an iterator. An epoch has ended when the first batch of
    the next is asked for, so that whoever iterates calls `report.epoch()` after the last."""
    import torch

    for epoch in range(args.epochs):
        if epoch:
            report.epoch()
        for index in torch.randperm(len(x), device=x.device).split(args.batch):
            yield x.index_select(0, index)


def activations(rows: int, seed: int) -> Any:
    """(rows, 768) float32, each a sum of 32 out of 4,096 unit directions, plus noise; scaled so that an entry's variance is 1."""
    import torch

    directions = torch.randn(4096, 768, generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=1, keepdim=True)
    rng = torch.Generator().manual_seed(1 + seed)
    which = torch.randint(4096, (rows, 32), generator=rng)
    weight = torch.rand(rows, 32, generator=rng) + 0.5
    x = torch.nn.functional.embedding_bag(which, directions, per_sample_weights=weight, mode="sum")
    x += 0.01 * torch.randn(x.shape, generator=rng)
    return x * (768 / x.square().sum(1).mean()).sqrt()


# ------------------------------------------------------------------------------------------------------- final losses


def negative_bound(
    args: argparse.Namespace,
    encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    decode: Callable[[np.ndarray], np.ndarray],
) -> float:
    """Nats per test image: BCE(x, p(x | z = mu)) + KL(N(mu, exp(logvar)) || N(0, I)), with no draw, so that it has no noise.

    `encode`: (B, 784) -> mu, logvar (B, K). `decode`: (B, K) -> probabilities (B, 784)."""
    x = images(args, train=False)
    total = 0.0
    for at in range(0, len(x), EVALUATION_ROWS):
        part = x[at : at + EVALUATION_ROWS].astype(np.float32) / 255
        mu, logvar = encode(part)
        p = np.clip(decode(mu).reshape(part.shape), 1e-7, 1 - 1e-7)
        total -= float((part * np.log(p) + (1 - part) * np.log1p(-p)).sum(dtype=np.float64))
        total += float(0.5 * (mu**2 + np.exp(logvar) - 1 - logvar).sum(dtype=np.float64))
    return total / len(x)


def torch_bound(
    args: argparse.Namespace, posterior: Callable[[Any], Any], probabilities: Callable[[Any], Any]
) -> float:
    """`negative_bound` of functions on tensors: posterior (B, 1, 28, 28) -> (mu, logvar), probabilities (B, K) -> (B, ...)."""
    import torch

    @torch.no_grad()
    def encode(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mu, logvar = posterior(torch.from_numpy(x).view(-1, 1, 28, 28).to(args.device))
        return mu.float().cpu().numpy(), logvar.float().cpu().numpy()

    @torch.no_grad()
    def decode(z: np.ndarray) -> np.ndarray:
        return probabilities(torch.from_numpy(z).to(args.device)).float().cpu().numpy()

    return negative_bound(args, encode, decode)


def squared_error(x: np.ndarray, reconstruct: Callable[[Any], Any], device: str) -> float:
    """Mean over rows and features of (x - x^)^2: (N, 32) -> (N, 32), a function on tensors."""
    import torch

    rows = torch.from_numpy(x).to(device)
    with torch.no_grad():
        return float((reconstruct(rows) - rows).square().mean())


def dictionary(args: argparse.Namespace) -> Any:
    """(12288, 768) unit rows: where encoder and decoder of every sparse autoencoder start."""
    import torch

    rows = torch.randn(LATENTS, 768, generator=torch.Generator().manual_seed(7))
    return (rows / rows.norm(dim=1, keepdim=True)).to(args.device)


def unexplained(reconstruct: Callable[[Any], Any], device: str) -> float:
    """Share of the variance of 2,048 held-out activations that `reconstruct` leaves: (B, 768) -> (B, 768)."""
    import torch

    x = activations(2048, seed=1).to(device)
    with torch.no_grad():
        return float((reconstruct(x) - x).square().sum() / (x - x.mean(0)).square().sum())


def stand_in(mini: str, folder: str) -> None:
    """Writes fashion-mini (an .npz), repeated to MNIST's size, into folder/MNIST/raw in MNIST's format."""
    raw = Path(folder) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    with np.load(mini) as held:
        for part, split, count in (("train", "train", 60_000), ("t10k", "test", 10_000)):
            x = np.resize(held[f"x_{split}"], (count, 28, 28))
            (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + x.tobytes())
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + bytes(count))


if __name__ == "__main__":
    stand_in(*sys.argv[1:])
