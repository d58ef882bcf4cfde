"""Fine-tuning: a model adapted to other data, parts of it frozen, rates of their own, and folders with damaged files."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_run, fit, make_images, model_of, state_of
from PIL import Image

import aezoo
from aezoo.cli import main
from aezoo.train.freezing import chosen

MODELS = aezoo.list_models()
SMALL = {"mlp": "mlp(widths=(16,))", "conv": "conv(widths=(4, 8))"}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("aezoo.pictures.draw_run", lambda *args: ([], []))


def tiny(name, shape=(1, 8, 8), **more):
    free = {} if aezoo.registry.MODELS[name].backbones else {"backbone": "mlp(widths=(16,))"}
    return aezoo.create_model(name, input_shape=shape, latent_dim=8, **{**free, **more})


# ----------------------------------------------------------------------------------------------------------------- adapt


def resized(x, size):
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)


def recoloured(x, channels):
    """Channels in turn: more of them repeat, fewer are means of those that share a number."""
    have = x.shape[1]
    if channels >= have:
        return x[:, [i % have for i in range(channels)]]
    return torch.stack([x[:, i::channels].mean(1) for i in range(channels)], 1)


@pytest.mark.parametrize(
    ("old", "new"), [((1, 12, 12), (3, 16, 14)), ((3, 12, 12), (1, 9, 12)), ((3, 8, 8), (4, 8, 8))]
)
def test_an_adapted_mlp_resizes_and_recolours(old, new):
    """new(x) = U old(D x): the picture is brought to the old shape, and what comes out to the new one."""
    model = aezoo.create_model("ae", input_shape=old, latent_dim=4, backbone=SMALL["mlp"]).eval()
    other = model.adapt(input_shape=new, progress=False)
    x = torch.rand(5, *new)
    inside = resized(recoloured(x, old[0]), old[1:])
    out = resized(recoloured(model.reconstruct(inside), new[0]), new[1:])
    assert torch.allclose(other.encode(x), model.encode(inside), atol=1e-5)
    assert torch.allclose(other.reconstruct(x), out, atol=1e-5)
    assert other.adapted.new == [] and other.adapted.dropped == [] and other.input_shape == new


@pytest.mark.parametrize("name", ["conv_ae", "conv_vae", "resnet_vae", "vq_vae"])
def test_convolutions_see_the_mean_of_the_channels(name):
    """timm's rule: the kernels of a grey first convolution, repeated over three channels and divided by three."""
    model = aezoo.create_model(name, input_shape=(1, 16, 16), latent_dim=4).eval()
    other = model.adapt(input_shape=(3, 16, 16), progress=False)
    x = torch.rand(4, 3, 16, 16)
    grey = model.reconstruct(x.mean(1, keepdim=True))
    assert torch.allclose(other.reconstruct(x), grey.expand(-1, 3, -1, -1), atol=1e-5)
    back = other.adapt(input_shape=(1, 16, 16), progress=False)
    assert torch.allclose(back.reconstruct(x[:, :1]), model.reconstruct(x[:, :1]), atol=1e-5)


@pytest.mark.parametrize("name", ["ae", "vae", "conv_vae", "tied_ae"])
def test_a_wider_code_changes_no_reconstruction(name):
    model = aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=4).eval()
    other = model.adapt(latent_dim=7, progress=False)
    x = make_images(6)[0]
    assert torch.allclose(other.encode(x)[:, :4], model.encode(x), atol=1e-6)
    if name != "tied_ae":  # whose decoder reads the encoder's weights
        assert torch.allclose(other.reconstruct(x), model.reconstruct(x), atol=1e-6)
    assert bool(other.encode(x)[:, 4:].abs().sum() > 0)
    assert set(other.adapted.resized.values()) == {"latents"}
    back = other.adapt(latent_dim=4, progress=False)
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items())


def test_feature_maps_are_resized_with_the_picture():
    """A picture of a smooth blob, twice as large, has nearly the code of the small one, and its picture is that of the small one."""
    model = aezoo.create_model("conv_ae", input_shape=(1, 16, 16), latent_dim=4, backbone=SMALL["conv"])
    x = make_images(64, 16)[0]
    fit(model, x, steps=150, lr=3e-3)
    other = model.adapt(input_shape=(1, 32, 32), progress=False)
    with torch.no_grad():
        large = F.interpolate(x, size=(32, 32), mode="bilinear")
        small_error = F.mse_loss(model.reconstruct(x), x)
        error = F.mse_loss(other.reconstruct(large), large)
        fresh = aezoo.create_model("conv_ae", input_shape=(1, 32, 32), latent_dim=4, backbone=SMALL["conv"])
        nothing = F.mse_loss(fresh.reconstruct(large), large)
    assert small_error < 0.1 * nothing and error < 0.5 * nothing
    assert {k: v for k, v in other.adapted.resized.items() if v != "size"} == {}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_adapts_or_says_why_not(name):
    model = tiny(name)
    for change in ({"input_shape": (3, 12, 10)}, {"latent_dim": 12}):
        try:
            other = model.adapt(**change, progress=False)
        except ValueError as error:
            assert "input_shape" in str(error) or "latent_dim" in str(error) or name in str(error), error
            continue
        report = other.adapted
        assert sorted([*report.kept, *report.resized, *report.new]) == sorted(other.state_dict())
        assert all(torch.equal(other.state_dict()[k], model.state_dict()[k]) for k in report.kept)
        assert all(tuple(np.atleast_1d(other.config[k])) == tuple(np.atleast_1d(v)) for k, v in change.items())
        out = other(torch.rand(4, *other.input_shape))
        assert out.recon.shape == (4, *other.input_shape) and torch.isfinite(
            other.loss(torch.rand(4, *other.input_shape)).total
        )


def test_vit_positions_and_patches():
    vit = {"name": "vit", "width": 8, "depth": 1, "heads": 2, "patch": None}
    model = aezoo.create_model("ae", input_shape=(1, 32, 32), latent_dim=4, backbone=vit).eval()
    other = model.adapt(input_shape=(3, 64, 64), progress=False)
    assert other.adapted.new == [] and other.adapted.resized["encoder.embed.weight"] == "channels and size"
    grey = torch.rand(2, 1, 1, 1).expand(-1, 3, 64, 64)  # of one brightness: no interpolation changes it
    assert torch.allclose(other.encode(grey), model.encode(grey[:, :1, :32, :32]), atol=1e-4)


def test_what_adapt_says(capsys):
    model = aezoo.create_model("lstm_ae", input_shape=(6, 3), latent_dim=4)
    other = model.adapt(input_shape=(9, 5))
    said = capsys.readouterr().out
    assert said.startswith("lstm_ae (6, 3) -> 4 becomes (9, 5) -> 4:") and "kept" in said and said.count("\n") == 1
    assert other.adapted.new and all(f"new      {name}" in str(other.adapted) for name in other.adapted.new)
    assert model.adapted is None and model.input_shape == (6, 3)
    table = aezoo.create_model("ae", input_shape=(30,), latent_dim=4).adapt(input_shape=(13,), progress=False)
    assert "encoder.0.layer.weight" in table.adapted.new  # columns of a table are no axis to interpolate along


def test_a_fitted_prior_stays_where_the_code_stays():
    model, x = model_of("ae"), make_images(64)[0]
    aezoo.fit_prior(model, x, "gmm")
    other = model.adapt(input_shape=(3, 12, 12), progress=False)
    priors = [{k: v for k, v in m.state_dict().items() if k.startswith("prior.")} for m in (model, other)]
    assert priors[0] and priors[0].keys() == priors[1].keys()
    assert all(torch.equal(v, priors[1][k]) for k, v in priors[0].items())
    assert other.sample(2).shape == (2, 3, 12, 12)
    wider = model.adapt(latent_dim=6, progress=False)
    assert wider.prior is None and any(name.startswith("prior.") for name in wider.adapted.dropped)


def test_adapt_refuses():
    model = model_of("vae")
    with pytest.raises(ValueError, match="needs what is to change"):
        model.adapt()
    with pytest.raises(ValueError, match="latent_dim=0 must be"):
        model.adapt(latent_dim=0)
    with pytest.raises(ValueError, match="input_shape='x' must be"):
        model.adapt(input_shape="x")
    own = aezoo.create_model(
        "ae", input_shape=(4,), latent_dim=2, backbone=(torch.nn.Linear(4, 2), torch.nn.Linear(2, 4))
    )
    with pytest.raises(TypeError, match="adapt"):
        own.adapt(latent_dim=3)


def test_dtype_mode_and_saving(tmp_path):
    model = model_of("vae").double().eval()
    other = model.adapt(input_shape=(1, 10, 10), progress=False)
    assert next(other.parameters()).dtype == torch.float64 and not other.training
    other.save_pretrained(tmp_path)
    x = torch.rand(2, 1, 10, 10, dtype=torch.float64)
    assert torch.equal(aezoo.from_pretrained(tmp_path).reconstruct(x), other.reconstruct(x))


# ---------------------------------------------------------------------------------------------------------------- freeze


@pytest.mark.parametrize("name", MODELS)
def test_frozen_means_frozen(name):
    """Of every model, each part in turn: no tensor of it changes, buffers included, and something else does."""
    model = tiny(name)
    shape = (8, *model.input_shape)
    data = torch.rand(shape)
    parts = [n for n, m in model.named_children() if any(True for _ in m.parameters())]
    for part in parts:
        trained = copy.deepcopy(model)
        try:
            fit(trained, data, steps=2, batch_size=4, freeze=part, compile=False)
        except ValueError as error:
            assert "leaves nothing" in str(error), error
            continue
        now, before = trained.state_dict(), model.state_dict()
        moved = [k for k in before if not torch.equal(before[k], now[k])]
        assert moved and not [k for k in moved if k.startswith(f"{part}.")], (part, moved)
        assert all(p.requires_grad for p in trained.parameters())


def test_batch_norms_and_dropout_stand_still():
    backbone = "mlp(widths=(16,), norm='batch', dropout=0.5)"
    model = aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=4, backbone=backbone)
    x = make_images(64)[0]
    fit(model, x, steps=5)
    before = copy.deepcopy(model.state_dict())
    seen = []

    class Look(aezoo.Callback):
        def on_step(self, run):
            parts = (run.model.encoder, run.model.decoder)
            seen.append([all(m.training for m in part.modules()) for part in parts])
            assert not any(p.requires_grad for p in run.model.encoder.parameters())
            assert len(run.optimizer.param_groups[0]["params"]) <= len(list(run.model.decoder.parameters()))

    fit(model, x, steps=5, freeze=["encoder"], callbacks=Look(), val=0.25)
    assert seen == [[False, True]] * 5
    now = model.state_dict()
    assert all(torch.equal(before[k], now[k]) for k in before if k.startswith("encoder."))
    assert not torch.equal(before["decoder.0.norm.running_mean"], now["decoder.0.norm.running_mean"])


def test_tied_layers_freeze_what_they_borrow():
    model = tiny("tied_ae", backbone="mlp(widths=(16,), tied=True)")
    before = copy.deepcopy(model.state_dict())
    fit(model, torch.rand(16, 1, 8, 8), steps=2, freeze="decoder")
    now = model.state_dict()
    assert [k for k in now if not torch.equal(now[k], before[k])] == ["encoder.0.layer.bias", "encoder.1.layer.bias"]


def test_names_and_patterns():
    model = model_of("vae")
    names = {id(p): n for n, p in model.named_parameters()}

    def held(freeze):
        return sorted(names[id(p)] for p in chosen(model, freeze).parameters)

    assert held("encoder") == held(["encoder.*"]) == held(["encoder.0", "encoder.1"]) and len(held("encoder")) == 4
    assert held("encoder.0.layer.weight") == ["encoder.0.layer.weight"]
    assert held("*.bias") == sorted(n for n in names.values() if n.endswith("bias"))
    assert held(None) == held([]) == held(()) == []
    assert any(m is model.encoder for m in chosen(model, "encoder.*").modules)
    for wrong, near in (("encodr", "'encoder'"), ("decoder.0.layr", "'decoder.0.layer'"), ("Encoder", "'encoder'")):
        with pytest.raises(ValueError, match=f"holds nothing named '{wrong}'.*Did you mean {near}"):
            fit(model, make_images(8)[0], steps=1, freeze=[wrong])
    with pytest.raises(ValueError, match="leaves nothing of vae to train"):
        fit(model, make_images(8)[0], steps=1, freeze=["encoder", "decoder", "likelihood*"])
    with pytest.raises(TypeError, match="freeze=3 must be names"):
        fit(model, make_images(8)[0], steps=1, freeze=3)


def test_rates_by_name():
    model, x = model_of("ae"), make_images(32)[0]
    seen = {}

    class Look(aezoo.Callback):
        def on_step(self, run):
            names = {id(p): n for n, p in run.model.named_parameters()}
            for group in run.optimizer.param_groups:
                seen.update({names[id(p)].split(".")[0]: group["lr"] for p in group["params"]})

    fit(model, x, steps=1, groups={"encoder": 1e-4}, lr=1e-3, callbacks=Look())
    assert seen == {"encoder": pytest.approx(1e-4), "decoder": pytest.approx(1e-3)}
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    fit(one, x, steps=2, groups={"encoder": 1e-4})
    fit(two, x, steps=2, groups={"encoder.*": {"lr": 1e-4}})
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    with pytest.raises(ValueError, match=r"gives 'encoder' a rate, and freeze=\['encoder'\] holds it"):
        fit(model, x, steps=1, groups={"encoder": 1e-4}, freeze="encoder")
    with pytest.raises(ValueError, match="takes a learning rate"):
        fit(model, x, steps=1, groups={"encoder": "fast"})
    with pytest.raises(ValueError, match="no parameter's name fits 'encodr'.*Did you mean 'encoder'"):
        fit(model, x, steps=1, groups={"encodr": 1e-4})


def test_a_run_that_goes_on_stays_frozen(tmp_path):
    x = make_images(64)[0]
    options = {"freeze": ["encoder"], "groups": {"decoder.0": 1e-3}, "val": 0.25, "checkpoint_every": 2}
    whole, parts = model_of("vae"), model_of("vae")
    fit(whole, x, steps=6, out=tmp_path / "a", **options)
    fit(parts, x, steps=3, out=tmp_path / "b", **options)
    again = model_of("vae")
    fit(again, x, steps=6, out=tmp_path / "b", resume=True, **options)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    tensors = state_of(tmp_path / "b")[1]
    assert all(
        torch.equal(tensors[f"model.{k}"], v)
        for k, v in model_of("vae").state_dict().items()
        if k.startswith("encoder")
    )
    assert {k.removeprefix("model.") for k in tensors if k.startswith("model.")} == set(whole.state_dict())
    with pytest.raises(ValueError, match=r"other settings: freeze=\['encoder'\] there, None here"):
        fit(model_of("vae"), x, steps=6, out=tmp_path / "b", resume=True, **{**options, "freeze": None})


def test_a_checkpoint_from_before_there_was_freeze(tmp_path):
    """Its settings name no `freeze`, which is what None means."""
    from aezoo.storage import read_json, sha256

    x = make_images(32)[0]
    fit(model_of("ae"), x, steps=2, checkpoint_every=1, out=tmp_path)
    folder = max((tmp_path / "checkpoints").iterdir())
    state = read_json(folder / "state.json")
    del state["fixed"]["freeze"]
    (folder / "state.json").write_text(json.dumps(state))
    manifest = read_json(folder / "manifest.json")
    manifest["files"]["state.json"] = {
        "bytes": (folder / "state.json").stat().st_size,
        "sha256": sha256(folder / "state.json"),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    fit(model_of("ae"), x, steps=4, out=tmp_path, resume=True)
    assert state_of(tmp_path)[0]["step"] == 4


@pytest.mark.slow  # compiles
def test_compiled_and_as_written_agree():
    x = make_images(32)[0]
    models = [model_of("ae") for _ in range(2)]
    for model, compiled in zip(models, (False, True)):
        fit(model, x, steps=3, freeze="encoder", compile=compiled)
    start = model_of("ae").state_dict()
    for k, v in models[0].state_dict().items():
        assert torch.allclose(v, models[1].state_dict()[k], atol=1e-6)
        assert torch.equal(v, start[k]) == k.startswith("encoder.")


@pytest.mark.parametrize("said", ["encoder", "[encoder]", '["encoder", "decoder.0"]'])
def test_as_a_flag_and_in_yaml(tmp_path, said, capsys):
    np.save(tmp_path / "x.npy", make_images(32)[0].numpy())
    base = [
        "train",
        "--model",
        "ae",
        "--model.backbone",
        "mlp(widths=(8,))",
        "--data",
        str(tmp_path / "x.npy"),
        "--train.steps",
        "2",
    ]
    main([*base, "--train.freeze", said, "--train.device", "cpu", "--out", str(tmp_path / "run")])
    assert "of them frozen" in capsys.readouterr().out
    first = aezoo.storage.read_tensors(tmp_path / "run" / "last" / "model.safetensors")[0]
    assert "freeze:" in (tmp_path / "run" / "config.yaml").read_text()
    main(["train", "--resume", str(tmp_path / "run"), "--train.steps", "4"])
    now = aezoo.storage.read_tensors(tmp_path / "run" / "last" / "model.safetensors")[0]
    same = {k for k in first if torch.equal(first[k], now[k])}
    assert {k for k in first if k.startswith("encoder.")} <= same and "decoder.1.layer.weight" not in same
    with pytest.raises(SystemExit):
        main([*base, "--train.freeze", "encodr", "--out", str(tmp_path / "no")])
    assert "Did you mean 'encoder'" in capsys.readouterr().err


def test_from_a_trained_model_on_the_command_line(tmp_path, capsys):
    """Other data in shape and channels: weights carried over, the encoder untouched, and the run goes on by itself."""
    model = model_of("ae")
    model.save_pretrained(tmp_path / "old")
    np.save(tmp_path / "x.npy", torch.rand(32, 3, 10, 10).numpy())
    base = ["train", "--from", str(tmp_path / "old"), "--data", str(tmp_path / "x.npy"), "--train.device", "cpu"]
    run = tmp_path / "run"
    main([*base, "--train.freeze", "encoder", "--train.steps", "2", "--out", str(run), "--model.latent_dim", "6"])
    assert "ae (1, 12, 12) -> 4 becomes (3, 10, 10) -> 6" in capsys.readouterr().out
    main(["train", "--resume", str(run), "--train.steps", "3"])
    now, wanted = aezoo.from_pretrained(run), model.adapt(input_shape=(3, 10, 10), latent_dim=6, progress=False)
    assert now.input_shape == (3, 10, 10) and torch.equal(now.encoder[0].layer.weight, wanted.encoder[0].layer.weight)
    assert not torch.equal(now.decoder[1].layer.weight, wanted.decoder[1].layer.weight)
    for flags, said in (
        (["--model.backbone", "conv"], "--model.backbone: with --from the model is the trained one"),
        (["--resume", str(run)], "leave --from out"),
    ):
        with pytest.raises(SystemExit):
            main([*base, *flags])
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--from"])
    assert "--from needs a model" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- from a trained model, in small


def test_fine_tuning_beats_training_from_nothing(tmp_path):
    """Grey blobs first; then a folder of coloured ones of another size: encoder frozen, then all with rates of their own."""
    source = aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=8, backbone="mlp(widths=(64,))")
    fit(source, make_images(256)[0], steps=300, lr=2e-3)
    colours = torch.rand(96, 3, 1, 1, generator=torch.Generator().manual_seed(1)) * 0.7 + 0.3
    pictures = (make_images(96, 16, seed=7)[0] * colours * 255).byte().permute(0, 2, 3, 1).numpy()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i:03}.png")
    folder = aezoo.load_data(tmp_path)
    assert folder.shape == (3, 16, 16)

    tuned = source.adapt(input_shape=folder.shape, progress=False)
    encoder = copy.deepcopy(tuned.encoder.state_dict())
    first = fit(tuned, folder, steps=15, lr=1e-3, val=0.25, freeze="encoder")
    assert all(torch.equal(v, tuned.encoder.state_dict()[k]) for k, v in encoder.items())
    second = fit(tuned, folder, steps=15, lr=1e-3, val=0.25, groups={"encoder": 3e-4})
    assert not torch.equal(encoder["0.layer.weight"], tuned.encoder.state_dict()["0.layer.weight"])

    scratch = aezoo.create_model("ae", input_shape=folder.shape, latent_dim=8, backbone="mlp(widths=(64,))")
    alone = fit(scratch, folder, steps=30, lr=1e-3, val=0.25)
    assert second.best["val_loss"] < first.best["val_loss"] and second.best["val_loss"] < 0.8 * alone.best["val_loss"]


# --------------------------------------------------------------------------------------------------------- damaged files


def folder_with_damage(path, kinds=("png", "jpg", "bmp", "gif", "webp")):
    """Ten whole pictures, and of each kind one that is cut off, a file that is no picture and an empty one."""
    g = torch.Generator().manual_seed(0)
    bad = []
    for kind in kinds:
        for i in range(3):
            picture = torch.randint(0, 256, (24, 24, 3), generator=g, dtype=torch.uint8).numpy()
            Image.fromarray(picture).save(path / f"{i}.{kind}")
        data = (path / f"2.{kind}").read_bytes()
        (path / f"2.{kind}").write_bytes(data[: 2 * len(data) // 3])
        (path / f"text.{kind}").write_bytes(b"this is text")
        (path / f"empty.{kind}").write_bytes(b"")
        bad += [f"2.{kind}", f"text.{kind}", f"empty.{kind}"]
    return bad


@pytest.mark.parametrize("streamed", [False, True])
def test_all_damaged_files_are_named(tmp_path, monkeypatch, capsys, streamed):
    bad = folder_with_damage(tmp_path)
    if streamed:
        monkeypatch.setattr("aezoo.data.files.IN_MEMORY", 0)
    with pytest.raises(ValueError, match=f"{len(bad)} of {5 * 5} images cannot be read.*skip_corrupt=True") as found:
        aezoo.load_data(tmp_path)
    assert [name for name in bad if f"{name} (" not in str(found.value)] == []
    source = aezoo.load_data(tmp_path, skip_corrupt=True, workers=0 if streamed else None)
    said = capsys.readouterr().out
    assert len(source) == 10 and [name for name in bad if f"{name} (" not in said] == []
    assert source.peek(10, torch.device("cpu")).x.shape == (10, 3, 24, 24)


def test_a_whole_file_with_something_behind_its_end_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("aezoo.data.files.IN_MEMORY", 0)
    for kind in ("png", "jpg", "gif"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"a.{kind}")
        with open(tmp_path / f"a.{kind}", "ab") as f:
            f.write(bytes(100))
    assert len(aezoo.load_data(tmp_path, workers=0)) == 3


def test_a_folder_of_nothing_but_damage(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    (tmp_path / "b.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="2 of 2 images cannot be read"):
        aezoo.load_data(tmp_path, skip_corrupt=True)
