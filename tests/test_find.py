"""What to train with: a learning rate by a range test, the largest batch that fits."""

import json
import math
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import fit, make_images, model_of
from PIL import Image

import aezoo
from aezoo.cli import main
from aezoo.train import find
from aezoo.train.range_test import suggest

GIB = 2**30

# ------------------------------------------------------------------------------------------------------- learning rate


def test_the_range_test_leaves_model_and_rng_as_they_were(images):
    model = aezoo.create_model(
        "vae", input_shape=(1, 12, 12), kl_warmup=5, backbone="mlp(widths=(16,), norm='batch', dropout=0.2)"
    )
    model.encoder.eval()
    gradient = torch.ones_like(next(model.parameters()))
    next(model.parameters()).grad = gradient
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    rng = torch.get_rng_state()
    aezoo.find_lr(model, images, batch_size=16, steps=20, device="cpu")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), rng)
    grads = [p.grad for p in model.parameters()]
    assert grads[0] is gradient and all(g is None for g in grads[1:])


def curve(n=100):
    """Falls fastest at 1e-3, is lowest near 1e-2 and breaks beyond."""
    lrs = [1e-7 * 1e8 ** (i / (n - 1)) for i in range(n)]
    return lrs, [1 / (1 + math.exp(4 * (math.log10(lr) + 3))) + max(0.0, 40 * (lr - 0.05)) for lr in lrs]


@pytest.mark.parametrize("shift", [0.0, -500.0, 500.0])
def test_the_suggestion_is_the_steepest_descent(shift):
    lrs, raw = curve()
    result = suggest(lrs, [v + shift for v in raw], 5)
    assert 0.6e-3 < result.suggestion < 1.6e-3 and result.suggestion in lrs
    noisy = [v + shift + 0.05 * math.sin(7.0 * i) for i, v in enumerate(raw)]
    assert 0.3e-3 < suggest(lrs, noisy, 5).suggestion < 3e-3


def test_smoothing_is_a_centred_mean():
    result = suggest([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], 1)
    assert result.losses == [3.5, 3.0, 2.0, 1.5] and result.raw == [4.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_what_is_suggested_trains(images, optimizer):
    found = aezoo.find_lr(model_of("ae"), images, batch_size=16, optimizer=optimizer, device="cpu")
    assert 1e-6 < found.suggestion < 5 and len(found.lrs) == len(found.losses) == len(found.raw)

    def reached(lr):
        return fit(model_of("ae"), images, epochs=10, lr=lr, optimizer=optimizer).history[-1]["loss"]

    assert reached(found.suggestion) < 0.8 * reached(found.suggestion / 100)


def test_the_rates_rise_from_lowest_and_it_ends_where_the_loss_explodes(images):
    found = aezoo.find_lr(
        model_of("ae"), images, batch_size=16, lowest=1e-4, highest=1e8, optimizer="sgd", steps=60, device="cpu"
    )
    ratios = [b / a for a, b in zip(found.lrs, found.lrs[1:])]
    assert found.lrs[0] == pytest.approx(1e-4) and ratios == pytest.approx([1e12 ** (1 / 59)] * len(ratios))
    assert len(found.lrs) < 50 and all(math.isfinite(v) for v in found.raw)


def test_its_first_step_is_that_of_fit(images):
    found = aezoo.find_lr(model_of("vae", corruption="masking"), images, batch_size=8, steps=12, device="cpu", seed=4)
    row = fit(model_of("vae", corruption="masking"), images, batch_size=8, steps=1, seed=4).history[0]
    assert found.raw[0] == pytest.approx(row["loss"], rel=1e-6)
    joint = aezoo.find_lr(model_of("ae"), images, batch_size=8, accumulate=2, steps=12, device="cpu").raw[0]
    assert joint == pytest.approx(
        fit(model_of("ae"), images, batch_size=8, accumulate=2, steps=1).history[0]["loss"], rel=1e-6
    )


def test_it_reads_loaders(images):
    loader = torch.utils.data.DataLoader(images[0], batch_size=16)
    assert len(aezoo.find_lr(model_of("ae"), loader, steps=12, highest=1e-2, device="cpu").lrs) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lowest": 0}, "lowest=0"),
        ({"lowest": 1.0, "highest": 0.1}, "highest=0.1 must be a rate above lowest=1"),
        ({"steps": 5}, "at least 10"),
        ({"optimizer": "adm"}, "Did you mean 'adam'"),
        ({"batch_size": 100}, "batch_size=100 is larger than the 64 samples"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"clip": 0}, "clip=0"),
        ({"lowest": 1e20, "highest": 1e30, "optimizer": "sgd"}, "not finite, or exploded"),
        ({"lowest": 1e-40, "highest": 1e-39}, "the loss fell at no learning rate"),
    ],
)
def test_find_lr_names_what_is_wrong(images, arguments, message):
    given = {"batch_size": 64, "device": "cpu", **arguments}
    with pytest.raises(ValueError, match=message):
        aezoo.find_lr(model_of("ae"), images, **given)


def test_the_picture(tmp_path):
    path = suggest(*curve(), 5).plot(tmp_path / "new" / "lr")
    with Image.open(path) as image:
        assert path.name == "lr.png" and image.width > 300


def test_find_lr_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["find-lr", "--model", "ae", "--data", "digits", "--data.limit", "200", "--train.batch_size", "50",
          "--steps", "40", "--picture=lr.png", "--train.device", "cpu"])  # fmt: skip
    out = capsys.readouterr().out
    rate = float(out.split("--train.lr ")[1])
    assert 1e-6 < rate < 1 and (tmp_path / "lr.png").is_file() and [p.name for p in tmp_path.iterdir()] == ["lr.png"]


# ---------------------------------------------------------------------------------------------------------- batch size


@pytest.fixture
def memory(monkeypatch):
    """A machine with 10 GiB on which a trial takes `base` + `each` * size bytes, and the jobs that it was given."""
    given = {"base": GIB, "each": 2**20, "jobs": []}

    def trial(job):
        given["jobs"].append(job)
        needed = int(given["base"] + given["each"] * job["batch_size"])
        return needed if needed <= 10 * GIB else None

    monkeypatch.setattr(find, "trial", trial)
    monkeypatch.setattr(find, "available_memory", lambda: 10 * GIB)
    return given


class Many(torch.utils.data.Dataset):
    """As many samples as one likes."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.zeros(1, 12, 12)


@pytest.mark.parametrize(
    ("base", "each", "samples"),
    [
        (GIB, 2**20, 10**6),
        (GIB, 2**20, 700),
        (0.3 * GIB, 3000, 10**9),
        (0.5 * GIB, 0, 10**6),
        (GIB, 3 * GIB, 10**6),
        (7.9 * GIB, 20, 5 * 10**8),
        (0.1 * GIB, 17 * 2**20, 10**6),
        (GIB, 1, 1),
    ],
)
def test_the_largest_power_of_two_that_fits(memory, base, each, samples):
    memory.update(base=base, each=each)
    model = model_of("ae")
    spare = 2 * sum(v.numel() * v.element_size() for v in model.state_dict().values())
    fits = [2**k for k in range(31) if 2**k <= samples and base + each * 2**k <= 0.8 * 10 * GIB - spare]
    assert aezoo.find_batch_size(model, Many(samples), device="cpu") == fits[-1]
    assert len(memory["jobs"]) <= 12 and max(j["batch_size"] for j in memory["jobs"]) <= samples


def test_a_line_that_promises_too_much_is_not_believed(memory):
    model = model_of("ae")
    line = find.trial

    def step(job):  # from 2048 on the memory is another's
        return None if job["batch_size"] > 1500 else line(job)

    memory["each"] = 2**18
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "trial", step)
        assert aezoo.find_batch_size(model, Many(10**6), device="cpu") == 1024


def test_headroom_and_largest(memory):
    size = aezoo.find_batch_size(model_of("ae"), Many(10**6), device="cpu", headroom=0.4)
    assert size == 2048 and aezoo.find_batch_size(model_of("ae"), Many(10**6), device="cpu", largest=100) == 64
    with pytest.raises(ValueError, match="headroom=1.5"):
        aezoo.find_batch_size(model_of("ae"), Many(9), device="cpu", headroom=1.5)
    with pytest.raises(ValueError, match="largest=0"):
        aezoo.find_batch_size(model_of("ae"), Many(9), device="cpu", largest=0)
    memory["base"] = 9 * GIB
    with pytest.raises(ValueError, match=r"not even one sample of ae \(1, 12, 12\) trains within 8.00 GiB on cpu"):
        aezoo.find_batch_size(model_of("ae"), Many(10**6), device="cpu")


def test_doubling_stops_at_the_first_that_does_not_fit():
    tried = []

    def peak(size):
        tried.append(size)
        return 1 if size < 600 else None

    assert find._doubled(peak, 32, 2**20) == 512 and tried == [64, 128, 256, 512, 1024]
    assert find._doubled(peak, 32, 128) == 128


@pytest.mark.parametrize(
    ("code", "out", "err", "peak"),
    [
        (-9, "", "", None),
        (0, '{"fits": false}\n', "", None),
        (0, 'a note\n{"fits": true, "peak": 7}\n', "", 7),
    ],
)
def test_a_trial_that_was_killed_does_not_fit(monkeypatch, code, out, err, peak):
    seen = {}

    def run(command, **options):
        seen.update(options)
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr(subprocess, "run", run)
    assert find.trial({"batch_size": 4}) == peak
    assert not {"WORLD_SIZE", "RANK"} & set(seen["env"]) and json.loads(seen["input"]) == {"batch_size": 4}


def test_a_trial_that_fails_for_another_reason_is_told(monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "Traceback\nKeyError: 'decoder'\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    with pytest.raises(RuntimeError, match="a trial with batch_size=4 failed: KeyError: 'decoder'"):
        find.trial({"batch_size": 4})


OWN = '''
import aezoo

@aezoo.register("find_own_ae")
class Own(aezoo.BaseAE):
    """Of a user."""

    def after_step(self):
        print("user code may print")
'''


@pytest.mark.slow
def test_trials_in_processes_of_their_own_with_a_model_of_the_users(tmp_path, monkeypatch):
    """The peak rises with the batch; a batch beyond the ceiling does not fit, and harms nothing here."""
    (tmp_path / "find_own_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import find_own_module

    model = find_own_module.Own((64,), 8, backbone="mlp(widths=(512,), norm='batch')", likelihood="bce")
    jobs = []

    def record(job):
        jobs.append(job)
        return GIB if job["batch_size"] < 9 else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "trial", record)
        find.search(model, torch.rand(9, 64), device="cpu")
    assert jobs[0]["modules"] == ["find_own_module"] and jobs[0]["support"] == (0.0, 1.0)
    job = {**jobs[0], "ceiling": 2 * GIB}
    small, large = find.trial({**job, "batch_size": 16}), find.trial({**job, "batch_size": 2**15})
    activations = 4 * 512 * 2**15
    assert small and large and small + activations < large < small + 30 * activations
    assert find.trial({**job, "batch_size": 2**20}) is None


def test_a_model_of_the_script_itself_cannot_be_tried(monkeypatch):
    model = model_of("ae")
    monkeypatch.setattr(type(model), "__module__", "__main__")
    with pytest.raises(ValueError, match="is defined in the script that runs.*put the class into a module"):
        aezoo.find_batch_size(model, Many(9), device="cpu")


def system(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_available_memory_is_the_systems_or_the_cgroups(tmp_path):
    info = {"proc/meminfo": "MemTotal: 900 kB\nMemAvailable:     800 kB\n"}
    assert find.available_memory(system(tmp_path / "a", info)) == 800 * 1024
    two = {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/memory.max": "500000\n",
        "sys/fs/cgroup/outer/memory.current": "100000\n",
        "sys/fs/cgroup/outer/memory.stat": "anon 5\ninactive_file 20000\n",
        "sys/fs/cgroup/outer/inner/memory.max": "max\n",
        "sys/fs/cgroup/outer/inner/memory.current": "90000\n",
        "sys/fs/cgroup/outer/inner/memory.stat": "inactive_file 0\n",
    }
    assert find.available_memory(system(tmp_path / "b", {**info, **two})) == 420000
    one = {
        "proc/self/cgroup": "5:cpu:/\n4:memory:/box\n0::/\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "300000\n",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "100000\n",
        "sys/fs/cgroup/memory/box/memory.stat": "total_inactive_file 1000\n",
    }
    assert find.available_memory(system(tmp_path / "c", {**info, **one})) == 201000
    assert find.available_memory(tmp_path / "nothing") > 2**20


def test_fit_with_auto_writes_the_number_and_keeps_it_when_resumed(images, tmp_path, monkeypatch, capsys):
    sizes = iter([32])

    def search(model, source, **options):
        assert len(source) == 48 and options["recompute"] and options["optimizer"] == "sgd"
        return find.Found(next(sizes), GIB, 2 * GIB)

    monkeypatch.setattr(find, "search", search)

    def run(**more):
        given = {"batch_size": "auto", "val": 0.25, "recompute": True, "optimizer": "sgd", "out": tmp_path, **more}
        return fit(model_of("ae"), images, **given)

    run(epochs=2, progress=True)
    assert "batch_size 32: 1.00 GiB at most in use, 2.00 GiB allowed" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["train"]["batch_size"] == 32
    result = run(epochs=3, resume=True)
    assert result.history[-1]["step"] == 6
    whole = run(epochs=3, batch_size=32, out=None)
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), whole.model.parameters()))
    assert run(epochs=4, batch_size=32, resume=True).history[-1]["step"] == 8


def test_auto_leaves_a_loader_its_batches(capsys):
    loader = torch.utils.data.DataLoader(make_images(20)[0], batch_size=5)
    result = fit(model_of("ae"), loader, epochs=1, batch_size="auto", progress=True)
    assert result.history[0]["step"] == 4 and "batch_size=auto is not used" in capsys.readouterr().out


def test_other_words_than_auto_are_refused(images):
    with pytest.raises(ValueError, match="batch_size='large'"):
        fit(model_of("ae"), images, batch_size="large")


def test_find_batch_on_the_command_line(memory, capsys):
    memory["each"] = 100 * 2**20
    main(["find-batch", "--model", "ae", "--data", "digits", "--train.device=cpu", "--headroom", "0.9"])
    out = capsys.readouterr().out
    assert "pass --train.batch_size 64" in out and "GiB allowed" in out and sys.modules["aezoo.train.find"] is find
