"""Writes tests/fixtures/images.npz: images, and what scikit-image says of them. Needs scikit-image, which the tests do not:

python tests/record_images.py
"""

from pathlib import Path

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

SHAPES = ((1, 28, 28), (3, 16, 21), (1, 11, 11), (3, 40, 12))


def main():
    rng = np.random.default_rng(0)
    arrays = {}
    for i, (c, h, w) in enumerate(SHAPES):
        t, u = np.mgrid[0:h, 0:w]
        x = 0.5 + 0.4 * np.sin(0.3 * t + 0.2 * u * np.arange(1, c + 1)[:, None, None])
        x = np.round(255 * np.clip(x + 0.05 * rng.standard_normal(x.shape), 0, 1)).astype(np.uint8)
        noisy = np.clip(x / 255 + (0.02, 0.1, 0.3, 0.1)[i] * rng.standard_normal(x.shape), 0, 1)
        y = np.round(255 * noisy).astype(np.uint8)
        a, b = x / 255, y / 255
        options = {"data_range": 1, "channel_axis": 0}
        likeness = structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, **options)
        arrays |= {
            f"x{i}": x,
            f"y{i}": y,
            f"ssim{i}": likeness,
            f"psnr{i}": peak_signal_noise_ratio(a, b, data_range=1),
        }
    np.savez_compressed(Path(__file__).parent / "fixtures" / "images.npz", **arrays)


if __name__ == "__main__":
    main()
