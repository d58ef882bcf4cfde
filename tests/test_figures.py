"""Figures of many batches: FVU, usage and perplexity of an epoch or of a validation set are those of all of its samples."""

import pytest
import torch
from conftest import fit

import aezoo
from aezoo import figures
from aezoo import functional as fn
from aezoo.metrics.base import Ratio
from aezoo.train.together import add_parts


def drifting(n=45, d=6):
    """Samples whose mean moves far more than they scatter: a mean over the ratios of small batches is far off."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    return x + 5 * torch.arange(float(n))[:, None] / n


def test_parts_of_batches_make_the_figures_of_all_samples():
    """Batches of 7, 7, 7, 7, 2 against one of all, in float64 by hand; 10,000 from 0 costs no digits."""
    for shift in (0.0, 1e4):
        x = drifting(30) + shift
        y = x + 0.3 * torch.randn(30, 6)
        sums = {}
        for a, b in zip(y.split(7), x.split(7)):
            for k, v in figures.averaged(figures.unexplained(a, b)).items():
                sums[k] = sums.get(k, 0) + len(a) * v.double()
        got = figures.folded({k: v / 30 for k, v in sums.items()})
        wide = x.double()
        wanted = (y.double() - wide).square().sum() / (wide - wide.mean(0)).square().sum()
        assert list(got) == ["fvu"] and got["fvu"] == pytest.approx(float(wanted), rel=1e-4)
        assert float(sums["fvu"]) / 30 > 2 * got["fvu"]  # the mean of the batches' figures is another one


def test_what_does_not_vary_has_nothing_unexplained():
    parts = figures.averaged(figures.unexplained(torch.zeros(4, 3), torch.full((4, 3), 7.3)))
    assert figures.folded(parts) == {"fvu": 0.0}
    broken = figures.averaged(figures.unexplained(torch.full((4, 3), torch.nan), torch.randn(4, 3)))
    assert figures.folded(broken)["fvu"] != figures.folded(broken)["fvu"]


def test_codes_of_batches_are_counted_together():
    even, odd = torch.tensor([[4.0, 0, 4, 0]]), torch.tensor([[0.0, 8, 0, 8]])
    a, b = figures.used(even, 2), figures.used(odd, 6)  # four vectors a sample, and less than three
    means = {k: (2 * a[k] + 6 * b[k]) / 8 for k in a}
    got = figures.folded(means)
    assert got["usage"] == 1 and a["usage"] == 0.5
    assert got["perplexity"] == pytest.approx(float(fn.perplexity((even + odd)[0]))) and a["perplexity"] == 2
    two = figures.folded({"codes.top": means["codes."], "codes.bottom": a["codes."]})
    assert two["perplexity_bottom"] == pytest.approx(2) and two["usage"] == 0.75
    assert two["perplexity"] == pytest.approx((two["perplexity_top"] + 2) / 2)


def test_names_with_a_dot_of_ones_own_are_no_parts():
    assert figures.folded({"my.metric": torch.tensor(2.0)}) == {"my.metric": 2.0}
    assert figures.folded({"hits.over": torch.tensor(2.0), "hits.under": torch.tensor(8.0)}) == {"hits": 0.25}


SAES = [
    ("topk_sae", {"k": 3}), ("topk_sae", {"k": 3, "backbone": "mlp(widths=(16,))"}), ("batch_topk_sae", {"k": 3}),
    ("l1_sae", {}), ("transcoder", {"k": 3}), ("crosscoder", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), SAES, ids=str)
def test_fvu_of_a_validation_set_is_that_of_all_of_it(name, options):
    """Validated in batches of 8, on data in order, against the reconstructions of all samples at once."""
    x = drifting()
    torch.manual_seed(2)
    model = aezoo.create_model(name, input_shape=(6,), latent_dim=12, **options)
    row = fit(model, x, val=x, epochs=1, batch_size=4, lr=1e-2).history[-1]
    left = (model.reconstruct(x).detach() - x).double().square().sum()
    wanted = float(left / (x.double() - x.double().mean(0)).square().sum())
    assert row["val_fvu"] == pytest.approx(wanted, rel=1e-4)
    assert not [k for k in row if "." in k] and "fvu" in row
    out = model(x)
    assert not [k for k in out.metrics if "." in k] and out.metrics["fvu"].shape == ()
    assert aezoo.evaluate(model, x, metrics="fvu", batch_size=7)["fvu"]["mean"] == pytest.approx(wanted, rel=1e-4)


def test_fvu_of_an_epoch_is_that_of_all_its_samples():
    """At a rate of almost 0 nothing moves between the steps, so that the epoch is one batch."""
    x = drifting()
    torch.manual_seed(2)
    model = aezoo.create_model("l1_sae", input_shape=(6,), latent_dim=12)
    wanted = float(model(x).metrics["fvu"])
    row = fit(model, x, epochs=1, batch_size=4, lr=1e-12).history[-1]
    assert row["fvu"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["vq_vae", "rvq_vae", "vq_vae_2", "fsq_ae"])
def test_usage_and_perplexity_are_those_of_the_set(name, images):
    """Ten samples in validation batches of 2: few codes each, more together."""
    options = {"fsq_ae": {"levels": (5, 5, 5), "latent_dim": 3}, "vq_vae_2": {"top_backbone": "conv(widths=(4,))"}}
    torch.manual_seed(2)
    model = aezoo.create_model(
        name, input_shape=(1, 12, 12), backbone="conv(widths=(4, 8))", **{"latent_dim": 4, **options.get(name, {})}
    )
    x = images[0][:10]
    row = fit(model, x, val=x, epochs=1, batch_size=1, lr=1e-3).history[-1]
    books = model.by_codebook(model.indices(x))
    counts = {k: torch.bincount(v.flatten(), minlength=model.num_codes).double() for k, v in books.items()}
    usage = sum(float((c > 0).double().mean()) for c in counts.values()) / len(counts)
    perplexity = {k: float(fn.perplexity(c)) for k, c in counts.items()}
    assert row["val_usage"] == pytest.approx(usage)
    assert row["val_perplexity"] == pytest.approx(sum(perplexity.values()) / len(perplexity), rel=1e-5)
    if name == "vq_vae_2":
        assert row["val_perplexity_top"] == pytest.approx(perplexity["top"], rel=1e-5)
    small = aezoo.evaluate(model, x, metrics=["usage", "perplexity"], batch_size=3)
    assert small["usage"]["mean"] == pytest.approx(usage) and small["perplexity"]["mean"] == pytest.approx(
        row["val_perplexity"]
    )


def sparsely_labelled(n=90):
    """Rows (0, 0, 3): classes are missing the more the later, so that a mean over batches is far from the ratio. The class follows
    from the numbers where few have one."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n, 3, generator=g)
    x[:, 2] = torch.where(torch.arange(n) < n // 3, torch.randint(3, (n,), generator=g), (x[:, 0] > 0).long())
    there = torch.rand(n, generator=g) < torch.linspace(1.2, 0.05, n)
    x[~there, 2] = torch.nan
    return x


def linearised(hits, known):
    """The ratio sum a / sum b and its standard error by hand, in float64."""
    hits, known = hits[known].double(), known.sum()
    ratio = float(hits.sum() / known)
    return ratio, float(hits.std()) / float(known) ** 0.5


@pytest.mark.parametrize("name", ["tabular_ae", "tabular_vae"])
def test_accuracy_of_a_table_is_over_all_entries_that_are_there(name):
    """In the rows of training, validation and evaluation, whatever the batches: at a rate of almost 0 nothing moves between the steps."""
    x = sparsely_labelled()
    torch.manual_seed(2)
    model = aezoo.create_model(
        name,
        input_shape=(3,),
        latent_dim=2,
        columns=(0, 0, 3),
        backbone="mlp(widths=(8,))",
        likelihood="gaussian(sigma=1.0)" if name == "tabular_vae" else "mse",
    )
    model = fit(model, x, epochs=8, batch_size=10, lr=0.05).model
    known = ~torch.isnan(x[:, 2])
    right = model.reconstruct(x)[:, 2] == x[:, 2]
    row = fit(model, x, val=x, epochs=1, batch_size=7, lr=1e-12).history[-1]
    wanted, error = linearised(right, known)
    each = [float(r.sum() / k.sum()) if k.any() else 0.0 for r, k in zip(right.split(7), known.split(7))]
    assert abs(sum(each) / len(each) - wanted) > 0.02  # the mean of the batches' figures is another one
    found = [aezoo.evaluate(model, x, metrics="loss", batch_size=size, device="cpu") for size in (40, 7, 512)]
    if name == "tabular_ae":  # the other draws its codes
        assert found[0]["accuracy"]["mean"] == pytest.approx(wanted, rel=1e-12)
        assert found[0]["accuracy"]["stderr"] == pytest.approx(error, rel=1e-9)
        assert row["val_accuracy"] == pytest.approx(wanted, rel=1e-6) and row["accuracy"] == pytest.approx(
            wanted, rel=1e-6
        )
    assert found[0]["accuracy"]["samples"] == int(known.sum())
    for other in found[1:]:
        for key in ("mean", "stderr"):
            assert other["accuracy"][key] == pytest.approx(found[0]["accuracy"][key], rel=1e-9)
    assert not [k for k in (*found[0], *row, *model(x).metrics) if "." in k]
    nothing = aezoo.evaluate(model, x[~known], metrics="accuracy", device="cpu")["accuracy"]
    assert nothing["mean"] != nothing["mean"] and nothing["samples"] == 0


def test_accuracy_of_aae_in_evaluation_is_over_all_labelled():
    x, labels = drifting(60), torch.arange(60) % 3
    labels[torch.arange(60) % 20 > torch.linspace(20, 0, 60)] = -1  # the rarer the later
    torch.manual_seed(1)
    model = aezoo.create_model("aae", input_shape=(6,), latent_dim=2, backbone="mlp(widths=(8,))", num_classes=3)
    told, known = torch.utils.data.TensorDataset(x, labels), labels >= 0
    wanted, error = linearised(model.classify(x).argmax(1) == labels, known)
    for size in (40, 7):
        found = aezoo.evaluate(model, told, metrics="accuracy", batch_size=size, device="cpu")["accuracy"]
        assert found["mean"] == pytest.approx(wanted, rel=1e-12) and found["samples"] == int(known.sum())
        assert found["stderr"] == pytest.approx(error, rel=1e-9)


def test_a_ratio_of_many_entries_a_sample_has_the_jackknifes_error():
    """Against leaving out one sample after the other, which the linearised error is the limit of; exactly the mean's for b = 1."""
    g = torch.Generator().manual_seed(4)
    under = torch.randint(0, 6, (400,), generator=g).double()
    over = (under * torch.rand(400, generator=g)).round()
    ratio = Ratio()
    for a, b in zip(over.split(33), under.split(33)):
        ratio.add(a, b, len(a))
    got = ratio.figure()
    assert got.mean == pytest.approx(float(over.sum() / under.sum()), rel=1e-12) and got.samples == int(
        (under > 0).sum()
    )
    left_out = (over.sum() - over) / (under.sum() - under)
    wanted = (399 / 400 * (left_out - left_out.mean()).square().sum()).sqrt()
    assert got.stderr == pytest.approx(float(wanted), rel=0.01)
    plain = Ratio()
    plain.add(over, torch.ones(400), 400)
    assert plain.figure().stderr == pytest.approx(float(over.std()) / 20, rel=1e-12)
    pieces = Ratio()
    pieces.add(torch.tensor(0.25), torch.tensor(0.5), 8)
    assert pieces.figure().mean == 0.5 and pieces.figure().stderr != pieces.figure().stderr


@pytest.mark.parametrize(("name", "options"), [SAES[0], SAES[1], SAES[4]], ids=str)
def test_active_latents_of_an_epoch_are_those_of_all_its_samples(name, options):
    """A batch of 4 with 3 latents each cannot use them all."""
    x = torch.randn(45, 6, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    model = aezoo.create_model(name, input_shape=(6,), latent_dim=40, **options)
    fired = (model.encode(x) > 0).double()
    wanted = float(fired.amax(0).mean())
    assert float(fired[:8].amax(0).mean()) < wanted
    row = fit(model, x, val=x, epochs=1, batch_size=4, lr=1e-12).history[-1]
    assert row["active"] == pytest.approx(wanted) and row["val_active"] == pytest.approx(wanted)
    assert float(model(x[:4]).metrics["active"]) == pytest.approx(float(fired[:4].amax(0).mean()))


@pytest.mark.parametrize(
    "options",
    [{"nonfinite": "skip"}, {"accumulate": 3}, pytest.param({"compile": True}, marks=pytest.mark.slow)],
    ids=str,
)
def test_every_way_to_step_counts_parts(options):
    x = drifting()
    torch.manual_seed(2)
    model = aezoo.create_model("l1_sae", input_shape=(6,), latent_dim=12)
    wanted = float(model(x).metrics["fvu"])
    row = fit(model, x, epochs=1, batch_size=5, lr=1e-12, **options).history[-1]
    assert row["fvu"] == pytest.approx(wanted, rel=1e-4)


def test_a_resumed_run_goes_on_with_the_parts(tmp_path):
    """Stopped in the middle of an epoch: the row's figures are those of the run that nobody touched, to the bit."""
    x = drifting()

    def run(out, **more):
        torch.manual_seed(2)
        return fit(
            aezoo.create_model("l1_sae", input_shape=(6,), latent_dim=12), x, epochs=2, batch_size=4, out=out, **more
        )

    whole = run(tmp_path / "a")
    half = run(tmp_path / "b", max_time=1e-6)
    assert half.stopped == "time" and not half.history
    again = run(tmp_path / "b", resume=True)
    assert [r["fvu"] for r in again.history] == [r["fvu"] for r in whole.history]


def test_models_together_have_the_figures_of_each_alone(monkeypatch):
    x, said = drifting(), []
    monkeypatch.setattr("aezoo.train.together.add_parts", lambda *a: said.append(a) or add_parts(*a))

    def model(weight):
        torch.manual_seed(2)
        return aezoo.create_model("l1_sae", input_shape=(6,), latent_dim=12, weight=weight)

    how = {"epochs": 2, "batch_size": 5, "val": x, "progress": False, "device": "cpu", "lr": 1e-2}
    together = aezoo.fit_many([model(0.01), model(0.1)], x, seed=[0, 0], **how)
    assert said, "they were computed one after the other"
    for result, weight in zip(together, (0.01, 0.1)):
        alone = aezoo.fit(model(weight), x, seed=0, **how)
        for a, b in zip(result.history, alone.history):
            assert a["fvu"] == pytest.approx(b["fvu"], rel=1e-3) and a["val_fvu"] == pytest.approx(
                b["val_fvu"], rel=1e-3
            )
