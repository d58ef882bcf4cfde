"""Tables: mixed columns against torch's own losses, missing entries, units, and encoding of words."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import fit
from torch import distributions as D

import aezoo

COLUMNS = (0, 3, 0, 5, 2)


def rows(n=40, seed=0, missing=0.3):
    """Numbers of very different units beside classes, with holes; column 2 follows from column 1 and column 0."""
    g = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (n,), generator=g)
    a = torch.randn(n, generator=g, dtype=torch.float64)
    x = torch.stack([1000 + 200 * a, kind, 0.01 * (a + 2 * kind), torch.randint(5, (n,), generator=g), kind > 0], 1)
    return x.masked_fill(torch.rand(n, 5, generator=g) < missing, math.nan)


def build(name="tabular_ae", columns=COLUMNS, **more):
    torch.manual_seed(2)
    options = {"latent_dim": 3, "backbone": "mlp(widths=(16,))", **more}
    return aezoo.create_model(name, input_shape=(len(columns),), columns=columns, **options).double()


def parts(model, x):
    """(numbers as the model emits them, standardised; logits of each column of classes), of a model in evaluation mode."""
    params = model.emit(model.encode(x))[:, 0]
    return params[:, :2], params[:, 2:].split([3, 5, 2], 1)


@pytest.mark.parametrize("name", ["tabular_ae", "tabular_vae"])
def test_statistics_are_those_of_everything_seen(name):
    model = build(name).train()
    batches = [rows(16, seed=s) for s in range(3)]
    for x in batches:
        model.loss(x)
    seen = torch.cat(batches)[:, [0, 2]]
    like = model.likelihood
    assert torch.allclose(like.centre, seen.nanmean(0))
    assert torch.allclose(like.spread, (seen - seen.nanmean(0)).square().nanmean(0).sqrt())
    model.eval().loss(rows(9, seed=9))
    assert torch.equal(like.count, (~torch.isnan(seen)).sum(0).double())  # evaluation counts nothing


def test_plain_loss_against_torch():
    """The mean over what is there of standardised squared errors and cross-entropies, in nats."""
    model, x = build(), rows()
    model.train().loss(x)
    model.eval()
    (numbers, logits), like = parts(model, x), model.likelihood
    cost = torch.full((len(x), 5), math.nan, dtype=torch.float64)
    cost[:, [0, 2]] = ((x[:, [0, 2]] - like.centre) / like.spread - numbers).square()
    for column, scores in zip((1, 3, 4), logits):
        there = ~torch.isnan(x[:, column])
        cost[there, column] = F.cross_entropy(scores[there], x[there, column].long(), reduction="none")
    out = model(x)
    assert torch.allclose(out.terms["recon"], cost.nanmean(1).nan_to_num(0.0))
    guessed = torch.stack([s.argmax(1) for s in logits], 1)
    classes = x[:, [1, 3, 4]]
    accuracy = (guessed == classes).sum() / (~torch.isnan(classes)).sum()
    assert float(out.metrics["accuracy"]) == pytest.approx(float(accuracy))
    assert torch.allclose(out.metrics["missing"].double(), torch.isnan(x).double().mean(1))
    assert torch.equal(out.recon[:, [1, 3, 4]], guessed.double())
    assert torch.allclose(out.recon[:, [0, 2]], numbers * like.spread + like.centre)
    assert torch.isfinite(out.recon).all()  # missing entries are imputed


@pytest.mark.parametrize(("likelihood", "density"), [("gaussian", D.Normal), ("laplace(scale='learned')", D.Laplace)])
def test_density_is_in_data_units_with_a_scale_for_each_column(likelihood, density):
    """HI-VAE (arXiv:1807.03653, section 3): the bound's log p(x^o|z), a sum over what is observed. The density of standardised
    numbers, without + log s, would change with the units of the data by nothing, which no density does."""
    model, x = build("tabular_vae", likelihood=likelihood), rows()
    for _ in range(3):
        model.train().loss(x)
    model.eval()
    (numbers, logits), like = parts(model, x), model.likelihood
    assert like.numbers.scale.shape == (2,)
    law = density(numbers * like.spread + like.centre, like.numbers.scale * like.spread)
    want = (-law.log_prob(x[:, [0, 2]].nan_to_num(0.0))).masked_fill(torch.isnan(x[:, [0, 2]]), 0.0).sum(1)
    for column, scores in zip((1, 3, 4), logits):
        law, there = D.Categorical(logits=scores), ~torch.isnan(x[:, column])
        want = want - law.log_prob(x[:, column].nan_to_num(0.0)).masked_fill(~there, 0.0)
    assert torch.allclose(like.nll(model.emit(model.encode(x)), x), want)


def test_units_of_a_column_shift_a_density_by_their_log_and_a_plain_loss_by_nothing():
    scale = torch.tensor([100.0, 1.0, 0.001, 1.0, 1.0]).double()
    for name, shift in (("tabular_ae", 0.0), ("tabular_vae", math.log(100.0) + math.log(0.001))):
        losses, rebuilt = [], []
        for factor in (torch.ones(5).double(), scale):
            model, x = build(name), rows(missing=0.0) * factor
            torch.manual_seed(3)
            losses.append(model.train()(x).terms["recon"])
            rebuilt.append(model.reconstruct(x) / factor)
        assert torch.allclose(losses[1], losses[0] + shift, atol=1e-8)
        assert torch.allclose(*rebuilt)


@pytest.mark.parametrize("likelihood", ["bce", "bernoulli", "continuous_bernoulli"])
def test_likelihoods_of_the_unit_interval_take_numbers_as_they_are(likelihood):
    model, x = build(columns=(0, 0), likelihood=likelihood), torch.rand(20, 2).double()
    assert model.likelihood.support == (0.0, 1.0)
    model.train().loss(x)
    model.eval()
    plain = aezoo.likelihoods.LIKELIHOODS.build(likelihood)
    params = model.emit(model.encode(x))
    assert torch.allclose(model.likelihood.nll(params, x), plain.nll(params, x))
    assert torch.equal(model.reconstruct(x), plain.mean(params))


@pytest.mark.parametrize("name", ["tabular_ae", "tabular_vae"])
def test_gradients_are_finite_and_none_comes_from_what_is_missing(name):
    model, x = build(name), rows()
    x[0], x[:, 3] = math.nan, math.nan
    x.requires_grad_()
    model.train().loss(x).total.backward()
    assert torch.isfinite(x.grad).all() and (x.grad[torch.isnan(x)] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_encoder_is_told_what_is_missing():
    """Zero after standardisation is the mean: the indicator tells a missing entry from it; classes missing are all zeros."""
    model, x = build().eval(), rows(missing=0.0)
    features = model.likelihood.features(x)
    assert features.shape == (40, 2, 2 + 3 + 5 + 2) and (features[:, 1] == 0).all()
    assert torch.equal(features[:, 0, 2:5], F.one_hot(x[:, 1].long(), 3).double())
    x[:, 0], x[:, 3] = math.nan, math.nan
    features = model.likelihood.features(x)
    assert (features[:, 0, 0] == 0).all() and (features[:, 0, 5:10] == 0).all()
    assert (features[:, 1] == torch.tensor([1.0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0]).double()).all()
    x[:, 0] = model.likelihood.centre[0]
    mean = model.encode(x)
    x[:, 0] = math.nan
    assert not torch.allclose(mean, model.encode(x))


def test_imputation_beats_the_mean_and_the_most_frequent_class():
    x = rows(400, missing=0.15).float()
    model = aezoo.create_model(
        "tabular_ae", input_shape=(5,), latent_dim=3, columns=COLUMNS, backbone="mlp(widths=(32,))"
    )
    model = fit(model, x, steps=250, lr=0.02, batch_size=64).model
    test = rows(300, seed=1, missing=0.0).float()
    holed = test.clone()
    holed[:150, 2], holed[150:, 4] = math.nan, math.nan
    guess = model.reconstruct(holed)
    error = (guess[:150, 2] - test[:150, 2]).square().mean() / test[:, 2].var()
    right = (guess[150:, 4] == test[150:, 4]).float().mean()
    assert error < 0.4 and right > 0.85  # the mean: 1; the most frequent class: 2/3


def test_a_vae_of_a_row_with_nothing_in_it_knows_that_its_probability_is_one():
    """p of no observation is 1: log p = 0, by importance sampling with the prior's own weights."""
    model = build("tabular_vae", latent_dim=2)
    assert model.log_prob(torch.full((2, 5), math.nan).double(), n=4000).abs().max() < 0.05
    loss = model.eval().loss(torch.full((2, 5), math.nan).double())
    assert loss.terms["recon"] == 0 and loss.total == loss.terms["kl"]


def test_elbo_is_a_bound_on_log_prob_of_what_is_there():
    model, x = build("tabular_vae"), rows(6)
    model.train().loss(x)
    model.eval()
    elbo = torch.stack([model(x).metrics["elbo"] for _ in range(150)]).mean(0)
    assert (model.log_prob(x, n=1000) >= elbo - 0.1).all()


def test_rows_are_drawn_from_all_of_the_model():
    model = build("tabular_vae").eval()
    model.likelihood.centre.copy_(torch.tensor([50.0, -3.0]))
    draws = [model.sample(300, generator=torch.Generator().manual_seed(s)).detach() for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    for column, classes in ((1, 3), (3, 5), (4, 2)):
        assert draws[0][:, column].unique().tolist() == list(range(classes))  # the most probable alone would be fewer
    assert draws[0][:, 0].mean() == pytest.approx(50, abs=1) and draws[0][:, 0].std() > 0.8
    means = model.decode(torch.zeros(1, 3).double())
    assert torch.equal(means, model.decode(torch.zeros(1, 3).double()))


@pytest.mark.parametrize("columns", [{1: 3, 3: 5, 4: 2}, {"1": 3, "3": 5, "4": 2}, list(COLUMNS), COLUMNS])
def test_columns_survive_saving(columns, tmp_path):
    model, x = aezoo.create_model("tabular_vae", input_shape=(5,), columns=columns), rows().float()
    assert model.likelihood.columns == COLUMNS
    model.loss(x)
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))  # with the statistics
    assert torch.equal(again.likelihood.spread, model.likelihood.spread)


@pytest.mark.parametrize(
    ("columns", "message"),
    [((0, 3), "describes 2 columns; a row has 5"), ({5: 2}, "columns 0 to 4"), ((0, 1, 0, 0, 0), "1 for column 1"), ((0, -2, 0, 0, 0), "-2")],
)  # fmt: skip
def test_columns_are_checked(columns, message):
    with pytest.raises(ValueError, match=message):
        aezoo.create_model("tabular_ae", input_shape=(5,), columns=columns)


def test_a_class_that_is_none_of_the_column_makes_the_loss_nan():
    for wrong in (3.0, -1.0, 0.5):
        model, x = build(), rows(missing=0.0)
        assert math.isfinite(model.loss(x).total.detach())
        x[4, 1] = wrong
        assert math.isnan(model.loss(x).total.detach())


@pytest.mark.parametrize("wrong", [2.5, 3.0, -1.0])
@pytest.mark.parametrize("where", ["data", "val", "many"])
def test_a_class_that_is_none_is_found_before_the_first_step(wrong, where):
    good = torch.rand(30, 4)
    good[:, 2] = torch.arange(30) % 3
    good[::7, 2] = math.nan
    bad = good.clone()
    bad[5, 2] = wrong
    models = [aezoo.create_model("tabular_ae", input_shape=(4,), columns={2: 3}) for _ in range(2)]
    before = copy.deepcopy(models[0].state_dict())
    with pytest.raises(ValueError, match=rf"column 2 holds {wrong:g}, but columns={{2: 3}} .* classes 0 to 2"):
        if where == "many":
            aezoo.fit_many(models, bad, epochs=1, progress=False, device="cpu")
        else:
            data = (bad, None) if where == "data" else (good, bad)
            aezoo.fit(models[0], data[0], val=data[1], epochs=1, progress=False, device="cpu")
    assert all(torch.equal(v, before[k]) for k, v in models[0].state_dict().items())
    aezoo.fit(models[0], good, epochs=1, progress=False, device="cpu")


def test_columns_of_one_kind_only():
    for columns in ((0, 0, 0), (2, 3, 4)):
        for name, likelihood in (("tabular_ae", "mse"), ("tabular_ae", "bce"), ("tabular_vae", "gaussian")):
            model = build(name, columns, likelihood=likelihood)
            x = torch.rand(8, 3).double() if not columns[0] else torch.randint(2, (8, 3)).double()
            loss = model.loss(x)
            loss.total.backward()
            assert torch.isfinite(loss.total) and model.reconstruct(x).shape == x.shape
            assert ("accuracy" in loss.metrics) == bool(columns[0])


def test_noise_acts_on_standardised_numbers_alone():
    model, x = build(corruption="gaussian(sigma=0.5)").train(), rows(2000)
    model.loss(x)
    noisy = model.corrupt(x)
    assert torch.equal(torch.isnan(noisy), torch.isnan(x))
    assert torch.equal(noisy[:, [1, 3, 4]].nan_to_num(-1), x[:, [1, 3, 4]].nan_to_num(-1))
    shift = ((noisy - x)[:, [0, 2]] / model.likelihood.spread).square().nanmean(0).sqrt()
    assert torch.allclose(shift, torch.full_like(shift, 0.5), atol=0.05)


@pytest.mark.parametrize("name", ["tabular_ae", "tabular_vae"])
def test_training_on_the_mixed_wines_learns_and_resumes(name, tmp_path, monkeypatch):

    def model():
        torch.manual_seed(0)
        return aezoo.create_model(
            name, input_shape=(13,), latent_dim=3, columns={0: 3, 4: 4, 9: 5}, backbone="mlp(widths=(16,))"
        )

    whole = fit(model(), "wine-mixed", steps=40, lr=0.01, out=tmp_path / "a")
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    fit(model(), "wine-mixed", steps=13, lr=0.01, out=tmp_path / "b")
    again = fit(model(), "wine-mixed", steps=40, lr=0.01, out=tmp_path / "b", resume=True)
    for (key, a), (_, b) in zip(whole.model.state_dict().items(), again.model.state_dict().items()):
        assert torch.equal(a, b), key


# ---------------------------------------------------------------------------------------------------------------- data


def test_encode_table():
    table = aezoo.encode_table(
        {"age": [31, None, "4"], "city": ["Rome", "", "Bonn"], "doors": [4, 2, 4], "new": [True, False, None]},
        categorical=["doors"],
    )
    assert table.columns == (0, 2, 2, 2) and table.names == ["age", "city", "doors", "new"]
    assert table.classes == {"city": ["Bonn", "Rome"], "doors": ["2", "4"], "new": ["False", "True"]}
    want = torch.tensor([[31, 1, 1, 1], [math.nan, math.nan, 0, 0], [4, 0, 1, math.nan]])
    assert torch.equal(table.x.nan_to_num(-1), want.nan_to_num(-1)) and table.x.dtype == torch.float32
    test = aezoo.encode_table([{"age": 1, "city": "Rome", "doors": 2.0, "new": True}], like=table)
    assert test.x.tolist() == [[1, 1, 0, 1]] and test.columns == table.columns
    assert aezoo.encode_table([[1.5, "a"], [float("nan"), "b"]]).columns == (0, 2)
    sizes = aezoo.encode_table({"n": ["10", "9", "2"]}, categorical=["n"]).classes["n"]
    assert sizes == ["2", "9", "10"]  # by value, not by letters


def test_encode_table_reads_frames():
    import pandas as pd

    table = aezoo.encode_table(pd.DataFrame({"a": [1.0, None, 3.0], "b": pd.Series(["x", None, "y"], dtype="object")}))
    assert table.columns == (0, 2) and torch.isnan(table.x[1]).all()


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"a": [1], "b": [1, 2]}, {}, "one length"), ({}, {}, "no column"), ({"a": [None, ""]}, {}, "'a' holds nothing"),
        ({"a": ["x", "x"]}, {}, "one class only"), ({"city": [1]}, {"categorical": ["citi"]}, "Did you mean 'city'"),
        ([[1, 2], [1]], {}, "cells"),
    ],
)  # fmt: skip
def test_tables_are_checked(table, options, message):
    with pytest.raises(ValueError, match=message):
        aezoo.encode_table(table, **options)


def test_test_data_must_fit_the_table_that_it_is_like():
    like = aezoo.encode_table({"city": ["Rome", "Bonn"], "n": [1, 2]})
    for table, message in [
        ({"city": ["Rom"], "n": [1]}, "Did you mean 'Rome'"),
        ({"n": [1], "city": ["Rome"]}, "columns are n, city"),
        ({"city": ["Rome"], "n": ["many"]}, "holds words, but numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            aezoo.encode_table(table, like=like)


def test_tables_by_name():
    for name, (train, test, width) in {"wine": (143, 35, 13), "breast-cancer": (456, 113, 30)}.items():
        a, b = (aezoo.load_data(name, split=s) for s in ("train", "test"))
        assert (len(a), len(b), a.shape) == (train, test, (width,)) and len(a.class_names) == len(
            set(a.labels.tolist())
        )
        assert torch.cdist(a.x, b.x).min() > 0
    mixed, plain = aezoo.load_data("wine-mixed").x, aezoo.load_data("wine").x
    assert torch.equal(mixed.nan_to_num(-1), aezoo.load_data("wine-mixed").x.nan_to_num(-1))
    assert 0.03 < torch.isnan(mixed).float().mean() < 0.07
    for column, classes in {0: 3, 4: 4, 9: 5}.items():
        there = mixed[:, column][~torch.isnan(mixed[:, column])]
        assert torch.equal(there.unique(), torch.arange(classes).float())
    kept = [i for i in range(13) if i not in (0, 4, 9)]
    same = torch.isnan(mixed) | (mixed == plain)
    assert same[:, kept].all()
