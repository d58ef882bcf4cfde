"""The winner-take-all autoencoder: lifetime sparsity over the batch in training, none in use."""

import pytest
import torch

import aezoo
from aezoo import functional as fn
from aezoo.models import sparse


def build(**more):
    torch.manual_seed(2)
    return aezoo.create_model("wta_ae", input_shape=(12,), latent_dim=20, **more).double()


def data(n=40, seed=1):
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_latent_keeps_its_largest_activations_of_the_batch():
    """arXiv:1409.2752, section 2: sparsity per column (latent), not per row (sample)."""
    model, x = build(rate=0.1), data()
    f = model.encoder(x).relu()
    z = model(x).z
    want = torch.zeros_like(f).scatter(0, f.topk(4, dim=0).indices, f.topk(4, dim=0).values)
    assert torch.equal(z, want) and ((z > 0).sum(0) == 4).all() and (z > 0).sum(1).float().std() > 0
    assert torch.equal(model.loss(x).metrics["l0"], (z > 0).sum(1).float().mean().to(torch.float32))
    assert torch.equal(fn.lifetime_cutoff(f, 4), f.sort(0, descending=True).values[3])


def test_in_use_nothing_is_taken_away():
    model, x = build(), data()
    f = model.encoder(x).relu()
    assert torch.equal(model.encode(x), f) and torch.equal(model.eval()(x).z, f)
    assert torch.allclose(model.encode(x[:1]), f[:1])  # and no sample depends on another


def test_gradients_flow_through_the_winners_alone():
    model, x = build(rate=0.05), data()
    h = model.encoder(x).detach().requires_grad_()
    z = model.bottleneck(h, True)[0]
    (g,) = torch.autograd.grad(z.sum(), h)
    assert torch.equal(g, (z > 0).double())


def test_a_small_batch_still_has_one_winner_each():
    model = build(rate=0.05)
    assert ((model(data(3)).z > 0).sum(0) <= 1).all() and (model(data(3)).z > 0).any()


def test_the_batch_is_that_of_all_processes(monkeypatch):
    model, x = build(rate=0.1), data(20)
    monkeypatch.setattr(sparse, "whole_batch", lambda z: torch.cat([z, 100 + torch.rand_like(z)]))
    assert not model(x).z.any()
    monkeypatch.setattr(sparse, "whole_batch", lambda z: torch.cat([z, 0 * z]))
    assert ((model(x).z > 0).sum(0) == 4).all()  # a tenth of 40


def test_it_learns_and_all_latents_are_used():
    x = data(300).float()
    model = build(rate=0.2).float()
    result = aezoo.fit(model, x, epochs=30, batch_size=50, lr=1e-2, progress=False, device="cpu")
    assert result.history[-1]["recon"] < 0.8 * result.history[0]["recon"]
    assert (model.encode(x) > 0).any(0).all()


@pytest.mark.parametrize("rate", [0.0, 1.5, "much"])
def test_errors(rate):
    with pytest.raises(ValueError, match="rate=.* must be a number above 0 and at most 1"):
        build(rate=rate)
