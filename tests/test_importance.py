"""Importance-weighted bounds: IWAE, MIWAE, CIWAE, and the doubly reparameterised gradient."""

import math

import numpy as np
import pytest
import torch

import aezoo
from aezoo import functional as fn
from aezoo.wholebatch import spread

NAMES = ["iwae", "miwae", "ciwae"]


def model_of(name="iwae", dims=3, latents=1, seed=0, backbone="mlp(widths=(5,), activation='tanh')", **more):
    """A small float64 model whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    more = {"likelihood": "gaussian(sigma=0.7)", **more}
    return aezoo.create_model(name, input_shape=(dims,), latent_dim=latents, backbone=backbone, **more).double()


def data(n=4, dims=3):
    return torch.randn(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def seeded(model, x, seed=1):
    torch.manual_seed(seed)
    return model.loss(x)


def value(x):
    return float(x.detach())


# ------------------------------------------------------------------------------------------------------------ the bound


def test_bound_is_the_log_of_the_mean_weight():
    """arXiv:1509.00519 eq. 8, brute force; and where exp would overflow or vanish. The mean of the logs would fail."""
    log_w = torch.randn(5, 7, dtype=torch.float64) * 3
    assert torch.allclose(fn.importance_bound(log_w), torch.log(torch.exp(log_w).mean(-1)), rtol=1e-12)
    shifted = fn.importance_bound((log_w - 2000).float())
    assert torch.allclose(shifted.double(), torch.log(torch.exp(log_w).mean(-1)) - 2000, atol=1e-2)
    assert torch.allclose(fn.normalized_weights(log_w), log_w.exp() / log_w.exp().sum(-1, keepdim=True))


def log_weights(model, x, n, seed):
    """log p(x|z) + log p(z) - log q(z|x), (B, n), by torch.distributions from the draws that the model makes."""
    normal = torch.distributions.Normal
    mu, logvar = model.posterior(model.encoder(x))
    torch.manual_seed(seed)
    q = normal(mu[:, None], (0.5 * logvar).exp()[:, None])
    z = q.mean + q.stddev * torch.randn(len(x), n, model.latent_dim, dtype=x.dtype)
    mean = model.decoder(z.flatten(0, 1)).view(len(x), n, -1)
    log_x = normal(mean, 0.7).log_prob(x[:, None]).sum(2)
    return log_x, normal(0, 1).log_prob(z).sum(2) - q.log_prob(z).sum(2)


def test_iwae_is_its_formula():
    """Every density at the draws: a KL in closed form would fail (arXiv:1509.00519 eq. 8)."""
    model, x = model_of(latents=2, k=6), data()
    out = seeded(model, x, 3)
    log_x, rest = log_weights(model, x, 6, 3)
    bound = ((log_x + rest).exp().mean(1)).log().mean()
    assert value(out.total) == pytest.approx(value(-bound), rel=1e-9)
    assert value(out.metrics["iwae"]) == pytest.approx(value(bound), rel=1e-9)
    assert value(out.metrics["elbo"]) == pytest.approx(value((log_x + rest).mean()), rel=1e-9)
    assert value(out.terms["recon"]) == pytest.approx(value(-log_x.mean()), rel=1e-9)
    assert value(out.terms["kl"]) == pytest.approx(value(-rest.mean()), rel=1e-9)
    assert value(out.terms["gap"]) < 0


def test_one_draw_is_the_elbo():
    model, x = model_of(latents=2, k=1), data()
    out = seeded(model, x, 3)
    log_x, rest = log_weights(model, x, 1, 3)
    assert torch.equal(out.metrics["iwae"], out.metrics["elbo"]) and value(out.terms["gap"]) == 0
    assert value(out.total) == pytest.approx(value(-(log_x + rest).mean()), rel=1e-12)


def test_gradient_weighs_draws_by_their_normalised_weights():
    """arXiv:1509.00519 eq. 14: sum_i w~_i grad log w_i, with the weights held."""
    model, x = model_of(latents=2, k=6), data()
    seeded(model, x, 3).total.backward()
    got = [p.grad.clone() for p in model.parameters()]
    log_x, rest = log_weights(model, x, 6, 3)
    log_w = log_x + rest
    weights = (log_w.exp() / log_w.exp().sum(1, keepdim=True)).detach()
    wanted = torch.autograd.grad(-(weights * log_w).sum(1).mean(), list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-12) for a, b in zip(got, wanted))


def test_bound_never_falls_with_k_on_the_same_draws():
    """arXiv:1509.00519 theorem 1. Groups of one and the same draws: Jensen's inequality holds for each sample."""
    x = data(64)
    bounds = [
        value(seeded(model_of("miwae", latents=2, groups=64 // k, k=k), x).metrics["iwae"]) for k in (1, 2, 8, 64)
    ]
    assert bounds == sorted(bounds) and bounds[-1] - bounds[0] > 0.1


def linear_log_prob(model, x):
    """log N(x; b, W W^T + 0.7^2 I): what a linear decoder with a fixed sigma makes of x."""
    layer = model.decoder[0].layer
    cov = layer.weight @ layer.weight.T + 0.7**2 * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.distributions.MultivariateNormal(layer.bias, cov).log_prob(x)


def test_bound_rises_to_the_log_likelihood_after_some_training():
    """arXiv:1509.00519 theorem 1, between different draws, and the limit in closed form."""
    x = data(200) * torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64)
    model = model_of("iwae", latents=2, k=4, backbone="linear")
    aezoo.fit(model, x, steps=60, lr=2e-2, batch_size=100, progress=False, device="cpu")
    model.eval()
    exact = value(linear_log_prob(model, x).mean())
    bounds = []
    with torch.no_grad():
        for k in (1, 5, 50, 1000):
            model.k = k
            at_once = min(20, 2000 // k)  # copies of each sample, with draws of their own
            copies = x.repeat(at_once, 1)
            each = torch.stack([model.loss(copies).metrics["iwae"] for _ in range(2000 // k // at_once)])
            bounds.append(float(each.mean()))
    assert bounds == sorted(bounds) and bounds[-1] < exact + 0.01
    assert exact - bounds[0] > 0.02 and exact - bounds[-1] < 0.01
    assert float(model.log_prob(x, 2000).mean()) == pytest.approx(exact, abs=0.01)


# ------------------------------------------------------------------------------------------------- miwae, ciwae, limits


def test_limits_of_miwae_and_ciwae():
    """arXiv:1802.05538: M = 1 and beta = 0 are IWAE; k = 1 and beta = 1 the ELBO."""
    x = data()
    iwae = seeded(model_of("iwae", k=6), x)
    assert torch.equal(seeded(model_of("miwae", k=6, groups=1), x).total, iwae.total)
    assert torch.equal(seeded(model_of("ciwae", k=6, beta=0.0), x).total, iwae.total)
    for out in (seeded(model_of("miwae", k=1, groups=6), x), seeded(model_of("ciwae", k=6, beta=1.0), x)):
        assert value(out.total) == pytest.approx(value(-iwae.metrics["elbo"]), rel=1e-12)
    half = seeded(model_of("ciwae", k=6, beta=0.25), x)
    wanted = 0.25 * iwae.metrics["elbo"] + 0.75 * iwae.metrics["iwae"]
    assert value(half.total) == pytest.approx(value(-wanted), rel=1e-12)


def test_miwae_is_the_mean_over_groups():
    """arXiv:1802.05538, MIWAE: the mean over groups is outside of the logarithm."""
    model, x = model_of("miwae", latents=2, k=3, groups=4), data()
    log_x, rest = log_weights(model, x, 12, 1)
    wanted = (log_x + rest).view(-1, 4, 3).exp().mean(2).log().mean()
    assert value(seeded(model, x).metrics["iwae"]) == pytest.approx(value(wanted), rel=1e-9)


# ----------------------------------------------------------------------------------------------------------------- dreg


def expected_gradients(monkeypatch, name, gradient, **more):
    """Gradients of the expected total, exact: one row for every pair of nodes of a Gauss-Hermite rule over both draws."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights) / math.sqrt(2 * math.pi)
    noise = torch.cartesian_prod(nodes, nodes)  # (6400, 2)
    weights = torch.cartesian_prod(weights, weights).prod(1)
    model, x = model_of(name, k=2, gradient=gradient, **more), data(1).expand(len(noise), -1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *size, **options: noise.view(*size))
        out = model(x)
    share = model.term_weights()
    total = sum(share.get(k, 1.0) * v for k, v in out.terms.items())
    (weights * total).sum().backward()
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("name, more", [("iwae", {}), ("ciwae", {"beta": 0.3}), ("ciwae", {"beta": 1.0})])
def test_dreg_has_the_expectation_of_the_standard_gradient(name, more, monkeypatch):
    """arXiv:1810.04152: squared normalised weights, q's parameters held. Exact, for every weight of the encoder; either of the
    usual slips (weights that are not squared, or q's parameters not held) is off by several per cent."""
    a = expected_gradients(monkeypatch, name, "standard", **more)
    b = expected_gradients(monkeypatch, name, "dreg", **more)
    for key in a:
        assert torch.allclose(a[key], b[key], rtol=1e-5, atol=1e-7 * float(a[key].abs().max())), key


@pytest.mark.parametrize("name", NAMES)
def test_dreg_leaves_the_decoder_its_gradient_draw_by_draw(name):
    x = data()
    gradients = []
    for gradient in ("standard", "dreg"):
        model = model_of(name, latents=2, k=4, gradient=gradient, likelihood="gaussian(sigma='learned')")
        seeded(model, x).total.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    standard, dreg = gradients
    for key in standard:
        same = torch.allclose(standard[key], dreg[key], rtol=1e-9, atol=1e-12)
        assert same == (not key.startswith("encoder")), key


def test_dreg_is_less_noisy_for_many_draws():
    """arXiv:1810.04152 figure 1: the variance of the encoder's gradient, summed over its weights."""
    x = data(1).expand(200, -1)
    noise = {}
    for gradient in ("standard", "dreg"):
        model = model_of(latents=2, k=64, gradient=gradient)
        mu, logvar = model.posterior(model.encoder(x))
        h = torch.cat([mu, logvar], 1).detach().requires_grad_()
        model.hidden = lambda x, condition=None, h=h: h
        model.posterior = lambda h: tuple(h.chunk(2, 1))
        torch.manual_seed(2)
        out = model(x)
        (sum(out.terms.values())).sum().backward()
        noise[gradient] = float(h.grad.var(0).sum())  # each row is a draw of one and the same gradient
    assert noise["dreg"] < 0.3 * noise["standard"]


def test_dreg_in_evaluation_without_gradients():
    model, x = model_of(k=3, gradient="dreg").eval(), data()
    with torch.no_grad():
        assert torch.isfinite(seeded(model, x).total)


# ------------------------------------------------------------------------------------------------------------ behaviour


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_batch_see_the_same_draws_as_the_whole(name):
    """What each of two processes computes: noise on the latents and dropout in the decoder are drawn for k rows per sample."""
    backbone = "mlp(widths=(6,), dropout=0.4)"
    more = {"likelihood": "bernoulli", "backbone": backbone, "corruption": "gaussian(sigma=0.5, where='latent')"}
    model, x = model_of(name, latents=2, k=3, **more), torch.rand(7, 3, dtype=torch.float64)
    torch.manual_seed(4)
    whole = model(x).terms["gap"]
    parts = []
    for start, stop in ((0, 3), (3, 7)):
        torch.manual_seed(4)
        with spread(start, stop, 7):
            parts.append(model(x[start:stop]).terms["gap"])
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-9)


def test_output_is_the_first_draw():
    model, x = model_of(latents=2, k=5), data()
    out = model(x)
    assert out.z.shape == (4, 2) and torch.allclose(model.decode(out.z), out.recon)
    assert torch.equal(model.encode(x), model.posterior(model.encoder(x))[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gradient", ["standard", "dreg"])
def test_training_raises_the_bound(name, gradient, images):
    model = aezoo.create_model(
        name,
        input_shape=(1, 12, 12),
        latent_dim=4,
        k=3,
        gradient=gradient,
        likelihood="bernoulli",
        backbone="mlp(widths=(32,))",
    )
    result = aezoo.fit(model, images[0], epochs=12, batch_size=16, lr=5e-3, progress=False, device="cpu")
    assert result.history[-1]["iwae"] > result.history[0]["iwae"] + 5


@pytest.mark.parametrize(
    "name, bad, words",
    [("iwae", {"k": 0}, "k=0"), ("iwae", {"gradient": "dregs"}, "dreg"), ("miwae", {"groups": 0}, "groups=0"),
     ("ciwae", {"beta": 1.5}, "beta=1.5"), ("iwae", {"likelihood": "mse"}, "nats")],
)  # fmt: skip
def test_errors(name, bad, words):
    with pytest.raises(ValueError, match=words):
        model_of(name, **bad)


def far_from_0(name, **more):
    """q(z|x) = N(30, exp(-8)) whatever x is, and a decoder that says 0; under autocast the encoder's last layer emits bfloat16, which
    holds 30 and what the log-variance is made of without rounding."""
    torch.manual_seed(0)
    model = aezoo.create_model(
        name, input_shape=(5,), latent_dim=4, backbone="linear", likelihood="gaussian(sigma=1.0)", **more
    )
    encoder = torch.nn.Linear(5, model.code_params * model.latent_shape[0])
    with torch.no_grad():
        for p in (*encoder.parameters(), *model.decoder.parameters()):
            p.zero_()
        halves = encoder.bias.chunk(model.code_params)
        halves[0].fill_(30.0)
        halves[1].fill_(-11.0)  # 10 tanh(-1.1) = -8.005
    model.encoder = encoder
    return model


@pytest.mark.parametrize(
    ("name", "options"),
    [("iwae", {"k": 1}), ("iwae", {"k": 3, "gradient": "dreg"}), ("vamp_vae", {"prior": "mog"}), ("iaf_vae", {})],
    ids=str,
)
def test_densities_are_of_the_draw_and_not_of_its_rounding(name, options):
    """log q and log p of draws at 30 with a standard deviation of 0.02, of which bfloat16 knows multiples of 0.125 only."""
    model, x = far_from_0(name, **options), torch.zeros(64, 5)
    if name == "iaf_vae":  # whose own layers run in low precision: a shift by 0 and a scale of 1
        with torch.no_grad():
            for layer in model.flow.layers:
                for p in layer.last.parameters():
                    p.zero_()
    with torch.no_grad():
        torch.manual_seed(3)
        wide = model(x).terms["kl"]
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
    assert out.z.dtype == torch.bfloat16 and wide.min() > 900
    torch.testing.assert_close(out.terms["kl"], wide, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["vae", "iwae", "joint_vae", "iaf_vae", "svae"])
def test_log_prob_under_autocast_is_that_of_float32(name):
    model, x = far_from_0(name), torch.zeros(8, 5)
    if name == "iaf_vae":
        with torch.no_grad():
            for layer in model.flow.layers:
                for p in layer.last.parameters():
                    p.zero_()
    torch.manual_seed(3)
    wide = model.log_prob(x, 5)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.log_prob(x, 5)
    torch.testing.assert_close(rounded, wide, rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", ["vae", "iwae", "joint_vae", "iaf_vae", "svae", "vamp_vae", "ladder_vae"])
def test_log_prob_of_a_model_in_bfloat16(name):
    """Draws are in float32, the decoder's weights are not."""
    backbone = {"backbone": "conv(widths=(4, 6))" if name == "ladder_vae" else "mlp(widths=(8,))"}
    model = aezoo.create_model(name, input_shape=(1, 6, 6), latent_dim=2, **backbone).bfloat16()
    x = torch.rand(3, 1, 6, 6).bfloat16()
    assert torch.isfinite(model.log_prob(x, 4)).all() and torch.isfinite(model.loss(x).total)
