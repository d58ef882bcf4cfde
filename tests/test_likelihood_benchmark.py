"""benchmarks/likelihood.py: what it trains and what it scores, without training anything."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import aezoo


@pytest.fixture
def script(monkeypatch):
    path = Path(__file__).parents[1] / "benchmarks" / "likelihood.py"
    spec = importlib.util.spec_from_file_location("likelihood_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["likelihood.py", "--data", "somewhere", "--seed", "3"])
    return module


@pytest.fixture
def fits(monkeypatch):
    seen = []
    monkeypatch.setattr(aezoo, "load_data", lambda *a, **k: aezoo.data.load.load_data(torch.rand(4, 1, 28, 28)))
    monkeypatch.setattr(aezoo, "fit", lambda model, data, **options: seen.append(options))
    return seen


def test_the_parts_of_the_papers_schedule_differ_in_their_draws(script, fits):
    """3,280 epochs in eight fits: each has a seed of its own, or it would see the binarisations and orders of the one before again."""
    o = script.parse()
    o.full = True
    script.train("vae", 0, o)
    assert [f["seed"] for f in fits] == list(range(3, 11)) and sum(f["epochs"] for f in fits) == 3280
    assert all(f["precision"] == "fp32" and f["batch_size"] == 20 for f in fits)


def test_the_short_schedule(script, fits):
    script.train("iwae", 12, script.parse())
    (options,) = fits
    assert options["seed"] == 3 and options["precision"] == "fp32" and options["epochs"] == 12


def test_images_are_drawn_by_the_seed(script):
    chosen = script.chosen(10_000, 1000, 3)
    assert len(chosen.unique()) == 1000 and torch.equal(chosen, script.chosen(10_000, 1000, 3))
    assert not torch.equal(chosen, script.chosen(10_000, 1000, 4))
    assert 450 < int((chosen < 5000).sum()) < 550  # of both halves, of which the first is the easier
    assert torch.equal(script.chosen(7, None, 3), torch.arange(7))


def test_the_estimate_scores_those_images(script, monkeypatch):
    x = torch.rand(20, 1, 28, 28)
    monkeypatch.setattr(aezoo, "load_data", lambda *a, **k: aezoo.data.load.load_data(x))
    o, seen = script.parse(), []
    o.images, o.samples = 6, 2
    model = aezoo.create_model("vae", input_shape=(1, 28, 28), latent_dim=2, backbone="linear", likelihood="bernoulli")
    monkeypatch.setattr(type(model), "log_prob", lambda self, x, n: seen.append(x) or -x.flatten(1).sum(1))
    nll, _, images = script.estimate(model, o)
    wanted = x[script.chosen(20, 6, 3)]
    assert images == 6 and torch.equal(torch.cat(seen), wanted)
    assert nll == pytest.approx(float(wanted.flatten(1).sum(1).double().mean()))
