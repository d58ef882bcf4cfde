"""The sparse step of topk_sae against the dense formula, piece by piece."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import aezoo
from aezoo import sparse_ops


def sae(dims=12, latents=40, k=5, **more):
    torch.manual_seed(2)
    model = aezoo.create_model("topk_sae", input_shape=(dims,), latent_dim=latents, k=k, **more)
    with torch.no_grad():  # nothing is zero, and encoder and decoder differ
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def formula(model, x):
    """(x^, z) of the definition, by dense autograd."""
    w_enc, b_enc = model.encoder.weight, model.encoder.bias
    w_dec, b_dec = model.decoder.weight, model.decoder.bias
    pre = (x - b_dec) @ w_enc.T + b_enc
    kept = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(model.k).indices, True)
    z = torch.where(kept, pre, 0).relu()
    return z @ w_dec + b_dec, z


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


class Largest(TorchDispatchMode):
    """Counts the results with at least `size` elements, by operator."""

    def __init__(self, size):
        super().__init__()
        self.size, self.seen = size, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        name = op.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "item", "masked_select"), f"{name} waits for the device"
        views = ("view", "t", "detach", "_unsafe_view", "transpose", "expand", "alias")
        if isinstance(out, torch.Tensor) and out.numel() >= self.size and name not in views:
            self.seen.append(name)
        return out


# ----------------------------------------------------------------------------------------------------------------- ops


@pytest.mark.parametrize("case", ["oneDNN", "Intel", "without", "missing", "another"])
def test_large_products_with_and_without_onednn(case, monkeypatch):
    """Where this torch has the operator it is used; on Intel, and where it is gone or does something else, `F.linear` is."""
    monkeypatch.setattr(sparse_ops, "on_intel", lambda: case == "Intel")
    sparse_ops.onednn_linear.cache_clear()
    here = sparse_ops.onednn_linear()
    if case == "without":
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    elif case not in ("oneDNN", "Intel"):
        ops = SimpleNamespace() if case == "missing" else SimpleNamespace(_linear_pointwise=lambda *a: a[0])
        monkeypatch.setattr(torch, "ops", SimpleNamespace(mkldnn=ops))
        sparse_ops.onednn_linear.cache_clear()
        assert sparse_ops.onednn_linear() is None
    monkeypatch.setattr(sparse_ops, "LARGE", 0)
    x, w, b = torch.randn(7, 33), torch.randn(50, 33), torch.randn(50)
    with Largest(7 * 50) as seen:
        got = sparse_ops.affine(x, w, b)
    assert seen.seen == ["_linear_pointwise" if case == "oneDNN" and here else "addmm"]
    assert torch.allclose(got, F.linear(x, w, b), atol=1e-5)
    sparse_ops.onednn_linear.cache_clear()


@pytest.mark.parametrize("shape", [(7, 512), (3, 1024), (5, 500), (4, 63), (2, 40)], ids=str)
@pytest.mark.parametrize("k", [1, 2, 40])
def test_top_k_is_exact(shape, k):
    z = torch.randn(shape)
    values, indices = sparse_ops.top_k(z, k)
    assert torch.equal(values.sort(descending=True).values, z.topk(k).values)
    assert torch.equal(z.gather(1, indices), values)
    assert all(len(set(row.tolist())) == k for row in indices)


def test_top_k_keeps_exactly_k_of_ties_and_finds_infinities_and_nan():
    z = torch.zeros(3, 1024)
    values, indices = sparse_ops.top_k(z, 3)
    assert values.shape == (3, 3) and all(len(set(row.tolist())) == 3 for row in indices)
    z[0, 700], z[1, 1023], z[2] = float("nan"), float("inf"), -float("inf")
    values, indices = sparse_ops.top_k(z, 1)
    assert values[0].isnan() and indices[0] == 700 and indices[1] == 1023 and values[2] == -float("inf")


def test_pairs_are_sorted_by_latent():
    indices = torch.tensor([[3, 0], [3, 5], [0, 1]])
    order, offsets = sparse_ops.by_latent(indices, 7)
    assert indices.view(-1)[order].tolist() == [0, 0, 1, 3, 3, 5]
    assert offsets.tolist() == [0, 2, 3, 3, 5, 5, 6]
    rows, weights = torch.randn(3, 4), torch.randn(3, 2)
    code = torch.zeros(3, 7).scatter(1, indices, weights)
    assert torch.allclose(sparse_ops.sum_by_latent(rows, weights, order, offsets), code.T @ rows, atol=1e-6)


def test_gradcheck():
    """Numerical derivatives in every input: x, pre_bias, both weights, bias, and the code that `forward` gives."""
    g = torch.Generator().manual_seed(1)
    x, b_dec, w_enc, b_enc, w_dec = (
        torch.randn(*s, generator=g, dtype=torch.float64, requires_grad=True)
        for s in [(6, 5), (5,), (16, 5), (16,), (16, 5)]
    )

    def step(x, b_dec, w_enc, b_enc, w_dec):
        code = sparse_ops.encode(x, b_dec, w_enc, b_enc, 3)
        return sparse_ops.decode(code, w_dec) + b_dec, sparse_ops.dense(code)

    with torch.no_grad():
        b_enc.sub_(3.0)
        pre = (x - b_dec) @ w_enc.T + b_enc
    top = pre.sort(1, descending=True).values
    assert (top[:, 2] - top[:, 3]).min() > 1e-4 and top[:, :3].abs().min() > 1e-4  # no kink within the numerical step
    assert (top[:, :3] < 0).any(), "the case of a kept value that the ReLU sets to 0 should be among the samples"
    assert torch.autograd.gradcheck(step, (x, b_dec, w_enc, b_enc, w_dec))


def test_a_second_derivative_is_refused():
    x = torch.randn(4, 6, requires_grad=True)
    w = torch.randn(9, 6, requires_grad=True)
    code = sparse_ops.encode(x, torch.zeros(6), w, torch.zeros(9), 2)
    for value, wrt in [(code.values, x), (sparse_ops.decode(code._replace(values=torch.ones(4, 2)), w), w)]:
        torch.autograd.grad(value.sum(), wrt, retain_graph=True)
        with pytest.raises(RuntimeError, match="first derivatives only"):
            torch.autograd.grad(value.sum(), wrt, create_graph=True)


# --------------------------------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("likelihood", ["mse", "huber", "gaussian(sigma=0.5)", "gaussian(sigma='predicted')"])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_loss_and_gradients_are_those_of_the_formula(k, likelihood):
    model, x = sae(k=k, likelihood=likelihood).double(), torch.randn(9, 12).double()
    got = gradients(model, model.loss(x).total)
    b = model.decoder.bias
    pre = (x - b[:12]) @ model.encoder.weight.T + model.encoder.bias
    z = pre.where(pre >= pre.topk(k).values[:, -1:], 0).relu()
    params = (z @ model.decoder.weight + b).view(9, -1, 12)
    loss = model.likelihood.nll(params, x).mean()
    want = gradients(model, loss)
    assert torch.allclose(model.loss(x).total, loss)
    for name in want:
        assert torch.allclose(got[name], want[name], atol=1e-12), name


def test_forward_gives_code_and_reconstruction_with_their_gradients():
    model, x = sae().double(), torch.randn(9, 12).double().requires_grad_()
    out = model(x)
    recon, z = formula(model, x)
    assert torch.allclose(out.z, z) and torch.allclose(out.recon, recon)
    assert torch.allclose(out.terms["recon"], (recon - x).square().mean(1))
    assert torch.allclose(model.encode(x), z) and torch.allclose(model.reconstruct(x), recon)
    probe = torch.randn_like(z)
    got = gradients(model, (out.z * probe).sum() + out.recon.square().sum())
    grad_x, x.grad = x.grad, None
    want = gradients(model, (z * probe).sum() + recon.square().sum())
    assert torch.allclose(grad_x, x.grad)
    for name in want:
        assert torch.allclose(got[name], want[name]), name


def test_dense_and_sparse_paths_train_alike():
    x = torch.randn(30, 12).double()
    runs = []
    for is_sparse in (True, False):
        model = sae().double()
        model.is_sparse = lambda x, is_sparse=is_sparse: is_sparse
        aezoo.fit(model, x, epochs=4, batch_size=10, lr=1e-2, progress=False, device="cpu")
        runs.append(model.state_dict())
    for name in runs[0]:
        assert torch.allclose(runs[0][name], runs[1][name], rtol=1e-7), name


def test_the_training_step_has_one_dense_product_and_never_waits_for_the_device():
    model, x = sae(dims=4, latents=256, k=2), torch.randn(64, 4)  # B * K = 16384; weights have 1024
    with Largest(64 * 256) as large:
        model.loss(x).total.backward()
        model.after_step()
    assert large.seen == ["addmm"], large.seen


def test_latents_that_no_sample_keeps_get_no_gradient():
    model, x = sae(latents=64, k=1), torch.randn(3, 12)
    got = gradients(model, model.loss(x).total)
    kept = (model.encode(x) != 0).any(0)
    assert 1 <= kept.sum() <= 3
    for name in ("encoder.weight", "decoder.weight"):
        assert torch.equal(got[name].abs().sum(1) > 0, kept)


def test_rows_start_tied_and_stay_unit_vectors():
    for likelihood in ("mse", "laplace(scale='predicted')"):
        model = aezoo.create_model("topk_sae", input_shape=(3, 5), latent_dim=40, k=4, likelihood=likelihood)
        w = model.decoder.weight
        assert torch.equal(w[:, :15], model.encoder.weight) and torch.allclose(w.norm(dim=1), torch.ones(40))
        aezoo.fit(model, torch.randn(40, 3, 5), epochs=2, batch_size=10, lr=0.1, progress=False, device="cpu")
        assert torch.allclose(w.norm(dim=1), torch.ones(40)) and not torch.allclose(w[:, :15], model.encoder.weight)
    free = aezoo.create_model("topk_sae", input_shape=(15,), latent_dim=40, k=4, normalize_decoder=False)
    aezoo.fit(free, torch.randn(40, 15), epochs=2, batch_size=10, lr=0.1, progress=False, device="cpu")
    assert not torch.allclose(free.decoder.weight.norm(dim=1), torch.ones(40), atol=1e-3)


@pytest.mark.parametrize("backbone", ["linear", "mlp", "linear(tied=True)"])
def test_exactly_k_are_kept_and_metrics_count_them(backbone):
    model, x = sae(k=5, backbone=backbone), torch.randn(9, 12)
    out = model(x)
    assert (out.z >= 0).all() and ((out.z > 0).sum(1) <= 5).all()
    assert torch.equal(out.metrics["l0"], (out.z > 0).sum(1).float())
    assert out.metrics["active"] == (out.z > 0).any(0).float().mean()
    assert torch.equal(model.loss(x).metrics["l0"], out.metrics["l0"].mean())


def test_noise_on_input_and_code():
    x = torch.randn(9, 12)
    model = sae(corruption="masking(p=1.0)")
    assert torch.allclose(model.loss(x).total, (model.reconstruct(0 * x) - x).square().mean())
    model = sae(corruption="masking(p=1.0, where='latent')")
    assert torch.allclose(model.loss(x).total, (model.decoder.bias - x).square().mean())


def test_a_target_of_its_own_and_wrong_input():
    model, x, y = sae(), torch.randn(4, 12), torch.randn(4, 12)
    assert torch.allclose(model.loss(x, target=y).total, (model.reconstruct(x) - y).square().mean())
    for call in (model, model.loss):
        with pytest.raises(ValueError, match="target has shape"):
            call(x, target=y[:, :3])
        with pytest.raises(ValueError, match="takes no condition"):
            call(x, condition=y)
        with pytest.raises(TypeError, match="must be a tensor"):
            call([1.0])
    with pytest.raises(ValueError, match="k=41 must be an integer from 1 to latent_dim=40"):
        sae(k=41)


@pytest.mark.parametrize("where", ["autocast", "weights"])
def test_bfloat16(where):
    """Loss in float32, gradients near those of float32; a use of the weight in the same autocast block keeps its gradient."""
    model, x = sae(), torch.randn(64, 12)
    want = gradients(model, model.loss(x).total)
    if where == "weights":
        model, x = model.to(torch.bfloat16), x.to(torch.bfloat16)
        total = model.loss(x).total
    else:
        with torch.autocast("cpu", torch.bfloat16):
            total = model.loss(x).total
            used = F.linear(x, model.encoder.weight)
        assert torch.autograd.grad(used.sum(), model.encoder.weight)[0].abs().sum() > 0
    assert total.dtype == torch.float32
    for name, grad in gradients(model, total).items():
        error = (grad.float() - want[name]).norm() / want[name].norm()
        assert error < 0.2, (name, error)  # near-ties may be decided the other way


def test_copies_and_saving_keep_encoder_and_decoder_together(tmp_path):
    model, x = sae(), torch.randn(4, 12)
    twin = copy.deepcopy(model)
    assert set(model.state_dict()) == {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "idle"}
    with torch.no_grad():
        twin.decoder.bias.add_(1.0)
    assert not torch.equal(twin.encode(x), model.encode(x)) and twin.encoder.decoder is twin.decoder
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    assert torch.equal(again.encode(x), model.encode(x)) and again.k == 5


def test_it_finds_the_dictionary_that_made_the_data():
    """Samples are sums of 2 of 24 directions in 16 dims: what is learned explains them and names the directions."""
    g = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(24, 16, generator=g), dim=1)
    which = torch.rand(4000, 24, generator=g).topk(2).indices
    x = torch.zeros(4000, 24).scatter(1, which, 1 + torch.rand(4000, 2, generator=g)) @ directions
    torch.manual_seed(0)
    model = aezoo.create_model("topk_sae", input_shape=(16,), latent_dim=48, k=2)
    aezoo.fit(model, x, epochs=30, batch_size=200, lr=1e-2, schedule="cosine", progress=False, device="cpu")
    with torch.no_grad():
        unexplained = (model.reconstruct(x) - x).square().sum() / (x - x.mean(0)).square().sum()
        likeness = (directions @ model.decoder.weight.T).amax(1)
    assert unexplained < 0.1 and likeness.median() > 0.95
