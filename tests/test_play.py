"""`aezoo play`: from sliders to pictures and back, without a browser; and the page itself, where there are Gradio and a browser."""

import sys

import chromium
import numpy as np
import pytest
import torch
from conftest import fit, make_images
from PIL import Image

import aezoo
from aezoo.cli import main
from aezoo.data import load_data
from aezoo.directions import directions, no_code, unit
from aezoo.noise import at_level, corrupted_by, noise_levels
from aezoo.play import Session


def model_of(name="vae", **more):
    torch.manual_seed(1)
    more = {"input_shape": (1, 12, 12), "latent_dim": 4, "backbone": "mlp(widths=(16,))", **more}
    return aezoo.create_model(name, **more).eval()


@pytest.fixture(scope="module")
def session():
    model = model_of()
    fit(model, make_images(64), epochs=3)
    return Session(model, load_data(make_images(64)))


# ----------------------------------------------------------------------------------------------------------- directions


def test_single_latents_are_ways_by_their_spread():
    z = torch.randn(500, 4) * torch.tensor([0.1, 3.0, 1.0, 0.0]) + torch.tensor([5.0, 0.0, -1.0, 2.0])
    ways = directions(model_of(), z, most=3)
    assert ways.names == ["z2", "z3", "z1"] and torch.equal(ways.axes, torch.eye(4)[[1, 2, 0]])
    spread = z.std(0, correction=0)[[1, 2, 0]]
    torch.testing.assert_close(ways.high - ways.low, 5 * spread)
    torch.testing.assert_close((ways.high + ways.low) / 2, z.mean(0)[[1, 2, 0]])
    torch.testing.assert_close(ways.coordinates(z), z[:, [1, 2, 0]])
    moved = ways.moved(z[:2], torch.zeros(2, 3))
    torch.testing.assert_close(moved[:, [1, 2, 0]], torch.zeros(2, 3))
    assert torch.equal(moved[:, 3], z[:2, 3])  # across all ways: it stays


def test_maps_of_latents_go_along_principal_components():
    model = model_of("conv_ae", backbone="conv(widths=(4, 8))", latent_dim=300)
    model.sparse_code = False
    axes = torch.linalg.qr(torch.randn(300, 2, dtype=torch.float64))[0].T
    z = (torch.randn(400, 2).double() * torch.tensor([5.0, 2.0]) @ axes + 1).float()
    ways = directions(model, z, most=2)
    assert [n.split(" (")[0] for n in ways.names] == ["component 1", "component 2"]
    assert (ways.axes.double() @ axes.T).abs().det().item() == pytest.approx(1, abs=1e-4)  # they span the same plane
    torch.testing.assert_close(ways.moved(z, ways.coordinates(z)), z, atol=1e-4, rtol=0)
    torch.testing.assert_close(ways.moved(z[:1], torch.zeros(1, 2))[0], z.mean(0), atol=1e-3, rtol=0)


def test_sparse_latents_are_ways_by_how_often_they_fire():
    model = aezoo.create_model("topk_sae", input_shape=(1, 12, 12), latent_dim=6, k=2)
    z = torch.zeros(10, 6)
    z[:, 4], z[:5, 1] = torch.arange(1, 11), 3.0
    ways = directions(model, z, most=2)
    assert ways.names == ["latent 5 (fires for 100%)", "latent 2 (fires for 50%)"]
    assert ways.low.tolist() == [0, 0] and ways.high.tolist() == [10, 3]
    assert unit(model, 3).low.tolist() == [0, 0, 0]


def test_denoisers_that_go_around_their_code_have_no_ways():
    model = aezoo.create_model("unet_denoiser", input_shape=(1, 8, 8), latent_dim=4, backbone="unet(widths=(4,))")
    assert "no narrow code" in no_code(model) and not no_code(model_of())
    session = Session(model, load_data(torch.rand(4, 1, 8, 8)))
    assert session.shown(session.sample(0)[0]).places == [] and session.levels


# -------------------------------------------------------------------------------------------------------------- session


def test_sliders_move_the_picture_and_a_picture_moves_the_sliders(session):
    x, label = session.sample(3)
    found = session.shown(x, label)
    model = session.model
    with torch.no_grad():
        z = model.encode(x)
        assert found.code == pytest.approx(z[0].tolist(), abs=1e-6)
        assert found.error == pytest.approx(float((model.decode(z) - x).square().mean()), rel=1e-5)
    inside = torch.tensor(found.places)
    torch.testing.assert_close(inside, session.ways.coordinates(z)[0].clamp(session.ways.low, session.ways.high))
    assert (session.decoded(found.code) == found.output).all()
    back = session.moved(session.ways.coordinates(z)[0].tolist(), found.code)
    assert abs(back.astype(int) - found.output.astype(int)).max() <= 1
    places = [high for _, high, _ in session.ends]
    with torch.no_grad():
        want = model.decode(session.ways.moved(z, torch.tensor([places])))
    assert (session.moved(places, found.code) == session.picture(want[0])).all()
    assert (session.moved(places, found.code) != found.output).any()


def test_ends_of_sliders_are_round_and_hold_their_way(session):
    for (low, high, step), a, b in zip(session.ends, session.ways.low.tolist(), session.ways.high.tolist()):
        assert low <= a < b <= high and (high - low) - (b - a) <= 2.001 * step and 90 <= (high - low) / step <= 1010


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_pictures_of_ones_own(session, mode):
    """Cropped at the centre, resized, in grey, transparent parts white."""
    x = (make_images(1)[0][0, 0] * 255).round().byte().numpy()
    image = Image.fromarray(x).convert(mode)
    read = session.read(image)
    assert read.shape == (1, 1, 12, 12)
    assert abs(read[0, 0] - torch.from_numpy(x) / 255).max() < (0.05 if mode == "P" else 0.005)
    wide = Image.new("L", (60, 24))
    wide.paste(Image.fromarray(x).resize((24, 24), Image.Resampling.NEAREST), (18, 0))
    assert abs(session.read(wide)[0, 0] - torch.from_numpy(x) / 255).max() < 0.25
    if mode == "RGBA":
        assert session.read(Image.new("RGBA", (12, 12), (0, 0, 0, 0))).min() == 1
    assert (session.read(np.asarray(image.convert("RGB"))) - read).abs().max() < 0.05


def test_pictures_for_data_that_is_not_within_0_and_1():
    x = make_images(16)[0] * 2 - 1
    session = Session(model_of("ae"), load_data(x))
    white = session.read(Image.new("L", (12, 12), 255))
    assert (
        float(white.max()) == pytest.approx(float(x.max())) and session.read(Image.new("L", (12, 12))).min() == x.min()
    )


def test_between_two(session):
    (a, _), (b, _) = session.sample(0), session.sample(5)
    with torch.no_grad():
        za, zb = session.model.encode(a), session.model.encode(b)
        want = session.model.decode(0.75 * za + 0.25 * zb)[0]
    middle, row = session.between(a, b, 0.25)
    like = torch.cat([a, b])
    assert abs(middle.astype(int) - session.picture(want, like).astype(int)).max() <= 1
    side = middle.shape[1]
    assert row.shape == (side, 9 * side + 8 * 8, 3)
    with torch.no_grad():
        assert (row[:, :side] == session.picture(session.model.decode(za)[0], like)).all()
        assert (row[:, -side:] == session.picture(session.model.decode(zb)[0], like)).all()


def test_the_other_sample_is_of_another_label(session):
    labels = make_images(64)[1]
    assert labels[session.other] != labels[0] and (labels[: session.other] == labels[0]).all()
    assert Session(model_of(), load_data(make_images(4)[0])).other == 1


def test_new_samples_are_the_priors(session):
    rng = torch.get_rng_state()
    code = session.drawn(3)
    assert torch.equal(torch.get_rng_state(), rng) and code == session.drawn(3) != session.drawn(4)
    torch.manual_seed(3)
    assert code == pytest.approx(torch.randn(1, 4)[0].tolist())
    with pytest.raises(ValueError, match="has no prior"):
        Session(model_of("ae")).drawn(0)


def test_noise_at_a_level_of_ones_choice():
    model = model_of("denoising_ae", corruption="gaussian(sigma=0.4)")
    session = Session(model, load_data(make_images(16)))
    assert session.levels == [0.1, 0.2, 0.4, 0.6]
    x, _ = session.sample(0)
    rng = torch.get_rng_state()
    noisy, output, before, after = session.denoised(x, 0.2, seed=7)
    assert (
        torch.equal(torch.get_rng_state(), rng) and model.corruptions[0].config["sigma"] == 0.4 and not model.training
    )
    torch.manual_seed(7)
    want = x + 0.2 * torch.randn_like(x)
    assert before == pytest.approx(float((want - x).square().mean()), rel=1e-5)
    with torch.no_grad():
        back = model.reconstruct(want)
    assert after == pytest.approx(float((back - x).square().mean()), rel=1e-4)
    assert (noisy == session.picture(want[0], x)).all() and (output == session.picture(back[0], x)).all()
    clean, _, nothing, _ = session.denoised(x, 0.0)
    assert nothing == 0 and (clean == session.picture(x[0], x)).all()
    with pytest.raises(ValueError, match="without noise"):
        Session(model_of()).denoised(x, 0.1)


def test_levels_of_other_noise():
    for spec, want in (
        ("masking(p=0.8)", [0.2, 0.4, 0.8, 1.0]),
        ("poisson(peak=10.0)", [40, 20, 10, 10 / 1.5]),
        ("speckle(sigma=(0.1, 0.4))", [0.1, 0.2, 0.4, 0.6]),
    ):
        model = model_of("denoising_ae", corruption=spec)
        noise = model.corruptions[0]
        assert noise_levels(noise) == pytest.approx(want)
        again = at_level(noise, want[0])
        assert type(again) is type(noise) and again.when == "always" and again.level == (want[0], want[0])
        with corrupted_by(model, again):
            assert model.corruptions == [again]
        assert model.corruptions == [noise]


def test_models_that_are_told_labels(session):
    x, y = make_images(16)
    told = Session(model_of("cvae", num_classes=3), load_data((x, y)))
    assert told.classes == 3 and session.classes == 0
    with torch.no_grad():
        for label in (None, 2):
            given = {} if label is None else {"condition": torch.tensor([label])}
            want = told.model.decode(told.model.encode(x[:1], **given), **given)
            assert (told.shown(x[:1], label).output == told.picture(want[0], x[:1])).all()


def test_series_and_tables_are_drawn_as_curves():
    model = aezoo.create_model("ae", input_shape=(5,), latent_dim=2, backbone="mlp(widths=(4,))")
    session = Session(model, load_data(torch.randn(20, 5)))
    picture = session.moved([0.0, 0.0], session.start)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and len(np.unique(picture)) > 5
    assert session.between(*(session.sample(i)[0] for i in (0, 1)), 0.5)[1].shape == picture.shape
    with pytest.raises(ValueError, match="no pictures"):
        session.read(Image.new("L", (5, 5)))


def test_without_data():
    session = Session(model_of())
    assert session.start == [0, 0, 0, 0] and session.ways.names == ["z1", "z2", "z3", "z4"]
    assert session.moved([0.0] * 4, session.start).shape == (336, 336, 3)
    with pytest.raises(ValueError, match="there is no data"):
        session.sample(0)
    with pytest.raises(ValueError, match="there is no picture"):
        session.read(None)


# ------------------------------------------------------------------------------------------------------------- the page


def test_bad_input(tmp_path, monkeypatch, capsys):
    model_of().save_pretrained(tmp_path)
    for argv, said in (
        (["play", str(tmp_path), "--port", "99999"], "--port 99999"),
        (["play", str(tmp_path), "--sliders", "0"], "--sliders=0"),
        (["play", str(tmp_path / "no")], "no run folder"),
        (["play", str(tmp_path), "--data.limit", "3"], "goes with --data"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(argv)
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match="2"):
        main(["play", str(tmp_path)])
    assert 'pip install "aezoo[play]"' in capsys.readouterr().err


@pytest.mark.slow
@chromium.needed
def test_in_a_browser_without_a_network(tmp_path, session):
    """The page asks nothing of any other machine; a slider, a dropped picture and the noise do what the session does."""
    pytest.importorskip("gradio", reason='Gradio is not installed: pip install "aezoo[play]"')
    from aezoo.play_page import launch, page

    denoiser = model_of("denoising_ae", corruption="gaussian(sigma=0.4)")
    fit(denoiser, make_images(64), epochs=1)
    Image.fromarray((make_images(2)[0][1, 0] * 255).byte().numpy()).resize((48, 48)).save(tmp_path / "mine.png")
    sources = "document.querySelector('#{} img')?.src"
    for one in (session, Session(denoiser.eval(), load_data(make_images(64)))):
        blocks = page(one)
        address = launch(blocks, wait=False)
        try:
            with chromium.browser() as tab:
                tab.open(address, 1280)
                tab.until(
                    f"{sources.format('decoded')} && document.querySelectorAll('.latent input[type=range]').length == 4"
                )
                first = tab.value(sources.format("decoded"))
                tab.value(
                    "(() => { const s = document.querySelector('.latent input[type=range]'); s.value = s.max;"
                    " s.dispatchEvent(new Event('input', {bubbles: true})); s.dispatchEvent(new Event('pointerup', {bubbles: true})) })()"
                )
                tab.until(f"{sources.format('decoded')} != {first!r}")
                places = (
                    "JSON.stringify([...document.querySelectorAll('.latent input[type=range]')].map(s => +s.value))"
                )
                before = tab.value(places)
                tab.upload("input[type=file]", tmp_path / "mine.png")
                tab.until("document.getElementById('note').textContent.includes('mean squared error')")
                found = one.shown(one.read(Image.open(tmp_path / "mine.png")))
                shown = tab.until(f"{places} != {before!r} && {places}")
                assert eval(shown) == pytest.approx(found.places, abs=0.06)
                assert f"{found.error:.4g}" in tab.value("document.getElementById('note').textContent")
                if one.noise is not None:
                    tab.value(
                        "[...document.querySelectorAll('button[role=tab]')].find(b => b.textContent.includes('Noise')).click()"
                    )
                    tab.until(f"({sources.format('denoised')} ?? '') != ''")
                    x, label = one.sample(0)
                    _, _, error, left = one.denoised(x, one.levels[2], 0, label)
                    said = "document.getElementById('errors').textContent"
                    assert f"{error:.4g} → {left:.4g}" in tab.value(said)
                    begun = tab.value(said)
                    tab.value(
                        "(() => { const s = document.querySelector('#level input[type=range]'); s.value = 0.1;"
                        " s.dispatchEvent(new Event('input', {bubbles: true})) })()"
                    )
                    tab.until(f"{said} != {begun!r}")
                assert tab.problems == [] and tab.failed == []
                hosts = {r.split("/")[2] for r in tab.requests if r.startswith(("http", "ws"))}
                assert hosts == {address.split("/")[2]}
        finally:
            blocks.close()
