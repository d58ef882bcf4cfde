"""Features of every model and any layer, their report, the command, and the scikit-learn transformer."""

import math
import pickle

import numpy as np
import pytest
import torch
from conftest import fails, make_images, model_of

import aezoo
from aezoo.cli import main
from aezoo.tasks import features as task
from aezoo.tasks.features import probe_report

X, Y = make_images(40)


def take(model, data, *more, **options):
    return aezoo.features(model, data, *more, **{"device": "cpu", "progress": False, **options})


# ---------------------------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize("name", aezoo.list_models())
def test_every_models_codes(name):
    """(N, K), what `encode` gives, in batches that do not divide N; mode, gradients and the global RNG are as they were."""
    torch.manual_seed(1)
    model = aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=4).train()
    asks = [p.requires_grad for p in model.parameters()]
    modes, before = [m.training for m in model.modules()], torch.get_rng_state()
    z = take(model, X[:7], batch_size=3)
    assert torch.equal(before, torch.get_rng_state()) and modes == [m.training for m in model.modules()]
    assert asks == [p.requires_grad for p in model.parameters()]
    assert z.shape == (7, math.prod(model.latent_shape)) and not z.requires_grad and z.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(z, model.encode(X[:7]).flatten(1), atol=1e-5)


def test_whatever_load_data_takes(tmp_path):
    model, want = model_of("ae"), None
    eight_bit = (X * 255).round().to(torch.uint8)
    np.save(tmp_path / "x.npy", eight_bit.numpy())
    pairs = torch.utils.data.TensorDataset(eight_bit, Y)
    for data in (eight_bit, eight_bit.numpy(), (eight_bit, Y), pairs, tmp_path / "x.npy", [*zip(eight_bit, Y)]):
        if isinstance(data, list):
            data = torch.utils.data.Subset(pairs, range(40))
        z, y = take(model, data, labels=True)
        want = z if want is None else want
        assert torch.allclose(z, want, atol=1e-6) and (y is None or torch.equal(y, Y))
    loader = torch.utils.data.DataLoader(pairs, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3))
    z, y = take(model, loader, labels=True)
    assert not torch.allclose(z, want) and torch.equal(y.sort().values, Y.sort().values)
    match = torch.cdist(z.double(), want.double()).argmin(1)  # shuffled, and labels in the same order
    assert torch.equal(y, Y[match]) and sorted(match.tolist()) == list(range(40))


def test_fewer_rows_than_promised_and_more():
    model = model_of("ae")
    pairs = torch.utils.data.TensorDataset(X, Y)
    assert len(take(model, torch.utils.data.DataLoader(pairs, batch_size=16, drop_last=True))) == 32
    twice = torch.utils.data.DataLoader(pairs, sampler=[*range(40), *range(40)], batch_size=16)
    z = take(model, twice)
    assert len(z) == 80 and torch.allclose(z[:40], z[40:], atol=1e-6)
    with pytest.raises(ValueError, match="without samples"):
        take(model, torch.utils.data.DataLoader(pairs, batch_size=64, drop_last=True))

    class Once:  # a sampler that has nothing more to give after it was looked at
        def __init__(self):
            self.left = [0, 1, 2]

        def __iter__(self):
            left, self.left = self.left, []
            return iter(left)

    with pytest.raises(ValueError, match="gives no batch"):
        take(model, torch.utils.data.DataLoader(pairs, sampler=Once(), batch_size=3))
    assert take(model, X[:1]).shape == (1, 4)


def test_labels_are_not_told_unless_asked():
    """Codes of a conditional model would tell the labels back."""
    model = model_of("cvae", num_classes=2)
    with torch.no_grad():
        for p in model.shift.parameters():
            p.normal_()
        unknown, known = model.encode(X), model.encode(X, condition=Y)
    assert torch.allclose(take(model, (X, Y)), unknown, atol=1e-6)
    assert torch.allclose(take(model, (X, Y), condition=True), known, atol=1e-6) and not torch.allclose(unknown, known)


# --------------------------------------------------------------------------------------------------------------- layers


def test_a_layer_is_what_a_hook_sees():
    model = aezoo.create_model("conv_vae", input_shape=(1, 12, 12), latent_dim=4, backbone="conv(widths=(4, 6))")
    names = [name for name, _ in model.named_modules()]
    layer = next(n for n in names if n.startswith("encoder.1"))
    seen = []
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        model.encode(X)
    handle.remove()
    assert torch.allclose(take(model, X, layer, batch_size=16), seen[0].flatten(1), atol=1e-6)
    assert torch.allclose(take(model, X, layer, pool="mean"), seen[0].flatten(2).mean(2), atol=1e-6)
    assert not module._forward_hooks
    decoder = take(model, X, "decoder")  # takes no part in encode: it is taken in reconstruct
    assert torch.allclose(decoder, model.decoder(model.encode(X)).detach().flatten(1), atol=1e-5)


def test_in_place_layers_and_lstms():
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(144, 5), torch.nn.ReLU(inplace=True), torch.nn.Linear(5, 4)
    )
    out = torch.nn.Sequential(torch.nn.Linear(4, 144), torch.nn.Unflatten(1, (1, 1, 12, 12)))
    model = aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=4, backbone=(net, out))
    z = take(model, X, "encoder.1")
    assert torch.allclose(z, net[:2](X).detach(), atol=1e-6) and bool((z < 0).any())  # before the ReLU wrote over it
    series = aezoo.create_model("lstm_ae", input_shape=(2, 9), latent_dim=3)
    layer = next(name for name, m in series.named_modules() if isinstance(m, torch.nn.LSTM) and "encoder" in name)
    assert len(take(series, torch.rand(5, 2, 9), layer)) == 5


def test_bad_layers():
    model = model_of("vae")
    with pytest.raises(ValueError, match=r"layer='encodr' is no submodule of this vae; .*Did you mean 'encoder'\?"):
        take(model, X, "encodr")
    with pytest.raises(ValueError, match="layer=3 is no submodule"):
        take(model, X, 3)
    model.spare = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"layer 'spare' of vae takes no part in encode and reconstruct.*encoder"):
        take(model, X, "spare")

    class Total(torch.nn.Module):
        def forward(self, x):
            return x.sum()

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.total, self.net = Total(), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 4))

        def forward(self, x):
            self.total(x)
            return self.net(x)

    odd = aezoo.create_model(
        "ae",
        input_shape=(1, 12, 12),
        latent_dim=4,
        backbone=(Both(), torch.nn.Sequential(torch.nn.Linear(4, 144), torch.nn.Unflatten(1, (1, 12, 12)))),
    )
    with pytest.raises(ValueError, match="gives no row for each of 40 samples"):
        take(odd, X, "encoder.total")


# ------------------------------------------------------------------------------------------------------------ bad input


def test_bad_data():
    model = model_of("ae")
    with pytest.raises(ValueError, match=r"samples of shape \(1, 11, 12\).*takes \(1, 12, 12\)"):
        take(model, torch.rand(5, 1, 11, 12))
    with pytest.raises(ValueError, match="3 channels|takes"):
        take(model, torch.rand(5, 3, 12, 12))
    bad = X.clone()
    bad[3, 0, 2, 2] = math.nan
    with pytest.raises(ValueError, match="NaN in 1 of 40 samples, first in sample 3"):
        take(model, bad)
    with pytest.raises(TypeError, match="model must be a BaseAE"):
        aezoo.features(torch.nn.Linear(2, 2), X)
    for options, words in (
        ({"pool": "max"}, "pool='max'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(ValueError, match=words):
            take(model, X, **options)
    with torch.no_grad():
        next(model.parameters()).fill_(math.inf)
    with pytest.raises(ValueError, match="NaN or infinite of this data, first of sample 0"):
        take(model, X)


def test_a_result_that_does_not_fit_is_said_before_the_work(monkeypatch):
    monkeypatch.setattr(task, "available_memory", lambda: 500)
    with pytest.raises(MemoryError, match=r"40 x 4 features of torch.float32 take .* pool='mean'"):
        take(model_of("ae"), X)


# --------------------------------------------------------------------------------------------------------------- report


def test_the_report_is_that_of_the_metrics():
    from aezoo.metrics.probing import kmeans_scores, knn_accuracy, linear_probe

    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (90,), generator=g)
    z = torch.randn(3, 5, generator=g)[y] + 0.7 * torch.randn(90, 5, generator=g)
    z[:, 2] = 1.5  # a constant column
    fit, judge = (z[:60], y[:60]), (z[60:], y[60:])
    scores, line = probe_report(*fit, *judge, seed=1)
    assert scores == {**linear_probe(*fit, *judge), **knn_accuracy(*fit, *judge, k=10), **kmeans_scores(*judge, seed=1)}
    value, error, n = scores["linear_probe_accuracy"]
    assert (
        f"linear probe {100 * value:.1f} ± {100 * error:.1f} %" in line
        and "60 samples to fit, 30 to judge" in line
        and n == 30
    )
    assert "\n" not in line
    halved, _ = probe_report(z, y, seed=1)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    one, other = order[:45], order[45:]
    assert halved["knn_accuracy"] == knn_accuracy(z[one], y[one], z[other], y[other], k=10)["knn_accuracy"]
    assert probe_report(z[:6], y[:6])[0]["knn_accuracy"][2] == 3  # fewer samples than neighbours
    with pytest.raises(ValueError, match="3 samples are too few"):
        probe_report(z[:3], y[:3])
    with pytest.raises(ValueError, match="go together"):
        probe_report(z, y, z)
    with pytest.raises(ValueError, match="whole-number labels"):
        probe_report(z, z[:, 0])


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model_of("ae").save_pretrained("run")
    np.savez("data.npz", x=X.numpy(), y=Y.numpy())
    main(["features", "run", "--data", "data.npz", "--out", "out/codes", "--device", "cpu"])
    out = capsys.readouterr().out.strip().splitlines()
    assert len(out) == 2 and out[0].startswith("out/codes.npz: x (40, 4)") and out[1].startswith("linear probe ")
    again = aezoo.load_data("out/codes.npz")  # reads back
    assert torch.allclose(again.x, take(aezoo.from_pretrained("run"), X), atol=1e-6) and torch.equal(again.labels, Y)
    np.save("plain.npy", X[:2].numpy())
    main(["features", "run", "--data", "plain.npy", "--layer", "encoder", "--device", "cpu"])
    assert "no report: it takes one whole-number label" in capsys.readouterr().out
    np.savez("one.npz", x=X[:1].numpy(), y=Y[:1].numpy())
    main(["features", "run", "--data", "one.npz", "--device", "cpu"])
    assert "no report: 1 samples are too few" in capsys.readouterr().out
    assert "Did you mean 'encoder'?" in fails(capsys, "features", "run", "--data", "data.npz", "--layer", "encoderr")
    assert "must end in .npz" in fails(capsys, "features", "run", "--data", "data.npz", "--out", "codes.txt")
    assert "no run folder" in fails(capsys, "features", "runn")
    np.save("nan.npy", np.full((3, 1, 12, 12), np.nan, np.float32))
    assert "NaN in 3 of 3 samples" in fails(capsys, "features", "run", "--data", "nan.npy")


# --------------------------------------------------------------------------------------------------------- scikit-learn

TINY = {"backbone": "mlp(widths=(4,))", "steps": 3, "device": "cpu"}


def rows(n=60, f=5, seed=0):
    g = np.random.default_rng(seed)
    z = g.normal(size=(n, 2))
    return z @ g.normal(size=(2, f)) + 0.1 * g.normal(size=(n, f)) + 3, (z[:, 0] > 0).astype(int)


def test_check_estimator():
    from sklearn.utils.estimator_checks import check_estimator

    check_estimator(aezoo.sklearn.AETransformer(latent_dim=2, **TINY))


def test_transformer_gives_the_codes_of_its_model_and_rows_back():
    x, _ = rows(200)
    t = aezoo.sklearn.AETransformer("linear_ae", latent_dim=2, backbone="linear", steps=600, lr=2e-2, device="cpu").fit(
        x
    )
    scaled = torch.from_numpy((x - x.mean(0)) / x.std(0)).float()
    z = t.transform(x)
    with torch.no_grad():
        assert np.allclose(z, t.model_.encode(scaled).numpy(), atol=1e-4) and z.shape == (200, 2)
    back = t.inverse_transform(z)
    assert back.shape == x.shape and np.square(back - x).mean() < 0.1 * x.var(0).mean()  # in the data's units
    assert t.score(x) == pytest.approx(-float(np.square((back - x) / x.std(0)).mean()), rel=1e-3)
    assert np.allclose(t.transform(x[7:8]), z[7:8], atol=1e-9)  # one row, by itself
    again = pickle.loads(pickle.dumps(t))
    assert np.array_equal(again.transform(x), z)


def test_transformer_in_scikit_learns_company():
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    x, y = rows()
    pipe = make_pipeline(aezoo.sklearn.AETransformer("vae", **TINY), LogisticRegression())
    search = GridSearchCV(pipe, {"aetransformer__latent_dim": [1, 3]}, cv=2).fit(x, y)
    assert search.best_params_["aetransformer__latent_dim"] in (1, 3) and len(search.predict(x)) == 60
    t = aezoo.sklearn.AETransformer("vae", latent_dim=3, random_state=4, **TINY)
    assert np.array_equal(clone(t).fit_transform(x), t.fit_transform(x))
    assert list(t.get_feature_names_out()) == ["aetransformer0", "aetransformer1", "aetransformer2"]


def test_transformer_gives_tables_where_asked():
    import pandas

    x, _ = rows()
    table = pandas.DataFrame(x, index=range(100, 160), columns=list("abcde"))
    t = aezoo.sklearn.AETransformer("vae", latent_dim=3, **TINY).set_output(transform="pandas").fit(table)
    codes = t.transform(table)
    assert list(codes.columns) == list(t.get_feature_names_out()) and list(codes.index) == list(range(100, 160))
    assert list(t.feature_names_in_) == list("abcde") and isinstance(codes, pandas.DataFrame)
    assert t.inverse_transform(codes).shape == (60, 5)
    with pytest.raises(ValueError, match="feature names"):
        t.transform(table.rename(columns={"a": "z"}))


def test_transformer_flattens_codes_with_axes():
    x = make_images(20)[0].flatten(1).double().numpy()
    t = aezoo.sklearn.AETransformer(
        "vq_vae", latent_dim=2, input_shape=(1, 12, 12), scaler="minmax", backbone="conv(widths=(4,))", steps=2, device="cpu",
        model_params={"num_codes": 8},
    ).fit(x)  # fmt: skip
    z = t.transform(x)
    assert z.shape == (20, math.prod(t.model_.latent_shape)) and len(t.get_feature_names_out()) == z.shape[1]
    assert t.inverse_transform(z).shape == x.shape


def test_transformer_bad_input():
    from sklearn.exceptions import NotFittedError

    make = aezoo.sklearn.AETransformer
    x, _ = rows(20)
    with pytest.raises(NotFittedError):
        make().inverse_transform(x)
    with pytest.raises(ValueError, match=r"model='vaee'.*Did you mean 'vae'"):
        make("vaee", **TINY).fit(x)
    with pytest.raises(ValueError, match="latent_dim=0"):
        make(latent_dim=0, **TINY).fit(x)
    with pytest.raises(ValueError, match="scaler='standart'.*'standard'"):
        make(scaler="standart", **TINY).fit(x)
    with pytest.raises(TypeError, match="bta"):
        make("vae", model_params={"bta": 2.0}, **TINY).fit(x)
    with pytest.raises(ValueError, match="12 values, but X has 5 columns"):
        make(input_shape=(3, 4), **TINY).fit(x)
    with pytest.raises(ValueError, match="NaN"):
        make(**TINY).fit(np.where(x > 3, np.nan, x))
    x[:, 2] = 7.0  # a constant column is no error
    t = make(latent_dim=2, **TINY).fit(x)
    assert np.isfinite(t.transform(x)).all()
    with pytest.raises(ValueError, match=r"X has 3 columns, but codes of this ae have 2"):
        t.inverse_transform(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="4 features"):
        t.transform(x[:, :4])
    assert make(latent_dim=2, **TINY).fit(x[:1]).transform(x[:1]).shape == (1, 2)  # one row
