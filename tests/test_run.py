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


def test_run_folder(images, tmp_path, capsys):
    out = tmp_path / "run"
    result = aezoo.fit(model_of(), images, epochs=2, val=0.2, out=out, device="cpu")
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    pictures = {f"pictures/{n}.png" for n in ("reconstructions", "samples", "curves", "latent")}
    newest = {
        f"checkpoints/step-{s:09d}/{n}" for s in (0, 2) for n in ("state.safetensors", "state.json", "manifest.json")
    }
    assert names == {".lock", "config.yaml", "config.json", "model.safetensors", "metrics.jsonl", "speed.jsonl", "checksums.json",
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
