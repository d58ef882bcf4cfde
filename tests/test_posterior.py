"""The posterior's draw and its KL in one step of the gradient: the numbers of the step as written."""

import pytest
import torch
from conftest import model_of

from aezoo import functional as fn
from aezoo.functional import posterior


def given(dtype=torch.float32, scale=3.0):
    torch.manual_seed(0)
    h, noise = scale * torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    return h.to(dtype).requires_grad_(), noise.to(dtype)


def derivatives(f, h, noise):
    """Of a sum in which the gradients of z and KL differ from entry to entry; the second of its gradient's length."""
    z, kl = f(h, noise, 10.0)
    total = (z * torch.linspace(-1, 2, z.numel()).to(z).view_as(z)).sum() + (kl * torch.linspace(1, 3, 5).to(z)).sum()
    (first,) = torch.autograd.grad(total, h, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), h)
    return z, kl, first, second


@pytest.mark.parametrize("scale", [1e-3, 3.0, 30.0])
def test_values_and_gradients(scale):
    h, noise = given(scale=scale)
    assert "_Posterior" in type(fn.draw_and_kl(h, noise)[0].grad_fn).__name__
    exact = derivatives(
        posterior._as_written, *(v.double().detach().requires_grad_(v.requires_grad) for v in (h, noise))
    )
    for got, want in zip(derivatives(fn.draw_and_kl, h, noise), exact, strict=True):
        assert torch.allclose(got.double(), want, rtol=1e-4, atol=1e-5 * float(want.detach().abs().max()))
    for got, want in zip(fn.draw_and_kl(h, noise), posterior._as_written(h, noise, 10.0), strict=True):
        assert torch.equal(got, want)
    z, kl = fn.draw_and_kl(h, noise)
    (fast,) = torch.autograd.grad(z.sum() + 2 * kl.sum(), h)
    z, kl = posterior._as_written(h, noise, 10.0)
    (slow,) = torch.autograd.grad(z.sum() + 2 * kl.sum(), h)
    assert torch.allclose(fast, slow, rtol=1e-4, atol=1e-6)
    for part in range(2):  # only one of both is used
        (fast,) = torch.autograd.grad(fn.draw_and_kl(h, noise)[part].sum(), h)
        (slow,) = torch.autograd.grad(posterior._as_written(h, noise, 10.0)[part].sum(), h)
        assert torch.allclose(fast, slow, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", ["evaluation", "float64", "bf16", "functional"])
def test_elsewhere_it_is_computed_as_written(monkeypatch, case):
    def never(*args):
        raise AssertionError("not here")

    monkeypatch.setattr(posterior._Posterior, "apply", never)
    h, noise = given({"float64": torch.float64, "bf16": torch.bfloat16}.get(case, torch.float32))
    if case == "functional":
        torch.func.grad(lambda h: fn.draw_and_kl(h, noise)[1].sum())(h.detach())
    else:
        with torch.set_grad_enabled(case != "evaluation"):
            z, kl = fn.draw_and_kl(h, noise)
        assert z.dtype == h.dtype and kl.dtype == (torch.float64 if case == "float64" else torch.float32)


def test_a_model_draws_what_it_drew_and_a_posterior_of_its_own_counts():
    model, x = model_of("vae"), torch.rand(3, 1, 12, 12)
    torch.manual_seed(1)
    z, terms = model.bottleneck(h := model.hidden(x), True)
    mu, logvar = model.posterior(h)
    torch.manual_seed(1)
    assert torch.equal(z, mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))
    assert torch.equal(terms["kl"], fn.gaussian_kl(mu, logvar))

    class Narrow(type(model)):
        def posterior(self, h):
            return super().posterior(h)[0], torch.full_like(h[:, : h.shape[1] // 2], -40.0)

    model.__class__ = Narrow
    z, _ = model.bottleneck(h, True)
    assert torch.allclose(z, mu, atol=1e-6)
