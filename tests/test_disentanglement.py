"""MIG, SAP, DCI and the FactorVAE score: by brute force, at their best and at chance."""

import math

import pytest
import torch

from aezoo.metrics.disentanglement import concentration, dci, factor_vae_score, mig, mutual_information, sap

SIZES = (3, 5, 8)


def factor_table(n, sizes=SIZES, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(v, (n,), generator=g) for v in sizes], 1)


def noise(n, width, seed=1):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


TABLE = factor_table(2000)
CLEAN = torch.cat(
    [TABLE.flip(1) * torch.tensor([-2.0, 1.0, 0.3]) + 5, 0.1 * noise(2000, 1)], 1
)  # and one that tells nothing
NOISE = noise(2000, 6)
MIXED = TABLE.double() @ torch.tensor([[1.0, 0.9, 1.1], [0.5, -0.6, 0.5], [0.3, 0.3, -0.3]]).double()  # all tell all


def everything(z, factors):
    found = {}
    for metric in (mig, sap, dci, factor_vae_score):
        found.update(metric(z, factors))
    return {name: value for name, (value, _, _) in found.items()}


def test_true_factors_score_one_and_noise_zero():
    best, none, mixed = (everything(z, TABLE) for z in (CLEAN, NOISE, MIXED))
    most = sum(1 - 1 / v for v in SIZES) / 3  # that SAP allows
    assert best["sap"] == pytest.approx(most, abs=0.02) and best["sap_corrected"] == pytest.approx(1, abs=0.03)
    for name in ("mig", "dci_disentanglement", "dci_completeness", "factor_vae_score", "factor_vae_score_corrected"):
        assert best[name] == pytest.approx(1.0, abs=0.02), name
        assert name == "factor_vae_score" or none[name] < 0.06, name
        assert none[name] < mixed[name] + 0.03 and mixed[name] < 0.9, name
    assert best["dci_informativeness"] == pytest.approx(1.0) and none["sap"] < 0.06 and none["sap_corrected"] < 0.06
    chance = sum(1 / v for v in SIZES) / 3
    assert none["dci_informativeness"] == pytest.approx(chance, abs=0.05)
    assert none["factor_vae_score"] == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 2, 0]])
def test_order_and_scale_of_codes_and_names_of_classes_do_not_matter(order):
    codes, table = CLEAN[:, [3, *order]] * torch.tensor([3.0, 100.0, -0.01, 1.0]) + 7, TABLE[:, order] * 4 - 3
    assert mig(codes, table)["mig"][0] == pytest.approx(mig(CLEAN, TABLE)["mig"][0], abs=1e-3)
    assert sap(codes, table)["sap"][0] == pytest.approx(sap(CLEAN, TABLE)["sap"][0], abs=1e-9)
    assert dci(codes, table)["dci_completeness"][0] == pytest.approx(1.0, abs=0.02)
    assert factor_vae_score(codes, table)["factor_vae_score"][0] == pytest.approx(1.0, abs=0.01)


def test_mutual_information_by_hand_and_in_closed_form():
    """Against scikit-learn's table of counts; a binary symmetric channel has log 2 - H(e)."""
    from sklearn.metrics import mutual_info_score

    a, b = factor_table(500, (4, 7), 3), factor_table(500, (3, 2), 4)
    a[:, 0] = (a[:, 0] + b[:, 0]) % 4
    got = mutual_information(a, b)
    for i in range(2):
        for j in range(2):
            assert float(got[i, j]) == pytest.approx(mutual_info_score(a[:, i].numpy(), b[:, j].numpy()))
    x = torch.arange(1000)[:, None] % 2
    y = torch.where(torch.arange(1000)[:, None] < 200, 1 - x, x)  # one in five is flipped
    exact = math.log(2) + 0.2 * math.log(0.2) + 0.8 * math.log(0.8)
    assert float(mutual_information(x, y)[0, 0]) == pytest.approx(exact)


def test_mig_by_hand():
    """numpy's histogram with 20 bins, entropies from counts, the gap over H(v)."""
    import numpy as np
    from sklearn.metrics import mutual_info_score

    z = MIXED + 0.3 * noise(2000, 3).double()
    gaps = []
    for v in TABLE.T.numpy():
        known = []
        for column in z.T.numpy():
            edges = np.histogram(column, 20)[1]
            known.append(mutual_info_score(np.digitize(column, edges[1:-1]), v))
        p = np.bincount(v) / len(v)
        first, second = sorted(known)[:-3:-1]
        gaps.append((first - second) / -(p * np.log(p)).sum())
    assert mig(z, TABLE)["mig"][0] == pytest.approx(np.mean(gaps), abs=1e-9)
    assert mig(z[:, :1], TABLE[:, :1])["mig"][0] == pytest.approx(
        float(mutual_information(((z - z.amin(0)) / (z.amax(0) - z.amin(0)) * 20).long().clamp(0, 19), TABLE)[0, 0])
        / float(mutual_information(TABLE, TABLE)[0, 0])
    )


def test_the_error_of_mig_is_its_spread():
    """The jackknife's error against the standard deviation over sets drawn anew."""
    found = []
    for i in range(40):
        table = factor_table(400, (2, 4), 100 + i)
        z = table + 0.7 * noise(400, 2, 200 + i)
        found.append(mig(z, table)["mig"])
    values, errors = torch.tensor([f[0] for f in found]), torch.tensor([f[1] for f in found])
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.4) and all(f[2] == 400 for f in found)


def test_sap_by_hand():
    """Two classes: the best single threshold by trying each, balanced accuracy on what is held out."""
    g = torch.Generator().manual_seed(0)
    table = (torch.rand(300, 1, generator=g) < 0.3).long()
    z = table + torch.tensor([0.5, 1.5]) * noise(300, 2)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(4))
    judged, fitted = order[:100], order[100:]

    def accuracy(rows, column, cut, sign):
        said = (sign * z[rows, column] > sign * cut).long()
        y = table[rows, 0]
        return float(((said == y)[y == 0].double().mean() + (said == y)[y == 1].double().mean()) / 2)

    def impurity(column, cut):  # Gini's, of classes weighed equally
        y, total = table[fitted, 0], 0.0
        for side in (z[fitted, column] <= cut, z[fitted, column] > cut):
            a, b = (float((side & (y == c)).sum() / (y == c).sum()) for c in (0, 1))
            total += (a + b) * (1 - (a / (a + b)) ** 2 - (b / (a + b)) ** 2)
        return total

    best = []
    for column in range(2):
        values = z[fitted, column].sort().values
        cuts = ((values[1:] + values[:-1]) / 2).tolist()
        cut = min(cuts, key=lambda c, column=column: impurity(column, c))
        best.append(max(accuracy(judged, column, cut, s) for s in (1, -1)))
    value, error, n = sap(z, table, seed=4)["sap"]
    assert value == pytest.approx(max(best) - min(best), abs=1e-6) and value > 0.1 and n == 100
    assert sap(z, table, seed=4)["sap_corrected"][0] == pytest.approx(2 * value) and 0.01 < error < 0.1


def test_dci_from_importances_in_closed_form():
    one = torch.eye(4).double()
    assert concentration(one) == pytest.approx((1.0, 1.0))
    assert concentration(torch.ones(4, 3).double()) == pytest.approx((0.0, 0.0), abs=1e-12)
    split = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]).double()  # two numbers share the first factor
    assert concentration(split) == pytest.approx((1.0, (1 - math.log(2) / math.log(3) + 1) / 2))
    both = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double()  # one number tells both, a dead one nothing
    assert concentration(both) == pytest.approx((0.0, 1.0), abs=1e-12)
    r = torch.tensor([[0.7, 0.1, 0.2], [0.3, 0.9, 0.8]]).double()
    d = sum(
        float(row.sum()) / 3 * (1 + sum(float(v) * math.log(float(v)) / math.log(3) for v in row / row.sum()))
        for row in r
    )
    c = sum(1 + sum(float(v) * math.log(float(v)) / math.log(2) for v in column) for column in r.T) / 3
    assert concentration(r) == pytest.approx((d, c))
    assert math.isnan(concentration(torch.ones(3, 1).double())[0]) and math.isnan(
        concentration(torch.ones(1, 3).double())[1]
    )


def test_dci_by_boosting():
    table = factor_table(300, (2, 3))
    scores = dci(torch.cat([table + 0.0, noise(300, 1)], 1), table, learner="boosting", trees=10)
    assert all(v == pytest.approx(1.0, abs=0.02) for v, _, _ in scores.values())
    assert scores["dci_informativeness"][2] == 100 and math.isnan(scores["dci_completeness"][1])


def test_factor_vae_score_of_a_code_that_tells_one_factor_only():
    """Votes about factor 0 name number 0, the others either number alike, and number 1 stands for one of two: 1/3 + 1/6."""
    z = torch.cat([TABLE[:, :1] + 0.01 * noise(2000, 1), noise(2000, 1, 5)], 1)
    value, error, n = factor_vae_score(z, TABLE, votes=600)["factor_vae_score"]
    assert (
        value == pytest.approx(1 / 2, abs=4 * error)
        and n == 600
        and error == pytest.approx(math.sqrt(0.25 / 600), rel=0.05)
    )


def test_factor_vae_score_from_a_sampler_is_that_from_a_table():
    def sampler(factor, n, generator):
        rows = torch.randint(5, (n, 3), generator=generator)
        rows[:, factor] = rows[0, factor]
        return codes(rows, generator)

    def codes(rows, generator):
        mixed = rows[:, [1, 2, 0]] + 0.6 * rows[:, [2, 0, 1]]
        return mixed + 0.8 * torch.randn(rows.shape, generator=generator)

    g = torch.Generator().manual_seed(3)
    rows = torch.randint(5, (6000, 3), generator=g)
    z = codes(rows, g)
    drawn = factor_vae_score(z, sampler=sampler, num_factors=3, batch=24)
    read = factor_vae_score(z, rows, batch=24)
    (a, ea, _), (b, eb, _) = drawn["factor_vae_score"], read["factor_vae_score"]
    assert abs(a - b) < 4 * math.hypot(ea, eb) and 0.6 < a < 0.99
    corrected = read["factor_vae_score_corrected"]
    assert corrected[:2] == pytest.approx(((b - 1 / 3) / (2 / 3), eb * 1.5))


def test_dead_numbers_and_constant_factors_are_left_out():
    dead = torch.cat([CLEAN, torch.full((2000, 1), 3.0)], 1)
    table = torch.cat([TABLE, torch.full((2000, 1), 2)], 1)
    assert factor_vae_score(dead, table) == factor_vae_score(CLEAN, TABLE)
    assert mig(dead, table) == mig(CLEAN, TABLE) and sap(CLEAN, table) == sap(CLEAN, TABLE)


def test_floating_point_factors_are_cut_into_classes():
    factors = torch.rand(1500, 2, generator=torch.Generator().manual_seed(0))
    classes = ((factors - factors.amin(0)) / (factors.amax(0) - factors.amin(0)) * 4).long().clamp(max=3)
    z = torch.cat([factors, noise(1500, 1)], 1)
    assert mig(z, factors, bins=4)["mig"] == mig(z, classes, bins=4)["mig"]
    assert sap(z, factors, bins=4) == sap(z, classes) and sap(z, factors, bins=4)["sap_corrected"][0] > 0.9


def test_the_same_seed_gives_the_same_figures():
    rng, z = torch.get_rng_state(), MIXED + noise(2000, 3)
    for metric in (mig, sap, dci, factor_vae_score):
        a, b, c = (str(metric(z, TABLE, seed=s)) for s in (3, 3, 4))
        assert a == b != c, metric
    assert torch.equal(rng, torch.get_rng_state())
    assert mig(z.numpy(), TABLE.numpy()) == mig(z, TABLE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mig(NOISE, TABLE[:, 0]), r"factors must be a table of a row for each code, \(2000, F\)"),
        (lambda: mig(NOISE[:50], TABLE), r"\(50, F\)"),
        (lambda: mig(NOISE, TABLE * 0), "no factor varies"),
        (lambda: mig(NOISE, TABLE, bins=0), "bins=0"),
        (lambda: mig(NOISE, TABLE / 0.0), "factors hold NaN or infinity"),
        (lambda: sap(NOISE, TABLE, seed=-1), "seed=-1"),
        (lambda: sap(NOISE, TABLE, samples=2), "too few"),
        (lambda: dci(NOISE, TABLE, learner="forrest"), "Did you mean 'forest'"),
        (lambda: factor_vae_score(NOISE), "either a table of factors, or a sampler"),
        (lambda: factor_vae_score(NOISE, TABLE, batch=1), "batch=1"),
        (lambda: factor_vae_score(NOISE * 0, TABLE), "no number of the codes varies"),
        (lambda: factor_vae_score(NOISE, TABLE[:, :1]), "1 varies"),
        (lambda: factor_vae_score(NOISE, torch.arange(4000).view(2000, 2)), "no two samples share"),
        (
            lambda: factor_vae_score(NOISE, sampler=lambda f, n, g: noise(n, 2), num_factors=3),
            "sampler returns has 2 numbers",
        ),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
