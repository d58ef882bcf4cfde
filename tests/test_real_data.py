"""Published and closed-form figures on the whole of MNIST and Fashion-MNIST."""

import pytest
import torch

import aezoo
from aezoo.flags import train_config

pytestmark = pytest.mark.real_data


def train(name, **changes):
    config, _, _ = train_config([name, *(f"--{k.replace('__', '.')}={v}" for k, v in changes.items())])
    torch.manual_seed(config["train"]["seed"])
    options = dict(config["model"])
    options.pop("input_shape")
    source = aezoo.load_data(config["data"])
    model = aezoo.create_model(options.pop("name"), input_shape=source.shape, **options)
    aezoo.fit(model, source, **{**config["train"], "progress": False})
    return model, aezoo.evaluate(model, aezoo.load_data({**config["data"], "split": "test"}))


@pytest.mark.slow
@pytest.mark.parametrize(("data", "pca"), [("mnist", 0.016828), ("fashion_mnist", 0.015142)])
def test_linear_ae_reaches_the_optimum_of_pca(data, pca):
    _, figures = train("linear_ae_mnist", data=data)
    print(f"linear_ae, 32 latents, {data}: test MSE {figures['mse']['mean']:.6f}, PCA {pca}")
    assert figures["mse"]["mean"] <= 1.01 * pca


@pytest.mark.slow
def test_the_vae_of_the_literature():
    """784-400-20 on dynamically binarised MNIST: nats per sample, about -105 after ten epochs."""
    model, figures = train("vae_mnist", train__epochs=2)
    print(f"vae, dynamically binarised MNIST, 2 epochs: test ELBO {figures['elbo']['mean']:.2f} nats")
    assert -135 < figures["elbo"]["mean"] < -100
    x = aezoo.load_data("mnist", split="test", binarize="dynamic", limit=100).peek(100, torch.device("cpu")).x
    with torch.no_grad():
        assert model.log_prob(x, 200).mean() > -model.loss(x).total


@pytest.mark.slow
def test_deep_ae_beats_pca_early():
    """PCA with 30 components leaves a squared error of 13.87 per image; the deep autoencoder is below after three epochs."""
    _, figures = train("deep_ae_mnist", train__epochs=3)
    print(f"deep_ae, 3 epochs: squared error {figures['squared_error']['mean']:.3f} per MNIST test image; PCA-30 13.87")
    assert figures["squared_error"]["mean"] < 0.8 * 13.87
