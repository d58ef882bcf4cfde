"""Sparse autoencoders of other libraries: files that those libraries wrote, with what they compute, are in fixtures/saes."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from fixtures.record_saes import inputs, our_outputs, ours, scramble
from safetensors.torch import load_file, save_file

import aezoo
from aezoo import interop
from aezoo.cli import main

SAES = Path(__file__).parent / "fixtures" / "saes"
CASES = sorted(str(p.relative_to(SAES)) for p in SAES.glob("*/*"))
MODELS = {
    "standard": "l1_sae", "topk": "topk_sae", "jumprelu": "jump_relu_sae", "gated": "gated_sae", "transcoder": "transcoder",
    "skip": "transcoder", "batchtopk": "batch_topk_sae", "matryoshka": "matryoshka_sae",
}  # fmt: skip
WEIGHTS = {"saelens": "sae_weights.safetensors", "dictionary_learning": "ae.pt", "sparsify": "sae.safetensors"}
CONFIG = {"saelens": "cfg.json", "dictionary_learning": "config.json", "sparsify": "cfg.json"}


def largest_difference(ours, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs))


def copy_of(case, tmp_path, **changes):
    """A copy of a fixture, with keys of its configuration changed (None: left out)."""
    folder = tmp_path / "copy"
    shutil.copytree(SAES / case, folder)
    file = folder / CONFIG[case.split("/")[0]]
    config = json.loads(file.read_text())
    inner = config.get("trainer", config)
    for key, value in changes.items():
        inner[key] = value
        if value is None:
            del inner[key]
    file.write_text(json.dumps(config))
    return folder


# ---------------------------------------------------------------------------------------------------------- theirs, here


@pytest.mark.parametrize("case", CASES)
def test_a_foreign_model_gives_the_codes_and_reconstructions_of_its_library(case, tmp_path):
    format, _, name = case.partition("/")
    x, codes, recon = (load_file(SAES / case / "expected.safetensors")[k] for k in ("x", "codes", "recon"))
    state = torch.get_rng_state()
    model = aezoo.load_foreign(SAES / case)
    assert torch.equal(state, torch.get_rng_state())
    assert model.name == ("transcoder" if case == "sparsify/topk_skip" else MODELS[name.split("_")[0]])
    assert not any(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert not any(v.is_meta for v in [*model.parameters(), *model.buffers()])
    assert next(model.parameters()).dtype == x.dtype
    assert largest_difference(our_outputs(model, x), (codes, recon)) < 1e-5
    assert 0 < (codes > 0).float().mean() < 0.6 and codes.max() > 1  # something to compare
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path / "kept"))
    assert type(again) is type(model) and again.saved_config() == model.saved_config()
    assert all(torch.equal(a, b) for a, b in zip(our_outputs(model, x), our_outputs(again, x)))
    for path in (SAES / case, str(SAES / case), SAES / case / WEIGHTS[format]):
        assert interop.recognised(path) == [format]
    assert aezoo.load_foreign(SAES / case / WEIGHTS[format], format).config == model.config


def test_every_architecture_is_among_the_fixtures():
    from aezoo.interop import dictionary_learning, saelens

    kinds = {json.loads((p / "cfg.json").read_text())["architecture"] for p in SAES.glob("saelens/*")}
    assert kinds == set(saelens.KEYS)
    trained = [json.loads(p.read_text())["trainer"]["dict_class"] for p in SAES.glob("*/*/config.json")]
    assert set(trained) == set(dictionary_learning.KEYS)
    assert {c.split("/")[0] for c in CASES} == set(WEIGHTS)


def test_what_was_learned_and_how_goes_on():
    def load(case):
        return aezoo.load_foreign(SAES / case)

    assert load("saelens/batchtopk").threshold.item() == pytest.approx(0.7)
    assert load("saelens/batchtopk").k == 4 and load("saelens/matryoshka").groups == (4, 6, 10)
    assert load("dictionary_learning/batchtopk_no_threshold").tau_weight == 0
    assert load("dictionary_learning/matryoshka").groups == (4, 6, 10)
    assert load("dictionary_learning/standard").recipe == "2023"
    assert load("dictionary_learning/standard_free_rows").recipe == "2023"  # its rows become unit vectors, as there
    assert load("saelens/standard").recipe == "april2024"  # rows that are free stay free, b_dec moves into the bias
    assert load("saelens/topk").normalize_decoder is False and load("saelens/topk_rescaled").normalize_decoder is True
    assert load("saelens/transcoder").k == 20 and load("saelens/transcoder").skip is None


@pytest.mark.parametrize(
    "case", ["saelens/jumprelu", "saelens/gated", "saelens/standard", "saelens/topk", "dictionary_learning/batchtopk"]
)
def test_training_goes_on_without_a_jump(case):
    """A step of rate 0 changes nothing: no row is normalised that was no unit vector. A step of another does."""
    model, x = aezoo.load_foreign(SAES / case), inputs()
    before = {k: v.clone() for k, v in model.named_parameters()}
    options = {"steps": 1, "progress": False, "device": "cpu", "optimizer": "sgd", "batch_size": 16}
    aezoo.fit(model, x, lr=1e-30, **options)
    assert all(torch.allclose(v, before[k], rtol=1e-5) for k, v in model.named_parameters())
    aezoo.fit(model, x, lr=0.1, **options)
    assert not any(torch.allclose(v, before[k], rtol=1e-5) for k, v in model.named_parameters() if k != "threshold")


def test_versions_and_leftovers_of_saelens(tmp_path):
    """Older files: log_threshold, a scaling factor of 1, a boolean for no scaling."""
    x, codes, recon = (load_file(SAES / "saelens/jumprelu/expected.safetensors")[k] for k in ("x", "codes", "recon"))
    folder = copy_of("saelens/jumprelu", tmp_path, metadata=None, normalize_activations=False, dtype="torch.float32")
    tensors = load_file(folder / WEIGHTS["saelens"])
    tensors["log_threshold"] = tensors.pop("threshold").log()
    tensors["scaling_factor"] = torch.ones(20)
    save_file(tensors, folder / WEIGHTS["saelens"])
    assert largest_difference(our_outputs(aezoo.load_foreign(folder), x), (codes, recon)) < 1e-5


def test_a_threshold_below_zero_is_one_of_zero(tmp_path):
    """relu(h) 1[h > theta]: no library lets negative values through."""
    folder = copy_of("saelens/jumprelu", tmp_path)
    tensors = load_file(folder / WEIGHTS["saelens"])
    tensors["threshold"][::2] = -1.0
    save_file(tensors, folder / WEIGHTS["saelens"])
    model, x = aezoo.load_foreign(folder), inputs()
    h = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    assert torch.allclose(model.encode(x), h.relu() * (h > tensors["threshold"]), atol=1e-6)
    assert (model.encode(x) >= 0).all() and (h[:, ::2] < 0).any()


def test_a_jumprelu_is_what_it_was_trained_as_only_if_it_still_can_be(tmp_path):
    folder = copy_of("saelens/batchtopk", tmp_path)
    tensors = load_file(folder / WEIGHTS["saelens"])
    tensors["threshold"][3] += 0.1
    save_file(tensors, folder / WEIGHTS["saelens"])
    model = aezoo.load_foreign(folder)
    assert model.name == "jump_relu_sae" and torch.equal(model.threshold, tensors["threshold"])


def test_what_a_file_says_about_its_use_is_kept(tmp_path):
    old = aezoo.load_foreign(SAES / "saelens/topk_version_5").save_pretrained(tmp_path / "a")
    folder = aezoo.save_foreign(aezoo.from_pretrained(old), tmp_path / "b", "saelens")
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.0.hook_resid_pre" and metadata["model_name"] == "none"
    assert metadata["sae_lens_version"].split(".")[0] == "6"
    folder = aezoo.save_foreign(aezoo.from_pretrained(old), tmp_path / "c", "dictionary_learning")  # and no other's
    assert json.loads((folder / "config.json").read_text())["trainer"]["lm_name"] is None
    batch = aezoo.load_foreign(SAES / "saelens/batchtopk")
    jump = aezoo.create_model("jump_relu_sae", input_shape=(6,), latent_dim=20)
    jump.origin = batch.origin  # it is trained as another now
    folder = aezoo.save_foreign(jump, tmp_path / "d", "saelens")
    assert not {k for k in json.loads((folder / "cfg.json").read_text())["metadata"] if "architecture" in k}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes(dtype, tmp_path):
    """cfg.json names one, and what the file holds is cast to it, as SAELens does."""
    folder = copy_of("saelens/topk", tmp_path, dtype=dtype)
    model = aezoo.load_foreign(folder)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    back = aezoo.load_foreign(aezoo.save_foreign(model, tmp_path / "back", "saelens"))
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items())


def test_checkpoints_of_dictionary_learning_and_files_without_configuration(tmp_path):
    folder = copy_of("dictionary_learning/batchtopk", tmp_path)
    (folder / "checkpoints").mkdir()
    shutil.copy(folder / "ae.pt", folder / "checkpoints" / "ae_100.pt")
    assert aezoo.load_foreign(folder / "checkpoints" / "ae_100.pt").name == "batch_topk_sae"
    (folder / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"ae\.pt is AutoEncoderTopK or BatchTopKSAE, .* the config\.json .* is missing"
    ):
        aezoo.load_foreign(folder)
    shutil.copy(SAES / "dictionary_learning/gated/ae.pt", folder / "ae.pt")
    assert aezoo.load_foreign(folder).name == "gated_sae"


def test_the_model_does_not_depend_on_the_file(tmp_path):
    folder = copy_of("dictionary_learning/topk", tmp_path)
    model, x = aezoo.load_foreign(folder), inputs()
    before = our_outputs(model, x)
    with open(folder / "ae.pt", "r+b") as f:
        f.write(bytes((folder / "ae.pt").stat().st_size))
    assert all(torch.equal(a, b) for a, b in zip(before, our_outputs(model, x)))


# ---------------------------------------------------------------------------------------------------------- ours, there

REFUSED = {
    (
        "saelens",
        "transcoder, skip",
    ): r"skip=True and k=4: .* supported: k=20 \(all\), skip=False, or the format 'sparsify'",
    ("dictionary_learning", "transcoder, skip"): "dictionary_learning has no skip; supported: skip=False",
    ("dictionary_learning", "transcoder, all latents, skip"): "dictionary_learning has no skip; supported: skip=False",
}


@pytest.mark.parametrize("name", list(ours()))
@pytest.mark.parametrize("format", list(WEIGHTS))
def test_our_models_go_there_and_back(format, name, tmp_path):
    """With the loaders above, which are held to the libraries; `record_saes.py check` asks the libraries themselves."""
    model, x = ours()[name](), inputs(8)
    why = REFUSED.get((format, name))
    if format == "sparsify" and model.name not in ("topk_sae", "transcoder"):
        why = f"{model.name} has no counterpart in sparsify, .* supported: topk_sae, transcoder"
    if why:
        with pytest.raises(ValueError, match=why):
            aezoo.save_foreign(model, tmp_path / "out", format)
        assert not (tmp_path / "out").exists()
        return
    folder = aezoo.save_foreign(model, tmp_path / "out", format)
    assert folder == tmp_path / "out" and {p.name for p in folder.iterdir()} == {WEIGHTS[format], CONFIG[format]}
    back = aezoo.load_foreign(folder, format)
    codes, recon = our_outputs(model, x)
    assert (codes > 0).any() and (codes == 0).any()
    assert largest_difference((codes, recon), our_outputs(back, x)) < 1e-5
    if not (model.name == "transcoder" and format != "sparsify") and "scales" not in name:
        assert back.name == model.name and getattr(back, "k", None) == getattr(model, "k", None)
    if name == "matryoshka_sae":
        assert back.groups == model.groups


@pytest.mark.parametrize(("format", "k"), [("saelens", 20), ("sparsify", 4)])
def test_a_transcoder_of_pairs_goes_there_as_one_of_x(format, k, tmp_path):
    model = aezoo.create_model("transcoder", input_shape=(2, 6), latent_dim=20, k=k, skip=True, pairs=True)
    scramble(model, 5)
    x = torch.stack([inputs(1), inputs(2)], 1)
    back = aezoo.load_foreign(aezoo.save_foreign(model, tmp_path, format))
    assert torch.allclose(back.encode(x[:, 0]), model.encode(x), atol=1e-5)
    assert torch.allclose(back.reconstruct(x[:, 0]), model.reconstruct(x)[:, 1], atol=1e-5)


STRAIGHT = [  # nothing is folded: what is read and written again is the same file
    "saelens/topk", "saelens/jumprelu", "saelens/gated", "saelens/transcoder", "saelens/skip_transcoder", "saelens/batchtopk",
    "saelens/matryoshka", "saelens/standard_uncentred", "dictionary_learning/standard", "dictionary_learning/standard_new",
    "dictionary_learning/gated", "dictionary_learning/batchtopk", "dictionary_learning/batchtopk_no_threshold",
    "dictionary_learning/matryoshka", "sparsify/topk", "sparsify/transcoder", "sparsify/skip_transcoder",
]  # fmt: skip


@pytest.mark.parametrize("case", STRAIGHT)
def test_a_file_that_goes_through_the_zoo_comes_out_the_same(case, tmp_path):
    """Keys, shapes, dtypes and values are those that the library wrote, and so are the options that it reads."""
    format = case.split("/")[0]

    def read(folder):
        if format == "dictionary_learning":
            return torch.load(folder / "ae.pt", weights_only=True)
        return load_file(folder / WEIGHTS[format])

    folder = aezoo.save_foreign(aezoo.load_foreign(SAES / case), tmp_path, format)
    theirs, written = read(SAES / case), read(folder)
    assert theirs.keys() == written.keys()
    for key, value in theirs.items():
        assert value.dtype == written[key].dtype and torch.equal(value, written[key]), key
    theirs, written = (json.loads((f / CONFIG[format]).read_text()) for f in (SAES / case, folder))
    if format == "dictionary_learning":
        theirs, written = theirs["trainer"], written["trainer"]
    free = {
        "metadata",
        "expansion_factor",
        "normalize_decoder",
        "layer",
        "lm_name",
    }  # about training, or unused where another is given
    assert set(theirs) <= set(written)
    assert {k: v for k, v in theirs.items() if k not in free} == {k: written[k] for k in theirs if k not in free}


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            ("ae", {}),
            "'ae' has no counterpart in (SAELens|sparsify|dictionary_learning); models that have one: l1_sae, batch_topk_sae",
        ),
        (("topk_sae", {"backbone": "mlp"}), "topk_sae with backbone='mlp' is no dictionary of rows"),
        (("topk_sae", {"backbone": "linear(tied=True)"}), "is no dictionary of rows"),
        (("l1_sae", {"likelihood": "bernoulli"}), "likelihood='bernoulli' puts a function behind the decoder"),
        (("crosscoder", {}), "'crosscoder' has no counterpart"),
    ],
)
@pytest.mark.parametrize("format", list(WEIGHTS))
def test_what_no_file_can_hold_is_refused_and_nothing_is_written(model, why, format, tmp_path):
    with pytest.raises(ValueError, match=why):
        aezoo.save_foreign(
            aezoo.create_model(model[0], input_shape=(6,), latent_dim=8, **model[1]), tmp_path / "out", format
        )
    assert not (tmp_path / "out").exists()


def test_a_model_that_lets_negative_values_through_is_refused(tmp_path):
    model = ours()["jump_relu_sae"]()
    with torch.no_grad():
        model.threshold[2] = -0.5
    with pytest.raises(ValueError, match="jump_relu_sae with a threshold below 0"):
        aezoo.save_foreign(model, tmp_path / "out", "saelens")


def test_where_it_may_be_written(tmp_path):
    model = ours()["topk_sae"]()
    with pytest.raises(TypeError, match="model must be one of the zoo, a BaseAE; got Linear"):
        aezoo.save_foreign(torch.nn.Linear(2, 2), tmp_path / "a", "saelens")
    with pytest.raises(ValueError, match=r"format='sealens' is not known; allowed: .*Did you mean 'saelens'\?"):
        aezoo.save_foreign(model, tmp_path / "a", "sealens")
    with pytest.raises(TypeError, match="format 'saelens' writes with no option 'k'; allowed: none"):
        aezoo.save_foreign(model, tmp_path / "a", "saelens", k=3)
    with pytest.raises(TypeError, match="format 'sparsify' reads with no option 'input_shape'; allowed: none"):
        aezoo.load_foreign(SAES / "sparsify/topk", input_shape=(6,))
    assert not (tmp_path / "a").exists()
    aezoo.save_foreign(model, tmp_path / "a", "saelens")
    aezoo.save_foreign(model, tmp_path / "a", "saelens")  # again, over itself
    with pytest.raises(ValueError, match="holds a model of saelens; choose another folder"):
        aezoo.save_foreign(model, tmp_path / "a", "sparsify")
    model.save_pretrained(tmp_path / "b")
    with pytest.raises(ValueError, match="holds a model of aezoo's own"):
        aezoo.save_foreign(model, tmp_path / "b", "dictionary_learning")
    with pytest.raises(ValueError, match=r"cfg\.json is a file; sparsify is written into a folder"):
        aezoo.save_foreign(model, tmp_path / "a" / "cfg.json", "sparsify")


# ------------------------------------------------------------------------------------------------- wrong and damaged files


def test_files_of_another_kind_say_what_they_are(tmp_path):
    with pytest.raises(
        ValueError, match=r"is no saelens: it is sparsify \(pass format='sparsify' or 'auto'\)\. Expected: saelens: a"
    ):
        aezoo.load_foreign(SAES / "sparsify/topk", "saelens")
    with pytest.raises(ValueError, match=r"is no sparsify: it is dictionary_learning "):
        aezoo.load_foreign(SAES / "dictionary_learning/topk", "sparsify")
    with pytest.raises(
        ValueError,
        match=r"of no known format: it is a folder of models, the first of them 'batchtopk' \(saelens\): pass",
    ):
        aezoo.load_foreign(SAES / "saelens")
    own = ours()["topk_sae"]().save_pretrained(tmp_path / "own")
    for path in (own, own / "model.safetensors"):
        with pytest.raises(ValueError, match=r"it is a model of aezoo's own \(use aezoo\.from_pretrained\)"):
            aezoo.load_foreign(path)
    with pytest.raises(
        ValueError,
        match=r"it is a file 'expected\.safetensors' with the keys 'codes', 'recon', 'x'\. Expected: saelens: ",
    ):
        aezoo.load_foreign(SAES / "saelens/topk/expected.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="it is a file 'broken.safetensors', damaged or no safetensors"):
        aezoo.load_foreign(tmp_path / "broken.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"it is a folder that holds nothing\. Expected: .*dictionary_learning: .*; sparsify: "
    ):
        aezoo.load_foreign(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no file or folder '.*emty'.*Did you mean 'empty'\?"):
        aezoo.load_foreign(tmp_path / "emty")
    with pytest.raises(ValueError, match=r"format='saelen' is not known; allowed: auto, .*Did you mean 'saelens'\?"):
        aezoo.load_foreign(tmp_path / "empty", "saelen")
    both = copy_of("saelens/topk", tmp_path)
    shutil.copy(SAES / "sparsify/topk/sae.safetensors", both)
    with pytest.raises(ValueError, match="looks like saelens and sparsify at once; pass format="):
        aezoo.load_foreign(both)
    assert aezoo.load_foreign(both, "saelens").name == "topk_sae"


OPTIONS = [
    ("saelens/topk", {"architecture": "abstopk"}, r"architecture='abstopk', which has no counterpart here \(its codes may be negative\); supported: standard"),
    ("saelens/topk", {"architecture": "jumprelu_transcoder"}, "has no counterpart here .*thresholds"),
    ("saelens/topk", {"architecture": "topkk"}, r"architecture='topkk', which is not known; supported: .*Did you mean 'topk'\?"),
    ("saelens/topk", {"architecture": None}, r"cfg\.json has no 'architecture'; it has 'd_in'"),
    ("saelens/topk", {"architecture": "gated"}, "is no SAELens model of architecture 'gated': 'b_gate', 'b_mag', 'r_mag' are missing, and 'b_enc' is not part"),
    ("saelens/topk", {"k": None}, "has no 'k'; it has"),
    ("saelens/topk", {"k": 21}, r"cfg\.json: k=21 must be an integer from 1 to latent_dim=20"),
    ("saelens/topk", {"k": "4"}, "k='4' must be of type int"),
    ("saelens/topk", {"d_in": 7}, r"W_enc has shape \(6, 20\), but that of a SAELens model of architecture 'topk' is \(d, n\), here d=7, n=20"),
    ("saelens/topk", {"d_sae": 19}, "here d=6, n=19"),
    ("saelens/topk", {"dtype": "float8"}, "dtype='float8' is not known; allowed: float64, float32"),
    ("saelens/topk", {"normalize_activations": "layer_norm"}, r"normalize_activations='layer_norm' has no counterpart here \(it scales each.*supported: 'none'"),
    ("saelens/topk", {"normalize_activations": "constant_norm_rescale"}, "normalize_activations='constant_norm_rescale'"),
    ("saelens/topk", {"normalize_activations": "expected_average_only_in"}, "its factor is not in these files"),
    ("saelens/topk", {"normalize_activations": "covariance_whitening"}, "fold_activation_whitening"),
    ("saelens/transcoder", {"d_out": 8}, "from d_in=6 to d_out=8; aezoo's transcoder has the same width on both sides"),
    ("saelens/transcoder", {"apply_b_dec_to_input": True}, "apply_b_dec_to_input=True, but a transcoder takes no b_dec"),
    ("saelens/batchtopk_checkpoint", {"k": 4.5}, "k=4.5 is no whole number"),
    ("saelens/matryoshka_checkpoint", {"matryoshka_widths": [10, 4]}, "groups="),
    ("saelens/topk_version_5", {"activation_fn_str": "tanh-relu"}, "activation_fn='tanh-relu' has no counterpart here; supported: relu, topk"),
    ("saelens/topk_version_5", {"activation_fn_kwargs": {}}, "has no 'k'; it has nothing"),
    ("saelens/topk_version_5", {"normalize_activations": True}, "normalize_activations='expected_average_only_in'"),
    ("dictionary_learning/topk", {"dict_class": "IdentityDict"}, "dict_class='IdentityDict' has no counterpart here; supported: AutoEncoder"),
    ("dictionary_learning/topk", {"dict_class": "AutoEncoderTopk"}, r"Did you mean 'AutoEncoderTopK'\?"),
    ("dictionary_learning/topk", {"dict_class": "GatedAutoEncoder"}, "is no dictionary_learning GatedAutoEncoder: 'decoder_bias', .* are missing"),
    ("dictionary_learning/topk", {"k": 5}, r"config\.json: k=5, but .*ae\.pt holds k=4"),
    ("dictionary_learning/topk", {"dict_size": 10}, r"encoder\.weight has shape \(20, 6\)"),
    ("sparsify/topk", {"activation": "groupmax"}, "activation='groupmax' has no counterpart here; supported: 'topk'"),
    ("sparsify/topk", {"multi_topk": True}, "multi_topk=True has no counterpart here: .* supported: False"),
    ("sparsify/topk", {"d_in": None}, "has no 'd_in'"),
    ("sparsify/topk", {"num_latents": 0}, r"here n=192, d=6"),
    ("sparsify/topk", {"skip_connection": True}, "'W_skip' is missing"),
    ("sparsify/skip_transcoder", {"skip_connection": False}, "'W_skip' is not part of it"),
    ("sparsify/topk", {"transcode": "yes"}, "transcode='yes' must be of type bool"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "changes", "why"), OPTIONS)
def test_options_without_a_counterpart_are_refused_by_name_and_value(case, changes, why, tmp_path):
    with pytest.raises(ValueError, match=why) as error:
        aezoo.load_foreign(copy_of(case, tmp_path, **changes))
    assert str(tmp_path) in str(error.value) or "dtype" in str(error.value)


@pytest.mark.parametrize("case", ["saelens/gated", "dictionary_learning/matryoshka", "sparsify/skip_transcoder"])
def test_every_missing_misshapen_or_surplus_key_is_named(case, tmp_path):
    format = case.split("/")[0]
    folder = copy_of(case, tmp_path)
    file = folder / WEIGHTS[format]
    pt = format == "dictionary_learning"
    tensors = torch.load(file, weights_only=True) if pt else load_file(file)

    def refused(changed, why):
        torch.save(changed, file) if pt else save_file(changed, file)
        with pytest.raises(ValueError, match=why):
            aezoo.load_foreign(folder)

    for key, value in tensors.items():
        name = key.replace(".", r"\.")
        rest = {k: v for k, v in tensors.items() if k != key}
        refused(rest, f"'{name}' is missing")
        refused({**rest, f"{key}_2": value}, f"'{name}' is missing, and '{name}_2' is not part of it")
        refused({**rest, key: value[None]}, f"{name} has shape|has shape .*here")
        if key not in ("k", "threshold", "group_sizes"):
            refused({**rest, key: value.to(torch.int32)}, "weights of dtype torch.int32; allowed: torch.float64")


def test_configurations_that_are_none(tmp_path):
    for case in ("saelens/topk", "sparsify/topk"):
        folder = copy_of(case, tmp_path)
        (folder / "cfg.json").write_text("[1, 2]")
        with pytest.raises(ValueError, match=r"cfg\.json is no configuration of .*: it holds a list, not an object"):
            aezoo.load_foreign(folder)
        (folder / "cfg.json").write_text('{"d_in": 6')
        with pytest.raises(ValueError, match=r"cfg\.json is damaged: not JSON"):
            aezoo.load_foreign(folder)
        (folder / "cfg.json").unlink()
        with pytest.raises(ValueError, match=r"needs a cfg\.json beside the weights; .* holds '"):
            aezoo.load_foreign(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("case", ["saelens/topk", "dictionary_learning/topk", "sparsify/topk"])
def test_truncated_files_are_refused(case, tmp_path):
    folder = copy_of(case, tmp_path)
    file = folder / WEIGHTS[case.split("/")[0]]
    whole = file.read_bytes()
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"truncated|damaged|no plain file of tensors"):
            aezoo.load_foreign(folder)


class Trap:
    """Unpickled by the ordinary unpickler, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("beside", [True, False])
def test_a_pt_file_that_would_run_code_is_refused_and_runs_none(beside, tmp_path):
    folder = copy_of("dictionary_learning/topk", tmp_path)
    state = torch.load(folder / "ae.pt", weights_only=True)
    caught = tmp_path / "caught"
    torch.save({**state, "trap": Trap(caught)} if beside else Trap(caught), folder / "ae.pt")
    with pytest.raises(ValueError, match=r"ae\.pt wants to call \S*mkdir, and reading a file must not run code"):
        aezoo.load_foreign(folder)
    assert not caught.exists()
    torch.load(folder / "ae.pt", weights_only=False)  # the trap is a real one
    assert caught.exists()


# ------------------------------------------------------------------------------------------------------- the command line


def test_convert_to_and_from_on_the_command_line(tmp_path, capsys):
    main(["convert", str(SAES / "saelens/topk"), str(tmp_path / "own"), "--from", "auto"])
    assert capsys.readouterr().out.strip() == f"{tmp_path / 'own'}: topk_sae, 266 numbers, as aezoo"
    main(["convert", str(tmp_path / "own"), str(tmp_path / "there"), "--to", "sparsify"])
    assert "as sparsify" in capsys.readouterr().out
    main(
        ["convert", str(tmp_path / "there"), str(tmp_path / "third"), "--from", "sparsify", "--to=dictionary_learning"]
    )
    expected = load_file(SAES / "saelens/topk/expected.safetensors")
    model = aezoo.load_foreign(tmp_path / "third")
    assert largest_difference(our_outputs(model, expected["x"]), (expected["codes"], expected["recon"])) < 1e-5
    main(["convert", str(tmp_path / "own"), str(tmp_path / "there"), "--to", "sparsify", "--overwrite"])
    main(["convert", str(SAES / "dictionary_learning/topk/ae.pt"), str(tmp_path / "plain.safetensors")])
    assert "6 tensors" in capsys.readouterr().out


def test_a_run_goes_there(tmp_path, capsys):
    model = aezoo.create_model("topk_sae", input_shape=(6,), latent_dim=20, k=4)
    aezoo.fit(model, inputs(), steps=3, out=tmp_path / "run", progress=False, device="cpu", batch_size=8)
    main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "saelens"])
    best, x = aezoo.from_pretrained(tmp_path / "run"), inputs(8)
    assert largest_difference(our_outputs(best, x), our_outputs(aezoo.load_foreign(tmp_path / "out"), x)) < 1e-6


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["SAE", "OUT"], "is a folder: pass --from auto .* or --to FORMAT"),
        (["SAE", "OUT", "--from", "sparsify"], "is no sparsify: it is saelens"),
        (["SAE", "OUT", "--from", "saelen"], "Did you mean 'saelens'"),
        (["SAE", "OUT", "--to", "saelen"], "Did you mean 'saelens'"),
        (["SAE", "OUT", "--to", "sparsify"], "is no run folder: it holds no config.json"),
        (["SAE", "OUT", "--from", "auto", "--key", "a"], "--key a is for .pt files"),
        (["SAE", "OUT", "--from", "auto", "--input_shape", "[6]"], "reads with no option 'input_shape'"),
        (["SAE", "OUT", "--to", "sparsify", "--input_shape", "[6]"], "--input_shape .* goes with --from"),
        (["SAE", "FULL", "--from", "auto"], "is there already, and not empty; pass --overwrite"),
        (["SAE", "SAE", "--from", "auto", "--overwrite"], "is the model to convert itself"),
        (["SAE", "FULL/cfg.json", "--from", "auto"], "is a file; or choose another folder"),
        (["SAE", "OUT", "--form", "auto"], "--from"),
    ],
)
def test_what_the_command_line_refuses(flags, why, tmp_path, capsys):
    full = copy_of("sparsify/topk", tmp_path)
    before = sorted(p.name for p in SAES.glob("saelens/topk/*"))
    words = {"SAE": str(SAES / "saelens/topk"), "OUT": str(tmp_path / "out"), "FULL": str(full)}
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *(words.get(f, f.replace("FULL", str(full))) for f in flags)])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and text.count("\n") == 1
    assert re.search(why, text), text
    assert not (tmp_path / "out").exists() and sorted(p.name for p in SAES.glob("saelens/topk/*")) == before


def test_image_tokenizers_enter_by_the_same_doors(tmp_path, capsys):
    """`test_interop_diffusers` says what is in them."""
    with zipfile.ZipFile(SAES.parent / "diffusers.zip") as archive:
        archive.extractall(tmp_path)
    assert aezoo.load_foreign(tmp_path / "kl").name == "autoencoder_kl"
    model = aezoo.load_foreign(tmp_path / "tiny", input_shape=(3, 8, 8))
    main(["convert", str(tmp_path / "tiny"), str(tmp_path / "own"), "--from", "auto", "--input_shape", "[3, 8, 8]"])
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(aezoo.from_pretrained(tmp_path / "own").encode(x), model.encode(x))
    main(["convert", str(tmp_path / "own"), str(tmp_path / "back"), "--to", "diffusers"])
    assert torch.equal(aezoo.load_foreign(tmp_path / "back", input_shape=(3, 8, 8)).encode(x), model.encode(x))
    with pytest.raises(ValueError, match=r"is no saelens: it is diffusers \(pass format='diffusers' or 'auto'\)"):
        aezoo.load_foreign(tmp_path / "kl", "saelens")
    with pytest.raises(ValueError, match="'tiny_ae' has no counterpart in SAELens"):
        aezoo.save_foreign(model, tmp_path / "sae", "saelens")


def test_the_libraries_are_never_imported():
    code = f"""
import sys, aezoo
assert "aezoo.interop" not in sys.modules
assert aezoo.interop.FORMATS and callable(aezoo.interop.load_foreign)
for case in {CASES!r}:
    aezoo.load_foreign({str(SAES)!r} + "/" + case)
assert not {{"sae_lens", "dictionary_learning", "sparsify", "transformers", "sklearn"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
