"""Bad input gets an error that names the value, what is allowed, and the nearest right spelling."""

import pytest
import torch

import aezoo


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("vea", {}, "Did you mean 'vae'"),
        ("vae", {"latnet_dim": 3}, "Did you mean 'latent_dim'"),
        ("vae", {"widths": (3,)}, "belongs to the backbone"),
        ("vae", {"latent_dim": 0}, "latent_dim=0 must be an integer of at least 1"),
        ("vae", {"latent_dim": 2.5}, "latent_dim=2.5"),
        ("vae", {"likelihood": "gausian"}, "Did you mean 'gaussian'"),
        ("vae", {"likelihood": "mse"}, "take likelihood='gaussian'"),
        ("vae", {"likelihood": "bce"}, "bernoulli"),
        ("vae", {"likelihood": "gaussian(sigma=-1)"}, "sigma=-1"),
        ("vae", {"likelihood": "gaussian(sigma='lerned')"}, "Did you mean 'learned'"),
        ("vae", {"beta": -1}, "beta=-1"),
        ("ae", {"corruption": "masking(p=1.5)"}, r"p=1.5 must be .* within \[0, 1\]"),
        ("ae", {"corruption": "gaussian(sigma=(0.5, 0.1))"}, "range"),
        ("ae", {"corruption": "gaussian(where='code')"}, "allowed: input, latent"),
        ("ae", {"corruption": "gaussian(0.3)"}, "write it like"),
        ("ae", {"corruption": {"sigma": 0.3}}, "has no 'name'"),
        ("ae", {"corruption": 3}, "corruption must be a name"),
        ("ae", {"backbone": "mlp(widths=(0,))"}, "positive integers"),
        ("ae", {"backbone": "mlp(activation='rellu')"}, "Did you mean 'relu'"),
        ("ae", {"backbone": "mlp(dropout=1.0)"}, "dropout=1.0"),
        ("ae", {"backbone": "mlp(width=(3,))"}, "Did you mean 'widths'"),
        ("ae", {"backbone": "conv(kernel=4)"}, "odd"),
        ("ae", {"backbone": "mlp(norm='bach')"}, "Did you mean 'batch'"),
        ("k_sparse_ae", {"k": 999}, "k=999 must be an integer from 1 to"),
        ("k_sparse_ae", {"alpha": 0.5}, "alpha=0.5"),
        ("sparse_ae", {"penalty": "l2"}, "allowed: l1, kl"),
        ("sparse_ae", {"rho": 1.0}, "rho=1.0"),
        ("stacked_denoising_ae", {"pretrain": 1.0}, "pretrain=1.0"),
    ],
)
def test_create_model(name, keywords, message):
    with pytest.raises((ValueError, TypeError), match=message):
        aezoo.create_model(name, input_shape=(1, 8, 8), **keywords)


@pytest.mark.parametrize("shape", [(), (1, 2, 3, 4, 5), (0, 3), (-1, 3), (2.5,), "28", None])
def test_input_shape(shape):
    with pytest.raises((ValueError, TypeError), match="input_shape"):
        aezoo.create_model("ae", input_shape=shape)


def test_direct_construction_is_checked_as_well():
    with pytest.raises(TypeError, match="Did you mean 'latent_dim'"):
        aezoo.models.VAE((3,), latent_dims=3)
    with pytest.raises(TypeError, match="input_shape"):
        aezoo.models.VAE()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 3, 8, 8), "it has 3 channels and the model takes 1"),
        (torch.zeros(4, 8, 8, 1), "channels-last"),
        (torch.zeros(1, 8, 8), "batch axis is missing"),
        (torch.zeros(4, 64), r"x.reshape\(-1, 1, 8, 8\)"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), r"x.float\(\) / 255"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.long), "int64"),
        (
            torch.zeros(4, 1, 8, 8, dtype=torch.float64),
            r"float64, but the model's weights are torch.float32; pass x.to",
        ),
        (torch.zeros(0, 1, 8, 8), "empty batch"),
        ([[1.0]], "must be a tensor"),
    ],
)
def test_batches(x, message):
    model = aezoo.create_model("ae", input_shape=(1, 8, 8))
    for call in (model, model.loss, model.encode, model.reconstruct):
        with pytest.raises((ValueError, TypeError), match=message):
            call(x)


def test_codes_and_conditions():
    model = aezoo.create_model("ae", input_shape=(4,), latent_dim=3)
    with pytest.raises(ValueError, match=r"decodes \(batch, 3\)"):
        model.decode(torch.zeros(2, 4))
    for z, message in [([1.0], "z must be a tensor"), (torch.zeros(2, 3, dtype=torch.long), "z has dtype")]:
        with pytest.raises(TypeError, match=message):
            model.decode(z)
    with pytest.raises(ValueError, match="no condition"):
        model.loss(torch.zeros(2, 4), condition=torch.zeros(2))
    with pytest.raises(ValueError, match="no log-likelihood"):
        model.log_prob(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="n=0"):
        aezoo.create_model("vae", input_shape=(4,)).sample(0)


def test_registry_names_are_unique_and_did_you_mean_is_case_blind():
    with pytest.raises(ValueError, match="is taken"):

        @aezoo.register("vae")
        class Other(aezoo.BaseAE):
            pass

    with pytest.raises(ValueError, match="Did you mean 'conv_vae'"):
        aezoo.create_model("Conv-VAE", input_shape=(3,))


def test_saving_needs_a_registered_class(tmp_path):
    class Mine(aezoo.models.AE):
        """Not registered."""

    with pytest.raises(TypeError, match="register"):
        Mine((3,)).save_pretrained(tmp_path)


def test_list_models():
    assert {"beta_vae", "conv_vae", "vae"} <= set(aezoo.list_models("*vae*")) and "ae" not in aezoo.list_models("*vae*")
    assert aezoo.list_models("nothing*") == [] and aezoo.list_models(pretrained=True) == []
    assert aezoo.list_models() == sorted(aezoo.list_models())


def test_a_prior_can_be_given_to_any_model():
    class Ones(torch.nn.Module):
        def sample(self, n, shape, like, generator=None):
            return torch.ones(n, *shape)

    for name in ("ae", "vae"):
        model = aezoo.create_model(name, input_shape=(4,), latent_dim=3)
        model.prior = Ones()
        assert torch.equal(model.sample(2), model.decode(torch.ones(2, 3)))


def test_numbers_of_numpy(tmp_path):
    import numpy as np

    model = aezoo.create_model("vae", input_shape=(np.int64(4),), latent_dim=np.int64(3), beta=np.float32(2.0))
    assert aezoo.from_pretrained(model.save_pretrained(tmp_path)).config["latent_dim"] == 3


def test_half_precision_models_run():
    for name in aezoo.list_models():
        model = aezoo.create_model(name, input_shape=(6,), latent_dim=4).to(torch.bfloat16)
        loss = model.loss(torch.rand(4, 6, dtype=torch.bfloat16))
        assert loss.total.dtype == torch.float32 and torch.isfinite(loss.total)


def test_series_with_the_axes_the_other_way_round_are_not_told_to_reshape():
    with pytest.raises(ValueError, match=r"x.transpose\(1, 2\)"):
        aezoo.create_model("conv_ae", input_shape=(4, 128))(torch.zeros(2, 128, 4))
