"""U-Net denoisers, shot noise, and the Markov chain of denoising autoencoders."""

import math

import pytest
import torch
from conftest import fit, make_images

import aezoo
from aezoo import wholebatch
from aezoo.backbones import BACKBONES
from aezoo.corruptions import CORRUPTIONS, _poisson_quantile

SMALL = "unet(widths=(4, 8){})"


def denoiser(shape=(1, 12, 12), options="", **more):
    return aezoo.create_model("unet_denoiser", input_shape=shape, latent_dim=8, backbone=SMALL.format(options), **more)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------------------- U-Net


@pytest.mark.parametrize("shape", [(1,), (30,), (3, 17), (1, 1, 1), (1, 9, 13), (2, 8, 8), (1, 5, 6, 7)], ids=str)
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_any_shape(shape, norm):
    network = BACKBONES.build(SMALL.format(f", norm={norm!r}")).network(shape, 8, 2)
    if norm == "batch":
        network.eval()
    assert network(rand(3, *shape)).shape == (3, 2, *shape)


@pytest.mark.parametrize("shape", [(1, 9, 13), (30,), (2, 5, 6, 7)], ids=str)
def test_without_biases_the_denoiser_scales_as_its_input(shape):
    """f(a x) = a f(x) (arXiv:1906.05478, lemma 1), which one bias anywhere would break."""
    x = rand(2, *shape).double()
    free, biased = denoiser(shape, ", bias=False").double(), denoiser(shape).double()
    with torch.no_grad():
        for name, p in biased.named_parameters():  # they start at 0
            p.add_(0.1 if name.endswith("bias") else 0.0)
    for a in (0.1, 7.0):
        assert torch.allclose(free.encode(a * x), a * free.encode(x), rtol=1e-9, atol=1e-12)
        assert not torch.allclose(biased.encode(a * x), a * biased.encode(x), rtol=1e-3)
    assert not [k for k, _ in free.named_parameters() if "bias" in k]


def test_skips_go_around_the_bottleneck():
    """With the bottleneck's way up cut, the output still depends on each input pixel's neighbourhood, and on that only."""
    network = BACKBONES.build(SMALL.format("")).network((1, 17, 17), 8, 1)
    for grow in network.grow:
        torch.nn.init.zeros_(grow.weight)
    x = rand(1, 1, 17, 17).requires_grad_()
    network(x)[0, 0, 0, 8, 8].backward()
    seen = x.grad[0, 0] != 0
    assert seen[8, 8] and not seen[0].any() and not seen[:, 0].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: denoiser(options=", bias=False, norm='batch'"), "bias=False needs norm='none'"),
        (lambda: denoiser(options=", bias=False, activation='gelu'"), "relu, leaky_relu, identity"),
        (lambda: denoiser(options=", kernel=2"), "kernel=2 must be an odd integer"),
        (lambda: aezoo.create_model("unet_denoiser", input_shape=(8,), backbone="unet(widths=())"), "no level"),
        (lambda: aezoo.create_model("ae", input_shape=(8,), backbone="unet"), "it is for model unet_denoiser"),
        (lambda: aezoo.create_model("unet_denoiser", input_shape=(8,), backbone="mlp"), "allowed: unet"),
        (lambda: denoiser(corruption="gaussian(where='latent')"), "where='latent' must be 'input'"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------------------------ denoiser


def test_the_network_predicts_the_noise():
    """x^ = y - r(y) (arXiv:1608.03981, eq. 1): |x^ - x|^2 = |r(y) - (y - x)|^2, with y the noisy and x the clean input."""
    model, x = denoiser().double(), rand(4, 1, 12, 12).double()
    r = model.encoder.network(x)[:, 0]
    assert torch.equal(model.reconstruct(x), x - r) and torch.equal(model.encode(x), x - r)
    torch.manual_seed(2)
    out = model(x)
    torch.manual_seed(2)
    y = model.corrupt(x)
    assert torch.allclose(out.recon, y - model.encoder.network(y)[:, 0])
    assert torch.allclose(out.terms["recon"], (model.encoder.network(y)[:, 0] - (y - x)).square().flatten(1).mean(1))
    assert torch.equal(out.terms["recon"], out.metrics["denoised_mse"]) and not torch.equal(x, y)


def test_noise_levels_are_drawn_for_each_sample_from_0_to_50_255_in_evaluation_too():
    model, x = denoiser((1, 40, 40)).eval(), torch.zeros(300, 1, 40, 40)
    sigma = model.corrupt(x).flatten(1).std(1)
    assert sigma.min() < 0.01 and 0.18 < sigma.max() < 0.21 and sigma.mean().item() == pytest.approx(25 / 255, rel=0.1)


@pytest.mark.parametrize("likelihood", ["bce", "bernoulli", "continuous_bernoulli"])
def test_logits_are_no_residuals(likelihood):
    model, x = denoiser(likelihood=likelihood), rand(3, 1, 12, 12)
    assert torch.equal(model.encode(x), model.encoder(x)[:, 0])
    assert torch.equal(model.reconstruct(x), model.likelihood.mean(model.encoder(x)))


@pytest.mark.parametrize("likelihood", ["gaussian(sigma='predicted')", "laplace(scale='predicted')"])
def test_a_predicted_scale_is_no_residual(likelihood):
    model, x = denoiser(likelihood=likelihood), rand(3, 1, 12, 12)
    r = model.encoder.network(x)
    z = model.encode(x)
    assert model.latent_shape == (2, 1, 12, 12) and torch.equal(z[:, 0], x - r[:, 0]) and torch.equal(z[:, 1], r[:, 1])
    assert torch.equal(model.decode(z), x - r[:, 0])


def test_the_code_is_the_denoised_sample():
    model, x = denoiser(), rand(3, 1, 12, 12)
    assert model.latent_shape == (1, 12, 12) and torch.equal(model.decode(x), x)
    with pytest.raises(ValueError, match=r"decodes \(batch, 1, 12, 12\)"):
        model.decode(x[:, 0])


@pytest.mark.parametrize("bias", [True, False])
def test_it_takes_noise_off_and_leaves_clean_pictures_alone(bias):
    x, held_out = make_images(256)[0], make_images(100, seed=1)[0]
    model = aezoo.create_model(
        "unet_denoiser", input_shape=(1, 12, 12), latent_dim=8, backbone=f"unet(widths=(8,), bias={bias})"
    )
    fit(model, x, steps=150, batch_size=32, lr=1e-2, schedule="cosine")

    def psnr(a):
        return -10 * math.log10(float((a - held_out).square().mean().detach()))

    noisy = held_out + 0.15 * torch.randn(held_out.shape)
    assert psnr(model.reconstruct(noisy)) > psnr(noisy) + 5
    assert psnr(model.reconstruct(held_out)) > 32


# ---------------------------------------------------------------------------------------------------------- shot noise


def test_poisson_counts_have_mean_and_variance_of_the_signal():
    """E x~ = x, Var x~ = x / peak, and x~ is a whole number of counts. sigma^2 independent of x would be Gaussian noise."""
    for x0, peak in ((0.02, 30), (0.3, 30), (0.7, 5), (0.9, 200), (5.0, 100)):
        x = torch.full((400, 500), x0)
        y = CORRUPTIONS.build(f"poisson(peak={peak})")(x)
        assert y.mean().item() == pytest.approx(x0, rel=5 * math.sqrt(1 / (x0 * peak * y.numel())))
        assert y.var().item() == pytest.approx(x0 / peak, rel=0.025)
        counts = y.double() * peak
        assert (counts - counts.round()).abs().max() < 1e-3
    assert not CORRUPTIONS.build("poisson")(torch.tensor([[0.0, -2.0]])).any()


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0, 4.5, 10.0, 10.5, 30.0, 300.0])
def test_poisson_quantiles(rate):
    """Against the distribution function, summed in float64; above a rate of 10 the expansion misses a count here and there."""
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    k = torch.arange(0, 600, dtype=torch.float64)
    log_p = torch.xlogy(k, torch.tensor(rate).double()) - rate - torch.lgamma(k + 1)
    exact = torch.searchsorted(log_p.exp().cumsum(0), u, right=True)
    got = _poisson_quantile(u, torch.full_like(u, rate))
    assert (got - exact).abs().max() <= 1
    assert (got != exact).float().mean() <= (0 if rate <= 10 else 3e-3)


def test_poisson_draws_do_not_depend_on_how_the_batch_is_spread():
    noise, x = CORRUPTIONS.build("poisson(peak=(5, 50))"), rand(6, 7)
    torch.manual_seed(3)
    whole = noise(x)
    for start, stop in ((0, 4), (4, 6)):
        torch.manual_seed(3)
        with wholebatch.spread(start, stop, 6):
            assert torch.equal(noise(x[start:stop]), whole[start:stop])
    for peak in ("0", "-1", "(0, 3)", "'high'"):
        with pytest.raises(ValueError, match="peak"):
            CORRUPTIONS.build(f"poisson(peak={peak})")
    assert noise(x.bfloat16()).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------------------ walkback


def test_the_chain_of_the_true_conditional_has_the_distribution_of_the_data():
    """Data N(0, 1) and noise N(0, 1): P(x | x~) = N(x~ / 2, 1/2), and the chain's variance tends to the data's (arXiv:1305.6663,
    theorem 1). Without the draw from P, or without the noise, it would tend to 1/3, or to 2/3."""
    model = aezoo.create_model("ae", input_shape=(1,), latent_dim=1, backbone="linear", corruption="gaussian(sigma=1.0)",
                               likelihood=f"gaussian(sigma={math.sqrt(0.5)})")  # fmt: skip
    with torch.no_grad():
        for p, value in zip(model.parameters(), (0.5, 0.0, 1.0, 0.0)):
            p.fill_(value)
    x = aezoo.walkback(model, torch.full((20000, 1), 4.0), 20)
    assert x.mean().item() == pytest.approx(0.0, abs=0.04) and x.var().item() == pytest.approx(1.0, abs=0.05)


def test_the_chain_of_a_trained_model_comes_to_the_data():
    """Points on a circle: from the origin and from afar, it comes near the circle and gets around on it."""
    angle = 2 * math.pi * rand(1024)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    model = aezoo.create_model("denoising_ae", input_shape=(2,), latent_dim=16, corruption="gaussian(sigma=0.3)",
                               backbone="mlp(widths=(64,), activation='silu')")  # fmt: skip
    fit(model, x, steps=400, batch_size=128, lr=5e-3, schedule="cosine")
    start = torch.cat([torch.zeros(200, 2), torch.tensor([[1.6, 0.0]]).repeat(200, 1)])
    end = aezoo.walkback(model, start, 40)
    radius = end.norm(dim=1)
    assert ((start.norm(dim=1) - 1).abs() > 0.5).all() and (radius - 1).abs().mean() < 0.15
    assert (end[200:].mean(0).norm() < 0.6) and len((end[200:] > 0).int().unique(dim=0)) == 4


@pytest.mark.parametrize("name", ["unet_denoiser", "denoising_ae", "vae"])
def test_shape_range_and_randomness(name):
    x = rand(5, 1, 12, 12)
    own = {} if name == "unet_denoiser" else {"corruption": "masking"}
    model = aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=8, likelihood="bernoulli", **own)
    assert torch.equal(aezoo.walkback(model, x, 0), x)
    before, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    runs = [aezoo.walkback(model, x, 3, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert runs[0].shape == x.shape and ((runs[0] == 0) | (runs[0] == 1)).all() and not runs[0].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))


def test_the_chain_needs_noise():
    with pytest.raises(ValueError, match="needs noise on the input"):
        aezoo.walkback(aezoo.create_model("ae", input_shape=(3,)), torch.zeros(2, 3), 5)
    with pytest.raises(ValueError, match="steps=-1"):
        aezoo.walkback(aezoo.create_model("denoising_ae", input_shape=(3,)), torch.zeros(2, 3), -1)
