"""Normalising flows: invertible maps of (B, K) with a triangular Jacobian, whose log-determinant is a sum.

    u, log_det = flow(z)            log |det du/dz|, (B,), in nats
    z, log_det = flow.inverse(u)    log |det dz/du| = minus the other

`RealNVP` is one pass both ways. `MAF` is one pass forward and K passes back: for densities. `IAF` is one pass forward and K passes
back as well, but its forward direction is the one that draws: for posteriors.

Log-scales are bounded softly to (-3, 3) a layer, and the last layer of each network starts small, so a new flow is near the identity
and none can blow up. Deviation from all of the papers: no batch norm between the layers.

Legend: B batch, K latents, H hidden units, C size of a context that the networks see beside z.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import functional as fn
from .base import positive

LIMIT = 3.0  # of a log-scale
START = 0.01  # factor on the initial weights of each network's last layer


class MaskedLinear(nn.Linear):
    """A linear layer without the connections where `mask` (outputs, inputs) is 0."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """Shift and log-scale of each latent from the latents before it: (B, K) -> (B, K), (B, K).

    Paper: Germain et al. 2015, arXiv:1502.03509, sec. 3: unit k of a hidden layer has a degree m(k) and sees what has a degree of at
    most m(k); output i sees hidden units of degree < i. Degrees here run from 0 (which sees nothing of z) to K - 1, evenly, instead
    of being drawn. A context (B, C) is added to the first hidden layer and seen by every output, the first one, too."""

    def __init__(self, dim: int, width: int = 64, context: int = 0):
        super().__init__()
        before = torch.arange(1, positive("dim", dim) + 1)  # degrees of z_1 .. z_K
        hidden = torch.arange(positive("width", width)) * dim // width  # 0 .. K - 1
        self.first = MaskedLinear((hidden[:, None] >= before[None]).float())
        self.second = MaskedLinear((hidden[:, None] >= hidden[None]).float())
        self.last = MaskedLinear((before.repeat(2)[:, None] > hidden[None]).float())
        self.context = nn.Linear(context, width, bias=False) if context else None
        with torch.no_grad():
            self.last.weight *= START
            self.last.bias.zero_()

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.first(z)
        if self.context is not None:
            assert context is not None
            h = h + self.context(context.to(self.context.weight.dtype))
        shift, log_scale = self.last(F.silu(self.second(F.silu(h)))).chunk(2, dim=1)
        return fn.full(shift), fn.soft_bound(log_scale, LIMIT)


class _Autoregressive(nn.Module):
    """A stack of MADE layers with the order of the latents reversed between them, and what a subclass does with them."""

    def __init__(self, dim: int, layers: int = 4, width: int = 64, context: int = 0):
        super().__init__()
        self.layers = nn.ModuleList(MADE(dim, width, context) for _ in range(positive("layers", layers)))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = fn.full(z), torch.zeros_like(fn.full(z[:, 0]))
        for made in self.layers:
            z, change = self.step(z, *made(z, context))
            z, log_det = z.flip(1), log_det + change
        return z, log_det

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, log_det = fn.full(u), torch.zeros_like(fn.full(u[:, 0]))
        index = torch.arange(u.shape[1], device=u.device)
        for made in reversed(self.layers):
            u = u.flip(1)
            z, change = torch.zeros_like(u), log_det
            for i in range(u.shape[1]):  # after pass i the first i + 1 latents are right, and the others still 0
                now, change = self.undo(u, *made(z, context))
                z = torch.where(index == i, now, z)
            u, log_det = z, log_det + change
        return u, log_det

    @staticmethod
    def step(z: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Forward through one layer: (u, log |det du/dz|)."""
        raise TypeError("a flow defines step")

    @staticmethod
    def undo(u: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Back through one layer, with shift and log-scale of the z that comes out: (z, log |det dz/du|)."""
        raise TypeError("a flow defines undo")


class MAF(_Autoregressive):
    """Masked autoregressive flow: u_i = (z_i - mu_i) exp(-alpha_i), mu and alpha from z_1 .. z_{i-1}; log det = -sum alpha.

    Paper: Papamakarios et al. 2017, arXiv:1705.07057, eq. 3-5. `forward` (z -> u, for densities) is one pass, `inverse` K passes.
    Args: dim, K; layers; width, hidden units of each network; context, size of what the networks see beside z."""

    @staticmethod
    def step(z: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        return (z - shift) * torch.exp(-log_scale), -log_scale.sum(1)

    @staticmethod
    def undo(u: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        return u * torch.exp(log_scale) + shift, log_scale.sum(1)


class IAF(_Autoregressive):
    """Inverse autoregressive flow: u_i = sigma_i z_i + mu_i, mu and log sigma from z_1 .. z_{i-1}; log det = sum log sigma.

    Paper: Kingma et al. 2016, arXiv:1606.04934, sec. 3. Deviation: sigma = exp of a bounded number rather than the gate of its
    algorithm 1. `forward` (noise -> latents, for draws) is one pass, `inverse` K passes. Args as `MAF`."""

    @staticmethod
    def step(z: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        return z * torch.exp(log_scale) + shift, log_scale.sum(1)

    @staticmethod
    def undo(u: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        return (u - shift) * torch.exp(-log_scale), -log_scale.sum(1)


class RealNVP(nn.Module):
    """Affine coupling: u = b z + (1 - b) (z exp(s(b z)) + t(b z)); log det = sum (1 - b) s. One pass both ways.

    Paper: Dinh et al. 2016, arXiv:1605.08803, eq. 4-9. The masks b (buffers): even and odd latents, first and second half, in turn.
    Args: dim, K; layers; width, hidden units of each network (two hidden layers). With K = 1 it is an affine map."""

    masks: Tensor

    def __init__(self, dim: int, layers: int = 6, width: int = 64):
        super().__init__()
        index = torch.arange(positive("dim", dim))
        odd, late = (index % 2).bool(), index >= (dim + 1) // 2
        kinds = [odd, ~odd, late, ~late] if dim > 1 else [odd]
        masks = [kinds[i % len(kinds)].float() for i in range(positive("layers", layers))]
        self.register_buffer("masks", torch.stack(masks))
        self.networks = nn.ModuleList(_conditioner(dim, positive("width", width)) for _ in masks)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = fn.full(z), torch.zeros_like(fn.full(z[:, 0]))
        for mask, network in zip(self.masks, self.networks):
            s, t = _coupling(network, mask, z)
            z, log_det = z * torch.exp(s) + t, log_det + s.sum(1)
        return z, log_det

    def inverse(self, u: Tensor) -> tuple[Tensor, Tensor]:
        u, log_det = fn.full(u), torch.zeros_like(fn.full(u[:, 0]))
        for mask, network in zip(reversed(self.masks.unbind(0)), reversed(self.networks)):
            s, t = _coupling(network, mask, u)
            u, log_det = (u - t) * torch.exp(-s), log_det - s.sum(1)
        return u, log_det


def _conditioner(dim: int, width: int) -> nn.Sequential:
    """(B, K) -> (B, 2K), small at first."""
    last = nn.Linear(width, 2 * dim)
    with torch.no_grad():
        last.weight *= START
        last.bias.zero_()
    return nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)


def _coupling(network: nn.Module, mask: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log-scale and shift of the latents that change; both are 0 for those that the network sees."""
    s, t = network((mask * z).to(mask.dtype)).chunk(2, dim=1)
    return (1 - mask) * fn.soft_bound(s, LIMIT), (1 - mask) * fn.full(t)


FLOWS: dict[str, type[RealNVP] | type[MAF]] = {"maf": MAF, "realnvp": RealNVP}  # those of which the density is one pass
