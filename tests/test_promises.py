"""What survives: kills, damaged files, full disks, signals, and a second process. (Losses that are not finite: test_finite.py.)"""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from conftest import assert_same_run, fit, make_images, model_of, state_of

import aezoo
from aezoo import recipes
from aezoo.storage import read_tensors, write_json
from aezoo.train import checkpoints, ending, loop, update
from aezoo.train import run as folder

SETTINGS = {
    "epochs": 4, "val": 0.25, "ema": 0.9, "schedule": "cosine", "warmup": 3, "accumulate": 2, "batch_size": 9, "clip": 1.0,
    "checkpoint_every": 2, "log_every": 5, "seed": 3,
}  # fmt: skip


def run(out, **more):
    """A run with everything that is drawn at random: shuffling, corruption, dropout, a posterior."""
    torch.manual_seed(3)
    model = aezoo.create_model("vae", input_shape=(1, 12, 12), latent_dim=4, backbone="mlp(widths=(32,), dropout=0.1)", corruption="masking")  # fmt: skip
    return fit(model, make_images(64), out=out, **{**SETTINGS, **more})


# -------------------------------------------------------------------------------------------------- 1. killed, anywhere

KILLS = {  # name: (owner, function, which call of it, what must be under way then)
    "a step, after the backward pass": ("update.Update", "check", 9, "one_step"),
    "a validation": ("base.BaseAE", "check_input", 14, "mean_loss"),
    "a checkpoint, before its manifest": ("checkpoints", "write_json", 8, "write"),
    "a checkpoint, a file not yet renamed": ("storage.os", "replace", 16, "write_tensors"),
    "a checkpoint, not yet renamed": ("checkpoints.os", "rename", 3, "write"),
    "a row, half-written": ("folder", "open", 5, "append"),
    "a row, its times not written": ("folder", "open", 6, "append"),
    "pictures, at the end": ("pictures", "samples", 1, "draw_samples"),
}

KILLER = """
    import builtins, json, os, signal, sys, torch, traceback
    sys.path.insert(0, {here!r})
    from aezoo import base, pictures, storage
    from aezoo.train import checkpoints, loop, update
    from aezoo.train import run as folder
    import test_promises

    def kill_in(owner, name, at, within):
        original, calls = getattr(owner, name, None) or getattr(builtins, name), []
        def wrapped(*args, **kwargs):
            calls.append(1)
            if len(calls) == at:
                names = [frame.name for frame in traceback.extract_stack()]
                assert within in names, names
                assert within != "mean_loss" or not args[0].training, "not in a validation"
                if name == "open" and at % 2:
                    with open(args[0], "a") as f:
                        f.write('{{"epoch": 1, "st')
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)
        setattr(owner, name, wrapped)

    for place, (owner, name, at, within) in test_promises.KILLS.items():
        child = os.fork()  # of a process that has imported everything and run nothing
        if not child:
            try:
                kill_in(eval(owner), name, at, within)
                test_promises.run(os.path.join({out!r}, place))
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        print(json.dumps([place, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]), flush=True)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(a folder with a run killed at each place, the exit codes)."""
    out = tmp_path_factory.mktemp("killed")
    code = textwrap.dedent(KILLER).format(here=os.path.dirname(__file__), out=str(out))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    codes = dict(json.loads(line) for line in done.stdout.splitlines())
    assert all(c == -signal.SIGKILL for c in codes.values()) and list(codes) == list(KILLS), (
        codes,
        done.stderr[-3000:],
    )
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out)
    return out


@pytest.mark.parametrize("place", KILLS)
def test_a_killed_run_goes_on_to_the_bit(killed, whole, place):
    run(killed / place, resume=True)
    assert_same_run(whole, killed / place)


# ------------------------------------------------------------------------------------------------------ 3. damaged files


def damage(path, how):
    data = path.read_bytes()
    if how == "flip":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif how == "missing":
        path.unlink()
    elif how == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    else:
        path.write_bytes(data[: int(how) * len(data) // 100])


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The same run up to its second row."""
    out = tmp_path_factory.mktemp("parts") / "run"
    run(out, callbacks=[lambda row: row["step"] < 5])
    return out


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "missing", "link", "0", "50", "99"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, capsys, whole, parts, name, how):
    out = tmp_path / "run"
    shutil.copytree(parts, out)
    steps = [p.name for p in (out / "checkpoints").iterdir()]
    newest = out / "checkpoints" / max(steps)
    assert len(steps) == 2
    damage(newest / name, how)
    if how == "missing":  # where nothing is shown it is a warning
        with pytest.warns(UserWarning, match=f"checkpoint {newest.name} is passed over: {name} is missing"):
            run(out, resume=True)
    else:
        run(out, resume=True, progress=True)
        assert f"checkpoint {newest.name} is passed over: " in capsys.readouterr().out
    assert_same_run(whole, out)


@pytest.mark.parametrize("how", ["flip", "missing", "0", "50"])
def test_whatever_lies_beside_the_checkpoints_may_be_damaged(tmp_path, whole, parts, how):
    """None of it is read when a run goes on; what the run writes is whole again at its end."""
    out = tmp_path / "run"
    shutil.copytree(parts, out)
    beside = ["metrics.jsonl", "speed.jsonl", "config.yaml", "config.json", "model.safetensors", "last/config.json", "last/model.safetensors"]  # fmt: skip
    for name in beside:
        damage(out / name, how)
    run(out, resume=True)
    assert_same_run(whole, out)
    for name in beside:
        if name != "speed.jsonl" and not name.endswith(".safetensors"):  # whose header lists its metadata in any order
            assert (whole / name).read_bytes() == (out / name).read_bytes(), name
    assert aezoo.from_pretrained(out).name == aezoo.from_pretrained(out / "last").name == "vae"


@pytest.mark.parametrize("how", ["flip", "missing", "0", "50"])
def test_a_damaged_list_of_the_best_is_written_anew(tmp_path, how):
    def go(out, **more):
        run(out, top_k=2, checkpoint_every=1, **more)

    go(tmp_path / "a")
    go(tmp_path / "b", callbacks=[lambda row: row["step"] < 5])
    damage(tmp_path / "b" / "top" / "top.json", how)
    go(tmp_path / "b", resume=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    a, b = ((tmp_path / x / "top" / "top.json").read_bytes() for x in "ab")
    assert a == b


def test_all_checkpoints_damaged_is_said_and_nothing_is_overwritten(tmp_path):
    run(tmp_path, epochs=1)
    for path in (tmp_path / "checkpoints").iterdir():
        damage(path / "state.safetensors", "50")
    with pytest.raises(ValueError, match=r"no intact checkpoint .*bytes instead of"):
        run(tmp_path, resume=True)
    assert aezoo.from_pretrained(tmp_path).name == "vae"


def test_any_truncation_of_a_model_is_an_error(tmp_path):
    model_of("ae").save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for size in (0, 7, 8, 100, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="truncated, damaged or not a safetensors file"):
            aezoo.from_pretrained(tmp_path)


# --------------------------------------------------------------------------------------------------------- 3. full disk


class HalfALine:
    """A file on a full disk: a part of what is written arrives."""

    def __init__(self, *args, **kwargs):
        self.file = open(*args, **kwargs)  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, text):
        self.file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def written_by(name):
    """(where a function that writes is looked up, its name)."""
    return {
        "save_file": ("safetensors.torch", "save_file"), "keep_top": ("safetensors.torch", "save_file"), "fsync": ("os", "fsync"),
        "rename": ("os", "rename"), "append": ("aezoo.train.run", "open"),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "progress"),
    [("save_file", True), ("fsync", True), ("rename", False), ("append", True), ("append", False), ("keep_top", True)],
)
def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path, monkeypatch, capsys, recwarn, owner, progress):
    run(tmp_path / "a", checkpoint_every=1, top_k=2)
    place, name = written_by(owner)
    original, full_now = getattr(sys.modules[place], name, open), []

    class Filling(aezoo.Callback):
        def on_step(self, run):
            full_now[:] = [1] if run.step in (4, 5, 6) else []

    def full(*args, **kwargs):
        if not full_now or (owner == "keep_top" and "top" not in os.fspath(args[1])):
            return original(*args, **kwargs)
        intact = checkpoints.Checkpoints(tmp_path / "b" / "checkpoints").paths()
        assert intact and checkpoints.read(intact[-1])
        if owner == "append":
            return HalfALine(*args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys.modules[place], name, full, raising=False)
    run(tmp_path / "b", progress=progress, checkpoint_every=1, top_k=2, callbacks=[Filling()])
    told = capsys.readouterr().out if progress else " ".join(str(w.message) for w in recwarn)
    said = {"append": "the row of step 6 could not be written", "keep_top": "model of step 6 could not be saved"}
    assert said.get(owner, "step 5 could not be saved") in told and "No space left" in told
    monkeypatch.undo()
    (state_a, a), (state_b, b) = state_of(tmp_path / "a"), state_of(tmp_path / "b")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert state_a["rows"] == state_b["rows"]
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()
    speeds = [json.loads(line)["step"] for line in (tmp_path / "b" / "speed.jsonl").read_text().splitlines()]
    assert speeds == [row["step"] for row in state_b["rows"]]
    top = json.loads((tmp_path / "b" / "top" / "top.json").read_text())
    assert sorted(p.name for p in (tmp_path / "b" / "top").iterdir()) == sorted(
        [*(t["folder"] for t in top), "top.json"]
    )
    assert all(aezoo.from_pretrained(tmp_path / "b" / "top" / t["folder"]) for t in top)


def test_rows_of_several_models_wait_while_a_disk_is_full(tmp_path, monkeypatch):
    full = [1, 1, 1]  # both files of the first models' rows

    def filling(*args, **kwargs):
        return HalfALine(*args, **kwargs) if full and full.pop() else open(*args, **kwargs)

    monkeypatch.setattr("aezoo.train.run.open", filling, raising=False)
    with pytest.warns(UserWarning, match=r"the row of step 4 could not be written .*No space left"):
        results = aezoo.fit_many([model_of("ae"), model_of("ae")], make_images(64)[0], lr=[1e-3, 1e-4], epochs=3, batch_size=16, device="cpu", out=tmp_path, progress=False)  # fmt: skip
    assert not full
    for result in results:
        steps = [json.loads(line)["step"] for line in (result.out / "metrics.jsonl").read_text().splitlines()]
        assert steps == [4, 8, 12]


def test_a_disk_that_stays_full_is_an_error_at_the_end_and_the_weights_stay_in_the_model(tmp_path):
    """A real limit of the system: no file may grow beyond what the first checkpoint took, less one byte."""
    model = model_of("ae")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen = []

    def shrink(row):
        size = max(p.stat().st_size for p in (tmp_path / "checkpoints").rglob("*") if p.is_file())
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
        seen.append({k: v.clone() for k, v in model.state_dict().items()})

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="step 8 could not be saved .* the checkpoints before it are untouched"):
            fit(model, make_images(64)[0], epochs=2, out=tmp_path, callbacks=[shrink])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert all(torch.equal(v, seen[-1][k]) for k, v in model.state_dict().items())
    assert state_of(tmp_path)[0]["step"] == 0


def test_too_little_space_is_found_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": 1000})())
    with pytest.raises(ValueError, match=r"0 MiB are free on that disk, and the run needs about"):
        run(tmp_path, callbacks=[lambda row: pytest.fail("a step was taken")])


# ----------------------------------------------------------------------------------------------------- 4. hostile files


def test_nothing_in_the_package_unpickles():
    """`torch.load` appears with weights_only=True only, and no module imports pickle."""
    import ast
    from pathlib import Path

    for path in Path(aezoo.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                allowed = {"pickle"} if path.name == "convert.py" else set()  # for the name of its error
                assert not ({n.split(".")[0] for n in names} - allowed) & {
                    "pickle",
                    "dill",
                    "cloudpickle",
                    "joblib",
                    "shelve",
                }, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("weights_only") == "True" or given.get("allow_pickle") == "False", (path, node.lineno)


def test_hostile_files_are_refused(tmp_path):
    run(tmp_path / "run", epochs=1)
    config = tmp_path / "run" / "config.yaml"
    config.write_text("model: !!python/object/apply:os.system ['touch owned']\n")
    with pytest.raises(ValueError, match="no valid YAML"):
        recipes.read(config)
    huge = tmp_path / "huge.safetensors"
    huge.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="truncated, damaged"):
        read_tensors(huge)
    model = tmp_path / "run" / "config.json"
    with open(model, "wb") as f:
        f.truncate(2**27)
    with pytest.raises(ValueError, match="too many for a configuration"):
        aezoo.from_pretrained(tmp_path / "run")


def test_a_run_does_not_write_through_a_link(tmp_path):
    (tmp_path / "other").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="symbolic link"):
        run(tmp_path / "run")
    with pytest.raises(ValueError, match="symbolic link"):
        write_json(tmp_path / "run" / "metrics.jsonl", {})
    assert (tmp_path / "other").read_text() == "precious"


# ------------------------------------------------------------------------------------------------------- 6. told to stop


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_a_signal_stops_within_a_step_also_in_an_evaluation(tmp_path, monkeypatch, capsys, number, error, where):
    run(tmp_path / "a")
    original = loop.mean_loss if where == "evaluation" else loop._Trainer.one_step
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == (3 if where == "evaluation" else 4):
            signal.raise_signal(number)
        return original(*args)

    if where == "evaluation":
        monkeypatch.setattr(loop, "mean_loss", interrupted)
    else:
        monkeypatch.setattr(loop._Trainer, "one_step", interrupted)
    with pytest.raises(error) as stopped:
        run(tmp_path / "b", progress=True)
    assert number == signal.SIGINT or stopped.value.code == 143
    state = state_of(tmp_path / "b")[0]
    assert state["step"] == (9 if where == "evaluation" else 4) and state["row_due"] == (where == "evaluation")
    assert f"stopped at step {state['step']}" in capsys.readouterr().out
    monkeypatch.undo()
    run(tmp_path / "b", resume=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("where", ["saving", "pictures"])
def test_a_signal_at_the_end_waits_for_what_is_saved_and_not_for_pictures(tmp_path, monkeypatch, capsys, whole, number, error, where):  # fmt: skip
    original, drawn = folder.RunFolder.save_model, []

    def saving(self, config, tensors, into=None):
        if into == self.last:
            signal.raise_signal(number)
        original(self, config, tensors, into)

    def drawing(*args):
        if where == "pictures":
            signal.raise_signal(number)
        drawn.append(1)
        return [], []

    if where == "saving":
        monkeypatch.setattr(folder.RunFolder, "save_model", saving)
    monkeypatch.setattr("aezoo.pictures.draw_run", drawing)
    with pytest.raises(error) as stopped:
        run(tmp_path, progress=True)
    assert (number == signal.SIGINT or stopped.value.code == 143) and not drawn
    told = capsys.readouterr().out
    assert "stopped at step 12; everything is saved. To go on:" in told and told.count("stopped at") == 1
    assert_same_run(whole, tmp_path)
    monkeypatch.undo()
    run(tmp_path, resume=True)
    assert_same_run(whole, tmp_path)


def test_exit_codes_and_the_line_that_resumes(tmp_path):
    code = """
        import signal, sys
        from aezoo.cli import main
        from aezoo.train import loop
        original = loop._Trainer.one_step
        def interrupted(self, window):
            if self.step == 3:
                signal.raise_signal({number})
            original(self, window)
        loop._Trainer.one_step = interrupted
        main(["train", "--model", "ae", "--data", "digits", "--data.limit", "64", "--train.device", "cpu", "--train.batch_size", "16",
              "--train.out", {out!r}, "--train.epochs", "5"])
    """
    running = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        text = textwrap.dedent(code).format(number=int(number), out=str(tmp_path / str(int(number))))
        running[number] = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    for number, expected in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        said, errors = running[number].communicate()
        assert running[number].returncode == expected, errors[-2000:]
        assert f"To go on: aezoo train --resume {tmp_path / str(int(number))}" in said
        assert state_of(tmp_path / str(int(number)))[0]["step"] == 4


# ------------------------------------------------------------------------------------------------------ 7. out of memory


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_out_of_memory_says_what_to_set_and_the_process_goes_on(error, monkeypatch):
    model = model_of("ae")
    fit(model, make_images(64)[0], steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(model, "loss", lambda x: (_ for _ in ()).throw(error))
        with pytest.raises(MemoryError, match=r"batch_size=16 \(peak .* GiB\). Set batch_size=8 and accumulate=2"):
            fit(model, make_images(64)[0], steps=2)
    assert all(p.grad is None for p in model.parameters())
    fit(model, make_images(64)[0], steps=2)


def test_a_real_allocation_that_fails(monkeypatch):
    model = model_of("ae")
    monkeypatch.setattr(model, "corrupt", lambda x, where="input": torch.empty(2**50, device=x.device))
    with pytest.raises(MemoryError, match="out of memory on cpu at step 1"):
        fit(model, make_images(64)[0], steps=2)


def test_data_that_is_drawn_anew_is_known_again(tmp_path):
    def go(seed, **more):
        torch.manual_seed(seed)
        data = aezoo.load_data(make_images(64)[0], binarize="dynamic")
        return fit(model_of("vae", likelihood="bernoulli"), data, out=tmp_path, **more)

    go(1, epochs=1)
    go(2, epochs=2, resume=True)


# ----------------------------------------------------------------------------------- 8. keys, moved folders, 9. folders


def test_a_moved_run_goes_on(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "here", callbacks=[lambda row: row["epoch"] < 2])
    (tmp_path / "far").mkdir()
    (tmp_path / "here").rename(tmp_path / "far" / "there")
    run(tmp_path / "far" / "there", resume=True)
    assert_same_run(tmp_path / "a", tmp_path / "far" / "there")


def test_checkpoints_have_the_model_s_own_keys(tmp_path):
    run(tmp_path, ema=0.9)
    tensors = state_of(tmp_path)[1]
    names = set(model_of("vae").state_dict())
    assert {k[6:] for k in tensors if k.startswith("model.")} == names
    assert set(read_tensors(tmp_path / "model.safetensors")[0]) == names


def test_a_second_process_on_the_same_folder_is_refused(tmp_path):
    seen = []

    def second(row):
        if not seen:
            code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nimport test_promises\ntest_promises.run({str(tmp_path)!r}, resume=True)"
            seen.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr)

    run(tmp_path, callbacks=[second])
    assert f"is in use by another process ({os.getpid()})" in seen[0]
    run(tmp_path, resume=True, epochs=5)


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, callbacks=[lambda row: 1 / 0])
    run(tmp_path, resume=True)


# --------------------------------------------------------------------------------------------------------- 10. one seed


def test_the_same_seed_in_a_new_process_whatever_is_imported_first(tmp_path):
    code = """
        import sys
        sys.path.insert(0, {here!r})
        {first}
        import test_promises
        from aezoo import pictures
        pictures.draw_run = lambda *_: ([], [])
        test_promises.run({out!r})
    """
    for i, first in enumerate(["import aezoo", "import random, numpy, sklearn; random.random(); numpy.random.rand(3)"]):
        text = textwrap.dedent(code).format(here=os.path.dirname(__file__), first=first, out=str(tmp_path / str(i)))
        subprocess.run([sys.executable, "-c", text], check=True, capture_output=True)
    run(tmp_path / "here")
    assert_same_run(tmp_path / "0", tmp_path / "1")
    assert_same_run(tmp_path / "0", tmp_path / "here")


def test_metrics_hold_no_times(tmp_path):
    run(tmp_path, epochs=1)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert not {"samples_per_s", "seconds"} & set(rows[0]) and {"step", "samples_per_s", "seconds"} == set(speeds[0])


__all__ = ["ending", "threading", "update"]


def test_kernels_in_channels_last_resume_to_the_bit(images, tmp_path):
    """Adam's moments come back in the layout of the weights that they belong to."""

    def run(out, steps, resume=False):
        torch.manual_seed(3)
        model = aezoo.create_model("conv_ae", input_shape=(1, 12, 12), latent_dim=4, backbone="conv(widths=(8, 16))")
        aezoo.fit(model, images, steps=steps, batch_size=16, out=out, resume=resume, progress=False, device="cpu")
        return model.state_dict()

    whole = run(tmp_path / "whole", 12)
    run(tmp_path / "halves", 6)
    halves = run(tmp_path / "halves", 12, resume=True)
    assert all(torch.equal(whole[k], halves[k]) for k in whole)
