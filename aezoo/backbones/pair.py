"""Any two modules of the user's own as a backbone: `backbone=(encoder, decoder)`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..randomness import forked_rng
from .base import BACKBONES, Backbone

Shape = tuple[int, ...]


def build_backbone(spec: Any) -> Backbone:
    """The backbone that a spec says; besides the forms that every piece has, a pair of modules."""
    if isinstance(spec, Pair):
        return spec
    if isinstance(spec, (tuple, list)):
        if len(spec) != 2 or not all(isinstance(m, nn.Module) for m in spec):
            kinds = ", ".join(type(m).__name__ for m in spec)
            raise TypeError(f"backbone=({kinds}) must be two modules, (encoder, decoder), or the name of a backbone")
        return Pair(*spec)
    return BACKBONES.build(spec)


class Pair(Backbone):
    """Two given modules, used as they are (not copied):

        encoder: (B, *input_shape)             -> (B, code_params * latent_dim[, *grid])
        decoder: (B, latent_dim[, *grid])      -> (B, num_params, *input_shape), or (B, *input_shape) where num_params is 1

    with a grid for models with a spatial code, and none for the others. What they return is checked when the model is built, on two
    samples of zeros, in evaluation mode. Raises ValueError or TypeError naming what came and what is expected.

    Such a model can be trained and its `state_dict` kept, but not written by name: see `nameless`."""

    name = "(encoder, decoder)"

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        self.encoder, self.decoder = encoder, decoder

    def build(
        self, input_shape: Shape, latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        return self._checked(input_shape, latent_dim, code_params, num_params, spatial=False)[:2]

    def build_grid(
        self, input_shape: Shape, latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module, Shape]:
        return self._checked(input_shape, latent_dim, code_params, num_params, spatial=True)

    @property
    def nameless(self) -> str:
        """Why a model with it cannot be saved by name, and what to do."""
        encoder, decoder = type(self.encoder).__name__, type(self.decoder).__name__
        return (
            "backbone=(encoder, decoder) cannot be written to config.json, since modules have no name there. Register a backbone that "
            "builds them, and give it by that name (without out=, training works as it is; model.state_dict() holds the weights):\n\n"
            '    @aezoo.backbones.BACKBONES.register("mine")\n'
            "    class Mine(aezoo.backbones.Backbone):\n"
            "        def build(self, input_shape, latent_dim, code_params=1, num_params=1):\n"
            f"            return {encoder}(...), {decoder}(...)\n"
            '    aezoo.create_model(..., backbone="mine")'
        )

    def _checked(
        self, input_shape: Shape, latent_dim: int, code_params: int, num_params: int, spatial: bool
    ) -> tuple[nn.Module, nn.Module, Shape]:
        like = next((p for m in (self.encoder, self.decoder) for p in m.parameters()), torch.zeros(()))
        with forked_rng(like.device), torch.no_grad(), _evaluating(self.encoder, self.decoder):
            x = torch.zeros(2, *input_shape, dtype=like.dtype, device=like.device)
            size = code_params * latent_dim
            wanted = f"(2, {size}{', *grid' if spatial else ''})"
            each = f", {code_params} numbers for each of {latent_dim} latents" if code_params > 1 else ""
            h = _run("encoder", self.encoder, x, wanted + each)
            fits = h.dim() > 2 if spatial else h.dim() == 2
            if not fits or tuple(h.shape[:2]) != (2, size):
                flat = not spatial and h.dim() > 2 and h[0].numel() == size
                hint = "; end the encoder in nn.Flatten()" if flat else ""
                raise ValueError(_wrong("encoder", h, x, wanted + each + hint))
            grid = tuple(h.shape[2:])
            z = h.new_zeros(2, latent_dim, *grid)
            wanted = ", ".join(map(str, (2, num_params, *input_shape)))
            y = _run("decoder", self.decoder, z, f"({wanted})")
        if tuple(y.shape) == (2, num_params, *input_shape):
            return self.encoder, self.decoder, grid
        if num_params == 1 and tuple(y.shape[1:]) == input_shape:
            return self.encoder, nn.Sequential(self.decoder, nn.Unflatten(1, (1, input_shape[0]))), grid
        why = f", {num_params} numbers for each data element" if num_params > 1 else ""
        raise ValueError(_wrong("decoder", y, z, f"({wanted}){why}"))


def _run(what: str, module: nn.Module, inputs: Tensor, wanted: str) -> Tensor:
    """What the module returns. Raises ValueError if it fails, TypeError if it is no tensor."""
    try:
        out = module(inputs)
    except Exception as error:
        raise ValueError(
            f"backbone: the {what} ({type(module).__name__}) fails on a batch of shape {tuple(inputs.shape)}, for which it must "
            f"return {wanted}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(out, Tensor):
        raise TypeError(
            f"backbone: the {what} ({type(module).__name__}) returns {type(out).__name__}, not a tensor {wanted}"
        )
    return out


def _wrong(what: str, out: Tensor, inputs: Tensor, wanted: str) -> str:
    return f"backbone: the {what} returns shape {tuple(out.shape)} for a batch of shape {tuple(inputs.shape)}; expected is {wanted}"


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own mode after it."""
    every: Sequence[nn.Module] = [m for module in modules for m in module.modules()]
    modes = [m.training for m in every]
    for m in every:
        m.training = False
    try:
        yield
    finally:
        for m, mode in zip(every, modes):
            m.training = mode
