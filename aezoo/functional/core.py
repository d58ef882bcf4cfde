"""Densities, divergences and the pieces that every family uses.

Legend: B batch, D data dims, K latents; x data, z latent, mu and logvar of a Gaussian, rho a mean activation.
Densities are in nats, summed over a sample's dims: shape (B,). Half-precision inputs are lifted to float32 first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def full(x: Tensor) -> Tensor:
    """`x` in at least float32 (losses, exp and log never run in half precision)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def per_sample(x: Tensor) -> Tensor:
    """Sum over everything but the batch: (B, ...) -> (B,)."""
    return full(x).flatten(1).sum(1)


def per_sample_mean(x: Tensor) -> Tensor:
    """Mean over everything but the batch: (B, ...) -> (B,)."""
    return full(x).flatten(1).mean(1)


def soft_bound(x: Tensor, limit: float) -> Tensor:
    """limit * tanh(x / limit): the identity near 0, within (-limit, limit), and with a gradient that is never exactly cut."""
    return limit * torch.tanh(full(x) / limit)


def _exp(value: Tensor | float) -> Tensor | float:
    """exp of a tensor, or of a number without sending it to the device."""
    return torch.exp(value) if isinstance(value, Tensor) else math.exp(value)


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, diag exp(logvar)) || N(0, I)) = 1/2 sum(mu^2 + exp(logvar) - 1 - logvar), nats, (B, ...) -> (B,)."""
    mu, logvar = full(mu), full(logvar)
    return 0.5 * per_sample(mu.square() + torch.expm1(logvar) - logvar)


def gaussian_nll(x: Tensor, mean: Tensor, log_sigma: Tensor | float) -> Tensor:
    """-log N(x; mean, sigma^2) = sum((x-mean)^2 / (2 sigma^2) + log sigma + 1/2 log 2 pi), nats, (B, ...) -> (B,)."""
    z2 = (full(x) - full(mean)).square() * _exp(-2 * log_sigma)
    return per_sample(0.5 * z2 + log_sigma + 0.5 * LOG_2PI)


def laplace_nll(x: Tensor, mean: Tensor, log_scale: Tensor | float) -> Tensor:
    """-log Laplace(x; mean, b) = sum(|x-mean| / b + log 2b), nats, (B, ...) -> (B,)."""
    return per_sample((full(x) - full(mean)).abs() * _exp(-log_scale) + log_scale + math.log(2))


SURE = 60.0  # logits beyond are as good as certain: exp(-60) is still a normal number, and the CPU takes 20 times longer for others


class _BernoulliNLL(torch.autograd.Function):
    """softplus(l) - x l, summed over a sample's dims; gradient s - x, s = sigmoid(l).

    The same as torch's `binary_cross_entropy_with_logits` in fewer passes over memory. softplus(l) = max(l, 0) - log max(s, 1 - s),
    whose logarithm is a quarter of the work of a log1p and whose s is that of the gradient; off by at most 2e-7 per element.
    Exponentials see at most `SURE` (less than 1e-26 from the exact value): training makes the logits of a digit's background large, and
    numbers below 1e-38 are many times slower."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        s = logits.clamp(-SURE, SURE).sigmoid_()
        ctx.save_for_backward(logits, x, s)
        other = 1 - s
        log = torch.maximum(s, other, out=other).log_()
        return logits.clamp_min(0).addcmul_(logits, x, value=-1).sub_(log).flatten(1).sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        logits, x, s = ctx.saved_tensors
        g = gradients[0].view(-1, *(1,) * (logits.dim() - 1))
        for_x = -logits * g if ctx.needs_input_grad[1] else None
        if torch.is_grad_enabled():  # a second derivative is asked for
            return (torch.sigmoid(logits.clamp(-SURE, SURE)) - x) * g, for_x
        return (s - x).mul_(g), for_x


def plain_cpu(x: Tensor) -> bool:
    """A float32 tensor on the CPU that no compiler traces and no `torch.func` transform wraps, outside of forward-mode derivatives."""
    if getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0:
        return False
    wrapped = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", lambda x: True)
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling() and not wrapped(x)


def bernoulli_nll(x: Tensor, logits: Tensor) -> Tensor:
    """-sum(x log p + (1-x) log(1-p)), p = sigmoid(logits); nats for x in {0, 1}. (B, ...) -> (B,)."""
    x, logits = full(x), full(logits)
    if plain_cpu(logits) and x.shape == logits.shape and x.dtype == logits.dtype:
        return _BernoulliNLL.apply(logits, x)
    return per_sample(F.binary_cross_entropy_with_logits(logits, x, reduction="none"))


def continuous_bernoulli_log_norm(logits: Tensor) -> Tensor:
    """log C of the continuous Bernoulli (arXiv:1907.06845, eq. 5), elementwise, from logits l = log(lambda / (1-lambda)).

    C(lambda) = 2 atanh(1-2 lambda) / (1-2 lambda) = l / tanh(l/2), even in l and 2 at l = 0. Near 0, where the quotient
    loses its digits, the series log 2 + l^2/12 - 7 l^4/1440 takes over."""
    logits = full(logits)
    small = logits.abs() < 0.1
    safe = torch.where(small, torch.ones_like(logits), logits.abs())  # keeps the unused branch's gradient finite
    exact = safe.log() - torch.tanh(safe / 2).log()
    square = torch.where(small, logits, torch.zeros_like(logits)).square()
    return torch.where(small, math.log(2) + square / 12 - 7 * square.square() / 1440, exact)


def continuous_bernoulli_nll(x: Tensor, logits: Tensor) -> Tensor:
    """-log p(x) of the continuous Bernoulli (arXiv:1907.06845) for x in [0, 1], nats, (B, ...) -> (B,)."""
    return bernoulli_nll(x, logits) - per_sample(continuous_bernoulli_log_norm(logits))


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """E[x] = lambda / (2 lambda - 1) + 1 / (2 atanh(1-2 lambda)) = 1/2 + 1 / (2 tanh(l/2)) - 1/l; 1/2 + l/12 - l^3/720 near 0.

    The tanh has a finite gradient at any l, where that of the equal 1 / (1 - exp(-l)) is NaN below -89 in single precision."""
    logits = full(logits)
    small = logits.abs() < 0.1
    safe = torch.where(small, torch.ones_like(logits), logits)
    near = torch.where(small, logits, torch.zeros_like(logits))
    return torch.where(small, 0.5 + near / 12 - near**3 / 720, 0.5 + 0.5 / torch.tanh(safe / 2) - 1 / safe)


def discretized_logistic_mixture_nll(
    x: Tensor, means: Tensor, log_scales: Tensor, logits: Tensor, levels: int = 256
) -> Tensor:
    """-log P(x) of values on the grid 0, 1/(levels-1), ..., 1 under a mixture of M logistics that is rounded to it, nats,
    x (B, ...), the others (B, M, ...) -> (B,). Paper: Salimans et al. 2017, arXiv:1701.05517, eq. 1 and 2.

    P(x) = sum_m softmax(logits)_m [sigmoid((x + h - mean_m) / s_m) - sigmoid((x - h - mean_m) / s_m)], h half a step of the grid; the
    lowest value takes everything below it, the highest everything above. These are probabilities, not densities: over D values
    nats / (D ln 2) are the bits that a lossless code spends on each.
    A difference of sigmoids is sigmoid(a) sigmoid(-b) (1 - exp(b - a)), whose logarithm loses no digits, however far x is from the mean
    and however narrow the logistic. x is taken to the nearest value of the grid."""
    x, means, log_scales, logits = full(x), full(means), full(log_scales), full(logits)
    half, step = 0.5 / (levels - 1), torch.round(x * (levels - 1))[:, None]  # (B, 1, ...)
    steep = torch.exp(-log_scales)
    centred = (step / (levels - 1) - means) * steep
    below, above = F.logsigmoid(centred + half * steep), F.logsigmoid(half * steep - centred)
    inside = below + above + torch.log(-torch.expm1(-2 * half * steep))
    each = torch.where(step <= 0, below, torch.where(step >= levels - 1, above, inside))
    return -per_sample(torch.logsumexp(each + torch.log_softmax(logits, 1), 1))


def logistic_mixture_mean(means: Tensor, log_scales: Tensor, logits: Tensor) -> Tensor:
    """E[x] of a mixture of M logistics whose draws are cut to [0, 1]: (B, M, ...) each -> (B, ...).

    E[min(max(y, 0), 1)] = integral_0^1 P(y > t) dt = s (softplus(m / s) - softplus((m - 1) / s)) for each of them."""
    means, steep = full(means), torch.exp(-full(log_scales))
    each = (F.softplus(means * steep) - F.softplus((means - 1) * steep)) / steep
    return (torch.softmax(full(logits), 1) * each).sum(1).clamp(0, 1)


def bernoulli_kl(rho: float, activity: Tensor, eps: float = 1e-6) -> Tensor:
    """sum_j KL(Bernoulli(rho) || Bernoulli(activity_j)), nats, (K,) -> scalar. `activity` is clamped to [eps, 1-eps] in the
    log."""
    activity = full(activity).clamp(eps, 1 - eps)
    return (rho * (math.log(rho) - activity.log()) + (1 - rho) * (math.log1p(-rho) - (-activity).log1p())).sum()


def keep_top_k(z: Tensor, k: int | Tensor) -> Tensor:
    """Keeps the k largest values of each row and sets the others to 0: (B, K) -> (B, K).

    `k` may be a 0-dim integer tensor, so that an annealed k needs no host synchronisation. Ties go to one of them: exactly
    k entries are kept."""
    if isinstance(k, int):
        values, index = z.topk(k, dim=1)
        return torch.zeros_like(z).scatter(1, index, values)
    values, index = z.sort(dim=1, descending=True)
    keep = torch.arange(z.shape[1], device=z.device) < k
    return torch.zeros_like(z).scatter(1, index, values * keep)


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """log of the mean of exp(log_w) along `dim`, in float64."""
    return torch.logsumexp(log_w.double(), dim) - math.log(log_w.shape[dim])
