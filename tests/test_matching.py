"""info_vae, wae_mmd and swae: the divergences by brute force and in closed form, and how they are weighed."""

import itertools
import math

import pytest
import torch

import aezoo
from aezoo import functional as fn
from aezoo.models.matching import codes_and_draws
from aezoo.wholebatch import spread


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(name, **keywords):
    torch.manual_seed(0)
    return aezoo.create_model(name, input_shape=(12,), latent_dim=3, backbone="mlp(widths=(16,))", **keywords).double()


X = torch.rand(10, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------- MMD


def hand_kernel(a, b, name, scales):
    r2, k = float((a - b).square().sum()), len(a)
    each = [2 * k * s / (2 * k * s + r2) if name == "imq" else math.exp(-r2 / (2 * k * s)) for s in scales]
    return sum(each) / len(each)


@pytest.mark.parametrize("scales", [(1.0,), (0.2, 1.0, 5.0)])
@pytest.mark.parametrize("name", ["imq", "rbf"])
def test_mmd_is_the_double_sum(name, scales):
    """arXiv:1711.01558, algorithm 2, with C = 2 K s: off-diagonal sums divided by n(n-1) once. n^2, or a second division, fails."""
    x, y = rand(5, 3), 0.5 + rand(7, 3, seed=1)

    def within(p):
        pairs = list(itertools.permutations(range(len(p)), 2))
        return sum(hand_kernel(p[i], p[j], name, scales) for i, j in pairs) / len(pairs)

    cross = sum(hand_kernel(a, b, name, scales) for a in x for b in y) / 35
    assert float(fn.mmd(x, y, name, scales)) == pytest.approx(within(x) + within(y) - 2 * cross, abs=1e-12)


def test_mmd_kernel_bandwidth():
    """1 at distance 0; of the mean squared distance of two draws of N(0, I), 2 K, the inverse multiquadratic is 1/2 at s = 1."""
    far = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)  # |x - y|^2 = 4 = 2 K
    assert torch.allclose(fn.mmd_kernel(far, far, "imq", (1.0,)), torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double())
    assert float(fn.mmd_kernel(far, far, "rbf", (1.0,))[0, 1]) == pytest.approx(math.exp(-1))
    assert torch.allclose(fn.squared_distances(rand(4, 3), rand(5, 3)), torch.cdist(rand(4, 3), rand(5, 3)).square())


@pytest.mark.parametrize("name", ["imq", "rbf"])
def test_mmd_is_zero_on_average_for_equal_distributions(name):
    """The biased estimate, with the diagonal and n^2, is above 0 always: 2/n (1 - E k) on average."""
    sets = rand(3000, 2, 8, 2, seed=4)
    unbiased = torch.vmap(lambda pair: fn.mmd(pair[0], pair[1], name))(sets)
    error = float(unbiased.std()) / math.sqrt(len(sets))
    assert abs(float(unbiased.mean())) < 4 * error and error < 0.003 and unbiased.min() < 0
    apart = torch.vmap(lambda pair: fn.mmd(pair[0], pair[1] + 1.5, name))(sets)
    assert float(apart.mean()) > 0.1


def test_rbf_mmd_in_closed_form():
    """Between N(0, I) and N(m, I) in K dims with kernel exp(-r^2 / C): 2 (C / (C+4))^(K/2) (1 - exp(-|m|^2 / (C+4)))."""
    k, n, m = 2, 6, torch.tensor([1.0, 0.5], dtype=torch.float64)
    sets = rand(6000, 2, n, k, seed=5)
    got = torch.vmap(lambda pair: fn.mmd(pair[0], pair[1] + m, "rbf"))(sets)
    c = 2 * k
    exact = 2 * (c / (c + 4)) ** (k / 2) * (1 - math.exp(-float(m.square().sum()) / (c + 4)))
    assert float(got.mean()) == pytest.approx(exact, abs=4 * float(got.std()) / math.sqrt(len(sets)))


def test_mmd_gradient_and_single_points():
    x, y = rand(4, 3).requires_grad_(), rand(4, 3, seed=1)
    for name in ("imq", "rbf"):
        assert torch.autograd.gradcheck(lambda x, name=name: fn.mmd(x, y, name, (0.5, 2.0)), x)
    assert fn.mmd(x[:1], y[:1]) == 0


def test_products_keep_their_precision_under_autocast():
    x, y = rand(6, 3).float() + 20, rand(6, 3, seed=1).float() + 20
    directions = torch.nn.functional.normalize(rand(9, 3, seed=2).float(), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        low = fn.squared_distances(x, y), fn.sliced_wasserstein(x, y, directions)
    assert torch.equal(low[0], fn.squared_distances(x, y)) and torch.equal(
        low[1], fn.sliced_wasserstein(x, y, directions)
    )


# ------------------------------------------------------------------------------------------------------- sliced Wasserstein


def test_sliced_wasserstein_in_one_dimension_is_optimal_transport():
    """The best of all assignments, by trying every one."""
    x, y = rand(6, 1), 2 * rand(6, 1, seed=1) + 1
    best = min(float((x - y[list(p)]).square().mean()) for p in itertools.permutations(range(6)))
    one = torch.ones(1, 1, dtype=torch.float64)
    assert float(fn.sliced_wasserstein(x, y, one)) == pytest.approx(best)
    assert float((x - y).square().mean()) > 1.01 * best  # without sorting it is not


def test_sliced_wasserstein_in_closed_form():
    """Between N(m, s^2) and N(0, 1) in one dimension W2^2 = m^2 + (s - 1)^2; a shift by m in K dims gives |m|^2 / K on average."""
    n, one = 20_000, torch.ones(1, 1, dtype=torch.float64)
    got = fn.sliced_wasserstein(0.7 + 2 * rand(n, 1), rand(n, 1, seed=1), one)
    assert float(got) == pytest.approx(0.7**2 + 1.0, rel=0.05)
    x, m = rand(5, 4), torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    directions = torch.nn.functional.normalize(rand(40_000, 4, seed=2), dim=1)
    assert float(fn.sliced_wasserstein(x, x + m, directions)) == pytest.approx(float(m.square().sum()) / 4, rel=0.03)
    assert fn.sliced_wasserstein(x, x.flip(0), directions) < 1e-20  # sets, not rows


def test_sliced_wasserstein_gradient():
    x, y = rand(5, 3).requires_grad_(), rand(5, 3, seed=1)
    directions = torch.nn.functional.normalize(rand(7, 3, seed=2), dim=1)
    assert torch.autograd.gradcheck(lambda x: fn.sliced_wasserstein(x, y, directions), x)


# ------------------------------------------------------------------------------------------------------------------- models


def test_info_vae_weights():
    """arXiv:1706.02262, eq. 6: (1 - alpha) KL + (alpha + lambda - 1) D; alpha = 0, lambda = 1 is the VAE."""
    model = build("info_vae", alpha=0.25, lambda_=5.0)
    torch.manual_seed(1)
    loss = model.loss(X)
    torch.manual_seed(1)
    out = model(X)
    mu, logvar = model.posterior(model.hidden(X))
    kl = fn.gaussian_kl(mu, logvar).mean()
    assert torch.allclose(loss.total, out.terms["recon"].mean() + 0.75 * kl + 4.25 * out.terms["mmd"])
    assert torch.allclose(loss.metrics["elbo"], -(out.terms["recon"].mean() + kl))
    vae = build("info_vae", alpha=0.0, lambda_=1.0)
    assert vae.term_weights() == {"kl": 1.0, "mmd": 0.0}
    plain = build("vae")
    torch.manual_seed(1)
    total = vae.loss(X).total
    torch.manual_seed(1)
    assert torch.allclose(total, plain.loss(X).total)
    for wrong in (
        {"alpha": 1.5},
        {"lambda_": 0.0},
        {"alpha": -2.0, "lambda_": 1.0},
        {"kernel": "gauss"},
        {"scales": ()},
        {"scales": (0.0,)},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            build("info_vae", **wrong)


@pytest.mark.parametrize(("name", "term"), [("wae_mmd", "mmd"), ("swae", "sw")])
def test_deterministic_encoders(name, term):
    model = build(name)
    assert torch.equal(model(X).z, model.encode(X)) and torch.equal(model.encode(X, sample=True), model.encode(X))
    assert model.units == "mean over dims" and model.term_weights() == {term: pytest.approx(10 / 12)}
    assert build(name, likelihood="gaussian(sigma=1.0)").term_weights() == {
        term: 10.0
    }  # a sum over dims: the papers' weight
    assert build(name, weight=0.3).term_weights() == {term: 0.3}
    assert build(name).loss(X[:1]).total.isfinite()
    with pytest.raises(ValueError, match="no log-likelihood"):
        model.log_prob(X)
    with pytest.raises(ValueError, match=r"weight=-1"):
        build(name, weight=-1)


def test_the_default_weight_is_that_of_a_summed_cost():
    """mse + 10/D MMD is 1/D of the paper's |x - x^|^2 + 10 MMD, whose cost is, but for a constant, a Gaussian with sigma^2 = 1/2."""
    totals = []
    for likelihood in ("mse", f"gaussian(sigma={math.sqrt(0.5)})"):
        model = build("wae_mmd", likelihood=likelihood)
        torch.manual_seed(1)
        totals.append(model.loss(X).total)
    assert torch.allclose(12 * totals[0] + 12 * 0.5 * math.log(math.pi), totals[1])


def test_terms_compare_with_the_prior():
    """Draws as many as codes, of N(0, I): codes that are such draws cost nothing on average, others do."""
    for name, term in (("wae_mmd", "mmd"), ("swae", "sw")):
        model = build(name)
        torch.manual_seed(2)
        like, unlike = (
            torch.stack([model.bottleneck(z, True)[1][term] for z in s * rand(60, 64, 3, seed=3)]).mean()
            for s in (1, 3)
        )
        assert abs(float(like)) < 0.12 and float(unlike) > 2 * abs(float(like)) + 0.05, (name, like, unlike)
    with pytest.raises(ValueError, match="projections=0"):
        build("swae", projections=0)


def test_several_processes_see_one_batch(monkeypatch):
    """The prior's draws are cut from those of the whole batch, and the directions are the same everywhere."""
    z, models, alone = rand(7, 3), [build("wae_mmd"), build("swae")], []
    torch.manual_seed(5)
    draws = codes_and_draws(z)[1]
    for model in models:
        torch.manual_seed(5)
        alone.append(model.bottleneck(z, True)[1])
    parts = []
    for start, stop in ((0, 3), (3, 7)):
        torch.manual_seed(5)
        with spread(start, stop, 7):
            parts.append(torch.randn_like(z[start:stop]))
    assert torch.equal(torch.cat(parts), draws)
    for start, stop in ((0, 3), (3, 7)):
        gathered = iter([z, draws] * 2)
        monkeypatch.setattr("aezoo.models.matching.whole_batch", lambda part, them=gathered: next(them))
        for model, whole in zip(models, alone):
            torch.manual_seed(5)
            with spread(start, stop, 7):
                got = model.bottleneck(z[start:stop], True)[1]
            assert all(torch.equal(got[k], whole[k]) for k in whole)


@pytest.mark.parametrize("name", ["info_vae", "wae_mmd", "swae"])
def test_training_resumes_to_the_bit(name, tmp_path, monkeypatch):

    def model():
        torch.manual_seed(0)
        return aezoo.create_model(name, input_shape=(12,), latent_dim=3, backbone="mlp(widths=(16,))")

    x, options = X.float().repeat(4, 1), {"batch_size": 8, "lr": 1e-3, "progress": False, "device": "cpu", "val": 0.2}
    whole = aezoo.fit(model(), x, epochs=2, **options).model.state_dict()
    aezoo.fit(model(), x, epochs=2, out=tmp_path, max_time=1e-6, **options)
    parts = aezoo.fit(model(), x, epochs=2, out=tmp_path, resume=True, **options).model.state_dict()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
