"""Exports: ONNX and torch.export files give what the model gives, on batches of other sizes than the one they were recorded with."""

import builtins
import json

import numpy as np
import pytest
import torch
from conftest import OWN, model_of

import aezoo
from aezoo import exporting
from aezoo.cli import main
from aezoo.exporting import PARTS, SUFFIX, conditions, samples
from aezoo.registry import MODELS

FAMILIES = {}  # one model of each file of `models`
for _name in aezoo.list_models():
    FAMILIES.setdefault(MODELS[_name].__module__.split(".")[-1], _name)
FAMILIES["images"] = "tiny_ae"  # the others of that file are large
ONNX = ["cvae", "fsq_ae", "lstm_ae", "svae", "tabular_vae", "topk_sae"]


def small(name, **more):
    """A tiny model with weights and buffers that are not where they start."""
    torch.manual_seed(1)
    cls = MODELS[name]
    shape = {"sequences": (7, 2), "tabular": (5,)}.get(cls.__module__.split(".")[-1], (1, 8, 8))
    if name.startswith("tabular"):
        more = {"columns": (0, 0, 3, 0, 2), **more}
    if not cls.backbones and cls.__signature__.parameters["backbone"].default == "mlp":
        more = {"backbone": "mlp(widths=(16,))", **more}
    elif (own := str(cls.__signature__.parameters["backbone"].default).split("(")[0]) in OWN:
        more = {"backbone": OWN[own], **more}
    model = aezoo.create_model(name, input_shape=shape, latent_dim=4, **more)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def load(path, names):
    """Arrays -> array, by onnxruntime or torch alone."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert [i.name for i in session.get_inputs()] == names
        return lambda *args: torch.from_numpy(session.run(None, dict(zip(names, (a.numpy() for a in args))))[0])
    module = torch.export.load(path).module()
    return lambda *args: module(*args)


def check(model, written):
    """Each file on 1, 2 and 9 new samples."""
    g = torch.Generator().manual_seed(11)
    for file in written:
        run = load(file.path, list(file.inputs))
        for n in (1, 2, 9):
            x, told = samples(model, n, g), None
            if "condition" in file.inputs:
                told = conditions(model, n, True, g)
            with torch.no_grad():
                z = model.encode(x, condition=told)
                want = z if file.part == "encoder" else model.decode(z, told)
                first = z.contiguous() if file.part == "decoder" else x
                got = run(first) if told is None else run(first, told)
            assert got.shape == want.shape and got.dtype == want.dtype
            assert torch.allclose(got, want, atol=1e-5, rtol=1e-4), file


def slow_beyond(names, quick):
    """All together they take a minute: a few stay in the quick run."""
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in names]


BOTH = sorted({*FAMILIES.values(), *ONNX})


@pytest.mark.parametrize("name", slow_beyond(BOTH, ONNX))
def test_a_model_of_each_family_in_both_formats(name, tmp_path, monkeypatch):
    """As ONNX one of each family, since that takes four times as long: benchmarks/export.py goes over all. Both files come from one
    recording, which neither changes."""
    model, original, made = small(name), exporting.recorded, {}
    monkeypatch.setattr(exporting, "recorded", lambda part, args: made.setdefault(len(args), original(part, args)))
    (file,) = aezoo.export(model, tmp_path / "file", format="torch-export", tolerance=1e-6)
    assert file.difference <= 1e-6
    monkeypatch.setattr(exporting, "recorded", lambda part, args: made[len(args)])
    check(model, aezoo.export(model, tmp_path / "file", tolerance=1e-5))


@pytest.mark.parametrize("name", slow_beyond(sorted({*aezoo.list_models()} - {*BOTH}), []))
def test_every_other_model_as_a_program(name, tmp_path):
    aezoo.export(small(name), tmp_path / "file", format="torch-export", tolerance=1e-5)


@pytest.mark.parametrize("format", SUFFIX)
def test_all_parts(format, tmp_path):
    model = small("cvae").train()
    before, mode = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    written = aezoo.export(model, tmp_path / "parts", format=format, part="all")
    assert [f.path for f in written] == [tmp_path / "parts" / f"{p}{SUFFIX[format]}" for p in PARTS]
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == sorted(f.path.name for f in written)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and torch.equal(mode, torch.get_rng_state())
    check(model, written)
    assert [list(f.inputs) for f in written] == [["x", "condition"], ["z", "condition"], ["x", "condition"]]
    assert written[1].inputs == {"z": ("float32", (4,)), "condition": ("int64", ())}


def test_conditions(tmp_path):
    vector = small("cvae", condition_dim=3)
    (file,) = aezoo.export(vector, tmp_path / "a", format="torch-export")
    assert file.inputs["condition"] == ("float32", (3,))
    check(vector, [file])
    (file,) = aezoo.export(vector, tmp_path / "b", format="torch-export", condition=False)
    assert list(file.inputs) == ["x"]
    check(vector, [file])
    (file,) = aezoo.export(vector, tmp_path / "c", format="torch-export", condition=torch.ones(1, 3))
    check(vector, [file])
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        aezoo.export(vector, tmp_path / "d", format="torch-export", condition=torch.ones(1, 2))
    with pytest.raises(ValueError, match="at least one"):
        aezoo.export(vector, tmp_path / "d", format="torch-export", condition=torch.ones(0, 3))
    labels = small("aae", num_classes=3)  # labels that only its loss looks at are no input
    (file,) = aezoo.export(labels, tmp_path / "e", format="torch-export")
    assert list(file.inputs) == ["x"]


def test_what_the_output_does_not_need_is_not_in_the_file(tmp_path):
    """Neither a critic nor the terms of a loss."""
    names = {"vae_gan": "critic", "factor_vae": "critic", "svae": "num_steps", "vq_vae": "cluster"}
    for name, idle in names.items():
        model = small(name)
        assert any(idle in k or "discriminator" in k for k in model.state_dict())
        aezoo.export(model, tmp_path / name, format="torch-export")
        program = torch.export.load(tmp_path / f"{name}.pt2")
        assert not [k for k in program.state_dict if idle in k or "discriminator" in k]
        targets = {str(n.target) for n in program.graph.nodes}
        assert not [t for t in targets if "lgamma" in t or "bincount" in t or "index_add" in t]


@pytest.mark.parametrize("likelihood", ["bce", "gaussian(sigma='predicted')"])
def test_the_output_is_in_data_space(likelihood, tmp_path):
    model = small("ae", likelihood=likelihood)
    (file,) = aezoo.export(model, tmp_path / "file", format="torch-export", part="decoder")
    check(model, [file])


def test_missing_entries_and_classes_are_among_the_samples():
    model = small("tabular_ae")
    x = samples(model, 400, torch.Generator().manual_seed(0))
    there = x[~x.isnan()]
    assert 0.05 < x.isnan().float().mean() < 0.15 and len(there) > 0
    for column, classes in ((2, 3), (4, 2)):
        values = x[:, column][~x[:, column].isnan()]
        assert values.unique().tolist() == list(range(classes))


def test_onnx_files_say_what_they_are(tmp_path):
    import onnx

    model = small("vae")
    (file,) = aezoo.export(model, tmp_path / "vae.onnx", part="encoder", opset=18)
    read = onnx.load(file.path)
    onnx.checker.check_model(read)
    about = {p.key: p.value for p in read.metadata_props}
    assert (
        about["aezoo.model"] == "vae" and about["aezoo.part"] == "encoder" and about["aezoo.input_shape"] == "[1, 8, 8]"
    )
    assert [o.version for o in read.opset_import if o.domain == ""] == [18]
    batch = read.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param == "batch" and read.graph.output[0].name == "z"
    kept = sum(np.prod(t.dims) for t in read.graph.initializer)
    assert kept < model.num_parameters * 0.6  # no decoder


def test_programs_say_what_they_are(tmp_path):
    (file,) = aezoo.export(small("vae"), tmp_path / "vae", format="torch-export")
    extra = {"aezoo.json": ""}
    torch.export.load(file.path, extra_files=extra)
    about = json.loads(extra["aezoo.json"])
    assert about["model"] == "vae" and about["part"] == "reconstruct" and about["input_shape"] == [1, 8, 8]


def test_float64_programs(tmp_path):
    model = small("ae").double()
    (file,) = aezoo.export(model, tmp_path / "a", format="torch-export")
    check(model, [file])
    with pytest.raises(ValueError, match=r"torch.float64, and ONNX files are written in float32; pass model.float\(\)"):
        aezoo.export(model, tmp_path / "a")


# --------------------------------------------------------------------------------------------------------------- errors


@aezoo.register("forgetful_ae")
class Forgetful(aezoo.BaseAE):
    """What is recorded of it is something else."""

    def bottleneck(self, h, sample):
        if torch.compiler.is_exporting():
            return h + 1, {}
        return h, {}


@aezoo.register("fixed_ae")
class Fixed(aezoo.BaseAE):
    """Counts its batch on the host."""

    def bottleneck(self, h, sample):
        return h + 0 * len(h), {}


for _name in ("forgetful_ae", "fixed_ae"):  # known to the tests below alone
    MODELS.entries.pop(_name)


@pytest.mark.parametrize("format", SUFFIX)
def test_a_difference_is_an_error_and_leaves_no_file(format, tmp_path):
    torch.manual_seed(0)
    model = Forgetful((6,), 4)
    with pytest.raises(ValueError, match="reconstruct differs from the model by .* nothing was written"):
        aezoo.export(model, tmp_path / "out", format=format)
    assert list(tmp_path.iterdir()) == []
    (file,) = aezoo.export(model, tmp_path / "out", format=format, tolerance=10)
    assert 0.1 < file.difference < file.allowed


def test_a_fixed_batch_is_said_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^fixed_ae has no program of torch.export: .*batch") as caught:
        aezoo.export(Fixed((6,), 4), tmp_path / "out", format="torch-export")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_no_counterpart_in_onnx_is_said_in_one_line(tmp_path):
    class Odd(aezoo.BaseAE):
        def bottleneck(self, h, sample):
            return torch.special.i1(h), {}

    with pytest.raises(ValueError, match=r"^Odd has no counterpart in ONNX: .*bessel_i1") as caught:
        aezoo.export(Odd((6,), 4), tmp_path / "out.onnx")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path):
    model = small("ae")
    for options, message in [
        ({"format": "onnix"}, "allowed: onnx, torch-export. Did you mean 'onnx'"),
        ({"part": "encode"}, "Did you mean 'encoder'"),
        ({"tolerance": 0}, "tolerance=0 must be a number above 0"),
        ({"seed": -1}, "seed=-1"),
        ({"format": "torch-export", "opset": 18}, "opset=18 is of ONNX"),
    ]:
        with pytest.raises(ValueError, match=message):
            aezoo.export(model, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="does not fit format='onnx', whose files end in .onnx"):
        aezoo.export(model, tmp_path / "out.pt2")
    with pytest.raises(ValueError, match="part='all' writes one file each, so name a folder"):
        aezoo.export(model, tmp_path / "out.onnx", part="all")
    (tmp_path / "is.onnx").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        aezoo.export(model, tmp_path / "is.onnx")
    with pytest.raises(TypeError, match="must be a BaseAE"):
        aezoo.export(torch.nn.Linear(2, 2), tmp_path / "out")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] in ("onnxscript", "onnxruntime"):
            raise ImportError(name)
        return original(name, *args, **options)

    import importlib

    module = importlib.import_module
    monkeypatch.setattr(
        "importlib.import_module", lambda name, *a: without(name) if "." not in name else module(name, *a)
    )
    with pytest.raises(ImportError, match=r'need onnxscript, onnxruntime: pip install "aezoo\[export\]"'):
        aezoo.export(small("ae"), tmp_path / "out")
    aezoo.export(small("ae"), tmp_path / "out", format="torch-export")


# --------------------------------------------------------------------------------------------------------- command line


def test_command_line(tmp_path, capsys):
    model = model_of("vae")
    run = model.save_pretrained(tmp_path / "run")
    main(["export", str(run), "--format", "torch-export", "--part", "all"])
    said = capsys.readouterr().out
    assert {p.name for p in (run / "export").iterdir()} == {"encoder.pt2", "decoder.pt2", "reconstruct.pt2"}
    assert (
        "encoder.pt2: encoder of vae; takes x float32 (B, 1, 12, 12)" in said and said.count("largest difference") == 3
    )
    main(["export", str(run), "--out", str(tmp_path / "deep" / "model")])
    said = capsys.readouterr().out
    assert (tmp_path / "deep" / "model.onnx").is_file() and "reconstruct of vae" in said and "(allowed: 0.0001)" in said
    for argv, message in [
        (["--format", "onx"], "--format='onx' is not known; allowed: onnx, torch-export. Did you mean 'onnx'"),
        (["--part", "encoders"], "Did you mean 'encoder'"),
        (["--parts", "all"], "Did you mean '--part'"),
    ]:
        with pytest.raises(SystemExit) as left:
            main(["export", str(run), *argv])
        assert left.value.code == 2 and message in capsys.readouterr().err
