"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import choice, nearest, parse_spec

UNFIT = {
    "LBFGS": "it evaluates the loss several times a step",
    "SparseAdam": "it takes sparse gradients only",
    "Muon": "it takes matrices only, and models have biases and kernels",
}
SCHEDULES = ("constant", "cosine", "linear", "plateau")


def _classes() -> dict[str, type]:
    found = {k: v for k, v in vars(torch.optim).items() if inspect.isclass(v) and issubclass(v, torch.optim.Optimizer)}
    found.pop("Optimizer")
    return found


def build_optimizer(
    spec: Any, parameters: Sequence[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimiser from a spec: "sgd" (momentum 0.9), "adam", "adamw", any class of `torch.optim` by name in any case, with
    keywords "sgd(momentum=0.95, nesterov=True)", or a class.

    `weight_decay` acts on weights (two axes or more), not on biases and norms. With "sgd" and "adam" it is the L2 penalty
    weight_decay/2 * ||w||^2; with "adamw" it is decoupled (arXiv:1711.05101). Raises ValueError or TypeError naming what is
    off and the nearest right spelling."""
    classes = {name.lower(): cls for name, cls in _classes().items()}
    options: dict[str, Any] = {}
    if inspect.isclass(spec) and issubclass(spec, torch.optim.Optimizer):
        cls = spec
    else:
        if not isinstance(spec, (str, dict)):
            raise TypeError(f"optimizer={spec!r} must be a name, a spec or a class of torch.optim")
        name, options = parse_spec("optimizer", spec)
        choice("optimizer", name if name in classes else name.lower(), classes)
        cls = classes[name.lower()]
    if cls.__name__ in UNFIT:
        raise ValueError(
            f"optimizer {cls.__name__} does not fit this loop: {UNFIT[cls.__name__]}; take adam, adamw or sgd"
        )
    allowed = inspect.signature(cls).parameters
    for key in options:
        if key not in allowed or key in ("params", "lr", "weight_decay"):
            own = " (it is a keyword of fit)" if key in ("lr", "weight_decay") else ""
            raise TypeError(
                f"optimizer {cls.__name__} takes no {key!r} here{own}.{nearest(key, set(allowed) - {'params'})}"
            )
    if cls is torch.optim.SGD:
        options = {"momentum": 0.9, **options}
    if "fused" in allowed and not {"fused", "foreach", "differentiable"} & set(options):
        fits = all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)
        options["fused"] = fits or None
    options["lr"] = lr
    if weight_decay and "weight_decay" not in allowed:
        raise ValueError(
            f"optimizer {cls.__name__} has no weight decay; leave weight_decay out, or take adam, adamw or sgd"
        )
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if "weight_decay" in allowed:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
    return cls([g for g in groups if g["params"]], **options)


def lr_factor(kind: str, step: int, total: int, warmup: int) -> float:
    """Factor on the learning rate at optimiser step `step` (from 0) of `total`: a pure function, so resuming needs no state.

    A linear rise over `warmup` steps, then "constant": 1; "cosine": (1 + cos(pi t)) / 2; "linear": 1 - t, with t the fraction
    done of what follows the warm-up. "plateau" is constant here; the loop multiplies in what the validation loss decided."""
    if step < warmup:
        return (step + 1) / warmup
    t = min(1.0, (step - warmup) / max(1, total - warmup))
    return {"cosine": 0.5 * (1 + math.cos(math.pi * t)), "linear": 1 - t}.get(kind, 1.0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state as tensors ("3.exp_avg") and the JSON-able rest, both by parameter number."""
    tensors, rest = {}, {}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{key}"] = value
            else:
                rest[f"{number}.{key}"] = value
    return tensors, rest


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *rest.items()]:
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
