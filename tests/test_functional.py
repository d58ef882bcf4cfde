"""The pure maths, against torch.distributions, closed forms and finite differences, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import distributions as D

from aezoo import functional as fn
from aezoo.functional import core


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gaussian_kl_equals_torch_distributions():
    mu, logvar = rand(50, 7), 2 * rand(50, 7, seed=1)
    kl = D.kl_divergence(D.Normal(mu, (0.5 * logvar).exp()), D.Normal(torch.zeros(7, dtype=torch.float64), 1.0)).sum(1)
    assert torch.allclose(fn.gaussian_kl(mu, logvar), kl, rtol=0, atol=1e-10)
    single = fn.gaussian_kl(mu.float(), logvar.float()).double()
    assert ((single - kl).abs() / kl).max() < 1e-6
    assert fn.gaussian_kl(torch.zeros(1, 3), torch.zeros(1, 3)) == 0


def test_gaussian_kl_is_exact_for_tiny_deviations():
    logvar = torch.full((1, 1), 1e-4)  # 1/4 logvar^2 = 2.5e-9: lost if exp(v) - 1 were rounded first
    assert fn.gaussian_kl(torch.zeros(1, 1), logvar).item() == pytest.approx(2.5e-9, rel=1e-2)


def test_densities_equal_torch_distributions():
    x, m = rand(20, 3, 4), rand(20, 3, 4, seed=1)
    for log_s in (0.3, -1.0):
        s = math.exp(log_s)
        assert torch.allclose(fn.gaussian_nll(x, m, log_s), -D.Normal(m, s).log_prob(x).flatten(1).sum(1))
        assert torch.allclose(fn.laplace_nll(x, m, log_s), -D.Laplace(m, s).log_prob(x).flatten(1).sum(1))
    b = (x > 0).double()
    assert torch.allclose(fn.bernoulli_nll(b, m), -D.Bernoulli(logits=m).log_prob(b).flatten(1).sum(1))


def test_continuous_bernoulli_equals_torch_and_integrates_to_one():
    logits = torch.linspace(-8, 8, 161, dtype=torch.float64)
    u = torch.linspace(0, 1, 20001, dtype=torch.float64)
    for logit in logits:
        density = torch.exp(-fn.continuous_bernoulli_nll(u[:, None], logit.expand(len(u), 1)))
        assert torch.trapezoid(density, u).item() == pytest.approx(1.0, abs=1e-6)
        assert torch.trapezoid(density * u, u).item() == pytest.approx(
            fn.continuous_bernoulli_mean(logit).item(), abs=1e-6
        )
    x = u[::2000][:, None].expand(-1, len(logits))
    away = logits.abs() > 0.2  # torch's own version loses digits near 1/2
    ref = -D.ContinuousBernoulli(logits=logits).log_prob(x)
    ours = torch.stack(
        [fn.continuous_bernoulli_nll(x[:, i : i + 1], logits[i : i + 1].expand(len(x), 1)) for i in range(len(logits))],
        1,
    )
    assert torch.allclose(ours[:, away], ref[:, away], atol=1e-8)


def test_continuous_bernoulli_is_smooth_where_the_series_takes_over():
    for edge in (0.1, -0.1):
        a, b = (torch.tensor([edge + d], dtype=torch.float64) for d in (-1e-9, 1e-9))
        assert (fn.continuous_bernoulli_log_norm(a) - fn.continuous_bernoulli_log_norm(b)).abs() < 1e-9
        assert (fn.continuous_bernoulli_mean(a) - fn.continuous_bernoulli_mean(b)).abs() < 1e-9
    logits = torch.tensor([0.0, 1e-3, 0.0999, 0.1001, 3.0, -5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fn.continuous_bernoulli_log_norm, logits)
    assert torch.autograd.gradcheck(fn.continuous_bernoulli_mean, logits)
    extreme = torch.tensor([-300.0, -90.0, -80.0, 80.0, 90.0, 300.0], requires_grad=True)
    (fn.continuous_bernoulli_log_norm(extreme).sum() + fn.continuous_bernoulli_mean(extreme).sum()).backward()
    assert torch.isfinite(extreme.grad).all()


def test_soft_bound():
    x = torch.linspace(-60, 60, 2001, dtype=torch.float64, requires_grad=True)
    y = fn.soft_bound(x, 10.0)
    y.sum().backward()
    assert y.abs().max() < 10.0 and (x.grad > 0).all()
    assert torch.allclose(fn.soft_bound(torch.tensor([0.01]), 10.0), torch.tensor([0.01]), rtol=1e-5)


def test_bernoulli_kl():
    p = torch.tensor([0.05, 0.5, 0.9], dtype=torch.float64)
    expected = D.kl_divergence(D.Bernoulli(torch.tensor(0.05, dtype=torch.float64)), D.Bernoulli(p)).sum()
    assert torch.allclose(fn.bernoulli_kl(0.05, p), expected)
    assert torch.isfinite(fn.bernoulli_kl(0.05, torch.tensor([0.0, 1.0])))
    assert fn.bernoulli_kl(0.3, torch.tensor([0.3, 0.3])).abs() < 1e-6


def test_keep_top_k():
    z = torch.tensor([[3.0, -9.0, 1.0, 2.0], [-1.0, -2.0, -3.0, -4.0]])
    expected = torch.tensor([[3.0, 0.0, 0.0, 2.0], [-1.0, -2.0, 0.0, 0.0]])  # by value, not by magnitude
    assert torch.equal(fn.keep_top_k(z, 2), expected)
    assert torch.equal(fn.keep_top_k(z, torch.tensor(2)), expected)
    assert torch.equal(fn.keep_top_k(torch.ones(1, 5), 3).sum(), torch.tensor(3.0))
    big = rand(30, 40)
    for k in (1, 7, 40):
        assert torch.equal(fn.keep_top_k(big, k), fn.keep_top_k(big, torch.tensor(k)))
        assert ((fn.keep_top_k(big, k) != 0).sum(1) == k).all()
    big.requires_grad_()
    fn.keep_top_k(big, 7).sum().backward()
    assert (big.grad.sum(1) == 7).all()


def test_log_mean_exp():
    w = rand(100, 3)
    assert torch.allclose(fn.log_mean_exp(w - 2000), w.exp().mean(0).log() - 2000)


def test_half_precision_is_lifted():
    mu = torch.full((4, 3), 0.1, dtype=torch.bfloat16)
    assert fn.gaussian_kl(mu, mu).dtype == fn.bernoulli_nll(mu, mu).dtype == torch.float32


def test_bernoulli_nll_is_torch_s_in_values_and_both_derivatives():
    g = torch.Generator().manual_seed(0)
    logits = torch.cat([torch.randn(6, 40, generator=g) * s for s in (1e-3, 1, 10, 60)], 1)
    logits[:, :3] = torch.tensor([0.0, 90.0, -90.0])
    x = torch.rand(logits.shape, generator=g)

    def exact(logits, x):
        return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)

    ours, theirs = fn.bernoulli_nll(x, logits), exact(logits.double(), x.double())
    assert torch.allclose(ours.double(), theirs, rtol=1e-6)
    each = torch.linspace(-80, 80, 4001)[:, None]
    assert torch.allclose(
        fn.bernoulli_nll(torch.zeros_like(each), each).double(), F.softplus(each[:, 0].double()), 2e-7, 2e-7
    )
    a = logits.clone().requires_grad_()
    b = logits.double().requires_grad_()
    (first_a,) = torch.autograd.grad(fn.bernoulli_nll(x, a).square().sum(), a, create_graph=True)
    (first_b,) = torch.autograd.grad(exact(b, x.double()).square().sum(), b, create_graph=True)
    assert torch.allclose(first_a.double(), first_b, rtol=1e-4, atol=1e-4)
    (second_a,) = torch.autograd.grad(first_a.sum(), a)
    (second_b,) = torch.autograd.grad(first_b.sum(), b)
    assert torch.allclose(second_a.double(), second_b, rtol=1e-3, atol=1e-2)
    y = x.clone().requires_grad_()
    assert torch.allclose(torch.autograd.grad(fn.bernoulli_nll(y, logits).sum(), y)[0], -logits)
    mapped = torch.func.vmap(lambda logit, target: fn.bernoulli_nll(target, logit))(
        logits.view(2, 3, -1), x.view(2, 3, -1)
    )
    assert torch.allclose(mapped.flatten(), ours, rtol=1e-5)


def test_gradcheck_of_the_bernoulli_nll():
    """The CPU's own forward and backward pass, first and second derivatives, by logits and by x."""
    g = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(3, 5, dtype=torch.float64, generator=g)).requires_grad_()
    x = torch.rand(3, 5, dtype=torch.float64, generator=g).requires_grad_()
    assert torch.autograd.gradcheck(core._BernoulliNLL.apply, (logits, x))
    assert torch.autograd.gradgradcheck(core._BernoulliNLL.apply, (logits, x))
