"""Callbacks, loggers, profiles, what is restored after a run, and the same names in Python, YAML and flags."""

import json
import re
import sys
import time
import types

import pytest
import torch
import yaml
from conftest import fit, model_of
from test_features import deep, same

import aezoo
from aezoo.cli import main
from aezoo.train import hardware
from aezoo.train.hooks import HOOKS, Hooks

# ----------------------------------------------------------------------------------------------------------- callbacks


class Recorder(aezoo.Callback):
    def __init__(self):
        self.seen = []

    def on_start(self, run):
        self.seen.append(("start", run.step, run.total))

    def on_step(self, run):
        self.seen.append(("step", run.step))

    def on_row(self, run, row):
        self.seen.append(("row", row["step"]))

    def on_best(self, run, row):
        self.seen.append(("best", row["step"]))

    def on_save(self, run, path):
        assert (path / "manifest.json").is_file()
        self.seen.append(("save", int(path.name[5:])))

    def on_end(self, run, result):
        self.seen.append(("end", result.stopped, result.history is run.rows))


def test_every_hook_is_called_in_order(images, tmp_path):
    a, b = Recorder(), Recorder()
    fit(model_of("ae"), images, epochs=2, batch_size=32, val=images, checkpoint_every=2, out=tmp_path, callbacks=[a, b])
    epochs = [[("step", s - 1), ("step", s), ("best", s), ("save", s), ("row", s)] for s in (2, 4)]
    assert a.seen == [("save", 0), ("start", 0, 4), *epochs[0], *epochs[1], ("end", "finished", True)]
    assert a.seen == b.seen
    fit(model_of("ae"), images, epochs=3, batch_size=32, val=images, checkpoint_every=2, out=tmp_path, resume=True,
        callbacks=(later := Recorder()))  # fmt: skip
    assert later.seen[0] == ("start", 4, 6) and later.seen[-1] == ("end", "finished", True)


def test_false_from_any_callback_ends_the_run_and_all_see_the_row(images):
    class Ends(aezoo.Callback):
        def on_row(self, run, row):
            return row["epoch"] < 2

    after = []
    result = fit(model_of("ae"), images, epochs=9, callbacks=[Ends(), after.append])
    assert result.stopped == "callback" and after == result.history and len(after) == 2


def test_there_is_a_handful_of_hooks():
    assert [name for name in vars(aezoo.Callback) if not name.startswith("_")] == list(HOOKS) and len(HOOKS) <= 8


def test_hooks_that_are_not_overridden_are_not_called():
    class One(aezoo.Callback):
        def on_best(self, run, row):
            return 7

    hooks = Hooks([One(), print])
    assert hooks.step == [] and {k: len(v) for k, v in hooks.by_name.items() if v} == {"on_best": 1, "on_row": 1}
    assert hooks.call("on_best", None, {}) == [7]


@pytest.mark.parametrize("wrong", [Recorder, [Recorder], "print", 3, [None]])
def test_what_is_no_callback(images, wrong):
    with pytest.raises(TypeError, match=r"callbacks.* takes functions of a row, and instances of aezoo\.Callback"):
        fit(model_of("ae"), images, steps=1, callbacks=wrong)


def test_what_a_callback_draws_does_not_touch_the_run(images):
    class Draws(aezoo.Callback):
        def on_step(self, run):
            torch.rand(3)

    assert same(
        fit(model_of("vae"), images, steps=5, callbacks=Draws()).model, fit(model_of("vae"), images, steps=5).model
    )


# ------------------------------------------------------------------------------------------------------------- loggers


@pytest.mark.pictures
def test_tensorboard(images, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fit(model_of("vae"), images, epochs=2, val=0.25, logger="tensorboard", out=tmp_path)
    fit(model_of("vae"), images, epochs=3, val=0.25, logger="tensorboard", out=tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"loss", "recon", "kl", "val_loss", "lr", "samples_per_s"} <= set(tags["scalars"])
    points = events.Scalars("val_loss")
    assert [p.step for p in points] == [3, 6, 9]
    assert [p.value for p in points][:2] == pytest.approx([r["val_loss"] for r in result.history], rel=1e-6)
    assert {"reconstructions", "samples", "curves", "latent"} <= set(tags["images"])
    assert events.Images("curves")[0].width > 100


def test_pictures_in_tensorboard(images, tmp_path, monkeypatch):
    """Reconstructions and samples at every evaluation, by the weights of that step; the run is the one without them."""
    import io

    import numpy as np
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from aezoo.train import loggers

    monkeypatch.setattr(loggers, "IMAGES_EVERY", 0.0)
    monkeypatch.setattr("aezoo.pictures.draw_run", lambda *given: ([], []))
    options = {"epochs": 2, "val": 0.25, "seed": 5}
    with_them = fit(model_of("vae"), images, logger="tensorboard", out=tmp_path, **options)
    assert same(with_them.model, fit(model_of("vae"), images, **options).model)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0})
    events.Reload()
    for tag in ("held-out/reconstructions", "held-out/samples"):
        assert [e.step for e in events.Images(tag)] == [3, 6]
    first, last = (
        np.asarray(Image.open(io.BytesIO(e.encoded_image_string))) for e in events.Images("held-out/reconstructions")
    )
    top = slice(0, 60)  # 12 pixels magnified by 5, and a gap of 2
    assert (first[top] == last[top]).all() and (first[62:] != last[62:]).any()
    held = aezoo.load_data(images).split(0.25, 5)[1].peek(8, torch.device("cpu")).x
    for row, x in ((slice(0, 60), held), (slice(62, 122), with_them.model.reconstruct(held).detach())):
        shown = np.stack([last[row][::5, 62 * j : 62 * j + 60 : 5, 0] for j in range(8)])
        assert abs(shown / 255 - x[:, 0].clamp(0, 1).numpy()).max() < 0.01


def test_a_picture_that_fails_ends_no_training(images, tmp_path, monkeypatch):
    monkeypatch.setattr("aezoo.pictures.grid", lambda rows: 1 / 0)
    with pytest.warns(UserWarning, match="no pictures in TensorBoard: ZeroDivisionError"):
        result = fit(model_of("ae"), images, epochs=2, logger="tensorboard", out=tmp_path)
    assert len(result.history) == 2


def test_tensorboard_that_is_missing(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'aezoo\[tensorboard\]'"):
        fit(model_of("ae"), images, steps=1, logger="tensorboard")


def test_wandb(images, tmp_path, monkeypatch):
    log = []

    class Session:
        id = "abc"

        def log(self, values, step):
            log.append((step, values))

        def finish(self):
            log.append("finished")

    stub = types.ModuleType("wandb")
    stub.init = lambda **options: log.append(options) or Session()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    result = fit(model_of("vae"), images, epochs=2, logger=["wandb"], out=tmp_path / "my_run")
    options = log[0]
    assert (options["name"], options["id"], options["resume"]) == ("my_run", None, "allow")
    assert (
        options["config"]["model"] == "vae" and options["config"]["latent_dim"] == 4 and options["config"]["lr"] == 1e-3
    )
    assert [step for step, _ in log[1:3]] == [4, 8] and log[3] == "finished"
    assert [v["loss"] for _, v in log[1:3]] == [r["loss"] for r in result.history]
    log.clear()
    fit(model_of("vae"), images, epochs=3, logger=["wandb"], out=tmp_path / "my_run", resume=True)
    assert log[0]["id"] == "abc"


def test_loggers_that_are_not_there(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'aezoo\[wandb\]'"):
        fit(model_of("ae"), images, steps=1, logger="wandb")
    with pytest.raises(ValueError, match="Did you mean 'tensorboard'"):
        fit(model_of("ae"), images, steps=1, logger="tensorbord")


# -------------------------------------------------------------------------------------- what is set and put back again


@pytest.mark.parametrize("fails", [False, True])
def test_deterministic_and_threads_are_restored(images, fails):
    inside = []

    class Look(aezoo.Callback):
        def on_step(self, run):
            inside.append((torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()))
            if fails:
                raise KeyError("from a callback")

    def flags():
        cudnn = torch.backends.cudnn
        return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.get_num_threads(), cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision())  # fmt: skip

    torch.set_num_threads(2)
    before = flags()
    try:
        fit(model_of("ae"), images, steps=2, deterministic=True, callbacks=Look())
        assert not fails
    except KeyError:
        assert fails
    assert inside[0] == (True, 1) and flags() == before


def test_deterministic_gives_the_same_bits(images):
    a, b = (fit(model_of("vae"), images, epochs=2, deterministic=on).model for on in (True, False))
    assert same(a, b)


@pytest.mark.parametrize("fails", [False, True])
def test_the_allocator_is_restored(images, monkeypatch, fails):
    calls = []
    libc = types.SimpleNamespace(mallopt=lambda *a: calls.append(a), malloc_trim=lambda n: calls.append("trim"))
    monkeypatch.setattr(hardware, "_glibc", lambda: libc)

    def during(row):
        calls.append("row")
        if fails:
            raise KeyError

    try:
        fit(model_of("ae"), images, epochs=1, allocator="keep", callbacks=during)
    except KeyError:
        assert fails
    at = calls.index("row")
    mmap_max, trim = -4, -1
    assert (mmap_max, 0) in calls[:at] and (mmap_max, 65536) in calls[at:] and calls[-1] == "trim"
    assert any(c[0] == trim for c in calls[at:] if c != "trim" and c != "row")
    for kind in ("prime", "system"):
        calls.clear()
        fit(model_of("ae"), images, epochs=1, allocator=kind)
        assert calls == []
    with pytest.raises(ValueError, match="allocator='kep'.*Did you mean 'keep'"):
        fit(model_of("ae"), images, epochs=1, allocator="kep")


# ------------------------------------------------------------------------------------------------------------- profile


def test_the_profile_adds_up_and_changes_nothing(images, capsys):
    result = fit(deep(), images, epochs=5, profile=True, progress=True)
    out = capsys.readouterr().out
    rows = dict(re.findall(r"^  (data|forward|backward|optimiser|host|step) +([\d.]+) ms", out, re.MULTILINE))
    assert list(rows) == ["data", "forward", "backward", "optimiser", "host", "step"]
    times = {k: float(v) for k, v in rows.items()}
    whole = times.pop("step")
    assert sum(times.values()) == pytest.approx(whole, abs=0.003) and all(v > 0 for v in times.values())
    shares = [float(v) for v in re.findall(r"ms +([\d.]+) %", out)]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    speed = float(re.search(r"([\d,]+) samples/s", out)[1].replace(",", ""))
    assert speed == pytest.approx(16 / (whole / 1e3), rel=0.05)
    assert "of 16 samples" in out and "GFLOP a step" in out and out.count("profile:") == 1
    assert same(result.model, fit(deep(), images, epochs=5).model)


def test_the_profile_tells_what_comes_between_two_steps(images, capsys):
    """A callback at every step is the host's time, and no phase's beside it."""

    class Slow(aezoo.Callback):
        def on_step(self, run):
            time.sleep(0.03)

    fit(deep(), images, epochs=3, profile=True, progress=True, callbacks=Slow())
    rows = re.findall(r"^  (data|forward|backward|optimiser|host) +([\d.]+) ms", capsys.readouterr().out, re.MULTILINE)
    times = {k: float(v) for k, v in rows}
    assert times.pop("host") >= 30 and all(v < 30 for v in times.values())


def test_the_profile_counts_the_arithmetic(images, capsys):
    """Forward 2 FLOPs a weight and sample; backward the same for the weights, and once more for all inputs but the first's."""
    fit(model_of("ae"), images, epochs=2, profile=True, progress=True)
    found = float(re.search(r"([\d.]+) GFLOP a step", capsys.readouterr().out)[1])
    weights = [p.numel() for p in model_of("ae").parameters() if p.dim() > 1]
    assert found == pytest.approx(2 * 16 * (3 * sum(weights) - weights[0]) / 1e9, abs=6e-4)


# ------------------------------------------------------------------------------------------ the same names everywhere


def test_yaml_flags_and_python_agree(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plain = {"model": {"name": "ae", "latent_dim": 3, "backbone": "mlp(widths=(16,))"},
             "data": {"source": "digits", "limit": 200},
             "train": {"epochs": 2, "batch_size": 50, "log_every": 3, "groups": {"encoder.*": {"lr": 1e-4}},
                       "overfit_batches": 3, "clip": 1.0, "device": "cpu"}}  # fmt: skip
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(plain))
    main(["train", "my.yaml", "--out", "a", "--profile"])
    assert "profile: medians of" in capsys.readouterr().out
    main(["train", "--model", "ae", "--model.latent_dim", "3", "--model.backbone", "mlp(widths=(16,))", "--data", "digits",
          "--data.limit", "200", "--train.epochs", "2", "--train.batch_size", "50", "--train.log_every", "5",
          "--train.log_every=3", "--train.groups", '{"encoder.*": {"lr": 1e-4}}', "--train.overfit_batches", "3",
          "--train.clip", "1", "--train.device", "cpu", "--train.val", "null", "--out", "b"])  # fmt: skip
    assert "profile:" not in capsys.readouterr().out
    torch.manual_seed(0)
    model = aezoo.create_model("ae", input_shape=(1, 8, 8), latent_dim=3, backbone="mlp(widths=(16,))")
    fit(model, aezoo.load_data("digits", limit=200), out="c", **plain["train"])
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in "abc"]
    assert rows[0] == rows[1] == rows[2] and [json.loads(r)["step"] for r in rows[0].splitlines()] == [3, 6]
    written = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["train"]
    assert written["groups"] == {"encoder.*": {"lr": 1e-4}} and written["profile"] is True and written["log_every"] == 3


def test_small_numbers_in_a_yaml_file_are_numbers(tmp_path, monkeypatch):
    """YAML 1.1 reads 1e-4 as text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(
        "model: {name: ae, backbone: linear}\ndata: {source: digits, limit: 40}\n"
        "train: {steps: 1, lr: 1e-2, device: cpu, groups: {'encoder.*': {lr: 1e-4}}}\n"
    )
    main(["train", "my.yaml", "--out", "a"])
    written = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["train"]
    assert written["groups"] == {"encoder.*": {"lr": 1e-4}} and written["lr"] == 1e-2


@pytest.mark.parametrize("at", ["before the recipe", "at the end"])
def test_bare_flags(tmp_path, monkeypatch, capsys, at):
    monkeypatch.chdir(tmp_path)
    bare = ["--dry_run", "--profile"]
    rest = ["ae", "--data", "digits", "--data.limit", "100", "--train.device", "cpu"]
    main(["train", *(bare + rest if at == "before the recipe" else rest + bare)])
    out = capsys.readouterr().out
    assert "dry run: two steps" in out and not list(tmp_path.iterdir())
    main(["train", *rest, "--dry_run", "false", "--train.steps", "1"])
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["ae-digits"]


# ------------------------------------------------------------------------------------------------------------- compile


@pytest.mark.slow
def test_a_compiled_step_equals_the_eager_one(images):
    """With batch norm, accumulation, an L1 penalty and clipping; running statistics, too.

    Not with Adam: it blows up the rounding noise of gradients that are zero, as those of biases before a batch norm are."""
    more = {"epochs": 2, "optimizer": "sgd", "lr": 0.1, "accumulate": 2, "l1": 1e-4, "clip": 0.5, "val": 0.25}
    a, b = (fit(deep(), images, compile=on, **more) for on in (True, False))
    for x, y in zip(a.history, b.history):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-4) and x["val_loss"] == pytest.approx(
            y["val_loss"], rel=1e-4
        )
    there = b.model.state_dict()
    assert all(torch.allclose(v.float(), there[k].float(), atol=1e-4) for k, v in a.model.state_dict().items())
