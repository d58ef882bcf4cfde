"""Two processes train as one does: losses, weights and buffers, decisions, signals, errors, and what they leave behind."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes_worker as worker
import pytest
import torch
import torch.nn.functional as F

import aezoo
from aezoo.cli import main
from aezoo.registry import MODELS
from aezoo.storage import read_tensors
from aezoo.train.checkpoints import Checkpoints, read
from aezoo.wholebatch import batch_axis, spread

MODELS.entries.pop("counting_ae")  # the worker's model is no part of the zoo that other tests go through


@pytest.fixture(autouse=True)
def _workers_model(monkeypatch):
    monkeypatch.setitem(MODELS.entries, "counting_ae", worker.CountingAE)


ACCIDENTS = ("signal", "evaluating", "raise", "locked", "taken", "missing", "cannot_write", "dies")
SAME = [c for c in worker.CASES if c not in ACCIDENTS]
UP, DOWN = ("batch_norm", "shard_sgd"), ("denoising", "shard")  # resumed in more, and in fewer processes than begun


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(*arguments):
    """Two processes, as torchrun starts them."""
    port = str(free_port())
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(Path(worker.__file__)), *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def finished(processes):
    """(exit codes, what they said)."""
    try:
        said = [p.communicate(timeout=240)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [p.returncode for p in processes], said


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every case in two processes, in one go: (folder, exit codes, what was said, a sharded checkpoint's step and shapes)."""
    folder = tmp_path_factory.mktemp("processes")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for case in UP:
        half = worker.run(case, folder / f"{case}-run", alone=True, max_time=1e-6)
        assert half.stopped == "time"
    worker.run("taken", folder / "taken-run", alone=True, epochs=1)
    (folder / "locked-run").mkdir()
    lock = os.open(folder / "locked-run" / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    options = dict.fromkeys(UP, ":resume") | dict.fromkeys(DOWN, ":half")
    options |= dict.fromkeys(("signal", "evaluating", "locked", "taken", "cannot_write"), ":out")
    first = time.monotonic()
    codes, said = finished(start(folder, *(c + options.get(c, "") for c in worker.CASES)))
    print(f"{time.monotonic() - first:.1f} s in two processes")
    os.close(lock)
    state, tensors = read(Checkpoints(folder / "shard-run" / "checkpoints").paths()[-1])
    yield folder, codes, said, (state["step"], {k: v.shape for k, v in tensors.items()})
    torch.set_num_threads(before)


def told(runs, case, rank):
    folder, _, said, _ = runs
    file = folder / f"{case}-{rank}.json"
    assert file.is_file(), f"{case} did not end in process {rank}:\n{said[rank][-3000:]}"
    return json.loads(file.read_text())


def assert_close(case, rows, one):
    assert len(rows) == len(one)
    for a, b in zip(rows, one):
        assert a.keys() == b.keys()
        for key in a:
            close = a[key] == b[key] or a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6)
            assert close, f"{case}: {key} in epoch {a['epoch']}: {a[key]} and {b[key]}"


def assert_close_tensors(case, tensors, one):
    assert tensors.keys() == one.keys()
    for name, v in one.items():
        scale = float(v.abs().max()) if v.is_floating_point() and v.numel() else 0.0
        torch.testing.assert_close(
            tensors[name], v, rtol=1e-4, atol=1e-4 * scale + 1e-7, msg=lambda m, n=name: f"{case}: {n}: {m}"
        )


def rows_of(result):
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in result.history]


@pytest.mark.parametrize("case", SAME)
def test_same_as_one_process(runs, case):
    """History, decisions, weights and buffers, on both processes; or, where the case is resumed, of the whole run."""
    one = worker.run(case, alone=True)
    if case in DOWN:
        assert all(told(runs, case, rank)["stopped"] == "time" for rank in range(2))
        result = worker.run(case, runs[0] / f"{case}-run", alone=True, resume=True)
        assert_close(case, rows_of(result), rows_of(one))
        assert_close_tensors(case, result.model.state_dict(), one.model.state_dict())
        return
    for rank in range(2):
        two = told(runs, case, rank)
        assert_close(case, two["rows"], rows_of(one))
        assert two["stopped"] == one.stopped and two["best"] == one.best["epoch"]
        assert_close_tensors(case, read_tensors(runs[0] / f"{case}-{rank}.safetensors")[0], one.model.state_dict())
    if "skip" in case:
        assert sum(row["skipped"] for row in two["rows"]) > 0


def test_checkpoints_are_those_of_one_process(runs, tmp_path):
    """The names and shapes of a sharded run's tensors are those of an ordinary one."""
    worker.run("shard", tmp_path / "one", alone=True, max_time=1e-6)
    one = read(Checkpoints(tmp_path / "one" / "checkpoints").paths()[-1])[1]
    step, shapes = runs[3]
    assert step == 2 and shapes == {k: v.shape for k, v in one.items()}
    assert {"model", "optimizer", "average", "sums"} == {k.split(".")[0] for k in shapes}


@pytest.mark.parametrize("case", ["signal", "evaluating"])
def test_a_signal_to_one_process_stops_all(runs, case):
    """SIGTERM, in training or during evaluation: each leaves with 143 within a step, and the run goes on as if nothing had been."""
    for rank in range(2):
        assert told(runs, case, rank) == {"error": "SystemExit", "said": "143"}
    out = runs[0] / f"{case}-run"
    state = read(Checkpoints(out / "checkpoints").paths()[-1])[0]
    assert (state["step"], state["row_due"]) == ((3, False) if case == "signal" else (5, True))
    result = worker.run(case, out, alone=True, resume=True)
    whole = worker.run(case, alone=True, resume=False)
    assert_close(case, rows_of(result), rows_of(whole))
    assert_close_tensors(case, result.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("raise", "FloatingPointError", "the loss is not finite at step"),
        ("locked", "ValueError", "is in use by another process"),
        ("taken", "ValueError", "already holds a run"),
        ("missing", "FileNotFoundError|OSError|ValueError", "there is no such file.npy"),
        ("cannot_write", "OSError|FileExistsError", "could not be saved|File exists|Not a directory"),
    ],
)
def test_what_fails_on_one_fails_on_all(runs, case, kind, words):
    for rank in range(2):
        said = told(runs, case, rank)
        assert re.fullmatch(kind, said["error"]), said
        assert re.search(words, said["said"]), said


def test_no_process_waits_for_one_that_died(runs):
    """The last case: one process raises, the other one ends at once instead of waiting for it."""
    _, codes, said, _ = runs
    assert codes[1] == 1 and "this process is broken" in said[1]
    assert codes[0] != 0


def test_one_process_cannot_cut_weights():
    with pytest.raises(ValueError, match="shard=True cuts the weights.*torchrun"):
        aezoo.fit(worker.aezoo.create_model("ae", input_shape=(4,)), torch.rand(8, 4), shard=True, device="cpu")


DRAWS = {
    "randn": lambda x: torch.randn(len(x), 3),
    "rand, sizes in a tuple": lambda x: torch.rand((len(x), 2)),
    "randn, size=": lambda x: torch.randn(size=(len(x),), dtype=torch.float64),
    "randint": lambda x: torch.randint(0, 9, (len(x), 2)),
    "randint, size=": lambda x: torch.randint(high=9, size=(len(x),)),
    "randn_like": torch.randn_like,
    "rand_like": lambda x: torch.rand_like(x, dtype=torch.float64),
    "randint_like": lambda x: torch.randint_like(x, 9),
    "bernoulli": torch.bernoulli,
    "multinomial": lambda x: torch.multinomial(x.flatten(1), 2),
    "multinomial, rows for each sample": lambda x: torch.multinomial(x.flatten(0, 1), 1).view(len(x), -1),
    "normal": lambda x: torch.normal(x, 2.0),
    "normal, of a distribution": lambda x: torch.distributions.Normal(x, x + 1).rsample(),
    "normal_": lambda x: torch.empty_like(x).normal_(1.0, 2.0),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x, dim=1),
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout2d": lambda x: F.dropout2d(x[:, :, None], 0.3)[:, :, 0],
    "dropout in evaluation": lambda x: F.dropout(x, 0.3, False),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, True),
    "channels last": lambda x: torch.randn_like(x[:, :, None].contiguous(memory_format=torch.channels_last)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_the_whole_batch(name):
    """Parts of 3 and 4 samples draw what the 7 together draw; and so do draws with the batch elsewhere, or nowhere."""
    x = torch.rand(7, 5, 6, generator=torch.Generator().manual_seed(0))

    torch.manual_seed(1)
    whole, after = DRAWS[name](x), torch.rand(2)
    parts = []
    for start, stop in ((0, 3), (3, 7)):
        torch.manual_seed(1)
        with spread(start, stop, 7):
            parts.append((DRAWS[name](x[start:stop]), torch.rand(2)))
    assert torch.equal(torch.cat([part for part, _ in parts]), whole)
    assert all(torch.equal(then, after) for _, then in parts)  # and the generator stands where it would stand


def test_batch_axis():
    def drawn(axis, *sizes):
        parts = []
        for start, stop in ((0, 3), (3, 6)):
            torch.manual_seed(1)
            with spread(start, stop, 6), batch_axis(axis):
                parts.append(torch.randn(sizes))
        return parts

    two = torch.cat(drawn(1, 2, 3), 1)
    torch.manual_seed(1)
    assert torch.equal(two, torch.randn(2, 6))
    same = drawn(None, 3, 4)  # as many rows as samples, by accident
    assert torch.equal(same[0], same[1])


def test_torchrun(tmp_path):
    """The documented command; SIGTERM to torchrun saves the run, once, and says how to go on."""
    np.save(tmp_path / "x.npy", worker.images().numpy())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
               "-m", "aezoo", "train", "ae", "--data", str(tmp_path / "x.npy"), "--train.device", "cpu", "--out", str(tmp_path / "run"),
               "--train.batch_size", "9", "--train.checkpoint_every", "3", "--train.epochs"]  # fmt: skip
    process = subprocess.Popen([*command, "1000000"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folder = Checkpoints(tmp_path / "run" / "checkpoints")
    try:
        for _ in range(600):
            if len(folder.paths()) > 1 or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert said.count("everything is saved. To go on: aezoo train --resume") == 1, said[-3000:]
    step = read(folder.paths()[-1])[0]["step"]
    main(["train", "--resume", str(tmp_path / "run"), "--train.epochs", str(step // 5 + 2), "--train.device", "cpu"])
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == step // 5 + 2
