"""Entries that are not there: masked sums and likelihoods against brute force, gradients, evaluation, pictures."""

import math

import pytest
import torch
import torch.nn.functional as F

import aezoo
from aezoo import functional as fn
from aezoo.likelihoods import LIKELIHOODS

DENSITIES = [
    "gaussian", "gaussian(sigma=0.4)", "gaussian(sigma='learned')", "gaussian(sigma='predicted')", "laplace", "laplace(scale=0.3)",
    "laplace(scale='learned')", "laplace(scale='predicted')", "bernoulli", "continuous_bernoulli",
]  # fmt: skip
PLAIN = ["mse", "bce", "l1", "huber(delta=0.2)"]


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def holes(*shape, seed=5, share=0.4):
    return uniform(*shape, seed=seed) < share


def scored(spec, eval_scale=None):
    """A likelihood in evaluation mode, the estimated scale of which has seen something."""
    likelihood = LIKELIHOODS.build(spec).double()
    for _ in range(3):
        likelihood.nll(uniform(8, likelihood.num_params, 4, seed=7), uniform(8, 4, seed=8))
    return likelihood.eval()


@pytest.mark.parametrize("spec", DENSITIES + PLAIN)
def test_every_likelihood_scores_what_is_there_as_if_the_rest_did_not_exist(spec):
    """Brute force: the entries that are there, cut out and scored as a sample of their own length."""
    likelihood = scored(spec)
    params, x, missing = 2 * uniform(6, likelihood.num_params, 3, 5) - 1, uniform(6, 3, 5, seed=1), holes(6, 3, 5)
    got = likelihood.nll_observed(params, x.masked_fill(missing, math.nan), ~missing)
    for i in range(6):
        there = ~missing[i]
        alone = likelihood.nll(params[i : i + 1][:, :, there], x[i : i + 1][:, there])[0]
        assert torch.allclose(got[i], alone, rtol=1e-12, atol=1e-12)
    whole = likelihood.nll_observed(params, x, torch.ones_like(missing))
    assert torch.allclose(whole, likelihood.nll(params, x), rtol=1e-12, atol=1e-12)
    assert likelihood.nll_observed(params, x * math.nan, torch.zeros_like(missing)).equal(torch.zeros(6).double())


@pytest.mark.parametrize("spec", DENSITIES + PLAIN)
def test_no_gradient_comes_from_what_is_missing(spec):
    """A mask that multiplies by 0 would make 0 * NaN = NaN here, in the backward pass if not in the forward pass."""
    likelihood = LIKELIHOODS.build(spec).double().train()
    params = (2 * uniform(6, likelihood.num_params, 3, 5) - 1).requires_grad_()
    missing = holes(6, 3, 5)
    x = uniform(6, 3, 5, seed=1).masked_fill(missing, math.nan).requires_grad_()
    likelihood.nll_observed(params, x, ~missing).sum().backward()
    assert torch.isfinite(params.grad).all() and torch.isfinite(x.grad).all()
    assert (params.grad.movedim(1, -1)[missing] == 0).all() and (params.grad[:, 0][~missing] != 0).all()
    assert all(torch.isfinite(p.grad).all() for p in likelihood.parameters())


@pytest.mark.parametrize(("spec", "moment"), [("gaussian", torch.square), ("laplace", torch.abs)])
def test_the_optimal_scale_is_that_of_what_is_there(spec, moment):
    """sigma-VAE (arXiv:2006.13202, eq. 5) over the entries that are there: with missing entries counted as residuals of 0, or with
    the full count as the divisor, the scale would be too small."""
    likelihood = LIKELIHOODS.build(spec).double().train()
    params, x, missing = uniform(7, 1, 9), uniform(7, 9, seed=1), holes(7, 9)
    got = likelihood.nll_observed(params, x.masked_fill(missing, math.nan), ~missing)
    statistic = moment((params[:, 0] - x)[~missing]).mean()
    scale = statistic.sqrt() if spec == "gaussian" else statistic
    density = torch.distributions.Normal if spec == "gaussian" else torch.distributions.Laplace
    each = -density(params[:, 0], scale).log_prob(x)
    assert torch.allclose(got, torch.where(missing, 0.0, each).sum(1))
    assert torch.allclose(likelihood.scale, scale)  # the running mean, after one batch
    before = likelihood.moment.clone(), likelihood.weight.clone()
    likelihood.nll_observed(params, x, torch.zeros_like(missing))
    assert torch.equal(likelihood.moment, before[0]) and torch.equal(likelihood.weight, before[1])


def test_a_scale_for_each_column():
    likelihood = LIKELIHOODS.build("gaussian").double()
    likelihood.per_column(3)
    likelihood.double().train()
    x, missing = uniform(50, 3) * torch.tensor([1.0, 10.0, 100.0]), holes(50, 3)
    missing[:, 2] = True
    likelihood.nll_observed(torch.zeros(50, 1, 3).double(), x, ~missing)
    want = [x[~missing[:, i], i].square().mean().sqrt() for i in range(2)]
    assert torch.allclose(likelihood.scale, torch.stack([*want, torch.ones(()).double()]))
    assert likelihood.weight[2] == 0  # a column of which nothing was there has counted nothing
    learned = LIKELIHOODS.build("laplace(scale='learned')")
    learned.per_column(3)
    assert learned.log_scale.shape == (3,) and LIKELIHOODS.build("mse").per_column(3) is None


# ------------------------------------------------------------------------------------------------------------ the maths


def test_masked_sums_and_means():
    x, missing = uniform(5, 4, 3), holes(5, 4, 3)
    y = x.masked_fill(missing, math.nan)
    assert torch.allclose(fn.masked_sum(y, ~missing), y.nansum((1, 2)))
    assert torch.allclose(fn.masked_mean(y, ~missing), y.nanmean((1, 2)))
    steps = ~missing[:, :, 0]
    want = torch.stack([x[i, steps[i]].mean(0) if steps[i].any() else torch.zeros(3) for i in range(5)])
    assert torch.allclose(fn.masked_time_mean(x.masked_fill(~steps[:, :, None], math.nan), steps), want)
    nothing = torch.zeros_like(missing)
    assert fn.masked_mean(y, nothing).eq(0).all() and fn.masked_time_mean(y, nothing[:, :, 0]).eq(0).all()


def test_merged_moments_are_those_of_both_sets():
    """Chan, Golub & LeVeque 1983, eq. 2.1; a weighted mean of the two variances alone misses the distance of the means."""
    a, b = uniform(40, 2), 3 + 2 * uniform(7, 2, seed=1)

    def moments(x):
        return torch.full((2,), float(len(x))).double(), x.mean(0), x.var(0, unbiased=False)

    for got, want in zip(fn.merge_moments(*moments(a), *moments(b)), moments(torch.cat([a, b]))):
        assert torch.allclose(got, want)
    nothing = (torch.zeros(2).double(), torch.zeros(2).double(), torch.zeros(2).double())
    assert all(torch.equal(g, w) for g, w in zip(fn.merge_moments(*moments(a), *nothing), moments(a)))


def test_cross_entropy_of_columns_of_different_sizes():
    sizes, classes = [2, 5, 3], torch.stack([torch.arange(8) % n for n in (2, 5, 3)], 1)
    logits = torch.full((8, 3, 5), -math.inf, dtype=torch.float64)
    for g, n in enumerate(sizes):
        logits[:, g, :n] = 4 * uniform(8, n, seed=g)
    logits.requires_grad_()
    got = fn.column_cross_entropy(logits, classes)
    for g, n in enumerate(sizes):
        assert torch.allclose(got[:, g], F.cross_entropy(logits[:, g, :n], classes[:, g], reduction="none"))
    got.sum().backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad[:, 0, 2:] == 0).all()


# --------------------------------------------------------------------------------------------- what looks at such data


@pytest.mark.parametrize("name", ["lstm_ae", "tabular_ae"])
def test_evaluation_counts_what_is_there(name):
    x = uniform(40, 6, 2).float() if name == "lstm_ae" else uniform(40, 6).float()
    missing = holes(*x.shape)
    missing[3] = True  # a sample with nothing in it
    x = x.masked_fill(missing, math.nan)
    model = aezoo.create_model(name, input_shape=x.shape[1:], latent_dim=3).eval()
    result = aezoo.evaluate(model, x, batch_size=16, device="cpu")
    with torch.no_grad():
        error = (model.reconstruct(x) - x).square().flatten(1)
    each = error.nanmean(1)[~missing.flatten(1).all(1)]
    assert result["mse"]["mean"] == pytest.approx(float(each.mean()), rel=1e-5)
    assert result["mse"]["stderr"] == pytest.approx(float(each.std() / len(each) ** 0.5), rel=1e-4)
    summed = error.nansum(1)[~missing.flatten(1).all(1)]
    assert result["squared_error"]["mean"] == pytest.approx(float(summed.mean()), rel=1e-5)
    assert result["psnr"]["mean"] == pytest.approx(float((-10 * each.log10()).mean()), rel=1e-5)
    assert result["missing"]["mean"] == pytest.approx(float(missing.float().mean()), rel=1e-5)
    assert math.isfinite(result["loss"]["mean"])


@pytest.mark.pictures
@pytest.mark.parametrize("shape", [(12, 2), (9, 10), (1, 8, 8)])
def test_pictures_of_what_is_missing(shape, tmp_path):
    from aezoo.data import load_data
    from aezoo.pictures import draw_run, to_unit

    x = uniform(12, *shape).float().masked_fill(holes(12, *shape), math.nan)
    model = aezoo.create_model("tcn_ae", input_shape=shape, latent_dim=3, backbone="tcn(width=8, layers=1)")
    made, left_out = draw_run(tmp_path, model, load_data(x), [], None, 8)
    assert "reconstructions.png" in [p.name for p in made] and not left_out
    assert torch.isfinite(to_unit(x)).all() and torch.isfinite(to_unit(x * 5, x * 5)).all()
    assert torch.isfinite(to_unit(x * math.nan)).all()


def test_models_without_a_use_for_missing_entries_refuse_them():
    x = uniform(20, 5).float()
    x[3, 2] = math.nan
    with pytest.raises(ValueError, match="NaN in 1 of 20"):
        aezoo.fit(aezoo.create_model("ae", input_shape=(5,), latent_dim=2), x, epochs=1, progress=False, device="cpu")
