"""Fréchet distance, precision and recall: closed forms, brute force, torch-fidelity's figures; and what features are made of."""

import json
import math
from pathlib import Path

import pytest
import torch
from record_frechet import features as recorded_features
from torch import nn

import aezoo
from aezoo.metrics import features as module
from aezoo.metrics.features import feature_extractor, pictures
from aezoo.metrics.frechet import frechet_distance, gaussian_frechet, precision_recall

RECORDED = json.loads(Path(__file__).with_name("frechet.json").read_text())


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(k, seed, rank=None):
    a = rand(k, rank or k, seed=seed)
    return a @ a.T / k


# -------------------------------------------------------------------------------------------------- Fréchet distance


def test_gaussians_in_closed_form():
    """One dimension: (m - n)^2 + (s - t)^2. Axes in common, turned: the sum of that. Equal ones: 0. Shifted: |m - n|^2."""
    one = torch.ones(1, 1).double()
    assert gaussian_frechet(one[0] * 3, 4 * one, one[0], 0.25 * one) == pytest.approx(4 + 1.5**2)
    q = torch.linalg.qr(rand(6, 6))[0]
    s, t, m, n = rand(4, 6, seed=1).abs()
    commuting = gaussian_frechet(m, q @ s.square().diag() @ q.T, n, q @ t.square().diag() @ q.T)
    assert commuting == pytest.approx(float((m - n).square().sum() + (s - t).square().sum()))
    c = covariance(6, 2)
    assert gaussian_frechet(m, c, m, c) == pytest.approx(0, abs=1e-9)
    assert gaussian_frechet(m, c, n, c) == pytest.approx(float((m - n).square().sum()))
    assert gaussian_frechet(m, c, n, 0 * c) == pytest.approx(float((m - n).square().sum() + c.trace()))


@pytest.mark.parametrize("rank", [7, 3])
def test_gaussians_by_another_road(rank):
    """tr of the root is the sum of singular values of A^T B where C_a = A A^T, C_b = B B^T; singular covariances, too."""
    a, b = rand(7, rank, seed=3), rand(7, rank, seed=4)
    shared = torch.linalg.svdvals(a.T @ b).sum()
    exact = float(a.square().sum() + b.square().sum() - 2 * shared)
    zero = torch.zeros(7).double()
    assert gaussian_frechet(zero, a @ a.T, zero, b @ b.T) == pytest.approx(exact, rel=1e-6)
    assert gaussian_frechet(zero, b @ b.T, zero, a @ a.T) == pytest.approx(exact, rel=1e-6)


def test_distance_of_samples_by_hand_and_of_many():
    """numpy's moments; towards the Gaussians' own distance with many samples; near 0 for halves of one set."""
    import numpy as np

    a, b = rand(200, 5), 1.5 * rand(150, 5, seed=1) + 0.3
    wanted = gaussian_frechet(
        a.mean(0), torch.from_numpy(np.cov(a.numpy().T)), b.mean(0), torch.from_numpy(np.cov(b.numpy().T))
    )
    value, _, n = frechet_distance(a.float() + 1000, (b + 1000).float())["frechet_distance"]
    assert value == pytest.approx(wanted, rel=1e-3) and n == 150
    many = frechet_distance(rand(50_000, 3), 2 * rand(50_000, 3, seed=1) + 1)["frechet_distance"]
    assert abs(many[0] - 6) < 4 * many[1] and 0.005 < many[1] < 0.1
    assert frechet_distance(rand(4000, 3), rand(4000, 3, seed=1))["frechet_distance"][0] < 0.01
    assert frechet_distance(a, a)["frechet_distance"][0] == pytest.approx(0, abs=1e-9)


def test_moments_without_a_group():
    from aezoo.metrics.frechet import _moments, _without

    x = rand(50, 4) + 3
    left = torch.tensor([1, 7, 30])
    stays = torch.ones(50, dtype=torch.bool)
    stays[left] = False
    for got, wanted in zip(_without(*_moments(x), x, left), _moments(x[stays])):
        assert torch.allclose(got, wanted)


def test_errors_are_the_spread_over_sets_drawn_anew():
    """The mean error against the standard deviation of 40 repetitions."""
    found = {"frechet_distance": [], "precision": [], "recall": []}
    for i in range(40):
        real, fake = rand(150, 3, seed=100 + i), 0.8 * rand(200, 3, seed=200 + i) + 0.4
        for name, value in {**frechet_distance(real, fake), **precision_recall(real, fake)}.items():
            found[name].append(value)
    for name, values in found.items():
        spread = float(torch.tensor([v[0] for v in values]).std())
        error = float(torch.tensor([v[1] for v in values]).mean())
        assert error == pytest.approx(spread, rel=0.4), name
        assert {v[2] for v in values} == {200 if name == "precision" else 150}


@pytest.mark.parametrize("name", ["near", "far", "singular"])
def test_against_torch_fidelity(name):
    """Figures that tests/record_frechet.py wrote down. Its eigenvalues of a product that is not symmetric lose digits where it is singular."""
    real, fake = recorded_features(name)
    wanted = RECORDED[name]
    digits = 1e-4 if name == "singular" else 1e-7
    assert frechet_distance(real, fake)["frechet_distance"][0] == pytest.approx(wanted["frechet_distance"], rel=digits)
    got = precision_recall(real, fake, 3)
    for key in ("precision", "recall"):
        assert got[key][0] == pytest.approx(wanted[key], abs=1e-6)


# -------------------------------------------------------------------------------------------------- precision, recall


def by_hand(x, ground, k):
    """The share of x in the balls of ground, distance by distance."""
    radii = [sorted(float((p - q).norm()) for j, q in enumerate(ground) if j != i)[k - 1] for i, p in enumerate(ground)]
    return sum(any(float((p - q).norm()) <= r + 1e-12 for q, r in zip(ground, radii)) for p in x) / len(x)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_brute_force(monkeypatch, k):
    real, fake = rand(60, 3), 0.8 * rand(48, 3, seed=1) + torch.tensor([1.5, 0, 0]).double()
    got = precision_recall(real, fake, k, halves=4, seed=5)
    assert got["precision"][0] == pytest.approx(by_hand(fake, real, k)) and got["precision"][2] == 48
    assert got["recall"][0] == pytest.approx(by_hand(real, fake, k)) and got["recall"][2] == 60
    assert 0.1 < min(got["recall"][0], got["precision"][0]) < max(got["recall"][0], got["precision"][0]) < 1
    g, parts = torch.Generator().manual_seed(5), []
    for _ in range(4):
        i, j = torch.randperm(60, generator=g)[:30], torch.randperm(48, generator=g)[:24]
        parts.append([by_hand(fake[j], real[i], k), by_hand(real[i], fake[j], k)])
    spread, across = (math.sqrt(sum((p - sum(ps) / 4) ** 2 for p in ps) / 3) for ps in zip(*parts))
    assert got["recall"][1] == pytest.approx(across) and across > 0
    assert got["precision"][1] == pytest.approx(spread) and spread > 0
    monkeypatch.setattr("aezoo.metrics.frechet.CHUNK", 300)
    assert precision_recall(real, fake, k, halves=4, seed=5) == got
    moved = precision_recall(100 + real.float(), 100 + fake.float(), k, halves=4, seed=5)
    assert moved["precision"] == pytest.approx(got["precision"], abs=1e-3)


def test_precision_and_recall_at_their_ends():
    x = rand(300, 2)
    same = precision_recall(x, x)
    assert same["precision"][0] == same["recall"][0] == 1.0
    apart = precision_recall(x, x + 100)
    assert apart["precision"][0] == apart["recall"][0] == 0.0
    narrow = precision_recall(x, 0.05 * rand(300, 2, seed=1))  # good samples, all alike
    assert narrow["precision"][0] > 0.98 and narrow["recall"][0] < 0.1
    wide = precision_recall(x, 6 * rand(300, 2, seed=1))
    assert wide["precision"][0] < 0.3 and wide["recall"][0] > 0.85


def test_repeatable_and_without_a_trace():
    real, fake, rng = rand(100, 3), rand(90, 3, seed=1) + 0.5, torch.get_rng_state()
    for metric in (frechet_distance, precision_recall):
        a, b, c = (metric(real, fake, seed=s) for s in (1, 1, 2))
        assert a == b and a != c and all(a[n][0] == c[n][0] for n in a)
        assert all(math.isnan(e) for _, e, _ in metric(real[:7], fake[:7]).values())  # too few for an error
    assert math.isnan(frechet_distance(real, fake, groups=0)["frechet_distance"][1])
    assert math.isnan(precision_recall(real, fake, halves=0)["recall"][1])
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(rand(9, 3), rand(9, 4)), "b has 4 numbers a sample, .* with 3"),
        (lambda: frechet_distance(rand(9, 3), rand(9, 3), groups=-1), "groups=-1"),
        (lambda: frechet_distance(rand(1, 3), rand(9, 3)), "a must hold at least two"),
        (lambda: precision_recall(rand(9, 3), rand(3, 3)), "k=3 neighbours need more than 3 samples; got 9 real and 3"),
        (lambda: precision_recall(rand(9, 3), rand(9, 3), k=0), "k=0"),
        (lambda: precision_recall(rand(9, 3), rand(9, 3), halves=-1), "halves=-1"),
        (lambda: precision_recall(rand(9, 3) / 0, rand(9, 3)), "real holds NaN or infinity"),
        (lambda: feature_extractor("inceptoin"), "Did you mean 'inception'"),
        (lambda: feature_extractor(lambda x: x.sum())(rand(4, 3)), r"must be a tensor \(4, K\); got \(\)"),
        (lambda: pictures(rand(4, 2, 8, 8), 1, 28), "1 or 3, height, width"),
        (lambda: pictures(torch.full((4, 1, 8, 8), 255.0), 1, 28), r"the values lie in \[255, 255\]"),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ----------------------------------------------------------------------------------------------------------- features


def test_pixels_and_functions_of_ones_own():
    x = torch.rand(5, 3, 4, 4)
    assert torch.equal(feature_extractor()(x), x.flatten(1)) and feature_extractor("pixels").description == "pixels"
    net = nn.Sequential(nn.Flatten(1), nn.Dropout(0.5), nn.Linear(48, 7)).train()
    own = feature_extractor(net)
    out = own(x, batch_size=2)
    assert torch.allclose(out, net[2](x.flatten(1)), atol=1e-6) and not out.requires_grad
    assert net.training and net[1].training and feature_extractor(own) is own
    named = feature_extractor(torch.fft.fft2)
    assert "given in Python" in named.description
    with pytest.raises(TypeError, match="must be a function, a module or one of pixels, fashion, inception"):
        feature_extractor(3)


def test_pictures_are_made_to_fit():
    x = torch.rand(2, 3, 14, 20)
    grey = pictures(x, 1, 28)
    assert grey.shape == (2, 1, 28, 28) and torch.allclose(grey.mean(), x.mean(), atol=0.01)
    assert torch.equal(pictures(x[:, 0], 3, 14)[:, 0], pictures(x[:, :1], 3, 14)[:, 2])
    same = torch.rand(2, 1, 28, 28)
    assert torch.equal(pictures(same, 1, 28), same)


def test_features_of_clothes(monkeypatch):
    """Trained once, from a seed of its own; they tell clothes apart, and notice what blurs them."""
    rng = torch.get_rng_state()
    extractor = feature_extractor("fashion")
    assert torch.equal(rng, torch.get_rng_state())
    assert "small classifier trained on fashion-mini" in extractor.description
    assert "not comparable with published FID" in extractor.description
    monkeypatch.setattr(module, "_FashionFeatures", None)  # a second training would fail
    x, y = aezoo.load_data("fashion-mini", split="test").peek(1000, torch.device("cpu"))
    order = torch.randperm(1000)
    x, y = x[order], y[order]
    features = feature_extractor("fashion")(x)
    assert features.shape == (1000, 64) and not features.requires_grad
    from aezoo.metrics.probing import knn_accuracy

    assert knn_accuracy(features[:500], y[:500], features[500:], y[500:])["knn_accuracy"][0] > 0.75
    blurred = nn.functional.avg_pool2d(x, 5, stride=1, padding=2)
    near = frechet_distance(features[:500], features[500:])["frechet_distance"]
    far = frechet_distance(features[:500], extractor(blurred[500:]))["frechet_distance"]
    assert far[0] > 3 * near[0] and far[0] > near[0] + 5 * far[1]


def test_inception_is_never_downloaded(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("asked the network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    module._inception.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"inception_v3_google-0cc3c7bd\.pth.*nothing is downloaded unasked"):
        feature_extractor("inception")


def test_inception_from_weights_on_disk(tmp_path, monkeypatch):
    """With random weights in torchvision's layout: the pooled features of the network that they came from."""
    from torchvision.models import inception_v3

    theirs = inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / "inception_v3_google-0cc3c7bd.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    module._inception.cache_clear()
    extractor = feature_extractor("inception")
    module._inception.cache_clear()
    x = torch.rand(2, 1, 32, 32)
    got = extractor(x)
    big = nn.functional.interpolate(x, (299, 299), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pooled = []
    theirs.avgpool.register_forward_hook(lambda m, a, out: pooled.append(out.flatten(1)))
    with torch.no_grad():
        theirs((big - mean) / deviation)
    assert got.shape == (2, 2048) and torch.allclose(got, pooled[0], atol=1e-5)
    assert "not comparable" in extractor.description
