"""The largest batch that fits into memory.

`python -m aezoo.train.find` is one trial of a size: a job as JSON on stdin, its result as JSON on stdout.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..base import BaseAE, number, positive
from ..data import Source, data_for
from ..storage import read_json
from .hardware import decide, out_of_memory, peak_memory, settle
from .optim import build_optimizer
from .update import Update

if TYPE_CHECKING:
    from .setup import Setup

GROWTH = 64 * 2**20  # bytes between two peaks from which their difference is more than noise
START = 2**20  # numbers in the input of the first trial
RANKS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells a process


class Found(NamedTuple):
    batch_size: int
    peak: int
    """Bytes at most in use with it: resident on the CPU, reserved on a GPU."""
    limit: int
    """Bytes that were allowed."""


def find_batch_size(
    model: BaseAE,
    data: Any,
    *,
    headroom: float = 0.8,
    largest: int | None = None,
    optimizer: Any = "adam",
    recompute: bool = False,
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> int:
    """The largest power of two as a batch size, at most the number of samples, whose training steps fit into memory.

    Each trial is a process of its own, which builds the model anew, takes two steps on random data and reports its peak; so an
    attempt that fails harms nothing here. On a GPU the size doubles until it does not fit into `headroom` * its memory; on the CPU
    two sizes give the line peak = a + b * batch_size, on which the size at `headroom` * the memory that is available (to
    this cgroup) is looked up, and one more trial proves it.

    Args: `headroom`: fraction of the memory. `largest`: upper limit. The others as in `fit`.
    Raises ValueError if not even one sample fits to `headroom`, or the model cannot be built in another process."""
    return search(model, data, headroom, largest, optimizer, recompute, device, precision).batch_size


def search(
    model: BaseAE,
    data: Any,
    headroom: float = 0.8,
    largest: int | None = None,
    optimizer: Any = "adam",
    recompute: bool = False,
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> Found:
    """`find_batch_size`, with what it saw."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")
    number("headroom", headroom, "a fraction of the memory, above 0 and at most 1", lambda v: 0 < v <= 1)
    source = data_for(model.input_shape, data)
    most = min(len(source), positive("largest", largest) if largest is not None else len(source))
    place = decide(device, precision, compile=False).device
    job = {
        "config": model.saved_config(),
        "modules": _modules(model),
        "support": model.likelihood.support,
        "optimizer": _spec(optimizer),
        "recompute": recompute,
        "device": str(place),
        "precision": precision,
    }
    if place.type == "cuda":
        stored = getattr(source, "x", None)  # lies on the GPU too while training, where it takes at most half of it
        total = torch.cuda.get_device_properties(place).total_memory
        held = stored.numel() * stored.element_size() if isinstance(stored, Tensor) else 0
        limit = int(headroom * total) - (held if held <= total / 2 else 0)
    elif place.type == "mps":
        limit = int(headroom * torch.mps.recommended_max_memory())
    else:
        job["ceiling"] = available_memory()
        limit = int(headroom * job["ceiling"])
    limit -= 2 * sum(v.numel() * v.element_size() for v in model.state_dict().values())  # best and averaged weights
    seen: dict[int, int | None] = {}

    def peak(size: int) -> int | None:
        """Bytes of a trial; None if it does not fit."""
        if size not in seen:
            found = trial({**job, "batch_size": size})
            seen[size] = found if found is not None and found <= limit else None
        return seen[size]

    top = _power(most)
    first = min(top, _power(max(1, START // math.prod(model.input_shape))))
    while peak(first) is None:
        if first == 1:
            raise ValueError(
                f"not even one sample of {model.name} {model.input_shape} trains within {limit / 2**30:.2f} GiB on {place} "
                f"(headroom={headroom:g}); take a smaller model, recompute=True or another device"
            )
        first = max(1, first // 8)
    size = _extrapolated(peak, first, top, limit) if place.type == "cpu" else _doubled(peak, first, top)
    return Found(size, seen[size] or 0, limit)


def _doubled(peak: Callable[[int], int | None], size: int, top: int) -> int:
    while size < top and peak(2 * size) is not None:
        size *= 2
    return size


def _extrapolated(peak: Callable[[int], int | None], low: int, top: int, limit: int) -> int:
    """From two sizes that fit, along a line, to one that is tried."""
    high = min(8 * low, top)
    while high > low and peak(high) is None:
        high //= 2
    while low < high < top and (peak(high) or 0) - (peak(low) or 0) < GROWTH:
        if peak(min(8 * high, top)) is None:
            break
        high = min(8 * high, top)
    if high in (low, top):
        return high
    a, b = peak(low) or 0, peak(high) or 0
    each = max((b - a) / (high - low), 1.0)
    size = min(top, _power(high + int((limit - b) / each)))
    while size > high and peak(size) is None:
        size //= 2
    return size


def _power(n: int) -> int:
    """The largest power of two that is at most n."""
    return 1 << (n.bit_length() - 1)


def _modules(model: BaseAE) -> list[str]:
    """Modules of the user's own that define the model and its pieces. Raises ValueError for the script itself."""
    pieces = [model, model.backbone, model.likelihood, *model.corruptions]
    names = sorted({type(p).__module__ for p in pieces if not type(p).__module__.startswith("aezoo.")})
    if "__main__" in names:
        own = next(type(p).__name__ for p in pieces if type(p).__module__ == "__main__")
        raise ValueError(
            f"{own} is defined in the script that runs (or a notebook), which a trial in a process of its own cannot import; "
            "put the class into a module, or pass batch_size as a number"
        )
    return names


def _spec(optimizer: Any) -> Any:
    """An optimiser as JSON can hold it; a class of the user's own stands for one with two moments."""
    if not isinstance(optimizer, type):
        return optimizer
    name = optimizer.__name__
    return name if getattr(torch.optim, name, None) is optimizer else "adam"


def trial(job: dict[str, Any]) -> int | None:
    """Peak memory in bytes of two training steps in a fresh process; None if they do not fit, or the system killed it.

    Raises RuntimeError with its last line for any other failure."""
    environment = {k: v for k, v in os.environ.items() if k not in RANKS}
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in sys.path)
    command = [sys.executable, "-m", "aezoo.train.find"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, env=environment, check=False)
    if done.returncode < 0:
        return None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"a trial with batch_size={job['batch_size']} failed: {why}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return int(answer["peak"]) if answer["fits"] else None


def run_trial(job: dict[str, Any]) -> dict[str, Any]:
    """One trial, in this process: {"fits": bool, "peak": bytes}."""
    from ..hub import build
    from .recompute import recomputing

    for name in job["modules"]:
        importlib.import_module(name)
    hardware = decide(job["device"], job["precision"], compile=False)
    _bound(job.get("ceiling"))
    try:
        model = build(job["config"], "the job").to(hardware.device).train()
        settle(hardware, model, False, job["batch_size"], 2)
        if hardware.channels_last:
            model.to(memory_format=torch.channels_last)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        update = Update(build_optimizer(job["optimizer"], named, 1e-6, 0.0), None, sticky=True)
        draw = torch.rand if job["support"] else torch.randn
        dtype = next(model.parameters()).dtype
        x = draw(job["batch_size"], *model.input_shape, device=hardware.device, dtype=dtype)
        if job["support"]:
            x.mul_(job["support"][1] - job["support"][0]).add_(job["support"][0])
        with hardware.applied():
            for _ in range(2):
                with recomputing(model) if job["recompute"] else contextlib.nullcontext(), hardware.autocast():
                    loss = model.loss(hardware.place(x)).total
                    loss.backward()
                update.step(loss.detach())
    except Exception as error:
        if not out_of_memory(error) and "could not create" not in str(error):  # oneDNN's words for want of memory
            raise
        return {"fits": False}
    if hardware.device.type == "cuda":
        return {"fits": True, "peak": torch.cuda.max_memory_reserved(hardware.device)}
    return {"fits": True, "peak": peak_memory(hardware.device)}


def for_run(t: Setup, source: Source) -> int | None:
    """What batch_size="auto" stands for: the size that the run had before; else the largest that fits; None for a loader,
    which brings its own."""
    if not source.ordered:
        return None
    for path in reversed(t.run.checkpoints.paths() if t.run is not None else []):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(read_json(path / "state.json")["fixed"]["batch_size"])
    size = 0
    if t.world.main:
        a = t.asked
        found = search(
            t.model,
            source,
            optimizer=a["optimizer"],
            recompute=a["recompute"],
            device=t.device,
            precision=a["precision"],
        )
        t.bar.say(said(found))
        each_has_its_own = t.device.type == "cuda"
        size = min(found.batch_size * (t.world.size if each_has_its_own else 1), len(source))
    return t.world.agree(size)


def said(found: Found) -> str:
    """One line for the user."""
    return f"batch_size {found.batch_size:,}: {found.peak / 2**30:.2f} GiB at most in use, {found.limit / 2**30:.2f} GiB allowed"


# -------------------------------------------------------------------------------------------------------------- memory


def available_memory(system: Path = Path("/")) -> int:
    """Bytes that this process may still take: what the system has available, or the process's cgroup if that is less.

    Raises OSError where neither can be read."""
    try:
        lines = (system / "proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        names = getattr(os, "sysconf_names", {})
        pages = next((n for n in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES") if n in names), None)
        if pages is None:
            raise OSError("this system does not say how much memory is free; pass batch_size as a number") from None
        free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return min([free, *_cgroup_room(system)])


def _cgroup_room(system: Path) -> Iterator[int]:
    """What each limit above this process leaves; cache that the kernel would give up counts as free."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = system / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file ")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
            root = system / "sys/fs/cgroup/memory"
        else:
            continue
        inside = Path(path.lstrip("/"))
        for folder in [root / inside, *(root / p for p in inside.parents)]:
            try:
                limit = (folder / names[0]).read_text().strip()
                used = int((folder / names[1]).read_text())
                stat = (folder / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):
                continue
            cache = next((int(s.split()[1]) for s in stat if s.startswith(names[2])), 0)
            if limit.isdigit():
                yield max(0, int(limit) - used + cache)


def _bound(ceiling: int | None) -> None:
    """On the CPU: more memory than there is fails in this process, instead of bringing others down with it."""
    if ceiling is None:
        return
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (ceiling, resource.getrlimit(resource.RLIMIT_DATA)[1]))


if __name__ == "__main__":
    print(json.dumps(run_trial(json.load(sys.stdin))))
