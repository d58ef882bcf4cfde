"""Transformer blocks and the "vit" backbone."""

import math

import pytest
import torch
import torch.nn.functional as F

import aezoo
from aezoo import functional as fn
from aezoo import wholebatch
from aezoo.backbones import BACKBONES
from aezoo.transformer import SelfAttention, TransformerBlock

SHAPES = [(30,), (5,), (1,), (4, 17), (1, 9, 14), (3, 8, 8), (2, 5, 6, 7)]
SMALL = "width=16, depth=2, heads=2"


def tokens(b=3, t=7, w=8):
    return torch.randn(b, t, w, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------- blocks


def test_attention_is_its_formula():
    """softmax(q k^T / sqrt(d)) v per head (arXiv:1706.03762, eq. 1): d is the head's width, not the model's."""
    attention, x = SelfAttention(8, 2).double(), tokens()
    q, k, v = (x @ w.t() for w in attention.qkv.weight.chunk(3))
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(q[..., h] @ k[..., h].transpose(1, 2) / math.sqrt(4), -1)
        heads.append(weights @ v[..., h])
    assert torch.allclose(attention(x), attention.out(torch.cat(heads, -1)), atol=1e-12)


def test_block_is_pre_norm():
    block, x = TransformerBlock(8, 2).double(), tokens()
    h = x + block.attention(F.layer_norm(x, (8,)))
    assert torch.allclose(block(x), h + block.mlp(F.layer_norm(h, (8,))), atol=1e-12)


def reach(block, x, mask=None):
    """(T, T): does output i depend on input j?"""
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x[None], mask)[0], x[0])
    return jacobian.abs().sum((1, 3)) > 0


@pytest.mark.parametrize("causal", [False, True])
def test_who_sees_whom(causal):
    block, x = TransformerBlock(8, 2, causal=causal).double(), tokens(1, 5)
    free = torch.ones(5, 5, dtype=torch.bool).tril() if causal else torch.ones(5, 5, dtype=torch.bool)
    assert torch.equal(reach(block, x), free)
    assert torch.equal(reach(block, x, torch.ones(1, 5, dtype=torch.bool)), free)
    mask = torch.tensor([[False, True, True, False, True]])
    seen = reach(block, x, mask)
    assert torch.equal(seen[mask[0]][:, mask[0]], free[mask[0]][:, mask[0]])
    assert not seen[mask[0]][:, ~mask[0]].any()


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing_and_is_never_nan(causal):
    block, x = TransformerBlock(8, 2, causal=causal).double(), tokens(2, 6)
    for valid in (slice(0, 4), slice(2, 6)):  # at the end, or at the front
        mask = torch.zeros(2, 6, dtype=torch.bool)
        mask[:, valid] = True
        padded = block(x, mask)
        assert torch.isfinite(padded).all() and torch.allclose(padded[:, valid], block(x[:, valid]), atol=1e-12)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads=3 must be a positive integer that divides width=8"):
        TransformerBlock(8, 3)


def test_dropout_is_the_same_however_the_batch_is_spread():
    block, x = TransformerBlock(8, 2, dropout=0.4).double(), tokens(6)
    torch.manual_seed(1)
    whole = block(x)
    parts = []
    for start, stop in ((0, 2), (2, 6)):
        torch.manual_seed(1)
        with wholebatch.spread(start, stop, 6):
            parts.append(block(x[start:stop]))
    assert torch.allclose(torch.cat(parts), whole, atol=1e-12)
    assert not torch.equal(whole, block(x)) and torch.equal(block.eval()(x), block(x))


# ---------------------------------------------------------------------------------------------------------- positions


def test_sincos_positions():
    """Entry by entry: sin(p w_k), cos(p w_k), w_k = 10000^(-k/n), each axis with its own share of the width."""
    table = fn.sincos_positions((3, 4), 18)  # n = 18 // 4 = 4 frequencies an axis; 2 numbers stay 0
    for row, column in ((0, 0), (2, 1), (1, 3)):
        expected = []
        for place in (row, column):
            angles = [place * 10000 ** (-k / 4) for k in range(4)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert torch.allclose(table[4 * row + column], torch.tensor([*expected, 0.0, 0.0]), atol=1e-6)
    assert len(table.unique(dim=0)) == 12
    with pytest.raises(ValueError, match="width=3 must be at least 4"):
        fn.sincos_positions((3, 4), 3)


# ------------------------------------------------------------------------------------------------------------ backbone


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_any_shape(shape, positions):
    backbone, x = BACKBONES.build(f"vit({SMALL}, positions={positions!r})"), torch.rand(3, *shape)
    encoder, decoder = backbone.build(shape, 5, code_params=2, num_params=3)
    h = encoder(x)
    assert h.shape == (3, 10) and decoder(h[:, :5]).shape == (3, 3, *shape)
    encoder, decoder, grid = backbone.build_grid(shape, 5, code_params=2, num_params=3)
    h = encoder(x)
    assert h.shape == (3, 10, *grid) and decoder(h[:, :5]).shape == (3, 3, *shape)
    decoder(h[:, :5]).square().sum().backward()
    dead = [k for m in (encoder, decoder) for k, p in m.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@pytest.mark.parametrize("name", ["ae", "vae"])
def test_models_take_it(name, tmp_path, images):
    model = aezoo.create_model(
        name, input_shape=(1, 12, 12), latent_dim=4, backbone=f"vit({SMALL}, patch=(5, 4), dropout=0.1)"
    )
    x = images[0]
    model.loss(x).total.backward()
    assert not [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


def test_one_vector_per_patch_in_the_order_of_the_grid():
    """What a code of the grid depends on most is its own patch: with no block's attention, only on it."""
    encoder, _, grid = BACKBONES.build(f"vit({SMALL}, patch=4)").build_grid((1, 8, 12), 3)
    assert grid == (2, 3)
    for block in encoder.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    x = torch.rand(1, 1, 8, 12)
    changed = x.clone()
    changed[:, :, 4:, 4:8] += 1.0
    moved = (encoder(x) != encoder(changed)).any(1)[0]
    assert moved.tolist() == [[False, False, False], [False, True, False]]


def test_positions_alone_tell_patches_apart():
    """Without them the pooled code is the same for any order of the patches."""
    encoder, _ = BACKBONES.build(f"vit({SMALL}, patch=4)").build((1, 8, 8), 3)
    x = torch.rand(1, 1, 8, 8)
    moved = torch.cat([x[:, :, 4:], x[:, :, :4]], 2)
    assert not torch.allclose(encoder(x), encoder(moved), atol=1e-4)
    torch.nn.init.zeros_(encoder.positions.table)
    assert torch.allclose(encoder(x), encoder(moved), atol=1e-5)


def test_a_short_training_learns():
    from conftest import make_images

    x = make_images(64)[0]
    model = aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=8, backbone="vit(width=32, depth=1, patch=4)")
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = model.loss(x).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert (model.reconstruct(x) - x).square().mean() < 0.5 * (x - x.mean(0)).square().mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("patch=0", "patch=0 must be a positive integer"),
        ("patch=9", "none longer than its axis"),
        ("patch=(2, 2, 2)", r"one for each axis of \(8, 8\)"),
        ("patch=2.0", "patch=2.0"),
        ("width=30", "width=30 must be a multiple of heads=4"),
        ("decoder_width=30", "decoder_width=30 must be a multiple"),
        ("depth=0", "depth=0"),
        ("heads=True", "heads=True"),
        ("positions='fixed'", "allowed: learned, sincos"),
        ("dropout=1.0", "dropout=1.0"),
        ("mlp_ratio=0", "mlp_ratio=0"),
    ],
)
def test_errors(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        aezoo.create_model("ae", input_shape=(1, 8, 8), backbone=f"vit({options})")


def test_default_patches():
    assert fn.default_patch((28, 32)) == (4, 4) and fn.default_patch((64, 48)) == (8, 6)
    assert fn.default_patch((101,)) == (13,) and fn.default_patch((1, 5, 12)) == (1, 1, 2)
