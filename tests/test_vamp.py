"""Mixture priors: VampPrior and a mixture of Gaussians."""

import copy

import pytest
import torch

import aezoo
from aezoo import functional as fn


def model_of(**more):
    torch.manual_seed(0)
    more = {"backbone": "mlp(widths=(16,))", "likelihood": "bernoulli", "components": 5, **more}
    return aezoo.create_model("vamp_vae", input_shape=(1, 6, 6), latent_dim=3, **more)


def brute_force(z, mu, logvar):
    """log 1/C sum_c N(z; mu_c, var_c) in float64."""
    d = torch.distributions
    normal = d.Normal(mu.double(), (0.5 * logvar.double()).exp())
    return torch.stack([normal.log_prob(row).sum(1).exp().mean().log() for row in z.double()])


def test_mixture_log_prob(monkeypatch):
    """arXiv:1705.07120: logsumexp - log C, brute force; a missing log C is 1.6 nats off."""
    z, mu, logvar = torch.randn(6, 3), torch.randn(5, 3), torch.randn(5, 3)
    value = fn.gaussian_mixture_log_prob(z, mu, logvar)
    assert torch.allclose(value.double(), brute_force(z, mu, logvar), atol=1e-5)
    monkeypatch.setattr("aezoo.functional.importance.HELD", 30)  # two rows at once
    assert torch.allclose(fn.gaussian_mixture_log_prob(z, mu, logvar), value)
    one = fn.gaussian_mixture_log_prob(z, mu[:1], logvar[:1])
    assert torch.allclose(one, -fn.gaussian_nll(z, mu[:1], 0.5 * logvar[:1]), atol=1e-5)
    narrow = fn.gaussian_mixture_log_prob(
        mu + 100, mu + 100, torch.full_like(mu, -10.0)
    )  # where |z|^2 - 2 z mu + |mu|^2 fails
    assert torch.allclose(narrow, brute_force(mu + 100, mu + 100, torch.full_like(mu, -10.0)).float(), atol=1e-3)


def test_gradients_of_the_mixture():
    inputs = [torch.randn(s, 2, dtype=torch.float64, requires_grad=True) for s in (3, 4, 4)]
    assert torch.autograd.gradcheck(fn.gaussian_mixture_log_prob, inputs)


@pytest.mark.parametrize("prior", ["vamp", "mog"])
def test_kl_is_taken_at_the_draw_against_the_mixture(prior):
    """arXiv:1705.07120: log q(z|x) - log p(z) at the decoded z; the closed form against N(0, I) would fail."""
    model, x = model_of(prior=prior), torch.rand(4, 1, 6, 6)
    out = model(x)
    mu, logvar = model.posterior(model.encoder(x))
    log_q = torch.distributions.Normal(mu, (0.5 * logvar).exp()).log_prob(out.z).sum(1)
    if prior == "vamp":
        components = model.posterior(model.encoder(torch.sigmoid(model.prior.raw)))
    else:
        components = model.prior.mu, 10 * torch.tanh(model.prior.logvar / 10)
    assert torch.allclose(out.terms["kl"], (log_q.double() - brute_force(out.z, *components)).float(), atol=1e-4)
    assert torch.allclose(out.metrics["elbo"], -(out.terms["recon"] + out.terms["kl"]))


def test_prior_gradient_reaches_pseudo_inputs_and_encoder():
    model = model_of()
    model.prior.log_prob(torch.randn(8, 3)).sum().backward()
    assert model.prior.raw.grad.abs().flatten(1).sum(1).min() > 0
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.parameters())


def test_samples_follow_the_density():
    model = model_of(prior="mog", components=3)
    with torch.no_grad():
        model.prior.mu.copy_(4 * torch.eye(3))
        model.prior.logvar.copy_(torch.tensor([[-1.0], [0.0], [1.0]]).expand(3, 3))
    z = model.prior.sample(40_000, (3,), torch.zeros(1))
    mu, logvar = model.prior.components()
    assert torch.allclose(z.mean(0), mu.mean(0), atol=0.05)
    second = (mu.square() + logvar.exp()).mean(0)
    assert torch.allclose(z.square().mean(0), second, rtol=0.05)
    a, b = (model.sample(2, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "likelihood, support", [("bernoulli", True), ("continuous_bernoulli", True), ("gaussian", False)]
)
def test_pseudo_inputs_keep_the_range_and_start_at_samples(likelihood, support):
    model, x = model_of(likelihood=likelihood), torch.rand(9, 1, 6, 6)
    with torch.no_grad():
        model.prior.raw.mul_(100)
    u = model.prior.pseudo_inputs().detach()
    assert (float(u.min()) >= 0 and float(u.max()) <= 1) == support
    model.prior.start_from(x)
    assert torch.allclose(model.prior.pseudo_inputs(), x[:5], atol=2e-3)
    mu, _ = model.posterior(model.encoder(x[:5]))
    assert torch.allclose(model.prior.components()[0], mu, atol=2e-2)
    for bad in (x[:4], torch.rand(9, 6, 6)):
        with pytest.raises(ValueError, match="pseudo-inputs"):
            model.prior.start_from(bad)


def test_pseudo_inputs_do_not_mix_with_the_batch():
    """Batch norms see the data alone, and no dropout mask is drawn for pseudo-inputs."""
    model, x = model_of(backbone="mlp(widths=(16,), norm='batch', dropout=0.5)"), torch.rand(8, 1, 6, 6)
    norm = model.encoder[0].norm
    model.loss(x)
    with torch.no_grad():
        seen = model.encoder[0].layer(x.flatten(1)).mean(0)
    assert torch.allclose(norm.running_mean, 0.1 * seen, atol=1e-6) and int(norm.num_batches_tracked) == 1
    state = torch.get_rng_state()
    assert torch.equal(model.prior.components()[0], model.prior.components()[0])
    assert torch.equal(state, torch.get_rng_state()) and model.training and norm.training


def test_copies_and_saved_models_have_a_prior_of_their_own(tmp_path):
    model, z = model_of(), torch.randn(4, 3)
    before = model.prior.log_prob(z)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.encoder[0].layer.weight.mul_(2)
    assert torch.equal(model.prior.log_prob(z), before) and not torch.equal(twin.prior.log_prob(z), before)
    again = aezoo.from_pretrained(twin.save_pretrained(tmp_path))
    assert torch.equal(again.prior.log_prob(z), twin.prior.log_prob(z))
    assert len([k for k in again.state_dict() if "raw" in k]) == 1


@pytest.mark.parametrize("prior", ["vamp", "mog"])
def test_learned_prior_beats_the_standard_normal(prior):
    """Data of two clusters and one latent: with a mixture of two the ELBO is higher than with N(0, I)."""
    g = torch.Generator().manual_seed(0)
    x = torch.where(torch.rand(400, 1, generator=g) < 0.5, -3.0, 3.0) + 0.1 * torch.randn(400, 4, generator=g)
    elbo = {}
    for name, more in (("vae", {}), ("vamp_vae", {"prior": prior, "components": 2})):
        torch.manual_seed(0)
        model = aezoo.create_model(
            name, input_shape=(4,), latent_dim=1, backbone="mlp(widths=(16,))", likelihood="gaussian(sigma=0.1)", **more
        )
        aezoo.fit(model, x, epochs=60, batch_size=100, lr=1e-2, progress=False, device="cpu")
        with torch.no_grad():
            elbo[name] = float(torch.stack([model.eval().loss(x).metrics["elbo"] for _ in range(10)]).mean())
    assert elbo["vamp_vae"] > elbo["vae"] + 0.3


@pytest.mark.parametrize("bad, words", [({"prior": "vam"}, "vamp"), ({"components": 0}, "components=0")])
def test_errors(bad, words):
    with pytest.raises(ValueError, match=words):
        model_of(**bad)
