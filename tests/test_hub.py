"""Models to and from the hub, and their cards; without a network: a cache as huggingface_hub lays it out, and a recorded API."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import fit, model_of
from huggingface_hub import ModelCard, constants, errors

import aezoo
from aezoo.cards import LICENSES, without_paths, write_card
from aezoo.cli import main
from aezoo.hub import FILES, hub_name
from aezoo.storage import read_tensors, sha256, write_model, write_tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache, repo, saved, revision="main", commit=COMMIT, files=FILES):
    """Puts a saved model into a cache as snapshot_download would: blobs, and a snapshot of links to them."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir(exist_ok=True)
    (home / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(commit)
    for name in files:
        if (saved / name).is_file():
            blob = home / "blobs" / sha256(saved / name)
            shutil.copyfile(saved / name, blob)
            (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def api(monkeypatch):
    """Instead of the hub: what it was asked, and the files that it was given."""
    told = SimpleNamespace(calls=[], files={})

    class Api:
        def __init__(self, **options):
            assert "token" not in options

        def create_repo(self, repo, **options):
            told.calls.append(("create_repo", repo, options))
            return f"https://huggingface.co/{repo}"

        def create_branch(self, repo, **options):
            told.calls.append(("create_branch", repo, options))

        def upload_folder(self, *, folder_path, **options):
            told.calls.append(("upload_folder", options))
            told.files = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return told


# ------------------------------------------------------------------------------------------------------------ checksums


def test_the_sum_of_the_weights_is_saved_and_checked(tmp_path):
    model = model_of("ae")
    model.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "checksums.json").read_text())
    assert kept == {"sha256": {"model.safetensors": sha256(tmp_path / "model.safetensors")}}
    x = torch.rand(2, 1, 12, 12)
    assert torch.equal(aezoo.from_pretrained(tmp_path).reconstruct(x), model.reconstruct(x))

    whole = bytearray((tmp_path / "model.safetensors").read_bytes())
    whole[-1] ^= 1  # one bit of one weight
    (tmp_path / "model.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match="is not the file that was saved: its sha256 is .* delete checksums.json"):
        aezoo.from_pretrained(tmp_path)
    (tmp_path / "checksums.json").unlink()  # as older versions saved
    changed = aezoo.from_pretrained(tmp_path).state_dict()
    assert sum(not torch.equal(v, changed[k]) for k, v in model.state_dict().items()) == 1


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sha256": {}}', '{"sha256": {"model.safetensors": "abc"}}'])
def test_damaged_checksums_are_said(tmp_path, text):
    model_of("ae").save_pretrained(tmp_path)
    (tmp_path / "checksums.json").write_text(text)
    with pytest.raises(ValueError, match=r"checksums.json is damaged"):
        aezoo.from_pretrained(tmp_path)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_killed_while_saving_leaves_a_folder_that_loads(tmp_path, monkeypatch, writes):
    """Between any two of the three files; the sum of other weights never stays beside new ones."""
    old, new = model_of("ae"), model_of("ae")
    with torch.no_grad():
        new.encoder[0].layer.weight.add_(1)
    old.save_pretrained(tmp_path)
    done, replace = [], os.replace

    def dies(*paths):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(paths)
        replace(*paths)

    monkeypatch.setattr("os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path, new.saved_config(), new.state_dict())
    x = torch.rand(2, 1, 12, 12)
    got = aezoo.from_pretrained(tmp_path).reconstruct(x)
    assert torch.equal(got, (new if writes else old).reconstruct(x))


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("hf://user/name", "user/name", None),
        ("user/name", "user/name", None),
        ("hf://A-b/c.d_e@v1.0", "A-b/c.d_e", "v1.0"),
        ("hf://user/name@refs/pr/3", "user/name", "refs/pr/3"),
        (f"hf://user/name@{COMMIT}", "user/name", COMMIT),
    ],
)
def test_names(text, repo, revision):
    assert hub_name(text) == (repo, revision)


@pytest.mark.parametrize(
    "text",
    ["hf://../../etc", "hf://../etc", "hf://user/..", "hf:///etc/passwd", "hf://user", "hf://user/name/more", "hf://user/na me",
     "hf://-user/name", "hf://user/name.", "hf://user/a--b", "hf://user/a..b", "hf://", "hf://user/nämе", "hf://user\\name/x",
     "hf://user/" + "n" * 100, "hf://user/name.git", "HF://user/name", "hf:/user/name", "hf://user/name\n"],
)  # fmt: skip
def test_wrong_names_are_refused(text):
    with pytest.raises(ValueError, match="write 'hf://user/name' or 'hf://user/name@revision'"):
        aezoo.from_pretrained(text)
    with pytest.raises(ValueError, match="is no name on the hub"):
        aezoo.pull(text)
    with pytest.raises(ValueError, match="is no name on the hub"):
        aezoo.push(model_of("ae"), text)


@pytest.mark.parametrize(
    "revision", ["../../x", "..", "a/../b", "/etc", "-x", "a b", "", "a//b", "v1/", "a\\b", "x" * 300]
)
def test_wrong_revisions_are_refused(revision):
    with pytest.raises(ValueError, match="is no revision, which is a branch, tag or commit"):
        aezoo.from_pretrained(f"hf://user/name@{revision}")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("https://huggingface.co/user/name", "hf://user/name"),
        ("https://huggingface.co/user/name/tree/v1", "hf://user/name@v1"),
        ("huggingface.co/user/name", "hf://user/name"),
        ("hf:user/name", "hf://user/name"),
        ("hf:/user/name", "hf://user/name"),
        ("HF://user/name@v1", "hf://user/name@v1"),
        ("hf://models/user/name", "hf://user/name"),
        ("hf://user/my name", "hf://user/my-name"),
        ("hf://user/name.git", "hf://user/name"),
    ],
)
def test_the_right_spelling_is_named(text, meant):
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
        hub_name(text)


def test_what_is_no_explicit_hub_name_may_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model_of("ae").save_pretrained("user/name")
    assert aezoo.from_pretrained("user/name").name == "ae"
    model_of("ae").save_pretrained("hf:/user/name")  # a folder that the explicit name must not read
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"):
        aezoo.from_pretrained("hf://user/name")
    with pytest.raises(FileNotFoundError, match="no folder 'runs/my run' here, and"):
        aezoo.from_pretrained("runs/my run")


# ------------------------------------------------------------------------------------------------------- from the cache


def test_offline_from_the_cache(tmp_path, cache):
    first, second = model_of("ae"), model_of("vae")
    cached(cache, "user/name", first.save_pretrained(tmp_path / "a"))
    cached(cache, "user/name", second.save_pretrained(tmp_path / "b"), "v2", "f" * 40)
    x = torch.rand(2, 1, 12, 12)
    for name in ("hf://user/name", "user/name", "hf://user/name@main", f"user/name@{COMMIT}"):
        assert torch.equal(aezoo.from_pretrained(name).reconstruct(x), first.reconstruct(x))
    assert aezoo.from_pretrained("hf://user/name@v2").name == "vae"
    with pytest.raises(
        FileNotFoundError, match=r"holds no whole copy of 'user/name' at revision 'v3'.*aezoo pull user/name"
    ):
        aezoo.from_pretrained("hf://user/name@v3")
    with pytest.raises(FileNotFoundError, match="no folder 'user/other' here, and HF_HUB_OFFLINE is set"):
        aezoo.from_pretrained("user/other")


def test_offline_by_the_environment(tmp_path):
    """In a process of its own, as a user sets it."""
    cached(tmp_path / "cache", "user/name", model_of("ae").save_pretrained(tmp_path / "saved"))
    code = "from aezoo.cli import main; main(['pull', 'user/name']); main(['pull', 'user/other'])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = str(Path(aezoo.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "from_pretrained('hf://user/name')" in done.stdout
    assert "HF_HUB_OFFLINE is set" in done.stderr and "'user/other'" in done.stderr


def test_pull_copies_four_files(tmp_path, cache):
    saved = model_of("ae").save_pretrained(tmp_path / "saved")
    (saved / "README.md").write_text("---\nlicense: mit\n---\n")
    snapshot = cached(cache, "user/name", saved)
    (snapshot / "evil.py").write_text("raise SystemExit")
    (snapshot / "pytorch_model.bin").write_bytes(b"pickle")
    assert aezoo.pull("user/name") == snapshot
    out = aezoo.pull("hf://user/name@main", tmp_path / "new" / "folder")
    assert {p.name for p in out.iterdir()} == set(FILES) and not any(p.is_symlink() for p in out.iterdir())
    assert [p.name for p in out.parent.iterdir()] == ["folder"]
    assert aezoo.from_pretrained(out).name == "ae"
    (tmp_path / "empty").mkdir()
    assert aezoo.from_pretrained(aezoo.pull("user/name", tmp_path / "empty")).name == "ae"
    with pytest.raises(ValueError, match="holds something already; name a new or empty folder"):
        aezoo.pull("user/name", out)


def test_pull_checks_what_came(tmp_path, cache):
    saved = model_of("ae").save_pretrained(tmp_path / "saved")
    cached(cache, "user/partial", saved, files=("config.json",))
    with pytest.raises(
        ValueError, match=r"'user/partial' holds no model.safetensors, so it is no model of aezoo; it holds: config"
    ):
        aezoo.pull("user/partial")
    tensors, metadata = read_tensors(saved / "model.safetensors")
    write_tensors(saved / "model.safetensors", {k: v + 1 for k, v in tensors.items()}, metadata)
    cached(cache, "user/changed", saved)
    for use in (aezoo.pull, aezoo.from_pretrained, lambda name: aezoo.pull(name, tmp_path / "out")):
        with pytest.raises(ValueError, match="is not the file that was saved"):
            use("user/changed")
    assert not (tmp_path / "out").exists()
    (saved / "config.json").write_text('{"model_type": "bert"}')
    cached(cache, "user/bert", saved)
    with pytest.raises(ValueError, match="is no aezoo model: it needs the keys"):
        aezoo.pull("user/bert")


def http_error(kind):
    response = SimpleNamespace(status_code=401, headers={}, request=None, url="", text="")
    error = kind.__new__(kind)
    Exception.__init__(error, "what the hub says\nand more")
    error.response = response
    return error


@pytest.mark.parametrize(
    ("kind", "type_", "message"),
    [
        (errors.RepositoryNotFoundError, FileNotFoundError, "the hub has no model 'user/name', or it is private: then run 'hf auth login'"),
        (errors.RevisionNotFoundError, FileNotFoundError, "the hub's 'user/name' has no revision 'v9'"),
        (errors.GatedRepoError, PermissionError, "is gated"),
        (errors.HfHubHTTPError, FileNotFoundError, "the hub gave no model 'user/name' at revision 'v9': what the hub says$"),
        (errors.LocalEntryNotFoundError, FileNotFoundError, "the hub gave no model 'user/name' at revision 'v9': what the hub says$"),
    ],
)  # fmt: skip
def test_what_the_hub_says_no_to(monkeypatch, kind, type_, message):
    def refuses(*args, **options):
        assert options == {"revision": "v9", "allow_patterns": list(FILES)}
        raise http_error(kind)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuses)
    with pytest.raises(type_, match=message):
        aezoo.from_pretrained("hf://user/name@v9")


# ----------------------------------------------------------------------------------------------------------------- push


def test_push_a_model(api):
    model = model_of()
    assert aezoo.push(model, "user/name", license="mit", private=True) == "https://huggingface.co/user/name"
    assert api.calls == [
        ("create_repo", "user/name", {"private": True, "exist_ok": True, "repo_type": "model"}),
        ("upload_folder", {"repo_id": "user/name", "allow_patterns": list(FILES), "commit_message": "vae by aezoo", "revision": None,
                           "repo_type": "model"}),
    ]  # fmt: skip
    assert set(api.files) == set(FILES)


def test_push_a_folder_pull_it_back(tmp_path, api, monkeypatch, capsys):
    model = model_of()
    saved = model.save_pretrained(tmp_path / "saved")
    (saved / "checksums.json").unlink()  # of an older version
    for secret in ("config.yaml", "id_rsa", "checkpoint.pt"):
        (saved / secret).write_text("{}")
    main(["push", str(saved), "hf://user/name@next", "--license", "apache-2.0", "--message", "First"])
    assert "from_pretrained('hf://user/name@next')" in capsys.readouterr().out
    assert [c[0] for c in api.calls] == ["create_repo", "create_branch", "upload_folder"]
    assert (
        api.calls[1][2]["branch"] == api.calls[2][1]["revision"] == "next"
        and api.calls[2][1]["commit_message"] == "First"
    )
    assert api.calls[0][2]["private"] is None
    assert set(api.files) == set(FILES)
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in api.files.items():
        (arrived / name).write_bytes(content)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(tmp_path / "cache", "user/name", arrived, "next")
    x = torch.rand(2, 1, 12, 12)
    assert torch.equal(aezoo.from_pretrained("hf://user/name@next").reconstruct(x), model.reconstruct(x))


def test_dry_run_and_refusals(tmp_path, api, monkeypatch, capsys):
    saved = model_of("ae").save_pretrained(tmp_path / "saved")
    main(["push", str(saved), "user/name", "--dry_run"])
    assert "would be pushed to https://huggingface.co/user/name" in capsys.readouterr().out and not api.calls
    with pytest.raises(ValueError, match="Did you mean 'apache-2.0'"):
        aezoo.push(saved, "user/name", license="apache-2")
    with pytest.raises(FileNotFoundError, match="no folder .* to push"):
        aezoo.push(tmp_path / "none", "user/name")
    (saved / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="truncated"):
        aezoo.push(saved, "user/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        aezoo.push(model_of("ae"), "user/name")
    assert not api.calls


def test_the_hub_does_not_take_it(monkeypatch):
    class Api:
        def __init__(self, **options): ...

        def create_repo(self, *args, **options):
            raise http_error(errors.HfHubHTTPError)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(
        ConnectionError, match="did not take 'user/name': what the hub says; you may not write there: .*HF_TOKEN"
    ):
        aezoo.push(model_of("ae"), "user/name")


# ---------------------------------------------------------------------------------------------------------------- cards


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secret place") / "run"
    main(["train", "digits", "--train.epochs", "1", "--train.progress", "false", "--train.device", "cpu", "--out", str(folder)])  # fmt: skip
    main(["evaluate", str(folder), "--device", "cpu"])
    return folder


def copied(run, folder):
    folder.mkdir()
    for p in run.iterdir():
        if p.is_file():
            shutil.copyfile(p, folder / p.name)
    return folder


def test_the_card_of_a_run(run, tmp_path, capsys):
    folder = copied(run, tmp_path / "run")
    main(["card", str(folder), "--license", "mit", "--name", "user/digits-vae"])
    text = (folder / "README.md").read_text()
    card = ModelCard.load(folder / "README.md")
    head = card.data.to_dict()
    assert head["license"] == "mit" and head["library_name"] == "aezoo"
    assert head["pipeline_tag"] == "unconditional-image-generation" and {"aezoo", "vae", "arxiv:1312.6114"} <= set(
        head["tags"]
    )
    metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    results = {r.metric_type: r for r in card.data.eval_results}  # read back from model-index
    assert card.data.model_name == "digits-vae" and results.keys() == metrics.keys() - {"samples"}
    for key, result in results.items():
        assert result.metric_value == pytest.approx(metrics[key]["mean"], rel=1e-5)
        assert result.dataset_name == "the test split of digits" and result.dataset_type == "digits"
    for section in ("Task", "Data", "Metrics", "Recipe", "How to load", "Licence"):
        assert f"\n## {section}\n" in text
    assert 'aezoo.from_pretrained("hf://user/digits-vae")' in text and "`mit`, as named" in text
    assert "secret place" not in text and str(tmp_path) not in text

    with pytest.raises(ValueError, match="is there already"):
        write_card(folder)
    write_card(folder, overwrite=True)
    assert "Unknown: whoever published this model named no licence" in (folder / "README.md").read_text()


def test_the_recipe_in_the_card_trains_it_again(run, tmp_path):
    folder = copied(run, tmp_path / "run")
    text = write_card(folder).read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "config.yaml").write_text(text)
    main(["train", str(tmp_path / "config.yaml"), "--train.progress", "false", "--out", str(tmp_path / "again")])
    a, b = (read_tensors(p / "model.safetensors")[0] for p in (run, tmp_path / "again"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_figures_of_other_weights_are_left_out(run, tmp_path):
    folder = copied(run, tmp_path / "run")
    model = aezoo.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(folder)
    text = write_card(folder).read_text()
    assert "None recorded of these weights" in text and "model-index" not in text
    (folder / "evaluation.json").write_text('{"metrics": [1]}')
    with pytest.raises(ValueError, match=r"evaluation.json is damaged"):
        write_card(folder, overwrite=True)


def test_the_card_that_is_there_is_pushed_as_it_is(run, tmp_path, api):
    folder = copied(run, tmp_path / "run")
    write_card(folder, license="mit")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMy own words.\n")
    aezoo.push(folder, "user/name", license="mit")
    assert api.files["README.md"] == (folder / "README.md").read_bytes()
    with pytest.raises(ValueError, match="says license: mit; change it there"):
        aezoo.push(folder, "user/name", license="apache-2.0")
    (folder / "README.md").write_text("no head")
    with pytest.raises(ValueError, match="has no head of YAML"):
        aezoo.push(folder, "user/name")
    (folder / "README.md").write_text("---\na: [1\n---\n")
    with pytest.raises(ValueError, match="cannot be read"):
        aezoo.push(folder, "user/name")


def test_cards_of_all_kinds_of_models(api):
    kinds = {"denoising_ae": "image-to-image", "ae": "image-feature-extraction", "cvae": "image-feature-extraction",
             "vq_vae": "image-feature-extraction", "vae": "unconditional-image-generation"}  # fmt: skip
    for name, task in kinds.items():
        aezoo.push(model_of(name), "user/name")
        card = ModelCard(api.files["README.md"].decode())
        assert card.data.pipeline_tag == task and card.data.license == "unknown" and card.data.eval_results is None
        assert ("condition=labels" in card.text) == (name == "cvae") and ("model.sample" in card.text) == (
            name in ("vae", "cvae")
        )
    aezoo.push(aezoo.create_model("tabular_ae", input_shape=(5,)), "user/name", license="other")
    card = ModelCard(api.files["README.md"].decode())
    assert card.data.pipeline_tag is None and "NaN marks what is missing" in card.text and card.data.license == "other"


def test_a_run_given_data_in_python_has_a_card(tmp_path, images):
    fit(model_of(), images[0], steps=2, out=tmp_path / "run")
    text = write_card(tmp_path / "run").read_text()
    assert "Not recorded: the data was given in Python." in text and "None recorded" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/my data/x.npy", "x.npy"), ("C:\\Users\\me\\x.npy", "x.npy"), ("~/x", "x"), ("photos/shard-*.tar", "photos/shard-*.tar"),
        ("all of /home/me/my data/x.npy", "all of x.npy"), ("the part of ~/d/x held out in training", "the part of x held out in training"),
        ("all of D:\\data\\x.npy", "all of x.npy"), ("digits", "digits"), ({"a": ["/x/y", 1]}, {"a": ["y", 1]}), ("mlp(widths=[1, 2])", "mlp(widths=[1, 2])"),
        ("gaussian(sigma=0.1)", "gaussian(sigma=0.1)"), ("/data/", "data"),
    ],
)  # fmt: skip
def test_paths_of_this_machine_are_left_out(value, shown):
    assert without_paths(value) == shown


def test_licences_are_sorted_and_said_once():
    assert list(LICENSES) == sorted(set(LICENSES))
