"""The command line, in process; a few commands also in a process of their own."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import aezoo
from aezoo.cli import main
from aezoo.storage import read_tensors, write_tensors

SMALL = ["--data", "digits", "--data.limit", "200", "--model", "vae", "--model.backbone", "mlp(widths=(16,))", "--model.latent_dim", "3",
         "--train.epochs", "2", "--train.progress", "false"]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AEZOO_TRACEBACK", raising=False)


@pytest.fixture
def run(tmp_path):
    main(["train", *SMALL, "--out", "runs/r"])
    return tmp_path / "runs" / "r"


def fails(capsys, *argv):
    """The one line on stderr of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in argv])
    out, err = capsys.readouterr()
    assert (
        end.value.code == 2
        and len(err.strip().splitlines()) == 1
        and err.startswith("aezoo: ")
        and "Traceback" not in out + err
    )
    return err


def png(path, shape=(8, 8), value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(0)
    Image.fromarray(
        g.integers(0, 256, shape, dtype=np.uint8) if value is None else np.full(shape, value, np.uint8)
    ).save(path)


# ------------------------------------------------------------------------------------------------------------ commands


def test_list_and_info(capsys):
    main(["list", "*vae"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == aezoo.list_models("*vae")
    assert any(line.startswith("vae ") and "1312.6114" in line for line in lines)
    for name in aezoo.list_models():
        main(["info", name, "--input_shape", "[1,8,8]"])
        out = capsys.readouterr().out
        model = aezoo.create_model(name, input_shape=(1, 8, 8))
        assert f"{model.num_parameters:,}" in out and "Paper" in out and model.units in out and "latent_dim" in out


def test_help(capsys):
    main([])
    assert "train" in capsys.readouterr().out
    main(["train", "--model", "k_sparse_ae", "--help"])
    out = capsys.readouterr().out
    assert "alpha" in out and "batch_size" in out and "binarize" in out
    main(["--version"])
    assert aezoo.__version__ in capsys.readouterr().out


@pytest.mark.pictures
def test_train_evaluate_sample_reconstruct(run, tmp_path, capsys):
    assert (run / "pictures" / "samples.png").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) == 2
    main(["evaluate", "runs/r", "--log_prob", "20"])
    out = capsys.readouterr().out
    figures = json.loads((run / "evaluation.json").read_text())["metrics"]
    assert (
        "test split of digits" in out
        and figures["samples"]["mean"] == 299
        and figures["log_prob"]["mean"] >= figures["elbo"]["mean"]
    )
    main(["sample", "runs/r", "-n", "16"])
    assert Image.open(run / "samples.png").size[0] > 100
    for name in ("a/x.png", "b/x.png", "big.png"):
        png(tmp_path / name, (8, 8) if name != "big.png" else (20, 31))
    main(["reconstruct", "runs/r", "a", "b/x.png", "big.png", "--out", "back"])
    assert {p.name for p in (tmp_path / "back").iterdir()} == {"x.png", "x-2.png", "big.png", "comparison.png"}
    assert "1 of other sizes were fitted to 8x8" in capsys.readouterr().out
    np.save("rows.npy", np.zeros((3, 8, 8), np.float32))
    main(["reconstruct", "runs/r", "rows.npy", "--out", "back"])
    assert np.load("back/rows.npy").shape == (3, 1, 8, 8)


def test_the_same_run_from_its_config_file(run, tmp_path):
    main(["train", "runs/r/config.yaml", "--out", "runs/again", "--train.progress", "false"])
    a, b = (read_tensors(tmp_path / "runs" / n / "model.safetensors")[0] for n in ("r", "again"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_resume_for_longer(run, tmp_path):
    main(["train", "--resume", "runs/r", "--train.epochs", "4", "--train.progress", "false"])
    main(["train", *SMALL, "--train.epochs", "4", "--out", "runs/whole"])
    a, b = (read_tensors(tmp_path / "runs" / n / "model.safetensors")[0] for n in ("r", "whole"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_run_folders_are_numbered(tmp_path):
    for _ in range(2):
        main(["train", *SMALL])
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["vae-digits", "vae-digits-2"]


def test_yaml_shorthands_and_folders(tmp_path):
    for i in range(20):
        png(tmp_path / "pictures" / f"{i}.png", (9, 7))
    (tmp_path / "mine.yaml").write_text(
        "model: conv_ae\ndata: pictures\ntrain: {steps: 3, progress: false, batch_size: 8}\n"
    )
    main(["train", "mine.yaml"])
    assert aezoo.from_pretrained("runs/mine").input_shape == (1, 9, 7)
    main(["evaluate", "runs/mine"])


def test_evaluate_uses_what_was_held_out(tmp_path, capsys):
    np.save("x.npy", np.random.default_rng(0).random((50, 4)).astype(np.float32))
    main(
        [
            "train",
            "--data",
            "x.npy",
            "--model",
            "ae",
            "--train.val",
            "0.2",
            "--train.epochs",
            "1",
            "--train.progress",
            "false",
        ]
    )
    main(["evaluate", "runs/ae-x"])
    out = capsys.readouterr().out
    assert "held out in training" in out and "10" in out.splitlines()[1]
    row = json.loads((tmp_path / "runs/ae-x/metrics.jsonl").read_text())
    assert f"{row['val_loss']:.5g}"[:5] in out


def test_a_model_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "mine_for_test", None)
    del sys.modules["mine_for_test"]
    (tmp_path / "mine_for_test.py").write_text(
        "import aezoo\n@aezoo.register('my_ae')\nclass My(aezoo.models.AE):\n    pass\n"
    )
    (tmp_path / "my.yaml").write_text(
        "model: my_ae\ndata: {source: digits, limit: 50}\ntrain: {steps: 2, progress: false}\n"
    )
    try:
        main(["train", "my.yaml", "--import", "mine_for_test"])
        main(["evaluate", "runs/my", "--import", "mine_for_test.py"])
    finally:
        aezoo.registry.MODELS.entries.pop("my_ae", None)
    assert "import the module that defines it" in fails(capsys, "evaluate", "runs/my")
    assert "Did you mean 'mine_for_test'" in fails(capsys, "list", "--import", "mine_for_tests")


def test_reconstruct_does_not_overwrite_its_input(run, tmp_path, capsys):
    png(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert "would overwrite the input a.png" in fails(capsys, "reconstruct", "runs/r", "a.png", "--out", ".")
    assert (tmp_path / "a.png").read_bytes() == before
    png(tmp_path / "comparison.png")
    main(["reconstruct", "runs/r", "comparison.png", "--out", "back"])
    assert (tmp_path / "back" / "comparison-2.png").is_file()


def test_validation_data_by_name_survives_resuming(tmp_path):
    main(["train", *SMALL, "--train.val", "{source: digits, split: test}", "--out", "r"])
    main(["train", "--resume", "r", "--train.epochs", "3", "--train.progress", "false"])
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_model_name_is_a_recipe_of_the_models_own_defaults(tmp_path):
    main(["train", "vae", "--data", "digits", "--data.limit", "100", "--train.steps", "1", "--train.progress", "false"])
    main(
        [
            "train",
            "--model",
            "vae",
            "--data",
            "digits",
            "--data.limit",
            "100",
            "--train.steps",
            "1",
            "--train.progress",
            "false",
        ]
    )
    for name in ("vae-digits", "vae-digits-2"):
        model = aezoo.from_pretrained(tmp_path / "runs" / name)
        assert (model.latent_dim, model.beta, model.config["backbone"]) == (32, 1.0, "mlp")


def test_evaluate_fits_a_folder_of_pictures_to_the_model(run, tmp_path, capsys):
    for i, shape in enumerate([(8, 8), (20, 31), (9, 50)]):
        png(tmp_path / "mixed" / f"{i}.png", shape)
    main(["evaluate", "runs/r", "--data", "mixed"])
    main(["evaluate", "runs/r", "--data", "digits", "--data.split", "test", "--data.limit=20"])
    out = capsys.readouterr().out
    assert "samples                      3" in out and "samples                     20" in out
    assert "Did you mean 'limit'" in fails(capsys, "evaluate", "runs/r", "--data", "digits", "--data.limt", "3")


def test_samples_that_are_no_pictures_are_written_as_an_array(tmp_path, capsys):
    np.save("x.npy", np.random.default_rng(0).random((50, 4)).astype(np.float32))
    main(["train", "vae", "--data", "x.npy", "--train.steps", "2", "--train.progress", "false", "--out", "t"])
    main(["sample", "t", "-n", "20", "--out", "new"])
    assert np.load("new.npy").shape == (20, 4) and (tmp_path / "new.png").is_file()


def test_list_finds_parts_of_names(capsys):
    main(["list", "sparse"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["k_sparse_ae", "sparse_ae"]


def test_nothing_left_to_do(run, tmp_path, capsys):
    before = (run / "config.yaml").read_text()
    main(["train", "--resume", "runs/r", "--train.progress", "true"])
    assert "nothing left to do" in capsys.readouterr().out and (run / "config.yaml").read_text() == before


def test_module_and_script():
    for command in ([sys.executable, "-m", "aezoo"],):
        done = subprocess.run([*command, "tran"], capture_output=True, text=True)
        assert done.returncode == 2 and "Did you mean 'train'" in done.stderr and done.stdout == ""


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tran"], "Did you mean 'train'"),
        (["list", "zzz"], "no model fits 'zzz'"),
        (["info", "vea"], "Did you mean 'vae'"),
        (["train", "fashon"], "Did you mean 'fashion'"),
        (["train", "fashon.yaml"], "Did you mean 'fashion.yaml'"),
        (["train", "fashion", "digits"], "one recipe"),
        (["train", "--model", "vea"], "Did you mean 'vae'"),
        (["train", "--data", "fashion-mimi"], "Did you mean 'fashion-mini'"),
        (["train", "--data", "missing.csv"], "no file, folder or data set 'missing.csv'"),
        (["train", "--model.latent_dm", "3"], "Did you mean 'latent_dim'"),
        (["train", "--model.latent_dim", "-3"], "latent_dim=-3 must be an integer of at least 1"),
        (["train", "--model.latent_dim", "many"], "--model.latent_dim=many is not valid; it takes int"),
        (["train", "--model.input_shape", "[1,-28,28]"], "input_shape=[1, -28, 28]"),
        (["train", "--model.input_shape", "[3,28,28]"], "it has 1 channels and the model takes 3"),
        (["train", "--model.widths", "3"], "'widths' belongs to the backbone"),
        (["train", "--train.epoch", "3"], "Did you mean 'epochs'"),
        (["train", "--epochs", "3"], "Did you mean '--train.epochs'"),
        (["train", "--train.epochs", "-1"], "epochs=-1 must be an integer of at least 1"),
        (["train", "--train.epochs", "1.5"], "--train.epochs=1.5 is not valid; it takes int"),
        (["train", "--train.batch_size", "99999"], "batch_size=99999 is larger than the 8100 samples"),
        (["train", "--train.l2", "0.1"], "The L2 penalty is train.weight_decay"),
        (["train", "--train.latent_dim", "3"], "Did you mean 'model.latent_dim'"),
        (["train", "--data.size", "-4"], "size"),
        (["train", "--train.seed", "100000000000000000000"], "seed"),
        (["train", "--out"], "--out needs a value"),
        (["train", "--resume", "x", "--out", "y"], "no run folder 'x'"),
        (["list", "--import"], "--import needs the name"),
        (["train", "--train.device", "cuda:77"], "cuda:77"),
        (["train", "--resume", "runs/none"], "no run folder 'runs/none'"),
        (["train", "fashion", "--resume", "runs/none"], "leave 'fashion' out"),
        (["evaluate", "runs/none"], "no run folder"),
        (["sample", "."], "is no run folder"),
        (["evaluate"], "run"),
    ],
)
def test_one_clear_line(capsys, argv, message):
    assert message in fails(capsys, *argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "no valid YAML"),
        ("- 1", "must hold the sections"),
        ("modle: vae", "Did you mean 'model'"),
        ("model: {name: vae, latent: 3}\ndata: digits", "no key 'latent'"),
        ("data: digits", "no model is named"),
        ("model: vae", "no data: pass --data"),
        ("model: vae\ndata: digits\ntrain: {epochs: abc}", "--train.epochs=abc is not valid; it takes int"),
        ("model: vae\ndata: !!python/object/apply:os.system ['echo hacked > hacked']", "no valid YAML"),
    ],
)
def test_bad_yaml(capsys, tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    assert message in fails(capsys, "train", "c.yaml")
    assert not (tmp_path / "hacked").exists()


def test_bad_data(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no image" in fails(capsys, "train", "--data", "empty")
    png(tmp_path / "some" / "a.png")
    png(tmp_path / "some" / "b.png")
    (tmp_path / "some" / "c.png").write_bytes(b"not a picture")
    assert "1 of 3 images cannot be read: c.png" in fails(capsys, "train", "--data", "some")
    np.save("nan.npy", np.array([[1.0, np.nan], [0.0, 1.0]], np.float32))
    assert "NaN in 1 of 2 samples" in fails(capsys, "train", "--data", "nan.npy")
    np.save("labels.npy", np.arange(10))
    assert "labels only" in fails(capsys, "train", "--data", "labels.npy")
    np.save("wide.npy", np.full((20, 3), 7.0, np.float32))
    assert "lies in [7, 7]" in fails(
        capsys, "train", "--data", "wide.npy", "--model", "ae", "--model.likelihood", "bce"
    )


def test_unwritable_and_occupied_folders(capsys, run, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write to out=" in fails(capsys, "train", *SMALL, "--out", "file/run")
    assert "already holds a run" in fails(capsys, "train", *SMALL, "--out", "runs/r")


def test_damaged_and_foreign_weights(capsys, run, tmp_path):
    weights = run / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "truncated, damaged" in fails(capsys, "evaluate", "runs/r")
    weights.write_bytes(b"")
    assert "truncated, damaged" in fails(capsys, "sample", "runs/r")
    other = aezoo.create_model("ae", input_shape=(1, 8, 8)).save_pretrained(tmp_path / "other")
    weights.write_bytes((other / "model.safetensors").read_bytes())
    assert "holds the weights of a 'ae', but config.json describes a 'vae'" in fails(capsys, "evaluate", "runs/r")
    weights.write_bytes(whole)
    tensors, metadata = read_tensors(weights)
    name = next(k for k in tensors if k.endswith("weight"))
    write_tensors(weights, {**{k: v for k, v in tensors.items() if k != name}, "extra": torch.zeros(1)}, metadata)
    message = fails(capsys, "evaluate", "runs/r")
    assert f"{name} is missing" in message and "extra is not in the model" in message
    write_tensors(weights, {**tensors, name: torch.zeros(2, 2)}, metadata)
    assert "shape (2, 2) instead of" in fails(capsys, "evaluate", "runs/r")
    weights.unlink()
    assert "does not exist" in fails(capsys, "evaluate", "runs/r")


def test_damaged_config(capsys, run):
    config = json.loads((run / "config.json").read_text())
    for change, message in [
        ({"model": "their_ae"}, "import the module that defines it"),
        ({"format": 99}, "reads format 1"),
        ({"args": {**config["args"], "latent_dims": 3}}, "Did you mean 'latent_dim'"),
    ]:
        (run / "config.json").write_text(json.dumps({**config, **change}))
        assert message in fails(capsys, "sample", "runs/r")
    (run / "config.json").write_text("{")
    assert "not JSON" in fails(capsys, "sample", "runs/r")


def test_no_prior_and_wrong_kinds_of_data(capsys, tmp_path):
    np.save("x.npy", np.random.default_rng(0).random((50, 4)).astype(np.float32))
    main(["train", "--data", "x.npy", "--model", "ae", "--train.steps", "2", "--train.progress", "false"])
    assert "has no prior" in fails(capsys, "sample", "runs/ae-x")
    png(tmp_path / "a.png")
    assert "takes samples of shape (4,)" in fails(capsys, "reconstruct", "runs/ae-x", "a.png")
    assert "Did you mean 'a.png'" in fails(capsys, "reconstruct", "runs/ae-x", "b.png")


def test_from_pretrained_of_nothing(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folder './missing'"):
        aezoo.from_pretrained("./missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no config.json.* it holds: nothing"):
        aezoo.from_pretrained(tmp_path / "empty")

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="the hub gave no model 'someone/something': no network"):
        aezoo.from_pretrained("hf://someone/something")


def test_from_pretrained_by_a_hub_name(tmp_path, monkeypatch):
    model = aezoo.create_model("ae", input_shape=(3,))
    model.save_pretrained(tmp_path / "snapshot")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **kw: asked.append((name, kw)) or str(tmp_path / "snapshot")
    )
    x = torch.rand(2, 3)
    assert torch.equal(aezoo.from_pretrained("someone/something").reconstruct(x), model.reconstruct(x))
    files = ["config.json", "model.safetensors", "checksums.json", "README.md"]
    assert asked == [("someone/something", {"revision": None, "allow_patterns": files})]


def test_logger_is_short_for_train_logger():
    from aezoo.flags import train_config

    assert train_config(["digits", "--logger", "tensorboard"])[0]["train"]["logger"] == "tensorboard"
    with pytest.raises(ValueError, match="--logger needs a value"):
        train_config(["digits", "--logger"])


@pytest.fixture(scope="module")
def tasks_run(tmp_path_factory):
    """A run of an autoencoder of small pictures."""
    folder = tmp_path_factory.mktemp("tasks")
    aezoo.fit(
        aezoo.create_model("ae", input_shape=(1, 6, 6), latent_dim=2, backbone="mlp(widths=(8,))"),
        torch.rand(40, 1, 6, 6),
        steps=5,
        progress=False,
        device="cpu",
        out=folder / "run",
    )
    (folder / "empty").mkdir()
    np.save(folder / "one.npy", np.random.default_rng(0).random((1, 1, 6, 6), np.float32))
    np.save(folder / "same.npy", np.full((9, 1, 6, 6), 0.5, np.float32))
    np.save(folder / "normal.npy", np.random.default_rng(1).random((30, 1, 6, 6), np.float32))
    return folder


@pytest.mark.parametrize(
    "argv",
    [
        ["detect", "RUN", "EMPTY", "--reference", "NORMAL"],
        ["detect", "RUN", "SAME", "--reference", "EMPTY"],
        ["features", "RUN", "--data", "EMPTY"],
        ["interpolate", "RUN", "EMPTY", "SAME:0"],
        ["traverse", "RUN", "EMPTY"],
        ["traverse", "RUN", "SAME:0", "--scale", "data", "--data", "EMPTY"],
        ["compress", "RUN", "EMPTY"],
        ["decompress", "RUN", "EMPTY"],
        ["denoise", "RUN", "EMPTY", "--out", "out"],
    ],
    ids=" ".join,
)
def test_an_empty_folder_is_no_data_for_any_task(tasks_run, argv, capsys):
    names = {"RUN": tasks_run / "run", "EMPTY": tasks_run / "empty", "NORMAL": tasks_run / "normal.npy"}
    given = [str(names.get(a, tasks_run / "same.npy" if a == "SAME" else a)) for a in argv]
    given = [a.replace("SAME:", f"{tasks_run / 'same.npy'}:") for a in given]
    assert "empty" in fails(capsys, *given)


@pytest.mark.parametrize("rows", ["one", "same"])
@pytest.mark.parametrize("score", ["recon", "latent_knn", "mahalanobis"])
def test_one_row_and_rows_that_are_all_equal_have_scores(tasks_run, tmp_path, rows, score, capsys):
    main(["detect", str(tasks_run / "run"), str(tasks_run / f"{rows}.npy"), "--score", score, "--reference", str(tasks_run / "normal.npy"),
          "--out", str(tmp_path)])  # fmt: skip
    found = [float(line.split(",")[1]) for line in (tmp_path / "scores.csv").read_text().splitlines()[1:]]
    assert len(found) == (1 if rows == "one" else 9) and all(np.isfinite(found)) and np.ptp(found) < 1e-5
