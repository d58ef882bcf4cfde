"""Image tokenizers and their critic, against closed forms, explicit sums, and the published layouts."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_run, fit
from torch import distributions as D

import aezoo
from aezoo import functional as fn
from aezoo.blocks import Attention, Downsample, ResnetBlock, Upsample
from aezoo.models.patchgan import PatchCritic

SD = "resnet(widths=(128, 256, 512, 512), blocks=2, attention=True)"
SMALL = "resnet(widths=(4, 8), blocks=1, attention=True)"


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(n=4, shape=(1, 12, 12)):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def build(name, shape=(1, 12, 12), **more):
    torch.manual_seed(3)
    return aezoo.create_model(name, shape, **{"latent_dim": 3, "backbone": SMALL, **more})


# --------------------------------------------------------------------------------------------------------------- maths


def test_hinge_losses_are_means_over_patches_not_of_the_mean_patch():
    """arXiv:1705.02894: each patch has a hinge of its own; the hinge of the mean logit would be 0 here."""
    real, fake = torch.tensor([[4.0, -2.0]]), torch.tensor([[-5.0, 3.0]])
    assert fn.hinge_critic(real, fake).tolist() == [(0 + 3) / 2 + (0 + 4) / 2]
    assert fn.hinge_generator(fake).tolist() == [1.0]
    assert fn.hinge_critic(real.view(1, 1, 2), fake.view(1, 1, 1, 2)).tolist() == [3.5]


def test_gan_losses_equal_cross_entropies_in_nats():
    """arXiv:1406.2661, eq. 1 and section 3."""
    real, fake = 3 * rand(5, 7), 3 * rand(5, 7, seed=1)
    one, zero = torch.ones_like(real), torch.zeros_like(real)
    bce = F.binary_cross_entropy_with_logits
    both = bce(real, one, reduction="none").mean(1) + bce(fake, zero, reduction="none").mean(1)
    assert torch.allclose(fn.gan_critic(real, fake), both)
    assert torch.allclose(fn.nonsaturating_generator(fake), bce(fake, one, reduction="none").mean(1))
    sure = torch.full((1, 1), -40.0, requires_grad=True)  # the critic is sure: the minimax form has no gradient left
    fn.nonsaturating_generator(sure).sum().backward()
    assert sure.grad.item() == pytest.approx(-1.0)
    low = fn.gan_critic(torch.full((2,), 200.0).bfloat16(), torch.full((2,), -200.0).bfloat16())
    assert low.shape == (2,) and low.dtype == torch.float32 and not low.any()


def test_feature_matching_moves_the_reconstruction_alone():
    real, fake = rand(2, 3, 4).requires_grad_(), rand(2, 3, 4, seed=1).requires_grad_()
    value = fn.feature_matching(real, fake)
    assert torch.allclose(value, (real - fake).abs().mean((1, 2)))
    value.sum().backward()
    assert real.grad is None and fake.grad.abs().sum() > 0


def test_adaptive_weight():
    """arXiv:2012.09841, eq. 7."""
    assert fn.adaptive_weight(torch.tensor(3.0), torch.tensor(1.5)).item() == pytest.approx(2.0)
    assert fn.adaptive_weight(torch.tensor(3.0), torch.tensor(0.0)).item() == 1e4


# -------------------------------------------------------------------------------------------------------------- blocks


def test_attention_equals_the_softmax_written_out():
    block, x = Attention(8, groups=2).double(), rand(3, 8, 4, 5)
    h = block.group_norm(x).flatten(2)  # (B, C, T)
    q, k, v = (torch.einsum("dc,bct->bdt", m.weight, h) + m.bias[:, None] for m in (block.to_q, block.to_k, block.to_v))
    scores = torch.einsum("bci,bcj->bij", q, k) / 8**0.5  # one head: divided by the root of all channels
    mixed = torch.einsum("bij,bcj->bci", scores.exp() / scores.exp().sum(2, keepdim=True), v)
    out = torch.einsum("dc,bct->bdt", block.to_out[0].weight, mixed) + block.to_out[0].bias[:, None]
    assert torch.allclose(block(x), x + out.view_as(x), atol=1e-12)


def test_residual_block_equals_its_formula():
    block, x = ResnetBlock(2, 4, 6, groups=2).double(), rand(2, 4, 5, 3)
    h = block.conv1(F.silu(F.group_norm(x, 2, block.norm1.weight, block.norm1.bias, 1e-6)))
    h = block.conv2(F.silu(F.group_norm(h, 2, block.norm2.weight, block.norm2.bias, 1e-6)))
    assert torch.allclose(block(x), block.conv_shortcut(x) + h)
    assert ResnetBlock(1, 4, 4).conv_shortcut is None


@pytest.mark.parametrize(("size", "half"), [((6, 8), (3, 4)), ((7, 1), (4, 1))], ids=str)
def test_halving_pads_after_the_last_position_and_doubling_crops(size, half):
    down, up, x = Downsample(2, 3).double(), Upsample(2, 3, size).double(), rand(2, 3, *size)
    h = down(x)
    padded = torch.zeros(2, 3, 2 * half[0] + 1, 2 * half[1] + 1, dtype=torch.float64)
    padded[:, :, : size[0], : size[1]] = x  # (0, 1) on even axes, as the published weights expect
    assert h.shape == (2, 3, *half) and torch.allclose(h, F.conv2d(padded, down.conv.weight, down.conv.bias, stride=2))
    twice = h.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : size[0], : size[1]]
    assert torch.allclose(up(h), up.conv(twice))


# ------------------------------------------------------------------------------------------------------------- layouts


def both(prefix):
    return {f"{prefix}.weight", f"{prefix}.bias"}


def block_names(prefix, shortcut=False):
    parts = ["norm1", "conv1", "norm2", "conv2", *(["conv_shortcut"] if shortcut else [])]
    return set().union(*(both(f"{prefix}.{p}") for p in parts))


def mid_names(side):
    attention = [f"{side}.mid_block.attentions.0.{p}" for p in ("group_norm", "to_q", "to_k", "to_v", "to_out.0")]
    blocks = block_names(f"{side}.mid_block.resnets.0") | block_names(f"{side}.mid_block.resnets.1")
    return blocks.union(*map(both, attention))


def test_parameters_have_the_names_of_diffusers_autoencoder_kl():
    model = build("autoencoder_kl", (3, 16, 16), latent_dim=4)
    ends = ["conv_in", "conv_norm_out", "conv_out"]
    wanted = (
        set().union(*(both(f"{side}.{p}") for side in ("encoder", "decoder") for p in ends))
        | both("quant_conv")
        | both("post_quant_conv")
        | mid_names("encoder")
        | mid_names("decoder")
        | block_names("encoder.down_blocks.0.resnets.0")
        | both("encoder.down_blocks.0.downsamplers.0.conv")
        | block_names("encoder.down_blocks.1.resnets.0", shortcut=True)
        | block_names("decoder.up_blocks.0.resnets.0")
        | block_names("decoder.up_blocks.0.resnets.1")
        | both("decoder.up_blocks.0.upsamplers.0.conv")
        | block_names("decoder.up_blocks.1.resnets.0", shortcut=True)
        | block_names("decoder.up_blocks.1.resnets.1")
    )
    assert {name for name, _ in model.named_parameters()} == wanted
    state = model.state_dict()
    assert state["encoder.conv_out.weight"].shape == (8, 8, 3, 3) and state["quant_conv.weight"].shape == (8, 8, 1, 1)
    assert state["encoder.down_blocks.1.resnets.0.conv_shortcut.weight"].shape == (8, 4, 1, 1)
    assert state["decoder.mid_block.attentions.0.to_out.0.weight"].shape == (8, 8)


def test_stable_diffusions_sizes_give_its_number_of_parameters():
    with torch.device("meta"):
        model = aezoo.create_model("autoencoder_kl", input_shape=(3, 256, 256), latent_dim=4, backbone=SD)
    assert model.num_parameters == 83_653_863 and model.latent_shape == (4, 32, 32)
    groups = {m.num_groups for m in model.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert groups == {32}


def test_tiny_ae_has_the_indices_of_taesd():
    with torch.device("meta"):
        model = aezoo.create_model("tiny_ae", input_shape=(3, 64, 64), latent_dim=4, backbone="tiny(width=64)")
    convs = {k: set() for k in ("encoder", "decoder")}
    blocks = {k: set() for k in ("encoder", "decoder")}
    for name, _ in model.named_parameters():
        side, index, *rest = name.split(".")
        (blocks if rest[0] == "conv" else convs)[side].add(int(index))
    assert convs == {"encoder": {0, 2, 6, 10, 14}, "decoder": {1, 7, 12, 17, 19}}
    assert blocks == {
        "encoder": {1, 3, 4, 5, 7, 8, 9, 11, 12, 13},
        "decoder": {3, 4, 5, 8, 9, 10, 13, 14, 15, 18},
    }
    assert "encoder.1.conv.4.bias" in dict(model.named_parameters()) and model.encoder[2].bias is None
    assert model.latent_shape == (4, 8, 8) and model.num_parameters == 1_222_532 + 1_222_531


def test_tiny_ae_bounds_its_code_softly_before_decoding():
    model = build("tiny_ae", backbone="tiny(width=4, blocks=1)")
    z = 3 * torch.randn(2, *model.latent_shape)
    assert torch.equal(model.decoder[0](z), 3 * torch.tanh(z / 3))


# -------------------------------------------------------------------------------------------------------------- models


def test_kl_is_the_closed_form_summed_over_channels_and_grid():
    model, x = build("autoencoder_kl").double(), pictures().double()
    mu, logvar = model.posterior(model.hidden(x))
    assert mu.shape == (4, 3, 6, 6) == (4, *model.latent_shape)
    q = D.Normal(mu, (0.5 * logvar).exp())
    kl = D.kl_divergence(q, D.Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum((1, 2, 3))
    out, loss = model(x), model.loss(x)
    assert torch.allclose(out.terms["kl"], kl) and torch.allclose(out.metrics["elbo"], -(out.terms["recon"] + kl))
    recon = (x - out.recon).abs().flatten(1).sum(1) + 144 * torch.tensor(2.0).log()  # a Laplace of scale 1
    assert torch.allclose(out.terms["recon"], recon)
    assert torch.allclose(loss.total, loss.terms["recon"] + 1e-6 * loss.terms["kl"])
    assert torch.equal(model.encode(x), mu) and model.sample(2).shape == (2, 1, 12, 12)


@pytest.mark.parametrize("shape", [(3, 15, 9), (2, 13), (11,), (1, 5, 3, 7)], ids=str)
@pytest.mark.parametrize("name", ["resnet_vae", "autoencoder_kl", "vqgan", "tiny_ae"])
def test_odd_sizes_of_any_rank(name, shape):
    model, x = build(name, shape), pictures(4, shape)
    model.loss(x).total.backward()
    assert model(x).recon.shape == x.shape and not [k for k, p in model.named_parameters() if not p.grad.abs().sum()]
    grid = tuple(-(-s // 2) for s in (shape[1:] or shape))
    assert model.latent_shape == ((3,) if name == "resnet_vae" else (3, *grid))


def gradients(model, total):
    model.zero_grad()
    total.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


@pytest.mark.parametrize("name", ["autoencoder_kl", "vqgan"])
def test_each_side_of_the_game_moves_its_own_weights_alone(name):
    model, x = build(name, gan_weight=0.5, feature_weight=0.5), pictures()
    critic = {name for name, _ in model.named_parameters() if name.startswith("gan.")}
    for term in ("adversarial", "features", "recon"):
        assert not gradients(model, model.loss(x).terms[term]) & critic
    assert {"decoder.conv_out.weight", "encoder.conv_in.weight"} <= gradients(model, model.loss(x).terms["adversarial"])
    assert gradients(model, model.loss(x).terms["critic"]) == critic


def test_the_critic_judges_patches():
    critic, x = PatchCritic((1, 12, 12), (4, 6)), pictures()
    logits, h = critic(x)
    assert logits.shape == (4, 9) and h.shape == (4, 6, 3, 3)
    assert torch.allclose(logits[:, 5], critic.head(h[:, :, 1, 2])[:, 0], atol=1e-6)
    assert PatchCritic((7,), (4, 6))(torch.randn(2, 7))[0].shape == (2, 1)


def test_adversarial_terms_wait_for_their_step_and_count_only_in_training(tmp_path):
    model = build("vqgan", gan_weight=0.5, feature_weight=0.25, gan_start=2)
    seen = []
    for _ in range(3):
        seen.append([float(model.term_weights()[k]) for k in ("adversarial", "features")])
        model.after_step()
    assert seen == [[0, 0], [0, 0], [0.5, 0.25]] and "critic" not in model.term_weights()
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path)).train()
    assert float(again.term_weights()["adversarial"]) == 0.5  # the count of steps is saved
    model.eval()
    loss = model.loss(pictures())
    assert torch.allclose(loss.total, loss.terms["recon"] + 0.25 * loss.terms["commitment"])


@pytest.mark.parametrize("likelihood", ["l1", "mse", "gaussian(sigma=0.5)", "bce"])
def test_adaptive_weight_is_the_ratio_of_the_two_gradients(likelihood):
    """arXiv:2012.09841, eq. 7, with respect to the decoder's output."""
    model, x = build("vqgan", adaptive=True, gan_weight=0.8, likelihood=likelihood), pictures()
    params, _, terms, metrics = model.propagate(x)
    of_recon, of_gan = (
        torch.autograd.grad(terms[k].mean(), params, retain_graph=True)[0].norm() for k in ("recon", "adversarial")
    )
    assert metrics["balance"].item() == pytest.approx((of_recon / (of_gan + 1e-6)).item(), rel=1e-4)
    assert float(model.term_weights()["adversarial"]) == pytest.approx(0.8 * metrics["balance"].item())
    kept = model.gan.balance.clone()
    with model.evaluating(), torch.no_grad():
        model.loss(x)
    assert torch.equal(model.gan.balance, kept) and torch.isfinite(model.loss(x).total)


def test_adaptive_weight_leaves_a_running_scale_alone():
    plain, adaptive = (
        build("vqgan", gan_weight=0.8, adaptive=a, likelihood="gaussian(sigma='optimal')") for a in (False, True)
    )
    for model in (plain, adaptive):
        model.loss(pictures())
    assert torch.equal(plain.likelihood.moment, adaptive.likelihood.moment) and adaptive.likelihood.training


def test_without_weights_there_is_no_critic():
    assert build("autoencoder_kl").gan is None and build("vqgan", gan_weight=0.0, feature_weight=0.0).gan is None
    only = build("autoencoder_kl", feature_weight=1.0, adaptive=True)
    assert set(only.loss(pictures()).terms) == {"recon", "kl", "critic", "features"} and not only.gan.adaptive


@pytest.mark.parametrize(
    "wrong",
    [{"gan_weight": -1}, {"feature_weight": "a"}, {"gan_start": -1}, {"critic_widths": ()}, {"critic_widths": (0,)}],
)
def test_wrong_keywords_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build("vqgan", **wrong)


def test_vqgan_gives_indices_that_decode_to_the_reconstruction():
    model, x = build("vqgan", num_codes=16), pictures()
    indices = model.indices(x)
    assert indices.shape == (4, 6, 6) and torch.allclose(model.decode_indices(indices), model.reconstruct(x), atol=1e-6)


def test_a_resumed_run_with_a_critic_is_the_same_run(tmp_path, monkeypatch):
    x = pictures(32, (2, 16))

    def run(out, epochs, **more):
        model = build("autoencoder_kl", (2, 16), gan_weight=0.1, gan_start=2, adaptive=True, critic_widths=(4,))
        fit(model, x, epochs=epochs, out=tmp_path / out, **more)

    run("whole", 2)
    run("parts", 1)
    run("parts", 2, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
