"""Files of a run that are damaged, foreign or hostile: at whatever byte, in whatever order they were written."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fit, make_images, model_of, state_of
from test_promises import damage

import aezoo
from aezoo import recipes
from aezoo.storage import read_json, sha256
from aezoo.train import checkpoints, state


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("aezoo.pictures.draw_run", lambda *args: ([], []))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The checkpoints of a short run: steps 3 and 4."""
    out = tmp_path_factory.mktemp("two")
    torch.manual_seed(3)
    fit(model_of("ae"), make_images(64)[0], steps=4, checkpoint_every=1, out=out / "run")
    return out / "run" / "checkpoints"


# ------------------------------------------------------------------------------------------------------------- manifests


def test_any_byte_of_the_manifest_may_be_wrong(two, tmp_path):
    """Each bit of it is flipped in turn: the one before it counts, or, where nothing that matters has changed, it still does."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    manifest = folder / "step-000000004" / "manifest.json"
    whole = manifest.read_bytes()
    fell_back = 0
    for i in range(len(whole)):
        for bit in range(8):
            manifest.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :])
            try:
                there = checkpoints.read(manifest.parent)[0]
            except ValueError:
                fell_back += 1
            else:
                assert there["step"] == 4
    assert fell_back > 6 * len(whole)
    for text in ("[" * 100_000, "{}", "[]", "1", '{"format": 2, "files": {"state.json": null}}', "\x00"):
        manifest.write_text(text)
        found = checkpoints.Checkpoints(folder).newest()
        assert found[0]["step"] == 3 and "step-000000004 is passed over" in found[2][0]
        (folder / "damaged-step-000000004").rename(folder / "step-000000004")


def list_again(folder):
    """Writes the manifest of the files as they are now."""
    files = {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256(folder / n)} for n in checkpoints.FILES}
    (folder / "manifest.json").write_text(json.dumps({**read_json(folder / "manifest.json"), "files": files}))


@pytest.mark.parametrize("key", [*checkpoints.KEYS, "everything"])
def test_a_checkpoint_that_lacks_something_is_passed_over(two, tmp_path, key):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    file = folder / "step-000000004" / "state.json"
    there = read_json(file)
    file.write_text(json.dumps([] if key == "everything" else {k: v for k, v in there.items() if k != key}))
    list_again(file.parent)
    found = checkpoints.Checkpoints(folder).newest()
    assert found[0]["step"] == 3
    assert f"state.json lacks {'step, stage' if key == 'everything' else key}" in found[2][0]


def test_a_checkpoint_lists_what_it_needs(two):
    assert set(checkpoints.KEYS) <= set(state_of(two.parent)[0])
    assert all(k in Path(state.__file__).read_text() for k in checkpoints.KEYS)


def test_the_same_step_damaged_twice(tmp_path):
    def go(**more):
        fit(model_of("ae"), make_images(64)[0], checkpoint_every=1, out=tmp_path, **more)

    go(steps=4)
    for _ in range(2):
        damage(tmp_path / "checkpoints" / "step-000000004" / "state.json", "50")
        go(steps=4, resume=True)
        assert state_of(tmp_path)[0]["step"] == 4


def test_names_that_are_no_checkpoints(two, tmp_path):
    """A link to a checkpoint elsewhere is none, nor is a folder with another name."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    (folder / "step-000000009").symlink_to(two / "step-000000003")
    (folder / "step-").mkdir()
    (folder / "step-last").mkdir()
    (folder / "step-000000010-old").mkdir()
    there = checkpoints.Checkpoints(folder)
    assert [p.name for p in there.paths()] == ["step-000000003", "step-000000004"]
    assert there.newest_step() == 4 and there.newest()[0]["step"] == 4
    with pytest.raises(ValueError, match="is a symbolic link"):
        checkpoints.read(folder / "step-000000009")
    there.write(11, {}, {})
    assert (two / "step-000000003" / "manifest.json").is_file()


# -------------------------------------------------------------------------------------------------------------- hostile


def test_what_is_nested_too_deeply_is_refused(tmp_path):
    deep = tmp_path / "deep.yaml"
    deep.write_text("model: " + "[" * 20_000)
    with pytest.raises(ValueError, match=r"deep\.yaml is no valid YAML: nested too deeply"):
        recipes.read(deep)
    model_of("ae").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model": ' * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is damaged: nested too deeply"):
        aezoo.from_pretrained(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_any_damage_of_an_npz_is_an_error_or_harmless(tmp_path, packed):
    """Truncated anywhere, or any of its bytes changed: no other error than ValueError, whatever zip and numpy make of it."""
    x = make_images(2, 4)[0].numpy()
    path = tmp_path / "a.npz"
    (np.savez_compressed if packed else np.savez)(path, x=x)
    whole = path.read_bytes()
    failed = 0
    variants = [whole[:n] for n in range(0, len(whole), 5)]
    variants += [whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :] for i in range(len(whole)) for flip in (1, 128)]
    for data in variants:
        path.write_bytes(data)
        try:
            aezoo.load_data(path)
        except ValueError as error:
            failed += 1
            assert str(path) in str(error)
    assert failed > len(variants) // 3


def test_an_npz_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("aezoo.data.files.IN_MEMORY", 2**20)
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((2**21, 1), np.uint8))
    with pytest.raises(ValueError, match=r"bomb\.npz has [\d,]+ bytes and would unpack to 2,097,\d+"):
        aezoo.load_data(path)
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as z:  # a header that says 2^60 numbers, and none there
        z.writestr("x.npy", b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846976, 1), }".ljust(117) + b"\n")  # fmt: skip
    with pytest.raises(ValueError, match=r"huge\.npz"):
        aezoo.load_data(tmp_path / "huge.npz")
    np.savez(path, x=np.zeros((2**21, 1), np.uint8))  # as large, not packed: as many bytes as it says
    assert len(aezoo.load_data(path)) == 2**21
