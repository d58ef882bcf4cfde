"""Images of any size through models: tiles and their blending, whole images, the command, and what is refused."""

import math
import sys

import numpy as np
import pytest
import torch
from conftest import fit, make_images
from PIL import Image
from torch import nn

import aezoo
from aezoo import cli
from aezoo import functional as fn
from aezoo.pictures import save_image
from aezoo.tasks import denoise as task
from aezoo.tasks.quality import quality
from aezoo.tasks.resizing import local, resized, stride
from aezoo.tasks.tiles import over_tiles, padded, starts, window


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear(weight, shape=(1, 6, 6)):
    """A model for images of that size whose reconstruction is x W^T."""
    n = math.prod(shape)
    layer = nn.Linear(n, n, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    pair = nn.Sequential(nn.Flatten(), layer), nn.Unflatten(1, shape)
    return aezoo.create_model("ae", input_shape=shape, latent_dim=n, backbone=pair)


def unet(shape=(1, 12, 12), **more):
    return aezoo.create_model("unet_denoiser", input_shape=shape, latent_dim=4, backbone="unet(widths=(4,))", **more)


# --------------------------------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("size", [(1, 1), (2, 30), (5, 6), (6, 6), (7, 6), (8, 9), (17, 31)], ids=str)
@pytest.mark.parametrize("overlap", [None, 0, 1, 5])
def test_the_identity_gives_the_images_back_and_a_constant_stays_one(size, overlap):
    model, x = linear(torch.eye(36)), rand(2, 1, *size)
    y = aezoo.denoise(model, x, overlap=overlap)
    assert y.shape == x.shape and (y - x).abs().max() < 1e-6
    flat = torch.full((1, *size), 0.3)
    assert (aezoo.denoise(model, flat, overlap=overlap) - flat).abs().max() < 1e-6


def test_tiles_are_blended_as_brute_force_does_it():
    """Sum of weights times what each tile gives, over the sum of weights, pixel by pixel in float64."""
    model = linear(rand(20, 20, seed=1) / 20, (1, 4, 5)).double()
    x = rand(1, 1, 11, 13, dtype=torch.float64)
    total, norm = np.zeros((11, 13)), np.zeros((11, 13))
    w = [[math.sin(math.pi / 2 * min(1, (min(i, t - 1 - i) + 0.5) / (t // 2))) ** 2 for i in range(t)] for t in (4, 5)]
    for r in starts(11, 4, 2):
        for c in starts(13, 5, 2):
            y = model.reconstruct(x[:, :, r : r + 4, c : c + 5])[0, 0].detach()
            for i in range(4):
                for j in range(5):
                    total[r + i, c + j] += w[0][i] * w[1][j] * float(y[i, j])
                    norm[r + i, c + j] += w[0][i] * w[1][j]
    assert np.allclose(aezoo.denoise(model, x)[0, 0].numpy(), total / norm, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 6, 7, 12, 13, 50])
@pytest.mark.parametrize("overlap", [0, 1, 3, 5])
def test_the_fewest_tiles_cover_everything_and_overlap_enough(length, overlap):
    first = starts(length, 6, overlap)
    assert first[0] == 0 and first[-1] == max(0, length - 6)
    assert all(1 <= b - a <= 6 - overlap for a, b in zip(first, first[1:]))
    assert len(first) == max(1, math.ceil((length - overlap) / (6 - overlap)))


def test_windows_are_hanns_and_add_up_to_one():
    w = window(8, 4, torch.zeros((), dtype=torch.float64))
    assert torch.allclose(w, torch.hann_window(8, periodic=False, dtype=torch.float64) * 0 + torch.sin(
        math.pi * (torch.arange(8, dtype=torch.float64) + 0.5) / 8).square())  # fmt: skip
    assert torch.allclose(w[:4] + w[4:], torch.ones(4, dtype=torch.float64)) and (w > 0).all()
    flat = window(9, 2, w)
    assert (flat[2:7] == 1).all() and torch.allclose(flat, flat.flip(0)) and 0 < flat[0] < flat[1] < 1
    assert (window(5, 0, w) == 1).all()


def test_no_seam_shows_where_tiles_do_not_agree():
    """A model that darkens the edge of its tiles: without overlap a grid of lines, with it neighbouring pixels differ far less."""
    dark = torch.ones(6, 6)
    dark[[0, -1]], dark[:, [0, -1]] = 0.5, 0.5
    model, x = linear(torch.diag(dark.flatten())), torch.full((1, 40, 40), 0.8)
    inner = [aezoo.denoise(model, x, overlap=o)[0, 6:-6, 6:-6] for o in (0, None)]
    jumps = [float((y[1:] - y[:-1]).abs().max()) for y in inner]
    assert jumps[0] == pytest.approx(0.4) and jumps[1] < 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (4, 5), (7, 9)], ids=str)
def test_small_images_are_mirrored_then_their_edge_is_repeated(size):
    x = rand(2, 3, *size)
    want = x.numpy()
    for mode in ("reflect", "edge"):
        room = [s - 1 if mode == "reflect" else 99 for s in size]
        more = [min(max(7 - want.shape[2 + k], 0), room[k]) for k in (0, 1)]
        want = np.pad(want, ((0, 0), (0, 0), (0, more[0]), (0, more[1])), mode=mode)
    assert np.array_equal(padded(x, 7, 7).numpy(), want)


def test_tiles_are_sent_in_bounded_parts():
    sizes, ticks = [], []

    def apply(part, which):
        sizes.append((len(part), which))
        return part

    x = rand(2, 1, 6, 10)
    assert torch.allclose(over_tiles(x, (4, 4), (2, 2), apply, 3, ticks.append), x, atol=1e-6)
    assert sum(ticks) == 16 and max(n for n, _ in sizes) == 3 and sizes[-1] == (1, [1])


# -------------------------------------------------------------------------------------------------------- whole images


def test_who_takes_whole_images():
    """Convolutional throughout: yes. A code that is one vector, a norm over the map, attention: no."""
    quantised = aezoo.create_model("vq_vae", input_shape=(1, 8, 8), latent_dim=4, backbone="conv(widths=(4, 4))")
    assert local(unet()) and local(quantised) and (stride(unet()), stride(quantised)) == (2, 4)
    assert not local(aezoo.create_model("ae", input_shape=(1, 8, 8)))
    assert not local(aezoo.create_model("conv_ae", input_shape=(1, 8, 8)))
    normed = aezoo.create_model("unet_denoiser", (1, 8, 8), latent_dim=4, backbone="unet(widths=(4,), norm='layer')")
    assert resized(normed, 20, 20) is not None and not local(normed)
    assert not local(
        aezoo.create_model("vq_vae", input_shape=(1, 8, 8), latent_dim=4, backbone="resnet(widths=(4, 4))")
    )
    assert resized(linear(torch.eye(36)), 6, 6) is None  # modules of the user's own, which have no name


@pytest.mark.parametrize("size", [(12, 12), (30, 21), (1, 1), (5, 40)], ids=str)
def test_a_convolutional_model_takes_the_whole_image(size):
    """As a model made for the padded size with the same weights does."""
    model, x = unet(), rand(2, 1, *size)
    edges = [s + s % 2 for s in size]
    other = unet((1, *edges))
    other.load_state_dict(model.state_dict())
    want = other.reconstruct(padded(x, *edges))[..., : size[0], : size[1]]
    assert torch.allclose(aezoo.denoise(model, x), want, atol=1e-6)
    same = resized(model, 40, 40)
    assert all(p.data_ptr() == q.data_ptr() for p, q in zip(model.parameters(), same.parameters()))


def test_large_images_go_through_in_tiles(monkeypatch):
    """Far from a tile's edge and where no other tile reaches, they give what the whole image gives."""
    model, x = unet().double(), rand(1, 40, 104, dtype=torch.float64)
    whole = aezoo.denoise(model, x, tile="whole")
    tiled = aezoo.denoise(model, x, tile=40, overlap=4)
    assert torch.allclose(tiled[..., :24], whole[..., :24], atol=1e-12)
    assert not torch.allclose(tiled, whole, atol=1e-12)
    monkeypatch.setattr(task, "WHOLE", 1000)
    monkeypatch.setattr(task, "TILE", 40)
    monkeypatch.setattr(task, "MARGIN", 4)
    assert torch.equal(aezoo.denoise(model, x), tiled)


@pytest.mark.parametrize("name", aezoo.list_models())
def test_every_model_of_images_takes_images_of_other_sizes(name):
    small = {"backbone": "conv(widths=(4,))"} if name in ("vq_vae_2",) else {}
    try:
        model = aezoo.create_model(name, input_shape=(1, 8, 8), latent_dim=4, **small)
    except (ValueError, TypeError):
        with pytest.raises(ValueError, match="takes"):
            aezoo.denoise(aezoo.create_model(name, input_shape=(8, 3)), rand(1, 8, 8))
        return
    x = rand(1, 9, 12)
    y = aezoo.denoise(model, x)
    assert y.shape == x.shape and torch.isfinite(y).all() and not y.requires_grad
    if model.likelihood.support:
        assert y.min() >= model.likelihood.support[0] and y.max() <= model.likelihood.support[1]
    assert torch.equal(y, aezoo.denoise(model, x)), "a reconstruction draws nothing"


# ------------------------------------------------------------------------------------------------------------ contract


@pytest.mark.parametrize("make", [unet, lambda: aezoo.create_model("vae", (1, 12, 12), likelihood="bernoulli")])
def test_the_model_and_the_random_numbers_are_left_as_they_were(make):
    model = make().train()
    weights, before = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    aezoo.denoise(model, rand(1, 20, 33))
    assert torch.equal(before, torch.get_rng_state()) and all(m.training for m in model.modules())
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model.loss(rand(2, 1, 12, 12)).total.backward()  # and it still learns


def test_arrays_and_types_come_back_as_they_were_given():
    model, x = unet(), rand(1, 20, 14)
    y = aezoo.denoise(model, x)
    array = aezoo.denoise(model, x.double().numpy())
    assert isinstance(array, np.ndarray) and array.dtype == np.float64 and np.allclose(array, y.numpy(), atol=1e-6)
    assert aezoo.denoise(model, x.half()).dtype == torch.float16
    assert torch.equal(aezoo.denoise(model, x[None])[0], y)
    half = unet().bfloat16()
    assert aezoo.denoise(half, x).dtype == torch.float32


def test_each_image_is_told_its_own_condition():
    model = aezoo.create_model("cvae", input_shape=(1, 4, 4), latent_dim=2, num_classes=3)
    x = rand(1, 7, 9).expand(3, -1, -1, -1)
    y = aezoo.denoise(model, x, condition=[0, 2, 1])
    for i, label in enumerate((0, 2, 1)):
        assert torch.allclose(y[i], aezoo.denoise(model, x[i], condition=label), atol=1e-6)
    assert not torch.allclose(y[0], y[1])
    level = aezoo.create_model("cvae", input_shape=(1, 4, 4), latent_dim=2, condition_dim=1)  # a level of noise, say
    a, b = (aezoo.denoise(level, x, condition=s) for s in (0.1, 0.5))
    assert torch.allclose(a, aezoo.denoise(level, x, condition=torch.full((3, 1), 0.1))) and not torch.allclose(a, b)
    with pytest.raises(ValueError, match="2 entries for 3 images"):
        aezoo.denoise(model, x, condition=[0, 1])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m: aezoo.denoise(m, rand(3, 9, 9)), ValueError, "3 channels, and this unet_denoiser takes 1"),
        (lambda m: aezoo.denoise(m, rand(9, 9, 1)), ValueError, r"channels-last: x.permute\(2, 0, 1\)"),
        (lambda m: aezoo.denoise(m, rand(2, 9, 9, 1).numpy()), ValueError, r"x.transpose\(0, 3, 1, 2\)"),
        (lambda m: aezoo.denoise(m, rand(1, 9, 9).fill_(math.nan)), ValueError, "81 values that are not finite"),
        (lambda m: aezoo.denoise(m, rand(9, 9)), ValueError, r"needs its channel axis: x\[None\]"),
        (lambda m: aezoo.denoise(m, rand(1, 1, 1, 9, 9)), ValueError, "one image"),
        (lambda m: aezoo.denoise(m, rand(1, 0, 9)), ValueError, "holds no pixel"),
        (lambda m: aezoo.denoise(m, rand(0, 1, 9, 9)), ValueError, "holds no pixel"),
        (lambda m: aezoo.denoise(m, torch.zeros(1, 9, 9, dtype=torch.uint8)), TypeError, r"x.float\(\) / 255"),
        (lambda m: aezoo.denoise(m, [[1.0]]), TypeError, "a tensor or an array"),
        (lambda m: aezoo.denoise("unet", rand(1, 9, 9)), TypeError, "must be a BaseAE"),
        (lambda m: aezoo.denoise(m, rand(1, 9, 9), tile=0), ValueError, "tile=0 must be"),
        (lambda m: aezoo.denoise(m, rand(1, 9, 9), tile="whle"), ValueError, "Did you mean 'whole'"),
        (lambda m: aezoo.denoise(m, rand(1, 9, 9), tile=8, overlap=8), ValueError, "less than the tile's edge, 8"),
        (lambda m: aezoo.denoise(m, rand(1, 9, 9), overlap=-1), ValueError, "overlap=-1"),
        (lambda m: aezoo.denoise(aezoo.create_model("ae", (64,)), rand(1, 8, 8)), ValueError, "takes vectors of shape"),
        (lambda m: aezoo.denoise(aezoo.create_model("ae", (1, 4, 4)), rand(1, 8, 8), tile=8), ValueError, "its own size, 4 x 4"),
        (lambda m: aezoo.denoise(unet(likelihood="bernoulli"), 255 * rand(1, 9, 9)), ValueError, "divide by 255"),
    ],
)  # fmt: skip
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call(unet())


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run folder of a denoiser of 12x12 blobs, folder of clean pictures of three sizes)."""
    folder = tmp_path_factory.mktemp("denoise")
    x = make_images(256)[0]
    model = aezoo.create_model("unet_denoiser", (1, 12, 12), latent_dim=8, backbone="unet(widths=(8,), bias=False)")
    fit(model, x, steps=120, batch_size=32, lr=1e-2, schedule="cosine")
    model.save_pretrained(folder / "run")
    (folder / "clean").mkdir()
    for name, size in (("a", 20), ("b", 33), ("c", 12)):
        save_image(make_images(1, size, seed=5)[0][0], folder / "clean" / f"{name}.png")
    return folder


def run(capsys, *argv):
    capsys.readouterr()
    cli.main([str(a) for a in argv])
    return capsys.readouterr().out


def refused(capsys, *argv):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in argv])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    return error


def test_noise_is_added_and_taken_off(trained, tmp_path, capsys):
    printed = run(capsys, "denoise", trained / "run", trained / "clean", "--sigma", 40, "--out", tmp_path / "out")
    before, after = map(float, printed.split("mean of 3: PSNR ")[1].split(" dB")[0].split(" -> "))
    assert after > before + 4 and 16 < before < 19  # 20 log10(255 / 40) = 16.1, less what is clipped at black
    for name, size in (("a", 20), ("b", 33), ("c", 12)):
        assert Image.open(tmp_path / "out" / f"{name}.png").size == (size, size) and f"{name}.png: PSNR" in printed
    assert Image.open(tmp_path / "out" / "comparison.png").width > 300
    again = run(capsys, "denoise", trained / "run", trained / "clean", "--sigma", 40, "--out", tmp_path / "again")
    assert again.split("mean")[1].split("\n")[0] == printed.split("mean")[1].split("\n")[0]


def test_noisy_images_are_compared_with_clean_ones_of_their_name(trained, tmp_path, capsys):
    (tmp_path / "noisy" / "deep").mkdir(parents=True)
    for name in "ab":
        clean = torch.from_numpy(np.array(Image.open(trained / "clean" / f"{name}.png"))).float() / 255
        noisy = clean + 0.15 * torch.randn(clean.shape)
        save_image(noisy[None], tmp_path / "noisy" / "deep" / f"{name}.png")
    out = tmp_path / "out"
    printed = run(capsys, "denoise", trained / "run", tmp_path / "noisy", "--clean", trained / "clean", "--out", out)
    y, x = (torch.from_numpy(np.array(Image.open(p / "a.png")))[None].float() / 255 for p in (out, trained / "clean"))
    psnr = float(printed.split("a.png: PSNR ")[1].split(" -> ")[1].split(" dB")[0])
    assert psnr == pytest.approx(-10 * math.log10(float((y - x).square().mean())), abs=0.1)  # the file is rounded
    assert "mean of 2" in printed and sorted(p.name for p in out.iterdir()) == ["a.png", "b.png", "comparison.png"]
    single = run(capsys, "denoise", trained / "run", tmp_path / "noisy/deep/a.png", "--clean", trained / "clean/a.png",
                 "--out", tmp_path / "one")  # fmt: skip
    assert "mean of 1" in single


def test_one_pixel_and_colour(trained, tmp_path, capsys):
    Image.new("L", (1, 1), 100).save(tmp_path / "dot.png")
    Image.new("RGB", (20, 9), (200, 100, 0)).save(tmp_path / "red.png")
    printed = run(
        capsys, "denoise", trained / "run", tmp_path / "dot.png", tmp_path / "red.png", "--out", tmp_path / "out"
    )
    assert "2 denoised images" in printed and "1 in colour were made grey" in printed and "PSNR" not in printed
    assert Image.open(tmp_path / "out/dot.png").size == (1, 1) and Image.open(tmp_path / "out/red.png").size == (20, 9)
    assert Image.open(tmp_path / "out/comparison.png").width > 100
    assert "nan" in run(
        capsys, "denoise", trained / "run", tmp_path / "dot.png", "--sigma", 5, "--out", tmp_path / "dot"
    )


def test_bad_input_is_named_in_one_line(trained, tmp_path, capsys, monkeypatch):
    net, clean, out = trained / "run", trained / "clean", ("--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "note.txt").write_text("hello")
    Image.new("L", (9, 9)).save(tmp_path / "b.png")
    (tmp_path / "twice" / "deep").mkdir(parents=True)
    for place in ("twice", "twice/deep"):
        Image.new("L", (33, 33)).save(tmp_path / place / "b.png")
    vectors = aezoo.create_model("ae", input_shape=(6,), latent_dim=2)
    vectors.save_pretrained(tmp_path / "vectors")
    for argv, message in [
        ((net, tmp_path / "empty", *out), "holds no image"),
        ((net, tmp_path / "note.txt", *out), "is no image"),
        ((net, clean, tmp_path / "broken.png", *out), "broken.png cannot be read as an image"),
        ((net, clean / "aa.png", *out), "Did you mean 'a.png'?"),
        ((net, clean, "--out", clean), "would overwrite the input"),
        ((net, tmp_path / "b.png", "--clean", clean / "b.png", "--out", clean), "would overwrite the input"),
        ((net, tmp_path / "b.png", "--clean", clean, *out), "33x33 pixels"),
        ((net, tmp_path / "b.png", "--clean", tmp_path / "empty", *out), "holds no image"),
        ((net, clean / "b.png", "--clean", tmp_path / "twice", *out), "several images named 'b'"),
        ((net, clean, "--clean", clean / "a.png", *out), "one file for 3 images"),
        ((net, tmp_path / "broken.png", "--clean", clean, *out), "holds no image named 'broken'"),
        ((net, clean, "--clean", clean, "--sigma", 3, *out), "exclude each other"),
        ((net, clean, "--sigma", -1, *out), "--sigma=-1 must lie in [0, 255]"),
        ((net, clean, "--sgima", 3, *out), "--sigma"),
        ((tmp_path / "vectors", clean, *out), "takes samples of shape (6,)"),
        ((tmp_path / "empty", clean, *out), "no run folder"),
    ]:
        assert message in refused(capsys, "denoise", *argv), argv
    assert not (tmp_path / "out" / "a.png").exists()
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    assert 'pip install "aezoo[tasks]"' in refused(capsys, "denoise", net, clean, "--sigma", 3, *out)
    run(capsys, "denoise", net, clean, *out)  # without figures it is not needed


# ------------------------------------------------------------------------------------------------------------- quality


def test_torchmetrics_figures_are_the_textbooks():
    clean = rand(3, 40, 31)
    restored = (clean + 0.1 * torch.randn(clean.shape)).clamp(0, 1)
    got = quality(restored + 0.0, clean)
    mse = float((restored.double() - clean.double()).square().mean())
    assert got.psnr == pytest.approx(-10 * math.log10(mse), abs=1e-4)
    mirrored = [nn.functional.pad(t[None].double(), (5, 5, 5, 5), mode="reflect") for t in (restored, clean)]
    assert got.ssim == pytest.approx(float(fn.ssim(*mirrored)[0]), abs=1e-4)
    beyond = quality(clean + 2.0, clean)  # clamped to 1 first
    assert beyond.psnr == pytest.approx(-10 * math.log10(float((1 - clean.double()).square().mean())), abs=1e-4)
    assert quality(clean, clean).ssim == pytest.approx(1.0)
    assert math.isnan(quality(clean[:, :5], clean[:, :5]).ssim) and quality(clean[:, :6], clean[:, :6]).ssim > 0.99
    with pytest.raises(ValueError, match="one shape"):
        quality(clean, clean[:, 1:])
