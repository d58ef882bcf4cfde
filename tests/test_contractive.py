"""The contractive penalty in its three ways, against torch's own Jacobian."""

import pytest
import torch

import aezoo
from aezoo import functional as fn

LINEAR, DEEP = "linear", "mlp(widths=(9,), activation='tanh')"


def build(backbone=LINEAR, **more):
    torch.manual_seed(2)
    return aezoo.create_model("contractive_ae", input_shape=(6,), latent_dim=4, backbone=backbone, **more).double()


def data(n=5, seed=1):
    return torch.rand(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(model, x):
    """||dh/dx||_F^2 of each sample by itself (Rifai et al. 2011)."""
    rows = [torch.autograd.functional.jacobian(model.code, x[i : i + 1], create_graph=True) for i in range(len(x))]
    return torch.stack([r.square().sum() for r in rows])


def gradients(model, value):
    names = dict(model.named_parameters())
    grads = torch.autograd.grad(value, list(names.values()), allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(names.items(), grads)}


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        (LINEAR, "closed"),
        ("linear(tied=True)", "closed"),
        (LINEAR, "exact"),
        (DEEP, "exact"),
        ("conv(widths=(2,))", "exact"),
    ],
)
def test_exact_ways_equal_the_jacobian_and_so_do_their_gradients(backbone, method):
    model, x = build(backbone, method=method), data()
    terms, want = model(x).terms, brute_force(model, x)
    assert torch.allclose(terms["contraction"], want, rtol=1e-10)
    got, by_hand = gradients(model, terms["contraction"].sum()), gradients(model, want.sum())
    assert any(g.any() for g in got.values())
    for k in got:
        assert torch.allclose(got[k], by_hand[k], rtol=1e-8, atol=1e-12), k


@pytest.mark.parametrize("backbone", [LINEAR, DEEP])
def test_hutchinson_is_unbiased(backbone):
    """E[v v^T] = I: the mean of ||J^T v||^2 over many v, and that of its gradient. v of shape (B, K): J v would be another norm."""
    model, x = build(backbone, method="hutchinson", draws=2), data(2)
    got = model(x.repeat(3000, 1)).terms["contraction"].view(3000, 2).mean(0)
    want = brute_force(model, x)
    assert torch.allclose(got, want, rtol=0.1) and not torch.allclose(got, want, rtol=1e-9)
    a, b = gradients(model, got.sum()), gradients(model, want.sum())
    flat = [torch.cat([v.flatten() for v in g.values()]) for g in (a, b)]
    assert torch.cosine_similarity(flat[0], flat[1], dim=0) > 0.99


def test_hutchinson_with_one_latent_is_exact():
    h = torch.zeros(3, 1)
    j = torch.randn(3, 1, 5)
    assert torch.allclose(
        fn.hutchinson_jacobian(lambda v: (torch.einsum("bk,bkd->bd", v, j),), h), j.square().sum((1, 2))
    )


@pytest.mark.parametrize(("backbone", "method"), [(LINEAR, "closed"), (DEEP, "hutchinson")])
def test_auto(backbone, method):
    assert build(backbone).method == method
    assert build("mlp(widths=())").method == "closed"


@pytest.mark.parametrize(("backbone", "method"), [(LINEAR, "closed"), (DEEP, "hutchinson"), (DEEP, "exact")])
def test_validation_without_gradients_gives_the_same_term(backbone, method):
    model, x = build(backbone, method=method, weight=0.5).eval(), data()
    torch.manual_seed(0)
    want = model.loss(x)
    torch.manual_seed(0)
    with torch.no_grad():
        got = model.loss(x)
    torch.manual_seed(0)
    with torch.inference_mode():
        inferred = model.loss(x)
    assert (
        torch.equal(got.total, want.total) and torch.equal(inferred.total, want.total) and not got.total.requires_grad
    )
    assert got.terms["contraction"] > 0
    assert torch.allclose(want.total, want.terms["recon"] + 0.5 * want.terms["contraction"])


@pytest.mark.parametrize(("backbone", "method"), [(LINEAR, "closed"), (DEEP, "exact")])
def test_the_jacobian_is_taken_at_the_clean_input(backbone, method):
    model, x = build(backbone, method=method, corruption="masking(p=1.0)"), data()
    out = model(x)
    assert torch.allclose(out.terms["contraction"], brute_force(model, x))
    assert torch.allclose(out.z, model.code(0 * x)) and torch.allclose(model.encode(x), model.code(x))


@pytest.mark.parametrize(
    "backbone", ["mlp(widths=(9,), norm='batch')", "mlp(widths=(9,), dropout=0.5)", "mlp(widths=(9,), norm='layer')"]
)
def test_norms_and_dropout(backbone):
    """Each sample's own Jacobian, of the encoder as it is used; and the running statistics count a batch once."""
    model, x = build(backbone, method="exact"), data()
    out = model(x)
    counts = [m.num_batches_tracked.item() for m in model.encoder.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert all(c == 1 for c in counts) and model.training
    fresh = build(backbone, method="exact").eval()
    assert torch.allclose(out.terms["contraction"], brute_force(fresh, x))


@pytest.mark.parametrize("backbone", [LINEAR, DEEP])
def test_the_penalty_makes_codes_contract(backbone):
    x = data(200).float()
    norms = {}
    for weight in (0.0, 0.5):
        model = build(backbone, weight=weight).float()
        result = aezoo.fit(model, x, epochs=20, batch_size=50, lr=1e-2, val=0.1, progress=False, device="cpu")
        norms[weight] = result.history[-1]["val_contraction"]
    assert norms[0.5] < 0.3 * norms[0.0]


def test_errors_and_default_weight():
    with pytest.raises(ValueError, match="method='closed' needs an encoder of one layer"):
        build(DEEP, method="closed")
    with pytest.raises(ValueError, match="method='fast' is not known"):
        build(method="fast")
    with pytest.raises(ValueError, match="draws=0"):
        build(draws=0)
    assert build().weight == pytest.approx(0.1 / 6) and build(likelihood="bernoulli").weight == 0.1
