"""Linear probe, nearest neighbours and clusters: by brute force, against scikit-learn, and at chance."""

import itertools
import math

import pytest
import torch

import aezoo
from aezoo.metrics.probing import kmeans_scores, knn_accuracy, linear_probe


def blobs(n, classes=4, width=6, apart=1.5, seed=0):
    """Gaussian clouds around centres of their own, and their labels."""
    centres = apart * torch.randn(classes, width, generator=torch.Generator().manual_seed(99)).double()
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    return centres[y] + torch.randn(n, width, generator=g).double(), y


TRAIN, TEST = blobs(300), blobs(120, seed=1)


def test_linear_probe_is_the_regression_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    (x, y), (x_test, y_test) = TRAIN, TEST
    mean, scale = x.mean(0), x.std(0, correction=0)
    for decay in (1e-4, 0.3):
        theirs = LogisticRegression(C=1 / (decay * len(x)), tol=1e-8, max_iter=2000)
        theirs.fit(((x - mean) / scale).numpy(), y.numpy())
        wanted = theirs.score(((x_test - mean) / scale).numpy(), y_test.numpy())
        value, stderr, n = linear_probe(x, y, x_test, y_test, weight_decay=decay)["linear_probe_accuracy"]
        assert value == pytest.approx(wanted, abs=1e-9) and 0.8 < value < 1 and n == 120
        assert stderr == pytest.approx(math.sqrt(value * (1 - value) / 120))


def test_linear_probe_agrees_with_fit_probe():
    """The same regression on a model's codes, whatever the labels are called."""
    from aezoo.heads import fit_probe

    model = aezoo.create_model("ae", input_shape=(6,), latent_dim=3, backbone="mlp(widths=(8,))").double()
    with torch.no_grad():
        codes, codes_test = model.encode(TRAIN[0]), model.encode(TEST[0])
        said = fit_probe(model, TRAIN)(TEST[0]).argmax(1)
    value = linear_probe(codes, TRAIN[1], codes_test, TEST[1])["linear_probe_accuracy"][0]
    assert value == pytest.approx(float((said == TEST[1]).double().mean()))
    assert linear_probe(codes, 7 * TRAIN[1] - 5, codes_test, 7 * TEST[1] - 5)["linear_probe_accuracy"][0] == value


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 4, 10])
def test_knn_by_brute_force(monkeypatch, metric, k):
    """Sorted distances in float64, most votes, of equals the class that comes first; k = 4 has ties. In chunks and far from 0, too."""
    (x, y), (x_test, y_test) = (tuple(t[:80] for t in TRAIN), tuple(t[:60] for t in blobs(60, apart=1.0, seed=2)))
    right, ties = 0, 0
    for a, answer in zip(x_test, y_test.tolist()):
        if metric == "euclidean":
            far = [float((a - b).norm()) for b in x]
        else:
            far = [-float(a @ b / (a.norm() * b.norm())) for b in x]
        votes = [int(y[i]) for i in sorted(range(len(x)), key=far.__getitem__)[:k]]
        most = max(votes.count(v) for v in votes)
        ties += len({v for v in votes if votes.count(v) == most}) > 1
        right += next(v for v in votes if votes.count(v) == most) == answer
    value, stderr, n = knn_accuracy(x, y, x_test, y_test, k, metric=metric)["knn_accuracy"]
    assert (
        value == pytest.approx(right / 60) and n == 60 and stderr == pytest.approx(math.sqrt(value * (1 - value) / 60))
    )
    assert ties > 0 or k != 4
    monkeypatch.setattr("aezoo.metrics.probing.CHUNK", 500)
    assert knn_accuracy(x, y, x_test, y_test, k, metric=metric)["knn_accuracy"][0] == value
    if metric == "euclidean":
        moved = knn_accuracy((x + 1e4).float(), y, (x_test + 1e4).float(), y_test, k, metric=metric)["knn_accuracy"][0]
        assert moved == pytest.approx(value, abs=1.5 / 60)


def test_chance_on_noise():
    g = torch.Generator().manual_seed(0)
    (x, x_test), (y, y_test) = torch.randn(2, 1000, 5, generator=g), torch.randint(4, (2, 1000), generator=g)
    for scores in (linear_probe(x, y, x_test, y_test), knn_accuracy(x, y, x_test, y_test)):
        value, stderr, _ = next(iter(scores.values()))
        assert abs(value - 0.25) < 4 * stderr and stderr == pytest.approx(0.0137, abs=0.001)
    found = kmeans_scores(x, y, starts=2)
    assert abs(found["kmeans_ari"][0]) < 0.02 and found["kmeans_nmi"][0] < 0.02 and found["kmeans_accuracy"][0] < 0.34


@pytest.mark.parametrize("k", [None, 3, 6])
def test_kmeans_by_hand(k):
    """Best of all assignments by trying each; NMI and ARI from the table of counts; k other than the number of classes."""
    from sklearn.cluster import KMeans

    x, y = blobs(200, apart=0.9, seed=3)
    clusters = k or 4
    found = torch.from_numpy(KMeans(clusters, n_init=10, random_state=5).fit_predict(x.numpy()))
    counts = torch.zeros(clusters, 4).double()
    for c, label in zip(found.tolist(), y.tolist()):
        counts[c, label] += 1
    wide = torch.zeros(6, 6).double()
    wide[:clusters, :4] = counts
    best = max(sum(float(wide[i, p[i]]) for i in range(6)) for p in itertools.permutations(range(6))) / 200
    p = counts / 200
    rows, columns = p.sum(1), p.sum(0)
    information = torch.special.xlogy(p, p / (rows[:, None] * columns)).nansum()
    entropies = -torch.special.xlogy(rows, rows).sum(), -torch.special.xlogy(columns, columns).sum()

    def pairs(t):
        return float((t * (t - 1) / 2).sum())

    together, a, b = pairs(counts), pairs(200 * rows), pairs(200 * columns)
    by_chance = a * b / (200 * 199 / 2)
    got = kmeans_scores(x, y * 10, k, seed=5)
    assert got["kmeans_accuracy"][:1] == pytest.approx([best]) and 0.3 < best < 0.95
    assert got["kmeans_nmi"][0] == pytest.approx(float(2 * information / sum(entropies)))
    assert got["kmeans_ari"][0] == pytest.approx((together - by_chance) / ((a + b) / 2 - by_chance))
    assert got["kmeans_accuracy"][1] == pytest.approx(math.sqrt(best * (1 - best) / 200))
    assert math.isnan(got["kmeans_nmi"][1]) and math.isnan(got["kmeans_ari"][1])


def test_perfect_codes_and_repeatability():
    y = torch.arange(5).repeat(40)
    z = torch.eye(5)[y].view(200, 5, 1, 1) + 0.01 * torch.randn(200, 5, 1, 1)
    rng = torch.get_rng_state()
    for scores in (linear_probe(z, y, z, y), knn_accuracy(z, y, z, y), kmeans_scores(z, y)):
        assert all(v == pytest.approx(1.0) and n == 200 for v, _, n in scores.values())
    x, labels = blobs(300, apart=0.5)
    assert str(kmeans_scores(x, labels, seed=2**40)) == str(kmeans_scores(x, labels, seed=2**40))
    assert torch.equal(rng, torch.get_rng_state())


def test_labels_that_the_training_part_lacks_are_missed():
    (x, y), (x_test, y_test) = TRAIN, TEST
    known = y != 3
    for metric in (linear_probe, knn_accuracy):
        value = next(iter(metric(x[known], y[known], x_test, y_test).values()))[0]
        assert value <= float((y_test != 3).double().mean())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linear_probe(*TRAIN, TEST[0][:, :3], TEST[1]), ValueError, "z_test has 3 numbers a sample, .* 6"),
        (lambda: linear_probe(TRAIN[0], TRAIN[1].double(), *TEST), ValueError, "y_train must be whole-number labels"),
        (lambda: linear_probe(*TRAIN, *TEST, weight_decay=-1), ValueError, "weight_decay=-1"),
        (lambda: knn_accuracy(TRAIN[0], TRAIN[0].long(), *TEST), ValueError, "of a table of factors, pass one column"),
        (lambda: knn_accuracy(*TRAIN, *TEST, k=301), ValueError, "k=301 neighbours"),
        (lambda: knn_accuracy(*TRAIN, *TEST, metric="cosin"), ValueError, "Did you mean 'cosine'"),
        (
            lambda: knn_accuracy(TRAIN[0] / 0, TRAIN[1], *TEST),
            ValueError,
            "z_train holds NaN or infinity, first in sample 0",
        ),
        (lambda: kmeans_scores(TRAIN[0], TRAIN[1][:5]), ValueError, "y holds 5 labels for 300 codes"),
        (lambda: kmeans_scores(*TRAIN, k=0), ValueError, "k=0 must be"),
        (lambda: kmeans_scores(*TRAIN, k=1000), ValueError, "k=1000 clusters"),
        (lambda: kmeans_scores([1, 2], TRAIN[1]), TypeError, "z must be a tensor or an array; got list"),
        (lambda: kmeans_scores(torch.zeros(5), TRAIN[1]), ValueError, r"at least two codes, \(N, K\)"),
    ],
)
def test_what_does_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call()
