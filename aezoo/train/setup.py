"""What a run is put together from, before its first step."""

from __future__ import annotations

import copy
import fnmatch
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..base import AELoss, BaseAE
from ..data import Source, data_for
from ..data.sources import TensorSource, floats
from ..randomness import batches_of, mix_seed
from . import state as run_state
from .arguments import batches_for, notes
from .average import Average
from .finite import Guard, Kept
from .freezing import chosen
from .graph import Graphed
from .hardware import Hardware
from .hooks import Hooks
from .interval import Interval
from .loggers import build_loggers
from .optim import build_optimizer
from .processes import Processes
from .profile import Profile
from .progress import Progress
from .run import RunFolder
from .sharding import Shards
from .step import Compute, build_compute
from .taped import Taped
from .update import Update


class Setup:
    """The state of one run, and how it comes about: data, model, optimiser, and, when resuming, everything that was saved."""

    def __init__(
        self,
        model: BaseAE,
        source: Source,
        asked: dict[str, Any],
        hardware: Hardware,
        world: Processes,
        run: RunFolder | None,
        bar: Progress,
        callbacks: Any,
    ):
        self.asked, self.hardware, self.world, self.run, self.bar = asked, hardware, world, run, bar
        self.device = hardware.device
        self.given = model
        self.shards: Shards | None = None
        self.model = copy.deepcopy(model) if asked["shard"] else model.to(self.device)
        self.held: BaseAE | Shards = self.model  # whose weights this process holds
        self.loss: Callable[..., AELoss] = self.model.loss
        self.dtype = next(model.parameters()).dtype
        self.frozen = chosen(self.model, asked["freeze"]).modules
        self.seed: int = asked["seed"]
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.best_row: dict[str, Any] = {}
        self.best_weights: dict[str, Tensor] | None = None
        self.top: list[tuple[float, int]] = []  # the best models: (validation loss, step)
        self.stale = 0  # epochs without improvement, for patience
        self.plateau = 1.0  # factor on the learning rate
        self.plateau_stale = 0
        self.patience_best = math.inf  # what the validation loss must fall below, by min_change, to count as progress
        self.unbounded: set[str] = set()  # tensors of the model that hold an infinity from the start, as a mask may
        self.row_due = False  # the steps of a row are done, its row is not yet
        self.saved_at: tuple[int, bool] | None = None  # step of the newest checkpoint, and whether its row is still due
        self.stopped = "finished"
        self.signal = 0  # that ended the run
        self.average: Average | None = None
        self.graph: Graphed | None = None
        self.interval: Interval
        self.used_lr: float
        self.guard = Guard(asked["nonfinite"])
        self.profile = Profile(self) if asked["profile"] else None
        self.hooks = Hooks([*_listed(callbacks), *build_loggers(asked["logger"])])

        low, high = source.check(model.likelihood.support, model.accepts_missing)
        model.likelihood.check(low, high)
        if model.takes_condition and source.labels is not None:
            model.check_condition(source.labels.cpu(), len(source))
        check_samples(model, source)
        val = asked["val"]
        self.replay = source.replay
        self.val: Source | None = None
        if isinstance(val, float):
            source, self.val = source.split(val, self.seed)
        elif val is not None:
            self.val = data_for(model.input_shape, val)
            model.likelihood.check(*self.val.check(model.likelihood.support, model.accepts_missing))
            check_samples(model, self.val)
            val = self.val.replay or f"given in Python: {self.val.description}, {len(self.val)} samples"
            self.replay = self.replay if self.val.replay else None
        if inspect.isclass(asked["optimizer"]):
            known = getattr(torch.optim, asked["optimizer"].__name__, None) is asked["optimizer"]
            self.replay = self.replay if known else None
        from .fitting import fit

        self.written = {**asked, "val": val, "optimizer": getattr(asked["optimizer"], "__name__", asked["optimizer"])}
        self.defaults = {k: p.default for k, p in inspect.signature(fit).parameters.items()}
        self.description = source.description
        for note in notes(model, source, asked):
            bar.say(f"note: {note}")
        if asked["batch_size"] == "auto":
            from .find import for_run

            asked["batch_size"] = self.written["batch_size"] = for_run(self, source)
        self.batch_size = batches_for(source, asked["batch_size"], world)
        if asked["overfit_batches"]:
            first = source.order(mix_seed(self.seed, 0))[: asked["overfit_batches"] * self.batch_size]
            source = source.subset(first.sort().values)
        self.original = source
        self.model.see_data(len(source))
        self.source = source.to(self.device)
        self.val = self.val.to(self.device) if self.val is not None else None
        count = len(self.source)
        batches = getattr(self.source, "num_batches", None) or len(batches_of(torch.arange(count), self.batch_size))
        self.per_epoch = math.ceil(batches / asked["accumulate"])
        epochs, steps = asked["epochs"], asked["steps"]
        self.total = steps if steps is not None else (10 if epochs is None else epochs) * self.per_epoch
        self.stages = model.stages()
        ends, reached = [], 0.0
        for stage in self.stages:
            reached += stage.share
            ends.append(round(reached * self.total))
        self.stage_ends = [*ends[:-1], self.total]
        self.fixed = run_state.fixed(self)

    def stage_at(self, step: int) -> int:
        return next((i for i, end in enumerate(self.stage_ends) if step < end), len(self.stages) - 1)

    def enter_stage(self, number: int) -> None:
        """A stage has parameters, and so an optimiser, of its own; what was best in the one before means nothing here."""
        a, model = self.asked, self.model
        model.stage = number
        self.graph = None
        model.zero_grad(set_to_none=True)
        parameters = [p for p in self.stages[number].parameters if p.requires_grad]
        if not parameters:
            raise ValueError(f"{model.name} has no parameter to train: every requires_grad is False")
        if self.shards is not None:
            parameters = self.shards.parameters(parameters)
        names = {id(p): name for name, p in self.held.named_parameters()}
        named = [(names.get(id(p), ""), p) for p in parameters]
        self.weights = [p for p in parameters if p.dim() > 1]
        self.optimizer = build_optimizer(
            a["optimizer"], named, a["lr"], a["weight_decay"], self.groups([n for n, _ in named])
        )
        exchange = self.world.all_reduce if self.shards is not None else None
        self.update = Update(self.optimizer, a["clip"], sticky=a["nonfinite"] != "skip", exchange=exchange)
        self.compute: Compute | Taped = build_compute(
            model, self.weights, a["l1"], self.hardware, self.world, self.shards,
            update=self.update if a["accumulate"] == 1 else None,
        )  # fmt: skip
        self.best_row, self.best_weights, self.stale, self.plateau, self.plateau_stale = {}, None, 0, 1.0, 0
        self.top = []
        self.patience_best = math.inf
        self.kept = Kept(nn.Module() if a["nonfinite"] == "rollback" else model)  # a rollback has a snapshot of all

    def groups(self, names: Sequence[str]) -> dict[str, Any] | None:
        """Parameters with rates of their own: those that the user asked for, then those that the model brings."""
        own = {
            pattern: {**rates, "lr": rates["lr"] * self.asked["lr"]} if "lr" in rates else rates
            for pattern, rates in self.model.rates().items()
            if any(fnmatch.fnmatchcase(name, pattern) for name in names)
        }
        asked = self.asked["groups"] or {}
        return {**asked, **own} if own and isinstance(asked, dict) else self.asked["groups"]


def check_samples(model: BaseAE, source: Source) -> None:
    """Lets a model look at samples that are one tensor in memory."""
    if isinstance(source, TensorSource) and type(model).check_samples is not BaseAE.check_samples:
        x = source.x if source.index is None else source.x[source.index]
        model.check_samples(floats(x, torch.float32).view(-1, *source.shape))


def _listed(callbacks: Any) -> list[Any]:
    return list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
