"""The von Mises-Fisher distribution, its Bessel functions, and the hyperspherical VAE."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special

import aezoo
from aezoo import functional as fn

DIMS = [2, 3, 4, 8, 20, 65]
KAPPAS = [0.05, 1.0, 5.0, 40.0, 1000.0]


def marginal(kappa, dim):
    """The density of theta, normalised by quadrature: ~ exp(kappa (cos theta - 1)) sin^(m-2) theta."""

    def f(t):
        return math.exp(kappa * (math.cos(t) - 1)) * math.sin(t) ** (dim - 2)

    mode = math.acos(min(1.0, 2 * kappa / ((dim - 2) + math.sqrt((dim - 2) ** 2 + 4 * kappa**2))))
    points = sorted(
        {0.0, mode, min(math.pi, mode + 3 / math.sqrt(kappa)), min(math.pi, mode + 12 / math.sqrt(kappa)), math.pi}
    )

    def integral(g, low=0.0, high=math.pi):
        inner = [low, *(p for p in points if low < p < high), high]
        return sum(integrate.quad(g, a, b, epsabs=0, epsrel=1e-11)[0] for a, b in zip(inner, inner[1:]))

    total = integral(f)
    return lambda t: f(t) / total, integral


# --------------------------------------------------------------------------------------------------------------- Bessel


def test_log_bessel_against_scipy():
    x = torch.tensor(np.geomspace(1e-3, 1e5, 400))
    for order in [0, 0.5, 1, 1.5, 3, 9, 24.5, 31.5, 100, 511]:
        with np.errstate(divide="ignore"):
            wanted = np.log(special.ive(order, x.numpy())) + x.numpy()
        fine = torch.tensor(np.isfinite(wanted))  # scipy underflows for a large order and a small x
        assert fine.any()
        assert torch.allclose(fn.log_bessel_i(order, x)[fine], torch.tensor(wanted)[fine], rtol=1e-12, atol=3e-11), (
            order
        )
    small = torch.tensor([1e-6], dtype=torch.float64)  # where scipy's is 0: the first term of the series
    assert torch.allclose(fn.log_bessel_i(100, small), 100 * (small / 2).log() - math.lgamma(101))
    assert fn.log_bessel_i(2, torch.tensor([1e5, 1.0])).dtype == torch.float32


def test_log_bessel_gradients():
    """dlog I_v/dx = I_(v+1)/I_v + v/x, on both sides of the border between the two methods, twice."""
    x = torch.tensor([0.1, 2.0, 24.9, 25.1, 300.0], dtype=torch.float64, requires_grad=True)
    for order in (0.0, 1.5, 15.0):
        assert torch.autograd.gradcheck(lambda x, v=order: fn.log_bessel_i(v, x), x, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda x, v=order: fn.log_bessel_i(v, x), x, fast_mode=True)
    mapped = torch.func.vmap(torch.func.grad(lambda x: fn.log_bessel_i(1.5, x)))(x.detach())
    wanted = torch.tensor(special.ivp(1.5, x.detach().numpy()) / special.iv(1.5, x.detach().numpy()))
    assert torch.allclose(mapped, wanted, rtol=1e-9)


# --------------------------------------------------------------------------------------------------------------- density


@pytest.mark.parametrize("dim", DIMS)
def test_kl_and_mean_against_numerical_integration(dim):
    """arXiv:1804.00891: KL = kappa A_m(kappa) + log C_m(kappa) + log area, from 0 at kappa = 0."""
    uniform, _ = marginal(1e-12, dim)
    for kappa in KAPPAS:
        f, integral = marginal(kappa, dim)
        kl = integral(lambda t, f=f: f(t) * math.log(max(f(t), 1e-300) / max(uniform(t), 1e-300)) if f(t) > 0 else 0.0)
        mean = integral(lambda t, f=f: f(t) * math.cos(t))
        for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-5)):
            k = torch.tensor([kappa], dtype=dtype)
            assert float(fn.vmf_kl(k, dim)) == pytest.approx(kl, rel=tolerance, abs=tolerance)
            assert float(fn.mean_resultant_length(k, dim)) == pytest.approx(mean, rel=tolerance)
    k = torch.tensor([0.3, 3.0, 70.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: fn.vmf_kl(k, dim), k)


@pytest.mark.parametrize("dim", DIMS)
def test_log_prob_is_normalised(dim):
    """The density on the sphere integrates to 1: area of the ring at theta times C exp(kappa cos theta)."""
    for kappa in KAPPAS:
        f, _ = marginal(kappa, dim)
        mu = torch.zeros(1, dim, dtype=torch.float64)
        mu[:, -1] = 1
        for theta in (0.02, 0.5):
            z = torch.zeros_like(mu)
            z[:, -1], z[:, 0] = math.cos(theta), math.sin(theta)
            ring = fn.sphere_log_area(dim - 1) + (dim - 2) * math.log(math.sin(theta))
            value = float(fn.vmf_log_prob(z, mu, torch.tensor([kappa], dtype=torch.float64)))
            wanted = f(theta)
            assert (
                value + ring == pytest.approx(math.log(wanted) if wanted > 0 else -math.inf, abs=1e-6)
                or wanted < 1e-200
            )


def test_areas():
    assert fn.sphere_log_area(1) == pytest.approx(math.log(2)) and fn.sphere_log_area(2) == pytest.approx(
        math.log(2 * math.pi)
    )
    assert fn.sphere_log_area(3) == pytest.approx(math.log(4 * math.pi))


# ----------------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("dim", DIMS)
def test_draws(dim):
    """Unit vectors, mean A_m(kappa) mu, and the right variance along mu (1 - A^2 - (m-1) A / kappa)."""
    n = 20_000
    mu = torch.nn.functional.normalize(torch.randn(1, dim), dim=1).expand(n, -1)
    for kappa in (0.3, 5.0, 200.0):
        k = torch.full((n,), kappa)
        z = fn.vmf_draw(mu, k)
        assert torch.allclose(z.norm(dim=1), torch.ones(n), atol=1e-5)
        a = float(fn.mean_resultant_length(k[:1].double(), dim))
        along = (z * mu).sum(1)
        variance = 1 - a**2 - (dim - 1) * a / kappa
        assert float(along.mean()) == pytest.approx(a, abs=5 * math.sqrt(variance / n) + 1e-6)
        assert float(along.var()) == pytest.approx(variance, rel=0.08)
        assert float(z.mean(0).norm()) == pytest.approx(a, abs=5 / math.sqrt(n))
        across = z - along[:, None] * mu
        assert across.mean(0).abs().max() < 5 / math.sqrt(n)


@pytest.mark.parametrize("dim", DIMS)
def test_sampler_accepts_at_least_half_of_its_proposals(dim):
    """Wood 1994: so that 32 proposals at once never all fail. E[(r e^(1-r))^n] over e ~ Beta(n/2, n/2)."""
    n = dim - 1
    e = torch.distributions.Beta(n / 2, n / 2).sample((20_000,)).double()
    for kappa in (1e-3, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4):
        b = n / (2 * kappa + math.sqrt(4 * kappa**2 + n**2))
        r = (1 + b) / (2 * (1 - (1 - b) * e))
        assert float((n * (r.log() - r + 1)).exp().mean()) > 0.5


@pytest.mark.parametrize("dim", DIMS)
def test_angle_slope_is_the_derivative_of_the_quantile(dim):
    """arXiv:1805.08498, against quantiles of two neighbouring kappas. The derivative of the accepted proposal alone,
    without the correction of arXiv:1804.00891 (appendix), is not this."""
    for kappa in (0.5, 4.0, 60.0):
        for u in (0.001, 0.3, 0.6, 0.999):
            thetas = []
            for k in (kappa * (1 - 1e-4), kappa, kappa * (1 + 1e-4)):
                f, integral = marginal(k, dim)
                thetas.append(
                    optimize.brentq(lambda t, f=f, i=integral, u=u: i(f, 0, t) - u, 1e-9, math.pi - 1e-9, xtol=1e-13)
                )
            wanted = (thetas[2] - thetas[0]) / (2e-4 * kappa)
            t, k = torch.tensor([thetas[1]], dtype=torch.float64), torch.tensor([kappa], dtype=torch.float64)
            assert float(fn.vmf_angle_slope(t, k, dim)) == pytest.approx(wanted, rel=1e-4)
            assert float(fn.vmf_angle_slope(t.float(), k.float(), dim)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_gradients_of_expectations(dim):
    """d/dkappa E[mu.z] = A' and d/dmu E[c.z] = A (c - (c.mu) mu) along the sphere, A' = 1 - A^2 - (m-1) A / kappa."""
    n, kappa = 40_000, 2.0
    direction = torch.nn.functional.normalize(torch.randn(dim), dim=0)
    raw, k = direction.clone().requires_grad_(), torch.tensor(kappa, requires_grad=True)
    c = torch.randn(dim)
    z = fn.vmf_draw(torch.nn.functional.normalize(raw, dim=0).expand(n, -1), k.expand(n))
    a = float(fn.mean_resultant_length(torch.tensor([kappa], dtype=torch.float64), dim))
    (slope,) = torch.autograd.grad((z @ direction).mean(), k, retain_graph=True)
    assert float(slope) == pytest.approx(1 - a**2 - (dim - 1) * a / kappa, rel=0.03)
    (turn,) = torch.autograd.grad((z @ c).mean(), raw)
    wanted = a * (c - (c @ direction) * direction)
    assert torch.allclose(turn, wanted, atol=0.03 * float(c.norm()))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nothing_is_singular_at_the_poles(sign):
    mu = torch.zeros(4, 3)
    mu[:, 0] = sign
    mu, kappa = mu.requires_grad_(), torch.tensor([1.0, 1.0, 1e4, 1e4], requires_grad=True)
    z = fn.vmf_draw(mu, kappa)
    z.sum().backward()
    assert torch.allclose(z.norm(dim=1), torch.ones(4)) and mu.grad.isfinite().all() and kappa.grad.isfinite().all()


# ----------------------------------------------------------------------------------------------------------------- model


def test_svae_terms_and_code(images):
    model = aezoo.create_model(
        "svae", input_shape=(1, 12, 12), latent_dim=4, backbone="mlp(widths=(32,))", likelihood="bernoulli"
    )
    x = images[0]
    out = model(x)
    mu, kappa = model.posterior(model.encoder(x))
    assert torch.allclose(out.terms["kl"], fn.vmf_kl(kappa, 4)) and (kappa > 1).all()
    assert torch.allclose(out.z.norm(dim=1), torch.ones(64), atol=1e-5) and torch.equal(model.encode(x), mu)
    assert torch.allclose(model.prior.sample(9, (4,), x).norm(dim=1), torch.ones(9), atol=1e-5)
    assert float(model.prior.log_prob(out.z)[0]) == pytest.approx(-fn.sphere_log_area(4), rel=1e-6)
    h = model.encoder(x).detach()
    z, log_q = model.draw(h.repeat(200, 1))
    assert torch.allclose((log_q - model.prior.log_prob(z)).mean(), out.terms["kl"].mean(), atol=0.03)
    ratio = (log_q - model.prior.log_prob(z)).view(200, 64).mean(0)  # E_q[log q - log p] = KL
    assert torch.allclose(ratio, out.terms["kl"], atol=0.35)
    result = aezoo.fit(model, x, epochs=25, batch_size=16, lr=5e-3, progress=False, device="cpu")
    assert result.history[-1]["elbo"] > result.history[0]["elbo"] + 5
    few, many = (float(model.log_prob(x, n).mean()) for n in (1, 200))
    assert few < many


def test_svae_log_prob_of_a_decoder_that_ignores_z():
    """Then p(x) is known, whatever q is: importance weights average to 1."""
    model = aezoo.create_model(
        "svae", input_shape=(3,), latent_dim=3, backbone="linear", likelihood="gaussian(sigma=1.0)"
    ).double()
    with torch.no_grad():
        model.decoder[0].layer.weight.zero_()
        model.encoder[0].layer.weight.mul_(3)
    x = torch.randn(4, 3, dtype=torch.float64)
    wanted = torch.distributions.Normal(model.decoder[0].layer.bias, 1.0).log_prob(x).sum(1)
    assert torch.allclose(model.log_prob(x, 4000), wanted, atol=0.1)


def test_errors():
    with pytest.raises(ValueError, match="latent_dim=1"):
        aezoo.create_model("svae", input_shape=(3,), latent_dim=1)
    with pytest.raises(ValueError, match="nats"):
        aezoo.create_model("svae", input_shape=(3,), likelihood="mse")
