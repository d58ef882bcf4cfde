"""Sprites: every combination once, drawn to the bit, and each factor does what it says."""

import hashlib
import math

import pytest
import torch

import aezoo
from aezoo.data.sprites import FACTORS, GRID, SHAPES, SIZES, draw, factors_of, glyphs, sprites


def moments(pictures):
    """Mass, middle (x, y) in pixels and the axis's angle of each picture, (N,) each."""
    p = pictures[:, 0].double() / 255
    at = torch.arange(p.shape[-1]).double() + 0.5
    mass = p.sum((1, 2))
    x, y = (p.sum(1) @ at) / mass, (p.sum(2) @ at) / mass
    dx, dy = at - x[:, None], at - y[:, None]
    xx, yy = (p.sum(1) * dx * dx).sum(1) / mass, (p.sum(2) * dy * dy).sum(1) / mass
    xy = torch.einsum("nyx,nx,ny->n", p, dx, dy) / mass
    return mass, x, y, 0.5 * torch.atan2(-2 * xy, xx - yy), (xx + yy)


def test_the_grid_holds_every_combination_and_no_picture_twice():
    x, y = sprites("all")
    assert x.shape == (GRID, 1, 32, 32) and x.dtype == torch.uint8 and GRID == math.prod(SIZES) == 46_080
    assert torch.equal(y, torch.cartesian_prod(*(torch.arange(n) for n in SIZES))) and torch.equal(
        factors_of(torch.arange(GRID)), y
    )
    assert len(set(map(bytes, x.numpy()))) == GRID
    mass = x.view(180, 256, -1).sum(2)
    assert torch.equal(mass, mass[:, 120:121].expand_as(mass))  # nothing is cut off


@pytest.mark.parametrize("size", [32, 64])
def test_the_same_bits_everywhere(size):
    """Whole-number arithmetic, whose outcome is recorded here; a torch that shuffles otherwise would show, too."""
    wanted = {32: "6072e10b21600681", 64: "9e0cde1070a953ed"}
    x, y = sprites("train", 50, size)
    digest = hashlib.sha256(glyphs(size).numpy().tobytes() + x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()
    assert digest[:16] == wanted[size]


@pytest.mark.parametrize("size", [32, 64])
def test_positions_are_exact_shifts(size):
    """The middle of shapes that are symmetrical lies at size / 2 + (i - 7.5) size / 32, and a step moves every pixel alike."""
    at = torch.arange(16)
    for shape in (0, 1):
        turned = torch.full_like(at, 3)
        _, x, y, _, _ = moments(draw(torch.stack([at * 0 + shape, at * 0 + 4, turned, at, 15 - at], 1), size))
        wanted = size / 2 + (at.double() - 7.5) * size / 32
        assert torch.allclose(x, wanted, atol=0.03) and torch.allclose(y, wanted.flip(0), atol=0.03)
    hearts = draw(torch.stack([at * 0 + 2, at * 0 + 5, at * 0 + 7, at, at * 0 + 4], 1), size)
    for i in range(15):
        assert torch.equal(hearts[i].roll(size // 32, -1), hearts[i + 1])


def test_areas_in_closed_form():
    """Square (2 * 0.7 r)^2, ellipse pi r^2 / 2, heart by a fine sum; r = side / 4 * (scale + 5) / 10, at every orientation."""
    t = (torch.arange(2000).double() + 0.5) / 1000 - 1
    u, v = t[None] / 0.7, t[:, None] / 0.7
    heart = float(((u.square() + v.square() - 1) ** 3 <= u.square() * v**3).double().mean()) * 4
    for shape, area in enumerate((1.96, math.pi / 2, heart)):
        for scale in (0, 3, 5):
            turns = torch.arange(10)
            factors = torch.stack([turns * 0 + shape, turns * 0 + scale, turns, turns * 0 + 7, turns * 0 + 8], 1)
            mass = moments(draw(factors, 64))[0]
            assert torch.allclose(mass, torch.full_like(mass, area * (16 * (scale + 5) / 10) ** 2), rtol=0.02), SHAPES[
                shape
            ]


def test_orientation_turns_counter_clockwise_by_nine_degrees():
    turns = torch.arange(10)
    ellipses = draw(torch.stack([turns * 0 + 1, turns * 0 + 5, turns, turns * 0 + 7, turns * 0 + 7], 1), 64)
    angles = moments(ellipses)[3].rad2deg()
    assert torch.allclose(angles, 9.0 * turns.double(), atol=0.3)
    heart = draw(torch.tensor([[2, 5, 0, 7, 7]]), 64)[0, 0].double()
    mirrored = heart.flip(1).roll(-2, 1)  # about x = 31
    assert float((heart - mirrored).abs().max()) <= 16 and float(heart.max()) == 255
    assert float(heart[:31].sum()) > 1.1 * float(heart[31:].sum())  # upright: the wide part is above


def test_edges_are_smooth():
    x = draw(factors_of(torch.arange(0, GRID, 500)), 64)
    greys = ((x > 0) & (x < 255)).double().sum() / (x > 0).sum()
    assert 0.05 < float(greys) < 0.5 and len(x.unique()) > 40


def test_parts_are_disjoint_and_follow_the_seed():
    (_, train), (_, test) = sprites("train", 3000), sprites("test", 600)
    base = torch.tensor([math.prod(SIZES[i + 1 :]) for i in range(5)])
    a, b = set((train * base).sum(1).tolist()), set((test * base).sum(1).tolist())
    assert len(a) == 3000 and len(b) == 600 and not a & b
    assert torch.equal(sprites("train", 100)[1], train[:100]) and not torch.equal(
        sprites("train", 100, seed=1)[1], train[:100]
    )
    for i, n in enumerate(SIZES):  # each value about as often as any other
        assert torch.bincount(train[:, i], minlength=n).double().div(3000 / n).sub(1).abs().max() < 0.35


def test_by_name():
    train, test = (aezoo.load_data("sprites", split=s) for s in ("train", "test"))
    assert (
        (len(train), len(test)) == (10_000, 2_000) and train.shape == (1, 32, 32) and train.labels.shape == (10_000, 5)
    )
    assert (
        train.class_names == SHAPES
        and train.factor_names == FACTORS
        and train.subset(torch.arange(3)).factor_names == FACTORS
    )
    assert aezoo.load_data("sprites", size=64, limit=5).shape == (1, 64, 64)
    batch = next(iter(train.batches([torch.tensor([4, 2])], torch.device("cpu"))))
    assert torch.equal(batch.y, train.labels[[4, 2]]) and batch.x.min() >= 0 and batch.x.max() == 1
    whole = {s: aezoo.load_data("sprites-full", split=s) for s in ("train", "test")}
    assert (len(whole["train"]), len(whole["test"])) == (40_000, 6_080)
    assert torch.equal(whole["test"].labels[:2000], test.labels)
    assert set(aezoo.load_data("sprites", binarize="threshold", limit=99).x.unique().tolist()) == {0, 255}


@pytest.mark.pictures
def test_training_and_its_pictures(tmp_path, monkeypatch):
    """The map of the codes takes its colours from the first factor."""
    from matplotlib.axes import Axes

    names = []
    scatter = Axes.scatter
    monkeypatch.setattr(Axes, "scatter", lambda *a, **k: names.append(k.get("label")) or scatter(*a, **k))
    model = aezoo.create_model("vae", input_shape=(1, 32, 32), latent_dim=3, backbone="mlp(widths=(16,))")
    data = aezoo.load_data("sprites", limit=200)
    result = aezoo.fit(model, data, epochs=1, val=0.2, out=tmp_path, progress=False, device="cpu")
    assert names == list(SHAPES) and (tmp_path / "pictures" / "latent.png").stat().st_size > 5000
    assert math.isfinite(result.history[-1]["val_loss"])


def test_disentanglement_of_the_factors_themselves():
    from aezoo.metrics.disentanglement import factor_vae_score, mig

    source = aezoo.load_data("sprites")
    assert mig(source.labels.double(), source.labels)["mig"][0] == pytest.approx(1.0, abs=0.02)
    assert factor_vae_score(source.labels.double(), source.labels)["factor_vae_score"][0] == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sprites(size=48), "size=48 must be a multiple of 32"),
        (lambda: sprites("test", 6081), "samples=6081 is more than the 6,080"),
        (lambda: sprites("tset"), "Did you mean 'test'"),
        (lambda: sprites(seed=-1), "seed=-1"),
        (lambda: draw(torch.tensor([[3, 0, 0, 0, 0]])), "indices below"),
        (lambda: draw(torch.rand(2, 5)), r"whole numbers, \(N, 5\)"),
        (lambda: aezoo.load_data("sprites", size=(32, 64)), r"size=\(32, 64\) does not apply"),
        (lambda: aezoo.load_data("sprites", size=28), "size=28 must be a multiple of 32"),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
