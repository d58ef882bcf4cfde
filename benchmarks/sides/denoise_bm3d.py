"""BM3D (Dabov et al. 2007, the authors' package `bm3d`) over noisy images: WORK/noisy/SET/SIGMA/NAME.npy -> WORK/bm3d/SET/SIGMA/NAME.npy

    python benchmarks/sides/denoise_bm3d.py WORK [SECONDS]

Images are float32 (H, W) in [0, 1] plus noise of sigma SIGMA/255, which BM3D is told. Results that are there are left alone; beside each
lies NAME.json with the seconds it took. Stops before an image that would begin after SECONDS.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import bm3d
import numpy as np

work, limit = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
began = time.perf_counter()
noisy_images = (work / "noisy").glob("*/*/*.npy")
sets = {"picture": 0, "Set12": 1}  # in this order, then the others; in each all sigmas alike
for path in sorted(noisy_images, key=lambda p: (sets.get(p.parts[-3], 2), p.stem, p.parts[-2])):
    target = work / "bm3d" / path.relative_to(work / "noisy")
    if target.with_suffix(".json").is_file():
        continue
    if time.perf_counter() - began > limit:
        break
    noisy, sigma = np.load(path).astype(np.float64), float(path.parent.name) / 255
    at, busy = time.perf_counter(), time.process_time()
    restored = bm3d.bm3d(noisy, sigma)
    note = {"seconds": time.perf_counter() - at, "cpu_seconds": time.process_time() - busy, "bm3d": version("bm3d")}
    target.parent.mkdir(parents=True, exist_ok=True)
    np.save(target, restored.astype(np.float32))
    target.with_suffix(".json").write_text(json.dumps(note))
    print(f"bm3d {target.relative_to(work / 'bm3d')} {note['seconds']:.1f} s", flush=True)
