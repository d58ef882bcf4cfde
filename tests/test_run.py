"""The run folder: what a run leaves behind, and how it goes on."""

import signal
import threading

import pytest
import torch
from conftest import assert_same_run, fit, model_of, state_of

import aezoo
from aezoo.train.run import bare


@pytest.mark.parametrize("name", ["vae", "k_sparse_ae", "sparse_ae", "denoising_ae", "stacked_denoising_ae"])
@pytest.mark.parametrize("stop", [5, 8, 9])
def test_resume_is_exact_to_the_bit(images, tmp_path, name, stop):
    """Stopped in the middle of an epoch, or at its end, and resumed: weights, optimiser, average, rows and best are equal."""

    def run(out, **more):
        extra = {"k_sparse_ae": {"anneal": 12}, "sparse_ae": {"penalty": "kl"}, "vae": {"kl_warmup": 9}}.get(name, {})
        model = model_of(name, corruption="masking", **extra)
        return fit(
            model, images, out=out, epochs=5, val=0.25, ema=0.9, schedule="cosine", accumulate=2, batch_size=9, **more
        )

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole)

    class Killed(Exception):
        pass

    from aezoo.train import loop

    original = loop._Trainer.one_step

    def dies(self, window):
        if self.step == stop:
            raise Killed
        original(self, window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Trainer, "one_step", dies)
        with pytest.raises(Killed):
            run(parts, checkpoint_every=stop)
    run(parts, resume=True)
    assert_same_run(whole, parts)


@pytest.mark.pictures
def test_run_folder(images, tmp_path, capsys):
    out = tmp_path / "run"
    result = aezoo.fit(model_of(), images, epochs=2, val=0.2, out=out, device="cpu")
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    pictures = {f"pictures/{n}.png" for n in ("reconstructions", "samples", "curves", "latent")}
    newest = {
        f"checkpoints/step-{s:09d}/{n}" for s in (0, 2) for n in ("state.safetensors", "state.json", "manifest.json")
    }
    assert names == {".lock", "config.yaml", "config.json", "model.safetensors", "metrics.jsonl", "speed.jsonl", "hardware.json", "checksums.json",
                     "last/config.json", "last/model.safetensors", "last/checksums.json"} | pictures | newest  # fmt: skip
    said = capsys.readouterr().out
    assert (
        "device cpu (as asked)" in said
        and "images/s" in said
        and f"from_pretrained({str(out)!r})" in said
        and "resume" in said
    )
    again = aezoo.from_pretrained(out)
    assert torch.equal(again.reconstruct(images[0]), result.model.reconstruct(images[0]))
    assert aezoo.from_pretrained(out / "last").name == "vae"
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


def test_going_on_for_longer(images, tmp_path):
    fit(model_of("ae"), images, epochs=2, out=tmp_path)
    result = fit(model_of("ae"), images, epochs=4, out=tmp_path, resume=True)
    whole = fit(model_of("ae"), images, epochs=4)
    assert [r["loss"] for r in result.history] == [r["loss"] for r in whole.history]
    again = fit(model_of("ae"), images, epochs=4, out=tmp_path, resume=True).history
    assert [bare(row) for row in again] == [bare(row) for row in result.history]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_another_length_under_a_schedule_is_said(images, tmp_path, monkeypatch, capsys, schedule):
    for epochs in (2, 2, 3):
        fit(model_of("ae"), images, epochs=epochs, schedule=schedule, out=tmp_path, resume=True, progress=True)
        said = f"schedule={schedule!r} was over 8 steps so far and is over 12 from here on" in capsys.readouterr().out
        assert said == (epochs == 3 and schedule != "constant")


class Counted(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x, self.read = x, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.read.append(int(i))
        return self.x[i]


def test_going_on_reads_nothing_that_was_read(images, tmp_path, monkeypatch):
    """To begin again costs the same at any step: no sample is drawn only to be passed over."""
    before, after = [], []
    for stop in (4, 12):
        out = tmp_path / str(stop)
        whole = Counted(images[0])
        fit(model_of("ae"), aezoo.load_data(whole, workers=0), steps=16, batch_size=4)
        fit(model_of("ae"), aezoo.load_data(Counted(images[0]), workers=0), steps=stop, batch_size=4, out=out)
        data, start = Counted(images[0]), []

        class Begun(aezoo.Callback):
            def on_start(self, run, data=data, start=start):
                start.append(len(data.read))

        fit(model_of("ae"), aezoo.load_data(data, workers=0), steps=16, batch_size=4, out=out, resume=True, callbacks=[Begun()])  # fmt: skip
        before.append(start[0])
        after.append(data.read[start[0] :][: 4 * (16 - stop)])
        assert after[-1] == whole.read[start[0] + 4 * stop :][: 4 * (16 - stop)] and len(after[-1]) == 4 * (16 - stop)
    assert before[0] == before[1]


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_compiled_and_not_go_on_from_each_other(images, tmp_path, first):
    whole = fit(model_of("ae"), images, steps=8, log_every=2)
    fit(model_of("ae"), images, steps=4, log_every=2, compile=first, out=tmp_path)
    keys = set(state_of(tmp_path)[1])
    result = fit(model_of("ae"), images, steps=8, log_every=2, compile=not first, out=tmp_path, resume=True)
    assert set(state_of(tmp_path)[1]) == keys and {k[6:] for k in keys if k.startswith("model.")} == set(whole.model.state_dict())  # fmt: skip
    assert [r["loss"] for r in result.history] == pytest.approx([r["loss"] for r in whole.history], rel=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(images, tmp_path, devices):
    whole = fit(model_of("ae"), images, steps=8, log_every=2, ema=0.9, precision="fp32")
    for steps, device in zip((4, 8), devices):
        result = fit(model_of("ae"), images, steps=steps, log_every=2, ema=0.9, precision="fp32", device=device, out=tmp_path, resume=True)  # fmt: skip
    assert next(result.model.parameters()).device.type == devices[1]
    assert [r["loss"] for r in result.history] == pytest.approx([r["loss"] for r in whole.history], rel=1e-3)


def test_a_folder_with_a_run_is_not_overwritten(images, tmp_path):
    fit(model_of("ae"), images, epochs=1, out=tmp_path)
    with pytest.raises(ValueError, match=r"already holds a run \(at step 4\); pass resume=True"):
        fit(model_of("ae"), images, epochs=1, out=tmp_path)
    with pytest.raises(ValueError, match=r"cannot go on with another model: a 'ae' there, a 'vae' here"):
        fit(model_of("vae"), images, epochs=2, out=tmp_path, resume=True)
    for change, message in [
        ({"batch_size": 8}, "batch_size=16 there, 8 here"),
        ({"optimizer": "sgd"}, "optimizer='adam' there, 'sgd' here"),
        ({"seed": 5}, "seed=0 there, 5 here"),
        ({"val": 0.5}, "val=None there, 0.5 here"),
        ({"lr": 0.1}, "lr=0.001 there, 0.1 here"),
        ({"schedule": "cosine"}, "schedule='constant' there, 'cosine' here"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(model_of("ae"), images, **{"epochs": 2, "out": tmp_path, "resume": True, **change})
    with pytest.raises(ValueError, match="the data: its first samples are others"):
        fit(model_of("ae"), images[0].flip(0), epochs=2, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="needs out="):
        fit(model_of("ae"), images, epochs=2, resume=True)


def test_an_output_folder_that_cannot_be_written_is_found_before_the_first_step(images, tmp_path):
    (tmp_path / "file").write_text("")
    calls = []
    with pytest.raises(ValueError, match="cannot write to out="):
        fit(model_of("ae"), images, out=tmp_path / "file" / "run", callbacks=[calls.append])
    assert not calls


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_a_whole_step_and_says_how_to_go_on(images, tmp_path, capsys, number, error):
    def interrupt(row):
        if row["epoch"] == 2:
            threading.Timer(0.02, signal.raise_signal, [number]).start()

    with pytest.raises(error):
        aezoo.fit(
            model_of("ae"),
            images,
            epochs=10**5,
            out=tmp_path,
            callbacks=[interrupt],
            batch_size=16,
            device="cpu",
            compile=False,
        )
    assert "To go on" in capsys.readouterr().out
    step = state_of(tmp_path)[0]["step"]
    assert step >= 8
    result = fit(model_of("ae"), images, steps=step + 3, out=tmp_path, resume=True)
    whole = fit(model_of("ae"), images, steps=step + 3)
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), whole.model.parameters()))
