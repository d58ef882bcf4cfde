"""Compression: exact coding with integer tables, lossy and lossless, and what becomes of every bad file."""

import fractions
import math
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import aezoo
from aezoo.cli import main
from aezoo.storage import sha256
from aezoo.tasks import aez, ans, exact
from aezoo.tasks.bits_back import BitsBack, schedule
from aezoo.tasks.latent_tables import groups_of, make_tables, pop_codes, push_codes
from aezoo.tasks.mosaic import cut, joined

SMALL = "mlp(widths=(8,))"


def quiet(codec, x):
    return codec.decompress(codec.compress(x, progress=False), progress=False)


def trained(name, x, steps=40, **more):
    torch.manual_seed(0)
    more = {"latent_dim": 3, "backbone": SMALL, **more}
    model = aezoo.create_model(name, input_shape=tuple(x.shape[1:]), **more)
    aezoo.fit(model, x, steps=steps, lr=0.02, batch_size=40, progress=False, device="cpu")
    return model.eval()


@pytest.fixture(scope="module")
def grey():
    """(model, 8-bit data (N, 1, 3, 4), its lossless codec): ramps of four brightnesses, with noise."""
    g = torch.Generator().manual_seed(1)
    ramp = torch.linspace(0, 120, 12).view(1, 1, 3, 4) + 30 * torch.randint(4, (300, 1, 1, 1), generator=g)
    x = (ramp + 3 * torch.randn(ramp.shape, generator=g)).clamp(0, 255).round().to(torch.uint8)
    model = trained("vae", x.float() / 255, 150, likelihood="logistic_mixture(components=2)")
    return model, x, aezoo.Codec.fit(model, x, lossless=True, progress=False)


@pytest.fixture(scope="module")
def binary():
    x = (torch.rand(200, 10, generator=torch.Generator().manual_seed(2)) < torch.linspace(0, 1, 10)).float()
    model = trained("vae", x, 60, likelihood="bernoulli", latent_dim=2)
    return model, x, aezoo.Codec.fit(model, x, lossless=True, progress=False)


@pytest.fixture(scope="module")
def lossy():
    g = torch.Generator().manual_seed(3)
    x = (torch.rand(80, 3, generator=g) @ torch.rand(3, 20, generator=g) / 3).view(80, 1, 4, 5)  # of three numbers
    model = trained("ae", x, 300)
    return model, x, aezoo.Codec.fit(model, x, progress=False)


@pytest.fixture(scope="module")
def photos():
    """A model that is convolutional throughout."""
    x = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(4)).cumsum(-1) / 8
    model = trained("tiny_ae", x, 20, backbone="conv(widths=(4, 6))")
    return model, aezoo.Codec.fit(model, x, progress=False)


# --------------------------------------------------------------------------------------------------------------- coding


def test_tables_are_integers_that_sum_to_a_power_of_two():
    counts = np.array([[0, 0, 0], [1, 2, 3], [10**12, 0, 5]])
    made = ans.table(counts)
    assert made.dtype == np.int64 and (made >= 1).all() and (made.sum(1) == 2**20).all()
    assert made[0].tolist() == [349526, 349525, 349525]
    exactly = [fractions.Fraction(c * (2**20 - 3), 6) for c in (1, 2, 3)]
    assert [int(v) for v in made[1]][:2] == [1 + math.floor(e) for e in exactly[:2]]
    assert made[2].tolist() == [2**20 - 2, 1, 1]


def test_coding_costs_what_the_tables_say_and_comes_back():
    g = np.random.default_rng(0)
    tables = ans.table(g.integers(0, 1000, (4000, 7)) ** 2)
    symbols = np.array([g.choice(7, p=t / t.sum()) for t in tables])
    stack = ans.Stack()
    stack.push(symbols, tables)
    data, used = stack.payload()
    bits = -np.log2(tables[np.arange(4000), symbols] / 2**20).sum()
    assert used == 0 and bits - 8 <= 8 * len(data) <= 1.0005 * bits + 72
    back = ans.opened(data)
    assert np.array_equal(back.pop(tables), symbols) and back.is_fresh()


def test_a_seeded_stack_gives_back_what_was_popped_before_anything_was_pushed():
    tables = ans.table(np.random.default_rng(1).integers(1, 50, (300, 16)))
    stack = ans.Stack(seeded=True)
    drawn = stack.pop(tables)
    stack.push_uniform(np.arange(40), 64)
    data, used = stack.payload()
    entropy = -(tables / 2**20 * np.log2(tables / 2**20)).sum()
    assert abs(32 * used - entropy) < 0.2 * entropy  # the words that were popped; drawn as the tables say
    back = ans.opened(data, True, used)
    assert back.pop_uniform(40, 64).tolist() == list(range(40))
    back.push(drawn, tables)
    assert back.is_fresh()


def test_values_outside_the_tables_are_escaped():
    q = np.array([[0, 5], [1, 5], [0, 6]])
    groups = np.array([0, 1])
    lows, tables = make_tables(q, groups)
    far = np.array([[2**59, 5], [-(2**40), -300], [1, 7], [0, 6]])
    stack = ans.Stack()
    push_codes(stack, far, groups, lows, tables)
    back = ans.opened(stack.payload()[0])
    assert np.array_equal(pop_codes(back, 4, groups, lows, tables), far) and back.is_fresh()


def test_schedule_covers_all_samples_once():
    for n in (1, 2, 9, 700):
        parts = list(schedule(n, 16))
        assert [a for a, _ in parts] == [0] + [b for _, b in parts[:-1]] and parts[-1][1] == n
        assert max(b - a for a, b in parts) <= 16


# ---------------------------------------------------------------------------------------------------------------- exact


def test_a_linear_layer_is_exact_arithmetic():
    x, w = torch.randn(3, 50).double() * 20, exact.grid(torch.randn(4, 50).double())
    with exact.Exact(exact.make_tables()):
        y = torch.nn.functional.linear(x, w)
    for b in range(3):
        for o in range(4):
            want = sum(
                fractions.Fraction(float(v)) * fractions.Fraction(float(u)) for v, u in zip(exact.grid(x[b]), w[o])
            )
            assert fractions.Fraction(float(y[b, o])) == want


def test_inputs_are_cut_where_a_sum_would_round():
    w = torch.full((1, 4), 1000.0).double()
    with exact.Exact(exact.make_tables()):
        y = torch.nn.functional.linear(torch.full((1, 4), 1e9).double(), w)
    assert float(y) == 4 * 1000 * 2**8  # 2^20 / 4000 is between 2^8 and 2^9


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "silu", "gelu", "softplus", "elu", "leaky_relu"])
def test_activations_from_tables(name):
    x = torch.linspace(-40, 40, 4001).double()
    with exact.Exact(exact.make_tables()):
        y = getattr(torch.nn.functional, name)(x)
    assert torch.allclose(y, getattr(torch.nn.functional, name)(x), atol=1e-6)


@pytest.mark.parametrize(
    ("backbone", "shape"),
    [
        ("mlp(widths=(20,), activation='gelu', norm='batch')", (1, 6, 6)),
        ("conv(widths=(4, 5), activation='silu', norm='batch')", (1, 7, 6)),
        ("mlp(widths=(20,), tied=True)", (9,)),
    ],
)
def test_networks_do_not_depend_on_batch_or_threads_and_are_those_of_the_model(backbone, shape):
    tables = {**exact.make_tables(), "edges": torch.linspace(-5, 5, 2**16 + 1).double()}
    model = aezoo.create_model("vae", shape, latent_dim=5, backbone=backbone, likelihood="bernoulli").train()
    x = (torch.rand(33, *shape) > 0.5).float()
    model.loss(x)  # moves the batch norms
    both = BitsBack(model.eval(), tables)
    bins = np.random.default_rng(0).integers(0, 2**16, (33, 5))
    threads = torch.get_num_threads()
    found = []
    try:
        for n, parts in ((1, 1), (3, 33), (2, 7)):
            torch.set_num_threads(n)
            with torch.no_grad():
                each = [
                    (*both.posterior(part.long().numpy()), both.emitted(some))
                    for part, some in zip(x.chunk(parts), np.array_split(bins, len(x.chunk(parts))))
                    if len(part) == len(some)
                ]
            found.append([np.concatenate(column) for column in zip(*each)])
    finally:
        torch.set_num_threads(threads)
    assert all(np.array_equal(a, b) for a, b in zip(found[0], found[1]))
    assert np.array_equal(found[0][0][:25], found[2][0][:25])
    with torch.no_grad():
        mu, logvar = model.posterior(model.hidden(x))
    assert np.allclose(found[0][0], mu.flatten(), atol=2e-3)
    assert np.allclose(found[0][1], (logvar / 2).exp().flatten(), rtol=2e-3)


def test_digits_of_the_mixture_are_its_probabilities(grey):
    model, _, codec = grey
    both = codec._lossless()
    bins = np.array([[30000, 100, 65000]])
    params = both.emitted(bins)
    n = len(params[0])
    high = both.data_digit(params, np.zeros(n, np.int64), 0) / 2**20
    p = np.stack([high[:, d, None] * both.data_digit(params, np.full(n, d), 1) / 2**20 for d in range(16)], 1)
    with torch.no_grad():
        z = torch.from_numpy((both.edges[bins] + both.edges[bins + 1]) / 2).float()
        emitted = model.emit(z)
        values = torch.arange(256).view(256, 1, 1, 1).expand(256, 1, 3, 4) / 255
        want = -model.likelihood.elements(emitted.expand(256, *emitted.shape[1:]), values, torch.ones(256, 1, 3, 4) > 0)
    assert np.abs(p.reshape(n, 256).T - want.exp().reshape(256, n).numpy()).max() < 2e-3
    assert np.allclose(p.reshape(n, 256).sum(1), 1)


# ------------------------------------------------------------------------------------------------------------- lossless


def test_lossless_comes_back_to_the_bit_in_the_form_it_came(grey, binary):
    _, x, codec = grey
    for data in (x[:40], x[:1], x[:40].float() / 255):
        back = quiet(codec, data)
        assert back.dtype == data.dtype and torch.equal(back, data)
    strange = torch.randint(0, 256, (5, 1, 3, 4), dtype=torch.uint8)  # nothing like the training data
    assert torch.equal(quiet(codec, strange), strange)
    assert torch.equal(quiet(codec, np.asarray(x[:3])), x[:3])
    _, b, codec = binary
    assert torch.equal(quiet(codec, b), b)
    eight = b[:9].to(torch.uint8) * 255
    assert torch.equal(quiet(codec, eight), eight)


def test_weights_that_change_after_the_fit_are_noticed(binary):
    model, x, _ = binary
    codec = aezoo.Codec.fit(model, x, lossless=True, progress=False)
    data = codec.compress(x[:9], progress=False)
    first = next(model.parameters())
    before = first.data.clone()
    try:
        first.data += 0.1
        with pytest.raises(ValueError, match="another model's weights"):
            codec.decompress(data, progress=False)
        assert torch.equal(quiet(codec, x[:9]), x[:9])
    finally:
        first.data = before
    assert torch.equal(codec.decompress(data, progress=False), x[:9])


def test_lossless_costs_the_bound(grey, binary):
    """-ELBO in bits, to 2 %, beside the header and the bits to start with, for the 16-bit bins of one sample."""
    for model, x, codec in (grey, binary):
        data = x.float() / 255 if x.dtype == torch.uint8 else x
        with torch.no_grad():
            nats = sum(float(model.loss(data).total) for _ in range(10)) / 10 * len(x)
        bits = 8 * len(codec.compress(x, progress=False))
        overhead = 8 * 40 + 16 * 3 * 3
        assert abs(bits - overhead / 2 - nats / math.log(2)) < 0.02 * nats / math.log(2) + overhead / 2 + 100


def test_new_process_with_other_threads_decodes_and_codes_the_same_bytes(grey, lossy, tmp_path):
    for name, (model, x, codec) in {"grey": grey, "lossy": lossy}.items():
        model.save_pretrained(tmp_path / name)
        codec.save(tmp_path / name)
        (tmp_path / f"{name}.aez").write_bytes(codec.compress(x[:50], progress=False))
        np.save(tmp_path / f"{name}.npy", quiet(codec, x[:50]).numpy())
        np.save(tmp_path / f"{name}-x.npy", x[:50].numpy())
    code = """if True:
        import sys, numpy as np, torch, aezoo
        torch.set_num_threads(3)
        for name in ("grey", "lossy"):
            codec = aezoo.Codec.load(name, lossless=name == "grey")
            data = open(name + ".aez", "rb").read()
            x = codec.decompress(data, progress=False)
            want = torch.from_numpy(np.load(name + ".npy"))
            assert torch.equal(x, want) if name == "grey" else torch.allclose(x, want, atol=1e-6), name
            assert codec.compress(torch.from_numpy(np.load(name + "-x.npy")), progress=False) == data, name
        assert torch.get_num_threads() == 3
    """
    here = os.path.dirname(os.path.dirname(aezoo.__file__))
    env = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "4"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)


def test_lossless_refuses_models_without_a_discrete_likelihood(lossy):
    x = torch.rand(20, 6)
    for name, more, say in [
        ("vae", {"likelihood": "gaussian"}, "bernoulli"),
        ("ae", {}, "likelihood"),
        ("vamp_vae", {"likelihood": "bernoulli"}, "Gaussian posterior and the prior"),
        ("svae", {"likelihood": "bernoulli"}, "Gaussian posterior and the prior"),
        ("iaf_vae", {"likelihood": "bernoulli"}, "Gaussian posterior and the prior"),
    ]:
        model = aezoo.create_model(name, (6,), latent_dim=3, **more)
        with pytest.raises(ValueError, match=say):
            aezoo.Codec.fit(model, x, lossless=True)


# ---------------------------------------------------------------------------------------------------------------- lossy


def test_rounding_costs_no_more_than_asked_and_more_is_smaller(lossy):
    model, x, _ = lossy
    with torch.no_grad():
        plain = float((model.reconstruct(x) - x).square().mean())
    sizes = []
    for extra in (0.02, 0.3, 2.0):
        coarse = aezoo.Codec.fit(model, x, extra=extra, progress=False)
        error = float((quiet(coarse, x) - x).square().mean())
        assert error <= (1 + extra) * plain * 1.001
        sizes.append(len(coarse.compress(x, progress=False)))
    assert sizes[0] > sizes[1] > sizes[2]
    fixed = aezoo.Codec.fit(model, x, step=0.25, progress=False)
    z = torch.round(model.encode(x).double() / 0.25) * 0.25
    assert torch.allclose(quiet(fixed, x), model.decode(z.float()), atol=1e-6)


def test_the_file_is_as_long_as_its_tables_say(lossy):
    model, x, codec = lossy
    z = model.encode(x).detach().double().numpy()
    q = np.rint(z / codec.steps).astype(int)
    bits = -sum(np.log2(t[q[:, g] - codec.lows[g]] / 2**20).sum() for g, t in enumerate(codec.tables))
    data = codec.compress(x, progress=False)
    assert bits <= 8 * (len(data) - 30) + 64 and 8 * len(data) <= bits + 8 * 40


def test_dead_and_sparse_latents_cost_next_to_nothing():
    torch.manual_seed(0)
    model = aezoo.create_model("topk_sae", (6,), latent_dim=40, k=2)
    x = torch.randn(100, 6)
    codec = aezoo.Codec.fit(model, x, step=0.5, progress=False)
    assert len(groups_of(model)) == 40
    assert len(codec.compress(x, progress=False)) < 100 * 40 / 8
    z = torch.round(model.encode(x).double() / 0.5) * 0.5
    assert torch.allclose(quiet(codec, x), model.decode(z.float()), atol=1e-5)


@pytest.mark.parametrize("name", ["vq_vae", "rvq_vae", "vq_vae_2", "fsq_ae", "lfq_ae"])
def test_indices_are_coded_exactly(name):
    torch.manual_seed(0)
    backbones = {"backbone": "conv(widths=(4,))"} | (
        {"top_backbone": "conv(widths=(4,))"} if name == "vq_vae_2" else {}
    )
    latent = {} if name in ("fsq_ae", "lfq_ae") else {"latent_dim": 3, "num_codes": 8}
    model = aezoo.create_model(name, (1, 6, 6), **backbones, **latent).eval()
    x = torch.rand(12, 1, 6, 6)
    codec = aezoo.Codec.fit(model, x, progress=False)
    held = aez.read(codec.compress(x, progress=False))
    q = pop_codes(ans.opened(held.payload), 12, groups_of(model), codec.lows, codec.tables)
    assert codec.steps is None and np.array_equal(q, model.indices(x).flatten(1).numpy())
    assert torch.allclose(quiet(codec, x), model.reconstruct(x), atol=1e-6)


BITS_BACK = """autoencoder_kl beta_tc_vae beta_vae capacity_vae ciwae conv_vae cvae dip_vae factor_vae info_vae iwae miwae resnet_vae
soft_intro_vae vae vae_gan"""


@pytest.mark.slow
@pytest.mark.parametrize("name", aezoo.list_models())
def test_every_model_is_a_codec(name):
    torch.manual_seed(0)
    free = not aezoo.registry.MODELS[name].backbones
    more = {"backbone": "mlp(widths=(16,))"} if free else {}
    if not name.startswith("tabular"):
        model = aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=8, likelihood="bernoulli", **more).eval()
        x = torch.rand(12, 1, 12, 12).round()
        try:
            codec = aezoo.Codec.fit(model, x, lossless=True, progress=False)
        except ValueError:
            assert name not in BITS_BACK.split()
        else:
            assert name in BITS_BACK.split() and torch.equal(quiet(codec, x), x)
    model = aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=8, **more).eval()
    x = torch.rand(40, 1, 12, 12)
    codec = aezoo.Codec.fit(model, x, progress=False)
    back = quiet(codec, x)
    with torch.no_grad():
        plain = float((model.reconstruct(x) - x).square().mean())
    assert back.shape == x.shape
    assert float((back - x).square().mean()) <= 1.06 * plain
    assert torch.equal(quiet(codec, x[:3]), quiet(codec, x[:3]))


def test_nothing_else_changes(grey, lossy):
    for model, x, codec in (grey, lossy):
        model.train()
        before, threads, grads = (
            torch.get_rng_state(),
            torch.get_num_threads(),
            [p.requires_grad for p in model.parameters()],
        )
        aezoo.Codec.fit(model, x, lossless=codec.lossless, progress=False)
        quiet(codec, x[:9])
        assert torch.equal(before, torch.get_rng_state()) and model.training and threads == torch.get_num_threads()
        assert grads == [p.requires_grad for p in model.parameters()]
        model.eval()


# ------------------------------------------------------------------------------------------------------------- pictures


def test_tiles_are_put_together_as_they_were_cut():
    for h, w in ((1, 1), (8, 8), (13, 21), (5, 30)):
        x = torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
        tiles = cut(x, (8, 6))
        assert tiles.shape[1:] == (3, 8, 6) and torch.equal(joined(tiles, h, w), x)
    assert torch.equal(cut(torch.arange(3.0).view(1, 1, 3), (2, 4))[0, 0], torch.tensor([[0.0, 1, 2, 2]] * 2))


def test_a_convolutional_model_takes_a_picture_whole(photos):
    model, codec = photos
    x = torch.rand(3, 13, 19)
    data = codec.compress_picture(x, progress=False)
    held = aez.read(data)
    assert held.samples == 1 and held.shape == (3, 13, 19) and held.picture == (13, 19)
    big = aezoo.create_model("tiny_ae", (3, 13, 19), latent_dim=3, backbone="conv(widths=(4, 6))").eval()
    big.load_state_dict(model.state_dict())
    z = big.encode(x[None]).double()
    step = torch.from_numpy(codec.steps).view(1, 3, 1, 1)
    assert torch.allclose(
        codec.decompress(data, progress=False), big.decode((torch.round(z / step) * step).float())[0], atol=1e-5
    )


def test_other_models_take_a_picture_in_tiles(lossy, grey):
    _, _, codec = lossy
    x = torch.rand(1, 9, 7)
    data = codec.compress_picture(x, progress=False)
    assert aez.read(data).samples == 6 and codec.decompress(data, progress=False).shape == (1, 9, 7)
    _, _, codec = grey
    x = torch.randint(0, 256, (1, 7, 9), dtype=torch.uint8)
    assert torch.equal(codec.decompress(codec.compress_picture(x, progress=False), progress=False), x)
    with pytest.raises(ValueError, match=r"takes \(1, height, width\)"):
        codec.compress_picture(torch.zeros(3, 5, 5))


# ------------------------------------------------------------------------------------------------------------ bad input


def test_every_truncation_and_every_flipped_byte_is_an_error(grey, lossy):
    for _, x, codec in (grey, lossy):
        data = codec.compress(x[:2], progress=False)
        assert len(data) < 110
        for n in range(len(data)):
            with pytest.raises(ValueError, match="truncated|empty|damaged"):
                codec.decompress(data[:n])
        for i in range(len(data)):
            for bit in (1, 128):
                with pytest.raises(ValueError, match="damaged|not an .aez|version"):
                    codec.decompress(data[:i] + bytes([data[i] ^ bit]) + data[i + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            codec.decompress(data + b"\0")


def test_no_forged_checksum_gets_garbage_out_of_a_lossless_file(grey):
    _, x, codec = grey
    data = codec.compress(x[:2], progress=False)[:-4]
    for i in range(5, len(data)):
        bad = data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :]
        try:
            back = codec.decompress(bad + zlib.crc32(bad).to_bytes(4, "little"), progress=False)
        except ValueError:
            continue
        assert torch.equal(back if back.dtype == x.dtype else back * 255, x[:2].to(back.dtype))  # the flag of 8 bits


def test_files_of_others(grey, binary, lossy):
    model, x, codec = lossy
    data = codec.compress(x[:3], progress=False)
    other = trained("ae", x, 3)
    with pytest.raises(ValueError, match="another model's weights"):
        aezoo.Codec.fit(other, x, progress=False).decompress(data)
    with pytest.raises(ValueError, match="another codec of this model"):
        aezoo.Codec.fit(model, x, step=0.1, progress=False).decompress(data)
    with pytest.raises(ValueError, match="another model's weights"):
        binary[2].decompress(grey[2].compress(grey[1][:3], progress=False))
    vae, x, lossless = grey
    with pytest.raises(ValueError, match="written by a lossy codec"):
        lossless.decompress(aezoo.Codec.fit(vae, x, progress=False).compress(x[:3], progress=False))
    newer = data[:3] + bytes([aez.VERSION + 1]) + data[4:-4]
    with pytest.raises(ValueError, match=f"version {aez.VERSION + 1}.*reads version {aez.VERSION}"):
        codec.decompress(newer + zlib.crc32(newer).to_bytes(4, "little"))
    with pytest.raises(ValueError, match="not an .aez file"):
        codec.decompress(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match="empty"):
        codec.decompress(b"")
    with pytest.raises(TypeError, match="bytes"):
        codec.decompress("text")


def test_data_that_cannot_be_coded(grey, binary, lossy):
    _, x, codec = lossy
    nan = x[:4].clone()
    nan[2, 0, 0, 0] = math.nan
    for bad, error, say in [
        (torch.rand(3, 1, 5, 4), ValueError, "shape"),
        (torch.rand(3, 2, 4, 5), ValueError, "shape"),
        (torch.rand(1, 4, 5), ValueError, "shape"),
        (torch.rand(0, 1, 4, 5), ValueError, "empty"),
        (nan, ValueError, "sample 2 holds NaN"),
        (torch.full((1, 1, 4, 5), 1e38), ValueError, "not finite or beyond"),
        ("photo.png", TypeError, "tensor or an array"),
    ]:
        with pytest.raises(error, match=say):
            codec.compress(bad)
    _, x, codec = grey
    for bad, error, say in [
        (x[:2].float(), ValueError, "divide by 255"),
        (x[:2].float() / 255 + 1e-3 * (x[:2] < 200), ValueError, "lossless for the 256 values"),
        (x[:2].double() / 255, TypeError, "float64"),
        (x[:2].float() / 255 * math.nan, ValueError, "sample 0 holds NaN"),
        (x[:2, :, :2], ValueError, "shape"),
        (x[:2].float() / 255 - 1, ValueError, r"needs data in \[0, 1\]"),
    ]:
        with pytest.raises(error, match=say):
            codec.compress(bad)
    with pytest.raises(ValueError, match="0 and 1"):
        binary[2].compress(torch.full((2, 10), 0.5))


def test_values_that_fit_does_not_take(lossy):
    model, x, _ = lossy
    for more, say in (({"extra": 0}, "extra"), ({"step": -1.0}, "step"), ({"samples": 0}, "samples")):
        with pytest.raises(ValueError, match=say):
            aezoo.Codec.fit(model, x, **more)
    with pytest.raises(TypeError, match="BaseAE"):
        aezoo.Codec.fit("ae", x)
    with pytest.raises(ValueError, match="NaN"):
        aezoo.Codec.fit(model, torch.full_like(x, math.nan))


def test_without_the_package_it_says_how_to_install_it(lossy, monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match=r'pip install "aezoo\[compress\]"'):
        aezoo.Codec.fit(lossy[0], lossy[1])


def test_saved_codecs_are_checked(lossy, grey, tmp_path):
    model, x, codec = lossy
    model.save_pretrained(tmp_path)
    codec.save(tmp_path)
    data = codec.compress(x[:5], progress=False)
    again = aezoo.Codec.load(tmp_path)
    assert torch.equal(again.decompress(data, progress=False), codec.decompress(data, progress=False))
    with pytest.raises(FileNotFoundError, match="codec-lossless.json .there is one of the other kind"):
        aezoo.Codec.load(tmp_path, lossless=True)
    with pytest.raises(ValueError, match="other weights"):
        aezoo.Codec.load(tmp_path, trained("ae", x, 3))
    with pytest.raises(ValueError, match="other weights"):
        aezoo.Codec.load(tmp_path, grey[0])
    whole = (tmp_path / "codec.safetensors").read_bytes()
    for i in range(0, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "codec.safetensors").write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        try:
            loaded = aezoo.Codec.load(tmp_path)
        except ValueError as error:
            assert any(word in str(error) for word in ("damaged", "tables", "safetensors"))
        else:
            assert i < 300 and loaded.hash == codec.hash  # a letter of the header's own remarks
    (tmp_path / "codec.safetensors").write_bytes(whole)
    (tmp_path / "codec.json").write_text('{"format": 9}')
    with pytest.raises(ValueError, match="format 9"):
        aezoo.Codec.load(tmp_path)


# -------------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a VAE for 8-bit pictures, trained on a folder of them."""
    folder = tmp_path_factory.mktemp("run")
    for i in range(12):
        array = np.random.default_rng(i).integers(0, 256, (6, 6), dtype=np.uint8)
        (folder / "data").mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / "data" / f"{i}.png")
    model = aezoo.create_model(
        "vae", (1, 6, 6), latent_dim=2, backbone=SMALL, likelihood="logistic_mixture(components=2)"
    )
    source = aezoo.load_data(folder / "data")
    aezoo.fit(model, source, steps=3, out=folder / "run", progress=False, device="cpu")
    Image.fromarray(np.random.default_rng(99).integers(0, 256, (9, 14), dtype=np.uint8)).save(folder / "photo.png")
    return folder


def said(argv, capsys):
    capsys.readouterr()
    main([str(a) for a in argv])
    return capsys.readouterr().out


def refused(argv, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in argv])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count("\n") == 1
    return message


def test_decompressing_never_overwrites_what_was_compressed(run, tmp_path, capsys):
    """Without -o, beside a picture of the same name."""
    where, photo = run / "run", tmp_path / "photo.png"
    photo.write_bytes((run / "photo.png").read_bytes())
    before = sha256(photo)
    said(["compress", where, photo], capsys)
    assert "photo-back.png" in said(["decompress", where, tmp_path / "photo.aez"], capsys)
    assert sha256(photo) == before and Image.open(tmp_path / "photo-back.png").size == Image.open(photo).size
    photo.unlink()
    assert "photo.png" in said(["decompress", where, tmp_path / "photo.aez"], capsys) and photo.is_file()
    (tmp_path / "many").mkdir()
    for name in ("a", "b"):
        (tmp_path / "many" / f"{name}.png").write_bytes((run / "photo.png").read_bytes())
    said(["compress", where, tmp_path / "many"], capsys)
    said(["decompress", where, tmp_path / "many"], capsys)
    assert sha256(tmp_path / "many" / "a.png") == before
    assert len(list((tmp_path / "many").glob("*-back.png"))) == 2


def test_a_lossless_codec_is_refused_data_that_it_cannot_hold():
    grey = torch.rand(40, 1, 3, 4)
    model = aezoo.create_model("vae", input_shape=(1, 3, 4), latent_dim=2, likelihood="bernoulli")
    with pytest.raises(ValueError, match="lossless for the 2 values 0 and 1"):
        aezoo.Codec.fit(model, grey, lossless=True)


def test_pictures_that_are_all_the_same():
    x = torch.full((20, 1, 3, 4), 0.5)
    model = aezoo.create_model("ae", input_shape=(1, 3, 4), latent_dim=2)
    codec = aezoo.Codec.fit(model, x, progress=False)
    assert codec.decompress(codec.compress(x)).shape == x.shape


def test_commands(run, tmp_path, capsys):
    where, photo = run / "run", run / "photo.png"
    first = said(["compress", where, photo, "-o", tmp_path / "a.aez", "--lossless"], capsys)
    size = (tmp_path / "a.aez").stat().st_size
    assert "fitted to" in first and "it has none yet" in first and "decoded to the bit" in first
    assert f"{size:,} bytes with header and checksums, {8 * size / (9 * 14):.4g} bits per pixel" in first
    assert "fitted" not in said(["compress", where, photo, "-o", tmp_path / "b.aez", "--lossless"], capsys)
    assert sha256(tmp_path / "a.aez") == sha256(tmp_path / "b.aez")
    said(["decompress", where, tmp_path / "a.aez", "-o", tmp_path / "a.png"], capsys)
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), np.array(Image.open(photo)))

    assert "PSNR" in said(["compress", where, photo, "-o", tmp_path / "c.aez"], capsys)
    assert "asked for by --extra 0.5" in said(
        ["compress", where, photo, "-o", tmp_path / "c.aez", "--extra", "0.5"], capsys
    )
    said(["decompress", where, tmp_path / "c.aez", "-o", tmp_path / "c.png"], capsys)
    assert Image.open(tmp_path / "c.png").size == (14, 9)

    many = said(["compress", where, run / "data", "-o", tmp_path / "many"], capsys)
    assert "12 files in" in many and len(list((tmp_path / "many").glob("*.aez"))) == 12
    said(["decompress", where, tmp_path / "many", "-o", tmp_path / "back"], capsys)
    assert len(list((tmp_path / "back").glob("*.png"))) == 12

    np.save(tmp_path / "rows.npy", np.zeros((4, 1, 6, 6), np.uint8))
    assert "bits per value" in said(["compress", where, tmp_path / "rows.npy", "--lossless"], capsys)
    said(["decompress", where, tmp_path / "rows.aez", "-o", tmp_path / "rows-2.npy"], capsys)
    assert np.load(tmp_path / "rows-2.npy").shape == (4, 1, 6, 6)


def test_a_codec_that_is_fitted_anew_leaves_older_files_readable(run, tmp_path, capsys):
    where, photo = run / "run", run / "photo.png"
    (run / "few").mkdir()
    for i in range(3):
        array = np.random.default_rng(i).integers(0, 50, (6, 6), dtype=np.uint8)
        Image.fromarray(array).save(run / "few" / f"{i}.png")
    said(["compress", where, photo, "-o", tmp_path / "a.aez", "--extra", "0.3"], capsys)
    said(["decompress", where, tmp_path / "a.aez", "-o", tmp_path / "before.png"], capsys)
    assert "is kept in" in said(["compress", where, photo, "-o", tmp_path / "b.aez", "--data", run / "few"], capsys)
    for name in ("a", "b"):
        said(["decompress", where, tmp_path / f"{name}.aez", "-o", tmp_path / f"{name}.png"], capsys)
    assert sha256(tmp_path / "a.png") == sha256(tmp_path / "before.png")


def test_lossless_takes_no_picture_that_could_not_come_back(run, tmp_path, capsys):
    where, rng = run / "run", np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(tmp_path / "rgb.png")
    Image.fromarray(rng.integers(0, 256, (6, 6, 2), dtype=np.uint8), "LA").save(tmp_path / "la.png")
    Image.fromarray(rng.integers(0, 65536, (6, 6)).astype(np.uint16)).save(tmp_path / "deep.png")
    for name, lost in (("rgb", "colour"), ("la", "transparency"), ("deep", "more than 8 bits a channel")):
        path = tmp_path / f"{name}.png"
        assert lost in refused(["compress", where, path, "--lossless", "-o", tmp_path / "x.aez"], capsys)
        assert f"{lost} left out" in said(["compress", where, path, "-o", tmp_path / "y.aez"], capsys)
    said(["compress", where, run / "photo.png", "--lossless", "-o", tmp_path / "z.aez"], capsys)
    assert "every bit" in refused(["decompress", where, tmp_path / "z.aez", "-o", tmp_path / "z.jpg"], capsys)


def test_commands_refuse(run, tmp_path, capsys):
    where, photo = run / "run", run / "photo.png"
    said(["compress", where, photo, "-o", tmp_path / "a.aez"], capsys)
    whole = (tmp_path / "a.aez").read_bytes()
    (tmp_path / "short.aez").write_bytes(whole[:-9])
    (tmp_path / "none.aez").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("no picture")
    for argv, say in [
        (["decompress", where, tmp_path / "short.aez"], "damaged or truncated"),
        (["decompress", where, tmp_path / "none.aez"], "none.aez: empty"),
        (["decompress", where, photo], "not an .aez file"),
        (["decompress", where, tmp_path / "b.aez"], "no file"),
        (["decompress", where, tmp_path / "a.aez", "-o", tmp_path / "a.aez"], "would overwrite"),
        (["decompress", where, tmp_path / "a.aez", "-o", tmp_path / "a.xyz"], "no kind of picture"),
        (["decompress", where, tmp_path / "empty"], "holds no file"),
        (["compress", where, tmp_path / "empty"], "holds no file"),
        (["compress", where, tmp_path / "a.txt"], "cannot read"),
        (["compress", tmp_path / "empty", photo], "is no run folder"),
        (["compress", where, photo, "--extra", "-1"], "extra=-1"),
        (["compress", where, photo, "-o", photo], "would overwrite"),
    ]:
        assert say in refused(argv, capsys)
    aezoo.create_model("ae", (1, 6, 6), latent_dim=2, backbone=SMALL).save_pretrained(tmp_path / "other")
    assert "another model's weights" in refused(["decompress", tmp_path / "other", tmp_path / "a.aez"], capsys)
    assert "no config.yaml" in refused(["compress", tmp_path / "other", photo], capsys)
