"""The mixture of logistics and multi-scale structural similarity: by brute force in float64, and beside a reference."""

import math

import numpy as np
import pytest
import torch

import aezoo
from aezoo import functional as fn
from aezoo.likelihoods import LIKELIHOODS


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- mixture of logistics


def mixtures(n, m=3):
    """Means around [0, 1], scales from much less than a step of the grid to much more than its range, weights."""
    return 0.5 + rand(n, m), 2.5 * rand(n, m, seed=1) - 3.0, rand(n, m, seed=2)


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_probabilities_of_all_values_add_up_to_one(levels):
    """arXiv:1701.05517, eq. 2 with its edge cases: what lies below 0 and above 1 belongs to the ends."""
    means, log_scales, logits = mixtures(40)
    grid = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    nll = [fn.discretized_logistic_mixture_nll(v.expand(40, 1), *(t[:, :, None] for t in (means, log_scales, logits)), levels)
           for v in grid]  # fmt: skip
    total = torch.stack(nll).neg().exp().sum(0)
    assert torch.allclose(total, torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-12)


def by_differences(x, means, log_scales, logits, levels):
    """-log P(x) of one value from differences of the logistic distribution function, in Python's own numbers."""
    k = round(float(x) * (levels - 1))

    def cdf(t, mean, scale):
        u = (t - mean) / scale
        return 1 / (1 + math.exp(-u)) if u > 0 else math.exp(u) / (1 + math.exp(u))

    odds = [math.exp(float(v)) for v in logits]
    p = 0.0
    for weight, mean, log_scale in zip(odds, means.tolist(), log_scales.tolist()):
        high = 1.0 if k == levels - 1 else cdf((k + 0.5) / (levels - 1), mean, math.exp(log_scale))
        low = 0.0 if k == 0 else cdf((k - 0.5) / (levels - 1), mean, math.exp(log_scale))
        p += weight / sum(odds) * (high - low)
    return -math.log(p)


def test_logistic_mixture_equals_differences_of_the_distribution_function():
    """arXiv:1701.05517, eq. 1 and 2, summed over a sample's dims."""
    means, log_scales, logits = 0.5 + 0.4 * rand(6, 3, 4), 0.5 * rand(6, 3, 4, seed=1) - 2.0, rand(6, 3, 4, seed=2)
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(3)).double()
    x[0], x[1], x[2] = 0.0, 1.0, 0.5 / 255 + 1e-6  # both ends, and what is nearest to 1/255
    got = fn.discretized_logistic_mixture_nll(x, means, log_scales, logits)
    for i in range(6):
        hand = sum(by_differences(x[i, d], means[i, :, d], log_scales[i, :, d], logits[i, :, d], 256) for d in range(4))
        assert float(got[i]) == pytest.approx(hand, rel=1e-9)


def test_logistic_mixture_keeps_its_digits_far_from_the_mean_and_in_single_precision():
    far = [torch.tensor([[v]]) for v in (0.1, -6.0, 0.0)]  # mean 0.1, scale exp(-6): x = 1/2 is 160 scales away
    nll = fn.discretized_logistic_mixture_nll(torch.tensor([[128 / 255]]), *(t[..., None] for t in far))
    s = math.exp(-6)
    exact = (128 / 255 - 0.5 / 255 - 0.1) / s - math.log(-math.expm1(-1 / 255 / s))  # the tail of a logistic
    assert float(nll) == pytest.approx(exact, rel=1e-5)
    means, log_scales, logits = (t[:, :, None] for t in mixtures(30))
    x = torch.rand(30, 1, generator=torch.Generator().manual_seed(3)).double()
    double = fn.discretized_logistic_mixture_nll(x, means, log_scales, logits)
    single = fn.discretized_logistic_mixture_nll(*(t.float() for t in (x, means, log_scales, logits)))
    assert torch.allclose(single.double(), double, rtol=1e-4, atol=1e-4)
    assert (
        fn.discretized_logistic_mixture_nll(*(t.bfloat16() for t in (x, means, log_scales, logits))).dtype
        == torch.float32
    )


def test_gradients_of_the_logistic_mixture():
    means, log_scales, logits = (
        t[:4, :, None].clone().requires_grad_() for t in (0.5 + rand(4, 3), rand(4, 3) - 2, rand(4, 3))
    )
    x = torch.tensor([[0.0], [1.0], [0.3], [0.7]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *a: fn.discretized_logistic_mixture_nll(x, *a), (means, log_scales, logits))
    assert torch.autograd.gradcheck(fn.logistic_mixture_mean, (means, log_scales, logits))


def test_mean_of_the_logistic_mixture_is_that_of_the_cut_logistics():
    means, log_scales, logits = (t[:, :, None] for t in mixtures(25))
    got = fn.logistic_mixture_mean(means, log_scales, logits)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    draws = means + log_scales.exp() * torch.logit(u)  # (25, 3, 200,000): quantiles
    exact = (logits.softmax(1) * draws.clamp(0, 1).mean(2, keepdim=True)).sum(1)
    assert torch.allclose(got, exact, atol=1e-5)


def test_logistic_mixture_as_a_likelihood():
    likelihood = LIKELIHOODS.build("logistic_mixture(components=2, levels=4)")
    assert likelihood.num_params == 6 and LIKELIHOODS.build("logistic_mixture").num_params == 15
    assert likelihood.density and likelihood.units == "nats per sample"
    params = rand(1, 6, 1)
    grid = torch.arange(4, dtype=torch.float64)[:, None] / 3
    p = likelihood.nll(params.expand(4, 6, 1), grid).neg().exp()
    assert float(p.sum()) == pytest.approx(1.0)
    means = params[0, :2, 0] + torch.tensor([0.25, 0.75])  # evenly spread starts
    for k in range(4):
        scales = 6 * torch.tanh(params[0, 2:4, 0] / 6) - 2
        assert -math.log(p[k]) == pytest.approx(by_differences(grid[k], means, scales, params[0, 4:, 0], 4))
    draws = likelihood.sample(params.expand(40_000, 6, 1), torch.Generator().manual_seed(0))
    assert torch.equal(draws, torch.round(draws * 3) / 3)
    share = torch.stack([(torch.round(draws * 3) == k).double().mean() for k in range(4)])
    assert torch.allclose(share, p, atol=0.01)
    assert likelihood.mean(params.expand(4, 6, 1)).shape == (4, 1)
    for wrong in ("logistic_mixture(components=0)", "logistic_mixture(levels=1)", "logistic_mixture(components=2.5)"):
        with pytest.raises(ValueError, match=wrong.split("(")[1].split("=")[0]):
            LIKELIHOODS.build(wrong)


def test_logistic_mixture_learns_bits_per_dim():
    """Two grey values with equal odds are one bit: the nats per dim come near log 2; a single logistic stays at 4.9."""
    x = torch.where(torch.rand(400, 6) < 0.5, 51.0, 204.0) / 255
    model = aezoo.create_model("ae", (6,), latent_dim=1, likelihood="logistic_mixture(components=2)", backbone="linear")
    for p in model.encoder.parameters():
        torch.nn.init.zeros_(p)  # the code says nothing
    aezoo.fit(model, x, epochs=250, batch_size=100, lr=0.05, schedule="cosine", progress=False, device="cpu")
    nats = float(model.loss(x).total.detach()) / 6
    assert math.log(2) * 0.99 < nats < 1.0


# -------------------------------------------------------------------------------------------------------------- MS-SSIM


def pictures(size, channels=3):
    """Two pairs that differ by ripples, and by contrast and brightness."""
    t, u = torch.meshgrid(torch.arange(float(size)).double(), torch.arange(float(size)).double(), indexing="ij")
    c = torch.arange(1.0, channels + 1).double().view(-1, 1, 1)
    x = 0.5 + 0.4 * torch.sin(0.05 * t + 0.03 * u * c) * torch.cos(0.4 * u)
    y = x + 0.1 * torch.sin(1.7 * t * c + 0.9 * u) + 0.05 * torch.cos(0.01 * t * u)
    return torch.stack([x, x]), torch.stack([y, 0.6 * x + 0.3]).clamp(0, 1)


def test_ms_ssim_beside_a_reference():
    """What pytorch-msssim 1.0.0 says of these pictures with its window in float64."""
    x, y = pictures(176)
    assert fn.ms_ssim_layout((176, 176)) == (11, 5)
    assert fn.ms_ssim(x, y).tolist() == pytest.approx([0.962107848378867, 0.897407336802292], abs=1e-9)


def by_windows(x, y, edge, weights):
    """Eq. 7 of Wang et al. 2003 for one channel, window by window in NumPy."""
    t = np.arange(edge) - edge // 2
    window = np.exp(-(t[:, None] ** 2 + t[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    product = 1.0
    for j, weight in enumerate(weights):
        values = []
        for r in range(x.shape[0] - edge + 1):
            for s in range(x.shape[1] - edge + 1):
                a, b = x[r : r + edge, s : s + edge], y[r : r + edge, s : s + edge]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cs = (2 * (window * (a - ma) * (b - mb)).sum() + 0.03**2) / (va + vb + 0.03**2)
                light = (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
                values.append(cs * light if j == len(weights) - 1 else cs)
        product *= max(np.mean(values), 1e-3) ** weight
        h, w = (s // 2 * 2 for s in x.shape)
        x, y = ((p[:h:2, :w:2] + p[1:h:2, :w:2] + p[:h:2, 1:w:2] + p[1:h:2, 1:w:2]) / 4 for p in (x, y))
    return product


@pytest.mark.parametrize(("size", "edge", "scales"), [(28, 11, 2), (23, 11, 2), (9, 9, 1), (8, 7, 1)])
def test_ms_ssim_of_small_pictures_by_windows(size, edge, scales):
    x, y = pictures(size, 2)
    assert fn.ms_ssim_layout((size, size)) == (edge, scales)
    weights = np.array([0.0448, 0.2856][:scales])
    weights = weights / weights.sum() * 1.0001
    for i, got in enumerate(fn.ms_ssim(x, y).tolist()):
        hand = np.mean([by_windows(x[i, c].numpy(), y[i, c].numpy(), edge, weights) for c in range(2)])
        assert got == pytest.approx(hand, rel=1e-9)


def test_ms_ssim_in_one_and_three_dimensions_and_its_limits():
    """A picture that is the same along an axis has moments along the others alone."""
    x, y = (t[:, :1, 0] for t in pictures(40))  # (2, 1, 40)
    flat = fn.ms_ssim(x[..., None, :].expand(-1, -1, 40, -1), y[..., None, :].expand(-1, -1, 40, -1))
    assert torch.allclose(fn.ms_ssim(x, y), flat) and fn.ms_ssim_layout((40,)) == fn.ms_ssim_layout((40, 40))
    deep = fn.ms_ssim(
        x[..., None, None, :].expand(-1, -1, 12, 12, -1), y[..., None, None, :].expand(-1, -1, 12, 12, -1)
    )
    assert deep.shape == (2,) and deep.isfinite().all()
    assert torch.allclose(fn.ms_ssim(x, x), torch.ones(2).double())
    opposite = fn.ms_ssim(x, 1 - x)  # negatively correlated: the smallest value, not NaN
    assert (opposite < 0.01).all() and (opposite > 0).all()
    for a, b in ((x, y[:1]), (x[:, 0], y[:, 0])):
        with pytest.raises(ValueError, match="ms_ssim takes two batches"):
            fn.ms_ssim(a, b)


def test_gradients_of_ms_ssim():
    x, y = pictures(14, 1)
    assert torch.autograd.gradcheck(lambda t: fn.ms_ssim(t, y, window=5), x.requires_grad_())


def test_ms_ssim_as_a_plain_loss():
    x = pictures(12, 1)[0].float()
    model = aezoo.create_model("conv_ae", (1, 12, 12), likelihood="ms_ssim(window=5)")
    assert model.units == "mean over dims"
    recon = torch.sigmoid(model.decoder(model.encoder(x))[:, 0])
    assert torch.allclose(model(x).terms["recon"], 1 - fn.ms_ssim(recon, x, window=5))
    assert torch.equal(model.reconstruct(x), recon)
    with pytest.raises(ValueError, match="gaussian or laplace"):
        aezoo.create_model("vae", (1, 12, 12), likelihood="ms_ssim")
    with pytest.raises(ValueError, match="window=4"):
        aezoo.create_model("ae", (1, 12, 12), likelihood="ms_ssim(window=4)")
    with pytest.raises(ValueError, match=r"\(7,\)"):
        aezoo.create_model("ae", (7,), likelihood="ms_ssim").loss(torch.rand(2, 7))
    with pytest.raises(ValueError, match="mae scores the hidden patches"):
        aezoo.create_model("mae", (1, 12, 12), likelihood="ms_ssim")
    with pytest.raises(ValueError, match="not entry by entry"):
        aezoo.create_model("lstm_ae", (4, 12), likelihood="ms_ssim").loss(torch.rand(2, 4, 12))


def test_vae_trained_on_ms_ssim():
    """conv_vae: pixel E[-log p] + beta KL + ms_ssim (1 - MS-SSIM of the reconstruction); pixel=0 is arXiv:1511.06409's."""
    x = pictures(12, 1)[0].float()
    model = aezoo.create_model("conv_vae", (1, 12, 12), ms_ssim=30.0, pixel=0.0, beta=2.0)
    torch.manual_seed(1)
    out = model(x)
    assert torch.allclose(out.terms["ms_ssim"], 1 - fn.ms_ssim(model.decoder(out.z)[:, 0], x))
    torch.manual_seed(1)
    total = model.loss(x).total
    assert torch.allclose(total, (2 * out.terms["kl"] + 30 * out.terms["ms_ssim"]).mean())
    assert torch.allclose(out.metrics["elbo"], -(out.terms["recon"] + out.terms["kl"]))
    assert set(aezoo.create_model("conv_vae", (1, 12, 12)).loss(x).terms) == {"recon", "kl"}
    for wrong, shape in (({"ms_ssim": -1.0}, (1, 12, 12)), ({"pixel": 0.0}, (1, 12, 12)), ({"ms_ssim": 1.0}, (12,))):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            aezoo.create_model("conv_vae", shape, **wrong)
