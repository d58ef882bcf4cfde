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
    """arXiv:1606.04934, eq. 15: sum_i max(mean KL_i, lambda)."""
    x = data()
    torch.manual_seed(4)
    plain = build()(x)
    means = [float(plain.metrics[f"kl_{i}"].mean()) for i in (1, 2)]
    free = 0.5 * (means[0] + means[1])  # between the two
    torch.manual_seed(4)
    model = build(free_bits=free)
    torch.manual_seed(4)
    model(x)
    terms = model.loss(x).terms
    assert "kl" not in terms and model.term_weights() == {"kl_free": 1.0}
    floor = [max(float(v), free) for k, v in model.loss(x).metrics.items() if k in ("kl_1", "kl_2")]
    assert sum(floor) >= 2 * free and float(model.loss(x).terms["kl_free"]) >= 2 * free - 1e-4
    weights = build(free_bits=1e6)
    loss = weights.loss(x)
    assert float(loss.terms["kl_free"]) == 2e6
    loss.terms["kl_free"].backward()
    assert all(p.grad is None or float(p.grad.abs().sum()) == 0 for p in weights.parameters())


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
