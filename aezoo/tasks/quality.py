"""How near a restored image comes to the clean one, in torchmetrics' figures."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

SMALLEST = 6  # pixels along an edge that can be mirrored by half a window of SSIM, 5 pixels


class Quality(NamedTuple):
    psnr: float
    """-10 log10 of the squared error per pixel, in dB; infinite for equal images."""
    ssim: float
    """Structural similarity, 1 for equal images; NaN for images of less than 6 pixels along an edge."""


def torchmetrics_image() -> Any:
    """The module `torchmetrics.functional.image`. Raises ImportError saying how to install it."""
    try:
        import torchmetrics.functional.image as image
    except (ImportError, RuntimeError, OSError) as error:  # it imports torchvision, which may be broken
        raise ImportError(
            f'PSNR and SSIM of denoised images need torchmetrics ({error}); install it with: pip install "aezoo[tasks]"'
        ) from None
    return image


def quality(restored: Tensor, clean: Tensor) -> Quality:
    """Of one image (C, H, W) in [0, 1], which is clamped to that range first, against the clean one of the same shape.

    Neither is rounded to 8 bits. SSIM (Wang et al. 2004) under a Gaussian window of 11 x 11 pixels and sigma 1.5, over all pixels, with
    mirrored edges; `aezoo.functional.ssim` takes only the pixels around which all of the window lies in the image.
    Raises ValueError for other shapes, ImportError without torchmetrics."""
    if restored.shape != clean.shape or clean.dim() != 3:
        raise ValueError(
            f"two images (C, H, W) of one shape are compared; got {tuple(restored.shape)} and {tuple(clean.shape)}"
        )
    image = torchmetrics_image()
    a, b = (t[None].detach().cpu().float().clamp(0, 1) for t in (restored, clean))
    psnr = float(image.peak_signal_noise_ratio(a, b, data_range=1.0))
    if min(a.shape[2:]) < SMALLEST:
        return Quality(psnr, torch.nan)
    return Quality(psnr, float(image.structural_similarity_index_measure(a, b, data_range=1.0)))
