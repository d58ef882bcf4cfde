"""Figures on held-out data."""

import math

import pytest
import torch
from conftest import make_images

import aezoo


def test_every_sample_counts_once_whatever_the_batches():
    x, _ = make_images(50)
    model = aezoo.create_model("vae", input_shape=(1, 12, 12))
    model.eval()
    whole, parts = (aezoo.evaluate(model, x, batch_size=b, device="cpu") for b in (50, 7))
    error = (model.reconstruct(x) - x).square().detach().double().flatten(1)
    for result in (whole, parts):
        assert result["samples"]["mean"] == 50
        assert result["mse"]["mean"] == pytest.approx(float(error.mean()), rel=1e-5)
        assert result["squared_error"]["mean"] == pytest.approx(float(error.sum(1).mean()), rel=1e-5)
        assert result["mse"]["stderr"] == pytest.approx(float(error.mean(1).std() / 50**0.5), rel=1e-3)
        assert result["psnr"]["mean"] == pytest.approx(float((-10 * error.mean(1).log10()).mean()), rel=1e-4)
        assert result["kl"]["mean"] == pytest.approx(whole["kl"]["mean"], rel=1e-5)
        assert result["elbo"]["mean"] == pytest.approx(-result["recon"]["mean"] - result["kl"]["mean"], rel=1e-5)


def test_deterministic_and_leaves_no_trace():
    x, _ = make_images(20)
    model = aezoo.create_model("vae", input_shape=(1, 12, 12), corruption="masking").train()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    a, b, c = (aezoo.evaluate(model, x, seed=s, device="cpu") for s in (0, 0, 1))
    assert a == b and a["loss"] != c["loss"] and a["mse"] == c["mse"]
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_term_of_the_whole_batch_has_no_standard_error():
    x, _ = make_images(20)
    result = aezoo.evaluate(aezoo.create_model("sparse_ae", input_shape=(1, 12, 12), penalty="kl"), x, device="cpu")
    assert math.isnan(result["sparsity"]["stderr"]) and result["recon"]["stderr"] > 0


def test_data_that_does_not_fit():
    model = aezoo.create_model("ae", input_shape=(1, 12, 12), likelihood="bce")
    with pytest.raises(ValueError, match="divide by 255"):
        aezoo.evaluate(model, 255 * make_images(5)[0])
    with pytest.raises(ValueError, match="samples of shape"):
        aezoo.evaluate(model, torch.rand(5, 3))
