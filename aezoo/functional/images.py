"""How alike two images are to the eye.

Legend: B batch, C channels, H height, W width; x and y images, mu local means, v local variances, c local covariance, L the range of
the values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import full, per_sample_mean

WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004, section III.B
K1, K2 = 0.01, 0.03


def gaussian_window(size: int, sigma: float, like: Tensor) -> Tensor:
    """Weights exp(-t^2 / (2 sigma^2)) at t = -(size-1)/2 ... (size-1)/2, adding up to 1: (size,)."""
    t = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    weights = torch.exp(-0.5 * (t / sigma).square())
    return weights / weights.sum()


def ssim_window(height: int, width: int) -> int:
    """Pixels along an edge of the window of `ssim`: 11, or the largest odd number that fits into a smaller image."""
    edge = min(WINDOW, height, width)
    return edge - (edge + 1) % 2


def ssim(x: Tensor, y: Tensor, value_range: float = 1.0) -> Tensor:
    """Structural similarity, 1 for equal images: (B, C, H, W) twice -> (B,), the mean over places and channels of

        (2 mu_x mu_y + (0.01 L)^2) (2 c + (0.03 L)^2) / ((mu_x^2 + mu_y^2 + (0.01 L)^2) (v_x + v_y + (0.03 L)^2))

    Paper: Wang, Bovik, Sheikh & Simoncelli 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13.
    Moments are those under a Gaussian window of 11 x 11 pixels and sigma 1.5, as in the paper, at the places where all of it lies in
    the image; channels are taken one by one. Images of less than 11 pixels have the largest odd window that fits, with the same sigma.
    Computed in float64 where the device has it. Raises ValueError for other shapes and for images of less than 3 pixels."""
    if x.shape != y.shape or x.dim() != 4 or min(x.shape[2:]) < 3:
        raise ValueError(
            f"ssim takes two batches of images (B, C, H, W) of at least 3 x 3 pixels; got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = (full(t) if t.device.type == "mps" else t.double() for t in (x, y))
    weights = gaussian_window(ssim_window(*x.shape[2:]), SIGMA, x)
    channels = x.shape[1]

    def smooth(image: Tensor) -> Tensor:  # one axis after the other
        along = weights.expand(channels, 1, 1, -1)
        return F.conv2d(F.conv2d(image, along, groups=channels), along.transpose(2, 3), groups=channels)

    mu_x, mu_y = smooth(x), smooth(y)
    v_x, v_y = smooth(x * x) - mu_x * mu_x, smooth(y * y) - mu_y * mu_y
    c = smooth(x * y) - mu_x * mu_y
    c1, c2 = (K1 * value_range) ** 2, (K2 * value_range) ** 2
    similarity = (2 * mu_x * mu_y + c1) * (2 * c + c2) / ((mu_x.square() + mu_y.square() + c1) * (v_x + v_y + c2))
    return per_sample_mean(similarity)
