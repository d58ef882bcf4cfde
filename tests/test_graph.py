"""The step over tensors that stay in place, which a GPU records: here a recording is simply run again.

What only a GPU can show (that nothing in the step waits for the host, and that a replay gives the same bits) is in the last test."""

import pytest
import torch
from conftest import assert_same_run, make_images, model_of

import aezoo
from aezoo.train import graph, loop


class Recording:
    def __init__(self, work):
        self.replay = work


@pytest.fixture
def recorded(monkeypatch):
    """Turns recording on, on the CPU; `small` as asked."""
    settle, replays = loop.settle, []

    def use(small):
        def settled(hardware, *args):
            settle(hardware, *args)
            hardware.graph, hardware.small = True, small

        monkeypatch.setattr(loop, "settle", settled)

    def record(work, stream):
        def replay():
            replays.append(1)
            work()

        return Recording(replay)

    monkeypatch.setattr(graph, "record", record)
    return use, replays


def run(out=None, name="vae", n=100, **more):
    extra = {"corruption": "masking"} if name == "vae" else {}
    settings = {"epochs": 4, "batch_size": 4, "seed": 3, "val": 0.1, "clip": 1.0, "progress": False, "device": "cpu"}
    return aezoo.fit(model_of(name, **extra), make_images(n), out=out, **{**settings, **more})


@pytest.mark.parametrize("more", [{}, {"ema": 0.9}, {"schedule": "cosine", "warmup": 5}, {"nonfinite": "skip"}, {"optimizer": "adamw", "weight_decay": 0.1},
                                  {"groups": {"encoder.*": {"lr": 1e-4}}}, {"log_every": 7}])  # fmt: skip
def test_single_steps_are_those_of_the_loop(recorded, more):
    plain = run(**more)
    use, replays = recorded
    use(small=False)
    again = run(**more)
    assert len(replays) > 50
    for a, b in zip(plain.history, again.history):
        assert {k: v for k, v in a.items() if k not in ("samples_per_s", "seconds")} == pytest.approx(
            {k: v for k, v in b.items() if k not in ("samples_per_s", "seconds")}, rel=1e-5
        )
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain.model.parameters(), again.model.parameters()))


def test_several_steps_a_replay_without_draws_are_those_of_the_loop(recorded):
    plain = run(name="ae")
    use, replays = recorded
    use(small=True)
    again = run(name="ae")
    assert 0 < len(replays) < 40
    assert [r["loss"] for r in plain.history] == pytest.approx([r["loss"] for r in again.history], rel=1e-5)


@pytest.mark.parametrize("small", [False, True])
def test_resume_is_exact_whatever_was_replayed(recorded, tmp_path, small):
    recorded[0](small)
    settings = {"checkpoint_every": 9, "log_every": 11, "ema": 0.9}
    run(tmp_path / "a", **settings)
    run(tmp_path / "b", callbacks=[lambda row: row["step"] < 40], **settings)
    run(tmp_path / "b", resume=True, **settings)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_stages_are_recorded_each(recorded):
    recorded[0](True)
    model = aezoo.create_model("stacked_denoising_ae", input_shape=(1, 12, 12), latent_dim=4, backbone="linear")
    result = aezoo.fit(model, make_images(64)[0], epochs=8, batch_size=4, progress=False, device="cpu")
    assert result.history[0]["stage"] != result.history[-1]["stage"]
    assert result.history[-1]["loss"] < result.history[4]["loss"]


def test_replays_cross_no_row_and_no_checkpoint(recorded):
    recorded[0](True)
    seen = []

    class Look(aezoo.Callback):
        def on_row(self, run, row):
            seen.append(row["step"])

    run(log_every=10, callbacks=[Look()], val=None, n=128)
    assert seen == sorted({*range(10, 129, 10), 32, 64, 96, 128})


@pytest.mark.parametrize(("more", "why"), [({"accumulate": 2}, "accumulate"), ({"optimizer": "rmsprop"}, "no kernel"), ({"profile": True}, "looks at every step")])  # fmt: skip
def test_what_cannot_be_recorded_runs_as_written(recorded, capsys, more, why):
    recorded[0](False)
    run(progress=True, epochs=1, **more)
    said = capsys.readouterr().out
    assert "CUDA graph off" in said and why in said
    assert not recorded[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["vae", "conv_vae", "sparse_ae"])
def test_on_a_gpu_nothing_waits_and_a_replay_gives_the_bits_of_the_step(name, monkeypatch):
    original = loop._Trainer.one_step

    def strict(self, window):
        torch.cuda.set_sync_debug_mode("error" if self.step > 40 else "default")
        try:
            original(self, window)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop._Trainer, "one_step", strict)
    model = aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=4)
    aezoo.fit(model, make_images(512), epochs=3, batch_size=8, device="cuda", progress=False)
    monkeypatch.setattr(graph, "WARM_UP", 10**9)
    written = aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=4)
    written.load_state_dict(model.state_dict())
    replayed = aezoo.fit(
        model, make_images(512), epochs=1, batch_size=8, device="cuda", deterministic=True, progress=False
    )
    monkeypatch.undo()
    as_written = aezoo.fit(written, make_images(512), epochs=1, batch_size=8, device="cuda", deterministic=True, progress=False)  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(replayed.model.parameters(), as_written.model.parameters()))
