"""More data than memory: trains on a data set made on the fly, and says what it took.

    python benchmarks/stream.py --gb 10 --format npy         # or safetensors, tar (WebDataset, png), folder (png files)

The data set (grey uint8 images with blobs) is written to a temporary folder and removed afterwards. Each figure comes from a fresh
process: one epoch from the files; the same model on as many steps of a tensor in memory; and half an epoch's steps, resumed in
another process, whose weights must be those of an uninterrupted run to the bit. Memory is the peak resident set of the training
process (ru_maxrss) and, where there are loader processes or /proc says it, the peak of all of them together (PSS).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 64 * 2**20  # bytes of samples that are made at once
SHARD = 512 * 2**20  # bytes of samples in a shard


# ------------------------------------------------------------------------------------------------------------- the data


def chunks(count: int, side: int) -> Iterator[np.ndarray]:
    """`count` images (n, 1, side, side) uint8, each the mean of two of 512 blobs; no two alike in practice."""
    g = np.random.default_rng(0)
    t = np.linspace(-1, 1, side, dtype=np.float32)
    cx, cy, w = g.uniform(-0.7, 0.7, (3, 512, 1, 1)).astype(np.float32)
    blobs = np.exp(-((t[:, None] - cx) ** 2 + (t[None] - cy) ** 2) / (0.05 + 0.1 * np.abs(w)))
    blobs = (blobs * 127).astype(np.uint8)[:, None]
    while count:
        n = min(count, CHUNK // side**2)
        x = blobs[g.integers(0, 512, n)]
        x += blobs[g.integers(0, 512, n)]
        yield x
        count -= n


def png(image: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image[0]).save(out, "PNG", compress_level=1)
    return out.getvalue()


def make(folder: Path, kind: str, count: int, side: int) -> str:
    """Writes the data set, chunk by chunk; returns what to give to `load_data`."""
    if kind == "npy":
        with open(folder / "images.npy", "wb") as f:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, 1, side, side)}
            np.lib.format.write_array_header_1_0(f, header)
            for x in chunks(count, side):
                x.tofile(f)
        return str(folder / "images.npy")
    done = 0
    for x in chunks(count, side):
        number = done * side**2 // SHARD
        if kind == "safetensors":
            from safetensors.numpy import save_file

            save_file({"x": x, "y": np.arange(done, done + len(x)) % 10}, folder / f"shard-{done:09}.safetensors")
        elif kind == "tar":
            with tarfile.open(folder / f"shard-{number:05}.tar", "a") as tar:
                for i, image in enumerate(x, done):
                    for ending, content in (("png", png(image)), ("cls", str(i % 10).encode())):
                        info = tarfile.TarInfo(f"{i:09}.{ending}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        else:
            below = folder / f"part-{number:05}"
            below.mkdir(exist_ok=True)
            for i, image in enumerate(x, done):
                (below / f"{i:09}.png").write_bytes(png(image))
        done += len(x)
    return str(folder)


# -------------------------------------------------------------------------------------------------- in a fresh process


def train(data: str, steps: int, batch_size: int, out: str, resume: bool, held: int) -> dict[str, Any]:
    """Trains from `data`, or, if `held`, on a tensor of its first `held` samples; what it reached, and its memory."""
    import torch

    import aezoo

    began = time.perf_counter()
    source = aezoo.load_data(data)
    opened = time.perf_counter() - began
    if held:
        source = aezoo.load_data((source.peek(held, torch.device("cpu")).x * 255).round().to(torch.uint8))
    torch.manual_seed(0)
    width = max(8, 2**18 // math.prod(source.shape))  # small, so that the reading shows
    model = aezoo.create_model("ae", input_shape=source.shape, latent_dim=16, backbone=f"mlp(widths=({width},))")
    result = aezoo.fit(
        model, source, steps=steps, batch_size=batch_size, out=out or None, resume=resume, progress=False, device="cpu"
    )
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in result.model.state_dict().values())).hexdigest()
    return {
        "kind": type(source).__name__,
        "loss": result.history[-1]["loss"],
        "samples_per_s": result.samples_per_s,
        "weights": digest,
        "open_s": round(opened, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
    }


def all_memory(pid: int) -> float:
    """MB of a process and its children: each page counted once (PSS). 0 where /proc does not say."""
    total = 0.0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1024
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += all_memory(int(child))
    except OSError:
        pass  # it has just ended
    return total


def fresh(**job: Any) -> dict[str, Any]:
    """`train` in a process of its own, with the peak of its memory and its children's."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    peak, ended = [0.0], threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def watch() -> None:
            while not ended.wait(0.5):
                peak[0] = max(peak[0], all_memory(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            output = process.communicate()[0]
        finally:
            process.kill()
            ended.set()
            watcher.join()
    if process.returncode:
        raise SystemExit(f"the training process failed ({process.returncode}): {job}")
    return {**json.loads(output.splitlines()[-1]), "all_mb": peak[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gb",
        type=float,
        default=10.0,
        help="size of the decoded samples, in 10^9 bytes; above 2.15 (2 GiB) they are streamed",
    )
    parser.add_argument("--format", choices=["npy", "safetensors", "tar", "folder"], default="npy")
    parser.add_argument("--side", type=int, default=None, help="of an image; default 64, and 256 for png")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=None, help="default: one epoch")
    parser.add_argument("--dir", default=None, help="where the temporary folder is made")
    parser.add_argument("--job", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(train(**json.loads(options.job))))
        return
    side = options.side or (64 if options.format in ("npy", "safetensors") else 256)
    count = int(options.gb * 1e9) // side**2
    steps = options.steps or count // options.batch_size
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the folder is removed then, too
    folder = Path(tempfile.mkdtemp(prefix="aezoo-stream-", dir=options.dir))
    try:
        began = time.perf_counter()
        data = make(folder, options.format, count, side)
        stored = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        print(
            f"{options.format}: {count:,} images of {side}x{side}, {count * side**2 / 1e9:.1f} GB decoded, "
            f"{stored / 1e9:.1f} GB of files, made in {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        job = {"data": data, "batch_size": options.batch_size, "steps": steps, "out": "", "resume": False, "held": 0}
        streamed = fresh(**job)
        print(
            f"streamed   {streamed['kind']}, opened in {streamed['open_s']} s, {steps:,} steps of {options.batch_size}: "
            f"{streamed['samples_per_s']:,.0f} samples/s, loss {streamed['loss']:.5f}, peak {streamed['peak_mb']:,.0f} MB "
            f"resident ({streamed['all_mb']:,.0f} MB with loader processes)",
            flush=True,
        )
        few = min(steps, 500)
        held = fresh(**{**job, "steps": few, "held": min(count, 200_000_000 // side**2)})
        print(
            f"in memory  {held['samples_per_s']:,.0f} samples/s over {few:,} steps: streaming runs at "
            f"{streamed['samples_per_s'] / held['samples_per_s']:.2f} of it",
            flush=True,
        )
        several = min(steps, 200)
        whole = fresh(**{**job, "steps": several})
        fresh(**{**job, "steps": several // 2, "out": str(folder / ".run")})
        parts = fresh(**{**job, "steps": several, "out": str(folder / ".run"), "resume": True})
        equal = whole["weights"] == parts["weights"]
        print(f"resumed    at step {several // 2} of {several}: weights {'equal to the bit' if equal else 'DIFFER'}")
        peak = max(streamed["peak_mb"], streamed["all_mb"])
        if not equal or peak > 1500:
            raise SystemExit(f"failed: {'weights differ' if not equal else f'{peak:,.0f} MB resident'}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
