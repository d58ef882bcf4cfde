"""What each variant does that the others do not."""

import math

import pytest
import torch
from conftest import make_images

import aezoo
from aezoo import functional as fn


def fit(model, data, **more):
    return aezoo.fit(model, data, **{"progress": False, "device": "cpu", **more})


# ------------------------------------------------------------------------------------------------------------- vanilla


def test_deep_ae_is_built_as_published():
    model = aezoo.create_model("deep_ae", input_shape=(784,))
    sizes = [b.layer.weight.shape for b in model.encoder] + [b.layer.weight.shape for b in model.decoder]
    assert [tuple(s) for s in sizes] == [
        (1000, 784),
        (500, 1000),
        (250, 500),
        (30, 250),
        (250, 30),
        (500, 250),
        (1000, 500),
        (784, 1000),
    ]


def pca_error(x, k):
    x = x.double().flatten(1)
    centred = x - x.mean(0)
    v = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -k:]
    return float((centred - centred @ v @ v.T).square().mean())


@pytest.mark.parametrize("name", ["linear_ae", "tied_linear_ae"])
def test_linear_autoencoders_reach_pca(name):
    x = torch.randn(600, 12) @ torch.randn(12, 12)
    model = aezoo.create_model(name, input_shape=(12,), latent_dim=4)
    fit(model, x, epochs=150, lr=2e-2, batch_size=100, schedule="cosine")
    error = float((model.reconstruct(x) - x).detach().square().mean())
    best = pca_error(x, 4)
    assert best * (1 - 1e-5) <= error <= best * 1.002


def test_tied_linear_ae_has_orthonormal_rows_at_its_optimum():
    x = torch.randn(600, 6) @ torch.diag(torch.tensor([3.0, 2.5, 2.0, 0.3, 0.2, 0.1]))
    model = aezoo.create_model("tied_linear_ae", input_shape=(6,), latent_dim=3)
    fit(model, x, epochs=300, lr=1e-2, batch_size=100, schedule="cosine")
    w = model.encoder[0].layer.weight.detach()
    assert torch.allclose(w @ w.T, torch.eye(3), atol=0.02)


# ---------------------------------------------------------------------------------------------------------- variational


def linear_gaussian(n, dims, latents, noise, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(dims, latents, generator=g)
    x = torch.randn(n, latents, generator=g) @ w.T + noise * torch.randn(n, dims, generator=g) + 0.5
    return x


def ppca_log_likelihood(x, k):
    """The maximum of probabilistic PCA's likelihood, nats per sample (Tipping & Bishop 1999, eq. 8 and 15)."""
    x = x.double()
    d = x.shape[1]
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    sigma2 = eigenvalues[k:].mean()
    log_det = eigenvalues[:k].log().sum() + (d - k) * sigma2.log()
    return float(-0.5 * (d * math.log(2 * math.pi) + log_det + d))


@pytest.mark.parametrize("sigma", ["learned", "optimal"])
def test_linear_vae_reaches_the_likelihood_of_probabilistic_pca(sigma):
    """Lucas et al. 2019 (arXiv:1911.02469): the ELBO of a linear VAE has no other maximum than pPCA's likelihood."""
    x = linear_gaussian(1000, 8, 2, 0.4)
    model = aezoo.create_model(
        "vae", input_shape=(8,), latent_dim=2, backbone="linear", likelihood=f"gaussian(sigma='{sigma}')"
    )
    fit(model, x, epochs=600, batch_size=500, lr=5e-2, schedule="cosine")
    best = ppca_log_likelihood(x, 2)
    torch.manual_seed(0)
    model.eval()
    with torch.no_grad():
        elbo = sum(float(model.loss(x).metrics["elbo"]) for _ in range(20)) / 20
    log_prob = float(model.log_prob(x[:500], 500).mean())
    assert abs(elbo - best) <= 0.005 * abs(best), (elbo, best)
    assert elbo <= best + 0.02
    assert abs(log_prob - ppca_log_prob(model, x[:500])) <= 0.005 * abs(best)
    assert float(model.likelihood.scale) == pytest.approx(0.4, rel=0.05)


def ppca_log_prob(model, x):
    """log N(x; b, W W^T + sigma^2 I) of a linear VAE's decoder, in closed form."""
    w, b = model.decoder[0].layer.weight.detach().double(), model.decoder[0].layer.bias.detach().double()
    s2 = float(model.likelihood.scale) ** 2
    normal = torch.distributions.MultivariateNormal(b, w @ w.T + s2 * torch.eye(len(b), dtype=torch.float64))
    return float(normal.log_prob(x.double()).mean())


def test_log_prob_rises_with_the_number_of_samples_and_is_chunked(monkeypatch):
    x = linear_gaussian(200, 6, 2, 0.3)
    model = aezoo.create_model("vae", input_shape=(6,), latent_dim=2, backbone="linear")
    fit(model, x, epochs=60, lr=1e-2, batch_size=50)
    few, many = (float(model.log_prob(x, n).mean()) for n in (1, 300))
    assert few < many and model.log_prob(x[:3], 7).dtype == torch.float64
    from aezoo.models import variational

    whole, calls = model.log_prob(x, 500), []
    monkeypatch.setattr(variational, "CHUNK", 60 * 6)  # 60 decoded samples of 6 values
    decoder = model.decoder.forward
    monkeypatch.setattr(model.decoder, "forward", lambda z: calls.append(len(z)) or decoder(z))
    chunked = model.log_prob(x, 500)
    assert sum(calls) == 200 * 500 and max(calls) <= 60 and len(chunked) == 200
    assert float(chunked.mean()) == pytest.approx(float(whole.mean()), abs=0.03)


def test_vae_terms_are_nats_per_sample_and_do_not_depend_on_the_batch_size():
    x, _ = make_images(32)
    model = aezoo.create_model("vae", input_shape=(1, 12, 12), likelihood="bernoulli").eval()
    torch.manual_seed(2)
    total = model.loss(x).total
    torch.manual_seed(2)
    out = model(x)
    assert torch.allclose(total, (out.terms["recon"] + out.terms["kl"]).mean())
    assert out.terms["kl"].shape == out.terms["recon"].shape == (32,)
    params = model.decoder(out.z)[:, 0]
    expected = -(x * torch.nn.functional.logsigmoid(params) + (1 - x) * torch.nn.functional.logsigmoid(-params)).sum(
        (1, 2, 3)
    )
    assert torch.allclose(out.terms["recon"], expected, rtol=1e-5)
    mu, logvar = model.posterior(model.encoder(x))
    assert torch.allclose(out.terms["kl"], 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1), atol=1e-5)
    assert torch.allclose(out.metrics["elbo"], -out.terms["recon"] - out.terms["kl"])


def test_encode_is_the_posterior_mean_and_samples_when_asked():
    model = aezoo.create_model("vae", input_shape=(5,), latent_dim=2)
    x = torch.randn(3, 5)
    mu, logvar = model.posterior(model.encoder(x))
    assert torch.equal(model.encode(x), mu)
    draws = torch.stack([model.encode(x, sample=True) for _ in range(4000)])
    assert torch.allclose(draws.mean(0), mu, atol=0.1) and torch.allclose(draws.std(0), (0.5 * logvar).exp(), rtol=0.1)


def test_sample_follows_its_generator_and_leaves_the_global_rng():
    model = aezoo.create_model("vae", input_shape=(5,))
    before = torch.get_rng_state()
    a, b = (model.sample(4, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(before, torch.get_rng_state())


def test_beta_weighs_the_kl_once():
    x = torch.rand(8, 5)
    for beta in (1.0, 4.0):
        loss = aezoo.create_model("beta_vae", input_shape=(5,), beta=beta).eval().loss(x)
        assert torch.allclose(loss.total, loss.terms["recon"] + beta * loss.terms["kl"])


# --------------------------------------------------------------------------------------------------------------- sparse


def test_l1_sparsity_is_the_sum_over_latents():
    model = aezoo.create_model("sparse_ae", input_shape=(6,), latent_dim=9, weight=0.5)
    x = torch.rand(4, 6)
    out, loss = model(x), model.loss(x)
    assert torch.allclose(out.terms["sparsity"], out.z.abs().sum(1)) and (out.z >= 0).all()
    assert torch.allclose(loss.total, loss.terms["recon"] + 0.5 * loss.terms["sparsity"])


def test_kl_sparsity_has_the_running_value_and_the_batch_gradient():
    model = aezoo.create_model("sparse_ae", input_shape=(6,), latent_dim=5, penalty="kl", rho=0.1)
    first, second = torch.rand(7, 6), torch.rand(7, 6)
    model(first)
    h = model.encoder(second).detach().requires_grad_()
    z, terms = model.bottleneck(h, True)
    rho1, rho2 = torch.sigmoid(model.encoder(first)).mean(0), torch.sigmoid(h).mean(0)
    rho = ((0.99 * 0.01) * rho1 + 0.01 * rho2) / (1 - 0.99**2)  # momentum 0.99, bias-corrected
    assert torch.allclose(terms["sparsity"], fn.bernoulli_kl(0.1, rho), atol=1e-5)
    terms["sparsity"].backward()
    slope = (-0.1 / rho + 0.9 / (1 - rho)).detach()
    assert torch.allclose(h.grad, (slope * (z * (1 - z)) / 7).detach(), atol=1e-5)
    model.eval()
    assert model(first).terms["sparsity"] == model(second).terms["sparsity"]


def test_the_penalties_make_codes_sparse():
    x, _ = make_images(256)
    for penalty in ("l1", "kl"):
        activity = []
        for weight in (0.0, 0.02):
            torch.manual_seed(0)
            model = aezoo.create_model("sparse_ae", input_shape=(1, 12, 12), latent_dim=32, penalty=penalty, weight=weight,
                                       backbone="mlp(widths=(64,))")  # fmt: skip
            fit(model, x, epochs=30, batch_size=32)
            activity.append(float(model.encode(x).detach().mean()))
        assert activity[1] < 0.5 * activity[0], penalty


def test_k_sparse_keeps_k_in_training_and_alpha_k_after():
    model = aezoo.create_model("k_sparse_ae", input_shape=(6,), latent_dim=20, k=4, alpha=2.0)
    x = torch.rand(9, 6)
    assert ((model(x).z != 0).sum(1) == 4).all()
    assert ((model.encode(x) != 0).sum(1) == 8).all() and model.training


def test_k_is_annealed_from_all_latents():
    model = aezoo.create_model("k_sparse_ae", input_shape=(6,), latent_dim=20, k=4, anneal=8)
    x, kept = torch.rand(3, 6), []
    for _ in range(10):
        kept.append(int((model(x).z != 0).sum(1).max()))
        model.after_step()
    assert kept == [20, 18, 16, 14, 12, 10, 8, 6, 4, 4]


# ------------------------------------------------------------------------------------------------------------ denoising


def test_denoising_reconstructs_the_clean_input():
    model = aezoo.create_model("denoising_ae", input_shape=(6,), corruption="masking(p=1.0)")
    x = torch.rand(4, 6)
    expected = (model.decode(model.encode(torch.zeros_like(x))) - x).square().mean(1)
    assert torch.allclose(model(x).terms["recon"], expected)


def test_a_target_of_its_own():
    model = aezoo.create_model("ae", input_shape=(6,))
    x, y = torch.rand(2, 4, 6)
    assert torch.allclose(model.loss(x, target=y).total, (model.reconstruct(x) - y).square().mean())


def test_noise_on_the_code_reaches_the_decoder_only():
    model = aezoo.create_model("ae", input_shape=(6,), latent_dim=3, corruption="masking(p=1.0, where='latent')")
    x = torch.rand(4, 6)
    out = model(x)
    assert torch.equal(out.z, model.encode(x)) and torch.equal(out.recon, model.decode(torch.zeros(4, 3)))


def test_several_corruptions_in_turn():
    both = ["masking(p=1.0)", {"name": "gaussian", "sigma": 0.5, "where": "latent"}]
    model = aezoo.create_model("ae", input_shape=(6,), corruption=both)
    assert [c.where for c in model.corruptions] == ["input", "latent"]
    assert torch.equal(model.corrupt(torch.rand(2, 6)), torch.zeros(2, 6))


def test_denoising_learns_to_remove_noise():
    x, _ = make_images(512, seed=1)
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    model = aezoo.create_model("denoising_ae", input_shape=(1, 12, 12), latent_dim=16, corruption="gaussian(sigma=0.3)")
    fit(model, x, epochs=40, batch_size=64)
    assert float((model.reconstruct(noisy) - x).square().mean()) < 0.25 * float((noisy - x).square().mean())


def test_stacked_pretraining_trains_one_layer_at_a_time():
    x, _ = make_images(64)
    model = aezoo.create_model(
        "stacked_denoising_ae", input_shape=(1, 12, 12), latent_dim=8, backbone="mlp(widths=(32, 16))"
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seen = {}

    def look(row):
        now = model.state_dict()
        seen.setdefault(row["stage"], {k.split(".layer")[0] for k in now if not torch.equal(now[k], before[k])})
        before.update({k: v.clone() for k, v in now.items()})

    result = fit(model, x, epochs=12, batch_size=16, callbacks=[look])
    assert seen == {
        "layer 1": {"encoder.0", "decoder.2"},
        "layer 2": {"encoder.1", "decoder.1"},
        "layer 3": {"encoder.2", "decoder.0"},
        "fine-tune": {f"{part}.{i}" for part in ("encoder", "decoder") for i in range(3)},
    }
    assert [s.share for s in model.stages()] == pytest.approx([1 / 6] * 3 + [1 / 2])
    assert result.history[-1]["stage"] == "fine-tune" and result.model.stage == 3


def test_stacked_layers_see_the_clean_code_of_the_layers_below_and_corrupt_their_own_input():
    model = aezoo.create_model(
        "stacked_denoising_ae", input_shape=(6,), latent_dim=3, backbone="mlp(widths=(5,))", corruption="masking(p=1.0)"
    )
    x = torch.rand(4, 6)
    model.stage = 1
    h = model.encoder[0](x)
    expected = (model.decoder[0](model.encoder[1](torch.zeros_like(h))) - h).square().sum(1).mean()
    assert torch.allclose(model.loss(x).total, expected)
    model.loss(x).total.backward()
    assert model.encoder[0].layer.weight.grad is None and model.encoder[1].layer.weight.grad is not None


@pytest.mark.parametrize("backbone", ["conv(widths=(4, 8))", "linear"])
def test_stacked_pretraining_with_other_backbones(backbone):
    x, _ = make_images(32)
    model = aezoo.create_model("stacked_denoising_ae", input_shape=(1, 12, 12), latent_dim=8, backbone=backbone)
    history = fit(model, x, epochs=8, batch_size=16).history
    assert history[-1]["stage"] == "fine-tune" and math.isfinite(history[-1]["loss"])


def test_no_pretraining_is_plain_training():
    x, _ = make_images(32)
    model = aezoo.create_model("stacked_denoising_ae", input_shape=(1, 12, 12), latent_dim=8, pretrain=0.0)
    assert {r["stage"] for r in fit(model, x, epochs=2).history} == {"fine-tune"}


@pytest.mark.parametrize(("penalty", "weight"), [("l1", 1e-4), ("kl", 1e-3)])
def test_sparse_ae_defaults_go_with_the_likelihoods_scale(penalty, weight):
    """144 dims: a mean over them beside the penalty, or a sum."""
    for likelihood, factor in (("mse", 1), ("bce", 1), ("gaussian", 144), ("bernoulli", 144)):
        model = aezoo.create_model("sparse_ae", input_shape=(1, 12, 12), penalty=penalty, likelihood=likelihood)
        assert model.term_weights() == pytest.approx({"sparsity": weight * factor})
    assert aezoo.create_model("sparse_ae", input_shape=(9,), weight=0.5, likelihood="gaussian").weight == 0.5
