"""`aezoo report`: one page that shows a run, complete in itself, whatever the model and however far the run came."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import chromium
import pytest
import torch
from conftest import fit, make_images
from PIL import Image

import aezoo
from aezoo.cli import main
from aezoo.reporting import charts, pieces
from aezoo.runs import held_out, progress, read_model, read_rows

LINK = re.compile(r"""(?:src|href|url)\s*[=(]\s*['"]?(?!#|data:)([^'")\s>]+)""")


class Tags(HTMLParser):
    """What a page consists of; raises if a tag is left open."""

    void = frozenset({"meta", "link", "img", "br", "path", "circle", "line", "rect"})

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.images, self.classes = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.classes += (found.get("class") or "").split()
        if tag == "section":
            self.sections.append(found["id"])
        if tag == "img":
            self.images.append(found["src"])
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        if tag in self.void:
            self.handle_starttag(tag, attributes)


def read(path):
    """A page's text and parts; it names no file and no address."""
    text = path.read_text(encoding="utf-8")
    assert not LINK.search(re.sub(r"<code.*?</code>", "", text, flags=re.S).replace("url(${told.sheet})", ""))
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", text)
    return text, Tags(text)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of several families, each a second or less."""
    folder = tmp_path_factory.mktemp("runs")
    x, y = make_images(60)
    torch.manual_seed(0)
    small = {"input_shape": (1, 12, 12), "backbone": "mlp(widths=(16,))"}
    models = {
        "vae": aezoo.create_model("vae", latent_dim=3, **small),
        "denoising_ae": aezoo.create_model("denoising_ae", latent_dim=4, corruption="gaussian(sigma=0.3)", **small),
        "topk_sae": aezoo.create_model("topk_sae", input_shape=(1, 12, 12), latent_dim=32, k=3),
        "rvq_vae": aezoo.create_model("rvq_vae", input_shape=(1, 12, 12), latent_dim=4, num_codes=8, levels=2, backbone="conv(widths=(4, 8))"),
        "mae": aezoo.create_model("mae", input_shape=(1, 12, 12), latent_dim=4, norm_pixels=True, backbone="vit(patch=4, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1)"),
        "cvae": aezoo.create_model("cvae", latent_dim=2, num_classes=2, **small),
        "ladder_vae": aezoo.create_model("ladder_vae", input_shape=(1, 12, 12), latent_dim=2, backbone="conv(widths=(4, 8))"),
        "contractive_ae": aezoo.create_model("contractive_ae", input_shape=(1, 12, 12), latent_dim=6),
    }  # fmt: skip
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("aezoo.pictures.draw_run", lambda *given: ([], []))  # pictures that no page shows
    for name, model in models.items():
        fit(model, (x, y), epochs=2, val=0.25, out=folder / name)
    series = torch.sin(torch.linspace(0, 6, 20)[None, :, None] * torch.rand(30, 1, 2).add(0.5))
    series[0, 15:] = torch.nan
    fit(
        aezoo.create_model("lstm_ae", input_shape=(20, 2), latent_dim=2, backbone="lstm(width=8)"),
        series,
        epochs=1,
        out=folder / "lstm_ae",
    )
    rows = torch.cat([torch.randn(40, 3) * torch.tensor([1.0, 10.0, 1000.0]), torch.randint(3, (40, 1)).float()], 1)
    rows[::5, 1] = torch.nan
    fit(
        aezoo.create_model("tabular_ae", input_shape=(4,), latent_dim=2, columns={3: 3}),
        rows,
        epochs=1,
        out=folder / "tabular_ae",
    )
    monkeypatch.undo()
    data = {"lstm_ae": series, "tabular_ae": rows}
    return folder, {name: data.get(name, (x, y)) for name in [*models, "lstm_ae", "tabular_ae"]}


@pytest.mark.parametrize(
    "name, special",
    [
        ("vae", {"samples", "latent", "map", "posterior"}), ("denoising_ae", {"denoising", "latent"}), ("topk_sae", {"sparsity"}),
        ("rvq_vae", {"codebook", "levels"}), ("mae", {"masked"}), ("cvae", {"classes", "samples"}), ("ladder_vae", {"levels", "samples"}),
        ("contractive_ae", {"contraction"}), ("lstm_ae", {"map"}), ("tabular_ae", {"columns", "map"}),
    ],
)  # fmt: skip
def test_a_page_shows_what_is_special_about_a_model(runs, name, special):
    folder, data = runs
    path = aezoo.report(folder / name, data=data[name], out=folder / f"{name}.html", samples=40)
    text, tags = read(path)
    common = {"training", "reconstructions", "latent", "map", "errors", "speed", "configuration", "load"}
    assert common | special <= set(tags.sections) and "absent" not in tags.sections
    assert len(tags.sections) == len(set(tags.sections))
    if name not in ("lstm_ae", "tabular_ae"):
        assert len(tags.images) > 30
    for source in tags.images:
        kind, _, rest = source.partition(";base64,")
        Image.open(io.BytesIO(base64.b64decode(rest))).verify()
        assert kind in ("data:image/png", "data:image/webp")
    assert f"aezoo.from_pretrained({str(folder / name)!r})".replace("'", "&#x27;") in text


def test_figures_are_those_of_the_run(runs):
    folder, data = runs
    path = aezoo.report(folder / "vae", data=data["vae"], out=folder / "vae.html")
    text, _ = read(path)
    rows = [json.loads(line) for line in (folder / "vae" / "metrics.jsonl").read_text().splitlines()]
    drawn = [json.loads(v.replace("&quot;", '"')) for v in re.findall(r"data-chart='(.*?)'", text)]
    loss = drawn[0]
    assert [line["label"] for line in loss["lines"]] == ["training", "validation"]
    for line, key in zip(loss["lines"], ("loss", "val_loss")):
        assert [p[1] for p in line["points"]] == pytest.approx([r[key] for r in rows], rel=1e-4)
        assert [p[0] for p in line["points"]] == [1, 2]
    model = aezoo.from_pretrained(folder / "vae")
    with torch.no_grad():
        error = (model.reconstruct(data["vae"][0]) - data["vae"][0]).square().mean()
    assert f"<b>{float(error):.4g}</b><span>squared error per entry" in text
    told = json.loads((folder / "vae" / "hardware.json").read_text())
    assert told["device"] == "cpu" and told["torch"] == torch.__version__ and told["name"] in text
    assert f"{model.num_parameters:,}" in text and "latent_dim: 3" in text


def test_the_same_page_twice_and_nothing_else_changes(runs):
    folder, data = runs
    before = {p: p.read_bytes() for p in (folder / "vae").rglob("*") if p.is_file()}
    rng = torch.get_rng_state()
    pages = [aezoo.report(folder / "vae", data=data["vae"], out=folder / f"{i}.html").read_text() for i in range(2)]
    stamp = re.compile(r"Written by aezoo [^<]*")
    assert stamp.sub("", pages[0]) == stamp.sub("", pages[1]) and torch.equal(torch.get_rng_state(), rng)
    assert {p: p.read_bytes() for p in (folder / "vae").rglob("*") if p.is_file()} == before


def test_without_its_data_a_page_says_what_is_missing(runs, capsys):
    folder, _ = runs
    main(["report", str(folder / "vae")])
    assert "complete in itself" in capsys.readouterr().out
    text, tags = read(folder / "vae" / "report.html")
    assert {"training", "samples", "configuration", "absent"} <= set(
        tags.sections
    ) and "reconstructions" not in tags.sections
    assert "given in Python" in text and "report(run, data=...)" in text
    (folder / "vae" / "report.html").unlink()


def test_a_run_that_was_stopped(runs, tmp_path):
    """Killed before the first model was saved, in the middle of a line: curves and the checkpoint's weights are shown."""
    folder, data = runs
    run = tmp_path / "stopped"
    shutil.copytree(folder / "vae", run)
    for name in ("config.json", "model.safetensors", "checksums.json"):
        (run / name).unlink()
    shutil.rmtree(run / "last")
    with open(run / "metrics.jsonl", "a") as f:
        f.write('{"epoch": 3, "st')
    assert read_model(run).weights == "the best weights up to step 6, from a checkpoint"
    assert (
        len(read_rows(run / "metrics.jsonl")) == 2
        and progress(run, read_rows(run / "metrics.jsonl")).state == "stopped"
    )
    text, tags = read(aezoo.report(run, data=data["vae"]))
    assert "stopped at step 6" in text and "reconstructions" in tags.sections
    assert "from_pretrained" not in text
    shutil.rmtree(run / "checkpoints")
    text, tags = read(aezoo.report(run))
    assert {"training", "configuration", "absent"} <= set(tags.sections) and "no weights" in text
    (run / "metrics.jsonl").unlink()
    (run / "speed.jsonl").unlink()
    assert "absent" in read(aezoo.report(run))[1].sections


def test_damaged_weights_fall_back_to_a_checkpoint(runs, tmp_path):
    folder, data = runs
    run = tmp_path / "damaged"
    shutil.copytree(folder / "vae", run)
    blob = bytearray((run / "model.safetensors").read_bytes())
    blob[-3] ^= 1
    (run / "model.safetensors").write_bytes(blob)
    assert "from a checkpoint" in read_model(run).weights
    assert torch.equal(
        read_model(run).model.encode(data["vae"][0]), aezoo.from_pretrained(folder / "vae").encode(data["vae"][0])
    )


def test_a_saved_model_and_data_of_ones_own(runs, tmp_path):
    folder, data = runs
    aezoo.from_pretrained(folder / "vae").save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    import numpy as np

    np.save(tmp_path / "x.npy", data["vae"][0].numpy())  # no labels
    main(
        [
            "report",
            str(tmp_path / "model"),
            "--data",
            str(tmp_path / "x.npy"),
            "--samples",
            "20",
            "--out",
            str(tmp_path / "a" / "page.html"),
        ]
    )
    text, tags = read(tmp_path / "a" / "page.html")
    assert "map" in tags.sections and "groups" not in tags.classes and "20 samples" in text


def test_bad_input(runs, tmp_path, capsys):
    folder, _ = runs
    with pytest.raises(FileNotFoundError, match="no run folder"):
        aezoo.report(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"neither config\.yaml nor config\.json"):
        aezoo.report(tmp_path)
    with pytest.raises(ValueError, match="samples=0"):
        aezoo.report(folder / "vae", samples=0)
    with pytest.raises(ValueError, match=r"the model takes \(1, 12, 12\)"):
        aezoo.report(folder / "vae", data=torch.rand(4, 1, 8, 8))
    with pytest.raises(ValueError, match="is a folder; name a file"):
        aezoo.report(folder / "vae", out=tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(folder / "vae"), "--smaples", "3"])
    assert "Did you mean" in capsys.readouterr().err


def test_what_a_run_was_judged_on(tmp_path):
    source, what = held_out({"data": {"source": "fashion-mini"}, "train": {"val": 0.1}})
    assert what == "the test split of fashion-mini" and len(source) == 1000
    with pytest.raises(ValueError, match="given in Python"):
        held_out({"data": {"source": None}})
    import numpy as np

    np.save(tmp_path / "x.npy", np.arange(20.0, dtype=np.float32).reshape(10, 2))
    config = {"data": {"source": str(tmp_path / "x.npy")}, "train": {"val": 0.3, "seed": 4}}
    source, what = held_out(config)
    kept = aezoo.load_data(str(tmp_path / "x.npy")).split(0.3, 4)[1]
    assert len(source) == 3 and torch.equal(source.peek(3, torch.device("cpu")).x, kept.peek(3, torch.device("cpu")).x)
    other = {**config, "train": {"val": {"source": "fashion-mini", "split": "test"}}}
    assert len(held_out(other)[0]) == 1000


# -------------------------------------------------------------------------------------------------------------- charts


def test_ticks_are_round_and_inside():
    assert charts.ticks(0, 1) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert charts.ticks(-3.2, 17.9) == pytest.approx([0, 10]) or charts.ticks(-3.2, 17.9) == pytest.approx(
        [0, 5.0, 10, 15]
    )
    for low, high in ((0.0123, 0.0124), (-1e6, 3e6), (1.0, 1.0)):
        found = charts.ticks(low, high)
        assert 1 <= len(found) <= 9 and all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert [charts.short(v) for v in (0, 12345, 2e6, 0.00012, 0.25)] == [
        "0",
        "12.3k",
        "2M",
        "0.00012",
        "0.25",
    ]


def test_axes_are_affine_and_bars_count():
    axes = charts.Axes((0, 10), (0.1, 1000.0), log=True)
    assert axes.at_x(0) == charts.LEFT and axes.at_x(10) == charts.WIDTH - charts.RIGHT
    assert axes.at_y(10.0) == pytest.approx((axes.at_y(0.1) + axes.at_y(1000.0)) / 2)
    svg = charts.histogram("h", [0.0, 0.1, 0.9, 1.0, 1.0], "x", bins=2)
    assert re.findall(r": (\d+)</title>", svg) == ["2", "3"]


def test_errors_are_red_above_and_blue_below():
    uri = re.search(r'src="(.*?)"', pieces.signed(torch.tensor([[[0.5, -0.5, 0.0]]]), 0.5, "e"))[1]
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert [image.getpixel((i, 0)) for i in range(3)] == [(*pieces.OVER, 255), (*pieces.UNDER, 255), (*pieces.UNDER, 0)]


def test_names_from_files_are_escaped(runs, tmp_path):
    folder, data = runs
    shutil.copytree(folder / "vae", tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "x<img onerror=y>")
    run = tmp_path / "x<img onerror=y>"
    text, _ = read(aezoo.report(run, data=data["vae"], samples=8))
    assert "<img onerror=y>" not in text


# ------------------------------------------------------------------------------------------------------------- browser


@chromium.needed
@pytest.mark.slow
def test_in_a_browser_every_image_loads_and_no_script_fails(runs, tmp_path):
    folder, data = runs
    pages = [
        aezoo.report(folder / n, data=data[n], out=folder / f"{n}.html", samples=40)
        for n in ("vae", "lstm_ae", "tabular_ae")
    ]
    with chromium.browser() as tab:
        for path in pages:
            for width in (1280, 400):
                tab.open(path.as_uri(), width)
                assert tab.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
                assert tab.value("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
                tab.screenshot(tmp_path / "page.png")
                shot = Image.open(tmp_path / "page.png")
                assert shot.width == width and shot.height > 2000 and len(shot.convert("L").getcolors()) > 20
        tab.open(pages[0].as_uri(), 1280)
        tab.value("document.querySelector('svg.map').scrollIntoView({block: 'center', behavior: 'instant'})")
        x, y = tab.value(
            "(() => { const b = document.querySelector('svg.map circle').getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        tab.pointer(x, y)
        tab.until("!document.getElementById('tip').hidden && document.querySelector('#tip .thumb') !== null")
        tab.value("document.querySelector('.groups button').click()")
        dim, all_of = tab.value(
            "[document.querySelectorAll('circle.dim').length, document.querySelectorAll('.dots circle').length]"
        )
        assert 0 < dim < all_of
        assert tab.problems == [] and tab.failed == []
        assert {r.split(":")[0] for r in tab.requests} <= {"file", "data", "about"}
