"""The metrics of `aezoo.evaluate`, each against a closed form, brute force or another library."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_images
from sklearn.metrics import r2_score

import aezoo
from aezoo import functional as fn
from aezoo.cli import main
from aezoo.metrics import METRICS, latents
from aezoo.metrics.base import GROUPS
from aezoo.metrics.bounds import bound_of_groups, fewer
from aezoo.wholebatch import batch_mean, batch_sum, spread, whole_batch

IMAGES = Path(__file__).parent / "fixtures" / "images.npz"


def evaluate(model, data, metrics=None, **more):
    return aezoo.evaluate(model, data, metrics=metrics, device="cpu", progress=False, **more)


def linear_vae(sigma=0.5, wrong=0.1, dims=6, latents=2, straight=False):
    """A linear VAE in float64 whose posterior is the exact one, but for `wrong`; and a function that tells log p(x)."""
    torch.manual_seed(5)
    model = aezoo.create_model(
        "vae", input_shape=(dims,), latent_dim=latents, backbone="linear", likelihood=f"gaussian(sigma={sigma})"
    ).double()
    decoder, encoder = (
        model.decoder[0].layer,
        next(m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear)),
    )
    w, b, s2 = torch.randn(dims, latents).double(), torch.randn(dims).double(), sigma**2
    if straight:  # independent posteriors
        w = torch.linalg.qr(w).Q
    precision = torch.eye(latents).double() + w.T @ w / s2
    to_mean = torch.linalg.solve(precision, w.T / s2)
    with torch.no_grad():
        decoder.weight.copy_(w), decoder.bias.copy_(b)
        encoder.weight[:latents] = to_mean
        encoder.bias[:latents] = -to_mean @ b + wrong
        encoder.weight[latents:] = 0.0
        logvar = -precision.diagonal().log() + wrong  # the best factorised posterior, made wider
        encoder.bias[latents:] = 10 * torch.atanh(logvar / 10)
    law = torch.distributions.MultivariateNormal(b, w @ w.T + s2 * torch.eye(dims).double())
    return model, law


# ------------------------------------------------------------------------------------------------------ log-likelihood


def test_log_prob_of_a_linear_gaussian_vae_is_the_closed_form_and_above_the_elbo():
    model, law = linear_vae()
    x = law.sample((300,))
    found = evaluate(model, x, ["log_prob", "elbo"], log_prob=2000)
    exact = float(law.log_prob(x).mean())
    assert abs(found["log_prob"]["mean"] - exact) <= 0.005 * abs(exact)
    assert abs(found["log_prob"]["mean"] - exact) <= 5 * found["log_prob_noise"]["mean"] + 1e-3
    assert found["elbo"]["mean"] < exact and found["elbo"]["samples"] == found["log_prob"]["samples"] == 300
    assert found["log_prob"]["stderr"] == pytest.approx(float(law.log_prob(x).std()) / 300**0.5, rel=0.02)
    rising = [found[f"log_prob_{k}"]["mean"] for k in (1, 10, 100, 1000)] + [found["log_prob"]["mean"]]
    assert rising == sorted(rising) and rising[1] - rising[0] > 0.05, "no bound of few draws below that of many"
    assert 1 < found["log_prob_ess"]["mean"] < 2000


def test_the_elbo_is_below_the_closed_form_for_any_encoder():
    for wrong in (0.0, 0.3, 1.0):
        model, law = linear_vae(wrong=wrong)
        x = law.sample((2000,))
        found = evaluate(model, x, "elbo")["elbo"]
        gap = float(law.log_prob(x).mean()) - found["mean"]
        assert gap > 0 if wrong else gap > -0.05, (wrong, gap)


def test_with_the_exact_posterior_one_draw_is_enough():
    model, law = linear_vae(wrong=0.0, latents=1)  # one latent: the factorised posterior is the posterior
    x = law.sample((20,))
    found = evaluate(model, x, "log_prob", log_prob=1)
    assert found["log_prob"]["mean"] == pytest.approx(float(law.log_prob(x).mean()), rel=1e-6)
    many = evaluate(model, x, "log_prob", log_prob=50)
    assert many["log_prob_ess"]["mean"] == pytest.approx(50, rel=1e-6) and many["log_prob_noise"]["mean"] < 1e-5


def test_the_noise_is_that_over_seeds():
    model, law = linear_vae(wrong=0.4, straight=True)
    x = law.sample((30,))
    found = [evaluate(model, x, "log_prob", log_prob=400, seed=seed) for seed in range(25)]
    spread_of = np.std([f["log_prob"]["mean"] for f in found], ddof=1)
    assert np.mean([f["log_prob_noise"]["mean"] for f in found]) == pytest.approx(spread_of, rel=0.35)


def test_exactly_as_many_draws_as_asked_for_and_no_more_at_once_than_fit(monkeypatch):
    from aezoo.models import variational

    model, law = linear_vae()
    x, rows = law.sample((40,)), []
    decoder = model.decoder.forward
    monkeypatch.setattr(model.decoder, "forward", lambda z: rows.append(len(z)) or decoder(z))
    monkeypatch.setattr(variational, "CHUNK", 6 * 120)
    evaluate(model, x, "log_prob_noise", log_prob=500)
    counted = [n for n in rows if n != 2 and n != 1]
    assert sum(counted) == 40 * 500 and max(counted) <= 120


def test_bound_of_groups_is_brute_force():
    log_w = torch.randn(23, 3).double()
    wanted = torch.stack([log_w[i : i + 5].exp().mean(0).log() for i in range(0, 20, 5)]).mean(0)
    assert torch.allclose(bound_of_groups(log_w, 5), wanted)
    assert fewer(1) == [] and fewer(10) == [1] and fewer(5000) == [1, 10, 100, 1000]


def test_log_prob_without_a_number_is_of_5000_draws(monkeypatch):
    model, law = linear_vae()
    seen = []
    whole = model.log_weights
    monkeypatch.setattr(model, "log_weights", lambda x, h, s: seen.append(s) or whole(x, h, s))
    evaluate(model, law.sample((2,)), "log_prob")
    assert sum(seen) == 5000


def test_log_prob_of_a_model_that_defines_nothing_else():
    @aezoo.register("fixed_density")
    class Fixed(aezoo.BaseAE):
        def log_prob(self, x, n=5000):
            return x.flatten(1).sum(1) + n

    x = torch.rand(5, 3)
    found = evaluate(Fixed((3,)), x, "log_prob", log_prob=7)
    assert found["log_prob"]["mean"] == pytest.approx(float(x.sum(1).mean()) + 7) and len(found) == 2


# --------------------------------------------------------------------------------------------------------- bits per dim


def test_bits_per_dim():
    grey = (255 * make_images(30)[0]).round().to(torch.uint8)
    model = aezoo.create_model("vae", input_shape=(1, 12, 12), latent_dim=3)
    stored, scaled = (evaluate(model, x, ["elbo", "bits_per_dim"]) for x in (grey, grey.float() / 255))
    nats = -stored["elbo"]["mean"] / (144 * math.log(2))
    assert scaled["bits_per_dim"]["mean"] == pytest.approx(nats, rel=1e-6)
    assert stored["bits_per_dim"]["mean"] == pytest.approx(nats + 8, rel=1e-6)
    assert stored["bits_per_dim"]["stderr"] == pytest.approx(stored["elbo"]["stderr"] / (144 * math.log(2)), rel=1e-3)
    binary = aezoo.create_model("vae", input_shape=(1, 12, 12), latent_dim=3, likelihood="bernoulli")
    ink = aezoo.load_data(grey, binarize="threshold")
    found = evaluate(binary, ink, ["elbo", "bits_per_dim", "log_prob"], log_prob=20)
    assert found["bits_per_dim"]["mean"] == pytest.approx(-found["elbo"]["mean"] / (144 * math.log(2)), rel=1e-6)
    assert found["log_prob_bits_per_dim"]["mean"] == pytest.approx(-found["log_prob"]["mean"] / (144 * math.log(2)))
    with pytest.raises(ValueError, match="no density of grey values"):
        evaluate(binary, grey, "bits_per_dim")
    assert "bits_per_dim" not in evaluate(binary, grey)


def test_bits_of_a_density_that_is_uniform_over_the_levels():
    """A density of 1 on [0, 1] gives each of 256 levels 1/256: 8 bits."""
    model = aezoo.create_model("vae", input_shape=(5,), latent_dim=2, likelihood="continuous_bernoulli")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()  # logits 0: the uniform density; mu = logvar = 0: no KL
    x = torch.randint(0, 256, (40, 5)).to(torch.uint8)
    assert evaluate(model, x, "bits_per_dim")["bits_per_dim"]["mean"] == pytest.approx(8, abs=1e-5)


# ------------------------------------------------------------------------------------------------------- reconstruction


@pytest.mark.parametrize("i", range(4))
def test_ssim_and_psnr_are_those_of_scikit_image(i):
    with np.load(IMAGES) as f:
        x, y = (torch.from_numpy(f[f"{name}{i}"])[None] for name in "xy")
        likeness, ratio = float(f[f"ssim{i}"]), float(f[f"psnr{i}"])
    model = aezoo.create_model("ae", input_shape=x.shape[1:], latent_dim=2).double()
    model.reconstruct = lambda _: y.double() / 255
    found = evaluate(model, x, ["ssim", "psnr"])
    assert found["ssim"]["mean"] == pytest.approx(likeness, abs=1e-9)
    assert found["psnr"]["mean"] == pytest.approx(ratio, abs=1e-9)
    assert float(fn.ssim(x.float() / 255, y.float() / 255)) == pytest.approx(likeness, abs=1e-6)


@pytest.mark.parametrize(("size", "window"), [((12, 11), 11), ((10, 20), 9), ((8, 8), 7), ((3, 9), 3), ((4, 4), 3)])
def test_ssim_of_small_images_is_brute_force(size, window):
    """One window after the other."""
    x, y = torch.rand(2, 2, *size).double(), torch.rand(2, 2, *size).double()
    t = torch.arange(window).double() - window // 2
    weights = torch.exp(-0.5 * (t / 1.5) ** 2)
    weights = torch.outer(weights, weights) / weights.sum() ** 2
    wanted = []
    for a, b in zip(x, y):
        values = []
        for channel in range(2):
            for i in range(size[0] - window + 1):
                for j in range(size[1] - window + 1):
                    p, q = (image[channel, i : i + window, j : j + window] for image in (a, b))
                    m, n = (weights * p).sum(), (weights * q).sum()
                    v, w = (weights * (p - m) ** 2).sum(), (weights * (q - n) ** 2).sum()
                    c = (weights * (p - m) * (q - n)).sum()
                    values.append((2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m**2 + n**2 + 1e-4) * (v + w + 9e-4)))
        wanted.append(torch.stack(values).mean())
    assert fn.ssim_window(*size) == window
    assert torch.allclose(fn.ssim(x, y), torch.stack(wanted), atol=1e-10)
    assert torch.allclose(fn.ssim(x, x), torch.ones(2).double())


def test_ssim_needs_images():
    with pytest.raises(ValueError, match="at least 3 x 3"):
        fn.ssim(torch.rand(2, 1, 2, 9), torch.rand(2, 1, 2, 9))
    with pytest.raises(ValueError, match="needs images"):
        evaluate(aezoo.create_model("ae", input_shape=(9,)), torch.rand(4, 9), "ssim")
    with pytest.raises(ValueError, match=r"data in \[0, 1\], and this lies in \[0, 2\]"):
        evaluate(aezoo.create_model("ae", input_shape=(1, 5, 5)), torch.linspace(0, 2, 100).view(4, 1, 5, 5), "ssim")


def test_fvu_is_one_minus_r2():
    x = torch.randn(437, 5).double() + 1e4 * torch.rand(5).double()
    model = aezoo.create_model("topk_sae", input_shape=(5,), latent_dim=16, k=3).double()
    with torch.no_grad():
        model.decoder.bias.copy_(x.mean(0))
    found = evaluate(model, x)
    wanted = 1 - r2_score(x, model.reconstruct(x).detach(), multioutput="variance_weighted")
    assert found["fvu"]["mean"] == pytest.approx(wanted, rel=1e-9)
    error = (model.reconstruct(x) - x).square().sum(1).detach()
    size = (x - x.mean(0)).square().sum(1)
    linear = (error - wanted * size) / size.mean()  # the ratio's delta method
    assert found["fvu"]["stderr"] == pytest.approx(float(linear.std()) / 437**0.5, rel=0.4)


def test_fvu_of_pairs_is_that_of_the_target():
    x = torch.rand(50, 2, 6).double()
    model = aezoo.create_model("transcoder", input_shape=(2, 6), latent_dim=12, k=3, pairs=True).double()
    wanted = 1 - r2_score(x[:, 1], model.reconstruct(x)[:, 1].detach(), multioutput="variance_weighted")
    assert evaluate(model, x, "fvu")["fvu"]["mean"] == pytest.approx(wanted, rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------- codes


def test_a_uniform_codebook_has_its_size_as_perplexity():
    model = aezoo.create_model(
        "vq_vae", input_shape=(1, 8, 8), latent_dim=4, num_codes=24, backbone="conv(widths=(4, 4))"
    )
    x = torch.rand(60, 1, 8, 8)  # 60 samples of 2 x 2 codes: each code ten times
    turn = iter(range(10**6))
    model.indices = lambda x: torch.tensor([[next(turn) % 24 for _ in range(4)] for _ in x]).view(-1, 2, 2)
    found = evaluate(model, x, "codebook", batch_size=7)
    turn = iter(range(10**6))
    assert found["perplexity"]["mean"] != 24  # the first two samples were looked at before: four codes out of step
    model.indices = lambda x: (torch.arange(4 * len(x)).view(-1, 2, 2) + 4 * int(x[0, 0, 0, 0])) % 24
    places = torch.arange(60.0).view(-1, 1, 1, 1).expand(60, 1, 8, 8)  # each sample says where it stands
    found = evaluate(model, places, "codebook", batch_size=7)
    assert found["perplexity"]["mean"] == pytest.approx(24, rel=1e-9)
    assert found["usage"]["mean"] == 1 and found["usage"]["samples"] == 60
    model.indices = lambda x: torch.full((len(x), 2, 2), 5)
    found = evaluate(model, places, "codebook")
    assert found["perplexity"]["mean"] == pytest.approx(1) and found["usage"]["mean"] == 1 / 24


def test_perplexity_is_that_of_the_whole_set():
    x = torch.rand(600, 1, 8, 8)
    model = aezoo.create_model(
        "vq_vae", input_shape=(1, 8, 8), latent_dim=4, num_codes=64, backbone="conv(widths=(4, 4))"
    )
    with torch.no_grad():
        h = model.hidden(x)
        model.quantizer.codebook.copy_(h.movedim(1, -1).reshape(-1, 4)[torch.randperm(h.shape[0] * 4)[:64]])
    found = evaluate(model, x, batch_size=50)
    counts = torch.bincount(model.indices(x).flatten(), minlength=64).double()
    p = counts / counts.sum()
    assert found["perplexity"]["mean"] == pytest.approx(float(torch.exp(-torch.special.xlogy(p, p).sum())), rel=1e-9)
    assert found["usage"]["mean"] == pytest.approx(float((counts > 0).double().mean()))
    parts = [float(model(part).metrics["perplexity"]) for part in x.split(50)]
    assert np.mean(parts) < found["perplexity"]["mean"]
    assert 0 < found["perplexity"]["stderr"] < 3


@pytest.mark.parametrize("name", ["rvq_vae", "vq_vae_2"])
def test_several_codebooks(name):
    options = {"rvq_vae": {"levels": 2, "backbone": "conv(widths=(4,))"}, "vq_vae_2": {"backbone": "conv(widths=(4, 4))", "top_backbone": "conv(widths=(4,))"}}  # fmt: skip
    model = aezoo.create_model(name, input_shape=(1, 16, 16), latent_dim=4, num_codes=16, **options[name])
    found = evaluate(model, torch.rand(20, 1, 16, 16))
    books = model.by_codebook(model.indices(torch.rand(3, 1, 16, 16)))
    assert set(books) == ({"1", "2"} if name == "rvq_vae" else {"top", "bottom"})
    for kind in ("perplexity", "usage"):
        each = [found[f"{kind}_{book}"]["mean"] for book in books]
        assert found[kind]["mean"] == pytest.approx(np.mean(each))


def test_l0_and_dead_are_counted_over_the_set():
    x = torch.rand(70, 6)
    for model in (
        aezoo.create_model("topk_sae", input_shape=(6,), latent_dim=40, k=3),
        aezoo.create_model("sparse_ae", input_shape=(6,), latent_dim=40),
        aezoo.create_model("k_sparse_ae", input_shape=(6,), latent_dim=40, k=5),
        aezoo.create_model("wta_ae", input_shape=(6,), latent_dim=40),
    ):
        found, z = evaluate(model, x, ["l0", "dead"], batch_size=9), model.encode(x)
        assert found["l0"]["mean"] == pytest.approx(float((z != 0).sum(1).double().mean()))
        assert found["dead"]["mean"] == pytest.approx(float((z == 0).all(0).double().mean()))
    with pytest.raises(ValueError, match="'l0' does not fit: sparse_ae has no sparse code"):
        evaluate(aezoo.create_model("sparse_ae", input_shape=(6,), penalty="kl"), x, "l0")


# -------------------------------------------------------------------------------------------------------------- latents


def test_active_units():
    model, law = linear_vae(wrong=0.0, latents=3)
    encoder = next(m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear))
    x = law.sample((200,))
    with torch.no_grad():
        encoder.weight[1] = 0.0  # says nothing of x
        encoder.weight[2] *= (0.0101 / model.encode(x)[:, 2].var()).sqrt()  # just enough
    found = evaluate(model, x, "active_units")["active_units"]
    assert found["mean"] == 2 and found["values"] == pytest.approx(model.encode(x).var(0).tolist(), rel=1e-6, abs=1e-12)
    with torch.no_grad():
        encoder.weight[2] *= (0.0099 / 0.0101) ** 0.5
    assert evaluate(model, x, "active_units", batch_size=33)["active_units"]["mean"] == 1


def test_information_and_marginal_kl_are_brute_force_and_add_up_to_the_kl():
    model, law = linear_vae(wrong=0.2)
    x = law.sample((150,))
    found = evaluate(model, x, ["mutual_information", "kl"])
    total = found["mutual_information"]["mean"] + found["marginal_kl"]["mean"]
    assert total == pytest.approx(found["kl"]["mean"], abs=5 * found["marginal_kl"]["stderr"])
    assert 0 < found["mutual_information"]["mean"] <= math.log(150)
    assert f"{math.log(150):.4g}" in found["mutual_information"]["unit"]
    mu, logvar = model.posterior(model.hidden(x))
    q = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    z = q.sample((20,))  # (20, N, K)
    own = q.log_prob(z).sum(2)
    pairs = torch.distributions.Normal(mu, (0.5 * logvar).exp()).log_prob(z[:, :, None]).sum(3)
    wanted = float((own - pairs.exp().mean(2).log()).mean().detach())
    assert found["mutual_information"]["mean"] == pytest.approx(wanted, abs=4 * found["mutual_information"]["stderr"])


def test_information_at_its_ends():
    model, law = linear_vae(latents=1, wrong=0.0)
    encoder = next(m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear))
    x = law.sample((64,))
    with torch.no_grad():
        encoder.weight.zero_()
    assert evaluate(model, x, "mutual_information")["mutual_information"]["mean"] == pytest.approx(0, abs=1e-9)
    with torch.no_grad():  # posteriors that never meet
        encoder.weight[0, 0] = 1e6
        encoder.bias[1] = -20.0
    found = evaluate(model, x, "mutual_information")["mutual_information"]
    assert found["mean"] == pytest.approx(math.log(64), abs=1e-6) and found["samples"] == 64


def test_mmd_is_that_of_functional_and_its_error_that_over_seeds(monkeypatch):
    monkeypatch.setattr(latents, "AT_ONCE", 100)
    x, y = torch.randn(31, 3).double(), 0.5 + torch.randn(27, 3).double()
    for kernel, scales in (("imq", (0.1, 2.0)), ("rbf", (1.0,))):
        found = latents.mmd(x, y, kernel, scales)
        assert found.mean == pytest.approx(float(fn.mmd(x, y, kernel, scales)), rel=1e-10)
    draws = [
        latents.mmd(torch.randn(60, 2).double(), 1 + torch.randn(60, 2).double(), "imq", (1.0,)) for _ in range(60)
    ]
    assert np.mean([d.stderr for d in draws]) == pytest.approx(np.std([d.mean for d in draws]), rel=0.3)


def test_mmd_of_a_posterior_that_is_the_prior():
    model, _ = linear_vae(latents=2)
    encoder = next(m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        encoder.weight.zero_(), encoder.bias.zero_()
    x = torch.randn(300, 6).double()
    same = evaluate(model, x, "mmd", samples=400)
    assert all(abs(same[k]["mean"]) < 0.01 and same[k]["samples"] == 300 for k in ("mmd_imq", "mmd_rbf"))
    with torch.no_grad():
        encoder.bias[:2] = 1.0
    other = evaluate(model, x, "mmd*", samples=400)
    assert all(other[k]["mean"] > 0.05 and other[k]["mean"] > 10 * same[k]["mean"] for k in ("mmd_imq", "mmd_rbf"))


# --------------------------------------------------------------------------------------------- samples, and not batches

WHOLE_BATCH = {  # what the model itself defines over a batch
    "info_vae": {"mmd", "loss"},
    "joint_vae": {"loss"},  # the mean KL's distance to the capacity
}
MODELS = {
    "vae": {"likelihood": "bernoulli"},
    "iwae": {"k": 3, "corruption": "gaussian(sigma=0.3, where='latent', when='always')"},
    "svae": {},
    "joint_vae": {"categories": (3,)},
    "iaf_vae": {},
    "info_vae": {},
    "cvae": {"num_classes": 2},
    "vq_vae": {"num_codes": 16, "backbone": "conv(widths=(4, 4))"},
    "topk_sae": {"k": 3},
    "denoising_ae": {"corruption": "masking(p=0.3, when='always')"},
}


@pytest.mark.parametrize("name", MODELS)
def test_figures_do_not_depend_on_the_batch_size(name):
    x, y = make_images(600, 8)  # more than one block, and a short last one
    options = {"backbone": "mlp(widths=(8,))", **MODELS[name]} if name != "topk_sae" else MODELS[name]
    model = aezoo.create_model(name, input_shape=(1, 8, 8), latent_dim=4 if name != "topk_sae" else 24, **options)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    model.double()
    data = torch.utils.data.TensorDataset(x.double(), y)
    patterns = ["loss", "psnr", "ssim", "active_units", "codebook", "fvu", "l0", "dead", "mutual_information", "mmd", "bits_per_dim"]  # fmt: skip
    able = [p for p in patterns if not METRICS[p].why_not(subject_of(model, data))]
    draws = 12 if hasattr(model, "log_weights") else 0
    whole, *others = (evaluate(model, data, able, batch_size=b, log_prob=draws) for b in (512, 100, 37))
    loader = torch.utils.data.DataLoader(data, batch_size=33)  # batches that lie in two blocks
    others.append(evaluate(model, loader, able, batch_size=20, log_prob=draws))
    for other in others:
        assert other.keys() == whole.keys()
        for figure in whole.keys() - WHOLE_BATCH.get(name, set()):
            a, b = whole[figure], other[figure]
            assert a["samples"] == b["samples"]
            assert b["mean"] == pytest.approx(a["mean"], rel=1e-9, abs=1e-12), figure
            assert b["stderr"] == pytest.approx(a["stderr"], rel=1e-6, abs=1e-9, nan_ok=True), figure


def subject_of(model, data):
    from aezoo.metrics import Subject

    source = aezoo.load_data(data)
    return Subject(model.eval(), source, span=source.check(), device=torch.device("cpu"), seed=0)


def test_binarised_data_does_not_depend_on_the_batch_size_either():
    x, _ = make_images(530, 6)
    model = aezoo.create_model("vae", input_shape=(1, 6, 6), latent_dim=2, likelihood="bernoulli").double()
    for data in (aezoo.load_data(x.double(), binarize="dynamic"), torch.utils.data.StackDataset(x=x.double())):
        a, b = (evaluate(model, data, ["loss", "mse"], batch_size=n) for n in (512, 41))
        assert b["mse"]["mean"] == pytest.approx(a["mse"]["mean"], rel=1e-9)
        assert b["elbo"]["mean"] == pytest.approx(a["elbo"]["mean"], rel=1e-9)


def test_a_figure_depends_neither_on_what_else_is_asked_for_nor_on_the_run():
    x, _ = make_images(60)
    model = aezoo.create_model("vae", input_shape=(1, 12, 12), latent_dim=3).train()
    state = torch.get_rng_state()
    every = evaluate(model, x, "*", log_prob=30)
    assert every == evaluate(model, x, "*", log_prob=30)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    for name in ("elbo", "log_prob", "mutual_information", "mmd_rbf", "ssim"):
        alone = evaluate(model, x, name, log_prob=30 if name == "log_prob" else 0)
        assert all(alone[k] == every[k] for k in alone), name
    other = evaluate(model, x, "*", log_prob=30, seed=1)
    for name in ("elbo", "log_prob", "mutual_information", "mmd_rbf"):
        assert other[name]["mean"] != every[name]["mean"]
    assert other["ssim"] == every["ssim"]


def test_standard_errors_are_those_of_the_mean():
    x, _ = make_images(100)
    model = aezoo.create_model("vae", input_shape=(1, 12, 12), latent_dim=3)
    values = -10 * (model.reconstruct(x) - x).square().flatten(1).mean(1).log10().double().detach()
    found = evaluate(model, x, "psnr", batch_size=30)["psnr"]
    assert found["stderr"] == pytest.approx(float(values.std()) / 10, rel=1e-4) and found["unit"] == "dB"


def test_the_jackknife_of_one_sample_a_group_is_the_standard_error():
    from aezoo.metrics.reconstruction import grouped

    values = torch.randn(GROUPS).double()
    figure = grouped(lambda keep: float(values[keep].mean()), torch.ones(GROUPS))
    assert figure.mean == pytest.approx(float(values.mean()))
    assert figure.stderr == pytest.approx(float(values.std()) / GROUPS**0.5)


def test_a_piece_alone_cuts_its_draws_and_keeps_its_statistics():
    x = torch.randn(7, 3)
    torch.manual_seed(1)
    whole = torch.randn(7, 3)
    for start, stop in ((0, 3), (3, 7)):
        torch.manual_seed(1)
        with spread(start, stop, 7, alone=True):
            part = x[start:stop]
            assert torch.equal(torch.randn(len(part), 3), whole[start:stop])
            assert torch.equal(batch_sum(part), part.sum(0)) and torch.equal(batch_mean(part), part.mean(0))
            assert whole_batch(part) is part
            norm = torch.nn.BatchNorm1d(3)
            assert torch.allclose(norm(part).mean(0), torch.zeros(3), atol=1e-6)


def test_entries_that_are_missing():
    x = torch.randn(40, 4)
    x[torch.rand(40, 4) < 0.3] = math.nan
    x[3] = math.nan
    model = aezoo.create_model("tabular_vae", input_shape=(4,), latent_dim=2)
    found = evaluate(model, x, batch_size=11)
    assert found["mse"]["samples"] == 39 and found["elbo"]["samples"] == 40
    assert all(math.isfinite(found[k]["mean"]) for k in found if k != "bits_per_dim")
    with pytest.raises(ValueError, match="without missing entries"):
        evaluate(model, x, "fvu")


# --------------------------------------------------------------------------------------------------- labels and factors


def test_probes_are_fitted_to_the_training_data_or_to_half_of_the_set():
    x, y = make_images(200)
    model = aezoo.create_model("linear_ae", input_shape=(1, 12, 12), latent_dim=8)
    data = torch.utils.data.TensorDataset(x, y)
    asked = ["linear_probe", "knn", "kmeans"]
    half = evaluate(model, data, asked)
    assert half["linear_probe_accuracy"]["samples"] == 100 and half["kmeans_nmi"]["samples"] == 200
    assert half["linear_probe_accuracy"]["mean"] > 0.9 and half["knn_accuracy"]["mean"] > 0.8
    whole = evaluate(model, data, asked, train=torch.utils.data.TensorDataset(*make_images(300, seed=1)))
    assert whole["linear_probe_accuracy"]["samples"] == 200 and whole["linear_probe_accuracy"]["mean"] > 0.9
    with pytest.raises(ValueError, match="no labels"):
        evaluate(model, data, "knn", train=x)
    with pytest.raises(ValueError, match="'knn' does not fit: it needs a whole-number label"):
        evaluate(model, x, "knn")


def test_disentanglement_of_a_code_that_is_the_factors():
    g = torch.Generator().manual_seed(0)
    factors = torch.randint(0, 4, (600, 3), generator=g)
    model = aezoo.create_model("linear_ae", input_shape=(3,), latent_dim=3)
    layer = next(m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3)), layer.bias.zero_()
    data = torch.utils.data.TensorDataset(factors.float() + 0.01 * torch.rand(600, 3), factors)
    found = evaluate(model, data, ["mig", "sap", "dci", "factor_vae"])
    assert found["mig"]["mean"] > 0.95 and found["dci_disentanglement"]["mean"] > 0.95
    assert found["factor_vae_score"]["mean"] > 0.95 and found["sap"]["mean"] > 0.5
    with pytest.raises(ValueError, match="'mig' does not fit: it needs a table of factors"):
        evaluate(model, factors.float(), "mig")


# ------------------------------------------------------------------------------------------------------------ generated


def test_samples_of_the_law_of_the_data_are_close_and_others_are_not():
    model, _ = linear_vae()
    real = model.sample(
        400, generator=torch.Generator().manual_seed(3)
    ).detach()  # means, without the likelihood's noise
    close = evaluate(model, real, ["frechet_distance", "precision_recall"], samples=300)
    far = evaluate(model, real + 3, ["frechet_distance", "precision_recall"], samples=300)
    assert close["frechet_distance"]["mean"] < 1 < 20 < far["frechet_distance"]["mean"]
    assert close["precision"]["mean"] > 0.8 and close["recall"]["mean"] > 0.8 and far["precision"]["mean"] < 0.3
    assert (close["precision"]["samples"], close["recall"]["samples"]) == (300, 400)
    assert close == evaluate(model, real, ["frechet_distance", "precision_recall"], samples=300)
    some = evaluate(model, real, "frechet*", samples=300, features=lambda x: x[:, :1])
    assert some["frechet_distance"]["mean"] < close["frechet_distance"]["mean"]
    assert "pixels" in close["precision"]["unit"]


def test_samples_are_cut_to_the_range_of_pictures():
    model = aezoo.create_model("vae", input_shape=(1, 12, 12), latent_dim=2)
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.mul_(10)
    seen = []
    evaluate(model, make_images(20)[0], "frechet*", features=lambda x: seen.append(x.aminmax()) or x[:, 0, :2, 0])
    assert all(low >= 0 and high <= 1 for low, high in seen) and model.sample(20).max() > 1


# ------------------------------------------------------------------------------------------------------------- choosing


def test_what_is_asked_for():
    x, _ = make_images(20)
    model = aezoo.create_model("vae", input_shape=(1, 12, 12), latent_dim=3)
    default = evaluate(model, x)
    assert {"samples", "loss", "recon", "kl", "elbo", "mse", "squared_error", "psnr", "ssim", "bits_per_dim", "active_units"} == set(default)  # fmt: skip
    assert all({"mean", "stderr", "samples", "unit"} <= set(v) for v in default.values())
    assert set(evaluate(model, x, "psnr, elbo")) == {"samples", "psnr", "elbo"}
    assert set(evaluate(model, x, ["*_error", "k*"])) == {"samples", "squared_error", "kl"}
    assert {"log_prob", "log_prob_1", "psnr"} <= set(evaluate(model, x, "psnr", log_prob=5))
    assert set(evaluate(model, x[:2], ["log_prob_1?"])) >= {"log_prob_10"}


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("pnsr", r"metric 'pnsr' is not known; those that fit this ae and this data: loss, mse.*Did you mean 'psnr'"),
        ("perplexity", "metric 'codebook' does not fit: ae has no codebook. Those that fit"),
        ("active_unit*", "'active_units' does not fit: it needs a Gaussian posterior"),
        ("log_prob", "'log_prob' does not fit: ae defines no log-likelihood"),
        ("mmd", "'mmd' does not fit: ae has no prior; aezoo.fit_prior gives it one"),
        ("bits_per_dim", "the likelihood 'mse' is no density"),
        ("", "names none"),
        ([], "names none"),
        ("zzz*", "metric 'zzz\\*' is not known"),
    ],
)
def test_what_does_not_fit_is_said(metrics, message):
    with pytest.raises(ValueError, match=message):
        evaluate(aezoo.create_model("ae", input_shape=(1, 12, 12)), make_images(5)[0], metrics)


def test_wrong_arguments():
    model, x = aezoo.create_model("ae", input_shape=(1, 12, 12)), make_images(5)[0]
    for metrics in (3, [3], {"psnr": 1}):
        with pytest.raises(TypeError, match="names or patterns"):
            evaluate(model, x, metrics)
    with pytest.raises(TypeError, match="model must be a BaseAE"):
        aezoo.evaluate(torch.nn.Linear(2, 2), x)
    with pytest.raises(ValueError, match="log_prob=-1"):
        evaluate(model, x, log_prob=-1)
    with pytest.raises(ValueError, match=r"samples=1\.5"):
        evaluate(model, x, samples=1.5)
    with pytest.raises(ValueError, match="no log-likelihood"):
        evaluate(model, x, log_prob=5)


def test_a_metric_of_ones_own(monkeypatch):
    from aezoo.metrics import Metric

    monkeypatch.setattr(METRICS, "entries", dict(METRICS.entries))

    @METRICS.register("largest_error")
    class Largest(Metric):
        """Largest absolute error of a sample."""

        def each(self, seen):
            return {"largest_error": (seen.recon - seen.x).abs().flatten(1).amax(1)}

    model, x = aezoo.create_model("ae", input_shape=(1, 12, 12)), make_images(20)[0]
    wanted = float((model.reconstruct(x) - x).abs().flatten(1).amax(1).mean().detach())
    assert evaluate(model, x)["largest_error"]["mean"] == pytest.approx(wanted, rel=1e-5)


def test_every_metric_is_described_in_one_line():
    for entry in METRICS.entries.values():
        first = entry.__doc__.strip().split("\n")[0]
        assert first[-1] == "." and len(first) < 160


# --------------------------------------------------------------------------------------------------------- command line


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = aezoo.load_data("digits")
    aezoo.fit(aezoo.create_model("vae", input_shape=(1, 8, 8), latent_dim=2), data, steps=5, out="run", progress=False)
    asked = "ssim,active_units,linear_probe,loss,mmd"
    main(["evaluate", "run", "--metrics", asked, "--log_prob", "20", "--samples", "50", "--batch_size", "100"])
    out = capsys.readouterr().out
    header = next(line for line in out.splitlines() if "stderr" in line)
    assert header.split() == ["mean", "±", "stderr", "n", "unit"]
    assert any(line.startswith("ssim ") and " 299" in line for line in out.splitlines())
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text(), parse_constant=pytest.fail)["metrics"]
    assert report["active_units"]["stderr"] is None and len(report["active_units"]["values"]) == 2
    assert report["linear_probe_accuracy"]["samples"] == 299, "the probe was not fitted to the training split"
    assert report["log_prob"]["mean"] > report["elbo"]["mean"]
    main(["evaluate", "--list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in METRICS)
    with pytest.raises(SystemExit):
        main(["evaluate"])
    assert "folder of a run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "run", "--metrics", "sim"])
    assert "Did you mean 'ssim'" in capsys.readouterr().err
