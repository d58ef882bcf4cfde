"""Data larger than memory: the same samples as in memory, whatever part of the plan is asked for; and files that are refused."""

import io
import json
import tarfile
import threading

import numpy as np
import pytest
import torch
from conftest import fit, model_of
from PIL import Image
from safetensors.torch import save_file

import aezoo
from aezoo.data import files, prefetch
from aezoo.data.shards import ArrayRows
from aezoo.data.streams import StreamSource, segments

CPU = torch.device("cpu")
N = 203  # no multiple of a block
KINDS = ("one.npy", "npy", "safetensors", "tar", "npy in tar")


def samples():
    """(203, 1, 12, 12) uint8, all different, and labels."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (N, 1, 12, 12), dtype=torch.uint8, generator=g), torch.arange(N) % 7


def add(tar, name, content, **more):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in more.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content) if content or info.isreg() else None)


def png(x):
    out = io.BytesIO()
    Image.fromarray(x[0].numpy()).save(out, "PNG")
    return out.getvalue()


def npy(x):
    out = io.BytesIO()
    np.save(out, x.numpy())
    return out.getvalue()


def write(folder, kind, x=None, y=None):
    """The samples as `kind` under `folder`; returns what to give to `load_data`."""
    if x is None:
        x, y = samples()
    folder.mkdir(exist_ok=True)
    if kind == "one.npy":
        np.save(folder / kind, x.numpy())
        return folder / kind
    for number, rows in enumerate(torch.arange(len(x)).split(60)):
        path = folder / f"shard-{number}"
        if kind == "npy":
            np.save(path.with_suffix(".npy"), x[rows].numpy())
        elif kind == "safetensors":
            save_file({"x": x[rows], "y": y[rows]}, path.with_suffix(".safetensors"))
        else:
            with tarfile.open(path.with_suffix(".tar"), "w") as tar:
                add(tar, "some/", b"", type=tarfile.DIRTYPE)
                for i in rows.tolist():
                    if kind == "tar":
                        add(tar, f"some/{i:05}.png", png(x[i]))
                        add(tar, f"some/{i:05}.cls", str(int(y[i])).encode())
                    else:
                        add(tar, f"{i:05}.json", json.dumps({"label": int(y[i])}).encode())
                        add(tar, f"{i:05}.x.npy", npy(x[i]))
    return folder


@pytest.fixture
def small(monkeypatch):
    """Streams of blocks of 7 rows and windows of 4 blocks, for data of any size."""
    monkeypatch.setattr(files, "IN_MEMORY", 0)
    monkeypatch.setattr("aezoo.data.streams.BLOCK", 7 * 144)
    monkeypatch.setattr("aezoo.data.streams.WINDOW", 4 * 7 * 144)


def stream_threads():
    return [t for t in threading.enumerate() if t.name == "aezoo stream"]


def collected(source, plan, **more):
    return [b.x for b in source.batches(plan, CPU, **more)]


# ------------------------------------------------------------------------------------------------- the samples, the order


@pytest.mark.parametrize("kind", KINDS)
def test_streams_hold_what_is_in_memory(tmp_path, small, monkeypatch, kind):
    x, y = samples()
    path = write(tmp_path / "d", kind)
    source = aezoo.load_data(path)
    assert type(source) is StreamSource and len(source) == N and source.shape == (1, 12, 12)
    for plan in (torch.arange(N).split(50), source.order(3).split(16), torch.randint(0, N, (90,)).split(40)):
        got = list(source.batches(list(plan), CPU))
        assert [len(b.x) for b in got] == [len(i) for i in plan]
        for batch, index in zip(got, plan):
            assert torch.equal(batch.x, x[index].float() / 255)
            assert batch.y is None if "npy" in kind and kind != "npy in tar" else torch.equal(batch.y, y[index])
    monkeypatch.setattr(files, "IN_MEMORY", 2**30)
    held = aezoo.load_data(path)
    assert torch.equal(held.x, x) and held.x.dtype == torch.uint8
    assert source.check() == (0, 1) == held.check()


def test_a_pattern_and_a_single_tar(tmp_path, small):
    folder = write(tmp_path / "d", "tar")
    assert len(aezoo.load_data(f"{folder}/shard-[01].tar")) == 120
    assert len(aezoo.load_data(folder / "shard-3.tar")) == 23
    assert len(aezoo.load_data(f"{folder}/*", limit=61)) == 61
    assert aezoo.load_data(folder, size=8, channels=3, workers=3).shape == (3, 8, 8)


def test_the_order_is_a_permutation_that_keeps_blocks_together(tmp_path, small):
    source = aezoo.load_data(write(tmp_path / "d", "npy"))
    order = source.order(5)
    assert torch.equal(order.sort().values, torch.arange(N))
    assert torch.equal(order, source.order(5)) and not torch.equal(order, source.order(6))
    blocks = (order // 7).tolist()
    spans = [max(k for k, b in enumerate(blocks) if b == block) - blocks.index(block) for block in range(29)]
    assert max(spans) < 4 * 7  # the rows of a block lie within one window of four blocks
    needed = list(segments(order.split(10), 7, 4))
    assert max(len(s.slots) for s in needed) == 4 and len(needed) <= 9
    assert (order[1:] - order[:-1] == 1).float().mean() < 0.2  # rows are mixed, not only blocks


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_from_the_middle_gives_the_tail(tmp_path, small, kind):
    source = aezoo.load_data(write(tmp_path / "d", kind), workers=None if kind == "one.npy" else 2)
    plan = list(source.order(1).split(9))
    whole = collected(source, plan)
    for done in (1, 11, len(plan) - 1):
        assert all(torch.equal(a, b) for a, b in zip(whole[done:], collected(source, plan[done:])))


def test_only_the_windows_that_a_plan_needs_are_read(tmp_path, small, monkeypatch):
    source = aezoo.load_data(write(tmp_path / "d", "one.npy"))
    read = []
    original = ArrayRows.read
    monkeypatch.setattr(ArrayRows, "read", lambda *a: (read.append(a[1] // 7), original(*a))[1])
    plan = list(source.order(1).split(9))
    collected(source, plan)
    assert sorted(read) == list(range(29))  # also where a batch lies in two windows
    read.clear()
    collected(source, plan[-1:])
    assert len(read) <= 4


def test_labels_follow_subsets_and_splits(tmp_path, small):
    x, y = samples()
    source = aezoo.load_data(write(tmp_path / "d", "safetensors"))
    train, val = source.split(0.3, seed=4)
    assert (len(train), len(val)) == (N - 61, 61)
    both = torch.cat([train.peek(N, CPU).x, val.peek(N, CPU).x])
    assert torch.equal(both.flatten(1).sort(0).values, (x.flatten(1).float() / 255).sort(0).values)
    blocks = [set((part.index // 7).tolist()) for part in (train, val)]
    assert len(blocks[0] & blocks[1]) <= 1  # whole blocks are held out
    order = train.order(0)
    assert torch.equal(order.sort().values, torch.arange(len(train)))
    got = list(train.batches(list(order.split(20)), CPU))
    assert torch.equal(torch.cat([b.y for b in got]), y[train.index[order]])
    assert torch.equal(torch.cat([b.x for b in got]), x[train.index[order]].float() / 255)
    part = source.subset(torch.tensor([200, 3, 77])).subset(torch.tensor([1, 0]))
    assert torch.equal(part.peek(2, CPU).x, x[[3, 200]].float() / 255) and part.labels.tolist() == [3, 200 % 7]
    with pytest.raises(ValueError, match="leaves none to train on"):
        source.split(0.999, seed=0)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint16, np.bool_]
)
def test_dtypes(tmp_path, small, dtype):
    x = (np.arange(60).reshape(20, 3) % 9).astype(dtype)
    np.save(tmp_path / "a.npy", x)
    source = aezoo.load_data(tmp_path / "a.npy")
    assert type(source) is StreamSource and np.array_equal(source.peek(20, CPU).x.numpy(), x.astype(np.float32))


def test_binarisation(tmp_path, small):
    x = torch.full((N, 1, 12, 12), 77, dtype=torch.uint8)
    path = write(tmp_path / "d", "one.npy", x, None)
    plan = list(torch.arange(N).split(30))
    streams = {kind: aezoo.load_data(path, binarize=kind) for kind in ("dynamic", "static", "threshold")}
    assert not torch.cat(collected(streams["threshold"], plan)).any()
    static = torch.cat(collected(streams["static"], plan))
    back = torch.cat(collected(streams["static"], list(torch.arange(N).flip(0).split(11)))).flip(0)
    assert torch.equal(static, back) and static.mean().item() == pytest.approx(77 / 255, abs=0.01)
    draws = []
    for _ in range(2):
        got = []
        batches = streams["dynamic"].batches(plan, CPU)
        for step in range(len(plan)):
            torch.manual_seed(step)
            got.append(next(batches))
        draws.append(torch.cat([b.x for b in got]))
        state = torch.get_rng_state()
    assert torch.equal(*draws) and draws[0].unique().tolist() == [0, 1]
    torch.manual_seed(len(plan) - 1)
    assert torch.equal(torch.bernoulli(torch.full((23, 1, 12, 12), 77 / 255)), draws[0][-23:])
    assert torch.equal(state, torch.get_rng_state())  # nothing else was drawn


def test_a_stream_that_fits_on_the_device_keeps_its_order(tmp_path, small):
    source = aezoo.load_data(write(tmp_path / "d", "tar")).reshaped((12, 12)).split(0.2, seed=0)[0]
    held = source.resident(CPU)
    plan = list(source.order(2).split(32))
    assert torch.equal(held.order(2), source.order(2)) and torch.equal(held.labels, source.labels)
    assert all(torch.equal(a, b) for a, b in zip(collected(source, plan), collected(held, plan)))
    assert held.x.dtype == torch.uint8 and held.subset(torch.arange(9)).order(1).max() == 8


def test_batches_on_the_cpu_are_not_staged():
    batches = [(torch.zeros(2), None)]
    assert prefetch.to_device(batches, CPU) is batches


# ------------------------------------------------------------------------------------------------------------- threads


def test_the_thread_ends_with_the_batches(tmp_path, small):
    source = aezoo.load_data(write(tmp_path / "d", "one.npy"))
    plan = list(source.order(0).split(8))
    for taken in (0, 1, 5, len(plan)):
        batches = source.batches(plan, CPU)
        for _ in range(taken):
            next(batches)
        batches.close()
        assert not stream_threads()
    list(source.batches(plan, CPU))
    assert not stream_threads() and source.check() and not stream_threads()


def test_what_breaks_in_the_thread_is_raised_where_batches_are_asked_for(tmp_path, small):
    path = write(tmp_path / "d", "one.npy")
    source = aezoo.load_data(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"one\.npy is truncated"):
        collected(source, list(source.order(0).split(8)))
    assert not stream_threads()


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("kind", ["one.npy", "tar"])
def test_a_run_on_a_stream_resumes_to_the_bit(tmp_path, small, kind):
    path = write(tmp_path / "d", kind)

    class Stopped(Exception):
        pass

    def stop(row):
        if row["epoch"] == 2:
            raise Stopped

    def run(out, **more):
        model = model_of("vae")
        return fit(model, aezoo.load_data(path), epochs=4, val=0.2, out=tmp_path / out, **more)

    whole = run("whole")
    with pytest.raises(Stopped):
        run(
            "parts", checkpoint_every=7, callbacks=stop
        )  # 11 steps an epoch: the last state is in the middle of the second
    torch.manual_seed(5)
    parts = run("parts", resume=True)
    assert [r["loss"] for r in whole.history] == [r["loss"] for r in parts.history]
    assert [r["val_loss"] for r in whole.history] == [r["val_loss"] for r in parts.history]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), parts.model.parameters()))
    assert not stream_threads()


# ---------------------------------------------------------------------------------------------- files that are refused


def tar_of(path, *entries):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, more in entries:
            add(tar, name, content, **more)


GOOD = png(torch.zeros(1, 12, 12, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("../a.png", GOOD, {}), r"a\.tar holds a member '\.\./a\.png'.*refused"),
        (("x/../../a.png", GOOD, {}), "refused"),
        (("/etc/a.png", GOOD, {}), "refused"),
        (("C:\\a.png", GOOD, {}), "refused"),
        (("é" * 200 + "/../b.png", GOOD, {}), "refused"),
        (("a.png", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), r"a\.tar holds 'a\.png', a symbolic link"),
        (("a.png", b"", {"type": tarfile.LNKTYPE, "linkname": "b.png"}), "a hard link"),
        (("a.png", b"", {"type": tarfile.CHRTYPE}), "a device"),
        (("a.png", b"", {"type": tarfile.FIFOTYPE}), "a pipe"),
        (("a.png", b"no image", {}), r"a\.tar: 'a\.png' cannot be read as an image"),
        (("a.txt", b"words", {}), "the sample 'a' holds neither an image"),
        (("good.jpg", GOOD, {}), "holds two candidates, 'good.png' and 'good.jpg'"),
        (("good.cls", b"cat", {}), "'good.cls' is no number"),
        (("a.npy", npy(torch.zeros(1, 12, 12)), {}), "an array, but .* an image"),
        (("a.png", png(torch.zeros(1, 9, 12, dtype=torch.uint8)), {}), r"'good\.png' is 12x12 .* 'a\.png' is 9x12; pass size="),
    ],
)  # fmt: skip
def test_tar_members_that_are_refused(tmp_path, entry, message):
    tar_of(tmp_path / "a.tar", ("good.png", GOOD, {}), entry)
    with pytest.raises(ValueError, match=message):
        aezoo.load_data(tmp_path / "a.tar")
    assert not stream_threads()


def test_tar_files_that_are_damaged(tmp_path):
    path = write(tmp_path / "d", "tar") / "shard-3.tar"
    whole = path.read_bytes()
    end = whole.rindex(b"ustar") - 257
    bad = whole[:148] + b"0000000\0" + whole[156:]
    huge = whole[: 512 + 124] + b"\x80" + b"\xff" * 11 + whole[512 + 136 :]
    packed = b"\x1f\x8b" + bytes(600)
    for content, message in [(b"", "truncated"), (whole[:700], "truncated"), (whole[: end + 512], "ends beyond"), (whole[: end + 1024], "end-of-archive"),
                             (bad, "checksum"), (huge, "checksum"), (packed, "compressed, unpack it first"), (bytes(1024), "holds no sample")]:  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"shard-3\.tar.*{message}"):
            aezoo.load_data(path)


def test_long_names_and_hidden_members_are_read(tmp_path):
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=form) as tar:
            for i in range(3):
                add(tar, f"{'long/' * 30}{i}.PNG", GOOD)
                add(tar, f".hidden{i}", b"x")
                add(tar, f"{'long/' * 30}._{i}.png", b"x")
    source = aezoo.load_data(tmp_path)
    assert len(source) == 9 and source.labels is None


def safetensors_bytes(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape, begin, end, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc", "a header of .* bytes in a file of 3"),
        (safetensors_bytes({"x": entry([2, 3], 0, 6)}, bytes(6), length=2**40), "a header of 1099511627776 bytes"),
        (safetensors_bytes(b" " * (2**20 + 1)), "far less than"),
        (safetensors_bytes(b"[" * 100_000), "header cannot be read"),
        (safetensors_bytes(b"rubbish"), "header cannot be read"),
        (safetensors_bytes({"x": entry([2, 3], 0, 6)}, bytes(5)), "does not lie within"),
        (safetensors_bytes({"x": entry([2, 3], 0, 6)}, bytes(7)), "another size"),
        (safetensors_bytes({"x": entry([2, 4], 0, 6)}, bytes(6)), "does not lie within"),
        (safetensors_bytes({"x": entry([-2, -3], 0, 6)}, bytes(6)), "header cannot be read"),
        (safetensors_bytes({"x": entry([2, 3], 0, 6, "U9")}, bytes(6)), "header cannot be read"),
        (safetensors_bytes({"a": entry([2, 3], 0, 6), "b": entry([2, 3], 0, 6)}, bytes(6)), "name the samples x"),
        (safetensors_bytes({"x": entry([6], 0, 6)}, bytes(6)), "at least two axes"),
        (safetensors_bytes({"x": entry([2, 3], 0, 6), "y": entry([3], 6, 9)}, bytes(9)), "2 samples but labels"),
    ],
)
def test_safetensors_that_are_refused(tmp_path, content, message):
    (tmp_path / "a.safetensors").write_bytes(content)
    save_file({"x": torch.zeros(2, 3, dtype=torch.uint8)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=rf"a\.safetensors.*{message}"):
        aezoo.load_data(tmp_path)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.array([["a", 1]], dtype=object), ValueError, "Python objects"),
        (np.asfortranarray(np.zeros((4, 3))), ValueError, "Fortran order"),
        (np.zeros((4, 3), np.complex64), TypeError, "complex"),
        (np.zeros((4, 3), "<U3"), ValueError, "dtype <U3"),
        (np.zeros((4, 3), ">f4"), ValueError, "little-endian"),
        (np.zeros(4), ValueError, "at least two axes"),
        (np.zeros((4, 0)), ValueError, "holds no samples"),
        (np.zeros((0, 4)), ValueError, "is empty"),
    ],
)
def test_npy_that_are_refused(tmp_path, small, array, error, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(error, match=message):
        aezoo.load_data(tmp_path / "a.npy")


def test_npy_headers_that_are_refused(tmp_path, small):
    np.save(tmp_path / "a.npy", np.zeros((40, 30), np.uint8))
    whole = (tmp_path / "a.npy").read_bytes()
    long = b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b" " * 2_000_000
    for content, message in [(whole[:-1], "truncated: it has 1327 bytes"), (b"rubbish" * 9, "not a .npy file"), (long, "damaged"),
                             (whole.replace(b"(40, 30)", b"(-4, 30)"), "claims the shape"), (whole.replace(b"(40, 30)", b"exit(30)"), "damaged")]:  # fmt: skip
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.npy.*{message}"):
            aezoo.load_data(tmp_path / "a.npy")


def test_shards_that_do_not_agree(tmp_path):
    folder = write(tmp_path / "d", "npy")
    for odd, message in [
        (np.zeros((3, 1, 12, 11), np.uint8), r"shape \(1, 12, 11\)"),
        (np.zeros((3, 1, 12, 12)), "float64"),
    ]:
        np.save(folder / "shard-9.npy", odd)
        with pytest.raises(ValueError, match=rf"shard-9\.npy holds samples of {message if 'shape' in message else '.*' + message}.*shard-0\.npy"):  # fmt: skip
            aezoo.load_data(folder)
    labelled = write(tmp_path / "s", "safetensors")
    save_file({"x": samples()[0]}, labelled / "shard-9.safetensors")
    with pytest.raises(ValueError, match=r"holds labels, but .*shard-9\.safetensors does not"):
        aezoo.load_data(labelled)
    np.save(labelled / "more.npy", np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"several kinds \(5 x .safetensors, 1 x .npy\); pass a pattern"):
        aezoo.load_data(labelled)


def test_patterns_and_options_that_are_refused(tmp_path):
    folder = write(tmp_path / "d", "npy")
    (folder / "photo.png").write_bytes(GOOD)
    for data, more, error, message in [
        (f"{folder}/none-*.tar", {}, FileNotFoundError, "no file matches"),
        (f"{folder}/*.png", {}, ValueError, "images go by folder"),
        (f"{folder}/*.npy", {"size": 8}, ValueError, "size=.8, 8. does not apply to the arrays"),
        (f"{folder}/*.npy", {"channels": 3}, ValueError, "channels=3 does not apply"),
        (f"{folder}/*.npy", {"split": "test"}, ValueError, "split='test' does not apply"),
        (folder / "shard-0.tgz", {}, ValueError, "unpack it to .tar first"),
    ]:
        (folder / "shard-0.tgz").write_bytes(b"\x1f\x8b")
        with pytest.raises(error, match=message):
            aezoo.load_data(data, **more)
    assert len(aezoo.load_data(f"{folder}/*.npy", size=12, channels=1)) == N
    assert len(aezoo.load_data(folder)) == 1  # a folder with an image is a folder of images
