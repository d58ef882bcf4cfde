"""Kills a run with SIGKILL at random moments, goes on with it, and compares the end with a run that nobody touched, bit for bit.

    python benchmarks/stress.py [--kills 100] [--seed 0] [--device cpu] [--out benchmarks/stress.json]

The run has everything that is drawn at random: shuffling, corruption, dropout, a posterior, dynamic binarisation; and
accumulation, a schedule, averaged weights, validation, checkpoints every few steps, pictures and samples at the end. A run is
started, killed after a random time, started again with resume=True, killed again up to three times in all, and then ends; then
the next. Compared are weights, best weights, averages, optimiser state, the whole saved state, and metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

import aezoo
import aezoo.pictures
import aezoo.train
from aezoo.storage import read_tensors
from aezoo.train.checkpoints import Checkpoints, read


def work(out: Path, device: str) -> None:
    """The run, from its beginning or from wherever it was killed."""
    torch.manual_seed(3)
    model = aezoo.create_model(
        "vae", input_shape=(1, 28, 28), latent_dim=8, likelihood="bernoulli", kl_warmup=40, corruption="masking(p=0.1)",
        backbone="mlp(widths=(32,), norm='batch', dropout=0.1)",
    )  # fmt: skip
    data = aezoo.load_data("fashion-mini", binarize="dynamic", limit=2000)
    aezoo.fit(
        model, data, epochs=8, batch_size=32, val=0.2, ema=0.99, accumulate=2, clip=1.0, schedule="cosine", warmup=10,
        checkpoint_every=15, log_every=19, seed=5, device=device, deterministic=device != "cpu", out=out, resume=True,
        progress=False,
    )  # fmt: skip


def start(out: Path, device: str) -> int:
    """The run in a process of its own, forked from this one, which has imported everything and run nothing. Returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work(out, device)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int, seconds: float) -> int | None:
    """Exit code, or None if it still runs after that long."""
    until = time.perf_counter() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.perf_counter() > until:
            return None
        time.sleep(0.001)


def moment(out: Path) -> str:
    """What the run was doing when it was killed, as far as its folder tells."""
    if not (out / "metrics.jsonl").exists():
        return "before the first step"
    if any((out / "checkpoints").glob(".*")):
        return "writing a checkpoint"
    if any(out.glob(".*.tmp")) or any((out / "last").glob(".*")):
        return "writing a model or a log"
    if (out / "last").exists():
        return "pictures and samples at the end"
    return "training or validating"


def differences(a: Path, b: Path) -> list[str]:
    """What is not the same in two finished runs."""
    (state_a, tensors_a), (state_b, tensors_b) = (read(Checkpoints(p / "checkpoints").paths()[-1]) for p in (a, b))
    found = [f"state: {k}" for k in state_a if state_a[k] != state_b.get(k)]
    pairs = {"checkpoint": (tensors_a, tensors_b)}
    for name in ("model.safetensors", "last/model.safetensors"):
        pairs[name] = (read_tensors(a / name)[0], read_tensors(b / name)[0])
    for name, (x, y) in pairs.items():
        found += [f"{name}: {k}" for k in x if k not in y or not torch.equal(x[k], y[k])]
    if (a / "metrics.jsonl").read_bytes() != (b / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default=str(Path(__file__).with_name("stress.json")))
    o = parser.parse_args()
    rng = random.Random(o.seed)
    began = time.time()
    kills, resumed, moments, wrong = 0, 0, Counter[str](), []
    with tempfile.TemporaryDirectory() as folder, tqdm(total=o.kills, unit="kill") as bar:
        whole = Path(folder) / "whole"
        clock = time.perf_counter()
        if wait(start(whole, o.device), 600):
            raise SystemExit("the undisturbed run failed")
        longest = time.perf_counter() - clock
        while kills < o.kills:
            out = Path(folder) / f"run-{kills}"
            often = min(rng.randint(1, 3), o.kills - kills)  # then it may end: what is left to do shrinks each time
            while True:
                child = start(out, o.device)
                code = wait(child, rng.uniform(0.0, 1.0) * longest if often else 600)
                if code is None:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    kills += 1
                    often -= 1
                    moments[moment(out)] += 1
                    bar.update()
                    continue
                if code:
                    wrong.append(f"{out.name}: exit code {code}")
                break
            resumed += 1
            if not wrong or not wrong[-1].startswith(f"{out.name}:"):
                wrong += [f"{out.name}: {d}" for d in differences(whole, out)]
            shutil.rmtree(out, ignore_errors=True)
    result = {
        "kills": kills, "runs": resumed, "moments": dict(moments), "differences": wrong, "seed": o.seed, "device": o.device,
        "minutes": round((time.time() - began) / 60, 1), "torch": torch.__version__, "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }  # fmt: skip
    Path(o.out).write_text(json.dumps(result, indent=2) + "\n")
    print(f"{kills} kills in {resumed} runs, {result['minutes']} minutes: " + ("every run ended bit-equal" if not wrong else f"{len(wrong)} DIFFERENCES"))  # fmt: skip
    for name, n in moments.most_common():
        print(f"  {n:4d} x {name}")
    for line in wrong[:20]:
        print(f"  {line}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
