"""benchmarks/features.py and benchmarks/generate.py: their baselines and tables, without training anything."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import aezoo


def script(name):
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pca_is_scikit_learns(monkeypatch):
    from sklearn.decomposition import PCA

    bench = script("features")
    monkeypatch.setattr(bench, "SIZE", 3)
    g = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 1, 2, 4, generator=g) @ torch.randn(4, 4, generator=g) + 2 for n in (90, 20))
    first, second = bench.pca(aezoo.load_data(train), aezoo.load_data(test), 50)
    theirs = PCA(3, svd_solver="full").fit(train.flatten(1).double().numpy())
    for ours, x in ((first, train[:50]), (second, test)):
        want = theirs.transform(x.flatten(1).double().numpy())[:, ::-1]  # by eigenvalue, rising
        assert np.allclose(np.abs(ours.numpy()), np.abs(want), atol=1e-4)


def test_pixels_are_capped():
    bench = script("features")
    train, test = (aezoo.load_data(torch.rand(n, 1, 2, 3)) for n in (9, 4))
    assert [len(x) for x in bench.pixels(train, test, 20)] == [9, 4]
    first, second = bench.pixels(train, test, 5)
    assert torch.equal(first, train.x[:5].flatten(1)) and len(second) == 4


def test_the_table_of_features():
    bench = script("features")
    values = (0.5, 0.6, 0.7)
    rows = [
        {
            "data": "mnist", "features": name, "seed": s, "size": 64, "fitted": 60000, "fit_seconds": 10.0, "seconds": 30.0, "hardware": "h",
            "torch": "t", "scores": {k: [v, None if k.endswith("nmi") else 0.01, 10000] for k in bench.NAMES},
        }
        for name, s, v in [("ae", s, v) for s, v in enumerate(values)] + [("pca", 0, 0.25)]
    ]  # fmt: skip
    text = bench.markdown(rows)
    assert "| `ae` | 64 | 60,000 | 3 | 60.0 ± 10.0 |" in text and "0.600 ± 0.100" in text
    assert "| PCA | 64 | 60,000 | 1 | 25.0 (± 1.0) |" in text and "| 0.250 |" in text
    assert "Fashion" not in text.split("## MNIST")[1] and "2 minutes in all" in text


def test_the_table_of_samples():
    bench = script("generate")
    row = {
        "samples": 10,
        "train_seconds": 1.0,
        "prior_seconds": 2.0,
        "sample_seconds": 3.0,
        "share": 1.0,
        "features": "f",
        "hardware": "h",
        "torch": "t",
    }
    made = [
        {
            **row,
            "model": "vae",
            "prior": "own",
            "seed": s,
            "scores": {"frechet_distance": [4.0 + s, None], "precision": [0.5, None], "recall": [0.2, None]},
        }
        for s in range(3)
    ]
    real = {**row, "model": "real", "prior": "training pictures", "seed": 0}
    real["scores"] = {"frechet_distance": [1.0, 0.25], "precision": [0.9, 0.01], "recall": [0.8, 0.02]}
    text = bench.markdown([real, *made])
    assert "| real | training pictures | 1 | 1.00 (± 0.25) | 0.900 (± 0.010) | 0.800 (± 0.020) |" in text
    assert "| `vae` | own | 3 | 5.00 ± 1.00 | 0.500 ± 0.000 |" in text and "GENERATE.png" in text


def test_figures_of_samples_are_those_of_the_metrics():
    from aezoo.metrics.frechet import frechet_distance, precision_recall

    bench = script("generate")
    g = torch.Generator().manual_seed(0)
    real, fake = torch.randn(60, 4, generator=g), 0.5 + torch.randn(60, 4, generator=g)
    found = bench.compared(real, fake, errors=True)
    want = {**frechet_distance(real, fake), **precision_recall(real, fake)}
    assert {k: pytest.approx(list(v[:2])) for k, v in want.items()} == found
    assert bench.compared(real, fake)["recall"][1] is None and not math.isnan(found["recall"][1])
