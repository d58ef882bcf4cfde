"""Many models of one shape as one: their tensors stacked, their random draws stacked, their losses and gradients one computation.

Legend: M models, B batch, V logged values. A stacked tensor has the models along its first axis.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..base import AELoss, BaseAE
from ..figures import averaged, is_part, shown
from ..randomness import set_seed
from .batched import Batched, Draw
from .hardware import Hardware
from .tape import Tape


class Unbatchable(Exception):
    """The models cannot be trained as one computation; says why."""


class Stack:
    """The tensors of M models in M-fold tensors, of which each model's own become views.

    So what reads or changes a model (saving, `after_step`, evaluation) sees and changes the stack, and nothing is copied. The
    trained parameters lie behind each other in one flat tensor, so that an optimiser's step is one kernel."""

    def __init__(self, models: Sequence[BaseAE]):
        self.models = list(models)
        first = models[0]
        device, dtype = next(first.parameters()).device, next(first.parameters()).dtype
        trained = [name for name, p in first.named_parameters() if p.requires_grad]
        owners = [(dict(m.named_parameters()), dict(m.named_buffers())) for m in models]
        sizes = [len(models) * owners[0][0][name].numel() for name in trained]
        self.flat = torch.empty(sum(sizes), device=device, dtype=dtype)
        self.grad = torch.zeros_like(self.flat)
        shapes = [(len(models), *owners[0][0][name].shape) for name in trained]
        self.trained = {n: part.view(s) for n, part, s in zip(trained, self.flat.split(sizes), shapes)}
        self.grads = {n: part.view(s) for n, part, s in zip(trained, self.grad.split(sizes), shapes)}
        for name, stacked in self.trained.items():
            torch.stack([parameters[name].detach() for parameters, _ in owners], out=stacked)
        self.frozen = {
            n: torch.stack([ps[n].detach() for ps, _ in owners]) for n in owners[0][0] if n not in self.trained
        }
        self.buffers = {n: torch.stack([bs[n] for _, bs in owners]) for n in owners[0][1]}
        self.tensors = {**self.trained, **self.frozen, **self.buffers}
        for i, (parameters, buffers) in enumerate(owners):
            for name, tensor in [*parameters.items(), *buffers.items()]:
                tensor.data = self.tensors[name][i]

    def copies(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.tensors.items()}

    @torch.no_grad()
    def put_back(self, copies: dict[str, Tensor]) -> None:
        for name, t in copies.items():
            self.tensors[name].copy_(t)

    def release(self) -> None:
        """Each model has memory of its own again."""
        for model in self.models:
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.data = tensor.data.clone()
                tensor.grad = None


# -------------------------------------------------------------------------------------------------------------- program


class Program:
    """Loss, logged values and gradients of all models for batches of one size, in training or in evaluation mode.

    `x` (M, B, *input_shape) and `draws` are inputs, `weights` (terms, M) those of the terms in each model's total;
    `values` (V, M), named by `names`, and `parts` of figures, (M, ...) each, are the outputs; gradients go to the stack."""

    def __init__(self, stack: Stack, template: BaseAE, x: Tensor, hardware: Hardware, training: bool):
        self.stack, self.template, self.hardware = stack, template, hardware
        self.training = training
        self.x = x
        self.plan = self._draws_of_one()
        self.draws = [draw.stacked(len(stack.models)).zero_() for draw in self.plan]
        self.coming = [torch.empty_like(d) for d in self.draws]  # of the next run, while those of this one are in use
        self.coming_x = torch.empty_like(x)
        self.places = [[d[i] for d in self.coming] for i in range(len(stack.models))]
        self.names: list[str] = []
        self.term_names: list[str] = []
        self.weights = torch.ones(0)
        self.last_weights: list[Any] = []
        self.values = torch.zeros(0)
        self.parts: dict[str, Tensor] = {}
        self.tape = Tape()
        before = stack.copies()
        try:
            with self._slots():
                self._record()
        finally:
            stack.put_back(before)

    def _draws_of_one(self) -> list[Draw]:
        """What one model draws in one pass. Raises Unbatchable if that cannot be drawn again by its form alone."""
        device, one = self.x.device, copy.deepcopy(self.template).train(self.training)
        if self.hardware.channels_last:
            one.to(memory_format=torch.channels_last)
        set_seed(0, device)
        with torch.no_grad(), self.hardware.autocast(), Batched() as mode:
            one.loss(self.hardware.place(self.x[0]))
        after = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
        generator = torch.Generator(device).manual_seed(0)
        for draw in mode.recorded:
            draw.fill(torch.empty_like(draw.like), generator)
        if not torch.equal(after, generator.get_state()):
            raise Unbatchable("it draws random numbers in a way that cannot be repeated for several models at once")
        return mode.recorded

    @contextmanager
    def _slots(self) -> Iterator[None]:
        """The template's tensors are put back behind the block."""
        self.template.train(self.training)
        names = {id(t): n for n, t in [*self.template.named_parameters(), *self.template.named_buffers()]}
        self.slots: list[tuple[dict[str, Any], str, str]] = [
            (held, key, names[id(t)])
            for module in self.template.modules()
            for held in (module._parameters, module._buffers)
            for key, t in held.items()
            if t is not None and id(t) in names
        ]
        kept = [held[key] for held, key, _ in self.slots]
        try:
            yield
        finally:
            for (held, key, _), t in zip(self.slots, kept):
                held[key] = t

    def _one(
        self, tensors: dict[str, Tensor], x: Tensor, draws: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """One model's terms, metrics and parts of figures, means over its batch; seen by `vmap`."""
        for held, key, name in self.slots:
            held[key] = tensors[name]
        with Batched(draws):
            if type(self.template).loss is BaseAE.loss:
                out = self.template.scored(x)
                terms, metrics = {k: v.mean() for k, v in out.terms.items()}, averaged(out.metrics)
            else:
                loss: AELoss = self.template.loss(x)
                terms, metrics = loss.terms, loss.metrics
        watched = shown(metrics)
        self.term_names, self.names = list(terms), ["loss", *terms, *watched]
        return list(terms.values()), list(watched.values()), {k: v for k, v in metrics.items() if is_part(k)}

    def _record(self) -> None:
        trained = {n: t.detach().requires_grad_(self.training) for n, t in self.stack.trained.items()}
        tensors = {**self.stack.tensors, **trained}
        count = len(self.stack.models)
        batched = torch.func.vmap(self._one, randomness="error")
        with torch.enable_grad() if self.training else torch.no_grad():
            with self.hardware.autocast(), self.tape:
                terms, metrics, self.parts = batched(tensors, self.x, self.draws)
            self.weights = torch.ones(len(terms), count, device=self.x.device, dtype=terms[0].dtype)
            with self.tape:
                stacked = torch.stack(terms)
                totals = (stacked * self.weights).sum(0)  # (M,)
                if self.training:
                    total = totals.sum()
                    grads = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
                    held = [(self.stack.grads[n], g) for n, g in zip(trained, grads) if g is not None]
                    with torch.no_grad():
                        torch._foreach_copy_([place for place, _ in held], [g for _, g in held])
                parts = [v.detach().to(totals.dtype) for v in (totals, *terms, *metrics)]
                self.values = torch.stack(parts)
        self.tape.finish([self.values, *self.parts.values()], rarely=[self.weights])
        self.unused = [n for n, g in zip(trained, grads) if g is None] if self.training else []

    def draw(self, i: int, generator: torch.Generator) -> None:
        """What model `i` draws for the run that comes, from its own generator."""
        for draw, place in zip(self.plan, self.places[i]):
            draw.fill(place, generator)
            if draw.scale != 1:
                place.div_(draw.scale)

    def same_draws(self, i: int, others: Sequence[int]) -> None:
        """Models `others`, in rising order, draw what model `i` drew."""
        block = others == list(range(i + 1, i + 1 + len(others)))
        for places in self.coming:
            if block:
                places[i + 1 : i + 1 + len(others)].copy_(places[i])
            else:
                for j in others:
                    places[j].copy_(places[i])

    def take(self) -> None:
        """What came is the next run's input."""
        self.x.copy_(self.coming_x)
        for came, used in zip(self.coming, self.draws):
            used.copy_(came)

    def run(self) -> Tensor:
        """The values (V, M), in memory that the next run uses again."""
        self._set_weights()
        self.tape.run()
        return self.values

    def _set_weights(self) -> None:
        """Each model's own weights of the terms, as they are now."""
        if type(self.template).term_weights is BaseAE.term_weights:
            return
        now = [[w.get(name, 1.0) for name in self.term_names] for w in (m.term_weights() for m in self.stack.models)]
        if any(isinstance(w, Tensor) for row in now for w in row):
            now = [[float(w) for w in row] for row in now]
        if now != self.last_weights:
            self.weights.copy_(torch.tensor(now, dtype=self.weights.dtype).t())
            self.last_weights = now
            self.tape.refresh()
