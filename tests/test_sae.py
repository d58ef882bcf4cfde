"""Sparse autoencoders for representations, each formula against its definition in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F

import aezoo
from aezoo import functional as fn
from aezoo import sparse_ops
from aezoo.models import sae as sae_module
from aezoo.models import sae_dictionary

FAMILY = [
    "topk_sae", "batch_topk_sae", "matryoshka_sae", "jump_relu_sae", "gated_sae", "l1_sae", "transcoder", "crosscoder",
]  # fmt: skip


def build(name, dims=12, latents=40, shake=0.1, **more):
    """In float64, with no value at 0 and encoder and decoder apart."""
    torch.manual_seed(2)
    model = aezoo.create_model(
        name, input_shape=dims if isinstance(dims, tuple) else (dims,), latent_dim=latents, **more
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(shake * torch.randn_like(p))
    return model.double()


def data(n=9, dims=12, seed=1):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(model, value):
    names = dict(model.named_parameters())
    grads = torch.autograd.grad(value, list(names.values()), allow_unused=True, retain_graph=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(names.items(), grads)}


def train(model, x, **more):
    return aezoo.fit(model, x, **{"batch_size": 10, "progress": False, "device": "cpu", **more})


# ---------------------------------------------------------------------------------------------------------------- AuxK


def test_relative_error_of_nothing_is_zero_with_a_finite_gradient():
    """The residual of a perfect reconstruction: 0/0 counts as 0, and its gradient is no NaN, either."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    y = torch.tensor([[3.0, 0.0], [1.0, 1.0]], requires_grad=True)
    e = fn.relative_error(y, x)
    assert torch.equal(e.detach(), torch.tensor([16 / 25, 0.0]))
    assert torch.isfinite(torch.autograd.grad(e.sum(), y)[0]).all()


def kill(model, every=2):
    """Every second latent is dead."""
    model.idle[::every] = model.seen = model.dead_after
    return model


def aux_by_definition(model, x, y=None):
    """arXiv:2406.04093, appendix A.2, densely: e = x - x^ held constant, e^ without b_dec."""
    y = x if y is None else y
    enc, dec = model.encoder, model.decoder
    pre = (x - enc.pre_bias) @ enc.weight.T + enc.bias
    with torch.no_grad():
        e = y - model.decoder(model.bottleneck(pre, True)[0])[:, 0]
    dead = model.idle >= model.dead_after
    value, index = pre.where(dead, pre.new_tensor(-torch.inf)).topk(model.aux_k)
    z = torch.zeros_like(pre).scatter(1, index, value.relu())
    return ((z @ dec.weight - e).square().sum(1) / e.square().sum(1)).mean()


@pytest.mark.parametrize("name", ["topk_sae", "batch_topk_sae", "transcoder"])
@pytest.mark.parametrize("aux_k", [3, 30])  # 30: more than are dead
def test_auxk_and_its_gradients_are_those_of_the_definition(name, aux_k):
    model, x = kill(build(name, k=5, aux_k=aux_k, dead_after=100)), data()
    want = aux_by_definition(model, x)
    idle = model.idle.clone()
    loss = model.loss(x)
    assert torch.allclose(loss.terms["aux"], want)
    assert torch.allclose(loss.total, loss.terms["recon"] + want / 32)
    model.idle.copy_(idle)
    model.decoder.across = False
    got, by_hand = gradients(model, model.loss(x).terms["aux"]), gradients(model, want)
    for k in by_hand:
        assert torch.allclose(got[k], by_hand[k], atol=1e-12), k
    dead = idle >= 100
    for k in ("encoder.weight", "decoder.weight"):  # only the dead are moved; the residual is held constant
        assert (got[k].abs().sum(1) > 0).any() and not got[k][~dead].any()
    centred = name != "transcoder"
    assert bool(got["decoder.bias"].any()) == centred  # only by what is taken from x, never by e or e^


def test_auxk_is_nothing_while_none_is_dead():
    model, x = build("topk_sae", k=5), data()
    loss = model.loss(x)
    assert loss.terms["aux"] == 0 and torch.equal(loss.total, loss.terms["recon"])
    model.seen = model.dead_after  # it must be asked
    loss = model.loss(x)
    assert loss.terms["aux"] == 0 and torch.equal(loss.total, loss.terms["recon"])
    got = gradients(model, loss.terms["aux"])
    assert not any(g.any() for g in got.values())


def test_auxk_costs_nothing_before_a_latent_can_be_dead(tmp_path):
    """The host counts samples; what it skips is 0, and what is loaded may hold dead latents from the first step on."""
    model, x = build("topk_sae", k=5, aux_k=4, dead_after=20), data()
    searches = []
    for m in (model, twin := copy.deepcopy(model)):
        seen = []
        pair = m.encoder.sparse_pair
        m.encoder.sparse_pair = lambda *a, pair=pair, seen=seen: seen.append(1) or pair(*a)
        searches.append(seen)
    twin.seen = 20  # searches from the start
    for i in range(4):
        a, b = model.loss(x), twin.loss(x)
        assert torch.equal(a.total, b.total) and torch.equal(a.terms["aux"], b.terms["aux"]), i
        ga, gb = gradients(model, a.total), gradients(twin, b.total)
        assert all(torch.equal(ga[k], gb[k]) for k in ga)
    assert [len(s) for s in searches] == [1, 4] and a.terms["aux"] > 0  # 9, 18, 27 samples were seen, then it searches
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path)).train()
    assert torch.equal(again.idle, model.idle) and again.loss(x).terms["aux"] > 0


def test_the_sparse_and_the_dense_way_agree():
    model, x = kill(build("topk_sae", k=5, aux_k=4, dead_after=100)), data()
    idle = model.idle.clone()
    a = model.loss(x)
    model.idle.copy_(idle)
    model.is_sparse = lambda x: False
    b = model.loss(x)
    for part in ("terms", "metrics"):
        for k, v in getattr(a, part).items():
            assert torch.allclose(v.double(), getattr(b, part)[k].double()), k
    ga, gb = gradients(model, a.total), gradients(model, b.total)
    assert all(torch.allclose(ga[k], gb[k], atol=1e-12) for k in ga)


def test_gradcheck_of_the_sparse_pair():
    """Numerical derivatives through the code and through the auxiliary one, which a fused encoder may forget."""
    g = torch.Generator().manual_seed(4)
    x, b_dec, w_enc, b_enc, w_dec = (
        torch.randn(*s, generator=g, dtype=torch.float64, requires_grad=True)
        for s in [(6, 5), (5,), (16, 5), (16,), (16, 5)]
    )
    among = torch.arange(16) % 2 == 0

    def auxiliary(x, b_dec, w_enc, b_enc, w_dec):
        code, other = sparse_ops.encode_pair(x, b_dec, w_enc, b_enc, 3, among, 4)
        return sparse_ops.decode(code, w_dec) + b_dec, sparse_ops.decode(other, w_dec), sparse_ops.dense(other)

    pre = ((x - b_dec) @ w_enc.T + b_enc).detach()
    for top, k in ((pre.sort(1, descending=True).values, 3), (pre[:, among].sort(1, descending=True).values, 4)):
        assert (top[:, k - 1] - top[:, k]).min() > 1e-4 and top[:, :k].abs().min() > 1e-4  # no kink within the step
    assert torch.autograd.gradcheck(auxiliary, (x, b_dec, w_enc, b_enc, w_dec))
    with torch.no_grad():
        other = sparse_ops.encode_pair(x, b_dec, w_enc, b_enc, 3, among, 12)[1]
    assert other.values.shape == (6, 12) and (sparse_ops.dense(other)[:, ~among] == 0).all()


def test_auxk_revives_dead_latents():
    """Half of the latents start so low that they are hardly ever among the k; with AuxK they come back."""
    used = {}
    for aux_k in (0, 6):
        model = build("topk_sae", dims=8, latents=32, shake=0.0, k=3, aux_k=aux_k, dead_after=50).float()
        with torch.no_grad():
            model.encoder.bias[::2] = -2.5
        x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        train(model, x, batch_size=50, epochs=20, lr=1e-2)
        used[aux_k] = (model.encode(x)[:, ::2] > 0).any(0).sum()
    assert used[6] > 8 and used[6] > 2 * used[0]


@pytest.mark.parametrize(("dims", "power"), [(768, 512), (12, 8), (2, 1), (1, 1), (100, 64)])
def test_aux_k_is_a_power_of_two_near_half_the_dims(dims, power):
    assert aezoo.create_model("topk_sae", input_shape=(dims,), latent_dim=1024, k=1).aux_k == power


def test_latents_are_counted_in_samples_since_they_were_above_zero():
    """Picked is not fired: a latent whose kept value is below 0 stays idle."""
    model = build("topk_sae", dims=4, latents=4, shake=0.0, k=4, aux_k=0, dead_after=20).float()
    with torch.no_grad():
        model.encoder.weight.copy_(torch.eye(4))
        model.encoder.bias.copy_(torch.tensor([9.0, 9.0, -9.0, -9.0]))
    x = torch.rand(7, 4)
    model.loss(x)
    assert model.idle.tolist() == [0, 0, 7, 7]
    out = model(x)
    assert model.idle.tolist() == [0, 0, 14, 14] and out.metrics["dead"] == 0 and (out.metrics["l0"] == 2).all()
    assert model.loss(x[:6]).metrics["dead"] == 0.5
    model.eval()
    assert model.loss(x).metrics["dead"] == 0.5 and model.idle.tolist() == [0, 0, 20, 20]


def test_other_processes_samples_count(monkeypatch):
    model = build("topk_sae", k=1, aux_k=0)
    monkeypatch.setattr(sae_dictionary, "whole_batch", lambda x: torch.cat([x, x]))
    monkeypatch.setattr(
        sae_dictionary, "batch_sum", lambda x: x.sum(0) + torch.eye(40)[3] if x.shape == (1, 40) else x.sum(0)
    )
    model.loss(data(3))
    assert model.idle[3] == 0 and model.idle.max() == 6


# ---------------------------------------------------------------------------------------------------------- BatchTopK


def test_batch_topk_keeps_the_largest_of_the_whole_batch(monkeypatch):
    model, x = build("batch_topk_sae", k=2), data()
    f = model.hidden(x).relu()
    z = model(x).z
    kept = f.flatten().topk(18).values.min()
    assert torch.equal(z, f * (f >= kept)) and (z > 0).sum() == 18 and (z > 0).sum(1).float().std() > 0
    others = 100 + torch.rand(9, 40, dtype=torch.float64)  # samples of another process, with everything that is large
    monkeypatch.setattr(sae_module, "whole_batch", lambda x: torch.cat([x, others]))
    assert not model(x).z.any()


def test_the_threshold_is_the_running_mean_of_the_smallest_positive_activation_and_survives_saving(tmp_path):
    """arXiv:2412.06410: at inference f * 1[f > tau], for each sample by itself."""
    model = build("batch_topk_sae", k=2)
    mean, weight = 0.0, 0.0
    for i in range(5):
        z = model(data(seed=i)).z
        mean, weight = 0.99 * mean + 0.01 * z[z > 0].min().item(), 0.99 * weight + 0.01
    assert model.threshold.item() == pytest.approx(mean / weight)
    x = data(50, seed=9)
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    f = model.hidden(x).relu()
    for m in (model, again, copy.deepcopy(model)):
        z = m.encode(x)
        assert torch.equal(z, f * (f > mean / weight)) and 0 < (z > 0).sum() < (f > 0).sum()
        assert torch.allclose(m.encode(x[:1]), z[:1])
    assert {"tau", "tau_weight", "idle"} <= set(model.state_dict())


def test_a_batch_without_positive_activations_leaves_the_threshold_alone():
    model = build("batch_topk_sae", k=2)
    model(data())
    before = model.threshold.clone()
    with torch.no_grad():
        model.encoder.bias.fill_(-100.0)
    out = model(data())
    assert torch.equal(model.threshold, before) and not out.z.any() and torch.isfinite(out.terms["recon"]).all()
    fresh = build("batch_topk_sae", k=2)
    assert fresh.threshold == 0 and torch.equal(fresh.encode(data()), fresh.hidden(data()).relu())


# --------------------------------------------------------------------------------------------------------- matryoshka


@pytest.mark.parametrize("backbone", ["linear", "mlp(widths=(16,))"])
def test_matryoshka_counts_every_prefix_and_the_empty_one(backbone):
    """arXiv:2503.17547: sum over the prefixes m, 0 included, of |x - x^_{1:m}|^2, all of one BatchTopK code."""
    model, x = build("matryoshka_sae", k=4, groups=(4, 16, 20), backbone=backbone), data()
    out = model(x)
    total = 0
    for m in (0, 4, 20, 40):
        z = torch.cat([out.z[:, :m], torch.zeros(9, 40 - m, dtype=torch.float64)], 1)
        total = total + (model.decoder(z)[:, 0] - x).square().mean(1)
    assert torch.allclose(out.terms["recon"] + out.terms["nested"], total)
    assert torch.allclose(model.loss(x).total, total.mean())
    if backbone == "linear":
        empty = (model.decoder.bias - x).square().mean(1)
        assert (
            torch.allclose(model.prefixes(out.z)[0][:, 0], model.decoder.bias.expand(9, -1)) and (total > empty).all()
        )


def test_groups_of_matryoshka():
    assert build("matryoshka_sae", latents=256).groups == (16, 16, 32, 64, 128)
    assert build("matryoshka_sae", latents=1).groups == (1,) and sum(build("matryoshka_sae", latents=7).groups) == 7
    with pytest.raises(ValueError, match="add up to 39"):
        build("matryoshka_sae", groups=(4, 35))


def test_the_running_scale_of_a_likelihood_is_that_of_the_full_reconstruction():
    a, b = (build(n, latents=16, likelihood="gaussian") for n in ("batch_topk_sae", "matryoshka_sae"))
    b.load_state_dict(a.state_dict())
    x = data()
    assert torch.allclose(a.loss(x).terms["recon"], b.loss(x).terms["recon"])
    assert torch.equal(a.likelihood.moment, b.likelihood.moment)


# ------------------------------------------------------------------------------------------------------------ together


@pytest.mark.parametrize("name", FAMILY)
def test_figures_and_learning(name):
    """FVU is a quotient of two sums over the batch, with the batch's mean; and every model lowers it."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(24, 16, generator=g), dim=1)
    which = torch.rand(600, 24, generator=g).topk(2).indices
    x = torch.zeros(600, 24).scatter(1, which, 1 + torch.rand(600, 2, generator=g)) @ directions
    keep = {"k": 2} if name in ("topk_sae", "batch_topk_sae", "matryoshka_sae", "transcoder") else {"weight": 0.1 / 16}
    model = aezoo.create_model(name, input_shape=(16,), latent_dim=48, **keep)
    assert model.main_metric == "fvu"
    train(model, x, epochs=15, batch_size=100, lr=2e-2)
    metrics, recon = model.loss(x).metrics, model.reconstruct(x)
    assert torch.allclose(metrics["fvu"], (recon - x).square().sum() / (x - x.mean(0)).square().sum(), rtol=1e-4)
    assert torch.allclose(metrics["l0"], (model.encode(x) > 0).sum(1).float().mean())
    assert metrics["fvu"] < 0.4 and metrics["l0"] < 24 and metrics["dead"] == 0


@pytest.mark.parametrize("name", FAMILY)
def test_a_batch_of_one_has_finite_figures(name):
    loss = build(name).loss(data(1))
    assert all(torch.isfinite(v) for v in loss.metrics.values()) and torch.isfinite(loss.total)


class Total(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.loss(x).total


@pytest.mark.parametrize("name", FAMILY)
def test_the_compiled_step_has_the_same_gradients(name, monkeypatch):
    """It is `torch.func.grad` in a compiler, which passes over backward passes of our own: the sparse ones must not be in it."""
    model, x = build(name), data()
    idle = model.idle.clone()
    want = gradients(model, model.loss(x).total)
    model.idle.copy_(idle)
    parameters = {f"model.{k}": p.detach() for k, p in model.named_parameters()}
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(sparse_ops, "encode", None)

    def total(p):
        state = {f"model.{k}": b.clone() for k, b in model.named_buffers()}
        return torch.func.functional_call(Total(model), (p, state), (x,))

    got = torch.func.grad(total)(parameters)
    assert all(torch.allclose(got[f"model.{k}"], want[k], atol=1e-12) for k in want)


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("topk_sae", {"aux_k": 41}, "aux_k=41 must be an integer from 0 to latent_dim=40"),
        ("topk_sae", {"aux_k": 4, "backbone": "mlp"}, "needs a dictionary"),
        ("topk_sae", {"dead_after": 0}, "dead_after=0"),
        ("batch_topk_sae", {"k": 41}, "k=41 must be"),
        ("jump_relu_sae", {"bandwidth": 0.0}, "bandwidth=0.0 must be a number above 0"),
        ("jump_relu_sae", {"threshold": -1.0}, "threshold=-1.0"),
        ("l1_sae", {"recipe": "2025"}, "recipe='2025' is not known; allowed: 2023, april2024"),
        ("l1_sae", {"weight": -1.0}, "weight=-1.0 must be a number of at least 0"),
        ("l1_sae", {"warmup": -1}, "warmup=-1"),
        ("gated_sae", {"backbone": "mlp"}, "does not fit"),
        ("crosscoder", {"backbone": "linear(tied=True)"}, "tied=True does not fit"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(name, more, said):
    with pytest.raises(ValueError) as error:
        build(name, **more)
    assert said in str(error.value)


@pytest.mark.parametrize("backbone", ["linear", "mlp(widths=(16,))"])
def test_the_weights_of_a_subclass_count_in_the_sparse_step(backbone):
    """`loss` asks `term_weights`, whichever way it takes."""
    from aezoo.models.sae import TopKSAE

    class Heavy(TopKSAE):
        def term_weights(self):
            return {"recon": 3.0, "aux": 7.0}

    Heavy.name = "heavy_sae"
    torch.manual_seed(0)
    model, x = Heavy((12,), 64, k=2, dead_after=8, backbone=backbone), torch.randn(5, 12)
    for _ in range(3):  # until some latents are dead
        loss = model.loss(x)
    terms = loss.terms
    assert torch.allclose(loss.total, 3 * terms["recon"] + (7 * terms["aux"] if "aux" in terms else 0))
    assert ("aux" in terms and terms["aux"] > 0) == (backbone == "linear")
