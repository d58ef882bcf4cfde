"""Weights, gradients and optimiser state cut into one part for each process (`fully_shard`), for models that do not fit on a device.

A process gathers a block's weights just before it computes with them and lets them go again. Between steps it holds its own rows of
each weight, plain tensors that the optimiser, averages and snapshots work on as on any others. Only where something is saved or
read are there whole tensors, under the names that they always have: so a run goes on with any number of processes, cut or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.base import Blocks, Tied
from ..base import BaseAE
from .processes import Loss, Processes

WHOLE_ROWS = ("Adafactor",)  # optimisers whose step for one row of a weight depends on the others


class Shards:
    """A model whose weights are cut; changes it for good, so it is given a copy.

    Blocks of encoder and decoder are gathered one at a time. Where one uses another's weight (tied weights, or a backbone that
    is no chain of `Blocks`), all weights are gathered for the length of a step, and only gradients and optimiser state are saved."""

    def __init__(self, model: BaseAE, world: Processes):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # blocks that end with a reshape return views, which nothing here changes in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        self.model, self.world = model, world
        self.module = Loss(model)
        options: dict[str, Any] = {"mesh": init_device_mesh(world.device.type, (world.size,))}
        self.numbers = [p for p in model.parameters() if p.dim() == 0]  # nothing to cut: each process has all of them
        for p in self.numbers:
            p.data = p.data.to(world.device)
        options["ignored_params"] = set(self.numbers)
        parts = (model.encoder, model.decoder)
        if all(isinstance(part, Blocks) and not any(isinstance(m, Tied) for m in part.modules()) for part in parts):
            for block in (b for part in parts for b in part.children() if list(b.parameters())):
                fully_shard(block, **options)
        fully_shard(self.module, **options)
        if world.device.type == "cpu":  # gloo of older torch versions takes an average for a sum, and says nothing
            for m in self.module.modules():
                sum_only: Any = getattr(m, "set_force_sum_reduction_for_comms", None)
                if sum_only is not None:
                    sum_only(True)
        # the first forward pass moves weights whose rows do not divide evenly (always, in older torch): not after this
        root: Any = self.module
        root._get_fsdp_state()._lazy_init()
        self.cut: dict[str, Any] = {}  # DTensors, by name
        self.own: dict[str, nn.Parameter] = {}  # every parameter's rows here; shares the DTensor's memory
        for name, p in model.named_parameters():
            if hasattr(p, "to_local"):
                self.cut[name] = p
                self.own[name] = nn.Parameter(p.to_local().detach(), requires_grad=p.requires_grad)
            else:
                self.own[name] = p
        self.names = {id(p): name for name, p in model.named_parameters()}

    def parameters(self, of: Sequence[nn.Parameter] | None = None) -> list[nn.Parameter]:
        """This process's rows, of some of the model's parameters or of all."""
        return list(self.own.values()) if of is None else [self.own[self.names[id(p)]] for p in of]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self.own.items())

    def hand_over(self) -> None:
        """The gradients of the model's parameters become those of this process's rows."""
        for name, p in self.cut.items():
            assert p.to_local().data_ptr() == self.own[name].data_ptr(), f"{name} was moved"
            if p.grad is not None:
                self.own[name].grad = p.grad.to_local()
                p.grad = None
        for p in self.numbers:
            if p.grad is not None:
                self.world.all_reduce(p.grad).div_(self.world.size)

    # ----------------------------------------------------------------------------------- in place of the model's state

    def state_dict(self) -> dict[str, Tensor]:
        """This process's rows and all buffers, under the model's names."""
        return {k: self.own[k].detach() if k in self.own else v for k, v in self.model.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for name, v in self.state_dict().items():
            v.copy_(tensors[name])

    # ---------------------------------------------------------------------------------------- whole tensors, and back

    def _of(self, key: str, optimizer: torch.optim.Optimizer) -> Any:
        """The DTensor that a tensor belongs to: "best.encoder.0.layer.weight", "snapshot.optimizer.3.exp_avg", or a bare name."""
        if key in self.cut:
            return self.cut[key]
        kind, _, name = key.removeprefix("snapshot.").partition(".")
        if kind == "optimizer":
            rows = [p for group in optimizer.param_groups for p in group["params"]][int(name.split(".")[0])]
            name = next(n for n, p in self.own.items() if p is rows)
        return self.cut.get(name) if kind in ("model", "best", "average", "optimizer") else None

    def whole(
        self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, everywhere: bool = False
    ) -> dict[str, Tensor]:
        """Whole tensors of the run's state, in host memory: of the first process, or `everywhere`. All processes must call it."""
        from torch.distributed.tensor import DTensor

        gathered = {}
        for key, v in tensors.items():
            p = self._of(key, optimizer)
            if p is not None and v.shape == p.to_local().shape:
                d = DTensor.from_local(v.contiguous(), p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
                v = d.full_tensor()
            if self.world.main or everywhere:
                gathered[key] = v.detach().cpu()
        return gathered

    def rows(self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """This process's rows of the same."""
        cut = {}
        for key, v in tensors.items():
            p = self._of(key, optimizer)
            if p is not None and v.shape == p.shape:
                parts = v.chunk(self.world.size)
                v = parts[self.world.rank] if self.world.rank < len(parts) else v[:0]
            cut[key] = v
        return cut
