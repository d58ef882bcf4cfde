"""The loop."""

import math

import pytest
import torch
from conftest import fit, make_images, model_of

import aezoo
from aezoo.train import loop
from aezoo.train.optim import build_optimizer, lr_factor
from aezoo.train.update import Update


def test_history_and_result(images):
    result = fit(model_of(), images, epochs=3, val=0.25, patience=5)
    assert [r["epoch"] for r in result.history] == [1, 2, 3] and [r["step"] for r in result.history] == [3, 6, 9]
    row = result.history[-1]
    assert row["loss"] == pytest.approx(row["recon"] + row["kl"], rel=1e-5) and row["elbo"] == pytest.approx(
        -row["loss"], rel=1e-5
    )
    assert result.best["val_loss"] == min(r["val_loss"] for r in result.history)
    assert not result.model.training and result.stopped == "finished" and result.out is None


def test_the_result_holds_the_best_weights(images):
    result = fit(model_of("ae"), images, epochs=8, val=images, lr=0.5, optimizer="sgd", clip=1.0)
    with torch.no_grad():
        loss = float(result.model.loss(images[0]).total)
    assert loss == pytest.approx(result.best["val_loss"], rel=1e-5)


@pytest.mark.parametrize("corruption", ["none", "masking"])
def test_same_seed_same_weights_and_the_global_rng_is_left_alone(images, corruption):
    runs = []
    for burn in (0, 5):
        model = model_of(corruption=corruption)
        torch.manual_seed(burn)
        before = torch.get_rng_state()
        fit(model, images, epochs=2, seed=11)
        assert torch.equal(before, torch.get_rng_state())
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    other = model_of(corruption=corruption)
    fit(other, images, epochs=2, seed=12)
    assert not all(torch.equal(runs[0][k], v) for k, v in other.state_dict().items())


def test_uint8_is_kept_and_scaled(images):
    x8 = (images[0] * 255).round().to(torch.uint8)
    a, b = model_of("ae"), model_of("ae")
    fit(a, x8, epochs=2)
    fit(b, x8.float() / 255, epochs=2)
    assert all(torch.allclose(v, b.state_dict()[k], atol=1e-6) for k, v in a.state_dict().items())
    assert aezoo.load_data(x8).x.dtype == torch.uint8


def test_accumulation_weights_a_partial_window_right():
    x, _ = make_images(20)  # windows of 2 x 8: 16 samples, then 4
    a, b = model_of("ae"), model_of("ae")
    fit(a, x, steps=4, batch_size=8, accumulate=2, optimizer="sgd(momentum=0.0)", lr=0.5)
    fit(b, x, steps=4, batch_size=16, optimizer="sgd(momentum=0.0)", lr=0.5)
    assert all(torch.allclose(v, b.state_dict()[k], atol=1e-6) for k, v in a.state_dict().items())


def test_accumulation_of_uneven_batches_equals_the_joint_batch():
    x, _ = make_images(12)  # one window: 8 and 4 samples
    a, b = model_of("ae"), model_of("ae")
    fit(a, x, steps=3, batch_size=8, accumulate=2, optimizer="sgd(momentum=0.0)", lr=0.5)
    fit(b, x, steps=3, batch_size=12, optimizer="sgd(momentum=0.0)", lr=0.5)
    assert all(torch.allclose(v, b.state_dict()[k], atol=1e-6) for k, v in a.state_dict().items())


def test_a_last_batch_of_one_is_joined():
    x, _ = make_images(33)
    model = aezoo.create_model("ae", input_shape=(1, 12, 12), backbone="mlp(widths=(8,), norm='batch')")
    assert len(fit(model, x, epochs=2).history) == 2


def test_l1_and_weight_decay_act_on_weights_only(images):
    free, l1, l2 = model_of("ae"), model_of("ae"), model_of("ae")
    fit(free, images[0], epochs=30, lr=1e-2)
    result = fit(l1, images[0], epochs=30, lr=1e-2, l1=1e-3)
    fit(l2, images[0], epochs=30, lr=1e-2, weight_decay=1e-2)

    def weights(m):
        return sum(float(p.detach().abs().sum()) for p in m.parameters() if p.dim() > 1)

    assert weights(l1) < 0.5 * weights(free) and weights(l2) < 0.8 * weights(free)
    row = result.history[-1]
    assert row["loss"] == pytest.approx(row["recon"] + 1e-3 * row["l1"], rel=1e-4)


def test_weight_decay_of_sgd_is_the_l2_penalty():
    x, _ = make_images(16)
    a, b = model_of("ae"), model_of("ae")
    fit(a, x, steps=1, optimizer="sgd(momentum=0.0)", lr=0.1, weight_decay=0.3)
    total = b.loss(x).total + 0.15 * sum(p.square().sum() for p in b.parameters() if p.dim() > 1)
    total.backward()
    with torch.no_grad():
        for p in b.parameters():
            p -= 0.1 * p.grad
    assert all(torch.allclose(v, b.state_dict()[k], atol=1e-6) for k, v in a.state_dict().items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "RAdam", "adamw(betas=(0.8, 0.9))", torch.optim.Adagrad,
                                       {"name": "sgd", "nesterov": True}])  # fmt: skip
def test_optimizers(images, optimizer):
    history = fit(model_of("ae"), images, epochs=6, optimizer=optimizer, lr=3e-3).history
    assert history[-1]["loss"] < history[0]["loss"]


def test_schedules_are_pure_functions_of_the_step():
    assert [lr_factor("constant", s, 10, 4) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert lr_factor("cosine", 5, 10, 0) == pytest.approx(0.5) and lr_factor("linear", 5, 10, 0) == pytest.approx(0.5)
    assert lr_factor("cosine", 0, 10, 0) == 1.0 and lr_factor("cosine", 10, 10, 0) == pytest.approx(0.0)
    assert lr_factor("linear", 6, 10, 2) == pytest.approx(0.5)


def test_schedule_and_warmup_reach_the_optimizer(images):
    history = fit(model_of("ae"), images[0], epochs=4, lr=1.0e-3, schedule="linear", warmup=4).history
    assert [r["lr"] for r in history] == pytest.approx(
        [1e-3, 1e-3 * (1 - 3 / 12), 1e-3 * (1 - 7 / 12), 1e-3 * (1 - 11 / 12)]
    )


def test_plateau_lowers_the_rate(images):
    history = fit(model_of("ae"), images[0], epochs=14, val=images, schedule="plateau", lr=1e-30).history
    assert history[-1]["lr"] < 0.2 * history[0]["lr"]


def test_patience_stops_a_run_that_has_converged(images):
    result = fit(model_of("ae"), images[0], epochs=100, val=images, patience=3, min_change=10.0)
    assert result.stopped == "converged" and len(result.history) == 4


def test_callbacks_see_rows_and_can_stop(images):
    rows = []
    result = fit(model_of("ae"), images, epochs=9, callbacks=[rows.append, lambda row: row["epoch"] < 3])
    assert result.stopped == "callback" and rows == result.history and len(rows) == 3


def test_ema_is_what_is_validated_and_kept(images):
    averaged = fit(model_of("ae"), images[0], steps=40, ema=0.9, lr=1e-2)
    raw = fit(model_of("ae"), images[0], steps=40, lr=1e-2)
    pairs = list(zip(averaged.model.parameters(), raw.model.parameters()))
    assert any(not torch.allclose(a, b) for a, b in pairs)
    model, decay = model_of("ae"), []
    shadow = [p.detach().clone() for p in model.parameters()]
    again = model_of("ae")
    for t in range(1, 4):
        again = model_of("ae")
        fit(again, images[0], steps=t, lr=1e-2)
        d = min(0.9, (1 + t) / (10 + t))
        decay.append(d)
        shadow = [d * s + (1 - d) * p.detach() for s, p in zip(shadow, again.parameters())]
    three = fit(model_of("ae"), images[0], steps=3, ema=0.9, lr=1e-2).model
    assert all(torch.allclose(s, p, atol=1e-6) for s, p in zip(shadow, three.parameters()))


def test_bf16(images):
    history = fit(model_of("vae"), images, epochs=4, precision="bf16").history
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.slow
def test_compile_trains_the_same_and_keeps_the_keys(images, tmp_path):
    a = fit(model_of("ae"), images, epochs=2, compile=True, out=tmp_path)
    b = fit(model_of("ae"), images, epochs=2)
    assert [r["loss"] for r in a.history] == pytest.approx([r["loss"] for r in b.history], rel=1e-4)
    assert aezoo.from_pretrained(tmp_path).state_dict().keys() == b.model.state_dict().keys()


class Jittered(torch.utils.data.Dataset):
    """Images with a random brightness, drawn by the data set itself."""

    def __init__(self):
        self.x = make_images(40)[0]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] * torch.rand(())


@pytest.mark.parametrize("kind", ["dataset", "workers", "loader"])
def test_resume_is_exact_with_random_transforms_and_shuffling_loaders(tmp_path, kind):
    from aezoo.train import loop

    def data():
        if kind == "loader":
            return torch.utils.data.DataLoader(Jittered(), batch_size=8, shuffle=True)
        return aezoo.load_data(Jittered(), workers=2 if kind == "workers" else 0)

    def run(out, **more):
        return fit(model_of("ae"), data(), epochs=3, batch_size=8, out=out, **more)

    whole = run(tmp_path / "whole")
    original = loop._Trainer.one_step

    def dies(self, window):
        if self.step == 7:
            raise InterruptedError
        original(self, window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Trainer, "one_step", dies)
        with pytest.raises(InterruptedError):
            run(tmp_path / "parts", checkpoint_every=7)
    torch.manual_seed(99)
    parts = run(tmp_path / "parts", resume=True)
    assert [r["loss"] for r in whole.history] == [r["loss"] for r in parts.history]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), parts.model.parameters()))


@pytest.mark.parametrize(
    ("name", "data", "more", "note"),
    [
        ("conv_ae", torch.rand(8, 16, 16, 3), {}, "channels last"),
        ("conv_ae", torch.rand(8, 28, 28), {}, "input_shape=(1, 28, 28)"),
        (
            "ae",
            torch.utils.data.DataLoader(torch.rand(8, 5), batch_size=4),
            {"batch_size": 2},
            "brings its own batches",
        ),
        ("vae", torch.rand(8, 5), {}, "no density"),
    ],
)
def test_notes_on_what_is_probably_not_meant(name, data, more, note, capsys):
    shape = data.shape[1:] if isinstance(data, torch.Tensor) else (5,)
    keywords = {"likelihood": "bernoulli"} if name == "vae" else {}
    model = aezoo.create_model(name, input_shape=tuple(shape), latent_dim=2, **keywords)
    aezoo.fit(model, data, steps=1, device="cpu", **more)
    out = capsys.readouterr().out
    assert note in out and out.count("note:") == 1


def test_random_transforms_differ_between_epochs_and_not_with_the_number_of_workers():
    sources = [aezoo.load_data(Jittered(), workers=w) for w in (0, 1, 2)]
    plan = list(torch.arange(40).split(8))
    drawn = [[torch.cat([b.x for b in s.batches(plan, torch.device("cpu"), seed=e)]) for e in (1, 2)] for s in sources]
    assert all(torch.equal(drawn[0][e], d[e]) for d in drawn for e in (0, 1))
    assert not torch.equal(drawn[0][0], drawn[0][1])


@pytest.mark.pictures
@pytest.mark.parametrize("n", [1, 2, 3, 5, 14])
def test_small_data_and_odd_labels_do_not_lose_a_run(tmp_path, n, capsys, monkeypatch):
    x, _ = make_images(n)
    labels = [None, torch.zeros(n, 3, dtype=torch.long), torch.rand(n), torch.rand(n, 2), torch.arange(n)]
    for i, y in enumerate(labels):
        if i == 1:  # of all pictures only the map of the codes looks at labels
            for name in ("reconstructions", "samples", "curves"):
                monkeypatch.setattr(f"aezoo.pictures.{name}", lambda path, *_: path.touch() or path)
        model = aezoo.create_model("vae", input_shape=(1, 12, 12), latent_dim=1 + n % 3)
        out = tmp_path / str(i)
        aezoo.fit(model, x if y is None else (x, y), epochs=1, val=0.1 if n > 3 else None, out=out, device="cpu")
        assert len(list((out / "pictures").glob("*.png"))) == 4
    assert "left out" not in capsys.readouterr().out


@pytest.mark.pictures
def test_a_picture_that_fails_is_told_and_loses_nothing(images, tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("aezoo.pictures.curves", broken)
    result = aezoo.fit(model_of(), images, epochs=1, out=tmp_path, device="cpu")
    assert len(result.history) == 1 and "left out: curves.png: RuntimeError: no fonts" in capsys.readouterr().out


def test_min_change_counts_slow_progress():
    """A validation loss that falls by 0.05 an epoch has changed by more than 0.12 every third epoch."""
    from aezoo.train import loop

    model, (x, _) = model_of("ae"), make_images(16)
    losses = iter(1.0 - 0.05 * i for i in range(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "mean_loss", lambda *a: {"loss": next(losses)})
        assert fit(model, x, epochs=15, val=x, patience=4, min_change=0.12).stopped == "finished"
        result = fit(model, x, epochs=15, val=x, patience=2, min_change=0.12)
        assert result.stopped == "converged" and len(result.history) == 3


def test_a_run_that_has_converged_stays_so(images, tmp_path):
    def run(**more):
        return fit(model_of("ae"), images[0], epochs=50, val=images, patience=2, min_change=10.0, out=tmp_path, **more)

    assert len(run().history) == len(run(resume=True).history) == 3


def test_l1_in_stages_touches_the_stage_only():
    x, _ = make_images(32)
    model = aezoo.create_model(
        "stacked_denoising_ae", input_shape=(1, 12, 12), latent_dim=4, backbone="mlp(widths=(8,))"
    )
    held = []

    def look(row):
        held.append([k for k, p in model.named_parameters() if p.grad is not None])

    fit(model, x, epochs=4, l1=1e-2, callbacks=look)
    assert held == [[]] * len(held)


def test_a_saved_model_is_not_overwritten(images, tmp_path):
    model_of("ae").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a saved model"):
        fit(model_of("vae"), images, epochs=1, out=tmp_path)


def test_the_line_that_resumes_fits_the_data(tmp_path, capsys):
    def line(data, **more):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        model = aezoo.create_model("ae", input_shape=(1, 8, 8), backbone="linear")
        aezoo.fit(model, data, steps=1, out=out, device="cpu", **more)
        return next(x for x in capsys.readouterr().out.splitlines() if x.startswith("resume"))

    digits = aezoo.load_data("digits", limit=100)
    assert "aezoo train --resume" in line(digits) and "aezoo train --resume" in line(
        digits, val={"source": "digits", "split": "test"}
    )
    for unnamed in (
        line(digits.split(0.5, 0)[0]),
        line(torch.rand(9, 1, 8, 8)),
        line(digits, val=torch.rand(9, 1, 8, 8)),
    ):
        assert "aezoo.fit(model, data" in unnamed and "resume=True" in unnamed


def test_the_schedule_runs_over_each_stage():
    x, _ = make_images(16)
    model = aezoo.create_model("stacked_denoising_ae", input_shape=(1, 12, 12), latent_dim=4, backbone="linear")
    rates = [r["lr"] for r in fit(model, x, epochs=8, batch_size=16, schedule="linear", lr=1.0e-3).history]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4] * 2)


@pytest.fixture
def looks(monkeypatch):
    """Where the host looks at a tensor's value from the beginning of an epoch to its rows and checkpoints, which may.

    On the CPU `Kept` may as well: its way without is tested by itself."""
    counted, inside = [], [False]
    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__float__", "__bool__", "__int__", "__index__"):
        original = getattr(torch.Tensor, name)

        def spy(self, *args, _original=original, _name=name, **more):
            if inside[-1]:
                counted.append(_name)
            return _original(self, *args, **more)

        monkeypatch.setattr(torch.Tensor, name, spy)

    def watch(name, on):
        original = getattr(loop._Trainer, name)

        def watched(self, *args, **more):
            inside.append(on)
            try:
                return original(self, *args, **more)
            finally:
                inside.pop()

        monkeypatch.setattr(loop._Trainer, name, watched)

    watch("epoch", True)
    watch("end_row", False)
    watch("save", False)
    return counted


@pytest.mark.parametrize("name", aezoo.list_models())
def test_no_model_makes_the_host_wait_between_rows(looks, monkeypatch, name):
    cls = aezoo.registry.MODELS[name]
    backbone = "conv(widths=(4,))" if cls.spatial or name.startswith("conv") else "linear"
    torch.manual_seed(0)
    model = aezoo.create_model(
        name, input_shape=(1, 8, 8), latent_dim=6, **({} if cls.backbones else {"backbone": backbone})
    )
    if hasattr(cls, "check_labels"):  # it looks at labels on the CPU, where that costs nothing
        monkeypatch.setattr(cls, "check_labels", lambda *_: None)
    data = torch.rand(24, 1, 8, 8)
    labels = torch.arange(24) % 3
    fit(model, (data, labels) if cls.takes_condition else data, steps=4, batch_size=8, compile=False)
    assert looks == []


@pytest.mark.parametrize(
    "more",
    [
        {"ema": 0.9, "schedule": "cosine", "accumulate": 2, "val": 0.25},
        {"nonfinite": "skip"},
        {"nonfinite": "rollback", "clip": 1.0},
        {"optimizer": "rmsprop", "l1": 1e-5},
        {"optimizer": "adam(amsgrad=True)"},
        {"optimizer": "sgd", "weight_decay": 0.1, "schedule": "linear", "warmup": 3},
        {"groups": {"encoder.*": {"lr": 1e-4}}, "recompute": True},
        {"log_every": 3, "checkpoint_every": 2, "max_time": "1h", "callbacks": [lambda row: None]},
    ],
    ids=lambda more: "-".join(more),
)
def test_no_setting_makes_the_host_wait_between_rows(looks, images, tmp_path, monkeypatch, more):
    monkeypatch.setattr("aezoo.pictures.draw_run", lambda *_: ([], []))
    model = model_of(corruption="masking", kl_warmup=10)
    fit(model, images[0], epochs=2, batch_size=8, compile=False, out=tmp_path, **more)
    assert looks == []


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_shown_between_rows_makes_nobody_wait(looks, images, monkeypatch, capsys, terminal):
    """The loss that is shown is the newest row's."""
    from aezoo.train import progress

    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr(progress, "LONG_EPOCH", -1.0)  # a line at every step
    shown, row = [], progress.Progress.row

    def watched(self, trainer, values):
        row(self, trainer, values)
        shown.append((self.newest, self.bar and self.bar.postfix))

    monkeypatch.setattr(progress.Progress, "row", watched)
    result = fit(model_of("ae"), images, epochs=2, log_every=2, progress=True, compile=False)
    assert looks == []
    wanted = [f"loss {r['loss']:.5g} at step {r['step']}" for r in result.history]
    assert shown == [(text, text if terminal else None) for text in wanted]
    said = capsys.readouterr().out
    if not terminal:
        assert "step 1/8  no row of losses yet" in said and f"step 3/8  {wanted[0]}" in said


def test_nothing_is_saved_of_a_loss_that_is_not_finite(images, tmp_path):
    from aezoo.storage import read_tensors

    for every in (None, 1, 3):
        out = tmp_path / str(every)
        with pytest.raises(FloatingPointError, match=r"not finite at step 2 \(epoch 1\).*Lower lr"):
            fit(model_of("ae"), images[0], epochs=3, lr=1e30, optimizer="sgd", out=out, checkpoint_every=every)
        for kept in out.rglob("*.safetensors"):
            assert all(torch.isfinite(v).all() for v in read_tensors(kept)[0].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 2, "steps": 3}, "pass one of them"),
        ({"batch_size": 65}, "batch_size=65 is larger than the 64 samples"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"lr": 0}, "lr=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"optimizer": "adm"}, "Did you mean 'adam'"),
        ({"optimizer": "adam(beta=3)"}, "Did you mean 'betas'"),
        ({"optimizer": "adam(lr=3)"}, "keyword of fit"),
        ({"schedule": "cos"}, "allowed: constant, cosine, linear, plateau"),
        ({"schedule": "plateau"}, "validation loss"),
        ({"patience": 3}, "validation loss"),
        ({"val": 1.5}, "val=1.5"),
        ({"val": 0.999}, "leaves none"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "tpu0"}, "allowed: auto, cpu, cuda"),
        ({"precision": "fp61"}, "allowed: auto, fp32, bf16"),
        ({"compile": "maybe"}, "compile='maybe'"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"seed": -1}, "seed=-1"),
        ({"warmup": -1}, "warmup=-1"),
        ({"keep": 1}, "keep=1 must be at least 2"),
        ({"optimizer": "lbfgs"}, "several times a step"),
        ({"optimizer": "sparseadam"}, "sparse gradients only"),
    ],
)
def test_arguments_out_of_range(images, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit(model_of("ae"), images[0], **arguments)


def test_model_must_be_one(images):
    with pytest.raises(TypeError, match="must be a BaseAE"):
        fit(torch.nn.Linear(2, 2), images)


def test_kl_warmup_counts_steps_and_validation_uses_the_full_weight(images):
    model = model_of("vae", beta=2.0, kl_warmup=8)
    result = fit(model, images[0], epochs=3, val=images)
    assert int(model.num_steps) == 12
    row = result.history[0]
    assert row["val_loss"] == pytest.approx(row["val_recon"] + 2 * row["val_kl"], rel=1e-5)
    assert row["loss"] < row["recon"] + 2 * row["kl"]
    assert math.isclose(
        result.history[2]["loss"], result.history[2]["recon"] + 2 * result.history[2]["kl"], rel_tol=1e-5
    )


def test_momentum_of_dead_weights_does_not_decay_to_subnormal_numbers():
    """A pixel that is black at first and always later: the moments of its weights become 0, not 1e-40, and nothing else changes."""
    x = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))
    model = aezoo.create_model("ae", input_shape=(6,), latent_dim=2, backbone="mlp(widths=(4,))")
    named = list(model.named_parameters())
    optimizer = build_optimizer("adam", named, 1e-3, 0.0)
    update = Update(optimizer, None, sticky=True)
    for step in range(1, 1301):
        batch = x.clone()
        batch[:, 0] *= step < 20
        model.loss(batch).total.backward()
        update.step(torch.zeros(()))
        update.sweep(step)
    moment = optimizer.state[model.encoder[0].layer.weight]["exp_avg"]
    assert (moment[:, 0] == 0).all() and (moment[:, 1:] != 0).any()
    smallest = torch.finfo(torch.float32).tiny
    values = torch.cat([s[k].flatten() for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")])
    assert not ((values != 0) & (values.abs() < smallest)).any()
