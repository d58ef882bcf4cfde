"""Before the first step: is what several models compute together what each of them computes alone, and is it faster?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..figures import shown
from ..randomness import set_seed
from .stack import Program, Unbatchable

if TYPE_CHECKING:
    from .together import Together

TOLERANCE = {
    "fp32": 1e-3,
    "bf16": 5e-2,
}  # how far loss and gradient may lie from a single model's, relative to their size
TO_BEAT = 1.2  # a step of all models may take that many times what their single steps take


def compare(t: Together, program: Program, index: Tensor) -> None:
    """The first step of all models against each one's alone: values, gradients and what a pass changes in the buffers.

    Raises Unbatchable if they differ, or if single steps would be faster."""
    before, tolerance = t.stack.copies(), TOLERANCE[t.hardware.precision]
    for m in t.models:
        m.train()
    t.template.train()
    t.feed(program, t.base, index, t.step_seeds(0))
    program.take()
    values = program.run().clone()
    parts = {name: v.clone() for name, v in program.parts.items()}
    grads = {n: g.clone() for n, g in t.stack.grads.items()}
    changed = {n: b.clone() for n, b in t.stack.buffers.items()}
    t.stack.put_back(before)
    single = 0.0
    for i, (model, seed) in enumerate(zip(t.models, t.step_seeds(0))):
        began = time.perf_counter()
        set_seed(seed, t.device)
        x = t.base.take(index[i], t.device, t.dtype)
        with t.hardware.autocast():
            loss = model.loss(x)
        named = dict(model.named_parameters())
        trained = [named[n] for n in t.stack.trained]
        own = torch.autograd.grad(loss.total, trained, allow_unused=True)
        single += time.perf_counter() - began
        wanted = torch.stack(
            [v.detach().to(values.dtype) for v in (loss.total, *loss.terms.values(), *shown(loss.metrics).values())]
        )
        pairs = [(values[:, i], wanted, "values")]
        pairs += [(v[i], loss.metrics[name], f"metric {name}") for name, v in parts.items()]
        pairs += [(grads[n][i], g, f"gradient of {n}") for n, g in zip(grads, own) if g is not None]
        pairs += [(changed[n][i], b, f"buffer {n}") for n, b in model.named_buffers()]
        size = max([float(g.norm()) for g in own if g is not None], default=0.0)
        for have, want, what in pairs:
            scale = max(float(want.double().norm()), 1e-2 * size if what.startswith("grad") else 1e-6)
            if not float((have.double() - want.double()).norm()) <= tolerance * scale and bool(want.isfinite().all()):
                raise Unbatchable(f"computed together, the first step would not be that of a single model ({what})")
    t.stack.put_back(before)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        program.run()
        times.append(time.perf_counter() - began)
    t.stack.put_back(before)
    if min(times) > TO_BEAT * single and t.device.type == "cpu":
        raise Unbatchable(f"that is faster ({1e3 * single:.1f} against {1e3 * min(times):.1f} ms a step)")
