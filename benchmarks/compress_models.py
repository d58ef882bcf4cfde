"""The models that `compress.py` codes with: what each is, what it is trained on, and for how long.

Kept in RUNS/NAME-seedN as any training run is, so that a benchmark that was stopped goes on from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

import aezoo


class Trained(NamedTuple):
    """A recipe of the benchmark."""

    model: dict[str, Any]
    data: dict[str, Any]
    fit: dict[str, Any]
    stop: int
    """Steps after which training ends, though the schedule is longer: a budget of minutes for a shared core."""


MLP = "mlp(widths=(200,), activation='relu')"
RECIPES = {
    "grey": Trained(
        {"name": "vae", "latent_dim": 50, "backbone": MLP, "likelihood": "logistic_mixture(components=3)"},
        {"source": "mnist"},
        {"epochs": 16, "batch_size": 200, "lr": 2e-3, "schedule": "cosine"},
        2100,
    ),
    "binary": Trained(
        {
            "name": "vae",
            "latent_dim": 40,
            "backbone": "mlp(widths=(200,), activation='relu')",
            "likelihood": "bernoulli",
        },
        {"source": "mnist", "binarize": "static"},
        {"epochs": 30, "batch_size": 200, "lr": 2e-3, "schedule": "cosine"},
        3600,
    ),
    "codes": Trained(
        {"name": "ae", "latent_dim": 32, "backbone": "mlp(widths=(512, 256), activation='relu')"},
        {"source": "mnist"},
        {"epochs": 12, "batch_size": 200, "lr": 2e-3, "schedule": "cosine"},
        1200,
    ),
    "photos": Trained(
        {"name": "tiny_ae", "latent_dim": 24, "backbone": "conv(widths=(32, 64, 128), kernel=5)"},
        {},
        {"steps": 2000, "batch_size": 16, "lr": 1e-3, "schedule": "cosine"},
        544,
    ),
}
HELD_OUT = 6  # photographs, the last ones by name, that the model of photographs never saw


def crops(folder: Path, edge: int, seed: int) -> torch.Tensor:
    """60 random crops of each photograph that is not held out, (N, 3, edge, edge), uint8."""
    from aezoo.data.images import read_image

    generator = torch.Generator().manual_seed(seed)
    parts = []
    for path in photographs(folder)[:-HELD_OUT]:
        image = read_image(path, None, 3)
        for _ in range(60):
            top, left = (int(torch.randint(0, s - edge + 1, (1,), generator=generator)) for s in image.shape[1:])
            parts.append(image[:, top : top + edge, left : left + edge])
    return torch.stack(parts)


def photographs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def trained(name: str, seed: int, data: str | None, photos: Path | None, runs: Path) -> aezoo.BaseAE:
    """The model of RECIPES[name], from RUNS where it is ready, else trained there."""
    folder = runs / f"{name}-seed{seed}"
    if (folder / "done").is_file():
        return aezoo.from_pretrained(folder)
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    shape = (3, 64, 64) if name == "photos" else (1, 28, 28)
    model = aezoo.create_model(input_shape=shape, **recipe.model)
    source: Any
    if name == "photos":
        assert photos is not None
        source = crops(photos, 64, seed)
    else:
        source = aezoo.load_data(**recipe.data, root=data)
    begun = (folder / "config.json").is_file()
    aezoo.fit(
        model,
        source,
        **recipe.fit,
        seed=seed,
        device="cpu",
        out=folder,
        resume=begun,
        progress=False,
        checkpoint_every=500,
        callbacks=[lambda row: row["step"] < recipe.stop],
    )
    model.save_pretrained(folder)
    (folder / "done").touch()
    return model
