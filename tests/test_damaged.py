"""Files of a run that are damaged, foreign or hostile: at whatever byte, in whatever order they were written."""

import json
import os
import re
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


# ------------------------------------------------------------------------------------------------- in which order it is written


def some(step):
    """A small checkpoint: (tensors, state)."""
    return {"model.w": torch.full((50,), float(step))}, {**dict.fromkeys(checkpoints.KEYS, 0), "step": step}


@pytest.fixture
def told(monkeypatch):
    """What the system is told, in order: ("fsync" | "replace" | "rename", names of the files)."""
    events, opened = [], {}
    originals = {name: getattr(os, name) for name in ("open", "fsync", "replace", "rename")}

    def short(path):
        return re.sub(r"\.\d+(\.tmp)?$", r"\1", Path(path).name)  # without the process's number

    def opening(path, *args, **kwargs):
        handle = originals["open"](path, *args, **kwargs)
        opened[handle] = path
        return handle

    def syncing(handle):
        originals["fsync"](handle)
        events.append(("fsync", short(opened[handle])))

    def moving(name):
        def move(a, b):
            originals[name](a, b)
            events.append((name, short(a), short(b)))

        return move

    for name, function in {"open": opening, "fsync": syncing, "replace": moving("replace"), "rename": moving("rename")}.items():  # fmt: skip
        monkeypatch.setattr(os, name, function)
    return events


def test_each_file_is_on_the_disk_before_its_name_and_the_manifest_is_the_last(tmp_path, told):
    there = checkpoints.Checkpoints(tmp_path / "checkpoints")
    there.write(7, *some(7))
    expected = [("fsync", tmp_path.name)]  # that there is a folder for checkpoints
    for name in ("state.safetensors", "state.json", "manifest.json"):
        expected += [("fsync", f".{name}.tmp"), ("replace", f".{name}.tmp", name), ("fsync", ".step-000000007")]
    expected += [("rename", ".step-000000007", "step-000000007"), ("fsync", "checkpoints")]
    assert told == expected
    told.clear()
    there.write(8, *some(8))
    assert told[0] == ("fsync", ".state.safetensors.tmp") and told[-1] == ("fsync", "checkpoints")


def test_the_oldest_goes_only_when_the_newest_is_there(tmp_path, told, monkeypatch):
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **more: (told.append(("remove", Path(path).name)), remove(path, **more)))  # fmt: skip
    there = checkpoints.Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        there.write(step, *some(step))
    assert [e for e in told if e[0] in ("rename", "remove")][-2:] == [
        ("rename", ".step-000000003", "step-000000003"), ("remove", "step-000000001"),
    ]  # fmt: skip
    assert told[-2:] == [("fsync", "checkpoints"), ("remove", "step-000000001")]


def test_any_file_may_be_damaged_at_any_stage_of_writing(tmp_path, monkeypatch):
    """The folder as it is between any two calls that write, with each of its files truncated, flipped or gone in turn: there
    is always an intact checkpoint, and the next one can be written."""
    folder, stages = tmp_path / "checkpoints", []
    there = checkpoints.Checkpoints(folder)
    there.write(1, *some(1))
    there.write(2, *some(2))

    def copy():
        stages.append(tmp_path / f"stage-{len(stages)}")
        shutil.copytree(folder, stages[-1])

    def around(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            result = original(*args, **kwargs)
            copy()
            return result

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "rmtree")):
        around(owner, name)
    copy()
    there.write(3, *some(3))
    monkeypatch.undo()
    assert len(stages) == 1 + 3 * 3 + 2 + 1
    seen = set()
    for stage in stages:
        newest = max(p.name for p in stage.iterdir() if p.name.startswith("step-"))
        for name in sorted(str(p.relative_to(stage)) for p in stage.rglob("*") if p.is_file()):
            for how in ("flip", "missing", "50"):
                work = tmp_path / "work"
                shutil.copytree(stage, work)
                damage(work / name, how)
                state, tensors, passed = checkpoints.Checkpoints(work).newest()
                assert torch.equal(tensors["model.w"], some(state["step"])[0]["model.w"])
                assert bool(passed) == name.startswith(newest), (stage, name, how)
                seen.add((state["step"], bool(passed)))
                if how == "50":
                    checkpoints.Checkpoints(work).write(4, *some(4))
                    assert checkpoints.Checkpoints(work).newest()[0]["step"] == 4
                shutil.rmtree(work)
    assert seen == {(1, True), (2, False), (2, True), (3, False)}
