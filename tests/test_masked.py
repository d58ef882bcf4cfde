"""Patches, the masked autoencoder (arXiv:2111.06377) and classifiers on top of codes."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import fit, make_images
from torch import distributions as D

import aezoo
from aezoo import functional as fn
from aezoo import wholebatch
from aezoo.heads import Classifier, fit_probe

VIT = "vit(width=16, depth=1, heads=2, patch={}, decoder_width=16, decoder_depth=1)"


def mae(shape=(1, 12, 12), patch=3, **more):
    return aezoo.create_model("mae", input_shape=shape, latent_dim=8, backbone=VIT.format(patch), **more)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------- patches


@pytest.mark.parametrize(
    ("size", "patch"),
    [((12,), (4,)), ((13,), (4,)), ((2,), (5,)), ((6, 8), (3, 2)), ((7, 9), (3, 4)), ((4, 5, 6), (2, 5, 3)), ((5, 3, 7), (2, 2, 4))],
    ids=str,
)  # fmt: skip
def test_patchify_there_and_back(size, patch):
    x = torch.randn(3, 2, *size)
    patches = fn.patchify(x, patch)
    grid = fn.patch_grid(size, patch)
    assert torch.equal(fn.unpatchify(patches, patch, size), x)
    for n, corner in enumerate(itertools.product(*map(range, grid))):  # every patch element by element, edges repeated
        own = x
        for axis, (c, p, s) in enumerate(zip(corner, patch, size), start=2):
            own = own.index_select(axis, torch.arange(c * p, (c + 1) * p).clamp(max=s - 1))
        assert torch.equal(patches[:, n], own.flatten(2))


def test_rows_taken_and_put_back():
    x, index = rand(2, 5, 3), torch.tensor([[4, 0], [1, 2]])
    taken = fn.take_rows(x, index)
    assert torch.equal(taken[0], x[0, [4, 0]]) and torch.equal(taken[1], x[1, [1, 2]])
    put = fn.put_rows(torch.zeros_like(x), index, taken)
    assert torch.equal(fn.take_rows(put, index), taken) and (put.abs().sum(2) > 0).sum(1).tolist() == [2, 2]


# ------------------------------------------------------------------------------------------------------------- masking


@pytest.mark.parametrize(("ratio", "count", "masked"), [(0.75, 16, 12), (0.9, 10, 9), (0.7, 10, 7), (0.01, 16, 1), (0.999, 16, 15), (0.5, 2, 1)])  # fmt: skip
def test_exactly_the_fraction_is_hidden(ratio, count, masked):
    """10 patches at 0.9 hide 9: int(10 * (1 - 0.9)) = 0 in floating point would leave none visible."""
    model = mae((count,), 1, mask_ratio=ratio)
    visible, hidden = model.draw_mask(rand(50, count))
    assert hidden.shape == (50, masked) and visible.shape == (50, count - masked)
    assert torch.equal(torch.cat([visible, hidden], 1).sort(1).values, torch.arange(count).expand(50, count))


def test_every_patch_is_hidden_as_often_and_each_sample_has_its_own_mask():
    model = mae((16,), 1)
    _, hidden = model.draw_mask(rand(8000, 16))
    share = torch.zeros(8000, 16).scatter(1, hidden, 1.0)
    assert torch.allclose(share.mean(0), torch.full((16,), 0.75), atol=0.02)
    assert len(share.unique(dim=0)) > 1000


def test_masks_do_not_depend_on_how_the_batch_is_spread():
    model, x = mae(), rand(6, 1, 12, 12)
    torch.manual_seed(5)
    whole = model.draw_mask(x)
    for start, stop in ((0, 4), (4, 6)):
        torch.manual_seed(5)
        with wholebatch.spread(start, stop, 6):
            part = model.draw_mask(x[start:stop])
        assert all(torch.equal(p, w[start:stop]) for p, w in zip(part, whole))


def pixel_mask(model, hidden):
    """1 on the pixels of hidden patches, (B, *input_shape)."""
    layout = model.encoder.layout
    patches = torch.zeros(len(hidden), layout.num_patches, layout.channels, torch.Size(layout.patch).numel())
    patches.scatter_(1, hidden[:, :, None, None].expand(-1, -1, *patches.shape[2:]), 1.0)
    return fn.unpatchify(patches, layout.patch, layout.size).reshape(len(hidden), *model.input_shape)


def same_mask(model, monkeypatch, x):
    drawn = model.draw_mask(x)
    monkeypatch.setattr(model, "draw_mask", lambda x: drawn)
    return pixel_mask(model, drawn[1])


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 11, 7), (2, 17), (20,), (1, 5, 6, 7)], ids=str)
def test_the_loss_sees_hidden_patches_only(shape, monkeypatch):
    model, x = mae(shape).double(), rand(5, *shape).double()
    mask = same_mask(model, monkeypatch, x)
    out = model.propagate(x)
    noise = rand(5, *shape, seed=1)
    assert torch.equal(model.propagate(x, x + noise * (1 - mask)).terms["recon"], out.terms["recon"])
    assert (model.propagate(x, x + noise * mask).terms["recon"] != out.terms["recon"]).all()
    (gradient,) = torch.autograd.grad(out.terms["recon"].sum(), out.params)
    assert not gradient[:, 0][mask == 0].any() and (gradient[:, 0][mask == 1] != 0).all()


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 11, 7), (20,)], ids=str)
def test_the_encoder_sees_visible_patches_only(shape, monkeypatch):
    """Hidden pixels change neither the codes nor, with the target held, the loss; visible ones change both."""
    model, x = mae(shape).double(), rand(5, *shape).double()
    mask = same_mask(model, monkeypatch, x)
    out, noise = model.propagate(x), rand(5, *shape, seed=1)
    other = model.propagate(x + noise * mask, x)
    assert torch.equal(other.z, out.z) and torch.equal(other.terms["recon"], out.terms["recon"])
    other = model.propagate(x + noise * (1 - mask), x)
    assert not torch.allclose(other.z, out.z) and not torch.allclose(other.terms["recon"], out.terms["recon"])
    hidden = (out.z == 0).all(1).flatten(1).sum(1)
    assert (hidden == model.num_masked).all()


@pytest.mark.parametrize("likelihood", ["mse", "gaussian(sigma=0.5)", "gaussian(sigma='predicted')", "bernoulli", "l1"])
def test_the_loss_is_the_mean_over_hidden_pixels_or_their_density(likelihood, monkeypatch):
    """Section 3: "the mean squared error (MSE) [...] only on masked patches". With equal patches, their mean is the mean over their
    pixels. Dividing by all pixels, or scoring visible ones, is what this fails on."""
    model, x = mae((3, 12, 9), likelihood=likelihood).double(), rand(4, 3, 12, 9).double()
    mask = same_mask(model, monkeypatch, x)
    out = model.propagate(x)
    first = out.params[:, 0]
    elementwise = {
        "mse": (first - x).square(),
        "l1": (first - x).abs(),
        "gaussian(sigma=0.5)": -D.Normal(first, 0.5).log_prob(x),
        "bernoulli": F.binary_cross_entropy_with_logits(first, x, reduction="none"),
    }
    if "predicted" in likelihood:
        elementwise[likelihood] = -D.Normal(first, fn.soft_bound(out.params[:, 1], 7.0).exp()).log_prob(x)
    expected = (elementwise[likelihood] * mask).flatten(1).sum(1)
    if likelihood in ("mse", "l1"):
        expected = expected / mask.flatten(1).sum(1)
    assert torch.allclose(out.terms["recon"], expected, atol=1e-10)
    error = ((model.likelihood.mean(out.params) - x).square() * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)
    assert torch.allclose(out.metrics["masked_mse"], error, atol=1e-10)


def test_normalised_pixels(monkeypatch):
    """(t - mean) / sqrt(var + 1e-6) of each patch over all its channels: eps is under the root, which a nearly flat patch shows."""
    x = rand(2, 3, 6, 6).double()
    x[:, :, :3, :3] = 0.5 + 1e-3 * x[:, :, :3, :3]
    model = mae((3, 6, 6), 3, norm_pixels=True).double()
    got = model.targets(x)
    for n, (i, j) in enumerate(itertools.product((0, 3), (0, 3))):
        patch = x[:, :, i : i + 3, j : j + 3].flatten(1)  # (B, 27)
        mean = patch.mean(1, keepdim=True)
        var = (patch - mean).square().sum(1, keepdim=True) / 26
        assert torch.allclose(got[:, n].flatten(1), (patch - mean) / (var + 1e-6).sqrt(), rtol=1e-9)
    mask = same_mask(model, monkeypatch, x)
    out = model.propagate(x)
    wanted = fn.unpatchify(got, (3, 3), (6, 6))
    expected = ((out.params[:, 0] - wanted).square() * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)
    assert torch.allclose(out.terms["recon"], expected, atol=1e-10)
    brighter = model.propagate(x, 3 * x + 1)  # the target only; units cancel, up to eps
    assert torch.allclose(brighter.terms["recon"], out.terms["recon"], rtol=0.2)


# --------------------------------------------------------------------------------------------------------------- model


def test_code_and_reconstruction_use_all_patches():
    model, x = mae(), rand(3, 1, 12, 12)
    assert model.latent_shape == (8, 4, 4)
    z = model.encode(x)
    for corner in ((0, 0), (11, 11)):
        other = x.clone()
        other[(slice(None), slice(None), *corner)] += 1.0
        assert not torch.equal(model.encode(other), z)
    assert torch.equal(model.reconstruct(x), model.decode(z))


def ramps(n, seed):
    """Pictures that change linearly from left to right: a few patches tell the rest."""
    left, right = rand(2, n, 1, 1, seed=seed)
    t = torch.linspace(0, 1, 12)
    return (left * (1 - t) + right * t).expand(n, 12, 12)[:, None].contiguous()


def test_it_fills_in_what_it_does_not_see():
    """Better than the mean picture, the best that takes no look at the visible patches."""
    x, held_out = ramps(256, 0), ramps(200, 1)
    model = aezoo.create_model(
        "mae", input_shape=(1, 12, 12), latent_dim=16, backbone="vit(width=32, depth=1, patch=3)"
    )
    result = fit(model, x, steps=150, batch_size=64, lr=3e-3, schedule="cosine")
    found = aezoo.evaluate(result.model, held_out, device="cpu")
    assert found["masked_mse"]["mean"] == pytest.approx(found["recon"]["mean"])
    assert found["masked_mse"]["mean"] < 0.6 * float((x - x.mean(0)).square().mean())


def test_resumed_training_is_the_same_run(tmp_path, monkeypatch):
    x = make_images(64)[0]
    runs = []
    for stop in (None, 3):
        torch.manual_seed(0)
        model, out = mae(corruption="gaussian(sigma=0.1)"), tmp_path / str(stop)
        if stop:
            fit(model, x, steps=8, out=out, checkpoint_every=1, callbacks=[lambda row: row["step"] < 4], log_every=1)
            model = mae(corruption="gaussian(sigma=0.1)")
        runs.append(
            fit(model, x, steps=8, out=out, checkpoint_every=1, log_every=1, resume=bool(stop)).model.state_dict()
        )
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"mask_ratio": 0}, "mask_ratio=0"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
        ({"patch": 12}, "at least 2 patches"),
        ({"patch": 1, "norm_pixels": True}, "at least 2 values"),
        ({"norm_pixels": True, "likelihood": "bce"}, "take likelihood='mse'"),
        ({"norm_pixels": True, "likelihood": "bernoulli"}, "take likelihood='gaussian'"),
    ],
)
def test_errors(keywords, message):
    with pytest.raises(ValueError, match=message):
        mae(**{"patch": 3, **keywords})


def test_other_backbones_do_not_fit():
    with pytest.raises(ValueError, match="allowed: vit"):
        aezoo.create_model("mae", input_shape=(1, 12, 12), backbone="conv")


# --------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("name", ["mae", "vae"])
def test_a_probe_is_the_logistic_regression_on_the_features(name):
    """The optimum of mean cross-entropy + weight_decay / 2 |W|^2 on standardised features: scikit-learn's, with C = 1 / (N decay)."""
    from sklearn import linear_model

    x = make_images(200)[0]
    y = x.mean((1, 2, 3)).argsort().argsort() // 67  # three classes, by the amount of light
    own = {"backbone": VIT.format(3)} if name == "mae" else {}
    model = aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=6, **own)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    probe = fit_probe(model, (x, y), weight_decay=1e-2)
    features = model.encode(x).flatten(2).mean(2) if name == "mae" else model.encode(x)
    features = features.detach().double()
    features = (features - features.mean(0)) / features.std(0, correction=0)
    reference = linear_model.LogisticRegression(C=1 / (200 * 1e-2), tol=1e-8, max_iter=1000).fit(
        features.numpy(), y.numpy()
    )
    expected = torch.from_numpy(reference.predict_proba(features.numpy()))
    assert torch.allclose(torch.softmax(probe(x), 1).double(), expected, atol=2e-3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not probe.features(x).requires_grad


def test_fine_tuning_reaches_the_encoder_and_beats_the_probe_it_starts_from(images):
    x, y = images
    model = aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=2, backbone="mlp(widths=(16,))")
    probe = fit_probe(model, (x, y))
    classifier = Classifier(model, 2, freeze=False)
    classifier.load_state_dict(probe.state_dict())
    start = F.cross_entropy(classifier(x), y)
    assert start.item() == pytest.approx(F.cross_entropy(probe(x), y).item())
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    for _ in range(30):
        loss = F.cross_entropy(classifier(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert F.cross_entropy(classifier(x), y) < 0.9 * start


def test_a_probe_needs_labels():
    model = aezoo.create_model("ae", input_shape=(4,), latent_dim=2)
    with pytest.raises(ValueError, match="labels"):
        fit_probe(model, torch.rand(8, 4))
    with pytest.raises(ValueError, match="labels must be 0, 1"):
        fit_probe(model, (torch.rand(8, 4), torch.arange(8) - 1))
