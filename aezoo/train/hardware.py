"""Device, precision, compilation, threads and memory: decided once, before the first step, each with its reason."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base import BaseAE
from ..registry import choice

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ALLOCATORS = ("auto", "keep", "prime", "system")
SMALL_STEP = 3e7  # FLOPs of a training step below which a second thread costs more than it does
SMALL_STACK = 1.5e7  # the same of several models at once, whose random draws are made beside the kernels where these take one thread
TAPED_STEP = 3e9  # the same from which calls and memory are too small a part for a replay to pay
TAPED_BYTES = 8 * 2**20  # of a batch's largest tensor, roughly, from which memory, not calls, is what a step waits for
SMALL_STEP_GPU = 3e9  # the same of a GPU's launches: several steps a replay
LARGE_BLOCK = 32 * 2**20  # bytes from which glibc maps and unmaps a block at every use, whatever its dynamic threshold
COMPILE_SECONDS = 30.0  # what compiling a small model takes
SAVED_A_STEP = 1e-4  # seconds that it saves on a CPU over replayed calls, where the arithmetic is small


@dataclass
class Hardware:
    """What was decided; `reasons` holds a line for each."""

    device: torch.device
    precision: str
    compile: bool = False
    graph: bool = False  # the step as a CUDA graph
    tape: bool = False  # the same of kernels on the CPU
    small: bool = False  # a step is bound by calls, not by arithmetic
    threads: int | None = None  # on the CPU, while training
    allocator: str = "system"
    channels_last: bool = False
    deterministic: bool = False
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """One line for the user."""
        return " | ".join(self.reasons.values())

    def kept(self) -> dict[str, Any]:
        """What a run that goes on takes over on the same kind of device."""
        return {"device": self.device.type, "compile": self.compile, "threads": self.threads}

    def told(self, processes: int = 1) -> dict[str, Any]:
        """What hardware.json says: on what, and how, a run was computed."""
        cuda = self.device.type == "cuda"
        return {
            "device": self.device.type,
            "name": torch.cuda.get_device_name(self.device) if cuda else processor(),
            "cores": os.cpu_count(),
            "threads": self.threads or torch.get_num_threads(),
            "processes": processes,
            "precision": self.precision,
            "compile": self.compile,
            "torch": torch.__version__,
        }

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 autocast where it was decided; costs nothing otherwise."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def place(self, x: Tensor) -> Tensor:
        """A batch in the layout that the convolutions want."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Threads, TF32, determinism and memory as decided; afterwards as they were."""
        with contextlib.ExitStack() as stack:
            if self.threads is not None:
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(self.threads)
            if self.device.type == "cuda":
                stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
                stack.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
                torch.set_float32_matmul_precision("highest" if self.deterministic else "high")
                torch.backends.cudnn.allow_tf32 = not self.deterministic
            if self.deterministic:
                stack.callback(
                    torch.use_deterministic_algorithms,
                    torch.are_deterministic_algorithms_enabled(),
                    warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
                )
                stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
                if self.device.type == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
                    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
                    stack.callback(os.environ.pop, "CUBLAS_WORKSPACE_CONFIG", None)
                torch.backends.cudnn.benchmark = False
                torch.use_deterministic_algorithms(True)
            stack.enter_context(_memory(self.allocator))
            yield


def pick_device(device: str | torch.device) -> tuple[torch.device, str]:
    """The device and why. "auto": CUDA, else MPS, else the CPU. Raises ValueError for one that is not there."""
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))), torch.cuda.get_device_name()
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Apple GPU"
        return torch.device("cpu"), "no GPU found"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={str(device)!r} is not known; allowed: auto, cpu, cuda, cuda:N, mps") from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(chosen.type, False):
        found = ", ".join(k for k, there in here.items() if there)
        raise ValueError(f"device={str(device)!r} is not available here; available: {found}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={str(device)!r}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    return chosen, "as asked"


def decide(
    device: str | torch.device,
    precision: str = "auto",
    compile: bool | str = "auto",
    allocator: str = "auto",
    deterministic: bool = False,
) -> Hardware:
    """Device and precision; the rest waits for `settle`. Raises ValueError for what is unknown or not there."""
    choice("precision", precision, ["auto", *DTYPES])
    choice("allocator", allocator, ALLOCATORS)
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile={compile!r} must be True, False or 'auto'")
    place, why = pick_device(device)
    reasons = {"device": f"device {place} ({why})"}
    chosen = precision
    if precision == "auto":
        chosen = "bf16" if place.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    why = "as asked" if precision != "auto" else "losses stay in float32" if chosen == "bf16" else "default here"
    reasons["precision"] = f"precision {chosen} ({why})"
    return Hardware(place, chosen, bool(compile is True), allocator=allocator, deterministic=deterministic, reasons=reasons)  # fmt: skip


def settle(
    hardware: Hardware,
    model: BaseAE,
    compile: bool | str,
    batch_size: int,
    steps: int,
    world: int = 1,
    earlier: dict[str, Any] | None = None,
    small_step: float = SMALL_STEP,
) -> None:
    """Decides what depends on the model, the batch and the length of the run. `small_step`: FLOPs of a step below which it takes one thread.

    `earlier`: what an earlier part of the run decided on the same kind of device; it stays so, since another choice would round
    differently."""
    gpu, cpu = hardware.device.type == "cuda", hardware.device.type == "cpu"
    uses = sum(_uses(m) for m in model.modules())
    flops = 6.0 * uses * batch_size
    small = hardware.small = flops < (small_step if not gpu else SMALL_STEP_GPU)
    if cpu:
        threads = torch.get_num_threads()
        if earlier is not None and "threads" in earlier:
            small = earlier["threads"] == 1
        if small and threads > 1:
            hardware.threads = 1
            hardware.reasons["device"] += f", 1 thread of {threads}: {flops / 1e6:.1f} MFLOP a step"
        else:
            hardware.reasons["device"] += f", {threads} threads"
        largest = 4 * max([p.numel() for p in model.parameters()] + [batch_size * _widest(model)])
        if hardware.allocator == "auto":
            hardware.allocator = "keep" if largest > LARGE_BLOCK else "prime"
    convolutions = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    hardware.channels_last = bool(convolutions) and not hardware.deterministic and hardware.device.type != "mps"
    if compile == "auto" and earlier is not None and "compile" in earlier:
        hardware.compile, why = bool(earlier["compile"]), "as before"
    elif compile == "auto":
        gain = SAVED_A_STEP * steps
        why = _compiler() if cpu else ""
        if gpu:
            why = (
                "a CUDA graph takes its place" if world == 1 else "kernels, not calls, are what a large step is made of"
            )
        elif world > 1:
            why = "several processes"
        elif not cpu:
            why = "not on this device"
        elif not small:
            why = why or f"{flops / 1e6:,.0f} MFLOP a step: arithmetic, not calls, is what it spends its time on"
        elif gain < 2 * COMPILE_SECONDS:
            why = why or f"would save about {gain:.0f} s and takes {COMPILE_SECONDS:.0f} s"
        hardware.compile = not why
        why = why or f"{steps:,} small steps: saves about {gain:.0f} s, takes {COMPILE_SECONDS:.0f} s"
    else:
        why = "as asked"
    if world > 1 and hardware.compile:
        hardware.compile, why = False, "several processes: the step stays as it is written"
    hardware.reasons["compile"] = f"compile {'on' if hardware.compile else 'off'} ({why})"
    as_written = world > 1 or compile is False or hardware.compile
    hardware.graph = gpu and not as_written
    hardware.tape = cpu and not as_written and flops < TAPED_STEP and 4 * batch_size * _widest(model) < TAPED_BYTES


def _uses(module: nn.Module) -> int:
    """Multiplications of one sample in a layer, roughly: its weights, times the places where they are used."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return 0
    places = 1
    if (
        weight.dim() > 2
    ):  # a kernel: about as many places as its feature map has, 14 a side where nothing better is known
        places = 14 ** (weight.dim() - 2)
    return weight.numel() * places


def _widest(model: BaseAE) -> int:
    """Elements of one sample's largest layer, roughly."""
    return max([model.latent_dim, math.prod(model.input_shape)] + [m.out_features for m in model.modules() if isinstance(m, nn.Linear)])  # fmt: skip


def _compiler() -> str:
    """Why torch.compile cannot work on this CPU, or nothing."""
    if sys.platform == "win32" or not any(shutil.which(c) for c in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return "no C++ compiler found"
    return ""


# -------------------------------------------------------------------------------------------------------------- memory


@contextlib.contextmanager
def _memory(allocator: str) -> Iterator[None]:
    """How glibc treats freed memory while training on the CPU.

    By default it gives large blocks back to the system at nearly every step and takes page faults to get them again, a third
    of the time of a small model. "prime": one large block is allocated and freed, which raises the threshold from which
    it does so to 32 MiB; no setting is touched. "keep": nothing is given back until the end (`mallopt`, for the whole
    process while training), which helps where tensors are larger than that. "system": left as it is."""
    libc = _glibc()
    if libc is None or allocator in ("system", "auto"):
        yield
        return
    torch.empty(LARGE_BLOCK - 2**20, dtype=torch.uint8)
    if allocator == "prime":
        yield
        return
    trim, mmap_threshold, mmap_max = -1, -3, -4
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim, 2**31 - 1)
    try:
        yield
    finally:  # as after priming; the defaults would bring the page faults back
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(mmap_threshold, LARGE_BLOCK)
        libc.mallopt(trim, 2 * LARGE_BLOCK)
        libc.malloc_trim(0)


def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:
        return None


def out_of_memory(error: BaseException) -> bool:
    """Is this torch's way of saying so? (A class on a GPU, a RuntimeError's text on the CPU.)"""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def peak_memory(device: torch.device) -> int:
    """Most bytes held at once, so far: of the device by torch, or resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    with contextlib.suppress(OSError, StopIteration):  # ru_maxrss holds the parent's peak, too, which a child inherits
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def processor() -> str:
    """The CPU's name."""
    import platform

    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
