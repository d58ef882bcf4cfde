"""Quantisers: nearest codes, gradients past the choice, moving averages, revival, usage, lattices; alone and over two processes."""

import copy
import math
import multiprocessing
import socket

import pytest
import torch

from aezoo import functional as fn
from aezoo.quantizers import FSQ, LFQ, ResidualQuantizer, SimVQ, VectorQuantizer
from aezoo.wholebatch import spread


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vq(num_codes=7, dim=3, **more):
    return VectorQuantizer(num_codes, dim, **{"init": "random", "revive": 0, **more}).double()


# ------------------------------------------------------------------------------------------------------- pure functions


def test_nearest_code_by_brute_force(monkeypatch):
    z, e = rand(50, 4), rand(9, 4, seed=1)
    brute = (z[:, None] - e[None]).square().sum(2).argmin(1)  # 1711.00937, eq. 1
    assert torch.equal(fn.nearest_code(z, e), brute)
    monkeypatch.setattr(fn.quantization, "AT_ONCE", 30)  # a few rows at a time
    assert torch.equal(fn.nearest_code(z, e), brute)


def test_nearest_code_is_not_that_of_the_largest_product():
    e = torch.tensor([[1.0, 0.0], [9.0, 0.0]])
    assert fn.nearest_code(torch.tensor([[1.5, 0.0]]), e) == 0  # e . z alone would take the long vector


def test_straight_through_has_the_value_of_q_to_the_bit_and_the_gradient_of_z():
    z, q = (1e4 * rand(20, 3)).float().requires_grad_(), rand(20, 3, seed=1).float().requires_grad_()
    out = fn.straight_through(z, q)
    assert torch.equal(out, q)  # z + (q - z) loses q's last digits
    out.backward(g := rand(20, 3, seed=2).float())
    assert torch.equal(z.grad, g) and q.grad is None


def test_rotation_trick_is_the_explicit_rotation():
    """arXiv:2410.06424: q~ = lambda R z with R = I - 2 r r^T + 2 q^ z^^T constant."""
    z, q = rand(6, 5).requires_grad_(), rand(6, 5, seed=1)
    out = fn.rotation_trick(z, q)
    assert torch.equal(out, q)
    g = rand(6, 5, seed=2)
    (gradient,) = torch.autograd.grad(out, z, g)
    for i in range(6):
        a, b = z[i].detach() / z[i].detach().norm(), q[i] / q[i].norm()
        r = (a + b) / (a + b).norm()
        rotation = torch.eye(5) - 2 * torch.outer(r, r) + 2 * torch.outer(b, a)
        assert torch.allclose(rotation @ rotation.T, torch.eye(5).double()) and torch.linalg.det(
            rotation
        ).item() == pytest.approx(1)
        scaled = q[i].norm() / z[i].norm() * rotation
        assert torch.allclose(scaled @ z[i], q[i])
        assert torch.allclose(gradient[i], scaled.T.detach() @ g[i])


def test_rotation_trick_is_finite_where_there_is_no_rotation():
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    z = torch.tensor([[0.0, 0.0], [-2.0, 0.0], [1.0, 1.0]], requires_grad=True)
    out = fn.rotation_trick(z, q)
    out.sum().backward()
    assert torch.equal(out, q) and torch.isfinite(z.grad).all() and z.grad.abs().max() < 10


def test_laplace_smoothing_keeps_the_sum():
    n = torch.tensor([5.0, 0.0, 1.0], dtype=torch.float64)
    smooth = fn.laplace_smoothed(n, 0.1)
    assert torch.allclose(smooth, torch.tensor([5.1, 0.1, 1.1], dtype=torch.float64) / 6.3 * 6) and (smooth > 0).all()


def test_perplexity():
    assert fn.perplexity(torch.full((64,), 3.0)).item() == pytest.approx(64)
    assert fn.perplexity(torch.tensor([0.0, 7.0, 0.0])).item() == pytest.approx(1)
    p = torch.tensor([0.5, 0.25, 0.25])
    assert fn.perplexity(8 * p).item() == pytest.approx(2**1.5)  # entropy of 1.5 bits
    assert fn.perplexity(torch.stack([p, torch.zeros(3)])).isfinite().all()


def test_entropy_has_a_finite_gradient_at_zero():
    p = torch.tensor([0.0, 0.3, 0.7], requires_grad=True)
    fn.entropy(p).backward()
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("levels", [3, 4, 5, 8, 16, 256])
def test_fsq_bound_reaches_every_level_and_no_other_and_keeps_zero(levels):
    """arXiv:2309.15505: L integers, for even L from -L/2 to L/2 - 1; 0 stays 0 (with tan for atanh in the shift it does not)."""
    size = torch.tensor([float(levels)], dtype=torch.float64)
    z = torch.linspace(-30, 30, 400001, dtype=torch.float64)[:, None]
    reached = fn.fsq_bound(z, size).round().unique()
    low = -(levels // 2)
    assert torch.equal(reached, torch.arange(low, low + levels, dtype=torch.float64))
    assert fn.fsq_bound(torch.zeros(1, 1, dtype=torch.float64), size).abs() < 1e-12


def test_bernoulli_entropy_and_sign_probabilities_by_brute_force():
    """arXiv:2310.05737: q(c|z) is a softmax over all 2^C codes; it falls into bits."""
    z, c = rand(6, 5), 5
    codes = torch.tensor([[2.0 * (k >> i & 1) - 1 for i in range(c)] for k in range(2**c)], dtype=torch.float64)
    q = torch.softmax(-(z[:, None] - codes[None]).square().sum(2) / 0.7, 1)
    logits = 4 * z / 0.7
    assert torch.allclose(fn.sign_probabilities(logits), q)
    assert torch.allclose(fn.sign_totals(logits), q.sum(0))
    assert torch.allclose(fn.bernoulli_entropy(logits).sum(1), -(q * q.log()).sum(1))
    assert torch.autograd.gradcheck(fn.bernoulli_entropy, rand(8).requires_grad_())
    assert torch.autograd.gradcheck(fn.sign_totals, rand(3, 4).requires_grad_())
    assert torch.isfinite(fn.bernoulli_entropy(torch.tensor([-1e4, 0.0, 1e4]))).all()


# ------------------------------------------------------------------------------------------------------- the interface

ALL = {
    "ema": lambda: vq(8, 4),
    "gradient": lambda: vq(8, 4, codebook="gradient"),
    "rotation": lambda: vq(8, 4, rotation=True),
    "simvq": lambda: SimVQ(8, 4).double(),
    "residual": lambda: ResidualQuantizer(8, 4, levels=3).double(),
    "fsq": lambda: FSQ((4, 3, 5, 6)).double(),
    "fsq_mapped": lambda: FSQ((5, 4), dim=4).double(),
    "lfq": lambda: LFQ(16).double(),
    "lfq_mapped": lambda: LFQ(8, dim=4).double(),
}


@pytest.mark.parametrize("grid", [(), (5,), (3, 2), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_interface(name, grid):
    quantizer, z = ALL[name](), rand(6, 4, *grid).requires_grad_()
    out = quantizer(z)
    levels = (quantizer.levels,) if quantizer.levels else ()
    assert out.z.shape == z.shape and out.indices.shape == (6, *grid, *levels) and out.indices.dtype == torch.int64
    assert out.indices.min() >= 0 and out.indices.max() < quantizer.num_codes
    assert torch.equal(quantizer.codes(out.indices), out.z)  # to the bit
    assert all(t.shape == ((6,) if k != "batch_entropy" else ()) for k, t in out.terms.items())
    assert all(m.shape == () and not m.requires_grad for m in out.metrics.values())
    (gradient,) = torch.autograd.grad(out.z.sum() + sum(t.sum() for t in out.terms.values()), z)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    state = torch.get_rng_state()
    assert torch.equal(quantizer.eval()(z).z, quantizer(z).z) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["ema", "gradient", "simvq", "residual", "lfq", "rotation"])
def test_terms_are_per_sample_and_scale_with_nothing_but_the_sample(name):
    """arXiv:1711.00937, eq. 3 is a loss of one sample: the batch's size must not matter."""
    quantizer, z = ALL[name]().eval(), rand(4, 4, 3)
    once, twice = quantizer(z), quantizer(torch.cat([z, z]))
    for key, term in once.terms.items():
        assert torch.allclose(term.mean(), twice.terms[key].mean())
    quantizer.reduction = "sum"
    for book in getattr(quantizer, "books", []):
        book.reduction = "sum"
    summed = quantizer(z)
    assert torch.allclose(summed.terms["commitment"], once.terms["commitment"] * 12)
    if name == "lfq":  # an entropy is one vector's, or that of all 3
        assert torch.allclose(summed.terms["code_entropy"], once.terms["code_entropy"] * 3)
        assert torch.allclose(summed.terms["batch_entropy"], once.terms["batch_entropy"] * 3)


@pytest.mark.parametrize("name", ALL)
def test_codes_stay_in_float32_under_autocast(name):
    quantizer, z = ALL[name]().float().eval(), rand(5, 4, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantizer(z)
    outside = quantizer(z)
    assert torch.equal(inside.z, outside.z) and all(torch.equal(inside.terms[k], t) for k, t in outside.terms.items())
    assert (
        quantizer(z.bfloat16()).z.dtype == torch.bfloat16
        and quantizer(z.bfloat16()).metrics["usage"].dtype == torch.float32
    )
    low = quantizer.bfloat16()(z.bfloat16())
    assert low.z.dtype == torch.bfloat16 and all(t.dtype == torch.float32 for t in low.terms.values())


def test_what_cannot_be_is_named():
    for make, what in [
        (lambda: VectorQuantizer(0, 3), "num_codes=0"),
        (lambda: VectorQuantizer(4, 3, codebook="emma"), "ema"),
        (lambda: VectorQuantizer(4, 3, decay=1.0), "decay=1.0"),
        (lambda: VectorQuantizer(4, 3, revive=1), "revive=1"),
        (lambda: ResidualQuantizer(4, 3, levels=0), "levels=0"),
        (lambda: ResidualQuantizer(4, 3, level_dropout=2), "level_dropout=2"),
        (lambda: FSQ((8, 2)), "from 3 to 256"),
        (lambda: FSQ(()), "levels"),
        (lambda: LFQ(12), "power of 2"),
        (lambda: vq()(rand(2, 5, 4)), r"takes \(batch, 3, \*grid\)"),
    ]:
        with pytest.raises(ValueError, match=what):
            make()


# ------------------------------------------------------------------------------------------------------------ codebooks


def test_straight_through_gradient_is_the_identity():
    for quantizer in (vq(), ResidualQuantizer(7, 3, levels=4).double(), SimVQ(7, 3).double(), LFQ(8).double()):
        z, g = rand(4, 3, 6).requires_grad_(), rand(4, 3, 6, seed=1)
        quantizer(z).z.backward(g)
        assert torch.equal(z.grad, g)  # for residual levels, too: not once a level


def test_gradient_codebook_terms():
    """arXiv:1711.00937, eq. 3: the codebook term moves e alone, the commitment z alone, and both have the same value."""
    quantizer, z = vq(codebook="gradient", reduction="sum"), rand(4, 3, 6).requires_grad_()
    out = quantizer(z)
    square = (z - quantizer.codes(out.indices)).square().flatten(1).sum(1)
    assert torch.allclose(out.terms["codebook"], square) and torch.allclose(out.terms["commitment"], square)
    (for_e,) = torch.autograd.grad(out.terms["codebook"].sum(), quantizer.codebook, retain_graph=True)
    rows, index = z.detach().movedim(1, 2).flatten(0, 1), out.indices.flatten()
    expected = torch.zeros_like(for_e)
    for row, k in zip(rows, index):
        expected[k] += 2 * (quantizer.codebook[k].detach() - row)
    assert torch.allclose(for_e, expected)
    (for_z,) = torch.autograd.grad(out.terms["commitment"].sum(), z, retain_graph=True)
    assert torch.allclose(for_z, 2 * (z - quantizer.codes(out.indices)).detach())
    assert torch.autograd.grad(out.terms["codebook"].sum(), z, allow_unused=True)[0] is None


def ema_by_hand(batches, e, decay, eps):
    """Appendix A.1 of arXiv:1711.00937 in loops; n = 1, m = e at the start."""
    k, n, m = len(e), [1.0] * len(e), e.clone()
    for rows in batches:
        count, total = [0.0] * k, torch.zeros_like(m)
        for row in rows:
            nearest = min(range(k), key=lambda j: float((row - e[j]).square().sum()))
            count[nearest] += 1
            total[nearest] += row
        n = [decay * a + (1 - decay) * c for a, c in zip(n, count)]
        m = decay * m + (1 - decay) * total
        whole = sum(n)
        e = torch.stack([m[j] / ((n[j] + eps) / (whole + k * eps) * whole) for j in range(k)])
    return torch.tensor(n, dtype=torch.float64), m, e


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_moving_averages_equal_a_loop(eps):
    quantizer = vq(decay=0.8, eps=eps)
    batches = [rand(5, 3, 4, seed=s) for s in range(3)]
    n, m, e = ema_by_hand([z.movedim(1, 2).flatten(0, 1) for z in batches], quantizer.codebook.clone(), 0.8, eps)
    for z in batches:
        quantizer(z)
        quantizer.after_step()
    assert torch.allclose(quantizer.cluster_size, n)  # eps is large: a smoothed n must not be stored
    assert torch.allclose(quantizer.cluster_sum, m) and torch.allclose(quantizer.codebook, e)
    assert quantizer.num_steps == 3


def test_accumulated_batches_are_one_step_of_the_joined_batch():
    one, two, z = vq(), vq(), rand(6, 3, 4)
    two.load_state_dict(one.state_dict())
    one(z)
    for part in z.split([4, 2]):
        two(part)
    for q in (one, two):
        q.after_step()
    assert all(torch.allclose(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


def test_only_a_step_in_training_mode_changes_the_codebook():
    quantizer = vq(init="data", revive=0.1)
    before = copy.deepcopy(quantizer.state_dict())

    def same():
        return all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())

    quantizer.eval()(rand(5, 3, 4))
    quantizer.after_step()
    assert same()  # nothing was seen
    quantizer.train()(rand(5, 3, 4))
    assert same()  # gathered, not learned
    quantizer.after_step()
    assert not same()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.after_step()
    assert same()  # each pass counts once
    quantizer(torch.full((5, 3, 4), math.nan).double())
    quantizer.after_step()
    assert same()  # a batch that is not finite is not learned from
    quantizer(rand(5, 3, 4))
    quantizer.after_step()
    assert not same() and quantizer.codebook.isfinite().all()


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_revival_takes_encoder_outputs_and_resets_counts(codebook):
    quantizer = vq(6, 3, codebook=codebook, decay=0.5, revive=0.3)
    with torch.no_grad():
        quantizer.codebook[3:] += 100  # never chosen
        if codebook == "ema":
            quantizer.cluster_sum.copy_(quantizer.codebook)
    z = rand(10, 3, 4)
    rows = z.movedim(1, 2).flatten(0, 1)
    quantizer(z)
    quantizer.after_step()  # n = 0.5: alive
    assert (
        torch.allclose(quantizer.cluster_size[3:], torch.full((3,), 0.5).double())
        and (quantizer.codebook[3:] > 90).all()
    )
    quantizer(z)
    quantizer.after_step()  # n = 0.25: dead
    assert (quantizer.cluster_size[3:] == 1).all() and (quantizer.cluster_size[:3] > 1).all()
    for e in quantizer.codebook[3:]:
        assert (rows == e).all(1).any()
    assert len(quantizer.codebook[3:].unique(dim=0)) == 3  # different ones
    if codebook == "ema":
        assert torch.equal(quantizer.cluster_sum[3:], quantizer.codebook[3:])
    used = quantizer.eval()(z)
    assert used.metrics["usage"] > 0.5


def test_first_step_takes_the_codebook_from_the_data():
    quantizer, z = vq(16, 3, init="data"), 50 + rand(4, 3, 5)
    quantizer(z)
    quantizer.after_step()
    rows = z.movedim(1, 2).flatten(0, 1)
    assert all((rows == e).all(1).any() for e in quantizer.codebook) and len(quantizer.codebook.unique(dim=0)) == 16
    assert (quantizer.cluster_size == 1).all() and torch.equal(quantizer.cluster_sum, quantizer.codebook)
    kept = quantizer.codebook.clone()
    quantizer(z)
    quantizer.after_step()
    assert (quantizer.codebook - kept).norm() < kept.norm() / 10 and not torch.equal(quantizer.codebook, kept)
    few = vq(16, 3, init="data")
    few(rand(1, 3, 5))
    few.after_step()
    assert len(few.codebook.unique(dim=0)) == 5  # more codes than vectors: each is taken


def test_usage_and_perplexity_are_those_of_the_batch():
    quantizer = vq(4, 1)
    quantizer.codebook.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    even = quantizer(torch.tensor([0.1, 1.1, 2.1, 3.1]).double().view(4, 1)).metrics
    assert even["perplexity"].item() == pytest.approx(4) and even["usage"] == 1
    single = quantizer(torch.full((8, 1, 2), 1.9).double()).metrics
    assert single["perplexity"].item() == pytest.approx(1) and single["usage"] == 0.25


def test_state_survives_saving():
    quantizer = vq(init="data", revive=0.5, decay=0.6)
    for s in range(3):
        quantizer(rand(5, 3, 4, seed=s))
        quantizer.after_step()
    state = quantizer.state_dict()
    assert set(state) == {"codebook", "cluster_size", "cluster_sum", "num_steps"}
    again = vq(init="data", revive=0.5, decay=0.6)
    again.load_state_dict(state)
    for q in (quantizer, again):
        torch.manual_seed(1)
        q(rand(5, 3, 4, seed=9))
        q.after_step()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in quantizer.state_dict().items())


def test_simvq_moves_all_codes_by_one_map():
    """arXiv:2411.02038: e = C W^T with C frozen; a gradient of one code moves the others."""
    quantizer, z = SimVQ(9, 3).double(), rand(1, 3)
    frozen, before = quantizer.frozen.clone(), quantizer.table().detach()
    assert torch.allclose(before, frozen @ quantizer.map.weight.T) and [n for n, _ in quantizer.named_parameters()] == [
        "map.weight"
    ]
    quantizer(z).terms["codebook"].sum().backward()
    with torch.no_grad():
        quantizer.map.weight -= 0.1 * quantizer.map.weight.grad
    assert torch.equal(quantizer.frozen, frozen) and ((quantizer.table() - before).norm(dim=1) > 0).all()


# ------------------------------------------------------------------------------------------------------------- residual


def test_residual_levels_code_what_is_left():
    """arXiv:2107.03312, algorithm 1, in a loop; each level that fits its residuals leaves less of them."""
    quantizer, z = ResidualQuantizer(16, 3, levels=4, revive=0, decay=0.0).double(), rand(60, 3, 4)
    for _ in range(12):  # with decay 0 a step is one of k-means
        quantizer(z)
        quantizer.after_step()
    out = quantizer.eval()(z)
    residual, errors, commitment = z.movedim(1, 2), [], 0
    for i, book in enumerate(quantizer.books):
        index = (residual[:, :, None] - book.codebook).square().sum(3).argmin(2)
        assert torch.equal(index, out.indices[..., i])
        residual = residual - book.codebook[index]
        commitment = commitment + residual.square().flatten(1).mean(1)
        errors.append(residual.square().mean().item())
    assert all(b < 0.7 * a for a, b in zip(errors, errors[1:]))
    assert torch.allclose(z - out.z, residual.movedim(2, 1)) and torch.allclose(out.terms["commitment"], commitment)
    first = quantizer.codes(out.indices[..., :2])
    assert (z - first).square().mean().item() == pytest.approx(errors[1])


def test_level_dropout_leaves_the_first_levels_of_a_sample():
    quantizer, z = (
        ResidualQuantizer(8, 3, levels=4, level_dropout=1.0, init="random", revive=0).double(),
        rand(200, 3, 2),
    )
    out = quantizer(z)
    prefixes = torch.stack([quantizer.codes(out.indices[..., :i]) for i in range(1, 5)])  # (4, B, C, T)
    depth = (prefixes == out.z).flatten(2).all(2)
    assert depth.any(0).all() and (depth.sum(1) > 25).all()  # each sample is one prefix, each depth about a quarter
    counts = torch.stack([book.new_size.sum() for book in quantizer.books])
    samples = torch.stack([depth[i:].any(0).sum() for i in range(4)])
    assert torch.equal(counts, 2 * samples.double())  # levels that a sample lacks do not count
    assert torch.equal(quantizer.eval()(z).z, prefixes[-1])


# ---------------------------------------------------------------------------------------------------------------- lattices


def test_fsq_codes_are_the_product_of_the_levels():
    levels = (8, 5, 4)
    quantizer = FSQ(levels).double()
    assert quantizer.num_codes == 160
    index = torch.arange(160)[None]
    codes = quantizer.codes(index)[0].T  # (160, 3)
    grids = [(torch.arange(v) - v // 2).double() / (v // 2) for v in levels]
    assert torch.equal(codes, torch.cartesian_prod(*grids[::-1]).flip(1))  # the first channel moves fastest
    z = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 8 - 4
    assert len(quantizer(z).indices.unique()) == 160


def test_fsq_gradient_is_that_of_the_bound():
    quantizer, z = FSQ((5, 4)).double(), rand(6, 2).requires_grad_()
    g = rand(6, 2, seed=1)
    (gradient,) = torch.autograd.grad(quantizer(z).z, z, g)
    (expected,) = torch.autograd.grad(fn.fsq_bound(z, torch.tensor([5.0, 4.0]).double()) / 2, z, g)
    assert torch.allclose(gradient, expected) and quantizer(z).terms == {}


def test_lfq_entropies_by_brute_force():
    """arXiv:2310.05737: E[H(q(c|z))] and H(E[q(c|z)]) over all 2^C codes, softmax of -|z - c|^2 / temperature."""
    quantizer, z = LFQ(32, temperature=0.8).double(), rand(6, 5, 3).requires_grad_()
    out = quantizer(z)
    rows = z.movedim(1, 2).flatten(0, 1)
    codes = quantizer.codes(torch.arange(32)[None])[0].T
    q = torch.softmax(-(rows[:, None] - codes[None]).square().sum(2) / 0.8, 1)
    each = -(q * q.log()).sum(1).view(6, 3).mean(1)
    whole = -(q.mean(0) * q.mean(0).log()).sum()
    assert torch.allclose(out.terms["code_entropy"], each) and torch.allclose(out.terms["batch_entropy"], whole)
    got = torch.autograd.grad(out.terms["code_entropy"].mean() - out.terms["batch_entropy"], z)
    assert torch.allclose(got[0], torch.autograd.grad(each.mean() - whole, z)[0])


def test_lfq_indices_are_the_signs():
    quantizer = LFQ(8).double()
    out = quantizer(torch.tensor([[0.2, -3.0, 5.0], [0.0, 0.1, -0.1]]).double())
    assert out.indices.tolist() == [1 + 4, 2]  # Index(z) = sum 2^(i-1) 1[z_i > 0]; the sign of 0 is -1
    assert torch.equal(out.z, torch.tensor([[1.0, -1, 1], [-1, 1, -1]]).double())


# ------------------------------------------------------------------------------------------------------- two processes


def steps(build, z, bounds=None):
    """Three steps with gradients: terms, metrics, gradients and state."""
    torch.manual_seed(5)
    quantizer, scale = build(), torch.ones(3, dtype=torch.float64, requires_grad=True)
    said = []
    start, stop = bounds or (0, z.shape[1])
    for s, batch in enumerate(z):
        torch.manual_seed(s)
        if bounds:
            with spread(start, stop, len(batch)):
                out = quantizer(batch[start:stop] * scale[:, None])
        else:
            out = quantizer(batch * scale[:, None])
        share = (stop - start) / len(batch)
        total = out.z.square().flatten(1).sum(1).mean() + sum(t.mean() for t in out.terms.values())
        (gradient,) = torch.autograd.grad(total * share, scale)
        said.append([gradient, *(t.detach().mean() * share for t in out.terms.values())])
        said.append([m.detach() * share for m in out.metrics.values()])
        quantizer.after_step()
    return said, dict(quantizer.state_dict())


def builders():
    return {
        "ema": lambda: vq(6, 3, init="data", revive=0.6, decay=0.5),
        "residual": lambda: ResidualQuantizer(6, 3, levels=2, level_dropout=0.7, decay=0.5).double(),
        "lfq": lambda: LFQ(8).double(),
        "fsq": lambda: FSQ((4, 3, 5)).double(),
    }


def work(rank, port, queue):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    z = rand(3, 7, 3, 4)
    bounds = [(0, 3), (3, 7)][rank]
    found = {}
    for name, build in builders().items():
        said, state = steps(build, z, bounds)
        for parts in said:
            for part in parts:
                dist.all_reduce(part)
        found[name] = ([[p.tolist() for p in parts] for parts in said], {k: v.tolist() for k, v in state.items()})
    queue.put((rank, found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one():
    """Counts, sums, random picks, usage and the batch's entropy are those of the joined batch, 3 + 4 samples."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=work, args=(rank, port, queue)) for rank in range(2)]
    for p in processes:
        p.start()
    both = dict(queue.get(timeout=120) for _ in processes)
    for p in processes:
        p.join(timeout=60)
    for name, build in builders().items():
        said, state = steps(build, rand(3, 7, 3, 4))
        for rank in range(2):
            theirs, their_state = both[rank][name]
            for ours, parts in zip(said, theirs):
                for a, b in zip(ours, parts):
                    assert torch.allclose(a, torch.tensor(b, dtype=torch.float64), atol=1e-10), name
            for key, value in state.items():
                assert torch.allclose(value, torch.tensor(their_state[key], dtype=value.dtype), atol=1e-10), (name, key)
