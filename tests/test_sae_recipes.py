"""Sparse autoencoders that pay for the latents they use, transcoder and crosscoder, each formula against its definition."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_sae import build, data, gradients, train

import aezoo
from aezoo import functional as fn

# ------------------------------------------------------------------------------------------------ estimators, by hand


def test_jump_relu_has_the_papers_pseudo_derivatives_on_what_comes_before_the_jump():
    """arXiv:2407.14435: df/dz = H(z - theta), df/dtheta = -(theta / eps) K, dH/dtheta = -(1 / eps) K, dH/dz = 0.

    A z below theta, which the jump has set to 0, still moves theta: the wrong version looks at f."""
    z = torch.tensor([[0.46, 0.54, 0.1, 0.9], [0.44, 0.56, -0.5, 0.51]], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.5, 0.5, 0.05, 0.5], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], dtype=torch.float64)
    eps = 0.1  # |z - theta| < 0.05 holds for 0.46, 0.54 and 0.51
    f = fn.jump_relu(z, theta, eps)
    assert torch.equal(f, z * (z > theta))
    for_z, for_theta = torch.autograd.grad((f * g).sum(), (z, theta))
    assert torch.equal(for_z, g * (z > theta))
    assert torch.allclose(for_theta, torch.tensor([-1.0, -2.0, 0.0, -8.0], dtype=torch.float64) * 0.5 / eps)
    h = fn.step_above(z, theta, eps)
    assert torch.equal(h, (z > theta).double())
    for_theta, for_z = torch.autograd.grad((h * g).sum() + 0 * z.sum(), (theta, z))
    assert torch.allclose(for_theta, -torch.tensor([1.0, 2.0, 0.0, 8.0], dtype=torch.float64) / eps) and not for_z.any()


def test_jump_relu_estimates_the_slope_of_the_expected_loss():
    """arXiv:2407.14435, section 3: over many z the estimate is d E[loss] / d theta, which is not 0 though each sample's is."""
    z = torch.linspace(-1, 3, 400_001, dtype=torch.float64)[
        :, None
    ]  # density 1/4, mean of 1[z > theta] = (3 - theta) / 4
    theta = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    l0 = fn.step_above(z, theta, 0.05).mean()
    assert torch.autograd.grad(l0, theta)[0].item() == pytest.approx(-1 / 4, rel=1e-3)
    energy = 0.5 * fn.jump_relu(z, theta, 0.05).square().mean()  # 1/2 int_theta^3 z^2 / 4: slope -theta^2 / 8
    assert torch.autograd.grad(energy, theta)[0].item() == pytest.approx(-(0.7**2) / 8, rel=0.05)


def test_half_precision_is_lifted():
    z, theta = torch.randn(3, 4).bfloat16(), torch.full((4,), 0.1)
    assert fn.jump_relu(z, theta, 0.1).dtype == fn.step_above(z, theta, 0.1).dtype == torch.float32


def test_gradients_have_no_part_along_the_rows():
    w = data(6, 5).requires_grad_()
    g = data(6, 5, seed=3)
    out = fn.across_rows(w)
    assert torch.equal(out, w)
    (got,) = torch.autograd.grad((out * g).sum(), w)
    unit = F.normalize(w.detach(), dim=1)
    assert torch.allclose(got, g - (g * unit).sum(1, keepdim=True) * unit)
    assert torch.allclose((got * w).sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    assert not torch.autograd.grad(fn.across_rows(torch.zeros(2, 3, requires_grad=True)).sum(), w, allow_unused=True)[0]


# -------------------------------------------------------------------------------------------------------------- gated


def gated_by_definition(model, x):
    """arXiv:2404.16014, eq. of the model and of its loss, with the three parts apart."""
    w, b, dec = model.encoder.weight, model.decoder.bias, model.decoder

    def gate(b):
        return (x - b) @ w.T + model.encoder.bias

    f = (gate(b) > 0) * ((x - b) @ (model.log_scale.exp()[:, None] * w).T + model.magnitude_bias).relu()
    recon = (f @ dec.weight + b - x).square().mean(1).mean()
    frozen_b, frozen_w = b.detach(), dec.weight.detach()
    aux = (gate(frozen_b).relu() @ frozen_w + frozen_b - x).square().mean(1).mean()
    return {"recon": recon, "sparsity": gate(b).relu().sum(1).mean(), "aux": aux}


def test_gated_paths_share_one_product_and_the_auxiliary_loss_never_moves_the_decoder():
    model, x = build("gated_sae", weight=0.3), data()
    model.decoder.across = False
    loss, want = model.loss(x), gated_by_definition(model, x)
    assert torch.allclose(loss.total, want["recon"] + 0.3 * want["sparsity"] + want["aux"])
    for term in want:
        assert torch.allclose(loss.terms[term], want[term])
        got, by_hand = gradients(model, loss.terms[term]), gradients(model, want[term])
        for k in by_hand:
            assert torch.allclose(got[k], by_hand[k], atol=1e-12), (term, k)
    aux = gradients(model, loss.terms["aux"])
    assert not aux["decoder.weight"].any() and not aux["decoder.bias"].any() and aux["encoder.weight"].any()
    penalty = gradients(model, loss.terms["sparsity"])
    assert not penalty["log_scale"].any() and not penalty["magnitude_bias"].any()  # magnitudes are not shrunk


# ------------------------------------------------------------------------------------------------ penalties and recipes


def test_jump_relu_loss_and_threshold():
    model, x = build("jump_relu_sae", weight=0.2, bandwidth=0.3), data()
    z, theta = model.hidden(x), model.threshold
    out, loss = model(x), model.loss(x)
    assert torch.equal(out.z, z * (z > theta)) and torch.equal(
        loss.terms["sparsity"], (z > theta).double().sum(1).mean()
    )
    assert torch.allclose(loss.total, (out.recon - x).square().mean() + 0.2 * loss.terms["sparsity"])
    window = ((z - theta).abs() < 0.15).double()
    residual = 2 / 12 / 9 * (out.recon - x)
    want = -(theta / 0.3) * (window * (residual @ model.decoder.weight.T)).sum(0) - 0.2 / 9 / 0.3 * window.sum(0)
    assert window.any() and torch.allclose(gradients(model, loss.total)["threshold"], want)
    with torch.no_grad():
        model.threshold.fill_(-1.0)
    model.after_step()
    assert (model.threshold == 0).all() and aezoo.create_model(
        "jump_relu_sae", input_shape=(4,)
    ).threshold.dtype == torch.float32


def test_2023_rows_are_unit_and_adam_sees_nothing_along_them():
    model, x = build("l1_sae", recipe="2023", weight=0.01), data(40)
    model.decoder.normalize()
    before = model.decoder.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.loss(x).total.backward()
    plain = model.decoder.weight.grad
    assert torch.allclose((plain * before).sum(1), torch.zeros(40, dtype=torch.float64), atol=1e-14) and plain.any()
    optimizer.step()
    model.after_step()
    moment = optimizer.state[model.decoder.weight]["exp_avg"]
    assert (moment * before).sum(1).abs().max() < 1e-14 and moment.any()
    assert torch.allclose(model.decoder.weight.norm(dim=1), torch.ones(40, dtype=torch.float64))
    assert not torch.allclose(model.decoder.weight, before)


@pytest.mark.parametrize("way", ["copy", "load"])
def test_the_projection_survives_copies_and_loading(way, tmp_path):
    model, x = build("l1_sae"), data()
    again = copy.deepcopy(model) if way == "copy" else aezoo.from_pretrained(model.save_pretrained(tmp_path)).train()
    again.loss(x).total.backward()
    w = again.decoder.weight
    assert (w.grad * w).sum(1).abs().max() < 1e-12 * w.grad.abs().max() * 12 + 1e-15


def test_l1_losses_of_both_recipes():
    """2023: sum f_i, x - b_dec encoded. April 2024: sum f_i ||W_dec,i||, x itself encoded."""
    x = data()
    for recipe in ("2023", "april2024"):
        model = build("l1_sae", recipe=recipe, weight=0.3)
        w, b = model.decoder.weight, model.decoder.bias
        f = ((x - b if recipe == "2023" else x) @ model.encoder.weight.T + model.encoder.bias).relu()
        norms = w.norm(dim=1) if recipe == "april2024" else 1
        want = (f @ w + b - x).square().mean() + 0.3 * (f * norms).sum(1).mean()
        loss = model.loss(x)
        assert torch.allclose(loss.total, want) and torch.allclose(model.encode(x), f)
        if recipe == "april2024":
            got, by_hand = gradients(model, loss.total), gradients(model, want)
            assert all(
                torch.allclose(got[k], by_hand[k]) for k in got
            )  # the norm has its gradient, nothing is projected
            model.after_step()
            assert torch.equal(model.decoder.weight, w)


def test_april_2024_starts_with_small_tied_weights():
    model = aezoo.create_model("l1_sae", input_shape=(12,), latent_dim=40, recipe="april2024")
    assert torch.allclose(model.decoder.weight.norm(dim=1), torch.full((40,), 0.1))
    assert torch.equal(model.encoder.weight, model.decoder.weight) and not model.encoder.bias.any()


@pytest.mark.parametrize("name", ["l1_sae", "jump_relu_sae", "gated_sae", "crosscoder"])
def test_the_weight_rises_over_the_warm_up_and_is_whole_in_evaluation(name, tmp_path):
    model, x = build(name, weight=0.5, warmup=4), data()
    seen = []
    for _ in range(6):
        seen.append(float(model.term_weights()["sparsity"]))
        model.after_step()
    assert seen == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    model.num_steps.fill_(1)
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    assert again.term_weights()["sparsity"] == 0.5 and again.train().term_weights()["sparsity"] == 0.125
    loss = again.loss(x)
    assert torch.allclose(loss.total, loss.terms["recon"] + 0.125 * loss.terms["sparsity"] + loss.terms.get("aux", 0))


def test_the_default_weight_is_the_papers_beside_a_sum():
    """lambda beside a mean over D dims is lambda / D beside their sum, so the same weights are the same optimum."""
    x = data()
    mean, total = build("l1_sae"), build("l1_sae", likelihood="gaussian(sigma=0.7071067811865476)")
    assert mean.weight == pytest.approx(1 / 12) and total.weight == 1
    a, b = gradients(mean, mean.loss(x).total), gradients(total, total.loss(x).total)
    assert all(torch.allclose(12 * a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------ transcoder and crosscoder


def test_transcoder_predicts_its_target():
    model, x, y = build("transcoder", k=4, skip=True), data(), data(seed=5)
    pre = x @ model.encoder.weight.T + model.encoder.bias  # nothing is taken from x
    z = torch.zeros_like(pre).scatter(1, pre.topk(4).indices, pre.topk(4).values.relu())
    y_hat = z @ model.decoder.weight + model.decoder.bias + x @ model.skip.T
    loss = model.loss(x, target=y)
    assert torch.allclose(loss.total, (y_hat - y).square().mean())
    assert torch.allclose(model.reconstruct(x), y_hat) and torch.allclose(model(x, target=y).recon, y_hat)
    assert torch.allclose(loss.metrics["fvu"], (y_hat - y).square().sum() / (y - y.mean(0)).square().sum())
    want = gradients(model, (y_hat - y).square().mean())
    assert all(torch.allclose(g, want[k], atol=1e-12) for k, g in gradients(model, loss.total).items())


def test_transcoder_takes_stacked_pairs():
    """(N, 2, D): the first row in, the second out; the same as with a target of its own."""
    x, y = data(60), data(60) @ data(12, seed=3) * 0.3
    pair = torch.stack([x, y], 1)
    one, two = (
        build("transcoder", dims=d, k=6, latents=64, skip=True, pairs=p) for d, p in ((12, False), ((2, 12), True))
    )
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.loss(x, target=y).total, two.loss(pair).total)
    assert torch.equal(one.encode(x), two.encode(pair)) and two.decode(two.encode(pair)).shape == (60, 12)
    out = two(pair)
    assert torch.equal(out.recon[:, 0], x) and torch.equal(out.recon[:, 1], one(x, target=y).recon)
    assert torch.allclose(two.reconstruct(pair), out.recon)
    result = train(two, pair, epochs=20, lr=1e-2)
    assert result.history[-1]["fvu"] < 0.5 * result.history[0]["fvu"]
    assert aezoo.evaluate(two, pair)["mse"]["mean"] == pytest.approx(aezoo.evaluate(two, pair)["recon"]["mean"] / 2)
    with pytest.raises(ValueError, match="holds its target"):
        two.loss(pair, target=pair)
    with pytest.raises(ValueError, match=r"must be \(2, ...\)"):
        build("transcoder", dims=(3, 12), pairs=True)


def test_crosscoder_sums_layers_and_norms():
    model = build("crosscoder", dims=(3, 4), latents=10, weight=0.7)
    x = data().view(9, 3, 4)
    enc, dec, b = (t.view(-1, 3, 4) for t in (model.encoder.weight, model.decoder.weight, model.decoder.bias))
    f = (sum(x[:, j] @ enc[:, j].T for j in range(3)) + model.encoder.bias).relu()
    recon = torch.stack([f @ dec[:, j] + b[0, j] for j in range(3)], 1)
    penalty = (f * sum(dec[:, j].norm(dim=1) for j in range(3))).sum(1)  # a sum of norms, not the norm of all layers
    loss = model.loss(x)
    assert torch.allclose(loss.total, (recon - x).square().mean() + 0.7 * penalty.mean())
    assert torch.allclose(model.layer_norms(), dec.norm(dim=2))
    fresh = aezoo.create_model("crosscoder", input_shape=(3, 4), latent_dim=10)
    assert torch.allclose(fresh.layer_norms(), torch.full((10, 3), 0.1))
    assert torch.equal(fresh.encoder.weight, fresh.decoder.weight)


def test_a_crosscoder_of_one_layer_is_the_sae_of_april_2024():
    a, b = build("crosscoder"), build("l1_sae", recipe="april2024")
    c = build("crosscoder", dims=(1, 12))
    for m in (b, c):
        m.load_state_dict(a.state_dict())
    x = data(40)
    for m, y in ((b, x), (c, x[:, None])):
        assert torch.allclose(m.loss(y).total, a.loss(x).total) and m.weight == a.weight
        want, got = gradients(a, a.loss(x).total), gradients(m, m.loss(y).total)
        assert all(torch.allclose(got[k], want[k]) for k in want)
