"""Image tokenizers in the layouts of diffusers and latent diffusion, against what diffusers itself saved and computed.

`fixtures/record_diffusers.py` records the folders; its mode "check" compares with the package in the other direction, too."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import fit
from safetensors.torch import load_file, save_file

import aezoo
from aezoo import functional as fn
from aezoo.interop import diffusers, latent_diffusion

ARCHIVE = Path(__file__).parent / "fixtures" / "diffusers.zip"
SHAPES = {"kl": (3, 8, 8), "kl_bare": (1, 8, 12), "vq": (3, 8, 8), "vq_square": (3, 5, 5), "tiny": (3, 8, 8)}
FLAT = "resnet(widths=(8, 16), groups=4, attention=True)"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


def load(folder, **options):
    """A recorded folder; only AutoencoderTiny's config lacks the size of its pictures."""
    return diffusers.load(folder, **({"input_shape": SHAPES["tiny"]} if folder.name == "tiny" else {}), **options)


def spread(model, x):
    mu, logvar = model.posterior(model.hidden(x))
    return (0.5 * logvar).exp(), fn.gaussian_kl(mu, logvar)


def close(a, b):
    assert a.shape == b.shape and (a - b).abs().max().item() < 1e-4


def rewrite(folder, **changes):
    """Changes keys of a config; ... removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def copied(recorded, name, tmp_path, **changes):
    folder = tmp_path / name
    folder.mkdir()
    for file in (recorded / name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    rewrite(folder, **changes)
    return folder


def build(name="autoencoder_kl", shape=(3, 8, 8), **more):
    chosen = {"backbone": FLAT} if name != "tiny_ae" else {"backbone": "tiny(width=4, levels=2, blocks=1, signed=True)"}
    model = aezoo.create_model(name, shape, **{"latent_dim": 3, **chosen, **more})
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model


# ------------------------------------------------------------------------------------------------------ theirs, here


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_of_diffusers_gives_what_it_gives_there(recorded, name):
    model, wanted = load(recorded / name), load_file(recorded / name / "outputs.safetensors")
    x = wanted["x"]
    assert model.input_shape == SHAPES[name] and not model.training
    with torch.no_grad():
        close(model.encode(x), wanted["z"])
        close(model.reconstruct(x), wanted["recon"])
        close(model.decode(wanted["z"]), wanted["recon"])
        if "indices" in wanted:
            assert torch.equal(model.indices(x), wanted["indices"])
            close(model.decode_indices(wanted["indices"]), wanted["recon"])
        if "std" in wanted:
            std, kl = spread(model, x)
            assert wanted["std"].max() == pytest.approx(torch.tensor(10.0).exp().item())  # cut at logvar = 20
            assert wanted["std"].min() == pytest.approx(torch.tensor(-15.0).exp().item())  # and at -30
            assert torch.allclose(std, wanted["std"], rtol=1e-4) and torch.allclose(kl, wanted["kl"], rtol=1e-4)
    assert wanted["recon"].std() > 0.1  # the recorded ones are no constants


@pytest.mark.parametrize("name", SHAPES)
def test_what_it_is_written_as_holds_the_same_weights_and_config(recorded, name, tmp_path):
    model = load(recorded / name)
    folder = diffusers.save(model, tmp_path / "out")
    there, here = (load_file(f / diffusers.WEIGHTS) for f in (recorded / name, folder))
    assert there.keys() == here.keys() and all(torch.equal(there[k], here[k]) for k in there)
    before, after = (json.loads((f / "config.json").read_text()) for f in (recorded / name, folder))
    changed = {k for k in before if before[k] != after.get(k, ...)}
    allowed = {"kl_bare": {"sample_size"}, "vq_square": {"vq_embed_dim"}, "tiny": {"block_out_channels"}}
    assert changed == allowed.get(name, set())
    assert diffusers.recognise(folder)
    again = diffusers.load(folder)  # the size of the pictures is noted beside the weights
    x = load_file(recorded / name / "outputs.safetensors")["x"]
    assert again.input_shape == model.input_shape and torch.equal(again.reconstruct(x), model.reconstruct(x))
    assert again.origin == model.origin


def test_the_package_itself_is_never_imported(recorded):
    import sys

    load(recorded / "kl")
    assert "diffusers" not in sys.modules


def test_what_a_config_says_about_the_codes_use_survives_saving_and_training(recorded, tmp_path):
    model = load(recorded / "kl")
    use = model.origin["config"]
    assert use["scaling_factor"] == 0.3 and use["shift_factor"] == 0.1 and use["force_upcast"] is True
    assert use["latents_mean"] == [0.1, 0.2, 0.3] and use["latents_std"] == [1.0, 2.0, 3.0]
    fit(model, torch.rand(8, 3, 8, 8), steps=2, batch_size=4, out=tmp_path / "run")
    again = aezoo.from_pretrained(aezoo.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "model"))
    assert again.origin == model.origin
    config = json.loads((diffusers.save(again, tmp_path / "out") / "config.json").read_text())
    assert {k: config[k] for k in use} == use
    chosen = json.loads((diffusers.save(again, tmp_path / "out", scaling_factor=0.5) / "config.json").read_text())
    assert chosen == config | {"scaling_factor": 0.5}


def test_keys_that_a_config_lacks_have_the_packages_defaults(recorded, tmp_path):
    missing = dict.fromkeys(
        ["scaling_factor", "latents_mean", "act_fn", "use_quant_conv", "mid_block_add_attention"], ...
    )
    folder = copied(recorded, "kl", tmp_path, **missing, mystery=[1])
    model, whole = load(folder), load(recorded / "kl")
    assert model.origin["config"]["scaling_factor"] == 0.18215 and model.origin["config"]["latents_mean"] is None
    assert model.origin["config"]["mystery"] == [1]  # ignored there, kept here
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole.state_dict().values()))


def test_a_model_may_be_for_other_sizes_and_trained_further(recorded):
    model = load(recorded / "kl", input_shape=(3, 12, 20), beta=1e-3, gan_weight=0.1)
    assert model.latent_shape == (3, 6, 10) and model.beta == 1e-3 and model.gan is not None
    small, x = load(recorded / "kl"), torch.rand(4, 3, 8, 8)
    before = small.loss(x).terms["recon"].item()
    fit(small, x, steps=30, batch_size=4, lr=1e-3)
    assert small.loss(x).terms["recon"].item() < before


@pytest.mark.parametrize("options", [{}, {"codebook": "ema", "decay": 0.9999}], ids=["gradient", "ema"])
def test_a_codebook_that_was_read_is_not_drawn_anew(recorded, options):
    """By default codes start from data after the first step, and dead ones are revived: not those of a trained model."""
    model = load(recorded / "vq", **options)
    before = model.quantizer.codebook.clone()
    x = load_file(recorded / "vq" / "outputs.safetensors")["x"]
    fit(model, x, steps=1, batch_size=2, lr=1e-4)
    assert float((model.quantizer.codebook - before).detach().abs().max()) < 0.01
    assert model.gan is None


def test_half_precision_stays(recorded, tmp_path):
    folder = copied(recorded, "kl", tmp_path)
    tensors = load_file(folder / diffusers.WEIGHTS)
    (folder / diffusers.WEIGHTS).unlink()
    save_file({k: v.bfloat16() for k, v in tensors.items()}, folder / "diffusion_pytorch_model.bf16.safetensors")
    model = load(folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (
        load_file(diffusers.save(model, tmp_path / "out") / diffusers.WEIGHTS)["quant_conv.weight"].dtype
        == torch.bfloat16
    )


@pytest.mark.parametrize("convolution", [False, True], ids=["linear", "1x1"])
def test_the_old_names_of_attention_are_read(recorded, tmp_path, convolution):
    folder = copied(recorded, "kl", tmp_path)
    renamed = {}
    for key, value in load_file(folder / diffusers.WEIGHTS).items():
        old = key
        for new, name in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            old = old.replace(f".attentions.0.{new}.", f".attentions.0.{name}.")
        grown = convolution and old != key and value.dim() == 2
        renamed[old] = value[:, :, None, None].clone() if grown else value
    assert sum("proj_attn" in key for key in renamed) == 4
    save_file(renamed, folder / diffusers.WEIGHTS)
    x = load_file(folder / "outputs.safetensors")["x"]
    assert torch.equal(load(folder).reconstruct(x), load(recorded / "kl").reconstruct(x))


# ------------------------------------------------------------------------------------------------------- ours, there


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("autoencoder_kl", {"logvar": "cut"}),
        ("autoencoder_kl", {"backbone": "resnet(widths=(8, 8, 16), blocks=2, groups=4, attention_levels=(1,))"}),
        ("autoencoder_kl", {"gan_weight": 1.0, "likelihood": "gaussian(sigma='learned')", "corruption": "masking"}),
        ("vqgan", {"num_codes": 12}),
        ("vqgan", {"num_codes": 5, "inner_dim": 4, "codebook": "gradient", "gan_weight": 0.0}),
        ("tiny_ae", {}),
    ],
    ids=str,
)
def test_ours_is_written_and_read_back(name, options, tmp_path):
    model, x = build(name, **options).eval(), 2 * torch.rand(2, 3, 8, 8) - 1
    again = diffusers.load(diffusers.save(model, tmp_path))
    assert type(again) is type(model)
    close(again.encode(x), model.encode(x))
    close(again.reconstruct(x), model.reconstruct(x))
    if name == "vqgan":
        assert torch.equal(again.indices(x), model.indices(x)) and again.num_codes == model.num_codes
    assert again.origin["config"]["scaling_factor"] == 1.0  # nobody said another one


def test_convolutions_that_are_the_identity_are_left_out(tmp_path):
    torch.manual_seed(0)
    model = aezoo.create_model("autoencoder_kl", (3, 8, 8), latent_dim=3, backbone=FLAT)
    with torch.no_grad():
        model.post_quant_conv.bias.add_(0.1)
    folder = diffusers.save(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["use_quant_conv"] is False and config["use_post_quant_conv"] is True
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(diffusers.load(folder).reconstruct(x), model.reconstruct(x))


def test_the_soft_bound_changes_the_spread_alone(tmp_path):
    model, x = build(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        model.quant_conv.bias[3:] = -25.0
    again = diffusers.load(diffusers.save(model, tmp_path))
    assert torch.equal(again.encode(x), model.encode(x)) and again.logvar == "cut" and model.logvar == "soft"
    assert spread(again, x)[0].log().mean() < spread(model, x)[0].log().mean() - 1


def test_a_tiny_model_of_pictures_from_0_to_1_is_the_same_network_there(tmp_path):
    model, x = build("tiny_ae", backbone="tiny(width=4, levels=2, blocks=1)"), torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"\[-1, 1\].*tiny\(signed=True\).*unit_range=True"):
        diffusers.save(model, tmp_path)
    there = diffusers.load(diffusers.save(model, tmp_path, unit_range=True))
    close(there.encode(2 * x - 1), model.encode(x))
    close(there.reconstruct(2 * x - 1), 2 * model.reconstruct(x) - 1)


# --------------------------------------------------------------------------------------------------- latent diffusion


def names_there(recorded):
    """{name in latent diffusion's layout: diffusers' name}, from diffusers' converter: three levels, attention in the middle."""
    return json.loads((recorded / "latent_diffusion.json").read_text())


def as_there(model, recorded, prefix="first_stage_model."):
    state, held = model.state_dict(), {}
    for there, here in names_there(recorded).items():
        value = state[here]
        convolution = ".attn_1." in there and value.dim() == 2
        held[prefix + there] = (value[:, :, None, None] if convolution else value).clone()
    return held


def deep(**more):
    backbone = "resnet(widths=(32, 64, 64), blocks=1, groups=32, attention=True)"
    return build(latent_dim=2, logvar="cut", **{"backbone": backbone, **more})


def test_every_name_is_that_of_diffusers_own_converter(recorded):
    pairs = names_there(recorded)
    assert len(pairs) > 150
    assert {there: latent_diffusion.rename(there, 3) for there in pairs} == pairs


@pytest.mark.parametrize("prefix", ["first_stage_model.", ""])
def test_an_autoencoder_of_latent_diffusion_is_read(recorded, prefix, tmp_path):
    model, x, file = deep(), torch.rand(2, 3, 8, 8), tmp_path / "model.safetensors"
    held = as_there(model, recorded, prefix)
    assert len(held) == len(model.state_dict()) - 1  # num_steps
    held |= {f"{prefix}loss.logvar": torch.zeros(()), f"{prefix}loss.discriminator.weight": torch.zeros(2)}
    if prefix:
        held |= {"model.diffusion_model.weight": torch.zeros(2), "scale_factor": torch.tensor(0.25)}
    save_file(held, file)
    assert diffusers.recognise(file)
    again = diffusers.load(file, input_shape=(3, 8, 8))
    assert again.name == "autoencoder_kl" and torch.equal(again.reconstruct(x), model.reconstruct(x))
    assert all(torch.equal(a, b) for a, b in zip(spread(again, x), spread(model, x)))
    assert again.origin == ({"format": "diffusers", "config": {"scaling_factor": 0.25}} if prefix else None)
    with pytest.raises(ValueError, match=r"pass input_shape="):
        diffusers.load(file)


def test_a_quantised_one_with_attention_between_its_blocks_and_no_convolutions(recorded, tmp_path):
    """Names of attention within a level are those of taming-transformers; both sides number levels from the largest map."""
    model = aezoo.create_model(
        "vqgan", (3, 8, 8), latent_dim=2, num_codes=7, codebook="gradient",
        backbone="resnet(widths=(32, 32), blocks=1, groups=32, attention=True, attention_levels=(1,))",
    ).eval()  # fmt: skip
    back = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    held = {"quantize.embedding.weight": model.quantizer.codebook.detach().clone()}
    for key, value in model.state_dict().items():
        if not key.startswith(("encoder.", "decoder.")):
            continue
        name = key.replace("down_blocks.", "down.").replace("up_blocks.0.", "up.1.").replace("up_blocks.1.", "up.0.")
        name = name.replace("mid_block.resnets.0.", "mid.block_1.").replace("mid_block.resnets.1.", "mid.block_2.")
        name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace(".attentions.", ".attn.")
        name = (
            name.replace(".resnets.", ".block.").replace("conv_norm_out", "norm_out").replace("samplers.0.", "sample.")
        )
        name = name.replace("conv_shortcut", "nin_shortcut")
        if "attn" in name:
            for here, there in back.items():
                name = name.replace(f".{here}.", f".{there}.")
            value = value[:, :, None, None].clone() if value.dim() == 2 else value
        held[name] = value
    assert "decoder.up.1.attn.1.proj_out.weight" in held and "encoder.down.1.attn.0.q.weight" in held
    save_file(held, tmp_path / "vq.safetensors")
    x = torch.rand(2, 3, 8, 8)
    again = diffusers.load(tmp_path / "vq.safetensors", input_shape=(3, 8, 8))
    assert again.name == "vqgan" and torch.equal(again.indices(x), model.indices(x))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


def test_a_code_of_another_width_than_the_encoders_output(recorded, tmp_path):
    model, x = deep(inner_dim=5), torch.rand(2, 3, 8, 8)
    save_file(as_there(model, recorded), tmp_path / "m.safetensors")
    again = diffusers.load(tmp_path / "m.safetensors", input_shape=(3, 8, 8))
    assert again.inner_dim == 5 and torch.equal(again.reconstruct(x), model.reconstruct(x))
    with pytest.raises(ValueError, match="inner_dim=5 and latent_dim=2 differ"):
        diffusers.save(again, tmp_path / "out")


def test_incomplete_and_other_files_are_named(recorded, tmp_path):
    held = as_there(deep(), recorded)
    gone = dict(list(held.items()))
    del gone["first_stage_model.decoder.up.1.block.0.conv1.weight"]
    save_file(gone, tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match=r"gone.*decoder\.up_blocks\.1\.resnets\.0\.conv1\.weight is missing"):
        diffusers.load(tmp_path / "gone.safetensors", input_shape=(3, 8, 8))
    del gone["first_stage_model.encoder.conv_in.weight"]
    save_file(gone, tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match=r"no whole autoencoder: encoder\.conv_in\.weight is missing"):
        diffusers.load(tmp_path / "gone.safetensors", input_shape=(3, 8, 8))
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for name in ("other.safetensors", "bad.safetensors"):
        assert not diffusers.recognise(tmp_path / name)
    with pytest.raises(ValueError, match="no autoencoder of latent diffusion"):
        diffusers.load(tmp_path / "other.safetensors", input_shape=(3, 8, 8))
    torch.save(held, tmp_path / "sd.ckpt")
    assert not diffusers.recognise(tmp_path / "sd.ckpt")
    with pytest.raises(ValueError, match=r"aezoo\.convert_pt\('sd\.ckpt', 'sd\.safetensors'\)"):
        diffusers.load(tmp_path / "sd.ckpt")
    aezoo.convert_pt(tmp_path / "sd.ckpt", tmp_path / "sd.safetensors")
    assert diffusers.load(tmp_path / "sd.safetensors", input_shape=(3, 8, 8)).latent_dim == 2


# ------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("kl", {"_class_name": "AutoencoderKl"}, r"describes a 'AutoencoderKl'.*Did you mean 'AutoencoderKL'"),
        ("kl", {"_class_name": "AutoencoderDC"}, "'AutoencoderDC'; expected is one of AutoencoderKL, VQModel, AutoencoderTiny"),
        ("kl", {"_class_name": ...}, "no '_class_name'"),
        ("kl", {"out_channels": 1}, "in_channels=3 and out_channels=1 differ"),
        ("kl", {"act_fn": "gelu"}, "act_fn='gelu'"),
        ("kl", {"norm_num_groups": 3}, "norm_num_groups=3 must divide"),
        ("kl", {"block_out_channels": [4]}, "must be as many"),
        ("kl", {"block_out_channels": "4"}, "block_out_channels='4' makes no sense"),
        ("kl", {"layers_per_block": 0}, "layers_per_block=0 makes no sense"),
        ("kl", {"sample_size": [8]}, "sample_size"),
        ("kl", {"sample_size": 9}, r"\(3, 9, 9\) does not fit AutoencoderKL.*divisible by 2"),
        ("kl", {"down_block_types": ["DownBlock2D"] * 2}, "DownBlock2D.*AttnDownEncoderBlock2D"),
        ("kl", {"latent_channels": 2}, r"has shape \(6, 8, 3, 3\) instead of \(4, 8, 3, 3\)"),
        ("kl", {"layers_per_block": 2}, r"encoder\.down_blocks\.0\.resnets\.1\.norm1\.weight is missing"),
        ("kl", {"use_quant_conv": False}, r"quant_conv\.weight is not in the model"),
        ("kl", {"mid_block_add_attention": False}, r"attentions\.0.*is not in the model"),
        ("vq", {"norm_type": "spatial"}, "norm_type='spatial'"),
        ("vq", {"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}, "different levels"),
        ("vq", {"num_vq_embeddings": 8}, r"quantize\.embedding\.weight has shape \(7, 5\) instead of \(8, 5\)"),
        ("tiny", {"num_encoder_blocks": [2, 2, 2]}, r"num_encoder_blocks=\(1, b, b"),
        ("tiny", {"decoder_block_out_channels": [4, 4, 8]}, "one width everywhere"),
        ("tiny", {"act_fn": "silu"}, "allowed: relu"),
        ("tiny", {"upsample_fn": "bilinear"}, "allowed: nearest"),
        ("tiny", {"upsampling_scaling_factor": 3}, "must be 2"),
        ("tiny", {"num_decoder_blocks": []}, "makes no sense"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_name(recorded, name, changes, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        load(copied(recorded, name, tmp_path, **changes))


def test_options_of_load_are_checked(recorded):
    with pytest.raises(ValueError, match=r"nothing says what size.*pass input_shape=\(channels, height, width\)"):
        diffusers.load(recorded / "tiny")
    with pytest.raises(ValueError, match=r"\(1, 8, 8\) has 1 channels, but the network takes 3"):
        load(recorded / "kl", input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"\(3, 8, 9\) does not fit.*divisible by 2"):
        load(recorded / "kl", input_shape=(3, 8, 9))
    with pytest.raises(ValueError, match=r"latent_dim=5 cannot be chosen: the file says 3"):
        load(recorded / "kl", latent_dim=5)
    with pytest.raises(ValueError, match=r"takes no keyword 'betta'.*Did you mean 'beta'"):
        load(recorded / "kl", betta=1.0)


def test_missing_files_are_named(recorded, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        diffusers.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        diffusers.load(tmp_path)
    copied(recorded, "kl", tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="it is a pipeline, whose parts lie in kl"):
        diffusers.load(tmp_path)
    weights = tmp_path / "kl" / diffusers.WEIGHTS
    assert diffusers.recognise(weights) and diffusers.load(weights).latent_dim == 3
    tensors = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        diffusers.load(tmp_path / "kl")
    for variant in ("fp16", "ema"):
        save_file(tensors, tmp_path / "kl" / f"diffusion_pytorch_model.{variant}.safetensors")
    weights.unlink()
    with pytest.raises(ValueError, match=r"model\.ema\.safetensors and .*rename the one to read"):
        diffusers.load(tmp_path / "kl")
    for file in (tmp_path / "kl").glob("*.safetensors"):
        file.unlink()
    (tmp_path / "kl" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"aezoo\.convert_pt\('diffusion_pytorch_model\.bin'"):
        diffusers.load(tmp_path / "kl")


def test_recognise_raises_nothing(tmp_path):
    assert not diffusers.recognise(tmp_path / "none") and not diffusers.recognise(tmp_path)
    for text in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(text)
        assert not diffusers.recognise(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert diffusers.recognise(tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("autoencoder_kl", {"backbone": "resnet(widths=(32, 64))"}, r"have 8 and 16 groups.*'resnet\(\.\.\., groups=32\)'"),
        ("autoencoder_kl", {"backbone": "conv(widths=(4, 8))"}, r"backbone='conv' has no counterpart.*needs 'resnet\(widths"),
        ("autoencoder_kl", {"likelihood": "bernoulli"}, r"likelihood='bernoulli', 1 number.*laplace"),
        ("autoencoder_kl", {"likelihood": "gaussian(sigma='predicted')"}, r"likelihood='gaussian', 2 number"),
        ("autoencoder_kl", {"shape": (3, 8, 9)}, r"\(3, 8, 9\) does not fit AutoencoderKL.*divisible by 2"),
        ("autoencoder_kl", {"shape": (3, 8)}, r"takes pictures.*\(3, 8\)"),
        ("vqgan", {"shape": (2, 4, 4, 4)}, r"takes pictures.*\(2, 4, 4, 4\)"),
        ("tiny_ae", {"backbone": FLAT}, r"backbone='resnet' has no counterpart.*'tiny\(signed=True\)'"),
        ("vae", {"backbone": FLAT}, r"vae has no counterpart.*autoencoder_kl \(AutoencoderKL\), vqgan \(VQModel\)"),
    ],
)  # fmt: skip
def test_models_without_a_counterpart_are_refused_before_anything_is_written(name, options, match, tmp_path):
    model = build(name, **options)
    with pytest.raises(ValueError, match=match):
        diffusers.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_of_save_are_checked(tmp_path):
    model = build()
    with pytest.raises(ValueError, match=r"'scaling_facto' is not known.*Did you mean 'scaling_factor'"):
        diffusers.save(model, tmp_path, scaling_facto=1.0)
    for wrong, match in [
        ({"scaling_factor": "1"}, "scaling_factor='1' must be a number"),
        ({"scaling_factor": None}, "scaling_factor=None must be a number"),
        ({"latents_mean": [0.0, 1.0]}, "latents_mean=.* must be None or 3 numbers"),
        ({"force_upcast": 1}, "force_upcast=1 must be True or False"),
    ]:
        with pytest.raises(ValueError, match=match):
            diffusers.save(model, tmp_path, **wrong)
    assert not list(tmp_path.iterdir())
    diffusers.save(model, tmp_path / "use", shift_factor=None, latents_std=(1, 2, 3.0))
    with pytest.raises(TypeError, match="must be a model of aezoo; got Linear"):
        diffusers.save(torch.nn.Linear(1, 1), tmp_path)
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"holds another model's config\.json"):
        diffusers.save(model, tmp_path / "ours")
    assert aezoo.from_pretrained(tmp_path / "ours").name == "autoencoder_kl"


# ------------------------------------------------------------------------------------- what this needed of the models


def test_origin_must_be_an_object(tmp_path):
    folder = build().save_pretrained(tmp_path)
    rewrite(folder, origin=[1])
    with pytest.raises(ValueError, match=r"origin=\[1\] must be an object"):
        aezoo.from_pretrained(folder)


@pytest.mark.parametrize("shape", [(1, 9, 7), (30,), (2, 5, 6, 7)], ids=str)
def test_attention_on_levels_trains_every_parameter_in_any_rank(shape, tmp_path):
    model = aezoo.create_model(
        "vae", shape, latent_dim=3, backbone="resnet(widths=(4, 8, 8), blocks=2, attention_levels=(0, 2))"
    )
    x = torch.rand(4, *shape)
    model.loss(x).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    where = {k.partition(".attentions.")[0] for k in model.state_dict() if ".attentions." in k}
    assert {w.split(".", 2)[2].replace("_blocks", "") for w in where} == {"down.0", "down.2", "up.0", "up.2"}
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


@pytest.mark.parametrize("levels", ["(3,)", "(-1,)", "2", "'0'", "(True,)"])
def test_levels_that_are_none_are_named(levels):
    with pytest.raises(ValueError, match=r"attention_levels=.* from 0 \(the largest map\) to 2"):
        aezoo.create_model("ae", (1, 8, 8), backbone=f"resnet(widths=(4, 4, 4), attention_levels={levels})")


def test_a_block_and_its_attention_alternate():
    encoder = aezoo.backbones.BACKBONES.build("resnet(widths=(4, 8), blocks=2, attention_levels=(1,))").build_grid(
        (1, 8, 8), 2
    )[0]
    level, x = encoder.down_blocks[1], torch.rand(2, 4, 4, 4)
    first, second = level.resnets
    assert torch.equal(level(x), level.attentions[1](second(level.attentions[0](first(x)))))


def test_signed_tiny_is_the_network_of_0_to_1_between_two_scalings():
    signed, plain = build("tiny_ae"), build("tiny_ae", backbone="tiny(width=4, levels=2, blocks=1)")
    plain.load_state_dict(signed.state_dict())
    x = torch.rand(2, 3, 8, 8)
    close(signed.encode(2 * x - 1), plain.encode(x))
    close(signed.reconstruct(2 * x - 1), 2 * plain.reconstruct(x) - 1)
    with pytest.raises(ValueError, match="signed=True needs a likelihood with one"):
        build("tiny_ae", likelihood="gaussian(sigma='predicted')")


@pytest.mark.parametrize("name", ["autoencoder_kl", "vqgan"])
def test_inner_dim_is_what_the_backbone_sees(name):
    model = aezoo.create_model(name, (1, 8, 8), latent_dim=2, inner_dim=5, backbone=FLAT)
    params = model.code_params
    assert model.encoder.conv_out.out_channels == 5 * params and model.decoder.conv_in.in_channels == 5
    assert model.quant_conv.weight.shape[:2] == (2 * params, 5 * params) and model.latent_shape == (2, 4, 4)
    x = torch.rand(4, 1, 8, 8)
    model.loss(x).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with pytest.raises(ValueError, match="inner_dim=0"):
        aezoo.create_model(name, (1, 8, 8), inner_dim=0)


def test_a_log_variance_is_cut_on_request():
    model = build(logvar="cut")
    h = torch.tensor([-50.0, -29.0, 3.0, 25.0]).view(1, 1, 4, 1).expand(1, 6, 4, 1)
    assert model.posterior(h)[1][0, 0, :, 0].tolist() == [-30.0, -29.0, 3.0, 20.0]
    with pytest.raises(ValueError, match="logvar='hard' is not known; allowed: soft, cut"):
        build(logvar="hard")
