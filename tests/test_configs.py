"""Every recipe in configs/ builds and trains a few steps; every model has one."""

import json

import pytest
import torch

import aezoo
from aezoo import recipes
from aezoo.cli import main
from aezoo.flags import train_config


@pytest.mark.parametrize("name", recipes.names())
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


def test_every_model_has_a_recipe():
    named = {recipes.read(name)["model"]["name"] for name in recipes.names()}
    assert named == set(aezoo.list_models())


def test_every_recipe_says_what_it_is():
    for name in recipes.names():
        assert (recipes.folder() / f"{name}.yaml").read_text().startswith("# "), name
