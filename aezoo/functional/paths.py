"""Ways between two points.

Legend: T points on the way, B pairs, K dims; t runs from 0 to 1; Omega the angle between a and b.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAME, OPPOSITE = 1e-7, 1e-6  # angles so near to 0 and pi are taken for these


def lerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """(1 - t) a + t b: a, b (B, K), t (T,) -> (B, T, K)."""
    t = t[None, :, None]
    return (1 - t) * a[:, None] + t * b[:, None]


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """sin((1 - t) Omega) / sin Omega a + sin(t Omega) / sin Omega b, the great circle (Shoemake 1985; for latents White 2016, arXiv:1609.04468).

    a, b (B, K), t (T,) -> (B, T, K), in the dtype of a, computed in float64 where the device has it. a and b need not be of equal length; where
    they are, so is every point between them. Where the formula has no value:
        one of them is 0, or both point the same way: the straight line (for Omega -> 0 its limit);
        they point in opposite ways: a half circle through a direction at right angles to a (the coordinate axis that is furthest from a, made
        orthogonal to it), at radii that go straight from |a| to |b|; for K = 1, where there is none, the straight line."""
    precise = (lambda x: x.float()) if a.device.type == "mps" else (lambda x: x.double())
    p, q, s = precise(a), precise(b), precise(t)
    straight = lerp(p, q, s)
    from_a, from_b = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (p, q))
    u, v = p / from_a.clamp_min(1e-300 if p.dtype == torch.float64 else 1e-30), q / from_b.clamp_min(1e-30)
    # the half-angle form keeps its digits near 0 and near pi, where arccos of a product loses them
    omega = 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=1), torch.linalg.vector_norm(u + v, dim=1))
    omega = omega[:, None, None]
    s = s[None, :, None]
    sine = omega.sin().clamp_min(1e-30)
    arc = ((1 - s) * omega).sin() / sine * p[:, None] + (s * omega).sin() / sine * q[:, None]
    line = (from_a == 0) | (from_b == 0) | (omega[:, 0] < SAME)
    opposite = (math.pi - omega[:, 0] < OPPOSITE) & ~line
    out = torch.where(line[:, :, None], straight, arc)
    if bool(opposite.any()):
        if p.shape[1] == 1:
            detour = straight
        else:
            axis = torch.zeros_like(u).scatter(1, u.abs().argmin(1, keepdim=True), 1.0)
            side = axis - (axis * u).sum(1, keepdim=True) * u
            side = side / torch.linalg.vector_norm(side, dim=1, keepdim=True)
            radius = (1 - s) * from_a[:, None] + s * from_b[:, None]
            turned = (math.pi * s).cos() * u[:, None] + (math.pi * s).sin() * side[:, None]
            detour = radius * turned
        out = torch.where(opposite[:, :, None], detour, out)
    out[:, s[0, :, 0] == 0] = p[:, None]
    out[:, s[0, :, 0] == 1] = q[:, None]
    return out.to(a.dtype)
