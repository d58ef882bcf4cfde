"""Several processes, one run: what torchrun started trains as one process would.

A batch is cut into as many parts as there are processes. Each computes its part; gradients are averaged by
`DistributedDataParallel`, weighted by the sizes of the parts; statistics of the batch and random draws are those of the whole
(`wholebatch`). So the losses are those of one process, whatever the number of processes, up to the order of float additions.

What one process decides, all decide: figures and flags of the host are exchanged before they are judged, and what fails on one
while a run is set up or saved fails on all, so that none waits for one that has left.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import inspect
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..base import AELoss, BaseAE
from ..wholebatch import spread

WAIT = datetime.timedelta(minutes=30)  # for one another, e.g. while the first one saves or draws


class Processes:
    """This process among those of the run; alone if torchrun did not start it."""

    def __init__(self, device: torch.device):
        import torch.distributed as dist

        self.device = device
        self.host: Any = None
        self.pending: tuple[Any, Tensor] | None = None
        started = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if started else int(os.environ.get("WORLD_SIZE", 1))
        self.rank = dist.get_rank() if started else int(os.environ.get("RANK", 0))
        if self.size == 1:
            return
        if not dist.is_available():
            raise RuntimeError("this torch was built without torch.distributed; start one process")
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device={str(device)!r} cannot be shared by {self.size} processes; allowed: cpu, cuda")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not started:  # once for the life of the process, since a store does not take the same processes twice
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=WAIT)
            atexit.register(_leave)
        # flags and figures of the host go through gloo, so that they never wait for a GPU
        has_gloo = started and dist.get_backend() != "nccl"
        self.host = dist.group.WORLD if not started or has_gloo else dist.new_group(backend="gloo", timeout=WAIT)

    @property
    def main(self) -> bool:
        """The one that writes and prints."""
        return self.rank == 0

    # ------------------------------------------------------------------------------------------------- parts of a batch

    def bounds(self, total: int) -> tuple[int, int]:
        """(start, stop) of this process's rows of a batch: parts that differ by one at most. A batch of fewer samples than
        processes is not cut: each computes all of it."""
        if total < self.size:
            return 0, total
        return total * self.rank // self.size, total * (self.rank + 1) // self.size

    def rows(self, total: int) -> float:
        """For how many samples of a batch this process's mean counts; they add up to `total`."""
        start, stop = self.bounds(total)
        return (stop - start) / (1 if total >= self.size else self.size)

    def share(self, plan: Sequence[Tensor]) -> Sequence[Tensor]:
        """This process's part of each batch of a plan."""
        return plan if self.size == 1 else [index[slice(*self.bounds(len(index)))] for index in plan]

    def spread(self, total: int) -> contextlib.AbstractContextManager[None]:
        """Statistics and draws inside the block are those of the whole batch of `total` samples."""
        return contextlib.nullcontext() if self.size == 1 or total < self.size else spread(*self.bounds(total), total)

    # ------------------------------------------------------------------------------------------------------- gradients

    def wrap(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are averaged over the processes."""
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device.index] if self.device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel).parameters  # torch 2.14 has another word for it
        word = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {word: False, "find_unused_parameters": True}
        return DistributedDataParallel(module, device_ids=ids, **options)

    def no_sync(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged once per step of the optimiser, in its last backward pass."""
        if hasattr(module, "set_requires_gradient_sync"):  # cut by fully_shard
            module.set_requires_gradient_sync(last)  # type: ignore[operator]
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last else module.no_sync()  # type: ignore[operator]

    def all_reduce(self, values: Tensor, op: str = "SUM") -> Tensor:
        """Sum (or "MAX", ...) over the processes, in place, on the device where the values are; nothing waits for it."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values, op=getattr(dist.ReduceOp, op))
        return values

    # ---------------------------------------------------------------------------------------------- agreeing on the host

    def agree(self, number: int) -> int:
        """The largest of the processes' numbers, on all of them."""
        if self.size == 1:
            return number
        import torch.distributed as dist

        value = torch.tensor(int(number))
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.host)
        return int(value)

    def agree_soon(self, number: int) -> int:
        """The largest of the numbers that the processes gave when this was last called: it has arrived by now, so nothing waits.

        In a single process the number itself."""
        if self.size == 1:
            return number
        import torch.distributed as dist

        seen = 0
        if self.pending is not None:
            self.pending[0].wait()
            seen = int(self.pending[1])
        value = torch.tensor(int(number))
        self.pending = dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.host, async_op=True), value
        return seen

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a host tensor over the processes."""
        if self.size == 1:
            return values
        import torch.distributed as dist

        dist.all_reduce(values, group=self.host)
        return values

    def differ(self, number: int) -> bool:
        """Do the processes give different numbers?"""
        return self.agree(number) != -self.agree(-number)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside the block on one process fails on all of them; the block itself must not exchange anything.

        Raises the process's own error, or RuntimeError with the first failed one's message (OSError, ValueError or TypeError if
        it was one)."""
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as e:
            error = e
        first = self.size - self.agree(self.size - self.rank if error is not None else 0)
        if first == self.size:
            return
        said = self._tell(first, f"{_kind(error)}{error}")
        if error is not None:
            raise error
        kind, text = _KINDS[int(said[0])], said[1:]
        raise kind(f"process {first} of {self.size} could not go on: {text}")

    def _tell(self, source: int, text: str) -> str:
        """The text of process `source`, on all."""
        import torch.distributed as dist

        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        length = torch.tensor(len(data))
        dist.broadcast(length, source, group=self.host)
        data = data if self.rank == source else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, source, group=self.host)
        return bytes(data.tolist()).decode()

    def same(self, model: nn.Module) -> None:
        """All start from the first process's weights and buffers."""
        if self.size > 1:
            import torch.distributed as dist

            for value in model.state_dict().values():
                dist.broadcast(value, 0)

    def close(self) -> None:
        """Nothing is under way any more. The processes stay connected, for the next run."""
        if self.pending is not None:
            with contextlib.suppress(RuntimeError):  # the others are gone: an error of its own is on its way
                self.pending[0].wait()
            self.pending = None


_KINDS: tuple[type[Exception], ...] = (RuntimeError, OSError, ValueError, TypeError)


def _kind(error: Exception | None) -> int:
    return next((i for i, kind in enumerate(_KINDS) if i and isinstance(error, kind)), 0)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


class Loss(nn.Module):
    """`model.loss` as a forward pass, for what wraps or compiles modules; the model's own names stay as they are.

    Only the total has a gradient: what is merely logged is no reason to wait for a parameter's."""

    def __init__(self, model: BaseAE):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, **told: Tensor) -> AELoss:
        loss = self.model.loss(x, **told)
        return AELoss(loss.total, _detached(loss.terms), _detached(loss.metrics))


def _detached(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in values.items()}
