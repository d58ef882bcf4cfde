"""aae, vae_gan, soft_intro_vae: what each side's weights learn from, checked gradient by gradient in float64."""

import pytest
import torch

import aezoo
from aezoo import functional as fn
from aezoo.critics import held
from aezoo.models.adversarial import ShapedPrior, held_features


def build(name, **more):
    torch.manual_seed(1)
    options = {"input_shape": (1, 8, 8), "latent_dim": 4, "backbone": "mlp(widths=(16,))", **more}
    return aezoo.create_model(name, **options).double()


def data(n=10):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(2)).double()


def gradients(model, x, term, **told):
    """Of one term's mean alone, by parameter name; 0 where none reaches it."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    value = model(x, **told).terms[term].mean()
    value.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def size(found, part):
    return sum(float(g.abs().sum()) for n, g in found.items() if n.startswith(part))


@pytest.mark.parametrize(
    ("name", "term", "moves", "leaves"),
    [
        (
            "aae",
            "critic",
            ["critic"],
            ["encoder", "decoder"],
        ),  # arXiv:1511.05644, section 2: regularisation phase, the critic
        ("aae", "adversarial", ["encoder"], ["critic", "decoder"]),  # ... and the encoder
        ("vae_gan", "critic", ["critic"], ["encoder", "decoder"]),  # arXiv:1512.09300, algorithm 1
        ("vae_gan", "adversarial", ["decoder"], ["critic", "encoder"]),
        ("vae_gan", "features", ["encoder", "decoder"], ["critic"]),
        ("soft_intro_vae", "expelbo", ["encoder"], ["decoder"]),  # arXiv:2012.13253, algorithm 1
        ("soft_intro_vae", "fake_kl", ["decoder"], ["encoder"]),
        ("soft_intro_vae", "fake_recon", ["decoder"], ["encoder"]),
        ("soft_intro_vae", "kl", ["encoder"], ["decoder"]),
    ],
)
def test_each_term_moves_its_own_side_and_no_other(name, term, moves, leaves):
    found = gradients(build(name), data(), term)
    assert all(size(found, part) > 0 for part in moves)
    assert all(size(found, part) == 0 for part in leaves)


def test_one_backward_pass_gives_the_gradients_of_two_optimisers():
    """The critic's gradient of the total is that of its own cross-entropy on detached codes; the encoder's, that of its own aim."""
    model, x = build("aae", weight=0.3), data()
    torch.manual_seed(5)
    model.loss(x).total.backward()
    total = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    z = model.encoder(x)
    torch.manual_seed(5)
    wanted = model.prior.sample(len(x), (4,), z)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    one, zero = torch.ones(len(x), 1).double(), torch.zeros(len(x), 1).double()
    own = bce(model.critic(wanted), one) + bce(model.critic(z.detach()), zero)
    expected = torch.autograd.grad(own, list(model.critic.parameters()))
    for (n, _), g in zip(model.critic.named_parameters(), expected):
        torch.testing.assert_close(total[f"critic.{n}"], g)
    aim = (model.decoder(z)[:, 0] - x).square().mean() + 0.3 * bce(model.critic(z), one)
    expected = torch.autograd.grad(aim, list(model.encoder.parameters()))
    for (n, _), g in zip(model.encoder.named_parameters(), expected):
        torch.testing.assert_close(total[f"encoder.{n}"], g)


def test_vae_gan_feature_term_counts_gamma_times_for_the_decoder_and_once_for_the_encoder():
    """arXiv:1512.09300, algorithm 1: encoder KL + L_l, decoder gamma L_l + ..."""
    x = data()
    plain, scaled = (build("vae_gan", gamma=g) for g in (1.0, 5.0))
    a, b = gradients(plain, x, "features"), gradients(scaled, x, "features")
    assert scaled.term_weights()["features"] == 5.0
    for name in a:
        part = 5.0 * b[name]  # with its weight
        torch.testing.assert_close(part, (5.0 if name.startswith("decoder") else 1.0) * a[name])


def test_vae_gan_features_by_hand():
    """L_l = 1/2 ||f_l(x) - f_l(x~)||^2 of eq. 7, a sum over the features."""
    model, x = build("vae_gan"), data()
    torch.manual_seed(3)
    out = model(x)
    recon = model.likelihood.mean(model.emit(out.z))
    f, g = model.critic.features(x), model.critic.features(recon)
    torch.testing.assert_close(out.terms["features"], 0.5 * (f - g).square().flatten(1).sum(1))
    torch.testing.assert_close(held_features(model.critic, x), f)


def test_soft_intro_terms_by_hand():
    """arXiv:2012.13253, eq. 4 with alpha = 2: 1/2 exp(-2 s (recon + beta_neg KL)) of decoded draws."""
    model, x = build("soft_intro_vae", beta_neg=3.0), data()
    torch.manual_seed(3)
    got = model(x).terms
    torch.manual_seed(3)
    z, _ = model.draw(model.encoder(x))
    fake = model.decoder(torch.randn_like(z))[:, 0]
    mu, logvar = model.posterior(model.encoder(fake))
    code = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    recon = 0.5 * (fake - model.decoder(code)[:, 0]).square().flatten(1).sum(1) + 32 * torch.log(
        torch.tensor(2 * torch.pi)
    )
    torch.testing.assert_close(got["expelbo"], 0.5 * torch.exp(-2 / 64 * (recon + 3.0 * fn.gaussian_kl(mu, logvar))))
    torch.testing.assert_close(got["fake_kl"], fn.gaussian_kl(mu, logvar))


def test_held_passes_gradients_through_and_leaves_the_weights():
    layer = torch.nn.Linear(3, 2)
    x = torch.randn(4, 3, requires_grad=True)
    out = held(layer, x)
    assert torch.equal(out, layer(x))
    out.sum().backward()
    assert layer.weight.grad is None and x.grad.abs().sum() > 0


# ------------------------------------------------------------------------------------------------------------- aae's extras


@pytest.mark.parametrize("kind", ["normal", "uniform", "mixture", "swiss_roll"])
def test_priors_have_the_shape_that_their_name_says(kind):
    torch.manual_seed(0)
    z = ShapedPrior(kind).sample(4000, (4,), torch.zeros(1))
    radius = z[:, :2].norm(dim=1)
    if kind == "normal":
        assert abs(z.mean()) < 0.05 and abs(z.var() - 1) < 0.05
    elif kind == "uniform":
        assert z.min() >= -1 and z.max() <= 1 and abs(z.var() - 1 / 3) < 0.02
    elif kind == "mixture":
        turn = torch.atan2(z[:, 1], z[:, 0]) / (2 * torch.pi) * 10
        near = (turn - turn.round()).abs() < 0.2  # close to one of ten directions; 40 % would be by chance
        assert abs(radius.mean() - 2) < 0.1 and near.float().mean() > 0.8
    else:
        angle = 3 * torch.pi * radius / 2  # the radius tells the angle
        assert torch.allclose(z[:, 0], radius * torch.cos(angle), atol=1e-4) and 0.9 < radius.max() / 2 <= 1
    assert ShapedPrior(kind).sample(3, (5,), torch.zeros(1)).shape == (3, 5)


def test_semi_supervised_learns_classes_from_a_few_labels(images):
    x, y = images
    few = torch.where(torch.arange(len(y)) < 16, y, torch.full_like(y, -1))
    model = aezoo.create_model(
        "aae", input_shape=(1, 12, 12), latent_dim=4, num_classes=2, backbone="mlp(widths=(64,))"
    )
    aezoo.fit(model, (x, few), epochs=40, batch_size=32, lr=2e-3, progress=False, device="cpu")
    assert (model.classify(x).argmax(1) == y).float().mean() > 0.8
    z = model.sample(200)
    assert z.shape == (200, 1, 12, 12) and model.latent_shape == (6,)
    assert torch.allclose(model.encode(x)[:, 4:].sum(1), torch.ones(len(x)), atol=1e-5)


def test_labels_that_are_not_there_weigh_nothing():
    model, x = build("aae", num_classes=3), data()
    nobody = torch.full((len(x),), -1)
    found = model.loss(x, condition=nobody)
    assert float(found.terms["classes"].detach()) == 0
    some = torch.tensor([0, 1, 2, -1, -1, -1, -1, -1, -1, -1])
    h = model.encoder(x)[:, 4:]
    by_hand = torch.nn.functional.cross_entropy(h[:3], some[:3])
    torch.testing.assert_close(model.loss(x, condition=some).terms["classes"], by_hand)


def test_errors():
    with pytest.raises(ValueError, match="Did you mean 'mixture'"):
        build("aae", prior="mixtures")
    with pytest.raises(TypeError, match="sample"):
        build("aae", prior=3)
    with pytest.raises(ValueError, match="whole-numbered"):
        build("aae", num_classes=3).loss(data(), condition=torch.rand(10))
    with pytest.raises(ValueError, match="num_classes"):
        build("aae").classify(data())
    with pytest.raises(ValueError, match="gamma"):
        build("vae_gan", gamma=0.0)


def test_a_prior_of_the_users_own():
    class Corner(torch.nn.Module):
        def sample(self, n, shape, like, generator=None):
            return torch.full((n, *shape), 3.0, dtype=like.dtype, device=like.device)

    model = build("aae", prior=Corner())
    assert torch.equal(model.sample(2), model.decode(torch.full((2, 4), 3.0).double()))
    assert torch.isfinite(model.loss(data()).total)


GAMES = [name for name in aezoo.list_models() if aezoo.registry.MODELS[name].game]


@pytest.mark.parametrize("name", [*GAMES, "soft_intro_vae"])
def test_validation_losses_hold_no_opinion_of_a_critic(name):
    """The total of evaluation mode stays what it is, to the bit, when the critic's weights are others; that of training does not. Of
    soft_intro_vae, whose encoder is the critic, only recon and KL of the data count."""
    told = {"num_classes": 3} if name == "aae" else {}
    torch.manual_seed(1)
    model, x = aezoo.create_model(name, input_shape=(1, 8, 8), latent_dim=4, **told), data().float()

    def total(training):
        torch.manual_seed(5)
        loss = model.train(training).loss(x)
        return loss.total.detach(), loss.terms

    if name == "soft_intro_vae":
        loss, terms = total(False)
        assert torch.equal(loss, terms["recon"] * (1 / 64) + terms["kl"] * (1 / 64))
        return
    before, trained = total(False)[0], total(True)[0]
    before = total(False)[0]  # running statistics have seen a step
    with torch.no_grad():
        shaken = [p.add_(torch.randn_like(p)) for n, p in model.named_parameters() if "critic" in n]
    assert shaken and torch.equal(total(False)[0], before) and not torch.allclose(total(True)[0], trained)


def test_vae_gan_keeps_what_it_learned(images):
    """Its reconstructions and its best row are not those of the first epoch: the validation loss falls with the negative ELBO."""
    x = images[0]
    torch.manual_seed(3)
    model = aezoo.create_model(
        "vae_gan", input_shape=(1, 12, 12), latent_dim=4, backbone="mlp(widths=(32,))", widths=(8, 16)
    )
    result = aezoo.fit(model, x[:48], val=x[48:], epochs=6, batch_size=16, lr=3e-3, progress=False, device="cpu")
    assert result.best["epoch"] > 3
    for row in result.history:
        assert row["val_loss"] == pytest.approx(row["val_recon"] + row["val_kl"], rel=1e-5)


def test_classes_are_averaged_over_the_labelled():
    """arXiv:1511.05644, section 5: the cross-entropy of those that have a label, however few they are; 0 where none has."""
    model, x = build("aae", num_classes=3), data()
    labels = torch.tensor([0, 2, -1, -1, 1, -1, -1, -1, -1, -1])
    loss = model.loss(x, condition=labels)
    known = labels >= 0
    p = model.classify(x[known])
    wanted = -p[torch.arange(3), labels[known]].log().mean()
    assert torch.allclose(loss.terms["classes"], wanted)
    assert torch.allclose(loss.metrics["accuracy"], (p.argmax(1) == labels[known]).float().mean())
    parts = [model.loss(x[known][i : i + 1], condition=labels[known][i : i + 1]).terms["classes"] for i in range(3)]
    assert torch.allclose(torch.stack(parts).mean(), loss.terms["classes"])
    none = model.loss(x, condition=torch.full((10,), -1))
    assert none.terms["classes"] == 0 and none.metrics["accuracy"] == 0 and torch.isfinite(none.total)


def test_accuracy_of_a_validation_set_is_over_its_labelled(images):
    """Batches with many labels and with few: 13 of 40 samples have one."""
    x = images[0][:40]
    labels = torch.where(torch.arange(40) < 12, torch.arange(40) % 2, -1)
    labels[30] = 1
    torch.manual_seed(1)
    model = aezoo.create_model(
        "aae", input_shape=(1, 12, 12), latent_dim=4, backbone="mlp(widths=(16,))", num_classes=2
    )
    told = torch.utils.data.TensorDataset(x, labels)
    how = {"progress": False, "device": "cpu", "epochs": 1, "batch_size": 4}
    row = aezoo.fit(model, told, val=told, **how).history[-1]
    known = labels >= 0
    right = (model.classify(x[known]).argmax(1) == labels[known]).float().mean()
    assert row["val_accuracy"] == pytest.approx(float(right), rel=1e-6)
