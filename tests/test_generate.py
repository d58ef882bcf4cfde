"""Ways through the space of codes: formulas in float64, ends, every model of the zoo, pictures and commands."""

import math

import numpy as np
import pytest
import torch
from conftest import fails, make_images, model_of
from PIL import Image

import aezoo
from aezoo import functional as fn
from aezoo.cli import main
from aezoo.tasks import save_gif, save_grid

X, Y = make_images(30)
T = torch.linspace(0, 1, 7, dtype=torch.float64)


def zoo(name, **more):
    torch.manual_seed(2)
    return aezoo.create_model(name, **{"input_shape": (1, 12, 12), "latent_dim": 4, **more}).eval()


# ------------------------------------------------------------------------------------------------------------- formulas


def test_slerp_is_shoemakes_formula():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 6, generator=g, dtype=torch.float64).unbind(0)
    out = fn.slerp(a, b, T)
    assert out.shape == (5, 7, 6)
    for i in range(5):
        omega = math.acos(float(a[i] @ b[i] / a[i].norm() / b[i].norm()))
        for j, t in enumerate(T.tolist()):
            want = (math.sin((1 - t) * omega) * a[i] + math.sin(t * omega) * b[i]) / math.sin(omega)
            assert torch.allclose(out[i, j], want, atol=1e-12)
    assert torch.equal(out[:, 0], a) and torch.equal(out[:, -1], b)
    unit = fn.slerp(a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True), T)
    assert torch.allclose(unit.norm(dim=2), torch.ones(5, 7, dtype=torch.float64))
    steps = torch.arccos((unit[:, 1:] * unit[:, :-1]).sum(2).clamp(-1, 1))  # equal angles
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=1e-7)
    assert torch.equal(fn.lerp(a, b, T)[:, 3], 0.5 * a + 0.5 * b)


def test_slerp_where_the_formula_has_no_value():
    a = torch.tensor([[1.0, 2.0, -1.0]])
    zero = torch.zeros(1, 3)
    for p, q in ((a, zero), (zero, a), (zero, zero), (a, a), (a, 3 * a), (a, a * (1 + 1e-7))):
        assert torch.allclose(fn.slerp(p, q, T), fn.lerp(p.double(), q.double(), T).float(), atol=1e-6)
    for factor in (-1.0, -2.5, -1 - 1e-7):
        way = fn.slerp(a, factor * a, T)
        assert torch.isfinite(way).all() and torch.equal(way[0, 0], a[0]) and torch.equal(way[0, -1], factor * a[0])
        radius = (1 - T) * float(a.norm()) + T * float((factor * a).norm())
        assert torch.allclose(way[0].norm(dim=1), radius.float(), rtol=1e-5)  # around 0, not through it
    turned = torch.nn.functional.normalize(-a + torch.tensor([[0.0, 0.01, 0.0]]), dim=1) * a.norm()
    near = fn.slerp(a, turned, T)  # not quite opposite: the formula
    assert torch.allclose(near[0].norm(dim=1), a.norm().expand(7), rtol=1e-3)
    line = fn.slerp(torch.tensor([[2.0]]), torch.tensor([[-2.0]]), T)[
        0, :, 0
    ]  # there is no way around in one dimension
    assert torch.allclose(line, torch.linspace(2, -2, 7), atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- interpolate


@pytest.mark.parametrize("name", aezoo.list_models())
def test_every_model_interpolates(name):
    """(steps, *input_shape); both ends are the reconstructions to the bit; nothing global changes."""
    model = zoo(name).train()
    modes, before = [m.training for m in model.modules()], torch.get_rng_state()
    for path in ("linear", "slerp"):
        way = aezoo.interpolate(model, X[0], X[1], 5, path)
        assert way.shape == (5, 1, 12, 12) and torch.isfinite(way).all() and not way.requires_grad
        with torch.no_grad():
            assert torch.equal(way[0], model.reconstruct(X[:1])[0]) and torch.equal(
                way[-1], model.reconstruct(X[1:2])[0]
            )
    assert torch.equal(before, torch.get_rng_state()) and modes == [m.training for m in model.modules()]


@pytest.mark.parametrize("path", ["linear", "slerp"])
def test_codes_in_between(path):
    model = zoo("vae").double()
    a, b = X[:3].double(), X[3:6].double()
    way = aezoo.interpolate(model, a, b, 7, path)
    assert way.shape == (3, 7, 1, 12, 12)
    with torch.no_grad():
        z = getattr(fn, "lerp" if path == "linear" else "slerp")(model.encode(a), model.encode(b), T)
        assert torch.allclose(way[1], model.decode(z[1]), atol=1e-10)
    assert torch.allclose(aezoo.interpolate(model, a[1:2], b[1:2], 7, path), way[1], atol=1e-10)  # a batch of one
    assert torch.allclose(aezoo.interpolate(model, a[1].numpy(), b[1], 7, path), way[1], atol=1e-10)
    eight_bit = (X * 255).round().to(torch.uint8)
    one = aezoo.interpolate(zoo("vae"), eight_bit[0], eight_bit[1], 3)
    assert torch.allclose(one, aezoo.interpolate(zoo("vae"), eight_bit[0].float() / 255, eight_bit[1].float() / 255, 3))


@pytest.mark.parametrize("name", ["vq_vae", "rvq_vae", "fsq_ae", "vq_vae_2"])
def test_between_codes_of_a_codebook_lie_codes_of_it(name, monkeypatch):
    model = zoo(name, backbone="conv(widths=(4, 8))") if name != "vq_vae_2" else zoo(name)
    with torch.no_grad():
        model.train()(X)  # a codebook starts from data
        model.eval()
    decoded = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z, *c: decoded.append(z) or decode(z, *c))
    aezoo.interpolate(model, X[0], X[1], 6)
    z = max(decoded, key=len)
    assert len(z) == 6
    with torch.no_grad():
        h = [model.hidden(x[None]) for x in (X[0], X[1])]
        middle = torch.cat([model.codes(model.indices_of((1 - t) * h[0] + t * h[1])) for t in torch.linspace(0, 1, 6)])
    assert torch.allclose(z, middle, atol=1e-5)


def test_parts_of_a_code_go_their_own_ways():
    joint = zoo("joint_vae", categories=(3,))
    seen = []
    decode = joint.decode
    joint.decode = lambda z, *c: seen.append(z) or decode(z, *c)
    aezoo.interpolate(joint, X[0], X[1], 5, "slerp")
    z = seen[-1]
    assert torch.allclose(z[:, 4:].sum(1), torch.ones(5)) and bool((z[:, 4:] >= 0).all())  # stays a distribution
    assert torch.allclose(z[:, :4], fn.slerp(z[:1, :4], z[-1:, :4], torch.linspace(0, 1, 5))[0], atol=1e-6)

    sphere = zoo("svae")
    seen, decode = [], sphere.decode
    sphere.decode = lambda z, *c: seen.append(z) or decode(z, *c)
    aezoo.interpolate(sphere, X[0], X[1], 5, "linear")
    assert torch.allclose(seen[-1].norm(dim=1), torch.ones(5), atol=1e-5)

    ladder = zoo("ladder_vae")
    seen, sizes, decode2 = [], ladder.decoder.lengths, ladder.decode
    ladder.decode = lambda z, *c: seen.append(z) or decode2(z, *c)
    aezoo.interpolate(ladder, X[0], X[1], 5, "slerp")
    z = seen[-1]
    want = [fn.slerp(p[:1], p[-1:], torch.linspace(0, 1, 5))[0] for p in z.split(sizes, 1)]
    assert torch.allclose(z, torch.cat(want, 1), atol=1e-6)


def test_conditions():
    model = zoo("cvae", num_classes=3)
    with torch.no_grad():
        model.embedding.weight.normal_()
    one, other = (aezoo.interpolate(model, X[0], X[1], 4, condition=c) for c in (0, 2))
    assert not torch.allclose(one, other)
    with torch.no_grad():
        assert torch.equal(one[0], model.reconstruct(X[:1], condition=torch.tensor([0]))[0])
    assert torch.equal(aezoo.interpolate(model, X[0], X[1], 4, condition=torch.tensor([2])), other)
    both = aezoo.interpolate(model, X[:2], X[2:4], 4, condition=torch.tensor([0, 2]))
    assert both.shape == (2, 4, 1, 12, 12)
    assert aezoo.traverse(model, X[0], [1], steps=3, condition=1).shape == (1, 3, 1, 12, 12)
    with pytest.raises(ValueError, match="label 3, but num_classes=3"):
        aezoo.interpolate(model, X[0], X[1], condition=3)
    with pytest.raises(ValueError, match="vae takes no condition"):
        aezoo.interpolate(zoo("vae"), X[0], X[1], condition=3)
    with pytest.raises(TypeError, match="condition must be a label, a tensor, or a list"):
        aezoo.interpolate(model, X[0], X[1], condition="three")
    vectors = zoo("cvae", condition_dim=2)
    assert aezoo.interpolate(vectors, X[0], X[1], 3, condition=torch.rand(2)).shape == (3, 1, 12, 12)


def test_conditions_in_lists():
    model = zoo("cvae", num_classes=3)
    for given in ([0, 2], np.array([0, 2]), (0, 2)):
        both = aezoo.interpolate(model, X[:2], X[2:4], 4, condition=given)
        assert torch.equal(both, aezoo.interpolate(model, X[:2], X[2:4], 4, condition=torch.tensor([0, 2])))


def test_tables_with_missing_entries():
    model = aezoo.create_model("tabular_vae", input_shape=(4,), latent_dim=2, columns=(0, 0, 0, 3))
    a, b = torch.tensor([0.5, math.nan, 2.0, 1.0]), torch.tensor([-1.0, 3.0, math.nan, 2.0])
    way = aezoo.interpolate(model, a, b, 6, "slerp")
    assert way.shape == (6, 4) and torch.isfinite(way).all() and set(way[:, 3].tolist()) <= {0.0, 1.0, 2.0}
    assert aezoo.traverse(model, a, [0, 1], steps=3).shape == (2, 3, 4)


def test_interpolate_bad_input():
    model = zoo("ae")
    for options, words in (
        ({"steps": 1}, "steps=1 must be an integer of at least 2"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"path": "slrp"}, r"path='slrp' is not known; allowed: linear, slerp. Did you mean 'slerp'\?"),
    ):
        with pytest.raises(ValueError, match=words):
            aezoo.interpolate(model, X[0], X[1], **options)
    with pytest.raises(ValueError, match=r"b has shape \(1, 12, 13\); ae takes a sample of shape \(1, 12, 12\)"):
        aezoo.interpolate(model, X[0], torch.rand(1, 12, 13))
    with pytest.raises(ValueError, match="3 channels"):
        aezoo.interpolate(model, X[0], torch.rand(3, 12, 12))
    with pytest.raises(ValueError, match="equally many samples; got 3 and 2"):
        aezoo.interpolate(model, X[:3], X[:2])
    with pytest.raises(ValueError, match="a: the data holds NaN"):
        aezoo.interpolate(model, torch.full((1, 12, 12), math.nan), X[1])
    with pytest.raises(ValueError, match=r"needs data in \[0, 1\]"):
        aezoo.interpolate(zoo("ae", likelihood="bce"), 3 * X[0], X[1])
    with pytest.raises(TypeError, match="a must be a tensor or an array"):
        aezoo.interpolate(model, "a.png", X[1])
    with pytest.raises(TypeError, match="dtype torch.int64"):
        aezoo.interpolate(model, X[0].long(), X[1])
    with pytest.raises(TypeError, match="model must be a BaseAE"):
        aezoo.interpolate(torch.nn.Linear(2, 2), X[0], X[1])
    pairs = aezoo.create_model("transcoder", input_shape=(2, 6), latent_dim=16, pairs=True)
    with pytest.raises(ValueError, match="does not reconstruct from the code alone"):
        aezoo.interpolate(pairs, torch.rand(2, 6), torch.rand(2, 6))


# ------------------------------------------------------------------------------------------------------------- traverse


def test_traverse_moves_one_latent():
    model = zoo("vae").double()
    x = X[:1].double()
    rows = aezoo.traverse(model, x[0], [3, 0], steps=5, span=2.0)
    assert rows.shape == (2, 5, 1, 12, 12)
    with torch.no_grad():
        z = model.encode(x)
        for row, d in zip(rows, (3, 0)):
            for j, value in enumerate((-2.0, -1.0, 0.0, 1.0, 2.0)):  # the prior is N(0, I)
                moved = z.clone()
                moved[0, d] = value
                assert torch.allclose(row[j], model.decode(moved)[0], atol=1e-10)
        middle = aezoo.traverse(model, None, 1, steps=3)
        assert torch.allclose(middle[0, 1], model.decode(torch.zeros(1, 4).double())[0], atol=1e-10)
        mu, logvar = model.posterior(model.hidden(x))
        ends = aezoo.traverse(model, x, [2], steps=2, scale="posterior", span=1.5)[0]
        for end, sign in zip(ends, (-1.5, 1.5)):
            moved = z.clone()
            moved[0, 2] = mu[0, 2] + sign * (0.5 * logvar[0, 2]).exp()
            assert torch.allclose(end, model.decode(moved)[0], atol=1e-10)


def test_traverse_by_quantiles_and_by_a_fitted_prior():
    model = zoo("ae").double()
    x = X.double()
    rows = aezoo.traverse(model, x[0], [1], steps=2, data=x, quantiles=(0.1, 0.9))
    with torch.no_grad():
        z = model.encode(x)
        low, high = np.quantile(z[:, 1].numpy(), [0.1, 0.9])
        for end, value in zip(rows[0], (low, high)):
            moved = z[:1].clone()
            moved[0, 1] = value
            assert torch.allclose(end, model.decode(moved)[0], atol=1e-10)
    spread = z.std(0)
    by_itself = aezoo.traverse(model, x[0], data=x, steps=2)
    assert by_itself.shape[0] == int((spread > 0).sum())
    aezoo.fit_prior(model, x, "normal", device="cpu")
    before = torch.get_rng_state()
    rows = aezoo.traverse(model, x[0], [0], steps=3, span=1.0)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(
        rows, aezoo.traverse(model, x[0], [0], steps=3, span=1.0)
    )
    with torch.no_grad():
        moved = z[:1].clone()
        moved[0, 0] = z[:, 0].mean()
        assert torch.allclose(rows[0, 1], model.decode(moved)[0], atol=0.05)


def test_traverse_on_a_sphere():
    model = zoo("svae")
    seen, decode = [], model.decode
    model.decode = lambda z, *c: seen.append(z) or decode(z, *c)
    aezoo.traverse(model, X[0], [1], steps=5)
    z = seen[-1]
    assert torch.allclose(z.norm(dim=1), torch.ones(5), atol=1e-5) and float(z[0, 1]) < float(z[-1, 1]) <= 1
    others = z[:, [0, 2, 3]]
    inner = others[z[:, 1].abs() < 0.99]
    assert torch.allclose(
        torch.nn.functional.normalize(inner, dim=1),
        torch.nn.functional.normalize(inner[:1], dim=1).expand_as(inner),
        atol=1e-4,
    )


@pytest.mark.parametrize("name", aezoo.list_models())
def test_every_model_is_traversed_or_says_why_not(name):
    model = zoo(name)
    k = math.prod(model.latent_shape)
    if getattr(model, "index_prior", False) or name == "ladder_vae":
        with pytest.raises(ValueError, match=f"{name} has .*interpolate goes"):
            aezoo.traverse(model, X[0], [0], data=X)
        return
    rows = aezoo.traverse(model, X[0], steps=2, data=X)
    assert 1 <= len(rows) <= min(10, k) and rows.shape[1:] == (2, 1, 12, 12) and torch.isfinite(rows).all()
    if model.prior is None:
        with pytest.raises(ValueError, match=r"no prior to take a range from.*fit_prior"):
            aezoo.traverse(model, X[0])
        with pytest.raises(ValueError, match=r"no prior to sample from.*fit_prior"):
            model.sample(2)


def test_traverse_bad_input():
    model = zoo("vae")
    for dims, error, words in (
        ([4], ValueError, "dims holds 4, but a code of this vae has the numbers 0 to 3"),
        ([-1], ValueError, "dims holds -1"),
        ([0.5], TypeError, "dims holds 0.5"),
        ("0,1", TypeError, "dims='0,1' must be"),
        ([], TypeError, "must be one or several"),
    ):
        with pytest.raises(error, match=words):
            aezoo.traverse(model, X[0], dims)
    for options, words in (
        ({"steps": 1}, "steps=1 must be"),
        ({"span": 0.0}, "span=0.0 must be"),
        ({"scale": "priro"}, r"scale='priro'.*Did you mean 'prior'"),
        ({"scale": "data"}, "pass data="),
        ({"scale": "prior", "data": X}, "does not look at it"),
        ({"data": X[:1]}, "at least 2 samples"),
        ({"data": X, "quantiles": (0.9, 0.1)}, "two rising numbers"),
        ({"data": torch.rand(4, 1, 9, 9)}, "samples of shape"),
    ):
        with pytest.raises(ValueError, match=words):
            aezoo.traverse(model, X[0], [0], **options)
    with pytest.raises(ValueError, match=r"scale='posterior' is that of a sample"):
        aezoo.traverse(model, None, [0], scale="posterior")
    with pytest.raises(ValueError, match="ae has no Gaussian posterior"):
        aezoo.traverse(zoo("ae"), X[0], [0], scale="posterior")
    with pytest.raises(ValueError, match="x holds 2 samples"):
        aezoo.traverse(model, X[:2], [0])
    with pytest.raises(ValueError, match="dims holds 4, which is a category"):
        aezoo.traverse(zoo("joint_vae", categories=(3,)), X[0], [4])
    still = X[:1].expand(5, -1, -1, -1)  # every sample, and so every latent, is the same
    with pytest.raises(ValueError, match="latent 0 of vae has the same value .* it never moves"):
        aezoo.traverse(model, X[0], [0], data=still, quantiles=(0.0, 1.0))
    with pytest.raises(ValueError, match="no latent of this vae moves"):
        aezoo.traverse(model, X[0], data=still, quantiles=(0.0, 1.0))


# ------------------------------------------------------------------------------------------------- pictures and commands


def test_grids_and_animations(tmp_path):
    x = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 1, 12, 12)
    gif = save_gif(x, tmp_path / "deep" / "a", seconds=0.6)
    with Image.open(gif) as im:
        assert im.format == "GIF" and im.n_frames == 6 and im.info["duration"] == 200 and im.info["loop"] == 0
        greys = []
        for i in range(6):  # there and back
            im.seek(i)
            greys.append(im.convert("L").getpixel((5, 5)))
    assert greys == pytest.approx([0, 85, 170, 255, 170, 85], abs=1)
    colour = save_gif(torch.rand(3, 3, 12, 12), tmp_path / "c.gif", back=False)
    with Image.open(colour) as im:
        assert im.n_frames == 3
    with Image.open(save_grid(x.unflatten(0, (2, 2)), tmp_path / "g.png")) as im:
        wide, high = im.size
        assert im.getpixel((5, 5))[0] == 0 and im.getpixel((wide - 5, high - 5))[0] == 255 and wide == high
    for samples in (torch.rand(2, 5, 7), torch.rand(2, 5, 2, 30), torch.rand(2, 5, 3, 12, 12)):
        assert save_grid(samples, tmp_path / "n.png", ["one", "two"]).stat().st_size > 1000
    with Image.open(save_gif(torch.rand(3, 7), tmp_path / "curve.gif")) as im:
        assert im.n_frames == 4
    for call, words in (
        (lambda: save_gif(x, tmp_path / "a.png"), r"must end in .gif"),
        (lambda: save_gif(x[:1], tmp_path / "a.gif"), "at least two samples"),
        (lambda: save_gif(x, tmp_path / "a.gif", seconds=0), "seconds=0"),
        (lambda: save_grid(x[0], tmp_path / "a.gif"), "must end in .png"),
        (lambda: save_grid(x[0, 0], tmp_path / "a.png"), "rows of samples"),
        (lambda: save_grid(x[None], tmp_path / "a.png", ["a", "b"]), "2 names do not fit 1 rows"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model_of("vae").save_pretrained("run")
    Image.fromarray((X[0, 0].numpy() * 255).astype(np.uint8)).save("A.png")
    Image.fromarray((X[1, 0].numpy() * 255).astype(np.uint8)).resize((20, 24)).save("B.png")  # fitted to the model
    np.save("many.npy", X[:5].numpy())
    main(["interpolate", "run", "A.png", "B.png", "--steps", "6", "--path", "slerp", "--out", "x.gif"])
    with Image.open("x.gif") as im:
        assert 2 <= im.n_frames <= 10
    main(["interpolate", "run", "A.png", "many.npy:4", "--steps", "3", "--out", "x.npy"])
    way = np.load("x.npy")
    assert way.shape == (3, 1, 12, 12)
    with torch.no_grad():
        assert np.allclose(way[-1], aezoo.from_pretrained("run").reconstruct(X[4:5])[0], atol=1e-6)
    main(["interpolate", "run", "A.png", "B.png", "--steps", "3", "--out", "x.png"])
    main(["traverse", "run", "A.png", "--dims", "0,1,2", "--out", "t.png"])
    main(["traverse", "run", "--data", "many.npy", "--out", "t.npy", "--steps", "4"])
    assert np.load("t.npy").shape == (4, 4, 1, 12, 12)
    main(["traverse", "run", "--dims", "1,3", "--out", "t.gif"])
    assert (
        all((tmp_path / f).is_file() for f in ("x.png", "t.png", "t.gif"))
        and "latents 1, 3 of vae" in capsys.readouterr().out
    )

    assert "Did you mean 'A.png'" in fails(capsys, "interpolate", "run", "A.pngg", "B.png")
    assert "Did you mean 'slerp'" in fails(capsys, "interpolate", "run", "A.png", "B.png", "--path", "slerpp")
    assert "steps=1" in fails(capsys, "interpolate", "run", "A.png", "B.png", "--steps", 1)
    assert "holds 5 samples; say which one: many.npy:0" in fails(capsys, "interpolate", "run", "many.npy", "B.png")
    assert "many.npy holds 5 samples, 0 to 4" in fails(capsys, "interpolate", "run", "many.npy:9", "B.png")
    assert "must end in .gif" in fails(capsys, "interpolate", "run", "A.png", "B.png", "--out", "x.mp4")
    assert "the numbers 0 to 3" in fails(capsys, "traverse", "run", "--dims", "9")
    assert "must be integers" in fails(capsys, "traverse", "run", "--dims", "a")
    np.save("small.npy", np.zeros((1, 1, 9, 9), np.float32))
    assert "takes (1, 12, 12)" in fails(capsys, "interpolate", "run", "small.npy", "A.png")
    np.save("nan.npy", np.full((1, 1, 12, 12), np.nan, np.float32))
    assert "NaN" in fails(capsys, "interpolate", "run", "nan.npy", "A.png")
    table = aezoo.create_model("ae", input_shape=(7,), latent_dim=2, backbone="mlp(widths=(4,))")
    table.save_pretrained("table")
    assert "is an image, but ae takes samples of shape (7,)" in fails(capsys, "interpolate", "table", "A.png", "B.png")
    np.save("row.npy", np.arange(14, dtype=np.float32).reshape(2, 7))
    main(["interpolate", "table", "row.npy:0", "row.npy:1", "--steps", "3", "--out", "r.png"])
    main(["interpolate", "table", "row.npy:0", "row.npy:1", "--steps", "3", "--out", "r.gif"])
    assert "fit_prior" in fails(capsys, "traverse", "table")

    cvae = zoo("cvae", num_classes=3)
    cvae.save_pretrained("told")
    main(["sample", "told", "-n", "4", "--condition", "2", "--out", "s.png"])
    assert "label 7" in fails(capsys, "sample", "told", "--condition", 7)
    assert "takes no condition" in fails(capsys, "sample", "run", "--condition", 1)
