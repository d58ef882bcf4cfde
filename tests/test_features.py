"""What `fit` offers beside the plain loop: rates of groups, recomputing, limits of time, what is kept."""

import json

import pytest
import torch
from conftest import fit, model_of
from torch import nn

import aezoo
from aezoo.train import recompute


def deep(norm="batch", dropout=0.0):
    torch.manual_seed(3)
    backbone = f"mlp(widths=(32, 16), norm='{norm}', dropout={dropout})"
    return aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=4, backbone=backbone)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def moved(before, after, part):
    """The largest change of a weight in a part of the model."""
    return max(float((v - before[k]).abs().max()) for k, v in after.state_dict().items() if k.startswith(part))


# -------------------------------------------------------------------------------------------------------------- groups


def test_groups_have_rates_of_their_own(images):
    """Adam's first step moves every weight by about its rate."""
    before = model_of("ae").state_dict()
    after = fit(model_of("ae"), images, steps=1, groups={"encoder.*": {"lr": 1e-4}}, lr=1e-2).model
    assert moved(before, after, "encoder") == pytest.approx(1e-4, rel=0.05)
    assert moved(before, after, "decoder") == pytest.approx(1e-2, rel=0.05)
    frozen = fit(model_of("ae"), images, steps=3, groups={"encoder.*": {"lr": 0.0}}).model
    assert moved(before, frozen, "encoder") == 0 and moved(before, frozen, "decoder") > 0


def test_the_schedule_acts_on_all_groups_and_the_first_pattern_counts(images):
    rates = []

    class Look(aezoo.Callback):
        def on_step(self, run):
            rates.append(sorted(g["lr"] for g in run.optimizer.param_groups))

    groups = {"encoder.*.bias": {"lr": 1e-5}, "encoder.*": {"lr": 1e-4}}
    fit(model_of("ae"), images, steps=2, groups=groups, lr=1e-2, schedule="linear", callbacks=Look())
    assert rates == [pytest.approx([1e-5, 1e-4, 1e-2]), pytest.approx([5e-6, 5e-5, 5e-3])]


def test_weight_decay_of_a_group(images):
    before = model_of("ae").state_dict()
    groups = {"decoder.*": {"weight_decay": 0.5, "lr": 0.1}}
    with_decay = fit(model_of("ae"), images, steps=1, optimizer="adamw", groups=groups).model
    without = fit(model_of("ae"), images, steps=1, optimizer="adamw", groups={"decoder.*": {"lr": 0.1}}).model
    for k, v in with_decay.state_dict().items():
        decayed = 0.1 * 0.5 * before[k] if k.startswith("decoder") and v.dim() > 1 else 0 * v
        assert torch.allclose(without.state_dict()[k] - v, decayed, atol=1e-6), k


def test_groups_survive_resuming(images, tmp_path):
    def run(epochs, **more):
        return fit(model_of("ae"), images, epochs=epochs, groups={"encoder.*": {"lr": 1e-4}}, **more)

    run(1, out=tmp_path)
    assert same(run(3, out=tmp_path, resume=True).model, run(3).model)
    with pytest.raises(ValueError, match="groups="):
        fit(model_of("ae"), images, epochs=4, out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"encodr.*": {"lr": 1e-4}},
            r"no parameter's name fits 'encodr\.\*'.*decoder\., encoder\..*Did you mean 'encoder'",
        ),
        ({"encoder.*": {"learning_rate": 1e-4}}, r"it takes a learning rate, or \{'lr'"),
        ({"encoder.*": {}}, "one or both"),
        ({"encoder.*": {"lr": -1}}, "lr=-1 must be a number of at least 0"),
        ({"encoder.*": {"lr": "fast"}}, "lr='fast'"),
        ({"encoder.*": [1e-4]}, r"holds \[0.0001\]"),
        ([("encoder.*", 1e-4)], "must map names or patterns"),
    ],
)
def test_groups_that_are_off(images, groups, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit(model_of("ae"), images, steps=1, groups=groups)


# ---------------------------------------------------------------------------------------------------------- recomputing


@pytest.mark.parametrize("kind", ["batch norm", "dropout", "conv", "vae"])
def test_recomputing_changes_no_bit(images, kind):
    def model():
        torch.manual_seed(3)
        if kind == "conv":
            return aezoo.create_model("conv_ae", input_shape=(1, 12, 12), latent_dim=4)
        return model_of("vae", corruption="masking") if kind == "vae" else deep(dropout=0.3 * (kind == "dropout"))

    a, b = (fit(model(), images, epochs=2, val=0.25, recompute=on) for on in (True, False))
    assert same(a.model, b.model)
    rows = [[{k: v for k, v in r.items() if k not in ("samples_per_s", "seconds")} for r in x.history] for x in (a, b)]
    assert rows[0] == rows[1]
    if kind == "batch norm":
        counts = [v for k, v in a.model.state_dict().items() if k.endswith("num_batches_tracked")]
        assert counts and all(int(c) == 6 for c in counts)


def test_recomputing_does_compute_again_and_is_gone_afterwards(images):
    calls = {True: 0, False: 0}
    for on in calls:
        model = deep()
        layer = next(m for m in model.encoder.modules() if isinstance(m, nn.Linear))

        def count(*_, on=on):
            calls[on] += 1

        layer.register_forward_hook(count)
        fit(model, images, steps=3, recompute=on)
        assert not any("forward" in vars(m) for m in model.modules())
    assert calls == {True: 6, False: 3}


def test_recomputing_holds_in_eval_mode_and_after_an_error():
    model = deep().eval()
    x = torch.rand(4, 1, 12, 12)
    plain = model(x).recon
    with pytest.raises(KeyError), recompute.recomputing(model):
        assert torch.equal(model(x).recon, plain)
        raise KeyError
    assert not any("forward" in vars(m) for m in model.modules())


# ------------------------------------------------------------------------------------------------- when and how long


@pytest.mark.parametrize("limit", [0.15, "0.15s"])
def test_max_time_stops_saves_and_goes_on_to_the_same_end(images, tmp_path, limit):
    result = fit(model_of("ae"), images, epochs=10**6, max_time=limit, compile=False, out=tmp_path)
    step = torch.tensor([int(p.name[5:]) for p in (tmp_path / "checkpoints").iterdir()]).max().item()
    assert result.stopped == "time" and result.seconds < 20 and step > 0
    on = fit(model_of("ae"), images, steps=step + 5, out=tmp_path, resume=True)
    assert on.stopped == "finished" and same(on.model, fit(model_of("ae"), images, steps=step + 5).model)


@pytest.mark.parametrize("limit", [0, -3, "soon", "1x", "1h 5m", True, float("nan")])
def test_times_that_are_none(images, limit):
    with pytest.raises(ValueError, match="max_time="):
        fit(model_of("ae"), images, steps=1, max_time=limit)


def test_times_in_words():
    from aezoo.train.arguments import seconds_of

    assert [seconds_of(t) for t in ("1h30m", "45s", "2d", "90", 1.5)] == [5400, 45, 172800, 90, 1.5]


def test_log_every(images):
    """Rows at every third step and at epoch ends; each is the mean since the row before."""
    fine = fit(model_of("ae"), images, epochs=2, log_every=1, val=images).history
    rows = fit(model_of("ae"), images, epochs=2, log_every=3, val=images).history
    assert [r["step"] for r in fine] == list(range(1, 9))
    assert [(r["epoch"], r["step"]) for r in rows] == [(1, 3), (1, 4), (2, 6), (2, 8)]
    assert [("val_loss" in r) for r in rows] == [False, True, False, True]
    losses = [r["loss"] for r in fine]
    means = [sum(losses[:3]) / 3, losses[3], sum(losses[4:6]) / 2, sum(losses[6:]) / 2]
    assert [r["loss"] for r in rows] == pytest.approx(means, rel=1e-5)


def test_overfit_batches_are_the_same_every_epoch(images):
    seen = []
    model = model_of("ae")
    loss = model.loss

    def spy(x, *more):
        seen.append(x.clone())
        return loss(x, *more)

    model.loss = spy
    result = fit(model, images, epochs=3, overfit_batches=2)
    assert [r["step"] for r in result.history] == [2, 4, 6] and [len(x) for x in seen] == [16] * 6
    assert all(torch.equal(seen[i], seen[i % 2]) for i in range(6)) and not torch.equal(seen[0], seen[1])


def test_a_model_can_overfit_one_batch(images):
    history = fit(model_of("ae"), images, epochs=150, overfit_batches=1, lr=1e-2).history
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]


# ------------------------------------------------------------------------------------------------------- what is kept


def test_top_k_models_rank_and_load(images, tmp_path):
    val = images[0][:20]
    result = fit(model_of("ae"), images, epochs=6, val=val, top_k=3, lr=0.05, optimizer="sgd", clip=1.0, out=tmp_path)
    listed = json.loads((tmp_path / "top" / "top.json").read_text())
    wanted = sorted((r["val_loss"], r["step"]) for r in result.history)[:3]
    assert [(e["val_loss"], e["step"]) for e in listed] == wanted
    folders = {p.name for p in (tmp_path / "top").iterdir() if p.is_dir()}
    assert folders == {e["folder"] for e in listed} == {f"step-{s:09d}" for _, s in wanted}
    for entry in listed:
        model = aezoo.from_pretrained(tmp_path / "top" / entry["folder"])
        with torch.no_grad():
            assert float(model.loss(val).total) == pytest.approx(entry["val_loss"], rel=1e-5)
    assert same(aezoo.from_pretrained(tmp_path / "top" / listed[0]["folder"]), aezoo.from_pretrained(tmp_path))


def test_top_k_needs_validation(images, tmp_path):
    with pytest.raises(ValueError, match=r"top_k=2 ranks by the validation loss"):
        fit(model_of("ae"), images, epochs=1, top_k=2, out=tmp_path)


@pytest.mark.parametrize("keep", [2, 3])
def test_keep(images, tmp_path, keep):
    fit(model_of("ae"), images, steps=6, checkpoint_every=1, keep=keep, out=tmp_path)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{s:09d}" for s in range(7 - keep, 7)]


def test_a_dry_run_leaves_everything_as_it_was(images, tmp_path, monkeypatch, capsys):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    model = deep()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    result = fit(model, images, epochs=10**6, val=0.25, dry_run=True, out=tmp_path / "run", progress=True)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state()) and result.out is None and result.history[-1]["step"] == 2
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["temporary"]
    assert "dry run: two steps" in capsys.readouterr().out


def test_a_dry_run_finds_what_would_fail(images, tmp_path):
    model = model_of("ae")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(FloatingPointError):
        fit(model, images, lr=1e30, optimizer="sgd", dry_run=True)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
