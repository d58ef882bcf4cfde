"""Priors and `fit_prior`: densities against scikit-learn, brute force and numerical integrals; saving, training on, errors."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import distributions as D

import aezoo
from aezoo.cli import main
from aezoo.prior_fitting import codes
from aezoo.priors import KDE, PRIORS, Flow, GaussianMixture, Normal, StandardNormal, Vamp

KINDS = ["normal", "gmm(components=3)", "gmm(components=3, covariance='diag')", "kde(codes=50)", "standard_normal",
         "flow(layers=2, width=8, steps=5)", "flow(flow='maf', layers=2, width=8, steps=5)"]  # fmt: skip
SMALL = {"backbone": "mlp(widths=(8,))"}


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_moons(n, seed=0):
    """Codes on two arcs, nothing like one Gaussian, with scales and means of their own: (n, 2) float64."""
    g = torch.Generator().manual_seed(seed)
    t = math.pi * torch.rand(n, generator=g, dtype=torch.float64)
    side = (torch.rand(n, generator=g) < 0.5).double() * 2 - 1
    z = torch.stack([t.cos() * side + 0.5 * side, t.sin() * side], 1) + 0.1 * rand(n, 2, seed=seed + 1)
    return z * torch.tensor([3.0, 0.2]) + torch.tensor([5.0, -1.0])


def data(n=120, seed=0):
    return torch.rand(n, 6, generator=torch.Generator().manual_seed(seed))


def model(name="ae", **more):
    torch.manual_seed(0)
    return aezoo.create_model(name, input_shape=(6,), latent_dim=3, **{**SMALL, **more})


def rough(prior):
    """The same flow prior far from the identity."""
    with torch.no_grad():
        for i, p in enumerate(prior.flow.parameters()):
            p.copy_(0.4 * rand(*p.shape, seed=i))
    return prior


# ---------------------------------------------------------------------------------------------------------- densities


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_gmm_is_scikit_learns(covariance):
    from sklearn.mixture import GaussianMixture as Sklearn

    z = two_moons(400)
    prior = GaussianMixture.fitted_to(z, 0, components=4, covariance=covariance)
    there = Sklearn(4, covariance_type=covariance)
    there.weights_, there.means_ = prior.weights.numpy(), prior.means.numpy()
    covariances = prior.scales @ prior.scales.mT if covariance == "full" else prior.scales.square()
    precisions = torch.linalg.inv(prior.scales).mT if covariance == "full" else 1 / prior.scales
    there.covariances_, there.precisions_cholesky_ = covariances.numpy(), precisions.numpy()
    assert np.allclose(prior.log_prob(z).numpy(), there.score_samples(z.numpy()), atol=1e-9)
    # and the fit itself: no worse than scikit-learn's own on the raw codes, up to another local optimum
    own = Sklearn(4, covariance_type=covariance, random_state=0).fit(z.numpy()).score_samples(z.numpy()).mean()
    assert prior.log_prob(z).mean() > own - 0.1


def test_gmm_is_the_mixture_of_torch():
    prior = GaussianMixture.fitted_to(two_moons(300), 0, components=3)
    parts = D.MultivariateNormal(prior.means, scale_tril=prior.scales)
    mixture = D.MixtureSameFamily(D.Categorical(prior.weights), parts)
    z = two_moons(50, seed=9)
    assert torch.allclose(prior.log_prob(z), mixture.log_prob(z), atol=1e-10)


@pytest.mark.parametrize("bandwidth", ["scott", "silverman", 0.3])
def test_kde_is_scikit_learns(bandwidth):
    from sklearn.neighbors import KernelDensity

    z, away = two_moons(200), two_moons(30, seed=5)
    prior = KDE.fitted_to(z, 0, bandwidth=bandwidth)
    mean, std = z.mean(0), z.std(0, correction=0)
    there = KernelDensity(bandwidth=bandwidth).fit(((z - mean) / std).numpy())
    expected = there.score_samples(((away - mean) / std).numpy()) - std.log().sum().item()
    assert np.allclose(prior.log_prob(away).numpy(), expected, atol=1e-8)
    assert prior.config["codes"] == len(prior.points) == 200


def test_normal_has_the_codes_moments():
    z = two_moons(500)
    prior = Normal.fitted_to(z, 0)
    expected = D.MultivariateNormal(z.mean(0), covariance_matrix=torch.cov(z.T, correction=0))
    assert torch.allclose(prior.log_prob(z), expected.log_prob(z), atol=1e-4)
    diag = Normal.fitted_to(z, 0, covariance="diag")
    assert torch.allclose(diag.log_prob(z), D.Normal(z.mean(0), z.std(0, correction=0)).log_prob(z).sum(1), atol=1e-4)


def test_standard_normal_is_what_it_was():
    z = rand(5, 2, 3)
    prior = StandardNormal()
    assert torch.allclose(prior.log_prob(z), D.Normal(0.0, 1.0).log_prob(z).sum((1, 2)))
    like, g = torch.zeros(1), torch.Generator()
    drawn = prior.sample(4, (2, 3), like, g.manual_seed(1))
    assert torch.equal(drawn, torch.randn((4, 2, 3), generator=g.manual_seed(1))) and not prior.state_dict()


def test_vamp_is_the_mixture_of_the_posteriors():
    """arXiv:1705.07120, eq. 9: 1/C sum_c q(z|u_c), by brute force over the samples that the seed picks."""
    m, x = model("vae").double(), data().double()
    aezoo.fit_prior(m, x, "vamp", components=7, seed=3, device="cpu")
    mu, logvar = m.posterior(m.hidden(x))
    picked = torch.cdist(m.prior.means, mu).argmin(1)
    assert len(picked.unique()) == 7
    z = rand(10, 3)
    parts = D.Normal(mu[picked], (0.5 * logvar[picked]).exp()).log_prob(z[:, None]).sum(2)
    assert torch.allclose(m.prior.log_prob(z), torch.logsumexp(parts, 1) - math.log(7), atol=1e-9)
    other = aezoo.fit_prior(copy.deepcopy(m), x, "vamp", components=7, seed=4, device="cpu")
    assert not torch.equal(other.prior.means, m.prior.means)


def every_prior(dim):
    z = two_moons(150)[:, :dim]
    z = z / z.std(0)
    yield GaussianMixture.fitted_to(z, 0, components=3)
    yield GaussianMixture.fitted_to(z, 0, components=3, covariance="diag")
    yield Normal.fitted_to(z, 0)
    yield KDE.fitted_to(z, 0)
    yield Vamp.fitted_to(z, 0, logvar=torch.zeros_like(z) - 1, components=5)
    for flow in ("realnvp", "maf"):
        prior = Flow(dim, flow=flow, layers=3, width=8).double()
        prior.fit(z, 0)
        yield rough(prior).settled()


@pytest.mark.parametrize("dim", [1, 2])
def test_densities_integrate_to_one(dim):
    """A wrong Jacobian, bandwidth or normalising constant shows here."""
    for prior in every_prior(dim):
        drawn = prior.sample(4000, (dim,), torch.zeros(1, dtype=torch.float64))
        low, high = drawn.min(0).values - 4, drawn.max(0).values + 4
        axes = [
            torch.linspace(float(a), float(b), 401 if dim == 2 else 20001, dtype=torch.float64)
            for a, b in zip(low, high)
        ]
        density = prior.log_prob(torch.cartesian_prod(*axes).view(-1, dim)).exp().view([len(a) for a in axes])
        for a in reversed(axes):
            density = torch.trapezoid(density, a)
        assert density.item() == pytest.approx(1.0, abs=0.01), prior.name


def test_samples_have_the_density():
    """The mean of log p over draws and that over the density itself agree, and so do the first two moments, axis by axis."""
    for prior in every_prior(2):
        torch.manual_seed(0)
        drawn = prior.sample(20_000, (2,), torch.zeros(1, dtype=torch.float64))
        low, high = drawn.min(0).values - 3, drawn.max(0).values + 3
        axes = [torch.linspace(float(a), float(b), 301, dtype=torch.float64) for a, b in zip(low, high)]
        grid = torch.cartesian_prod(*axes)
        log_p = prior.log_prob(grid)
        weight = log_p.exp() / log_p.exp().sum()
        for f in (
            lambda z: z,
            lambda z: z.square(),
            lambda z: z.prod(1, keepdim=True),
            lambda z, p=prior: p.log_prob(z)[:, None],
        ):
            expected, found = (weight[:, None] * f(grid)).sum(0), f(drawn)
            error = found.std(0) / math.sqrt(len(found))
            assert ((found.mean(0) - expected).abs() < 5 * error + 0.01).all(), prior.name


def test_flow_beats_the_normal_on_a_bimodal_code():
    """On codes that were held out; and gmm does, too."""
    torch.manual_seed(0)
    m = aezoo.create_model("linear_ae", input_shape=(2,), latent_dim=2)
    x, held = two_moons(1500).float(), two_moons(500, seed=7).float()

    def score(kind, **options):
        aezoo.fit_prior(m, x, kind, device="cpu", **options)
        with torch.no_grad():
            return float(m.prior.log_prob(m.encode(held)).mean())

    normal = score("normal")
    assert score("flow", steps=250, lr=5e-3, layers=4, width=32) > normal + 0.5
    assert score("gmm") > normal + 0.5 and score("kde") > normal + 0.2


def test_spatial_codes_are_flattened():
    for prior in every_prior(2):
        z = two_moons(6)
        assert torch.equal(prior.log_prob(z.view(6, 1, 2, 1)), prior.log_prob(z))
        assert prior.sample(3, (1, 2, 1), z).shape == (3, 1, 2, 1)
        with pytest.raises(ValueError, match="do not fit a prior over 2"):
            prior.log_prob(torch.zeros(4, 3))
        with pytest.raises(ValueError, match="do not fit a prior over 2"):
            prior.sample(4, (3,), z)


def test_log_prob_in_parts_is_the_same(monkeypatch):
    z = two_moons(37)
    for prior in every_prior(2):
        whole = prior.log_prob(z)
        monkeypatch.setattr("aezoo.priors.CHUNK", 20)
        assert torch.allclose(prior.log_prob(z), whole, atol=1e-12)
        monkeypatch.undo()


def test_a_latent_that_never_moves():
    z = torch.cat([two_moons(100), torch.full((100, 1), 2.5, dtype=torch.float64)], 1)
    for prior in (GaussianMixture.fitted_to(z, 0, components=2), KDE.fitted_to(z, 0), Normal.fitted_to(z, 0)):
        assert prior.log_prob(z).isfinite().all()
        assert (prior.sample(50, (3,), z)[:, 2] - 2.5).abs().max() < 1e-3
    with pytest.raises(ValueError, match="the same"):
        KDE.fitted_to(torch.ones(5, 2, dtype=torch.float64), 0)


# ---------------------------------------------------------------------------------------------------------- fit_prior


@pytest.mark.parametrize("kind", [*KINDS, "vamp(components=9)"])
@pytest.mark.parametrize("name", ["ae", "vae"])
def test_every_kind(name, kind, tmp_path):
    m, x = model(name), data()
    if kind.startswith("vamp") and name == "ae":
        with pytest.raises(ValueError, match="Gaussian posteriors"):
            aezoo.fit_prior(m, x, kind, device="cpu")
        return
    kind, options = (kind.replace(", steps=5", ""), {"steps": 5}) if "steps" in kind else (kind, {})
    before, weights = torch.get_rng_state(), copy.deepcopy(m.state_dict())
    m.train()
    assert aezoo.fit_prior(m, x, kind, device="cpu", seed=1, **options) is m and m.training
    assert torch.equal(before, torch.get_rng_state()), "the global RNG moved"
    assert all(torch.equal(m.state_dict()[k], v) for k, v in weights.items()), "the model moved"
    assert not list(m.prior.parameters()) and m.prior.fitted
    assert m.num_parameters == model(name).num_parameters

    again = aezoo.fit_prior(model(name), x, kind, device="cpu", seed=1, **options)
    z = m.encode(x[:9]).detach()
    assert torch.equal(again.prior.log_prob(z), m.prior.log_prob(z)), "not a function of the seed"

    for saved in (m, copy.deepcopy(m).to(torch.float64)):
        back = aezoo.from_pretrained(saved.save_pretrained(tmp_path / str(next(saved.parameters()).dtype)))
        dtype = next(saved.parameters()).dtype
        first, second = (s.sample(5, generator=torch.Generator().manual_seed(2)) for s in (saved, back))
        assert first.dtype == dtype and torch.equal(first, second) and first.shape == (5, 6)
        assert torch.equal(back.prior.log_prob(z.to(dtype)), saved.prior.log_prob(z.to(dtype)))
        assert back.prior.log_prob(z.to(dtype)).dtype == dtype and type(back.prior) is type(saved.prior)
        assert back.saved_config() == saved.saved_config()
    assert not torch.equal(m.sample(3), m.sample(3))


def test_codes_are_drawn_from_the_posterior():
    """The best prior for a VAE is the mean of its posteriors (arXiv:1705.07120, sec. 2), not the density of their means."""
    m, x = model("vae").double(), data(400).double()
    mu, logvar = m.posterior(m.hidden(x))
    aezoo.fit_prior(m, x, "normal", device="cpu")
    found = m.prior.scales[0].square().sum(1)
    assert torch.allclose(found, mu.var(0) + logvar.exp().mean(0), rtol=0.3)
    assert (found > 2 * mu.var(0)).all()
    a = model("ae").double()
    assert torch.equal(codes(a, x, "cpu"), a.encode(x).detach())


def test_log_prob_of_the_model_uses_it():
    """A prior that fits the posteriors is a better one: the importance-sampled log-likelihood rises."""
    m, x = model("vae"), data(300)
    with torch.no_grad():
        m.encoder[-1].layer.bias.copy_(torch.tensor([3.0, -3.0, 3.0, -2.0, -2.0, -2.0]))  # far from N(0, I)
    m.eval()
    before = m.log_prob(x[:20], 300).mean()
    aezoo.fit_prior(m, x, "gmm(components=2)", device="cpu")
    assert m.log_prob(x[:20], 300).mean() > before + 2


def test_a_model_without_a_fitted_prior_is_saved_as_before(tmp_path):
    for name in ("ae", "vae"):
        m = model(name)
        assert "prior" not in json.loads((m.save_pretrained(tmp_path / name) / "config.json").read_text())
    m = model("ae")
    m.prior = StandardNormal()  # by hand, where the constructor makes none
    assert type(aezoo.from_pretrained(m.save_pretrained(tmp_path / "hand")).prior) is StandardNormal
    m.prior = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="registered name"):
        m.save_pretrained(tmp_path / "no")


@pytest.mark.parametrize("kind", ["gmm(components=2)", "flow(layers=2, width=8)"])
def test_training_on_leaves_the_prior_as_it_is(kind, tmp_path):
    options = {"steps": 5} if kind.startswith("flow") else {}
    m, x = aezoo.fit_prior(model("vae"), data(), kind, device="cpu", **options), data()
    kept = {k: v.clone() for k, v in m.prior.state_dict().items()}
    more = {
        "batch_size": 16,
        "progress": False,
        "device": "cpu",
        "ema": 0.9,
        "weight_decay": 0.1,
        "l1": 1e-3,
        "val": 0.2,
    }
    before = m.encoder[0].layer.weight.clone()
    aezoo.fit(m, x, steps=4, out=tmp_path / "a", **more)
    assert not torch.equal(m.encoder[0].layer.weight, before)
    aezoo.fit(m, x, steps=8, out=tmp_path / "a", resume=True, **more)
    assert all(torch.equal(v, kept[k]) for k, v in m.prior.state_dict().items())
    back = aezoo.from_pretrained(tmp_path / "a")
    assert all(torch.equal(v, kept[k]) for k, v in back.prior.state_dict().items())


def test_a_run_goes_on_after_its_model_was_given_a_prior(tmp_path):
    more = {"batch_size": 16, "progress": False, "device": "cpu", "out": tmp_path / "a", "val": 0.2}
    m, x = model("vae"), data()
    aezoo.fit(m, x, steps=4, **more)
    aezoo.fit_prior(m, x, "gmm(components=2)", device="cpu")
    kept = m.prior.means.clone()
    aezoo.fit(m, x, steps=8, resume=True, **more)
    assert torch.equal(m.prior.means, kept)
    assert torch.equal(aezoo.from_pretrained(tmp_path / "a").prior.means, kept)


def test_options_and_forms_of_a_kind():
    x = data()
    by_dict = aezoo.fit_prior(model(), x, {"name": "gmm", "components": 4}, device="cpu").prior
    by_text = aezoo.fit_prior(model(), x, "gmm(components=4)", device="cpu").prior
    by_option = aezoo.fit_prior(model(), x, "gmm", components=4, device="cpu").prior
    assert torch.equal(by_dict.means, by_text.means) and torch.equal(by_dict.means, by_option.means)
    assert aezoo.fit_prior(model(), x, device="cpu").prior.components == 10
    epochs = aezoo.fit_prior(model(), x, "flow", epochs=1, layers=1, device="cpu").prior
    assert isinstance(epochs, Flow)


def test_data_of_other_kinds():
    x = data()
    labelled = torch.utils.data.TensorDataset(x, torch.zeros(len(x)))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=32)
    plain = aezoo.fit_prior(model(), x, "normal", device="cpu").prior.means
    for other in (x.numpy(), labelled, loader):
        assert torch.allclose(aezoo.fit_prior(model(), other, "normal", device="cpu").prior.means, plain, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- errors


def test_errors():
    x = data(20)
    for error, match, kind, options in [
        (ValueError, r"'gmn'.*Did you mean 'gmm'", "gmn", {}),
        (ValueError, "prior=5", 5, {}),
        (ValueError, "components=30.*20", "gmm", {"components": 30}),
        (ValueError, "components=0", "gmm", {"components": 0}),
        (ValueError, "full, diag", "gmm", {"covariance": "ful"}),
        (TypeError, "no option 'component'.*Did you mean 'components'", "gmm", {"component": 3}),
        (TypeError, "no option 'step'.*Did you mean 'steps'", "flow", {"step": 3}),
        (TypeError, "no option 'dim'", "gmm", {"dim": 3}),
        (TypeError, "no option 'components'", "standard_normal", {"components": 3}),
        (ValueError, "realnvp", "flow", {"flow": "real"}),
        (ValueError, "bandwidth", "kde", {"bandwidth": 0}),
        (ValueError, "scott", "kde", {"bandwidth": "scot"}),
        (ValueError, "codes=0", "kde", {"codes": 0}),
        (ValueError, "seed", "gmm", {"seed": -1}),
    ]:
        m = model()
        with pytest.raises(error, match=match):
            aezoo.fit_prior(m, x, kind, device="cpu", **options)
        assert m.prior is None, "a failure left something behind"
    with pytest.raises(TypeError, match="BaseAE"):
        aezoo.fit_prior("ae", x)
    with pytest.raises(ValueError, match="components=100"):
        aezoo.fit_prior(model("vae"), x, "vamp", device="cpu")
    with pytest.raises(ValueError, match="shape"):
        aezoo.fit_prior(model(), torch.rand(20, 5), device="cpu")
    with pytest.raises(ValueError, match="1"):
        aezoo.fit_prior(model(), x[:1], "normal", device="cpu")
    broken = model()
    with torch.no_grad():
        broken.encoder[-1].layer.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        aezoo.fit_prior(broken, x, device="cpu")


def test_vamp_needs_a_posterior_that_is_gaussian():
    """A bent posterior has `posterior` (of its base), but q(z|x) is not that Gaussian."""
    m = model("iaf_vae")
    with torch.no_grad():
        for p in m.flow.parameters():
            p.copy_(0.5 * torch.randn_like(p))
    with pytest.raises(ValueError, match="iaf_vae does not have"):
        aezoo.fit_prior(m, data(), "vamp(components=5)", device="cpu")
    assert aezoo.fit_prior(m, data(), "gmm(components=2)", device="cpu").sample(2).shape == (2, 6)


def test_discrete_codes_get_no_density():
    class Discrete(aezoo.models.AE):
        """A code of indices."""

        index_prior = True

    with pytest.raises(ValueError, match="discrete codes"):
        aezoo.fit_prior(Discrete((6,), 3), data(), device="cpu")


def test_a_damaged_prior_is_told(tmp_path):
    m = aezoo.fit_prior(model(), data(), "gmm(components=3)", device="cpu")
    folder = m.save_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for wrong, match in [
        ({"name": "gnn"}, "gmm"), ({"name": "gmm"}, "dim"), (5, "prior"), ({"name": "gmm", "dim": 3, "components": 4}, "shape"),
        (None, "not in the model"),
    ]:  # fmt: skip
        (folder / "config.json").write_text(json.dumps({**config, "prior": wrong}))
        with pytest.raises(ValueError, match=match):
            aezoo.from_pretrained(folder)


def test_every_prior_is_registered_with_a_docstring():
    assert {"normal", "gmm", "kde", "flow", "vamp", "standard_normal"} <= set(PRIORS)
    assert all(PRIORS[name].__doc__ for name in PRIORS) and aezoo.priors.StandardNormal is StandardNormal


# --------------------------------------------------------------------------------------------------------- command line


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["train", "--model", "ae", "--data", "digits", "--data.limit", "150", "--model.backbone", "mlp(widths=(16,))",
          "--model.latent_dim", "3", "--train.epochs", "1", "--train.progress", "false", "--out", "run"])  # fmt: skip
    main(["fit-prior", "run", "--kind", "gmm(components=3)"])
    out = capsys.readouterr().out
    assert "gmm" in out and "held out" in out and "aezoo sample run" in out
    m = aezoo.from_pretrained("run")
    assert m.prior.components == 3 and m.sample(2).shape[0] == 2
    main(["sample", "run", "-n", "4"])
    main(["fit-prior", "run", "--kind", "kde", "--data", "digits", "--data.limit", "50"])
    assert "all of digits" in capsys.readouterr().out
    assert aezoo.from_pretrained("run").prior.config["codes"] == 50
    for wrong, match in (
        ("gmmm", "Did you mean 'gmm'"),
        ("gmm(components=500)", "components=500"),
        ("vamp", "posterior"),
    ):
        with pytest.raises(SystemExit):
            main(["fit-prior", "run", "--kind", wrong])
        assert match in capsys.readouterr().err
    assert aezoo.from_pretrained("run").prior.name == "kde"
    main(["train", "--resume", "run", "--train.epochs", "2"])  # goes on without it: its codes have moved
    assert aezoo.from_pretrained("run").prior is None
