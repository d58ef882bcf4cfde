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


def test_the_estimate_scores_images_that_the_seed_draws(script, monkeypatch):
    """Not the first ones, which are the easier half of MNIST's test images."""
    x = torch.rand(40, 1, 28, 28)
    monkeypatch.setattr(aezoo, "load_data", lambda *a, **k: aezoo.data.load.load_data(x))
    model = aezoo.create_model("vae", input_shape=(1, 28, 28), latent_dim=2, backbone="linear", likelihood="bernoulli")
    drawn = []
    monkeypatch.setattr(type(model), "log_prob", lambda self, x, n: drawn.append(x) or -x.flatten(1).sum(1))

    def scored(seed):
        o = script.parse()
        o.images, o.samples, o.seed = 6, 2, seed
        drawn.clear()
        nll, _, images = script.estimate(model, o)
        seen = torch.cat(drawn)
        assert images == len(seen) == 6 and nll == pytest.approx(float(seen.flatten(1).sum(1).double().mean()))
        return [int((x == row).flatten(1).all(1).nonzero()) for row in seen]

    first, again, other = scored(3), scored(3), scored(4)
    assert first == again and set(first) != set(other) and len(set(first)) == 6 and max(first) > 6
