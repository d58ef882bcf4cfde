"""The contract of `BaseAE`, over every registered model x backbone x shape. A new model is covered without touching this file."""

import copy
import re

import pytest
import torch

import aezoo

SHAPES = [(1, 28, 28), (3, 32, 32), (17, 23), (1, 101), (3, 64, 48), (30,), (4, 128), (1, 6, 7, 5)]
MODELS = aezoo.list_models()
BACKBONES = ["mlp", "conv"]
SMALL = "mlp(widths=(16,))"
FREE = [name for name in MODELS if not aezoo.registry.MODELS[name].backbones]  # take any backbone
CASES = [(name, b) for name in MODELS for b in (BACKBONES if name in FREE else [None])]


def build(name, shape, backbone="mlp", **more):
    """`backbone` counts for models that take any; the others are built around networks of their own."""
    chosen = {"backbone": backbone} if name in FREE else {}
    return aezoo.create_model(name, input_shape=shape, latent_dim=8, **chosen, **more)


def batch(shape, n=6, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def some(pieces, n):
    """(name, piece): for `ae` and `vae` every piece, for each other model `n` of them, a different choice from one to the next."""
    chosen = []
    for i, name in enumerate(MODELS):
        k = len(pieces) if name in ("ae", "vae") else n
        chosen += [(name, pieces[(i + j * len(pieces) // k) % len(pieces)]) for j in range(k)]
    return chosen


FLAT = SHAPES[::3]  # an mlp flattens whatever comes


@pytest.mark.parametrize(
    ("name", "backbone", "shape"), [(n, b, s) for n, b in CASES for s in (FLAT if b == "mlp" else SHAPES)], ids=str
)
def test_contract(name, backbone, shape, tmp_path):
    model, x = build(name, shape, backbone), batch(shape)

    out = model(x)
    assert out.recon.shape == x.shape and out.recon.dtype == x.dtype
    assert out.z.shape == (6, *model.latent_shape)
    assert "recon" in out.terms and all(t.shape in ((6,), ()) for t in out.terms.values())

    loss = model.loss(x)
    assert loss.total.shape == () and torch.isfinite(loss.total)
    weights = model.term_weights()
    assert torch.allclose(loss.total, sum(weights.get(k, 1.0) * v for k, v in loss.terms.items()))
    loss.total.backward()
    dead = [k for k, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not dead, f"no gradient reaches {dead}"

    before = torch.get_rng_state()
    model.train()
    z = model.encode(x)
    assert torch.equal(z, model.encode(x)) and torch.equal(model.reconstruct(x), model.decode(z))
    assert torch.equal(before, torch.get_rng_state()), "encode or reconstruct used the global RNG"
    assert model.training and model.decode(z).shape == x.shape

    model.save_pretrained(tmp_path / "m")
    again = aezoo.from_pretrained(tmp_path / "m")
    assert torch.equal(again.reconstruct(x), model.reconstruct(x)) and type(again) is type(model) and not again.training

    assert (model.prior is not None) == type(model).generative
    if model.prior is not None:
        assert model.sample(3).shape == (3, *shape)
    else:
        with pytest.raises(ValueError, match="prior"):
            model.sample(3)


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_loss_falls_on_one_batch(name, backbone):
    model, x = build(name, (1, 12, 12), backbone), batch((1, 12, 12), 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        total, terms, _ = model.loss(x)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        model.after_step()
        losses.append(
            float((terms["recon"] if model.game else total).detach())
        )  # of a game no sum falls: what one side wins the other loses
    reached = sorted(losses)[15] if model.game else sum(losses[-5:]) / 5
    assert reached < losses[0] - 0.05 * abs(losses[0])


@pytest.mark.parametrize("name", MODELS)
def test_dtype_and_copies(name):
    model, x = build(name, (1, 8, 8)).double(), batch((1, 8, 8)).double()
    out = model(x)
    assert out.recon.dtype == out.z.dtype == model.loss(x).total.dtype == torch.float64
    twin = copy.deepcopy(model)
    assert torch.equal(twin.reconstruct(x), model.reconstruct(x))
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(twin.reconstruct(x), model.reconstruct(x))
    assert torch.equal(model.to(torch.float32).reconstruct(x.float()), model.reconstruct(x.float()))


@pytest.mark.parametrize("name", MODELS)
def test_float64_survives_saving(name, tmp_path):
    model, x = build(name, (5,)).double(), batch((5,)).double()
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    assert again.reconstruct(x).dtype == torch.float64 and torch.equal(again.reconstruct(x), model.reconstruct(x))


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_autocast_keeps_losses_in_float32(name):
    model, x = build(name, (1, 8, 8)), batch((1, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x)
    assert loss.total.dtype == torch.float32 and torch.isfinite(loss.total)
    loss.total.backward()


@pytest.mark.parametrize("name", [n for n in MODELS if aezoo.registry.MODELS[n].takes_condition])
def test_models_that_are_told_labels(name, tmp_path):
    """What each method returns, and that labels reach what it returns, through `fit` and `evaluate`, too."""
    model, x = build(name, (1, 8, 8), SMALL, num_classes=3), batch((1, 8, 8), 12)
    labels = torch.arange(12) % 3
    out, loss = model(x, condition=labels), model.loss(x, condition=labels)
    assert out.recon.shape == x.shape and out.z.shape == (12, *model.latent_shape) and torch.isfinite(loss.total)
    weights = model.term_weights()
    assert torch.allclose(loss.total, sum(weights.get(k, 1.0) * v for k, v in loss.terms.items()))
    loss.total.backward()
    dead = [k for k, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not dead, f"no gradient reaches {dead}"

    def seen(labels):
        torch.manual_seed(1)
        with torch.no_grad():
            return model.eval().loss(x, condition=labels).total

    assert not torch.equal(seen(labels), seen((labels + 1) % 3))
    for wrong in (labels[:5], torch.rand(12)):
        with pytest.raises((ValueError, TypeError), match="condition"):
            model.loss(x, condition=wrong)
    z = model.encode(x, condition=labels)
    assert torch.equal(z, model.encode(x, condition=labels))
    assert torch.equal(model.reconstruct(x, condition=labels), model.decode(z, condition=labels))
    told = torch.utils.data.TensorDataset(x, labels)
    rows = aezoo.fit(model, told, val=told, epochs=1, batch_size=6, progress=False, device="cpu").history
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    figures = aezoo.evaluate(again, told, metrics="loss", progress=False)
    assert figures["loss"]["mean"] == pytest.approx(rows[-1]["val_loss"], rel=0.2)
    assert "classes" not in loss.terms or figures["classes"]["mean"] == pytest.approx(rows[-1]["val_classes"], rel=1e-4)


LIKELIHOODS = [
    "mse", "bce", "l1", "huber(delta=0.5)", "gaussian", "gaussian(sigma=0.5)", "gaussian(sigma='learned')", "gaussian(sigma='predicted')",
    "laplace", "laplace(scale='predicted')", "bernoulli", "continuous_bernoulli", "logistic_mixture(components=3)",
]  # fmt: skip
CORRUPTIONS = [
    "gaussian(sigma=(0.0, 0.5))", "masking(p=0.5)", "salt_and_pepper(p=(0.1, 0.3))", "speckle", "gaussian(sigma=0.1, where='latent')",
    "masking(when='always')",
]  # fmt: skip


@pytest.mark.parametrize(("name", "likelihood"), some(LIKELIHOODS, 5))
def test_any_likelihood(name, likelihood):
    cls = aezoo.registry.MODELS[name]
    plain = likelihood.split("(")[0] in ("mse", "bce", "l1", "huber")
    if cls.bound and plain:
        with pytest.raises(ValueError, match="nats"):
            build(name, (1, 9, 7), likelihood=likelihood)
        return
    if ("predicted" in likelihood or "mixture" in likelihood) and name.startswith("tied"):
        # the encoder's weights, transposed, give one number per element: there are none for a scale
        with pytest.raises(ValueError, match="tied=True needs a likelihood with one decoder output per element"):
            build(name, (1, 9, 7), cls.__signature__.parameters["backbone"].default, likelihood=likelihood)
        return
    model, x = build(name, (1, 9, 7), SMALL, likelihood=likelihood), batch((1, 9, 7))
    loss = model.loss(x)
    loss.total.backward()
    assert torch.isfinite(loss.total) and model.reconstruct(x).shape == x.shape
    if model.likelihood.support:
        assert model.reconstruct(x).min() >= 0 and model.reconstruct(x).max() <= 1
    assert model.units == ("mean over dims" if plain else "nats per sample")


@pytest.mark.parametrize(("name", "corruption"), some(CORRUPTIONS, 3))
def test_any_corruption(name, corruption):
    if name == "unet_denoiser" and "latent" in corruption:  # its skip connections leave no code that noise could act on
        with pytest.raises(ValueError, match="latent"):
            build(name, (1, 9, 7), corruption=corruption)
        return
    model, x = build(name, (1, 9, 7), SMALL, corruption=corruption), batch((1, 9, 7))
    model.loss(x).total.backward()
    clean = model.reconstruct(x)
    model.eval()
    assert torch.equal(clean, model.reconstruct(x))
    torch.manual_seed(1)
    a = model(x).recon
    torch.manual_seed(1)
    for c in model.corruptions:
        c.when = "training"
    b = model(x).recon
    assert torch.equal(a, b) == ("always" not in corruption)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in FREE])
def test_a_backbone_that_does_not_fit_is_refused(name):
    own = aezoo.registry.MODELS[name].backbones
    other = next(b for b in aezoo.backbones.BACKBONES if b not in own)
    with pytest.raises(ValueError, match=f"allowed: {', '.join(own)}"):
        aezoo.create_model(name, input_shape=(1, 8, 8), backbone=other)


@pytest.mark.parametrize("backbone", ["mlp(tied=True)", "conv(tied=True)", "linear(tied=True)"])
@pytest.mark.parametrize("name", FREE)
def test_tied_weights(name, backbone, tmp_path):
    model, x = build(name, (2, 9, 7), backbone), batch((2, 9, 7))
    model.loss(x).total.backward()
    free = build(name, (2, 9, 7), backbone.replace("True", "False"))
    assert model.num_parameters < free.num_parameters
    assert not [k for k in model.state_dict() if k.startswith("decoder") and k.endswith("weight")]
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_says_what_it_is(name):
    cls = aezoo.registry.MODELS[name]
    assert cls.__doc__ and cls.paper and ("Paper" in cls.__doc__ or cls.paper.split()[0] in cls.__doc__)
    assert re.search(r"\bDeviations?( from the paper)?:\s\S", cls.__doc__), (
        "in what it deviates from its paper ('none' is an answer)"
    )
    assert re.search(r"[xy]\^|E_q\[|E\[|\|\||\|sg|ELBO|L_k|relu\(|exp\(", cls.__doc__), "a formula in symbols"
    signature = aezoo.registry.signature(cls)
    assert all(p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in signature.parameters.values())


@pytest.mark.parametrize("backbone", ["mlp(widths=(16,), norm='batch')", "mlp(norm='layer', dropout=0.3)", "conv(norm='batch')",
                                      "conv(widths=(8,), kernel=5, norm='layer', dropout=0.2)", "linear"])  # fmt: skip
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu", "silu", "elu", "leaky_relu", "softplus"])
def test_backbone_options(backbone, activation):
    spec = (
        backbone
        if backbone == "linear"
        else backbone[:-1] + f", activation='{activation}')"
        if "(" in backbone
        else backbone
    )
    model, x = build("vae", (3, 11, 6), spec), batch((3, 11, 6))
    model.loss(x).total.backward()
    before = torch.get_rng_state()
    assert torch.equal(model.encode(x), model.encode(x)) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(2,), (1,), (1, 1), (1, 2, 3), (3, 1, 1), (32, 32, 3), (2, 1, 9, 1)], ids=str)
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_conv_returns_exactly_the_input_size(shape, kernel):
    model = build("conv_ae", shape, f"conv(widths=(4, 8), kernel={kernel})")
    assert model(batch(shape)).recon.shape == (6, *shape)
