"""Weights that training leaves alone: `fit(..., freeze=["encoder"])`.

A frozen parameter has no gradient and is no business of the optimiser. A frozen module is, besides, in evaluation mode while the others
are trained: its batch norms use their running averages and leave them as they are, it drops nothing out, its codebooks stay.
Both are put back after the training, so that the next `fit` may train everything.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from ..base import BaseAE
from ..registry import nearest


class Frozen(NamedTuple):
    """What `freeze` means for a model."""

    parameters: list[nn.Parameter]
    modules: list[nn.Module]


def fits(pattern: str, name: str) -> bool:
    """Does the pattern name this parameter or module, or one that holds it? "encoder" fits "encoder.0.layer.weight"."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def listed(freeze: str | Sequence[str] | None) -> list[str] | None:
    """The patterns as a list; None for none. Raises TypeError for anything else."""
    if isinstance(freeze, str):
        freeze = [freeze]
    if freeze is None or (isinstance(freeze, Sequence) and not freeze):
        return None
    if not isinstance(freeze, Sequence) or not all(isinstance(p, str) for p in freeze):
        raise TypeError(f"freeze={freeze!r} must be names of modules or parameters, e.g. ['encoder']")
    return list(freeze)


def chosen(model: BaseAE, freeze: str | Sequence[str] | None) -> Frozen:
    """The parameters and modules that `freeze` names.

    A module is frozen if it is named, lies in one that is, or has parameters that are all frozen. What a frozen module uses of
    others' weights (tied layers) is frozen with it. Raises ValueError for a name or pattern that fits nothing."""
    patterns = listed(freeze) or []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = {name: m for name, m in model.named_modules(remove_duplicate=False) if name}
    known = [*parameters, *(name for name, _ in model.named_buffers(remove_duplicate=False)), *modules]
    for pattern in patterns:
        if not any(fits(pattern, name) for name in known):
            tops = [name for name, m in model.named_children() if m.state_dict()]
            tops += [name for name in parameters if "." not in name]
            near = (nearest(pattern, known) if "." in pattern else "") or nearest(pattern.split(".")[0], tops)
            raise ValueError(
                f"freeze: {model.name} holds nothing named {pattern!r}; it takes names and patterns of modules and parameters: "
                f"{', '.join(tops)}, and what is in them.{near}"
            )
    held = {id(p): p for name, p in parameters.items() if any(fits(pattern, name) for pattern in patterns)}
    still = {id(m): m for name, m in modules.items() if any(fits(pattern, name) for pattern in patterns)}
    for m in list(still.values()):
        borrowed = getattr(getattr(m, "owner", None), "weight", None)  # by a tied layer
        held |= {id(borrowed): borrowed} if isinstance(borrowed, nn.Parameter) else {}
    for m in modules.values():
        own = list(m.parameters())
        if own and all(id(p) in held for p in own):
            still |= {id(part): part for part in m.modules()}
    return Frozen(list(held.values()), list(still.values()))


def check_freeze(model: BaseAE, freeze: str | Sequence[str] | None, groups: Any = None) -> None:
    """Raises TypeError or ValueError for names that are none, where nothing would be left to train, and for rates (`groups`) of what
    is not trained."""
    if listed(freeze) is None:
        return
    held = {id(p) for p in chosen(model, freeze).parameters}
    for pattern in groups if isinstance(groups, dict) else ():
        meant = [id(p) for name, p in model.named_parameters() if fits(pattern, name)]
        if meant and held.issuperset(meant):
            raise ValueError(
                f"groups gives {pattern!r} a rate, and freeze={listed(freeze)!r} holds it; leave one of them out"
            )
    for stage in model.stages():
        if stage.parameters and all(id(p) in held for p in stage.parameters):
            where = "" if stage.name == "train" else f" in the stage {stage.name!r}"
            raise ValueError(f"freeze={listed(freeze)!r} leaves nothing of {model.name} to train{where}")


@contextmanager
def without_gradient(model: BaseAE, freeze: str | Sequence[str] | None) -> Iterator[None]:
    """Frozen parameters want no gradient inside the block."""
    held = [p for p in chosen(model, freeze).parameters if p.requires_grad]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


def train_mode(model: BaseAE, still: Sequence[nn.Module]) -> None:
    """Training mode for all but the frozen modules."""
    model.train()
    for m in still:
        m.training = False
