"""Backbones of residual blocks, of torchvision, and of the user's own modules."""

import copy
import sys

import pytest
import torch
from conftest import fit, make_images
from torch import nn

import aezoo
from aezoo.backbones import BACKBONES, Backbone
from aezoo.backbones.pretrained import Trunk, adapted
from aezoo.blocks import group_norm

SHAPES = [(1, 28, 28), (3, 17, 23), (17, 23), (1, 101), (30,), (1, 6, 7, 5), (1,), (2, 1, 9, 1), (32, 5, 3)]


def batch(shape, n=4, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def dead(model, x):
    model.loss(x).total.backward()
    return [k for k, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]


# -------------------------------------------------------------------------------------------------------------- resnet


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backbone", ["resnet(widths=(4, 8, 12))", "tiny(width=4, blocks=1)"])
def test_sizes_are_restored_exactly_for_flat_and_spatial_codes(backbone, shape):
    spec, x = BACKBONES.build(backbone), batch(shape)
    encoder, decoder = spec.build(shape, 5, 2, 3)
    assert encoder(x).shape == (4, 10) and decoder(torch.randn(4, 5)).shape == (4, 3, *shape)
    encoder, decoder, grid = spec.build_grid(shape, 5, 2, 3)
    size = shape[1:] or shape
    halvings = 2 if "resnet" in backbone else 3
    assert grid == tuple(-(-s // 2**halvings) for s in size)
    assert encoder(x).shape == (4, 10, *grid) and decoder(torch.randn(4, 5, *grid)).shape == (4, 3, *shape)


@pytest.mark.parametrize("shape", [(1, 13, 11), (30,), (2, 5, 6, 7)], ids=str)
@pytest.mark.parametrize("options", ["attention=True", "blocks=2, groups=2", "dropout=0.2"])
def test_resnet_trains_every_parameter_and_saves(shape, options, tmp_path):
    model = aezoo.create_model("vae", shape, latent_dim=3, backbone=f"resnet(widths=(8, 16), {options})")
    x = batch(shape)
    assert not dead(model, x)
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))
    assert ("attentions" in " ".join(model.state_dict())) == ("attention" in options)


def test_groups_divide_the_channels_and_leave_four_of_them():
    assert [group_norm(c).num_groups for c in (128, 512, 64, 48, 12, 6, 3)] == [32, 32, 16, 12, 3, 1, 1]
    assert [group_norm(c, 32).num_groups for c in (32, 48, 7)] == [32, 24, 7]  # as asked for, where it divides
    assert group_norm(128).eps == 1e-6


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("resnet(widths=())", "no level"),
        ("resnet(blocks=0)", "blocks=0"),
        ("resnet(groups=1.5)", r"groups=1\.5"),
        ("resnet(dropout=1)", "dropout"),
        ("tiny(width=0)", "width=0"),
        ("resnt", "Did you mean 'resnet'"),
    ],
)
def test_wrong_options_are_named(spec, match):
    with pytest.raises(ValueError, match=match):
        aezoo.create_model("ae", (1, 8, 8), backbone=spec)


def test_recomputing_activations_changes_nothing():
    x = batch((1, 12, 12), 8)
    weights = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = aezoo.create_model("ae", (1, 12, 12), latent_dim=4, backbone="resnet(widths=(8, 8), attention=True)")
        fit(model, x, steps=2, batch_size=8, recompute=recompute)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*weights, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- torchvision


@pytest.mark.parametrize(
    ("shape", "stem", "grid"), [((1, 33, 40), "small", (5, 5)), ((3, 65, 64), "imagenet", (3, 2))], ids=str
)
def test_torchvision_network_is_the_encoder(shape, stem, grid):
    spec = f"torchvision(model='resnet18', stem='{stem}', width=4)"
    model, x = aezoo.create_model("vae", shape, latent_dim=3, backbone=spec), batch(shape)
    assert not dead(model, x) and model.reconstruct(x).shape == x.shape
    spatial = aezoo.create_model("tiny_ae", shape, latent_dim=3, backbone=spec)
    assert spatial.latent_shape == (3, *grid) and spatial(x).recon.shape == x.shape
    layers = [m for m in model.encoder.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 20 and layers[0].in_channels == shape[0] and not hasattr(model.encoder[0].net, "fc")


def test_torchvision_stem_follows_the_size():
    for size, kernel in ((64, 3), (65, 7)):
        trunk = BACKBONES.build("torchvision")._parts((3, size, size))[0]
        assert trunk.net.conv1.kernel_size == (kernel, kernel)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_kernels_for_other_channel_counts_see_equal_channels_as_the_published_ones_do(channels):
    conv = nn.Conv2d(3, 8, 7, padding=3, bias=False)
    grey = batch((1, 9, 9))
    ours = nn.functional.conv2d(grey.expand(-1, channels, -1, -1), adapted(conv.weight, channels, False), padding=3)
    assert torch.allclose(ours, conv(grey.expand(-1, 3, -1, -1)), atol=1e-5)
    assert torch.equal(adapted(conv.weight, 3, True), conv.weight[:, :, 2:5, 2:5])


def test_published_weights_are_used_and_data_is_normalised(monkeypatch):
    from torchvision import models

    published = models.resnet18().eval()
    monkeypatch.setattr(models, "get_model", lambda name, weights: copy.deepcopy(published))
    x = batch((3, 40, 40))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    h = published.maxpool(
        published.relu(published.bn1(published.conv1((x - mean[:, None, None]) / std[:, None, None])))
    )
    for stage in (published.layer1, published.layer2, published.layer3, published.layer4):
        h = stage(h)
    assert torch.allclose(Trunk("resnet18", "DEFAULT", 3, small=False).eval()(x), h, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "shape", "match"),
    [
        ("torchvision(model='resnet81')", (3, 8, 8), "Did you mean 'resnet18'"),
        ("torchvision(weights='IMAGENET1K_V3')", (3, 8, 8), "Did you mean 'IMAGENET1K_V1'"),
        ("torchvision(stem='tiny')", (3, 8, 8), "small, imagenet"),
        ("torchvision(model='vit_b_16')", (3, 8, 8), "not known"),
        ("torchvision", (30,), "takes pictures"),
        ("torchvision(width=0)", (3, 8, 8), "width=0"),
    ],
)
def test_wrong_torchvision_options_are_named(spec, shape, match):
    with pytest.raises(ValueError, match=match):
        aezoo.create_model("ae", shape, backbone=spec)


def test_a_missing_torchvision_is_said_plainly(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match=r"torchvision.*does not load here.*backbone='resnet'"):
        aezoo.create_model("ae", (3, 8, 8), backbone="torchvision")


# ---------------------------------------------------------------------------------------------------------------- pair


class Encoder(nn.Module):
    def __init__(self, outputs, dims=144):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(dims), nn.Linear(dims, outputs))

    def forward(self, x):
        return self.layers(x)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Twice(nn.Module):
    def forward(self, x):
        return x, x


def decoder(latents, *shape):
    return nn.Sequential(nn.Linear(latents, torch.Size(shape).numel()), nn.Unflatten(1, shape))


@pytest.mark.parametrize(
    "shape", [(1, 12, 12), (1, 1, 12, 12)], ids=["data", "with the axis of the likelihood's numbers"]
)
def test_a_pair_of_modules_is_a_backbone(shape):
    pair = Encoder(8), decoder(4, *shape)
    model, x = aezoo.create_model("vae", (1, 12, 12), latent_dim=4, backbone=pair), batch((1, 12, 12))
    assert model.encoder is pair[0] and not dead(model, x) and model(x).recon.shape == x.shape
    assert copy.deepcopy(model).reconstruct(x).equal(model.reconstruct(x))
    two = aezoo.create_model(
        "vae",
        (12, 12),
        latent_dim=4,
        backbone=[Encoder(8), decoder(4, 2, 12, 12)],
        likelihood="gaussian(sigma='predicted')",
    )
    assert two(x[:, 0]).recon.shape == (4, 12, 12)


def test_building_a_pair_leaves_modes_statistics_and_random_numbers_alone():
    encoder, noisy = Encoder(4), nn.Sequential(decoder(4, 1, 12, 12), Noise())
    encoder.layers[1].eval()
    before = torch.get_rng_state()
    aezoo.create_model("ae", (1, 12, 12), latent_dim=4, backbone=(encoder, noisy))
    assert torch.equal(before, torch.get_rng_state())
    assert encoder.training and not encoder.layers[1].training and encoder.layers[2].training
    assert encoder.layers[2].num_batches_tracked == 0


def test_spatial_models_take_pairs_with_maps():
    encoder = nn.Conv2d(3, 8, 4, stride=4)
    model = aezoo.create_model(
        "autoencoder_kl", (3, 12, 8), latent_dim=4, backbone=(encoder, nn.ConvTranspose2d(4, 3, 4, stride=4))
    )
    assert model.latent_shape == (4, 3, 2) and not dead(model, batch((3, 12, 8)))
    with pytest.raises(
        ValueError, match=r"the encoder returns shape \(2, 8\).*expected is \(2, 8, \*grid\), 2 numbers"
    ):
        aezoo.create_model("autoencoder_kl", (1, 12, 12), latent_dim=4, backbone=(Encoder(8), decoder(4, 1, 12, 12)))


@pytest.mark.parametrize(
    ("pair", "error", "match"),
    [
        (
            (Encoder(4), decoder(4, 1, 12, 12)),
            ValueError,
            r"encoder returns shape \(2, 4\).*\(2, 8\), 2 numbers for each of 4",
        ),
        ((nn.Conv2d(1, 8, 12), decoder(4, 1, 12, 12)), ValueError, r"\(2, 8, 1, 1\).*nn\.Flatten"),
        (
            (Encoder(8), decoder(4, 1, 12, 11)),
            ValueError,
            r"decoder returns shape \(2, 1, 12, 11\).*\(2, 1, 1, 12, 12\)",
        ),
        ((Encoder(8), decoder(3, 1, 12, 12)), ValueError, r"decoder \(Sequential\) fails on a batch of shape \(2, 4\)"),
        ((Encoder(8, dims=100), decoder(4, 1, 12, 12)), ValueError, r"encoder \(Encoder\) fails.*\(2, 1, 12, 12\)"),
        ((nn.LSTM(12, 8), decoder(4, 1, 12, 12)), ValueError, r"encoder \(LSTM\) fails"),
        ((Twice(), decoder(4, 1, 12, 12)), TypeError, "returns tuple, not a tensor"),
        ((Encoder(8),), TypeError, r"backbone=\(Encoder\) must be two modules"),
        ((Encoder(8), "mlp"), TypeError, r"\(Encoder, str\)"),
    ],
)
def test_pairs_that_do_not_fit_are_told_what_is_expected(pair, error, match):
    with pytest.raises(error, match=match):
        aezoo.create_model("vae", (1, 12, 12), latent_dim=4, backbone=pair)


def test_a_pair_cannot_be_saved_by_name_and_that_is_known_before_the_first_step(tmp_path):
    x, _ = make_images(16)
    model = aezoo.create_model("ae", (1, 12, 12), latent_dim=4, backbone=(Encoder(4), decoder(4, 1, 12, 12)))
    message = r"(?s)Register a backbone.*@aezoo\.backbones\.BACKBONES\.register.*return Encoder\(\.\.\.\), Sequential"
    with pytest.raises(TypeError, match=message):
        model.save_pretrained(tmp_path / "model")
    steps = []
    with pytest.raises(TypeError, match=message):
        fit(model, x, steps=1, out=tmp_path / "run", callbacks=steps.append)
    assert not steps and not list(tmp_path.iterdir())
    assert fit(model, x, steps=2).history[-1]["step"] == 2  # without a folder it trains


def test_the_advice_in_the_message_works(tmp_path, monkeypatch):
    monkeypatch.setattr(BACKBONES, "entries", dict(BACKBONES.entries))

    @BACKBONES.register("mine")
    class Mine(Backbone):
        def build(self, input_shape, latent_dim, code_params=1, num_params=1):
            return Encoder(code_params * latent_dim), decoder(latent_dim, num_params, *input_shape)

    model, x = aezoo.create_model("vae", (1, 12, 12), latent_dim=4, backbone="mine"), batch((1, 12, 12))
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))
