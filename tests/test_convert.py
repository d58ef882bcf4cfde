"""Foreign .pt files: tensors come out, code never runs."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from conftest import model_of

import aezoo
from aezoo.cli import main
from aezoo.storage import read_tensors


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.safetensors"


def converted(value, tmp_path, out, **more):
    torch.save(value, tmp_path / "in.pt")
    assert aezoo.convert_pt(tmp_path / "in.pt", out, **more) == out
    return read_tensors(out)[0]


def test_a_state_dict_goes_through_to_the_bit(tmp_path, out):
    state = model_of("vae").state_dict()
    found = converted(state, tmp_path, out)
    assert found.keys() == state.keys() and all(torch.equal(found[k], v) for k, v in state.items())
    fresh = aezoo.create_model("vae", input_shape=(1, 12, 12), latent_dim=4, backbone="mlp(widths=(32,))")
    fresh.load_state_dict(found)


A, B = torch.arange(6.0).view(2, 3), torch.tensor([True, False])


@pytest.mark.parametrize(
    ("value", "key", "names"),
    [
        ({"a": A, "b": B}, None, {"a", "b"}),
        ({"epoch": 3, "state_dict": {"a": A}, "optimizer": {"x": B}}, None, {"a"}),
        ({"model": OrderedDict(a=A, b=B)}, None, {"a", "b"}),
        ({"model_state_dict": {"a": A}}, None, {"a"}),
        ({"ema": {"net": {"w": A}}, "state_dict": {"a": B}}, "ema", {"net.w"}),
        ({"ema": {"net": {"w": A}}}, "ema.net", {"w"}),
        ({"ema.net": {"w": A}}, "ema.net", {"w"}),
        ({"encoder": {"0": {"weight": A}}, "decoder": {"weight": B}}, None, {"encoder.0.weight", "decoder.weight"}),
        ({"module.a": A, "module.b": B}, None, {"a", "b"}),
        ({"module._orig_mod.a": A}, None, {"a"}),
        ({"_orig_mod.a": A, "_orig_mod.module.b": B}, None, {"a", "module.b"}),
        ({"module.a": A, "b": B}, None, {"module.a", "b"}),
        ({1: A, "n": 5, "text": "no tensor"}, None, {"1"}),
        (A, None, {"tensor"}),
        ({"a": torch.nn.Parameter(A)}, None, {"a"}),
    ],
)
def test_where_tensors_are_found_and_what_they_are_called(tmp_path, out, value, key, names):
    assert converted(value, tmp_path, out, key=key).keys() == names


def test_values_of_all_kinds_and_tensors_that_share_memory(tmp_path, out):
    base = torch.randn(4, 6)
    value = {"a": base, "same": base, "part": base[1:3], "turned": base.T, "half": base.half(), "bf": base.bfloat16(),
             "whole": torch.arange(3), "none": torch.zeros(0, 2), "one": torch.tensor(2.5)}  # fmt: skip
    found = converted(value, tmp_path, out)
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in value.items())


def test_the_old_format_is_read_too(tmp_path, out):
    torch.save({"a": A}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    aezoo.convert_pt(tmp_path / "old.pt", out)
    assert torch.equal(read_tensors(out)[0]["a"], A)


class Trap:
    """Unpickled by the ordinary unpickler, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("kind", ["torch", "legacy", "plain pickle", "inside a state dict"])
@pytest.mark.parametrize("forced", [False, True])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, out, kind, forced, monkeypatch):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    caught, file = tmp_path / "caught", tmp_path / "evil.pt"
    trap = Trap(caught)
    if kind == "plain pickle":
        file.write_bytes(pickle.dumps(trap))
    else:
        value = {"state_dict": {"a": A, "b": trap}} if kind == "inside a state dict" else trap
        torch.save(value, file, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(ValueError, match=r"evil\.pt .*(must not run code|damaged)") as error:
        aezoo.convert_pt(file, out)
    assert not caught.exists() and not out.exists() and "\n" not in str(error.value)
    if kind != "plain pickle":
        assert "mkdir" in str(error.value)
        with pytest.MonkeyPatch.context() as patch:  # the trap is a real one
            patch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
            torch.load(file, weights_only=False)
        assert caught.exists()


def test_a_pickled_model_is_refused_with_what_to_do(tmp_path, out):
    torch.save(model_of("ae"), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"wants to call aezoo\.models\.\S+.*state_dict"):
        aezoo.convert_pt(tmp_path / "model.pt", out)


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(50 * 2**20))


def lying_archive(path):
    """The directory claims a member a thousand times as long as the file."""
    torch.save({"a": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/0"))
    data[at + 20 : at + 28] = struct.pack("<II", 10**8, 10**8)
    path.write_bytes(bytes(data))


def expanded(path):
    """One number, seen as a trillion."""
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path)


def nested(path):
    value = A
    for _ in range(300):
        value = {"k": value}
    torch.save(value, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (zip_bomb, "is compressed, which torch.save never does"),
        (lying_archive, "claims to hold|damaged"),
        (expanded, "its tensors would take 4,000,000,000,000"),
        (lambda p: p.write_bytes(b""), "damaged or no file of torch.save"),
        (lambda p: p.write_bytes(b"hello, I am text\n" * 9), "damaged|must not run code"),
        (lambda p: p.write_bytes(os.urandom(4000)), "damaged|must not run code"),
        (lambda p: torch.save({"a": A}, p) or p.write_bytes(p.read_bytes()[:-200]), "damaged|must not run code"),
        (lambda p: torch.save({"n": 3}, p), "holds no tensors; it holds 'n'"),
        (lambda p: torch.save({}, p), "holds no tensors; it holds an empty dict"),
        (lambda p: torch.save([A], p), "holds no tensors; it holds a list"),
        (lambda p: torch.save({"a": {"b": A}, "a.b": B}, p), "two tensors of the name 'a.b'"),
        (
            lambda p: torch.save({"state_dict": {"a": A}, "model": {"a": B}}, p),
            "at 'state_dict' and 'model'; pass key=",
        ),
        (lambda p: torch.save({"a": torch.eye(3).to_sparse()}, p), "no plain dense tensor"),
        (lambda p: torch.save({"a": torch.zeros(3, device="meta")}, p), "no plain dense tensor"),
        (lambda p: torch.jit.script(torch.nn.Linear(2, 2)).save(str(p)), "TorchScript program"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_odd_files_end_in_one_line_and_write_nothing(tmp_path, out, make, message):
    file = tmp_path / "odd.pt"
    make(file)
    with pytest.raises(ValueError, match=message) as error:
        aezoo.convert_pt(file, out)
    assert "\n" not in str(error.value) and "odd.pt" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.pt"]


def test_deep_nesting_is_flattened_or_refused_but_never_crashes(tmp_path, out):
    nested(tmp_path / "deep.pt")
    try:
        aezoo.convert_pt(tmp_path / "deep.pt", out)
        assert torch.equal(read_tensors(out)[0][".".join(["k"] * 300)], A)
    except ValueError:
        assert not out.exists()


def test_keys_and_names_that_are_off(tmp_path, out):
    file = tmp_path / "in.pt"
    torch.save({"weights": {"a": A}, "steps": 3}, file)
    with pytest.raises(
        ValueError, match=r"nothing at key='wieghts'; it holds 'weights', 'steps'. Did you mean 'weights'"
    ):
        aezoo.convert_pt(file, out, key="wieghts")
    with pytest.raises(ValueError, match=r"holds no tensors at key='steps'; it holds a int"):
        aezoo.convert_pt(file, out, key="steps")
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'in.pt'"):
        aezoo.convert_pt(tmp_path / "inn.pt", out)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        aezoo.convert_pt(file, tmp_path / "out.pt")


def test_nothing_is_overwritten_without_saying(tmp_path, out):
    torch.save({"a": A}, tmp_path / "in.pt")
    out.write_text("precious")
    with pytest.raises(ValueError, match="is there already; pass overwrite=True"):
        aezoo.convert_pt(tmp_path / "in.pt", out)
    assert out.read_text() == "precious"
    aezoo.convert_pt(tmp_path / "in.pt", out, overwrite=True)
    assert torch.equal(read_tensors(out)[0]["a"], A)
    disguised = tmp_path / "disguised.safetensors"
    torch.save({"a": A}, disguised)
    with pytest.raises(ValueError, match="itself"):
        aezoo.convert_pt(disguised, disguised, overwrite=True)


def test_on_the_command_line(tmp_path, out, capsys):
    torch.save({"net": {"module.a": A}, "epoch": 3}, tmp_path / "in.pt")
    main(["convert", str(tmp_path / "in.pt"), str(out)])
    said = capsys.readouterr().out
    assert "1 tensors, 6 numbers" in said and "left out, being no tensors: epoch" in said
    with pytest.raises(SystemExit) as end:
        main(["convert", str(tmp_path / "in.pt"), str(out)])
    assert end.value.code == 2 and "--overwrite" in capsys.readouterr().err
    main(["convert", str(tmp_path / "in.pt"), str(out), "--key", "net", "--overwrite"])
    assert read_tensors(out)[0].keys() == {"a"}
