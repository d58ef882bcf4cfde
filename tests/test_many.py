"""Several models as one computation: each must be what its own single run would make of it."""

import csv
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import OWN, make_images
from PIL import Image

import aezoo
from aezoo import sweep
from aezoo.base import BaseAE
from aezoo.cli import main
from aezoo.registry import MODELS
from aezoo.storage import read_tensors
from aezoo.train import batched, comparison, many
from aezoo.train.tape import Tape

DENSE = "mlp(widths=(24,), norm='batch', dropout=0.2)"
ROWS = torch.rand(150, 12, generator=torch.Generator().manual_seed(5))
SAME = {"batch_size": 32, "device": "cpu", "progress": False}


def build(name="ae", seed=0, **more):
    """In double precision, where the order of additions does not matter to the tenth digit."""
    torch.manual_seed(seed)
    return aezoo.create_model(name, input_shape=(12,), latent_dim=6, **{"backbone": DENSE, **more}).double()


@pytest.fixture
def notes(monkeypatch):
    said = []
    monkeypatch.setattr(many.Progress, "say", lambda self, text: said.append(text))
    return said


def pair(builders, data=None, lists=None, near=1e-7, **settings):
    """Trains copies together and one by one; compares weights and histories; returns the results of both."""
    data, lists = ROWS.double() if data is None else data, lists or {}
    settings = {**SAME, "epochs": 3, **settings}
    models = [b() for b in builders]
    before = torch.get_rng_state()
    results = aezoo.fit_many(models, data, **settings, **lists)
    assert torch.equal(before, torch.get_rng_state())
    singles = [
        aezoo.fit(b(), data, compile=False, **settings, **{k: v[i] for k, v in lists.items()})
        for i, b in enumerate(builders)
    ]
    for a, b in zip(results, singles):
        assert not a.model.training and a.stopped == b.stopped
        ours, theirs = a.model.state_dict(), b.model.state_dict()
        assert ours.keys() == theirs.keys()
        for k in theirs:
            torch.testing.assert_close(ours[k], theirs[k], rtol=near, atol=near, msg=lambda m, k=k: f"{k}: {m}")
        assert [list(row) for row in a.history] == [list(row) for row in b.history]
        for ra, rb in zip([*a.history, a.best], [*b.history, b.best]):
            for k in set(rb) - {"samples_per_s", "seconds"}:
                assert ra[k] == (rb[k] if k == "stage" else pytest.approx(rb[k], rel=10 * near, abs=near)), k
    return results, singles


def as_one(notes):
    return [n for n in notes if "as one" in n]


def test_batch_norm_and_dropout(notes):
    results, _ = pair([lambda s=s: build(seed=s) for s in range(4)], lists={"seed": [0, 1, 2, 2]}, val=0.1)
    assert len(as_one(notes)) == 1 and as_one(notes)[0].startswith("4 models ae")
    assert results[0].history[-1]["val_loss"] != results[1].history[-1]["val_loss"]


def test_in_single_precision(notes):
    builders = [lambda s=s: build(seed=s, backbone="mlp(widths=(24,), dropout=0.2)").float() for s in range(3)]
    pair(builders, data=ROWS, lists={"seed": [3, 4, 5]}, near=1e-5)
    assert as_one(notes)


def test_betas_and_seeds(notes):
    builders = [lambda b=b, w=w: build("vae", beta=b, kl_warmup=w) for b, w in ((1.0, 0), (4.0, 0), (1.0, 7), (0.5, 3))]
    results, _ = pair(builders, lists={"seed": [0, 0, 1, 0]}, val=0.1)
    assert as_one(notes)
    kl = [r.history[-1]["kl"] for r in results]
    assert kl[1] < kl[0] < kl[3]


@pytest.mark.parametrize("penalty", ["l1", "kl"])
def test_sparsity_weights_and_rates(notes, penalty):
    builders = [lambda w=w: build("sparse_ae", weight=w, penalty=penalty) for w in (0.0, 1e-2, 1.0)]
    pair(builders, lists={"lr": [1e-3, 5e-3, 2e-3], "weight_decay": [0.0, 1e-2, 1e-3]})
    assert as_one(notes)


@pytest.mark.parametrize(
    "corruption", ["masking(p=(0.1, 0.5))", "gaussian(where='latent')", ["speckle", "salt_and_pepper"]]
)
def test_corruptions(notes, corruption):
    pair([lambda s=s: build("denoising_ae", s, corruption=corruption) for s in range(2)], lists={"seed": [0, 9]})
    assert as_one(notes)


SETTINGS = {
    "adamw": {
        "optimizer": "adamw(betas=(0.8, 0.9))",
        "weight_decay": 0.1,
        "schedule": "cosine",
        "warmup": 4,
        "clip": 0.01,
    },
    "sgd": {
        "optimizer": "sgd(nesterov=True)",
        "weight_decay": 0.1,
        "lr": 0.05,
        "epochs": None,
        "steps": 7,
        "log_every": 2,
    },
    "ema": {"ema": 0.9, "val": ROWS[:30].double()},
    "plateau": {"schedule": "plateau", "lr": 0.3, "val": 0.2, "epochs": 14, "optimizer": "sgd", "near": 1e-5},
    "patience": {"patience": 2, "lr": 0.1, "val": 0.2, "epochs": 14, "optimizer": "sgd"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(notes, name):
    builders = [lambda s=s: build(seed=s, backbone="mlp(widths=(24,))") for s in range(3)]
    results, _ = pair(builders, lists={"seed": [0, 1, 2]}, **SETTINGS[name])
    assert as_one(notes)
    if name == "patience":
        assert "converged" in {r.stopped for r in results} and len({len(r.history) for r in results}) > 1


def test_bytes_and_drawn_pixels(notes):
    pixels = (make_images(60, size=6)[0] * 255).round().byte()
    source = aezoo.load_data(pixels, binarize="dynamic")

    def vae(beta):
        torch.manual_seed(0)
        return aezoo.create_model(
            "vae", input_shape=(1, 6, 6), latent_dim=3, beta=beta, likelihood="bernoulli", backbone="mlp(widths=(16,))"
        ).double()

    pair([lambda b=b: vae(b) for b in (1.0, 2.0, 3.0)], data=source, lists={"seed": [1, 1, 2]}, val=0.2)
    assert as_one(notes)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model(name):
    """Together or, with a note, one by one: never another result."""
    backbone = dict.fromkeys(("conv_ae", "conv_vae"), "conv(widths=(4,))").get(
        name, "linear(tied=True)" if "tied" in name else "linear"
    )

    def one(seed):
        torch.manual_seed(seed)
        own = [OWN[b] for b in MODELS[name].backbones[:1] if b in OWN]  # of a network of its own kind
        chosen = {"backbone": own[0]} if own else {} if MODELS[name].backbones else {"backbone": backbone}
        return aezoo.create_model(name, input_shape=(1, 8, 8), latent_dim=6, **chosen).double()

    pair(
        [lambda s=s: one(s) for s in range(2)], data=torch.rand(40, 1, 8, 8).double(), lists={"seed": [0, 1]}, epochs=2
    )


@pytest.mark.parametrize("name", [n for n in sorted(MODELS) if MODELS[n].weight_keywords])
def test_weight_keywords_only_weigh(name):
    """What a class lists there must leave the terms themselves as they are."""
    tried = {
        "beta": 3.0, "kl_warmup": 5, "weight": 0.5, "alpha": 0.5, "gamma": 2.0, "lambda_": 3.0, "off_diagonal": 2.0,
        "diagonal": 2.0, "pixel": 0.5, "entropy_weight": 0.3, "diversity": 0.5, "warmup": 7,
    }  # fmt: skip
    x = torch.rand(8, 12)
    for key in MODELS[name].weight_keywords:
        terms = []
        for keywords in ({}, {key: tried[key]}):
            torch.manual_seed(0)
            model = aezoo.create_model(name, input_shape=(12,), **keywords)
            torch.manual_seed(1)
            terms.append([*model(x).terms.items(), *model(x).terms.items()])
        for (k, a), (_, b) in zip(*terms):
            assert torch.equal(a, b), (key, k)


def test_models_of_other_shapes_form_groups(notes):
    builders = [
        lambda: build(seed=0),
        lambda: build(seed=1, backbone="linear"),
        lambda: build("vae"),
        lambda: build(seed=2),
        lambda: build(seed=3, backbone="linear"),
    ]
    results, _ = pair(builders, lists={"seed": [0, 1, 2, 3, 4]})
    assert [n.split(",")[0] for n in as_one(notes)] == ["2 models ae as one", "2 models ae as one"]
    assert [type(r.model).__name__ for r in results] == ["AE", "AE", "VAE", "AE", "AE"]


class _Odd(BaseAE):
    kind = "choice"

    def bottleneck(self, h, sample):
        if self.kind == "choice" and h.sum() > 0:  # a choice by value
            return h, {}
        if self.kind == "validation" and not self.training and h.sum() > 0:
            return h, {}
        if self.kind == "hidden" and self.training:  # a draw that nobody hands in
            return h + F.gumbel_softmax(h, dim=1), {}
        return h, {}

    def loss(self, x, target=None, condition=None):
        loss = super().loss(x, target, condition)
        return loss._replace(total=2 * loss.total) if self.kind == "total" else loss


@pytest.mark.parametrize("kind", ["choice", "validation", "hidden", "total"])
def test_what_cannot_be_computed_together(notes, kind):
    """A choice by value, hidden draws, and a total that is not the weighted sum of the terms."""

    def odd(seed):
        torch.manual_seed(seed)
        model = _Odd((12,), 4, backbone="mlp(widths=(8,))").double()
        model.kind = kind
        return model

    pair([lambda s=s: odd(s) for s in range(2)], lists={"seed": [0, 1]}, val=0.1)
    assert not as_one(notes) and "one after the other" in notes[0]


def test_other_settings_and_data_are_trained_one_by_one(notes):
    builders = [lambda s=s: build(seed=s) for s in range(2)]
    pair(builders, l1=1e-4)
    assert "one after the other: l1 is set" in notes[0]
    notes.clear()

    class Own(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            return ROWS[i].double()

    pair(builders, data=Own())
    assert not as_one(notes) and "not one tensor in memory" in notes[0]


def test_frozen_parameters_stay(notes):
    def one(seed):
        model = build(seed=seed)
        for p in model.encoder.parameters():
            p.requires_grad_(False)
        return model

    results, _ = pair([lambda s=s: one(s) for s in range(2)])
    assert as_one(notes) and torch.equal(results[1].model.encoder[0].layer.weight, one(1).encoder[0].layer.weight)


def test_models_are_views_while_training_and_their_own_afterwards(monkeypatch):
    seen = []
    models = [build(seed=s) for s in range(3)]
    before = [[id(p) for p in m.parameters()] for m in models]

    def look(i, row):
        weights = [m.encoder[0].layer.weight for m in models]
        seen.append(
            (i, row["epoch"], len({w.untyped_storage().data_ptr() for w in weights}), weights[i].detach().clone())
        )

    aezoo.fit_many(models, ROWS.double(), epochs=2, on_row=look, **SAME)
    assert [(i, e) for i, e, _, _ in seen] == [(i, e) for e in (1, 2) for i in range(3)]
    assert all(count == 1 for _, _, count, _ in seen)
    assert not torch.equal(seen[0][3], seen[3][3])
    assert [[id(p) for p in m.parameters()] for m in models] == before
    storages = [p.untyped_storage() for m in models for p in m.parameters()]
    assert len({s.data_ptr() for s in storages}) == len(storages)
    assert all(p.untyped_storage().nbytes() == p.nbytes and p.grad is None for m in models for p in m.parameters())
    aezoo.fit(models[0], ROWS.double(), steps=2, **SAME)


def test_one_that_diverges(notes):
    builders = [lambda s=s: build(seed=s, backbone="mlp(widths=(24,))") for s in range(3)]
    settings = {**SAME, "epochs": 2, "optimizer": "sgd", "lr": [1e-2, 1e30, 1e-2]}
    models = [b() for b in builders]
    with pytest.raises(FloatingPointError, match=r"model 1 \(lr=1e\+30"):
        aezoo.fit_many(models, ROWS.double(), **settings)
    assert all(p.isfinite().all() for m in models for p in m.parameters())
    results = aezoo.fit_many([b() for b in builders], ROWS.double(), diverged="leave", **settings)
    assert [r.stopped for r in results] == ["finished", "not finite", "finished"]
    assert results[1].history == [] and all(p.isfinite().all() for p in results[1].model.parameters())
    alone = aezoo.fit(builders[2](), ROWS.double(), **{**settings, "lr": 1e-2})
    for a, b in zip(results[2].model.parameters(), alone.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    one_by_one = aezoo.fit_many([b() for b in builders], ROWS.double(), diverged="leave", l1=1e-6, **settings)
    assert [r.stopped for r in one_by_one] == ["finished", "not finite", "finished"]


def test_run_folders(tmp_path):
    models = [build("vae", beta=b).float() for b in (1.0, 4.0)]
    results = aezoo.fit_many(models, ROWS, epochs=2, val=0.1, seed=[0, 1], out=tmp_path / "many", **SAME)
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == ["0", "1"]
    for i, r in enumerate(results):
        assert r.out == tmp_path / "many" / str(i)
        again = aezoo.from_pretrained(r.out)
        assert again.beta == models[i].beta
        torch.testing.assert_close(again.encode(ROWS[:4]), models[i].encode(ROWS[:4]))
        rows = [json.loads(line) for line in (r.out / "metrics.jsonl").read_text().splitlines()]
        assert [row["val_loss"] for row in rows] == [row["val_loss"] for row in r.history]
        assert f"seed: {i}" in (r.out / "config.yaml").read_text()
    with pytest.raises(ValueError, match="holds a saved model"):
        aezoo.fit_many([build("vae"), build("vae")], ROWS.double(), epochs=1, out=tmp_path / "many", **SAME)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"lr": [1e-3]}, "lr has 1 values for 2 models"),
        ({"lr": [1e-3, -1.0]}, r"lr=-1.0 must be a number above 0"),
        ({"epoch": 3}, "'epoch' is no keyword of fit_many.*Did you mean 'epochs'"),
        ({"resume": True}, "'resume' is not possible"),
        ({"diverged": "ignore"}, "diverged='ignore'"),
        ({"out": ["a", "a"]}, "out has 1 different folders for 2 models"),
        ({"optimizer": "adamm"}, "Did you mean 'adam'"),
    ],
)
def test_errors(settings, text):
    models = [build(seed=s) for s in range(2)]
    with pytest.raises((ValueError, TypeError), match=text):
        aezoo.fit_many(models, ROWS.double(), steps=1, **{**SAME, **settings})


def test_errors_of_models():
    model = build()
    with pytest.raises(ValueError, match="one model twice"):
        aezoo.fit_many([model, model], ROWS.double())
    with pytest.raises(ValueError, match="models is empty"):
        aezoo.fit_many([], ROWS)
    with pytest.raises(TypeError, match="model must be a BaseAE"):
        aezoo.fit_many([torch.nn.Linear(2, 2)], ROWS)


def test_slower_together_means_one_by_one(notes, monkeypatch):
    monkeypatch.setattr(comparison, "TO_BEAT", 0.0)
    pair([lambda s=s: build(seed=s) for s in range(2)])
    assert not as_one(notes) and "that is faster" in notes[0]


def test_tape_repeats_a_computation():
    x, w = torch.randn(5, 3), torch.randn(4, 3)
    counted, tape = torch.zeros(()), Tape()
    leaf = w.detach().requires_grad_()
    with tape:
        h = torch.zeros(5, 4).index_add_(0, torch.arange(5), x @ leaf.t())
        low, where = h.view(4, 5).t().sort(dim=0)
        total = (low.exp() * low.cumsum(0)).mean() + torch.full((), 2.0)
        (grad,) = torch.autograd.grad(total, [leaf])
        counted += 1
    tape.finish([total, grad, where])
    x.copy_(torch.randn(5, 3))
    w.copy_(torch.randn(4, 3))
    tape.run()
    fresh = w.clone().requires_grad_()
    low2, where2 = (x @ fresh.t()).view(4, 5).t().sort(dim=0)
    total2 = (low2.exp() * low2.cumsum(0)).mean() + 2.0
    torch.testing.assert_close(total, total2)
    torch.testing.assert_close(grad, torch.autograd.grad(total2, [fresh])[0])
    assert torch.equal(where, where2) and counted == 2


# ---------------------------------------------------------------------------------------------------------------- sweep


def test_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--train.epochs", "2", "--train.device", "cpu", "--model.backbone", "mlp(widths=[16])"]
    main(
        [
            "sweep",
            "digits",
            "--vary",
            "model.beta=1,8",
            "--vary=train.lr=1e-3,1e30",
            "--seeds",
            "2",
            "--out",
            "s",
            *flags,
        ]
    )
    out = capsys.readouterr().out
    assert "8 models vae as one" in out and "mean ± standard deviation over 2 seeds" in out
    with open("s/table.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["model.beta"], r["train.lr"], r["seeds"], r["not_finite"]) for r in rows] == [
        ("1", "1e-3", "2", "0"), ("1", "1e30", "2", "2"), ("8", "1e-3", "2", "0"), ("8", "1e30", "2", "2")]  # fmt: skip
    assert Image.open("s/sweep.png").size[0] > 300 and "| 8" in (tmp_path / "s" / "table.md").read_text()
    folders = sorted(p for p in (tmp_path / "s").iterdir() if p.is_dir())
    assert [p.name for p in folders[:2]] == ["0-beta=1-lr=1e-3-seed=0", "1-beta=1-lr=1e-3-seed=1"]
    best = [
        min(json.loads(x)["val_loss"] for x in (p / "metrics.jsonl").read_text().splitlines()) for p in folders[4:6]
    ]
    assert float(rows[2]["val_loss_mean"]) == pytest.approx(sum(best) / 2)
    assert float(rows[2]["val_loss_std"]) == pytest.approx(abs(best[0] - best[1]) / 2**0.5)

    main(["train", "digits", "--model.beta", "8", "--train.lr", "1e-3", "--train.seed", "1", "--out", "one", *flags])
    a, b = (read_tensors(p / "model.safetensors")[0] for p in (folders[5], tmp_path / "one"))
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-3, atol=1e-4)


def test_sweep_over_backbones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shapes = "model.backbone=mlp(widths=[16, 8]),linear"
    main(
        [
            "sweep",
            "--model",
            "ae",
            "--data",
            "digits",
            "--vary",
            shapes,
            "--train.steps",
            "3",
            "--train.progress",
            "false",
        ]
    )
    text = (tmp_path / "runs" / "sweep-ae-digits" / "table.md").read_text()
    assert "mlp(widths=[16, 8])" in text and "±" not in text


@pytest.mark.parametrize("more", [[], ["--train.accumulate", "2"]])
def test_a_sweep_that_was_stopped_does_what_is_left(tmp_path, monkeypatch, capsys, more):
    """As one computation, and one after the other."""
    monkeypatch.chdir(tmp_path)
    argv = ["sweep", "--model", "vae", "--data", "digits", "--data.limit", "64", "--train.device", "cpu", "--train.steps", "2", "--seeds", "2", "--vary", "model.beta=1,2,4", *more]  # fmt: skip
    main([*argv, "--out", "whole"])
    capsys.readouterr()
    original, ended = sweep.write_json, []

    def stopping(path, value):
        if path.name == "result.json" and (ended.append(path.parent.name) or len(ended) == 4):
            raise KeyboardInterrupt
        original(path, value)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sweep, "write_json", stopping)
        main([*argv, "--out", "parts"])
    assert stopped.value.code == 130
    assert "stopped: 3 of 6 runs are done. To go on, give the same command with --out parts" in capsys.readouterr().out
    times = {p: p.stat().st_mtime_ns for p in Path("parts").glob("*/model.safetensors") if (p.parent / "result.json").exists()}  # fmt: skip
    assert len(times) == 3
    main([*argv, "--out", "parts"])
    assert "3 of 6 runs are done already" in capsys.readouterr().out
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    tables = [list(csv.DictReader(Path(x, "table.csv").read_text().splitlines())) for x in ("whole", "parts")]
    for a, b in zip(*tables, strict=True):
        assert {k: float(v) for k, v in a.items()} == pytest.approx(
            {k: float(v) for k, v in b.items()}, rel=1e-3, abs=1e-5
        )
    with pytest.raises(SystemExit) as other:
        main([*argv, "--train.lr", "0.1", "--out", "parts"])
    assert other.value.code == 2 and "holds a sweep of other runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--vary", "model.bta=1,2"], "Did you mean 'beta'"),
        (["--vary", "model.beta=1,x"], "--model.beta=x is not valid; it takes float"),
        (["--vary", "model.beta=1,-1"], "beta=-1.0 must be"),
        (["--vary", "model.beta"], "cannot be read; write it like"),
        (["--vary", "model.beta=1,1"], "names a value twice"),
        (["--vary", "train.seed=1,2"], "pass --seeds N"),
        (["--vary", "beta=1,2"], "Did you mean '--model.beta'"),
        (["--seeds", "0"], "--seeds=0 must be"),
        (["--vary"], "--vary needs a value"),
        ([], "nothing to sweep"),
    ],
)
def test_sweep_errors(tmp_path, monkeypatch, capsys, flags, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["sweep", "digits", *flags])
    assert end.value.code == 2 and text in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def of_three_models(*shapes):
    """Tensors of these shapes for each of three models, float64."""
    g = torch.Generator().manual_seed(0)
    return [torch.randn(3, *shape, dtype=torch.float64, generator=g).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("shared", [False, True])
def test_gradcheck_of_stacked_linear_layers(shared):
    """First and second derivatives of `baddbmm` in place of M products; with x shared by all models, too."""
    x, weight, bias = of_three_models((4, 2), (3, 2), (3,))
    x = x[0].detach().requires_grad_() if shared else x
    f = torch.func.vmap(batched._Linear.apply, in_dims=(None if shared else 0, 0, 0))
    wanted = torch.stack([F.linear(x if shared else x[i], weight[i], bias[i]) for i in range(3)])
    torch.testing.assert_close(f(x, weight, bias), wanted, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(f, (x, weight, bias))
    assert torch.autograd.gradgradcheck(f, (x, weight, bias))


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck_of_stacked_batch_norms(training):
    """One batch norm of M * O channels: outcome and running moments of each model's own, first and second derivatives."""
    x, weight, bias = of_three_models((4, 2), (2,), (2,))  # (M, B, O), (M, O), (M, O)
    moments = torch.zeros(3, 2, dtype=torch.float64), torch.full((3, 2), 2.0, dtype=torch.float64)

    def f(x, weight, bias, mean=None, var=None):
        mean, var = (m.clone() for m in moments) if mean is None else (mean, var)
        how = torch.func.vmap(lambda *t: batched._BatchNorm.apply(*t, training, 0.1, 1e-5))
        return how(x, mean, var, weight, bias)

    mean, var = (m.clone() for m in moments)
    got = f(x, weight, bias, mean, var)
    for i in range(3):
        own = [m[i].clone() for m in moments]
        wanted = F.batch_norm(x[i], *own, weight[i], bias[i], training, 0.1, 1e-5)
        torch.testing.assert_close(got[i], wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close((mean[i], var[i]), tuple(own), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(f, (x, weight, bias))
    assert torch.autograd.gradgradcheck(
        f, (x, weight, bias), fast_mode=True
    )  # along random directions, not entry by entry
