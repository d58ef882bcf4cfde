"""Every model's loss, or what makes it that model, has a value by hand: here, or in the test that the table names.

By hand: with explicit sums, `torch.distributions` and the weights themselves, never by way of the model's own methods but for the
pieces that other tests hold (a critic's network, a quantiser's codes).
"""

import ast
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import distributions as D

import aezoo
from aezoo import functional as fn

FORMULA = {  # model: (test, what of which paper it is)
    "aae": ("test_adversarial.py::test_one_backward_pass_gives_the_gradients_of_two_optimisers", "arXiv:1511.05644, section 2"),
    "ae": ("test_formulas.py::test_layers_written_out", "Rumelhart, Hinton & Williams 1986, the squared error of what comes back"),
    "autoencoder_kl": ("test_image_models.py::test_kl_is_the_closed_form_summed_over_channels_and_grid", "arXiv:2112.10752, eq. 25"),
    "batch_topk_sae": ("test_sae.py::test_batch_topk_keeps_the_largest_of_the_whole_batch", "arXiv:2412.06410, section 3"),
    "beta_tc_vae": ("test_formulas.py::test_minibatch_estimates_come_near_the_parts_of_the_kl", "arXiv:1802.04942, eq. 2 and appendix C.2"),
    "beta_vae": ("test_formulas.py::test_negative_elbo_with_one_draw", "Higgins et al. 2017 (ICLR), eq. 4"),
    "capacity_vae": ("test_disentangling.py::test_capacity_takes_the_mean_first", "arXiv:1804.03599, eq. 8"),
    "ciwae": ("test_importance.py::test_limits_of_miwae_and_ciwae", "arXiv:1802.05538, section 4"),
    "contractive_ae": ("test_contractive.py::test_exact_ways_equal_the_jacobian_and_so_do_their_gradients", "Rifai et al. 2011 (ICML), eq. 3 and 5"),
    "conv_ae": ("test_formulas.py::test_convolutions_written_out", "Masci et al. 2011, eq. 1 to 3"),
    "conv_vae": ("test_formulas.py::test_negative_elbo_with_one_draw", "arXiv:1312.6114, eq. 10"),
    "crosscoder": ("test_sae_recipes.py::test_crosscoder_sums_layers_and_norms", "Lindsey et al. 2024, the loss of the section on the setup"),
    "cvae": ("test_formulas.py::test_conditional_bound", "Sohn et al. 2015 (NeurIPS), eq. 4"),
    "deep_ae": ("test_formulas.py::test_layers_written_out", "Hinton & Salakhutdinov 2006, figure 1: the unrolled net"),
    "denoising_ae": ("test_models.py::test_denoising_reconstructs_the_clean_input", "Vincent et al. 2008, eq. 5"),
    "dip_vae": ("test_disentangling.py::test_dip_moments", "arXiv:1711.00848, eq. 6 and 7"),
    "factor_vae": ("test_disentangling.py::test_factor_vae_estimates_a_log_ratio", "arXiv:1802.05983, eq. 2 and 3"),
    "fsq_ae": ("test_formulas.py::test_rounded_channels_written_out", "arXiv:2309.15505, section 3.1"),
    "gated_sae": ("test_sae_recipes.py::test_gated_paths_share_one_product_and_the_auxiliary_loss_never_moves_the_decoder", "arXiv:2404.16014, section 3.2"),
    "iaf_vae": ("test_flows.py::test_log_q_is_the_density_of_the_draw", "arXiv:1606.04934, eq. 11 and algorithm 1"),
    "info_vae": ("test_matching.py::test_info_vae_weights", "arXiv:1706.02262, eq. 6"),
    "iwae": ("test_importance.py::test_iwae_is_its_formula", "arXiv:1509.00519, eq. 8"),
    "joint_vae": ("test_disentangling.py::test_joint_loss", "arXiv:1804.00104, eq. 7"),
    "jump_relu_sae": ("test_sae_recipes.py::test_jump_relu_loss_and_threshold", "arXiv:2407.14435, section 3"),
    "k_sparse_ae": ("test_models.py::test_k_sparse_keeps_k_in_training_and_alpha_k_after", "arXiv:1312.5663, section 2.1"),
    "l1_sae": ("test_sae_recipes.py::test_l1_losses_of_both_recipes", "Bricken et al. 2023; Conerly et al. 2024"),
    "ladder_vae": ("test_hierarchical.py::test_kl_is_the_expectation_of_its_densities", "arXiv:1602.02282, eq. 8 to 14"),
    "lfq_ae": ("test_quantized.py::test_lfq_weights", "arXiv:2310.05737, eq. 4"),
    "linear_ae": ("test_formulas.py::test_layers_written_out", "Baldi & Hornik 1989, the error of x^ = A B x"),
    "lstm_ae": ("test_formulas.py::test_lstm_code_written_out", "arXiv:1502.04681, section 2.1: the equations of the unit"),
    "mae": ("test_masked.py::test_the_loss_is_the_mean_over_hidden_pixels_or_their_density", "arXiv:2111.06377, section 3"),
    "matryoshka_sae": ("test_sae.py::test_matryoshka_counts_every_prefix_and_the_empty_one", "arXiv:2503.17547, section 3"),
    "miwae": ("test_importance.py::test_miwae_is_the_mean_over_groups", "arXiv:1802.05538, section 4"),
    "rae": ("test_rae.py::test_total_and_latent_term", "arXiv:1903.12436, section 3"),
    "resnet_vae": ("test_formulas.py::test_negative_elbo_with_one_draw", "arXiv:1312.6114, eq. 10"),
    "rvq_vae": ("test_quantizers.py::test_residual_levels_code_what_is_left", "arXiv:2107.03312, algorithm 1"),
    "sim_vq_ae": ("test_quantizers.py::test_simvq_moves_all_codes_by_one_map", "arXiv:2411.02038, section 3"),
    "soft_intro_vae": ("test_formulas.py::test_soft_intro_totals", "arXiv:2012.13253, eq. 4 and algorithm 1"),
    "sparse_ae": ("test_models.py::test_kl_sparsity_has_the_running_value_and_the_batch_gradient", "Ng 2011 (CS294A notes), the sparsity term"),
    "stacked_denoising_ae": ("test_models.py::test_stacked_layers_see_the_clean_code_of_the_layers_below_and_corrupt_their_own_input", "Vincent et al. 2010 (JMLR 11), section 3.5"),
    "svae": ("test_spherical.py::test_svae_terms_and_code", "arXiv:1804.00891, eq. 3 and 4"),
    "swae": ("test_matching.py::test_deterministic_encoders", "arXiv:1804.01947, algorithm 1"),
    "tabular_ae": ("test_tabular.py::test_plain_loss_against_torch", "arXiv:1807.03653, section 3"),
    "tabular_vae": ("test_tabular.py::test_density_is_in_data_units_with_a_scale_for_each_column", "arXiv:1807.03653, section 3"),
    "tcn_ae": ("test_formulas.py::test_tcn_code_written_out", "arXiv:1803.01271, section 3.2 and figure 1"),
    "tied_ae": ("test_formulas.py::test_layers_written_out", "Vincent et al. 2008, section 2.1: W' = W^T"),
    "tied_linear_ae": ("test_formulas.py::test_layers_written_out", "Baldi & Hornik 1989, x^ = W^T (W x + b) + c"),
    "tiny_ae": ("test_formulas.py::test_tiny_tokenizer_written_out", "Bohan 2023 (TAESD), the published module"),
    "topk_sae": ("test_sparse_ops.py::test_loss_and_gradients_are_those_of_the_formula", "arXiv:2406.04093, section 2.3"),
    "transcoder": ("test_sae_recipes.py::test_transcoder_predicts_its_target", "arXiv:2406.11944, section 3"),
    "transformer_ae": ("test_formulas.py::test_transformer_code_written_out", "arXiv:1706.03762, eq. 1"),
    "unet_denoiser": ("test_denoisers.py::test_the_network_predicts_the_noise", "arXiv:1608.03981, eq. 1"),
    "vae": ("test_formulas.py::test_negative_elbo_with_one_draw", "arXiv:1312.6114, eq. 10"),
    "vae_gan": ("test_formulas.py::test_vae_gan_sides_and_total", "arXiv:1512.09300, eq. 5 to 8 and algorithm 1"),
    "vamp_vae": ("test_vamp.py::test_kl_is_taken_at_the_draw_against_the_mixture", "arXiv:1705.07120, eq. 9"),
    "vq_vae": ("test_quantizers.py::test_gradient_codebook_terms", "arXiv:1711.00937, eq. 3"),
    "vq_vae_2": ("test_quantized.py::test_terms_are_reduced_as_the_reconstruction_is", "arXiv:1906.00446, eq. 2 of each level, section 3.1"),
    "vqgan": ("test_formulas.py::test_vqgan_total", "arXiv:2012.09841, eq. 4 to 7"),
    "wae_mmd": ("test_matching.py::test_deterministic_encoders", "arXiv:1711.01558, algorithm 2"),
    "wta_ae": ("test_wta.py::test_each_latent_keeps_its_largest_activations_of_the_batch", "arXiv:1409.2752, section 2"),
}  # fmt: skip
OF_A_PIECE = {"rvq_vae", "sim_vq_ae", "vq_vae"}  # what makes them is a quantiser, which is tested by itself


def test_every_model_has_a_formula_that_is_tested():
    """The tests are there, in a file that builds the model, and the papers are the models' own."""
    assert set(FORMULA) == set(aezoo.list_models())
    files = {path.name: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")}
    defined = {
        f"{name}::{node.name}"
        for name, text in files.items()
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }
    for model, (test, paper) in FORMULA.items():
        assert test in defined, f"{model}: there is no {test}"
        cls = aezoo.registry.MODELS[model]
        said = paper.split(",")[0].split(";")[0]
        assert said in (cls.paper, *cls.__doc__.split()) or said in cls.__doc__ or cls.paper.startswith(said), (
            f"{model} is of {cls.paper}, its formula of {said}"
        )
        if model not in OF_A_PIECE:
            assert f'"{model}"' in files[test.split("::")[0]], f"{test} does not build {model}"


# -------------------------------------------------------------------------------------------------- layers, written out


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(name, shape=(6,), **more):
    """In float64; no bias stays at 0, so that none can be forgotten."""
    torch.manual_seed(3)
    model = aezoo.create_model(name, input_shape=shape, **more).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.1 * rand(*p.shape, seed=i))
    return model


def encoder_weights(model):
    return [(b.layer.weight, b.layer.bias) for b in model.encoder]


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("ae", "mlp(widths=(5, 4))"), ("deep_ae", None), ("linear_ae", None), ("tied_ae", "mlp(widths=(5, 4), tied=True)"),
     ("tied_linear_ae", None)],
)  # fmt: skip
def test_layers_written_out(name, backbone):
    """x^ = V_1 s(... V_n z), z = W_n s(... W_1 x), all with biases, and the mean of the squared error; tied: V_i = W_i^T."""
    model = build(name, latent_dim=3, **({"backbone": backbone} if backbone else {}))
    x = rand(4, 6, seed=9)
    forth = encoder_weights(model)
    back = [b.layer for b in model.decoder]
    assert len(forth) == len(back) == {"ae": 3, "tied_ae": 3, "deep_ae": 4}.get(name, 1)
    h = x
    for i, (w, b) in enumerate(forth):
        h = torch.einsum("oi,bi->bo", w, h) + b
        h = torch.where(h > 0, h, 0) if i < len(forth) - 1 else h
    assert torch.allclose(model.encode(x), h)
    for i, layer in enumerate(back):
        weight = forth[-1 - i][0].T if name.startswith("tied") else layer.weight
        h = torch.einsum("oi,bi->bo", weight, h) + layer.bias
        h = torch.where(h > 0, h, 0) if i < len(back) - 1 else h
    loss = model.loss(x)
    assert torch.allclose(model.reconstruct(x), h)
    assert torch.allclose(loss.total, (x - h).square().sum() / 24) and set(loss.terms) == {"recon"}


def shrunk(x, weight, bias):
    """A 3x3 convolution at every second place, element by element: (B, C, H, W) -> (B, C', H/2, W/2), rounded up."""
    n, _, height, width = x.shape
    padded = torch.zeros(n, x.shape[1], height + 2, width + 2, dtype=x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    out = torch.empty(n, len(weight), -(-height // 2), -(-width // 2), dtype=x.dtype)
    for r in range(out.shape[2]):
        for s in range(out.shape[3]):
            patch = padded[:, :, 2 * r : 2 * r + 3, 2 * s : 2 * s + 3]
            out[:, :, r, s] = torch.einsum("oikl,bikl->bo", weight, patch) + bias
    return out


def grown(h, weight, bias, height, width):
    """The adjoint of `shrunk`, place by place: each spreads over the 3x3 around it."""
    out = torch.zeros(len(h), weight.shape[1], height + 2, width + 2, dtype=h.dtype)
    for r in range(h.shape[2]):
        for s in range(h.shape[3]):
            out[:, :, 2 * r : 2 * r + 3, 2 * s : 2 * s + 3] += torch.einsum("iokl,bi->bokl", weight, h[:, :, r, s])
    return out[:, :, 1 : height + 1, 1 : width + 1] + bias.view(-1, 1, 1)


def test_convolutions_written_out():
    """Masci et al. 2011, eq. 1 to 3: h = s(W * x + b) here at every second place, x^ = the transposed one, the mean squared error."""
    model, x = build("conv_ae", (2, 5, 6), latent_dim=3, backbone="conv(widths=(4,))"), rand(3, 2, 5, 6, seed=9)
    conv, head = (b.layer for b in model.encoder)
    h = torch.relu(shrunk(x, conv.weight, conv.bias)).flatten(1)
    z = h @ head.weight.T + head.bias
    assert torch.allclose(model.encode(x), z)
    first, last = model.decoder[0].layer[0], model.decoder[1].layer
    h = torch.relu((z @ first.weight.T + first.bias).view(3, 4, 3, 3))
    recon = grown(h, last.weight, last.bias, 5, 6)
    assert torch.allclose(model.reconstruct(x), recon)
    assert torch.allclose(model.loss(x).total, (x - recon).square().sum() / (3 * 60))


def test_tiny_tokenizer_written_out():
    """Blocks relu(h + conv(relu(conv(relu(conv(h)))))), the code bounded by 3 tanh(z / 3), the mean squared error."""
    model, x = build("tiny_ae", (1, 4, 4), latent_dim=2, backbone="tiny(width=3, levels=1, blocks=1)"), rand(2, 1, 4, 4)
    with torch.no_grad():
        last = model.encoder[4]
        last.weight.mul_(
            8 / (model.encode(x) - last.bias.view(-1, 1, 1)).abs().max()
        )  # codes that the bound matters for

    def block(h, m):
        a, b, c = (layer for layer in m.conv if isinstance(layer, torch.nn.Conv2d))
        inner = torch.relu(F.conv2d(torch.relu(F.conv2d(h, a.weight, a.bias, padding=1)), b.weight, b.bias, padding=1))
        return torch.relu(h + F.conv2d(inner, c.weight, c.bias, padding=1))

    e, d = model.encoder, model.decoder
    h = block(F.conv2d(x, e[0].weight, e[0].bias, padding=1), e[1])
    h = block(F.conv2d(h, e[2].weight, None, stride=2, padding=1), e[3])
    z = F.conv2d(h, e[4].weight, e[4].bias, padding=1)
    assert torch.allclose(model.encode(x), z) and z.abs().max() > 3
    h = torch.relu(F.conv2d(3 * torch.tanh(z / 3), d[1].weight, d[1].bias, padding=1))
    h = block(h, d[3]).repeat_interleave(2, 2).repeat_interleave(2, 3)
    h = block(F.conv2d(h, d[5].weight, None, padding=1), d[6])
    recon = F.conv2d(h, d[7].weight, d[7].bias, padding=1)
    assert torch.allclose(model.loss(x).total, (x - recon).square().mean())


def test_rounded_channels_written_out():
    """arXiv:2309.15505: q = round(h tanh(z + atanh(o / h)) - o) / floor(L / 2), number by number, and the reconstruction alone."""
    model, x = build("fsq_ae", (6,), latent_dim=2, levels=(5, 4), backbone="linear"), rand(7, 6, seed=9)
    enc, dec = model.encoder[0][0].layer, model.decoder[1][0].layer
    z = (3 * (x @ enc.weight.T + enc.bias)).view(7, 2, -1)
    with torch.no_grad():
        enc.weight.mul_(3), enc.bias.mul_(3)  # all levels are reached
    code = model.encode(x).detach()
    assert len(code[:, 0].unique()) == 5 and len(code[:, 1].unique()) == 4
    for i in range(7):
        for c, levels in enumerate((5, 4)):
            for t in range(z.shape[2]):
                h, o = (levels - 1) / 2 * 1.001, 0.5 if levels % 2 == 0 else 0.0
                step = round(h * math.tanh(z[i, c, t].item() + math.atanh(o / h)) - o)
                assert float(code[i, c, t]) == pytest.approx(step / (levels // 2))
    loss = model.loss(x)
    recon = code.flatten(1) @ dec.weight.T + dec.bias
    assert torch.allclose(loss.total, (x - recon).square().mean()) and set(loss.terms) == {"recon"}


# ---------------------------------------------------------------------------------------------------------------- series


def test_lstm_code_written_out():
    """z = W h_T + b, h_T by the equations of the unit: c_t = f c_{t-1} + i g, h_t = o tanh(c_t), step by step."""
    model, x = build("lstm_ae", (4, 2), latent_dim=3, backbone="lstm(width=5)"), rand(3, 4, 2, seed=9)
    lstm, head = model.encoder[0].body.ahead[0], model.encoder[0].head
    hidden = cell = torch.zeros(3, 5, dtype=torch.float64)
    for t in range(4):
        gates = x[:, t] @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + hidden @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        i, f, g, o = gates.chunk(4, 1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
    assert torch.allclose(model.encode(x), hidden @ head.weight.T + head.bias)
    loss = model.loss(x)
    assert torch.allclose(loss.total, (x - model.reconstruct(x)).square().sum() / 24)


def positioned(h, positions):
    """h_t (1 + gain_t) + shift_t with gain and shift linear in sines and cosines of t: (B, T, W) -> (B, T, W)."""
    gain, shift = (positions.table @ positions.mix.weight.T).chunk(2, 1)
    return torch.stack([h[:, t] * (1 + gain[t]) + shift[t] for t in range(h.shape[1])], 1)


def test_tcn_code_written_out():
    """z = W mean_t h_t + b, h through blocks relu(h + g(g(h))), g relu of a convolution over the steps t - d, t and t + d, d = 1, 2."""
    model, x = build("tcn_ae", (7, 2), latent_dim=3, backbone="tcn(width=4, layers=2)"), rand(3, 7, 2, seed=9)
    body, head = model.encoder[0].body, model.encoder[0].head
    h = positioned(x @ body.embed.weight.T + body.embed.bias, body.positions)
    for d, block in zip((1, 2), body.blocks):
        y = h
        for conv in block.convs:
            new = []
            for t in range(7):
                reached = [(k, t + (k - 1) * d) for k in range(3) if 0 <= t + (k - 1) * d < 7]
                new.append(torch.relu(sum(y[:, s] @ conv.weight[:, :, k].T for k, s in reached) + conv.bias))
            y = torch.stack(new, 1)
        h = torch.relu(h + y)
    assert torch.allclose(model.encode(x), h.mean(1) @ head.weight.T + head.bias)


def test_transformer_code_written_out():
    """z = W mean_t norm(h_t) + b; a block adds attention softmax(q k^T / sqrt(d)) v of two heads (arXiv:1706.03762, eq. 1) and an MLP."""
    model = build("transformer_ae", (5, 2), latent_dim=3, backbone="transformer(width=4, layers=1, heads=2)")
    x, body, head = rand(3, 5, 2, seed=9), model.encoder[0].body, model.encoder[0].head

    def norm(v, layer):
        centred = v - v.mean(2, keepdim=True)
        return centred / torch.sqrt(centred.square().mean(2, keepdim=True) + layer.eps) * layer.weight + layer.bias

    (block,) = body.blocks
    h = positioned(x @ body.embed.weight.T + body.embed.bias, body.positions)
    q, k, v = (norm(h, block.norm1) @ block.attention.qkv.weight.T).split(4, 2)
    mixed = torch.zeros_like(h)
    for head_of in (slice(0, 2), slice(2, 4)):
        for t in range(5):
            scores = torch.stack([(q[:, t, head_of] * k[:, s, head_of]).sum(1) / math.sqrt(2) for s in range(5)], 1)
            odds = scores.exp() / scores.exp().sum(1, keepdim=True)
            mixed[:, t, head_of] = sum(odds[:, s, None] * v[:, s, head_of] for s in range(5))
    h = h + mixed @ block.attention.out.weight.T + block.attention.out.bias
    inner = norm(h, block.norm2) @ block.mlp[0].weight.T + block.mlp[0].bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    h = h + gelu @ block.mlp[2].weight.T + block.mlp[2].bias
    assert torch.allclose(model.encode(x), norm(h, body.norm).mean(1) @ head.weight.T + head.bias)


# ----------------------------------------------------------------------------------------------------------- variational


@pytest.mark.parametrize(
    ("name", "beta", "backbone"),
    [("vae", 1.0, "mlp(widths=(8,))"), ("beta_vae", 4.0, "mlp(widths=(8,))"), ("conv_vae", 1.0, "conv(widths=(4,))"),
     ("resnet_vae", 1.0, "resnet(widths=(4,), blocks=1)")],
)  # fmt: skip
def test_negative_elbo_with_one_draw(name, beta, backbone):
    """arXiv:1312.6114, eq. 10 (Higgins et al. 2017, eq. 4, with beta): -log p(x|z) + beta KL(q(z|x) || N(0, I)), z = mu + sigma eps."""
    model = build(name, (1, 4, 6), latent_dim=3, backbone=backbone, likelihood="bernoulli")
    x = (rand(5, 1, 4, 6, seed=9) > 0).double()
    mu, raw = model.encoder(x).chunk(2, 1)
    sigma = (0.5 * 10 * torch.tanh(raw / 10)).exp()
    torch.manual_seed(1)
    z = mu + sigma * torch.randn(5, 3, dtype=torch.float64)
    recon = -D.Bernoulli(logits=model.decoder(z)[:, 0]).log_prob(x).sum((1, 2, 3))
    kl = D.kl_divergence(D.Normal(mu, sigma), D.Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
    torch.manual_seed(1)
    loss = model.loss(x)
    assert torch.allclose(loss.total, (recon + beta * kl).mean())
    assert torch.allclose(loss.metrics["elbo"], -(recon + kl).mean())


def test_conditional_bound():
    """Sohn et al. 2015, eq. 4 with p(z|c) = N(0, I): -log p(x|z, c) + beta KL(q(z|x, c) || p(z)) with c's vector on both sides."""
    model = build(
        "cvae",
        (6,),
        latent_dim=2,
        num_classes=3,
        features=2,
        backbone="linear",
        likelihood="bernoulli",
        beta=1.5,
        drop=0.0,
    )
    x, c = (rand(5, 6, seed=9) > 0).double(), torch.tensor([0, 2, 1, 1, 0])
    e = model.embedding.weight[c]
    enc, dec = model.encoder[0].layer, model.decoder[0].layer
    h = (x + e @ model.shift.weight.T) @ enc.weight.T + enc.bias  # mu of 2 + 2 numbers, then as many raw log-variances
    mu, sigma = h[:, :2], (5 * torch.tanh(h[:, 4:6] / 10)).exp()
    torch.manual_seed(1)
    z = mu + sigma * torch.randn(5, 2, dtype=torch.float64)
    recon = -D.Bernoulli(logits=torch.cat([z, e], 1) @ dec.weight.T + dec.bias).log_prob(x).sum(1)
    kl = D.kl_divergence(D.Normal(mu, sigma), D.Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
    torch.manual_seed(1)
    out = model(x, condition=c)
    assert torch.allclose(out.terms["kl"], kl) and torch.allclose(out.terms["recon"], recon)
    torch.manual_seed(1)
    assert torch.allclose(model.loss(x, condition=c).total, (recon + 1.5 * kl).mean())


@pytest.mark.parametrize(
    "name", ["vae", "iwae", "cvae", "dip_vae", "info_vae", "iaf_vae", "joint_vae", "vamp_vae", "autoencoder_kl"]
)
def test_log_variances_are_never_cut_off(name):
    """At raw log-variances of -40 and 40 their bound still has a slope, so that the KL can pull them back; a clamp has none."""
    model = build(name, (6,), latent_dim=2)
    for raw in (-40.0, 40.0):
        h = torch.zeros_like(model.hidden(rand(3, 6))).fill_(raw).requires_grad_()
        mu, logvar = model.posterior(h)
        fn.gaussian_kl(mu.detach(), logvar).sum().backward()
        slope = h.grad.abs().flatten(1).sum(1)
        assert (slope > 1e-6).all() and logvar.abs().max() <= 30


def parts_by_integration(mu, logvar):
    """MI, TC and dimension-wise KL of q(z) = 1/N sum_j N(mu_j, exp(logvar_j)) in two dimensions, on a grid."""
    t = torch.linspace(-7, 7, 281, dtype=torch.float64)
    dt = float(t[1] - t[0])
    each = D.Normal(mu[:, :, None], (0.5 * logvar).exp()[:, :, None]).log_prob(t).exp()  # (N, 2, T)
    joint, marginal = (each[:, 0].T @ each[:, 1] / len(mu)).log(), each.mean(0).log()
    q = joint.exp() * dt * dt
    own = -0.5 * (1 + math.log(2 * math.pi) + logvar).sum(1).mean()  # E log q(z|x)
    tc = (q * (joint - marginal[0, :, None] - marginal[1])).sum()
    dwkl = (marginal.exp() * (marginal - D.Normal(0.0, 1.0).log_prob(t))).sum() * dt
    return own - (q * joint).sum(), tc, dwkl


def test_minibatch_estimates_come_near_the_parts_of_the_kl():
    """beta_tc_vae with stratified sampling, batches of 50 of 200 samples, against q(z) itself. The estimate of q(z) is unbiased, so its
    logarithm lies below on average (Jensen): the mean MI is too high, by less than 0.05 nats here, and DWKL as much too low; TC, a
    difference of two such logarithms, is within 0.015. With 1/N in column 0 instead of on the diagonal both err to the other side."""
    x = rand(200, 2)
    model = build("beta_tc_vae", (2,), latent_dim=2, backbone="linear", num_data=200)
    layer = model.encoder[0].layer
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 0.0], [0.0, 0.0]]))
        layer.bias.copy_(torch.tensor([0.0, 0.0, -1.0, -1.0]))
        mu, logvar = model.posterior(model.hidden(x))
        exact = parts_by_integration(mu, logvar)
        assert float(sum(exact)) == pytest.approx(float(fn.gaussian_kl(mu, logvar).mean()), abs=1e-6)
        torch.manual_seed(0)
        terms = [model.loss(x[torch.randperm(200)[:50]]).terms for _ in range(600)]
    bounds = ((0.0, 0.05), (-0.015, 0.015), (-0.05, 0.0))
    for name, truth, (least, most) in zip(("mi", "tc", "dwkl"), exact, bounds):
        gap = float(torch.stack([t[name] for t in terms]).mean()) - float(truth)
        assert least < gap < most, (name, gap, float(truth))


# ----------------------------------------------------------------------------------------------------------- adversarial


def certain(logit, real):
    """-log of the probability that a critic with this logit gives to what is so."""
    return torch.log1p(torch.exp(-logit if real else logit)).flatten()


def test_vae_gan_sides_and_total():
    """arXiv:1512.09300, algorithm 1: the critic's -log C(x) - 1/2 log(1 - C(x~)) - 1/2 log(1 - C(x_p)), the decoder's non-saturating
    answer, half for each kind, and encoder KL + gamma L_l; the likelihood's own term counts `pixel` times."""
    model = build(
        "vae_gan",
        (1, 8, 8),
        latent_dim=3,
        backbone="mlp(widths=(8,))",
        likelihood="bernoulli",
        gamma=2.0,
        pixel=0.25,
        beta=1.5,
    )
    x = rand(6, 1, 8, 8, seed=9).sigmoid()
    torch.manual_seed(1)
    mu, raw = model.encoder(x).chunk(2, 1)
    sigma = (5 * torch.tanh(raw / 10)).exp()
    z = mu + sigma * torch.randn(6, 3, dtype=torch.float64)
    drawn = torch.randn(6, 3, dtype=torch.float64)
    logits = model.decoder(z)[:, 0]
    tilde, made = torch.sigmoid(logits), torch.sigmoid(model.decoder(drawn)[:, 0])
    real, of_tilde, of_made = (model.critic.head(model.critic.body(v).flatten(2).mean(2)) for v in (x, tilde, made))
    critic = certain(real, True) + 0.5 * certain(of_tilde, False) + 0.5 * certain(of_made, False)
    adversarial = 0.5 * certain(of_tilde, True) + 0.5 * certain(of_made, True)
    features = 0.5 * (model.critic.body(x) - model.critic.body(tilde)).square().sum((1, 2, 3))
    recon = -(x * logits.sigmoid().log() + (1 - x) * (-logits).sigmoid().log()).sum((1, 2, 3))
    kl = 0.5 * (mu.square() + sigma.square() - 1 - 2 * sigma.log()).sum(1)
    torch.manual_seed(1)
    out = model(x)
    for name, hand in (
        ("critic", critic),
        ("adversarial", adversarial),
        ("features", features),
        ("recon", recon),
        ("kl", kl),
    ):
        assert torch.allclose(out.terms[name], hand), name
    torch.manual_seed(1)
    total = 0.25 * recon + 1.5 * kl + 2 * features + adversarial + critic
    assert torch.allclose(model.loss(x).total, total.mean())


def test_soft_intro_totals():
    """arXiv:2012.13253, algorithm 1: s = 1/D before recon, KL, the KL of decoded draws and gamma_r times their reconstruction; the
    exponential, 1/2 exp(-2 s (recon + beta_neg KL)), counts as it is."""
    options = {"likelihood": "gaussian(sigma=0.5)", "beta": 1.5, "beta_neg": 3.0, "gamma_r": 0.1}
    model, x = build("soft_intro_vae", (8,), latent_dim=3, backbone="mlp(widths=(8,))", **options), rand(5, 8, seed=9)

    def posterior(v):
        mu, raw = model.encoder(v).chunk(2, 1)
        return mu, (5 * torch.tanh(raw / 10)).exp()

    def kl(mu, sigma):
        return 0.5 * (mu.square() + sigma.square() - 1 - 2 * sigma.log()).sum(1)

    def cost(v, code):
        return -D.Normal(model.decoder(code)[:, 0], 0.5).log_prob(v).sum(1)

    torch.manual_seed(1)
    mu, sigma = posterior(x)
    recon, of_x = cost(x, mu + sigma * torch.randn(5, 3, dtype=torch.float64)), kl(mu, sigma)
    fake = model.decoder(torch.randn(5, 3, dtype=torch.float64))[:, 0]
    mu, sigma = posterior(fake)
    again = cost(fake, mu + sigma * torch.randn(5, 3, dtype=torch.float64))
    expelbo = 0.5 * torch.exp(-2 / 8 * (again + 3 * kl(mu, sigma)))
    torch.manual_seed(1)
    out = model(x)
    assert torch.allclose(out.terms["fake_recon"], again) and torch.allclose(out.terms["expelbo"], expelbo)
    total = recon / 8 + 1.5 * of_x / 8 + expelbo + 1.5 * kl(mu, sigma) / 8 + 0.1 * again / 8
    torch.manual_seed(1)
    assert torch.allclose(model.loss(x).total, total.mean())


def test_vqgan_total():
    """arXiv:2012.09841, eq. 4 to 6: |x - x^| + beta |z - sg(e)|^2 + gan_weight E[-C(x^)] + feature_weight E|f(x) - f(x^)|, and the critic's
    hinges max(0, 1 - C(x)) + max(0, 1 + C(x^)), means over elements, vectors and patches."""
    options = {
        "gan_weight": 0.5,
        "feature_weight": 0.25,
        "beta": 0.3,
        "critic_widths": (4,),
        "num_codes": 8,
        "init": "random",
    }
    model = build("vqgan", (1, 6, 6), latent_dim=2, backbone="resnet(widths=(4, 4), blocks=1)", **options)
    x = rand(4, 1, 6, 6, seed=9)
    with torch.no_grad():
        z = model.quant_conv(model.encoder(x))  # (B, 2, *grid)
        book = model.quantizer.codes(torch.arange(8)[None, :, None].expand(1, 8, 1)).reshape(2, 8).T.double()
        rows = z.flatten(2).transpose(1, 2)  # (B, T, 2)
        nearest = (rows[:, :, None] - book).square().sum(3).argmin(2)
        e = book[nearest].transpose(1, 2).view_as(z)
        recon = model.decoder(model.post_quant_conv(e))[:, 0]
        (real, f), (fake, g) = ((model.gan.critic.head(h.flatten(2).transpose(1, 2)).squeeze(2), h)
                                for h in (model.gan.critic.body(v) for v in (x, recon)))  # fmt: skip
    hinges = torch.clamp(1 - real, min=0).mean() + torch.clamp(1 + fake, min=0).mean()
    total = (
        (x - recon).abs().mean()
        + 0.3 * (z - e).square().mean()
        + 0.5 * -fake.mean()
        + 0.25 * (f - g).abs().mean()
        + hinges
    )
    loss = model.loss(x)
    assert torch.allclose(loss.terms["commitment"], (z - e).square().mean())
    assert torch.allclose(loss.total, total)
