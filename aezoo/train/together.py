"""The loop over several models at once: order, draws, schedule, validation and history are each model's own, the arithmetic is one.

Legend: M models, B batch, V logged values, N samples of an epoch.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base import BaseAE
from ..data import data_for
from ..data.sources import TensorSource, floats
from ..figures import folded, wide
from ..randomness import batches_of, mix_seed
from .arguments import batches_for, notes
from .average import Average
from .comparison import compare
from .folders import open_folders
from .hardware import SMALL_STACK, Hardware, settle
from .moves import Moves
from .optim import lr_factor
from .processes import Processes
from .progress import Progress
from .result import FitResult
from .run import RunFolder
from .setup import check_samples
from .stack import Program, Stack, Unbatchable
from .validate import VALIDATION

TOLERANCE = {
    "fp32": 1e-3,
    "bf16": 5e-2,
}  # how far loss and gradient may lie from a single model's, relative to their size
TO_BEAT = 1.2  # a step of all models may take that many times what their single steps take


class Together:
    """One group of models. Raises Unbatchable, with the models as they were, if they cannot be computed together."""

    def __init__(
        self,
        models: Sequence[BaseAE],
        source: TensorSource,
        each: Sequence[dict[str, Any]],
        hardware: Hardware,
        bar: Progress,
        folders: Sequence[Path | None],
        diverged: str,
    ):
        self.models, self.each, self.hardware, self.bar, self.diverged = (
            list(models),
            list(each),
            hardware,
            bar,
            diverged,
        )
        self.asked = each[0]
        self.device = hardware.device
        if self.device.type not in ("cpu", "cuda"):
            raise Unbatchable(f"device {self.device} is neither the CPU nor CUDA")
        first = models[0]
        for m in models:
            m.to(self.device)
        self.dtype = next(first.parameters()).dtype
        low, high = source.check(first.likelihood.support)
        first.likelihood.check(low, high)
        check_samples(first, source)
        for note in notes(first, source, self.asked):
            bar.say(f"note: {note}")
        self.given = source
        self.base = source.to(self.device)
        self.sources, self.vals = self._data()
        self.world = Processes(self.device)
        if self.world.size > 1:
            raise Unbatchable("several processes were started")
        self.batch_size = batches_for(self.sources[0], self.asked["batch_size"], self.world)
        self.per_epoch = len(batches_of(torch.arange(len(self.sources[0])), self.batch_size))
        for model in models:
            model.see_data(len(self.sources[0]))
        epochs, steps = self.asked["epochs"], self.asked["steps"]
        self.total = steps if steps is not None else (10 if epochs is None else epochs) * self.per_epoch
        settle(hardware, first, False, self.batch_size * len(models), self.total, small_step=SMALL_STACK)
        self.seeds = [s["seed"] for s in each]
        self.generators = [torch.Generator(self.device) for _ in models]
        self.rows: list[list[dict[str, Any]]] = [[] for _ in models]
        self.best_rows: list[dict[str, Any]] = [{} for _ in models]
        self.stopped: dict[int, str] = {}  # models that are done before the others
        self.stale, self.plateau_stale = [0] * len(models), [0] * len(models)
        self.plateaus, self.patience_best = [1.0] * len(models), [math.inf] * len(models)
        self.step = 0
        self.folders = folders
        self.runs: list[RunFolder] = []
        # where small kernels leave a core idle, it draws the next step's random numbers
        self.pool = (
            ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) if hardware.threads else None
        )
        self.programs: dict[tuple[int, bool], Program] = {}

    def _data(self) -> tuple[list[TensorSource], list[TensorSource]]:
        """Each model's training and validation samples; the latter empty without validation."""
        val = self.asked["val"]
        if isinstance(val, float):
            parts = [self.base.split(val, s["seed"]) for s in self.each]
            return [a for a, _ in parts], [b for _, b in parts]  # type: ignore[misc]
        if val is None:
            return [self.base] * len(self.models), []
        held = data_for(self.models[0].input_shape, val)
        if not isinstance(held, TensorSource):
            raise Unbatchable(f"the validation data, {held.description}, is not one tensor in memory")
        self.models[0].likelihood.check(*held.check(self.models[0].likelihood.support))
        return [self.base] * len(self.models), [held.to(self.device)] * len(self.models)

    # ------------------------------------------------------------------------------------------------------------ train

    def train(self, on_row: Callable[[int, dict[str, Any]], Any]) -> list[FitResult]:
        began = time.perf_counter()
        self.template = copy.deepcopy(self.models[0])
        self.stack = Stack(self.models)
        bar: Any = None
        try:
            with self.hardware.applied(), contextlib.closing(self.bar), contextlib.ExitStack() as reporting:
                for m in (self.template, *self.models):
                    reporting.enter_context(m.reporting_parts())
                self._prepare()
                self.runs = open_folders(self)
                for run in self.runs:
                    run.write_hardware(self.hardware.told())
                self.bar.say(
                    f"{len(self.models)} models {self.models[0].name} as one, {self.models[0].num_parameters:,} parameters each | "
                    f"{len(self.sources[0]):,} samples of {self.given.description} | {self.total:,} steps of {self.batch_size}"
                )
                if self.bar.on and sys.stderr.isatty():
                    from tqdm import tqdm

                    bar = self.bar.bar = tqdm(total=self.total, unit="step", dynamic_ncols=True, leave=False)
                while self.step < self.total and len(self.stopped) < len(self.models):
                    self._epoch(on_row, bar)
            return self._finish(time.perf_counter() - began)
        finally:
            if self.pool is not None:
                self.pool.shutdown()
            self.stack.release()
            for run in self.runs:
                run.close()

    def _prepare(self) -> None:
        """The first batch's program, compared with single models."""
        plan = self._order(0)
        index = plan[0]
        program = self._program(index.shape[1], True)
        for size in {
            part.shape[1] for part in plan
        }:  # what cannot be computed together is found out before the first step
            self._program(size, True)
        for size in (
            {len(part) for part in torch.arange(len(self.vals[0])).split(2 * self.batch_size)} if self.vals else ()
        ):
            self._program(size, False)
        self.moves = Moves(self.stack, self.each, program.unused)
        compare(self, program, index)
        self.average = None
        if self.asked["ema"]:
            self.average = Average(nn.ParameterList([nn.Parameter(self.stack.flat)]), self.asked["ema"])
        self.kept = self.stack.copies()  # as of the last row
        self.best = self.stack.copies()
        self._start_interval()

    def _order(self, epoch: int) -> list[Tensor]:
        """Positions in the data of the epoch's batches, (M, B) each."""
        orders = [s.order(mix_seed(seed, epoch)) for s, seed in zip(self.sources, self.seeds)]
        placed = [o.to(s.index.device) if s.index is not None else o for s, o in zip(self.sources, orders)]
        found = torch.stack([o if s.index is None else s.index[o] for s, o in zip(self.sources, placed)]).to(
            self.device
        )
        sizes = [len(part) for part in batches_of(torch.arange(found.shape[1]), self.batch_size)]
        return list(found.split(sizes, dim=1))

    def _program(self, size: int, training: bool) -> Program:
        key = (size, training)
        if key not in self.programs:
            x = self.base.x[:1].to(self.device, self.dtype).view(1, 1, *self.base.shape)
            x = (x / 255 if self.base.x.dtype == torch.uint8 else x).repeat(
                len(self.models), size, *[1] * len(self.base.shape)
            )
            try:
                self.programs[key] = Program(self.stack, self.template, x, self.hardware, training)
            except (RuntimeError, NotImplementedError, ValueError) as error:
                raise Unbatchable(f"torch cannot compute it for several models at once ({_short(error)})") from error
        return self.programs[key]

    def feed(self, program: Program, source: TensorSource, index: Tensor, seeds: Sequence[int] | None) -> None:
        """Samples and draws for the run that comes. Without `seeds` the generators go on where they are."""
        rows = program.coming_x.view(-1, *source.x.shape[1:])  # (M * B, ...)
        if source.x.dtype == rows.dtype and source.x.device == rows.device:
            torch.index_select(source.x, 0, index.reshape(-1), out=rows)
        else:
            rows.copy_(floats(source.x.index_select(0, index.reshape(-1)).to(self.device), self.dtype))
        twins: dict[int, list[int]] = {}  # models of one seed draw the same numbers (and read the same samples)
        for i in range(len(self.models)):
            twins.setdefault(i if seeds is None else seeds[i], []).append(i)
        for i, *others in twins.values():
            generator = self.generators[i] if seeds is None else self.generators[i].manual_seed(seeds[i])
            if source.binarize == "dynamic":
                pixels = torch.bernoulli(program.coming_x[i], generator=generator)
                for j in (i, *others):
                    program.coming_x[j].copy_(pixels)
            program.draw(i, generator)
            program.same_draws(i, others)

    def step_seeds(self, step: int) -> list[int]:
        mixed = {seed: mix_seed(seed, step, 1) for seed in set(self.seeds)}
        return [mixed[seed] for seed in self.seeds]

    def _ahead(self, index: Tensor, step: int) -> Callable[[], Any]:
        """Begins to make a step's inputs, in a second thread where there is one; what it returns waits for them."""
        job = partial(self.feed, self._program(index.shape[1], True), self.base, index, self.step_seeds(step))
        return self.pool.submit(job).result if self.pool is not None else job

    def _epoch(self, on_row: Callable[[int, dict[str, Any]], Any], bar: Any) -> None:
        a, counts = self.asked, type(self.models[0]).after_step is not BaseAE.after_step
        for m in self.models:
            m.train()
        plan = self._order(self.step // self.per_epoch)[: self.total - self.step]
        ready = self._ahead(plan[0], self.step)
        for number, index in enumerate(plan):
            program = self._program(index.shape[1], True)
            ready()
            program.take()
            if number + 1 < len(plan):
                ready = self._ahead(plan[number + 1], self.step + 1)
            values = program.run()
            self.sums.add_(values, alpha=index.shape[1])
            add_parts(self.parts, program.parts, index.shape[1])
            self.samples += index.shape[1]
            self.factor = lr_factor(a["schedule"], self.step, self.total, a["warmup"])
            self.moves.step(self.factor)
            if counts:
                for m in self.models:
                    m.after_step()
            self.step += 1
            if self.average is not None:
                self.average.update(self.step)
            if bar is not None:
                bar.update()
            ends = self.step >= self.total or self.step % self.per_epoch == 0
            if ends or (a["log_every"] and self.step % a["log_every"] == 0):
                self._row(program.names, ends, on_row)
                if len(self.stopped) == len(self.models):
                    return

    # --------------------------------------------------------------------------------------------------- rows and ending

    def _start_interval(self) -> None:
        program = next(iter(self.programs.values()))
        self.sums, self.samples, self.began = torch.zeros_like(program.values), 0, time.perf_counter()
        self.parts: dict[str, Tensor] = {}

    def _row(self, names: list[str], ends: bool, on_row: Callable[[int, dict[str, Any]], Any]) -> None:
        """Log, validate, judge."""
        means = means_of(names, self.sums, self.parts, self.samples)
        seconds = time.perf_counter() - self.began
        speed = {"samples_per_s": round(self.samples / max(seconds, 1e-9), 1), "seconds": round(seconds, 3)}
        finite = torch.stack([t.isfinite().flatten(1).all(1) for t in self.stack.trained.values()]).all(0).tolist()
        with self.average.applied() if self.average is not None else contextlib.nullcontext():
            held = self._validate() if self.vals and ends else None
            better = []
            for i in range(len(self.models)):
                if i in self.stopped:
                    continue
                lr = self.each[i]["lr"] * self.plateaus[i] * self.factor
                row: dict[str, Any] = {"epoch": (self.step - 1) // self.per_epoch + 1, "step": self.step, "lr": lr}
                row |= means[i]
                if held is not None:
                    row |= {f"val_{k}": v for k, v in held[i].items()}
                if not finite[i] or not all(math.isfinite(v) for v in row.values()):
                    self._not_finite(i, row)
                    continue
                row |= speed
                self.rows[i].append(row)
                if held is not None or not self.vals:
                    better += [i] if self._judge(i, row) else []
                if self.runs:
                    self._write_row(self.runs[i], row)
                on_row(i, row)
            self._keep(self.best, better)
        self._keep(self.kept, [i for i in range(len(self.models)) if self.stopped.get(i) != "not finite"])
        self._start_interval()
        for m in self.models:
            m.train()

    def _write_row(self, run: RunFolder, row: dict[str, Any]) -> None:
        try:
            run.append(row)
        except OSError as error:
            self.bar.warn(
                f"the row of step {self.step:,} could not be written in {run.path}: {error.strerror or error}; it is written "
                "with the next one"
            )

    @torch.no_grad()
    def _keep(self, copies: dict[str, Tensor], chosen: list[int]) -> None:
        """The weights of the chosen models as they are now."""
        if chosen:
            index = torch.tensor(chosen, device=self.device)
            for name, t in self.stack.tensors.items():
                copies[name].index_copy_(0, index, t.index_select(0, index))

    def _not_finite(self, i: int, row: dict[str, Any]) -> None:
        wrong = ", ".join(f"{k} {v:g}" for k, v in row.items() if not math.isfinite(v)) or "the weights"
        if self.diverged == "leave":
            self.stopped[i] = "not finite"
            self.bar.say(
                f"note: model {i} (lr={self.each[i]['lr']:g}, seed={self.seeds[i]}) is left behind at step {self.step}: {wrong}"
            )
            return
        with torch.no_grad():
            self.stack.put_back(self.kept)
        raise FloatingPointError(
            f"not finite up to step {self.step} in model {i} (lr={self.each[i]['lr']:g}, seed={self.seeds[i]}): {wrong}. All models "
            "have the weights of the last row; lower lr, set clip=1.0, scale the data, or pass diverged='leave'"
        )

    def _judge(self, i: int, row: dict[str, Any]) -> bool:
        """Is this the model's best epoch?"""
        if not self.vals:
            self.best_rows[i] = row
            return True
        loss, patience = row["val_loss"], self.asked["patience"]
        better = loss < self.best_rows[i].get("val_loss", math.inf)
        progress = loss < self.patience_best[i] - self.asked["min_change"]
        self.stale[i] = 0 if progress else self.stale[i] + 1
        self.patience_best[i] = loss if progress else self.patience_best[i]
        self.plateau_stale[i] = 0 if better else self.plateau_stale[i] + 1
        if self.asked["schedule"] == "plateau" and self.plateau_stale[i] >= 5:
            self.plateaus[i], self.plateau_stale[i] = self.plateaus[i] * 0.3, 0
            self.moves.scale(self.plateaus)
        if better:
            self.best_rows[i] = row
        if patience is not None and self.stale[i] >= patience and self.step < self.total:
            self.stopped[i] = "converged"
        return better

    def _validate(self) -> list[dict[str, float]]:
        """Each model's mean loss, terms and metrics over its own validation data, with the draws of a single run."""
        for generator, seed in zip(self.generators, self.seeds):
            generator.manual_seed(mix_seed(seed, VALIDATION))
        for m in self.models:
            m.eval()
        count, source = len(self.vals[0]), self.vals[0]
        whole = torch.arange(count, device=self.device)
        index = torch.stack([whole if v.index is None else v.index for v in self.vals])
        sums: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for part in index.split(2 * self.batch_size, dim=1):
            program = self._program(part.shape[1], False)
            self.feed(program, source, part, None)
            program.take()
            values = program.run() * part.shape[1]
            sums = values if sums is None else sums.add_(values)
            add_parts(parts, program.parts, part.shape[1])
        assert sums is not None
        return means_of(program.names, sums, parts, count)

    def _finish(self, seconds: float) -> list[FitResult]:
        self.stack.put_back(self.best)
        results = []
        for i, m in enumerate(self.models):
            m.eval()
            speeds = sorted(row["samples_per_s"] for row in self.rows[i]) or [0.0]
            folder = self.runs[i].path if self.runs else None
            if self.runs:
                self.runs[i].append()  # what waits
                self.runs[i].save_model(m.saved_config(), m.state_dict())
            stopped = self.stopped.get(i, "finished")
            results.append(
                FitResult(m, self.rows[i], self.best_rows[i], stopped, seconds, speeds[len(speeds) // 2], folder)
            )
        return results


def add_parts(sums: dict[str, Tensor], parts: dict[str, Tensor], samples: int) -> None:
    """Adds `samples` times the parts of figures, (M, ...) each, in float64."""
    for name, value in parts.items():
        if name not in sums:
            sums[name] = torch.zeros_like(wide(value))
        sums[name].add_(value, alpha=samples)


def means_of(names: Sequence[str], sums: Tensor, parts: dict[str, Tensor], samples: int) -> list[dict[str, float]]:
    """What each model logs, from sums (V, M) and (M, ...) over as many samples."""
    values = (sums.double() / samples).t().cpu()
    shares = {name: value.cpu() / samples for name, value in parts.items()}
    return [folded({**dict(zip(names, row)), **{k: v[i] for k, v in shares.items()}}) for i, row in enumerate(values)]


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0][:160]
