"""Regularised autoencoders: three ways to keep a decoder smooth."""

import pytest
import torch

import aezoo


def model_of(latents=3, **more):
    torch.manual_seed(0)
    more = {"backbone": "mlp(widths=(7,), activation='tanh')", **more}
    return aezoo.create_model("rae", input_shape=(5,), latent_dim=latents, **more).double()


def data(n=4):
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def brute_force(model, z):
    """||dD(z)/dz||_F^2 per sample by torch.autograd.functional.jacobian."""

    def one(row):
        return model.likelihood.mean(model.decoder(row[None]))[0]

    return torch.stack([torch.autograd.functional.jacobian(one, row, create_graph=True).square().sum() for row in z])


@pytest.mark.parametrize("likelihood", ["mse", "bce", "gaussian(sigma='predicted')"])
def test_gradient_penalty_is_the_jacobian_by_z(likelihood):
    """arXiv:1903.12436, RAE-GP: of the decoder's mean by z. By x, of the logits, or of the summed output it is another."""
    model, x = model_of(penalty="gp", probes=0, likelihood=likelihood), data()
    out = model(x.sigmoid())
    assert torch.allclose(out.terms["decoder"], brute_force(model, out.z), rtol=1e-10)
    by_x = torch.stack(
        [torch.autograd.functional.jacobian(lambda r: model.reconstruct(r[None])[0], r).square().sum() for r in x]
    )
    assert not torch.allclose(out.terms["decoder"], by_x, rtol=0.1)


def test_probes_estimate_it_without_bias():
    model, x = model_of(penalty="gp", probes=2000), data()
    z = model.encode(x).detach()
    exact = brute_force(model, z)
    assert torch.allclose(model.slope(z), exact, rtol=0.1)
    model.probes = 1
    assert not torch.allclose(model.slope(z), exact, rtol=1e-3)


@pytest.mark.parametrize("probes", [0, 2])
def test_second_derivative_reaches_decoder_and_encoder(probes):
    """The penalty's gradient by every weight against finite differences along a random direction."""
    model, x = model_of(penalty="gp", probes=probes), data()

    def penalty():
        torch.manual_seed(1)
        return model(x).terms["decoder"].mean()

    parameters = list(model.parameters())
    gradients = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    parts = {"encoder": list(model.encoder.parameters()), "decoder": list(model.decoder.parameters())}
    for part in parts.values():
        directions = {id(p): torch.randn_like(p) for p in part}
        slope = sum(
            (g * directions[id(p)]).sum()
            for p, g in zip(parameters, gradients)
            if id(p) in directions and g is not None
        )
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                for p in part:
                    p.add_(step * directions[id(p)])
            values.append(float(penalty().detach()))
        with torch.no_grad():
            for p in part:
                p.add_(1e-5 * directions[id(p)])
        wanted = (values[0] - values[1]) / 2e-5
        assert abs(wanted) > 1e-4 and float(slope) == pytest.approx(wanted, rel=1e-5)


def test_penalty_is_that_of_the_decoder_in_use():
    """No dropout, and batch norms by their running moments, which it leaves alone; also where no gradient is wanted."""
    model, x = model_of(penalty="gp", probes=0, backbone="mlp(widths=(7,), norm='batch', dropout=0.5)"), data(8)
    out = model(x)
    norm = next(m for m in model.decoder.modules() if isinstance(m, torch.nn.BatchNorm1d))
    assert int(norm.num_batches_tracked) == 1 and model.training and norm.training
    with torch.no_grad():
        slope = model.slope(out.z)
        assert torch.isfinite(model(x).terms["decoder"]).all()
    out.terms["decoder"].sum().backward()
    model.eval()
    assert torch.allclose(model.slope(out.z), brute_force(model, out.z)) and slope.shape == (8,)


def test_total_and_latent_term():
    """arXiv:1903.12436, L_RAE: recon + beta |z|^2 / 2 + lambda R."""
    model, x = model_of(penalty="l2", beta=0.3, weight=0.02), data()
    out, loss = model(x), model.loss(x)
    assert torch.allclose(out.terms["latent"], 0.5 * out.z.square().sum(1))
    weights = sum(p.square().sum() for p in model.decoder.parameters())
    assert torch.allclose(out.terms["decoder"], weights)
    wanted = (out.recon - x).square().mean() + 0.3 * out.terms["latent"].mean() + 0.02 * weights
    assert torch.allclose(loss.total, wanted)


def test_l2_counts_weights_that_the_decoder_shares():
    model = model_of(penalty="l2", backbone="mlp(widths=(7,), tied=True)")
    everything = [*model.decoder.parameters(), *(b.layer.weight for b in model.encoder)]
    assert torch.allclose(model(data()).terms["decoder"], sum(p.square().sum() for p in everything))


@pytest.mark.parametrize("backbone", ["mlp(widths=(7,))", "conv(widths=(4,))"])
def test_spectral_norm(backbone, tmp_path):
    """Every decoder weight, as a matrix, has the largest singular value 1; the encoder's have not."""
    model, x = model_of(penalty="sn", backbone=backbone), data()
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.mul_(3)
    for _ in range(100):  # one power iteration each
        model.loss(x)
    layers = [m for m in model.decoder.modules() if hasattr(m, "parametrizations")]
    assert len(layers) == 2
    for layer in layers:
        transposed = isinstance(layer, torch.nn.modules.conv._ConvTransposeNd)
        matrix = (layer.weight.transpose(0, 1) if transposed else layer.weight).flatten(1)
        assert float(torch.linalg.matrix_norm(matrix.detach(), 2)) == pytest.approx(1, rel=1e-3)
    assert not [k for k, _ in model.encoder.named_parameters() if "parametrizations" in k]
    assert "decoder" not in model(x).terms
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


@pytest.mark.parametrize("penalty", ["l2", "gp", "sn"])
def test_training_and_going_on(penalty, tmp_path, images):
    def run(**more):
        torch.manual_seed(0)
        model = aezoo.create_model(
            "rae", input_shape=(1, 12, 12), latent_dim=4, penalty=penalty, backbone="mlp(widths=(32,))"
        )
        return aezoo.fit(model, images[0], batch_size=16, lr=5e-3, progress=False, device="cpu", **more)

    whole = run(epochs=6)
    assert whole.history[-1]["loss"] < 0.5 * whole.history[0]["loss"]
    run(epochs=3, out=tmp_path, schedule="constant")
    again = run(epochs=6, out=tmp_path, resume=True, schedule="constant")
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)


def test_penalty_makes_the_decoder_smoother(images):
    slopes = []
    for weight in (0.0, 1e-2):
        torch.manual_seed(0)
        model = aezoo.create_model(
            "rae", input_shape=(1, 12, 12), latent_dim=2, penalty="gp", weight=weight, backbone="mlp(widths=(32,))"
        )
        aezoo.fit(model, images[0], epochs=20, batch_size=16, lr=5e-3, progress=False, device="cpu")
        model.probes = 0
        slopes.append(float(model.slope(model.encode(images[0])).mean()))
    assert slopes[1] < 0.5 * slopes[0]


@pytest.mark.parametrize(
    "bad, words",
    [({"penalty": "gradient"}, "gp"), ({"beta": -1.0}, "beta=-1.0"), ({"weight": -1.0}, "weight=-1.0"), ({"probes": -1}, "probes=-1"),
     ({"probes": 1.5}, "probes=1.5"), ({"penalty": "sn", "backbone": "linear(tied=True)"}, "weights of their own")],
)  # fmt: skip
def test_errors(bad, words):
    with pytest.raises(ValueError, match=words):
        model_of(**bad)


@pytest.mark.parametrize(("penalty", "weight"), [("l2", 1e-6), ("gp", 1e-5), ("sn", 0.0)])
def test_default_weights_go_with_the_likelihoods_scale(penalty, weight):
    """A density is a sum over the 144 dims where a plain loss is a mean: |x - x^|^2 and |x - x^|^2 / 144 ask for weights of that ratio."""
    plain, density = (
        aezoo.create_model("rae", input_shape=(1, 12, 12), penalty=penalty, likelihood=likelihood)
        for likelihood in ("mse", "gaussian(sigma=0.7071067811865476)")
    )
    assert plain.term_weights() == {"latent": 1e-4, "decoder": weight}
    assert density.term_weights() == pytest.approx({"latent": 144e-4, "decoder": 144 * weight})
    if penalty == "gp":  # so the totals are the same up to that factor and a constant
        density.load_state_dict(plain.state_dict())
        totals = []
        for model in (plain, density):
            torch.manual_seed(0)
            totals.append([model.loss(x).total.detach() for x in (torch.zeros(3, 1, 12, 12), torch.ones(3, 1, 12, 12))])
        assert torch.allclose(totals[1][1] - totals[1][0], 144 * (totals[0][1] - totals[0][0]), rtol=1e-4)
