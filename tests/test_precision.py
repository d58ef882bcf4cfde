"""Models of half precision: what is averaged over many steps stays in float32."""

import pytest
import torch
from conftest import fit, make_images

import aezoo
from aezoo.likelihoods import LIKELIHOODS
from aezoo.quantizers import VectorQuantizer

CONV = {"backbone": "conv(widths=(4, 8))"}
CASES = [
    ("vq_vae", {"num_codes": 8, **CONV}),
    ("rvq_vae", {"num_codes": 8, **CONV}),
    ("vq_vae_2", {"num_codes": 8, "top_backbone": "conv(widths=(4,))", **CONV}),
    ("batch_topk_sae", {"k": 2, "backbone": "linear"}),
    ("sparse_ae", {"penalty": "kl", "backbone": "mlp(widths=(16,))"}),
    ("vae", {"likelihood": "laplace", "backbone": "mlp(widths=(16,))"}),
]


def averages(model):
    return {
        f"{prefix}.{k}".lstrip("."): m._buffers[k]
        for prefix, m in model.named_modules()
        for k in getattr(m, "averages", ())
        if m._buffers.get(k) is not None
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_running_averages_stay_in_float32(name, options, dtype, tmp_path):
    torch.manual_seed(1)
    model = aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=4, **options)
    before = {k: v.clone() for k, v in averages(model).items()}
    model.to(dtype)
    kept = averages(model)
    assert kept and all(v.dtype == torch.float32 and torch.equal(v, before[k]) for k, v in kept.items())
    assert next(model.parameters()).dtype == dtype
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    for k, v in averages(again).items():
        assert v.dtype == torch.float32 and ("new_" in k or "candidates" in k or torch.equal(v, kept[k]))
    assert all(v.dtype == torch.float64 for v in averages(model.double()).values())
    assert all(v.dtype == torch.float32 for v in averages(model.float()).values())


def test_a_codebook_of_a_half_precision_model_learns_what_it_should():
    """The same bfloat16 vectors for a hundred steps at decay 0.999: a step of 0.001 would be rounded away."""
    z = torch.randn(100, 16, 3, generator=torch.Generator().manual_seed(0)).bfloat16() + 1

    def learned(dtype):
        torch.manual_seed(1)
        quantizer = VectorQuantizer(4, 3, decay=0.999, revive=0.0, init="random").to(dtype)
        for batch in z:
            quantizer(batch.to(dtype))
            quantizer.after_step()
        return quantizer

    half, wide = learned(torch.bfloat16), learned(torch.float32)
    assert torch.equal(half.codebook, wide.codebook) and torch.equal(half.cluster_size, wide.cluster_size)


def test_a_running_scale_of_a_half_precision_model_arrives():
    likelihood = LIKELIHOODS.build("gaussian").bfloat16().train()
    for _ in range(1000):
        likelihood.nll(torch.zeros(4, 1, 8).bfloat16(), torch.full((4, 8), 0.25).bfloat16())
    assert float(likelihood.scale) == pytest.approx(0.25, rel=1e-4) and float(likelihood.weight) > 0.9999


@pytest.mark.parametrize("name", ["vq_vae", "sparse_ae"])
def test_half_precision_models_train(name):
    options = dict(CASES)[name]
    torch.manual_seed(1)
    model = aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=4, **options).bfloat16()
    rows = fit(model, make_images(32)[0], epochs=2).history
    assert rows[1]["recon"] < rows[0]["recon"] and all(v.dtype == torch.float32 for v in averages(model).values())
