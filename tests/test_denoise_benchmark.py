"""The pieces of `benchmarks/denoise.py`: crops, noise that every side sees alike, means and the page."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def piece(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"denoise_{name}")


@pytest.fixture
def photos(tmp_path):
    draw = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(draw.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_the_first_and_the_last_photograph_are_held_out(piece, photos):
    learn, held_out = piece("training").parted(photos)
    assert [p.stem for p in learn] == ["b", "c"] and [p.stem for p in held_out] == ["a", "d"]
    (photos / "a.png").unlink()
    (photos / "b.png").unlink()
    with pytest.raises(ValueError, match="holds 2 photographs"):
        piece("training").parted(photos)
    with pytest.raises(ValueError, match="holds no image"):
        piece("training").pictures(photos / "nowhere")


def test_crops_are_parts_of_the_photographs_turned_and_flipped(piece, photos, monkeypatch):
    training = piece("training")
    monkeypatch.setattr(training, "SCALES", (1.0,))
    paths = training.parted(photos)[0]
    got = training.crops(paths, 40, 8, seed=1)
    assert got.shape == (40, 1, 8, 8) and got.dtype == torch.uint8 and torch.equal(got, training.crops(paths, 40, 8, 1))
    parts = set()
    for path in paths:
        grey = np.asarray(Image.open(path).convert("L"))
        for r in range(24 - 7):
            for c in range(30 - 7):
                for turn in range(4):
                    crop = np.rot90(grey[r : r + 8, c : c + 8], turn)
                    parts |= {crop.tobytes(), crop[::-1].tobytes()}
    assert all(x.numpy().tobytes() in parts for x in got) and len({x.numpy().tobytes() for x in got}) > 35


def test_noise_is_a_function_of_seed_image_and_sigma(piece, photos, tmp_path):
    images = piece("images")
    group = {"Set12": sorted(photos.glob("*.png"))[:2]}
    shots = images.shots(group)
    assert [(s.sigma, s.name) for s in shots] == [(g, n) for g in (15, 25, 50) for n in "ab"]
    noise = [images.noisy(s, 0) - s.clean for s in shots]
    assert all(float(e.std()) == pytest.approx(s.sigma / 255, rel=0.1) for e, s in zip(noise, shots))
    scaled = [e / s.sigma for e, s in zip(noise, shots)]
    assert not any(torch.allclose(a, b, atol=1e-3) for i, a in enumerate(scaled) for b in scaled[:i])
    images.write_noisy(tmp_path / "work", shots, 0)
    images.write_noisy(tmp_path / "work", shots, 0)
    assert np.array_equal(np.load(tmp_path / "work" / "noisy" / shots[0].place), images.noisy(shots[0], 0).numpy())
    with pytest.raises(ValueError, match="holds other noise"):
        images.write_noisy(tmp_path / "work", shots, 1)


def test_means_errors_and_the_page(piece):
    report = piece("report")
    psnr = {"noisy": [20.0, 21.0], "aezoo": [30.0, 32.0], "bm3d": [29.5, 31.9]}
    rows = [
        {"set": "BSD68", "sigma": 25, "image": i, "side": side, "psnr": psnr[side][i], "ssim": 0.5, "cpu_seconds": 1.0}
        for i in (0, 1)
        for side in psnr
    ]
    ours = next(m for m in report.means(rows, list(psnr)) if m["side"] == "aezoo")
    assert ours["psnr"] == 31.0 and ours["psnr_stderr"] == pytest.approx(math.sqrt(2) / math.sqrt(2))
    assert ours["gain"] == pytest.approx(0.3) and ours["gain_stderr"] == pytest.approx(0.2)
    about = {"training": {"parameters": 5, "steps": 6, "of": 7, "batch_size": 16, "crop": 8, "photographs": 2, "held_out": ["a.png"],
                          "seconds": 60.0, "seed": 0}, "hardware": "a CPU", "threads": 1, "torch": "2", "aezoo": "0"}  # fmt: skip
    page = report.markdown(rows, list(psnr), about)
    assert (
        "| BSD68 (2) | 25 | aezoo `unet_denoiser`, blind | 31.00 ± 1.00 | 0.5000 ± 0.0000 | +0.30 ± 0.20 | 1.0 |"
        in page
    )
    assert "6 of 7 (its time was up) steps" in page and "not restored all" not in page
    assert "*28.57*" in page and "*29.23*" in page and "*26.23*" not in page
    page = report.markdown([r for r in rows if r["side"] != "bm3d" or r["image"] == 0], list(psnr), about)
    assert "1 of 2 of BSD68 at sigma 25" in page and "+0.50 ± nan" in page
