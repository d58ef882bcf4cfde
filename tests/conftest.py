"""Options and fixtures of the whole suite. No test needs a network."""

import os
from pathlib import Path

import pytest
import torch

import aezoo
from aezoo.registry import MODELS

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # processes share the cores
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_addoption(parser):
    parser.addoption(
        "--record-golden", action="store_true", help="write tests/golden.json anew instead of comparing with it"
    )


def pytest_collection_modifyitems(items):
    def short(item):  # "runs" starts processes for a whole file
        return "slow" not in item.keywords and "runs" not in item.fixturenames

    items.sort(key=short)  # the long ones start first, so that no process waits for one at the end, and stay together
    root = os.environ.get("AEZOO_DATA")
    here = root and (Path(root) / "MNIST" / "raw").is_dir() and (Path(root) / "FashionMNIST" / "raw").is_dir()
    reason = "real data: set AEZOO_DATA to a folder with MNIST/raw and FashionMNIST/raw (python .ci/fetch_data.py ROOT lays them out)"
    for item in items:
        if "real_data" in item.keywords and not here:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads():
    """A test that sets the number of threads leaves it to no other: beside other processes more of them make small steps
    a hundred times slower."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _album():
    """Runs draw no pictures, which takes longer than most of them take to train, but in tests that are marked `pictures`."""
    from aezoo import pictures

    draw_run = pictures.draw_run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_run", lambda *_: ([], []))
        yield draw_run


@pytest.fixture(autouse=True)
def _pictures(request, monkeypatch, _album):
    if request.node.get_closest_marker("pictures"):
        monkeypatch.setattr("aezoo.pictures.draw_run", _album)


@pytest.fixture(autouse=True)
def _no_model_stays(monkeypatch):
    """What a test registers is gone after it: other tests go through the whole zoo."""
    monkeypatch.setattr(MODELS, "entries", dict(MODELS.entries))


@pytest.fixture
def images():
    """64 smooth 12x12 pictures in [0, 1], with labels: cheap, and learnable."""
    return make_images(64)


def make_images(n, size=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    t = torch.linspace(-1, 1, size)
    cx, cy, w = torch.rand(3, n, 1, 1, generator=g).unbind(0)
    blob = torch.exp(-((t[None, :, None] - cx + 0.5) ** 2 + (t[None, None] - cy + 0.5) ** 2) / (0.1 + 0.4 * w))
    return blob[:, None], (cx[:, 0, 0] > 0.5).long()


OWN = {  # networks that some models are built around, with everything that they have, once or twice
    "vit": "vit(width=16, depth=2, heads=2, decoder_width=16, decoder_depth=1)", "unet": "unet(widths=(4, 8))", "conv": "conv(widths=(4, 8))",
    "resnet": "resnet(widths=(8, 8), blocks=1, attention=True)",
}  # fmt: skip


def model_of(name="vae", **more):
    """A small model with the same weights at every call."""
    torch.manual_seed(3)
    return aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=4, backbone="mlp(widths=(32,))", **more)


def fit(model, data, **more):
    return aezoo.fit(model, data, **{"progress": False, "batch_size": 16, "device": "cpu", **more})


def state_of(folder):
    """(state, tensors) of a run's newest checkpoint."""
    from aezoo.train.checkpoints import Checkpoints, read

    return read(Checkpoints(Path(folder) / "checkpoints").paths()[-1])


def assert_same_run(a, b):
    """Two run folders hold the same run to the bit: weights, optimiser, averages, rows, best."""
    from aezoo.storage import read_tensors

    (state_a, tensors_a), (state_b, tensors_b) = state_of(a), state_of(b)
    assert state_a == state_b
    for x, y in [
        (tensors_a, tensors_b),
        (read_tensors(a / "model.safetensors")[0], read_tensors(b / "model.safetensors")[0]),
        (read_tensors(a / "last" / "model.safetensors")[0], read_tensors(b / "last" / "model.safetensors")[0]),
    ]:
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


def fails(capsys, *argv):
    """What a command that refuses its arguments says: one line, with exit code 2."""
    from aezoo.cli import main

    with pytest.raises(SystemExit) as end:
        main([str(a) for a in argv])
    err = capsys.readouterr().err
    assert end.value.code == 2 and len(err.strip().splitlines()) == 1 and err.startswith("aezoo: ")
    return err
