"""Likelihoods and corruptions, one by one."""

import math

import pytest
import torch
from torch import distributions as D

from aezoo.corruptions import CORRUPTIONS
from aezoo.likelihoods import LIKELIHOODS
from aezoo.registry import parse_spec, plain


def params(p=1, n=8, shape=(2, 3), seed=0):
    return torch.randn(n, p, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(n=8, shape=(2, 3), seed=1):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_plain_losses_are_means_over_dims():
    y, x = params(), unit()
    r = y[:, 0] - x
    for name, expected in [
        ("mse", (r**2).flatten(1).mean(1)),
        ("l1", r.abs().flatten(1).mean(1)),
        ("huber(delta=0.5)", torch.where(r.abs() <= 0.5, r**2 / 2, 0.5 * (r.abs() - 0.25)).flatten(1).mean(1)),
        ("bce", -D.Bernoulli(logits=y[:, 0], validate_args=False).log_prob(x).flatten(1).mean(1)),
    ]:
        likelihood = LIKELIHOODS.build(name)
        assert torch.allclose(likelihood.nll(y, x), expected), name
        assert likelihood.units == "mean over dims" and likelihood.instead


def test_gaussian_without_a_scale_is_half_the_summed_squared_error():
    y, x = params(), unit()
    nll = LIKELIHOODS.build("gaussian(sigma=1.0)").nll(y, x)
    assert torch.allclose(nll, 0.5 * ((y[:, 0] - x) ** 2).flatten(1).sum(1) + 3 * math.log(2 * math.pi))


@pytest.mark.parametrize(("spec", "power"), [("gaussian", 2), ("laplace", 1)])
def test_optimal_scale_is_the_maximum_of_the_likelihood(spec, power):
    y, x = params(n=200), unit(n=200)
    likelihood = LIKELIHOODS.build(spec).double()
    best = likelihood.nll(y, x).mean()
    word = "sigma" if spec == "gaussian" else "scale"
    scale = (y[:, 0] - x).abs().pow(power).mean() ** (1 / power)
    for factor in (0.9, 1.0, 1.1):
        fixed = LIKELIHOODS.build(f"{spec}({word}={float(scale * factor)})").nll(y, x).mean()
        assert best <= fixed + 1e-9
    assert likelihood.scale.item() == pytest.approx(scale.item(), rel=1e-6)  # one batch: bias-corrected


def test_optimal_scale_has_the_total_derivative():
    y, x = params().requires_grad_(), unit()
    LIKELIHOODS.build("gaussian").double().nll(y, x).mean().backward()
    z = y.detach().clone().requires_grad_()
    mse = (z[:, 0] - x).square().mean()
    (0.5 * 6 * (mse.log() + 1 + math.log(2 * math.pi))).backward()  # D/2 log(2 pi e mse)
    assert torch.allclose(y.grad, z.grad)


def test_optimal_scale_in_evaluation_does_not_depend_on_the_batch():
    likelihood, y, x = LIKELIHOODS.build("gaussian").double(), params(n=64), unit(n=64)
    for part in torch.arange(64).split(16):
        likelihood.nll(y[part], x[part])
    likelihood.eval()
    assert torch.allclose(likelihood.nll(y, x)[:3], likelihood.nll(y[:3], x[:3]))
    assert "moment" in likelihood.state_dict()


def test_predicted_scale():
    y, x = params(2), unit()
    nll = LIKELIHOODS.build("gaussian(sigma='predicted')").nll(y, x)
    sigma = (7 * torch.tanh(y[:, 1] / 7)).exp()
    assert torch.allclose(nll, -D.Normal(y[:, 0], sigma).log_prob(x).flatten(1).sum(1))


@pytest.mark.parametrize("spec", ["gaussian(sigma=0.3)", "laplace(scale=0.3)", "bernoulli", "continuous_bernoulli"])
def test_draws_have_the_mean(spec):
    likelihood, y = LIKELIHOODS.build(spec).eval(), params(n=1, shape=(6,)).float().mul(3)
    draws = torch.stack([likelihood.sample(y) for _ in range(20000)])
    assert torch.allclose(draws.mean(0), likelihood.mean(y), atol=0.02)


def test_continuous_bernoulli_draws_at_extreme_logits():
    likelihood, y = LIKELIHOODS.build("continuous_bernoulli"), torch.tensor([[[-120.0, 120.0, 0.5]]])
    draws = likelihood.sample(y.expand(40_000, 1, 3))
    assert torch.allclose(draws.mean(0), likelihood.mean(y)[0], atol=5e-3) and draws[:, :2].std(0).min() > 5e-3


@pytest.mark.parametrize("name", ["bce", "bernoulli", "continuous_bernoulli"])
def test_ranges_are_named(name):
    likelihood = LIKELIHOODS.build(name)
    likelihood.check(0.0, 1.0)
    with pytest.raises(ValueError, match=r"lies in \[0, 255\]: divide by 255"):
        likelihood.check(0.0, 255.0)
    with pytest.raises(ValueError, match=r"\[-1, 1\]: rescale"):
        likelihood.check(-1.0, 1.0)


def test_corruption_statistics():
    x = torch.full((400, 50), 0.5)
    build = CORRUPTIONS.build
    assert (build("gaussian(sigma=0.3)")(x) - x).std().item() == pytest.approx(0.3, rel=0.03)
    assert (build("masking(p=0.2)")(x) == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    salted = build("salt_and_pepper(p=0.4, low=-1.0, high=2.0)")(x)
    assert (salted == -1).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (salted == 2).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (build("speckle(sigma=0.4)")(x) - x).std().item() == pytest.approx(0.2, rel=0.03)
    assert torch.equal(build("none")(x), x)
    assert torch.equal(build("masking(p=0.0)")(x), x) and (build("masking(p=1.0)")(x) == 0).all()


def test_a_range_gives_each_sample_its_own_level():
    x = torch.zeros(300, 400)
    stds = CORRUPTIONS.build("gaussian(sigma=(0.1, 0.9))")(x).std(1)
    assert stds.min() < 0.2 and stds.max() > 0.8 and 0.45 < stds.mean() < 0.55
    shares = (CORRUPTIONS.build({"name": "masking", "p": [0.0, 1.0]})(x + 1) == 0).float().mean(1)
    assert shares.min() < 0.1 and shares.max() > 0.9


def test_specs():
    same = [CORRUPTIONS.build(s) for s in ("gaussian(sigma=0.7)", {"name": "gaussian", "sigma": 0.7})]
    assert all(plain(c) == {"name": "gaussian", "sigma": 0.7, "where": "input", "when": "training"} for c in same)
    assert CORRUPTIONS.build(same[0]) is same[0]
    assert parse_spec("x", "a(b=[1, 2], c='d')") == ("a", {"b": [1, 2], "c": "d"})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("u", [0.0, 1.0])
def test_laplace_draws_are_finite_at_the_ends_of_the_uniform_draw(monkeypatch, u, dtype):
    monkeypatch.setattr("aezoo.likelihoods._uniform", lambda like, generator: torch.full_like(like, u))
    drawn = LIKELIHOODS.build("laplace(scale=2.0)").sample(torch.ones(2, 1, 3, dtype=dtype))
    assert torch.isfinite(drawn).all()
    assert (drawn < -8).all() if u == 0 else (drawn > 8).all()
