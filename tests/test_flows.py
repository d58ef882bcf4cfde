"""Normalising flows and `iaf_vae`: Jacobians, inverses and densities against automatic differentiation and closed forms, in float64."""

import math

import pytest
import torch
from torch import distributions as D

import aezoo
from aezoo import functional as fn
from aezoo.flows import IAF, LIMIT, MADE, MAF, RealNVP
from aezoo.wholebatch import Spread


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rough(flow, seed=0):
    """The same flow far from the identity: every weight drawn anew."""
    flow = flow.double()
    with torch.no_grad():
        for i, p in enumerate(flow.parameters()):
            p.copy_(0.6 * rand(*p.shape, seed=seed + i))
    return flow


def jacobians(function, x):
    """(B, K, K) of each row's own map, by automatic differentiation."""
    rows = [torch.autograd.functional.jacobian(lambda r: function(r[None])[0][0], row) for row in x]
    return torch.stack(rows)


FLOWS = [
    lambda k: RealNVP(k, layers=5, width=7),
    lambda k: MAF(k, layers=3, width=9),
    lambda k: IAF(k, layers=3, width=9),
]


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("make", FLOWS, ids=["realnvp", "maf", "iaf"])
def test_log_det_is_the_jacobians_both_ways_and_the_inverse_undoes(make, k):
    """Sign and value of log |det|: arXiv:1605.08803 eq. 6, arXiv:1705.07057 eq. 5, arXiv:1606.04934 sec. 3."""
    flow, z = rough(make(k)), rand(4, k, seed=1)
    u, log_det = flow(z)
    assert log_det.abs().min() > 1e-3  # a flow that does something
    assert torch.allclose(log_det, torch.linalg.slogdet(jacobians(flow, z))[1], atol=1e-10)
    back, inverse_det = flow.inverse(u)
    assert torch.allclose(back, z, atol=1e-9)
    assert torch.allclose(inverse_det, torch.linalg.slogdet(jacobians(flow.inverse, u))[1], atol=1e-8)
    assert torch.allclose(inverse_det, -log_det, atol=1e-9)


def test_flows_with_a_context():
    for cls in (MAF, IAF):
        flow, z, c = rough(cls(3, layers=2, width=8, context=4)), rand(5, 3), rand(5, 4, seed=3)
        u, log_det = flow(z, c)
        found = torch.autograd.functional.jacobian(lambda r, f=flow, c=c: f(r, c)[0], z)  # (B, K, B, K)
        found = torch.stack([found[i, :, i] for i in range(5)])
        assert torch.allclose(log_det, torch.linalg.slogdet(found)[1], atol=1e-10)
        assert torch.allclose(flow.inverse(u, c)[0], z, atol=1e-9)
        other = flow(z, c + 1)[0]
        assert ((u - other).abs().min(0).values > 0).all()  # every latent sees it, the first one, too


@pytest.mark.parametrize("width", [3, 5, 16])
def test_made_is_autoregressive(width):
    """Output i depends on z_1 .. z_{i-1} only (arXiv:1502.03509, sec. 3), and, where there are units enough, on all of them."""
    made = rough(MADE(5, width))
    for part in (0, 1):
        j = torch.autograd.functional.jacobian(lambda r, part=part: made(r[None])[part][0], rand(5))
        assert torch.equal(j.triu(), torch.zeros(5, 5, dtype=torch.float64))
        if width >= 5:
            assert (j[tuple(torch.tril_indices(5, 5, -1))].abs() > 0).all()


def test_maf_and_iaf_are_the_papers_maps():
    """arXiv:1705.07057 eq. 4: u = (z - mu) exp(-alpha); arXiv:1606.04934: z = sigma eps + mu, both from what the networks see."""
    z = rand(6, 3)
    for cls, expected in ((MAF, lambda m, a: (z - m) * torch.exp(-a)), (IAF, lambda m, a: z * torch.exp(a) + m)):
        flow = rough(cls(3, layers=1, width=8))
        assert torch.allclose(flow(z)[0].flip(1), expected(*flow.layers[0](z)))


def test_coupling_leaves_what_it_sees_and_all_latents_move():
    flow, z = rough(RealNVP(5, layers=4, width=8)), rand(6, 5)
    one = RealNVP(5, layers=1, width=8).double()
    one.load_state_dict(
        {k: v[:1] if k == "masks" else v for k, v in flow.state_dict().items() if "networks.0" in k or k == "masks"}
    )
    seen = one.masks[0].bool()
    u = one(z)[0]
    assert torch.equal(u[:, seen], z[:, seen]) and (u[:, ~seen] != z[:, ~seen]).all()
    assert ((flow.masks == 0).sum(0) > 0).all()
    assert "masks" in dict(flow.named_buffers())


@pytest.mark.parametrize("make", FLOWS, ids=["realnvp", "maf", "iaf"])
def test_scales_are_bounded_softly(make):
    flow, z = make(3).double(), rand(10, 3)
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(1000).add_(10)
    _, log_det = flow(z)
    layers = len(flow.masks) if isinstance(flow, RealNVP) else len(flow.layers)
    assert log_det.abs().max() <= 3 * layers * LIMIT and torch.isfinite(flow(z)[0]).all()


@pytest.mark.parametrize("make", FLOWS, ids=["realnvp", "maf", "iaf"])
def test_a_new_flow_is_near_the_identity_and_every_weight_gets_a_gradient(make):
    flow, z = make(4), rand(64, 4).float()
    u, log_det = flow(z)
    away = torch.minimum((u - z).abs().max(), (u.flip(1) - z).abs().max())  # an odd number of reversals is no harm
    assert away < 0.1 and log_det.abs().max() < 0.1
    (u.square().sum() + log_det.sum()).backward()
    assert all(p.grad.abs().sum() > 0 for p in flow.parameters())


def test_half_precision():
    flow, z = MAF(4, 2, 8), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        u, log_det = flow(z)
    assert u.dtype == log_det.dtype == torch.float32
    assert all(t.dtype == torch.float32 for t in flow.to(torch.bfloat16)(z.bfloat16()))


def test_flows_reject_sizes():
    for cls in (RealNVP, MAF, IAF):
        for wrong in ({"dim": 0}, {"layers": 0}, {"width": 0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                cls(**{"dim": 2, **wrong})


# ------------------------------------------------------------------------------------------------------------ iaf_vae


def model(k, **more):
    return aezoo.create_model("iaf_vae", input_shape=(5,), latent_dim=k, backbone="mlp(widths=(8,))", **more).double()


def identity(m):
    with torch.no_grad():
        for made in m.flow.layers:
            made.last.weight.zero_()
            made.last.bias.zero_()
    return m


def bent(m, seed=0):
    rough(m.flow, seed)
    return m


def test_kl_with_the_flow_at_identity_is_the_closed_form_in_expectation():
    m, h = identity(model(3)), 0.7 * rand(2, 9)
    torch.manual_seed(0)
    kl = m.bottleneck(h.repeat(40_000, 1), sample=True)[1]["kl"].view(-1, 2)
    mu, logvar = m.posterior(h)
    error = kl.std(0) / math.sqrt(len(kl))
    assert ((kl.mean(0) - fn.gaussian_kl(mu, logvar)).abs() < 4 * error + 1e-6).all() and error.max() < 0.03


def test_kl_of_one_latent_is_that_of_the_gaussian_it_becomes():
    """With K = 1 the flow is affine, q stays Gaussian: a wrong sign of the log-determinant gives another KL."""
    m, h = bent(model(1, flow_layers=2)), rand(3, 3)
    mu, logvar = m.posterior(h)
    a, log_det = m.bend(mu, h)
    scale = torch.exp(log_det)[:, None]
    assert (log_det.abs() > 0.1).all()
    exact = fn.gaussian_kl(a, logvar + 2 * scale.log())
    torch.manual_seed(0)
    kl = m.bottleneck(h.repeat(50_000, 1), sample=True)[1]["kl"].view(-1, 3)
    assert ((kl.mean(0) - exact).abs() < 4 * kl.std(0) / math.sqrt(len(kl))).all()


def test_log_q_is_the_density_of_the_draw():
    """log q(z|x) by the inverse map's Jacobian (arXiv:1606.04934, sec. 3: log q = log q_0 - log det)."""
    m, h = bent(model(4)), rand(6, 12)
    z, log_q = m.draw(h)
    mu, logvar = m.posterior(h)
    c = h.chunk(3, 1)[2]
    for i in range(6):

        def back(r, c=c[i : i + 1]):
            return m.flow.inverse(r[None], c)[0][0]

        j = torch.autograd.functional.jacobian(back, z[i])
        expected = D.Normal(mu[i], (0.5 * logvar[i]).exp()).log_prob(back(z[i])).sum() + torch.linalg.slogdet(j)[1]
        assert torch.allclose(log_q[i], expected, atol=1e-8)


def test_log_prob_is_exact_where_the_decoder_ignores_z():
    """E_q[p(z) / q(z|x)] = 1 only if log q is the density that draws come from."""
    m = bent(model(2, likelihood="gaussian(sigma=1.0)", flow_width=4)).eval()
    with torch.no_grad():
        for p in [*m.encoder.parameters(), *m.decoder.parameters()]:
            p.zero_()
        m.encoder[-1].layer.bias.copy_(torch.tensor([0.0, 0.0, 0.8, 0.8, 0.5, -0.5]))  # mu, a wide base, context
        for made in m.flow.layers:
            made.last.weight.mul_(0.3)
            made.last.bias.copy_(torch.tensor([0.1, -0.1, 0.2, 0.1]))
    x = rand(3, 5)
    assert (
        m.draw(m.hidden(x))[1].isfinite().all() and m.bend(rand(50, 2), m.hidden(x)[:1].repeat(50, 1))[1].mean() > 0.3
    )
    torch.manual_seed(0)
    exact = -fn.gaussian_nll(x, torch.zeros_like(x), 0.0)
    assert torch.allclose(m.log_prob(x, 40_000), exact, atol=0.03)


def test_encode_is_the_flow_at_the_mean():
    m, x = bent(model(3)), rand(4, 5)
    h = m.hidden(x)
    expected = m.flow(m.posterior(h)[0], h.chunk(3, 1)[2])[0]
    assert torch.equal(m.encode(x), expected) and not torch.allclose(m.encode(x), m.posterior(h)[0])
    assert not torch.equal(m.encode(x, sample=True), m.encode(x))


def test_terms_weights_and_elbo():
    m, x = model(3, beta=2.5), rand(4, 5)
    loss = m.loss(x)
    assert set(loss.terms) == {"recon", "kl"}
    assert torch.allclose(loss.total, loss.terms["recon"] + 2.5 * loss.terms["kl"])
    assert torch.allclose(loss.metrics["elbo"], -loss.terms["recon"] - loss.terms["kl"])


def test_trains_and_resumes_to_the_bit(tmp_path, monkeypatch):
    x = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    runs = []
    for stop in (None, 3):
        torch.manual_seed(0)
        m = aezoo.create_model("iaf_vae", input_shape=(5,), latent_dim=2, backbone="mlp(widths=(8,))")
        out = tmp_path / str(stop)
        if stop:
            aezoo.fit(m, x, steps=stop, batch_size=16, out=out, progress=False, device="cpu")
        runs.append(
            aezoo.fit(m, x, steps=6, batch_size=16, out=out, resume=bool(stop), progress=False, device="cpu").model
        )
    a, b = (r.state_dict() for r in runs)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_posteriors_draw_does_not_depend_on_the_processes():
    """What one process of two draws is its part of the whole batch's draw."""
    m, h = bent(model(3)), rand(6, 9)
    torch.manual_seed(0)
    whole = m.draw(h)[0]
    torch.manual_seed(0)
    with Spread(2, 6, 6):
        part = m.draw(h[2:])[0]
    assert torch.allclose(part, whole[2:])


@pytest.mark.parametrize("wrong", [{"flow_layers": 0}, {"flow_width": 0}, {"likelihood": "mse"}])
def test_iaf_vae_errors(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        model(2, **wrong)
