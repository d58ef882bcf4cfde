"""What is abnormal: scores of any model, error maps, intervals of series, the estimators of scikit-learn and PyOD, and the command."""

from __future__ import annotations

import copy
import csv
import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import aezoo
from aezoo import pyod as ours
from aezoo.cli import main
from aezoo.sklearn import AEDetector
from aezoo.tasks.distances import Mahalanobis, Neighbours
from aezoo.tasks.limits import score_limit
from aezoo.tasks.series import _intervals, detect_series, sliding_windows

QUICK = {"steps": 3, "batch_size": 8, "backbone": "mlp(widths=(4,))", "device": "cpu"}


@parametrize_with_checks([AEDetector(**QUICK), AEDetector(model="vae", score="elbo", contamination=0.1, **QUICK)])
def test_scikit_learn_accepts_the_detector(estimator, check):
    check(estimator)


def plane(n: int, seed: int) -> np.ndarray:
    """Normal rows: 2 dims in 6, with little noise; columns of different units."""
    draw = np.random.default_rng(seed)
    a = np.random.default_rng(0).normal(size=(2, 6))
    return (draw.normal(size=(n, 2)) @ a + 0.05 * draw.normal(size=(n, 6))) * [1, 10, 100, 1, 1, 0.01]


@pytest.fixture(scope="module")
def rows():
    """(training rows, new normal rows, abnormal rows: each column drawn from its own values alone)."""
    train, new, other = plane(300, 1), plane(100, 2), plane(100, 3)
    draw = np.random.default_rng(4)
    return train, new, np.stack([draw.permutation(c) for c in other.T], 1)


@pytest.fixture(scope="module")
def detector(rows):
    return AEDetector(steps=150, device="cpu").fit(rows[0])


# ---------------------------------------------------------------------------------------------------------- estimators


@pytest.mark.parametrize("score", ["recon", "elbo", "latent_knn", "mahalanobis", "ensemble"])
def test_every_score_finds_rows_off_the_plane(rows, score):
    from sklearn.metrics import roc_auc_score

    model, k = ("vae" if score == "elbo" else "ae"), ("auto" if score in ("latent_knn", "ensemble") else 2)
    d = AEDetector(model, score, latent_dim=k, steps=150, lr=5e-3, device="cpu", backbone="mlp(widths=(32,))").fit(
        rows[0]
    )
    normal, abnormal = d.score_samples(rows[1]), d.score_samples(rows[2])
    assert normal.shape == (100,) and roc_auc_score(np.repeat([1, 0], 100), np.concatenate([normal, abnormal])) > 0.85
    assert np.median(abnormal) < np.median(normal)


def test_signs_are_scikit_learns(rows, detector):
    s, f, p = detector.score_samples(rows[2]), detector.decision_function(rows[2]), detector.predict(rows[2])
    np.testing.assert_array_equal(f, s - detector.offset_)
    np.testing.assert_array_equal(p, np.where(f < 0, -1, 1))
    assert (p == -1).mean() > 0.6 and (detector.predict(rows[1]) == 1).mean() > 0.9
    assert detector.n_features_in_ == 6 and {"step", "loss", "recon"} <= set(detector.history_[-1])
    assert detector.history_[-1]["loss"] < detector.history_[0]["loss"]


def test_same_seed_same_scores_and_the_global_generators_are_left_alone(rows):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b, c = (AEDetector(random_state=r, n_models=2, **QUICK).fit(rows[0]).score_samples(rows[1]) for r in (5, 5, 6))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])


def test_a_fraction_is_the_fraction_of_training_rows_that_are_flagged(rows):
    d = AEDetector(contamination=0.1, **QUICK)
    found = d.fit_predict(rows[0])
    assert (found == -1).sum() == 30
    np.testing.assert_array_equal(found, d.predict(rows[0]))


def test_training_rows_are_no_neighbours_of_their_own(rows):
    knn = AEDetector(score="latent_knn", n_neighbors=3, **QUICK).fit(rows[0])
    views = knn._views(knn._rows(rows[0]))[0]
    placed = views.z / views.z.std(0)
    distances = np.sort(np.linalg.norm(placed[:, None] - placed[None], axis=2), 1)[:, 1:4].mean(1)
    np.testing.assert_allclose(-knn.score_samples(rows[0]), distances, rtol=1e-6, atol=1e-9)


def test_works_in_a_pipeline_a_search_a_clone_and_a_pickle(rows, detector):
    pipe = make_pipeline(StandardScaler(), AEDetector(**QUICK)).fit(rows[0])
    assert set(pipe.predict(rows[1])) <= {1, -1}
    search = GridSearchCV(
        AEDetector(**QUICK),
        {"score": ["recon", "mahalanobis"]},
        cv=2,
        scoring=lambda e, X, y=None: -np.mean(e.predict(X) == -1),
    )
    assert search.fit(rows[0]).best_params_["score"] in ("recon", "mahalanobis")
    assert clone(detector).get_params() == detector.get_params()
    for again in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        np.testing.assert_array_equal(again.score_samples(rows[2]), detector.score_samples(rows[2]))


def test_elbo_is_the_mean_over_the_same_draws_for_every_row(rows):
    d = AEDetector("vae", "elbo", **QUICK).fit(rows[0])
    whole = d.score_samples(rows[1])
    np.testing.assert_allclose(
        np.concatenate([d.score_samples(rows[1][i : i + 1]) for i in range(5)]), whole[:5], rtol=1e-9
    )
    model, x = copy.deepcopy(d.model_).double(), torch.from_numpy(d._rows(rows[1][:3])).double()
    with torch.no_grad():  # the bound by its closed-form parts: the KL is exact, and more draws come close to it
        elbo = torch.stack([model(x).metrics["elbo"] for _ in range(2000)]).mean(0)
    spread = np.abs(whole[:3]).max()
    np.testing.assert_allclose(whole[:3], elbo.numpy(), atol=0.1 * spread)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers(rows, detector, bad):
    X = rows[0].copy()
    X[3, 2] = bad
    for call in (AEDetector(**QUICK).fit, detector.predict):
        with pytest.raises(ValueError, match="NaN|infinity"):
            call(X)


@pytest.mark.parametrize(
    ("X", "says"),
    [
        (np.zeros((1, 3)), "1 sample"),
        (np.zeros((0, 3)), "0 sample"),
        (np.zeros((3, 0)), "0 feature"),
        (np.zeros(3), "1D array"),
        (np.array([["a", "b"]] * 3), "could not convert string"),
        (np.array([[1e300, 1.0], [-1e300, 2.0], [5.0, 3.0]]), "column 0 of X"),
    ],
)
def test_tables_that_cannot_be_fitted(X, says):
    with pytest.raises(ValueError, match=says):
        AEDetector(scaler="none", **QUICK).fit(X)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"score": "latent-kn"}, "Did you mean 'latent_knn'"),
        ({"model": "vea"}, "Did you mean 'vae'"),
        ({"scaler": "standart"}, "Did you mean 'standard'"),
        ({"score": "elbo"}, "ae has none"),
        ({"contamination": 0.0}, r"contamination=0.0 must be 'auto' or a fraction in \(0, 0.5\]"),
        ({"contamination": 0.6}, "contamination=0.6"),
        ({"contamination": "some"}, "contamination='some'"),
        ({"n_neighbors": 0}, "n_neighbors=0"),
        ({"n_models": 0}, "n_models=0"),
        ({"latent_dim": "many"}, "latent_dim='many'"),
        ({"input_shape": (1, 2, 2)}, "4 values, but X has 6"),
    ],
)
def test_parameters_that_cannot_be(rows, keywords, says):
    with pytest.raises(ValueError, match=says):
        AEDetector(**{**QUICK, **keywords}).fit(rows[0])


def test_a_models_own_keywords(rows):
    with pytest.raises(TypeError, match="Did you mean 'beta'"):
        AEDetector("vae", model_params={"betta": 2.0}, **QUICK).fit(rows[0])
    d = AEDetector("vae", model_params={"beta": 2.0}, input_shape=(1, 2, 3), **QUICK).fit(rows[0])
    assert d.model_.beta == 2.0 and d.model_.input_shape == (1, 2, 3)


@pytest.mark.parametrize("score", ["recon", "latent_knn", "mahalanobis", "ensemble"])
@pytest.mark.parametrize("contamination", ["auto", 0.1])
def test_odd_tables_have_finite_scores(score, contamination):
    draw = np.random.default_rng(0)
    d = AEDetector(score=score, contamination=contamination, **QUICK)
    same = np.ones((20, 3))
    assert (d.fit(same).predict(same) == 1).all()  # all equal: nothing is abnormal
    assert d.predict(same[:1] + 5.0)[0] == -1
    constant = np.c_[draw.normal(size=20), np.ones(20)]
    for X in (constant, draw.normal(size=(2, 3)), draw.normal(size=(20, 1)), draw.normal(size=(5, 40))):
        assert np.isfinite(d.fit(X).score_samples(X)).all() and np.isfinite(d.score_samples(X + 1e6)).all()


def test_another_width(rows, detector):
    with pytest.raises(ValueError, match="5 features"):
        detector.predict(rows[1][:, :5])


# ----------------------------------------------------------------------------------------------------------- distances


def test_neighbours_by_brute_force():
    a, b = (np.random.default_rng(s).normal(size=(30, 3)) for s in (0, 1))
    distance = np.sort(np.linalg.norm(b[:, None] - a[None], axis=2), 1)
    np.testing.assert_allclose(Neighbours(a, 4)(b), distance[:, :4].mean(1))
    own = np.sort(np.linalg.norm(a[:, None] - a[None], axis=2), 1)
    np.testing.assert_allclose(Neighbours(a, 4)(a), own[:, 1:5].mean(1))
    assert Neighbours(a[:1], 4)(a[:1]) == 0 and Neighbours(a[:2], 4)(a[:1]) == pytest.approx(own_pair(a))


def own_pair(a: np.ndarray) -> float:
    return float(np.linalg.norm(a[0] - a[1]))


def test_mahalanobis_comes_close_to_the_closed_form():
    draw = np.random.default_rng(0)
    L = np.array([[2.0, 0.0], [1.5, 0.5]])
    a, b = draw.normal(size=(20000, 2)) @ L.T + 3, draw.normal(size=(50, 2)) @ L.T * 3 + 3
    inverse = np.linalg.inv(L @ L.T)
    true = np.sqrt(np.einsum("ij,jk,ik->i", b - 3, inverse, b - 3))
    np.testing.assert_allclose(Mahalanobis(a)(b), true, rtol=0.03, atol=0.03)
    flat = Mahalanobis(np.ones((4, 2)))(np.array([[1.0, 1.0], [4.0, 5.0]]))
    np.testing.assert_allclose(flat, [0.0, 5.0], atol=1e-9)


def test_limits():
    scores = np.exp(np.random.default_rng(0).normal(size=20000))
    assert np.log(score_limit(scores)) == pytest.approx(2.5, abs=0.1)
    assert score_limit(scores - 5) == pytest.approx(
        np.median(scores - 5) + 2.5 * 1.4826 * np.median(abs(scores - np.median(scores)))
    )
    assert (scores > score_limit(scores, 0.05)).sum() == 1000
    assert score_limit(np.full(5, 2.0)) == pytest.approx(2.0) and score_limit(np.zeros(3), 0.2) == 0
    with pytest.raises(ValueError, match="no scores"):
        score_limit(np.full(3, np.nan))


# ----------------------------------------------------------------------------------------------------------- any model


@pytest.fixture(scope="module")
def pictures():
    """A trained model of 6x6 pictures with a bright column, and such pictures."""
    x = torch.zeros(64, 1, 6, 6)
    for i in range(64):
        x[i, 0, :, i % 6] = 0.5 + (i % 5) / 10
    model = aezoo.create_model("vae", input_shape=(1, 6, 6), latent_dim=3, backbone="mlp(widths=(32,))")
    aezoo.fit(model, x, steps=300, lr=5e-3, progress=False, device="cpu")
    return model, x


def test_recon_and_elbo_by_their_formulas(pictures):
    model, x = pictures
    with torch.no_grad():
        by_hand = (model.reconstruct(x).double() - x.double()).square().mean((1, 2, 3))
    found = aezoo.detect(model, x, device="cpu")
    assert found.dtype == torch.float64 and torch.allclose(found, by_hand)
    assert torch.equal(
        found, aezoo.tasks.anomaly_scores(model, x, "recon", batch_size=7, device="cpu").clone()
    ) or torch.allclose(found, aezoo.tasks.anomaly_scores(model, x, "recon", batch_size=7, device="cpu"), rtol=1e-4)
    bound = aezoo.detect(model, x, score="elbo", draws=50, device="cpu")
    report = aezoo.evaluate(model, x, metrics="elbo", device="cpu", progress=False)
    assert float(bound.mean()) == pytest.approx(-report["elbo"]["mean"], rel=0.05)
    assert torch.equal(bound, aezoo.detect(model, x, score="elbo", draws=50, device="cpu"))


@pytest.mark.parametrize("score", ["recon", "elbo", "latent_knn", "mahalanobis"])
def test_any_score_tells_noise_from_pictures_and_leaves_no_trace(pictures, score):
    model, x = pictures
    noise = 4 * torch.rand(
        32, 1, 6, 6, generator=torch.Generator().manual_seed(0)
    )  # brighter: codes far from the others, too
    model.train()
    state, grads = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
    normal, abnormal = (aezoo.detect(model, d, score=score, reference=x, device="cpu") for d in (x, noise))
    assert abnormal.median() > normal.quantile(0.9)
    assert (
        model.training
        and torch.equal(state, torch.get_rng_state())
        and grads == [p.requires_grad for p in model.parameters()]
    )
    model.eval()


@pytest.mark.parametrize("name", ["vq_vae", "topk_sae", "lstm_ae", "tabular_ae", "unet_denoiser"])
def test_models_of_every_kind_can_be_asked(name):
    shape = {"lstm_ae": (6, 2), "tabular_ae": (4,), "topk_sae": (4,)}.get(name, (1, 8, 8))
    options = {"topk_sae": {"k": 2}, "tabular_ae": {"columns": [0, 0, 0, 3]}}.get(name, {})
    model = aezoo.create_model(name, input_shape=shape, latent_dim=4, **options)
    x = torch.rand(5, *shape)
    if name == "tabular_ae":
        x[:, 3] = torch.tensor([0.0, 1, 2, 1, 0])
        x[0, 1] = float("nan")
    for score in ("recon", "latent_knn", "mahalanobis"):
        found = aezoo.detect(model, x, score=score, reference=x, device="cpu")
        assert found.shape == (5,) and torch.isfinite(found).all()


def test_questions_that_have_no_answer(pictures):
    model, x = pictures
    with pytest.raises(ValueError, match="Did you mean 'recon'"):
        aezoo.detect(model, x, score="recons")
    with pytest.raises(ValueError, match="pass reference="):
        aezoo.detect(model, x, score="latent_knn")
    with pytest.raises(ValueError, match="ae has none; models with one: .*vae"):
        aezoo.detect(aezoo.create_model("ae", input_shape=(1, 6, 6)), x, score="elbo")
    with pytest.raises(ValueError, match="NaN in 1 of 64"):
        bad = x.clone()
        bad[3, 0, 0, 0] = float("nan")
        aezoo.detect(model, bad)
    with pytest.raises(TypeError, match="must be a BaseAE"):
        aezoo.detect(torch.nn.Linear(2, 2), x)


def test_error_maps_show_where(pictures):
    model, x = pictures
    x = x[:4].clone()
    maps = aezoo.tasks.error_map(model, x, device="cpu")
    assert maps.shape == (4, 6, 6)
    assert torch.allclose(maps.mean((1, 2)).double(), aezoo.detect(model, x, device="cpu"), rtol=1e-4)
    x[0, 0, 2, 5] = 1.0 - x[0, 0, 2, 5]
    spot = aezoo.tasks.error_map(model, x, device="cpu")[0]
    assert divmod(int(spot.argmax()), 6) == (2, 5)
    smooth = aezoo.tasks.error_map(model, x, smooth=1.0, device="cpu")
    assert torch.allclose(smooth.sum((1, 2)), aezoo.tasks.error_map(model, x, device="cpu").sum((1, 2)), rtol=1e-3)
    assert smooth.max() < spot.max()
    with pytest.raises(ValueError, match="input_shape"):
        aezoo.tasks.error_map(aezoo.create_model("ae", input_shape=(4,), latent_dim=2), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="smooth=-1"):
        aezoo.tasks.error_map(model, x, smooth=-1)


# -------------------------------------------------------------------------------------------------------------- series


class Mean(aezoo.BaseAE):
    """Reconstructs every entry by 0, so that the errors of a series are its values."""

    def reconstruct(self, x, condition=None):
        return torch.zeros_like(x)


def zeros(shape) -> Mean:
    return Mean(shape, 1, backbone="linear")


@pytest.mark.parametrize("shape", [(8, 2), (2, 8), (16,)])
@pytest.mark.parametrize("stride", [1, 3])
def test_intervals_of_a_known_series(shape, stride):
    series = np.full((50, 2), 0.1) * np.random.default_rng(0).choice([-1, 1], (50, 2))
    series[20:24] = 3.0
    series[26] = -3.0
    series[40, 1] = 2.0
    found = detect_series(zeros(shape), series, stride=stride, device="cpu")
    assert [(i.start, i.end) for i in found] == [(20, 27), (40, 41)]
    assert found[0].severity == pytest.approx(30, rel=0.01) and found[1].severity == pytest.approx(
        np.sqrt(2.005) / 0.1, rel=0.01
    )
    assert [(i.start, i.end) for i in detect_series(zeros(shape), series, 8, gap=0, shortest=2)] == [(20, 24)]


def test_windows_are_averaged_and_cover_every_step():
    w = sliding_windows(np.arange(10.0), 4, stride=5)
    assert w.squeeze(-1).tolist() == [[0, 1, 2, 3], [5, 6, 7, 8], [6, 7, 8, 9]]
    assert sliding_windows(np.zeros((9, 2)), 3, shape=(2, 3)).shape == (7, 2, 3)

    class First(Mean):  # right at the first step of a window, off by 2 at the others
        def reconstruct(self, x, condition=None):
            off = torch.full_like(x, 2.0)
            off[:, 0] = 0.0
            return x + off

    from aezoo.tasks.series import _errors

    errors = _errors(First((3,), 1, backbone="linear"), np.zeros((5, 1)), 3, 1, 512, "cpu")
    np.testing.assert_allclose(errors**2, [0, 2, 8 / 3, 4, 4])


def test_missing_values_are_filled_and_never_abnormal():
    series = np.full(40, 0.1)
    series[10:14] = np.nan
    series[30] = 5.0
    assert [(i.start, i.end) for i in detect_series(zeros((8,)), series)] == [(30, 31)]
    model = aezoo.create_model("lstm_ae", input_shape=(8, 1), latent_dim=2, backbone="lstm(width=4)")
    assert isinstance(detect_series(model, series), list)


def test_thresholds():
    series = np.random.default_rng(0).normal(size=1000)
    assert detect_series(zeros((4,)), series, k=8.0) == []
    above = detect_series(zeros((4,)), series, threshold="quantile", q=0.99, gap=0)
    assert sum(i.end - i.start for i in above) == 10
    loud = np.concatenate([0.1 * series[:300], series[300:600]])
    for normal in ((0, 300), slice(0, 300), 0.1 * series[:200]):
        assert detect_series(zeros((4,)), loud, normal=normal, k=10.0)[0].start >= 300
    assert _intervals(np.zeros(5), 0.0, 0, 1) == []


def test_series_that_cannot_be(pictures):
    for series, says in (
        (np.zeros(3), "fewer than a window of 8"),
        (np.full(20, np.nan), "nothing but NaN"),
        (np.r_[np.zeros(20), np.inf], "infinity, first at step 20"),
        (np.zeros((0,)), "at least one step"),
        (np.zeros((20, 3)), "no windows of a series with 3 channels"),
    ):
        with pytest.raises(ValueError, match=says):
            detect_series(zeros((8, 1) if series.ndim == 2 else (8,)), series)
    with pytest.raises(TypeError, match="array of numbers"):
        detect_series(zeros((8,)), ["a"] * 20)
    with pytest.raises(ValueError, match="Did you mean 'mad'"):
        detect_series(zeros((8,)), np.zeros(20), threshold="made")
    with pytest.raises(ValueError, match="start < stop"):
        detect_series(zeros((8,)), np.zeros(20), normal=(5, 30))
    with pytest.raises(ValueError, match="fit input_shape"):
        detect_series(zeros((8,)), np.zeros(20), 7)


# ---------------------------------------------------------------------------------------------------------------- PyOD


def test_pyods_conventions(rows):
    d = ours.AEDetector(contamination=0.1, **QUICK).fit(rows[0])
    if importlib.util.find_spec("pyod"):  # with it installed, the methods below are PyOD's own
        from pyod.models.base import BaseDetector

        assert isinstance(d, BaseDetector)
    assert d.decision_scores_.shape == (300,) and d.labels_.sum() == 30
    np.testing.assert_array_equal(d.labels_, (d.decision_scores_ > d.threshold_).astype(int))
    np.testing.assert_allclose(d.decision_function(rows[0]), d.decision_scores_)
    assert d.decision_function(rows[2]).mean() > d.decision_function(rows[1]).mean()  # high = abnormal
    assert set(d.predict(rows[2])) <= {0, 1}
    for method in ("linear", "unify"):
        p = d.predict_proba(rows[1], method=method)
        assert p.shape == (100, 2) and (p >= 0).all() and np.allclose(p.sum(1), 1)
        assert np.corrcoef(p[:, 1], d.decision_function(rows[1]))[0, 1] > 0.5
    np.testing.assert_array_equal(ours.AEDetector(**QUICK).fit_predict(rows[0]), d.labels_)
    inner = AEDetector(contamination=0.1, **QUICK).fit(rows[0])
    np.testing.assert_allclose(-inner.score_samples(rows[1]), d.decision_function(rows[1]))
    with pytest.raises(ValueError):
        ours.AEDetector(contamination=0.7)


# ----------------------------------------------------------------------------------------------------------- benchmark


def test_the_benchmarks_splits(monkeypatch):
    path = Path(__file__).parents[1] / "benchmarks" / "detect.py"
    spec = importlib.util.spec_from_file_location("detect_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    draw = np.random.default_rng(0)
    X, y = draw.integers(0, 6, (400, 3)), (draw.random(400) < 0.1).astype(int)
    train, test, labels = benchmark.split(X, y, "half", 3)
    normal = X[y == 0]
    np.testing.assert_array_equal(train, normal[: len(normal) // 2])
    assert len(train) + len(test) == 400 and labels.sum() == y.sum()
    train, test, labels = benchmark.split(X, y, "clean", 3)
    rows = [tuple(r) for r in np.concatenate([train, test])]
    assert len(rows) == len(set(rows))  # no row twice, on neither side
    for row, label in zip(test, labels):
        assert set(y[(row == X).all(1)]) == {label}
    other = benchmark.split(X, y, "clean", 4)[0]
    assert {tuple(r) for r in other} != {tuple(r) for r in train}
    monkeypatch.setattr(benchmark, "CAP", 100)
    train, test, _ = benchmark.split(X, y, "half", 3)
    assert len(train) + len(test) == 100


# ------------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize("score", ["recon", "elbo", "latent_knn", "mahalanobis", "ensemble"])
@pytest.mark.parametrize(("n", "f", "value"), [(50, 5, 1.0), (30, 4, 0.1), (20, 3, -7e4)])
def test_rows_like_those_that_are_all_equal_are_normal(score, n, f, value):
    """However many are looked at together."""
    detector = AEDetector("vae" if score == "elbo" else "ae", score=score, steps=5, random_state=0, device="cpu")
    detector.fit(np.full((n, f), value))
    for count in (1, 3, n):
        assert (detector.predict(np.full((count, f), value)) == 1).all()


def test_a_constant_series_holds_nothing_abnormal():
    """Its errors differ at the ends, where steps are in fewer windows."""
    model = aezoo.create_model("ae", input_shape=(32,), latent_dim=4)
    aezoo.fit(model, sliding_windows(np.ones(400), 32).flatten(1), steps=50, progress=False, device="cpu")
    assert detect_series(model, np.ones(200)) == []
    broken = np.ones(200)
    broken[90:95] = 4
    found = detect_series(model, broken, normal=[0, 60])
    assert found and found[0].start <= 90 and found[-1].end >= 95


def test_pyod_s_detector_is_there_without_an_import_of_its_own():
    assert aezoo.pyod.AEDetector and "pyod" in dir(aezoo)


@pytest.fixture(scope="module")
def run(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("runs")
    np.savetxt(folder / "train.csv", rows[0] / rows[0].std(0), delimiter=",", fmt="%.6g")
    table = np.r_[rows[1], rows[2]] / rows[0].std(0)
    with open(folder / "new.csv", "w") as f:
        f.write("a,b,c,d,e,f,label\n")
        for i, row in enumerate(table):
            f.write(",".join(f"{v:.6g}" for v in row) + f",{int(i >= 100)}\n")
    model = aezoo.create_model("ae", input_shape=(6,), latent_dim=2, backbone="mlp(widths=(32,))")
    aezoo.fit(model, str(folder / "train.csv"), steps=200, lr=5e-3, val=0.2, progress=False, device="cpu")
    model.save_pretrained(folder / "run")
    told = f"data: {{source: {folder / 'train.csv'}}}\ntrain: {{val: 0.2, seed: 0}}\nmodel: {{name: ae}}\n"
    (folder / "run" / "config.yaml").write_text(told)
    return folder


@pytest.mark.parametrize("score", ["recon", "latent_knn"])
def test_command_scores_a_table(run, capsys, score):
    main(
        [
            "detect",
            str(run / "run"),
            str(run / "new.csv"),
            "--score",
            score,
            "--out",
            str(run / score),
            "--device",
            "cpu",
        ]
    )
    said = capsys.readouterr().out
    assert "held out of" in said and "AUROC" in said and "of 200 abnormal" in said
    with open(run / score / "scores.csv") as f:
        found = list(csv.DictReader(f))
    assert [r["row"] for r in found[:2]] == ["0", "1"] and len(found) == 200
    flags = np.array([int(r["abnormal"]) for r in found])
    assert flags[:100].mean() < 0.2 and (score != "recon" or flags[100:].mean() > 0.5)
    scores = np.array([float(r["score"]) for r in found])
    assert scores[flags == 1].min(initial=np.inf) > scores[flags == 0].max()
    assert (run / score / "histogram.png").read_bytes()[:4] == b"\x89PNG"


def test_command_says_what_is_wrong(run, capsys, tmp_path):
    new = str(run / "new.csv")
    (tmp_path / "text.csv").write_text("1,2,3,4,5,6\n1,2,x,4,5,6\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "wide.csv").write_text("1,2,3\n1,2,3\n")
    (tmp_path / "hole.csv").write_text("1,2,3,4,5,6\n1,,3,4,5,6\n")
    for argv, says in (
        ([new, "--score", "recn"], "Did you mean 'recon'"),
        ([new, "--contamination", "0.7"], "contamination=0.7"),
        ([new, "--score", "elbo"], "ae has none"),
        ([str(tmp_path / "text.csv")], "'x' is no number"),
        ([str(tmp_path / "empty.csv")], "is empty"),
        ([str(tmp_path / "wide.csv")], "shape (3,)"),
        ([str(tmp_path / "hole.csv")], "NaN in 1 of 2"),
        ([str(tmp_path / "none.csv")], "no file"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["detect", str(run / "run"), *argv])
        assert stop.value.code == 2
        assert says in capsys.readouterr().err


def test_command_draws_error_maps(tmp_path, pictures, capsys):
    from PIL import Image

    model, x = pictures
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("data: {source: null}\n")
    (tmp_path / "new" / "deep").mkdir(parents=True)
    for name, image in (("a", x[0]), ("b", x[1]), ("deep/c", 1 - x[2])):
        Image.fromarray((image[0] * 255).byte().numpy()).save(tmp_path / "new" / f"{name}.png")
    main(["detect", str(tmp_path / "run"), str(tmp_path / "new"), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert "highest: deep/c.png" in capsys.readouterr().out.replace("\\", "/")
    with open(tmp_path / "out" / "scores.csv") as f:
        assert [r["file"].replace("\\", "/") for r in csv.DictReader(f)] == ["a.png", "b.png", "deep/c.png"]
    for name in ("maps/a.png", "maps/deep/c.png", "worst.png", "histogram.png"):
        assert Image.open(tmp_path / "out" / name).size[0] >= 6
    with pytest.raises(SystemExit):
        main(["detect", str(tmp_path / "run"), str(tmp_path / "new"), "--score", "latent_knn"])
    assert "pass --reference" in capsys.readouterr().err


def test_reference_of_one_sample(images):
    model = aezoo.create_model("ae", (1, 12, 12), latent_dim=2)
    with pytest.raises(ValueError, match="reference= has 1, it takes at least 2"):
        aezoo.detect(model, images[0], score="latent_knn", reference=images[0][:1])
