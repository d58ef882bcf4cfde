"""Kills a run with SIGKILL at random moments, goes on with it, and compares the end with a run that nobody touched, bit for bit.

Every second kill comes after a random time, wherever the run is then. The others are spread: each waits until the run is doing a
thing that is drawn from `STAGES` (which by time alone is rarely hit: a checkpoint takes milliseconds), for a number of times that
is drawn too, and then for a random part of about how long it takes. What the run is doing it says itself, in a byte of memory that
it shares with the one that kills, so the labels in the results are exact.

    python benchmarks/stress.py [--kills 100] [--seed 0] [--device cpu] [--accumulate 2] [--out benchmarks/stress.json]

The run has everything that is drawn at random: shuffling, corruption, dropout, a posterior, dynamic binarisation; and
accumulation, a schedule, averaged weights, validation, checkpoints every few steps, pictures and samples at the end. A run is
started, killed, started again with resume=True, killed again up to three times in all, and then ends; then
the next. With `--accumulate 1` its steps are replayed (`aezoo.train.taped`). Compared are weights, best weights, averages, optimiser state, the whole saved state, and metrics.jsonl.
"""

from __future__ import annotations

import argparse
import functools
import json
import mmap
import os
import platform
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import aezoo
import aezoo.pictures
import aezoo.train
from aezoo.storage import read_tensors
from aezoo.train import ending, loop
from aezoo.train.checkpoints import Checkpoints, read
from aezoo.train.run import RunFolder

STAGES: dict[str, tuple[Any, str]] = {  # what a run does: the function that does it
    "a step": (loop._Trainer, "one_step"),
    "a row: means, finite?": (loop._Trainer, "log"),
    "a validation": (loop, "mean_loss"),
    "writing a checkpoint": (Checkpoints, "write"),
    "writing a row": (RunFolder, "append"),
    "writing a model": (RunFolder, "save_model"),
    "the end": (ending, "finish"),
    "pictures and samples": (aezoo.pictures, "draw_run"),
    "between": (loop._Trainer, "epoch"),
    "starting or resuming": (loop._Trainer, "prepare"),
}
LASTS = {
    "a validation": 0.02,
    "writing a checkpoint": 0.02,
    "pictures and samples": 2.0,
    "starting or resuming": 0.05,
    "writing a model": 0.005,
}  # seconds, about; the others 2 ms
SPREAD = [name for name in STAGES if name not in ("between", "the end")]
NOW = mmap.mmap(
    -1, 2 * len(STAGES)
)  # shared: NOW[0] is the stage, NOW[1 + stage] how often it was entered (modulo 256)


def watched(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; while it runs it says so."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = NOW[0]
        NOW[1 + number] = (NOW[1 + number] + 1) % 256
        NOW[0] = number
        try:
            return function(*args, **kwargs)
        finally:
            NOW[0] = before

    return call


def watch() -> None:
    for number, (owner, name) in enumerate(STAGES.values()):
        setattr(owner, name, watched(number, getattr(owner, name)))
    loop.finish = ending.finish


def work(out: Path, device: str, accumulate: int) -> None:
    """The run, from its beginning or from wherever it was killed."""
    torch.manual_seed(3)
    model = aezoo.create_model(
        "vae", input_shape=(1, 28, 28), latent_dim=8, likelihood="bernoulli", kl_warmup=40, corruption="masking(p=0.1)",
        backbone="mlp(widths=(32,), norm='batch', dropout=0.1)",
    )  # fmt: skip
    data = aezoo.load_data("fashion-mini", binarize="dynamic", limit=2000)
    aezoo.fit(
        model, data, epochs=8, batch_size=32, val=0.2, ema=0.99, accumulate=accumulate, clip=1.0, schedule="cosine", warmup=10,
        checkpoint_every=15, log_every=19, seed=5, device=device, deterministic=device != "cpu", out=out, resume=True,
        progress=False,
    )  # fmt: skip


def start(out: Path, device: str, accumulate: int) -> int:
    """The run in a process of its own, forked from this one, which has imported everything and run nothing. Returns its number."""
    NOW[:] = bytes(len(NOW))
    NOW[0] = len(STAGES) - 1
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        watch()
        work(out, device, accumulate)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int, seconds: float, stage: str | None = None, times: int = 1, more: float = 0.0) -> int | None:
    """Exit code, or None if it still runs after that long, or `more` seconds after it entered a stage for the `times`-th time."""
    until = time.perf_counter() + seconds
    number = list(STAGES).index(stage) if stage else -1
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if stage and NOW[1 + number] >= times:
            time.sleep(more)
            return wait(child, 0.0)
        if time.perf_counter() > until:
            return None
        time.sleep(0.0002 if stage else 0.001)


def kill(child: int) -> str | int:
    """What it was doing; or its exit code, where it had just ended."""
    os.kill(child, signal.SIGSTOP)  # so that it says what it does when it dies
    status = os.waitpid(child, os.WUNTRACED)[1]
    if not os.WIFSTOPPED(status):
        return os.waitstatus_to_exitcode(status)
    doing = list(STAGES)[NOW[0]]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return doing


def how_long(counts: list[int], rng: random.Random) -> dict[str, Any]:
    """When the next kill comes, for a run that entered each stage so many times: `stage`, `times`, `more` seconds."""
    stage = rng.choice(SPREAD)
    entered = counts[list(STAGES).index(stage)]
    # to half of its times: a run that goes on has less before it
    return {
        "stage": stage,
        "times": rng.randint(1, max(1, entered // 2)),
        "more": rng.uniform(0.0, 1.0) * LASTS.get(stage, 0.002),
    }


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
    parser.add_argument("--accumulate", type=int, default=2, help="batches of a step")
    parser.add_argument("--out", default=str(Path(__file__).with_name("stress.json")))
    o = parser.parse_args()
    rng = random.Random(o.seed)
    began = time.time()
    kills, resumed, moments, wrong = 0, 0, Counter[str](), []
    planned = Counter[str]()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=o.kills, unit="kill") as bar:
        whole = Path(folder) / "whole"
        clock = time.perf_counter()
        if wait(start(whole, o.device, o.accumulate), 600):
            raise SystemExit("the undisturbed run failed")
        longest = time.perf_counter() - clock
        counts = [NOW[1 + i] for i in range(len(STAGES))]
        while kills < o.kills:
            out = Path(folder) / f"run-{kills}"
            often = min(rng.randint(1, 3), o.kills - kills)  # then it may end: what is left to do shrinks each time
            while True:
                child = start(out, o.device, o.accumulate)
                if often and kills % 2:
                    aim = how_long(counts, rng)
                    code = wait(child, 600, **aim)
                else:
                    aim = {}
                    code = wait(child, rng.uniform(0.0, 1.0) * longest if often else 600)
                doing = kill(child) if code is None else code
                if isinstance(doing, str):
                    kills += 1
                    often -= 1
                    moments[doing] += 1
                    planned[aim.get("stage", "any time")] += 1
                    bar.update()
                    continue
                if doing:
                    wrong.append(f"{out.name}: exit code {doing}")
                break
            resumed += 1
            if not wrong or not wrong[-1].startswith(f"{out.name}:"):
                wrong += [f"{out.name}: {d}" for d in differences(whole, out)]
            shutil.rmtree(out, ignore_errors=True)
    result = {
        "kills": kills, "runs": resumed, "moments": dict(moments.most_common()), "aimed_at": dict(planned.most_common()), "differences": wrong, "seed": o.seed, "device": o.device, "accumulate": o.accumulate,
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
