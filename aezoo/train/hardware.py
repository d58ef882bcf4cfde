"""Device, precision and compilation: decided once, before the first step, each with its reason."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..registry import choice

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Hardware(NamedTuple):
    device: torch.device
    precision: str
    compile: bool
    reason: str
    """One line for the user."""

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def pick_device(device: str | torch.device) -> tuple[torch.device, str]:
    """The device and why. "auto": CUDA, else MPS, else the CPU. Raises ValueError for one that is not there."""
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), torch.cuda.get_device_name()
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Apple GPU"
        return torch.device("cpu"), f"no GPU found, {torch.get_num_threads()} threads"
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


def decide(device: str | torch.device, precision: str, compile: bool | str) -> Hardware:
    """Raises ValueError for what is unknown or not there."""
    choice("precision", precision, ["auto", *DTYPES])
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile={compile!r} must be True, False or 'auto'")
    place, why = pick_device(device)
    gpu = place.type == "cuda"
    if precision == "auto":
        precision = "bf16" if gpu and torch.cuda.is_bf16_supported() else "fp32"
        why_precision = "losses stay in float32" if precision == "bf16" else "default here"
    else:
        why_precision = "as asked"
    if compile == "auto":
        on, why_compile = False, "compiling takes longer than it saves on runs of minutes"
    else:
        on, why_compile = bool(compile), "as asked"
    reason = f"device {place} ({why}) | precision {precision} ({why_precision}) | compile {'on' if on else 'off'} ({why_compile})"
    return Hardware(place, precision, on, reason)
