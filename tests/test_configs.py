"""Every recipe in configs/ builds and trains a few steps; every model has one."""

import json

import pytest
import torch

import aezoo
from aezoo import recipes
from aezoo.cli import main
from aezoo.flags import train_config

PICTURED = {recipes.read(name)["data"]["source"]: name for name in recipes.names()}.values()  # one of each kind of data


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.pictures if n in PICTURED else ()) for n in recipes.names()]
)
def test_recipe(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _, _ = train_config([name])
    source = config["data"]["source"]
    if source == "mnist":  # stands in for MNIST where there is none
        x = torch.randint(0, 256, (600, 1, 28, 28), dtype=torch.uint8)
        monkeypatch.setitem(
            aezoo.data.DATASETS.entries, "mnist", lambda **k: aezoo.data.sources.TensorSource(x, binarize=k["binarize"])
        )
    main(["train", name, "--data.limit", "600", "--train.steps", "6", "--train.progress", "false"])
    rows = [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    model = aezoo.from_pretrained(tmp_path / "runs" / name)
    assert model.name == config["model"]["name"]
    drawn = {p.stem for p in (tmp_path / "runs" / name / "pictures").glob("*.png")}
    wanted = {"reconstructions", "curves", "latent"} | ({"samples"} if model.generative else set())
    assert drawn == (wanted if name in PICTURED else set())


def test_every_model_has_a_recipe():
    named = {recipes.read(name)["model"]["name"] for name in recipes.names()}
    assert named == set(aezoo.list_models())


def test_every_recipe_says_what_it_is():
    for name in recipes.names():
        assert (recipes.folder() / f"{name}.yaml").read_text().startswith("# "), name
