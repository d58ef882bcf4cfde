"""Series: backbones over time, padding that changes nothing, and models that learn from ragged data."""

import math

import pytest
import torch
from conftest import fit
from torch import nn

import aezoo
from aezoo.backbones.sequence import Layout, LSTMReader

BACKBONES = [
    "lstm(width=6)", "lstm(width=5, layers=2, bidirectional=True)", "tcn(width=6, layers=2)", "tcn(width=6, layers=3, causal=True)",
    "transformer(width=8, heads=2)", "transformer(width=8, layers=1, mlp_ratio=2)",
]  # fmt: skip
NAMES = {"lstm": "lstm_ae", "tcn": "tcn_ae", "transformer": "transformer_ae"}


def series(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(backbone, shape, **more):
    torch.manual_seed(1)
    return aezoo.create_model(
        NAMES[backbone.split("(")[0]], input_shape=shape, latent_dim=4, backbone=backbone, **more
    ).double()


@pytest.mark.parametrize("likelihood", ["mse", "gaussian(sigma='predicted')", "gaussian", "bce"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_padding_changes_nothing(backbone, likelihood):
    """Code, reconstruction, loss and gradients of a padded series are those of the series alone, in a model of its own length."""
    x = series(5, 7, 3).sigmoid()
    long, short = (build(backbone, (t, 3), likelihood=likelihood) for t in (11, 7))
    short.load_state_dict(long.state_dict())
    padded = torch.cat([x, torch.full((5, 4, 3), math.nan)], 1)
    assert torch.allclose(long.encode(padded), short.encode(x), rtol=0, atol=1e-12)
    assert torch.allclose(long.reconstruct(padded)[:, :7], short.reconstruct(x), rtol=0, atol=1e-12)
    losses = long.loss(padded), short.loss(x)
    assert torch.allclose(losses[0].total, losses[1].total, rtol=1e-12, atol=1e-12)
    for loss in losses:
        loss.total.backward()
    for (name, a), (_, b) in zip(long.named_parameters(), short.named_parameters()):
        assert torch.allclose(a.grad, b.grad, rtol=0, atol=1e-11), name
    assert torch.isfinite(long.reconstruct(padded)).all()  # beyond the end: the model's prediction


@pytest.mark.parametrize("backbone", BACKBONES)
def test_series_of_different_lengths_do_not_meet(backbone):
    """In one batch each keeps the code that it has alone; one of no step at all has a finite code, too."""
    model = build(backbone, (9, 2))
    lengths = [9, 1, 4, 0]
    x = series(4, 9, 2)
    for row, n in zip(x, lengths):
        row[n:] = math.nan
    z = model.encode(x)
    assert torch.isfinite(z).all() and torch.isfinite(model.loss(x).total)
    for i in range(4):
        assert torch.allclose(model.encode(x[i : i + 1]), z[i : i + 1], rtol=0, atol=1e-12)
    x.requires_grad_()
    model.loss(x).total.backward()
    assert torch.isfinite(x.grad).all() and (x.grad[torch.isnan(x)] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm_reads_as_torch_does_from_packed_series(layers, bidirectional):
    """The popular shortcuts fail here: the state after the padding, or the backward direction started within it."""
    reader = LSTMReader(3, 5, layers, bidirectional, 0.0).double()
    torch_lstm = nn.LSTM(3, 5, layers, batch_first=True, bidirectional=bidirectional).double()
    state = {}
    for i in range(layers):
        for lstm, end in [(reader.ahead[i], ""), *([(reader.back[i], "_reverse")] if bidirectional else [])]:
            state |= {name.replace("_l0", f"_l{i}{end}"): p for name, p in lstm.named_parameters()}
    torch_lstm.load_state_dict({k: v.detach() for k, v in state.items()})
    x, lengths = series(6, 8, 3), torch.tensor([8, 1, 5, 3, 8, 2])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    hidden = torch_lstm(packed)[1][0]  # (layers * directions, B, 5)
    want = torch.cat([hidden[-2], hidden[-1]], 1) if bidirectional else hidden[-1]
    mask = torch.arange(8) < lengths[:, None]
    assert torch.allclose(reader(x.masked_fill(~mask[:, :, None], 0.0), mask), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", BACKBONES[:2])
def test_lstm_skips_gaps(backbone):
    model, x = build(backbone, (8, 2)), series(3, 8, 2)
    gap = torch.cat([x[:, :3], torch.full((3, 2, 2), math.nan), x[:, 3:6]], 1)
    end = torch.cat([x[:, :6], torch.full((3, 2, 2), math.nan)], 1)
    assert torch.allclose(model.encode(gap), model.encode(end), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", [b for b in BACKBONES if "lstm" not in b])
def test_what_is_in_a_gap_reaches_no_other_step(backbone):
    """Convolutions and attention that saw the filled-in zeros' features (bias, positions) would give another code than this: the
    states of the gap, replaced by noise, change nothing."""
    model, x = build(backbone, (8, 2)), series(3, 8, 2)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[:, 3:5] = False
    reader = model.encoder[0].body
    assert torch.allclose(reader(x, mask), reader(x.masked_fill(~mask[:, :, None], 7.0), mask), rtol=0, atol=1e-12)


def test_missing_channels_are_read_as_zero_and_not_scored():
    model, x = build("lstm(width=6)", (5, 2)), series(3, 5, 2)
    holed = x.clone()
    holed[:, 2, 1] = math.nan
    zero = x.clone()
    zero[:, 2, 1] = 0.0
    assert torch.equal(model.encode(holed), model.encode(zero))
    error = (model.reconstruct(holed) - holed).square()
    assert torch.allclose(model.loss(holed).terms["recon"], error.nanmean((1, 2)).mean())
    assert float(model.loss(holed).metrics["missing"]) == pytest.approx(0.1)


def test_layouts():
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)  # (B, C, H, W)
    rows = Layout("lstm", (3, 4, 5), None)
    assert (rows.steps, rows.channels) == (4, 15)
    assert torch.equal(rows.series(x)[:, 1].view(2, 3, 5), x[:, :, 1])
    for shape, time, steps in [
        ((6,), None, 6),
        ((6, 2), None, 6),
        ((6, 2), 1, 2),
        ((2, 3, 4, 5), None, 3),
        ((2, 3, 4), 2, 4),
    ]:
        layout, x = Layout("lstm", shape, time), torch.rand(2, *shape)
        assert layout.steps == steps
        both = torch.stack([layout.series(x), -layout.series(x)], 2).flatten(2)  # (B, T, P * C), P = 2
        assert torch.equal(layout.params(both), torch.stack([x, -x], 1))
    with pytest.raises(ValueError, match="time=2"):
        Layout("lstm", (6, 2), 2)


@pytest.mark.parametrize("shape", [(9,), (9, 3), (2, 6, 5), (1, 6, 3, 2), (1, 4), (1,)], ids=str)
@pytest.mark.parametrize(
    "backbone",
    ["lstm(width=5, layers=2, bidirectional=True)", "tcn(width=24, layers=2)", "transformer(width=8, heads=2)"],
)
@pytest.mark.parametrize("name", ["vae", "vq_vae", "lstm_ae"])
def test_backbones_keep_the_contract(name, backbone, shape, tmp_path):
    model = aezoo.create_model(name, input_shape=shape, latent_dim=4, backbone=backbone)
    x = torch.rand(6, *shape)
    loss = model.loss(x)
    loss.total.backward()
    dead = [k for k, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    one_step = shape in (
        (1, 4),
        (1,),
    )  # the state before the only step is 0: the encoder's recurrent weights have no say
    assert not [k for k in dead if not (one_step and "encoder" in k and "weight_hh" in k)]
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model.loss(x).total)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_decoders_are_causal_in_length(backbone):
    """The first steps do not depend on how many follow."""
    long, short = build(backbone, (10, 2)), build(backbone, (6, 2))
    short.load_state_dict(long.state_dict())
    z = series(3, 4)
    assert torch.allclose(long.decode(z)[:, :6], short.decode(z), rtol=0, atol=1e-12)


def test_receptive_field_of_the_tcn():
    """2 (kernel - 1)(2^layers - 1) steps, on one side if causal, on both if not (arXiv:1803.01271, section 3.2)."""
    for causal in (True, False):
        reader = build(f"tcn(width=32, layers=2, kernel=3, causal={causal})", (40, 1)).encoder[0].body
        h = series(1, 32, 40).requires_grad_()
        y = h
        for block in reader.blocks:
            y = block(y)
        y[0, :, 20].sum().backward()
        reached = h.grad[0].abs().sum(0).nonzero().flatten()
        assert (int(reached.min()), int(reached.max())) == ((8, 20) if causal else (14, 26))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lstm(width=0)", "lstm: width=0"), ("lstm(dropout=1.0)", "lstm: dropout=1.0"), ("tcn(kernel=4)", "tcn: kernel=4 must be an odd"),
        ("transformer(width=10, heads=4)", "heads=4 must divide width=10"), ("tcn(time=3)", "tcn: time=3"), ("lstm(layers=True)", "layers=True"),
    ],
)  # fmt: skip
def test_options_are_checked(spec, message):
    with pytest.raises(ValueError, match=message):
        aezoo.create_model("lstm_ae", input_shape=(5, 2), backbone=spec)


@pytest.mark.parametrize("corruption", ["gaussian", "salt_and_pepper(p=0.9)", "masking(p=0.9)"])
def test_corruptions_leave_missing_entries_missing(corruption):
    model, x = build("lstm(width=6)", (5, 2), corruption=corruption), series(3, 5, 2)
    x[:, 3:] = math.nan
    noisy = model.corrupt(x)
    assert torch.equal(torch.isnan(noisy), torch.isnan(x)) and not torch.equal(noisy[:, :3], x[:, :3])


@pytest.mark.parametrize("backbone", ["mlp(widths=(16,))", "conv(widths=(4,))"])
def test_other_backbones_read_zero_where_nothing_is(backbone):
    model = aezoo.create_model("tcn_ae", input_shape=(6, 2), latent_dim=3, backbone=backbone)
    x = torch.rand(4, 6, 2)
    x[:, 4:] = math.nan
    assert torch.equal(model.encode(x), model.encode(x.nan_to_num(0.0)))
    model.loss(x).total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# ---------------------------------------------------------------------------------------------------------------- data


def test_pad_sequences():
    a, b = torch.ones(3, 2), torch.zeros(5, 2)
    x = aezoo.pad_sequences([a, b])
    assert x.shape == (2, 5, 2) and torch.equal(x[0, :3], a) and torch.isnan(x[0, 3:]).all() and torch.equal(x[1], b)
    assert aezoo.pad_sequences([[1, 2], [3]], length=4).shape == (2, 4, 1)
    for wrong, message in [([], "at least one"), ([a, torch.ones(3, 3)], "series 1"), ([torch.ones(0, 2)], "series 0")]:
        with pytest.raises(ValueError, match=message):
            aezoo.pad_sequences(wrong)
    with pytest.raises(ValueError, match="length=4"):
        aezoo.pad_sequences([a, b], length=4)


def test_waves():
    train, test = (aezoo.load_data("waves", split=s) for s in ("train", "test"))
    assert (len(train), len(test), train.shape) == (2000, 500, (64, 2)) and train.class_names == (
        "sine",
        "saw",
        "chirp",
    )
    assert torch.equal(train.x, aezoo.load_data("waves").x) and set(train.labels.tolist()) == {0, 1, 2}
    assert torch.cdist(test.x.flatten(1), train.x.flatten(1)).min() > 0.1  # no series is in both
    ragged = aezoo.load_data("waves-ragged")
    lengths = (~torch.isnan(ragged.x)).all(2).sum(1)
    assert lengths.min() == 24 and lengths.max() == 64
    assert torch.equal(ragged.x.nan_to_num(0), torch.where(torch.isnan(ragged.x), 0.0, train.x))
    with pytest.raises(ValueError, match="size="):
        aezoo.load_data("waves", size=8)


@pytest.mark.parametrize(
    "backbone", ["lstm(width=6)", "tcn(width=8, layers=1)", "transformer(width=8, layers=1, heads=2)"]
)
def test_training_on_ragged_series_learns_and_resumes(backbone, tmp_path, monkeypatch):
    x = aezoo.load_data("waves-ragged").x[:48, ::6].contiguous()  # (48, 11, 2)

    def model():
        torch.manual_seed(0)
        return aezoo.create_model(
            NAMES[backbone.split("(")[0]], input_shape=(11, 2), latent_dim=4, backbone=backbone, likelihood="gaussian"
        )

    whole = fit(model(), x, steps=9, lr=0.01, out=tmp_path / "a")
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    fit(model(), x, steps=4, lr=0.01, out=tmp_path / "b")
    again = fit(model(), x, steps=9, lr=0.01, out=tmp_path / "b", resume=True)
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), again.model.state_dict().items()):
        assert torch.equal(a, b), name
