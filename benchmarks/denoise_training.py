"""Training of the blind grey denoiser of `benchmarks/denoise.py`: crops of photographs, and one call of `aezoo.fit`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import aezoo
from aezoo.data.files import files_in
from aezoo.data.images import IMAGE_ENDINGS, read_image
from aezoo.train.checkpoints import Checkpoints, read

HELD_OUT = 2  # photographs that are not trained on: the first and the last by name, for validation and for the picture
SCALES = (1.0, 0.85, 0.7, 0.55)  # a photograph made smaller holds finer detail for its pixels
SIGMA = (0.0, 55 / 255)  # of the noise, uniformly for each crop: DnCNN's blind range (arXiv:1608.03981, section III-D)
BATCH, VALIDATION = 16, 256  # crops in a step, and in validation
BACKBONE = "unet(widths=[32, 64], bias=False)"  # free of additive constants: arXiv:1906.05478


def pictures(folder: Path) -> list[Path]:
    """The images below a folder, by name. Raises ValueError if there is none."""
    found = [p for p in files_in(folder) if p.suffix.lower() in IMAGE_ENDINGS] if folder.is_dir() else []
    if not found:
        raise ValueError(f"{folder} holds no image ({', '.join(IMAGE_ENDINGS)})")
    return found


def parted(photos: Path) -> tuple[list[Path], list[Path]]:
    """(photographs to train on, photographs held out)."""
    found = pictures(photos)
    if len(found) <= HELD_OUT:
        raise ValueError(
            f"{photos} holds {len(found)} photographs; it needs more than the {HELD_OUT} that are held out"
        )
    return found[1:-1], [found[0], found[-1]]


def crops(paths: list[Path], count: int, edge: int, seed: int) -> Tensor:
    """`count` grey crops (count, 1, edge, edge) uint8 at random places of random photographs, at one of `SCALES`, flipped and turned by
    quarters at random."""
    draw = torch.Generator().manual_seed(seed)
    levels = []  # of each photograph, at each scale
    for path in paths:
        whole = Image.fromarray(read_image(path, channels=1)[0].numpy())
        sizes = [(max(edge, round(whole.width * s)), max(edge, round(whole.height * s))) for s in SCALES]
        resized = [whole if size == whole.size else whole.resize(size, Image.Resampling.BICUBIC) for size in sizes]
        levels.append(
            [torch.frombuffer(bytearray(r.tobytes()), dtype=torch.uint8).view(r.height, r.width) for r in resized]
        )
    out = torch.empty(count, 1, edge, edge, dtype=torch.uint8)
    for i in tqdm(range(count), "crops", leave=False, delay=1.0):
        which, scale, flip, turn = (int(torch.randint(n, (), generator=draw)) for n in (len(levels), len(SCALES), 2, 4))
        image = levels[which][scale]
        top, left = (int(torch.randint(n - edge + 1, (), generator=draw)) for n in image.shape)
        crop = torch.rot90(image[top : top + edge, left : left + edge], turn)
        out[i, 0] = crop.flip(0) if flip else crop
    return out


def trained(photos: Path, run: Path, o: argparse.Namespace) -> dict[str, Any]:
    """Trains the run in folder `run`, or goes on with it, unless it has come to its end or to that of its time; returns its notes.

    {"steps": taken so far, "of": `o.steps`, "seconds": of all calls that came to an end, "stopped": why it ended, "lr"}."""
    note = run / "seconds.json"
    done = json.loads(note.read_text()) if note.is_file() else {"seconds": 0.0, "steps": 0, "stopped": ""}
    if done["steps"] >= o.steps or (done["stopped"] == "time" and o.max_time is not None):
        print(f"{run} is trained; delete it to train again")
        return done
    learn, held_out = parted(photos)
    torch.manual_seed(o.seed)
    model = aezoo.create_model(
        "unet_denoiser",
        input_shape=(1, o.crop, o.crop),
        latent_dim=128,
        backbone=BACKBONE,
        likelihood="l1",
        corruption={"name": "gaussian", "sigma": SIGMA, "when": "always"},
    )
    data, val = crops(learn, o.crops, o.crop, o.seed), crops(held_out, VALIDATION, o.crop, o.seed + 1)
    result = aezoo.fit(model, data, val=val, steps=o.steps, batch_size=BATCH, lr=o.lr, schedule="cosine", warmup=200, clip=0.5, ema=0.999,
                       seed=o.seed, precision="fp32", compile=False, max_time=o.max_time, out=run,
                       resume=(run / "config.yaml").is_file())  # fmt: skip
    steps = read(Checkpoints(run / "checkpoints").paths()[-1])[0]["step"]
    notes = {
        "seconds": round(done["seconds"] + result.seconds, 1),
        "steps": steps,
        "of": o.steps,
        "stopped": result.stopped,
        "lr": o.lr,
    }
    note.write_text(json.dumps(notes))
    return notes
