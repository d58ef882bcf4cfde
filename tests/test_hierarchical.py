"""ladder_vae: layers of latents and what they cost."""

import math

import pytest
import torch

import aezoo
from aezoo import functional as fn


def build(**more):
    torch.manual_seed(1)
    options = {"input_shape": (1, 9, 7), "latent_dim": 2, "backbone": "conv(widths=(6, 8))", "likelihood": "bernoulli"}
    return aezoo.create_model("ladder_vae", **{**options, **more})


def data(n=5):
    return torch.rand(n, 1, 9, 7, generator=torch.Generator().manual_seed(2)).round()


def test_gaussian_kl_between_two_is_torchs():
    a, b, c, d = torch.randn(4, 6, 5, dtype=torch.float64).unbind(0)
    p, q = (torch.distributions.Normal(m, torch.exp(0.5 * v)) for m, v in ((a, b), (c, d)))
    torch.testing.assert_close(fn.gaussian_kl_between(a, b, c, d), torch.distributions.kl_divergence(p, q).sum(1))
    torch.testing.assert_close(fn.gaussian_kl_between(a, b, 0 * a, 0 * a), fn.gaussian_kl(a, b))


def test_precision_weighting_is_the_product_of_two_densities():
    """arXiv:1602.02282, eq. 13 and 14: N(z; a) N(z; b) is proportional to N(z; mu, var)."""
    a, b, c, d = torch.randn(4, 7, dtype=torch.float64).unbind(0)
    mu, logvar = fn.precision_weighted(a, b, c, d)
    z = torch.linspace(-3, 3, 11, dtype=torch.float64)[:, None]

    def log(m, v):
        return -0.5 * ((z - m).square() / v.exp() + v + math.log(2 * math.pi))

    gap = log(a, b) + log(c, d) - log(mu, logvar)
    torch.testing.assert_close(gap, gap[:1].expand_as(gap))  # a constant in z


def test_kl_is_the_expectation_of_its_densities():
    """E_q[log q(z|x) - log p(z)] over all layers is the sum of the layers' closed forms, along the same draws."""
    model, x = build().double(), data(1).double()
    with torch.no_grad():
        h = model.hidden(x).repeat(4000, 1)
        z, kls, log_q = model.descend(h, sample=True)
        gaps = log_q - model.prior.log_prob(z)
        kl = torch.stack(kls).sum(0)
    assert abs(float((gaps - kl).mean())) < 4 * float((gaps - kl).std()) / 4000**0.5


def test_the_code_goes_down_the_same_way_again():
    model, x = build(), data()
    assert model.latent_shape == (2 * (5 * 4 + 3 * 2),) and model.encode(x).shape == (5, 52)
    z = model.encode(x)
    assert torch.equal(model.decode(z), model.reconstruct(x))
    assert torch.equal(model.decoder.split(z)[1].flatten(1), z[:, 40:])


def test_a_layer_with_nothing_to_say_costs_nothing():
    """Where the data's precision goes to 0, q is the prior: its KL vanishes (the point of precision weighting)."""
    model, x = build().double(), data().double()
    h = model.hidden(x).detach()
    half = h.shape[1] // 2
    silent = torch.cat([torch.zeros_like(h[:, :half]), torch.full_like(h[:, half:], 1e3)], 1)  # mean 0, large variance
    kls = model.descend(silent, sample=False)[1]
    loud = model.descend(torch.cat([h[:, :half], torch.full_like(h[:, half:], -1e3)], 1), sample=False)[1]
    assert all(float(k.max()) < 0.2 for k in kls) and all(float(k.min()) > 10 for k in loud)


def test_free_bits_are_free():
    """arXiv:1606.04934, eq. 15: sum_i max(E_x KL_i, lambda), the mean over the batch before the maximum. lambda lies between the two
    layers' means and has single samples of each layer on both sides, so that neither a maximum of each sample nor one of the
    sum over layers comes to the same; the layer below lambda costs nothing and learns nothing."""
    plain = build().double()
    loud = torch.tensor([0.02, 0.1, 0.3, 0.6, 1.0, 1.4], dtype=torch.float64)[:, None]
    mu = torch.randn(6, 52, dtype=torch.float64) * loud
    mu[:, 40:] *= 4  # the upper layer says more
    h = torch.cat([mu, torch.zeros_like(mu)], 1).requires_grad_()

    def seeded(model):
        torch.manual_seed(4)
        return model.bottleneck(h, sample=True)

    kls = [seeded(plain).metrics[f"kl_{i}"] for i in (1, 2)]
    low, high = (float(kl.mean()) for kl in kls)
    free = 0.5 * (low + high)
    assert low < free < high and all(float(kl.min()) < free < float(kl.max()) for kl in kls)
    model = build(free_bits=free).double()
    terms = seeded(model).terms
    assert list(terms) == ["kl_free"] and model.term_weights() == {"kl_free": 1.0}
    assert float(terms["kl_free"].detach()) == pytest.approx(free + high, rel=1e-12)
    each = sum(float(kl.clamp_min(free).mean()) for kl in kls)  # the other two ways to read it
    assert each > free + high + 0.1 and max(low + high, 2 * free) < free + high - 0.1
    (gradient,) = torch.autograd.grad(terms["kl_free"], h)
    lower, upper = gradient.view(6, 2, 52).split([40, 12], 2)
    assert float(lower.abs().max()) == 0 < float(upper.abs().max())

    x = data()
    silent = build(free_bits=1e6)
    loss = silent.loss(x)
    assert float(loss.terms["kl_free"].detach()) == 2e6
    loss.terms["kl_free"].backward()
    assert all(p.grad is None or float(p.grad.abs().sum()) == 0 for p in silent.parameters())


def test_sampling_follows_the_generator_and_needs_no_data():
    model = build()
    a, b = (model.sample(3, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (3, 1, 9, 7)


def test_log_prob_is_above_the_bound():
    model, x = build(), data(2)
    with torch.no_grad():
        bound = torch.stack([model.loss(x).metrics["elbo"] for _ in range(100)]).mean()
        assert float(model.log_prob(x, 500).mean()) > float(bound)


def test_other_backbones_are_refused():
    with pytest.raises(ValueError, match="allowed: conv"):
        build(backbone="mlp")
