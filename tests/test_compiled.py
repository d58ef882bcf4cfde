"""The step as one graph: the same run as the step as it is written.

What torch's compiler traces is run here kernel by kernel (`aot_eager`), which takes seconds less than generating code for it."""

import pytest
import torch
from conftest import assert_same_run, fit, model_of, state_of
from test_finite import Poisoned, bad_step, poisoned_fit

import aezoo
from aezoo.train import loop, step, update


def filtered(options):
    """Without those that only the generator of code knows."""
    return {"guard_filter_fn": options["guard_filter_fn"]}


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch, request):
    if "slow" not in request.keywords:
        original = torch.compile
        monkeypatch.setattr(
            torch,
            "compile",
            lambda f, dynamic, options: original(f, backend="aot_eager", dynamic=dynamic, options=filtered(options)),
        )
    monkeypatch.setattr("aezoo.pictures.draw_run", lambda *args: ([], []))


def normed(activation="relu"):
    torch.manual_seed(3)
    backbone = f"mlp(widths=(32,), norm='batch', activation='{activation}')"
    return aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=4, backbone=backbone)


def assert_close(a, b, tolerance=1e-5):
    for x, y in zip(a.history, b.history, strict=True):
        assert x.keys() == y.keys()
        assert all(x[k] == pytest.approx(y[k], rel=1e-4) for k in x if k not in ("samples_per_s", "seconds", "stage"))
    there = b.model.state_dict()
    assert all(torch.allclose(v.float(), there[k].float(), atol=tolerance) for k, v in a.model.state_dict().items())


@pytest.mark.parametrize(
    "more",
    [
        {"optimizer": "sgd", "lr": 0.1, "clip": 0.5, "l1": 1e-4, "val": 0.25, "ema": 0.9},
        {"optimizer": "sgd", "lr": 0.1, "accumulate": 2, "epochs": 1},
    ],
    ids=["whole", "accumulated"],
)
def test_the_run_is_the_one_as_written(images, more):
    """Not with Adam: it blows up the rounding noise of gradients that are zero, as those of biases before a batch norm are."""
    settings = {"epochs": 2, "batch_size": 24, **more}
    assert_close(*(fit(normed(), images, compile=on, **settings) for on in (True, False)), 1e-4)


def test_adam_on_every_weight_is_the_one_as_written(images):
    settings = {"epochs": 3, "schedule": "cosine", "weight_decay": 0.01}
    assert_close(*(fit(model_of("ae"), images, compile=on, **settings) for on in (True, False)))


def test_each_stage_has_its_own_weights(images):
    def run(on):
        torch.manual_seed(3)
        model = aezoo.create_model(
            "stacked_denoising_ae", input_shape=(1, 12, 12), latent_dim=4, backbone="linear", corruption="none"
        )
        return fit(model, images[0], epochs=4, optimizer="sgd", compile=on)

    assert_close(run(True), run(False))


@pytest.mark.parametrize(("accumulate", "checks"), [(1, 0), (2, 4)])
def test_the_graph_goes_from_the_batch_to_what_the_optimiser_takes(images, monkeypatch, accumulate, checks):
    """Where a step is one batch, nothing is checked or clipped outside it."""
    calls = []
    check = update.Update.check
    monkeypatch.setattr(update.Update, "check", lambda self, values: (calls.append(1), check(self, values)))
    fit(model_of("ae"), images, steps=4, accumulate=accumulate, compile=True, clip=1.0)
    assert len(calls) == checks


@pytest.mark.parametrize(("policy", "optimizer"), [("skip", "rmsprop"), ("rollback", "sgd")])
def test_what_is_not_finite_is_passed_over_as_in_the_step_as_written(monkeypatch, policy, optimizer):
    monkeypatch.setattr("aezoo.data.datasets.DatasetSource.check", lambda *_: (0.0, 1.0))
    settings = {"nonfinite": policy, "optimizer": optimizer, "lr": 1e-3, "epochs": 2}
    a, b = (poisoned_fit(normed(), compile=on, **settings) for on in (True, False))
    assert [row["skipped"] for row in a.history] == [1, 1]
    assert_close(a, b, 1e-4)
    assert all(torch.isfinite(v).all() for v in a.model.state_dict().values())


def test_raise_leaves_the_state_of_the_step_before(monkeypatch):
    """Running means and counters of batches, too."""
    monkeypatch.setattr("aezoo.data.datasets.DatasetSource.check", lambda *_: (0.0, 1.0))
    monkeypatch.setattr("aezoo.train.finite.explain", lambda t, first: f"step {first} was bad")
    model, clean, bad = normed(), normed(), bad_step(seed=5)
    assert bad > 1
    with pytest.raises(FloatingPointError, match=f"step {bad} was bad"):
        poisoned_fit(model, compile=True, seed=5)
    fit(clean, aezoo.load_data(Poisoned(bad=-1), workers=0), steps=bad - 1, compile=True, seed=5)
    there = clean.state_dict()
    assert all(torch.equal(v, there[k]) for k, v in model.state_dict().items())


def test_resume_is_exact_to_the_bit_and_checkpoints_are_what_they_were(images, tmp_path, monkeypatch):
    def run(out, on=True, **more):
        return fit(normed(), images, out=out, epochs=2, ema=0.9, schedule="cosine", compile=on, **more)

    class Killed(Exception):
        pass

    run(tmp_path / "whole")
    run(tmp_path / "written", on=False)
    original = loop._Trainer.one_step

    def dies(self, window):
        if self.step == 5:
            raise Killed
        original(self, window)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Trainer, "one_step", dies)
        with pytest.raises(Killed):
            run(tmp_path / "parts", checkpoint_every=5)
    run(tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    (_, ours), (_, written) = state_of(tmp_path / "whole"), state_of(tmp_path / "written")
    assert ours.keys() == written.keys()
    assert all(ours[k].shape == v.shape and ours[k].dtype == v.dtype for k, v in written.items())


def test_no_run_takes_the_graph_of_another(images):
    """Two models of the same shapes and numbers, which differ in a module only; torch keeps graphs by the code that was compiled."""
    settings = {"epochs": 1, "optimizer": "sgd", "lr": 0.1}
    for activation in ("relu", "silu"):
        assert_close(*(fit(normed(activation), images, compile=on, **settings) for on in (True, False)), 1e-4)


def test_what_a_callback_sets_counts_from_the_next_step_on(images):
    class Heavier(aezoo.Callback):
        def on_row(self, run, row):
            run.model.beta = 1e4

    settings = {"epochs": 2, "optimizer": "sgd(momentum=0.0)", "lr": 1e-6}
    losses = [
        [row["loss"] for row in fit(model_of("vae"), images, compile=on, callbacks=more, **settings).history]
        for on, more in ((True, Heavier()), (False, Heavier()), (False, ()))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][1] > 2 * losses[2][1]


def test_torch_is_asked_few_questions_before_a_step(images, monkeypatch):
    asked = []
    original = step.worth_asking

    def counted(guards):
        keep = original(guards)
        asked.append((sum(keep), len(keep), {g.guard_type for g, k in zip(guards, keep) if k}))
        return keep

    monkeypatch.setattr(step, "worth_asking", counted)
    fit(normed(), images, epochs=1, compile=True)
    assert len(asked) == 1
    for kept, of, kinds in asked:
        assert kept < of / 3 and not kinds & {"CLOSURE_MATCH", "MODULE_MATCH", "NOT_PRESENT_IN_GENERIC_DICT"}


@pytest.mark.slow
def test_the_generated_code_trains_as_written(images):
    """Check, clipping, an L1 penalty and batch norm in one graph; noise on the data, in the layers and on the code is the same draws."""
    settings = {"epochs": 2, "optimizer": "sgd", "lr": 1e-3, "clip": 0.5, "l1": 1e-4}

    def run(on):
        torch.manual_seed(3)
        backbone = "mlp(widths=(32,), norm='batch', dropout=0.3)"
        model = aezoo.create_model(
            "vae", input_shape=(1, 12, 12), latent_dim=4, backbone=backbone, corruption="masking"
        )
        return fit(model, images, compile=on, **settings)

    assert_close(run(True), run(False), 1e-4)
