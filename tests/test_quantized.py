"""Quantised models: the loss and its units, indices, saving, the loop, and priors over the indices."""

import copy
import math

import pytest
import torch
from conftest import assert_same_run, make_images

import aezoo
from aezoo.index_fitting import IndexLikelihood
from aezoo.index_prior import Autoregressive, MaskGIT

NAMES = ["vq_vae", "rvq_vae", "sim_vq_ae", "fsq_ae", "lfq_ae", "vq_vae_2"]
CONV = "conv(widths=(8, 8))"


def build(name, **more):
    torch.manual_seed(3)
    if name == "vq_vae_2":
        more = {"top_backbone": "conv(widths=(8,))", **more}
    return aezoo.create_model(name, input_shape=(1, 12, 12), **{"latent_dim": 4, "backbone": CONV, **more})


def fit(model, data, **more):
    return aezoo.fit(model, data, **{"progress": False, "batch_size": 16, "device": "cpu", **more})


@pytest.mark.parametrize("name", NAMES)
def test_indices_are_the_code(name):
    model, x = build(name), make_images(6)[0]
    state = torch.get_rng_state()
    indices = model.indices(x)
    assert indices.shape == (6, *model.index_shape) and indices.dtype == torch.int64 and model.training
    assert torch.equal(model.codes(indices), model.encode(x))
    assert torch.equal(model.decode_indices(indices), model.reconstruct(x))
    assert torch.equal(state, torch.get_rng_state())
    assert model.codes(indices).shape[1:] == model.latent_shape


@pytest.mark.parametrize("name", NAMES)
def test_indices_that_are_none(name):
    model = build(name)
    good = torch.zeros(2, *model.index_shape, dtype=torch.long)
    for wrong, error, what in [
        (good.float(), TypeError, "float32"),
        (good.tolist(), TypeError, "list"),
        (good[:, :1, ..., None], ValueError, "has shape"),
        (good[:0], ValueError, "has shape"),
        (good - 1, ValueError, r"\[-1, -1\]"),
        (good + model.num_codes, ValueError, f"0 to {model.num_codes - 1}"),
    ]:
        with pytest.raises(error, match=what):
            model.decode_indices(wrong)


@pytest.mark.parametrize("name", ["vq_vae", "rvq_vae", "sim_vq_ae", "vq_vae_2"])
def test_terms_are_reduced_as_the_reconstruction_is(name):
    """Beside a mean over dims a mean over the code's numbers, beside nats per sample their sum; weights count once, in the total."""
    x = make_images(6)[0]
    plain, density = build(name), build(name, likelihood="gaussian(sigma=1.0)")
    density.load_state_dict(plain.state_dict())
    a, b = plain(x).terms, density(x).terms
    sizes = {"vq_vae_2": None}.get(name, math.prod(plain.latent_shape))
    if sizes:
        assert torch.allclose(b["commitment"], a["commitment"] * sizes, rtol=1e-4)
    else:  # a mean over each level's own vectors
        top = a["commitment"] * 0 + plain.top_quantizer(plain.top_encoder(plain.hidden(x))).terms["commitment"]
        rest = a["commitment"] - top
        n = plain.latent_dim
        assert torch.allclose(b["commitment"], n * (4 * top + 9 * rest), rtol=1e-4)
    loss = plain.loss(x)
    terms = {k: v.mean() for k, v in a.items()}
    expected = terms["recon"] + 0.25 * terms["commitment"] + terms.get("codebook", 0)
    assert torch.allclose(loss.total, expected) and "perplexity" in loss.metrics and "usage" in loss.metrics


def test_lfq_weights():
    model, x = build("lfq_ae", beta=0.3, entropy_weight=0.7, diversity=3.0, num_codes=16), make_images(6)[0]
    loss = model.loss(x)
    t = loss.terms
    expected = t["recon"] + 0.3 * t["commitment"] + 0.7 * (t["code_entropy"] - 3.0 * t["batch_entropy"])
    assert torch.allclose(loss.total, expected)


def test_gradient_passes_the_quantiser_unchanged():
    """Straight through (1711.00937, section 3.2): what reaches the encoder's output is the decoder's gradient."""
    model, x = build("vq_vae"), make_images(6)[0]
    h = model.hidden(x).detach().requires_grad_()
    z = model.bottleneck(h, True).z
    (at_h, at_z) = torch.autograd.grad(model.likelihood.nll(model.emit(z), x).sum(), (h, z))
    assert torch.equal(at_h, at_z) and at_h.abs().sum() > 0


def test_vq_vae_2_bottom_depends_on_the_top_and_both_reach_the_decoder():
    model = build("vq_vae_2", init="random", revive=0).double()
    h = torch.randn(5, 8, 3, 3, dtype=torch.float64)
    said, shown = model.from_top(model.top_quantizer(model.top_encoder(h)).z)
    assert said.shape == shown.shape == (5, 4, 3, 3)
    top, bottom = model.both(h)
    assert torch.equal(bottom.indices, model.quantizer(model.merge(torch.cat([h, said], 1))).indices)
    z = model.bottleneck(h, True).z
    assert (
        model.latent_shape == (4, 4 + 9)
        and torch.equal(z[:, :, :4], top.z.flatten(2))
        and torch.equal(z[:, :, 4:], bottom.z.flatten(2))
    )
    z = z.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.emit(z).sum(), z)
    assert (gradient.abs().sum((0, 1)) > 0).all()
    metrics = model.bottleneck(h, True).metrics
    assert torch.allclose(metrics["perplexity"], (metrics["perplexity_top"] + metrics["perplexity_bottom"]) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_saving_keeps_codebook_and_counts(name, tmp_path):
    model = build(name)
    fit(model, make_images(48)[0], steps=4)
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    state, kept = model.state_dict(), again.state_dict()
    assert state.keys() == kept.keys() and all(torch.equal(v, kept[k]) for k, v in state.items())
    x = make_images(6, seed=5)[0]
    assert torch.equal(again.indices(x), model.indices(x))
    if name == "vq_vae":
        assert kept["quantizer.num_steps"] == 4 and (kept["quantizer.cluster_size"] != 1).any()


def test_a_resumed_run_is_the_same_run(tmp_path):
    def model():
        options = {"level_dropout": 0.5, "revive": 0.6, "decay": 0.5, "num_codes": 8}
        return build("rvq_vae", backbone="mlp(widths=(16,))", **options)

    data, options = make_images(48)[0], {"val": 0.25}
    fit(model(), data, epochs=2, out=tmp_path / "whole", **options)
    fit(model(), data, epochs=2, out=tmp_path / "parts", max_time=1e-9, **options)
    fit(model(), data, epochs=2, out=tmp_path / "parts", resume=True, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_loop_learns_the_codebook_once_a_step_and_not_from_what_it_skips():
    data = make_images(64)[0]
    runs = {}
    for batch_size, accumulate in ((16, 1), (8, 2)):
        model = build("vq_vae", init="random", revive=0, decay=0.9)
        fit(model, data, steps=3, batch_size=batch_size, accumulate=accumulate, lr=1e-9)
        runs[accumulate] = model.state_dict()
    for key in ("codebook", "cluster_size", "cluster_sum", "num_steps"):
        assert torch.allclose(runs[1][f"quantizer.{key}"], runs[2][f"quantizer.{key}"], atol=1e-5), key
    assert runs[2]["quantizer.num_steps"] == 3
    poisoned = data.clone()
    poisoned[:] = 1e30
    model = build("vq_vae")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError):
        fit(model, poisoned, steps=2, nonfinite="skip")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["vq_vae", "rvq_vae", "lfq_ae"])
def test_compiled_as_written(name):
    """The one-graph step takes buffers as values: what is gathered must come out of it."""
    x, runs = make_images(32)[0], []
    for backend in (None, "eager"):
        model = build(name, **({"init": "random"} if name != "lfq_ae" else {}))
        model.train()
        torch.manual_seed(7)
        if backend is None:
            loss = model.loss(x)
            loss.total.backward()
            grads = {k: p.grad for k, p in model.named_parameters()}
        else:
            from aezoo.train.hardware import decide
            from aezoo.train.step import Compiled

            hardware = decide("cpu", "fp32", False)
            step = Compiled(model, [], 0.0, hardware)
            step.run = step._values_and_gradients
            step(x, 1.0, True)
            grads = {k: p.grad for k, p in model.named_parameters()}
        model.after_step()
        runs.append((grads, model.state_dict()))
    for one, other in zip(runs[0], runs[1]):
        assert one.keys() == other.keys() and all(torch.allclose(v, other[k], atol=1e-6) for k, v in one.items())


@pytest.mark.parametrize("name", ["vq_vae", "fsq_ae"])
def test_several_models_as_one(name):
    data = make_images(48)[0]
    more = {"beta": 0.5} if name == "vq_vae" else {}
    singles = [build(name), build(name, **more)]
    many = copy.deepcopy(singles)
    for model in singles:
        fit(model, data, steps=4, seed=2)
    notes = aezoo.fit_many(many, data, steps=4, seed=2, batch_size=16, device="cpu", progress=False)
    assert len(notes) == 2
    for a, b in zip(singles, many):
        assert all(torch.allclose(v, b.state_dict()[k], atol=1e-4) for k, v in a.state_dict().items())


def test_vq_vae_uses_its_codes_after_a_short_run():
    model = build("vq_vae", num_codes=32, decay=0.9)
    x = make_images(256)[0]
    before = aezoo.evaluate(model, x, metrics="recon,codebook", device="cpu")
    fit(model, x, steps=80, lr=5e-3, batch_size=64)
    after = aezoo.evaluate(model, x, metrics="recon,codebook", device="cpu")
    assert after["perplexity"]["mean"] > 8 > before["perplexity"]["mean"]
    assert after["recon"]["mean"] < 0.3 * before["recon"]["mean"]


# -------------------------------------------------------------------------------------------------------------- priors


def tiny(cls, codes=3, length=4, **more):
    torch.manual_seed(1)
    return cls(codes, length, width=16, layers=2, heads=2, **more)


def all_sequences(codes, length):
    return torch.cartesian_prod(*[torch.arange(codes)] * length)


def test_autoregressive_prior_is_a_distribution():
    """p(i) = prod_t p(i_t | i_<t): over all 81 sequences it adds up to 1, which one that sees itself or the future does not."""
    prior = tiny(Autoregressive).double()
    every = all_sequences(3, 4)
    assert prior.log_prob(every).exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    with torch.no_grad():
        later = prior.logits(torch.tensor([[3, 0, 1, 2], [3, 0, 2, 1]]))
    assert torch.equal(later[0, :2], later[1, :2]) and not torch.equal(later[0, 2], later[1, 2])


def test_autoregressive_samples_follow_its_probabilities():
    prior = tiny(Autoregressive, length=3)
    with torch.no_grad():
        prior.head.weight.mul_(4)
    n = 20000
    drawn = prior.sample(n, (3,), torch.zeros(1), torch.Generator().manual_seed(0))
    counts = torch.bincount((drawn * torch.tensor([9, 3, 1])).sum(1), minlength=27) / n
    p = prior.log_prob(all_sequences(3, 3)).exp()
    assert (counts - p).abs().max() < 4 * (p.max() * (1 - p.max()) / n).sqrt() + 1e-3
    with pytest.raises(ValueError, match="do not fit"):
        prior.sample(2, (5,), torch.zeros(1))


def test_maskgit_loss_is_the_cross_entropy_of_the_hidden_ones_alone():
    """arXiv:2202.04200, eq. 1; with one index it is that index, always hidden."""
    prior, indices = tiny(MaskGIT, codes=5, length=1), torch.tensor([[0], [3]])
    logits = prior.logits(torch.full((2, 1), 5)).log_softmax(2)
    assert torch.allclose(prior.nll(indices), -logits[:, 0].gather(1, indices)[:, 0])
    wide = tiny(MaskGIT, codes=5, length=40)
    seen = []
    wide.logits = lambda tokens: seen.append(tokens) or torch.zeros(*tokens.shape, 5)
    nll = wide.nll(torch.zeros(3000, 40, dtype=torch.long))
    hidden = (seen[0] == 5).sum(1)
    assert torch.allclose(nll, hidden * math.log(5), rtol=1e-4)
    assert hidden.min() >= 1 and hidden.float().mean().item() / 40 == pytest.approx(
        2 / math.pi, abs=0.03
    )  # mean of the cosine


@pytest.mark.parametrize("cls", [Autoregressive, MaskGIT])
def test_index_priors_learn_what_the_indices_are(cls):
    """Sequences in which all entries are equal: entropy log 4, and no other one is drawn."""
    torch.manual_seed(0)
    data = torch.randint(4, (256, 1)).expand(-1, 5).float()
    prior = cls(4, 5, width=32, layers=2, heads=2)
    result = fit(IndexLikelihood(prior), data, steps=100, batch_size=64, lr=4e-3)
    drawn = prior.sample(200, (5,), torch.zeros(1), torch.Generator().manual_seed(0))
    equal = (drawn == drawn[:, :1]).all(1)
    assert equal.float().mean() > 0.9 and len(drawn[equal][:, 0].unique()) == 4
    if cls is Autoregressive:
        assert result.history[-1]["nll"] < math.log(4) + 0.2


@pytest.mark.parametrize("kind", ["autoregressive", "maskgit(rounds=3)"])
@pytest.mark.parametrize("name", ["rvq_vae", "vq_vae_2", "fsq_ae"])
def test_fit_prior_lets_a_quantised_model_sample(name, kind, tmp_path):
    model, x = build(name, **({} if name == "fsq_ae" else {"num_codes": 8})), make_images(40)[0]
    with pytest.raises(ValueError, match="autoregressive"):
        model.sample(3)
    state = torch.get_rng_state()
    aezoo.fit_prior(model, x, kind, device="cpu", steps=3, width=16, layers=1, heads=2)
    assert torch.equal(state, torch.get_rng_state())
    assert model.sample(3).shape == (3, 1, 12, 12)
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    a, b, c = (m.sample(4, generator=torch.Generator().manual_seed(2)) for m in (model, again, copy.deepcopy(model)))
    assert torch.equal(a, b) and torch.equal(a, c)
    assert not any("prior" in k for k, _ in model.named_parameters())


def test_fit_prior_says_what_fits():
    x = make_images(20)[0]
    with pytest.raises(ValueError, match="discrete"):
        aezoo.fit_prior(build("vq_vae"), x, "gmm", device="cpu")
    with pytest.raises(ValueError, match="continuous code"):
        aezoo.fit_prior(
            aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=4), x, "autoregressive", device="cpu"
        )
    with pytest.raises(TypeError, match="widht"):
        aezoo.fit_prior(build("vq_vae"), x, "maskgit", device="cpu", widht=8)
