"""Running averages keep float32 in models of half precision.

An average moves by a hundredth of a difference at a time. bfloat16 holds 8 binary digits: such a step is rounded away, and the
average stands still. So `model.bfloat16()` and `.half()` leave it as it was, as mixed precision does."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class Averaging(nn.Module):
    """A module with buffers, named in `averages`, that take part in changes of device and of wider types, but never become half."""

    averages: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # what .to(), .half(), .cuda(), ... are made of
        before: dict[str, Tensor] = {k: b for k in self.averages if (b := self._buffers.get(k)) is not None}
        result = super()._apply(fn, recurse)
        for name, wide in before.items():
            now = self._buffers[name]
            assert now is not None
            if now.dtype in HALF and wide.dtype not in HALF:
                self._buffers[name] = wide.to(now.device)
        return result
