"""Steps that are replayed from a tape: the same run, to the bit, as the steps as they are written."""

import random

import pytest
import torch
from conftest import OWN, assert_same_run, fit, model_of
from torch import nn

import aezoo
from aezoo.corruptions import Corruption
from aezoo.registry import MODELS
from aezoo.storage import read_tensors
from aezoo.train import loop
from aezoo.train.tape import Tape

DENSE = "mlp(widths=(32,), norm='batch', dropout=0.2)"


@pytest.fixture
def tapes(monkeypatch):
    """All `Taped` of a test, and how often their tapes ran."""
    made, original = [], loop.Taped

    class Counted(original):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)
            self.ran = 0

    run = Tape.run

    def counted(self):
        for t in made:
            t.ran += any(r.tape is self for r in t.records.values())
        run(self)

    monkeypatch.setattr(loop, "Taped", Counted)
    monkeypatch.setattr(Tape, "run", counted)
    return made


def both(build, data, tmp_path, **more):
    """Trains one as written and one from the tape, and compares everything that they leave in their folders."""
    more = {"epochs": 12, "val": 0.2, **more}
    for name, settings in (("written", {"compile": False}), ("taped", {})):
        results = fit(build(), data, out=tmp_path / name, **settings, **more)
    rows = (tmp_path / "written" / "metrics.jsonl").read_bytes()
    assert rows and rows == (tmp_path / "taped" / "metrics.jsonl").read_bytes()
    a, b = (read_tensors(tmp_path / n / "last" / "model.safetensors")[0] for n in ("written", "taped"))
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
    return results


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"optimizer": "sgd(momentum=0.9)", "clip": 0.1, "l1": 1e-4},
        {"ema": 0.9, "schedule": "cosine", "warmup": 5, "weight_decay": 0.1},
        {"precision": "bf16"},
        {"nonfinite": "skip", "log_every": 3},
        {"nonfinite": "rollback"},
        {"optimizer": "rmsprop"},
        {"freeze": ["encoder"]},
        {"checkpoint_every": 2, "overfit_batches": 2},
    ],
    ids=lambda more: ",".join(more),
)
@pytest.mark.parametrize("name", ["ae", "vae"])
def test_the_run_is_the_one_as_written(tapes, images, tmp_path, name, more):
    """With batch norm, dropout, noise, and a last batch of another size."""

    def build():
        torch.manual_seed(3)
        return aezoo.create_model(
            name, input_shape=(1, 12, 12), latent_dim=4, backbone=DENSE, corruption="masking(p=(0.1, 0.5))"
        )

    both(build, images, tmp_path, **more)
    (tape,) = tapes
    assert tape.ran and not tape.off


def build_any(name):
    backbone = dict.fromkeys(("conv_ae", "conv_vae"), "conv(widths=(4,))").get(
        name, "linear(tied=True)" if "tied" in name else "linear"
    )
    own = [OWN[b] for b in MODELS[name].backbones[:1] if b in OWN]
    chosen = {"backbone": own[0]} if own else {} if MODELS[name].backbones else {"backbone": backbone}
    torch.manual_seed(3)
    return aezoo.create_model(name, input_shape=(1, 8, 8), latent_dim=6, **chosen)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model(tapes, tmp_path, name):
    """Replayed or, where it may not be, as written: never another result."""
    both(lambda: build_any(name), torch.rand(40, 1, 8, 8), tmp_path, epochs=10, val=None)
    assert len(tapes) == len(build_any(name).stages())
    common = {"ae", "conv_ae", "sparse_ae", "denoising_ae", "contractive_ae", "tabular_ae", "vae", "beta_vae", "conv_vae", "iwae", "unet_denoiser"}  # fmt: skip
    assert name not in common or all(t.ran for t in tapes), [t.off for t in tapes]


def test_a_run_goes_on_from_where_it_was_killed(tapes, images, tmp_path):
    settings = {"epochs": 4, "val": 0.2, "seed": 5, "nonfinite": "skip", "checkpoint_every": 2}
    fit(model_of("vae"), images, out=tmp_path / "whole", **settings)
    fit(model_of("vae"), images, out=tmp_path / "parts", callbacks=lambda row: row["epoch"] < 2, **settings)
    fit(model_of("vae"), images, out=tmp_path / "parts", resume=True, **settings)
    assert len(tapes) == 3 and all(t.ran for t in tapes)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_what_comes_with_the_data_comes_along(tapes, images, tmp_path):
    def build():
        torch.manual_seed(3)
        return aezoo.create_model(
            "cvae", input_shape=(1, 12, 12), latent_dim=4, condition_dim=2, backbone="mlp(widths=(32,))"
        )

    both(build, (images[0], torch.rand(64, 2)), tmp_path)
    assert tapes[0].ran


# ------------------------------------------------------------------------------------------- what may not be replayed


class Odd(aezoo.BaseAE):
    """A model whose loss depends on more than tensors."""

    recordable = True
    kind = "counts"

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.count, self.log, self.factor, self.scales = 0, [], 1.0, {"recon": 1.0}

    def loss(self, x, target=None, condition=None):
        if self.kind == "changes x":
            x.mul_(0.5)
        loss = super().loss(x, target, condition)
        factor = 1.0
        if self.kind == "counts":
            self.count += 1
            factor = 1 + self.count
        elif self.kind == "remembers":
            self.log.append(1)
            factor = len(self.log)
        elif self.kind == "holds":
            self.newest = loss.total.detach()
        elif self.kind == "reads":
            factor = 2.0 if loss.total.item() > 0.1 else 1.0
        elif self.kind == "asks":
            factor = 2.0 if loss.total > 0.1 else 1.0
        elif self.kind == "lists":
            factor = 1 + loss.total.detach().tolist()
        elif self.kind == "numpy":
            factor = 1 + float(loss.total.detach().numpy())
        elif self.kind == "chooses":
            factor = loss.total.detach().view(1)[loss.total.detach().view(1) > 0.05].sum() + 1
        elif self.kind == "changes weights":
            with torch.no_grad():
                next(self.parameters()).mul_(0.999)
        elif self.kind == "quantile":
            factor = 1 + torch.quantile(x.flatten(1), 0.3, dim=1).mean()
        elif self.kind == "distance":
            factor = nn.functional.pairwise_distance(x.flatten(1), 0.5 * x.flatten(1)).mean()
        elif self.kind == "turns":
            factor = 1 + x.clone().squeeze_(1).transpose_(1, 2).triu().mean()
        elif self.kind == "gambles":
            factor = 1 + random.random()
        elif self.kind in ("told", "told inside", "told after"):
            factor = self.factor * self.scales["recon"]
        return loss._replace(total=factor * loss.total)


class TellsItself(Odd):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.register_buffer("steps", torch.zeros(()))

    def after_step(self):
        self.steps += 1
        self.factor = 1.0 if self.steps < 9 else 3.0


@pytest.mark.parametrize(
    ("kind", "why"),
    [("counts", "changes"), ("remembers", "changes"), ("holds", "changes"), ("reads", "host"), ("asks", "host"), ("lists", "host"),
     ("numpy", "host"), ("chooses", "host"), ("gambles", "changes"), ("changes x", "no buffers"), ("changes weights", "no buffers"),
     ("quantile", ""), ("distance", ""), ("turns", ""), ("told", ""), ("told inside", ""), ("told after", "")],
)  # fmt: skip
def test_what_a_replay_would_not_see(tapes, images, tmp_path, kind, why):
    """A loss that changes or reads more than tensors runs as written; what changes from outside is recorded anew."""

    class Mine(TellsItself if kind == "told after" else Odd):
        recordable = True

    Mine.kind = kind
    aezoo.register("mine")(Mine)

    def build():
        torch.manual_seed(3)
        random.seed(3)
        return aezoo.create_model("mine", input_shape=(1, 12, 12), latent_dim=4, backbone="mlp(widths=(32,))")

    class Tells(aezoo.Callback):
        def on_row(self, run, row):
            if row["epoch"] == 3:
                if kind == "told":
                    run.model.factor = 5.0
                if kind == "told inside":
                    run.model.scales["recon"] = 5.0

    result = both(build, images, tmp_path, epochs=6, callbacks=[Tells()])
    (tape,) = tapes
    assert why in tape.off and bool(tape.off) is bool(why)
    assert bool(tape.ran) is not bool(why)
    if kind.startswith("told") and kind != "told after":
        assert result.history[4]["loss"] > 2 * result.history[2]["loss"]


@pytest.mark.parametrize("where", ["module", "weight"])
def test_hooks_see_every_step(tapes, images, where):
    seen, model = [], model_of("ae")
    if where == "module":
        model.encoder.register_forward_hook(lambda m, x, y: seen.append(1))
    else:
        next(model.parameters()).register_hook(lambda g: seen.append(1))
    steps = fit(model, images, epochs=3).history[-1]["step"]
    assert len(seen) >= steps and not any(t.ran for t in tapes)


class Noise(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.own = torch.Generator().manual_seed(1)

    def forward(self, z):
        return z + 0.1 * torch.randn(z.shape, generator=self.own)


class Moody(nn.Module):
    recordable = True

    def forward(self, z):
        return z


@pytest.mark.parametrize("what", ["module", "model", "method", "function", "corruption"])
def test_what_is_not_ours_runs_as_written(tapes, images, tmp_path, what, capsys):
    """Nobody knows what Python does in there."""

    class Mine(aezoo.BaseAE):
        pass

    aezoo.register("mine")(Mine)

    class Half(Corruption):
        def __call__(self, x):
            return x / 2

    def build():
        model = model_of("mine" if what == "model" else "ae")
        if what == "module":
            model.decoder = nn.Sequential(Noise(), model.decoder)
        elif what == "method":
            model.loss = model.loss
        elif what == "function":
            model.likelihood.bend = lambda x: x
        elif what == "corruption":
            model.corruptions = [Half()]
        return model

    for settings in ({"compile": False}, {}):
        results = fit(build(), images, epochs=3, progress=True, **settings)
        assert not tapes
    said = capsys.readouterr().out
    name = {"module": "Noise", "model": "Mine", "method": "a method of", "function": "<lambda>", "corruption": "Half"}
    assert f"replay off ({name[what]}" in said and results.history


def test_a_class_says_that_it_is_recordable(tapes, images, tmp_path):
    def build():
        model = model_of("ae")
        model.decoder = nn.Sequential(Moody(), model.decoder)
        return model

    results = [fit(build(), images, epochs=3, **more) for more in ({"compile": False}, {})]
    assert tapes[0].ran and results[0].history[-1]["loss"] == results[1].history[-1]["loss"]


def test_hooks_that_come_later(tapes, images):
    seen = []

    class Hooks(aezoo.Callback):
        def on_row(self, run, row):
            if row["epoch"] == 2:
                next(run.model.parameters()).register_hook(lambda g: seen.append(1))

    fit(model_of("ae"), images, epochs=4, callbacks=[Hooks()])
    assert tapes[0].ran and tapes[0].off == "it has hooks" and len(seen) == 8


@pytest.mark.parametrize(
    "backbone", ["lstm(width=6)", "tcn(width=4, layers=2)", "transformer(width=8, layers=1, heads=2)"]
)
def test_series(tapes, tmp_path, backbone):
    def build():
        torch.manual_seed(3)
        return aezoo.create_model("ae", input_shape=(2, 20), latent_dim=4, backbone=backbone)

    both(build, torch.rand(64, 2, 20), tmp_path)
    assert tapes[0].ran and not tapes[0].off


def test_an_error_in_the_loss_is_the_user_s(tapes, images):
    """Where it is recorded, and of a kernel that only looks: a replay looks, too."""

    class Mine(aezoo.BaseAE):
        recordable = True
        fails_at = 0

        def loss(self, x, target=None, condition=None):
            loss = super().loss(x, target, condition)
            self.count = getattr(self, "count", 0) + bool(self.fails_at)
            if self.count and self.count == self.fails_at:
                raise ValueError("mine")
            shifted = torch.eye(2) * (self.shift - next(self.parameters()).detach().abs().sum())
            return loss._replace(total=loss.total + 0 * torch.linalg.cholesky(shifted).sum())

    aezoo.register("mine")(Mine)
    for at in (1, 2, 3):
        Mine.fails_at, Mine.shift = at, 1e9
        with pytest.raises(ValueError, match="^mine$"):
            fit(model_of("mine"), images, epochs=3)
    Mine.fails_at = 0
    ends = []
    for settings in ({"compile": False}, {}):
        model = model_of("mine")
        Mine.shift = float(next(model.parameters()).detach().abs().sum()) + 0.5
        with pytest.raises(RuntimeError, match="cholesky"):
            fit(model, images, epochs=30, lr=0.003, **settings)
        ends.append(model.state_dict())
    assert tapes[-1].ran and all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


@pytest.mark.parametrize("more", [{"accumulate": 2}, {"recompute": True}, {"profile": True}, {"compile": False}])
def test_what_is_asked_for_runs_as_written(tapes, images, more, capsys):
    fit(model_of("ae"), images, epochs=2, **more)
    assert not tapes


def test_the_line_says_so(images, capsys):
    fit(model_of("ae"), images, steps=1, progress=True)
    fit(model_of("ae"), images, steps=1, progress=True, accumulate=2)
    said = capsys.readouterr().out
    assert "| replay on" in said and "| replay off (accumulate and recompute run as written)" in said
