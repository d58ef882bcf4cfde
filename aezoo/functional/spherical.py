"""The von Mises-Fisher distribution on the unit sphere: vMF(z; mu, kappa) = C_m(kappa) exp(kappa mu.z), |z| = |mu| = 1.

Legend: B batch, m dimension of the space around the sphere S^(m-1); mu (B, m) mean direction, kappa (B,) concentration,
theta the angle between mu and z, I_v the modified Bessel function of the first kind, A_m = I_(m/2) / I_(m/2-1) = E[mu.z].
Special functions run in float64 (where the device has it) and come back in the dtype of their input.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .core import full, per_sample

NEAR = 25.0  # v^2 + x^2 below its square: the power series of I_v; above: the expansion for large v^2 + x^2
TERMS = 48  # of the power series: at x = 25 the last is 1e-25 of the sum
ORDERS = 10  # of the expansion: at its border the first term left out is below 1e-12 of the sum
PROPOSALS = 32  # of Wood's sampler for each draw; he accepts two of three or more, so all fail once in 1e15 draws
NODES = 64  # of the quadrature for the gradient of a draw
REACH = 10.0  # over how many standard deviations of the angle


def _precise(x: Tensor) -> Tensor:
    return full(x) if x.device.type == "mps" else x.double()


# --------------------------------------------------------------------------------------------------------------- Bessel


def _debye() -> list[list[float]]:
    """c[k][j] of U_k(p) = p^k sum_j c[k][j] p^(2j), k = 0 ... ORDERS (DLMF 10.41.9):
    U_(k+1) = p^2 (1 - p^2) U_k' / 2 + 1/8 integral_0^p (1 - 5 t^2) U_k dt."""
    rows = [[1.0]]
    for k in range(ORDERS):
        row = [0.0] * (k + 2)
        for j, c in enumerate(rows[-1]):
            n = k + 2 * j  # the power of p
            row[j] += c * (n / 2 + 1 / (8 * (n + 1)))
            row[j + 1] -= c * (n / 2 + 5 / (8 * (n + 3)))
        rows.append(row)
    return rows


DEBYE = _debye()


def _series(x: Tensor, order: Tensor) -> Tensor:
    """log of sum_k (x/2)^(2k+v) / (k! Gamma(k+v+1)), all terms positive (DLMF 10.25.2), less x."""
    k = torch.arange(TERMS, device=x.device, dtype=x.dtype)
    half, v = (x / 2).log(), order[..., None]
    terms = 2 * k * half[..., None] - torch.lgamma(k + 1) - torch.lgamma(k + v + 1)
    return order * half + torch.logsumexp(terms, -1) - x


def _expansion(x: Tensor, order: Tensor) -> Tensor:
    """log I_v(x) - x by the uniform expansion for large order (DLMF 10.41.3) with r = sqrt(v^2 + x^2) taken out of it: p = v / r
    and U_k(p) / v^k = r^-k sum_j c[k][j] p^(2j). So it holds for large x at any order, too."""
    r = (x.square() + order.square()).sqrt()
    p2, total = (order / r).square(), torch.zeros_like(r)
    for row in reversed(DEBYE):
        inner = torch.zeros_like(r)
        for c in reversed(row):
            inner = inner * p2 + c
        total = total / r + inner
    return order.square() / (r + x) + order * (x / (order + r)).log() - 0.5 * (2 * math.pi * r).log() + total.log()


class _Bessel(torch.autograd.Function):
    """log I_v(x) - x and R_v = I_(v+1) / I_v, whose derivatives R_v + v / x - 1 and 1 - R_v^2 - (2v+1) R_v / x need nothing
    else."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: float) -> tuple[Tensor, Tensor]:
        both = order + torch.arange(2, device=x.device, dtype=x.dtype)  # v and v + 1
        y = x[..., None].expand(*x.shape, 2)
        near = y.square() + both.square() < NEAR**2
        series = _series(torch.where(near, y, torch.ones_like(y)), both)
        value = torch.where(near, series, _expansion(torch.where(near, torch.full_like(y, NEAR), y), both))
        first, second = value.unbind(-1)
        return first.clone(), (second - first).exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.order = inputs
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # of differentiable operations, so any derivative is right
        x, ratio = ctx.saved_tensors
        v = ctx.order
        slope = gradients[0] * (ratio + v / x - 1)
        return slope + gradients[1] * (1 - ratio.square() - (2 * v + 1) / x * ratio), None


def log_bessel_i(order: float, x: Tensor) -> Tensor:
    """log I_v(x) for v >= 0 and x > 0, elementwise; the relative error of I_v exp(-x) is below 1e-11. Differentiable in x any
    number of times."""
    precise = _precise(x)
    return (_Bessel.apply(precise, float(order))[0] + precise).to(full(x).dtype)


# ------------------------------------------------------------------------------------------------------ von Mises-Fisher


def mean_resultant_length(kappa: Tensor, dim: int) -> Tensor:
    """A_m(kappa) = I_(m/2)(kappa) / I_(m/2-1)(kappa), the length of the mean of z: (B,) -> (B,) in (0, 1)."""
    ratio: Tensor = _Bessel.apply(_precise(kappa), dim / 2 - 1)[1]
    return ratio.to(full(kappa).dtype)


def sphere_log_area(dim: int) -> float:
    """log of the area of S^(m-1), 2 pi^(m/2) / Gamma(m/2)."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def _peak_and_mean(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """log C_m(kappa) + kappa, the log-density at mu, which stays small where kappa is large; and A_m(kappa)."""
    v = dim / 2 - 1
    scaled, mean = _Bessel.apply(kappa, v)
    return v * kappa.log() - dim / 2 * math.log(2 * math.pi) - scaled, mean


def vmf_kl(kappa: Tensor, dim: int) -> Tensor:
    """KL(vMF(mu, kappa) || uniform on the sphere) = kappa A_m(kappa) + log C_m(kappa) + log area, nats, (B,) -> (B,)
    (arXiv:1804.00891)."""
    k = _precise(kappa)
    peak, mean = _peak_and_mean(k, dim)
    return (peak - k * (1 - mean) + sphere_log_area(dim)).to(full(kappa).dtype)


def vmf_log_prob(z: Tensor, mu: Tensor, kappa: Tensor) -> Tensor:
    """log C_m(kappa) + kappa mu.z, nats with respect to the sphere's area: z, mu (B, m), kappa (B,) -> (B,)."""
    k = _precise(kappa)
    gap = 0.5 * per_sample((_precise(z) - _precise(mu)).square())  # 1 - mu.z for unit vectors, without its cancellation
    return (_peak_and_mean(k, mu.shape[1])[0] - k * gap).to(full(kappa).dtype)


def vmf_angle(kappa: Tensor, dim: int) -> Tensor:
    """A draw of theta, density ~ exp(kappa cos theta) sin^(m-2) theta: (B,) -> (B,), with its derivative by kappa.

    Wood 1994: with n = m - 1 and b = n / (2 kappa + sqrt(4 kappa^2 + n^2)), propose tan^2(theta/2) = b e / (1 - e),
    e ~ Beta(n/2, n/2), and accept with probability (r exp(1 - r))^n, r = (1 + b) / (2 (1 - (1 - b) e)). A symmetric beta
    variable is (1 + y) / 2, y one coordinate of a uniform point on S^(m-1) = sqrt(1 - U^(2/(m-2))) cos(2 pi V). All
    proposals are drawn at once and the first that is accepted is taken, so nothing waits for the device."""
    kappa = full(kappa)
    k, n = kappa.detach()[:, None], dim - 1
    u = torch.rand(len(kappa), PROPOSALS, 3, dtype=kappa.dtype, device=kappa.device)
    u = 1 - u  # in (0, 1], for the logarithms
    radius = torch.ones_like(u[..., 0]) if n == 1 else (-torch.expm1(u[..., 0].log() * (2 / (n - 1)))).sqrt()
    e = 0.5 * (1 + radius * torch.cos(2 * math.pi * u[..., 1]))
    b = n / (2 * k + (4 * k.square() + n**2).sqrt())
    r = (1 + b) / (2 * (1 - (1 - b) * e))
    accepted = n * (r.log() - r + 1) >= u[..., 2].log()
    first = (accepted * torch.arange(PROPOSALS, 0, -1, device=k.device)).argmax(1, keepdim=True)
    theta = 2 * torch.atan((b * e / (1 - e)).sqrt()).gather(1, first)[:, 0]
    return theta + vmf_angle_slope(theta, kappa.detach(), dim) * (kappa - kappa.detach())


def vmf_angle_slope(theta: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """dtheta/dkappa at a fixed quantile, (B,) -> (B,): the implicit reparameterisation -(dF/dkappa) / f (arXiv:1805.08498),

        dtheta/dkappa = -1/f(theta) integral_0^theta (cos t - A_m) f(t) dt = 1/f(theta) integral_theta^pi (cos t - A_m) f(t) dt.

    The side on which cos t - A_m has one sign is taken, by double-exponential quadrature. No gradient."""
    with torch.no_grad():
        t, k, n = _precise(theta), _precise(kappa), dim - 2
        mean = mean_resultant_length(k, dim)
        mode = 2 * k / (n + (n**2 + 4 * k.square()).sqrt())  # cos of the most likely angle
        width = REACH * (k * mode + (k / mode if n else 0)).rsqrt()  # from the second derivative of log f there
        end = torch.where(t.cos() >= mean, (t - width).clamp_min(0.0), (t + width).clamp_max(math.pi))
        s = torch.linspace(-3.0, 3.0, NODES, device=t.device, dtype=t.dtype)
        place = torch.sigmoid(math.pi * s.sinh())  # in (0, 1)
        weight = 6.0 / (NODES - 1) * math.pi * s.cosh() * place * (1 - place)
        t, k, span = t[:, None], k[:, None], (end - t)[:, None]
        at = t + span * place
        log_ratio = -2 * k * torch.sin((at + t) / 2) * torch.sin((at - t) / 2)  # kappa (cos t' - cos t)
        if n:
            log_ratio = log_ratio + n * (at.sin().clamp_min(1e-30).log() - t.sin().clamp_min(1e-30).log())
        slope = (span * weight * (at.cos() - mean[:, None]) * log_ratio.exp()).sum(1)
        return slope.to(full(theta).dtype)


def vmf_draw(mu: Tensor, kappa: Tensor) -> Tensor:
    """z ~ vMF(mu, kappa) with gradients to both: (B, m), (B,) -> (B, m) unit vectors.

    z = cos(theta) mu + sin(theta) v with v uniform among the unit vectors at right angles to mu: a vector whose first
    coordinate is 0, reflected by the Householder map that takes e_1 to -mu or mu, whichever is further away (so that it is never
    singular)."""
    mu, kappa = full(mu), full(kappa)
    theta = vmf_angle(kappa, mu.shape[1])[:, None]
    side = torch.randn(len(mu), mu.shape[1] - 1, dtype=mu.dtype, device=mu.device)
    side = side / torch.linalg.vector_norm(side, dim=1, keepdim=True).clamp_min(1e-30)
    v = torch.cat([torch.zeros_like(theta), side], 1)
    first = mu[:, :1]
    axis = torch.cat([first + torch.where(first >= 0, 1.0, -1.0).to(mu), mu[:, 1:]], 1)
    v = v - axis * ((axis * v).sum(1, keepdim=True) / (1 + first.abs()))  # |axis|^2 = 2 (1 + |mu_1|)
    return theta.cos() * mu + theta.sin() * v
