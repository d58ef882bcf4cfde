"""The first losses of every model under a fixed seed. A change that moves them is either a bug or says so in the changelog.

pytest tests/test_golden.py --record-golden      writes tests/golden.json anew
"""

import json
from pathlib import Path

import pytest
import torch

import aezoo
from aezoo.registry import MODELS

GOLDEN = Path(__file__).with_name("golden.json")
CASES = [
    (name, backbone)
    for name in aezoo.list_models()
    for backbone in (["its own"] if MODELS[name].backbones else ["mlp(widths=(16,))", "conv(widths=(4, 8))"])
]


def losses(name, backbone):
    """Six steps on 24 fixed samples."""
    n, d = torch.meshgrid(torch.arange(24.0), torch.arange(81.0), indexing="ij")
    x = (0.5 + 0.5 * torch.sin(0.37 * n + 0.11 * d + 0.013 * n * d)).view(24, 1, 9, 9)
    torch.manual_seed(7)
    chosen = {} if MODELS[name].backbones else {"backbone": backbone}
    model = aezoo.create_model(name, input_shape=(1, 9, 9), latent_dim=6, **chosen)
    rows = []
    aezoo.fit(
        model, x, epochs=3, batch_size=12, lr=3e-3, seed=7, val=x, callbacks=[rows.append], progress=False, device="cpu"
    )
    return [value for row in rows for value in (row["loss"], row["val_loss"])]


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_golden(name, backbone, request):
    key = f"{name}/{backbone.split('(')[0]}"
    got = losses(name, backbone)
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if request.config.getoption("--record-golden"):
        kept[key] = got
        GOLDEN.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
        return
    assert key in kept, f"no golden losses for {key}; record them: pytest tests/test_golden.py --record-golden"
    assert got == pytest.approx(kept[key], rel=2e-4, abs=1e-5)


def test_no_golden_losses_of_models_that_are_gone(request):
    names = {f"{name}/{backbone.split('(')[0]}" for name, backbone in CASES}
    kept = json.loads(GOLDEN.read_text())
    if request.config.getoption("--record-golden"):
        GOLDEN.write_text(json.dumps({k: v for k, v in kept.items() if k in names}, indent=1) + "\n")
        return
    assert set(kept) == names
