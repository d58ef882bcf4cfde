"""Losses and gradients that are not finite: no step is taken with one, whatever follows."""

import pytest
import torch
from conftest import assert_same_run, fit, make_images, model_of, state_of

import aezoo
from aezoo.train import loop


class Poisoned(torch.utils.data.Dataset):
    """Images of which one is not finite."""

    def __init__(self, bad=40):
        self.x, self.bad = make_images(64)[0], bad

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] * float("inf") if i == self.bad else self.x[i]


def bad_step(seed=0):
    """The step of the first epoch that meets the poisoned sample (batches of 16, from 1)."""
    order = aezoo.load_data(make_images(64)[0]).order(loop.mix_seed(seed, 0)).tolist()
    return order.index(40) // 16 + 1


def poisoned_fit(model, **more):
    return fit(model, aezoo.load_data(Poisoned(bad=40), workers=0), **{"epochs": 2, **more})


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch):
    """The poisoned samples are to reach the loop."""
    monkeypatch.setattr("aezoo.data.datasets.DatasetSource.check", lambda *_: (0.0, 1.0))


def normed():
    """With batch norm: its running means see each batch before anyone knows that it is bad."""
    torch.manual_seed(3)
    return aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=4, backbone="mlp(widths=(32,), norm='batch')")


@pytest.mark.parametrize(
    ("optimizer", "build"),
    [(o, model_of) for o in ("adam", "adamw", "sgd", "rmsprop", "adam(amsgrad=True)")] + [("adam", normed), ("rmsprop", normed)],
)  # fmt: skip
def test_raise_names_step_term_and_activations_and_leaves_the_weights_of_the_step_before(tmp_path, optimizer, build):
    seed = next(s for s in range(9) if 1 < bad_step(s) < 4)  # good steps before it, and more after it
    args = ["ae"] if build is model_of else []
    model, clean, bad = build(*args), build(*args), bad_step(seed)
    with pytest.raises(FloatingPointError, match=rf"step {bad} \(epoch 1\): recon .*Largest activations there: \w+.*weights are those of step {bad - 1}"):  # fmt: skip
        poisoned_fit(model, out=tmp_path, optimizer=optimizer, seed=seed)
    fit(clean, aezoo.load_data(Poisoned(bad=-1), workers=0), steps=bad - 1, optimizer=optimizer, seed=seed)
    there = clean.state_dict()
    assert all(torch.equal(v, there[k]) for k, v in model.state_dict().items())
    assert all(torch.isfinite(v).all() for v in state_of(tmp_path)[1].values())


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_buffer_that_is_not_finite_under_a_finite_loss_is_never_saved(tmp_path, value):
    @aezoo.register("drifting_ae")
    class Drifting(aezoo.BaseAE):
        """A buffer that nothing reads becomes `value` after the third step; another is an infinity from the start, as masks are."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("mask", torch.tensor([0.0, -float("inf")]))

        def after_step(self):
            self.seen += 1
            self.seen[self.seen > 3] = float(value)

    def go(steps, **more):
        fit(model_of("drifting_ae"), make_images(64)[0], steps=steps, checkpoint_every=1, keep=9, out=tmp_path, **more)

    go(3)
    with pytest.raises(FloatingPointError, match=r"up to step 4\): the weights \(seen\)"):
        go(9, resume=True)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [f"step-{s:09d}" for s in range(4)]
    assert aezoo.from_pretrained(tmp_path).seen == 3


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("backbone", ["mlp(widths=(32,))", "mlp(widths=(32,), norm='batch')"])
def test_skip_goes_on_and_counts(tmp_path, optimizer, backbone):
    torch.manual_seed(3)
    model = aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=4, backbone=backbone)
    result = poisoned_fit(model, nonfinite="skip", optimizer=optimizer, out=tmp_path, epochs=3, lr=1e-2)
    assert [row["skipped"] for row in result.history] == [1, 1, 1]
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_skip_is_the_run_without_that_step():
    """One step of sgd on the good batches, in their order, by hand."""
    model, other = model_of("ae"), model_of("ae")
    poisoned_fit(model, nonfinite="skip", epochs=1, optimizer="sgd(momentum=0.0)", lr=0.1)
    order = aezoo.load_data(make_images(64)[0]).order(loop.mix_seed(0, 0))
    for index in order.split(16):
        if 40 not in index:
            other.loss(make_images(64)[0][index]).total.backward()
            with torch.no_grad():
                for p in other.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), other.parameters()))


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_rollback_goes_on_behind_the_bad_batch(tmp_path, capsys, optimizer):
    def go(out, **more):
        return poisoned_fit(model_of("ae"), nonfinite="rollback", epochs=3, out=out, optimizer=optimizer, **more)

    result = go(tmp_path / "a", progress=True)
    assert f"step {bad_step()} was not finite: back to the weights of step 0" in capsys.readouterr().out
    assert [row["skipped"] for row in result.history] == [1, 1, 1]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert all(torch.isfinite(v).all() for v in result.model.state_dict().values())
    go(tmp_path / "b", checkpoint_every=1, callbacks=[lambda row: row["epoch"] < 2])
    go(tmp_path / "b", resume=True, checkpoint_every=1)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_rollback_gives_up_when_everything_is_bad(tmp_path):
    class AllBad(Poisoned):
        def __getitem__(self, i):
            return self.x[i] * float("nan")

    with pytest.raises(FloatingPointError, match="not finite at step"):
        fit(model_of("ae"), aezoo.load_data(AllBad(), workers=0), nonfinite="rollback", epochs=2, out=tmp_path)


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_found():
    @aezoo.register("steep_ae")
    class Steep(aezoo.BaseAE):
        """sqrt has an infinite slope at 0."""

        def bottleneck(self, h, sample):
            return h, {"steep": (h * 0).sum(1).abs().sqrt()}

    try:
        with pytest.raises(FloatingPointError, match=r"at step 1 .*the gradient"):
            fit(model_of("steep_ae"), make_images(64)[0], epochs=1)
    finally:
        del aezoo.registry.MODELS.entries["steep_ae"]


@pytest.mark.parametrize("bad", [0.0, 1.0])
@pytest.mark.parametrize("looks", [True, False])
def test_buffers_of_any_type_and_layout_come_back(bad, looks):
    """One that moves for the first time, too; a bad step may have left NaN anywhere. Where nobody looks, as on a GPU, as well."""
    from aezoo.train.finite import Kept

    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3)
            self.register_buffer("grid", torch.arange(12.0).view(3, 4).t())  # not contiguous
            self.register_buffer("coarse", torch.ones(5, dtype=torch.float16))
            self.register_buffer("seen", torch.zeros(2, dtype=torch.bool))
            self.register_buffer("empty", torch.zeros(0))
            self.register_buffer("fixed", torch.randn(4))

        def forward(self, x):
            self.norm(x)
            self.grid.mul_(float("nan"))
            self.coarse.add_(1)
            self.seen.logical_not_()

    model = Counts()
    kept = Kept(model)
    assert kept.looks
    kept.looks = looks
    for _ in range(3):
        before = {k: v.clone() for k, v in model.named_buffers()}
        kept.keep()
        model(torch.full((4, 3), float("inf")))
        after = {k: v.clone() for k, v in model.named_buffers()}
        kept.put_back(torch.tensor(bad))
        wanted = before if bad else after
        assert all(torch.equal(v.nan_to_num(7.0), wanted[k].nan_to_num(7.0)) for k, v in model.named_buffers())
    assert "fixed" not in kept.moved and {"grid", "coarse", "seen", "norm.num_batches_tracked"} <= kept.moved
