"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..base import number
from ..registry import choice, nearest, parse_spec
from .freezing import fits

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
    spec: Any,
    parameters: Sequence[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    groups: dict[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """An optimiser from a spec: "sgd" (momentum 0.9), "adam", "adamw", any class of `torch.optim` by name in any case, with
    keywords "sgd(momentum=0.95, nesterov=True)", or a class.

    `weight_decay` acts on weights (two axes or more), not on biases and norms. With "sgd" and "adam" it is the L2 penalty
    weight_decay/2 * ||w||^2; with "adamw" it is decoupled (arXiv:1711.05101). `parameters` come with their names; `groups`
    gives those whose names fit a name or pattern an `lr` or `weight_decay` of their own (the first pattern that fits counts). Each
    group's own rate is kept as `base_lr`. Raises ValueError or TypeError naming what is off and the nearest right spelling."""
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
        fits = all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for _, p in parameters)
        options["fused"] = fits or None
    options["lr"] = lr
    if weight_decay and "weight_decay" not in allowed:
        raise ValueError(
            f"optimizer {cls.__name__} has no weight decay; leave weight_decay out, or take adam, adamw or sgd"
        )
    made: dict[tuple[float, float], list[nn.Parameter]] = {}
    rates = _rates([name for name, _ in parameters], lr, weight_decay, groups or {}, "weight_decay" in allowed)
    for (_, p), (own_lr, own_decay) in zip(parameters, rates):
        made.setdefault((own_lr, own_decay if p.dim() > 1 else 0.0), []).append(p)
    listed: list[dict[str, Any]] = [{"params": ps, "lr": a, "weight_decay": b} for (a, b), ps in made.items()]
    for group in listed:
        if "weight_decay" not in allowed:
            del group["weight_decay"]
    with _without_the_compiler():
        optimizer = cls(listed, **options)
    for group in optimizer.param_groups:
        group["base_lr"] = float(group["lr"])
    return optimizer


def spelled_out(groups: Any) -> Any:
    """{"encoder": 1e-4} as {"encoder": {"lr": 1e-4}}; what is no such thing is left for `build_optimizer` to refuse."""
    if not isinstance(groups, dict):
        return groups
    plain = (int, float)
    return {k: {"lr": v} if isinstance(v, plain) and not isinstance(v, bool) else v for k, v in groups.items()}


def _rates(
    names: Sequence[str], lr: float, weight_decay: float, groups: dict[str, Any], decays: bool
) -> list[tuple[float, float]]:
    """(lr, weight decay) of each parameter, by the first pattern that fits its name."""
    if not isinstance(groups, dict):
        raise TypeError(f"groups={groups!r} must map names or patterns to rates, e.g. {{'encoder': 1e-4}}")
    used = set()
    for pattern, own in groups.items():
        if not isinstance(own, dict) or not own or not set(own) <= {"lr", "weight_decay"}:
            raise ValueError(
                f"groups: {pattern!r} holds {own!r}; it takes a learning rate, or {{'lr': ..., 'weight_decay': ...}}, one or both"
            )
        for key, value in own.items():
            number(f"groups: {pattern!r}: {key}", value, "a number of at least 0", lambda v: 0 <= v < math.inf)
        if "weight_decay" in own and not decays:
            raise ValueError(f"groups: {pattern!r} asks for weight decay, which this optimiser has not")
    rates = []
    for name in names:
        fitting = next((p for p in groups if fits(p, name)), None)
        used.add(fitting)
        own = {} if fitting is None else groups[fitting]
        rates.append((float(own.get("lr", lr)), float(own.get("weight_decay", weight_decay))))
    for pattern in groups:
        if pattern not in used:
            tops = sorted({n.split(".")[0] for n in names})
            raise ValueError(
                f"groups: no parameter's name fits {pattern!r}; names begin with {', '.join(f'{t}.' for t in tops)}"
                + nearest(pattern.split(".")[0].rstrip("*"), tops)
            )
    return rates


def lr_factor(kind: str, step: int, total: int, warmup: int) -> float:
    """Factor on the learning rate at optimiser step `step` (from 0) of `total`: a pure function, so resuming needs no state.

    A linear rise over `warmup` steps, then "constant": 1; "cosine": (1 + cos(pi t)) / 2; "linear": 1 - t, with t the fraction
    done of what follows the warm-up. "plateau" is constant here; the loop multiplies in what the validation loss decided."""
    if step < warmup:
        return (step + 1) / warmup
    t = min(1.0, (step - warmup) / max(1, total - warmup))
    return {"cosine": 0.5 * (1 + math.cos(math.pi * t)), "linear": 1 - t}.get(kind, 1.0)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Each group's rate is its own base rate times `factor`."""
    for group in optimizer.param_groups:
        lr = group["base_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


@contextlib.contextmanager
def _without_the_compiler() -> Iterator[None]:
    """Building an optimiser tells torch's compiler to leave it alone, and imports the compiler for that: more than a second of a
    process that compiles nothing. Inside the block it is left out, where it was not there before (a private attribute of
    torch; without it nothing changes)."""
    function = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", None)
    if function is None or "torch._dynamo" in sys.modules or hasattr(function, "__dynamo_disable"):
        yield
        return
    function.__dynamo_disable = function
    try:
        yield
    finally:
        del function.__dynamo_disable


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state as tensors ("3.exp_avg") and the JSON-able rest, both by parameter number."""
    tensors, rest = {}, {}
    for position, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{position}.{key}"] = value
            else:
                rest[f"{position}.{key}"] = value
    return tensors, rest


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *rest.items()]:
        position, name = key.split(".", 1)
        state.setdefault(int(position), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for p, values in optimizer.state.items():  # in the weight's layout: fused kernels go by memory, not by index
        for name, v in values.items():
            if isinstance(v, Tensor) and v.shape == p.shape:
                values[name] = torch.empty_like(p).copy_(v)
