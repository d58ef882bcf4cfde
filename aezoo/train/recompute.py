"""Less memory for activations: blocks are computed again in the backward pass instead of being kept (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..base import BaseAE


@contextmanager
def recomputing(model: BaseAE) -> Iterator[None]:
    """Inside the block, the direct children of encoder and decoder keep no activations in training mode."""
    blocks = [m for part in (model.encoder, model.decoder) for m in part.children()]
    for block in blocks:
        block.forward = _recomputed(block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own is there again


def _recomputed(block: nn.Module, forward: Any) -> Any:
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]

    @contextmanager
    def again() -> Iterator[None]:
        """The second pass leaves running statistics alone: the first has counted the batch."""
        kept = [(n, n.momentum) for n in norms]
        seen = [n.num_batches_tracked.clone() if n.num_batches_tracked is not None else None for n in norms]
        for n in norms:
            n.momentum = 0.0
        try:
            yield
        finally:
            for (n, momentum), count in zip(kept, seen):
                n.momentum = momentum
                if count is not None and n.num_batches_tracked is not None:
                    n.num_batches_tracked.copy_(count)

    def run(*inputs: Any) -> Any:
        if not block.training:
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))

    return run
