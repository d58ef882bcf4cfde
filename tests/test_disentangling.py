"""capacity_vae, beta_tc_vae, factor_vae, dip_vae and joint_vae: their maths by brute force in float64, and who may learn from what."""

import itertools
import math

import pytest
import torch
from torch import distributions as D

import aezoo
from aezoo import functional as fn
from aezoo.wholebatch import spread


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(name, **keywords):
    torch.manual_seed(0)
    return aezoo.create_model(name, input_shape=(12,), latent_dim=3, backbone="mlp(widths=(16,))", **keywords).double()


X = torch.rand(10, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- beta-TCVAE: the KL in three


def posteriors(n, k):
    """mu and logvar of n samples whose latents depend on each other."""
    mu = rand(n, k) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=torch.float64)
    return mu, -1.0 + 0.3 * rand(n, k, seed=1)


def exact_decomposition(mu, logvar):
    """MI, TC and dimension-wise KL of a two-dimensional q(z), a mean over all samples, by integration on a grid."""
    t = torch.linspace(-8, 8, 801, dtype=torch.float64)
    dt = float(t[1] - t[0])
    each = D.Normal(mu[:, :, None], (0.5 * logvar).exp()[:, :, None]).log_prob(t)  # (N, 2, T)
    joint = torch.logsumexp(each[:, 0, :, None] + each[:, 1, None, :], 0) - math.log(len(mu))  # log q(z), (T, T)
    marginal = torch.logsumexp(each, 0) - math.log(len(mu))  # (2, T)
    prior = D.Normal(0.0, 1.0).log_prob(t)
    q = joint.exp() * dt * dt
    tc = (q * (joint - marginal[0, :, None] - marginal[1])).sum()
    dwkl = (marginal.exp() * (marginal - prior)).sum() * dt
    own = sum(-0.5 * (1 + math.log(2 * math.pi) + logvar).sum(1)) / len(
        mu
    )  # E log q(z|x): a Gaussian's negative entropy
    return own - (q * joint).sum(), tc, dwkl


def test_decomposition_adds_up_to_the_kl():
    """arXiv:1802.04942, eq. 2, of the brute-force side itself."""
    mu, logvar = posteriors(5, 2)
    parts = exact_decomposition(mu, logvar)
    assert float(sum(parts)) == pytest.approx(float(fn.gaussian_kl(mu, logvar).mean()), abs=1e-6)
    assert min(map(float, parts)) > 0.01  # none is trivially 0


def test_decomposition_of_a_whole_data_set():
    """With weights 1/N and the batch the data set, means over draws of z are MI, TC and DWKL (eq. 2)."""
    n = 5
    mu, logvar = posteriors(n, 2)
    draws = 20_000
    z = mu + (0.5 * logvar).exp() * rand(draws, n, 2, seed=2)
    weights = torch.full((n, n), -math.log(n), dtype=torch.float64)
    got = torch.vmap(lambda one: torch.stack(fn.kl_decomposition(one, mu, logvar, weights)))(z)  # (draws, 3, n)
    error = got.mean(2).std(0) / math.sqrt(draws)
    for mean, bound, exact in zip(got.mean((0, 2)), error, exact_decomposition(mu, logvar)):
        assert abs(float(mean - exact)) < 4 * float(bound) and float(bound) < 0.01


@pytest.mark.parametrize(("batch", "n"), [(2, 4), (3, 5), (4, 4), (4, 6)])
def test_stratified_weights_are_unbiased(batch, n):
    """arXiv:1802.04942, appendix C.2: the mean over all minibatches that hold a sample is exactly q(z) = 1/N sum_j q(z|x_j), for
    every row, for the joint and for each latent. 1/N in column 0 instead of on the diagonal fails this."""
    mu, logvar = posteriors(n, 2)
    z = rand(n, 2, seed=3)
    log_q = D.Normal(mu, (0.5 * logvar).exp()).log_prob(z[:, None])  # (N, N, 2)
    weights = fn.minibatch_log_weights(batch, n, "mss", like=z).exp()
    assert torch.allclose(weights.sum(1), torch.ones(batch, dtype=torch.float64))
    m = batch - 1
    wrong = torch.full((batch, batch), 1 / m, dtype=torch.float64)
    wrong[:, 0], wrong[:, 1], wrong[m - 1, 0] = 1 / n, (n - m) / (n * m), (n - m) / (n * m)

    def mean_estimate(w, density):
        found = torch.zeros(n, dtype=torch.float64)
        count = torch.zeros(n, dtype=torch.float64)
        for chosen in map(list, itertools.permutations(range(n), batch)):
            found[chosen] += (w * density[chosen][:, chosen]).sum(1)
            count[chosen] += 1
        return found / count

    for density in (log_q.sum(2).exp(), log_q[:, :, 0].exp(), log_q[:, :, 1].exp()):
        assert torch.allclose(mean_estimate(weights, density), density.mean(1), rtol=1e-10)
        assert not torch.allclose(mean_estimate(wrong, density), density.mean(1), rtol=1e-2)


def test_stratified_weights_by_hand():
    """B = 4, N = 10, M = 3: 1/10 on the diagonal, once per row 7/30 beside it, 1/3 elsewhere."""
    a, b, c = 1 / 10, 7 / 30, 1 / 3
    hand = torch.tensor([[a, b, c, c], [c, a, b, c], [c, c, a, b], [b, c, c, a]], dtype=torch.float64)
    for n in (10, torch.tensor(10)):
        assert torch.allclose(fn.minibatch_log_weights(4, n, "mss", like=hand).exp(), hand)
    few = fn.minibatch_log_weights(4, 0, "mss", like=hand)  # unknown, or less than the batch: N is the batch
    assert torch.equal(few, fn.minibatch_log_weights(4, 4, "mss", like=hand)) and few.isfinite().all()
    assert fn.minibatch_log_weights(1, 10, "mss", like=hand).tolist() == [[0.0]]


def test_weighted_sampling_by_hand():
    """arXiv:1802.04942, appendix C.1: log q(z_i) = log sum_j q(z_i|x_j) - log(N B), and so for every latent inside the product."""
    mu, logvar = posteriors(4, 2)
    z, n = rand(4, 2, seed=3), 50
    got = fn.kl_decomposition(z, mu, logvar, fn.minibatch_log_weights(4, n, "mws", like=z))
    for i in range(4):
        q = [
            [math.exp(float(D.Normal(mu[j, k], (0.5 * logvar[j, k]).exp()).log_prob(z[i, k]))) for k in range(2)]
            for j in range(4)
        ]
        own, joint = math.log(q[i][0] * q[i][1]), math.log(sum(a * b for a, b in q) / (n * 4))
        each = sum(math.log(sum(row[k] for row in q) / (n * 4)) for k in range(2))
        prior = float(D.Normal(0.0, 1.0).log_prob(z[i]).sum())
        for value, hand in zip(got, (own - joint, joint - each, each - prior)):
            assert float(value[i]) == pytest.approx(hand, abs=1e-10)


@pytest.mark.parametrize("estimator", ["mss", "mws"])
def test_decomposition_has_the_right_gradient(estimator):
    mu, logvar = (t.requires_grad_() for t in posteriors(3, 2))
    z = rand(3, 2, seed=3).requires_grad_()
    weights = fn.minibatch_log_weights(3, 7, estimator, like=z)
    assert torch.autograd.gradcheck(lambda *a: fn.kl_decomposition(*a, weights), (z, mu, logvar))


def test_beta_tc_vae_weighs_each_part_once():
    """alpha = beta = gamma = 1 is the VAE with one draw of its KL: the three terms add up to log q(z|x) - log p(z)."""
    model = build("beta_tc_vae", alpha=2.0, beta=5.0, gamma=3.0, num_data=100)
    torch.manual_seed(1)
    out = model(X)
    mu, logvar = model.posterior(model.hidden(X))
    one_draw = -fn.gaussian_nll(out.z, mu, 0.5 * logvar) - model.prior.log_prob(out.z)
    t = out.terms
    assert torch.allclose(t["mi"] + t["tc"] + t["dwkl"], one_draw.mean(), rtol=0, atol=1e-9)
    torch.manual_seed(1)
    total = model.loss(X).total
    assert torch.allclose(total, t["recon"].mean() + 2 * t["mi"] + 5 * t["tc"] + 3 * t["dwkl"])


def test_number_of_training_samples(tmp_path):
    told, given = build("beta_tc_vae"), build("beta_tc_vae", num_data=50)
    for model in (told, given):
        model.see_data(777)
    assert int(told.samples_seen) == 777 and int(given.samples_seen) == 50
    again = aezoo.from_pretrained(told.save_pretrained(tmp_path))
    assert int(again.samples_seen) == 777  # a buffer: it survives saving

    def mi(model):
        torch.manual_seed(1)
        return float(model(X).terms["mi"].detach())

    assert mi(build("beta_tc_vae")) == mi(build("beta_tc_vae", num_data=len(X))) == mi(build("beta_tc_vae", num_data=1))
    assert mi(told) == mi(build("beta_tc_vae", num_data=777)) != mi(given)
    assert math.isfinite(mi(build("beta_tc_vae", estimator="mws")))
    assert torch.isfinite(build("beta_tc_vae", num_data=9).loss(X[:1]).total)
    for wrong in ({"estimator": "mms"}, {"num_data": 0}, {"beta": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            build("beta_tc_vae", **wrong)


# ------------------------------------------------------------------------------------------------------------- capacity_vae


def test_capacity_takes_the_mean_first():
    """arXiv:1804.03599, eq. 8: |mean KL - C|; the mean of |KL - C| is another number where samples lie on both sides of C."""
    free = build("capacity_vae", anneal=0)
    torch.manual_seed(1)
    kl = free(X).metrics["kl"].detach()
    capacity = float(kl.median())
    assert kl.min() < capacity < kl.max()
    model = build("capacity_vae", anneal=0, capacity=capacity, gamma=7.0)
    out = model(X)
    assert torch.allclose(out.terms["capacity"], (kl.mean() - capacity).abs())
    assert not torch.allclose(out.terms["capacity"], (kl - capacity).abs().mean())
    torch.manual_seed(2)
    loss = model.loss(X)
    assert torch.allclose(loss.total, loss.terms["recon"] + 7 * loss.terms["capacity"])
    assert torch.allclose(loss.metrics["elbo"], -(loss.terms["recon"] + kl.mean()))


def test_capacity_rises_and_survives_saving(tmp_path):
    model = build("capacity_vae", capacity=20.0, anneal=4)
    kl = model(X).metrics["kl"].detach().mean()
    for step in range(6):
        assert torch.allclose(model(X).terms["capacity"], (kl - 20.0 * min(1.0, step / 4)).abs())
        with model.evaluating():  # the same measure at every step
            assert torch.allclose(model(X).terms["capacity"], (kl - 20.0).abs())
        model.after_step()
        if step == 1:
            model = aezoo.from_pretrained(model.save_pretrained(tmp_path)).train()


def test_weighted_vaes_take_no_beta():
    for name in ("capacity_vae", "info_vae", "joint_vae"):
        with pytest.raises(TypeError, match="no keyword 'beta'"):
            build(name, beta=2.0)
        with pytest.raises(TypeError, match="no keyword 'kl_warmup'"):
            build(name, kl_warmup=2)


# --------------------------------------------------------------------------------------------------------------- factor_vae


def touched(model, term):
    """The parameters whose gradient of a term is anything but exactly 0, by the part of the model they lie in."""
    model.zero_grad(set_to_none=True)
    model.loss(X).terms[term].backward()
    return {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}


def test_factor_vae_keeps_the_sides_apart():
    """arXiv:1802.05983, algorithm 2: the discriminator's loss is none of the encoder's business, nor TC of the discriminator's."""
    model = build("factor_vae")
    assert touched(model, "critic") == {"critic"}
    assert touched(model, "tc") == {"encoder"}
    assert touched(model, "kl") == {"encoder"}


def test_factor_vae_estimates_a_log_ratio():
    """TC ~ E log D / (1 - D) (eq. 3), the gradient to z too; the discriminator's loss is -1/2 E log D(z) - 1/2 E log(1 - D(z~))."""
    model = build("factor_vae", gamma=4.0)
    z = rand(10, 3).requires_grad_()
    d = torch.sigmoid(model.critic(z))
    expected = torch.autograd.grad((d / (1 - d)).log().sum(), z)[0]
    h = torch.cat([z.detach(), torch.full_like(z, -50.0)], 1).requires_grad_()  # no noise to speak of: logvar -10
    torch.manual_seed(3)
    drawn, terms = model.bottleneck(h, sample=True)
    assert torch.allclose(terms["tc"], model.critic(drawn).squeeze(1))
    got = torch.autograd.grad(terms["tc"].sum(), h)[0][:, :3]
    assert torch.allclose(got, expected, atol=0.05 * float(expected.abs().max()))

    torch.manual_seed(4)
    loss = model.critic_loss(z.detach())
    torch.manual_seed(4)
    real, permuted = torch.sigmoid(model.critic(z)), torch.sigmoid(model.critic(fn.permute_dims(z)))
    assert torch.allclose(loss, -0.5 * real.log().mean() - 0.5 * (1 - permuted).log().mean())
    assert model.term_weights() == {"kl": 1.0, "tc": 4.0}


def test_permutation_keeps_marginals_and_breaks_dependence():
    """arXiv:1802.05983, algorithm 1: every latent has a permutation of its own. One for all of them changes no joint distribution."""
    column = rand(4000, 1)
    z = torch.cat([column, 2 * column, -column], 1)
    torch.manual_seed(0)
    permuted = fn.permute_dims(z)
    assert torch.equal(permuted.sort(0).values, z.sort(0).values) and not torch.equal(permuted, z)
    correlation = torch.corrcoef(permuted.T)
    assert (correlation - torch.eye(3)).abs().max() < 0.08 and torch.corrcoef(z.T).abs().min() > 0.99


def test_permutation_is_of_the_whole_batch(monkeypatch):
    """Two processes with parts of a batch draw the permutation that one draws for all of it."""
    model, z = build("factor_vae"), rand(7, 3)
    torch.manual_seed(5)
    alone = model.critic_loss(z)
    monkeypatch.setattr("aezoo.models.disentangling.whole_batch", lambda part: z)
    for start, stop in ((0, 3), (3, 7)):
        torch.manual_seed(5)
        with spread(start, stop, 7):
            assert torch.equal(model.critic_loss(z[start:stop]), alone)


def test_critic_has_a_rate_of_its_own():
    assert build("factor_vae").rates() == {}
    assert build("factor_vae", critic_lr=0.5).rates() == {"critic.*": {"lr": 0.5}}
    for wrong in ({"critic_lr": 0.0}, {"critic_widths": (0,)}, {"gamma": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            build("factor_vae", **wrong)


def test_discriminator_learns_the_total_correlation():
    """Of a Gaussian with correlation rho TC is -1/2 log(1 - rho^2)."""
    torch.manual_seed(0)
    model, rho = aezoo.create_model("factor_vae", input_shape=(4,), latent_dim=2, critic_widths=(32, 32)), 0.9
    optimizer = torch.optim.Adam(model.critic.parameters(), lr=1e-2)
    for _ in range(150):
        a = torch.randn(256, 1)
        z = torch.cat([a, rho * a + math.sqrt(1 - rho**2) * torch.randn(256, 1)], 1)
        optimizer.zero_grad()
        model.critic_loss(z).backward()
        optimizer.step()
    a = torch.randn(10_000, 1)
    z = torch.cat([a, rho * a + math.sqrt(1 - rho**2) * torch.randn(10_000, 1)], 1)
    exact = -0.5 * math.log(1 - rho**2)
    assert float(model.critic(z).mean().detach()) == pytest.approx(exact, abs=0.25 * exact)


# ------------------------------------------------------------------------------------------------------------------ dip_vae


def test_covariance_equals_torch():
    x = rand(20, 5) + 3.0
    assert torch.allclose(fn.covariance(x), torch.cov(x.T, correction=0))
    assert torch.equal(fn.covariance(x[:1]), torch.zeros(5, 5, dtype=torch.float64))  # and not NaN
    off, diagonal = fn.identity_gaps(torch.tensor([[3.0, 0.5], [0.5, 0.0]]))
    assert (off, diagonal) == (0.5, 5.0)


@pytest.mark.parametrize(("kind", "weights"), [("i", (10.0, 100.0)), ("ii", (10.0, 10.0))])
def test_dip_moments(kind, weights):
    """arXiv:1711.00848, eq. 6 (I: of the means) and 7 (II: of z itself). The variances are exp(logvar), and the covariance is over
    the batch: over the latents it would be (B, B)."""
    model = build("dip_vae", kind=kind)
    mu, logvar = model.posterior(model.hidden(X))
    cov = torch.cov(mu.T, correction=0) + (torch.diag(logvar.exp().mean(0)) if kind == "ii" else 0)
    terms = model(X).terms
    off = ~torch.eye(3, dtype=torch.bool)
    assert torch.allclose(terms["off_diagonal"], cov[off].square().sum())
    assert torch.allclose(terms["diagonal"], (cov.diagonal() - 1).square().sum())
    assert model.term_weights() == {"kl": 1.0, "off_diagonal": weights[0], "diagonal": weights[1]}
    assert build("dip_vae", kind=kind, diagonal=3.0).term_weights()["diagonal"] == 3.0
    with pytest.raises(ValueError, match="kind='iii'"):
        build("dip_vae", kind="iii")


def test_dip_ii_is_the_covariance_of_z():
    """Law of total covariance, against draws of z."""
    mu, logvar = rand(6, 3), 0.5 * rand(6, 3, seed=1)
    z = mu + (0.5 * logvar).exp() * rand(40_000, 6, 3, seed=2)
    total = fn.covariance(mu) + torch.diag(logvar.exp().mean(0))
    assert torch.allclose(torch.cov(z.reshape(-1, 3).T), total, atol=0.03)


# ---------------------------------------------------------------------------------------------------------------- joint_vae


def test_categorical_kl_equals_torch_distributions():
    logits = 2 * rand(8, 4)
    exact = D.kl_divergence(D.Categorical(logits=logits), D.Categorical(logits=torch.zeros(4, dtype=torch.float64)))
    assert torch.allclose(fn.categorical_kl(logits), exact)
    assert fn.categorical_kl(torch.zeros(1, 7)).abs() < 1e-6
    certain = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)
    fn.categorical_kl(certain).sum().backward()
    assert fn.categorical_kl(certain).item() == pytest.approx(math.log(3)) and certain.grad.isfinite().all()


def joint(**keywords):
    return build("joint_vae", **{"categories": (4, 2), "anneal": 0, **keywords})


def test_joint_loss():
    """arXiv:1804.00104, eq. 7: a capacity for each kind of latent, the mean over the batch inside of the absolute value."""
    model = joint(capacity=2.0, discrete_capacity=1.5, gamma=6.0)
    h = model.hidden(X)
    kl_z = fn.gaussian_kl(*model.posterior(h))
    uniform = [D.Categorical(logits=torch.zeros(c, dtype=torch.float64)) for c in (4, 2)]
    kl_c = sum(D.kl_divergence(D.Categorical(logits=part), u) for part, u in zip(model.logits(h), uniform))
    loss = model.loss(X)
    assert torch.allclose(loss.terms["capacity"], (kl_z.mean() - 2.0).abs())
    assert torch.allclose(loss.terms["discrete_capacity"], (kl_c.mean() - 1.5).abs())
    gaps = loss.terms["capacity"] + loss.terms["discrete_capacity"]
    assert torch.allclose(loss.total, loss.terms["recon"] + 6 * gaps)
    assert torch.allclose(loss.metrics["elbo"], -(loss.terms["recon"] + kl_z.mean() + kl_c.mean()))


def test_joint_capacity_is_bounded_by_the_categories():
    assert joint().discrete_capacity == pytest.approx(math.log(8))
    with pytest.raises(ValueError, match=r"discrete_capacity=3.0 is more than 2.079"):
        joint(discrete_capacity=3.0)
    for wrong in ((), (1,), 3, "34", (2, 0)):
        with pytest.raises(ValueError, match="categories="):
            joint(categories=wrong)


def is_one_hot(part):
    return bool(((part == 0) | (part == 1)).all()) and bool((part.sum(1) == 1).all())


def test_joint_codes():
    model = joint()
    assert model.latent_shape == (9,)
    z = model.encode(X)
    mu, logits = model.posterior(model.hidden(X))[0], model.logits(model.hidden(X))
    assert torch.equal(z[:, :3], mu)
    for part, scores in zip(z[:, 3:].split((4, 2), 1), logits):
        assert is_one_hot(part) and torch.equal(part.argmax(1), scores.argmax(1))
    relaxed = model(X).z[:, 3:].split((4, 2), 1)
    assert all(
        torch.allclose(part.sum(1), torch.ones(10, dtype=torch.float64)) and not is_one_hot(part) for part in relaxed
    )
    with model.evaluating():
        assert all(map(is_one_hot, model(X).z[:, 3:].split((4, 2), 1)))
    assert all(map(is_one_hot, model.encode(X, sample=True)[:, 3:].split((4, 2), 1)))
    assert all(map(is_one_hot, model.prior.sample(5, (9,), z)[:, 3:].split((4, 2), 1)))


def test_joint_draws_follow_the_posterior():
    """Categories by their probabilities (Gumbel-max), relaxed ones by the same temperature-free order."""
    model = joint(categories=(4,))
    h = torch.zeros(20_000, 14, dtype=torch.float64)
    h[:, 3:7] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    torch.manual_seed(0)
    drawn, log_q = model.draw(h)
    assert torch.allclose(drawn[:, 3:].mean(0), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), atol=0.015)
    expected = D.Normal(0.0, 1.0).log_prob(drawn[:, :3]).sum(1) + (drawn[:, 3:] * h[:, 3:7]).sum(1)
    assert torch.allclose(log_q, expected)
    relaxed = model.bottleneck(h, sample=True).z[:, 3:]
    winners = torch.nn.functional.one_hot(relaxed.argmax(1), 4).double().mean(0)
    assert torch.allclose(winners, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), atol=0.015)


def test_joint_log_prob_sums_the_categories_out():
    """With a decoder that reads the category alone, log p(x) = log mean_c p(x|c)."""
    model = joint(categories=(4,), likelihood="gaussian(sigma=0.5)").eval()
    with torch.no_grad():
        next(model.decoder.parameters())[:, :3] = 0.0  # the continuous latents say nothing
    codes = torch.cat([torch.zeros(4, 3), torch.eye(4)], 1).double()
    nll = torch.stack([model.likelihood.nll(model.emit(c.expand(len(X), 7)), X) for c in codes])
    exact = torch.logsumexp(-nll, 0) - math.log(4)
    torch.manual_seed(0)
    assert torch.allclose(model.log_prob(X, 4000), exact.detach(), atol=0.05)


@pytest.mark.parametrize("name", ["capacity_vae", "beta_tc_vae", "factor_vae", "dip_vae", "joint_vae"])
def test_training_resumes_to_the_bit(name, tmp_path, monkeypatch):

    def model():
        torch.manual_seed(0)
        return aezoo.create_model(name, input_shape=(12,), latent_dim=3, backbone="mlp(widths=(16,))")

    x, options = X.float().repeat(4, 1), {"batch_size": 8, "lr": 1e-3, "progress": False, "device": "cpu", "val": 0.2}
    whole = aezoo.fit(model(), x, epochs=2, **options).model.state_dict()
    aezoo.fit(model(), x, epochs=2, out=tmp_path, max_time=1e-6, **options)
    parts = aezoo.fit(model(), x, epochs=2, out=tmp_path, resume=True, **options).model.state_dict()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_the_loop_tells_the_number_of_training_samples():
    options = {"epochs": 1, "batch_size": 10, "progress": False, "device": "cpu"}
    model = build("beta_tc_vae").float()
    aezoo.fit(model, X.float().repeat(3, 1), val=0.2, **options)
    assert int(model.samples_seen) == 24
    models = [build("beta_tc_vae", beta=b).float() for b in (1.0, 3.0)]
    aezoo.fit_many(models, X.float().repeat(4, 1), **options)
    assert [int(m.samples_seen) for m in models] == [40, 40]
