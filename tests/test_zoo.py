"""`aezoo zoo`: what is said of a model that learns, of one that does not, and of one that fails."""

import math

import pytest

import aezoo
from aezoo import recipes, zoo
from aezoo.cli import main

LEARNS = "# Learns.\nmodel: {name: ae, latent_dim: 8, backbone: 'mlp(widths=[32])'}\ndata: digits\ntrain: {steps: 60, lr: 0.005}\n"
STAYS = "# Its rate is next to nothing.\nmodel: {name: conv_ae, latent_dim: 2}\ndata: wine\ntrain: {steps: 2, lr: 1.0e-30}\n"
FAILS = "# Data that is not there.\nmodel: {name: vae}\ndata: nowhere.csv\n"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Three recipes in place of those of the package."""
    for name, text in (("ae", LEARNS), ("conv_ae", STAYS), ("vae", FAILS)):
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path)
    return tmp_path


def test_every_model_has_a_recipe_that_trains_it_without_a_download():
    for name in aezoo.list_models():
        recipe = recipes.read(zoo.recipe_of(name))
        assert recipe["model"]["name"] == name and not zoo.recipe_of(name).endswith("_mnist")
    with pytest.raises(FileNotFoundError, match=r"configs/my_ae\.yaml"):
        zoo.recipe_of("my_ae")


def test_figures_before_and_after(shelf):
    """They are those of `evaluate` on the test split, before and after the recipe's training."""
    (row,) = zoo.check(["ae"], device="cpu")
    assert (row.name, row.data, row.steps, row.metric, row.error) == ("ae", "digits", 60, "mse", "")
    assert row.learned and row.recon[1] < 0.6 * row.recon[0] and row.loss == row.recon == row.value
    model = aezoo.create_model("ae", input_shape=(1, 8, 8), latent_dim=8, backbone="mlp(widths=[32])")
    assert row.parameters == model.num_parameters and row.samples_per_s > 0 and row.seconds > 0
    (again,) = zoo.check(["ae"], device="cpu")
    assert again.loss == row.loss
    test = aezoo.load_data("digits", split="test")
    result = aezoo.fit(seeded(), "digits", steps=60, lr=0.005, progress=False, device="cpu")
    assert row.recon[1] == pytest.approx(aezoo.evaluate(result.model, test, device="cpu")["recon"]["mean"])


def seeded():
    import torch

    torch.manual_seed(0)
    return aezoo.create_model("ae", input_shape=(1, 8, 8), latent_dim=8, backbone="mlp(widths=[32])")


def test_an_error_is_a_row_of_its_own_and_ends_nothing(shelf):
    fails, learns, unknown = zoo.check(["vae", "ae", "no_such_model"], device="cpu")
    assert learns.learned and not fails.learned and not unknown.learned
    assert "nowhere.csv" in fails.error and "no_such_model" in unknown.error
    assert math.isnan(fails.loss[0]) and zoo.cells(fails)[5] == fails.error


def test_exit_code_and_lines(shelf, capsys):
    main(["zoo", "--check", "ae", "--device", "cpu"])  # no SystemExit
    out = capsys.readouterr().out
    assert "mse" in out and "DID NOT LEARN" not in out and "seed 0" in out
    with pytest.raises(SystemExit) as stop:
        main(["zoo", "--check", "ae", "conv_ae", "--device", "cpu"])
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and "1 of 2 did not learn: conv_ae" in err
    assert [line.split()[0] for line in out.splitlines() if "DID NOT LEARN" in line] == ["conv_ae"]
    main(["zoo", "ae", "vae"])  # without --check it names the recipes and trains nothing
    assert capsys.readouterr().out.split() == ["ae", "aezoo", "train", "ae", "vae", "aezoo", "train", "vae"]


def test_a_loss_that_is_not_finite_is_nothing_learned():
    row = zoo.Check("x", "", 1, 1, 1.0, (1.0, math.inf), (1.0, 0.5), "mse", (1.0, 0.5), 1.0)
    assert not row.learned and row._replace(loss=(1.0, 2.0)).learned  # a game's total may rise
    assert not row._replace(loss=(1.0, 0.5), recon=(0.5, 0.5)).learned


def test_the_table_goes_between_its_markers(shelf, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- zoo: begin -->\nold\n<!-- zoo: end -->\nafter\n")
    main(["zoo", "--check", "ae", "--device", "cpu", "--write", str(page)])
    text = page.read_text()
    assert text.startswith("before\n<!-- zoo: begin -->\n| model |") and text.endswith("<!-- zoo: end -->\nafter\n")
    assert "| `ae` | digits |" in text and "old" not in text
    page.write_text("no markers\n")
    with pytest.raises(ValueError, match=r"zoo: begin"):
        zoo.write_into(page, "table")
    assert page.read_text() == "no markers\n"


def test_patterns():
    assert zoo.models_fitting([]) == aezoo.list_models()
    assert zoo.models_fitting(["iwae", "*iwae"]) == ["ciwae", "iwae", "miwae"]
    with pytest.raises(ValueError, match="Did you mean 'beta_vae'"):
        zoo.models_fitting(["betavae"])
