"""Trains a blind grey denoiser and compares it with BM3D on Set12 and BSD68, on the same noisy images.

    python benchmarks/denoise.py --photos PHOTOS --test DIR        about an hour of training and an hour of BM3D on one CPU core

PHOTOS is a folder of photographs (the 24 of Kodak in the published figures; the first and the last by name are held out), DIR holds the
folders Set12 and BSD68. Noise of sigma 15, 25 and 50 (of 255) is drawn from the seed once, neither clipped nor rounded, and written to
--work, from where every side reads it; BM3D is told sigma, aezoo is not. Restored images are clipped to [0, 1]. PSNR and SSIM are
torchmetrics', means over images ± standard error. BM3D runs in an environment of its own (--envs), or in --bm3d PYTHON.

What is there is not done again: a call that was interrupted, or ended by --bm3d-seconds, goes on where it was. Writes DENOISE.md,
DENOISE.json and DENOISE.png beside this script.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import denoise_images as images
import denoise_report as report
import denoise_training as training
import envs
import numpy as np
import torch
from tqdm import tqdm

import aezoo
from aezoo.tasks.quality import quality
from aezoo.zoo import processor

HERE = Path(__file__).resolve().parent
GROUPS = ("Set12", "BSD68")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs to train on")
    parser.add_argument("--test", type=Path, required=True, help="folder that holds Set12 and BSD68")
    parser.add_argument("--run", type=Path, default=Path("runs/denoiser"), help="folder of the trained model")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/denoise-work"), help="noisy images and what BM3D made of them"
    )
    parser.add_argument("--envs", type=Path, default=Path("runs/envs"), help="folder of the environments")
    parser.add_argument("--bm3d", default=None, help="a Python that has the package bm3d; 'none' leaves BM3D out")
    parser.add_argument(
        "--bm3d-seconds", type=float, default=math.inf, help="stop BM3D after that long; the next call goes on"
    )
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument(
        "--max-time", default=None, help="stop training after that long, wherever it is: seconds, or '1h'"
    )
    parser.add_argument("--crops", type=int, default=32768)
    parser.add_argument("--crop", type=int, default=64, help="edge of a crop")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "DENOISE", help="without its ending")
    return parser.parse_args()


def bm3d(work: Path, envs_folder: Path, python: str | None, seconds: float) -> None:
    """Runs the side that fills WORK/bm3d, in its environment."""
    if python is None:
        envs_folder.mkdir(parents=True, exist_ok=True)
        python = envs.make("bm3d", envs_folder.resolve())["python"]
    limit = [] if seconds == math.inf else [str(seconds)]
    subprocess.run([python, str(HERE / "sides" / "denoise_bm3d.py"), str(work), *limit], check=True)


def done(work: Path, shot: images.Shot) -> bool:
    """Whether BM3D has restored this one."""
    return (work / "bm3d" / shot.place).with_suffix(".json").is_file()


def restored(model: aezoo.BaseAE, y: np.ndarray) -> tuple[torch.Tensor, float]:
    """(what aezoo makes of a noisy image (H, W), CPU seconds)."""
    began = time.process_time()
    x = aezoo.denoise(model, torch.from_numpy(y)[None], progress=False)
    return x, time.process_time() - began


def measured(model: aezoo.BaseAE, shots: list[images.Shot], work: Path, sides: list[str]) -> list[dict[str, Any]]:
    """One row for each noisy image and side."""
    rows = []
    for shot in tqdm(shots, "aezoo and scores"):
        y, clean = np.load(work / "noisy" / shot.place), shot.clean[None]
        for side in sides:
            seconds = 0.0
            if side == "noisy":
                x = torch.from_numpy(y)[None]
            elif side == "bm3d" and not done(work, shot):
                continue
            elif side == "bm3d":
                x = torch.from_numpy(np.load(work / "bm3d" / shot.place))[None]
                seconds = json.loads((work / "bm3d" / shot.place).with_suffix(".json").read_text())["cpu_seconds"]
            else:
                x, seconds = restored(model, y)
            score = quality(x, clean)
            rows.append({"set": shot.group, "sigma": shot.sigma, "image": shot.name, "side": side,
                         "psnr": score.psnr, "ssim": score.ssim, "cpu_seconds": round(seconds, 3)})  # fmt: skip
    return rows


def main() -> None:
    o = parse()
    learn, held_out = training.parted(o.photos)
    shots = images.shots({g: training.pictures(o.test / g) for g in GROUPS})
    pictured = images.pictured(held_out)
    images.write_noisy(o.work, [*shots, *pictured], o.seed)
    notes = training.trained(o.photos, o.run, o)
    sides = ["noisy", "aezoo"] + ["bm3d"] * (o.bm3d != "none")
    if "bm3d" in sides:
        bm3d(o.work, o.envs, o.bm3d, o.bm3d_seconds)
        missing = sum(not done(o.work, s) for s in [*shots, *pictured])
        if missing:
            print(
                f"BM3D has {missing} images to go, and is compared on those it has; the same command goes on with them"
            )
    torch.set_num_threads(1)
    model = aezoo.from_pretrained(o.run / "last")  # the running average after the last step
    about = {
        "training": {**notes, "photographs": len(learn), "held_out": [p.name for p in held_out], "parameters": model.num_parameters,
                     "crops": o.crops, "crop": o.crop, "batch_size": training.BATCH, "seed": o.seed},
        "hardware": processor(), "threads": 1, "torch": torch.__version__, "aezoo": aezoo.__version__,
    }  # fmt: skip
    first = next((s for s in [*pictured, *shots] if "bm3d" in sides and done(o.work, s)), None)
    if first is not None:
        about["bm3d"] = json.loads((o.work / "bm3d" / first.place).with_suffix(".json").read_text())["bm3d"]
    rows = measured(model, shots, o.work, sides)
    text = report.markdown(rows, sides, about)
    print(text)
    o.out.with_suffix(".json").write_text(
        json.dumps({**about, "means": report.means(rows, sides), "images": rows}, indent=1)
    )
    o.out.with_suffix(".md").write_text(text + "\n")
    report.picture(
        o.out.with_suffix(".png"),
        pictured,
        o.work,
        lambda y: restored(model, y)[0],
        all(done(o.work, s) for s in pictured),
    )


if __name__ == "__main__":
    main()
